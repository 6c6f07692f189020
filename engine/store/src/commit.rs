//! Committing transactions: the one place where the index changes.

use std::ops::Range;
use std::rc::Rc;

use smallvec::SmallVec;

use crate::btree::{Found, Node, NodePin, Read};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::ExtentView;
use crate::flight::Flight;
use crate::journal::{Class, Holder, Record, RecordWriter};
use crate::key::{Counter, Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::space::format::SummaryEntry;

use crate::space::{BucketId, BucketKind, RegionId, RegionPin};
use crate::times::{RestartReason, Timed};
use crate::transaction::{CounterUpdate, Transaction, UPDATES_MAX};

/// Most bytes of records that one key's change brings beyond its own: live blocks of the buckets of
/// four old and four new pointers, and counters.
const TRIGGER_BYTES: usize = 8 * 14 + 3 * 22;
/// Bytes of a counter record.
const COUNTER_BYTES: usize = 22;
/// A leaf this many times the size of a node is written out (and split) before it takes more.
const OVERSIZE: usize = 8;

type Nodes = SmallVec<[NodePin; 8]>;

/// What an update does to the blocks that an extent names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Goes,
    /// `fresh`: they were just written.
    Comes {
        fresh: bool,
    },
}

/// What the changes of a transaction to extents do to space.
#[derive(Default)]
struct SpaceChange {
    buckets: SmallVec<[(BucketId, i32); 8]>,
    counters: SmallVec<[(Counter, i64); 2]>,
    /// What comes, and whether its blocks were just written.
    placed: SmallVec<[(BucketId, SummaryEntry, bool); 4]>,
    /// Blocks that an extent named which goes.
    freed: SmallVec<[(BucketId, Range<u16>); 4]>,
    /// Of a frame that comes and is larger than any before.
    frame_blocks: u32,
}

impl SpaceChange {
    fn count(&mut self, counter: Counter, blocks: i32) {
        match self.counters.iter_mut().find(|(known, _)| *known == counter) {
            Some((_, delta)) => *delta += i64::from(blocks),
            None => self.counters.push((counter, i64::from(blocks))),
        }
    }
}

impl Engine {
    /// Applies a transaction: all of it, in one turn, or nothing.
    pub(crate) async fn commit(&self, transaction: Transaction<'_>) -> Result<()> {
        if transaction.updates.is_empty() && transaction.counters.is_empty() {
            // What it read was so at one instant.
            return self.validate(&transaction);
        }
        if transaction.updates.len() > UPDATES_MAX {
            return Err(StoreError::TransactionFull(transaction.updates.len()));
        }
        let values = |update: &crate::transaction::Update| {
            update.value.as_ref().map_or(0, |value| value.len())
        };
        let bytes = transaction
            .updates
            .iter()
            .map(|update| RecordWriter::put_bytes(values(update)) + TRIGGER_BYTES)
            .sum::<usize>()
            + transaction.counters.len() * COUNTER_BYTES;
        // Leaves found once stay cached until all are: the cache may be smaller than their number.
        let (mut nodes, mut read) = (Nodes::new(), Read::new());
        // So do the tables of the regions whose buckets it changes.
        let mut pins: SmallVec<[RegionPin; 2]> = SmallVec::new();
        loop {
            if let Some(error) = self.stopped() {
                return Err(error);
            }
            if transaction.class == Class::Normal && self.held.count.get() > 0 {
                self.waits.on(Timed::BlockedCheck, self.held.ended.notified()).await;
                continue;
            }
            if transaction.class == Class::Normal && self.cache.is_too_dirty() {
                let cleaned = self.cache.cleaned.notified();
                self.waits.on(Timed::BlockedIndexMemory, cleaned).await;
                continue;
            }
            if !self.leaves_for(&transaction, &mut nodes, &mut read).await? {
                continue;
            }
            if !self.journal.has_room(bytes, transaction.class) {
                self.journal.admit(bytes, transaction.class).await?;
                continue;
            }
            self.validate(&transaction)?;
            let change = self.space_change(&transaction, &nodes)?;
            if let Some(region) = self.unloaded_region(&change) {
                pins.push(Box::pin(self.pin_region(region)).await?);
                continue;
            }
            self.check_change(&change)?;
            transaction.flight.as_deref().map_or(Ok(()), Flight::check)?;
            // In memory a key takes about twice what it takes in the journal.
            self.cache.evict(bytes * 2);
            self.apply(transaction, &nodes, change);
            return Ok(());
        }
    }

    /// Finds the leaf of each update, all cached and ready to be changed in this turn. False: waited
    /// for something, look again. `read` keeps what was read in meanwhile.
    async fn leaves_for(
        &self,
        transaction: &Transaction<'_>,
        nodes: &mut Nodes,
        read: &mut Read,
    ) -> Result<bool> {
        for (index, update) in transaction.updates.iter().enumerate() {
            match self.descend(update.tree, 0, update.position)? {
                Found::Node(node) => match nodes.get_mut(index) {
                    Some(pin) if pin.node().id == node.id => {}
                    Some(pin) => *pin = NodePin::new(node),
                    None => nodes.push(NodePin::new(node)),
                },
                Found::Missing(missing) => {
                    let others = transaction.updates[index + 1..].iter();
                    let others = others.map(|other| (other.tree, other.position));
                    *read = Box::pin(self.read_in_with(missing, others)).await?;
                    return Ok(false);
                }
            }
        }
        let nodes = || nodes.iter().map(NodePin::node);
        let limit = self.superblock().node_bytes as usize * OVERSIZE;
        if let Some(node) = nodes().find(|node| node.body.borrow().live_bytes > limit) {
            return match Box::pin(self.write_out(node)).await {
                Ok(()) | Err(StoreError::Restart) => Ok(false),
                Err(error) => Err(error),
            };
        }
        if let Some(node) = nodes().find(|node| !node.lock.can_change()) {
            self.waits.on(Timed::BlockedNodeLock, node.lock.released()).await;
            return Ok(false);
        }
        Ok(true)
    }

    /// Whether everything the transaction read still is as it was.
    fn validate(&self, transaction: &Transaction<'_>) -> Result<()> {
        for mark in transaction.reads.iter().flatten() {
            let node = mark.node.node();
            if node.dead.get() {
                return Err(self.waits.restart(RestartReason::NodeReplaced));
            }
            if node.lock.sequence() != mark.sequence {
                return Err(self.waits.restart(RestartReason::CommitConflict));
            }
        }
        Ok(())
    }

    /// What the updates do to buckets and counters; decodes everything before anything is changed.
    fn space_change(&self, transaction: &Transaction<'_>, nodes: &Nodes) -> Result<SpaceChange> {
        let mut change = SpaceChange::default();
        for (update, node) in transaction.updates.iter().zip(nodes) {
            if update.tree != Tree::Extents {
                continue;
            }
            let body = node.node().body.borrow();
            if let Some(old) = body.keys.get(&update.position)
                && !planted::is(Bug::AccountingDrift)
            {
                self.count_extent(&mut change, update.position, old, Sign::Goes)?;
            }
            if let Some(new) = &update.value {
                let comes = Sign::Comes { fresh: update.fresh };
                self.count_extent(&mut change, update.position, new, comes)?;
            }
        }
        Ok(change)
    }

    /// A region whose table the change needs, and which is not loaded.
    fn unloaded_region(&self, change: &SpaceChange) -> Option<RegionId> {
        let tables = self.space.tables.borrow();
        change.buckets.iter().find_map(|(id, _)| tables.unloaded(*id))
    }

    /// Refuses a change that the tables contradict: they and the index come from disk.
    fn check_change(&self, change: &SpaceChange) -> Result<()> {
        let tables = self.space.tables.borrow();
        for (id, delta) in &change.buckets {
            let state = tables.buckets.get(id).filter(|state| state.kind == BucketKind::Data);
            let live = state.map_or(-1, |state| i64::from(state.live_blocks) + i64::from(*delta));
            if !(0..=i64::from(self.space.live_blocks_max())).contains(&live) {
                return Err(StoreError::corrupt(
                    format!("bucket {} of member {}", id.1, id.0),
                    format!("would hold {live} live blocks"),
                ));
            }
        }
        Ok(())
    }

    fn count_extent(
        &self,
        change: &mut SpaceChange,
        position: Position,
        value: &Value,
        sign: Sign,
    ) -> Result<()> {
        let extent = ExtentView::parse(value)?;
        let signed = |blocks: u32| match sign {
            Sign::Goes => -blocks.cast_signed(),
            Sign::Comes { .. } => blocks.cast_signed(),
        };
        let uncounted = planted::is(Bug::FramePartUncounted) && !extent.is_whole();
        let live = if uncounted { 0 } else { extent.live_blocks() };
        let (blocks, disk_blocks) = (signed(live), extent.disk_blocks());
        for pointer in extent.pointers() {
            let id = self.space.check_pointer(pointer.member, pointer.block, disk_blocks)?;
            match change.buckets.iter_mut().find(|(bucket, _)| *bucket == id) {
                Some((_, delta)) => *delta += blocks,
                None => change.buckets.push((id, blocks)),
            }
            let start_block = (pointer.block - self.space.first_block(id)) as u16;
            let Position { inode, offset: end, snapshot } = position;
            let (blocks, disk_blocks) = (extent.blocks() as u8, disk_blocks as u8);
            let entry = SummaryEntry { inode, end, snapshot, start_block, blocks, disk_blocks };
            match sign {
                Sign::Comes { fresh } => change.placed.push((id, entry, fresh)),
                // Of a frame that was cut others may have parts.
                Sign::Goes if extent.is_whole() => change.freed.push((id, entry.range())),
                Sign::Goes => {}
            }
        }
        if extent.is_hole() {
            return Ok(());
        }
        if extent.is_reference() {
            change.count(Counter::referenced_blocks(position.snapshot), signed(extent.blocks()));
            return Ok(());
        }
        if extent.is_frame() && extent.disk_blocks() > self.space.frame_blocks.get() {
            change.frame_blocks = change.frame_blocks.max(extent.disk_blocks());
        }
        change.count(Counter::data_blocks(position.snapshot), blocks);
        if extent.live_blocks() < extent.blocks() {
            let saved = signed(extent.blocks() - extent.live_blocks());
            change.count(Counter::saved_blocks(position.snapshot), saved);
        }
        Ok(())
    }

    /// The moment of commit: one turn, no wait, no failure.
    fn apply(&self, transaction: Transaction<'_>, nodes: &Nodes, change: SpaceChange) {
        let seq = self.journal.seq();
        if let Some(flight) = transaction.flight {
            flight.name();
        }
        for (update, node) in transaction.updates.into_iter().zip(nodes) {
            let node = node.node();
            self.learn_area(&update);
            let changes =
                update.value.is_some() || node.body.borrow().keys.get(&update.position).is_some();
            if changes {
                self.apply_key(node, update.position, update.value, update.fresh);
            }
        }
        for (id, delta) in &change.buckets {
            self.change_bucket(*id, *delta, &change, seq);
        }
        for (counter, delta) in change.counters {
            if delta != 0 {
                self.apply_counter(CounterUpdate::Add(counter, delta), seq);
            }
        }
        if change.frame_blocks > 0 {
            let most = u64::from(change.frame_blocks);
            self.apply_counter(CounterUpdate::AtLeast(Counter::FRAME_BLOCKS, most), seq);
        }
        for update in transaction.counters {
            self.apply_counter(update, seq);
        }
        self.commits.set(self.commits.get() + 1);
        self.committed.notify_all();
    }

    /// Changes one key of a cached node at any level: journal, memory, pin. In one turn with the
    /// admission to the journal.
    pub(crate) fn apply_at(&self, node: &Rc<Node>, position: Position, value: Option<Value>) {
        self.apply_key(node, position, value, false);
    }

    /// `fresh`: see [`Record::Put`].
    fn apply_key(&self, node: &Rc<Node>, position: Position, value: Option<Value>, fresh: bool) {
        let seq = self.journal.seq();
        let (tree, level) = (node.tree, node.level);
        match &value {
            Some(value) => {
                self.journal.append(&[Record::Put { tree, level, position, value, fresh }]);
            }
            None => self.journal.append(&[Record::Delete { tree, level, position }]),
        }
        self.change_node(node, position, value);
        self.dirty_node(node, seq);
    }

    /// Changes one key of a node in memory.
    pub(crate) fn change_node(&self, node: &Node, position: Position, value: Option<Value>) {
        let grown = node.apply(position, value, self.cache.next_tick());
        self.cache.unwritten_bytes.set(self.cache.unwritten_bytes.get() + grown);
    }

    /// Notes that a node differs from its image on disk since entry `seq`.
    pub(crate) fn dirty_node(&self, node: &Node, seq: u64) {
        let mut body = node.body.borrow_mut();
        if body.dirty_seq.is_none() {
            body.dirty_seq = Some(seq);
            self.journal.pin(seq, Holder::Node(node.id));
        }
        drop(body);
        self.cache.account(node);
        if self.cache.wants_cleaning() {
            self.reclaim_wanted.notify_all();
        }
    }

    /// What a transaction does to a bucket, of which so many blocks more live then.
    fn change_bucket(&self, id: BucketId, delta: i32, change: &SpaceChange, seq: u64) {
        let (member, bucket) = id;
        if delta != 0 {
            self.journal.append(&[Record::BucketLive { member, bucket, delta }]);
        }
        let mut tables = self.space.tables.borrow_mut();
        tables.live_blocks = tables.live_blocks.wrapping_add_signed(i64::from(delta));
        let (data_blocks, closed) = (self.space.data_blocks(), tables.is_closed(id));
        let state = tables.bucket(id);
        self.space.changes.set(self.space.changes.get() + 1);
        state.changed = self.space.changes.get();
        // An extent that is cut goes, and comes again in part: what comes counts.
        for (_, blocks) in change.freed.iter().filter(|(freed, _)| *freed == id) {
            state.dead.mark(blocks.clone(), data_blocks);
        }
        for (_, entry, fresh) in change.placed.iter().filter(|(placed, ..)| *placed == id) {
            state.note_placed(*entry, *fresh, data_blocks);
        }
        if delta == 0 {
            return;
        }
        state.live_blocks = state.live_blocks.wrapping_add_signed(delta);
        self.pin_bucket(id, state, seq);
        let (moved, drains) = (state.belongs_now(data_blocks, closed), state.drains());
        if let Some((was, belongs)) = moved {
            tables.list_as(id, was, belongs);
        }
        let region = tables.region_of(id);
        self.dirty_region(&mut tables, region, seq);
        if drains {
            tables.drain_if_empty(id, seq);
        }
    }

    pub(crate) fn apply_counter(&self, update: CounterUpdate, seq: u64) {
        let (counter, record) = match update {
            CounterUpdate::Add(counter, delta) => {
                (counter, Record::CounterAdd { counter: counter.0, delta })
            }
            CounterUpdate::AtLeast(counter, least) => {
                (counter, Record::CounterAtLeast { counter: counter.0, least })
            }
        };
        self.journal.append(&[record]);
        self.change_counter(counter, &record, seq);
    }

    /// Changes a counter in memory, for a record of entry `seq`.
    pub(crate) fn change_counter(&self, counter: Counter, record: &Record<'_>, seq: u64) {
        let mut counters = self.counters.borrow_mut();
        let state = counters.entry(counter).or_default();
        let before = state.value;
        match *record {
            Record::CounterAdd { delta, .. } => {
                state.value = state.value.wrapping_add_signed(delta);
            }
            Record::CounterAtLeast { least, .. } => state.value = state.value.max(least),
            _ => {}
        }
        self.space.note_counter(counter, state.value);
        if counter.is_saved_blocks() {
            let saved = self.space.saved_blocks.get().wrapping_sub(before);
            self.space.saved_blocks.set(saved.wrapping_add(state.value));
        }
        if state.dirty_seq.is_none() {
            state.dirty_seq = Some(seq);
            self.journal.pin(seq, Holder::Counter(counter.0));
        }
    }
}
