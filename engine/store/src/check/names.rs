//! Inodes, directory entries and extended attributes of the shard.

use std::collections::{BTreeMap, BTreeSet};

use engine_base::{InodeNumber, SnapshotId};

use super::census::{Census, Key};
use super::{Problems, ask_versions};
use crate::api::{FileKind, VersionState};
use crate::context::Context;
use crate::error::Result;
use crate::key::{Counter, Position, Tree, Value};
use crate::limits::DIRECTORY_DEPTH_MAX;
use crate::lock::Access;
use crate::namespace::{Entry, Hashed, Inode, Namespace, SHARD_LOCK, Slot, Xattr, home_place};
use crate::times::Timed;

/// Walks a tree and hands each key to `look`.
async fn walk(
    context: &Context,
    tree: Tree,
    mut look: impl AsyncFnMut(Position, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut from = Position::MIN;
    loop {
        let found = context.engine.read().next(tree, from, Position::MAX).await?;
        let Some((position, value)) = found else { return Ok(()) };
        look(position, &value).await?;
        from = position.successor();
    }
}

/// What is looked at.
struct Look<'a> {
    context: &'a Context,
    census: Census,
    /// Versions of which parts may be gone already.
    leaving: BTreeMap<u32, bool>,
    problems: &'a mut Problems,
}

pub(super) async fn check(
    context: &Context,
    namespace: &Namespace,
    problems: &mut Problems,
) -> Result<()> {
    let alone = namespace.locks.lock(SHARD_LOCK, Access::Exclusive);
    let _alone = context.engine.waits.on(Timed::BlockedInodeLock, alone).await;
    let (census, leaving) = (Census::default(), BTreeMap::new());
    let mut look = Look { context, census, leaving, problems };
    look.read_inodes().await?;
    let versions = look.census.inodes().map(|((_, version), _)| version);
    look.ask_leaving(versions.collect()).await?;
    look.read_slots::<Entry>(Tree::Dirents).await?;
    look.read_slots::<Xattr>(Tree::Xattrs).await?;
    look.check_inodes();
    look.check_count();
    Ok(())
}

impl Look<'_> {
    async fn ask_leaving(&mut self, versions: BTreeSet<u32>) -> Result<()> {
        let versions: Vec<SnapshotId> = versions.into_iter().map(SnapshotId).collect();
        for (version, state) in ask_versions(self.context, &versions).await? {
            self.leaving.insert(version.0, state == VersionState::Changing);
        }
        Ok(())
    }

    /// Whether a version is being deleted, or merged: the first is there in part.
    fn is_leaving(&self, version: u32) -> bool {
        self.leaving.get(&version) == Some(&true)
            || self.context.gate.is_closed(SnapshotId(version))
    }

    async fn read_inodes(&mut self) -> Result<()> {
        walk(self.context, Tree::Inodes, async |position, value| {
            self.problems.count("inodes");
            match Inode::decode_slot(value) {
                Ok(slot) => {
                    let home = InodeNumber(position.inode).home(self.context.engine.shard_count());
                    if home != self.context.shard() || position.offset != 0 {
                        self.problems.add(format!("inode at {position:?} does not belong here"));
                    }
                    let key = (position.inode, position.snapshot);
                    self.census.add_inode(self.context, key, slot);
                }
                Err(error) => self.problems.add(format!("inode at {position:?}: {error}")),
            }
            Ok(())
        })
        .await
    }

    async fn read_slots<T: Hashed>(&mut self, tree: Tree) -> Result<()> {
        walk(self.context, tree, async |position, value| {
            self.problems.count(if T::IS_ENTRY { "directory entries" } else { "xattrs" });
            self.check_slot::<T>(tree, position, value).await
        })
        .await
    }

    async fn seen(&self, tree: Tree, position: Position) -> Result<Option<Value>> {
        self.context.engine.read().seen(tree, position).await
    }

    /// A place of a hashed table: decodes, belongs to an inode, and is reached from its hash.
    async fn check_slot<T: Hashed>(
        &mut self,
        tree: Tree,
        position: Position,
        value: &[u8],
    ) -> Result<()> {
        if !self.leaving.contains_key(&position.snapshot) {
            self.ask_leaving(BTreeSet::from([position.snapshot])).await?;
        }
        let what = format!("{tree:?} at {position:?}");
        let slot = match T::decode(value) {
            Ok(slot) => slot,
            Err(error) => {
                self.problems.add(format!("{what}: {error}"));
                return Ok(());
            }
        };
        let layered = self.context.engine.read().is_layered(position);
        let above = self.context.engine.read().seen_above(tree, position).await?;
        if T::IS_ENTRY {
            self.count_entry(position, value, above.as_deref());
        }
        let owner = self.census.seen((position.inode, position.snapshot));
        let Some(hash_key) = owner.map(|owner| owner.hash_key) else {
            // What an older version has, or had, it may still hide.
            let hides = layered && matches!(slot, Slot::Whiteout);
            if !hides && !self.is_leaving(position.snapshot) {
                self.problems.add(format!("{what}: its inode does not exist"));
            }
            return Ok(());
        };
        match slot {
            Slot::Entry(entry) => self.check_chain(tree, position, hash_key, &entry).await,
            Slot::Whiteout => {
                // Where older versions are merged, what it hid may have gone.
                let next = Position { offset: position.offset + 1, ..position };
                if !layered && self.seen(tree, next).await?.is_none() {
                    self.problems.add(format!("{what}: a whiteout of no use"));
                }
                Ok(())
            }
        }
    }

    async fn check_chain<T: Hashed>(
        &mut self,
        tree: Tree,
        position: Position,
        hash_key: u64,
        entry: &T,
    ) -> Result<()> {
        let what = format!("{tree:?} at {position:?}");
        let first = home_place(hash_key, entry.name());
        if first > position.offset || position.offset - first > 1024 {
            self.problems.add(format!("{what}: the hash of its name is {first}"));
            return Ok(());
        }
        for place in first..position.offset {
            let before = self.seen(tree, Position { offset: place, ..position }).await?;
            match before.map(|value| T::decode(&value)) {
                None => self.problems.add(format!("{what}: a gap before it at {place}")),
                Some(Ok(Slot::Entry(other))) if other.name() == entry.name() => {
                    self.problems.add(format!("{what}: its name is also at {place}"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// What a version adds at a place of a directory, and what it hides there.
    fn count_entry(&mut self, position: Position, value: &[u8], above: Option<&[u8]>) {
        let entry = |bytes: &[u8]| Entry::decode(bytes).ok().and_then(Slot::entry);
        let (own, hidden) = (entry(value), above.and_then(entry));
        let directory = (position.inode, position.snapshot);
        self.census.add_entry(self.context, directory, own.as_ref(), hidden.as_ref());
        if let Some(own) = own
            && !self.is_leaving(position.snapshot)
        {
            self.check_entry(directory, &own);
        }
    }

    fn check_entry(&mut self, directory: Key, entry: &Entry) {
        let (census, problems) = (&self.census, &mut *self.problems);
        let name = String::from_utf8_lossy(&entry.name);
        let what = format!("entry {name:?} of directory {} version {}", directory.0, directory.1);
        if census.seen(directory).is_some_and(|owner| owner.kind != FileKind::Directory) {
            problems.add(format!("{what}: that is no directory"));
        }
        let Some(child) = census.seen((entry.inode.0, directory.1)) else {
            problems.add(format!("{what}: inode {} does not exist", entry.inode));
            return;
        };
        if child.kind != entry.kind {
            problems.add(format!("{what}: says {:?}, the inode {:?}", entry.kind, child.kind));
        }
        if child.kind == FileKind::Directory && child.parent.0 != directory.0 {
            problems.add(format!("{what}: the inode says its parent is {}", child.parent));
        }
    }

    fn check_inodes(&mut self) {
        for key in self.census.keys() {
            let (number, version) = key;
            if self.is_leaving(version) {
                continue;
            }
            if let Some(problem) = check_inode(&self.census, key) {
                self.problems.add(format!("inode {number} version {version}: {problem}"));
            }
        }
        let flags = self.census.inodes().filter_map(|(key, slot)| {
            let above = self.census.seen_above(key).is_some();
            let why = match slot {
                Slot::Whiteout if !above => "a whiteout of nothing",
                Slot::Entry(inode) if inode.copied != above && !inode.is_volume => {
                    "whether an older version has it is not as it says"
                }
                _ => return None,
            };
            (!self.is_leaving(key.1)).then(|| format!("inode {} version {}: {why}", key.0, key.1))
        });
        for problem in flags.collect::<Vec<_>>() {
            self.problems.add(problem);
        }
    }

    /// Each inode counts once, in the version in which it was made.
    fn check_count(&mut self) {
        let made = |slot: &Slot<Inode>| match slot {
            Slot::Entry(inode) => !inode.is_volume && !inode.copied,
            Slot::Whiteout => false,
        };
        let counted = self.census.inodes().filter(|(_, slot)| made(slot)).count() as u64;
        let counter = self.context.engine.counter(Counter::INODES);
        if counter != counted {
            self.problems.add(format!("{counted} inodes, but the counter says {counter}"));
        }
    }
}

/// What is wrong with an inode as a version sees it.
fn check_inode(census: &Census, key: Key) -> Option<String> {
    let (number, version) = key;
    let inode = census.seen(key).filter(|inode| !inode.is_volume)?;
    let directory = inode.kind == FileKind::Directory;
    let is_root = directory && inode.parent.0 == number;
    let expected = census.names(key) + u64::from(is_root);
    if expected == 0 {
        return Some("no name leads to it".to_owned());
    }
    if u64::from(inode.links) != expected {
        return Some(format!("{} links, {expected} names", inode.links));
    }
    if !directory {
        return None;
    }
    if expected > 1 {
        return Some(format!("a directory with {expected} names"));
    }
    let entries = census.entries(key);
    if inode.size != entries {
        return Some(format!("a directory of size {}, {entries} entries", inode.size));
    }
    let mut at = number;
    for _ in 0..DIRECTORY_DEPTH_MAX {
        let Some(directory) = census.seen((at, version)) else {
            return Some(format!("a directory whose ancestor {at} does not exist"));
        };
        if directory.parent.0 == at {
            return None;
        }
        at = directory.parent.0;
    }
    Some("a directory that is not below its root".to_owned())
}
