//! A slow, obvious file tree to compare with.

use std::collections::BTreeMap;

use crate::api::{FileKind, PutMode, RenameMode};
use crate::error::StoreError;

/// What an operation came to; errors by cause.
pub(crate) type Outcome<T> = Result<T, &'static str>;

/// The cause of an error, as the model names it.
pub(crate) fn cause(error: &StoreError) -> &'static str {
    match error {
        StoreError::NotFound { .. } => "not found",
        StoreError::AlreadyExists { .. } => "exists",
        StoreError::NotEmpty { .. } => "not empty",
        StoreError::NotDirectory { .. } => "not a directory",
        StoreError::IsDirectory { .. } => "is a directory",
        StoreError::InvalidArgument { .. } => "invalid",
        other => panic!("unexpected error: {other}"),
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: FileKind,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) content: Vec<u8>,
    pub(crate) entries: BTreeMap<Vec<u8>, u64>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree, by inode number.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) root: u64,
    pub(crate) nodes: BTreeMap<u64, Node>,
}

pub(crate) fn node(kind: FileKind, mode: u32) -> Node {
    Node {
        kind,
        mode,
        links: 1,
        content: Vec::new(),
        entries: BTreeMap::new(),
        xattrs: BTreeMap::new(),
    }
}

impl Model {
    pub(crate) fn new(root: u64) -> Self {
        let nodes = BTreeMap::from([(root, node(FileKind::Directory, 0o755))]);
        Self { root, nodes }
    }

    pub(crate) fn get(&self, inode: u64) -> Outcome<&Node> {
        self.nodes.get(&inode).ok_or("not found")
    }

    fn directory(&mut self, inode: u64) -> Outcome<&mut Node> {
        let node = self.nodes.get_mut(&inode).ok_or("not found")?;
        if node.kind == FileKind::Directory { Ok(node) } else { Err("not a directory") }
    }

    pub(crate) fn file(&mut self, inode: u64) -> Outcome<&mut Node> {
        let node = self.nodes.get_mut(&inode).ok_or("not found")?;
        match node.kind {
            FileKind::File => Ok(node),
            FileKind::Directory => Err("is a directory"),
            FileKind::Symlink => Err("invalid"),
        }
    }

    pub(crate) fn lookup(&mut self, directory: u64, name: &[u8]) -> Outcome<u64> {
        self.directory(directory)?.entries.get(name).copied().ok_or("not found")
    }

    /// Whether `name` could be created.
    pub(crate) fn free(&mut self, directory: u64, name: &[u8]) -> Outcome<()> {
        match self.lookup(directory, name) {
            Ok(_) => Err("exists"),
            Err("not found") if self.nodes.contains_key(&directory) => Ok(()),
            Err(other) => Err(other),
        }
    }

    pub(crate) fn insert(&mut self, directory: u64, name: &[u8], inode: u64, node: Node) {
        self.directory(directory).unwrap().entries.insert(name.to_vec(), inode);
        assert!(self.nodes.insert(inode, node).is_none(), "inode number {inode} given twice");
    }

    pub(crate) fn link(&mut self, inode: u64, directory: u64, name: &[u8]) -> Outcome<()> {
        if self.get(inode)?.kind == FileKind::Directory {
            return Err("is a directory");
        }
        self.free(directory, name)?;
        self.directory(directory)?.entries.insert(name.to_vec(), inode);
        self.nodes.get_mut(&inode).unwrap().links += 1;
        Ok(())
    }

    fn drop_name(&mut self, inode: u64) {
        let node = self.nodes.get_mut(&inode).unwrap();
        node.links -= 1;
        if node.links == 0 {
            self.nodes.remove(&inode);
        }
    }

    pub(crate) fn remove(&mut self, directory: u64, name: &[u8], rmdir: bool) -> Outcome<()> {
        let inode = self.lookup(directory, name)?;
        let node = self.get(inode)?;
        match (node.kind == FileKind::Directory, rmdir) {
            (true, false) => return Err("is a directory"),
            (false, true) => return Err("not a directory"),
            (true, true) if !node.entries.is_empty() => return Err("not empty"),
            _ => {}
        }
        self.directory(directory)?.entries.remove(name);
        self.drop_name(inode);
        Ok(())
    }

    /// Whether `inode` is `above` or below it.
    fn is_below(&self, inode: u64, above: u64) -> bool {
        if inode == above {
            return true;
        }
        let node = &self.nodes[&above];
        node.kind == FileKind::Directory
            && node.entries.values().any(|child| {
                self.nodes[child].kind == FileKind::Directory && self.is_below(inode, *child)
            })
    }

    pub(crate) fn rename(
        &mut self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        mode: RenameMode,
    ) -> Outcome<()> {
        let source = self.lookup(from.0, from.1)?;
        let destination = match self.lookup(to.0, to.1) {
            Ok(inode) => Some(inode),
            Err("not found") if self.nodes.contains_key(&to.0) => None,
            Err(other) => return Err(other),
        };
        match (mode, destination) {
            (RenameMode::NoReplace, Some(_)) => return Err("exists"),
            (RenameMode::Exchange, None) => return Err("not found"),
            (_, Some(inode)) if inode == source => return Ok(()),
            _ => {}
        }
        let is_directory =
            |model: &Self, inode: u64| model.nodes[&inode].kind == FileKind::Directory;
        if is_directory(self, source) && self.is_below(to.0, source) {
            return Err("invalid");
        }
        if mode == RenameMode::Exchange {
            let other = destination.unwrap();
            if is_directory(self, other) && self.is_below(from.0, other) {
                return Err("invalid");
            }
            self.directory(from.0)?.entries.insert(from.1.to_vec(), other);
            self.directory(to.0)?.entries.insert(to.1.to_vec(), source);
            return Ok(());
        }
        if let Some(victim) = destination {
            match (is_directory(self, source), is_directory(self, victim)) {
                (false, true) => return Err("is a directory"),
                (true, false) => return Err("not a directory"),
                (true, true) if !self.nodes[&victim].entries.is_empty() => return Err("not empty"),
                _ => {}
            }
            self.drop_name(victim);
        }
        self.directory(from.0)?.entries.remove(from.1);
        self.directory(to.0)?.entries.insert(to.1.to_vec(), source);
        Ok(())
    }

    pub(crate) fn write(&mut self, inode: u64, offset: usize, bytes: &[u8]) -> Outcome<()> {
        let file = self.file(inode)?;
        if !bytes.is_empty() {
            let end = offset + bytes.len();
            if end > file.content.len() {
                file.content.resize(end, 0);
            }
            file.content[offset..end].copy_from_slice(bytes);
        }
        Ok(())
    }

    pub(crate) fn xattr_set(
        &mut self,
        inode: u64,
        name: &[u8],
        value: &[u8],
        mode: PutMode,
    ) -> Outcome<()> {
        let node = self.nodes.get_mut(&inode).ok_or("not found")?;
        match (node.xattrs.contains_key(name), mode) {
            (true, PutMode::Create) => return Err("exists"),
            (false, PutMode::Replace) => return Err("not found"),
            _ => {}
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
}
