//! Keeping the tables of buckets and counters on disk: deltas in the journal, whole states as keys now
//! and then, so that the journal can move on.

use super::format::{BucketCheckpoint, decode_counter, encode_counter};
use super::table::{Bucket, BucketId, Tables};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::journal::{Class, Holder, RecordWriter};
use crate::key::{Counter, Position, Tree, Value};
use crate::times::Timed;

/// Bytes of a checkpoint's journal record.
const CHECKPOINT_BYTES: usize = RecordWriter::put_bytes(40);

impl Engine {
    /// Notes that a bucket differs from its checkpoint since entry `seq`.
    pub(crate) fn dirty_bucket(&self, tables: &mut Tables, id: BucketId, seq: u64) {
        let bucket = tables.bucket(id);
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
        let bucket = tables.bucket(id);
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

    /// Loads the checkpoints; recovery then replays the deltas after them.
    pub(crate) async fn load_checkpoints(&self) -> Result<()> {
        let mut from = Position::MIN;
        while let Some((position, value)) =
            self.read().next(Tree::Buckets, from, Position::MAX).await?
        {
            let state = BucketCheckpoint::decode(&value)?;
            let bad = || StoreError::corrupt("bucket", format!("{position:?} does not exist"));
            let member = u8::try_from(position.inode).map_err(|_| bad())?;
            let id = (member, u32::try_from(position.offset).map_err(|_| bad())?);
            if self.is_left_behind(id, &state) {
                self.stamps.borrow_mut().buckets.insert(id, state.stamp);
                from = position.successor();
                continue;
            }
            self.space.check_pointer(id.0, self.space.first_block(id), 1)?;
            let mut bucket = Bucket::new(state.kind, state.generation);
            bucket.live_blocks = state.live_blocks;
            bucket.slots = state.slots;
            bucket.filled_at = state.filled_at;
            let mut tables = self.space.tables.borrow_mut();
            tables.written_blocks = tables.written_blocks.max(state.filled_at);
            tables.buckets.insert(id, bucket);
            drop(tables);
            self.stamps.borrow_mut().buckets.insert(id, state.stamp);
            from = position.successor();
        }
        let mut from = Position::MIN;
        while let Some((position, value)) =
            self.read().next(Tree::Counters, from, Position::MAX).await?
        {
            let (stamp, value) = decode_counter(&value)?;
            let counter = Counter(position.inode);
            self.counters.borrow_mut().entry(counter).or_default().value = value;
            self.stamps.borrow_mut().counters.insert(counter, stamp);
            from = position.successor();
        }
        Ok(())
    }
}
