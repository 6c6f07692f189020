//! One fault at a time, at every place of a workload: the Nth buffer is refused, the Nth operation of
//! the device fails, for N = 1, 2, ... until the workload ends untouched.
//!
//! Shows, for each N: every call ends, with success or an error that names its cause; nothing panics
//! or hangs (the executor notices both); after the end of the process the pool opens again, the check
//! of every invariant finds nothing, and what was acknowledged is there: a block whose write failed
//! is wholly old or new. Power does not fail here; that is the simulator's.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::random::Random;
use engine_base::{BLOCK_SIZE, MIB};
use engine_device::{Fault, OperationKind, Rule};
use engine_memory::{Buffer, Slice, refuse};

use super::{Pool, bytes_of};
use crate::api::{CreateAttributes, FileKind, RenameMode, TreeRef, Verify};
use crate::client::VolumeRef;
use crate::error::{Result, StoreError};
use crate::pool::FormatOptions;

const VOLUME_BYTES: u64 = 2 * MIB;
const STEPS: u64 = 90;
const NAMES: u64 = 6;
/// More than the workload writes blocks.
const STAMPS: u32 = 1500;
/// A workload has some hundred requests for buffers and operations; past this it does not end.
const FAULTS_MAX: u64 = 20_000;

/// What the pool may hold: for each block the stamps it may be filled with, for each name whether it
/// may and whether it must exist.
struct Model {
    blocks: Vec<Vec<u32>>,
    names: BTreeMap<u64, Presence>,
    next: u32,
    failures: u64,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    There,
    Gone,
    Either,
}

fn block_bytes(stamp: u32) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_SIZE as usize];
    if stamp != 0 {
        Random::new(u64::from(stamp)).fill(&mut bytes);
    }
    bytes
}

fn piece(bytes: &[u8]) -> Slice {
    Buffer::try_copy_of(bytes).unwrap().freeze()
}

/// Which fault happens, and so which errors are in order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Memory,
    Device,
}

impl What {
    /// An error must name the fault, or say that the shard has stopped because of it. For want of
    /// memory nothing stops.
    fn explains(self, error: &StoreError) -> bool {
        match (self, error) {
            (Self::Memory, StoreError::OutOfMemory { .. })
            | (Self::Device, StoreError::Device(_)) => true,
            (Self::Device, StoreError::ShuttingDown { why }) => why.contains("injected fault"),
            _ => false,
        }
    }
}

impl Model {
    fn new(what: What) -> Self {
        Self {
            what,
            blocks: vec![vec![0]; (VOLUME_BYTES / BLOCK_SIZE) as usize],
            names: (0..NAMES).map(|name| (name, Presence::Gone)).collect(),
            next: 1,
            failures: 0,
        }
    }

    /// Notes how a call ended; says whether it did what it was to do.
    fn ended<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                assert!(self.what.explains(&error), "{what}: {error}");
                self.failures += 1;
                None
            }
        }
    }

    /// What is known of a name that an answer shows as `now`. After a failed write a shard may show what
    /// it can no longer make durable, so such an answer promises nothing.
    fn seen(&self, was: Presence, now: Presence) -> Presence {
        match self.what {
            What::Memory => now,
            What::Device => was,
        }
    }

    /// A range was to be filled with `stamps`.
    fn changed(&mut self, from: usize, stamps: &[u32], done: bool) {
        for (block, stamp) in self.blocks[from..].iter_mut().zip(stamps) {
            if done {
                block.clear();
            }
            block.push(*stamp);
        }
    }

    fn check_blocks(&self, from: usize, bytes: &[u8]) {
        for (index, found) in bytes.chunks(BLOCK_SIZE as usize).enumerate() {
            let may = &self.blocks[from + index];
            let known = may.iter().any(|stamp| block_bytes(*stamp) == found);
            assert!(known, "block {} holds none of {may:?}", from + index);
        }
    }
}

struct Work {
    pool: Pool,
    volume: VolumeRef,
    tree: TreeRef,
    random: Random,
    model: Model,
    /// A block for each stamp: what is written is there before memory is refused.
    stamped: Vec<Slice>,
}

impl Work {
    async fn prepare(pool: Pool, what: What) -> Self {
        let client = pool.client();
        let volume = client.volume_create("v", VOLUME_BYTES, 4096).await.unwrap();
        let tree = client.tree_create("t").await.unwrap();
        Self {
            volume: VolumeRef::from(&volume),
            tree: TreeRef::from(&tree),
            random: Random::new(7),
            model: Model::new(what),
            stamped: (0..STAMPS).map(|stamp| piece(&block_bytes(stamp))).collect(),
            pool,
        }
    }

    async fn run(&mut self) {
        for _ in 0..STEPS {
            match self.random.below(12) {
                0..=3 => self.write().await,
                4 => self.discard().await,
                5..=6 => self.read().await,
                7 => {
                    let flushed = self.pool.client().flush().await;
                    self.model.ended("flush", flushed);
                }
                8..=9 => self.create().await,
                10 => self.remove().await,
                _ => self.rename().await,
            }
        }
        let flushed = self.pool.client().flush().await;
        self.model.ended("last flush", flushed);
    }

    fn range(&mut self) -> (usize, usize) {
        let all = self.model.blocks.len();
        let from = self.random.below(all as u64) as usize;
        let most = *self.random.pick(&[1, 3, 40]);
        (from, (self.random.range(1, most) as usize).min(all - from))
    }

    async fn write(&mut self) {
        let (from, count) = self.range();
        let stamps: Vec<u32> = (self.model.next..).take(count).collect();
        self.model.next += count as u32;
        let data = stamps.iter().map(|stamp| self.stamped[*stamp as usize].clone()).collect();
        let offset = from as u64 * BLOCK_SIZE;
        let fua = self.random.chance(1, 8);
        let result = self.pool.client().volume_write(&self.volume, offset, data, fua).await;
        let done = self.model.ended("write", result).is_some();
        self.model.changed(from, &stamps, done);
    }

    async fn discard(&mut self) {
        let (from, count) = self.range();
        let (offset, len) = (from as u64 * BLOCK_SIZE, count as u64 * BLOCK_SIZE);
        let result = self.pool.client().volume_discard(&self.volume, offset, len).await;
        let done = self.model.ended("discard", result).is_some();
        self.model.changed(from, &vec![0; count], done);
    }

    async fn read(&mut self) {
        let (from, count) = self.range();
        let (offset, len) = (from as u64 * BLOCK_SIZE, count as u64 * BLOCK_SIZE);
        let result = self.pool.client().volume_read(&self.volume, offset, len).await;
        if let Some(data) = self.model.ended("read", result) {
            self.model.check_blocks(from, &bytes_of(&data));
        }
    }

    async fn create(&mut self) {
        let name = self.random.below(NAMES);
        let text = format!("file {name}");
        let attributes = CreateAttributes::default();
        let client = self.pool.client();
        let root = self.tree.root;
        let result =
            client.create(self.tree, root, text.as_bytes(), FileKind::File, attributes).await;
        self.name_changed(name, Presence::There, result.map(drop));
    }

    async fn remove(&mut self) {
        let name = self.random.below(NAMES);
        let text = format!("file {name}");
        let root = self.tree.root;
        let result = self.pool.client().remove(self.tree, root, text.as_bytes(), false).await;
        self.name_changed(name, Presence::Gone, result);
    }

    /// Notes a create or remove; that there was nothing to do is an answer, too.
    fn name_changed(&mut self, name: u64, wanted: Presence, result: Result<()>) {
        let was = self.model.names[&name];
        let now = match result {
            Ok(()) => {
                assert!(was != wanted, "name {name} was so before");
                wanted
            }
            Err(StoreError::AlreadyExists { .. }) if wanted == Presence::There => {
                assert!(was != Presence::Gone, "name {name} exists");
                self.model.seen(was, wanted)
            }
            Err(StoreError::NotFound { .. }) if wanted == Presence::Gone => {
                assert!(was != Presence::There, "name {name} is lost");
                self.model.seen(was, wanted)
            }
            failed => {
                self.model.ended("create or remove", failed);
                if was == wanted { was } else { Presence::Either }
            }
        };
        self.model.names.insert(name, now);
    }

    async fn rename(&mut self) {
        let (from, to) = (self.random.below(NAMES), self.random.below(NAMES));
        if from == to {
            return;
        }
        let (old, new) = (format!("file {from}"), format!("file {to}"));
        let root = self.tree.root;
        let (source, target) = ((root, old.as_bytes()), (root, new.as_bytes()));
        let result =
            self.pool.client().rename(self.tree, source, target, RenameMode::Replace).await;
        match result {
            Ok(()) => {
                assert!(self.model.names[&from] != Presence::Gone, "{old} was gone");
                self.model.names.insert(from, Presence::Gone);
                self.model.names.insert(to, Presence::There);
            }
            Err(StoreError::NotFound { .. }) => {
                let was = self.model.names[&from];
                assert!(was != Presence::There, "{old} is lost");
                let now = self.model.seen(was, Presence::Gone);
                self.model.names.insert(from, now);
            }
            failed => {
                self.model.ended("rename", failed);
                for name in [from, to] {
                    self.model.names.insert(name, Presence::Either);
                }
            }
        }
    }

    /// After opening again: all that was acknowledged is there, and nothing is wrong.
    async fn verify(&self) {
        let client = self.pool.client();
        let all = client.volume_read(&self.volume, 0, VOLUME_BYTES).await.unwrap();
        self.model.check_blocks(0, &bytes_of(&all));
        let entries =
            client.read_directory(self.tree, self.tree.root, 0, NAMES as u32 + 1).await.unwrap();
        for (name, presence) in &self.model.names {
            let text = format!("file {name}");
            let found = entries.iter().any(|entry| entry.name == text.as_bytes());
            assert!(found || *presence != Presence::There, "{text} is lost");
            assert!(!found || *presence != Presence::Gone, "{text} is back");
        }
        let report = client.fsck(Verify::All).await.unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
    }
}

/// Undoes a fault, and says whether it happened.
type Disarm = Box<dyn FnOnce() -> bool>;

/// A pool of small nodes, buckets and journals, so that little work reaches every part; prepared.
fn prepared(what: What) -> (Pool, Work) {
    let options = FormatOptions {
        shards: Some(2),
        bucket_bytes: Some(64 << 10),
        node_bytes: Some(16 << 10),
        journal_bytes: Some(1 << 20),
        ..FormatOptions::default()
    };
    let pool = Pool::with_members(11, &[64 << 20], options);
    let work = pool.run(async move |pool| Work::prepare(pool, what).await);
    (pool, work)
}

/// Runs the workload with one fault, and says whether it happened and how many calls failed.
fn one_fault(what: What, arm: impl FnOnce(&Pool) -> Disarm) -> (bool, u64) {
    let (pool, mut work) = prepared(what);
    let disarm = arm(&pool);
    let work = pool.run(async move |_| {
        work.run().await;
        work
    });
    let happened = disarm();
    pool.crash_and_open();
    let failures = work.model.failures;
    pool.run(async move |_| work.verify().await);
    (happened, failures)
}

/// Arms the Nth fault for N = 1, 2, ... until one does not happen any more; gives how many calls
/// failed in all these runs.
fn until_untouched(what: What, arm: impl Fn(&Pool, u64) -> Disarm) -> u64 {
    let mut failures = 0;
    for number in 1..=FAULTS_MAX {
        let (happened, failed) = one_fault(what, |pool| arm(pool, number));
        if !happened {
            assert_eq!(failed, 0, "without a fault nothing fails");
            println!("{number} runs, {failures} calls failed");
            return failures;
        }
        failures += failed;
    }
    panic!("the workload does not end");
}

fn refuse_memory(granted: u64, refused: u64) -> Disarm {
    let refusing = refuse(granted, refused);
    Box::new(move || refusing.requests() > granted)
}

fn fail_device(pool: &Pool, number: u64, fault: Fault) -> Disarm {
    let faults = pool.faults(0);
    let rule = faults.add(Rule::nth(&OperationKind::ALL, number, fault));
    Box::new(move || {
        faults.remove(rule);
        faults.fired(rule) > 0
    })
}

#[test]
fn any_one_buffer_may_be_refused() {
    let failures = until_untouched(What::Memory, |_, number| refuse_memory(number - 1, 1));
    assert!(failures > 0, "no refusal reached a client");
}

/// Clients get errors from then on, and still a flush succeeds: write-out lives on its reserves.
#[test]
fn all_memory_may_be_refused_from_any_moment_on() {
    let failures = until_untouched(What::Memory, |_, number| refuse_memory(number - 1, u64::MAX));
    assert!(failures > 0, "no refusal reached a client");
}

#[test]
fn any_one_operation_of_the_device_may_fail() {
    let arm = |pool: &Pool, number| fail_device(pool, number, Fault::Error);
    assert!(until_untouched(What::Device, arm) > 0, "no failure reached a client");
}

#[test]
fn any_one_operation_may_be_done_and_yet_answered_with_an_error() {
    let arm = |pool: &Pool, number| fail_device(pool, number, Fault::ErrorAfterwards);
    assert!(until_untouched(What::Device, arm) > 0, "no failure reached a client");
}

/// Opening is tried again and again, each time with the fault one place later.
fn opening_survives(what: What, arm: impl Fn(&Pool, u64) -> Disarm) {
    let (pool, mut work) = prepared(what);
    let work = pool.run(async move |_| {
        work.run().await;
        work
    });
    let work = Rc::new(work);
    for number in 1..=FAULTS_MAX {
        let disarm = arm(&pool, number);
        let opened = pool.try_crash_and_open();
        let happened = disarm();
        if let Err(error) = &opened {
            assert!(happened && what.explains(error), "opening with fault {number}: {error}");
        }
        pool.crash_and_open();
        let checked = Rc::clone(&work);
        pool.run(async move |_| checked.verify().await);
        if !happened {
            return;
        }
    }
    panic!("opening does not end");
}

#[test]
fn opening_survives_any_one_refused_buffer() {
    opening_survives(What::Memory, |_, number| refuse_memory(number - 1, 1));
}

#[test]
fn opening_survives_any_one_failed_operation() {
    opening_survives(What::Device, |pool, number| fail_device(pool, number, Fault::Error));
}
