//! One shard's engine: index, journal and space, behind transactions.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::Poll;

use engine_base::ShardId;
use engine_base::hash::FastMap;
use engine_base::runtime::Runtime;
use engine_device::DeviceQueue;
use engine_memory::alloc_site;
use engine_memory::profile::Scoped;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::btree::{Cache, Node, NodePin};
use crate::codec::Codec;
use crate::damage::DamageList;
use crate::data::Unsharing;
use crate::error::{Result, StoreError};
use crate::flight::Flights;
use crate::journal::{Class, Holder, Journal, Next, Record, RecordWriter};
use crate::key::{Counter, Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::reserve::{ReadReserve, Reserve};
use crate::space::{RegionSource, Space};
use crate::superblock::Superblock;
use crate::sync::Notify;
use crate::times::{RestartReason, Timed, Waits};
use crate::transaction::{ReadMark, Reads, Transaction};
use crate::version::{KnownAreas, Versions};

pub use crate::space::{Allocation, Reservation, WritePoint};

/// What an engine is opened with.
#[derive(Clone)]
pub struct EngineConfig {
    /// Which shard of the pool.
    pub shard: ShardId,
    /// Shards in the pool, a power of two.
    pub shard_count: u16,
    /// Clock, timers, tasks, randomness.
    pub runtime: Rc<dyn Runtime>,
    /// This core's queue to each member, by member index.
    pub members: Vec<Rc<dyn DeviceQueue>>,
}

/// What is done about index nodes that cannot be read while a shard is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// The shard is not opened.
    Whole,
    /// Empty ones take their place: their keys are lost, and put on the damage list. For repairs.
    Salvage,
}

/// Memory for index nodes of one shard until [`Engine::set_cache_bytes`] says otherwise.
const CACHE_BYTES_DEFAULT: usize = 64 << 20;
/// Unflushed entries are flushed after this long: the bound on what a crash can take from a client
/// that never flushes.
const FLUSH_DELAY_NS: u64 = 1_000_000_000;
/// Journal entries on their way at a time: who commits while one is waits for the next to be
/// written, not for two.
const JOURNAL_WRITES_MAX: usize = 4;
/// Pinned things written out side by side.
const RECLAIM_BATCH: usize = 16;
/// Pause of reclaim when it can do nothing by itself.
const RECLAIM_PAUSE_NS: u64 = 50_000;
/// Rounds of writing out before a close is content: each leaves only what the one before made dirty.
const CLOSE_ROUNDS_MAX: u32 = 100_000;

/// The last number of a sequence: what a damaged device says beyond it is not believed.
const NUMBER_MAX: u64 = 1 << 54;

/// A counter in memory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CounterState {
    pub(crate) value: u64,
    /// Journal entry that the difference to the checkpoint pins.
    pub(crate) dirty_seq: Option<u64>,
}

/// Up to which journal position checkpoints include changes; for replay only.
#[derive(Default)]
pub(crate) struct Stamps {
    pub(crate) buckets: FastMap<(u8, u32), (u64, u32)>,
    pub(crate) counters: FastMap<Counter, (u64, u32)>,
}

/// What is to be seen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// The next key.
    Next,
    /// The first at or past this place, which is past the key that was seen.
    From(Position),
    /// No more.
    End,
}

/// Checks that commits of clients wait for.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) count: std::cell::Cell<u32>,
    pub(crate) ended: Notify,
}

/// One shard's engine.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) journal: Rc<Journal>,
    pub(crate) waits: Rc<Waits>,
    /// Room for one write of index nodes, for when memory is refused.
    pub(crate) reserve: Reserve,
    /// Room for one read of a node that tells of space, for when memory is refused.
    pub(crate) read_reserve: ReadReserve,
    pub(crate) cache: Cache,
    pub(crate) space: Rc<Space>,
    /// Compressors.
    pub(crate) codec: Codec,
    /// Data that is on its way.
    pub(crate) flights: Rc<Flights>,
    /// Shared extents that are perhaps not shared any more.
    pub(crate) unsharing: Unsharing,
    /// Whose keys a version sees.
    pub(crate) versions: Versions,
    /// Areas of versions that are noted in the index.
    pub(crate) known_areas: KnownAreas,
    pub(crate) counters: RefCell<FastMap<Counter, CounterState>>,
    pub(crate) taken: RefCell<FastMap<Counter, u64>>,
    pub(crate) stamps: RefCell<Stamps>,
    pub(crate) last_node_id: std::cell::Cell<u64>,
    pub(crate) commits: std::cell::Cell<u64>,
    pub(crate) restarts: std::cell::Cell<u64>,
    pub(crate) replayed_keys: std::cell::Cell<u64>,
    pub(crate) replay_dropped: std::cell::Cell<u64>,
    pub(crate) recovery_notes: Vec<String>,
    pub(crate) damage: DamageList,
    /// Copygc is emptying a bucket.
    pub(crate) gc_active: std::cell::Cell<bool>,
    /// Checks that commits of clients wait for.
    pub(crate) held: Held,
    /// Something was committed: the flush timer should run.
    pub(crate) committed: Notify,
    /// Reclaim should look.
    pub(crate) reclaim_wanted: Notify,
}

impl Engine {
    /// Opens the shard: reads the superblocks, replays its journal, starts its background tasks.
    ///
    /// # Errors
    /// When a device fails or what is on it is not a shard that can be opened.
    pub async fn open(config: EngineConfig) -> Result<Rc<Self>> {
        Self::open_as(config, Opening::Whole).await
    }

    /// [`Engine::open`], also when index nodes cannot be read, if `opening` says so.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_as(config: EngineConfig, opening: Opening) -> Result<Rc<Self>> {
        let recovery = crate::recovery::recover(config, CACHE_BYTES_DEFAULT, opening);
        let engine = Rc::new(Scoped::new(alloc_site!("recovery"), recovery).await?);
        let runtime = Rc::clone(&engine.config.runtime);
        let journal = Scoped::new(alloc_site!("journal"), Rc::clone(&engine).journal_loop());
        runtime.spawn("journal", Box::pin(journal));
        runtime.spawn("journal flush timer", Box::pin(Rc::clone(&engine).flush_timer_loop()));
        let reclaim =
            Scoped::new(alloc_site!("index write-out"), Rc::clone(&engine).reclaim_loop());
        runtime.spawn("journal reclaim", Box::pin(reclaim));
        let copygc = Scoped::new(alloc_site!("copygc"), Rc::clone(&engine).copygc_loop());
        runtime.spawn("copygc", Box::pin(copygc));
        let ahead = Scoped::new(alloc_site!("node cache"), Rc::clone(&engine).read_ahead_loop());
        runtime.spawn("index read-ahead", Box::pin(ahead));
        let evacuation = Scoped::new(alloc_site!("copygc"), Rc::clone(&engine).evacuation_loop());
        runtime.spawn("evacuation", Box::pin(evacuation));
        runtime.spawn("unsharing", Box::pin(Rc::clone(&engine).unshare_loop()));
        runtime.spawn("damage list", Box::pin(Rc::clone(&engine).damage_loop()));
        let members = (0_u8..).zip(&engine.config.members);
        let discard = members.filter(|(_, queue)| queue.info().discard).map(|(index, _)| index);
        engine.start_discards(discard);
        runtime.spawn("discard", Box::pin(Rc::clone(&engine).discard_loop()));
        Ok(engine)
    }

    /// Tells where regions come from; nothing can be allocated before.
    pub fn set_region_source(&self, source: Rc<dyn RegionSource>) {
        *self.space.source.borrow_mut() = Some(source);
    }

    /// Bounds the memory for index nodes, in bytes. What operations have in use stays beyond it, and four
    /// nodes in any case.
    pub fn set_cache_bytes(&self, bytes: usize) {
        self.cache.set_bytes_max(bytes);
        self.reclaim_wanted.notify_all();
    }

    /// Clock, timers, tasks, randomness.
    pub fn runtime(&self) -> &Rc<dyn Runtime> {
        &self.config.runtime
    }

    /// Why things wait here, how long and how often.
    pub fn waits(&self) -> &Rc<Waits> {
        &self.waits
    }

    /// Which shard this is.
    pub fn shard(&self) -> ShardId {
        self.config.shard
    }

    /// Shards in the pool.
    pub fn shard_count(&self) -> u16 {
        self.config.shard_count
    }

    /// What the pool is made of.
    pub fn superblock(&self) -> Rc<Superblock> {
        self.space.superblock()
    }

    /// The queue to a member.
    ///
    /// # Errors
    /// `Corrupt` when there is no such member: the index came from disk.
    pub fn member(&self, member: u8) -> Result<&Rc<dyn DeviceQueue>> {
        self.config
            .members
            .get(usize::from(member))
            .ok_or_else(|| StoreError::corrupt("pointer", format!("member {member} is not known")))
    }

    /// Runs `work` in a transaction and commits it; runs it again while it meets conflicts. Committed
    /// means in memory and in the journal's buffer: it outlives the process after [`Engine::written`],
    /// and is durable after [`Engine::flush`].
    ///
    /// # Errors
    /// Those of `work` (nothing is changed then), and those of the commit.
    pub async fn transact<T>(
        &self,
        work: impl AsyncFnMut(&mut Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.transact_as(Class::Normal, work).await
    }

    /// [`Engine::transact`] with the journal space of `class`: what frees space must not wait for
    /// what fills it.
    pub(crate) async fn transact_as<T>(
        &self,
        class: Class,
        mut work: impl AsyncFnMut(&mut Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        loop {
            let mut transaction = Transaction::new(self, class, false);
            let result = match work(&mut transaction).await {
                Ok(value) => {
                    // What frees space only puts keys where there are some.
                    if class == Class::Normal {
                        transaction.note_areas();
                    }
                    self.commit(transaction).await.map(|()| value)
                }
                Err(error) => Err(error),
            };
            if !matches!(result, Err(StoreError::Restart)) {
                return result;
            }
            self.restarts.set(self.restarts.get() + 1);
            tracing::trace!(shard = self.shard().0, "transaction restarts");
        }
    }

    /// A transaction only to read. Its reads need not be of one instant; use
    /// [`Engine::transact`] where that matters.
    pub fn read(&self) -> Transaction<'_> {
        Transaction::new(self, Class::Normal, true)
    }

    /// Waits until all that was committed before the call is written to the journal, and the data it names: it
    /// outlives this process, and a loss of power if the devices keep what they were given.
    ///
    /// # Errors
    /// When a device fails; the engine then takes no more writes.
    pub async fn written(&self) -> Result<()> {
        if planted::is(Bug::EarlyAcknowledge) {
            return Ok(());
        }
        self.journal.written().await
    }

    /// Makes all that was committed before the call durable, and the data it names.
    ///
    /// # Errors
    /// When a device fails; the engine then takes no more writes.
    pub async fn flush(&self) -> Result<()> {
        self.journal.flush().await
    }

    /// Flushes and stops. The engine takes no more writes.
    ///
    /// # Errors
    /// When the flush fails.
    pub async fn close(&self) -> Result<()> {
        self.end_discards().await;
        // Spares copygc a walk over the index when it comes to them.
        self.seal_open_buckets();
        self.write_summaries().await;
        let result = self.flush().await;
        if result.is_ok() {
            // Only spares the next open its replay: everything is durable already.
            let _ = self.write_out_all().await;
        }
        self.journal.fail("the shard was closed");
        self.wake_all();
        result
    }

    /// Writes out everything that pins the journal, so that the next open has nothing to replay.
    pub(crate) async fn write_out_all(&self) -> Result<()> {
        for _ in 0..CLOSE_ROUNDS_MAX {
            let holders = self.journal.holders_before(u64::MAX, RECLAIM_BATCH);
            if holders.is_empty() {
                break;
            }
            let written = holders.into_iter().map(|holder| self.release_pin(holder));
            for result in futures::future::join_all(written).await {
                match result {
                    Ok(()) | Err(StoreError::Restart) => {}
                    Err(error) => return Err(error),
                }
            }
            self.config.runtime.yield_now().await;
        }
        self.flush().await
    }

    /// Wakes whoever waits for something that a stopped engine will never do.
    fn wake_all(&self) {
        self.space.gc_wanted.notify_all();
        self.space.changed.notify_all();
        self.reclaim_wanted.notify_all();
        self.committed.notify_all();
        self.damage.noted.notify_all();
        self.cache.cleaned.notify_all();
        self.cache.ahead_wanted.notify_all();
        self.space.ends_moved.notify_all();
        self.held.ended.notify_all();
    }

    /// Current value of a counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.borrow().get(&counter).map_or(0, |state| state.value)
    }

    pub(crate) fn take_number(&self, counter: Counter) -> Result<u64> {
        let committed = self.counter(counter);
        let mut taken = self.taken.borrow_mut();
        let number = taken.entry(counter).or_insert(0);
        let next = (*number).max(committed).saturating_add(1);
        if next > NUMBER_MAX {
            let why = format!("counter {} says {committed}, which nothing counts up to", counter.0);
            return Err(StoreError::corrupt("counters", why));
        }
        *number = next;
        Ok(next)
    }

    /// An identity for a new node: never given before, since journal numbers rise for ever, nor by
    /// another shard, since it ends in the shard's number.
    pub(crate) fn new_node_id(&self) -> u64 {
        let number = ((self.last_node_id.get() >> 8) + 1).max(self.journal.seq() << 12);
        let id = number << 8 | u64::from(self.shard().0);
        self.last_node_id.set(id);
        id
    }

    /// The first key of the index in `from ..= to`, and what `of` takes of it and its value.
    pub(crate) async fn index_next<T>(
        &self,
        tree: Tree,
        from: Position,
        to: Position,
        reads: &mut Reads,
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>> {
        self.index_next_of(tree, None, (from, to), reads, of).await
    }

    /// [`Engine::index_next`], of one version only if `version` says so.
    pub(crate) async fn index_next_of<T>(
        &self,
        tree: Tree,
        version: Option<u32>,
        (mut from, to): (Position, Position),
        reads: &mut Reads,
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>> {
        while from <= to {
            let node = self.node_for(tree, 0, from).await?;
            self.mark_read(reads, &node)?;
            let body = node.body.borrow();
            let last = to.min(node.max);
            let found = match version {
                None => body.keys.next_placed(from, last),
                Some(version) => body.keys.next_of_version(from, last, version),
            };
            if let Some((position, value, place)) = found {
                if node.is_scanned(place) {
                    self.read_ahead_of(&node);
                }
                return Ok(Some((*position, of(*position, value))));
            }
            if node.max >= to {
                return Ok(None);
            }
            from = node.max.successor();
        }
        Ok(None)
    }

    /// Shows `see` the keys in `from ..= to` one after the other, until it has seen enough.
    pub(crate) async fn index_scan(
        &self,
        tree: Tree,
        (mut from, to): (Position, Position),
        reads: &mut Reads,
        mut see: impl FnMut(Position, &Value) -> Scan,
    ) -> Result<()> {
        'nodes: while from <= to {
            let node = self.node_for(tree, 0, from).await?;
            self.mark_read(reads, &node)?;
            let body = node.body.borrow();
            for (position, value) in body.keys.iter_from(from) {
                if *position > to {
                    return Ok(());
                }
                match see(*position, value) {
                    Scan::Next => {}
                    Scan::From(position) => {
                        from = position;
                        continue 'nodes;
                    }
                    Scan::End => return Ok(()),
                }
            }
            if node.max >= to {
                return Ok(());
            }
            from = node.max.successor();
        }
        Ok(())
    }

    /// The last key of the index in `from ..= to`.
    pub(crate) async fn index_previous(
        &self,
        tree: Tree,
        from: Position,
        mut to: Position,
        reads: &mut Reads,
    ) -> Result<Option<(Position, Value)>> {
        while from <= to {
            let node = self.node_for(tree, 0, to).await?;
            self.mark_read(reads, &node)?;
            let body = node.body.borrow();
            if let Some((position, value)) = body.keys.previous(from.max(node.min), to) {
                return Ok(Some((*position, value.clone())));
            }
            if node.min <= from {
                return Ok(None);
            }
            to = node.min.predecessor();
        }
        Ok(None)
    }

    /// Writes journal entries as they are wanted, several at a time; a flush entry alone. Ends when
    /// the journal has failed.
    async fn journal_loop(self: Rc<Self>) {
        let mut on_the_way = FuturesUnordered::new();
        loop {
            let work = self.journal.work.notified();
            match self.journal.next() {
                Next::Stop => break,
                Next::WriteFlush if on_the_way.is_empty() && !self.journal.is_settled() => {
                    // The data of an entry is still on its way.
                    self.waits.on(Timed::BlockedJournalInFlight, work).await;
                }
                Next::WriteFlush if on_the_way.is_empty() => {
                    if self.write_entry(true).await.is_err() {
                        break;
                    }
                    self.reclaim_wanted.notify_all();
                }
                Next::Write if on_the_way.len() < JOURNAL_WRITES_MAX => {
                    // Polled once, so that the entry is sealed before the next one is.
                    let mut write = Box::pin(self.write_entry(false));
                    match futures::poll!(&mut write) {
                        Poll::Ready(_) => self.reclaim_wanted.notify_all(),
                        Poll::Pending => on_the_way.push(write),
                    }
                }
                Next::Wait if on_the_way.is_empty() => work.await,
                Next::Wait => {
                    futures::future::select(work, on_the_way.next()).await;
                    self.reclaim_wanted.notify_all();
                }
                Next::Write | Next::WriteFlush => {
                    self.waits.on(Timed::BlockedJournalInFlight, on_the_way.next()).await;
                    self.reclaim_wanted.notify_all();
                }
            }
        }
        self.wake_all();
        // A device may still read from their buffers.
        while on_the_way.next().await.is_some() {}
    }

    /// Writes the journal entry being filled.
    pub(crate) async fn write_entry(&self, flush: bool) -> Result<()> {
        let roots = |writer: &mut RecordWriter<'_>| {
            for root in self.cache.roots.borrow().iter() {
                let pointer = root.pointer().encode();
                let (tree, level) = (root.tree, root.level);
                writer.push(&Record::Root { tree, level, pointer: &pointer });
            }
        };
        self.journal.write_entry(flush, &self.config.members, roots).await?;
        self.release_flushed();
        Ok(())
    }

    /// Flushes what nobody flushed after a while.
    async fn flush_timer_loop(self: Rc<Self>) {
        loop {
            let committed = self.committed.notified();
            if self.stopped().is_some() {
                return;
            }
            if !self.journal.is_dirty() {
                committed.await;
                continue;
            }
            self.config.runtime.sleep(FLUSH_DELAY_NS).await;
            if self.journal.flush().await.is_err() {
                return;
            }
        }
    }

    /// Writes out what pins old journal entries.
    async fn reclaim_loop(self: Rc<Self>) {
        loop {
            let wanted = self.reclaim_wanted.notified();
            let work = self.journal.work.notified();
            if self.stopped().is_some() {
                return;
            }
            let mut holders = match self.journal.reclaim_before() {
                Some(before) => self.journal.holders_before(before, RECLAIM_BATCH),
                None => Vec::new(),
            };
            if self.cache.wants_cleaning() {
                for node in self.cache.to_clean(RECLAIM_BATCH) {
                    if !holders.contains(&Holder::Node(node.id)) {
                        holders.push(Holder::Node(node.id));
                    }
                }
            }
            if holders.is_empty() {
                futures::future::select(std::pin::pin!(wanted), std::pin::pin!(work)).await;
                continue;
            }
            let (shard, count) = (self.shard().0, holders.len());
            tracing::debug!(shard, count, "reclaim writes out dirty nodes and tables");
            let mut busy = holders.iter().all(|holder| matches!(holder, Holder::NodeWriting(_)));
            let written = holders.into_iter().map(|holder| self.release_pin(holder));
            for result in futures::future::join_all(written).await {
                match result {
                    Ok(()) => {}
                    // Shard 0 is not open yet, or something is in the way: it will pass.
                    Err(
                        StoreError::Restart
                        | StoreError::ShuttingDown { .. }
                        | StoreError::NoSpace { .. }
                        | StoreError::Overloaded { .. }
                        | StoreError::OutOfMemory { .. },
                    ) => busy = true,
                    Err(error) => {
                        self.journal.fail(&format!("write-out failed: {error}"));
                        return;
                    }
                }
            }
            self.journal.work.notify_all();
            if busy {
                // Others write them already, or cannot yet: give them time.
                self.config.runtime.sleep(RECLAIM_PAUSE_NS).await;
            }
        }
    }

    async fn release_pin(&self, holder: Holder) -> Result<()> {
        match holder {
            Holder::Node(id) => match self.cache.get(id) {
                Some(node) => self.write_out(&node).await,
                None => Err(StoreError::corrupt("cache", format!("node {id} is dirty and gone"))),
            },
            Holder::NodeWriting(_) => Ok(()),
            Holder::Bucket(member, bucket) => self.checkpoint_bucket((member, bucket)).await,
            Holder::Counter(counter) => self.checkpoint_counter(Counter(counter)).await,
            Holder::Region(member, region) => self.checkpoint_region((member, region)).await,
        }
    }

    /// Named counters for metrics.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut out = Vec::new();
        self.journal.counters(&mut out);
        out.push(("transaction_commits", self.commits.get()));
        out.push(("transaction_restarts", self.restarts.get()));
        out.push(("replayed_keys", self.replayed_keys.get()));
        out.push(("replay_dropped_entries", self.replay_dropped.get()));
        let cache = &self.cache;
        out.push(("btree_cache_nodes", cache.len() as u64));
        out.push(("btree_cache_bytes", cache.bytes() as u64));
        out.push(("btree_cache_dirty_bytes", cache.dirty_bytes() as u64));
        out.push(("btree_cache_peak_bytes", cache.peak_bytes() as u64));
        out.push(("btree_reads_ahead", cache.reads_ahead.get()));
        out.push(("btree_cache_hits", cache.hits.get()));
        out.push(("btree_cache_misses", cache.misses.get()));
        out.push(("btree_cache_evictions", cache.evictions.get()));
        out.push(("btree_appends", cache.appends.get()));
        out.push(("btree_rewrites", cache.rewrites.get()));
        out.push(("btree_splits", cache.splits.get()));
        out.push(("btree_merges", cache.merges.get()));
        out.push(("damage_not_listed", self.damage.more.get()));
        for (reason, name) in RestartReason::ALL {
            out.push((name, self.waits.times().restarts(*reason)));
        }
        out.push(("btree_reserve_uses", self.reserve.uses()));
        self.flights.counters(&mut out);
        self.unsharing.counters(&mut out);
        self.codec.counters(&mut out);
        self.space.counters(&mut out);
        out
    }

    /// Remembers a leaf that was read; one that changed since it was read before calls for a restart.
    fn mark_read(&self, reads: &mut Reads, node: &Rc<Node>) -> Result<()> {
        let Some(reads) = reads else { return Ok(()) };
        let sequence = node.lock.sequence();
        match reads.iter().rev().find(|mark| mark.node.node().id == node.id) {
            Some(mark) if mark.sequence != sequence => {
                Err(self.waits.restart(RestartReason::ReadConflict))
            }
            Some(_) => Ok(()),
            None => {
                reads.push(ReadMark { node: NodePin::new(Rc::clone(node)), sequence });
                Ok(())
            }
        }
    }
}
