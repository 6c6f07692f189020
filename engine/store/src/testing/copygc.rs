//! Copygc: what it asks the index about, and what it knows of buckets.

use engine_base::MIB;
use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_device::{Fault, OperationKind, QueueExt, Rule};
use engine_memory::Buffer;

use super::space::{Written, counter, fsck, small_pool};
use super::{Pool, with_seeds};
use crate::api::Data;
use crate::engine::WritePoint;
use crate::error::StoreError;
use crate::extent::Extent;
use crate::journal::Class;
use crate::key::{Position, Tree};

/// Overwrites, at random, a volume that takes most of a pool.
async fn overwritten(pool: &Pool, random: &mut Random) -> Written {
    let mut written = Written::new(pool, 24 * MIB).await;
    written.fill(random, &mut 0, 18 * 256).await.unwrap();
    overwrite(&mut written, random, 6000).await;
    written
}

async fn overwrite(written: &mut Written, random: &mut Random, count: u32) {
    for _ in 0..count {
        let at = random.below(18 * 256) as usize;
        written.write(at, 1).await.unwrap();
    }
}

#[test]
fn the_index_is_not_asked_about_what_was_seen_to_die() {
    with_seeds(|seed| {
        small_pool(seed, 1, 32).run(async move |pool| {
            let written = overwritten(&pool, &mut Random::new(seed)).await;
            let skipped = counter(&pool, "copygc_entries_skipped");
            let asked = counter(&pool, "copygc_entries_looked_up");
            let moved = counter(&pool, "copygc_blocks_moved");
            assert!(moved > 500 && skipped > 500, "{moved} moved, {skipped} skipped");
            // Some of what still lived when it was looked at died before it was its turn.
            assert!(asked < moved + moved / 4, "{asked} asked about, {moved} moved");
            assert_eq!(counter(&pool, "copygc_summary_misses"), 0);
            written.verify().await;
            fsck(&pool).await;
        });
    });
}

#[test]
fn that_something_is_dead_is_only_a_hint() {
    small_pool(5, 1, 32).run(async move |pool| {
        let mut random = Random::new(5);
        let mut written = overwritten(&pool, &mut random).await;
        for _ in 0..20 {
            {
                let engine = pool.shard(0).engine().clone();
                let mut tables = engine.space.tables.borrow_mut();
                let of = engine.space.data_blocks();
                tables.buckets.values_mut().for_each(|it| it.dead.mark(0..of as u16, of));
            }
            overwrite(&mut written, &mut random, 200).await;
        }
        assert!(counter(&pool, "copygc_summary_misses") > 0, "nobody believed the hint");
        assert_eq!(counter(&pool, "copygc_buckets_stuck"), 0);
        written.verify().await;
        fsck(&pool).await;
    });
}

#[test]
fn after_an_orderly_stop_no_summary_is_missing() {
    let pool = small_pool(6, 1, 32);
    let mut written = pool.run(async move |pool| {
        let written = overwritten(&pool, &mut Random::new(6)).await;
        pool.shard(0).shutdown().await.unwrap();
        written
    });
    pool.crash_and_open();
    pool.run(async move |pool| {
        overwrite(&mut written, &mut Random::new(7), 12_000).await;
        assert!(counter(&pool, "copygc_buckets_emptied") > 100, "all buckets were emptied");
        assert_eq!(counter(&pool, "copygc_summary_misses"), 0);
        written.verify().await;
        fsck(&pool).await;
    });
}

/// Nothing can be read, so no bucket can be emptied: who waits for space is told, and is served again when
/// the device is well (simulator seeds 88 and 135 of 25,000 operations).
#[test]
fn writes_are_told_that_no_bucket_can_be_emptied() {
    small_pool(8, 1, 32).run(async move |pool| {
        let mut random = Random::new(8);
        let mut written = overwritten(&pool, &mut random).await;
        let rule = pool.faults(0).add(Rule::always(&[OperationKind::Read], Fault::Error));
        let mut refused = None;
        for _ in 0..20_000 {
            let at = random.below(18 * 256) as usize;
            if let Err(error) = written.write(at, 1).await {
                refused = Some(error);
                break;
            }
        }
        assert!(matches!(refused, Some(StoreError::Device(_))), "{refused:?}");
        pool.faults(0).remove(rule);
        pool.runtime.sleep(2_000_000_000).await;
        overwrite(&mut written, &mut random, 2000).await;
        written.verify().await;
        fsck(&pool).await;
    });
}

/// Moves one extent to the bucket that copygc fills, and leaves that partly filled, as a process does that dies.
async fn move_one(pool: &Pool, random: &mut Random) {
    let engine = pool.shard(0).engine().clone();
    let first = engine.read().next(Tree::Extents, Position::MIN, Position::MAX).await.unwrap();
    let inode = first.unwrap().0.inode;
    let from = Position::new(inode, random.below(16 * 256), 0);
    let found = engine.read().next(Tree::Extents, from, Position::MAX).await.unwrap();
    let (position, value) = found.unwrap();
    let extent = Extent::decode(&value).unwrap();
    let (place, blocks) = (extent.pointers[0], extent.blocks);
    let buffer = Buffer::try_new(blocks as usize * 4096).unwrap();
    let read = engine.member(place.member).unwrap().read(place.block * 4096, buffer).await;
    let data = Data::from_iter([read.unwrap().freeze()]);
    let reservation = engine.reserve_for_move(blocks);
    let placed = engine.place(WritePoint::Moved, &data, &[], reservation).await.unwrap();
    let parts = placed.parts(0, u64::from(blocks));
    let named = engine.transact_as(Class::Reclaim, async |transaction| {
        if transaction.get(Tree::Extents, position).await?.as_ref() == Some(&value) {
            for (position, value) in extent.moved_to(position, &parts) {
                transaction.put_fresh_extent(position, value);
            }
        }
        Ok(())
    });
    named.await.unwrap();
    drop(placed);
    let mut tables = engine.space.tables.borrow_mut();
    let Some(open) = tables.open[WritePoint::Moved as usize] else { return };
    let bucket = tables.bucket(open.id);
    if bucket.pins == 0 && bucket.live_blocks > 0 {
        bucket.open = false;
        tables.open[WritePoint::Moved as usize] = None;
        tables.list_bucket(open.id);
    }
}

/// A process that died again and again before copygc had gained a bucket left none free, and then copygc could
/// gain none for ever (simulator seed 1925).
#[test]
fn copygc_goes_on_without_a_free_bucket() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 32);
        let mut written = pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 32 * MIB).await;
            let most = written.free_blocks().await * 15 / 16;
            written.fill(&mut random, &mut 0, most).await.unwrap();
            let free = || pool.shard(0).engine().space.free_buckets();
            for _ in 0..1_000 {
                move_one(&pool, &mut random).await;
                if counter(&pool, "copygc_runs_filled") > 0 {
                    break;
                }
            }
            assert!(counter(&pool, "copygc_runs_filled") > 0, "{} buckets are free", free());
            overwrite(&mut written, &mut random, 6000).await;
            assert!(free() > 2, "copygc has gained what is kept for it");
            written.verify().await;
            fsck(&pool).await;
            overwrite(&mut written, &mut random, 1000).await;
            written
        });
        // What was written over was durably dead.
        pool.crash_and_open();
        pool.run(async move |pool| {
            written.verify().await;
            fsck(&pool).await;
            overwrite(&mut written, &mut Random::new(seed), 1000).await;
        });
    });
}

/// Blocks that are read while what named them dies, and their place is filled again under its generation.
#[test]
fn reads_beside_runs_that_are_filled_see_no_loss() {
    with_seeds(|seed| {
        small_pool(seed, 1, 32).run(async move |pool| {
            pool.shard(0).engine().set_fills_runs_first(true);
            pool.shard(0).set_data_cache_bytes(8 << 20);
            let mut random = Random::new(seed);
            let mut written = overwritten(&pool, &mut random).await;
            for _ in 0..50 {
                overwrite(&mut written, &mut random, 50).await;
                written.verify().await;
            }
            assert!(counter(&pool, "copygc_runs_filled") > 20);
            fsck(&pool).await;
        });
    });
}

#[test]
fn a_run_is_taken_when_it_is_durable_that_it_is_dead() {
    small_pool(9, 1, 32).run(async move |pool| {
        let mut random = Random::new(9);
        let mut written = overwritten(&pool, &mut random).await;
        let engine = pool.shard(0).engine().clone();
        overwrite(&mut written, &mut random, 1).await;
        let death = engine.journal.seq() - 1;
        assert!(engine.journal.flushed_seq() < death, "it is not durable before");
        let open = engine.space.tables.borrow_mut().open[WritePoint::Moved as usize].take();
        assert!(engine.open_run().await.unwrap());
        assert!(engine.journal.flushed_seq() >= death);
        let run = engine.space.tables.borrow().open[WritePoint::Moved as usize].unwrap();
        assert!(open.is_none_or(|open| open.id != run.id), "nothing else appends there");
    });
}
