//! One shard, seen from outside: its journal, and its trees with the keys of the journal over them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::QueueExt as _;
use engine_memory::Buffer;

use super::view::View;
use crate::btree::{Keys, Node, NodePointer};
use crate::error::{Result, StoreError};
use crate::journal::Record;
use crate::journal::format::records;
use crate::key::{Position, Tree, Value};

/// Interior nodes that are kept while a tree is walked.
const CACHED_MAX: usize = 1024;
/// Deeper than any tree can be: each level divides by four at least.
const LEVELS_MAX: u8 = 40;

/// A range of positions, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First.
    pub from: Position,
    /// Last.
    pub to: Position,
}

impl Range {
    /// Everything.
    pub const ALL: Self = Self { from: Position::MIN, to: Position::MAX };
}

/// The last words of the journal on keys.
pub(super) type Overlay = BTreeMap<(Tree, u8), BTreeMap<Position, Option<Value>>>;

/// A node as it is on disk, with the keys of the journal over it.
pub(super) struct Seen {
    pub(super) pointer: NodePointer,
    pub(super) level: u8,
    pub(super) max: Position,
    pub(super) keys: Keys,
}

/// What lies at a place of a tree.
pub(super) enum Place {
    Node(Rc<Seen>),
    /// Keys up to this position cannot be told.
    Lost {
        min: Position,
        max: Position,
        why: StoreError,
    },
}

/// A shard.
pub struct ShardView<'v> {
    pub(super) view: &'v View,
    pub(super) shard: u16,
    /// Root of each tree: its level and pointer.
    pub(super) roots: BTreeMap<Tree, (u8, NodePointer)>,
    pub(super) overlay: Overlay,
    /// Records that are not keys, in order, each with its journal position.
    pub(super) deltas: Vec<((u64, u32), Record<'static>)>,
    /// Journal entries after the newest flush entry that count.
    pub(super) tail: u32,
    /// What is wrong with the journal, a line each.
    pub notes: Vec<String>,
    cache: RefCell<BTreeMap<u64, Rc<Seen>>>,
}

impl<'v> ShardView<'v> {
    pub(super) async fn open(view: &'v View, shard: u16) -> Result<Self> {
        let found = super::replay::entries(view, shard).await?;
        let mut this = Self {
            view,
            shard,
            roots: BTreeMap::new(),
            overlay: Overlay::new(),
            deltas: Vec::new(),
            tail: found.tail,
            notes: found.notes,
            cache: RefCell::default(),
        };
        for (seq, bytes) in &found.entries {
            if let Err(error) = this.take(*seq, bytes) {
                this.notes.push(format!("journal entry {seq}: {error}"));
            }
        }
        Ok(this)
    }

    fn take(&mut self, seq: u64, bytes: &[u8]) -> Result<()> {
        for (ordinal, record) in records(bytes).enumerate() {
            match record? {
                Record::Put { tree, level, position, value, .. } => {
                    let value = Some(Value::from_slice(value));
                    self.overlay.entry((tree, level)).or_default().insert(position, value);
                }
                Record::Delete { tree, level, position } => {
                    self.overlay.entry((tree, level)).or_default().insert(position, None);
                }
                Record::Root { tree, level, pointer } => {
                    self.roots.insert(tree, (level, NodePointer::decode(pointer)?));
                }
                Record::Blacklist { .. } => {}
                record => {
                    self.deltas.push(((seq, ordinal as u32), crate::recovery::detach(&record)));
                }
            }
        }
        Ok(())
    }

    pub(super) fn root(&self, tree: Tree) -> Result<(u8, NodePointer)> {
        let (level, pointer) = self.roots.get(&tree).copied().ok_or_else(|| {
            StoreError::corrupt("journal", format!("no entry names the root of tree {tree:?}"))
        })?;
        if level > LEVELS_MAX {
            return Err(StoreError::corrupt("journal", format!("a root at level {level}")));
        }
        Ok((level, pointer))
    }

    /// The node at `level` that holds `position`.
    pub(super) async fn node_at(&self, tree: Tree, level: u8, position: Position) -> Result<Place> {
        let (mut at, mut pointer) = self.root(tree)?;
        let mut max = Position::MAX;
        if level > at {
            let why = format!("tree {tree:?} has levels 0 to {at}");
            return Err(StoreError::invalid(why));
        }
        loop {
            let node = match self.read(tree, at, pointer, max).await {
                Ok(node) => node,
                Err(why) => return Ok(Place::Lost { min: pointer.min, max, why }),
            };
            if at == level {
                return Ok(Place::Node(node));
            }
            let child = node.keys.next(position, Position::MAX);
            let Some((child_max, value)) = child else {
                let why = StoreError::corrupt(
                    format!("node {} of tree {tree:?}", node.pointer.node),
                    format!("no child covers {position:?}"),
                );
                return Ok(Place::Lost { min: position, max, why });
            };
            match NodePointer::decode(value) {
                Ok(next) if next.min <= position => pointer = next,
                Ok(next) => {
                    let why = StoreError::corrupt(
                        format!("node {} of tree {tree:?}", node.pointer.node),
                        "its children leave a gap",
                    );
                    return Ok(Place::Lost { min: position, max: next.min.predecessor(), why });
                }
                Err(why) => return Ok(Place::Lost { min: position, max: *child_max, why }),
            }
            max = *child_max;
            at -= 1;
        }
    }

    async fn read(
        &self,
        tree: Tree,
        level: u8,
        pointer: NodePointer,
        max: Position,
    ) -> Result<Rc<Seen>> {
        if let Some(node) = self.cache.borrow().get(&pointer.node) {
            return Ok(Rc::clone(node));
        }
        let mut keys = Keys::new();
        if let Some(location) = pointer.location {
            let superblock = &self.view.superblock;
            let len = u64::from(pointer.written_blocks) * BLOCK_SIZE;
            if len > u64::from(superblock.node_bytes) {
                return Err(StoreError::corrupt("node pointer", "is longer than a node"));
            }
            let member = self.view.members.get(usize::from(location.member));
            let member =
                member.ok_or_else(|| StoreError::corrupt("node pointer", "member is not known"))?;
            let offset = location.block.saturating_mul(BLOCK_SIZE);
            let bytes = member.read(offset, Buffer::try_new(len as usize)?).await?;
            let node = Node::parse(&bytes, tree, level, &pointer, max, 0)?;
            keys = node.body.into_inner().keys;
        }
        if let Some(words) = self.overlay.get(&(tree, level)) {
            for (position, value) in words.range(pointer.min..=max) {
                match value {
                    Some(value) => keys.insert(*position, value.clone()),
                    None => keys.remove(position),
                };
            }
        }
        let node = Rc::new(Seen { pointer, level, max, keys });
        if level > 0 {
            let mut cache = self.cache.borrow_mut();
            if cache.len() >= CACHED_MAX {
                cache.clear();
            }
            cache.insert(pointer.node, Rc::clone(&node));
        }
        Ok(node)
    }

    /// The first key in `from ..= to`.
    ///
    /// # Errors
    /// When a node on the way cannot be read.
    pub(super) async fn next(
        &self,
        tree: Tree,
        mut from: Position,
        to: Position,
    ) -> Result<Option<(Position, Value)>> {
        while from <= to {
            let node = match self.node_at(tree, 0, from).await? {
                Place::Node(node) => node,
                Place::Lost { why, .. } => return Err(why),
            };
            if let Some((position, value)) = node.keys.next(from, to.min(node.max)) {
                return Ok(Some((*position, value.clone())));
            }
            if node.max >= to {
                break;
            }
            from = node.max.successor();
        }
        Ok(None)
    }

    /// Every leaf's keys in a range, in order; `look` answers whether to go on. Ranges that are lost
    /// are handed to it as errors.
    ///
    /// # Errors
    /// When there is no root.
    pub(super) async fn walk(
        &self,
        tree: Tree,
        range: Range,
        mut look: impl FnMut(std::result::Result<(Position, &Value), (Range, StoreError)>) -> bool,
    ) -> Result<()> {
        let mut from = range.from;
        loop {
            let last = match self.node_at(tree, 0, from).await? {
                Place::Node(node) => {
                    let end = range.to.min(node.max);
                    if from <= end {
                        for (position, value) in node.keys.range(from, end) {
                            if !look(Ok((*position, value))) {
                                return Ok(());
                            }
                        }
                    }
                    node.max
                }
                Place::Lost { min, max, why } => {
                    let lost = Range { from: min.max(from), to: max };
                    if !look(Err((lost, why))) {
                        return Ok(());
                    }
                    max
                }
            };
            if last >= range.to || last == Position::MAX {
                return Ok(());
            }
            from = last.successor().max(from.successor());
        }
    }
}
