//! What two snapshots of a file tree do not share.
//!
//! Told in three passes over the changes, each in the order of inodes: which names are gone and which inodes are new;
//! which names there are now; what these inodes hold. After the first pass no name is in the way of another; after the
//! second all paths are those of the snapshot. A place in the stream is a pass and an inode.

use std::collections::{BTreeSet, VecDeque};

use engine_base::InodeNumber;
use engine_store::StoreError;
use engine_store::api::{
    Attributes, ChangeKind, ChangedPath, FileKind, Link, TreeDiffCursor, TreeRef,
};

use super::ranges::Ranges;
use super::{Compared, Out};
use crate::FRAME_DATA_MAX;
use crate::format::{Frame, bad};
use crate::tree_frame::{NodeAttributes, PATH_BYTES_MAX, TreeFrame};

/// Bit of a place from which on it names the pass.
pub(crate) const PASS_BIT: u32 = 62;
/// The pass in which content is told.
const CONTENT: u64 = 2;
/// Inodes of several names of which is kept that they were told.
const TOLD_MAX: usize = 1 << 20;

/// Tells a tree.
pub(super) struct TreeSource<'c, L> {
    compared: Compared<'c, L>,
    pass: u64,
    /// Where the pass goes on; `None`: `changes` are the last.
    look_from: Option<TreeDiffCursor>,
    changes: VecDeque<ChangedPath>,
    /// The place that was told last.
    place: u64,
    content: Option<Content<'c, L>>,
    /// New inodes of several names whose content was told.
    told: BTreeSet<InodeNumber>,
    has_root: bool,
}

/// An inode whose content is being told.
struct Content<'c, L> {
    inode: InodeNumber,
    attributes: Attributes,
    ranges: Option<Ranges<'c, L>>,
}

impl<'c, L: Link> TreeSource<'c, L> {
    pub(super) fn new(compared: Compared<'c, L>, from: u64) -> Self {
        let pass = (from >> PASS_BIT).min(CONTENT);
        let inode = from & ((1 << PASS_BIT) - 1);
        Self {
            compared,
            pass,
            look_from: Some(TreeDiffCursor { inode, place: 0 }),
            changes: VecDeque::new(),
            // Told before anything else, also of the first pass.
            place: u64::MAX,
            content: None,
            told: BTreeSet::new(),
            has_root: false,
        }
    }

    fn tree(&self) -> TreeRef {
        TreeRef::from(&self.compared.snapshot)
    }

    /// Makes some frames, or learns of more; `false`: all was told.
    pub(super) async fn more(&mut self, out: &mut Out) -> Result<bool, StoreError> {
        if let Some(content) = &mut self.content {
            let goes_on = match &mut content.ranges {
                Some(ranges) => ranges.more(out).await?,
                None => false,
            };
            if !goes_on {
                self.end_content(out).await?;
            }
            return Ok(true);
        }
        if let Some(change) = self.changes.pop_front() {
            let inode = change.directory.unwrap_or(change.inode);
            self.note_place(out, inode.0);
            self.tell(out, change).await?;
            return Ok(true);
        }
        if let Some(from) = self.look_from {
            if self.pass == CONTENT && from == TreeDiffCursor::default() {
                self.note_place(out, 0);
                out.push(&Frame::Tree(TreeFrame::Named));
            }
            let Compared { client, snapshot, base } = &self.compared;
            let (changes, next) = client.tree_changes(base.as_ref(), snapshot, true, from).await?;
            (self.changes, self.look_from) = (changes.into(), next);
            return Ok(true);
        }
        if self.pass < CONTENT {
            self.pass += 1;
            self.look_from = Some(TreeDiffCursor::default());
            return Ok(true);
        }
        if !self.has_root {
            // What receiving does leaves its traces in the root.
            self.has_root = true;
            let root = self.compared.snapshot.root;
            self.begin_content(out, root, b"/".to_vec(), false).await?;
            return Ok(true);
        }
        Ok(false)
    }

    fn note_place(&mut self, out: &mut Out, inode: u64) {
        let place = self.pass << PASS_BIT | inode;
        if place != self.place {
            self.place = place;
            out.push(&Frame::Place { position: place });
        }
    }

    async fn tell(&mut self, out: &mut Out, change: ChangedPath) -> Result<(), StoreError> {
        let is_new = change.in_base.is_none();
        match (self.pass, change.kind) {
            (0, ChangeKind::Removed) => {
                let (id, path) = (change.inode.0, sendable(change.path)?);
                out.push(&Frame::Tree(TreeFrame::Removed { id, path }));
            }
            (0, ChangeKind::Added) if is_new => {
                let found = self.compared.client.get_attributes(self.tree(), change.inode).await?;
                let target = match found.kind {
                    FileKind::Symlink => {
                        self.compared.client.read_link(self.tree(), change.inode).await?
                    }
                    FileKind::File | FileKind::Directory => Vec::new(),
                };
                let Attributes { kind, mode, uid, gid, .. } = found;
                let id = change.inode.0;
                let new = TreeFrame::New { id, kind, mode, uid, gid, target };
                out.push(&Frame::Tree(new));
            }
            (1, ChangeKind::Added) => {
                let name = change.path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
                let directory = change.directory.ok_or_else(|| bad("a name of no directory"))?;
                let name = TreeFrame::Name {
                    id: change.inode.0,
                    in_base: change.in_base.map(sendable).transpose()?,
                    directory: directory.0,
                    directory_in_base: match directory == self.compared.snapshot.root {
                        true => Some(b"/".to_vec()),
                        false => change.directory_in_base.map(sendable).transpose()?,
                    },
                    name: name.to_vec(),
                };
                out.push(&Frame::Tree(name));
            }
            (CONTENT, ChangeKind::Added) if is_new && !self.told.contains(&change.inode) => {
                self.begin_content(out, change.inode, change.path, true).await?;
            }
            (CONTENT, ChangeKind::Modified) => {
                self.begin_content(out, change.inode, change.path, false).await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn begin_content(
        &mut self,
        out: &mut Out,
        inode: InodeNumber,
        path: Vec<u8>,
        is_new: bool,
    ) -> Result<(), StoreError> {
        let attributes = self.compared.client.get_attributes(self.tree(), inode).await?;
        let (kind, size) = (attributes.kind, attributes.size);
        if is_new && attributes.links > 1 && self.told.len() < TOLD_MAX {
            self.told.insert(inode);
        }
        let ranges = (kind == FileKind::File).then(|| {
            let mut compared = self.compared.clone();
            compared.base = compared.base.filter(|_| !is_new);
            Ranges::of_file(compared, inode, size)
        });
        let size = if kind == FileKind::File { size } else { 0 };
        let path = sendable(path)?;
        out.push(&Frame::Tree(TreeFrame::Node { kind, size, path }));
        self.content = Some(Content { inode, attributes, ranges });
        Ok(())
    }

    /// Extended attributes, and attributes, which the rest of the content has changed.
    async fn end_content(&mut self, out: &mut Out) -> Result<(), StoreError> {
        let Some(Content { inode, attributes, .. }) = self.content.take() else { return Ok(()) };
        let (client, tree) = (self.compared.client, self.tree());
        let xattrs = client.xattr_list(tree, inode).await?;
        if xattrs.iter().map(|name| name.len() + 1).sum::<usize>() > FRAME_DATA_MAX / 2 {
            let what = format!("inode {inode}: more extended attributes than a stream takes");
            return Err(StoreError::Unsupported { what });
        }
        for name in &xattrs {
            let value = client.xattr_get(tree, inode, name).await?;
            out.push(&Frame::Tree(TreeFrame::Xattr { name: name.clone(), value }));
        }
        let Attributes { mode, uid, gid, atime_ns, mtime_ns, .. } = attributes;
        let told = NodeAttributes { mode, uid, gid, atime_ns, mtime_ns, xattrs };
        out.push(&Frame::Tree(TreeFrame::Attributes(told)));
        Ok(())
    }
}

/// A path, unless it is longer than a frame takes.
fn sendable(path: Vec<u8>) -> Result<Vec<u8>, StoreError> {
    if path.len() <= PATH_BYTES_MAX {
        return Ok(path);
    }
    let (len, start) = (path.len(), String::from_utf8_lossy(&path[..200]).into_owned());
    let what = format!("a path of {len} bytes, more than a stream takes: {start}...");
    Err(StoreError::Unsupported { what })
}
