//! A file tree that is received.
//!
//! Names that are gone, and inodes that are new, are kept in a directory of their own in the root until all names are
//! told: so no name is in the way of another, whatever was exchanged, and a directory may come before the one that it
//! lies in. All of it may be done twice: what a crash has cut off is told again from the place that was noted last, and
//! before another pass begins that is noted.

use engine_base::InodeNumber;
use engine_memory::Buffer;
use engine_store::StoreError;
use engine_store::api::{
    Attributes, CreateAttributes, Data, FileKind, Link, PutMode, RenameMode, SetAttributes,
    SubvolumeInfo, TreeRef,
};
use engine_store::client::Client;
use engine_store::planted::{self, Bug};

use super::Progress;
use crate::format::{Begin, Frame, bad};
use crate::send::PASS_BIT;
use crate::tree_frame::{NodeAttributes, TreeFrame};

/// Entries that are asked for at a time.
const ENTRIES: u32 = 256;
/// What a frame counts for beside its data.
const FRAME_BYTES: u64 = 512;

pub(super) struct TreeTarget {
    tree: TreeRef,
    /// Where paths in the base lead; inodes have the same numbers in both.
    base: Option<TreeRef>,
    /// Name of the directory for what has no place yet.
    staging_name: Vec<u8>,
    staging: Option<InodeNumber>,
    /// What is told belongs here.
    place: u64,
    progress: Progress,
    /// The inode whose content is told: what it is, and its size.
    node: Option<(InodeNumber, FileKind, u64)>,
    /// Directories that were looked up last, in the base and in the tree.
    last_in_base: Option<(Vec<u8>, InodeNumber)>,
    last: Option<(Vec<u8>, InodeNumber)>,
}

/// An error as `None` where something is not there.
fn found<T>(result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn lost(what: &[u8]) -> StoreError {
    bad(format!("names {:?}, which is not there", String::from_utf8_lossy(what)))
}

/// Directory and name of a path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let at = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    (&path[..at], path.get(at + 1..).unwrap_or_default())
}

/// Where a path leads.
async fn resolve<L: Link>(
    client: &Client<L>,
    tree: TreeRef,
    last: &mut Option<(Vec<u8>, InodeNumber)>,
    path: &[u8],
) -> Result<InodeNumber, StoreError> {
    let mut at = tree.root;
    if let Some((known, inode)) = last
        && known == path
    {
        return Ok(*inode);
    }
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        at = found(client.lookup(tree, at, name).await)?.ok_or_else(|| lost(path))?.inode;
    }
    *last = Some((path.to_vec(), at));
    Ok(at)
}

impl TreeTarget {
    pub(super) async fn open<L: Link>(
        client: &Client<L>,
        info: &SubvolumeInfo,
        base: Option<SubvolumeInfo>,
        begin: &Begin,
        progress: Progress,
    ) -> Result<Self, StoreError> {
        let tree = TreeRef::from(info);
        let mut staging_name = b".cairn-receiving-".to_vec();
        begin.source[..8].iter().for_each(|byte| {
            staging_name.extend(format!("{byte:02x}").bytes());
        });
        let staging = found(client.lookup(tree, tree.root, &staging_name).await)?;
        Ok(Self {
            tree,
            base: base.as_ref().map(TreeRef::from),
            staging_name,
            staging: staging.map(|found| found.inode),
            place: begin.from,
            progress,
            node: None,
            last_in_base: None,
            last: None,
        })
    }

    pub(super) async fn apply<L: Link>(
        &mut self,
        client: &Client<L>,
        frame: Frame,
    ) -> Result<(), StoreError> {
        if let Frame::Place { position } = frame {
            return self.at(client, position).await;
        }
        if self.place < self.progress.there {
            return Ok(());
        }
        self.progress.since_note += FRAME_BYTES;
        match frame {
            Frame::Tree(frame) => self.tell(client, frame).await,
            Frame::Data { offset, bytes } => {
                let inode = self.file(offset, bytes.len() as u64)?;
                self.progress.since_note += bytes.len() as u64;
                let data = Data::from_iter([Buffer::try_copy_of(&bytes)?.freeze()]);
                client.file_write(self.tree, inode, offset, data).await.map(drop)
            }
            Frame::Hole { .. } if planted::is(Bug::ReceivedHoleForgotten) => Ok(()),
            Frame::Hole { offset, len } => {
                let inode = self.file(offset, 0)?;
                client.file_punch(self.tree, inode, offset, len).await
            }
            _ => Err(bad("of a file tree, with something that is not of one")),
        }
    }

    /// All before this place was told.
    async fn at<L: Link>(&mut self, client: &Client<L>, place: u64) -> Result<(), StoreError> {
        if place < self.place {
            return Err(bad("goes backwards"));
        }
        // What another pass does must not be done again by the one before it.
        let is_another = place >> PASS_BIT != self.place >> PASS_BIT;
        self.place = place;
        if place > self.progress.there && (is_another || self.progress.is_due()) {
            self.progress.note(client, place).await?;
        }
        Ok(())
    }

    /// All was told.
    pub(super) async fn end<L: Link>(&mut self, client: &Client<L>) -> Result<(), StoreError> {
        let left = found(client.lookup(self.tree, self.tree.root, &self.staging_name).await)?;
        match left {
            None if self.node.is_none() => Ok(()),
            _ => Err(bad("ends before all of the tree was told")),
        }
    }

    /// No more comes now: all that came is kept.
    pub(super) async fn cut_off<L: Link>(&mut self, client: &Client<L>) -> Result<(), StoreError> {
        let place = self.place;
        self.progress.note(client, place).await
    }

    /// The file whose content is told.
    fn file(&self, offset: u64, len: u64) -> Result<InodeNumber, StoreError> {
        match self.node {
            Some((inode, FileKind::File, size)) if offset + len <= size => Ok(inode),
            _ => Err(bad(format!("{len} bytes at {offset}, which no file has"))),
        }
    }

    async fn tell<L: Link>(
        &mut self,
        client: &Client<L>,
        frame: TreeFrame,
    ) -> Result<(), StoreError> {
        match frame {
            TreeFrame::Removed { id, path } => self.removed(client, id, &path).await,
            TreeFrame::New { .. } => self.new_node(client, frame).await,
            TreeFrame::Name { .. } => self.name(client, frame).await,
            TreeFrame::Named => self.named(client).await,
            TreeFrame::Node { kind, size, path } => {
                let inode = resolve(client, self.tree, &mut self.last, &path).await?;
                if kind == FileKind::File {
                    let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
                    client.set_attributes(self.tree, inode, set).await?;
                }
                self.node = Some((inode, kind, size));
                Ok(())
            }
            TreeFrame::Xattr { name, value } => {
                let inode = self.node()?;
                client.xattr_set(self.tree, inode, &name, &value, PutMode::Any).await
            }
            TreeFrame::Attributes(told) => self.attributes(client, told).await,
        }
    }

    fn node(&self) -> Result<InodeNumber, StoreError> {
        self.node.map(|(inode, ..)| inode).ok_or_else(|| bad("attributes of nothing"))
    }

    async fn attributes<L: Link>(
        &mut self,
        client: &Client<L>,
        told: NodeAttributes,
    ) -> Result<(), StoreError> {
        let inode = self.node()?;
        for name in client.xattr_list(self.tree, inode).await? {
            if !told.xattrs.contains(&name) {
                client.xattr_remove(self.tree, inode, &name).await?;
            }
        }
        let set = SetAttributes {
            mode: Some(told.mode),
            uid: Some(told.uid),
            gid: Some(told.gid),
            size: None,
            atime_ns: Some(told.atime_ns),
            mtime_ns: Some(told.mtime_ns),
        };
        client.set_attributes(self.tree, inode, set).await?;
        self.node = None;
        Ok(())
    }

    async fn staging<L: Link>(&mut self, client: &Client<L>) -> Result<InodeNumber, StoreError> {
        if let Some(staging) = self.staging {
            return Ok(staging);
        }
        let (root, attributes) = (self.tree.root, CreateAttributes { mode: 0o700, uid: 0, gid: 0 });
        let made =
            client.create(self.tree, root, &self.staging_name, FileKind::Directory, attributes);
        let inode = made.await?.inode;
        self.staging = Some(inode);
        Ok(inode)
    }

    async fn staged<L: Link>(
        &mut self,
        client: &Client<L>,
        name: &[u8],
    ) -> Result<Option<Attributes>, StoreError> {
        let staging = self.staging(client).await?;
        found(client.lookup(self.tree, staging, name).await)
    }

    async fn in_base<L: Link>(
        &mut self,
        client: &Client<L>,
        path: &[u8],
    ) -> Result<InodeNumber, StoreError> {
        match self.base {
            Some(base) => resolve(client, base, &mut self.last_in_base, path).await,
            None if path == b"/" => Ok(self.tree.root),
            None => Err(lost(path)),
        }
    }

    /// Takes a name away; what it led to is kept until all names are told.
    async fn removed<L: Link>(
        &mut self,
        client: &Client<L>,
        id: u64,
        path: &[u8],
    ) -> Result<(), StoreError> {
        let (directory, name) = split(path);
        let directory = self.in_base(client, directory).await?;
        let Some(there) = found(client.lookup(self.tree, directory, name).await)? else {
            // It was taken away before.
            return Ok(());
        };
        let staging = self.staging(client).await?;
        let staged = id.to_string().into_bytes();
        if self.staged(client, &staged).await?.is_some() {
            let is_directory = there.kind == FileKind::Directory;
            return client.remove(self.tree, directory, name, is_directory).await;
        }
        let (from, to) = ((directory, name), (staging, &staged[..]));
        client.rename(self.tree, from, to, RenameMode::NoReplace).await
    }

    async fn new_node<L: Link>(
        &mut self,
        client: &Client<L>,
        frame: TreeFrame,
    ) -> Result<(), StoreError> {
        let TreeFrame::New { id, kind, mode, uid, gid, target } = frame else {
            return Err(bad("is out of order"));
        };
        let name = id.to_string().into_bytes();
        let made = match self.staged(client, &name).await? {
            Some(there) => there,
            None => {
                let staging = self.staging(client).await?;
                let attributes = CreateAttributes { mode, uid, gid };
                match kind {
                    FileKind::Symlink => {
                        client.symlink(self.tree, staging, &name, &target, attributes).await?
                    }
                    FileKind::File | FileKind::Directory => {
                        client.create(self.tree, staging, &name, kind, attributes).await?
                    }
                }
            }
        };
        if kind != FileKind::Directory {
            return Ok(());
        }
        // A directory has one name, and moves to it: here is kept which it was.
        let kept = kept_name(id);
        if self.staged(client, &kept).await?.is_some() {
            return Ok(());
        }
        let (staging, number) = (self.staging(client).await?, made.inode.0.to_string());
        let attributes = CreateAttributes { mode: 0o600, uid: 0, gid: 0 };
        client.symlink(self.tree, staging, &kept, number.as_bytes(), attributes).await.map(drop)
    }

    /// The directory that a name is in.
    async fn directory<L: Link>(
        &mut self,
        client: &Client<L>,
        id: u64,
        in_base: Option<&[u8]>,
    ) -> Result<InodeNumber, StoreError> {
        if let Some(path) = in_base {
            return self.in_base(client, path).await;
        }
        let kept = kept_name(id);
        let link = self.staged(client, &kept).await?.ok_or_else(|| lost(&kept))?;
        let number = client.read_link(self.tree, link.inode).await?;
        let number = str::from_utf8(&number).ok().and_then(|text| text.parse().ok());
        number.map(InodeNumber).ok_or_else(|| lost(&kept))
    }

    async fn name<L: Link>(
        &mut self,
        client: &Client<L>,
        frame: TreeFrame,
    ) -> Result<(), StoreError> {
        let TreeFrame::Name { id, in_base, directory, directory_in_base, name } = frame else {
            return Err(bad("is out of order"));
        };
        let directory = self.directory(client, directory, directory_in_base.as_deref()).await?;
        if found(client.lookup(self.tree, directory, &name).await)?.is_some() {
            // It was given before: what had it first is away.
            return Ok(());
        }
        let staged = id.to_string().into_bytes();
        let node = match (self.staged(client, &staged).await?, in_base) {
            (Some(there), _) if there.kind == FileKind::Directory => {
                let staging = self.staging(client).await?;
                let (from, to) = ((staging, &staged[..]), (directory, &name[..]));
                return client.rename(self.tree, from, to, RenameMode::NoReplace).await;
            }
            (Some(there), _) => there.inode,
            (None, Some(path)) => self.in_base(client, &path).await?,
            (None, None) => return Err(lost(&staged)),
        };
        client.link_inode(self.tree, node, directory, &name).await.map(drop)
    }

    /// All names are told: what has none is gone.
    async fn named<L: Link>(&mut self, client: &Client<L>) -> Result<(), StoreError> {
        let Some(staging) = self.staging.take() else { return Ok(()) };
        loop {
            let entries = client.read_directory(self.tree, staging, 0, ENTRIES).await?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let is_directory = entry.attributes.kind == FileKind::Directory;
                client.remove(self.tree, staging, &entry.name, is_directory).await?;
            }
        }
        client.remove(self.tree, self.tree.root, &self.staging_name, true).await
    }
}

/// Where it is kept which inode a new directory is.
fn kept_name(id: u64) -> Vec<u8> {
    format!("{id}@").into_bytes()
}
