//! The journal under load, and what a flush asks of the devices.

use std::collections::BTreeMap;

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use futures::future::join_all;

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::client::VolumeRef;
use crate::key::{Position, Tree, VALUE_BYTES_MAX, Value};
use crate::pool::FormatOptions;
use crate::times::Timed;

const TASKS: u64 = 16;
const STEPS: u32 = 250;
/// Blocks of the volume for each task.
const BLOCKS: u64 = 96;

fn tiny_journal(seed: u64) -> Pool {
    let options = FormatOptions {
        shards: Some(1),
        bucket_bytes: Some(64 << 10),
        node_bytes: Some(16 << 10),
        journal_bytes: Some(MIB),
        ..FormatOptions::default()
    };
    Pool::with_members(seed, &[64 << 20], options)
}

fn counters(pool: &Pool) -> BTreeMap<&'static str, u64> {
    pool.shard(0).engine().counters().into_iter().collect()
}

/// Puts more into the journal at once than data does: a sixteenth of the ring.
async fn put_many(pool: &Pool, task: u64, random: &mut Random) {
    let engine = pool.shard(0).engine().clone();
    let base = random.below(200);
    let put = engine.transact(async |transaction| {
        for key in base..base + 60 {
            let value = Value::from_elem(task as u8, VALUE_BYTES_MAX.min(1000));
            transaction.put(Tree::Xattrs, Position::new(task, key, 1), value);
        }
        Ok(())
    });
    put.await.unwrap();
}

/// Writes blocks of its own, discards and flushes; at the end what it reads is what it wrote.
async fn churn(pool: &Pool, volume: &VolumeRef, task: u64, mut random: Random) {
    let mut expected = vec![0_u8; BLOCKS as usize];
    let client = pool.client();
    for step in 0..STEPS {
        let block = random.below(BLOCKS);
        let offset = (task * BLOCKS + block) * BLOCK_SIZE;
        match random.below(20) {
            0 => client.volume_flush(volume).await.unwrap(),
            3 | 4 => put_many(pool, task, &mut random).await,
            1 | 2 => {
                client.volume_discard(volume, offset, BLOCK_SIZE).await.unwrap();
                expected[block as usize] = 0;
            }
            _ => {
                let byte = (step % 250) as u8 + 1;
                let data = data_of(&[byte; BLOCK_SIZE as usize], &mut random);
                client.volume_write(volume, offset, data, random.chance(1, 10)).await.unwrap();
                expected[block as usize] = byte;
            }
        }
    }
    for (block, byte) in (0..).zip(expected) {
        let offset = (task * BLOCKS + block) * BLOCK_SIZE;
        let data = client.volume_read(volume, offset, BLOCK_SIZE).await.unwrap();
        assert!(bytes_of(&data).iter().all(|it| *it == byte), "task {task} block {block}");
    }
}

#[test]
fn a_tiny_journal_under_heavy_load_never_wedges() {
    with_seeds(|seed| {
        tiny_journal(seed).run(async move |pool| {
            let size = TASKS * BLOCKS * BLOCK_SIZE;
            let info = pool.client().volume_create("v", size, 4096).await.unwrap();
            let volume = VolumeRef::from(&info);
            let mut random = Random::new(seed);
            let tasks = (0..TASKS).map(|task| churn(&pool, &volume, task, random.fork()));
            join_all(tasks).await;
            let counters = counters(&pool);
            let written = counters["journal_bytes_written"];
            assert!(written > 4 * MIB, "the ring came round several times: {written} bytes");
            let engine = pool.shard(0).engine().clone();
            let waited = |kind| engine.waits().times().snapshot(kind, u64::MAX).count;
            let (space, pins) =
                (waited(Timed::BlockedJournalSpace), waited(Timed::BlockedJournalPins));
            let in_flight = waited(Timed::BlockedJournalInFlight);
            println!("waits for space {space}, for pins {pins}, for entries in flight {in_flight}");
            let full = waited(Timed::BlockedJournalEntryFull);
            assert!(space + pins + full > 50 && in_flight > 0, "it was never short of anything");
            // Nothing is left behind that would keep the ring full.
            engine.write_out_all().await.unwrap();
            assert!(self::counters(&pool)["journal_ring_free_blocks"] > 200);
        });
    });
}

#[test]
fn a_flush_with_nothing_dirty_asks_nothing_of_the_devices() {
    Pool::new(3, 2).run(async |pool| {
        let info = pool.client().volume_create("v", MIB, 4096).await.unwrap();
        let volume = VolumeRef::from(&info);
        let data = data_of(&[7; 4096], &mut Random::new(1));
        pool.client().volume_write(&volume, 0, data, false).await.unwrap();
        pool.client().volume_flush(&volume).await.unwrap();
        let asked = |pool: &Pool| {
            let flushes: u64 = pool.asked().flushes.borrow().values().sum();
            (flushes, pool.asked().written_bytes.get())
        };
        let before = asked(&pool);
        assert!(before.0 > 0);
        for _ in 0..5 {
            pool.client().volume_flush(&volume).await.unwrap();
            pool.client().flush().await.unwrap();
        }
        assert_eq!(asked(&pool), before);
    });
}

/// Four members, and writes that go to one or two of them at a time.
#[test]
fn a_flush_touches_only_members_that_were_written_to() {
    with_seeds(|seed| {
        let options = FormatOptions { shards: Some(1), ..FormatOptions::default() };
        let pool = Pool::with_members(seed, &[64 << 20; 4], options);
        pool.run(async move |pool| {
            let info = pool.client().volume_create("v", 16 * MIB, 4096).await.unwrap();
            let volume = VolumeRef::from(&info);
            // The first flush after opening is of all: nothing is known of what was before.
            pool.client().flush().await.unwrap();
            let mut random = Random::new(seed);
            let (mut touched, mut spared) = (0, 0);
            for step in 0..60 {
                for _ in 0..random.below(3) {
                    let offset = random.below(4096) * BLOCK_SIZE;
                    let data = data_of(&[step as u8; 4096], &mut random);
                    pool.client().volume_write(&volume, offset, data, false).await.unwrap();
                }
                let written = pool.asked().unflushed.borrow().clone();
                let before = pool.asked().flushes.borrow().clone();
                pool.client().flush().await.unwrap();
                for (member, flushes) in pool.asked().flushes.borrow().iter() {
                    let flushed = flushes - before.get(member).copied().unwrap_or(0);
                    assert!(flushed <= u64::from(written.contains(member)), "{member} is clean");
                    touched += flushed;
                    spared += 1 - flushed;
                }
                let left = pool.asked().unflushed.borrow().clone();
                assert!(left.is_empty(), "{left:?} were written to and not flushed");
            }
            assert!(touched > 30 && spared > 30, "{touched} flushes, {spared} spared");
        });
    });
}
