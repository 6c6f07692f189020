//! Scrubs: of sound pools, of damaged ones, at a rate, paused, given up, and over crashes.

use engine_base::runtime::Runtime;
use engine_base::{KIB, MIB};

use super::{Pool, with_seeds};
use crate::api::{
    Compression, CreateAttributes, FileKind, ScrubRequest, ScrubState, ScrubStatus, SubvolumeKind,
    SubvolumeOptions, Verify,
};
use crate::client::VolumeRef;
use crate::error::StoreError;
use crate::extent::Extent;
use crate::key::{Position, Tree};
use crate::limits::Limits;

const BLOCK: usize = 4096;

/// A pool with a volume that is partly compressed and partly written over, and a tree with files, all of it written out.
fn filled(seed: u64, shards: u16) -> (Pool, VolumeRef) {
    let mut pool = Pool::new(seed, shards);
    pool.set_limits(Limits { fsck_note_blocks: 64, ..Limits::default() });
    let volume = pool.run(async move |pool| {
        let client = pool.client();
        let options =
            SubvolumeOptions { compression: Compression::Lz4, ..SubvolumeOptions::default() };
        let size = (16 * MIB, 4096);
        let made = client.subvolume_create("v", SubvolumeKind::Volume, size, options).await;
        let volume = VolumeRef::from(&made.unwrap());
        let mut random = engine_base::random::Random::new(seed);
        for at in 0..32 {
            let mut bytes = vec![at as u8 + 1; 64 * KIB as usize];
            if at % 2 == 0 {
                random.fill(&mut bytes);
            }
            let data = super::data_of(&bytes, &mut random);
            client.volume_write(&volume, at * 64 * KIB, data, false).await.unwrap();
        }
        for _ in 0..20 {
            let at = random.below(512) * 4096;
            let data = super::data_of(&[7; BLOCK], &mut random);
            client.volume_write(&volume, at, data, false).await.unwrap();
        }
        let tree = client.tree_create("t").await.unwrap();
        let (tree, root) = (crate::api::TreeRef::from(&tree), tree.root);
        for number in 0..200 {
            let name = format!("f{number}").into_bytes();
            let attributes = CreateAttributes::default();
            client.create(tree, root, &name, FileKind::File, attributes).await.unwrap();
        }
        for shard in 0..pool.shard_count() {
            pool.shard(shard).shutdown().await.unwrap();
        }
        volume
    });
    pool.crash_and_open();
    (pool, volume)
}

async fn status(pool: &Pool) -> ScrubStatus {
    pool.client().scrub(ScrubRequest::Status).await.unwrap()
}

/// Starts one, as fast as it can, and waits for its end.
async fn scrub(pool: &Pool) -> ScrubStatus {
    pool.client().scrub_start(0).await.unwrap();
    pool.quiet().await;
    let status = status(pool).await;
    assert_eq!(status.state, ScrubState::Done);
    assert!(status.ended_ns >= status.began_ns && status.began_ns > 0);
    status
}

#[test]
fn a_sound_pool_is_read_whole() {
    with_seeds(|seed| {
        let (pool, volume) = filled(seed, 4);
        pool.run(async move |pool| {
            assert_eq!(status(&pool).await, ScrubStatus::default());
            let usage = pool.client().subvolume_usage(volume.subvolume).await.unwrap();
            let read = || pool.asked().read_bytes.get();
            let before = read();
            let status = scrub(&pool).await;
            assert_eq!((status.problems, status.last_problem), (0, None));
            assert!(read() - before >= usage.own_bytes, "{} of {usage:?}", read() - before);
            assert!(status.done_bytes >= usage.own_bytes);
            // And again.
            assert_eq!(scrub(&pool).await.problems, 0);
        });
    });
}

/// Flips a bit of each copy of what `at` names.
fn rot(pool: &Pool, at: usize) {
    pool.device().with_bytes(|bytes| bytes[at] ^= 1);
}

#[test]
fn lost_data_goes_on_the_damage_list() {
    let (pool, volume) = filled(1, 1);
    pool.run(async move |pool| {
        let engine = pool.shard(0).engine().clone();
        let mut frames = 0;
        for block in [3, 20] {
            let from = Position::new(volume.inode.0, block + 1, 0);
            let found = engine.read().next(Tree::Extents, from, Position::MAX).await;
            let extent = Extent::decode(&found.unwrap().unwrap().1).unwrap();
            frames += u32::from(extent.frame.is_some());
            rot(&pool, extent.pointers[0].block as usize * BLOCK + 8);
        }
        assert_eq!(frames, 1, "one is compressed and one is not");
        let status = scrub(&pool).await;
        assert!(status.problems > 1 && status.healed == 0, "{status:?}");
        assert!(status.last_problem.is_some_and(|text| text.contains("data lost")));
        let listed = pool.client().damage_list(100).await.unwrap();
        let names: Vec<_> = listed.iter().map(|line| line.subvolume.clone().unwrap().0).collect();
        assert!(!names.is_empty() && names.iter().all(|name| name == "v"), "{listed:?}");
        let problems = pool.client().fsck(Verify::All).await.unwrap().problems;
        assert_eq!(problems.len() as u64, status.problems, "{problems:?}");
    });
}

#[test]
fn a_node_that_rotted_is_written_anew_while_it_is_cached() {
    let (pool, _) = filled(2, 1);
    pool.run(async move |pool| {
        let engine = pool.shard(0).engine().clone();
        for tree in [Tree::Extents, Tree::Dirents] {
            let at = Position::new(u64::MAX, 0, 0);
            engine.node_for(tree, 0, at).await.unwrap();
            let location = engine.cache.root(tree).pointer().location.unwrap();
            rot(&pool, location.block as usize * BLOCK + 100);
        }
        let found = scrub(&pool).await;
        assert_eq!((found.problems, found.healed), (2, 2), "{found:?}");
        assert_eq!(scrub(&pool).await.problems, 0);
    });
    pool.crash_and_open();
    pool.run(async |pool| {
        let report = pool.client().fsck(Verify::All).await.unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    });
}

#[test]
fn it_keeps_to_its_rate_waits_and_goes_on() {
    let (pool, _) = filled(3, 2);
    pool.run(async |pool| {
        let client = pool.client();
        let started = client.scrub_start(MIB).await.unwrap();
        assert_eq!((started.state, started.bytes_per_second), (ScrubState::Running, MIB));
        let again = client.scrub_start(0).await;
        assert!(matches!(again, Err(StoreError::Busy { .. })), "{again:?}");
        pool.runtime.sleep(1_000_000_000).await;
        let paused = client.scrub(ScrubRequest::Pause).await.unwrap();
        assert_eq!(paused.state, ScrubState::Paused);
        assert!(paused.done_bytes > 0 && paused.done_bytes < paused.total_bytes, "{paused:?}");
        // A bucket of each shard at most beyond it.
        assert!(paused.done_bytes < 6 * MIB, "{paused:?}");
        pool.runtime.sleep(60_000_000_000).await;
        let still = status(&pool).await;
        assert_eq!((still.state, still.done_bytes), (ScrubState::Paused, paused.done_bytes));
        let began = pool.runtime.wall_clock_ns();
        client.scrub(ScrubRequest::Resume).await.unwrap();
        pool.quiet().await;
        let done = status(&pool).await;
        assert_eq!((done.state, done.problems), (ScrubState::Done, 0));
        let took = done.ended_ns - began;
        assert!(took >= 1_000_000_000, "{took}");
        client.scrub_start(KIB).await.unwrap();
        let cancelled = client.scrub(ScrubRequest::Cancel).await.unwrap();
        assert_eq!(cancelled.state, ScrubState::Cancelled);
        pool.quiet().await;
        // Nothing to give up, or to go on with.
        for request in [ScrubRequest::Cancel, ScrubRequest::Pause, ScrubRequest::Resume] {
            let now = client.scrub(request).await.unwrap();
            assert_eq!(now.state, ScrubState::Cancelled);
        }
        assert_eq!(scrub(&pool).await.problems, 0);
    });
}

#[test]
fn it_goes_on_after_a_crash_where_it_was() {
    let (pool, _) = filled(4, 1);
    pool.run(async |pool| {
        pool.client().scrub_start(MIB / 4).await.unwrap();
        pool.runtime.sleep(9_000_000_000).await;
        let now = status(&pool).await;
        assert!(now.state == ScrubState::Running && now.done_bytes > MIB, "{now:?}");
        pool.client().flush().await.unwrap();
    });
    pool.crash_and_open();
    pool.run(async |pool| {
        let now = status(&pool).await;
        assert!(now.state == ScrubState::Running && now.done_bytes > MIB / 2, "{now:?}");
        pool.client().scrub(ScrubRequest::Pause).await.unwrap();
    });
    pool.crash_and_open();
    pool.run(async |pool| {
        pool.runtime.sleep(9_000_000_000).await;
        assert_eq!(status(&pool).await.state, ScrubState::Paused);
        pool.client().scrub(ScrubRequest::Resume).await.unwrap();
        pool.quiet().await;
        let now = status(&pool).await;
        assert_eq!((now.state, now.problems), (ScrubState::Done, 0));
    });
}
