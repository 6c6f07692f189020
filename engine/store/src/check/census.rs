//! Inodes of a shard in all versions, and how many names lead to each.
//!
//! A version is told by what it changes: its own inodes, and of the places of names where it has something itself, what
//! it adds and what it hides of older versions. What it sees is the sum over all that it sees ([`crate::version`]); so
//! the memory that this takes, some 200 bytes for each inode of each version that has it itself, does not grow with
//! versions that share.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_base::SnapshotId;

use crate::context::Context;
use crate::namespace::{Entry, Inode, Slot};
use crate::version::View;

/// An inode in a version.
pub(crate) type Key = (u64, u32);

/// What was found.
#[derive(Default)]
pub(crate) struct Census {
    inodes: BTreeMap<Key, Slot<Inode>>,
    /// Names that a version adds, less those that it hides.
    names: BTreeMap<Key, i64>,
    /// The same of entries of directories.
    entries: BTreeMap<Key, i64>,
    views: BTreeMap<u32, Option<Rc<View>>>,
}

impl Census {
    /// Notes an inode of a version, without the target of a link.
    pub(crate) fn add_inode(&mut self, context: &Context, key: Key, mut slot: Slot<Inode>) {
        self.know(context, key.1);
        if let Slot::Entry(inode) = &mut slot {
            inode.target = Vec::new();
        }
        self.inodes.insert(key, slot);
    }

    /// Forgets an inode that was dropped.
    pub(crate) fn drop_inode(&mut self, key: Key) {
        self.inodes.remove(&key);
    }

    /// Notes that a directory of a version has an entry, and what it hides of older versions.
    pub(crate) fn add_entry(
        &mut self,
        context: &Context,
        directory: Key,
        entry: Option<&Entry>,
        hidden: Option<&Entry>,
    ) {
        self.know(context, directory.1);
        for (entry, delta) in [(entry, 1), (hidden, -1)] {
            let Some(entry) = entry else { continue };
            *self.entries.entry(directory).or_default() += delta;
            *self.names.entry((entry.inode.0, directory.1)).or_default() += delta;
        }
    }

    fn know(&mut self, context: &Context, version: u32) {
        self.views
            .entry(version)
            .or_insert_with(|| context.engine.versions.view(SnapshotId(version)));
    }

    fn rank(&self, version: u32, other: u32) -> Option<u32> {
        match self.views.get(&version) {
            Some(Some(view)) => view.rank(other),
            _ => (other == version).then_some(0),
        }
    }

    /// Whether a version sees what another has.
    pub(crate) fn sees(&self, version: u32, other: u32) -> bool {
        self.rank(version, other).is_some()
    }

    /// All inodes that versions have themselves.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = (Key, &Slot<Inode>)> {
        self.inodes.iter().map(|(key, slot)| (*key, slot))
    }

    /// The versions that have something of an inode themselves: the inode, names, or entries.
    pub(crate) fn keys(&self) -> BTreeSet<Key> {
        let named = self.names.keys().chain(self.entries.keys());
        self.inodes.keys().chain(named).copied().collect()
    }

    /// Versions that change how many names an inode has.
    pub(crate) fn naming(&self, inode: u64) -> impl Iterator<Item = u32> {
        self.names.range((inode, 0)..=(inode, u32::MAX)).map(|((_, version), _)| *version)
    }

    /// The inode that a version sees.
    pub(crate) fn seen(&self, (inode, version): Key) -> Option<&Inode> {
        self.nearest((inode, version), 0)
    }

    /// The inode that a version sees of those before it.
    pub(crate) fn seen_above(&self, key: Key) -> Option<&Inode> {
        let own = self.rank(key.1, key.1)?;
        self.nearest(key, own + 1)
    }

    fn nearest(&self, (inode, version): Key, from: u32) -> Option<&Inode> {
        let mut of = self.inodes.range((inode, 0)..=(inode, u32::MAX));
        let seen = |other| self.rank(version, other).is_some_and(|rank| rank >= from);
        match of.find(|((_, other), _)| seen(*other))? {
            (_, Slot::Entry(inode)) => Some(inode),
            (_, Slot::Whiteout) => None,
        }
    }

    /// How many names of an inode a version sees.
    pub(crate) fn names(&self, key: Key) -> u64 {
        self.sum(&self.names, key)
    }

    /// How many entries of a directory a version sees.
    pub(crate) fn entries(&self, key: Key) -> u64 {
        self.sum(&self.entries, key)
    }

    fn sum(&self, deltas: &BTreeMap<Key, i64>, (inode, version): Key) -> u64 {
        let of = deltas.range((inode, 0)..=(inode, u32::MAX));
        let seen = of.filter(|((_, other), _)| self.sees(version, *other));
        u64::try_from(seen.map(|(_, delta)| delta).sum::<i64>()).unwrap_or(0)
    }
}
