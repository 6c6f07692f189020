//! What outlives the simulated processes: the model, the record of what happened, the verdict.

mod received;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_base::{BLOCK_SIZE, ShardId};
use engine_store::api::{SubvolumeOptions, TreeRef};
use engine_store::client::{Client, VolumeRef};
use engine_store::error::StoreError;

use crate::disk::SimDisk;
use crate::executor::Executor;
use crate::mesh::SimLink;
use crate::model::Promises;
use crate::model::snapshot::SnapshotModel;
use crate::model::tree::{TreeCopy, TreeModel};
use crate::model::volume::VolumeModel;
use crate::options::FaultMode;

/// A volume under test.
pub struct VolumeSlot {
    /// How to reach it.
    pub reference: VolumeRef,
    /// What it may hold.
    pub model: VolumeModel,
    /// The size in blocks that a resize in progress asks for.
    pub resizing: Option<(u64, u64)>,
    /// Its clients.
    pub clients: u32,
}

/// A tree under test.
pub struct TreeSlot {
    /// How to reach it.
    pub reference: TreeRef,
    /// What it may hold.
    pub model: TreeModel,
    /// Damage was found in it: nothing more is done with it.
    pub lost: bool,
}

/// A snapshot of a volume under test.
pub struct SnapshotSlot {
    /// Name of the volume.
    pub volume: String,
    /// Whether it is there.
    pub state: NameState,
    /// When it was begun.
    pub started: u64,
    /// What it may hold, once it is known to be there.
    pub model: Option<SnapshotModel>,
    /// How to reach it, then.
    pub reference: Option<VolumeRef>,
    /// A client is at it.
    pub busy: bool,
    /// Making it failed, and it may have been made all the same: nobody knows of which instant it is.
    pub unknown: bool,
    /// It comes from a stream.
    pub received: bool,
    /// It is not whole yet.
    pub half: bool,
}

impl SnapshotSlot {
    /// One that is being made.
    #[must_use]
    pub fn begun(volume: &str, started: u64) -> Self {
        Self {
            volume: volume.to_owned(),
            state: NameState::InDoubt,
            started,
            model: None,
            reference: None,
            busy: true,
            unknown: false,
            received: false,
            half: false,
        }
    }

    /// Whether something can be done with it.
    #[must_use]
    pub fn is_free(&self) -> bool {
        let is_there = self.state == NameState::Present && !self.half;
        !self.busy && is_there && self.model.is_some()
    }
}

/// A snapshot of a tree under test, or a clone that nobody works on.
pub struct TreeSnapshotSlot {
    /// Name of the tree.
    pub tree: String,
    /// Whether it is there.
    pub state: NameState,
    /// What it holds; `None`: nobody looks any more.
    pub copy: Option<TreeCopy>,
    /// How to reach it, when it is there.
    pub reference: Option<TreeRef>,
    /// A client is at it.
    pub busy: bool,
    /// It is a clone.
    pub writable: bool,
    /// It is being made while the tree's client works: of which instant it is, is not known yet.
    pub growing: bool,
    /// It comes from a stream: inodes have other numbers.
    pub received: bool,
    /// It is not whole yet.
    pub half: bool,
}

impl TreeSnapshotSlot {
    /// One that is being made or deleted.
    #[must_use]
    pub fn in_doubt(tree: &str, copy: Option<TreeCopy>, writable: bool) -> Self {
        Self {
            tree: tree.to_owned(),
            state: NameState::InDoubt,
            copy,
            reference: None,
            busy: true,
            writable,
            growing: false,
            received: false,
            half: false,
        }
    }

    /// Whether something can be done with it.
    #[must_use]
    pub fn is_free(&self) -> bool {
        !self.busy && self.state == NameState::Present && !self.half && self.copy.is_some()
    }
}

impl World {
    /// A tree has changed: snapshots of it that are being made may be of now.
    pub fn tree_changed(&mut self, tree: &str) {
        let Some(model) = self.trees.get(tree).map(|slot| &slot.model) else { return };
        for slot in self.tree_snapshots.values_mut() {
            if slot.tree == tree
                && slot.growing
                && let Some(copy) = &mut slot.copy
            {
                copy.or_now(model);
            }
        }
    }

    /// What a tree's snapshots hold that are being made is not known any more.
    pub fn tree_torn(&mut self, tree: &str) {
        for slot in self.tree_snapshots.values_mut() {
            if slot.tree == tree && slot.growing {
                slot.copy = None;
            }
        }
    }

    /// A snapshot of a tree that was growing is made, or its making was cut off.
    pub fn tree_snapshot_ends(&mut self, name: &str) {
        let Some(slot) = self.tree_snapshots.get_mut(name) else { return };
        let Some(model) = self.trees.get(&slot.tree).map(|slot| &slot.model) else { return };
        if std::mem::take(&mut slot.growing) {
            slot.copy = slot.copy.take().filter(|_| !model.is_torn());
            if let Some(copy) = &mut slot.copy {
                copy.or_soon(model);
            }
        }
    }
}

/// What is known of a name in the pool's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameState {
    /// It must be there.
    Present,
    /// An operation on it was cut off: it may be there.
    InDoubt,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
struct Event {
    at_ns: u64,
    who: u32,
    what: &'static str,
    numbers: [u64; 3],
}

/// Model, record and verdict of a run.
pub struct World {
    /// The model's clock and floors.
    pub promises: Promises,
    /// Volumes by name.
    pub volumes: BTreeMap<String, VolumeSlot>,
    /// Trees by name.
    pub trees: BTreeMap<String, TreeSlot>,
    /// Snapshots by name; one not here must not be there.
    pub snapshots: BTreeMap<String, SnapshotSlot>,
    /// The same of trees.
    pub tree_snapshots: BTreeMap<String, TreeSnapshotSlot>,
    /// Options of volumes and trees: what they may be.
    pub options: BTreeMap<String, Vec<SubvolumeOptions>>,
    /// Subvolumes that come and go; one not here must not be there.
    pub passing: BTreeMap<String, NameState>,
    /// Records: what they may hold, `None` for absent. One not here must not be there.
    pub records: BTreeMap<String, Vec<Option<Vec<u8>>>>,
    /// The first broken promise.
    pub failure: Option<String>,
    /// Operations still to do before the session ends.
    pub operations_left: u64,
    /// Operations ended, in all sessions.
    pub operations: u64,
    /// Crashes so far.
    pub crashes: u64,
    /// Something could not be read back because a device failed: the run ends here.
    pub unreadable: bool,
    /// The disks hold what nobody wrote: no answer is wrong.
    pub anything_goes: bool,
    /// The disks, to know whether they have destroyed anything.
    pub disks: Vec<SimDisk>,
    /// Client tasks that have not ended.
    pub clients_running: u32,
    /// When the operation started that a client is at, by the client's number.
    pub operations_since: BTreeMap<u32, u64>,
    /// How often each named thing happened.
    pub marks: BTreeMap<&'static str, u64>,
    events: VecDeque<Event>,
    /// What the report of a failure says before the events.
    notes: Vec<String>,
    events_kept: usize,
    digest: u64,
    faults: FaultMode,
}

/// The world, shared by all tasks.
pub type Shared = Rc<RefCell<World>>;

impl World {
    /// A world in which nothing has happened.
    #[must_use]
    pub fn new(shard_count: u16, faults: FaultMode, events_kept: usize) -> Self {
        let mut promises = Promises::new(shard_count);
        if faults == FaultMode::Damage {
            promises.keep_history();
        }
        Self {
            promises,
            volumes: BTreeMap::new(),
            trees: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            tree_snapshots: BTreeMap::new(),
            options: BTreeMap::new(),
            passing: BTreeMap::new(),
            records: BTreeMap::new(),
            failure: None,
            operations_left: 0,
            operations: 0,
            crashes: 0,
            unreadable: false,
            anything_goes: false,
            disks: Vec::new(),
            notes: Vec::new(),
            clients_running: 0,
            operations_since: BTreeMap::new(),
            marks: BTreeMap::new(),
            events: VecDeque::new(),
            events_kept: events_kept.max(1),
            digest: 0,
            faults,
        }
    }

    /// Whether devices fail in this run, or destroy what they hold.
    #[must_use]
    pub fn may_fail(&self) -> bool {
        matches!(self.faults, FaultMode::Eio | FaultMode::Damage)
    }

    /// Whether a disk has destroyed anything yet.
    #[must_use]
    pub fn damaged(&self) -> bool {
        self.faults == FaultMode::Damage
            && self.disks.iter().any(|disk| disk.statistics().damages > 0)
    }

    /// Records an event.
    pub fn event(&mut self, at_ns: u64, who: u32, what: &'static str, numbers: [u64; 3]) {
        let mix = |hash: u64, word: u64| {
            (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        };
        let head = mix(mix(self.digest, at_ns), u64::from(who) << 32 | what.len() as u64);
        self.digest = numbers.iter().fold(head, |hash, word| mix(hash, *word));
        if self.events.len() == self.events_kept {
            self.events.pop_front();
        }
        self.events.push_back(Event { at_ns, who, what, numbers });
    }

    /// Adds a line to the report of a failure.
    pub fn note(&mut self, words: String) {
        self.notes.push(words);
    }

    /// Hash of all events so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The last events, for people.
    #[must_use]
    pub fn last_events(&self) -> Vec<String> {
        let line = |event: &Event| {
            let [a, b, c] = event.numbers;
            let (at_us, who, what) = (event.at_ns / 1000, event.who, event.what);
            format!("{at_us:>12} us  client {who:<3} {what} {a} {b} {c}")
        };
        self.notes.iter().cloned().chain(self.events.iter().map(line)).collect()
    }

    /// Records a broken promise; the first one counts.
    pub fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    /// Counts something worth knowing that it happened.
    pub fn mark(&mut self, name: &'static str) {
        *self.marks.entry(name).or_default() += 1;
    }

    /// Everything that ended before `started` is durable, on all shards.
    pub fn all_durable(&mut self, started: u64, shard_count: u16) {
        for shard in 0..shard_count {
            self.promises.raise_floor(shard, started);
        }
        if self.promises.keeps_history() {
            return;
        }
        for tree in self.trees.values_mut() {
            tree.model.all_durable(started);
        }
    }

    /// What an error means to the model.
    #[must_use]
    pub fn judge(&self, error: &StoreError) -> Refusal {
        match error {
            StoreError::NoSpace { .. } | StoreError::Overloaded { .. } => Refusal::NoRoom,
            // It never leaves the engine.
            StoreError::Restart | StoreError::TransactionFull(_) => Refusal::Wrong,
            _ if self.anything_goes => Refusal::Device,
            StoreError::Device(_)
            | StoreError::ShuttingDown { .. }
            | StoreError::ReadOnly { .. }
                if self.faults == FaultMode::Eio || self.damaged() =>
            {
                Refusal::Device
            }
            // What was destroyed is not there; saying so is all that can be asked.
            StoreError::DataLoss { .. } | StoreError::Corrupt { .. } if self.damaged() => {
                Refusal::Device
            }
            _ => Refusal::Wrong,
        }
    }
}

/// What an error means to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing was done; it is allowed at any time.
    NoRoom,
    /// A device failed, as it was told to, or the damage it did was noticed: part of it may be done.
    Device,
    /// It must not happen.
    Wrong,
}

impl Drop for ClientContext {
    fn drop(&mut self) {
        self.world.borrow_mut().operations_since.remove(&self.number);
    }
}

/// What a client task works with.
pub struct ClientContext {
    /// The world.
    pub world: Shared,
    /// The way to the engine.
    pub client: Client<SimLink>,
    /// Number of the client, for the record.
    pub number: u32,
    /// The clock.
    pub executor: Executor,
    /// Its choices.
    pub random: Random,
    /// Shards of the pool.
    pub shard_count: u16,
    /// Longest pause before an operation in virtual nanoseconds.
    pub pause_ns_max: u64,
}

impl ClientContext {
    /// Takes one operation of the session's budget, after a pause where clients make any; `false` when
    /// it is time to stop.
    pub async fn next_operation(&mut self) -> bool {
        self.world.borrow_mut().operations_since.remove(&self.number);
        if self.pause_ns_max > 0 {
            let pause_ns = self.random.below(self.pause_ns_max);
            self.executor.core(0).sleep(pause_ns).await;
        }
        let mut world = self.world.borrow_mut();
        if world.failure.is_some() || world.operations_left == 0 {
            return false;
        }
        world.operations_left -= 1;
        world.operations += 1;
        world.operations_since.insert(self.number, self.executor.now_ns());
        true
    }

    /// Records an event.
    pub fn event(&self, what: &'static str, numbers: [u64; 3]) {
        self.world.borrow_mut().event(self.executor.now_ns(), self.number, what, numbers);
    }

    /// Records a broken promise.
    pub fn fail(&self, what: String) {
        self.world.borrow_mut().fail(format!("client {}: {what}", self.number));
    }

    /// Judges an error; `true` when the client may go on.
    pub fn tolerates(&self, what: &str, error: &StoreError) -> bool {
        let refusal = self.world.borrow().judge(error);
        match refusal {
            Refusal::NoRoom => {
                self.world.borrow_mut().mark("no_space");
                true
            }
            Refusal::Device => {
                self.world.borrow_mut().mark("device_error");
                false
            }
            Refusal::Wrong => {
                self.fail(format!("{what}: {error}"));
                false
            }
        }
    }

    /// Flushes all shards; `false` when the client must stop.
    pub async fn flush(&self) -> bool {
        let started = self.world.borrow_mut().promises.start();
        let result = self.client.flush().await;
        let world = &mut *self.world.borrow_mut();
        world.promises.end(started);
        match result {
            Ok(()) => world.all_durable(started, self.shard_count),
            Err(error) => match world.judge(&error) {
                Refusal::Wrong => world.fail(format!("flush: {error}")),
                _ => return false,
            },
        }
        world.event(self.executor.now_ns(), self.number, "flush", [started, 0, 0]);
        true
    }

    /// Flushes one shard; `false` when the client must stop.
    pub async fn flush_shard(&self, shard: u16) -> bool {
        use engine_store::api::{Link, Request};
        let started = self.world.borrow_mut().promises.start();
        let result = self.client.link().call(ShardId(shard), Request::Flush).await;
        let world = &mut *self.world.borrow_mut();
        world.promises.end(started);
        match result {
            Ok(_) => world.promises.raise_floor(shard, started),
            Err(error) => match world.judge(&error) {
                Refusal::Wrong => world.fail(format!("flush of shard {shard}: {error}")),
                _ => return false,
            },
        }
        let at_ns = self.executor.now_ns();
        world.event(at_ns, self.number, "flush shard", [u64::from(shard), started, 0]);
        true
    }

    /// Chooses an index by weights.
    pub fn choose(&mut self, weights: &[u64]) -> usize {
        let total: u64 = weights.iter().sum();
        let mut at = self.random.below(total.max(1));
        for (index, weight) in weights.iter().enumerate() {
            if at < *weight {
                return index;
            }
            at -= weight;
        }
        0
    }
}

/// Counts a client task as running for as long as it lives; also when a crash drops it.
pub struct Running(Shared);

impl Running {
    /// One more client runs.
    #[must_use]
    pub fn new(world: &Shared) -> Self {
        world.borrow_mut().clients_running += 1;
        Self(Rc::clone(world))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.borrow_mut().clients_running -= 1;
    }
}

/// Bytes of `blocks` blocks.
#[must_use]
pub fn bytes_of(blocks: u64) -> u64 {
    blocks * BLOCK_SIZE
}
