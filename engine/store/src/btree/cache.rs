//! Nodes in memory, and the roots.
//!
//! Memory is bounded: what the cached nodes take, and what is set aside for those being read, is at most
//! [`Cache::set_bytes_max`]. To keep to it, clean nodes are evicted before one is read in, and few are read
//! in at a time; dirty ones are written out from a quarter of the bound on, and commits of clients wait
//! while they take more than half. What a transaction has in use stays beyond that: a few leaves for each
//! operation that goes on, whose number admission bounds; and a leaf that tells of space, which a write-out needs to
//! make room.
//!
//! An iteration does not throw out what is used again and again: a node begins *cold* and becomes *hot*
//! when it is used after several others were read in, which within a scan it is not. Cold nodes go first,
//! as long as the newest of them have an eighth of the cache to show what they are good for.
//!
//! Always holds: the ancestors of a cached node are cached; `bytes` and `dirty_bytes` are the sums over the
//! cached nodes of what was last accounted for each.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use engine_base::hash::{FastMap, FastSet};
use engine_memory::alloc_scope;

use super::format::NodePointer;
use super::node::Node;
use crate::key::{Position, Tree};
use crate::sync::Notify;

/// Nodes that must have been read in between two uses of one for it to be hot: at least this many, more
/// than an iteration reads ahead, and an eighth of those cached.
const HOT_AFTER_READS_MIN: u64 = 8;
/// Places that wait to be read ahead, at most; more are forgotten.
const AHEAD_MAX: usize = 16;

/// The cached nodes of a shard.
pub(crate) struct Cache {
    nodes: RefCell<FastMap<u64, Rc<Node>>>,
    /// Root of each tree, by number. Roots are always cached.
    pub(crate) roots: RefCell<Vec<Rc<Node>>>,
    /// Nodes being read in, by id.
    pub(crate) reading: RefCell<FastSet<u64>>,
    pub(crate) read_done: Notify,
    /// Leaves that an iteration will come to.
    ahead: RefCell<VecDeque<(Tree, Position)>>,
    pub(crate) ahead_wanted: Notify,
    /// Fewer dirty bytes than before, maybe.
    pub(crate) cleaned: Notify,
    /// Numbers changes, uses and new locks: rises.
    tick: Cell<u64>,
    bytes_max: Cell<usize>,
    /// Dirty nodes may take this much in any case: a few nodes.
    dirty_floor: usize,
    bytes: Cell<usize>,
    dirty_bytes: Cell<usize>,
    /// Set aside for nodes being read in.
    pub(crate) reading_bytes: Cell<usize>,
    /// The most that `bytes` and `reading_bytes` ever were together.
    peak_bytes: Cell<usize>,
    /// Nodes read in so far.
    reads: Cell<u64>,
    /// Bytes by which nodes have grown since they were written.
    pub(crate) unwritten_bytes: Cell<u64>,
    pub(crate) hits: Cell<u64>,
    pub(crate) misses: Cell<u64>,
    pub(crate) reads_ahead: Cell<u64>,
    pub(crate) evictions: Cell<u64>,
    pub(crate) appends: Cell<u64>,
    pub(crate) rewrites: Cell<u64>,
    pub(crate) splits: Cell<u64>,
    pub(crate) merges: Cell<u64>,
}

impl Cache {
    /// An empty cache of at most `bytes_max` bytes, for nodes of `node_bytes` on disk.
    pub(crate) fn new(bytes_max: usize, node_bytes: usize) -> Self {
        Self {
            nodes: RefCell::default(),
            roots: RefCell::default(),
            reading: RefCell::default(),
            read_done: Notify::default(),
            ahead: RefCell::default(),
            ahead_wanted: Notify::default(),
            cleaned: Notify::default(),
            tick: Cell::new(1),
            bytes_max: Cell::new(bytes_max),
            dirty_floor: node_bytes * 4,
            bytes: Cell::new(0),
            dirty_bytes: Cell::new(0),
            reading_bytes: Cell::new(0),
            peak_bytes: Cell::new(0),
            reads: Cell::new(0),
            unwritten_bytes: Cell::new(0),
            hits: Cell::new(0),
            misses: Cell::new(0),
            reads_ahead: Cell::new(0),
            evictions: Cell::new(0),
            appends: Cell::new(0),
            rewrites: Cell::new(0),
            splits: Cell::new(0),
            merges: Cell::new(0),
        }
    }

    /// Bounds the memory for nodes, in bytes.
    pub(crate) fn set_bytes_max(&self, bytes_max: usize) {
        self.bytes_max.set(bytes_max);
        self.cleaned.notify_all();
    }

    /// A number higher than any before.
    pub(crate) fn next_tick(&self) -> u64 {
        self.tick.set(self.tick.get() + 1);
        self.tick.get()
    }

    /// The root of `tree`.
    pub(crate) fn root(&self, tree: Tree) -> Rc<Node> {
        Rc::clone(&self.roots.borrow()[tree as usize])
    }

    /// Makes `node` the root of its tree.
    pub(crate) fn set_root(&self, node: &Rc<Node>) {
        self.roots.borrow_mut()[node.tree as usize] = Rc::clone(node);
        self.insert(node);
    }

    /// The cached node `id`.
    pub(crate) fn get(&self, id: u64) -> Option<Rc<Node>> {
        self.nodes.borrow().get(&id).cloned()
    }

    /// Number of cached nodes.
    pub(crate) fn len(&self) -> usize {
        self.nodes.borrow().len()
    }

    pub(crate) fn insert(&self, node: &Rc<Node>) {
        let _scope = alloc_scope!("node cache");
        node.used.set(self.tick.get());
        node.born.set(self.reads.get());
        node.cached.set(true);
        self.nodes.borrow_mut().insert(node.id, Rc::clone(node));
        self.account(node);
    }

    /// Puts in a node that was read from disk.
    pub(crate) fn insert_read(&self, node: &Rc<Node>) {
        self.reads.set(self.reads.get() + 1);
        self.evict(node.memory_bytes());
        self.insert(node);
    }

    /// Takes `node` out for good.
    pub(crate) fn remove(&self, node: &Node) {
        node.dead.set(true);
        node.cached.set(false);
        self.nodes.borrow_mut().remove(&node.id);
        self.account(node);
    }

    /// Notes what a node takes now; to be called after each change of it.
    pub(crate) fn account(&self, node: &Node) {
        let (bytes, dirty) = match node.cached.get() {
            true => (node.memory_bytes(), node.is_dirty()),
            false => (0, false),
        };
        let dirty_bytes = if dirty { bytes } else { 0 };
        let (was, was_dirty) = node.charged.replace((bytes, dirty_bytes));
        self.bytes.set(self.bytes.get() + bytes - was);
        self.dirty_bytes.set(self.dirty_bytes.get() + dirty_bytes - was_dirty);
        self.note_peak();
        if dirty_bytes < was_dirty {
            self.cleaned.notify_all();
        }
    }

    pub(crate) fn note_peak(&self) {
        let now = self.bytes.get() + self.reading_bytes.get();
        self.peak_bytes.set(self.peak_bytes.get().max(now));
    }

    /// Bytes of memory that the cached nodes take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// Those of them that differ from their image on disk.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty_bytes.get()
    }

    /// The most that the cache ever took, with what was set aside for nodes being read.
    pub(crate) fn peak_bytes(&self) -> usize {
        self.peak_bytes.get()
    }

    /// Whether dirty nodes take so much that clients have to wait.
    pub(crate) fn is_too_dirty(&self) -> bool {
        self.dirty_bytes.get() > (self.bytes_max.get() / 2).max(self.dirty_floor)
    }

    /// Whether dirty nodes should be written out to make room, before anybody has to wait.
    pub(crate) fn wants_cleaning(&self) -> bool {
        self.dirty_bytes.get() > (self.bytes_max.get() / 4).max(self.dirty_floor / 2)
    }

    /// Up to `most` dirty nodes to be written out for the room they take: leaves first, since writing one
    /// changes its parent, and those longest unused.
    pub(crate) fn to_clean(&self, most: usize) -> Vec<Rc<Node>> {
        let nodes = self.nodes.borrow();
        let mut dirty: Vec<_> = nodes
            .values()
            .filter(|node| node.is_dirty() && !node.lock.intent_held())
            .map(|node| ((node.level, node.used.get(), node.id), Rc::clone(node)))
            .collect();
        dirty.sort_unstable_by_key(|(order, _)| *order);
        dirty.truncate(most);
        dirty.into_iter().map(|(_, node)| node).collect()
    }

    /// Whether a node of `bytes` may be read in now, beside those that are being read: they may have a
    /// quarter of the cache together, and one alone is always read.
    pub(crate) fn may_read(&self, bytes: usize) -> bool {
        let reading = self.reading_bytes.get();
        reading == 0 || reading + bytes <= self.bytes_max.get() / 4
    }

    /// Notes a use of `node`.
    pub(crate) fn used(&self, node: &Node) {
        node.used.set(self.next_tick());
        if !node.hot.get() {
            let window = HOT_AFTER_READS_MIN.max(self.len() as u64 / 8);
            node.hot.set(self.reads.get() - node.born.get() >= window);
        }
    }

    /// Asks for leaves to be read ahead.
    pub(crate) fn want_ahead(&self, tree: Tree, position: Position) {
        let mut ahead = self.ahead.borrow_mut();
        if ahead.len() < AHEAD_MAX && !ahead.contains(&(tree, position)) {
            ahead.push_back((tree, position));
            self.ahead_wanted.notify_all();
        }
    }

    /// The next leaf to be read ahead.
    pub(crate) fn next_ahead(&self) -> Option<(Tree, Position)> {
        self.ahead.borrow_mut().pop_front()
    }

    /// Evicts clean nodes that are not in use until there is room for `needed` bytes more, or nothing is
    /// left to evict.
    pub(crate) fn evict(&self, needed: usize) {
        // An eighth is left for what nodes grow by in one turn: a run of keys that is split in two.
        let most = self.bytes_max.get() / 8 * 7;
        let others = self.reading_bytes.get() + needed;
        if self.bytes.get() + others <= most {
            return;
        }
        // An eighth less, so that the scans below are done once in a while only.
        let goal = (self.bytes_max.get() / 8 * 6).saturating_sub(others);
        let interior: usize = self
            .nodes
            .borrow()
            .values()
            .filter(|node| node.level > 0)
            .map(|node| node.charged.get().0)
            .sum();
        if interior > most / 4 {
            self.evict_of(self.childless(), goal);
        }
        self.evict_of(self.leaves(), goal);
        if self.bytes.get() + others > most {
            self.evict_of(self.childless(), goal);
        }
    }

    /// Evicts of `candidates` until `goal` is reached.
    fn evict_of(&self, mut candidates: Vec<Rc<Node>>, goal: usize) {
        candidates.sort_unstable_by_key(|node| (node.hot.get(), node.used.get(), node.id));
        let hot = candidates.partition_point(|node| !node.hot.get());
        // The newest cold nodes, with an eighth of the cache, are spared as long as others will do.
        let (mut spared, mut young) = (hot, 0);
        while spared > 0 && hot < candidates.len() {
            young += candidates[spared - 1].charged.get().0;
            if young > self.bytes_max.get() / 8 {
                break;
            }
            spared -= 1;
        }
        let (cold, rest) = candidates.split_at(spared);
        let (young, hot) = rest.split_at(hot - spared);
        for node in cold.iter().chain(hot).chain(young) {
            if self.bytes.get() <= goal {
                return;
            }
            self.remove(node);
            self.evictions.set(self.evictions.get() + 1);
        }
    }

    fn leaves(&self) -> Vec<Rc<Node>> {
        let nodes = self.nodes.borrow();
        let leaves = nodes.values().filter(|node| node.level == 0 && self.is_evictable(node));
        leaves.cloned().collect()
    }

    /// Interior nodes that may be evicted: no child of theirs is cached.
    fn childless(&self) -> Vec<Rc<Node>> {
        let nodes = self.nodes.borrow();
        let has_cached_child = |node: &Node| {
            node.body.borrow().keys.iter().any(|(_, value)| {
                NodePointer::decode(value).is_ok_and(|child| nodes.contains_key(&child.node))
            })
        };
        let interior = nodes.values().filter(|node| node.level > 0 && self.is_evictable(node));
        interior.filter(|node| !has_cached_child(node)).cloned().collect()
    }

    fn is_evictable(&self, node: &Rc<Node>) -> bool {
        !node.is_dirty()
            && node.holders.get() == 0
            && !node.lock.intent_held()
            && node.lock.can_change()
            && node.body.borrow().location.is_some()
            && self.roots.borrow()[node.tree as usize].id != node.id
    }
}
