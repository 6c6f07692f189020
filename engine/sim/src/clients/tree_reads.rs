//! What a tree's client looks at: single answers checked against the model, and whole trees read back.

use std::collections::{BTreeMap, BTreeSet};

use engine_base::InodeNumber;
use engine_store::api::{Attributes, FileKind, TreeRef};
use engine_store::client::Client;
use engine_store::error::StoreError;

use super::joined;
use super::tree::{TreeClient, check_attributes};
use crate::mesh::SimLink;
use crate::model::tree::{FileData, Node, NodeId, NodeKind, TreeState};
use crate::world::ClientContext;

impl TreeClient {
    /// Looks at something; `false`: stop.
    pub(super) async fn look(&self, context: &mut ClientContext) -> bool {
        let outcome = match context.random.below(8) {
            0 => self.look_up(context).await,
            1 => self.list(context).await,
            2 => self.look_at_names(context).await,
            _ => self.read(context).await,
        };
        match outcome {
            Ok(()) => true,
            Err(Look::Ended) => false,
            Err(Look::Broken(what)) => {
                context.fail(format!("{}: {what}", self.name));
                false
            }
            // Reads may fail while a device does; they change nothing.
            Err(Look::Refused(error)) => {
                context.tolerates("look", &error) || context.world.borrow().failure.is_none()
            }
        }
    }

    async fn read(&self, context: &mut ClientContext) -> Result<(), Look> {
        let Some(node) = self.some_file(context) else { return Ok(()) };
        let offset = self.some_offset(context, node).saturating_sub(context.random.below(5_000));
        let len = context.random.range(0, 140_000);
        let inode = self.inode(context, node);
        let found = context.client.file_read(self.reference, inode, offset, len as u32).await?;
        let found = joined(&found);
        let expected = self.model(context).state().file(node).map(|file| file.read(offset, len));
        let expected = expected.unwrap_or_default();
        context.event("file read", [inode.0, offset, found.len() as u64]);
        if found == expected {
            return Ok(());
        }
        let at = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let (have, want) = (found.len(), expected.len());
        Err(Look::Broken(format!(
            "read of file {node} (inode {inode}) at {offset}+{len}: {have} bytes, expected {want}; \
             first difference at byte {}",
            offset + at as u64
        )))
    }

    async fn look_up(&self, context: &mut ClientContext) -> Result<(), Look> {
        let directory = self.some_directory(context);
        let name = vec![b'a' + context.random.below(24) as u8];
        let inode = self.inode(context, directory);
        let found = context.client.lookup(self.reference, inode, &name).await;
        let model = self.model(context);
        let expected =
            model.state().entries(directory).and_then(|entries| entries.get(&name).copied());
        match (found, expected) {
            (Err(StoreError::NotFound { .. }), None) => Ok(()),
            (Err(error), _) => Err(error.into()),
            (Ok(found), Some(node)) if model.inode(node) == Some(found.inode) => {
                check_attributes(model.state(), node, &found).map_err(Look::Broken)
            }
            (Ok(found), expected) => Err(Look::Broken(format!(
                "lookup of {name:?} in {directory} found inode {}, expected node {expected:?}",
                found.inode
            ))),
        }
    }

    /// Lists a directory in small pages while names come and go: an entry that is there throughout
    /// must be seen exactly once, and one that never was must not be seen.
    async fn list(&self, context: &mut ClientContext) -> Result<(), Look> {
        let directory = self.some_directory(context);
        let inode = self.inode(context, directory);
        let mut throughout = self.names(context, directory);
        let mut ever = throughout.clone();
        let mut seen: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
        let mut cookie = 0;
        let limit = context.random.range(1, 5) as u32;
        loop {
            let entries =
                context.client.read_directory(self.reference, inode, cookie, limit).await?;
            if entries.len() > limit as usize {
                return Err(Look::Broken(format!("{} entries, asked {limit}", entries.len())));
            }
            for entry in &entries {
                if entry.cookie <= cookie {
                    return Err(Look::Broken("cookies do not grow".to_owned()));
                }
                cookie = entry.cookie;
                *seen.entry(entry.name.clone()).or_default() += 1;
            }
            if entries.len() < limit as usize {
                break;
            }
            if context.random.chance(1, 2) && !self.change_names(context).await {
                return Err(Look::Ended);
            }
            if self.model(context).state().entries(directory).is_none() {
                return Ok(());
            }
            let now = self.names(context, directory);
            throughout.retain(|name| now.contains(name));
            ever.extend(now);
        }
        context.event("list", [inode.0, seen.len() as u64, u64::from(limit)]);
        for name in &throughout {
            if seen.get(name) != Some(&1) {
                return Err(Look::Broken(format!(
                    "listing of {directory} in pages of {limit}: {:?} seen {} times",
                    String::from_utf8_lossy(name),
                    seen.get(name).copied().unwrap_or(0)
                )));
            }
        }
        match seen.keys().find(|name| !ever.contains(*name)) {
            Some(name) => Err(Look::Broken(format!("listing of {directory} shows {name:?}"))),
            None => Ok(()),
        }
    }

    /// One create, remove or rename somewhere in the tree; `false`: stop.
    async fn change_names(&self, context: &mut ClientContext) -> bool {
        let kind = context.random.below(3) as usize;
        match self.draw(context, kind) {
            Some(op) => self.perform(context, op).await,
            None => true,
        }
    }

    fn names(&self, context: &ClientContext, directory: NodeId) -> BTreeSet<Vec<u8>> {
        let model = self.model(context);
        model.state().entries(directory).map(|e| e.keys().cloned().collect()).unwrap_or_default()
    }

    /// Attributes, xattrs and link targets.
    async fn look_at_names(&self, context: &mut ClientContext) -> Result<(), Look> {
        let Some(node) = self.some_node(context, |_| true) else { return Ok(()) };
        let inode = self.inode(context, node);
        let attributes = context.client.get_attributes(self.reference, inode).await?;
        check_attributes(self.model(context).state(), node, &attributes).map_err(Look::Broken)?;
        let found = read_node(&context.client, self.reference, &attributes).await?;
        let model = self.model(context);
        let Some(known) = model.state().node(node) else { return Ok(()) };
        let same_target = match (&known.kind, &found.kind) {
            (NodeKind::Symlink(known), NodeKind::Symlink(found)) => known == found,
            _ => true,
        };
        if found.xattrs != known.xattrs || !same_target {
            return Err(Look::Broken(format!("node {node}: other xattrs or target than set")));
        }
        Ok(())
    }
}

/// Why looking failed.
enum Look {
    /// A change on the way may or may not have been made: the tree is not known any more.
    Ended,
    Broken(String),
    Refused(StoreError),
}

impl From<StoreError> for Look {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

/// Most bytes of one read when a tree is read back.
const READ_BYTES: u32 = 1 << 20;

/// An inode without the content of a file or directory.
async fn read_node(
    client: &Client<SimLink>,
    tree: TreeRef,
    attributes: &Attributes,
) -> Result<Node, StoreError> {
    let kind = match attributes.kind {
        FileKind::File => NodeKind::File(FileData::of_size(attributes.size)),
        FileKind::Directory => NodeKind::Directory(BTreeMap::new()),
        FileKind::Symlink => NodeKind::Symlink(client.read_link(tree, attributes.inode).await?),
    };
    let mut xattrs = BTreeMap::new();
    for name in client.xattr_list(tree, attributes.inode).await? {
        let value = client.xattr_get(tree, attributes.inode, &name).await?;
        xattrs.insert(name, value);
    }
    let Attributes { mode, uid, links, .. } = *attributes;
    Ok(Node { kind, mode, uid, links, xattrs })
}

/// Reads a whole tree back; its nodes are named by inode number.
///
/// # Errors
/// Those of the engine, and `Corrupt` for a directory that contains itself.
pub async fn read_back(client: &Client<SimLink>, tree: TreeRef) -> Result<TreeState, StoreError> {
    let root = client.get_attributes(tree, tree.root).await?;
    let mut state = TreeState::with_root(tree.root.0, read_node(client, tree, &root).await?);
    let mut directories = vec![tree.root];
    while let Some(directory) = directories.pop() {
        let mut entries = BTreeMap::new();
        let mut cookie = 0;
        loop {
            let page = client.read_directory(tree, directory, cookie, 100).await?;
            let last = page.len() < 100;
            for entry in page {
                cookie = entry.cookie;
                let inode = entry.attributes.inode;
                if entries.insert(entry.name.clone(), inode.0).is_some() {
                    let why = format!("{:?} is listed twice", entry.name);
                    return Err(StoreError::corrupt("directory", why));
                }
                if state.node(inode.0).is_some() {
                    if entry.attributes.kind == FileKind::Directory {
                        let why = format!("directory {inode} has two names");
                        return Err(StoreError::corrupt("directory", why));
                    }
                    continue;
                }
                let mut node = read_node(client, tree, &entry.attributes).await?;
                match &mut node.kind {
                    NodeKind::Directory(_) => directories.push(inode),
                    NodeKind::File(data) => read_file(client, tree, inode, data).await?,
                    NodeKind::Symlink(_) => {}
                }
                state.insert(inode.0, node);
            }
            if last {
                break;
            }
        }
        let mut node = state.node(directory.0).cloned().unwrap_or_else(Node::directory);
        node.kind = NodeKind::Directory(entries);
        state.insert(directory.0, node);
    }
    Ok(state)
}

async fn read_file(
    client: &Client<SimLink>,
    tree: TreeRef,
    inode: InodeNumber,
    data: &mut FileData,
) -> Result<(), StoreError> {
    read_range(client, tree, inode, data, (0, u64::MAX)).await
}

/// Reads the pages that hold the bytes `from .. to` of a file into `data`, whose size is known.
pub(super) async fn read_range(
    client: &Client<SimLink>,
    tree: TreeRef,
    inode: InodeNumber,
    data: &mut FileData,
    (from, to): (u64, u64),
) -> Result<(), StoreError> {
    let mut offset = from / 4096 * 4096;
    let end = to.checked_next_multiple_of(4096).map_or(data.size, |end| end.min(data.size));
    while offset < end {
        let want = u64::from(READ_BYTES).min(end - offset);
        let bytes = joined(&client.file_read(tree, inode, offset, want as u32).await?);
        let expected = want;
        if bytes.len() as u64 != expected {
            let why = format!("read at {offset} of inode {inode} gave {} bytes", bytes.len());
            return Err(StoreError::corrupt("file", why));
        }
        for (index, page) in bytes.chunks(4096).enumerate() {
            data.put_page(offset / 4096 + index as u64, page);
        }
        offset += expected;
    }
    Ok(())
}
