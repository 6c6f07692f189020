//! Nodes in memory, and the roots.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine_base::hash::{FastMap, FastSet};
use engine_memory::alloc_scope;

use super::node::Node;
use crate::key::Tree;
use crate::sync::Notify;

/// The cached nodes of a shard.
pub(crate) struct Cache {
    pub(crate) nodes: RefCell<FastMap<u64, Rc<Node>>>,
    /// Root of each tree, by number. Roots are always cached.
    pub(crate) roots: RefCell<Vec<Rc<Node>>>,
    /// Nodes being read in, by id.
    pub(crate) reading: RefCell<FastSet<u64>>,
    pub(crate) read_done: Notify,
    /// Numbers changes, uses and new locks: rises.
    tick: Cell<u64>,
    /// Bytes that cached keys may take, roughly; leaves are evicted past it.
    pub(crate) bytes_max: Cell<usize>,
    /// Bytes by which nodes have grown since they were written.
    pub(crate) unwritten_bytes: Cell<u64>,
    pub(crate) hits: Cell<u64>,
    pub(crate) misses: Cell<u64>,
    pub(crate) evictions: Cell<u64>,
    pub(crate) appends: Cell<u64>,
    pub(crate) rewrites: Cell<u64>,
    pub(crate) splits: Cell<u64>,
    pub(crate) merges: Cell<u64>,
}

impl Cache {
    /// An empty cache for keys of about `bytes_max` bytes.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            nodes: RefCell::default(),
            roots: RefCell::default(),
            reading: RefCell::default(),
            read_done: Notify::default(),
            tick: Cell::new(1),
            bytes_max: Cell::new(bytes_max),
            unwritten_bytes: Cell::new(0),
            hits: Cell::new(0),
            misses: Cell::new(0),
            evictions: Cell::new(0),
            appends: Cell::new(0),
            rewrites: Cell::new(0),
            splits: Cell::new(0),
            merges: Cell::new(0),
        }
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

    pub(crate) fn insert(&self, node: &Rc<Node>) {
        let _scope = alloc_scope!("node cache");
        node.used.set(self.tick.get());
        self.nodes.borrow_mut().insert(node.id, Rc::clone(node));
    }

    /// Takes `node` out for good.
    pub(crate) fn remove(&self, node: &Node) {
        node.dead.set(true);
        self.nodes.borrow_mut().remove(&node.id);
    }

    /// Bytes that the cached keys take, roughly: on disk, times two for the map around them.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.borrow().values().map(|node| node.body.borrow().live_bytes * 2 + 512).sum()
    }

    /// Evicts the least recently used clean leaves until at most `bytes_max` bytes are cached.
    /// Dirty ones stay: reclaim cleans them.
    pub(crate) fn evict(&self) {
        let mut bytes = self.bytes();
        if bytes <= self.bytes_max.get() {
            return;
        }
        let mut leaves: Vec<(u64, Rc<Node>)> = self
            .nodes
            .borrow()
            .values()
            .filter(|node| node.level == 0 && self.is_evictable(node))
            .map(|node| (node.used.get(), Rc::clone(node)))
            .collect();
        leaves.sort_unstable_by_key(|(used, _)| *used);
        // Down to seven eighths, so that the scan above is done once in a while only.
        let goal = self.bytes_max.get() / 8 * 7;
        for (_, node) in leaves {
            if bytes <= goal {
                break;
            }
            bytes -= (node.body.borrow().live_bytes * 2 + 512).min(bytes);
            self.remove(&node);
            self.evictions.set(self.evictions.get() + 1);
        }
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
