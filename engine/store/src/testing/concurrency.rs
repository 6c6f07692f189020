//! Many clients at once.

use std::cell::Cell;

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use futures::future::join_all;

use super::{Pool, bytes_of, data_of, with_seeds};
use crate::api::{CreateAttributes, FileKind, RenameMode, SetAttributes, TreeRef, Verify};
use crate::client::VolumeRef;
use crate::pool::FormatOptions;

const CLIENTS: u64 = 8;

#[test]
fn concurrent_writes_never_mix_within_a_block() {
    with_seeds(|seed| {
        Pool::new(seed, 2).run(async move |pool| {
            let client = pool.client();
            let info = client.volume_create("v", 8 * MIB, 4096).await.unwrap();
            let volume = &VolumeRef::from(&info);
            let writers = (1..=CLIENTS).map(|writer| {
                let client = pool.client();
                async move {
                    let mut random = Random::new(seed * 100 + writer);
                    for _ in 0..20 {
                        let block = 1000 + random.below(48);
                        let len = random.range(1, 40) * BLOCK_SIZE;
                        let data = data_of(&vec![writer as u8; len as usize], &mut random);
                        let offset = block * BLOCK_SIZE;
                        client.volume_write(volume, offset, data, false).await.unwrap();
                        let read = client.volume_read(volume, offset, BLOCK_SIZE).await.unwrap();
                        let read = bytes_of(&read);
                        assert!(read.iter().all(|byte| *byte == read[0]), "a block is mixed");
                    }
                }
            });
            join_all(writers).await;
            let all = bytes_of(&client.volume_read(volume, 4_096_000, MIB).await.unwrap());
            for block in all.chunks(BLOCK_SIZE as usize) {
                assert!(block.iter().all(|byte| *byte == block[0]), "a block is mixed");
            }
            let report = client.fsck(Verify::All).await.unwrap();
            assert!(report.problems.is_empty(), "{:#?}", report.problems);
        });
    });
}

/// The index and the tables of space are compared at a moment at which they are the same.
#[test]
fn a_check_beside_writes_that_never_rest_finds_nothing() {
    let options =
        FormatOptions { shards: Some(1), node_bytes: Some(16 << 10), ..FormatOptions::default() };
    Pool::with_members(41, &[64 << 20], options).run(async move |pool| {
        let client = pool.client();
        let info = client.volume_create("v", 16 * MIB, 4096).await.unwrap();
        let volume = &VolumeRef::from(&info);
        for block in 0..16 * MIB / BLOCK_SIZE {
            let data = data_of(&[7; BLOCK_SIZE as usize], &mut Random::new(block));
            client.volume_write(volume, block * BLOCK_SIZE, data, false).await.unwrap();
        }
        let done = &Cell::new(false);
        let writers = (1..=CLIENTS).map(|writer| {
            let client = pool.client();
            async move {
                let mut random = Random::new(writer);
                while !done.get() {
                    let offset = random.below(16 * MIB / BLOCK_SIZE) * BLOCK_SIZE;
                    let data = data_of(&vec![writer as u8; BLOCK_SIZE as usize], &mut random);
                    client.volume_write(volume, offset, data, false).await.unwrap();
                }
            }
        });
        let checks = async {
            for _ in 0..8 {
                let report = client.fsck(Verify::Nothing).await.unwrap();
                assert!(report.problems.is_empty(), "{:#?}", report.problems);
                assert_eq!(report.notes, Vec::<String>::new());
            }
            done.set(true);
        };
        futures::future::join(join_all(writers), checks).await;
    });
}

/// Errors are expected (names come and go); what is left must be consistent.
async fn one_client(pool: Pool, tree: TreeRef, seed: u64) {
    let client = pool.client();
    let mut random = Random::new(seed);
    let mut directories = vec![tree.root];
    let mut files = Vec::new();
    for _ in 0..60 {
        let name = |random: &mut Random| format!("n{}", random.below(6)).into_bytes();
        let (first, second) = (name(&mut random), name(&mut random));
        let (from, to) = (*random.pick(&directories), *random.pick(&directories));
        match random.below(8) {
            0..=2 => {
                let kind = *random.pick(&[FileKind::File, FileKind::Directory]);
                let new = CreateAttributes::default();
                if let Ok(made) = client.create(tree, from, &first, kind, new).await {
                    match kind {
                        FileKind::Directory => directories.push(made.inode),
                        _ => files.push(made.inode),
                    }
                }
            }
            3 => drop(client.remove(tree, from, &first, random.chance(1, 2)).await),
            4 => {
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = *random.pick(&modes);
                drop(client.rename(tree, (from, &first), (to, &second), mode).await);
            }
            5 if !files.is_empty() => {
                let file = *random.pick(&files);
                drop(client.link_inode(tree, file, to, &second).await);
            }
            6 if !files.is_empty() => {
                let (file, offset) = (*random.pick(&files), random.below(9 * MIB));
                let data = data_of(&vec![1; random.range(1, 9000) as usize], &mut random);
                drop(client.file_write(tree, file, offset, data).await);
            }
            _ if !files.is_empty() => {
                let size = Some(random.below(9 * MIB));
                let set = SetAttributes { size, ..Default::default() };
                drop(client.set_attributes(tree, *random.pick(&files), set).await);
            }
            _ => drop(client.read_directory(tree, from, 0, 100).await),
        }
    }
}

#[test]
fn concurrent_clients_leave_a_consistent_tree() {
    with_seeds(|seed| {
        let pool = Pool::new(seed, 4);
        pool.run(async move |pool| {
            let client = pool.client();
            let info = client.tree_create("t").await.unwrap();
            let tree = TreeRef::from(&info);
            join_all((0..CLIENTS).map(|id| one_client(pool.clone(), tree, seed * 100 + id))).await;
            // Deleted while others still work in it.
            let late = join_all((0..2).map(|id| one_client(pool.clone(), tree, seed * 200 + id)));
            pool.quiet().await;
            let report = client.fsck(Verify::All).await.unwrap();
            assert!(report.problems.is_empty(), "{:#?}", report.problems);
            let version = pool.version_of(tree.subvolume);
            let (deleted, _) = futures::future::join(client.subvolume_delete("t"), late).await;
            deleted.unwrap();
            pool.quiet().await;
            let report = client.fsck(Verify::All).await.unwrap();
            assert!(report.problems.is_empty(), "{:#?}", report.problems);
            assert_eq!(pool.data_blocks_of(version), 0);
        });
    });
}
