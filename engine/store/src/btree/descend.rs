//! Finding nodes, and reading them in.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::QueueExt;
use engine_memory::Buffer;

use super::cache::Cache;
use super::format::NodePointer;
use super::keys::Keys;
use super::node::{Node, NodePin};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree};
use crate::times::Timed;

/// What a look at the cache gave.
pub(crate) enum Found {
    /// The node.
    Node(Rc<Node>),
    /// One on the way to it has to be read in first.
    Missing(Missing),
}

/// A node that is not cached.
pub(crate) struct Missing {
    tree: Tree,
    level: u8,
    pointer: NodePointer,
    max: Position,
}

impl Missing {
    /// First and last position of the node's range.
    pub(crate) fn range(&self) -> (Position, Position) {
        (self.pointer.min, self.max)
    }

    /// Its level.
    pub(crate) fn level(&self) -> u8 {
        self.level
    }

    /// What it will take in memory, about: on disk, twice for the map around the keys.
    fn memory_bytes(&self) -> usize {
        usize::from(self.pointer.written_blocks) * BLOCK_SIZE as usize * 2 + size_of::<Node>()
    }

    /// Its identity.
    pub(crate) fn node(&self) -> u64 {
        self.pointer.node
    }
}

/// Times a node is read again before its content is believed to be bad.
const READ_RETRIES: u32 = 2;

impl Engine {
    /// Looks for the node at `level` whose range holds `position`, in the cache only.
    ///
    /// # Errors
    /// `Corrupt` when an interior node does not cover its range.
    pub(crate) fn descend(&self, tree: Tree, level: u8, position: Position) -> Result<Found> {
        let mut node = self.cache.root(tree);
        if level > node.level {
            return Err(StoreError::corrupt(
                format!("tree {tree:?}"),
                format!("level {level} is asked for, the root is at {}", node.level),
            ));
        }
        while node.level > level {
            let (max, pointer) = child_for(&node, position)?;
            match self.cache.get(pointer.node) {
                Some(child) => {
                    node.used.set(self.cache.next_tick());
                    node = child;
                }
                None => {
                    let level = node.level - 1;
                    return Ok(Found::Missing(Missing { tree, level, pointer, max }));
                }
            }
        }
        self.cache.used(&node);
        Ok(Found::Node(node))
    }

    /// The node at `level` whose range holds `position`; reads in what is missing.
    ///
    /// # Errors
    /// When a node cannot be read or is corrupt.
    pub(crate) async fn node_for(
        &self,
        tree: Tree,
        level: u8,
        position: Position,
    ) -> Result<Rc<Node>> {
        let mut missed = false;
        let mut _read = None;
        loop {
            match self.descend(tree, level, position)? {
                Found::Node(node) => {
                    if !missed {
                        self.cache.hits.set(self.cache.hits.get() + 1);
                    }
                    return Ok(node);
                }
                Found::Missing(missing) => {
                    self.cache.misses.set(self.cache.misses.get() + u64::from(!missed));
                    missed = true;
                    // Boxed, as all that is rare and large in reads and writes: their futures are moved often.
                    _read = Box::pin(self.read_in(missing)).await?;
                }
            }
        }
    }

    /// Reads a node into the cache, or waits: for who does already, or for memory. The caller looks again
    /// from the root, and does so in the turn in which it calls: what it found may change while it waits. It
    /// keeps what it gets until then, so that the node is not evicted before it comes to use it.
    pub(crate) async fn read_in(&self, missing: Missing) -> Result<Option<NodePin>> {
        let id = missing.pointer.node;
        let bytes = missing.memory_bytes();
        // Who waits is woken for each node that is read, and goes on when it is its turn.
        if !self.cache.may_read(bytes) {
            self.wait_for_read(|cache| cache.may_read(bytes)).await;
            return Ok(None);
        }
        if !self.cache.reading.borrow_mut().insert(id) {
            self.wait_for_read(|cache| !cache.reading.borrow().contains(&id)).await;
            return Ok(None);
        }
        self.cache.evict(bytes);
        self.cache.reading_bytes.set(self.cache.reading_bytes.get() + bytes);
        self.cache.note_peak();
        let done = ReadDone { engine: self, id, bytes };
        let _timed = self.waits.start(Timed::NodeRead);
        let mut tries = 0;
        let node = loop {
            match self.read_node(&missing).await {
                Ok(node) => break node,
                Err(error) if tries >= READ_RETRIES => return Err(error),
                Err(error) => {
                    tracing::debug!(shard = self.shard().0, node = id, %error, "node read again");
                    tries += 1;
                }
            }
        };
        tracing::trace!(shard = self.shard().0, node = id, "node read");
        drop(done);
        // An ancestor may have been evicted meanwhile; nothing else can have come in its place.
        if let Found::Missing(now) = self.descend(missing.tree, missing.level, missing.max)?
            && now.pointer.node == id
        {
            let node = Rc::new(node);
            self.cache.insert_read(&node);
            return Ok(Some(NodePin::new(node)));
        }
        Ok(None)
    }

    async fn wait_for_read(&self, over: impl Fn(&Cache) -> bool) {
        while !over(&self.cache) {
            self.waits.on(Timed::BlockedNodeRead, self.cache.read_done.notified()).await;
        }
    }

    /// [`Engine::read_in`] where it need not wait, else nothing.
    pub(crate) async fn read_in_at_once(&self, missing: Missing) -> Result<Option<NodePin>> {
        let busy = self.cache.reading.borrow().contains(&missing.pointer.node);
        if busy || !self.cache.may_read(missing.memory_bytes()) {
            return Ok(None);
        }
        self.read_in(missing).await
    }

    /// The root that a journal entry names: read in, or empty when it was never written.
    pub(crate) async fn read_root(
        &self,
        tree: Tree,
        level: u8,
        pointer: NodePointer,
    ) -> Result<Node> {
        let max = Position::MAX;
        if pointer.location.is_some() {
            return self.read_node(&Missing { tree, level, pointer, max }).await;
        }
        let identity = (pointer.node, tree, level);
        let range = (Position::MIN, max);
        Ok(Node::new(identity, range, Keys::new(), self.cache.next_tick()))
    }

    async fn read_node(&self, missing: &Missing) -> Result<Node> {
        let Missing { tree, level, ref pointer, max } = *missing;
        let Some(location) = pointer.location else {
            return Err(StoreError::corrupt(
                format!("node {} of tree {tree:?}", pointer.node),
                "is not cached and was never written",
            ));
        };
        let len = usize::from(pointer.written_blocks) * BLOCK_SIZE as usize;
        if len > self.superblock().node_bytes as usize {
            return Err(StoreError::corrupt("node pointer", "is longer than a node"));
        }
        let offset = location.block.saturating_mul(BLOCK_SIZE);
        let member = self.member(location.member)?;
        // What tells of space is read to write out nodes, which must go on when memory is refused.
        let of_space = matches!(tree, Tree::Buckets | Tree::Tallies | Tree::Counters);
        let buffer = match of_space {
            true => self.read_reserve.buffer(len)?,
            false => Buffer::try_new(len)?,
        };
        let bytes = member.read(offset, buffer).await?;
        let node = Node::parse(&bytes[..len], tree, level, pointer, max, self.cache.next_tick())
            .map_err(|error| {
                let (device, min) = (&member.info().name, pointer.min);
                StoreError::corrupt(
                    format!("node {} of tree {tree:?} at level {level}", pointer.node),
                    format!("keys {min:?} to {max:?}, at byte {offset} of {device}: {error}"),
                )
            });
        if of_space {
            self.read_reserve.give_back(bytes);
        }
        node
    }
}

/// Ends the reading of a node, also when the task that reads is dropped.
struct ReadDone<'e> {
    engine: &'e Engine,
    id: u64,
    bytes: usize,
}

impl Drop for ReadDone<'_> {
    fn drop(&mut self) {
        let cache = &self.engine.cache;
        cache.reading.borrow_mut().remove(&self.id);
        cache.reading_bytes.set(cache.reading_bytes.get() - self.bytes);
        cache.read_done.notify_all();
    }
}

/// The child of an interior node whose range holds `position`: (its last position, pointer).
fn child_for(node: &Node, position: Position) -> Result<(Position, NodePointer)> {
    let body = node.body.borrow();
    let Some((max, value)) = body.keys.next(position, Position::MAX) else {
        return Err(StoreError::corrupt(
            format!("node {} of tree {:?}", node.id, node.tree),
            format!("no child covers {position:?}"),
        ));
    };
    let pointer = NodePointer::decode(value)?;
    if pointer.min > position {
        return Err(StoreError::corrupt(
            format!("node {} of tree {:?}", node.id, node.tree),
            format!("children leave a gap at {position:?}"),
        ));
    }
    Ok((*max, pointer))
}
