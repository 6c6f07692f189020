//! A node in memory.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine_memory::alloc_scope;

use super::format::{self, BSET_HEADER_BYTES, Bset, Location, NodePointer, read_bset};
use super::keys::{Keys, Place, Positions};
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::six::SixLock;

/// A node in the cache. Identity and range are fixed; a rewrite makes new nodes.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) tree: Tree,
    pub(crate) level: u8,
    /// First and last position of its range.
    pub(crate) min: Position,
    pub(crate) max: Position,
    pub(crate) lock: SixLock,
    pub(crate) body: RefCell<Body>,
    /// Transactions that would have to start over if it were evicted.
    pub(crate) holders: Cell<u32>,
    /// Tick of the last use, for eviction.
    pub(crate) used: Cell<u64>,
    /// Nodes that had been read in when it came into the cache.
    pub(crate) born: Cell<u64>,
    /// It was used again after others had been read in.
    pub(crate) hot: Cell<bool>,
    /// It is in the cache, which counts it with these bytes: all, and dirty.
    pub(crate) cached: Cell<bool>,
    pub(crate) charged: Cell<(usize, usize)>,
    /// How an iteration has come along.
    pub(crate) scan: Cell<Scan>,
    /// Rewritten, or evicted: no longer what the tree is made of.
    pub(crate) dead: Cell<bool>,
}

/// What changes in a node.
pub(crate) struct Body {
    pub(crate) keys: Keys,
    /// Bytes that the live keys take in a bset.
    pub(crate) live_bytes: usize,
    /// Bytes by which the keys have grown since the last write-out began.
    pub(crate) grown_bytes: u64,
    /// Keys changed since the last write-out began.
    pub(crate) dirty: Positions,
    /// Journal entry that the dirty keys pin.
    pub(crate) dirty_seq: Option<u64>,
    /// Journal entry that a write-out in progress still pins.
    pub(crate) writing_seq: Option<u64>,
    pub(crate) location: Option<Location>,
    pub(crate) written_blocks: u16,
    pub(crate) bsets: u16,
    /// Checksum of the last of them.
    pub(crate) last_crc: u32,
}

/// Notices iterations: keys that are found one after the other.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scan {
    /// Place of the key that comes next, if somebody iterates.
    next: Place,
    /// Keys found in order so far.
    keys: u32,
}

/// Keys found in order that make an iteration.
const SCAN_KEYS: u32 = 16;

/// Keeps a node in the cache.
pub(crate) struct NodePin(Rc<Node>);

impl NodePin {
    pub(crate) fn new(node: Rc<Node>) -> Self {
        node.holders.set(node.holders.get() + 1);
        Self(node)
    }

    pub(crate) fn node(&self) -> &Rc<Node> {
        &self.0
    }
}

impl Drop for NodePin {
    fn drop(&mut self) {
        self.0.holders.set(self.0.holders.get() - 1);
    }
}

impl Node {
    /// A node with these keys; `keys` lie within `min ..= max`.
    pub(crate) fn new(
        identity: (u64, Tree, u8),
        range: (Position, Position),
        keys: Keys,
        lock_sequence: u64,
    ) -> Self {
        let _scope = alloc_scope!("node cache");
        let live_bytes = keys.iter().map(|(_, value)| format::key_bytes(value.len())).sum();
        let body = Body {
            keys,
            live_bytes,
            grown_bytes: 0,
            dirty: Positions::new(),
            dirty_seq: None,
            writing_seq: None,
            location: None,
            written_blocks: 0,
            bsets: 0,
            last_crc: 0,
        };
        Self {
            id: identity.0,
            tree: identity.1,
            level: identity.2,
            min: range.0,
            max: range.1,
            lock: SixLock::new(lock_sequence),
            body: RefCell::new(body),
            holders: Cell::new(0),
            used: Cell::new(0),
            born: Cell::new(0),
            hot: Cell::new(false),
            cached: Cell::new(false),
            charged: Cell::default(),
            scan: Cell::default(),
            dead: Cell::new(false),
        }
    }

    /// Parses the valid part of a node as read from disk.
    ///
    /// # Errors
    /// `Corrupt` when it is not the node that `pointer` (at `max` in its parent) names.
    pub(crate) fn parse(
        bytes: &[u8],
        tree: Tree,
        level: u8,
        pointer: &NodePointer,
        max: Position,
        lock_sequence: u64,
    ) -> Result<Self> {
        let _scope = alloc_scope!("node cache");
        let bad = |why: String| {
            StoreError::corrupt(format!("node {} of tree {tree:?}", pointer.node), why)
        };
        let location = pointer.location.ok_or_else(|| bad("has no place".to_owned()))?;
        let mut keys = Keys::new();
        let (mut at, mut index, mut crc) = (0, 0_u16, 0);
        while at < bytes.len() {
            let offset = location.block * engine_base::BLOCK_SIZE + at as u64;
            let read = read_bset(&bytes[at..], offset, |position, value| {
                match value {
                    Some(value) => keys.insert(position, Value::from_slice(value)),
                    None => keys.remove(&position),
                };
            });
            if planted::is(Bug::StaleNodeAccepted) && index > 0 && read.is_err() {
                at = bytes.len();
                break;
            }
            let Bset { info, blocks, crc: own } = read?;
            let expected = (tree, level, pointer.node, index, pointer.min, max);
            let found = (info.tree, info.level, info.node, info.index, info.min, info.max);
            if found != expected {
                return Err(bad(format!("bset is of another node: {info:?}")));
            }
            if info.previous != crc {
                return Err(bad(format!("bset {index} does not follow the one before it")));
            }
            at += blocks * format::NODE_BLOCK;
            index += 1;
            crc = own;
        }
        if crc != pointer.last_crc && !planted::is(Bug::StaleNodeAccepted) {
            return Err(bad("its last bset is not the one that the parent names".to_owned()));
        }
        if at != bytes.len() || index == 0 {
            return Err(bad("its bsets do not end where the parent says".to_owned()));
        }
        let node = Self::new((pointer.node, tree, level), (pointer.min, max), keys, lock_sequence);
        {
            let mut body = node.body.borrow_mut();
            body.location = Some(location);
            body.written_blocks = pointer.written_blocks;
            body.bsets = index;
            body.last_crc = crc;
        }
        Ok(node)
    }

    /// The pointer by which the parent names this node.
    pub(crate) fn pointer(&self) -> NodePointer {
        let body = self.body.borrow();
        NodePointer {
            node: self.id,
            location: body.location,
            written_blocks: body.written_blocks,
            last_crc: body.last_crc,
            min: self.min,
        }
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let body = self.body.borrow();
        size_of::<Self>() + body.keys.heap_bytes() + body.dirty.heap_bytes()
    }

    /// Notes that a search for the next key found the one at `place`. True once for each iteration
    /// over the node: it is time to read ahead.
    pub(crate) fn is_scanned(&self, place: Place) -> bool {
        let scan = self.scan.get();
        let (run, at) = place;
        let goes_on = place == scan.next || place == (scan.next.0 + 1, 0);
        let keys = if goes_on { scan.keys.saturating_add(1) } else { 0 };
        self.scan.set(Scan { next: (run, at + 1), keys });
        keys == SCAN_KEYS
    }

    /// Whether it holds changes that are not on disk.
    pub(crate) fn is_dirty(&self) -> bool {
        let body = self.body.borrow();
        body.dirty_seq.is_some() || body.writing_seq.is_some()
    }

    /// Changes one key in memory; `sequence` numbers the change. The caller journals it and pins. Gives
    /// the bytes by which the node has grown.
    pub(crate) fn apply(&self, position: Position, value: Option<Value>, sequence: u64) -> u64 {
        assert!(position >= self.min && position <= self.max && !self.dead.get());
        let _scope = alloc_scope!("node cache");
        self.lock.change(sequence);
        let mut body = self.body.borrow_mut();
        let new_bytes = value.as_ref().map_or(0, |value| format::key_bytes(value.len()));
        let old = match value {
            Some(value) => body.keys.insert(position, value),
            None => body.keys.remove(&position),
        };
        let old_bytes = old.as_ref().map_or(0, |old| format::key_bytes(old.len()));
        body.live_bytes = body.live_bytes + new_bytes - old_bytes;
        let grown = new_bytes.saturating_sub(old_bytes) as u64;
        body.grown_bytes += grown;
        body.dirty.insert(position, ());
        grown
    }
}

impl Body {
    /// Bytes that a bset of the dirty keys would take.
    pub(crate) fn dirty_bytes(&self) -> usize {
        let keys = self.dirty.iter().map(|(position, ())| {
            format::key_bytes(self.keys.get(position).map_or(0, |value| value.len()))
        });
        BSET_HEADER_BYTES + keys.sum::<usize>()
    }
}
