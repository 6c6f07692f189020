//! Data that the index names while it is on its way, and what becomes of it when it cannot be written.

use engine_base::runtime::Runtime as _;
use engine_base::{BLOCK_SIZE, MIB};
use engine_device::{Fault, OperationKind, Rule};
use engine_memory::Buffer;
use futures::future::join;

use super::space::counter;
use super::{Pool, bytes_of};
use crate::api::{CreateAttributes, Data, FileKind, TreeRef, Verify};
use crate::client::VolumeRef;
use crate::error::{Result, StoreError};

const BLOCKS: u64 = 8;

/// Whole blocks of `byte`, as a device can take them.
fn aligned(byte: u8) -> Data {
    let mut buffer = Buffer::try_new((BLOCKS * BLOCK_SIZE) as usize).unwrap();
    buffer.fill(byte);
    Data::from_iter([buffer.freeze()])
}

/// A volume whose first blocks hold ones, and all is durable.
fn with_ones(seed: u64) -> (Pool, VolumeRef) {
    let pool = Pool::new(seed, 1);
    let volume = pool.run(async |pool| {
        let client = pool.client();
        let volume = VolumeRef::from(&client.volume_create("v", MIB, 4096).await.unwrap());
        client.volume_write(&volume, 0, aligned(1), true).await.unwrap();
        volume
    });
    (pool, volume)
}

fn write(pool: &Pool, volume: &VolumeRef, byte: u8, fua: bool) -> Result<()> {
    let volume = volume.clone();
    pool.run(async move |pool| {
        pool.client().volume_write(&volume, 0, aligned(byte), fua).await.map(drop)
    })
}

/// What all blocks hold.
fn read(pool: &Pool, volume: &VolumeRef) -> u8 {
    let volume = volume.clone();
    pool.run(async move |pool| {
        let client = pool.client();
        let data = client.volume_read(&volume, 0, BLOCKS * BLOCK_SIZE).await.unwrap();
        let bytes = bytes_of(&data);
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture");
        let report = client.fsck(Verify::All).await.unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        bytes[0]
    })
}

#[test]
fn data_that_cannot_be_written_is_put_elsewhere_and_outlives_the_process() {
    for fua in [false, true] {
        let (pool, volume) = with_ones(61);
        let rule = pool.faults(0).add(Rule::nth(&[OperationKind::Write], 1, Fault::Error));
        assert_eq!(write(&pool, &volume, 2, fua), Ok(()));
        assert_eq!(pool.faults(0).fired(rule), 1);
        assert_eq!(counter(&pool, "data_writes_diverted"), 1);
        for _ in 0..2 {
            pool.crash_and_open();
            assert_eq!(read(&pool, &volume), 2);
        }
        // The shard goes on as ever.
        assert_eq!(write(&pool, &volume, 3, fua), Ok(()));
        pool.crash_and_open();
        assert_eq!(read(&pool, &volume), 3);
    }
}

#[test]
fn data_for_which_there_is_no_place_stops_the_shard_and_loses_nothing_older() {
    for fua in [false, true] {
        let (pool, volume) = with_ones(62);
        let rule = pool.faults(0).add(Rule::always(&[OperationKind::Write], Fault::Error));
        assert!(matches!(write(&pool, &volume, 2, fua), Err(StoreError::Device(_))));
        // Who reads is told, rather than given what lies there.
        let reads = volume.clone();
        let read_now = pool.run(async move |pool| {
            pool.client().volume_read(&reads, 0, BLOCKS * BLOCK_SIZE).await.map(drop)
        });
        assert!(matches!(read_now, Err(StoreError::ShuttingDown { .. })), "{read_now:?}");
        pool.faults(0).remove(rule);
        pool.crash_and_open();
        assert_eq!(read(&pool, &volume), 1);
    }
}

#[test]
fn who_reads_waits_for_data_that_is_on_its_way() {
    for seed in 1..20 {
        let (pool, volume) = with_ones(seed);
        let delay = Fault::Delay { polls: 300 };
        pool.faults(0).add(Rule::nth(&[OperationKind::Write], 1, delay));
        let used = volume.clone();
        pool.run(async move |pool| {
            let (writer, reader) = (pool.client(), pool.client());
            let write = writer.volume_write(&used, 0, aligned(2), false);
            let reads = async {
                for _ in 0..20 {
                    let read = reader.volume_read(&used, 0, BLOCKS * BLOCK_SIZE).await.unwrap();
                    let bytes = bytes_of(&read);
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mixture");
                }
            };
            let (written, ()) = join(write, reads).await;
            written.unwrap();
        });
        assert_eq!(read(&pool, &volume), 2);
    }
}

/// Recovery would take nothing from the entry on whose data was put elsewhere, so what else is in it is not answered
/// before a flush entry is there.
#[test]
fn what_shares_an_entry_with_such_data_is_answered_when_it_outlives_the_process() {
    for seed in 1..40 {
        let (pool, volume) = with_ones(seed);
        let tree =
            pool.run(async |pool| TreeRef::from(&pool.client().tree_create("t").await.unwrap()));
        let superblock = pool.shard(0).engine().superblock();
        let journal = superblock.journals[0];
        let journal_end = u64::from(journal.first_bucket + journal.buckets);
        let data = journal_end * u64::from(superblock.bucket_bytes)..u64::MAX;
        let once = Rule::nth(&[OperationKind::Write], 1, Fault::Error);
        pool.faults(0).add(Rule { range: Some(data), ..once });
        pool.faults(0).add(Rule::always(&[OperationKind::Flush], Fault::Delay { polls: 300 }));
        pool.run(async move |pool| {
            let (writer, client) = (pool.client(), pool.client());
            let write = async move { writer.volume_write(&volume, 0, aligned(2), false).await };
            pool.runtime.spawn("write", Box::pin(async move { drop(write.await) }));
            let new = CreateAttributes::default();
            client.create(tree, tree.root, b"file", FileKind::File, new).await.unwrap();
        });
        pool.crash_and_open();
        pool.run(async move |pool| {
            let found = pool.client().lookup(tree, tree.root, b"file").await;
            assert!(found.is_ok(), "seed {seed}: {found:?}");
        });
    }
}
