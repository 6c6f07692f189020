//! Devices that lost or changed what they held: recovered or refused with words that name the place,
//! never a silent loss.

use engine_base::random::Random;
use engine_device::{Fault, OperationKind, Rule};

use super::{Pool, bytes_of, data_of};
use crate::api::Verify;
use crate::client::VolumeRef;
use crate::error::StoreError;
use crate::journal::Record;
use crate::journal::format::{EntryInfo, parse_entry, records};
use crate::key::{Counter, Tree};
use crate::pool::FormatOptions;
use crate::superblock::Superblock;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// Entries of a shard's journal by number, each with its byte on the member and what its header says.
fn entries(pool: &Pool, shard: u16) -> Vec<(usize, EntryInfo, Vec<u8>)> {
    let superblock = pool.shard(shard).engine().superblock().clone();
    let area = superblock.journals[usize::from(shard)];
    let base = (area.first_bucket * superblock.bucket_bytes) as usize;
    let len = (area.buckets * superblock.bucket_bytes) as usize;
    let mut found = Vec::new();
    pool.member(usize::from(area.member)).with_bytes(|bytes| {
        for at in (0..len).step_by(BLOCK) {
            let rest = &bytes[base + at..base + len];
            if let Some((info, records)) = parse_entry(rest, superblock.pool_uuid, shard, at as u64)
            {
                found.push((base + at, info, records.to_vec()));
            }
        }
    });
    found.sort_by_key(|(_, info, _)| info.seq);
    found
}

fn damage(pool: &Pool, member: usize, at: usize) {
    pool.member(member).with_bytes(|bytes| bytes[at..at + 64].fill(0x5a));
}

/// A pool with a volume on one shard, flushed.
fn with_volume(seed: u64) -> (Pool, VolumeRef) {
    let pool = Pool::new(seed, 1);
    let volume = pool.run(async |pool| {
        let info = pool.client().volume_create("v", MIB, 4096).await.unwrap();
        pool.client().flush().await.unwrap();
        VolumeRef::from(&info)
    });
    (pool, volume)
}

/// Writes block `number` full of `byte`; durably if asked.
fn write(pool: &Pool, volume: &VolumeRef, number: u64, byte: u8, flush: bool) {
    let volume = volume.clone();
    pool.run(async move |pool| {
        let data = data_of(&[byte; BLOCK], &mut Random::new(1));
        pool.client().volume_write(&volume, number * BLOCK as u64, data, false).await.unwrap();
        if flush {
            pool.client().flush().await.unwrap();
        }
    });
}

fn read(pool: &Pool, volume: &VolumeRef, number: u64) -> Result<u8, StoreError> {
    let volume = volume.clone();
    pool.run(async move |pool| {
        let at = number * BLOCK as u64;
        pool.client().volume_read(&volume, at, BLOCK as u64).await.map(|data| bytes_of(&data)[0])
    })
}

fn refusal(pool: &Pool) -> String {
    let error = pool.try_crash_and_open().expect_err("it must be refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    error.to_string()
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_damaged_entry_before_the_newest_flush_is_refused_and_named() {
    let (pool, volume) = with_volume(1);
    for number in 0..5 {
        write(&pool, &volume, number, 1, false);
    }
    write(&pool, &volume, 9, 1, true);
    let entries = entries(&pool, 0);
    let newest = entries.iter().rev().find(|(_, info, _)| info.flush).unwrap().1;
    let (at, victim, _) = entries
        .iter()
        .find(|(_, info, _)| info.seq >= newest.last_seq && info.seq < newest.seq)
        .expect("entries that the flush entry needs");
    damage(&pool, 0, *at);
    let before = pool.device().with_bytes(|bytes| bytes.clone());
    let why = refusal(&pool);
    assert_says(&why, &["journal of shard 0", &format!("entry {}", victim.seq), "memory0"]);
    assert_says(&why, &["cairn dump", "restore", &at.to_string()]);
    assert!(pool.device().with_bytes(|bytes| *bytes == before), "a refusal changes nothing");
}

#[test]
fn a_damaged_entry_of_the_tail_ends_it_and_the_rest_is_counted() {
    let (pool, volume) = with_volume(2);
    for number in 0..6 {
        write(&pool, &volume, number, 7, false);
    }
    let entries = entries(&pool, 0);
    let flushed = entries.iter().rev().find(|(_, info, _)| info.flush).unwrap().1.seq;
    let tail: Vec<_> = entries.iter().filter(|(_, info, _)| info.seq > flushed).collect();
    assert_eq!(tail.len(), 6);
    damage(&pool, 0, tail[2].0);
    pool.crash_and_open();
    let notes = pool.notes().join("\n");
    let wanted = format!("3 entries after entry {} were not taken", tail[1].1.seq);
    assert_says(&notes, &["journal of shard 0 on memory0", &wanted, "missing or damaged"]);
    let bytes: Vec<u8> = (0..6).map(|number| read(&pool, &volume, number).unwrap()).collect();
    assert_eq!(bytes, [7, 7, 0, 0, 0, 0]);
    pool.crash_and_open();
    assert_eq!(pool.notes(), Vec::<String>::new(), "told once");
}

/// What a shard was opened without stays away, though it can be read again (simulator seed 14426).
#[test]
fn an_entry_that_could_not_be_read_does_not_come_back() {
    let (pool, volume) = with_volume(4);
    write(&pool, &volume, 1, 7, true);
    write(&pool, &volume, 2, 7, false);
    let newest = entries(&pool, 0).pop().unwrap();
    assert!(!newest.1.flush);
    let at = newest.0 as u64;
    let unreadable = Rule::always(&[OperationKind::Read], Fault::Error);
    let rule = pool.faults(0).add(Rule { range: Some(at..at + 1), ..unreadable });
    pool.crash_and_open();
    assert_says(
        &pool.notes().join("\n"),
        &["journal of shard 0 on memory0: 1 blocks cannot be read"],
    );
    assert_eq!(read(&pool, &volume, 2), Ok(0));
    pool.faults(0).remove(rule);
    for _ in 0..2 {
        pool.crash_and_open();
        assert_eq!([read(&pool, &volume, 1), read(&pool, &volume, 2)], [Ok(7), Ok(0)]);
    }
}

#[test]
fn a_journal_without_any_entry_is_refused() {
    let (pool, _) = with_volume(3);
    for (at, ..) in entries(&pool, 0) {
        damage(&pool, 0, at);
    }
    assert_says(&refusal(&pool), &["journal of shard 0", "no flush entry", "memory0", "restore"]);
}

/// Writes every node out and gives the places of the leaves of a tree, from the root of the journal.
fn root_place(pool: &Pool, tree: Tree) -> usize {
    pool.run(async |pool| pool.shard(0).shutdown().await.unwrap());
    let all = entries(pool, 0);
    let (_, _, newest) = all.last().unwrap();
    let pointer = records(newest).find_map(|record| match record.unwrap() {
        Record::Root { tree: of, pointer, .. } if of == tree => Some(pointer.to_vec()),
        _ => None,
    });
    let pointer = crate::btree::NodePointer::decode(&pointer.unwrap()).unwrap();
    pointer.location.expect("it was written").block as usize * BLOCK
}

#[test]
fn a_torn_root_is_refused_and_named() {
    let (pool, volume) = with_volume(4);
    write(&pool, &volume, 0, 1, true);
    let at = root_place(&pool, Tree::Extents);
    damage(&pool, 0, at + 100);
    let why = refusal(&pool);
    assert_says(&why, &["tree Extents", "memory0", &at.to_string(), "checksum"]);
}

/// A device that forgets what it said it had flushed.
#[test]
fn a_device_that_lied_about_a_flush_is_named() {
    let (pool, volume) = with_volume(5);
    write(&pool, &volume, 3, 9, true);
    write(&pool, &volume, 4, 8, true);
    pool.device().with_bytes(|bytes| {
        let lost = bytes.chunks_mut(BLOCK).find(|block| **block == [8; BLOCK]);
        lost.expect("it was written").fill(0);
    });
    pool.crash_and_open();
    let notes = pool.notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    let inode = format!("blocks 4 to 5 of inode {}", volume.inode);
    assert_says(&notes[0], &["memory0 answered a flush", &inode]);
    assert_eq!(read(&pool, &volume, 3), Ok(9));
    assert!(matches!(read(&pool, &volume, 4), Err(StoreError::DataLoss { .. })));
    let report = pool.run(async |pool| pool.client().fsck(Verify::All).await.unwrap());
    assert_eq!(report.notes, notes);
    assert!(report.problems.iter().any(|line| line.contains("data lost")), "{report:?}");
}

/// What was freed since, and its space given again, is no loss.
#[test]
fn overwritten_blocks_are_not_taken_for_lost() {
    let (pool, volume) = with_volume(6);
    for round in 1..=40 {
        for number in 0..3 {
            write(&pool, &volume, number, round, round % 3 == 0);
        }
    }
    for _ in 0..3 {
        pool.crash_and_open();
        assert_eq!(pool.notes(), Vec::<String>::new());
    }
    assert_eq!(read(&pool, &volume, 2), Ok(40));
}

fn copies(pool: &Pool, member: usize) -> [u64; 3] {
    let superblock = pool.shard(0).engine().superblock().clone();
    Superblock::copy_offsets(superblock.members[member].size_bytes)
}

fn two_members(seed: u64) -> Pool {
    let options = FormatOptions { shards: Some(2), ..FormatOptions::default() };
    Pool::with_members(seed, &[64 * MIB, 64 * MIB + 8192], options)
}

#[test]
fn a_bad_superblock_copy_is_mended_from_the_others_and_told() {
    for copy in 0..3 {
        let pool = two_members(7);
        let places = copies(&pool, 1);
        let good = pool.member(1).with_bytes(|bytes| bytes.clone());
        damage(&pool, 1, places[copy] as usize + 4100);
        pool.crash_and_open();
        let notes = pool.notes().join("\n");
        let place = format!("superblock copy at byte {} is bad", places[copy]);
        assert_says(&notes, &["memory1", &place, "written anew"]);
        for place in places {
            let range = place as usize..place as usize + 65536;
            assert!(pool.member(1).with_bytes(|bytes| bytes[range.clone()] == good[range]));
        }
        pool.crash_and_open();
        assert_eq!(pool.notes(), Vec::<String>::new());
    }
}

#[test]
fn two_bad_copies_are_mended_from_the_third() {
    let pool = two_members(8);
    let places = copies(&pool, 0);
    for place in &places[..2] {
        pool.member(0).with_bytes(|bytes| bytes[*place as usize..][..65536].fill(0));
    }
    pool.crash_and_open();
    let notes = pool.notes();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert_says(&notes[1], &["no superblock is there", "written anew"]);
}

#[test]
fn a_member_without_a_good_copy_is_refused() {
    let pool = two_members(9);
    for place in copies(&pool, 1) {
        damage(&pool, 1, place as usize + 200);
    }
    let why = refusal(&pool);
    assert_says(&why, &["memory1", "every copy", "at byte 65536: checksum", "nothing was changed"]);
}

#[test]
fn swapped_and_copied_members_are_refused() {
    let pool = two_members(10);
    pool.set_order(&[1, 0]);
    assert_says(&refusal(&pool), &["memory1 is not member 0", "order of the member table"]);
    pool.set_order(&[0, 0]);
    assert_says(&refusal(&pool), &["memory0 is not member 1"]);
    pool.set_order(&[0]);
    assert_says(&refusal(&pool), &["has 2 members, 1 are given"]);
    pool.set_order(&[0, 1]);
    pool.crash_and_open();
}

#[test]
fn a_member_of_another_pool_is_refused() {
    let pool = two_members(11);
    let other = Pool::with_members(
        12,
        &[64 * MIB, 64 * MIB],
        FormatOptions { shards: Some(2), uuid_seed: [5, 6], ..FormatOptions::default() },
    );
    let foreign = other.member(1).with_bytes(|bytes| bytes.clone());
    pool.member(1).with_bytes(|bytes| bytes[..foreign.len()].copy_from_slice(&foreign));
    // The last copy of its own is still there: the other pool's device is smaller.
    pool.member(1).with_bytes(|bytes| {
        let end = bytes.len();
        bytes[end - 8192 - 65536..end - 8192].fill(0);
    });
    assert_says(&refusal(&pool), &["memory1 is of another pool than memory0"]);
}

/// Found as a panic by changed images.
#[test]
fn counters_that_say_what_cannot_be_give_errors_and_never_panic() {
    let (pool, volume) = with_volume(31);
    write(&pool, &volume, 3, 7, true);
    pool.run(async move |pool| {
        let client = pool.client();
        let info = client.subvolume_get("v").await.unwrap();
        let version = pool.version_of(info.id).0;
        let add = async |counter: Counter, delta: i64| {
            let engine = pool.shard(0);
            let transaction = engine.engine().transact(async |transaction| {
                transaction.add(counter, delta);
                Ok(())
            });
            transaction.await.unwrap();
        };
        for counter in [Counter::data_blocks(version), Counter::saved_blocks(version)] {
            add(counter, -3).await;
        }
        add(Counter::referenced_blocks(version), i64::MAX).await;
        let usage = client.subvolume_usage(info.id).await.unwrap();
        assert_eq!((usage.own_bytes, usage.saved_bytes), (u64::MAX, u64::MAX));
        client.freed_by_delete(info.id).await.unwrap();
        let report = client.fsck(Verify::Nothing).await.unwrap();
        assert!(!report.problems.is_empty());
        add(Counter::NEXT_SUBVOLUME, -100).await;
        let error = client.volume_create("w", MIB, 4096).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    });
}

/// Found as a panic by changed images.
#[test]
fn a_free_bucket_that_is_said_to_hold_something_is_refused() {
    let (pool, volume) = with_volume(33);
    let bytes = pool.member(0).with_bytes(|bytes| bytes.len() as u64);
    let bucket_bytes = pool.shard(0).engine().superblock().bucket_bytes;
    // The last ones hold a copy of the superblock; before them all is free in a pool so empty.
    let bucket = (bytes / u64::from(bucket_bytes)) as u32 - 3;
    pool.shard(0).engine().journal.append(&[Record::BucketLive { member: 0, bucket, delta: 5 }]);
    write(&pool, &volume, 1, 9, true);
    let place = format!("bucket {bucket} of member 0");
    assert_says(&refusal(&pool), &[&place, "Free, 5 live blocks"]);
}
