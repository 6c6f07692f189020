//! The state of a tree, and what each operation does to it.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_store::api::RenameMode;

use crate::stamp;

/// Name of a node within one model; for a tree that was read back, its inode number.
pub type NodeId = u64;

/// The root directory of every model.
pub const ROOT: NodeId = 1;

const PAGE_BYTES: u64 = 4096;
type Page = [u8; PAGE_BYTES as usize];

/// First page that lies on another shard than the first chunk.
pub(super) const FAR_PAGE: u64 = 1 << (CHUNK_SIZE_LOG2 - 12);

/// Content of a file. A page that is not there is zeroes; none is all zeroes or past the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileData {
    /// Bytes.
    pub size: u64,
    pub(super) pages: BTreeMap<u64, Rc<Page>>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Regular file.
    File(FileData),
    /// Directory: names and nodes.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// Symbolic link.
    Symlink(Vec<u8>),
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Number of names; not kept for directories.
    pub links: u32,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A whole tree. Cloning is cheap: nodes are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeState {
    root: NodeId,
    nodes: BTreeMap<NodeId, Rc<Node>>,
}

/// Why an operation is refused; the engine must say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// ENOENT.
    NotFound,
    /// EEXIST.
    Exists,
    /// ENOTEMPTY.
    NotEmpty,
    /// ENOTDIR.
    NotDirectory,
    /// EISDIR.
    IsDirectory,
    /// EINVAL.
    Invalid,
}

/// A change of a tree. Directories are always named by nodes that exist.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TreeOp {
    /// A new, empty node of this kind.
    Create { parent: NodeId, name: Vec<u8>, node: NodeId, kind: NodeKind, mode: u32, uid: u32 },
    /// One more name.
    Link { node: NodeId, parent: NodeId, name: Vec<u8> },
    /// Unlink or rmdir.
    Remove { parent: NodeId, name: Vec<u8>, directory: bool },
    /// Rename, in all modes.
    Rename { from: (NodeId, Vec<u8>), to: (NodeId, Vec<u8>), mode: RenameMode },
    /// Content of version `version` at `offset`.
    Write { node: NodeId, offset: u64, len: u64, version: u64 },
    /// What another file has, by reference.
    Copy { from: NodeId, at: u64, node: NodeId, offset: u64, len: u64 },
    /// A hole.
    Punch { node: NodeId, offset: u64, len: u64 },
    /// A change of content that was refused for want of room, with these of its pages changed: the
    /// parts of a change that other chunks take may be done before one finds no room.
    Partly { op: Box<TreeOp>, pages: Vec<u64> },
    /// A new size.
    Resize { node: NodeId, size: u64 },
    /// New permissions and owner.
    Own { node: NodeId, mode: u32, uid: u32 },
    /// Sets an xattr; `Some(true)`: it must not be there, `Some(false)`: it must.
    XattrSet { node: NodeId, name: Vec<u8>, value: Vec<u8>, create: Option<bool> },
    /// Removes an xattr.
    XattrRemove { node: NodeId, name: Vec<u8> },
    /// A recovery: the tree is this now.
    Become(Box<TreeState>),
}

impl TreeOp {
    /// The file whose content this changes.
    #[must_use]
    pub fn changes_content_of(&self) -> Option<NodeId> {
        match self {
            Self::Write { node, .. }
            | Self::Copy { node, .. }
            | Self::Punch { node, .. }
            | Self::Resize { node, .. } => Some(*node),
            Self::Partly { op, .. } => op.changes_content_of(),
            _ => None,
        }
    }

    /// The bytes (from, to) within the file that a write or a hole changes.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Write { offset, len, .. }
            | Self::Copy { offset, len, .. }
            | Self::Punch { offset, len, .. } => Some((*offset, offset.saturating_add(*len))),
            _ => None,
        }
    }
}

impl std::fmt::Debug for TreeOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        match self {
            Self::Create { parent, name, node, kind, .. } => {
                let kind = match kind {
                    NodeKind::File(_) => "file",
                    NodeKind::Directory(_) => "directory",
                    NodeKind::Symlink(_) => "symlink",
                };
                write!(f, "create {kind} {parent}/{} = {node}", text(name))
            }
            Self::Link { node, parent, name } => {
                write!(f, "link {node} as {parent}/{}", text(name))
            }
            Self::Remove { parent, name, directory } => {
                let what = if *directory { "rmdir" } else { "unlink" };
                write!(f, "{what} {parent}/{}", text(name))
            }
            Self::Rename { from, to, mode } => {
                let (a, b) = (text(&from.1), text(&to.1));
                write!(f, "rename {}/{a} to {}/{b} ({mode:?})", from.0, to.0)
            }
            Self::Write { node, offset, len, version } => {
                write!(f, "write {node} at {offset}+{len} version {version}")
            }
            Self::Copy { from, at, node, offset, len } => {
                write!(f, "copy {from} at {at} to {node} at {offset}+{len}")
            }
            Self::Punch { node, offset, len } => write!(f, "punch {node} at {offset}+{len}"),
            Self::Partly { op, pages } => write!(f, "pages {pages:?} of {op:?}"),
            Self::Resize { node, size } => write!(f, "resize {node} to {size}"),
            Self::Own { node, mode, uid } => write!(f, "own {node} {mode:o} {uid}"),
            Self::XattrSet { node, name, value, create } => {
                write!(f, "xattr {node} {} = {} bytes {create:?}", text(name), value.len())
            }
            Self::XattrRemove { node, name } => write!(f, "remove xattr {node} {}", text(name)),
            Self::Become(_) => write!(f, "recovery"),
        }
    }
}

impl FileData {
    /// A file of zeroes.
    #[must_use]
    pub fn of_size(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    /// Reads `len` bytes at `offset`, fewer at the end.
    #[must_use]
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(len));
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        let mut at = 0;
        while at < bytes.len() {
            let position = offset + at as u64;
            let start = (position % PAGE_BYTES) as usize;
            let take = (PAGE_BYTES as usize - start).min(bytes.len() - at);
            if let Some(page) = self.pages.get(&(position / PAGE_BYTES)) {
                bytes[at..at + take].copy_from_slice(&page[start..start + take]);
            }
            at += take;
        }
        bytes
    }

    /// Puts bytes that were read from a real file, page by page.
    pub fn put_page(&mut self, page: u64, bytes: &[u8]) {
        if !stamp::is_zero(bytes) {
            let mut whole = [0; PAGE_BYTES as usize];
            whole[..bytes.len()].copy_from_slice(bytes);
            self.pages.insert(page, Rc::new(whole));
        }
    }

    fn change(&mut self, offset: u64, len: u64, mut set: impl FnMut(&mut [u8], u64)) {
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let (page, start) = (at / PAGE_BYTES, (at % PAGE_BYTES) as usize);
            let take = (PAGE_BYTES - start as u64).min(end - at);
            let bytes = self.pages.entry(page).or_insert_with(|| Rc::new([0; PAGE_BYTES as usize]));
            let bytes = Rc::make_mut(bytes);
            set(&mut bytes[start..start + take as usize], at);
            if stamp::is_zero(bytes) {
                self.pages.remove(&page);
            }
            at += take;
        }
    }

    fn write(&mut self, offset: u64, len: u64, version: u64) {
        self.change(offset, len, |bytes, at| stamp::write_file(bytes, at, version));
        self.size = self.size.max(offset + len);
    }

    /// Puts bytes that another file had.
    fn put(&mut self, offset: u64, source: &[u8]) {
        if source.is_empty() {
            return;
        }
        let len = source.len() as u64;
        self.change(offset, len, |bytes, at| {
            let from = (at - offset) as usize;
            bytes.copy_from_slice(&source[from..from + bytes.len()]);
        });
        self.size = self.size.max(offset + len);
    }

    fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end {
            return;
        }
        // Only pages that exist need work: a hole may be long.
        let pages: Vec<u64> = self
            .pages
            .range(offset / PAGE_BYTES..=(end - 1) / PAGE_BYTES)
            .map(|(p, _)| *p)
            .collect();
        for page in pages {
            let from = offset.max(page * PAGE_BYTES);
            let to = end.min((page + 1) * PAGE_BYTES);
            self.change(from, to - from, |bytes, _| bytes.fill(0));
        }
    }

    /// The pages, of those that hold `range`, in which `found` is as `after` and not as this is.
    ///
    /// # Errors
    /// The first page that is neither.
    pub(super) fn changed_pages(
        &self,
        after: &Self,
        found: &Self,
        (from, to): (u64, u64),
    ) -> Result<Vec<u64>, u64> {
        // What lies past the end cannot be read.
        let pages = from / PAGE_BYTES..to.min(self.size).div_ceil(PAGE_BYTES);
        let changed = pages.filter(|page| self.pages.get(page) != found.pages.get(page));
        let changed: Vec<u64> = changed.collect();
        for page in &changed {
            let mut wanted = after.pages.get(page).cloned();
            if let (Some(bytes), true) = (&mut wanted, (page + 1) * PAGE_BYTES > self.size) {
                Rc::make_mut(bytes)[(self.size % PAGE_BYTES) as usize..].fill(0);
            }
            if wanted.as_ref() != found.pages.get(page) {
                return Err(*page);
            }
        }
        Ok(changed)
    }

    /// What the page in which `size` lies shows of a file that ends there.
    pub(super) fn cut_page(&mut self, size: u64) {
        let within = size % PAGE_BYTES;
        if within > 0 && size < self.size {
            self.change(size, PAGE_BYTES - within, |bytes, _| bytes.fill(0));
        }
    }

    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.punch(size, self.size - size);
        }
        self.size = size;
    }
}

impl TreeState {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::with_root(ROOT, Node::directory())
    }

    /// A tree of one node, for reading a real one into.
    #[must_use]
    pub fn with_root(root: NodeId, node: Node) -> Self {
        Self { root, nodes: BTreeMap::from([(root, Rc::new(node))]) }
    }

    /// The root's name.
    #[must_use]
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// All nodes.
    pub fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }

    /// A node.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.nodes.get(&node).map(|node| &**node)
    }

    /// Puts a node that was read from a real tree.
    pub fn insert(&mut self, id: NodeId, node: Node) {
        self.nodes.insert(id, Rc::new(node));
    }

    /// Nodes for which `wanted` holds, in order.
    #[must_use]
    pub fn select(&self, wanted: impl Fn(&Node) -> bool) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| wanted(node)).map(|(id, _)| *id).collect()
    }

    /// Entries of a directory.
    #[must_use]
    pub fn entries(&self, directory: NodeId) -> Option<&BTreeMap<Vec<u8>, NodeId>> {
        match &self.node(directory)?.kind {
            NodeKind::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Content of a file.
    #[must_use]
    pub fn file(&self, node: NodeId) -> Option<&FileData> {
        match &self.node(node)?.kind {
            NodeKind::File(data) => Some(data),
            _ => None,
        }
    }

    pub(super) fn has_far_pages(&self) -> bool {
        self.nodes.values().any(|node| match &node.kind {
            NodeKind::File(data) => data.pages.range(FAR_PAGE..).next().is_some(),
            _ => false,
        })
    }

    pub(super) fn renamed(&self, names: &BTreeMap<NodeId, NodeId>) -> Self {
        let name = |node: &NodeId| names.get(node).copied().unwrap_or(*node);
        let nodes = self.nodes.iter().map(|(id, node)| {
            let mut node = Rc::clone(node);
            if let NodeKind::Directory(entries) = &mut Rc::make_mut(&mut node).kind {
                entries.values_mut().for_each(|child| *child = name(child));
            }
            (name(id), node)
        });
        Self { root: name(&self.root), nodes: nodes.collect() }
    }

    /// Whether `below` is `above` or lies under it.
    #[must_use]
    pub fn is_below(&self, below: NodeId, above: NodeId) -> bool {
        if below == above {
            return true;
        }
        self.entries(above)
            .is_some_and(|entries| entries.values().any(|child| self.is_below(below, *child)))
    }

    fn node_mut(&mut self, node: NodeId) -> Result<&mut Node, Mistake> {
        self.nodes.get_mut(&node).map(Rc::make_mut).ok_or(Mistake::NotFound)
    }

    fn entries_mut(
        &mut self,
        directory: NodeId,
    ) -> Result<&mut BTreeMap<Vec<u8>, NodeId>, Mistake> {
        match &mut self.node_mut(directory)?.kind {
            NodeKind::Directory(entries) => Ok(entries),
            _ => Err(Mistake::NotDirectory),
        }
    }

    fn file_mut(&mut self, node: NodeId) -> Result<&mut FileData, Mistake> {
        match &mut self.node_mut(node)?.kind {
            NodeKind::File(data) => Ok(data),
            NodeKind::Directory(_) => Err(Mistake::IsDirectory),
            NodeKind::Symlink(_) => Err(Mistake::Invalid),
        }
    }

    fn lookup(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.entries(directory)?.get(name).copied()
    }

    fn is_directory(&self, node: NodeId) -> bool {
        self.entries(node).is_some()
    }

    /// Does `op`, wholly or not at all.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn apply(&mut self, op: &TreeOp) -> Result<(), Mistake> {
        match op {
            TreeOp::Create { parent, name, node, kind, mode, uid } => {
                let entries = self.entries_mut(*parent)?;
                if entries.contains_key(name) {
                    return Err(Mistake::Exists);
                }
                entries.insert(name.clone(), *node);
                let (kind, xattrs) = (kind.clone(), BTreeMap::new());
                self.insert(*node, Node { kind, mode: *mode, uid: *uid, links: 1, xattrs });
            }
            TreeOp::Link { node, parent, name } => {
                if self.is_directory(*node) {
                    return Err(Mistake::IsDirectory);
                }
                if self.lookup(*parent, name).is_some() {
                    return Err(Mistake::Exists);
                }
                self.node_mut(*node)?.links += 1;
                self.entries_mut(*parent)?.insert(name.clone(), *node);
            }
            TreeOp::Remove { parent, name, directory } => {
                self.remove(*parent, name, *directory)?;
            }
            TreeOp::Rename { from, to, mode } => self.rename(from, to, *mode)?,
            TreeOp::Write { node, offset, len, version } => {
                self.file_mut(*node)?.write(*offset, *len, *version);
            }
            TreeOp::Copy { from, at, node, offset, len } => {
                let source = self.file_mut(*from)?.read(*at, *len);
                self.file_mut(*node)?.put(*offset, &source);
            }
            TreeOp::Punch { node, offset, len } => self.file_mut(*node)?.punch(*offset, *len),
            TreeOp::Partly { op, pages } => self.apply_partly(op, pages)?,
            TreeOp::Resize { node, size } => self.file_mut(*node)?.resize(*size),
            TreeOp::Own { node, mode, uid } => {
                let node = self.node_mut(*node)?;
                (node.mode, node.uid) = (*mode, *uid);
            }
            TreeOp::XattrSet { node, name, value, create } => {
                let xattrs = &mut self.node_mut(*node)?.xattrs;
                match (create, xattrs.contains_key(name)) {
                    (Some(true), true) => return Err(Mistake::Exists),
                    (Some(false), false) => return Err(Mistake::NotFound),
                    _ => drop(xattrs.insert(name.clone(), value.clone())),
                }
            }
            TreeOp::XattrRemove { node, name } => {
                let removed = self.node_mut(*node)?.xattrs.remove(name);
                removed.ok_or(Mistake::NotFound)?;
            }
            TreeOp::Become(state) => self.clone_from(state),
        }
        Ok(())
    }

    /// Changes these pages as `op` does, and nothing else.
    fn apply_partly(&mut self, op: &TreeOp, pages: &[u64]) -> Result<(), Mistake> {
        let Some(node) = op.changes_content_of() else { return Err(Mistake::Invalid) };
        let mut whole = self.clone();
        whole.apply(op)?;
        let after = whole.file_mut(node)?;
        let file = self.file_mut(node)?;
        for page in pages {
            match after.pages.remove(page) {
                Some(bytes) => drop(file.pages.insert(*page, bytes)),
                None => drop(file.pages.remove(page)),
            }
        }
        Ok(())
    }

    fn remove(&mut self, parent: NodeId, name: &[u8], directory: bool) -> Result<(), Mistake> {
        let node = self.lookup(parent, name).ok_or(Mistake::NotFound)?;
        match (self.entries(node), directory) {
            (Some(_), false) => return Err(Mistake::IsDirectory),
            (None, true) => return Err(Mistake::NotDirectory),
            (Some(entries), true) if !entries.is_empty() => return Err(Mistake::NotEmpty),
            _ => {}
        }
        self.entries_mut(parent)?.remove(name);
        self.unname(node)
    }

    /// A node has lost a name.
    fn unname(&mut self, node: NodeId) -> Result<(), Mistake> {
        if self.is_directory(node) {
            self.nodes.remove(&node);
            return Ok(());
        }
        let named = self.node_mut(node)?;
        named.links -= 1;
        if named.links == 0 {
            self.nodes.remove(&node);
        }
        Ok(())
    }

    /// rename(2) and renameat2(2); mistakes are found in the order in which Linux finds them.
    fn rename(
        &mut self,
        from: &(NodeId, Vec<u8>),
        to: &(NodeId, Vec<u8>),
        mode: RenameMode,
    ) -> Result<(), Mistake> {
        let source = self.lookup(from.0, &from.1).ok_or(Mistake::NotFound)?;
        let target = self.lookup(to.0, &to.1);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Mistake::Exists),
            (RenameMode::Exchange, None) => return Err(Mistake::NotFound),
            _ => {}
        }
        if self.is_directory(source) && self.is_below(to.0, source) {
            return Err(Mistake::Invalid);
        }
        let Some(target) = target else {
            self.entries_mut(from.0)?.remove(&from.1);
            self.entries_mut(to.0)?.insert(to.1.clone(), source);
            return Ok(());
        };
        let target_above = self.is_directory(target) && self.is_below(from.0, target);
        if mode == RenameMode::Exchange {
            if target_above {
                return Err(Mistake::Invalid);
            }
            self.entries_mut(from.0)?.insert(from.1.clone(), target);
            self.entries_mut(to.0)?.insert(to.1.clone(), source);
            return Ok(());
        }
        if target_above {
            return Err(Mistake::NotEmpty);
        }
        if source == target {
            // Two names of one inode: rename(2) does nothing.
            return Ok(());
        }
        match (self.is_directory(source), self.entries(target)) {
            (true, None) => return Err(Mistake::NotDirectory),
            (false, Some(_)) => return Err(Mistake::IsDirectory),
            (true, Some(entries)) if !entries.is_empty() => return Err(Mistake::NotEmpty),
            _ => {}
        }
        self.entries_mut(from.0)?.remove(&from.1);
        self.entries_mut(to.0)?.insert(to.1.clone(), source);
        self.unname(target)
    }
}

impl Default for TreeState {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// An empty directory.
    #[must_use]
    pub fn directory() -> Self {
        Self {
            kind: NodeKind::Directory(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            links: 1,
            xattrs: BTreeMap::new(),
        }
    }
}
