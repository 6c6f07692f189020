//! What was answered and not flushed, when the process ends.

use engine_base::random::Random;

use super::{Pool, bytes_of, data_of};
use crate::btree::Node;
use crate::btree::format::{BsetInfo, BsetWriter, Location, NodePointer};
use crate::client::VolumeRef;
use crate::key::{Position, Tree};
use crate::tail::Tail;

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

/// A bset of a node with one key, of number `index` and behind one with the checksum `previous`, for byte
/// `offset`; `value` tells who wrote it.
fn bset(index: u16, previous: u32, value: u8, offset: u64) -> (Vec<u8>, u32) {
    let mut writer = BsetWriter::new();
    writer.push(Position::new(1, u64::from(index), 0), Some(&[value]));
    let (node, tree, level, journal_seq) = (1 << 20, Tree::Inodes, 0, u64::from(value));
    let (min, max) = (Position::MIN, Position::MAX);
    let info = BsetInfo { tree, level, node, index, previous, journal_seq, min, max };
    writer.seal(&info, offset)
}

/// A run appends to a node and ends; recovery goes back to before that, and the next run appends something else at
/// that place. The power goes: the entry with the pointer is on the device, the bset is not, and that of the
/// first run lies there, valid in itself (simulator seed 192 of 25,000 operations).
#[test]
fn an_append_of_a_run_that_was_given_up_does_not_pass_for_a_later_one() {
    let (pool, volume) = with_volume(34);
    write_three(&pool, &volume);
    pool.run(async |pool| {
        let engine = pool.shard(0).engine().clone();
        let bucket = engine.space.tables.borrow().free.last().copied().unwrap();
        let block = engine.space.first_block(bucket);
        let offset = block * BLOCK as u64;
        let (first, crc) = bset(0, 0, 1, offset);
        let appended = |value| bset(1, crc, value, offset + BLOCK as u64);
        let ((given_up, _), (later, last_crc)) = (appended(2), appended(3));
        let location = Some(Location { member: 0, generation: 1, block });
        let pointer = NodePointer {
            location,
            written_blocks: 2,
            last_crc,
            ..NodePointer::unwritten(1 << 20, Position::MIN)
        };
        let members = pool.queues();
        for (second, is_it) in [(&given_up, false), (&later, true)] {
            let node = [&first[..], &second[..]].concat();
            pool.device().with_bytes(|bytes| {
                bytes[offset as usize..][..node.len()].copy_from_slice(&node);
            });
            let mut look = Tail::new(&engine.space, &members);
            let found = look.node(Tree::Inodes, 0, Position::MAX, &pointer.encode()).await;
            assert_eq!(found.is_ok(), is_it, "{found:?}");
            let parsed = Node::parse(&node, Tree::Inodes, 0, &pointer, Position::MAX, 0);
            assert_eq!(parsed.is_ok(), is_it);
        }
        // One that does not follow the bset before it is no better if the pointer names it.
        let (stranger, last_crc) = bset(1, crc ^ 1, 3, offset + BLOCK as u64);
        let pointer = NodePointer { last_crc, ..pointer };
        let node = [&first[..], &stranger[..]].concat();
        assert!(Node::parse(&node, Tree::Inodes, 0, &pointer, Position::MAX, 0).is_err());
    });
}
