//! The tree of versions on shard 0: what becomes of versions that no subvolume has any more.
//!
//! A version stays while a subvolume has it, or several others were made from it. One that nobody needs is deleted;
//! one from which a single other was made is merged with that: the older absorbs the newer, since of the two the
//! newer holds what was written since the older was made, which is mostly less. What is to be done follows from the
//! tree alone, so it is found again after a crash, and each step may be repeated.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_base::{BLOCK_SIZE, SnapshotId, SubvolumeId};

use super::format::{encode_subvolume, subvolume_position};
use super::tables::Tables;
use crate::api::{
    CurrentVersion, Request, SubvolumeInfo, SubvolumeKind, VersionChange, VersionNode, VersionTable,
};
use crate::background::Held;
use crate::engine::Engine;
use crate::error::Result;
use crate::key::{Position, Tree};
use crate::limits::BULK_UPDATES_MAX;
use crate::lock::{Access, LockGuard, LockTable};
use crate::reached::{Branch, mark};
use crate::times::Timed;
use crate::version::version_position;

/// The tree of versions.
pub(super) struct VersionTree {
    pub(super) nodes: RefCell<BTreeMap<SnapshotId, VersionNode>>,
    epoch: Cell<u64>,
    /// Versions with which something is done in the background.
    busy: RefCell<BTreeSet<SnapshotId>>,
    /// Held by whoever changes the tree, until all shards know.
    lock: Rc<LockTable<()>>,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Nobody sees its keys.
    Delete(SnapshotId),
    /// Only `child` sees its keys: they are to become one.
    Merge { into: SnapshotId, child: SnapshotId },
    /// A merge that has begun.
    Absorb { into: SnapshotId, child: SnapshotId },
}

impl VersionTree {
    /// Reads the tree.
    pub(super) async fn load(engine: &Engine) -> Result<Self> {
        let (mut nodes, mut from) = (BTreeMap::new(), Position::MIN);
        let mut transaction = engine.read();
        while let Some((position, value)) =
            transaction.next(Tree::Versions, from, Position::MAX).await?
        {
            let version = SnapshotId(position.inode as u32);
            nodes.insert(version, VersionNode::decode(version, &value)?);
            from = position.successor();
        }
        Ok(Self {
            nodes: RefCell::new(nodes),
            epoch: Cell::new(1),
            busy: RefCell::default(),
            lock: LockTable::new(),
        })
    }

    fn children(&self, of: SnapshotId) -> Vec<SnapshotId> {
        let nodes = self.nodes.borrow();
        let made = nodes.iter().filter(|(_, node)| node.parent == Some(of));
        made.map(|(version, _)| *version).collect()
    }
}

/// What all shards have to know of a subvolume.
pub(super) fn current_of(info: &SubvolumeInfo) -> CurrentVersion {
    let end_block = match info.kind {
        SubvolumeKind::Volume => info.size_bytes / BLOCK_SIZE,
        SubvolumeKind::FileTree => u64::MAX,
    };
    let SubvolumeInfo { snapshot: version, read_only, options, .. } = *info;
    CurrentVersion { version, read_only, end_block, options }
}

impl Tables {
    /// The tree of versions stays as it is while this is held.
    pub(super) async fn lock_versions(&self) -> LockGuard<()> {
        let lock = self.versions.lock.lock((), Access::Exclusive);
        self.context.engine.waits.on(Timed::BlockedVersionGate, lock).await
    }

    /// All that other shards have to know.
    pub(super) fn version_table(&self) -> VersionTable {
        let nodes = self.versions.nodes.borrow();
        let subvolumes = self.subvolumes.borrow();
        VersionTable {
            epoch: self.versions.epoch.get(),
            nodes: nodes.iter().map(|(version, node)| (*version, *node)).collect(),
            subvolumes: subvolumes.values().map(|info| (info.id, current_of(info))).collect(),
        }
    }

    /// Makes a change that is durable known to all shards, this one too. The versions are locked.
    pub(super) async fn announce(&self, mut change: VersionChange) -> Result<()> {
        change.epoch = self.versions.epoch.get() + 1;
        self.versions.epoch.set(change.epoch);
        self.context.ask_each(self.context.shards(), &Request::VersionSet { change }).await
    }

    /// Notes here what was committed, in the same turn: who asks then is not told of half of it.
    pub(super) fn note_nodes(&self, changes: &[(SnapshotId, Option<VersionNode>)]) {
        let mut nodes = self.versions.nodes.borrow_mut();
        for (version, node) in changes {
            match node {
                Some(node) => nodes.insert(*version, *node),
                None => nodes.remove(version),
            };
        }
    }

    /// Whether a subvolume has the version.
    fn is_owned(&self, version: SnapshotId) -> bool {
        self.subvolumes.borrow().values().any(|info| info.snapshot == version)
    }

    /// Whether something is being done, or to be done, with a version.
    pub(crate) fn version_changes(&self, version: SnapshotId) -> bool {
        let nodes = self.versions.nodes.borrow();
        let absorbed = nodes.values().any(|node| node.absorbs == Some(version));
        let absorbs = nodes.get(&version).is_some_and(|node| node.absorbs.is_some());
        let known = nodes.contains_key(&version);
        drop(nodes);
        let needed = || self.is_owned(version) || self.versions.children(version).len() > 1;
        known && (absorbed || absorbs || !needed())
    }

    /// Whether there is such a version.
    pub(crate) fn has_version(&self, version: SnapshotId) -> bool {
        self.versions.nodes.borrow().contains_key(&version)
    }

    /// Sees to versions that nobody needs, in the background.
    pub(super) fn tidy(self: &Rc<Self>) {
        let tables = Rc::clone(self);
        let work = async move {
            let background = &tables.context.background;
            background.repeat(Held::Nothing, async || tables.tidy_now().await).await;
        };
        self.context.background.spawn("versions", Box::pin(work));
    }

    async fn tidy_now(self: &Rc<Self>) -> Result<()> {
        let _lock = self.lock_versions().await;
        // What nobody needs by a commit that could not be made durable may be needed after a restart.
        if let Some(error) = self.context.engine.journal.failure() {
            return Err(error);
        }
        while let Some(duty) = self.duties().first().copied() {
            match duty {
                Duty::Merge { into, child } => self.begin_merge(into, child).await?,
                Duty::Delete(version) | Duty::Absorb { into: version, .. } => {
                    self.versions.busy.borrow_mut().insert(version);
                    let tables = Rc::clone(self);
                    let work = async move {
                        let step = async || tables.carry_out_duty(duty).await;
                        tables.context.background.repeat(Held::Nothing, step).await;
                        tables.versions.busy.borrow_mut().remove(&version);
                        tables.tidy();
                    };
                    self.context.background.spawn("version", Box::pin(work));
                }
            }
        }
        Ok(())
    }

    /// Notes what was interrupted.
    pub(super) fn mark_duties(&self) {
        for duty in self.duties() {
            match duty {
                Duty::Delete(_) => mark(Branch::ResumeDelete),
                Duty::Absorb { .. } => mark(Branch::ResumeMerge),
                Duty::Merge { .. } => {}
            }
        }
    }

    fn duties(&self) -> Vec<Duty> {
        let owned: BTreeSet<SnapshotId> =
            self.subvolumes.borrow().values().map(|info| info.snapshot).collect();
        let (nodes, busy) = (self.versions.nodes.borrow(), self.versions.busy.borrow());
        let mut children: BTreeMap<SnapshotId, Vec<SnapshotId>> = BTreeMap::new();
        for (version, node) in nodes.iter() {
            if let Some(parent) = node.parent {
                children.entry(parent).or_default().push(*version);
            }
        }
        let absorbed: BTreeSet<SnapshotId> =
            nodes.values().filter_map(|node| node.absorbs).collect();
        let duty = |(version, node): (&SnapshotId, &VersionNode)| {
            let (version, children) =
                (*version, children.get(version).map_or(&[][..], Vec::as_slice));
            if busy.contains(&version) || absorbed.contains(&version) {
                return None;
            }
            if let Some(child) = node.absorbs {
                return Some(Duty::Absorb { into: version, child });
            }
            if owned.contains(&version) {
                return None;
            }
            match children {
                [] => Some(Duty::Delete(version)),
                // One that absorbs another is to be whole first.
                [child] if nodes.get(child).is_some_and(|node| node.absorbs.is_none()) => {
                    Some(Duty::Merge { into: version, child: *child })
                }
                _ => None,
            }
        };
        nodes.iter().filter_map(duty).collect()
    }

    async fn carry_out_duty(self: &Rc<Self>, duty: Duty) -> Result<()> {
        match duty {
            Duty::Delete(version) => {
                let request = Request::VersionDelete { snapshot: version };
                self.context.step_each(self.context.shards(), &request).await?;
                let _lock = self.lock_versions().await;
                self.change_nodes(&[(version, None)]).await
            }
            Duty::Absorb { into, child } => {
                let request = Request::VersionAbsorb { child, into };
                self.context.step_each(self.context.shards(), &request).await?;
                self.end_merge(into, child).await
            }
            Duty::Merge { .. } => Ok(()),
        }
    }

    /// Writes the nodes, makes that durable and known.
    async fn change_nodes(&self, nodes: &[(SnapshotId, Option<VersionNode>)]) -> Result<()> {
        for some in nodes.chunks(BULK_UPDATES_MAX) {
            self.context
                .engine
                .transact(async |transaction| {
                    for (version, node) in some {
                        let position = version_position(*version);
                        match node {
                            Some(node) => {
                                transaction.put(Tree::Versions, position, node.encode());
                            }
                            None => transaction.delete(Tree::Versions, position),
                        }
                    }
                    Ok(())
                })
                .await?;
            self.note_nodes(some);
        }
        self.context.engine.flush().await?;
        self.announce(VersionChange { nodes: nodes.to_vec(), ..VersionChange::default() }).await
    }

    /// From now on whoever has `child` writes to `into`, and sees what is left of `child` in front of it.
    async fn begin_merge(&self, into: SnapshotId, child: SnapshotId) -> Result<()> {
        let node = self.versions.nodes.borrow().get(&into).copied();
        let Some(node) = node else { return Ok(()) };
        let node = VersionNode { absorbs: Some(child), ..node };
        let mut owners: Vec<SubvolumeInfo> = self.all();
        owners.retain(|info| info.snapshot == child);
        for owner in &mut owners {
            owner.snapshot = into;
        }
        self.context
            .engine
            .transact(async |transaction| {
                transaction.put(Tree::Versions, version_position(into), node.encode());
                for owner in &owners {
                    let position = subvolume_position(owner.id);
                    transaction.put(Tree::Subvolumes, position, encode_subvolume(owner));
                }
                Ok(())
            })
            .await?;
        let nodes = vec![(into, Some(node))];
        self.note_nodes(&nodes);
        for owner in &owners {
            self.subvolumes.borrow_mut().insert(owner.name.clone(), owner.clone());
        }
        self.context.engine.flush().await?;
        let written = owners.iter().filter(|owner| !owner.read_only);
        let drained: Vec<SubvolumeId> = written.map(|owner| owner.id).collect();
        let subvolumes = owners.iter().map(|owner| (owner.id, Some(current_of(owner)))).collect();
        self.announce(VersionChange { nodes, subvolumes, drained, ..VersionChange::default() })
            .await
    }

    /// All of `child` is in `into` on all shards: what was made from it was made from `into`.
    async fn end_merge(&self, into: SnapshotId, child: SnapshotId) -> Result<()> {
        let _lock = self.lock_versions().await;
        let changes = self.versions.merged(into, child);
        self.change_nodes(&changes).await
    }
}

impl VersionTree {
    /// What changes when `child` has become a part of `into`.
    fn merged(
        &self,
        into: SnapshotId,
        child: SnapshotId,
    ) -> Vec<(SnapshotId, Option<VersionNode>)> {
        let mut changes = Vec::new();
        let nodes = self.nodes.borrow();
        for (version, node) in nodes.iter().filter(|(_, node)| node.parent == Some(child)) {
            changes.push((*version, Some(VersionNode { parent: Some(into), ..*node })));
        }
        if let Some(node) = nodes.get(&into) {
            changes.push((into, Some(VersionNode { absorbs: None, ..*node })));
        }
        changes.push((child, None));
        changes
    }
}
