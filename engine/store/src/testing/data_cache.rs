//! Data kept in memory: how much, what stays, that it is never old, and reading ahead.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::Verify;
use crate::client::VolumeRef;
use crate::error::StoreError;
use crate::pool::FormatOptions;

const BLOCK: usize = BLOCK_SIZE as usize;

fn one_shard(seed: u64) -> Pool {
    Pool::new(seed, 1)
}

fn set_cache(pool: &Pool, bytes: usize) {
    for shard in 0..pool.shard_count() {
        pool.shard(shard).set_data_cache_bytes(bytes);
    }
}

async fn counter(pool: &Pool, name: &str) -> u64 {
    let status = pool.client().status().await.unwrap();
    let counters = status.iter().flat_map(|shard| &shard.counters);
    counters.filter(|(known, _)| *known == name).map(|(_, value)| *value).sum()
}

/// What block `number` holds in version `version` of it.
fn content(number: u64, version: u32) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    Random::new(number << 32 | u64::from(version)).fill(&mut bytes);
    bytes
}

/// A volume whose blocks all hold version 0.
async fn filled(pool: &Pool, blocks: u64) -> VolumeRef {
    let info = pool.client().volume_create("v", blocks * BLOCK_SIZE, 4096).await.unwrap();
    let volume = VolumeRef::from(&info);
    for from in (0..blocks).step_by(64) {
        let bytes: Vec<u8> = (from..blocks.min(from + 64)).flat_map(|it| content(it, 0)).collect();
        let data = data_of(&bytes, &mut Random::new(from));
        pool.client().volume_write(&volume, from * BLOCK_SIZE, data, false).await.unwrap();
    }
    volume
}

async fn read(pool: &Pool, volume: &VolumeRef, block: u64, blocks: u64) -> Vec<u8> {
    let (offset, len) = (block * BLOCK_SIZE, blocks * BLOCK_SIZE);
    bytes_of(&pool.client().volume_read(volume, offset, len).await.unwrap())
}

/// Reads a block that holds version 0; whether the device was asked.
async fn misses(pool: &Pool, volume: &VolumeRef, block: u64) -> bool {
    let before = pool.asked().reads.get();
    assert!(read(pool, volume, block, 1).await == content(block, 0), "block {block}");
    pool.asked().reads.get() > before
}

#[test]
fn a_block_is_read_from_the_device_once_and_with_no_cache_each_time() {
    one_shard(1).run(async |pool| {
        let volume = filled(&pool, 256).await;
        assert!(misses(&pool, &volume, 7).await && misses(&pool, &volume, 7).await);
        assert_eq!(counter(&pool, "data_cache_bytes").await, 0);
        set_cache(&pool, MIB as usize);
        assert!(misses(&pool, &volume, 7).await);
        assert!(!misses(&pool, &volume, 7).await);
        // Of a longer read only what lies between the first and the last block that is missing.
        assert!(read(&pool, &volume, 40, 8).await == read(&pool, &volume, 40, 8).await);
        let bytes = pool.asked().read_bytes.get();
        let expected: Vec<u8> = (36..52).flat_map(|block| content(block, 0)).collect();
        assert!(read(&pool, &volume, 36, 16).await == expected);
        assert_eq!(pool.asked().read_bytes.get() - bytes, 16 * BLOCK_SIZE, "8 are in the middle");
        let bytes = pool.asked().read_bytes.get();
        assert!(read(&pool, &volume, 36, 20).await[..16 * BLOCK] == expected);
        assert_eq!(pool.asked().read_bytes.get() - bytes, 4 * BLOCK_SIZE, "the first 16 are there");
        set_cache(&pool, 0);
        assert!(misses(&pool, &volume, 7).await);
        assert_eq!(counter(&pool, "data_cache_bytes").await, 0);
    });
}

#[test]
fn the_data_cache_is_bounded() {
    with_seeds(|seed| {
        one_shard(seed).run(async move |pool| {
            let volume = filled(&pool, 2048).await;
            set_cache(&pool, MIB as usize);
            let mut random = Random::new(seed);
            for _ in 0..1500 {
                let blocks = *random.pick(&[1, 1, 5, 60]);
                let block = random.below(2048 - blocks);
                let expected: Vec<u8> =
                    (block..block + blocks).flat_map(|block| content(block, 0)).collect();
                assert!(read(&pool, &volume, block, blocks).await == expected);
                assert!(counter(&pool, "data_cache_bytes").await <= MIB);
            }
            assert!(counter(&pool, "data_cache_evictions").await > 1000);
        });
    });
}

#[test]
fn a_scan_leaves_in_the_data_cache_what_is_used_again_and_again() {
    with_seeds(|seed| {
        one_shard(seed).run(async move |pool| {
            let volume = filled(&pool, 4096).await;
            set_cache(&pool, MIB as usize);
            let mut random = Random::new(seed);
            let hot: Vec<u64> = (0..64).map(|number| number * 61 + 5).collect();
            for _ in 0..30 {
                for block in &hot {
                    misses(&pool, &volume, *block).await;
                    misses(&pool, &volume, random.below(4096)).await;
                }
            }
            for block in 0..4096 {
                misses(&pool, &volume, block).await;
            }
            let mut missed = 0;
            for block in &hot {
                missed += u32::from(misses(&pool, &volume, *block).await);
            }
            assert!(missed <= 6, "{missed} of {} were thrown out", hot.len());
        });
    });
}

/// Little space and many overwrites: buckets are emptied, moved and used again all the time, while all that
/// is read is cached. And a crash now and then.
#[test]
fn the_data_cache_agrees_with_overwrites_discards_copygc_reuse_and_crashes() {
    with_seeds(|seed| {
        let options = FormatOptions {
            shards: Some(2),
            bucket_bytes: Some(64 << 10),
            node_bytes: Some(16 << 10),
            journal_bytes: Some(1 << 20),
            ..FormatOptions::default()
        };
        let pool = Pool::with_members(seed, &[20 << 20], options);
        let mut random = Random::new(seed);
        let blocks = 10 * MIB / BLOCK_SIZE;
        let mut volume = pool.run(async move |pool| filled(&pool, blocks).await);
        let mut versions = vec![Some(0); blocks as usize];
        let (mut hits, mut moved) = (0, 0);
        for _ in 0..5 {
            let dice = random.fork();
            (volume, versions) = pool.run(async move |pool| {
                set_cache(&pool, 2 << 20);
                let versions = overwrite_and_read(&pool, &volume, versions, dice).await;
                pool.client().volume_flush(&volume).await.unwrap();
                (volume, versions)
            });
            let counts = pool.run(async |pool| {
                (
                    counter(&pool, "data_cache_hits").await,
                    counter(&pool, "copygc_blocks_moved").await,
                )
            });
            (hits, moved) = (hits + counts.0, moved + counts.1);
            pool.crash_and_open();
        }
        assert!(hits > 1000, "{hits} hits");
        assert!(moved > 100, "{moved} blocks were moved");
    });
}

type Versions = Vec<Option<u32>>;

async fn overwrite_and_read(
    pool: &Pool,
    volume: &VolumeRef,
    mut versions: Versions,
    mut random: Random,
) -> Versions {
    let blocks = versions.len() as u64;
    for step in 1..1200 {
        let len = *random.pick(&[1, 1, 1, 4, 20]);
        // A few blocks are used most of the time.
        let most = *random.pick(&[60, blocks - 20]);
        let from = random.below(most);
        let range = from as usize..(from + len) as usize;
        match random.below(8) {
            0..=2 => {
                let version = random.below(1 << 20) as u32 + step;
                versions[range].fill(Some(version));
                let bytes: Vec<u8> =
                    (from..from + len).flat_map(|it| content(it, version)).collect();
                let data = data_of(&bytes, &mut random);
                let offset = from * BLOCK_SIZE;
                pool.client().volume_write(volume, offset, data, false).await.unwrap();
            }
            3 if random.chance(1, 4) => {
                versions[range].fill(None);
                let (offset, len) = (from * BLOCK_SIZE, len * BLOCK_SIZE);
                pool.client().volume_discard(volume, offset, len).await.unwrap();
            }
            _ => {
                let found = read(pool, volume, from, len).await;
                let expected: Vec<u8> = (from..from + len)
                    .flat_map(|block| match versions[block as usize] {
                        Some(version) => content(block, version),
                        None => vec![0; BLOCK],
                    })
                    .collect();
                assert!(found == expected, "step {step}: blocks {from}+{len} differ");
            }
        }
    }
    versions
}

#[test]
fn what_is_cut_off_does_not_come_back_from_the_data_cache() {
    one_shard(3).run(async |pool| {
        set_cache(&pool, 4 << 20);
        let volume = filled(&pool, 512).await;
        for block in 0..512 {
            misses(&pool, &volume, block).await;
        }
        pool.client().volume_resize("v", MIB).await.unwrap();
        let info = pool.client().volume_resize("v", 2 * MIB).await.unwrap();
        let volume = VolumeRef::from(&info);
        assert!(!misses(&pool, &volume, 255).await);
        assert!(read(&pool, &volume, 256, 256).await.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn small_reads_in_order_are_read_ahead_in_few_device_reads() {
    with_seeds(|seed| {
        for shards in [1, 4] {
            Pool::new(seed, shards).run(async move |pool| {
                let blocks = 4096;
                let volume = filled(&pool, blocks).await;
                set_cache(&pool, 16 << 20);
                let before = pool.asked().reads.get();
                for block in 0..blocks {
                    assert!(read(&pool, &volume, block, 1).await == content(block, 0));
                }
                let reads = pool.asked().reads.get() - before;
                assert!(reads < blocks / 20, "{reads} reads of the device for {blocks}");
                let ahead = counter(&pool, "data_read_ahead_blocks").await;
                let used = counter(&pool, "data_read_ahead_used").await;
                assert!(ahead > blocks * 9 / 10 && used == ahead, "{used} of {ahead} were used");
                assert_eq!(counter(&pool, "data_read_ahead_wasted").await, 0);
            });
        }
    });
}

#[test]
fn reads_here_and_there_read_nothing_ahead() {
    with_seeds(|seed| {
        one_shard(seed).run(async move |pool| {
            let volume = filled(&pool, 4096).await;
            set_cache(&pool, MIB as usize);
            let mut random = Random::new(seed);
            let before = pool.asked().read_bytes.get();
            let mut missed = 0;
            for _ in 0..600 {
                missed += u64::from(misses(&pool, &volume, random.below(2048) * 2).await);
            }
            assert_eq!(pool.asked().read_bytes.get() - before, missed * BLOCK_SIZE);
            assert_eq!(counter(&pool, "data_read_ahead_blocks").await, 0);
        });
    });
}

#[test]
fn many_streams_at_a_time_waste_little() {
    with_seeds(|seed| {
        one_shard(seed).run(async move |pool| {
            let volume = filled(&pool, 4096).await;
            set_cache(&pool, 4 << 20);
            for step in 0..500 {
                for stream in 0..6 {
                    let block = stream * 650 + step;
                    assert!(read(&pool, &volume, block, 1).await == content(block, 0));
                }
            }
            let ahead = counter(&pool, "data_read_ahead_blocks").await;
            let used = counter(&pool, "data_read_ahead_used").await;
            let wasted = counter(&pool, "data_read_ahead_wasted").await;
            assert!(used > 2500 && wasted < ahead / 20, "{ahead} ahead, {used} used, {wasted} not");
        });
    });
}

/// Whether the medium can still be read is not told by what was read from it before.
#[test]
fn a_check_of_the_data_passes_the_cache_by() {
    let pool = one_shard(4);
    let volume = pool.run(async |pool| {
        set_cache(&pool, MIB as usize);
        let volume = filled(&pool, 64).await;
        misses(&pool, &volume, 9).await;
        pool.client().flush().await.unwrap();
        volume
    });
    let expected = content(9, 0);
    pool.device().with_bytes(|bytes| {
        let at = bytes.chunks(BLOCK).position(|block| block == expected).unwrap();
        bytes[at * BLOCK] ^= 1;
    });
    pool.run(async move |pool| {
        assert!(!misses(&pool, &volume, 9).await);
        let report = pool.client().fsck(Verify::All).await.unwrap();
        assert!(report.problems.iter().any(|line| line.contains("data lost")), "{report:?}");
        set_cache(&pool, MIB as usize);
        let lost = pool.client().volume_read(&volume, 9 * BLOCK_SIZE, BLOCK_SIZE).await;
        assert!(matches!(lost, Err(StoreError::DataLoss { .. })), "{lost:?}");
    });
}
