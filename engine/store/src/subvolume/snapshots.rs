//! Snapshots, clones and rollback, coordinated by shard 0.
//!
//! A snapshot takes over the version that its source has; the source goes on in a new one, made from it. So making it
//! costs the same whatever it holds, and what it holds is what was written before that instant: writes wait on all
//! shards while the source changes its version.

use std::collections::BTreeSet;
use std::rc::Rc;

use engine_base::{ShardId, SnapshotId, SubvolumeId};

use super::format::{PoolName, encode_subvolume, subvolume_position};
use super::names;
use super::tables::{Tables, key_of, uuid_v4};
use super::versions::current_of;
use crate::api::{
    NewSnapshot, Request, SNAPSHOT_GROUP_MAX, SubvolumeInfo, VersionChange, VersionNode,
};
use crate::background::Held;
use crate::error::{Result, StoreError};
use crate::key::{Counter, Tree};
use crate::lock::{Access, LockGuard};
use crate::planted::{self, Bug};
use crate::transaction::Transaction;
use crate::version::version_position;

/// What changes at the instant of a snapshot or a rollback.
#[derive(Default)]
pub(super) struct Plan {
    /// New subvolumes.
    pub(super) new: Vec<SubvolumeInfo>,
    /// Subvolumes that change, or go on in another version.
    pub(super) changed: Vec<SubvolumeInfo>,
    /// New versions, each with what it is made from.
    pub(super) nodes: Vec<(SnapshotId, SnapshotId)>,
}

impl Plan {
    fn new_nodes(&self) -> Vec<(SnapshotId, Option<VersionNode>)> {
        let node =
            |(version, parent): &(SnapshotId, SnapshotId)| (*version, Some(node_under(*parent)));
        self.nodes.iter().map(node).collect()
    }
}

/// The next version: lower than all before it.
pub(super) fn next_version(transaction: &mut Transaction<'_>) -> Result<SnapshotId> {
    let number = transaction.take(Counter::NEXT_SNAPSHOT)?;
    match u32::try_from(number).ok().and_then(|number| u32::MAX.checked_sub(number)) {
        Some(id) if id > 0 => Ok(SnapshotId(id)),
        _ => Err(StoreError::Overloaded { what: "all version ids are used up".to_owned() }),
    }
}

impl Tables {
    /// Makes snapshots of one instant.
    pub(super) async fn snapshot(
        self: &Rc<Self>,
        snapshots: Vec<NewSnapshot>,
    ) -> Result<Vec<SubvolumeInfo>> {
        self.check_snapshots(&snapshots)?;
        let all = snapshots.iter().flat_map(|one| [one.source.as_str(), one.name.as_str()]);
        let _names = self.lock_names(all).await?;
        let mut sources = Vec::with_capacity(snapshots.len());
        for one in &snapshots {
            sources.push(self.get(&one.source)?);
            if self.subvolumes.borrow().contains_key(&one.name) {
                let what = format!("subvolume {:?}", one.name);
                return Err(StoreError::AlreadyExists { what });
            }
        }
        let most = self.context.limits.subvolumes_max;
        if self.subvolumes.borrow().len() + snapshots.len() > most {
            return Err(StoreError::Overloaded { what: format!("subvolumes: {most} at most") });
        }
        let live = sources.iter().filter(|source| !source.read_only).map(|source| source.id);
        let live: BTreeSet<SubvolumeId> = live.collect();
        let plan = self
            .at_one_instant(live.into_iter().collect(), async |transaction| {
                self.plan_snapshots(&snapshots, transaction)
            })
            .await?;
        // What was written to before it may be of use to nobody now.
        self.tidy();
        Ok(plan.new)
    }

    fn check_snapshots(&self, snapshots: &[NewSnapshot]) -> Result<()> {
        if !(1..=SNAPSHOT_GROUP_MAX).contains(&snapshots.len()) {
            let count = snapshots.len();
            return Err(StoreError::invalid(format!(
                "{count} snapshots at one instant: 1 to {SNAPSHOT_GROUP_MAX}"
            )));
        }
        let mut seen = BTreeSet::new();
        for one in snapshots {
            names::check_subvolume_name(&one.name)?;
            if !seen.insert(&one.name) {
                return Err(StoreError::invalid(format!("{:?} is named twice", one.name)));
            }
        }
        Ok(())
    }

    /// The versions are locked: what versions the sources have now, they keep until then.
    fn plan_snapshots(
        &self,
        snapshots: &[NewSnapshot],
        transaction: &mut Transaction<'_>,
    ) -> Result<Plan> {
        let runtime = self.context.engine.runtime();
        let mut plan = Plan::default();
        for one in snapshots {
            let source = self.get(&one.source)?;
            refuse_receiving(&source)?;
            // A second snapshot of the same source shares the version of the first.
            let moved = plan.changed.iter().any(|info| info.id == source.id);
            if !source.read_only && !moved {
                let version = next_version(transaction)?;
                plan.nodes.push((version, source.snapshot));
                plan.changed.push(SubvolumeInfo { snapshot: version, ..source.clone() });
            }
            let mut snapshot = source.snapshot;
            if one.writable {
                snapshot = next_version(transaction)?;
                plan.nodes.push((snapshot, source.snapshot));
            }
            plan.new.push(SubvolumeInfo {
                id: SubvolumeId(transaction.take(Counter::NEXT_SUBVOLUME)?),
                name: one.name.clone(),
                snapshot,
                read_only: !one.writable,
                origin: Some(source.id),
                created_ns: runtime.wall_clock_ns(),
                uuid: uuid_v4(runtime.random_u64(), runtime.random_u64()),
                received: None,
                ..source.clone()
            });
        }
        Ok(plan)
    }

    /// Makes `name` what it was at `snapshot`.
    pub(super) async fn rollback(
        self: &Rc<Self>,
        name: &str,
        snapshot: &str,
    ) -> Result<SubvolumeInfo> {
        let _names = self.lock_names([name, snapshot]).await?;
        let volume = self.get(name)?;
        let from = self.get(snapshot)?;
        refuse_receiving(&volume)?;
        if volume.read_only {
            return Err(StoreError::invalid(format!("{name:?} is itself a snapshot")));
        }
        if !from.read_only || from.root != volume.root {
            return Err(StoreError::invalid(format!("{snapshot:?} is not a snapshot of {name:?}")));
        }
        let plan = self
            .at_one_instant(vec![volume.id], async |transaction| {
                // As they are now that the versions are locked.
                let volume = self.get(name)?;
                let from = self.get(snapshot)?;
                let version = next_version(transaction)?;
                let size_bytes = from.size_bytes;
                let changed = SubvolumeInfo { snapshot: version, size_bytes, ..volume };
                Ok(Plan {
                    new: Vec::new(),
                    changed: vec![changed],
                    nodes: vec![(version, from.snapshot)],
                })
            })
            .await?;
        self.tidy();
        plan.changed.into_iter().next().ok_or_else(|| StoreError::not_found(name.to_owned()))
    }

    /// Carries out a plan while no write to `live` is under way on any shard, durably, with all that was written to
    /// them before.
    pub(super) async fn at_one_instant(
        &self,
        live: Vec<SubvolumeId>,
        plan: impl AsyncFn(&mut Transaction<'_>) -> Result<Plan>,
    ) -> Result<Plan> {
        let context = &self.context;
        let _reservation = context.engine.reserve(0).await?;
        let _versions = self.lock_versions().await;
        if !live.is_empty() {
            // Most of what is to be durable is before anybody waits.
            context.ask_each(context.shards(), &Request::Flush).await?;
        }
        let committed = match self.hold_all(&live).await {
            Ok(()) => self.commit_plan(&plan).await,
            Err(error) => Err(error),
        };
        let mut change = VersionChange { released: live, ..VersionChange::default() };
        let durable = match &committed {
            Ok(plan) => {
                let durable = context.engine.flush().await;
                if durable.is_ok() {
                    let infos = plan.new.iter().chain(&plan.changed);
                    change.subvolumes =
                        infos.map(|info| (info.id, Some(current_of(info)))).collect();
                    change.nodes = plan.new_nodes();
                } else {
                    // It may be on the device: what is written now would be of before it, or undone by it.
                    change.in_doubt.clone_from(&change.released);
                }
                durable
            }
            Err(_) => Ok(()),
        };
        let announced = self.announce(change).await;
        let plan = committed?;
        durable.and(announced)?;
        Ok(plan)
    }

    /// No write to these is under way, and all that was written to them is durable.
    async fn hold_all(&self, live: &[SubvolumeId]) -> Result<()> {
        if live.is_empty() {
            return Ok(());
        }
        let context = &self.context;
        let hold = Request::VersionHold { subvolumes: live.to_vec() };
        if !planted::is(Bug::SnapshotNotHeld) {
            context.ask_each(context.shards(), &hold).await?;
        }
        let others = context.shards().filter(|shard| *shard != ShardId(0));
        context.ask_each(others, &Request::Flush).await
    }

    /// Carries it out here; it is not durable yet.
    async fn commit_plan(
        &self,
        plan: &impl AsyncFn(&mut Transaction<'_>) -> Result<Plan>,
    ) -> Result<Plan> {
        let engine = &self.context.engine;
        let plan = engine
            .transact(async |transaction| {
                let plan = plan(transaction).await?;
                for (version, parent) in &plan.nodes {
                    let node = node_under(*parent);
                    transaction.put(Tree::Versions, version_position(*version), node.encode());
                }
                for info in plan.new.iter().chain(&plan.changed) {
                    let position = subvolume_position(info.id);
                    transaction.put(Tree::Subvolumes, position, encode_subvolume(info));
                }
                for info in &plan.new {
                    let name = PoolName::Subvolume { name: info.name.clone(), id: info.id };
                    names::put(transaction, &name).await?;
                }
                Ok(plan)
            })
            .await?;
        self.note_nodes(&plan.new_nodes());
        for info in plan.new.iter().chain(&plan.changed) {
            self.subvolumes.borrow_mut().insert(info.name.clone(), info.clone());
        }
        Ok(plan)
    }

    /// Locks the names of subvolumes, each once.
    ///
    /// # Errors
    /// That of background work which holds one of them and makes no progress.
    pub(super) async fn lock_names<'n>(
        &self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Vec<LockGuard<super::tables::NameKey>>> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let held: Vec<Held> =
            names.iter().map(|name| Held::Subvolume((*name).to_owned())).collect();
        let keys = names.iter().map(|name| (key_of(name), Access::Exclusive));
        self.context.background.unless_stalled(&held, self.names.lock_all(keys)).await
    }
}

/// What is being received is not there for anything else.
fn refuse_receiving(info: &SubvolumeInfo) -> Result<()> {
    if info.receiving().is_none() {
        return Ok(());
    }
    Err(StoreError::invalid(format!(
        "{:?} is being received: send the rest of it, or delete it",
        info.name
    )))
}

fn node_under(parent: SnapshotId) -> VersionNode {
    VersionNode { parent: Some(parent), absorbs: None }
}
