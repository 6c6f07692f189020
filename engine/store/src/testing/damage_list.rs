//! The damage list: what is found lost is kept with its path, and dropped when it is written again.

use engine_base::random::Random;

use super::{Pool, bytes_of, data_of};
use crate::api::{CreateAttributes, FileKind, TreeRef};
use crate::client::VolumeRef;
use crate::error::StoreError;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

/// A pool of two shards with the file t:/d/f and the volume v; blocks with these bytes in them.
fn filled(seed: u64) -> (Pool, TreeRef, engine_base::InodeNumber, VolumeRef) {
    let pool = Pool::new(seed, 2);
    let (tree, file, volume) = pool.run(async |pool| {
        let client = pool.client();
        let tree = TreeRef::from(&client.tree_create("t").await.unwrap());
        let attributes = CreateAttributes::default();
        let folder =
            client.create(tree, tree.root, b"d", FileKind::Directory, attributes).await.unwrap();
        let file =
            client.create(tree, folder.inode, b"f", FileKind::File, attributes).await.unwrap();
        let mut random = Random::new(1);
        for (offset, byte) in [(0, 0xa1), (BLOCK as u64 * 3, 0xa2), (5 * MIB, 0xa3)] {
            let data = data_of(&[byte; BLOCK], &mut random);
            client.file_write(tree, file.inode, offset, data).await.unwrap();
        }
        let volume = client.volume_create("v", 16 * MIB, 4096).await.unwrap();
        let volume = VolumeRef::from(&volume);
        let data = data_of(&[0xb1; 2 * BLOCK], &mut random);
        client.volume_write(&volume, MIB, data, false).await.unwrap();
        client.flush().await.unwrap();
        (tree, file.inode, volume)
    });
    (pool, tree, file, volume)
}

/// Damages every block full of `byte`.
fn rot(pool: &Pool, byte: u8) {
    let count = pool.device().with_bytes(|bytes| {
        let blocks = bytes.chunks_mut(BLOCK).filter(|block| **block == [byte; BLOCK]);
        blocks.map(|block| block[7] ^= 1).count()
    });
    assert!(count > 0);
}

/// Names, paths, offsets and lengths of what is listed.
fn listed(pool: &Pool) -> Vec<(String, Option<String>, u64, u64)> {
    let lines = pool.run(async |pool| pool.client().damage_list(100).await.unwrap());
    let mut shown: Vec<_> = lines
        .into_iter()
        .map(|line| {
            assert!(line.entry.what.contains("memory0"), "{line:?}");
            let path = line.path.map(|path| String::from_utf8(path).unwrap());
            (line.subvolume.unwrap().0, path, line.entry.offset, line.entry.len)
        })
        .collect();
    shown.sort();
    shown
}

fn of_file(offset: u64) -> (String, Option<String>, u64, u64) {
    ("t".to_owned(), Some("/d/f".to_owned()), offset, BLOCK as u64)
}

#[test]
fn what_fsck_finds_is_listed_with_its_path_and_survives_a_crash() {
    let (pool, ..) = filled(51);
    for byte in [0xa1, 0xa3, 0xb1] {
        rot(&pool, byte);
    }
    assert_eq!(listed(&pool), []);
    let report = pool.run(async |pool| pool.client().fsck(true).await.unwrap());
    assert_eq!(report.problems.len(), 4, "{report:?}");
    let wanted = [of_file(0), of_file(5 * MIB), ("v".to_owned(), None, MIB, 2 * BLOCK as u64)];
    assert_eq!(listed(&pool), wanted);
    pool.run(async |pool| pool.client().flush().await.unwrap());
    pool.crash_and_open();
    assert_eq!(listed(&pool), wanted);
    let again = pool.run(async |pool| pool.client().fsck(true).await.unwrap());
    assert_eq!(again.problems, report.problems, "the list itself is no problem");
}

#[test]
fn what_a_read_finds_is_listed() {
    let (pool, tree, file, _) = filled(52);
    rot(&pool, 0xa2);
    pool.run(async move |pool| {
        let read = pool.client().file_read(tree, file, 0, 4 * BLOCK as u32).await;
        assert!(matches!(read, Err(StoreError::DataLoss { .. })), "{read:?}");
    });
    assert_eq!(listed(&pool), [of_file(3 * BLOCK as u64)]);
}

#[test]
fn entries_go_when_the_range_is_written_again_removed_or_cleared() {
    let (pool, tree, file, volume) = filled(53);
    for byte in [0xa1, 0xa2, 0xa3, 0xb1] {
        rot(&pool, byte);
    }
    pool.run(async |pool| pool.client().fsck(true).await.unwrap());
    assert_eq!(listed(&pool).len(), 4);
    pool.run(async move |pool| {
        let client = pool.client();
        let data = data_of(&[1; BLOCK], &mut Random::new(1));
        client.file_write(tree, file, 0, data).await.unwrap();
        client.volume_discard(&volume, MIB, BLOCK as u64).await.unwrap();
        let read = client.file_read(tree, file, 0, BLOCK as u32).await.unwrap();
        assert_eq!(bytes_of(&read), [1; BLOCK]);
    });
    let rest = ("v".to_owned(), None, MIB + BLOCK as u64, BLOCK as u64);
    assert_eq!(listed(&pool), [of_file(3 * BLOCK as u64), of_file(5 * MIB), rest.clone()]);
    let cleared = pool.run(async move |pool| pool.client().damage_clear(Some(file)).await.unwrap());
    assert_eq!((cleared, listed(&pool)), (2, vec![rest]));
    assert_eq!(pool.run(async |pool| pool.client().damage_clear(None).await.unwrap()), 1);
    pool.run(async |pool| pool.client().flush().await.unwrap());
    pool.crash_and_open();
    assert_eq!(listed(&pool), []);
}
