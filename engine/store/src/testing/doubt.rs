//! What is written after a snapshot, a rollback or a deletion that was answered with an error: acknowledged, it is
//! there after a restart, whatever has become of the operation.
//!
//! Each operation of the device in turn fails, or is done and yet answered with an error, so that shard 0 cannot know
//! whether its entry is in the journal; the other shards write on, and versions are tidied up.

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use engine_device::{Fault, OperationKind, Rule};

use super::{Pool, bytes_of, data_of};
use crate::api::{NewSnapshot, Verify};
use crate::client::{Client, VolumeRef};
use crate::error::Result;
use crate::testing::pool::TestLink;

const SIZE: u64 = 16 * MIB;
/// Blocks in question: every so manieth, so that each shard has some.
const STEP: u64 = 61;
/// More than any of the operations takes of the device.
const FAULTS_MAX: u64 = 1000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Snapshot,
    Rollback,
    Delete,
}

fn new(source: &str, name: &str) -> NewSnapshot {
    NewSnapshot { source: source.to_owned(), name: name.to_owned(), writable: false }
}

fn offsets() -> impl Iterator<Item = u64> {
    (0..SIZE / BLOCK_SIZE).step_by(STEP as usize).map(|block| block * BLOCK_SIZE)
}

/// Which of the blocks could be written.
async fn write_all(client: &Client<TestLink>, volume: &VolumeRef, stamp: u8) -> Vec<bool> {
    let mut written = Vec::new();
    for at in offsets() {
        let data = data_of(&[stamp; BLOCK_SIZE as usize], &mut Random::new(1));
        written.push(client.volume_write(volume, at, data, true).await.is_ok());
    }
    written
}

async fn read_all(client: &Client<TestLink>, name: &str) -> Result<Vec<u8>> {
    let volume = VolumeRef::from(&client.subvolume_get(name).await?);
    let mut found = Vec::new();
    for at in offsets() {
        found.push(bytes_of(&client.volume_read(&volume, at, BLOCK_SIZE).await?)[0]);
    }
    Ok(found)
}

async fn carry_out(client: &Client<TestLink>, what: What) -> Result<()> {
    match what {
        What::Snapshot => {
            client.snapshot_create(&[new("v", "late"), new("w", "too")]).await.map(drop)
        }
        What::Rollback => client.subvolume_rollback("v", "early").await.map(drop),
        What::Delete => client.subvolume_delete("v").await,
    }
}

/// One operation with one fault; whether it happened, and whether the operation was answered with an error and what
/// came after it was refused.
fn one_fault(what: What, number: u64, fault: Fault) -> (bool, bool) {
    let pool = Pool::new(21, 4);
    let volume = pool.run(async |pool| {
        let client = pool.client();
        let gone = VolumeRef::from(&client.volume_create("gone", SIZE, 4096).await.unwrap());
        write_all(&client, &gone, 4).await;
        client.volume_create("w", SIZE, 4096).await.unwrap();
        let volume = VolumeRef::from(&client.volume_create("v", SIZE, 4096).await.unwrap());
        assert!(write_all(&client, &volume, 1).await.iter().all(|written| *written));
        client.snapshot_create(&[new("v", "early")]).await.unwrap();
        assert!(write_all(&client, &volume, 2).await.iter().all(|written| *written));
        volume
    });
    let faults = pool.faults(0);
    let rule = faults.add(Rule::nth(&OperationKind::ALL, number, fault));
    let (is_done, written) = pool.run(async move |pool| {
        let client = pool.client();
        // Tidying up what is deleted ends while the other is under way.
        let others = client.subvolume_delete("gone");
        let (_, done) = futures::future::join(others, carry_out(&client, what)).await;
        let is_done = done.is_ok();
        let written = match is_done && what == What::Delete {
            true => Vec::new(),
            false => write_all(&client, &volume, 3).await,
        };
        (is_done, written)
    });
    let happened = faults.fired(rule) > 0;
    faults.remove(rule);
    pool.crash_and_open();
    let refused = !is_done && !written.contains(&true);
    pool.run(async move |pool| {
        let client = pool.client();
        let told = format!("{what:?} with fault {number}, done {is_done}");
        match read_all(&client, "v").await {
            Ok(found) => {
                for (at, written) in written.iter().enumerate().filter(|(_, written)| **written) {
                    assert!(*written && found[at] == 3, "{told}: block {at} holds {}", found[at]);
                }
                let mut others: Vec<u8> = found.into_iter().filter(|stamp| *stamp != 3).collect();
                others.dedup();
                let is_whole = match (&others[..], what) {
                    ([], _) => true,
                    ([one], What::Rollback) => *one == 1 || (*one == 2 && !is_done),
                    (others, _) => *others == [2],
                };
                assert!(is_whole, "{told}: before it there was {others:?}");
            }
            Err(error) => {
                assert!(what == What::Delete && !written.contains(&true), "{told}: {error}");
            }
        }
        if what == What::Snapshot {
            match read_all(&client, "late").await {
                Ok(found) => assert!(found.iter().all(|stamp| *stamp == 2), "{told}: {found:?}"),
                Err(error) => assert!(!is_done, "{told}: {error}"),
            }
            assert_eq!(
                client.subvolume_get("late").await.is_ok(),
                client.subvolume_get("too").await.is_ok(),
                "{told}: one of a group"
            );
        }
        assert_eq!(
            client.fsck(Verify::All).await.unwrap().problems,
            Vec::<String>::new(),
            "{told}"
        );
    });
    (happened, refused)
}

fn nothing_acknowledged_is_lost(what: What) {
    for fault in [Fault::Error, Fault::ErrorAfterwards] {
        let mut refused = 0;
        for number in 1.. {
            assert!(number <= FAULTS_MAX, "{what:?} does not end");
            let (happened, all_refused) = one_fault(what, number, fault);
            refused += u64::from(all_refused);
            if !happened {
                break;
            }
        }
        assert!(refused > 0, "{what:?}: none was left in doubt");
    }
}

#[test]
fn what_follows_a_snapshot_in_doubt_is_not_in_it() {
    nothing_acknowledged_is_lost(What::Snapshot);
}

#[test]
fn what_follows_a_rollback_in_doubt_is_not_undone() {
    nothing_acknowledged_is_lost(What::Rollback);
}

#[test]
fn what_follows_a_deletion_in_doubt_is_not_deleted() {
    nothing_acknowledged_is_lost(What::Delete);
}
