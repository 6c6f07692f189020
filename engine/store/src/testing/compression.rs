//! Compressed volumes: written, cut, moved and read at random, and compared with a model.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, KIB, MIB};

use super::contents::{BLOCK, Stamp, Volume, zstd};
use super::space::{counter, fsck, small_pool};
use super::{Pool, with_seeds};
use crate::api::{Compression, NewSnapshot, SetOptions, SubvolumeOptions, Usage, Verify};
use crate::error::StoreError;

fn stamps(random: &mut Random, count: usize) -> Vec<Stamp> {
    let one = random.range(1, 1 << 30) as u32;
    match random.below(3) {
        // All alike: shrinks to a block.
        0 => vec![one * 3 + 1; count],
        _ => (0..count as u32).map(|at| one + at).collect(),
    }
}

#[test]
fn what_is_compressed_reads_back_and_takes_less() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            for compression in ["lz4", "zstd:3", "zstd:19", "gzip:6"] {
                let options = SubvolumeOptions {
                    compression: compression.parse().unwrap(),
                    frame_bytes: *random.pick(&[8192, 16 << 10, 32 << 10, 128 << 10]),
                };
                let mut volume =
                    Volume::new(&pool, compression.split(':').next().unwrap(), 2 * MIB, options)
                        .await;
                let text: Vec<Stamp> = (0..512).map(|at| at * 3 + 1).collect();
                volume.write(0, &text, &mut random).await.unwrap();
                let usage = volume.usage().await;
                assert_eq!(usage.own_bytes + usage.saved_bytes, 2 * MIB, "{compression}");
                // A frame of two blocks shrinks to one at best.
                let most = if options.frame_bytes == 8192 { MIB } else { 3 * MIB / 4 };
                assert!(usage.own_bytes <= most, "{options:?}: {usage:?}");
                volume.verify_all().await;
                volume.verify(3, 1).await;
                pool.client().subvolume_delete(&volume.name).await.unwrap();
            }
            let mut volume = Volume::new(&pool, "v", 2 * MIB, zstd()).await;
            // A single block cannot shrink, and noise does not.
            volume.write(7, &[1], &mut random).await.unwrap();
            volume.write(16, &[3; 1], &mut random).await.unwrap();
            let noise: Vec<Stamp> = (1..=64).map(|at| at * 3).collect();
            volume.write(64, &noise, &mut random).await.unwrap();
            let expected = Usage { own_bytes: 66 * 4096, ..Usage::default() };
            assert_eq!(volume.usage().await, expected);
            volume.verify_all().await;
            fsck(&pool).await;
        });
    });
}

#[test]
fn options_are_kept_taken_over_and_checked() {
    let pool = Pool::new(1, 2);
    pool.run(async |pool| {
        let volume = Volume::new(&pool, "v", MIB, SubvolumeOptions::default()).await;
        volume.set(Compression::Gzip(9), 64 << 10).await;
        let client = pool.client();
        let new = |name: &str, writable| NewSnapshot {
            source: "v".to_owned(),
            name: name.to_owned(),
            writable,
        };
        client.snapshot_create(&[new("s", false), new("c", true)]).await.unwrap();
        let bad = SetOptions { frame_bytes: Some(12 << 10), ..SetOptions::default() };
        let refused = client.subvolume_set("v", bad).await;
        assert!(matches!(refused, Err(StoreError::InvalidArgument { .. })), "{refused:?}");
        let refused = client.subvolume_set("s", SetOptions::default()).await;
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
        let none = client.subvolume_set("nobody", SetOptions::default()).await;
        assert!(matches!(none, Err(StoreError::NotFound { .. })), "{none:?}");
    });
    pool.crash_and_open();
    pool.run(async |pool| {
        let expected =
            SubvolumeOptions { compression: Compression::Gzip(9), frame_bytes: 64 << 10 };
        for name in ["v", "s", "c"] {
            let info = pool.client().subvolume_get(name).await.unwrap();
            assert_eq!(info.options, expected, "{name}");
        }
    });
}

/// One step of what clients do.
async fn step(volume: &mut Volume, random: &mut Random) {
    let all = volume.blocks.len();
    let from = random.below(all as u64) as usize;
    let most = if random.chance(1, 2) { 3 } else { 120 };
    let count = (random.range(1, most) as usize).min(all - from);
    match random.below(20) {
        0..=10 => {
            let stamps = stamps(random, count);
            match volume.write(from, &stamps, random).await {
                Ok(()) => {}
                Err(StoreError::NoSpace { .. }) => volume.discard(0, all / 4).await,
                Err(error) => panic!("{error}"),
            }
        }
        11..=13 => volume.discard(from, count).await,
        14 => {
            let levels = ["none", "lz4", "zstd:1", "zstd:3", "gzip:1"];
            let compression = random.pick(&levels).parse().unwrap();
            volume.set(compression, 8192 << random.below(5)).await;
        }
        _ => volume.verify(from, count).await,
    }
}

#[test]
fn random_changes_of_compressed_volumes_are_what_was_done() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 2, 48);
        let mut volumes = pool.run(async move |pool| {
            let mut volumes = Vec::new();
            for name in ["a", "b"] {
                volumes.push(Volume::new(&pool, name, 20 * MIB, zstd()).await);
            }
            volumes
        });
        let mut random = Random::new(seed);
        for round in 0..4 {
            let mut own = random.fork();
            volumes = pool.run(async move |pool| {
                for at in 0..400 {
                    let volume = &mut volumes[at % 2];
                    step(volume, &mut own).await;
                }
                for volume in &volumes {
                    volume.verify_all().await;
                }
                fsck(&pool).await;
                pool.client().flush().await.unwrap();
                volumes
            });
            if round % 2 == 0 {
                pool.crash_and_open();
            }
        }
        assert!(counter(&pool, "space_saved_blocks") > 100);
    });
}

/// Blocks of what was filled become dead inside frames, and copygc has to make room of it.
#[test]
fn copygc_moves_frames_and_stores_parts_of_frames_anew() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 32);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut volume = Volume::new(&pool, "v", 48 * MIB, zstd()).await;
            let mut overwrites = 0;
            while counter(&pool, "copygc_blocks_moved") < 2000 {
                // Frames with noise within: they shrink by a third.
                let from = random.below(volume.blocks.len() as u64 / 4) as usize * 4;
                let stamps = stamps(&mut random, 4);
                let whole = volume.write(from, &stamps, &mut random).await;
                let middle = from + random.below(4) as usize;
                let cut = volume.write(middle, &[overwrites * 3 + 3], &mut random).await;
                overwrites += 1;
                for result in [whole, cut] {
                    match result {
                        Ok(()) => {}
                        Err(StoreError::NoSpace { .. }) => {
                            let from = random.below(11 * 1024) as usize;
                            volume.discard(from, 512).await;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                assert!(overwrites < 200_000, "copygc has nothing to do");
            }
            volume.verify_all().await;
            fsck(&pool).await;
            assert!(counter(&pool, "compression_decoded_blocks") > 0);
        });
    });
}

/// What is said to be free can be written, also where each write cuts a frame, and what is full can be emptied.
#[test]
fn cutting_frames_of_a_full_pool_ends_in_no_space_and_nothing_else() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 32);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let options = SubvolumeOptions { frame_bytes: 32 << 10, ..zstd() };
            let mut volume = Volume::new(&pool, "v", 96 * MIB, options).await;
            let all = volume.blocks.len();
            for from in (0..all).step_by(256) {
                volume.write(from, &[from as u32 * 3 + 1; 256], &mut random).await.unwrap();
            }
            let before = volume.usage().await;
            assert!(before.own_bytes < 16 * MIB, "{before:?}");
            // The middle of each frame becomes noise.
            let (mut refused, mut written) = (false, 0);
            for at in 0..all / 8 {
                let from = at * 8 + 1 + random.below(6) as usize;
                match volume.write(from, &[at as u32 * 3 + 3], &mut random).await {
                    Ok(()) => written += 1,
                    Err(StoreError::NoSpace { .. }) => {
                        refused = true;
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
                if at % 512 == 0 {
                    let status = pool.client().status().await.unwrap();
                    let free: u64 = status.iter().map(|shard| shard.available_bytes).sum();
                    // A block of noise, and a part of a frame that counts anew.
                    let most = (all / 8 - at) as u64 * 2 * 4 * KIB;
                    assert!(at == 0 || free < 32 * MIB - written * 2 * KIB, "{free} {most}");
                }
            }
            assert!(refused || written == all as u64 / 8);
            volume.verify_all().await;
            let usage = volume.usage().await;
            assert!(usage.own_bytes >= before.own_bytes + written * 8 * KIB - 8 * KIB, "{usage:?}");
            volume.discard(0, all).await;
            assert_eq!(volume.usage().await, Usage::default());
            fsck(&pool).await;
        });
    });
}

/// That something is compressed takes nothing off what can be written, to the last block.
#[test]
fn what_is_said_to_be_free_can_be_written_beside_frames() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 24);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut text = Volume::new(&pool, "text", MIB, zstd()).await;
            text.write(0, &[1; 256], &mut random).await.unwrap();
            assert!(counter(&pool, "space_saved_blocks") > 0);
            let status = pool.client().status().await.unwrap();
            let free = status[0].available_bytes / BLOCK_SIZE;
            let mut noise = Volume::new(&pool, "noise", 64 * MIB, zstd()).await;
            for at in 0..free as usize {
                let written = noise.write(at, &[at as u32 * 3 + 3], &mut random).await;
                assert_eq!(written, Ok(()), "{at} of {free}");
            }
            noise.verify_all().await;
            fsck(&pool).await;
        });
    });
}

/// A frame is decoded once for all reads of its blocks that come soon after.
#[test]
fn decoded_blocks_are_cached() {
    let pool = Pool::new(1, 1);
    pool.run(async |pool| {
        let mut random = Random::new(1);
        let mut volume = Volume::new(&pool, "v", 2 * MIB, zstd()).await;
        let text: Vec<Stamp> = (0..512).map(|at| at * 3 + 1).collect();
        volume.write(0, &text, &mut random).await.unwrap();
        pool.shard(0).set_data_cache_bytes(4 << 20);
        let decoded = || counter(&pool, "compression_decoded_blocks");
        volume.verify_all().await;
        let once = decoded();
        assert!((512..=640).contains(&once), "{once}");
        volume.verify_all().await;
        assert_eq!(decoded(), once);
        // A check of the medium reads it again.
        let report = pool.client().fsck(Verify::All).await.unwrap();
        assert!(report.problems.is_empty() && decoded() >= 2 * once - 128);
        volume.write(4, &[7; 4], &mut random).await.unwrap();
        volume.verify(0, 8).await;
        assert!(decoded() > 2 * once - 128);
    });
}

/// A frame that rotted is an error for all its blocks, and for no others; the damage list names them.
#[test]
fn a_frame_that_rotted_is_told() {
    let pool = Pool::new(1, 1);
    pool.run(async |pool| {
        let mut random = Random::new(1);
        let mut volume = Volume::new(&pool, "v", MIB, zstd()).await;
        for from in (0..32).step_by(4) {
            let text: Vec<Stamp> = (from..from + 4).map(|at| at as u32 * 3 + 1).collect();
            volume.write(from, &text, &mut random).await.unwrap();
        }
        pool.client().flush().await.unwrap();
        let engine = pool.shard(0).engine().clone();
        let at = crate::key::Position::new(volume.volume.inode.0, 8, 0);
        let to = crate::key::Position::MAX;
        let found = engine.read().next(crate::key::Tree::Extents, at, to).await.unwrap().unwrap();
        let extent = crate::extent::Extent::decode(&found.1).unwrap();
        assert_eq!((found.0.offset, extent.blocks, extent.frame.is_some()), (8, 4, true));
        let byte = extent.pointers[0].block as usize * BLOCK + 99;
        pool.device().with_bytes(|bytes| bytes[byte] ^= 1);
        let client = pool.client();
        for block in 4..8_u64 {
            let read = client.volume_read(&volume.volume, block * 4096, 4096).await;
            assert!(matches!(read, Err(StoreError::DataLoss { .. })), "{read:?}");
        }
        volume.verify(0, 4).await;
        volume.verify(8, 24).await;
        pool.quiet().await;
        let report = client.fsck(Verify::All).await.unwrap();
        assert_eq!(report.problems.len(), 4, "{:?}", report.problems);
    });
}
