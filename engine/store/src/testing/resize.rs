//! Members that grow and shrink while the pool serves, with the end of the process at every write.

use engine_base::MIB;
use engine_base::random::Random;
use engine_base::runtime::Runtime;

use super::space::{Written, fsck, no_region_has_two_owners, small_pool};
use super::{Pool, with_seeds};
use crate::api::{ResizePhase, ResizeStatus};
use crate::error::{Result, StoreError};

/// Waits until no change of size goes on.
async fn settled(pool: &Pool) -> ResizeStatus {
    for _ in 0..10_000 {
        let status = pool.client().resize_status().await.unwrap();
        match &status.job {
            Some(job) if matches!(job.phase, ResizePhase::Running | ResizePhase::Blocked) => {
                pool.runtime.sleep(20_000_000).await;
            }
            _ => return status,
        }
    }
    panic!("{:?}", pool.client().resize_status().await);
}

async fn resize(pool: &Pool, to: Option<u64>) -> Result<ResizePhase> {
    pool.client().resize_member(0, to).await?;
    Ok(settled(pool).await.job.unwrap().phase)
}

async fn size(pool: &Pool) -> u64 {
    pool.client().resize_status().await.unwrap().members[0].size_bytes
}

/// Fills with garbage what a member does not have any more.
fn poison(pool: &Pool, from: u64) {
    pool.device().with_bytes(|bytes| bytes[from as usize..].fill(0xcd));
}

/// Volume blocks are overwritten in any order, so that every bucket is partly dead.
async fn wear(written: &mut Written, random: &mut Random, count: u32, blocks: usize) {
    for _ in 0..count {
        let from = random.below(blocks as u64 - 32) as usize;
        let len = random.range(1, 32) as usize;
        written.write(from, len).await.unwrap();
    }
}

#[test]
fn a_member_that_grew_is_filled_to_its_new_end() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 2, 48);
        pool.device().extend(96 * MIB + 64 * 1024);
        let content = pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 128 * MIB).await;
            let mut filled = 0;
            let full = written.fill(&mut random, &mut filled, 30_000).await;
            assert!(matches!(full, Err(StoreError::NoSpace { .. })), "{full:?}");
            let before = filled;
            assert_eq!(resize(&pool, None).await, Ok(ResizePhase::Done));
            assert_eq!(size(&pool).await, 96 * MIB);
            let free = written.free_blocks().await;
            assert!(free > 10_000, "{free} blocks are free");
            let full = written.fill(&mut random, &mut filled, 30_000).await;
            assert!(matches!(full, Err(StoreError::NoSpace { .. })), "{full:?}");
            assert!(filled - before > free * 9 / 10, "{before} {filled} of {free}");
            written.verify().await;
            fsck(&pool).await;
            no_region_has_two_owners(&pool);
            written
        });
        pool.crash_and_open();
        assert_eq!(pool.notes(), Vec::<String>::new());
        pool.run(async move |pool| {
            assert_eq!(size(&pool).await, 96 * MIB);
            content.verify().await;
            fsck(&pool).await;
            no_region_has_two_owners(&pool);
        });
    });
}

#[test]
fn sizes_that_cannot_be_are_refused_and_change_nothing() {
    small_pool(3, 2, 48).run(async |pool| {
        let client = pool.client();
        let refused = |result: Result<ResizeStatus>, what: &str| {
            let error = result.unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        };
        refused(client.resize_member(0, Some(64 * MIB)).await, "make the device larger first");
        refused(client.resize_member(0, Some(MIB)).await, "journals and superblock alone");
        refused(client.resize_member(0, Some(0)).await, "journals and superblock alone");
        refused(client.resize_member(1, None).await, "not found");
        refused(client.resize_cancel().await, "not found");
        assert_eq!(size(&pool).await, 48 * MIB);
        let status = client.resize_member(0, None).await.unwrap();
        assert_eq!(status.job.unwrap().phase, ResizePhase::Done, "it has that size already");
        assert_eq!(pool.shard(0).engine().superblock().sequence, 1);
    });
}

/// Shrinks under load, loses what was behind the end, and grows again.
#[test]
fn a_member_is_shrunk_while_clients_write_and_grows_again() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 2, 96);
        let content = pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 64 * MIB).await;
            // Much is written, so that data and nodes lie everywhere.
            written.fill(&mut random, &mut 0, 16_000).await.unwrap();
            written.discard(6000, 10_384).await;
            wear(&mut written, &mut random, 200, 6000).await;
            let free = written.free_blocks().await;
            let status = pool.client().resize_member(0, Some(56 * MIB + 12_345)).await.unwrap();
            let job = status.job.unwrap();
            assert_eq!((job.from_bytes, job.to_bytes), (96 * MIB, 56 * MIB));
            let now = written.free_blocks().await;
            assert!(now + 8500 < free, "{now} are said to be free, {free} before");
            wear(&mut written, &mut random, 100, 6000).await;
            let status = settled(&pool).await;
            assert_eq!(status.job.unwrap().phase, ResizePhase::Done);
            assert_eq!(status.members[0].size_bytes, 56 * MIB);
            poison(&pool, 56 * MIB);
            written.verify().await;
            fsck(&pool).await;
            no_region_has_two_owners(&pool);
            wear(&mut written, &mut random, 100, 6000).await;
            written
        });
        pool.crash_and_open();
        assert_eq!(pool.notes(), Vec::<String>::new());
        let content = pool.run(async move |pool| {
            let mut written = content;
            written.verify().await;
            fsck(&pool).await;
            assert_eq!(resize(&pool, None).await, Ok(ResizePhase::Done));
            no_region_has_two_owners(&pool);
            written.fill(&mut Random::new(seed), &mut 0, 14_000).await.unwrap();
            written.verify().await;
            fsck(&pool).await;
            no_region_has_two_owners(&pool);
            written
        });
        pool.crash_and_open();
        pool.run(async move |pool| {
            content.verify().await;
            fsck(&pool).await;
        });
    });
}

/// The error names the smallest size, and that one is possible.
#[test]
fn what_does_not_fit_is_refused_with_the_smallest_size() {
    with_seeds(|seed| {
        small_pool(seed, 4, 128).run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 128 * MIB).await;
            let mut filled = 0;
            let free = written.free_blocks().await;
            let full = written.fill(&mut random, &mut filled, 40_000).await;
            assert!(matches!(full, Err(StoreError::NoSpace { .. })), "{full:?}");
            let refused = pool.client().resize_member(0, Some(120 * MIB)).await.unwrap_err();
            assert!(refused.to_string().contains("smallest size"), "{refused}");
            assert_eq!(written.free_blocks().await, written.free_blocks().await.min(free));
            written.discard(0, 20_000).await;
            pool.client().flush().await.unwrap();
            let refused = pool.client().resize_member(0, Some(40 * MIB)).await.unwrap_err();
            let words = refused.to_string();
            let size: u64 =
                words.split("needs ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!((40 * MIB..120 * MIB).contains(&size), "{words}");
            assert_eq!(resize(&pool, Some(size)).await, Ok(ResizePhase::Done), "{words}");
            poison(&pool, size);
            written.verify().await;
            fsck(&pool).await;
            let full = written.fill(&mut random, &mut 0, 40_000).await;
            assert!(matches!(full, Err(StoreError::NoSpace { .. })), "{full:?}");
            written.verify().await;
            fsck(&pool).await;
        });
    });
}

#[test]
fn shrinking_that_is_cancelled_leaves_all_space_in_use() {
    with_seeds(|seed| {
        small_pool(seed, 2, 64).run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 64 * MIB).await;
            written.fill(&mut random, &mut 0, 4000).await.unwrap();
            let free = written.free_blocks().await;
            pool.client().resize_member(0, Some(40 * MIB)).await.unwrap();
            let busy = pool.client().resize_member(0, None).await.unwrap_err();
            assert!(matches!(busy, StoreError::Busy { .. }), "{busy:?}");
            pool.client().resize_cancel().await.unwrap();
            let status = settled(&pool).await;
            assert_eq!(status.job.unwrap().phase, ResizePhase::Cancelled);
            assert_eq!(status.members[0].size_bytes, 64 * MIB);
            let now = written.free_blocks().await;
            assert!(now + 600 > free, "{now} of {free}");
            let full = written.fill(&mut random, &mut 4000, 30_000).await;
            assert!(matches!(full, Err(StoreError::NoSpace { .. })), "{full:?}");
            written.verify().await;
            fsck(&pool).await;
            no_region_has_two_owners(&pool);
        });
    });
}

/// The process ends at every write of a change of size, one after the other.
fn ended_at_every_write(from: u64, to: u64, (blocks, gone): (usize, usize)) {
    let mut wanted = (0, 0);
    for at in 0.. {
        let pool = small_pool(7, 2, from);
        let grows = to > from;
        if grows {
            pool.device().extend(to * MIB);
        }
        let (content, ended) = pool.run(async move |pool| {
            let mut random = Random::new(9);
            let mut written = Written::new(&pool, 32 * MIB).await;
            written.fill(&mut random, &mut 0, blocks).await.unwrap();
            for at in 0..gone {
                let at = written.place(at);
                written.discard(at, 1).await;
            }
            pool.client().flush().await.unwrap();
            pool.asked().writes_left.set(Some(at));
            let begun = pool.client().resize_member(0, Some(to * MIB)).await.is_ok();
            let mut ended = false;
            for _ in 0..200 {
                let status = pool.client().resize_status().await.unwrap();
                ended = status.job.is_some_and(|job| job.phase == ResizePhase::Done);
                if !begun || ended || pool.asked().writes_left.get() == Some(0) {
                    break;
                }
                pool.runtime.sleep(20_000_000).await;
            }
            (written, ended)
        });
        let all = pool.asked().writes_left.get() != Some(0);
        pool.asked().writes_left.set(None);
        pool.try_crash_and_open().unwrap_or_else(|error| panic!("write {at}: {error}"));
        let shrinks = pool.run(async move |pool| {
            let status = settled(&pool).await;
            let now = status.members[0].size_bytes / MIB;
            assert!(now == from || now == to, "write {at}: {now}");
            assert!(!ended || now == to, "write {at}");
            if now < from {
                poison(&pool, now * MIB);
            }
            content.verify().await;
            fsck(&pool).await;
            no_region_has_two_owners(&pool);
            now == to
        });
        if shrinks {
            wanted.1 += 1
        } else {
            wanted.0 += 1
        }
        if all {
            break;
        }
        assert!(at < 3000, "it does not end");
    }
    println!("{wanted:?} runs had the old and the new size");
    assert!(wanted.0 > 0 && wanted.1 > 2, "{wanted:?}");
}

#[test]
fn a_process_that_ends_at_any_write_of_growing_leaves_one_size_or_the_other() {
    ended_at_every_write(24, 32, (300, 100));
}

#[test]
fn a_process_that_ends_at_any_write_of_shrinking_leaves_one_size_or_the_other() {
    ended_at_every_write(32, 24, (4800, 3600));
}

/// Every bucket before the new end holds something, and half of that is dead: all that is free lies past it.
#[test]
fn a_member_is_shrunk_to_where_nothing_is_free() {
    with_seeds(|seed| {
        let pool = small_pool(seed, 1, 96);
        let content = pool.run(async move |pool| {
            let mut random = Random::new(seed);
            let mut written = Written::new(&pool, 96 * MIB).await;
            let filled = written.free_blocks().await * 8 / 10;
            written.fill(&mut random, &mut 0, filled).await.unwrap();
            for from in (0..filled - 8).step_by(16) {
                written.discard(from, 8).await;
            }
            pool.client().flush().await.unwrap();
            let free = || pool.shard(0).engine().space.tables.borrow().free.clone();
            let end = free().first().unwrap().1;
            let to = (u64::from(end) - 8) * (256 << 10);
            pool.client().resize_member(0, Some(to)).await.unwrap();
            // With the first bucket past the end goes all that was free.
            wear(&mut written, &mut random, 300, filled).await;
            assert_eq!(settled(&pool).await.job.unwrap().phase, ResizePhase::Done);
            wear(&mut written, &mut random, 300, filled).await;
            poison(&pool, to);
            written.verify().await;
            fsck(&pool).await;
            written
        });
        pool.crash_and_open();
        pool.run(async move |pool| {
            content.verify().await;
            fsck(&pool).await;
        });
    });
}
