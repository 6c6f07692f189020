//! Writes that are gathered: what they share, and that they stay writes of their own.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use futures::future::join_all;

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::Verify;
use crate::client::VolumeRef;

const BLOCKS: u64 = 256;

fn filled(stamp: u8, blocks: u64) -> Vec<u8> {
    vec![stamp; (blocks * BLOCK_SIZE) as usize]
}

async fn counter(pool: &Pool, name: &str) -> u64 {
    let status = pool.client().status().await.unwrap();
    status
        .iter()
        .flat_map(|shard| &shard.counters)
        .filter(|(known, _)| *known == name)
        .map(|(_, value)| *value)
        .sum()
}

async fn volume(pool: &Pool) -> VolumeRef {
    let info = pool.client().volume_create("v", 4 * MIB, 4096).await.unwrap();
    VolumeRef::from(&info)
}

async fn side_by_side(pool: Pool, seed: u64) {
    let (client, volume) = (pool.client(), volume(&pool).await);
    let names = ["data_writes", "data_write_batches", "transaction_commits"];
    let mut before = [0; 3];
    for (value, name) in before.iter_mut().zip(names) {
        *value = counter(&pool, name).await;
    }
    let mut random = Random::new(seed);
    // Every other block, so that nothing can be one extent.
    let writes = (0..64_u8).map(|index| {
        let data = data_of(&filled(index + 1, 1), &mut random);
        client.volume_write(&volume, u64::from(index) * 2 * BLOCK_SIZE, data, false)
    });
    for result in join_all(writes).await {
        result.unwrap();
    }
    let mut after = [0; 3];
    for (value, name) in after.iter_mut().zip(names) {
        *value = counter(&pool, name).await;
    }
    let [writes, batches, commits] = [0, 1, 2].map(|index| after[index] - before[index]);
    assert_eq!(writes, 64);
    // Requests reach the shard in some order over a few turns.
    assert!(batches <= 32, "{batches} batches of 64 writes");
    assert!(commits <= batches + 2, "{commits} transactions of {batches} batches");
    for index in 0..64_u8 {
        let offset = u64::from(index) * 2 * BLOCK_SIZE;
        let data = client.volume_read(&volume, offset, 2 * BLOCK_SIZE).await.unwrap();
        let expected = [filled(index + 1, 1), filled(0, 1)].concat();
        assert!(bytes_of(&data) == expected, "write {index}");
    }
}

#[test]
fn writes_of_one_turn_share_a_transaction() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 1);
        pool.run(async move |pool| side_by_side(pool, seed).await);
    });
}

async fn in_sequence(pool: Pool, seed: u64) {
    let (client, volume) = (pool.client(), volume(&pool).await);
    let mut random = Random::new(seed);
    let writes = (0..32_u8).map(|index| {
        let data = data_of(&filled(index + 1, 1), &mut random);
        client.volume_write(&volume, u64::from(index) * BLOCK_SIZE, data, false)
    });
    for result in join_all(writes).await {
        result.unwrap();
    }
    let data = client.volume_read(&volume, 0, 32 * BLOCK_SIZE).await.unwrap();
    let expected: Vec<u8> = (0..32_u8).flat_map(|index| filled(index + 1, 1)).collect();
    assert!(bytes_of(&data) == expected);
    let report = client.fsck(Verify::All).await.unwrap();
    let checked = |name: &str| {
        report
            .checked
            .iter()
            .filter(|(known, _)| *known == name)
            .map(|(_, count)| *count)
            .sum::<u64>()
    };
    assert_eq!(report.problems, Vec::<String>::new());
    assert!(checked("extents") < 32, "{} extents of 32 adjacent writes", checked("extents"));
}

#[test]
fn adjacent_writes_become_one_extent() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 1);
        pool.run(async move |pool| in_sequence(pool, seed).await);
    });
}

/// Writers over each other: each block is wholly of one of those that wrote it, and stays so over the
/// end of the process.
async fn overlapping(pool: Pool, seed: u64) {
    let (client, volume) = (pool.client(), volume(&pool).await);
    let mut random = Random::new(seed);
    for round in 0..20_u8 {
        let mut writers = vec![Vec::new(); BLOCKS as usize];
        let mut writes = Vec::new();
        for index in 0..12_u8 {
            let stamp = round * 12 + index + 1;
            let from = random.below(BLOCKS);
            let blocks = random.range(1, 40).min(BLOCKS - from);
            for writer in &mut writers[from as usize..(from + blocks) as usize] {
                writer.push(stamp);
            }
            let data = data_of(&filled(stamp, blocks), &mut random);
            let fua = random.chance(1, 6);
            writes.push(client.volume_write(&volume, from * BLOCK_SIZE, data, fua));
        }
        let before = bytes_of(&client.volume_read(&volume, 0, BLOCKS * BLOCK_SIZE).await.unwrap());
        for result in join_all(writes).await {
            result.unwrap();
        }
        let after = bytes_of(&client.volume_read(&volume, 0, BLOCKS * BLOCK_SIZE).await.unwrap());
        let blocks = after.chunks(BLOCK_SIZE as usize).zip(before.chunks(BLOCK_SIZE as usize));
        for (block, ((now, old), writers)) in blocks.zip(&writers).enumerate() {
            let whole = now.iter().all(|byte| *byte == now[0]);
            let known = if writers.is_empty() { now == old } else { writers.contains(&now[0]) };
            assert!(whole && known, "round {round}, block {block}: {} of {writers:?}", now[0]);
        }
    }
}

#[test]
fn overlapping_writes_leave_whole_blocks() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 1);
        pool.run(async move |pool| overlapping(pool, seed).await);
        let read = async |pool: Pool| {
            let client = pool.client();
            let volume = VolumeRef::from(&client.subvolume_get("v").await.unwrap());
            bytes_of(&client.volume_read(&volume, 0, BLOCKS * BLOCK_SIZE).await.unwrap())
        };
        let before = pool.run(read);
        pool.crash_and_open();
        assert!(
            pool.run(read) == before,
            "what was acknowledged changed with the end of the process"
        );
        let report = pool.run(async |pool| pool.client().fsck(Verify::All).await.unwrap());
        assert_eq!(report.problems, Vec::<String>::new());
    });
}
