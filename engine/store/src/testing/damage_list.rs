//! The damage list: what is found lost is kept with its path, and dropped when it is written again.

use std::pin::pin;

use engine_base::random::Random;
use engine_base::runtime::Runtime as _;
use futures::future::{Either, join, select};

use super::{Pool, bytes_of, data_of};
use crate::api::{CreateAttributes, FileKind, FsckReport, TreeRef, Verify};
use crate::client::VolumeRef;
use crate::error::StoreError;
use crate::limits::Limits;

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
    let report = pool.run(async |pool| pool.client().fsck(Verify::All).await.unwrap());
    assert_eq!(report.problems.len(), 4, "{report:?}");
    let wanted = [of_file(0), of_file(5 * MIB), ("v".to_owned(), None, MIB, 2 * BLOCK as u64)];
    assert_eq!(listed(&pool), wanted);
    pool.run(async |pool| pool.client().flush().await.unwrap());
    pool.crash_and_open();
    assert_eq!(listed(&pool), wanted);
    let again = pool.run(async |pool| pool.client().fsck(Verify::All).await.unwrap());
    assert_eq!(again.problems, report.problems, "the list itself is no problem");
}

/// A pool of two shards that note how far a check got every 64 blocks, with 24 MiB in the volume v, and
/// a block of 0xb1 near the beginning of what each shard has. It was opened again since.
fn long() -> Pool {
    let (mut pool, ..) = filled(57);
    pool.set_limits(Limits { fsck_note_blocks: 64, ..Limits::default() });
    pool.crash_and_open();
    pool.run(async |pool| {
        let client = pool.client();
        let volume = client.volume_create("w", 24 * MIB, 4096).await.unwrap();
        let volume = VolumeRef::from(&volume);
        let mut random = Random::new(1);
        for offset in (0..24 * MIB).step_by(64 << 10) {
            // Each its own extent: every second block is written.
            let data = data_of(&[2; 32 << 10], &mut random);
            client.volume_write(&volume, offset, data, false).await.unwrap();
        }
        client.flush().await.unwrap();
    });
    pool
}

fn verified(report: &FsckReport) -> u64 {
    report.checked.iter().find(|(name, _)| *name == "blocks verified").unwrap().1
}

/// How many shards went on from a place.
fn places(report: &FsckReport) -> usize {
    report.notes.iter().filter(|note| note.contains("were verified by a check")).count()
}

/// Waits until a check has noted on every shard how far it is.
async fn noted(pool: &Pool) {
    while pool.client().record_list("fsck").await.unwrap().len() < 2 {
        pool.runtime.yield_now().await;
    }
    // A record is seen before it is durable.
    pool.client().flush().await.unwrap();
}

/// Begins a check of all data, and leaves it when every shard has noted how far it is.
async fn begin_check(pool: &Pool) {
    let client = pool.client();
    let check = pin!(client.fsck(Verify::All));
    match select(check, pin!(noted(pool))).await {
        Either::Left(_) => panic!("the check came to its end before it noted anything"),
        Either::Right(_) => {}
    }
}

#[test]
fn a_check_of_the_data_that_was_cut_short_is_gone_on_with() {
    let pool = long();
    rot(&pool, 0xa1);
    let whole = pool.run(async |pool| pool.client().fsck(Verify::All).await.unwrap());
    assert_eq!((whole.problems.len(), &whole.notes[..]), (1, &[][..]), "{whole:?}");
    // What it found is forgotten, so that the next one has to make it durable again.
    pool.run(async |pool| pool.client().damage_clear(None).await.unwrap());

    pool.run(async |pool| begin_check(&pool).await);
    pool.crash_and_open();
    assert_eq!(listed(&pool), [of_file(0)], "listed before a place behind it is noted");
    let rest = pool.run(async |pool| pool.client().fsck(Verify::Resume).await.unwrap());
    assert_eq!((rest.problems.len(), places(&rest)), (1, 2), "{rest:?}");
    assert!(rest.problems[0].contains("found before"), "{rest:?}");
    assert!((1..verified(&whole)).contains(&verified(&rest)), "{rest:?} of {whole:?}");

    // It came to its end: the next one begins anew.
    let again = pool.run(async |pool| pool.client().fsck(Verify::Resume).await.unwrap());
    assert_eq!((verified(&again), places(&again)), (verified(&whole), 0), "{again:?}");
}

#[test]
fn a_check_of_the_data_that_begins_ends_the_one_before_and_forgets_its_notes() {
    let pool = long();
    let (whole, rest) = pool.run(async |pool| {
        let client = pool.client();
        let (first, second) = join(client.fsck(Verify::All), async {
            noted(&pool).await;
            client.fsck(Verify::All).await
        })
        .await;
        assert!(matches!(first, Err(StoreError::Busy { .. })), "{first:?}");
        (second.unwrap(), client.fsck(Verify::Resume).await.unwrap())
    });
    assert_eq!((&whole.problems[..], &whole.notes[..]), (&[][..], &[][..]));
    assert_eq!(verified(&whole), verified(&rest));
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
    pool.run(async |pool| pool.client().fsck(Verify::All).await.unwrap());
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
