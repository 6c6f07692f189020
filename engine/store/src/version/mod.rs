//! Versions: whose keys a subvolume sees.
//!
//! A key of the trees of inodes, extents, names and attributes carries a version (its snapshot id). Versions form a
//! tree: one that was made from another sees the other's keys wherever it has none itself. Ids are given in falling
//! order, so of the keys at one place those of a descendant come before those of what it was made from.
//!
//! Always true:
//! - The id of a version is lower than that of what it was made from.
//! - Keys are added to a version only while no other was made from it: what others see stays as it is. (Moves of
//!   extents and merges change keys, and not what is seen.)
//! - While a version *absorbs* the only one that was made from it, its descendants see first what is left of that one;
//!   writes go to the version that absorbs, after what they replace was moved there ([`merge`]).
//!
//! Shard 0 keeps the tree and tells the others; each has all of it in memory.

mod areas;
mod format;
mod view;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use engine_base::hash::FastMap;
use engine_base::{SnapshotId, SubvolumeId};
use smallvec::SmallVec;

use crate::api::SubvolumeOptions;
use crate::codec::Compression;
use crate::planted::{self, Bug};
use crate::sync::Notify;

pub(crate) use areas::{Area, KnownAreas};
pub(crate) use format::version_position;
pub(crate) use view::{View, rank};

/// Ids in views that are kept; past it all are made anew when they are needed.
const VIEW_IDS_MAX: usize = 1 << 20;

/// Merged versions that are remembered.
const MERGED_MAX: usize = 4096;

/// A version in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it was made from.
    pub parent: Option<SnapshotId>,
    /// The version that is being merged into this one.
    pub absorbs: Option<SnapshotId>,
}

/// Where the keys of a subvolume are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentVersion {
    /// Its version.
    pub version: SnapshotId,
    /// Whether it is a snapshot that nobody may write to.
    pub read_only: bool,
    /// The block before which a volume ends; `u64::MAX` for a file tree.
    pub end_block: u64,
    /// How new data is stored.
    pub options: SubvolumeOptions,
}

/// What deleting a subvolume gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    /// A version that nobody would see.
    pub(crate) whole: Option<SnapshotId>,
    /// A version that would be merged with a younger one, which hides parts of it.
    pub(crate) merged: Option<(SnapshotId, SnapshotId)>,
}

/// All that shard 0 knows of versions, at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionTable {
    /// Rises with every change since shard 0 was opened.
    pub epoch: u64,
    /// All versions.
    pub nodes: Vec<(SnapshotId, Node)>,
    /// All subvolumes.
    pub subvolumes: Vec<(SubvolumeId, CurrentVersion)>,
}

/// A change of what shard 0 knows of versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionChange {
    /// The epoch that begins with it.
    pub epoch: u64,
    /// Versions that are new or changed, or are gone.
    pub nodes: Vec<(SnapshotId, Option<Node>)>,
    /// Subvolumes that are new or changed, or are gone.
    pub subvolumes: Vec<(SubvolumeId, Option<CurrentVersion>)>,
    /// Of these the writes that are under way end before the change is made.
    pub drained: Vec<SubvolumeId>,
    /// Writes to these were held back, and go on.
    pub released: Vec<SubvolumeId>,
    /// What these are after a restart is not known: nothing more is written to them until then.
    pub in_doubt: Vec<SubvolumeId>,
}

/// The tree of versions. One that is not in it sees its own keys only.
#[derive(Default)]
pub(crate) struct Versions {
    nodes: RefCell<FastMap<u32, Node>>,
    /// Into which version one is being merged.
    absorbed: RefCell<FastMap<u32, u32>>,
    /// Into which version one was merged: who began to read it before that means what it has become.
    merged: RefCell<BTreeMap<u32, u32>>,
    views: RefCell<FastMap<u32, Rc<View>>>,
    view_ids: Cell<usize>,
    /// Whether any version sees more than its own keys.
    layered: Cell<bool>,
    subvolumes: RefCell<FastMap<SubvolumeId, CurrentVersion>>,
    /// Of versions that are written to, where their data is not stored as it is.
    options: RefCell<FastMap<u32, SubvolumeOptions>>,
    /// Subvolumes whose writes wait.
    held: RefCell<FastMap<SubvolumeId, ()>>,
    /// See [`VersionChange::in_doubt`].
    in_doubt: RefCell<FastMap<SubvolumeId, ()>>,
    pub(crate) released: Notify,
    /// The epoch has risen.
    pub(crate) applied: Notify,
    loaded: Cell<bool>,
    epoch: Cell<u64>,
}

impl Versions {
    /// Whether shard 0 has told what there is.
    pub(crate) fn is_loaded(&self) -> bool {
        self.loaded.get()
    }

    /// Takes over what shard 0 knows. False: a change has overtaken it, ask again.
    pub(crate) fn load(&self, table: &VersionTable) -> bool {
        if self.loaded.get() {
            return true;
        }
        if table.epoch < self.epoch.get() {
            return false;
        }
        for (version, node) in &table.nodes {
            self.put(*version, *node);
        }
        self.subvolumes.borrow_mut().extend(table.subvolumes.iter().copied());
        self.note_options();
        self.epoch.set(table.epoch);
        self.loaded.set(true);
        self.applied.notify_all();
        true
    }

    /// Makes a change that shard 0 tells.
    pub(crate) fn apply(&self, change: &VersionChange) {
        self.epoch.set(change.epoch);
        // What is not loaded yet will hold the change.
        if self.loaded.get() {
            for (version, node) in &change.nodes {
                match node {
                    Some(node) => self.put(*version, *node),
                    None => self.remove(*version),
                }
            }
            let mut subvolumes = self.subvolumes.borrow_mut();
            for (subvolume, current) in &change.subvolumes {
                match current {
                    Some(current) => subvolumes.insert(*subvolume, *current),
                    None => subvolumes.remove(subvolume),
                };
            }
            drop(subvolumes);
            if !change.subvolumes.is_empty() {
                self.note_options();
            }
        }
        self.in_doubt.borrow_mut().extend(change.in_doubt.iter().map(|subvolume| (*subvolume, ())));
        self.release(&change.released);
        self.applied.notify_all();
    }

    fn note_options(&self) {
        let subvolumes = self.subvolumes.borrow();
        let other = subvolumes.values().filter(|current| {
            !current.read_only && current.options.compression != Compression::None
        });
        let options = other.map(|current| (current.version.0, current.options));
        *self.options.borrow_mut() = options.collect();
    }

    /// How what is written to a version is stored; `None`: as it is.
    pub(crate) fn write_options(&self, version: SnapshotId) -> Option<SubvolumeOptions> {
        let options = self.options.borrow();
        if options.is_empty() { None } else { options.get(&version.0).copied() }
    }

    /// How much is known: see [`VersionTable::epoch`].
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Whether `version` sees what `older` held at some time: it is that one, or was made from it, or they were merged.
    pub(crate) fn sees(&self, version: SnapshotId, older: SnapshotId) -> bool {
        version == older || {
            let (version, older) = (self.target(version), self.target(older));
            version == older || self.view(version).is_some_and(|view| view.rank(older.0).is_some())
        }
    }

    /// Where the keys of a subvolume are; `None`: there is no such subvolume (any more).
    pub(crate) fn current(&self, subvolume: SubvolumeId) -> Option<CurrentVersion> {
        self.subvolumes.borrow().get(&subvolume).copied()
    }

    /// Says where a volume ends from now on.
    pub(crate) fn set_end(&self, subvolume: SubvolumeId, end_block: u64) {
        if let Some(current) = self.subvolumes.borrow_mut().get_mut(&subvolume) {
            current.end_block = end_block;
        }
    }

    /// From now on writes to these wait.
    pub(crate) fn hold(&self, subvolumes: &[SubvolumeId]) {
        self.held.borrow_mut().extend(subvolumes.iter().map(|subvolume| (*subvolume, ())));
    }

    pub(crate) fn release(&self, subvolumes: &[SubvolumeId]) {
        if subvolumes.is_empty() {
            return;
        }
        let mut held = self.held.borrow_mut();
        for subvolume in subvolumes {
            held.remove(subvolume);
        }
        drop(held);
        self.released.notify_all();
    }

    pub(crate) fn is_held(&self, subvolume: SubvolumeId) -> bool {
        let held = self.held.borrow();
        !held.is_empty() && held.contains_key(&subvolume)
    }

    /// Whether what a subvolume will be after a restart is not known.
    pub(crate) fn is_in_doubt(&self, subvolume: SubvolumeId) -> bool {
        let in_doubt = self.in_doubt.borrow();
        !in_doubt.is_empty() && in_doubt.contains_key(&subvolume)
    }

    /// Puts a version in the tree, or changes what is known of it.
    ///
    /// # Panics
    /// When its id is not below that of its parent and above that of what it absorbs.
    pub(crate) fn put(&self, version: SnapshotId, node: Node) {
        assert!(
            node.parent.is_none_or(|parent| parent.0 > version.0),
            "a version above its parent"
        );
        assert!(
            node.absorbs.is_none_or(|child| child.0 < version.0),
            "a version below what it absorbs"
        );
        let before = self.nodes.borrow_mut().insert(version.0, node);
        let mut absorbed = self.absorbed.borrow_mut();
        if let Some(child) = before.and_then(|before| before.absorbs) {
            absorbed.remove(&child.0);
            if node.absorbs.is_none() {
                self.note_merged(child.0, version.0);
            }
        }
        if let Some(child) = node.absorbs {
            absorbed.insert(child.0, version.0);
        }
        drop(absorbed);
        self.changed();
    }

    /// Takes a version out of the tree.
    pub(crate) fn remove(&self, version: SnapshotId) {
        if let Some(Node { absorbs: Some(child), .. }) = self.nodes.borrow_mut().remove(&version.0)
        {
            self.absorbed.borrow_mut().remove(&child.0);
        }
        self.changed();
    }

    fn note_merged(&self, child: u32, into: u32) {
        if planted::is(Bug::MergeForgotten) {
            return;
        }
        let mut merged = self.merged.borrow_mut();
        merged.insert(child, into);
        // The oldest go first: whoever still read one has long ended.
        while merged.len() > MERGED_MAX {
            merged.pop_last();
        }
    }

    fn changed(&self) {
        self.views.borrow_mut().clear();
        self.view_ids.set(0);
        let more = |node: &Node| node.parent.is_some() || node.absorbs.is_some();
        let layered = self.nodes.borrow().values().any(more);
        self.layered.set(layered || !self.merged.borrow().is_empty());
    }

    /// Which versions would change if a subvolume were deleted, and how.
    pub(crate) fn freed_with(&self, subvolume: SubvolumeId) -> Freed {
        let subvolumes = self.subvolumes.borrow();
        let Some(version) = subvolumes.get(&subvolume).map(|current| current.version) else {
            return Freed::default();
        };
        let owners = |version| subvolumes.values().filter(|it| it.version == version).count();
        if owners(version) > 1 {
            return Freed::default();
        }
        let nodes = self.nodes.borrow();
        let children = |of: SnapshotId| {
            let made = nodes.iter().filter(move |(_, node)| node.parent == Some(of));
            made.map(|(id, _)| SnapshotId(*id)).collect::<Vec<_>>()
        };
        match children(version)[..] {
            [] => {
                // Its parent may be left with another that alone sees it.
                let parent = nodes.get(&version.0).and_then(|node| node.parent);
                let parent = parent.filter(|parent| owners(*parent) == 0);
                let others = parent.map(|parent| (parent, children(parent)));
                let merged = others.and_then(|(parent, children)| match children[..] {
                    [a, b] => Some((parent, if a == version { b } else { a })),
                    _ => None,
                });
                Freed { whole: Some(version), merged }
            }
            [child] => Freed { whole: None, merged: Some((version, child)) },
            _ => Freed::default(),
        }
    }

    /// Where keys of a version are put: in the version itself, or in that which absorbs it, or did.
    pub(crate) fn target(&self, version: SnapshotId) -> SnapshotId {
        if !self.layered.get() {
            return version;
        }
        let (absorbed, merged) = (self.absorbed.borrow(), self.merged.borrow());
        let mut target = version.0;
        // Each is older than the one before, so this ends.
        while let Some(into) = absorbed.get(&target).or_else(|| merged.get(&target)) {
            target = *into;
        }
        SnapshotId(target)
    }

    /// The versions in which keys of `version` are: that in which they are put, and one that is being merged into it.
    pub(crate) fn written(&self, version: SnapshotId) -> SmallVec<[u32; 2]> {
        match self.view(version) {
            None => SmallVec::from_iter([version.0]),
            Some(view) => std::iter::once(view.target()).chain(view.absorbing()).collect(),
        }
    }

    /// What a version sees; `None`: its own keys and no others.
    pub(crate) fn view(&self, version: SnapshotId) -> Option<Rc<View>> {
        if !self.layered.get() {
            return None;
        }
        let target = self.target(version);
        let more = |view: &View| view.is_layered() || target != version;
        if let Some(view) = self.views.borrow().get(&target.0) {
            return more(view).then(|| Rc::clone(view));
        }
        let view = Rc::new(self.make_view(target));
        let ids = self.view_ids.get() + view.len();
        if ids > VIEW_IDS_MAX {
            self.views.borrow_mut().clear();
            self.view_ids.set(0);
        }
        self.view_ids.set(self.view_ids.get() + view.len());
        self.views.borrow_mut().insert(target.0, Rc::clone(&view));
        more(&view).then_some(view)
    }

    fn make_view(&self, target: SnapshotId) -> View {
        let nodes = self.nodes.borrow();
        let mut ids = Vec::new();
        let mut next = Some(target.0);
        // Ids rise from each version to its parent, so this ends.
        while let Some(id) = next {
            let node = nodes.get(&id);
            ids.extend(node.and_then(|node| node.absorbs).map(|child| child.0));
            ids.push(id);
            let parent = node.and_then(|node| node.parent);
            next = parent.map(|parent| self.target(parent).0);
        }
        let absorbs = nodes.get(&target.0).is_some_and(|node| node.absorbs.is_some());
        View::new(ids, usize::from(absorbs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(versions: &Versions, version: u32) -> Option<Vec<u32>> {
        versions.view(SnapshotId(version)).map(|view| view.ids().to_vec())
    }

    fn put(versions: &Versions, version: u32, parent: u32, absorbs: u32) {
        let some = |id| (id > 0).then_some(SnapshotId(id));
        versions.put(SnapshotId(version), Node { parent: some(parent), absorbs: some(absorbs) });
    }

    #[test]
    fn a_version_sees_what_it_was_made_from() {
        let versions = Versions::default();
        put(&versions, 100, 0, 0);
        assert_eq!(ids(&versions, 100), None);
        put(&versions, 90, 100, 0);
        put(&versions, 80, 90, 0);
        put(&versions, 85, 100, 0);
        assert_eq!(ids(&versions, 80), Some(vec![80, 90, 100]));
        assert_eq!(ids(&versions, 85), Some(vec![85, 100]));
        assert_eq!(ids(&versions, 100), None);
        assert_eq!(ids(&versions, 7), None, "one that nobody told of sees itself");
        let view = versions.view(SnapshotId(80)).unwrap();
        assert_eq!(view.above(), [90, 100]);
        assert_eq!((view.rank(90), view.rank(85)), (Some(1), None));
    }

    #[test]
    fn what_a_deletion_frees_is_what_nobody_else_sees() {
        let versions = Versions::default();
        for (version, parent) in [(100, 0), (90, 100), (80, 90), (85, 90)] {
            put(&versions, version, parent, 0);
        }
        let own = |subvolume: u64, version: u32| {
            let version = SnapshotId(version);
            let options = SubvolumeOptions::default();
            let current =
                CurrentVersion { version, read_only: false, end_block: u64::MAX, options };
            versions.subvolumes.borrow_mut().insert(SubvolumeId(subvolume), current);
        };
        let freed = |subvolume| versions.freed_with(SubvolumeId(subvolume));
        own(1, 100);
        own(2, 80);
        own(3, 85);
        let pair = |a, b| Some((SnapshotId(a), SnapshotId(b)));
        assert_eq!(freed(1), Freed { whole: None, merged: pair(100, 90) });
        assert_eq!(freed(2), Freed { whole: Some(SnapshotId(80)), merged: pair(90, 85) });
        own(4, 90);
        assert_eq!(freed(4), Freed::default(), "two others see it");
        assert_eq!(freed(2), Freed { whole: Some(SnapshotId(80)), merged: None });
        own(5, 80);
        assert_eq!(freed(2), Freed::default(), "another shares the version");
        assert_eq!(freed(9), Freed::default());
    }

    #[test]
    fn what_is_being_absorbed_is_seen_first_and_written_no_more() {
        let versions = Versions::default();
        put(&versions, 100, 0, 0);
        put(&versions, 90, 100, 0);
        put(&versions, 80, 90, 0);
        // 90 is deleted, and merged with 80.
        put(&versions, 90, 100, 80);
        assert_eq!(versions.target(SnapshotId(80)), SnapshotId(90));
        assert_eq!(ids(&versions, 80), Some(vec![80, 90, 100]));
        assert_eq!(ids(&versions, 90), Some(vec![80, 90, 100]));
        let view = versions.view(SnapshotId(80)).unwrap();
        assert_eq!((view.target(), view.above(), view.absorbing()), (90, &[100][..], Some(80)));
        // One that is made of it meanwhile sees the rest as well.
        put(&versions, 70, 80, 0);
        assert_eq!(ids(&versions, 70), Some(vec![70, 80, 90, 100]));
        versions.remove(SnapshotId(80));
        put(&versions, 90, 100, 0);
        put(&versions, 70, 90, 0);
        assert_eq!(ids(&versions, 70), Some(vec![70, 90, 100]));
        // Who began to read it goes on with what it has become.
        assert_eq!(versions.target(SnapshotId(80)), SnapshotId(90));
        assert_eq!(ids(&versions, 80), Some(vec![90, 100]));
        put(&versions, 100, 0, 90);
        put(&versions, 100, 0, 0);
        versions.remove(SnapshotId(90));
        assert_eq!((ids(&versions, 80), ids(&versions, 100)), (Some(vec![100]), None));
    }
}
