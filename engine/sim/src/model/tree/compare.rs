//! Does a tree that was read back equal a state of the model?

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use engine_base::InodeNumber;

use super::Logged;
use super::state::{FAR_PAGE, FileData, Node, NodeId, NodeKind, TreeOp, TreeState};
use crate::stamp::is_zero;

/// How far a tree is from a state: the number of differences, and the first in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    count: usize,
    first: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} differences)", self.first, self.count)
    }
}

impl Difference {
    fn add(&mut self, what: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = what();
        }
        self.count += 1;
    }
}

type Page = Rc<[u8; 4096]>;

/// What blocks on other shards held at any time since the last sync; `None`: zeroes.
#[derive(Default)]
pub(super) struct FarHistory {
    pages: BTreeMap<(NodeId, u64), Vec<Option<Page>>>,
}

/// Collects, over all states of the log, what far pages held.
pub(super) fn far_history(shard_count: u16, base: &TreeState, log: &[Logged]) -> FarHistory {
    let mut history = FarHistory::default();
    if shard_count == 1 {
        return history;
    }
    let mut state = base.clone();
    history.collect(&state, None);
    for logged in log {
        if state.apply(&logged.op).is_ok() {
            let only = logged.op.changes_content_of();
            if only.is_none() && !matches!(logged.op, TreeOp::Become(_)) {
                continue;
            }
            history.collect(&state, only);
        }
    }
    history
}

impl FarHistory {
    fn collect(&mut self, state: &TreeState, only: Option<NodeId>) {
        for id in state.ids().filter(|id| only.is_none_or(|only| only == *id)) {
            let Some(data) = state.file(id) else { continue };
            for (page, bytes) in data.pages.range(FAR_PAGE..) {
                let held = self.pages.entry((id, *page)).or_insert_with(|| vec![None]);
                if !held.iter().flatten().any(|known| Rc::ptr_eq(known, bytes)) {
                    held.push(Some(Rc::clone(bytes)));
                }
            }
        }
    }

    fn allows(&self, node: NodeId, page: u64, bytes: Option<&Page>) -> bool {
        match self.pages.get(&(node, page)) {
            None => bytes.is_none(),
            // A page that crosses the end of the file is cut: its tail may be zeroes.
            Some(held) => held.iter().any(|held| match (held, bytes) {
                (None, None) => true,
                (Some(held), Some(bytes)) => cut_of(held, bytes),
                // Cut right at its beginning.
                (Some(_), None) => true,
                (None, Some(_)) => false,
            }),
        }
    }
}

/// Whether `cut` is `whole` with possibly a tail of zeroes.
fn cut_of(whole: &[u8; 4096], cut: &[u8; 4096]) -> bool {
    let same = whole.iter().zip(cut).take_while(|(a, b)| a == b).count();
    is_zero(&cut[same..])
}

/// A comparison of a found tree with states of the model.
pub struct Matching<'a> {
    /// What was read back; its nodes are named by inode number.
    pub found: &'a TreeState,
    /// Inode numbers that replies have named.
    pub inodes: &'a BTreeMap<NodeId, InodeNumber>,
    /// Shards in the pool: with one, every page is part of the prefix.
    pub shard_count: u16,
    pub(super) far: &'a FarHistory,
}

impl Matching<'_> {
    /// Compares with `state`, after which `next` may be done in part.
    ///
    /// # Errors
    /// The difference.
    pub fn compare(&self, state: &TreeState, next: Option<&TreeOp>) -> Result<(), Difference> {
        let mut difference = Difference::default();
        let mut pairs = BTreeMap::new();
        let partial = next.and_then(|op| Partial::new(state, op));
        self.nodes((state, state.root()), self.found.root(), &mut pairs, &partial, &mut difference);
        if difference.count == 0 { Ok(()) } else { Err(difference) }
    }

    fn nodes(
        &self,
        (state, expected): (&TreeState, NodeId),
        found: NodeId,
        pairs: &mut BTreeMap<NodeId, NodeId>,
        partial: &Option<Partial>,
        difference: &mut Difference,
    ) {
        if let Some(known) = pairs.insert(expected, found) {
            if known != found {
                difference.add(|| format!("node {expected} has become two: {known} and {found}"));
            }
            return;
        }
        if let Some(inode) = self.inodes.get(&expected)
            && inode.0 != found
        {
            difference.add(|| format!("node {expected} was inode {inode}, is inode {found}"));
        }
        let (Some(want), Some(have)) = (state.node(expected), self.found.node(found)) else {
            difference.add(|| format!("node {expected} (inode {found}) is named, not there"));
            return;
        };
        attributes(expected, want, have, expected == state.root(), difference);
        match (&want.kind, &have.kind) {
            (NodeKind::Directory(wanted), NodeKind::Directory(entries)) => {
                for (name, child) in wanted {
                    match entries.get(name) {
                        Some(inode) => {
                            self.nodes((state, *child), *inode, pairs, partial, difference);
                        }
                        None => difference.add(|| missing("lacks", expected, name)),
                    }
                }
                for name in entries.keys().filter(|name| !wanted.contains_key(*name)) {
                    difference.add(|| missing("should not have", expected, name));
                }
            }
            (NodeKind::File(wanted), NodeKind::File(data)) => {
                let after = partial.as_ref().filter(|partial| partial.node == expected);
                let mut after = after.map(|partial| partial.after.clone());
                if partial.as_ref().is_some_and(|partial| partial.size_last)
                    && let Some(after) = &mut after
                {
                    after.cut_page(data.size);
                }
                self.contents(expected, (wanted, after.as_ref()), data, difference);
            }
            (NodeKind::Symlink(wanted), NodeKind::Symlink(target)) if wanted == target => {}
            _ => difference.add(|| format!("node {expected}: another kind or target")),
        }
    }

    fn contents(
        &self,
        node: NodeId,
        (before, after): (&FileData, Option<&FileData>),
        found: &FileData,
        difference: &mut Difference,
    ) {
        let other_size = after.map_or(before.size, |after| after.size);
        let (low, high) = (before.size.min(other_size), before.size.max(other_size));
        if found.size < low || found.size > high {
            difference
                .add(|| format!("file {node}: size {}, expected {low} to {high}", found.size));
        }
        let near_end = if self.shard_count == 1 { u64::MAX } else { FAR_PAGE };
        let mut pages: Vec<u64> = before.pages.keys().chain(found.pages.keys()).copied().collect();
        pages.extend(after.into_iter().flat_map(|after| after.pages.keys()));
        pages.sort_unstable();
        pages.dedup();
        for page in pages {
            let have = found.pages.get(&page);
            let old = before.pages.get(&page);
            if old == have || after.is_some_and(|after| after.pages.get(&page) == have) {
                continue;
            }
            if page >= near_end && self.far.allows(node, page, have) {
                continue;
            }
            difference.add(|| {
                let says = |page: Option<&Page>| match page {
                    None => "zeroes".to_owned(),
                    Some(bytes) => format!("{:02x?}", &bytes[..8]),
                };
                let (old, have) = (says(old), says(have));
                format!("file {node}: page {page} holds {have}, expected {old}")
            });
        }
    }
}

fn missing(what: &str, directory: NodeId, name: &[u8]) -> String {
    format!("directory {directory} {what} {:?}", String::from_utf8_lossy(name))
}

fn attributes(id: NodeId, want: &Node, have: &Node, is_root: bool, difference: &mut Difference) {
    let directory = matches!(want.kind, NodeKind::Directory(_));
    // Nobody said what those of the root are.
    if !is_root && (want.mode, want.uid) != (have.mode, have.uid) {
        let (a, b) = ((want.mode, want.uid), (have.mode, have.uid));
        difference.add(|| format!("node {id}: mode and owner {b:?}, expected {a:?}"));
    }
    if !directory && want.links != have.links {
        let (a, b) = (want.links, have.links);
        difference.add(|| format!("node {id}: {b} links, expected {a}"));
    }
    if want.xattrs != have.xattrs {
        difference.add(|| format!("node {id}: other xattrs than expected"));
    }
}

/// A change of content that may be done in part.
struct Partial {
    node: NodeId,
    after: FileData,
    /// Its blocks may be there while the file ends where it did before.
    size_last: bool,
}

impl Partial {
    fn new(state: &TreeState, op: &TreeOp) -> Option<Self> {
        let node = op.changes_content_of()?;
        let mut state = state.clone();
        state.apply(op).ok()?;
        let size_last = matches!(op, TreeOp::Copy { .. });
        Some(Self { node, after: state.file(node)?.clone(), size_last })
    }
}
