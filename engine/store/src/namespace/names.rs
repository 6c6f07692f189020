//! Creating, linking and removing names.

use std::rc::Rc;

use engine_base::InodeNumber;

use super::format::Entry;
use super::{Inode, InodeRef, Namespace, check_name, inode_position, shown};
use crate::api::{Attributes, CreateAttributes, FileKind, SYMLINK_BYTES_MAX, TreeRef};
use crate::data::forget_in;
use crate::error::{Result, StoreError};
use crate::key::{Counter, Tree};
use crate::limits::{LINKS_MAX, NAME_RETRIES_MAX};
use crate::lock::Access;
use crate::logged::{self, Intent, OperationId};
use crate::transaction::Transaction;

/// What a new inode is made of.
struct NewInode {
    kind: FileKind,
    target: Vec<u8>,
    attributes: CreateAttributes,
}

impl Namespace {
    pub(super) async fn lookup(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: &[u8],
    ) -> Result<Attributes> {
        self.reading(tree, async |tree| {
            let directory = InodeRef::of(tree, directory);
            // One transaction: a name that is replaced meanwhile is never seen missing.
            let look = async |transaction: &mut Transaction<'_>| {
                let parent = directory.load_directory(transaction).await?;
                let table = directory.table(Tree::Dirents, &parent);
                let found = table.find::<Entry>(transaction, name).await?;
                let Some(entry) = found.entry else {
                    return Err(StoreError::not_found(shown(name)));
                };
                let inode = InodeRef::of(tree, entry.inode).load(transaction).await?;
                Ok(inode.attributes(entry.inode))
            };
            self.context.engine.transact(look).await
        })
        .await
    }

    pub(super) async fn create(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: Vec<u8>,
        kind: FileKind,
        attributes: CreateAttributes,
    ) -> Result<Attributes> {
        if kind == FileKind::Symlink {
            return Err(StoreError::invalid("a symbolic link needs its target"));
        }
        let new = NewInode { kind, target: Vec::new(), attributes };
        self.create_inode(tree, directory, name, new).await
    }

    pub(super) async fn symlink(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: Vec<u8>,
        target: Vec<u8>,
        attributes: CreateAttributes,
    ) -> Result<Attributes> {
        if !(1..=SYMLINK_BYTES_MAX).contains(&target.len()) || target.contains(&0) {
            return Err(StoreError::invalid(format!(
                "link target: 1 to {SYMLINK_BYTES_MAX} bytes without NUL"
            )));
        }
        let attributes = CreateAttributes { mode: 0o777, ..attributes };
        let new = NewInode { kind: FileKind::Symlink, target, attributes };
        self.create_inode(tree, directory, name, new).await
    }

    async fn create_inode(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: Vec<u8>,
        new: NewInode,
    ) -> Result<Attributes> {
        check_name(&name)?;
        let (_pass, tree) = self.enter(tree).await?;
        let engine = &self.context.engine;
        let _reservation = engine.reserve(0).await?;
        let _locks = self.lock([(directory, Access::Exclusive)]).await?;
        let (now, random) = (self.context.now(), engine.runtime().random_u64());
        let directory = InodeRef::of(tree, directory);
        let shard_bits = engine.shard_count().trailing_zeros();
        engine
            .transact(async |transaction| {
                let mut parent = directory.load_directory(transaction).await?;
                let table = directory.table(Tree::Dirents, &parent);
                let found = table.find::<Entry>(transaction, &name).await?;
                if found.entry.is_some() {
                    return Err(StoreError::AlreadyExists { what: shown(&name) });
                }
                let sequence = transaction.take(Counter::NEXT_INODE)?;
                let number =
                    InodeNumber(sequence << shard_bits | u64::from(self.context.shard().0));
                let inode = new.inode(directory.number, now, random);
                let position = inode_position(number, tree.snapshot);
                transaction.put_layered(Tree::Inodes, position, inode.encode());
                let entry = Entry { inode: number, kind: new.kind, name: name.clone() };
                table.put(transaction, found.place, &entry);
                transaction.add(Counter::INODES, 1);
                parent.size += 1;
                parent.touch(now);
                directory.store(transaction, &parent).await?;
                Ok(inode.attributes(number))
            })
            .await
    }

    pub(super) async fn read_link(&self, tree: TreeRef, number: InodeNumber) -> Result<Vec<u8>> {
        self.reading(tree, async |tree| {
            let mut transaction = self.context.engine.read();
            let inode = InodeRef::of(tree, number).load(&mut transaction).await?;
            if inode.kind != FileKind::Symlink {
                return Err(StoreError::invalid(format!("inode {number} is not a symbolic link")));
            }
            Ok(inode.target)
        })
        .await
    }

    pub(super) async fn link(
        &self,
        tree: TreeRef,
        number: InodeNumber,
        directory: InodeNumber,
        name: Vec<u8>,
    ) -> Result<Attributes> {
        check_name(&name)?;
        let (_pass, tree) = self.enter(tree).await?;
        let engine = &self.context.engine;
        let _reservation = engine.reserve(0).await?;
        let wanted = [(directory, Access::Exclusive), (number, Access::Exclusive)];
        let _locks = self.lock(wanted).await?;
        let now = self.context.now();
        let (directory, target) = (InodeRef::of(tree, directory), InodeRef::of(tree, number));
        engine
            .transact(async |transaction| {
                let mut inode = target.load(transaction).await?;
                if inode.kind == FileKind::Directory {
                    return Err(StoreError::IsDirectory { what: format!("inode {number}") });
                }
                if inode.links >= LINKS_MAX {
                    return Err(StoreError::TooManyLinks { inode: number.0 });
                }
                let mut parent = directory.load_directory(transaction).await?;
                let table = directory.table(Tree::Dirents, &parent);
                let found = table.find::<Entry>(transaction, &name).await?;
                if found.entry.is_some() {
                    return Err(StoreError::AlreadyExists { what: shown(&name) });
                }
                let entry = Entry { inode: number, kind: inode.kind, name: name.clone() };
                table.put(transaction, found.place, &entry);
                inode.links += 1;
                inode.ctime = now;
                target.store(transaction, &inode).await?;
                parent.size += 1;
                parent.touch(now);
                directory.store(transaction, &parent).await?;
                Ok(inode.attributes(number))
            })
            .await
    }

    /// The entry of a name as it is now; it may change until its inode is locked.
    pub(super) async fn peek(&self, directory: InodeRef, name: &[u8]) -> Result<Option<Entry>> {
        let mut transaction = self.context.engine.read();
        let parent = directory.load_directory(&mut transaction).await?;
        let table = directory.table(Tree::Dirents, &parent);
        Ok(table.find::<Entry>(&mut transaction, name).await?.entry)
    }

    pub(super) async fn remove(
        self: &Rc<Self>,
        tree: TreeRef,
        directory: InodeNumber,
        name: &[u8],
        directory_only: bool,
    ) -> Result<()> {
        check_name(name)?;
        self.wait_for_removals().await?;
        let (_pass, tree) = self.enter(tree).await?;
        let directory = InodeRef::of(tree, directory);
        for _ in 0..NAME_RETRIES_MAX {
            let Some(entry) = self.peek(directory, name).await? else {
                return Err(StoreError::not_found(shown(name)));
            };
            let wanted = [(directory.number, Access::Exclusive), (entry.inode, Access::Exclusive)];
            let _locks = self.lock(wanted).await?;
            let now = self.context.now();
            let removed = self
                .context
                .engine
                .transact(async |transaction| {
                    remove_entry(transaction, directory, &entry, directory_only, now).await
                })
                .await?;
            if let Some(dropped) = removed {
                self.after_drop(&[(InodeRef::of(tree, entry.inode), dropped)]);
                return Ok(());
            }
        }
        Err(overtaken(name))
    }

    /// Goes on, in the background, with the data of inodes that have lost a name.
    pub(super) fn after_drop(self: &Rc<Self>, dropped: &[(InodeRef, Dropped)]) {
        for (inode, dropped) in dropped {
            if *dropped != Dropped::Kept {
                self.forget(inode.key());
            }
            if let Dropped::Logged(operation) = dropped {
                self.start_removal(*operation, inode.number, inode.tree.snapshot);
            }
        }
    }
}

/// What became of an inode that lost a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// It has other names.
    Kept,
    /// It is gone with all its data.
    Gone,
    /// It is gone, its data goes with a logged operation.
    Logged(OperationId),
}

pub(super) fn overtaken(name: &[u8]) -> StoreError {
    StoreError::Busy {
        what: shown(name),
        why: format!("changed {NAME_RETRIES_MAX} times while it was being locked; try again"),
    }
}

/// Removes the name of `entry`. `None`: the name is not what it was when its inode was locked.
async fn remove_entry(
    transaction: &mut Transaction<'_>,
    directory: InodeRef,
    entry: &Entry,
    directory_only: bool,
    now: i64,
) -> Result<Option<Dropped>> {
    let mut parent = directory.load_directory(transaction).await?;
    let table = directory.table(Tree::Dirents, &parent);
    let found = table.find::<Entry>(transaction, &entry.name).await?;
    match &found.entry {
        None => return Err(StoreError::not_found(shown(&entry.name))),
        Some(now_there) if now_there != entry => return Ok(None),
        Some(_) => {}
    }
    let victim = InodeRef::of(directory.tree, entry.inode);
    let inode = victim.load(transaction).await?;
    match (inode.kind == FileKind::Directory, directory_only) {
        (true, false) => return Err(StoreError::IsDirectory { what: shown(&entry.name) }),
        (false, true) => return Err(StoreError::NotDirectory { what: shown(&entry.name) }),
        (true, true) if inode.size > 0 => {
            return Err(StoreError::NotEmpty { what: shown(&entry.name) });
        }
        _ => {}
    }
    table.remove::<Entry>(transaction, found.place).await?;
    parent.size = parent.size.saturating_sub(1);
    parent.touch(now);
    directory.store(transaction, &parent).await?;
    drop_name(transaction, victim, inode, now).await.map(Some)
}

/// Takes one name from an inode; with the last one goes the inode.
pub(super) async fn drop_name(
    transaction: &mut Transaction<'_>,
    victim: InodeRef,
    mut inode: Inode,
    now: i64,
) -> Result<Dropped> {
    inode.links = inode.links.saturating_sub(1);
    if inode.links > 0 {
        inode.ctime = now;
        victim.store(transaction, &inode).await?;
        return Ok(Dropped::Kept);
    }
    let snapshot = victim.tree.snapshot;
    Inode::remove(transaction, victim.number, snapshot).await?;
    if inode.data_limit == 0 {
        return Ok(Dropped::Gone);
    }
    let engine = transaction.engine();
    let shard_count = engine.shard_count();
    let last_shard = victim.number.data_shard(inode.data_limit - 1, shard_count);
    let one_chunk = inode.data_limit <= 1 << engine_base::ids::CHUNK_SIZE_LOG2;
    let all_here = shard_count == 1 || (one_chunk && last_shard == engine.shard());
    if all_here && forget_in(transaction, victim.number, snapshot).await? {
        return Ok(Dropped::Gone);
    }
    let intent = Intent::Remove { inode: victim.number, snapshot };
    Ok(Dropped::Logged(logged::put(transaction, &intent)?))
}

impl NewInode {
    fn inode(&self, parent: InodeNumber, now: i64, random: u64) -> Inode {
        Inode {
            kind: self.kind,
            is_volume: false,
            copied: false,
            mode: self.attributes.mode & 0o7777,
            uid: self.attributes.uid,
            gid: self.attributes.gid,
            links: 1,
            generation: (random >> 32) as u32,
            size: self.target.len() as u64,
            data_limit: 0,
            parent,
            hash_key: random,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            target: self.target.clone(),
        }
    }
}

impl Inode {
    /// Its content changed now.
    pub(super) fn touch(&mut self, now: i64) {
        self.mtime = now;
        self.ctime = now;
    }
}
