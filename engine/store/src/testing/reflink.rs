//! Copies of volumes by reference: shared, written over, moved, given up, lost and counted, and compared with a model.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};

use super::contents::{BLOCK, Stamp, Volume, zstd};
use super::space::{counter, fsck, small_pool};
use super::{Pool, with_seeds};
use crate::api::{CopyStats, NewSnapshot, SubvolumeOptions, Usage, Verify};
use crate::client::VolumeRef;
use crate::error::StoreError;
use crate::extent::{Address, Extent, Holder, Holders, Sharing};
use crate::key::{Counter, Position, Tree};
use crate::transaction::Transaction;

fn plain() -> SubvolumeOptions {
    SubvolumeOptions::default()
}

/// Copies blocks, in the model, too.
async fn copy(
    from: &Volume,
    at: usize,
    to: &mut Volume,
    there: usize,
    count: usize,
) -> Result<CopyStats, StoreError> {
    let bytes = |block: usize| (block * BLOCK) as u64;
    let (source, target) = ((&from.volume, bytes(at)), (&to.volume, bytes(there)));
    let stats = to.pool.client().volume_copy(source, target, bytes(count)).await?;
    assert_eq!(stats.shared_bytes + stats.copied_bytes, bytes(count));
    to.blocks[there..there + count].copy_from_slice(&from.blocks[at..at + count]);
    Ok(stats)
}

/// Blocks of all shards that are shared.
fn shared_blocks(pool: &Pool) -> u64 {
    let of = |shard| pool.shard(shard).engine().counter(Counter::SHARED_BLOCKS);
    (0..pool.shard_count()).map(of).sum()
}

async fn live_bytes(pool: &Pool) -> u64 {
    let status = pool.client().status().await.unwrap();
    status.iter().map(|shard| shard.data_bytes).sum()
}

fn text(count: usize) -> Vec<Stamp> {
    (0..count as u32).map(|at| at * 3 + 1).collect()
}

#[test]
fn a_copy_shares_its_blocks_until_one_of_the_two_is_written() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 2);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            for (number, options) in [plain(), zstd()].into_iter().enumerate() {
                let name = |of: &str| format!("{of}{number}");
                let mut source = Volume::new(&pool, &name("source"), 4 * MIB, options).await;
                let mut target = Volume::new(&pool, &name("target"), 4 * MIB, options).await;
                for from in (0..1000).step_by(125) {
                    source.write(from, &text(125), &mut random).await.unwrap();
                }
                let (before, used) = (source.usage().await, live_bytes(&pool).await);
                let home = |volume: &Volume| volume.volume.inode.home(2);
                let stats = copy(&source, 0, &mut target, 0, 1024).await.unwrap();
                if home(&source) != home(&target) {
                    assert_eq!(stats.shared_bytes, 0, "another shard has it");
                    continue;
                }
                assert_eq!(stats.copied_bytes, 0);
                assert_eq!(live_bytes(&pool).await, used, "nothing is written");
                let expected = Usage { own_bytes: 4000 << 10, ..Usage::default() };
                assert_eq!(target.usage().await, expected, "it counts in full for each");
                assert!(before.own_bytes <= source.usage().await.own_bytes);
                source.verify_all().await;
                target.verify_all().await;
                source.write(100, &[7; 50], &mut random).await.unwrap();
                target.write(90, &[9; 30], &mut random).await.unwrap();
                target.discard(500, 100).await;
                source.verify_all().await;
                target.verify_all().await;
                fsck(&pool).await;
                assert!(shared_blocks(&pool) > 0);
                pool.client().subvolume_delete(&source.name).await.unwrap();
                pool.quiet().await;
                target.verify_all().await;
                fsck(&pool).await;
                pool.client().subvolume_delete(&target.name).await.unwrap();
                pool.quiet().await;
                fsck(&pool).await;
                assert_eq!(shared_blocks(&pool), 0);
            }
        });
    });
}

#[test]
fn what_is_shared_with_nobody_any_more_is_ordinary_again() {
    let pool = Pool::new(1, 1);
    pool.run(async |pool| {
        let mut random = Random::new(1);
        let mut source = Volume::new(&pool, "source", 4 * MIB, plain()).await;
        let mut target = Volume::new(&pool, "target", 4 * MIB, plain()).await;
        source.write(0, &text(256), &mut random).await.unwrap();
        copy(&source, 0, &mut target, 0, 256).await.unwrap();
        assert_eq!(shared_blocks(&pool), 256);
        // Half of it goes in the one, the other half in the other.
        target.discard(0, 128).await;
        source.discard(128, 128).await;
        pool.quiet().await;
        assert_eq!(shared_blocks(&pool), 0);
        assert!(counter(&pool, "shared_extents_unshared") >= 8);
        // A hole in the middle, and back: cut in three, and all of it the source's again.
        copy(&source, 0, &mut target, 0, 128).await.unwrap();
        target.discard(40, 8).await;
        target.discard(0, 256).await;
        pool.quiet().await;
        assert_eq!(shared_blocks(&pool), 0);
        source.verify_all().await;
        target.verify_all().await;
        fsck(&pool).await;
    });
}

#[test]
fn copies_are_refused_where_they_make_no_sense() {
    let pool = Pool::new(1, 1);
    pool.run(async |pool| {
        let mut random = Random::new(1);
        let mut volume = Volume::new(&pool, "v", MIB, plain()).await;
        volume.write(0, &text(64), &mut random).await.unwrap();
        let client = pool.client();
        let snapshot =
            NewSnapshot { source: "v".to_owned(), name: "s".to_owned(), writable: false };
        let made = client.snapshot_create(&[snapshot]).await.unwrap();
        let snapshot = VolumeRef::from(&made[0]);
        let own = &volume.volume.clone();
        let invalid = |result: Result<CopyStats, StoreError>| {
            assert!(matches!(result, Err(StoreError::InvalidArgument { .. })), "{result:?}");
        };
        invalid(client.volume_copy((own, 0), (own, 4096), 8192).await);
        invalid(client.volume_copy((own, 0), (own, 8192), 4097).await);
        invalid(client.volume_copy((own, 0), (own, MIB - 4096), 8192).await);
        invalid(client.volume_copy((own, MIB - 4096), (own, 0), 8192).await);
        let refused = client.volume_copy((own, 0), (&snapshot, 0), 8192).await;
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })), "{refused:?}");
        let none = client.volume_copy((own, 0), (own, 8192), 0).await;
        assert_eq!(none, Ok(CopyStats::default()));
        // Back from a snapshot, at the same place, and from there elsewhere.
        volume.write(0, &[5; 64], &mut random).await.unwrap();
        let done = client.volume_copy((&snapshot, 0), (own, 0), 64 * BLOCK_SIZE).await.unwrap();
        assert_eq!(done.shared_bytes, 64 * BLOCK_SIZE);
        volume.blocks[..64].copy_from_slice(&text(64));
        client.volume_copy((&snapshot, 0), (own, 128 * BLOCK_SIZE), 64 * BLOCK_SIZE).await.unwrap();
        volume.blocks[128..192].copy_from_slice(&text(64));
        volume.verify_all().await;
        client.subvolume_delete("s").await.unwrap();
        pool.quiet().await;
        volume.verify_all().await;
        fsck(&pool).await;
    });
}

/// What clients do, at random.
struct Run {
    pool: Pool,
    random: Random,
    volumes: Vec<Volume>,
    made: u32,
}

impl Run {
    async fn step(&mut self) {
        let number = self.random.below(self.volumes.len() as u64) as usize;
        let all = self.volumes[number].blocks.len();
        let most = if self.random.chance(1, 2) { 4 } else { 200 };
        let from = self.random.below(all as u64) as usize;
        let count = (self.random.range(1, most) as usize).min(all - from);
        match self.random.below(100) {
            0..=34 => {
                let one = self.random.range(1, 1 << 30) as u32;
                let stamps: Vec<Stamp> = match self.random.below(3) {
                    0 => vec![one * 3 + 1; count],
                    _ => (0..count as u32).map(|at| one + at).collect(),
                };
                let volume = &mut self.volumes[number];
                match volume.write(from, &stamps, &mut self.random).await {
                    Ok(()) => {}
                    Err(StoreError::NoSpace { .. }) => self.make_room().await,
                    Err(error) => panic!("{error}"),
                }
            }
            35..=44 => self.volumes[number].discard(from, count).await,
            45..=74 => self.copy(number, from, count).await,
            75..=77 => self.branch(number).await,
            78..=79 if self.volumes.len() > 2 => {
                let gone = self.volumes.swap_remove(number);
                self.pool.client().subvolume_delete(&gone.name).await.unwrap();
            }
            80 => {
                let levels = ["none", "lz4", "zstd:1", "gzip:1"];
                let compression = self.random.pick(&levels).parse().unwrap();
                let frame = 8192 << self.random.below(5);
                self.volumes[number].set(compression, frame).await;
            }
            _ => self.volumes[number].verify(from, count).await,
        }
    }

    async fn copy(&mut self, number: usize, from: usize, count: usize) {
        let other = self.random.below(self.volumes.len() as u64) as usize;
        let all = self.volumes[other].blocks.len();
        // Often to the same place, so that it is the same shard.
        let there = match self.random.below(3) {
            0 => self.random.below((all - count) as u64 + 1) as usize,
            _ => from.min(all - count),
        };
        let source = &self.volumes[number];
        let (volume, blocks) = (source.volume.clone(), source.blocks[from..from + count].to_vec());
        let bytes = |block: usize| (block * BLOCK) as u64;
        let target = &mut self.volumes[other];
        if number == other && from < there + count && there < from + count {
            return;
        }
        let copied = self
            .pool
            .client()
            .volume_copy((&volume, bytes(from)), (&target.volume, bytes(there)), bytes(count))
            .await;
        match copied {
            Ok(_) => target.blocks[there..there + count].copy_from_slice(&blocks),
            Err(StoreError::NoSpace { .. }) => {
                // Some of it may be there.
                target.discard(there, count).await;
                self.make_room().await;
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A snapshot, or a clone that goes on by itself.
    async fn branch(&mut self, number: usize) {
        if self.volumes.len() > 5 {
            return;
        }
        self.made += 1;
        let name = format!("clone{}", self.made);
        let source = &self.volumes[number];
        let new = NewSnapshot { source: source.name.clone(), name: name.clone(), writable: true };
        let made = self.pool.client().snapshot_create(&[new]).await.unwrap();
        let blocks = source.blocks.clone();
        let volume = VolumeRef::from(&made[0]);
        self.volumes.push(Volume { pool: self.pool.clone(), name, volume, blocks });
    }

    async fn make_room(&mut self) {
        for volume in &mut self.volumes {
            let all = volume.blocks.len();
            let from = self.random.below(all as u64 / 2) as usize;
            volume.discard(from, all / 3).await;
        }
    }
}

fn random_run(seed: u64, shards: u16, mib: u64, rounds: u32, steps: u32) {
    let pool = small_pool(seed, shards, mib);
    let mut run = pool.run(async move |pool| {
        let mut volumes = Vec::new();
        for (name, options) in [("a", plain()), ("b", zstd())] {
            volumes.push(Volume::new(&pool, name, 12 * MIB, options).await);
        }
        Run { pool: pool.clone(), random: Random::new(seed), volumes, made: 0 }
    });
    for round in 0..rounds {
        run = pool.run(async move |pool| {
            for _ in 0..steps {
                run.step().await;
            }
            for volume in &run.volumes {
                volume.verify_all().await;
            }
            fsck(&pool).await;
            pool.client().flush().await.unwrap();
            run
        });
        if round % 2 == 0 {
            pool.crash_and_open();
        }
    }
    assert!(shared_blocks(&pool) > 0);
}

#[test]
fn random_copies_of_volumes_and_their_clones_are_what_was_done() {
    with_seeds(|seed| random_run(seed, 2, 64, 4, 400));
}

#[test]
fn copygc_moves_what_is_shared() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 32);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut source = Volume::new(&pool, "source", 6 * MIB, zstd()).await;
            let mut target = Volume::new(&pool, "target", 6 * MIB, plain()).await;
            let mut round = 0;
            // The source goes, again and again, and what the target has of it is all that is left.
            while counter(&pool, "copygc_blocks_moved") < 3000 {
                round += 1;
                assert!(round < 3000, "copygc has nothing to do");
                let from = random.below(1400) as usize;
                let stamps: Vec<Stamp> = (0..100).map(|at| round * 300 + at).collect();
                source.write(from, &stamps, &mut random).await.unwrap();
                let part = from + random.below(90) as usize;
                copy(&source, part, &mut target, part, 5).await.unwrap();
            }
            assert!(shared_blocks(&pool) > 0);
            source.discard(0, 1536).await;
            for round in 0..200 {
                let stamps: Vec<Stamp> = (0..100).map(|at| round * 900 + at).collect();
                let from = random.below(1400) as usize;
                source.write(from, &stamps, &mut random).await.unwrap();
            }
            source.verify_all().await;
            target.verify_all().await;
            fsck(&pool).await;
        });
    });
}

/// Each block shared by itself: a write over all of them changes more keys than one transaction may.
#[test]
fn a_write_over_many_small_references_is_cut() {
    let pool = small_pool(3, 1, 64);
    pool.run(async |pool| {
        let mut random = Random::new(3);
        let mut source = Volume::new(&pool, "source", 4 * MIB, plain()).await;
        let mut target = Volume::new(&pool, "target", 4 * MIB, plain()).await;
        for at in (0..512).rev() {
            source.write(at, &[at as u32 * 3 + 1], &mut random).await.unwrap();
        }
        for at in 0..256 {
            copy(&source, (at * 37) % 512, &mut target, at, 1).await.unwrap();
        }
        let blocks: Vec<Stamp> = (0..256).map(|at| at * 3 + 5).collect();
        target.write(0, &blocks, &mut random).await.unwrap();
        source.write(0, &blocks, &mut random).await.unwrap();
        source.write(256, &blocks, &mut random).await.unwrap();
        source.verify_all().await;
        target.verify_all().await;
        fsck(&pool).await;
        pool.quiet().await;
        assert_eq!(shared_blocks(&pool), 0);
    });
}

/// Some copies of some blocks, and the key of the first extent that is shared.
async fn shared(pool: &Pool, seed: u64) -> (Volume, Volume, (Position, Extent)) {
    let mut random = Random::new(seed);
    let mut source = Volume::new(pool, "source", 4 * MIB, plain()).await;
    let mut target = Volume::new(pool, "target", 4 * MIB, plain()).await;
    source.write(0, &text(256), &mut random).await.unwrap();
    copy(&source, 0, &mut target, 0, 200).await.unwrap();
    pool.client().flush().await.unwrap();
    let engine = pool.shard(0).engine().clone();
    let from = Position::new(Address::SPACES, 0, 0);
    let found = engine.read().next(Tree::Extents, from, Position::MAX).await.unwrap();
    let (position, value) = found.unwrap();
    (source, target, (position, Extent::decode(&value).unwrap()))
}

async fn change(pool: &Pool, of: impl AsyncFn(&mut Transaction<'_>)) {
    let engine = pool.shard(0).engine().clone();
    let changed = engine.transact(async |transaction| {
        of(transaction).await;
        Ok(())
    });
    changed.await.unwrap();
}

#[test]
fn references_that_are_counted_wrong_are_found_and_repaired() {
    for kind in 0..4 {
        let pool = small_pool(kind, 1, 64);
        let (source, target) = pool.run(async move |pool| {
            let (source, target, (position, extent)) = shared(&pool, kind).await;
            let sharing = match kind {
                0 => {
                    let mut holders = extent.holders().unwrap();
                    holders.count = 1;
                    Sharing::Shared(holders)
                }
                1 => {
                    let mut holders = extent.holders().unwrap();
                    assert!(holders.add(Holder { inode: 99, version: 1, shift: 5 }));
                    Sharing::Shared(holders)
                }
                _ => extent.sharing,
            };
            change(&pool, async |transaction| {
                match kind {
                    // Somebody else's.
                    2 => {
                        let holders = Holders::one(Holder { inode: 99, version: 1, shift: 5 });
                        let sharing = Sharing::Shared(holders);
                        let extent = Extent { sharing, ..extent.clone() };
                        transaction.put(Tree::Extents, position, extent.encode());
                    }
                    // Nobody's.
                    3 => {
                        let there = Position::new(Address::SPACES | 77, 4096, 0);
                        let extent = Extent { sharing, ..extent.clone() };
                        transaction.put(Tree::Extents, there, extent.encode());
                    }
                    _ => {
                        let extent = Extent { sharing, ..extent.clone() };
                        transaction.put(Tree::Extents, position, extent.encode());
                    }
                }
            })
            .await;
            let report = pool.client().fsck(Verify::Nothing).await.unwrap();
            assert!(!report.problems.is_empty(), "kind {kind}");
            let repaired = pool.client().repair().await.unwrap();
            assert!(repaired.notes.iter().any(|it| it.contains("counted anew")), "{repaired:?}");
            fsck(&pool).await;
            (source, target)
        });
        pool.crash_and_open();
        pool.run(async move |pool| {
            source.verify_all().await;
            target.verify_all().await;
            fsck(&pool).await;
        });
    }
}

#[test]
fn shared_data_that_is_lost_is_an_error_for_all_who_refer_to_it() {
    let pool = small_pool(7, 1, 64);
    pool.run(async |pool| {
        let (source, target, (position, extent)) = shared(&pool, 7).await;
        change(&pool, async |transaction| transaction.delete(Tree::Extents, position)).await;
        let report = pool.client().fsck(Verify::Nothing).await.unwrap();
        assert!(!report.problems.is_empty());
        let lost = u64::from(extent.blocks) * BLOCK_SIZE;
        for volume in [&source, &target] {
            let read = pool.client().volume_read(&volume.volume, 0, lost).await;
            assert!(matches!(read, Err(StoreError::DataLoss { .. })), "{read:?}");
            volume.verify(extent.blocks as usize, 100).await;
        }
        let repaired = pool.client().repair().await.unwrap();
        assert!(repaired.notes.iter().any(|it| it.contains("shared data is lost")), "{repaired:?}");
        fsck(&pool).await;
        for volume in [&source, &target] {
            let read = pool.client().volume_read(&volume.volume, 0, lost).await.unwrap();
            assert!(read.iter().all(|piece| piece.iter().all(|byte| *byte == 0)));
        }
    });
}

/// Generations of buckets begin anew when a region moves, so an address may be taken.
#[test]
fn blocks_are_copied_whose_address_is_taken() {
    let pool = small_pool(9, 1, 64);
    pool.run(async |pool| {
        let mut random = Random::new(9);
        let mut source = Volume::new(&pool, "source", 4 * MIB, plain()).await;
        let mut target = Volume::new(&pool, "target", 4 * MIB, plain()).await;
        source.write(0, &text(96), &mut random).await.unwrap();
        let engine = pool.shard(0).engine().clone();
        let key = Position::new(source.volume.inode.0, 33, 0);
        let found = engine.read().next(Tree::Extents, key, Position::MAX).await.unwrap().unwrap();
        let extent = Extent::decode(&found.1).unwrap();
        let address = Address::of(&extent);
        let holders = Holders::one(Holder { inode: 99, version: 1, shift: 5 });
        let taken = Extent { sharing: Sharing::Shared(holders), ..extent.cut(0, 1) };
        let there = Position::new(address.space, address.block + 1, 0);
        change(&pool, async |transaction| {
            transaction.put(Tree::Extents, there, taken.encode());
        })
        .await;
        let stats = copy(&source, 0, &mut target, 0, 96).await.unwrap();
        assert_eq!(stats.copied_bytes, 32 * BLOCK_SIZE);
        source.verify_all().await;
        target.verify_all().await;
    });
}

#[test]
fn shared_blocks_that_rotted_are_told_for_all_who_refer_to_them() {
    let pool = small_pool(8, 1, 64);
    pool.run(async |pool| {
        let (source, target, (_, extent)) = shared(&pool, 8).await;
        let byte = extent.pointers[0].block as usize * BLOCK + 99;
        pool.device().with_bytes(|bytes| bytes[byte] ^= 1);
        for volume in [&source, &target] {
            let read = pool.client().volume_read(&volume.volume, 0, BLOCK_SIZE).await;
            assert!(matches!(read, Err(StoreError::DataLoss { .. })), "{read:?}");
            volume.verify(1, 100).await;
        }
        let report = pool.client().fsck(Verify::All).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    });
}

/// What is free can be written to the last block, also over references to frames.
#[test]
fn what_is_said_to_be_free_can_be_written_over_what_is_shared() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 24);
        pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut source = Volume::new(&pool, "source", 4 * MIB, zstd()).await;
            let mut target = Volume::new(&pool, "target", 4 * MIB, zstd()).await;
            for at in (0..1024).step_by(256) {
                source.write(at, &[1; 256], &mut random).await.unwrap();
            }
            copy(&source, 0, &mut target, 0, 1024).await.unwrap();
            let status = pool.client().status().await.unwrap();
            let free = status[0].available_bytes / BLOCK_SIZE;
            let mut noise = Volume::new(&pool, "noise", 64 * MIB, plain()).await;
            for at in 0..free as usize - 100 {
                let written = noise.write(at, &[at as u32 * 3 + 3], &mut random).await;
                assert_eq!(written, Ok(()), "{at} of {free}");
            }
            let mut refused = false;
            for at in 0..1024 {
                let block = [at as u32 * 3 + 3];
                if target.write(at * 11 % 1024, &block, &mut random).await.is_err() {
                    let status = pool.client().status().await.unwrap();
                    assert!(status[0].available_bytes < 40 * BLOCK_SIZE, "{status:?}");
                    refused = true;
                    break;
                }
            }
            assert!(refused, "each block is one more");
            noise.discard(0, 5000).await;
            for volume in [&source, &target, &noise] {
                volume.verify_all().await;
            }
            fsck(&pool).await;
        });
    });
}
