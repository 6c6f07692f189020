//! What was answered and not flushed, when the process ends.

use engine_base::random::Random;

use super::{Pool, bytes_of, data_of};
use crate::client::VolumeRef;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// Blocks 0, 10 and 20, each written by a request of its own and none flushed.
fn write_three(pool: &Pool, volume: &VolumeRef) {
    let volume = volume.clone();
    pool.run(async move |pool| {
        for number in 0..3_u8 {
            let bytes = [number + 1; BLOCK];
            let data = data_of(&bytes, &mut Random::new(1));
            let offset = u64::from(number) * 10 * BLOCK as u64;
            pool.client().volume_write(&volume, offset, data, false).await.unwrap();
        }
    });
}

/// The first byte of each of the three blocks.
fn read_three(pool: &Pool, volume: &VolumeRef) -> Vec<u8> {
    let volume = volume.clone();
    let bytes = pool.run(async move |pool| {
        bytes_of(&pool.client().volume_read(&volume, 0, 21 * BLOCK as u64).await.unwrap())
    });
    let first = |block: usize| {
        let block = &bytes[block * BLOCK..(block + 1) * BLOCK];
        assert!(block.iter().all(|byte| *byte == block[0]));
        block[0]
    };
    [0, 10, 20].map(first).to_vec()
}

fn with_volume(seed: u64) -> (Pool, VolumeRef) {
    let pool = Pool::new(seed, 1);
    let volume = pool.run(async |pool| {
        let client = pool.client();
        let info = client.volume_create("v", MIB, 4096).await.unwrap();
        client.flush().await.unwrap();
        VolumeRef::from(&info)
    });
    (pool, volume)
}

#[test]
fn what_was_answered_outlives_the_process() {
    let (pool, volume) = with_volume(31);
    write_three(&pool, &volume);
    for _ in 0..2 {
        pool.crash_and_open();
        assert_eq!(read_three(&pool, &volume), [1, 2, 3]);
    }
}

/// A run that begins with nothing to replay has entries that need none before them, also not the
/// flush entry of the run before (simulator seed 4066).
#[test]
fn the_first_entries_of_a_run_are_found() {
    let (pool, volume) = with_volume(32);
    pool.run(async |pool| pool.shard(0).shutdown().await.unwrap());
    for _ in 0..3 {
        pool.crash_and_open();
    }
    write_three(&pool, &volume);
    pool.crash_and_open();
    assert_eq!(read_three(&pool, &volume), [1, 2, 3]);
}

/// The device loses a block that was written and not flushed: that write and all after it are gone,
/// for good.
#[test]
fn a_lost_block_ends_the_tail_and_does_not_come_back() {
    let (pool, volume) = with_volume(33);
    write_three(&pool, &volume);
    let mut place = 0;
    pool.device().with_bytes(|device| {
        let found = device.chunks_mut(BLOCK).enumerate().find(|(_, block)| **block == [2; BLOCK]);
        let (number, block) = found.expect("it was written");
        block.fill(0xee);
        place = number;
    });
    pool.crash_and_open();
    assert_eq!(read_three(&pool, &volume), [1, 0, 0]);
    pool.device().with_bytes(|device| {
        device[place * BLOCK..(place + 1) * BLOCK].fill(2);
    });
    pool.crash_and_open();
    assert_eq!(read_three(&pool, &volume), [1, 0, 0]);
}
