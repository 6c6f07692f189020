//! Operations that a crash interrupted are carried out when the shards are opened again.

use engine_base::random::Random;
use engine_base::{InodeNumber, MIB, ShardId, SubvolumeId};

use super::{Pool, bytes_of, data_of};
use crate::api::{
    CreateAttributes, FileKind, Link, Reply, Request, SetAttributes, SubvolumeKind,
    SubvolumeOptions, TreeRef, Verify,
};
use crate::client::VolumeRef;
use crate::error::StoreError;
use crate::key::{Counter, Tree};
use crate::logged::{self, Intent, NewSubvolume};
use crate::namespace::{Inode, inode_position};

async fn no_intent_is_left(pool: &Pool, shards: u16) {
    for shard in 0..shards {
        let pending = logged::pending(pool.shard(shard).engine()).await.unwrap();
        assert!(pending.is_empty(), "{pending:?}");
    }
    let report = pool.client().fsck(Verify::All).await.unwrap();
    assert!(report.problems.is_empty(), "{:#?}", report.problems);
}

async fn large_file(pool: &Pool) -> (TreeRef, InodeNumber) {
    let client = pool.client();
    let info = client.tree_create("t").await.unwrap();
    let tree = TreeRef::from(&info);
    let attributes = CreateAttributes { mode: 0o644, uid: 0, gid: 0 };
    let file = client.create(tree, info.root, b"f", FileKind::File, attributes).await.unwrap();
    let mut random = Random::new(1);
    for mib in 0..9 {
        let data = data_of(&vec![9; MIB as usize], &mut random);
        client.file_write(tree, file.inode, mib * MIB, data).await.unwrap();
    }
    client.file_sync(tree, file.inode).await.unwrap();
    (tree, file.inode)
}

#[test]
fn a_removed_files_data_is_dropped_after_a_crash() {
    let pool = Pool::new(21, 4);
    let tree = pool.run(async |pool| {
        let (tree, inode) = large_file(&pool).await;
        let home = pool.shard(inode.home(4).0);
        // The file is gone and nothing of its data is dropped yet.
        home.engine()
            .transact(async |transaction| {
                let intent = Intent::Remove { inode, snapshot: pool.version_of(tree.subvolume) };
                logged::put(transaction, &intent)?;
                Ok(())
            })
            .await
            .unwrap();
        pool.client().flush().await.unwrap();
        tree
    });
    pool.crash_and_open();
    pool.run(async move |pool| {
        pool.quiet().await;
        assert_eq!(pool.data_blocks_of(pool.version_of(tree.subvolume)), 0);
        no_intent_is_left(&pool, 4).await;
    });
}

#[test]
fn a_cut_off_file_stays_cut_off_after_a_crash() {
    let pool = Pool::new(22, 4);
    let (tree, inode) = pool.run(async |pool| {
        let (tree, inode) = large_file(&pool).await;
        let home = pool.shard(inode.home(4).0);
        home.engine()
            .transact(async |transaction| {
                let position = inode_position(inode, pool.version_of(tree.subvolume));
                let value = transaction.get(Tree::Inodes, position).await?.unwrap();
                let mut cut = Inode::decode(&value)?;
                cut.size = 5 * MIB + 5000;
                transaction.put(Tree::Inodes, position, cut.encode());
                let (snapshot, size) = (pool.version_of(tree.subvolume), cut.size);
                logged::put(transaction, &Intent::Truncate { inode, snapshot, size })?;
                Ok(())
            })
            .await
            .unwrap();
        pool.client().flush().await.unwrap();
        (tree, inode)
    });
    pool.crash_and_open();
    pool.run(async move |pool| {
        let client = pool.client();
        // Waits for the cut, though it comes first of all requests.
        let set = SetAttributes { size: Some(9 * MIB), ..Default::default() };
        client.set_attributes(tree, inode, set).await.unwrap();
        for mib in 0..9 {
            let data = client.file_read(tree, inode, mib * MIB, MIB as u32).await.unwrap();
            let expected = |at: u64| if mib * MIB + at < 5 * MIB + 5000 { 9 } else { 0 };
            let bytes = bytes_of(&data);
            assert_eq!(bytes.len() as u64, MIB);
            assert!((0..MIB).all(|at| bytes[at as usize] == expected(at)), "mebibyte {mib}");
        }
        pool.quiet().await;
        no_intent_is_left(&pool, 4).await;
    });
}

#[test]
fn a_subvolume_that_was_being_created_exists_after_a_crash() {
    let pool = Pool::new(23, 4);
    pool.run(async |pool| {
        let engine = pool.shard(0);
        engine
            .engine()
            .transact(async |transaction| {
                let new = NewSubvolume {
                    id: SubvolumeId(transaction.take(Counter::NEXT_SUBVOLUME)?),
                    snapshot: engine_base::SnapshotId(
                        transaction.take(Counter::NEXT_SNAPSHOT)? as u32
                    ),
                    name: "v".to_owned(),
                    kind: SubvolumeKind::Volume,
                    size_bytes: MIB,
                    block_size: 4096,
                    created_ns: 1,
                    uuid: [1; 16],
                    options: SubvolumeOptions::default(),
                    source: None,
                };
                logged::put(transaction, &Intent::Create(new))?;
                Ok(())
            })
            .await
            .unwrap();
        pool.client().flush().await.unwrap();
    });
    pool.crash_and_open();
    pool.run(async |pool| {
        // The name is taken from the first moment on.
        let taken = pool.client().volume_create("v", MIB, 4096).await;
        assert!(matches!(taken, Err(StoreError::AlreadyExists { .. })), "{taken:?}");
        let info = pool.client().subvolume_get("v").await.unwrap();
        let other = pool.client().volume_create("w", MIB, 4096).await.unwrap();
        assert!(other.id != info.id && other.snapshot != info.snapshot);
        pool.quiet().await;
        no_intent_is_left(&pool, 4).await;
    });
}

#[test]
fn a_deleted_subvolume_goes_on_going_after_a_crash() {
    let pool = Pool::new(24, 4);
    let version = pool.run(async |pool| {
        let client = pool.client();
        let info = client.volume_create("v", 20 * MIB, 4096).await.unwrap();
        let volume = VolumeRef::from(&info);
        let mut random = Random::new(2);
        let data = data_of(&vec![3; 6 * MIB as usize], &mut random);
        client.volume_write(&volume, MIB, data, true).await.unwrap();
        client.subvolume_delete("v").await.unwrap();
        info.snapshot
    });
    // The answer came after the intent was durable, the sweep has hardly begun.
    pool.crash_and_open();
    pool.run(async move |pool| {
        let gone = pool.client().subvolume_get("v").await;
        assert!(matches!(gone, Err(StoreError::NotFound { .. })), "{gone:?}");
        pool.quiet().await;
        assert_eq!(pool.data_blocks_of(version), 0);
        no_intent_is_left(&pool, 4).await;
    });
}

/// A write to a chunk of the home shard raises the limit past chunks of other shards: one to these
/// then finds it high enough, and must not get there before it is durable.
#[test]
fn a_crash_of_the_home_leaves_no_blocks_past_the_limit_elsewhere() {
    let pool = Pool::new(26, 2);
    pool.run(async |pool| {
        let client = pool.client();
        let info = client.tree_create("t").await.unwrap();
        let tree = TreeRef::from(&info);
        let attributes = CreateAttributes { mode: 0o644, uid: 0, gid: 0 };
        let file = client.create(tree, info.root, b"f", FileKind::File, attributes).await.unwrap();
        client.flush().await.unwrap();
        let mut random = Random::new(4);
        let data = data_of(&[7; 8192], &mut random);
        client.file_write(tree, file.inode, 8 * MIB, data.clone()).await.unwrap();
        client.file_write(tree, file.inode, 5 * MIB, data).await.unwrap();
        let other = file.inode.data_shard(5 * MIB, 2);
        assert_ne!(other, file.inode.home(2));
        pool.shard(other.0).engine().flush().await.unwrap();
    });
    pool.crash_and_open();
    pool.run(async |pool| no_intent_is_left(&pool, 2).await);
}

#[test]
fn requests_do_not_wait_for_a_shard_that_has_stopped() {
    Pool::new(27, 4).run(async |pool| {
        let client = pool.client();
        let (tree, inode) = large_file(&pool).await;
        let stopped = inode.data_shard(5 * MIB, 4);
        let volume = client.volume_create("v", MIB, 4096).await.unwrap();
        assert!(stopped != inode.home(4) && stopped.0 != 0, "the test needs its home and shard 0");
        pool.shard(stopped.0).engine().close().await.unwrap();

        // Decided, and done when the pool is opened again.
        let set = |size| SetAttributes { size: Some(size), ..Default::default() };
        client.set_attributes(tree, inode, set(MIB + 5)).await.unwrap();
        client.volume_resize("v", 2 * MIB).await.unwrap();
        let stops = |error| matches!(error, StoreError::ShuttingDown { .. });
        for _ in 0..2 {
            assert!(stops(client.file_read(tree, inode, 0, 4096).await.unwrap_err()));
            assert!(stops(client.set_attributes(tree, inode, set(5)).await.unwrap_err()));
            assert!(stops(client.remove(tree, tree.root, b"f", false).await.unwrap_err()));
            assert!(stops(client.volume_resize("v", MIB).await.unwrap_err()));
            assert!(stops(client.subvolume_delete("v").await.unwrap_err()));
        }
        assert_eq!(client.subvolume_get("v").await.unwrap().id, volume.id);
        // One of these would have its root on the stopped shard. Its name is free at once: asked
        // again, its root is somewhere else.
        let mut refused = 0;
        for name in ["a", "b", "c", "d"] {
            if let Err(error) = client.volume_create(name, MIB, 4096).await {
                assert!(stops(error));
                refused += 1;
                client.volume_create(name, MIB, 4096).await.unwrap();
            }
        }
        assert!(refused > 0);
        for shard in (0..4).filter(|shard| *shard != stopped.0) {
            pool.shard(shard).shutdown().await.unwrap();
        }
    });
}

#[test]
fn fsck_sees_what_is_wrong() {
    Pool::new(25, 2).run(async |pool| {
        let (tree, inode) = large_file(&pool).await;
        let home = pool.shard(inode.home(2).0);
        home.engine()
            .transact(async |transaction| {
                let version = pool.version_of(tree.subvolume);
                transaction.delete(Tree::Inodes, inode_position(inode, version));
                Ok(())
            })
            .await
            .unwrap();
        let report = pool.client().fsck(Verify::Nothing).await.unwrap().problems.join("\n");
        assert!(report.contains(&format!("inode {inode} does not exist")), "{report}");
        assert!(report.contains("past its limit, or it is gone"), "{report}");
        assert!(report.contains("but the counter says"), "{report}");
        // A request that only shard 0 can answer.
        let link = pool.client().link().clone();
        let get = Request::SubvolumeGet { name: "t".to_owned() };
        assert!(Link::call(&link, ShardId(1), get.clone()).await.is_err());
        assert!(matches!(Link::call(&link, ShardId(0), get).await, Ok(Reply::Subvolume(_))));
    });
}
