//! Names of a shard: entries that lead nowhere, inodes that no name leads to, counts of links and
//! entries.
//!
//! Changes of the namespace wait meanwhile. A pass looks at everything and repairs what it can; what it
//! repairs may make more to do (an entry dropped leaves an inode without a name), so passes follow until
//! one finds nothing.
//!
//! A version is repaired where it has something itself, as it sees things; what an older version lacks, all that see it
//! lack, and get back.

use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::{InodeNumber, SnapshotId};

use super::Repairs;
use crate::api::{FileKind, SIZE_BYTES_MAX, SubvolumeKind};
use crate::check::{Census, Key};
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

/// Repairs names until nothing is left to do.
pub(super) async fn repair(
    context: &Rc<Context>,
    namespace: &Rc<Namespace>,
    repairs: &mut Repairs,
) -> Result<()> {
    let _alone = namespace.locks.lock(SHARD_LOCK, Access::Exclusive).await;
    let (census, directories) = (Census::default(), BTreeMap::new());
    let mut pass = Pass { context, census, directories, repairs };
    for _ in 0..PASSES_MAX {
        let before = pass.repairs.count;
        (pass.census, pass.directories) = (Census::default(), BTreeMap::new());
        pass.inodes().await?;
        pass.roots().await?;
        pass.copies().await?;
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
    census: Census,
    /// Of directories: where names are that lead to them.
    directories: BTreeMap<u64, Vec<Position>>,
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
        while let Some((at, value)) = self.next(Tree::Inodes, from).await? {
            from = at.successor();
            match Inode::decode_slot(&value) {
                Ok(slot) => self.census.add_inode(self.context, (at.inode, at.snapshot), slot),
                Err(error) => {
                    self.context.engine.note_lost_keys(Tree::Inodes, at, at);
                    self.drop_key(Tree::Inodes, at).await?;
                    self.repairs.add(format!("inode at {at:?} dropped: {error}"));
                }
            }
        }
        Ok(())
    }

    /// Whether older versions have an inode, too, is as it says; and each is counted once.
    async fn copies(&mut self) -> Result<()> {
        let (mut wrong, mut counted) = (Vec::new(), 0_u64);
        for (key, slot) in self.census.inodes() {
            let above = self.census.seen_above(key).is_some();
            match slot {
                Slot::Whiteout if above => {}
                Slot::Entry(inode) if inode.copied == above || inode.is_volume => {
                    counted += u64::from(!inode.is_volume && !above);
                }
                Slot::Entry(_) => {
                    counted += u64::from(!above);
                    wrong.push((key, Some(above)));
                }
                Slot::Whiteout => wrong.push((key, None)),
            }
        }
        for (key, copied) in wrong {
            let at = inode_position(InodeNumber(key.0), SnapshotId(key.1));
            self.transact(async |transaction| {
                match copied {
                    None => transaction.delete(Tree::Inodes, at),
                    Some(copied) => {
                        let value = transaction.get(Tree::Inodes, at).await?;
                        let Some(value) = value else { return Ok(()) };
                        let inode = Inode { copied, ..Inode::decode(&value)? };
                        transaction.put(Tree::Inodes, at, inode.encode());
                    }
                }
                Ok(())
            })
            .await?;
            let (number, version) = key;
            match copied {
                None => {
                    self.census.drop_inode(key);
                    let text = format!("inode {number} version {version}: a whiteout of nothing");
                    self.repairs.add(text);
                }
                Some(copied) => {
                    let is = if copied { "has" } else { "has not" };
                    self.repairs.add(format!(
                        "inode {number} version {version}: an older version {is} it, too"
                    ));
                }
            }
        }
        let says = self.context.engine.counter(Counter::INODES);
        if says != counted {
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

    /// Changes an inode as a version sees it.
    async fn change(&self, key: Key, change: impl Fn(&mut Inode)) -> Result<()> {
        let (number, version) = (InodeNumber(key.0), SnapshotId(key.1));
        self.transact(async |transaction| {
            if let Some(mut inode) = Inode::seen(transaction, number, version).await? {
                change(&mut inode);
                inode.store(transaction, number, version).await?;
            }
            Ok(())
        })
        .await
    }

    /// Makes the roots of subvolumes anew that are gone: else all below would be lost with them.
    async fn roots(&mut self) -> Result<()> {
        for (_, root) in roots(self.context).await? {
            let key = (root.inode.0, root.snapshot.0);
            if self.census.seen(key).is_some() || self.is_leaving(key.1) {
                continue;
            }
            let volume = root.kind == SubvolumeKind::Volume;
            let inode = self.new_inode(root.inode, volume);
            let at = inode_position(root.inode, root.snapshot);
            self.transact(async |transaction| {
                transaction.put(Tree::Inodes, at, inode.encode());
                Ok(())
            })
            .await?;
            self.repairs.add(format!("root inode {} made anew", root.inode));
            self.census.add_inode(self.context, key, Slot::Entry(inode));
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
            copied: false,
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
            let above = self.context.engine.read().seen_above(tree, at).await?;
            let slot = T::decode(&value);
            let owner = self.census.seen((at.inode, at.snapshot)).map(|owner| owner.hash_key);
            match (slot, owner) {
                (Err(error), _) => {
                    self.context.engine.note_lost_keys(tree, at, at);
                    self.drop_key(tree, at).await?;
                    self.repairs.add(format!("{tree:?} at {at:?} dropped: {error}"));
                }
                (Ok(Slot::Whiteout), owner) => {
                    // It hides what an older version has, or leads on.
                    let leads_on =
                        owner.is_some() && self.is_taken(tree, at.offset + 1, at).await?;
                    if above.is_some() || leads_on {
                        self.count::<T>(at, None, above.as_ref());
                    } else {
                        self.drop_key(tree, at).await?;
                        self.repairs.add(format!("{tree:?} at {at:?}: a whiteout without use"));
                    }
                }
                (Ok(Slot::Entry(_)), None) => {
                    self.drop_key(tree, at).await?;
                    self.repairs
                        .add(format!("{tree:?} at {at:?} dropped: its inode does not exist"));
                }
                (Ok(Slot::Entry(entry)), Some(hash_key)) => {
                    if self.entry(tree, at, hash_key, &entry, &value).await? {
                        self.count::<T>(at, Some(&value), above.as_ref());
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts what a place adds in its version, and what it hides.
    fn count<T: Hashed>(&mut self, at: Position, own: Option<&Value>, above: Option<&Value>) {
        if !T::IS_ENTRY {
            return;
        }
        let entry = |value: &Value| Entry::decode(value).ok().and_then(Slot::entry);
        let (own, hidden) = (own.and_then(entry), above.and_then(entry));
        let directory = (at.inode, at.snapshot);
        self.census.add_entry(self.context, directory, own.as_ref(), hidden.as_ref());
    }

    async fn is_taken(&self, tree: Tree, place: u64, at: Position) -> Result<bool> {
        let position = Position { offset: place, ..at };
        Ok(self.context.engine.read().seen(tree, position).await?.is_some())
    }

    /// An entry or attribute: is found where it is, and leads somewhere. Whether it stays.
    async fn entry<T: Hashed>(
        &mut self,
        tree: Tree,
        at: Position,
        hash_key: u64,
        entry: &T,
        value: &Value,
    ) -> Result<bool> {
        let first = home_place(hash_key, entry.name());
        let mut reached = first <= at.offset && at.offset - first < PROBES_MAX;
        for place in first..at.offset.min(first.saturating_add(PROBES_MAX)) {
            reached = reached && self.is_taken(tree, place, at).await?;
        }
        if !reached {
            self.move_entry(tree, at, hash_key, entry).await?;
            return Ok(false);
        }
        if T::IS_ENTRY
            && let Ok(Slot::Entry(name)) = Entry::decode(value)
        {
            return self.name(at, &name).await;
        }
        Ok(true)
    }

    /// Puts what is not found by its name where it is. It is counted in the next pass.
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
            table.remove::<T>(transaction, at.offset).await?;
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

    /// Whether a name stays; else it is dropped: it leads nowhere, or is a second one of a directory.
    async fn name(&mut self, at: Position, entry: &Entry) -> Result<bool> {
        let shown = String::from_utf8_lossy(&entry.name).into_owned();
        let owner = self.census.seen((at.inode, at.snapshot));
        let owner_is_directory = owner.is_some_and(|owner| owner.kind == FileKind::Directory);
        let child = self.census.seen((entry.inode.0, at.snapshot));
        let why = match child {
            _ if !owner_is_directory => "that is no directory",
            None => "its inode does not exist",
            Some(child) if child.kind != entry.kind => "its inode is of another kind",
            Some(child) if child.kind == FileKind::Directory => {
                if child.parent.0 == at.inode && !self.is_second(at, entry).await? {
                    self.directories.entry(entry.inode.0).or_default().push(at);
                    return Ok(true);
                }
                "the directory is elsewhere"
            }
            Some(_) => return Ok(true),
        };
        let (inode, snapshot) = (InodeNumber(at.inode), SnapshotId(at.snapshot));
        let table = NameTable { tree: Tree::Dirents, inode, snapshot, hash_key: 0 };
        self.transact(async |transaction| table.remove::<Entry>(transaction, at.offset).await)
            .await?;
        self.repairs.add(format!("entry {shown:?} of directory {} dropped: {why}", at.inode));
        Ok(false)
    }

    /// Whether the version sees another name of the same directory.
    async fn is_second(&self, at: Position, entry: &Entry) -> Result<bool> {
        for other in self.directories.get(&entry.inode.0).into_iter().flatten() {
            if (other.inode, other.offset) == (at.inode, at.offset) {
                continue;
            }
            let there = Position { snapshot: at.snapshot, ..*other };
            let seen = self.context.engine.read().seen(Tree::Dirents, there).await?;
            let seen = seen.and_then(|value| Entry::decode(&value).ok()).and_then(Slot::entry);
            if seen.is_some_and(|seen| seen.inode == entry.inode) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Links, sizes, and what has no name.
    async fn counts(&mut self) -> Result<()> {
        let mut orphans = Vec::new();
        let mut wrong = Vec::new();
        for key in self.census.keys() {
            let Some(inode) = self.census.seen(key) else { continue };
            if inode.is_volume || self.is_leaving(key.1) {
                continue;
            }
            let directory = inode.kind == FileKind::Directory;
            let is_root = directory && inode.parent.0 == key.0;
            let links = self.census.names(key) + u64::from(is_root);
            if links == 0 {
                orphans.push(key);
                continue;
            }
            let links = u32::try_from(links).unwrap_or(u32::MAX);
            let size = if directory { self.census.entries(key) } else { inode.size };
            if inode.links != links || inode.size != size {
                wrong.push((key, (inode.links, inode.size), (links, size)));
            }
        }
        for (key, was, (links, size)) in wrong {
            self.change(key, |inode| (inode.links, inode.size) = (links, size)).await?;
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
        let root = found.iter().find(|(_, root)| {
            let seen = self.census.seen((root.inode.0, snapshot));
            seen.is_some() && self.context.engine.versions.sees(SnapshotId(snapshot), root.snapshot)
        });
        let Some((_, root)) = root else { return Ok(()) };
        let version = SnapshotId(snapshot);
        let folder = self.lost_found(root.inode, version).await?;
        let inode = InodeNumber(number);
        let name = format!("#{number}").into_bytes();
        let table = |hash_key| NameTable {
            tree: Tree::Dirents,
            inode: folder,
            snapshot: version,
            hash_key,
        };
        let place = self
            .transact(async |transaction| {
                let Some(mut parent) = Inode::seen(transaction, folder, version).await? else {
                    return Err(StoreError::corrupt("lost+found", "is gone"));
                };
                let Some(mut orphan) = Inode::seen(transaction, inode, version).await? else {
                    return Ok(None);
                };
                let table = table(parent.hash_key);
                let found = table.find::<Entry>(transaction, &name).await?;
                if found.entry.is_some() {
                    let what = "a name in lost+found".to_owned();
                    return Err(StoreError::AlreadyExists { what });
                }
                let entry = Entry { inode, kind: orphan.kind, name: name.clone() };
                table.put(transaction, found.place, &entry);
                parent.size += 1;
                parent.store(transaction, folder, version).await?;
                orphan.links = 1;
                if orphan.kind == FileKind::Directory {
                    orphan.parent = folder;
                }
                orphan.store(transaction, inode, version).await?;
                Ok(Some(found.place))
            })
            .await?;
        if let Some(place) = place {
            self.hide_from_namers(number, version, &table(0), place).await?;
        }
        self.repairs
            .add(format!("inode {number}: no name led to it; it is lost+found/#{number} now"));
        Ok(())
    }

    /// Versions that see `version`, and have a name of the inode themselves, need no other.
    async fn hide_from_namers(
        &self,
        number: u64,
        version: SnapshotId,
        table: &NameTable,
        place: u64,
    ) -> Result<()> {
        let naming: Vec<u32> = self.census.naming(number).collect();
        for namer in naming {
            let sees = namer != version.0 && self.census.sees(namer, version.0);
            if sees && self.census.names((number, namer)) > 0 {
                let table = NameTable { snapshot: SnapshotId(namer), ..*table };
                self.transact(async |transaction| table.remove::<Entry>(transaction, place).await)
                    .await?;
            }
        }
        Ok(())
    }

    /// The directory lost+found of a tree, made when there is none.
    async fn lost_found(&self, root: InodeNumber, snapshot: SnapshotId) -> Result<InodeNumber> {
        let shard_bits = self.context.engine.shard_count().trailing_zeros();
        let home = u64::from(self.context.shard().0);
        self.transact(async |transaction| {
            let Some(mut parent) = Inode::seen(transaction, root, snapshot).await? else {
                return Err(StoreError::corrupt("root", format!("inode {root} does not exist")));
            };
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
            let number = InodeNumber(transaction.take(Counter::NEXT_INODE)? << shard_bits | home);
            let inode = Inode { parent: root, mode: 0o700, ..self.new_inode(number, false) };
            transaction.put_layered(Tree::Inodes, inode_position(number, snapshot), inode.encode());
            let kind = FileKind::Directory;
            let entry = Entry { inode: number, kind, name: LOST_FOUND.to_vec() };
            table.put(transaction, found.place, &entry);
            parent.size += 1;
            parent.store(transaction, root, snapshot).await?;
            transaction.add(Counter::INODES, 1);
            Ok(number)
        })
        .await
    }
}
