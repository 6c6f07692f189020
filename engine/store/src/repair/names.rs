//! Names of a shard: entries that lead nowhere, inodes that no name leads to, counts of links and
//! entries.
//!
//! Changes of the namespace wait meanwhile. A pass looks at everything and repairs what it can; what it
//! repairs may make more to do (an entry dropped leaves an inode without a name), so passes follow until
//! one finds nothing.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::{InodeNumber, SnapshotId};

use super::Repairs;
use crate::api::{FileKind, SIZE_BYTES_MAX, SubvolumeKind};
use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::key::{Counter, Position, Tree, Value};
use crate::lock::Access;
use crate::namespace::{
    Entry, Hashed, Inode, NameTable, Namespace, SHARD_LOCK, Slot, Xattr, home_place, inode_position,
};
use crate::subvolume::roots;

/// Passes before it is given up: each makes what is below fewer.
const PASSES_MAX: u32 = 16;
/// Name of the directory for what has lost its name.
const LOST_FOUND: &[u8] = b"lost+found";
/// Longest chain of places of one hash; see docs/format.md, "Trees and positions".
const PROBES_MAX: u64 = 1024;

type Key = (u64, u32);

struct Seen {
    inode: Inode,
    names: u32,
    entries: u64,
}

/// Repairs names until nothing is left to do.
pub(super) async fn repair(
    context: &Rc<Context>,
    namespace: &Rc<Namespace>,
    repairs: &mut Repairs,
) -> Result<()> {
    let _alone = namespace.locks.lock(SHARD_LOCK, Access::Exclusive).await;
    let mut pass = Pass { context, inodes: BTreeMap::new(), repairs };
    for _ in 0..PASSES_MAX {
        let before = pass.repairs.count;
        pass.inodes.clear();
        pass.inodes().await?;
        pass.roots().await?;
        pass.slots::<Entry>(Tree::Dirents).await?;
        pass.slots::<Xattr>(Tree::Xattrs).await?;
        pass.counts().await?;
        if pass.repairs.count == before {
            return Ok(());
        }
    }
    Err(StoreError::corrupt("names", "are not whole after many passes of repair"))
}

struct Pass<'a> {
    context: &'a Rc<Context>,
    inodes: BTreeMap<Key, Seen>,
    repairs: &'a mut Repairs,
}

impl Pass<'_> {
    fn is_leaving(&self, snapshot: u32) -> bool {
        self.context.gate.is_closed(SnapshotId(snapshot))
    }

    async fn next(&self, tree: Tree, from: Position) -> Result<Option<(Position, Value)>> {
        self.context.engine.read().next(tree, from, Position::MAX).await
    }

    /// Reads all inodes; drops what is none.
    async fn inodes(&mut self) -> Result<()> {
        let mut from = Position::MIN;
        let mut counted = 0;
        while let Some((at, value)) = self.next(Tree::Inodes, from).await? {
            from = at.successor();
            match Inode::decode(&value) {
                Ok(inode) => {
                    counted += u64::from(!inode.is_volume);
                    let seen = Seen { inode, names: 0, entries: 0 };
                    self.inodes.insert((at.inode, at.snapshot), seen);
                }
                Err(error) => {
                    self.context.engine.note_lost_keys(Tree::Inodes, at, at);
                    self.drop_key(Tree::Inodes, at).await?;
                    self.repairs.add(format!("inode at {at:?} dropped: {error}"));
                }
            }
        }
        let says = self.context.engine.counter(Counter::INODES);
        if says != counted && self.context.background.running() == 0 {
            let delta = counted.wrapping_sub(says).cast_signed();
            self.transact(async |transaction| {
                transaction.add(Counter::INODES, delta);
                Ok(())
            })
            .await?;
            self.repairs.add(format!("the counter of inodes is {counted}, was {says}"));
        }
        Ok(())
    }

    async fn transact<T>(
        &self,
        work: impl AsyncFnMut(&mut crate::transaction::Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.context.engine.transact(work).await
    }

    async fn drop_key(&self, tree: Tree, at: Position) -> Result<()> {
        self.transact(async |transaction| {
            transaction.delete(tree, at);
            Ok(())
        })
        .await
    }

    async fn store(&self, (inode, snapshot): Key, value: &Inode) -> Result<()> {
        let at = inode_position(InodeNumber(inode), SnapshotId(snapshot));
        self.transact(async |transaction| {
            transaction.put(Tree::Inodes, at, value.encode());
            Ok(())
        })
        .await
    }

    /// Makes the roots of subvolumes anew that are gone: else all below would be lost with them.
    async fn roots(&mut self) -> Result<()> {
        for (_, root) in roots(self.context).await? {
            let key = (root.inode.0, root.snapshot.0);
            if self.inodes.contains_key(&key) || self.is_leaving(key.1) {
                continue;
            }
            let volume = root.kind == SubvolumeKind::Volume;
            let inode = self.new_inode(root.inode, volume);
            self.store(key, &inode).await?;
            self.repairs.add(format!("root inode {} made anew", root.inode));
            self.inodes.insert(key, Seen { inode, names: 0, entries: 0 });
        }
        Ok(())
    }

    /// A directory that is its own parent, or a volume.
    fn new_inode(&self, number: InodeNumber, is_volume: bool) -> Inode {
        let (now, random) = (self.context.now(), self.context.engine.runtime().random_u64());
        let size = if is_volume { SIZE_BYTES_MAX } else { 0 };
        Inode {
            kind: if is_volume { FileKind::File } else { FileKind::Directory },
            is_volume,
            mode: if is_volume { 0o600 } else { 0o755 },
            uid: 0,
            gid: 0,
            links: 1,
            generation: (random >> 32) as u32,
            size,
            data_limit: size,
            parent: if is_volume { InodeNumber(0) } else { number },
            hash_key: random,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            target: Vec::new(),
        }
    }

    /// Looks at every place of a hashed table; drops those that say nothing or cannot be found.
    async fn slots<T: Hashed>(&mut self, tree: Tree) -> Result<()> {
        let mut from = Position::MIN;
        while let Some((at, value)) = self.next(tree, from).await? {
            from = at.successor();
            if self.is_leaving(at.snapshot) {
                continue;
            }
            let Some(owner) = self.inodes.get(&(at.inode, at.snapshot)) else {
                self.drop_key(tree, at).await?;
                self.repairs.add(format!("{tree:?} at {at:?} dropped: its inode does not exist"));
                continue;
            };
            let hash_key = owner.inode.hash_key;
            match T::decode(&value) {
                Ok(Slot::Entry(entry)) => self.entry(tree, at, hash_key, &entry, &value).await?,
                Ok(Slot::Whiteout) => {
                    if !self.is_taken(tree, at.offset + 1, at).await? {
                        self.drop_key(tree, at).await?;
                        self.repairs.add(format!("{tree:?} at {at:?}: a whiteout without use"));
                    }
                }
                Err(error) => {
                    self.context.engine.note_lost_keys(tree, at, at);
                    self.drop_key(tree, at).await?;
                    self.repairs.add(format!("{tree:?} at {at:?} dropped: {error}"));
                }
            }
        }
        Ok(())
    }

    async fn is_taken(&self, tree: Tree, place: u64, at: Position) -> Result<bool> {
        let position = Position { offset: place, ..at };
        Ok(self.context.engine.read().get(tree, position).await?.is_some())
    }

    /// An entry or attribute: is found where it is, and leads somewhere.
    async fn entry<T: Hashed>(
        &mut self,
        tree: Tree,
        at: Position,
        hash_key: u64,
        entry: &T,
        value: &Value,
    ) -> Result<()> {
        let first = home_place(hash_key, entry.name());
        let mut reached = first <= at.offset && at.offset - first < PROBES_MAX;
        for place in first..at.offset.min(first.saturating_add(PROBES_MAX)) {
            reached = reached && self.is_taken(tree, place, at).await?;
        }
        if !reached {
            return self.move_entry(tree, at, hash_key, entry).await;
        }
        if T::IS_ENTRY
            && let Ok(Slot::Entry(name)) = Entry::decode(value)
        {
            self.name(at, &name).await?;
        }
        Ok(())
    }

    /// Puts what is not found by its name where it is.
    async fn move_entry<T: Hashed>(
        &mut self,
        tree: Tree,
        at: Position,
        hash_key: u64,
        entry: &T,
    ) -> Result<()> {
        let (inode, snapshot) = (InodeNumber(at.inode), SnapshotId(at.snapshot));
        let table = NameTable { tree, inode, snapshot, hash_key };
        self.transact(async |transaction| {
            transaction.delete(tree, at);
            let found = table.find::<T>(transaction, entry.name()).await?;
            if found.entry.is_none() {
                table.put(transaction, found.place, entry);
            }
            Ok(())
        })
        .await?;
        self.repairs.add(format!("{tree:?} at {at:?} moved to the place of its name"));
        Ok(())
    }

    /// Counts a name, or drops it: it leads nowhere, or is a second one of a directory.
    async fn name(&mut self, at: Position, entry: &Entry) -> Result<()> {
        let shown = String::from_utf8_lossy(&entry.name).into_owned();
        let owner_is_directory = self
            .inodes
            .get(&(at.inode, at.snapshot))
            .is_some_and(|owner| owner.inode.kind == FileKind::Directory);
        let child = self.inodes.get_mut(&(entry.inode.0, at.snapshot));
        let why = match child {
            _ if !owner_is_directory => "that is no directory",
            None => "its inode does not exist",
            Some(child) if child.inode.kind != entry.kind => "its inode is of another kind",
            Some(child)
                if child.inode.kind == FileKind::Directory
                    && (child.names > 0 || child.inode.parent.0 != at.inode) =>
            {
                "the directory is elsewhere"
            }
            Some(child) => {
                child.names += 1;
                if let Some(owner) = self.inodes.get_mut(&(at.inode, at.snapshot)) {
                    owner.entries += 1;
                }
                return Ok(());
            }
        };
        let (inode, snapshot) = (InodeNumber(at.inode), SnapshotId(at.snapshot));
        let table = NameTable { tree: Tree::Dirents, inode, snapshot, hash_key: 0 };
        self.transact(async |transaction| table.remove::<Entry>(transaction, at.offset).await)
            .await?;
        self.repairs.add(format!("entry {shown:?} of directory {} dropped: {why}", at.inode));
        Ok(())
    }

    /// Links, sizes, and what has no name.
    async fn counts(&mut self) -> Result<()> {
        let mut orphans = Vec::new();
        let mut wrong = Vec::new();
        for (key, seen) in &self.inodes {
            let inode = &seen.inode;
            if inode.is_volume || self.is_leaving(key.1) {
                continue;
            }
            let directory = inode.kind == FileKind::Directory;
            let is_root = directory && inode.parent.0 == key.0;
            let links = seen.names + u32::from(is_root);
            if links == 0 {
                orphans.push(*key);
                continue;
            }
            let size = if directory { seen.entries } else { inode.size };
            if inode.links != links || inode.size != size {
                wrong.push((*key, links, size));
            }
        }
        for (key, links, size) in wrong {
            let Some(seen) = self.inodes.get(&key) else { continue };
            let fixed = Inode { links, size, ..seen.inode.clone() };
            let was = (seen.inode.links, seen.inode.size);
            self.store(key, &fixed).await?;
            self.repairs
                .add(format!("inode {}: links and size {was:?} are {links}, {size}", key.0));
        }
        for key in orphans {
            self.attach(key).await?;
        }
        Ok(())
    }

    /// Gives an inode a name in lost+found of its subvolume.
    async fn attach(&mut self, (number, snapshot): Key) -> Result<()> {
        let found = roots(self.context).await?;
        let root = found.iter().find(|(_, root)| root.snapshot.0 == snapshot);
        let Some((_, root)) = root else { return Ok(()) };
        let folder = self.lost_found(root.inode, SnapshotId(snapshot)).await?;
        let (inode, version) = (InodeNumber(number), SnapshotId(snapshot));
        let name = format!("#{number}").into_bytes();
        self.transact(async |transaction| {
            let at = inode_position(folder, version);
            let missing = || StoreError::corrupt("lost+found", "is gone");
            let mut parent = match transaction.get(Tree::Inodes, at).await? {
                Some(value) => Inode::decode(&value)?,
                None => return Err(missing()),
            };
            let of = inode_position(inode, version);
            let Some(value) = transaction.get(Tree::Inodes, of).await? else { return Ok(()) };
            let mut orphan = Inode::decode(&value)?;
            let hash_key = parent.hash_key;
            let table =
                NameTable { tree: Tree::Dirents, inode: folder, snapshot: version, hash_key };
            let found = table.find::<Entry>(transaction, &name).await?;
            if found.entry.is_some() {
                return Err(StoreError::AlreadyExists { what: "a name in lost+found".to_owned() });
            }
            let entry = Entry { inode, kind: orphan.kind, name: name.clone() };
            table.put(transaction, found.place, &entry);
            parent.size += 1;
            transaction.put(Tree::Inodes, at, parent.encode());
            orphan.links = 1;
            if orphan.kind == FileKind::Directory {
                orphan.parent = folder;
            }
            transaction.put(Tree::Inodes, of, orphan.encode());
            Ok(())
        })
        .await?;
        self.repairs
            .add(format!("inode {number}: no name led to it; it is lost+found/#{number} now"));
        Ok(())
    }

    /// The directory lost+found of a tree, made when there is none.
    async fn lost_found(&self, root: InodeNumber, snapshot: SnapshotId) -> Result<InodeNumber> {
        let shard_bits = self.context.engine.shard_count().trailing_zeros();
        let home = u64::from(self.context.shard().0);
        self.transact(async |transaction| {
            let at = inode_position(root, snapshot);
            let Some(value) = transaction.get(Tree::Inodes, at).await? else {
                return Err(StoreError::corrupt("root", format!("inode {root} does not exist")));
            };
            let mut parent = Inode::decode(&value)?;
            let hash_key = parent.hash_key;
            let table = NameTable { tree: Tree::Dirents, inode: root, snapshot, hash_key };
            let found = table.find::<Entry>(transaction, LOST_FOUND).await?;
            match found.entry {
                Some(entry) if entry.kind == FileKind::Directory => return Ok(entry.inode),
                Some(_) => {
                    let what = "lost+found, which is no directory: rename it".to_owned();
                    return Err(StoreError::AlreadyExists { what });
                }
                None => {}
            }
            let number = InodeNumber(transaction.take(Counter::NEXT_INODE) << shard_bits | home);
            let inode = Inode { parent: root, mode: 0o700, ..self.new_inode(number, false) };
            transaction.put(Tree::Inodes, inode_position(number, snapshot), inode.encode());
            let kind = FileKind::Directory;
            let entry = Entry { inode: number, kind, name: LOST_FOUND.to_vec() };
            table.put(transaction, found.place, &entry);
            parent.size += 1;
            transaction.put(Tree::Inodes, at, parent.encode());
            transaction.add(Counter::INODES, 1);
            Ok(number)
        })
        .await
    }
}
