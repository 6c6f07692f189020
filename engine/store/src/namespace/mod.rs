//! File trees on their home shard: inodes, names, attributes, and files made of blocks that may lie
//! on other shards.
//!
//! Always true:
//! - One transaction makes one namespace operation: names, link counts, sizes of directories, times
//!   and the counter of inodes change together.
//! - Whoever changes an inode or what it names holds its lock; several are locked in ascending order.
//!   Inode 0 stands for the whole shard: all changes hold it shared, the check holds it alone. Only
//!   work in the background, which may take for ever, does not: it changes no more than a limit.
//! - A file's blocks lie below its `data_limit` on all shards. Its home raises and flushes the limit
//!   before another shard may write past it, so recovery never meets blocks it does not know of.
//! - Once a file is *settled* (in memory), nothing but zeroes lies past its end. A file is settled
//!   before its first growth after the shard was opened: a crash may have lost the growth of its
//!   size and kept the data on another shard.
//! - A request is about the version that its subvolume has when it is carried out. Changes hold a pass of that version
//!   from before they look at anything until all is committed, so a snapshot has all of a change or nothing.
//!
//! After a crash without fsync, blocks that other shards had not flushed read as they were before, or
//! as holes, even if the size survived. Times of access are only changed on request.

mod copy;
mod directory;
mod dirty;
mod file;
mod format;
mod layers;
mod names;
mod operation;
mod recent;
mod rename;
mod resize;
mod table;
mod xattr;

use std::cell::RefCell;
use std::rc::Rc;

use engine_base::{InodeNumber, SnapshotId, SubvolumeId};
use smallvec::SmallVec;

use crate::api::{
    Attributes, FileKind, NAME_BYTES_MAX, Reply, Request, TreeDiffCursor, TreeRef, Whose,
};
use crate::background::Held;
use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::gate::Pass;
use crate::key::Tree;
use crate::lock::{Access, LockGuard, LockTable};
use crate::times::Timed;
use crate::transaction::Transaction;
use crate::tree_diff::{self, Compared};

pub(crate) use format::{Entry, Hashed, Inode, Slot, Xattr, inode_position};
pub(crate) use layers::absorb_key;
#[cfg(test)]
pub(crate) use table::PLACES;
pub(crate) use table::{NameTable, home_place};

use recent::Recent;

/// The lock of the whole shard's namespace.
pub(crate) const SHARD_LOCK: u64 = 0;

/// File trees of one shard.
pub(crate) struct Namespace {
    pub(crate) context: Rc<Context>,
    /// By inode; see the module's header.
    pub(crate) locks: Rc<LockTable<u64>>,
    /// One fsync of a file at a time: a second must not overtake the flush of the first.
    syncs: Rc<LockTable<u64>>,
    /// Other shards that hold unflushed data of a file.
    dirty: RefCell<Recent<SmallVec<[u16; 4]>>>,
    /// Files that are settled, and the version that their subvolume had then.
    settled: RefCell<Recent<SnapshotId>>,
}

/// A tree in the version that it has while one request is carried out.
#[derive(Clone, Copy)]
struct TreeAt {
    subvolume: SubvolumeId,
    snapshot: SnapshotId,
    root: InodeNumber,
}

/// An inode in a tree.
#[derive(Clone, Copy)]
struct InodeRef {
    tree: TreeAt,
    number: InodeNumber,
}

/// A file of a subvolume: what is known of it outlives changes of the subvolume's version.
type FileKey = (SubvolumeId, InodeNumber);

impl Namespace {
    pub(crate) fn new(context: &Rc<Context>) -> Rc<Self> {
        let limits = &context.limits;
        Rc::new(Self {
            context: Rc::clone(context),
            locks: LockTable::new(),
            syncs: LockTable::new(),
            dirty: RefCell::new(Recent::new(limits.dirty_files_max)),
            settled: RefCell::new(Recent::new(limits.settled_files_max)),
        })
    }

    /// Carries out a request on a file tree.
    pub(crate) async fn handle(self: &Rc<Self>, request: Request) -> Result<Reply> {
        let attributes = |attributes| Reply::Attributes(Box::new(attributes));
        let unit = |()| Reply::Unit;
        match request {
            Request::Lookup { tree, directory, name } => {
                self.lookup(tree, directory, &name).await.map(attributes)
            }
            Request::GetAttributes { tree, inode } => {
                self.get_attributes(tree, inode).await.map(attributes)
            }
            Request::SetAttributes { tree, inode, set } => {
                self.set_attributes(tree, inode, set).await.map(attributes)
            }
            Request::Create { tree, directory, name, kind, attributes: new } => {
                self.create(tree, directory, name, kind, new).await.map(attributes)
            }
            Request::Symlink { tree, directory, name, target, attributes: new } => {
                self.symlink(tree, directory, name, target, new).await.map(attributes)
            }
            Request::ReadLink { tree, inode } => {
                self.read_link(tree, inode).await.map(Reply::Bytes)
            }
            Request::Link { tree, inode, directory, name } => {
                self.link(tree, inode, directory, name).await.map(attributes)
            }
            Request::Remove { tree, directory, name, directory_only } => {
                self.remove(tree, directory, &name, directory_only).await.map(unit)
            }
            Request::Rename { tree, from_directory, from_name, to_directory, to_name, mode } => {
                let (from, to) = ((from_directory, from_name), (to_directory, to_name));
                self.rename(tree, from, to, mode).await.map(unit)
            }
            Request::ReadDirectory { tree, directory, cookie, limit } => {
                self.read_directory(tree, directory, cookie, limit).await.map(Reply::Entries)
            }
            request @ (Request::FileRead { .. }
            | Request::FileWrite { .. }
            | Request::FileCopy { .. }
            | Request::FilePunch { .. }
            | Request::FileSync { .. }) => self.handle_data(request).await,
            Request::XattrGet { tree, inode, name } => {
                self.xattr_get(tree, inode, &name).await.map(Reply::Bytes)
            }
            Request::XattrSet { tree, inode, name, value, mode } => {
                self.xattr_set(tree, inode, name, value, mode).await.map(unit)
            }
            Request::XattrList { tree, inode } => {
                self.xattr_list(tree, inode).await.map(Reply::Names)
            }
            Request::XattrRemove { tree, inode, name } => {
                self.xattr_remove(tree, inode, &name).await.map(unit)
            }
            other => Err(StoreError::invalid(format!("not about a file tree: {other:.40?}"))),
        }
    }

    /// Carries out a request on the content of a file.
    async fn handle_data(&self, request: Request) -> Result<Reply> {
        match request {
            Request::FileRead { tree, inode, offset, len } => {
                self.file_read(tree, inode, offset, u64::from(len)).await.map(Reply::Data)
            }
            Request::FileWrite { tree, inode, offset, data } => self
                .file_write(tree, inode, offset, &data)
                .await
                .map(|attributes| Reply::Attributes(Box::new(attributes))),
            Request::FileCopy { source, target, len } => {
                self.file_copy(source, target, len).await.map(Reply::Copied)
            }
            Request::FilePunch { tree, inode, offset, len } => {
                self.file_punch(tree, inode, offset, len).await.map(|()| Reply::Unit)
            }
            Request::FileSync { tree, inode } => {
                self.file_sync(tree, inode).await.map(|()| Reply::Unit)
            }
            other => Err(StoreError::invalid(format!("not about a file: {other:.40?}"))),
        }
    }

    fn check_home(&self, tree: TreeRef) -> Result<()> {
        let home = tree.root.home(self.context.engine.shard_count());
        if tree.root.0 == 0 || home != self.context.shard() {
            return Err(StoreError::invalid(format!("tree {} is not on this shard", tree.root)));
        }
        Ok(())
    }

    /// The tree as it is now, to be read.
    async fn to_read(&self, tree: TreeRef) -> Result<TreeAt> {
        self.check_home(tree)?;
        let TreeRef { subvolume, root } = tree;
        let snapshot = self.context.to_read(Whose::Subvolume(subvolume)).await?;
        Ok(TreeAt { subvolume, snapshot, root })
    }

    /// Reads of the tree as it is now. When it is taken back to a snapshot meanwhile, what it was may be gone from
    /// other shards: then again.
    async fn reading<T>(
        &self,
        tree: TreeRef,
        read: impl AsyncFn(TreeAt) -> Result<T>,
    ) -> Result<T> {
        loop {
            let at = self.to_read(tree).await?;
            match read(at).await {
                Err(StoreError::NotFound { .. })
                    if self.context.current(tree.subvolume)?.version != at.snapshot => {}
                result => return result,
            }
        }
    }

    /// Leave to change the tree.
    async fn enter(&self, tree: TreeRef) -> Result<(Pass<'_>, TreeAt)> {
        self.check_home(tree)?;
        let TreeRef { subvolume, root } = tree;
        let (pass, snapshot, _) = self.context.to_write(Whose::Subvolume(subvolume)).await?;
        Ok((pass, TreeAt { subvolume, snapshot, root }))
    }

    /// Locks inodes, and the shard's namespace shared. The locks are in ascending order.
    ///
    /// # Errors
    /// That of background work which holds one of the inodes and makes no progress.
    async fn lock(
        &self,
        inodes: impl IntoIterator<Item = (InodeNumber, Access)>,
    ) -> Result<Vec<LockGuard<u64>>> {
        let wanted: SmallVec<[(u64, Access); 4]> =
            inodes.into_iter().map(|(inode, access)| (inode.0, access)).collect();
        let held: SmallVec<[Held; 4]> =
            wanted.iter().map(|(inode, _)| Held::Inode(*inode)).collect();
        let locks =
            self.locks.lock_all(std::iter::once((SHARD_LOCK, Access::Shared)).chain(wanted));
        let locks = self.context.engine.waits.on(Timed::BlockedInodeLock, locks);
        self.context.background.unless_stalled(&held, locks).await
    }

    /// Waits until there is room for one more removed file to be cleaned up.
    async fn wait_for_removals(&self) -> Result<()> {
        let below = self.context.background.wait_below(self.context.limits.removals_max);
        self.context.engine.waits.on(Timed::BlockedRemovals, below).await
    }

    /// Some of what differs between two snapshots of a tree.
    pub(crate) async fn diff(
        &self,
        tree: TreeRef,
        base: Option<SubvolumeId>,
        in_base: bool,
        from: TreeDiffCursor,
    ) -> Result<Reply> {
        let TreeAt { snapshot: now, .. } = self.to_read(tree).await?;
        let base = match base {
            Some(base) => Some(self.context.to_read(Whose::Subvolume(base)).await?),
            None => None,
        };
        let compared = Compared { base, now, in_base };
        let (paths, next) = tree_diff::changed(&self.context, compared, from).await?;
        Ok(Reply::ChangedPaths(paths, next))
    }

    async fn get_attributes(&self, tree: TreeRef, number: InodeNumber) -> Result<Attributes> {
        self.reading(tree, async |tree| {
            let mut transaction = self.context.engine.read();
            let inode = InodeRef::of(tree, number).load(&mut transaction).await?;
            Ok(inode.attributes(number))
        })
        .await
    }
}

impl InodeRef {
    fn of(tree: TreeAt, number: InodeNumber) -> Self {
        Self { tree, number }
    }

    fn key(self) -> FileKey {
        (self.tree.subvolume, self.number)
    }

    async fn load(self, transaction: &mut Transaction<'_>) -> Result<Inode> {
        match Inode::seen(transaction, self.number, self.tree.snapshot).await? {
            Some(inode) if inode.is_volume => {
                Err(StoreError::invalid(format!("inode {} is a volume", self.number)))
            }
            Some(inode) => Ok(inode),
            None => Err(StoreError::not_found(format!("inode {}", self.number))),
        }
    }

    async fn load_directory(self, transaction: &mut Transaction<'_>) -> Result<Inode> {
        let inode = self.load(transaction).await?;
        if inode.kind != FileKind::Directory {
            return Err(StoreError::NotDirectory { what: format!("inode {}", self.number) });
        }
        Ok(inode)
    }

    async fn load_file(self, transaction: &mut Transaction<'_>) -> Result<Inode> {
        let inode = self.load(transaction).await?;
        match inode.kind {
            FileKind::File => Ok(inode),
            FileKind::Directory => {
                Err(StoreError::IsDirectory { what: format!("inode {}", self.number) })
            }
            FileKind::Symlink => {
                Err(StoreError::invalid(format!("inode {} is a symbolic link", self.number)))
            }
        }
    }

    /// Puts an inode that was there before.
    async fn store(self, transaction: &mut Transaction<'_>, inode: &Inode) -> Result<()> {
        inode.store(transaction, self.number, self.tree.snapshot).await
    }

    fn table(self, tree: Tree, inode: &Inode) -> NameTable {
        let (snapshot, hash_key) = (self.tree.snapshot, inode.hash_key);
        NameTable { tree, inode: self.number, snapshot, hash_key }
    }
}

/// Whether `name` may name a directory entry.
fn check_name(name: &[u8]) -> Result<()> {
    let good = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if good {
        return Ok(());
    }
    Err(StoreError::invalid(format!(
        "name: 1 to {NAME_BYTES_MAX} bytes without / and NUL, and neither . nor .."
    )))
}

fn shown(name: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(name))
}
