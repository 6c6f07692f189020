//! Rewriting nodes: merged into one bset at a new place; split, or joined with a neighbour.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use smallvec::SmallVec;

use super::format::{BSET_HEADER_BYTES, BsetInfo, BsetWriter, Location, POINTER_BYTES, key_bytes};
use super::keys::{Keys, Positions};
use super::node::Node;
use super::writeout::Taken;
use crate::engine::Engine;
use crate::error::Result;
use crate::journal::{Class, Holder, RecordWriter};
use crate::key::{Position, VALUE_BYTES_MAX, Value};
use crate::six::IntentGuard;
use crate::space::{RegionId, RegionPin, SlotAllocation};
use crate::times::{RestartReason, Timed};

/// A node to be: its range and the keys as they were when the rewrite began.
struct Piece {
    id: u64,
    min: Position,
    max: Position,
    keys: Vec<(Position, Value)>,
    slot: Option<SlotAllocation>,
    written_blocks: u16,
    crc: u32,
}

/// A node that is being replaced, held with intent, with what was dirty of it.
struct Old<'n> {
    node: &'n Rc<Node>,
    _intent: IntentGuard<'n>,
    taken: Taken,
}

/// Memory by which keys grow when they are cut in two, at most: their runs have room to grow at once.
const CUT_BYTES: usize = 16 << 10;

/// What was in nodes that are being replaced.
#[derive(Default)]
struct Emptied {
    keys: Keys,
    dirty: Positions,
    dirty_seq: Option<u64>,
    grown_bytes: u64,
}

/// Bytes that a bucket slot record takes, with room to spare.
const SLOT_RECORD_BYTES: usize = 16;

impl Engine {
    /// Replaces `node`, possibly with a neighbour, by freshly written nodes.
    ///
    /// # Errors
    /// When there is no place that can be written; everything is as before then.
    pub(crate) async fn rewrite(&self, node: &Rc<Node>, intent: IntentGuard<'_>) -> Result<()> {
        let neighbour = self.neighbour_to_join(node);
        let mut olds = vec![Old { node, _intent: intent, taken: self.take_dirty(node) }];
        if let Some(other) = neighbour.as_ref()
            && let Some(intent) = other.lock.try_intent()
        {
            let old = Old { node: other, _intent: intent, taken: self.take_dirty(other) };
            if other.max < node.min { olds.insert(0, old) } else { olds.push(old) }
        }
        let mut pieces = self.cut_pieces(&olds);
        let result = match self.write_pieces(node, &mut pieces).await {
            Ok(()) => self.admit_replacement(&olds, pieces.len()).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(parent) => {
                self.replace(olds, pieces, parent);
                Ok(())
            }
            Err(error) => {
                for old in olds {
                    self.restore_dirty(old.node, old.taken);
                }
                Err(error)
            }
        }
    }

    /// A cached neighbour under the same parent that fits one node together with a small `node`.
    fn neighbour_to_join(&self, node: &Rc<Node>) -> Option<Rc<Node>> {
        let node_bytes = self.superblock().node_bytes as usize;
        let live = node.body.borrow().live_bytes;
        if live >= node_bytes / 8 || self.is_root(node) {
            return None;
        }
        let parent = self.parent_of(node).ok()?;
        if parent.lock.intent_held() {
            return None;
        }
        let body = parent.body.borrow();
        let right = body.keys.next(node.max.successor(), Position::MAX);
        let left = body.keys.previous(Position::MIN, node.max.predecessor());
        let candidates = [right, left];
        let fits = |other: &Rc<Node>| {
            let body = other.body.borrow();
            other.id != node.id
                && !other.lock.intent_held()
                && body.location.is_some()
                && live + body.live_bytes < node_bytes / 2
        };
        candidates
            .into_iter()
            .flatten()
            .filter_map(|(_, value)| super::format::NodePointer::decode(value).ok())
            .filter_map(|pointer| self.cache.get(pointer.node))
            .find(|other| fits(other))
    }

    /// Cuts the keys of the old nodes into pieces that leave room to append.
    fn cut_pieces(&self, olds: &[Old<'_>]) -> Vec<Piece> {
        let node_bytes = self.superblock().node_bytes as usize;
        let live: usize = olds.iter().map(|old| old.node.body.borrow().live_bytes).sum();
        let count = if live <= node_bytes * 3 / 4 { 1 } else { live.div_ceil(node_bytes / 2) };
        // A piece is at most this long, or one key: what does not fit makes one piece more.
        let goal = live.div_ceil(count).max(key_bytes(VALUE_BYTES_MAX));
        let (min, max) = (olds[0].node.min, olds[olds.len() - 1].node.max);
        let mut pieces = Vec::with_capacity(count);
        let mut keys = Vec::new();
        let (mut bytes, mut start) = (0, min);
        for old in olds {
            for (position, value) in old.node.body.borrow().keys.iter() {
                let more = key_bytes(value.len());
                // A piece ends at a key, so that in interior nodes no child's range is cut.
                if let Some(end) = keys.last().map(|(position, _): &(Position, Value)| *position)
                    && bytes + more > goal
                {
                    pieces.push(self.new_piece(start, end, std::mem::take(&mut keys)));
                    (bytes, start) = (0, end.successor());
                }
                bytes += more;
                keys.push((*position, value.clone()));
            }
        }
        pieces.push(self.new_piece(start, max, keys));
        pieces
    }

    fn new_piece(&self, min: Position, max: Position, keys: Vec<(Position, Value)>) -> Piece {
        Piece { id: self.new_node_id(), min, max, keys, slot: None, written_blocks: 0, crc: 0 }
    }

    async fn write_pieces(&self, node: &Node, pieces: &mut [Piece]) -> Result<()> {
        for piece in pieces {
            let mut tries = 0;
            loop {
                let slot = self.allocate_slot().await?;
                let slot_block = slot.location.block;
                let offset = slot_block * BLOCK_SIZE;
                let mut writer = BsetWriter::new();
                for (position, value) in &piece.keys {
                    writer.push(*position, Some(&value[..]));
                }
                assert!(writer.len() <= self.superblock().node_bytes as usize);
                let info = BsetInfo {
                    tree: node.tree,
                    level: node.level,
                    node: piece.id,
                    index: 0,
                    previous: 0,
                    journal_seq: self.journal.seq(),
                    min: piece.min,
                    max: piece.max,
                };
                let (bset, crc) = writer.seal(&info, offset);
                piece.crc = crc;
                piece.written_blocks = (bset.len() as u64 / BLOCK_SIZE) as u16;
                let written = self.write_bytes(slot.location.member, offset, &bset).await;
                piece.slot = Some(slot);
                match written {
                    Ok(()) => break,
                    Err(error) if tries == 2 => return Err(error),
                    Err(error) => {
                        let (shard, block) = (self.shard().0, slot_block);
                        tracing::debug!(shard, block, %error, "node not written, another place");
                        tries += 1;
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until the replacement may be made in this turn; gives the parent, `None` for a root.
    async fn admit_replacement(&self, olds: &[Old<'_>], pieces: usize) -> Result<Option<Rc<Node>>> {
        let each = RecordWriter::put_bytes(POINTER_BYTES) + SLOT_RECORD_BYTES;
        let bytes = (olds.len() + pieces) * each;
        let mut pins: SmallVec<[RegionPin; 2]> = SmallVec::new();
        loop {
            self.journal.admit(bytes, Class::Reclaim).await?;
            if let Some(region) = self.unloaded_place(olds) {
                pins.push(self.pin_region(region).await?);
                continue;
            }
            if let Some(old) = olds.iter().find(|old| !old.node.lock.can_change()) {
                self.waits.on(Timed::BlockedNodeLock, old.node.lock.released()).await;
                continue;
            }
            if self.is_root(olds[0].node) {
                return Ok(None);
            }
            let parent = self.parent_of(olds[0].node)?;
            // Joined nodes must still have one parent: it may have been split meanwhile. And a parent
            // that is being split is cut at keys which a join would take away.
            let within = |old: &Old<'_>| parent.min <= old.node.min && old.node.max <= parent.max;
            if !olds.iter().all(within) {
                return Err(self.waits.restart(RestartReason::JoinLostParent));
            }
            if !parent.lock.can_change() || (olds.len() > 1 && parent.lock.intent_held()) {
                self.waits.on(Timed::BlockedNodeLock, parent.lock.released()).await;
                continue;
            }
            return Ok(Some(parent));
        }
    }

    /// The region of a place that is to be freed, if its table is not loaded.
    fn unloaded_place(&self, olds: &[Old<'_>]) -> Option<RegionId> {
        let tables = self.space.tables.borrow();
        olds.iter().find_map(|old| {
            let location = old.node.body.borrow().location?;
            tables.unloaded(self.space.bucket_of(location.member, location.block))
        })
    }

    /// The moment of replacement: one turn, no wait.
    fn replace(&self, olds: Vec<Old<'_>>, pieces: Vec<Piece>, parent: Option<Rc<Node>>) {
        let single = pieces.len() == 1;
        let joined = olds.len() > 1;
        let (tree, level) = (olds[0].node.tree, olds[0].node.level);
        self.cache.evict(pieces.len() * CUT_BYTES);
        let Emptied { mut keys, mut dirty, dirty_seq, grown_bytes } = self.empty(&olds);
        let mut news = Vec::with_capacity(pieces.len());
        for piece in pieces.into_iter().rev() {
            let own_keys = keys.split_off(&piece.min);
            let own_dirty = dirty.split_off(&piece.min);
            let identity = (piece.id, tree, level);
            let tick = self.cache.next_tick();
            let node = Node::new(identity, (piece.min, piece.max), own_keys, tick);
            let Some(slot) = piece.slot else {
                unreachable!("every piece was written");
            };
            let location: Location = self.commit_slot(slot);
            let mut body = node.body.borrow_mut();
            body.location = Some(location);
            body.written_blocks = piece.written_blocks;
            body.last_crc = piece.crc;
            body.bsets = 1;
            if let Some(seq) = dirty_seq
                && !own_dirty.is_empty()
            {
                body.dirty_seq = Some(seq);
                self.journal.pin(seq, Holder::Node(node.id));
            }
            body.dirty = own_dirty;
            drop(body);
            news.push(Rc::new(node));
        }
        assert!(keys.is_empty() && dirty.is_empty());
        news.reverse();
        news[0].body.borrow_mut().grown_bytes = grown_bytes;
        for new in &news {
            self.cache.insert(new);
        }
        self.swap_pointers(&olds, &news, parent);
        for old in olds {
            self.retire(old);
        }
        self.cache.rewrites.set(self.cache.rewrites.get() + 1);
        if joined {
            self.cache.merges.set(self.cache.merges.get() + 1);
        }
        if !single {
            self.cache.splits.set(self.cache.splits.get() + 1);
        }
    }

    /// Takes the current keys, and what became dirty since the rewrite began: they go on in new nodes.
    fn empty(&self, olds: &[Old<'_>]) -> Emptied {
        let mut all = Emptied::default();
        for old in olds {
            let mut body = old.node.body.borrow_mut();
            all.keys.append(&mut body.keys);
            all.dirty.append(&mut body.dirty);
            all.grown_bytes += body.grown_bytes;
            if let Some(seq) = body.dirty_seq.take() {
                self.journal.unpin(seq, Holder::Node(old.node.id));
                all.dirty_seq = Some(all.dirty_seq.map_or(seq, |oldest| oldest.min(seq)));
            }
            drop(body);
            self.cache.account(old.node);
        }
        all
    }

    /// Makes the tree point to the new nodes.
    fn swap_pointers(&self, olds: &[Old<'_>], news: &[Rc<Node>], parent: Option<Rc<Node>>) {
        let (node, shard) = (olds[0].node, self.shard().0);
        let (tree, level, from, to) = (node.tree, node.level, olds.len(), news.len());
        tracing::debug!(shard, ?tree, level, node = node.id, from, to, "nodes rewritten");
        match parent {
            Some(parent) => {
                for old in &olds[..olds.len() - 1] {
                    self.apply_at(&parent, old.node.max, None);
                }
                for new in news {
                    self.apply_at(&parent, new.max, Some(new.pointer().encode()));
                }
            }
            None if news.len() == 1 => self.cache.set_root(&news[0]),
            None => self.grow_root(news),
        }
    }

    /// Gives up a node that is no longer in the tree.
    fn retire(&self, old: Old<'_>) {
        let location = old.node.body.borrow().location;
        if let Some(location) = location {
            self.free_slot(location);
        }
        self.cache.remove(old.node);
        self.journal.unpin(old.taken.seq, Holder::NodeWriting(old.node.id));
        self.note_written(old.taken.grown_bytes);
    }

    /// Puts a new root above nodes that replace the old one. Its keys are in the journal only.
    fn grow_root(&self, children: &[Rc<Node>]) {
        let first = &children[0];
        let (shard, level) = (self.shard().0, first.level + 1);
        tracing::debug!(shard, tree = ?first.tree, level, "a tree grows");
        let identity = (self.new_node_id(), first.tree, first.level + 1);
        let range = (Position::MIN, Position::MAX);
        let root = Rc::new(Node::new(identity, range, Keys::new(), self.cache.next_tick()));
        self.cache.set_root(&root);
        for child in children {
            self.apply_at(&root, child.max, Some(child.pointer().encode()));
        }
    }
}

// The longest piece (half of the smallest node, see cut_pieces) fits its node.
const _: () = assert!(BSET_HEADER_BYTES + 8 * 1024 + key_bytes(VALUE_BYTES_MAX) <= 16 * 1024);
