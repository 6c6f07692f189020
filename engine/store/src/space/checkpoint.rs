//! Keeping the tables of buckets and counters on disk: deltas in the journal, whole states as keys now
//! and then, so that the journal can move on.

use super::format::{BucketCheckpoint, Tally, decode_counter, encode_counter};
use super::table::{Bucket, BucketId, RegionId, Tables};
use crate::api::Region;
use crate::engine::Engine;
use crate::error::Result;
use crate::journal::{Class, Holder, RecordWriter};
use crate::key::{Counter, Position, Tree, Value};
use crate::times::Timed;

/// Bytes of a checkpoint's journal record.
const CHECKPOINT_BYTES: usize = RecordWriter::put_bytes(48);

impl Engine {
    /// Notes that a bucket differs from its checkpoint since entry `seq`.
    pub(crate) fn dirty_bucket(&self, tables: &mut Tables, id: BucketId, seq: u64) {
        self.pin_bucket(id, tables.bucket(id), seq);
        let region = tables.region_of(id);
        self.dirty_region(tables, region, seq);
    }

    /// The part of [`Engine::dirty_bucket`] that concerns the bucket itself.
    pub(crate) fn pin_bucket(&self, id: BucketId, bucket: &mut Bucket, seq: u64) {
        if bucket.dirty_seq.is_none() {
            bucket.dirty_seq = Some(seq);
            self.journal.pin(seq, Holder::Bucket(id.0, id.1));
        }
    }

    /// Writes the state of a bucket into the buckets tree.
    pub(crate) async fn checkpoint_bucket(&self, id: BucketId) -> Result<()> {
        let position = Position::new(u64::from(id.0), u64::from(id.1), 0);
        let node = self.admit_key(Tree::Buckets, position, CHECKPOINT_BYTES).await?;
        let stamp = self.journal.stamp();
        let mut tables = self.space.tables.borrow_mut();
        let Some(bucket) = tables.buckets.get_mut(&id) else { return Ok(()) };
        let Some(seq) = bucket.dirty_seq.take() else { return Ok(()) };
        let state = BucketCheckpoint {
            stamp,
            generation: bucket.generation,
            live_blocks: bucket.live_blocks,
            slots: bucket.slots,
            kind: bucket.kind,
            filled_at: bucket.filled_at,
        };
        drop(tables);
        self.apply_at(&node, position, Some(state.encode()));
        self.journal.unpin(seq, Holder::Bucket(id.0, id.1));
        Ok(())
    }

    /// Writes the tally of a region into its tree; none of one that holds nothing.
    pub(crate) async fn checkpoint_region(&self, region: RegionId) -> Result<()> {
        let position = Position::new(u64::from(region.0), u64::from(region.1), 0);
        let node = self.admit_key(Tree::Tallies, position, CHECKPOINT_BYTES).await?;
        let mut tables = self.space.tables.borrow_mut();
        let Some((seq, tally)) = tables.take_dirty_tally(region) else { return Ok(()) };
        drop(tables);
        let value = (tally.used_buckets() > 0).then(|| tally.encode());
        let known = node.body.borrow().keys.get(&position).is_some();
        if value.is_some() || known {
            self.apply_at(&node, position, value);
        }
        self.journal.unpin(seq, Holder::Region(region.0, region.1));
        Ok(())
    }

    /// Writes a counter into the counters tree.
    pub(crate) async fn checkpoint_counter(&self, counter: Counter) -> Result<()> {
        let position = Position::new(counter.0, 0, 0);
        let node = self.admit_key(Tree::Counters, position, CHECKPOINT_BYTES).await?;
        let stamp = self.journal.stamp();
        let mut counters = self.counters.borrow_mut();
        let Some(state) = counters.get_mut(&counter) else { return Ok(()) };
        let Some(seq) = state.dirty_seq.take() else { return Ok(()) };
        let value = state.value;
        drop(counters);
        self.apply_at(&node, position, Some(encode_counter(stamp, value)));
        self.journal.unpin(seq, Holder::Counter(counter.0));
        Ok(())
    }

    /// Sets a key without counting what that does to space: for repairs, which count afterwards.
    pub(crate) async fn set_key(
        &self,
        tree: Tree,
        position: Position,
        value: Option<Value>,
    ) -> Result<()> {
        let bytes = RecordWriter::put_bytes(value.as_ref().map_or(0, |value| value.len()));
        let node = self.admit_key(tree, position, bytes).await?;
        self.apply_at(&node, position, value);
        self.commits.set(self.commits.get() + 1);
        Ok(())
    }

    /// Waits until the leaf for a key may be changed in this turn.
    async fn admit_key(
        &self,
        tree: Tree,
        position: Position,
        bytes: usize,
    ) -> Result<std::rc::Rc<crate::btree::Node>> {
        loop {
            let node = self.node_for(tree, 0, position).await?;
            if !node.lock.can_change() {
                self.waits.on(Timed::BlockedNodeLock, node.lock.released()).await;
                continue;
            }
            if self.journal.has_room(bytes, Class::Reclaim) {
                return Ok(node);
            }
            self.journal.admit(bytes, Class::Reclaim).await?;
        }
    }

    /// Loads the tallies of regions, as they are on disk.
    pub(crate) async fn load_tallies(&self) -> Result<()> {
        let mut from = Position::MIN;
        while let Some((position, value)) =
            self.read().next(Tree::Tallies, from, Position::MAX).await?
        {
            from = position.successor();
            let region = self.region_at(position)?;
            if !self.is_within(region) {
                continue;
            }
            let tally = Tally::decode(&value)?;
            let mut tables = self.space.tables.borrow_mut();
            tables.written_blocks = tables.written_blocks.max(tally.newest);
            tables.know((region.member, region.index), tally);
        }
        Ok(())
    }

    /// Takes in the table of a region as its checkpoints say, for recovery to replay the deltas
    /// after them. Of buckets that a member lost when it was shrunk only the stamps count.
    pub(crate) async fn load_for_replay(&self, region: RegionId) -> Result<()> {
        if self.space.tables.borrow().known.is_loaded(region) {
            return Ok(());
        }
        let (states, left_behind) = self.read_region(region).await?;
        let mut tables = self.space.tables.borrow_mut();
        let mut stamps = self.stamps.borrow_mut();
        stamps.buckets.extend(left_behind);
        if !self.is_within(Region { member: region.0, index: region.1 }) {
            return Ok(());
        }
        for (id, state) in &states {
            tables.written_blocks = tables.written_blocks.max(state.filled_at);
            tables.take_checkpoint(*id, state);
            stamps.buckets.insert(*id, state.stamp);
        }
        tables.mark_loaded(region);
        Ok(())
    }

    /// The regions of all buckets that have a checkpoint: reads the whole buckets tree.
    pub(crate) async fn regions_with_checkpoints(&self) -> Result<Vec<RegionId>> {
        let mut regions = Vec::new();
        let mut from = Position::MIN;
        while let Some((position, _)) = self.read().next(Tree::Buckets, from, Position::MAX).await?
        {
            let id = self.bucket_at(position)?;
            let tables = self.space.tables.borrow();
            let region = tables.region_of(id);
            let next = (u64::from(region.1) + 1) * u64::from(tables.region_buckets);
            regions.push(region);
            from = Position::new(position.inode, next, 0);
        }
        Ok(regions)
    }

    /// Loads the checkpoints of counters; recovery then replays the deltas after them.
    pub(crate) async fn load_counters(&self) -> Result<()> {
        let mut from = Position::MIN;
        while let Some((position, value)) =
            self.read().next(Tree::Counters, from, Position::MAX).await?
        {
            let (stamp, value) = decode_counter(&value)?;
            let counter = Counter(position.inode);
            self.counters.borrow_mut().entry(counter).or_default().value = value;
            self.space.note_counter(counter, value);
            if counter.is_saved_blocks() {
                let saved = &self.space.saved_blocks;
                saved.set(saved.get().wrapping_add(value));
            }
            self.stamps.borrow_mut().counters.insert(counter, stamp);
            from = position.successor();
        }
        Ok(())
    }
}
