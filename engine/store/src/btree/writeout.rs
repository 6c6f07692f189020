//! Writing dirty nodes: by one more bset where there is room, else by a rewrite.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::{IoVec, QueueExt};

use super::descend::Found;
use super::format::{BsetInfo, BsetWriter, NODE_BLOCK, POINTER_BYTES};
use super::keys::Positions;
use super::node::Node;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::journal::{Class, Holder, RecordWriter};
use crate::planted::{self, Bug};
use crate::times::Timed;

/// What a write-out took from a node: given back to it when the write fails.
pub(crate) struct Taken {
    pub(crate) positions: Positions,
    pub(crate) seq: u64,
    pub(crate) grown_bytes: u64,
}

impl Engine {
    /// Writes what is dirty of `node`. Done when it returns: the parent's pointer is changed in
    /// memory and in the journal's buffer.
    ///
    /// # Errors
    /// When devices fail everywhere; the node is as dirty as before.
    pub(crate) async fn write_out(&self, node: &Rc<Node>) -> Result<()> {
        let intent = self.waits.on(Timed::BlockedNodeLock, node.lock.intent()).await;
        if node.dead.get() || !node.is_dirty() {
            return Ok(());
        }
        let _timed = self.waits.start(Timed::NodeWrite);
        if self.must_rewrite(node) {
            return self.rewrite(node, intent).await;
        }
        match self.append(node).await {
            // The place is bad, or the device had a moment: another place may do.
            Err(StoreError::Device(error)) => {
                let (shard, id) = (self.shard().0, node.id);
                tracing::debug!(shard, node = id, %error, "node not appended to: rewritten");
                self.rewrite(node, intent).await
            }
            result => result,
        }
    }

    /// Whether the dirty keys do not fit behind the bsets, or the node is large or small enough to
    /// be split or joined.
    fn must_rewrite(&self, node: &Node) -> bool {
        let body = node.body.borrow();
        let node_bytes = self.superblock().node_bytes as usize;
        let node_blocks = node_bytes / NODE_BLOCK;
        let room = node_blocks - usize::from(body.written_blocks);
        body.location.is_none()
            || body.dirty_bytes().div_ceil(NODE_BLOCK) > room
            || body.live_bytes > node_bytes * 3 / 4
            || (body.live_bytes < node_bytes / 16
                && usize::from(body.written_blocks) * 2 > node_blocks)
    }

    /// Takes the dirty keys of a node for a write-out.
    pub(crate) fn take_dirty(&self, node: &Node) -> Taken {
        let mut body = node.body.borrow_mut();
        let positions = std::mem::take(&mut body.dirty);
        assert!(body.writing_seq.is_none(), "two write-outs of one node");
        // A node that is rewritten for its size may have nothing dirty of its own.
        let seq = body.dirty_seq.take();
        if let Some(seq) = seq {
            self.journal.unpin(seq, Holder::Node(node.id));
        }
        let seq = seq.unwrap_or_else(|| self.journal.seq());
        body.writing_seq = Some(seq);
        self.journal.pin(seq, Holder::NodeWriting(node.id));
        let grown_bytes = std::mem::take(&mut body.grown_bytes);
        drop(body);
        self.cache.account(node);
        Taken { positions, seq, grown_bytes }
    }

    /// Puts back what [`Engine::take_dirty`] took: the write-out failed.
    pub(crate) fn restore_dirty(&self, node: &Node, taken: Taken) {
        let mut body = node.body.borrow_mut();
        for (position, ()) in taken.positions.iter() {
            body.dirty.insert(*position, ());
        }
        body.grown_bytes += taken.grown_bytes;
        body.writing_seq = None;
        self.journal.unpin(taken.seq, Holder::NodeWriting(node.id));
        if let Some(seq) = body.dirty_seq.take() {
            self.journal.unpin(seq, Holder::Node(node.id));
        }
        body.dirty_seq = Some(taken.seq);
        self.journal.pin(taken.seq, Holder::Node(node.id));
        drop(body);
        self.cache.account(node);
    }

    async fn append(&self, node: &Rc<Node>) -> Result<()> {
        let taken = self.take_dirty(node);
        let (member, offset, (bset, crc)) = {
            let body = node.body.borrow();
            let Some(location) = body.location else {
                unreachable!("only nodes with a place are appended to");
            };
            let offset = (location.block + u64::from(body.written_blocks)) * BLOCK_SIZE;
            let mut writer = BsetWriter::new();
            for (position, ()) in taken.positions.iter() {
                writer.push(*position, body.keys.get(position).map(|value| &value[..]));
            }
            let info = BsetInfo {
                tree: node.tree,
                level: node.level,
                node: node.id,
                index: body.bsets,
                previous: body.last_crc,
                journal_seq: self.journal.seq(),
                min: node.min,
                max: node.max,
            };
            (location.member, offset, writer.seal(&info, offset))
        };
        let blocks = (bset.len() / NODE_BLOCK) as u16;
        let (shard, id) = (self.shard().0, node.id);
        tracing::trace!(shard, tree = ?node.tree, node = id, blocks, "appended to a node");
        let written = self.write_bytes(member, offset, &bset).await;
        let parent = match written {
            Ok(()) => self.admit_pointer_change(node).await,
            Err(error) => Err(error),
        };
        let parent = match parent {
            Ok(parent) => parent,
            Err(error) => {
                self.restore_dirty(node, taken);
                return Err(error);
            }
        };
        {
            let mut body = node.body.borrow_mut();
            if !planted::is(Bug::LostNodeAppend) {
                body.written_blocks += blocks;
                body.bsets += 1;
                body.last_crc = crc;
            }
            body.writing_seq = None;
        }
        self.cache.account(node);
        self.cache.evict(0);
        if let Some(parent) = parent {
            let pointer = node.pointer().encode();
            self.apply_at(&parent, node.max, Some(pointer));
        }
        self.journal.unpin(taken.seq, Holder::NodeWriting(node.id));
        self.note_written(taken.grown_bytes);
        self.cache.appends.set(self.cache.appends.get() + 1);
        Ok(())
    }

    /// Growth that is in nodes on disk now is no longer to come.
    pub(crate) fn note_written(&self, grown_bytes: u64) {
        let left = self.cache.unwritten_bytes.get().saturating_sub(grown_bytes);
        self.cache.unwritten_bytes.set(left);
    }

    /// Waits until the parent of `node` may be changed by one pointer; the change must follow in the
    /// same turn. `None`: it is the root, whose pointer goes into every journal entry.
    async fn admit_pointer_change(&self, node: &Node) -> Result<Option<Rc<Node>>> {
        loop {
            self.journal.admit(RecordWriter::put_bytes(POINTER_BYTES), Class::Reclaim).await?;
            if self.is_root(node) {
                return Ok(None);
            }
            let parent = self.parent_of(node)?;
            if parent.lock.can_change() {
                return Ok(Some(parent));
            }
            self.waits.on(Timed::BlockedNodeLock, parent.lock.released()).await;
        }
    }

    /// Whether `node` is the root of its tree.
    pub(crate) fn is_root(&self, node: &Node) -> bool {
        self.cache.root(node.tree).id == node.id
    }

    /// The parent of a cached node that is not the root: cached as well.
    pub(crate) fn parent_of(&self, node: &Node) -> Result<Rc<Node>> {
        match self.descend(node.tree, node.level + 1, node.max)? {
            Found::Node(parent) => Ok(parent),
            Found::Missing(_) => Err(StoreError::corrupt(
                format!("cache of tree {:?}", node.tree),
                "an ancestor of a cached node is not cached",
            )),
        }
    }

    /// Writes bytes at a byte offset of a member, not durably.
    pub(crate) async fn write_bytes(&self, member: u8, offset: u64, bytes: &[u8]) -> Result<()> {
        let copy = self.reserve.copy_of(bytes).await?;
        let data = IoVec::from_iter([copy.data()]);
        self.member(member)?.write(offset, data, false).await?;
        self.journal.note_written(member);
        Ok(())
    }
}
