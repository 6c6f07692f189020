//! Why something waited, how long and how often: the time statistics of one shard, and what waits now.
//!
//! Every place in the engine where something can wait for long names it here ([`Timed`]) and holds a
//! [`Wait`] meanwhile. A wait costs two looks at the clock and no allocation; where it is over before
//! it begins ([`Waits::on`]) it costs nothing. At most [`WAITING_MAX`] waits are listed at a time; more
//! are counted in the statistics all the same.
//!
//! [`Times`] has the shard's core as its one writer and is read from any thread, also while the core
//! does not answer.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine_base::runtime::Runtime;
use engine_base::time_stats::{TimeSnapshot, TimeStats};

/// Waits listed at a time; more than a shard is given requests by default.
pub const WAITING_MAX: usize = 1024;

macro_rules! timed {
    ($($(#[$doc:meta])* $kind:ident $name:literal)*) => {
        /// What is timed. "Blocked": nothing happens for the one who waits but waiting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Timed {
            $($(#[$doc])* $kind,)*
        }

        impl Timed {
            /// All of them, in order, with their names.
            pub const ALL: &[(Self, &'static str)] = &[$((Self::$kind, $name)),*];
        }
    };
}

timed! {
    /// A request that reads data, from its arrival on the shard's core to its answer.
    RequestRead "request_read"
    /// A request that writes data.
    RequestWrite "request_write"
    /// A request that drops data.
    RequestDiscard "request_discard"
    /// A request that makes durable what was acknowledged.
    RequestFlush "request_flush"
    /// Any other request: names, attributes, tables, checks.
    RequestMetadata "request_metadata"
    /// A request has not begun, because the shard has as many as it may have.
    BlockedAdmission "blocked_admission"
    /// A commit waits for space in the journal's ring, until a flush entry gives it back.
    BlockedJournalSpace "blocked_journal_space"
    /// A commit waits for space in the journal's ring that old entries take, until what they tell of is
    /// written out.
    BlockedJournalPins "blocked_journal_pins"
    /// A journal entry waits for those that are on their way: as many as may be are, or it is a flush
    /// entry, which goes alone.
    BlockedJournalInFlight "blocked_journal_in_flight"
    /// A commit waits until the full journal entry is on its way.
    BlockedJournalEntryFull "blocked_journal_entry_full"
    /// An answer waits until its journal entry is written.
    BlockedJournalWrite "blocked_journal_write"
    /// A flush waits until its journal entry is durable.
    BlockedJournalFlush "blocked_journal_flush"
    /// A journal entry is written.
    JournalWrite "journal_write"
    /// Members are flushed and a journal entry is written through.
    JournalFlushWrite "journal_flush_write"
    /// The part of it in which members are flushed.
    JournalMemberFlush "journal_member_flush"
    /// A commit waits until index nodes that differ from disk take less memory.
    BlockedIndexMemory "blocked_index_memory"
    /// A commit waits for a check that finds no quiet moment otherwise.
    BlockedCheck "blocked_check"
    /// An allocation waits for a free bucket.
    BlockedAllocate "blocked_allocate"
    /// Something waits for shard 0 to hand out a region.
    BlockedRegion "blocked_region"
    /// Something waits for the lock of an index node.
    BlockedNodeLock "blocked_node_lock"
    /// Something waits for an index node that is being read for somebody else.
    BlockedNodeRead "blocked_node_read"
    /// An index node is read from its member.
    NodeRead "node_read"
    /// An index node is written out, with its wait for journal space and for its parent.
    NodeWrite "node_write"
    /// Data is read from a member, for a request.
    DataRead "data_read"
    /// Data is read from a member before anybody asks for it.
    DataReadAhead "data_read_ahead"
    /// A read waits for data that is on its way to its member.
    BlockedDataInFlight "blocked_data_in_flight"
    /// A read waits for data that is being read ahead.
    BlockedReadAhead "blocked_read_ahead"
    /// Data is written to a member, for a request or by copygc.
    DataWrite "data_write"
    /// A write waits for the batch of writes that it is part of.
    BlockedWriteBatch "blocked_write_batch"
    /// Copygc empties one bucket.
    CopygcBucket "copygc_bucket"
    /// A step of an operation is taken by another shard.
    PeerRequest "peer_request"
    /// An operation waits for the lock of an inode.
    BlockedInodeLock "blocked_inode_lock"
    /// An operation waits for the lock of a subvolume's name.
    BlockedNameLock "blocked_name_lock"
    /// A deletion waits for those who still write into the version.
    BlockedVersionGate "blocked_version_gate"
    /// An unlink waits because too many removed files are still to be cleaned up.
    BlockedRemovals "blocked_removals"
}

impl Timed {
    /// Its name: lower case with underscores.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

macro_rules! restarts {
    ($($(#[$doc:meta])* $reason:ident $name:literal)*) => {
        /// Why a transaction was run again.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RestartReason {
            $($(#[$doc])* $reason,)*
        }

        impl RestartReason {
            /// All of them, in order, with the names of their counters.
            pub const ALL: &[(Self, &'static str)] = &[$((Self::$reason, $name)),*];
        }
    };
}

restarts! {
    /// A leaf that it had read was changed before it read it again.
    ReadConflict "transaction_restart_read_conflict"
    /// A leaf that it had read was changed before the commit.
    CommitConflict "transaction_restart_commit_conflict"
    /// A leaf that it had read was split, joined or moved before the commit.
    NodeReplaced "transaction_restart_node_replaced"
    /// Nodes that were to be joined are under one parent no longer.
    JoinLostParent "transaction_restart_join_lost_parent"
}

/// The time statistics of one shard.
#[derive(Debug)]
pub struct Times {
    stats: Box<[TimeStats]>,
    /// One word a wait: 0 when it is free, so that a reader never mixes two waits.
    waiting: Box<[AtomicU64]>,
    restarts: [AtomicU64; RestartReason::ALL.len()],
    /// Bytes of requests: read, written.
    bytes: [AtomicU64; 2],
}

/// Where the kind of a wait stands in its word. The time above it has a resolution of 64 ns and
/// reaches to 146 years.
const KIND_BITS: u32 = 8;
const TIME_SHIFT: u32 = 6;

const _: () = assert!(Timed::ALL.len() < (1 << KIND_BITS) - 1);

impl Default for Times {
    fn default() -> Self {
        Self {
            stats: Timed::ALL.iter().map(|_| TimeStats::default()).collect(),
            waiting: (0..WAITING_MAX).map(|_| AtomicU64::new(0)).collect(),
            restarts: Default::default(),
            bytes: Default::default(),
        }
    }
}

impl Times {
    /// The statistics of `kind`, seen at `now_ns` of the shard's clock.
    #[must_use]
    pub fn snapshot(&self, kind: Timed, now_ns: u64) -> TimeSnapshot {
        self.stats[kind as usize].snapshot(now_ns)
    }

    /// What waits now and since when (on the shard's clock, to 64 ns), in no order.
    pub fn waiting(&self) -> impl Iterator<Item = (Timed, u64)> + '_ {
        self.waiting.iter().filter_map(|word| {
            let word = word.load(Ordering::Relaxed);
            let kind = (word & ((1 << KIND_BITS) - 1)).checked_sub(1)?;
            let (kind, _) = Timed::ALL.get(kind as usize)?;
            Some((*kind, word >> KIND_BITS << TIME_SHIFT))
        })
    }

    /// Restarts of transactions for `reason`.
    #[must_use]
    pub fn restarts(&self, reason: RestartReason) -> u64 {
        self.restarts[reason as usize].load(Ordering::Relaxed)
    }

    /// Bytes that requests have read and written.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes[0].load(Ordering::Relaxed), self.bytes[1].load(Ordering::Relaxed))
    }
}

/// The core's side of [`Times`].
pub struct Waits {
    times: Arc<Times>,
    runtime: Rc<dyn Runtime>,
    /// Free places in the list of waits.
    free: RefCell<Vec<u16>>,
}

const _: () = assert!(WAITING_MAX <= u16::MAX as usize);

/// Something that goes on. Dropping it ends and counts it.
#[must_use = "it ends when it is dropped"]
pub struct Wait<'a> {
    waits: &'a Waits,
    kind: Timed,
    started_ns: u64,
    slot: Option<u16>,
}

impl Waits {
    /// Nothing has waited yet.
    #[must_use]
    pub fn new(runtime: Rc<dyn Runtime>) -> Self {
        let free = (0..WAITING_MAX as u16).rev().collect();
        Self { times: Arc::default(), runtime, free: RefCell::new(free) }
    }

    /// What is counted, for readers on any thread.
    #[must_use]
    pub fn times(&self) -> &Arc<Times> {
        &self.times
    }

    /// Something begins.
    pub fn start(&self, kind: Timed) -> Wait<'_> {
        let started_ns = self.runtime.now_ns();
        let slot = self.free.borrow_mut().pop();
        if let Some(slot) = slot {
            let word = (started_ns >> TIME_SHIFT << KIND_BITS) | (kind as u64 + 1);
            self.times.waiting[usize::from(slot)].store(word, Ordering::Relaxed);
        }
        Wait { waits: self, kind, started_ns, slot }
    }

    /// For waits in rounds: `wait` goes on if it is of this kind, else this one begins.
    pub fn go_on<'a>(&'a self, wait: &mut Option<Wait<'a>>, kind: Timed) {
        if wait.as_ref().is_none_or(|wait| wait.kind != kind) {
            *wait = Some(self.start(kind));
        }
    }

    /// Runs `work` and times it, unless it is done at once.
    pub async fn on<T>(&self, kind: Timed, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut wait = None;
        poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            if polled.is_pending() {
                self.go_on(&mut wait, kind);
            }
            polled
        })
        .await
    }

    /// Counts a restart and says so.
    pub(crate) fn restart(&self, reason: RestartReason) -> crate::StoreError {
        add(&self.times.restarts[reason as usize], 1);
        crate::StoreError::Restart
    }

    /// Counts the data of a request that was answered.
    pub fn add_bytes(&self, read: u64, written: u64) {
        add(&self.times.bytes[0], read);
        add(&self.times.bytes[1], written);
    }
}

/// Adds without a locked instruction: the shard's core is the sole writer.
fn add(counter: &AtomicU64, delta: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(delta), Ordering::Relaxed);
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let now_ns = self.waits.runtime.now_ns();
        let times = &self.waits.times;
        times.stats[self.kind as usize].record(now_ns, now_ns.saturating_sub(self.started_ns));
        if let Some(slot) = self.slot {
            times.waiting[usize::from(slot)].store(0, Ordering::Relaxed);
            self.waits.free.borrow_mut().push(slot);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sync::Notify;
    use crate::testing::TestRuntime;

    fn waits() -> (Rc<TestRuntime>, Rc<Waits>) {
        let runtime = TestRuntime::new(3);
        let waits = Rc::new(Waits::new(Rc::clone(&runtime) as Rc<dyn Runtime>));
        (runtime, waits)
    }

    #[test]
    fn names_are_unique_and_in_order() {
        let names: BTreeSet<&str> = Timed::ALL.iter().map(|(_, name)| *name).collect();
        assert_eq!(names.len(), Timed::ALL.len());
        assert!(Timed::ALL.iter().enumerate().all(|(index, (kind, _))| *kind as usize == index));
        let in_order =
            |(index, (reason, _)): (usize, &(RestartReason, _))| *reason as usize == index;
        assert!(RestartReason::ALL.iter().enumerate().all(in_order));
    }

    #[test]
    fn a_wait_is_listed_while_it_lasts_and_counted_after() {
        let (runtime, waits) = waits();
        let done = runtime.clone();
        runtime.block_on(async move {
            let started_ns = done.now_ns();
            {
                let _wait = waits.start(Timed::NodeRead);
                done.sleep(1_000_000).await;
                let listed: Vec<_> = waits.times().waiting().collect();
                assert_eq!(listed.len(), 1);
                assert_eq!(listed[0].0, Timed::NodeRead);
                assert!(listed[0].1.abs_diff(started_ns) < 64);
            }
            assert_eq!(waits.times().waiting().count(), 0);
            let stats = waits.times().snapshot(Timed::NodeRead, done.now_ns());
            assert!(stats.count == 1 && stats.min_ns >= 1_000_000, "{stats:?}");
        });
    }

    #[test]
    fn what_is_done_at_once_is_not_counted() {
        let (runtime, waits) = waits();
        let notify = Rc::new(Notify::default());
        let sleeper = runtime.clone();
        runtime.block_on(async move {
            assert_eq!(waits.on(Timed::BlockedNodeLock, async { 5 }).await, 5);
            let now_ns = sleeper.now_ns();
            assert_eq!(waits.times().snapshot(Timed::BlockedNodeLock, now_ns).count, 0);
            let notified = Rc::clone(&notify);
            let waker = Rc::clone(&sleeper);
            let wake = async move {
                waker.sleep(5_000).await;
                notified.notify_all();
            };
            sleeper.spawn("wake", Box::pin(wake));
            waits.on(Timed::BlockedNodeLock, notify.notified()).await;
            let stats = waits.times().snapshot(Timed::BlockedNodeLock, sleeper.now_ns());
            assert!(stats.count == 1 && stats.max_ns >= 5_000, "{stats:?}");
        });
    }

    #[test]
    fn more_than_are_listed_are_counted() {
        let (runtime, waits) = waits();
        let many: Vec<_> =
            (0..WAITING_MAX + 10).map(|_| waits.start(Timed::BlockedAllocate)).collect();
        assert_eq!(waits.times().waiting().count(), WAITING_MAX);
        drop(many);
        assert_eq!(waits.times().waiting().count(), 0);
        let stats = waits.times().snapshot(Timed::BlockedAllocate, runtime.now_ns());
        assert_eq!(stats.count, WAITING_MAX as u64 + 10);
        let again = waits.start(Timed::DataRead);
        assert_eq!(waits.times().waiting().next().map(|(kind, _)| kind), Some(Timed::DataRead));
        drop(again);
    }

    #[test]
    fn waits_in_rounds_are_one_wait() {
        let (runtime, waits) = waits();
        let mut wait = None;
        for _ in 0..3 {
            waits.go_on(&mut wait, Timed::BlockedJournalSpace);
        }
        waits.go_on(&mut wait, Timed::BlockedJournalEntryFull);
        drop(wait);
        let count = |kind| waits.times().snapshot(kind, runtime.now_ns()).count;
        assert_eq!(count(Timed::BlockedJournalSpace), 1);
        assert_eq!(count(Timed::BlockedJournalEntryFull), 1);
    }
}
