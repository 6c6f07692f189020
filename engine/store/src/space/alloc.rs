//! Giving out blocks for data and slots for nodes.

use std::rc::Rc;

use super::table::{Bucket, BucketId, BucketKind, OpenBucket, Space, Tables};
use crate::btree::format::Location;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::Pointer;
use crate::journal::{Class, Journal, Record};
use crate::planted::{self, Bug};
use crate::repair::is_loss;
use crate::space::Reservation;
use crate::times::Timed;

/// Where data is put: kinds of data that die together stay together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WritePoint {
    /// What clients write.
    Data = 0,
    /// What copygc moves.
    Moved = 1,
}

/// Longest wait for buckets that all are being written to: if nothing has come of it by then, those
/// who write to them wait as well.
const HELD_WAIT_NS: u64 = 5_000_000_000;
/// Times that copygc tried every bucket and could empty none until writes are told so.
const STUCK_ROUNDS_MAX: u32 = 3;
/// Free buckets that only copygc and the index may take: one to fill and one to follow.
const KEEP_FOR_MOVED: usize = 2;
/// Bytes of the records that opening a bucket journals, with room to spare.
const OPEN_RECORD_BYTES: usize = 32;

/// Blocks allocated and not yet named by the index. While it lives their bucket is not reused; drop
/// it after the transaction that names them (or to give up).
pub struct Allocation {
    /// Where.
    pub pointer: Pointer,
    /// How many blocks, at least one, possibly fewer than asked for.
    pub blocks: u32,
    space: Rc<Space>,
    journal: Rc<Journal>,
    pub(super) id: BucketId,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let seq = self.journal.settled_by();
        let mut tables = self.space.tables.borrow_mut();
        tables.pending_blocks -= u64::from(self.blocks);
        let bucket = tables.bucket(self.id);
        bucket.pins -= 1;
        let sealed = !bucket.open && bucket.pins == 0 && bucket.summary.is_some();
        let generation = bucket.generation;
        tables.drain_if_empty(self.id, seq);
        if sealed {
            tables.to_seal.push_back((self.id, generation));
            drop(tables);
            self.space.gc_wanted.notify_all();
        }
    }
}

/// A node slot that no pointer names yet. Dropped without [`Engine::commit_slot`], it is free again.
pub(crate) struct SlotAllocation {
    pub(crate) location: Location,
    space: Rc<Space>,
    journal: Rc<Journal>,
    id: BucketId,
    slot: u8,
    committed: bool,
}

impl Drop for SlotAllocation {
    fn drop(&mut self) {
        let seq = self.journal.settled_by();
        let all = self.space.all_slots();
        let mut tables = self.space.tables.borrow_mut();
        tables.bucket(self.id).slots_pending &= !(1 << self.slot);
        if !self.committed {
            tables.note_slots(self.id, all);
            tables.drain_if_empty(self.id, seq);
        }
    }
}

impl Space {
    /// Free buckets that must be left alone. Copygc may take the last one: what it moves there comes
    /// back as a whole bucket. So the index leaves it one while it has none open.
    fn keep(&self, kind: BucketKind, point: WritePoint) -> usize {
        match (kind, point) {
            (BucketKind::Data, WritePoint::Data) => self.keep_for_others(),
            (BucketKind::Data, WritePoint::Moved) => 0,
            _ => {
                let open = self.tables.borrow().open[WritePoint::Moved as usize].is_some();
                usize::from(!open)
            }
        }
    }

    /// Free buckets of `owned` that only the index may take: what its dirty nodes may need at once.
    fn index_kept_of(owned: u64) -> usize {
        (owned / 16).clamp(2, 64) as usize
    }

    /// As [`Space::keep_for_others`], of `owned` buckets.
    pub(super) fn kept_of(owned: u64) -> usize {
        KEEP_FOR_MOVED + Self::index_kept_of(owned)
    }

    /// Free buckets that clients' data must leave alone.
    pub(crate) fn keep_for_others(&self) -> usize {
        Self::kept_of(self.tables.borrow().owned)
    }
}

impl Engine {
    /// Allocates up to `blocks` adjacent blocks in one bucket, out of `reservation`: of those that are left in it, as
    /// many as `fits` says. When that is none, they stay dead, and another bucket is taken.
    ///
    /// # Errors
    /// When the engine has stopped; space itself is there, it was reserved.
    pub(crate) async fn allocate(
        &self,
        point: WritePoint,
        blocks: u32,
        fits: &dyn Fn(u32) -> u32,
        reservation: &mut Reservation,
    ) -> Result<Allocation> {
        assert!(u64::from(blocks) <= reservation.left(), "allocates more than was reserved");
        loop {
            if let Some(allocation) = self.allocate_here(point, blocks, fits) {
                reservation.take(allocation.blocks);
                return Ok(allocation);
            }
            let class = match point {
                WritePoint::Data => Class::Normal,
                WritePoint::Moved => Class::Reclaim,
            };
            Box::pin(self.open_bucket(BucketKind::Data, point, class)).await?;
        }
    }

    /// Takes blocks from the write point's open bucket.
    fn allocate_here(
        &self,
        point: WritePoint,
        blocks: u32,
        fits: &dyn Fn(u32) -> u32,
    ) -> Option<Allocation> {
        let mut tables = self.space.tables.borrow_mut();
        let open = tables.open[point as usize].as_mut()?;
        let start = open.next_block;
        let id = open.id;
        let got = fits(blocks.min(open.end_block - start));
        if got == 0 {
            self.close_open(&mut tables, point);
            return None;
        }
        open.next_block += got;
        let full = open.next_block == open.end_block;
        tables.pending_blocks += u64::from(got);
        tables.written_blocks += u64::from(got);
        let now = tables.written_blocks;
        let bucket = tables.bucket(id);
        bucket.pins += 1;
        let generation = bucket.generation;
        if full {
            bucket.open = false;
            if point == WritePoint::Data {
                bucket.filled_at = now;
            }
            tables.open[point as usize] = None;
            tables.list_bucket(id);
        }
        drop(tables);
        let block = self.space.first_block(id) + u64::from(start);
        let pointer = Pointer { member: id.0, generation, block };
        let (space, journal) = (Rc::clone(&self.space), Rc::clone(&self.journal));
        Some(Allocation { pointer, blocks: got, space, journal, id })
    }

    /// Ends a write point's bucket before it is full.
    fn close_open(&self, tables: &mut Tables, point: WritePoint) {
        let Some(OpenBucket { id, .. }) = tables.open[point as usize].take() else { return };
        let now = tables.written_blocks;
        let bucket = tables.bucket(id);
        bucket.open = false;
        if point == WritePoint::Data {
            bucket.filled_at = now;
        }
        // With an allocation in it, it is sealed when that ends.
        let sealed = bucket.pins == 0 && bucket.summary.is_some();
        let generation = bucket.generation;
        tables.list_bucket(id);
        if sealed {
            tables.to_seal.push_back((id, generation));
        }
        tables.drain_if_empty(id, self.journal.settled_by());
        self.space.gc_wanted.notify_all();
    }

    /// Opens a free bucket for a write point (data), or as a source of node slots (index). Waits
    /// for one.
    async fn open_bucket(&self, kind: BucketKind, point: WritePoint, class: Class) -> Result<()> {
        self.ensure_regions().await?;
        let mut wait = None;
        loop {
            self.journal.admit(OPEN_RECORD_BYTES, class).await?;
            self.release_flushed();
            let wanted = match kind {
                BucketKind::Data => self.space.tables.borrow().open[point as usize].is_none(),
                _ => self.space.tables.borrow().partial.is_empty(),
            };
            if !wanted {
                return Ok(());
            }
            let runs_first = self.space.fills_runs_first.get() && self.needs_run(kind, point);
            if runs_first && self.open_run().await? {
                continue;
            }
            if self.space.free_buckets() > self.space.keep(kind, point) {
                if self.space.tables.borrow().free.is_empty() {
                    self.load_free().await?;
                    continue;
                }
                self.open_free_bucket(kind, point);
                return Ok(());
            }
            self.waits.go_on(&mut wait, Timed::BlockedAllocate);
            self.make_space(kind, point).await?;
        }
    }

    /// Loads a table with a free bucket. One that cannot be read no longer counts as having any.
    async fn load_free(&self) -> Result<()> {
        let region = self.space.tables.borrow().free_elsewhere();
        if let Some(region) = region {
            self.try_load_region(region).await?;
        }
        Ok(())
    }

    /// Loads a table with an index bucket that has a slot to give. False: there is none.
    async fn load_slots(&self) -> Result<bool> {
        let slots = self.superblock().bucket_bytes / self.superblock().node_bytes;
        let region = self.space.tables.borrow().slots_elsewhere(slots);
        match region {
            Some(region) => self.try_load_region(region).await.map(|_| true),
            None => Ok(false),
        }
    }

    /// Takes the next free bucket into use. In one turn with the admission before.
    fn open_free_bucket(&self, kind: BucketKind, point: WritePoint) {
        let seq = self.journal.seq();
        let all = self.space.all_slots();
        let mut tables = self.space.tables.borrow_mut();
        let end_block = self.space.data_blocks();
        let Some(id) = tables.take_free() else { return };
        if !self.space.fills_runs_first.get() {
            tables.runs.clear();
        }
        let now = tables.written_blocks;
        let generation = {
            let bucket = tables.bucket(id);
            assert!(bucket.kind == BucketKind::Free && bucket.is_empty());
            let dirty_seq = bucket.dirty_seq;
            let generation = bucket.generation.wrapping_add(1);
            *bucket = Bucket::new(kind, generation);
            bucket.dirty_seq = dirty_seq;
            generation
        };
        match kind {
            BucketKind::Index => {
                tables.index_buckets += 1;
                tables.note_slots(id, all);
            }
            _ => {
                let bucket = tables.bucket(id);
                bucket.open = true;
                if point == WritePoint::Data {
                    bucket.filled_at = now;
                }
                bucket.summary = Some(Vec::new());
                tables.open[point as usize] = Some(OpenBucket { id, next_block: 0, end_block });
            }
        }
        self.dirty_bucket(&mut tables, id, seq);
        drop(tables);
        let (member, bucket) = id;
        tracing::debug!(shard = self.shard().0, member, bucket, generation, ?kind, "bucket opened");
        let kind = kind as u8;
        self.journal.append(&[Record::BucketOpen { member, bucket, generation, kind }]);
    }

    /// Does what can be done for more free buckets, and waits for some of it.
    async fn make_space(&self, kind: BucketKind, point: WritePoint) -> Result<()> {
        self.space.allocation_waits.set(self.space.allocation_waits.get() + 1);
        tracing::debug!(shard = self.shard().0, ?kind, "no free bucket: waits for space");
        // Taken before anything is waited for, so that nothing that becomes free is missed.
        let changed = self.space.changed.notified();
        if self.acquire_region(None).await? {
            return Ok(());
        }
        if self.space.is_draining() {
            self.journal.flush().await?;
            self.release_flushed();
            return Ok(());
        }
        if let Some(error) = self.stopped() {
            return Err(error);
        }
        if self.needs_run(kind, point) && self.open_run().await? {
            return Ok(());
        }
        self.space.gc_wanted.notify_all();
        let client = kind == BucketKind::Data && point == WritePoint::Data;
        // Those that are held may be so by writes that wait for the same: then it is told as it is.
        let hopeless = self.space.hopeless.rounds.get() >= STUCK_ROUNDS_MAX;
        if !client || (!hopeless && (self.gc_active.get() || self.gc_has_victim())) {
            changed.await;
            return self.stopped().map_or(Ok(()), Err);
        }
        // What is admitted fits, so this is for what nobody could foresee: buckets that became stuck
        // since, or so many that are being written to that nothing else is left.
        let held = {
            let tables = self.space.tables.borrow();
            tables.victims.len() > 0 || !tables.discarding.is_empty()
        };
        if held && !hopeless {
            let changed = std::pin::pin!(changed);
            let late = self.config.runtime.sleep(HELD_WAIT_NS);
            let first = futures::future::select(changed, late).await;
            if matches!(first, futures::future::Either::Left(_)) {
                return self.stopped().map_or(Ok(()), Err);
            }
        }
        let stuck = hopeless || !self.space.tables.borrow().stuck.is_empty();
        Err(match self.space.hopeless.error.borrow().clone().filter(|_| stuck) {
            Some(error) => error,
            None => StoreError::NoSpace {
                needed_bytes: u64::from(self.superblock().bucket_bytes),
                available_bytes: 0,
            },
        })
    }

    /// Whether there is no free bucket for what is moved, nor will be one: see [`super::runs`].
    fn needs_run(&self, kind: BucketKind, point: WritePoint) -> bool {
        let tables = self.space.tables.borrow();
        kind == BucketKind::Data
            && point == WritePoint::Moved
            && tables.open[point as usize].is_none()
            && (self.space.fills_runs_first.get()
                || tables.free_buckets() == 0 && tables.discarding.is_empty())
    }

    /// Makes free what was emptied by entries that are durable by now.
    pub(crate) fn release_flushed(&self) -> bool {
        let flushed =
            if planted::is(Bug::EarlyBucketReuse) { u64::MAX } else { self.journal.flushed_seq() };
        let any = self.space.tables.borrow_mut().release(flushed, self.space.all_slots());
        if any {
            self.space.changed.notify_all();
        }
        any
    }

    /// Allocates a slot for a node.
    pub(crate) async fn allocate_slot(&self) -> Result<SlotAllocation> {
        loop {
            if let Some(slot) = self.allocate_slot_here() {
                return Ok(slot);
            }
            if self.load_slots().await? {
                continue;
            }
            self.open_bucket(BucketKind::Index, WritePoint::Moved, Class::Reclaim).await?;
        }
    }

    fn allocate_slot_here(&self) -> Option<SlotAllocation> {
        let all = self.space.all_slots();
        let mut tables = self.space.tables.borrow_mut();
        let id = tables.partial.first().copied()?;
        let bucket = tables.bucket(id);
        let taken = bucket.slots | bucket.slots_pending | bucket.slots_draining;
        let slot = (!taken & all).trailing_zeros() as u8;
        bucket.slots_pending |= 1 << slot;
        let generation = bucket.generation;
        tables.note_slots(id, all);
        let block =
            self.space.first_block(id) + u64::from(slot) * u64::from(self.space.node_blocks());
        Some(SlotAllocation {
            location: Location { member: id.0, generation, block },
            space: Rc::clone(&self.space),
            journal: Rc::clone(&self.journal),
            id,
            slot,
            committed: false,
        })
    }

    /// The slot holds a node of the index from now on. In one turn with the pointer's change.
    pub(crate) fn commit_slot(&self, mut slot: SlotAllocation) -> Location {
        let seq = self.journal.seq();
        let (member, bucket) = slot.id;
        self.journal.append(&[Record::BucketSlot { member, bucket, slot: slot.slot, used: true }]);
        let mut tables = self.space.tables.borrow_mut();
        tables.bucket(slot.id).slots |= 1 << slot.slot;
        tables.used_slots += 1;
        self.dirty_bucket(&mut tables, slot.id, seq);
        slot.committed = true;
        slot.location
    }

    /// The node at `location` is no longer in the index. In one turn with the pointer's change.
    pub(crate) fn free_slot(&self, location: Location) {
        let seq = self.journal.seq();
        let id = self.space.bucket_of(location.member, location.block);
        let within = location.block - self.space.first_block(id);
        let slot = (within / u64::from(self.space.node_blocks())) as u8;
        let (member, bucket) = id;
        self.journal.append(&[Record::BucketSlot { member, bucket, slot, used: false }]);
        let mut tables = self.space.tables.borrow_mut();
        let state = tables.bucket(id);
        state.slots &= !(1 << slot);
        if planted::is(Bug::SlotFreedTwice) {
            // The lowest that is in use, if there is one.
            state.slots &= state.slots.wrapping_sub(1);
        }
        state.slots_draining |= 1 << slot;
        tables.used_slots -= 1;
        // Entry 0 is durable.
        let durable_with = if planted::is(Bug::EarlySlotReuse) { 0 } else { seq };
        tables.slots_draining.push_back((durable_with, id, slot));
        self.dirty_bucket(&mut tables, id, seq);
    }

    /// Whether the bucket of `pointer` still is what it was when the pointer was made, as far as memory
    /// tells: yes, when its table is not loaded. Checked after a read: the bucket may have been emptied
    /// and reused meanwhile, then look the key up again.
    pub fn pointer_is_current(&self, pointer: &Pointer) -> bool {
        let id = self.space.bucket_of(pointer.member, pointer.block);
        let tables = self.space.tables.borrow();
        match tables.buckets.get(&id) {
            Some(bucket) => {
                bucket.kind == BucketKind::Data && bucket.generation == pointer.generation
            }
            None => tables.unloaded(id).is_some(),
        }
    }

    /// [`Engine::pointer_is_current`] for sure, for when what was read is not what was written.
    pub(crate) async fn pointer_is_surely_current(&self, pointer: &Pointer) -> Result<bool> {
        let id = self.space.bucket_of(pointer.member, pointer.block);
        let region = self.space.tables.borrow().region_of(id);
        match self.pin_region(region).await {
            Ok(_pin) => Ok(self.pointer_is_current(pointer)),
            // Nothing is put in a region whose table cannot be read.
            Err(error) if is_loss(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Checks that a pointer from the index lies within one bucket that data can be in.
    ///
    /// # Errors
    /// `Corrupt` when it does not.
    pub fn check_pointer(&self, pointer: &Pointer, blocks: u32) -> Result<()> {
        self.space.check_pointer(pointer.member, pointer.block, blocks).map(drop)
    }

    /// For errors of operations that find the engine stopped.
    pub(crate) fn stopped(&self) -> Option<StoreError> {
        self.journal.failure()
    }
}
