//! Copygc: what it asks the index about, and what it knows of buckets.

use engine_base::MIB;
use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_device::{Fault, OperationKind, Rule};

use super::space::{Written, counter, fsck, small_pool};
use super::{Pool, with_seeds};
use crate::error::StoreError;

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
