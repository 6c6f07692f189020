//! fsck of one shard above the engine: names, inodes, roots, owners of extents, pool tables.
//!
//! Changes of the shard's namespace wait while its metadata is checked. What concerns other shards is
//! asked of them in batches, and asked again before it is called a problem, so it may run beside
//! other work. Keeps about 200 bytes in memory for each inode of the shard. Structure of trees, extents
//! and space are the engine's own check.

mod census;
mod data;
mod names;
mod paths;
mod progress;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine_base::{InodeNumber, ShardId, SnapshotId};

use crate::api::{FsckReport, Owner, Reply, Request, Verify, VersionState};
use crate::context::Context;
use crate::error::Result;
use crate::limits::FSCK_BATCH;
use crate::logged::{self, Intent};
use crate::namespace::{Inode, Namespace};
use crate::subvolume::Tables;

pub(crate) use census::{Census, Key};
pub(crate) use data::{read_blocks, suspects};
pub(crate) use paths::paths;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use progress::Verified;
pub(crate) use tables::version_states;

/// Problems found so far, bounded.
pub(crate) struct Problems {
    shard: ShardId,
    lines: Vec<String>,
    max: usize,
    more: u64,
    checked: BTreeMap<&'static str, u64>,
    notes: Vec<String>,
}

impl Problems {
    pub(crate) fn new(context: &Context) -> Self {
        Self {
            shard: context.shard(),
            lines: Vec::new(),
            max: context.limits.fsck_problems_max,
            more: 0,
            checked: BTreeMap::new(),
            notes: Vec::new(),
        }
    }

    fn add(&mut self, text: impl Into<String>) {
        if self.lines.len() < self.max {
            self.lines.push(format!("shard {}: {}", self.shard, text.into()));
        } else {
            self.more += 1;
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(format!("shard {}: {}", self.shard, text.into()));
    }

    fn count(&mut self, what: &'static str) {
        *self.checked.entry(what).or_default() += 1;
    }

    pub(crate) fn into_report(mut self) -> FsckReport {
        if self.more > 0 {
            self.lines.push(format!("shard {}: and {} more problems", self.shard, self.more));
        }
        let checked = self.checked.into_iter().collect();
        FsckReport { problems: self.lines, checked, notes: self.notes }
    }
}

/// Checks this shard; reads the data that `verify` names.
pub(crate) async fn fsck(
    context: &Rc<Context>,
    namespace: &Rc<Namespace>,
    pool_tables: Option<&Rc<Tables>>,
    verify: Verify,
) -> Result<FsckReport> {
    let mut problems = Problems::new(context);
    let mut report = FsckReport::default();
    let whole = context.engine.check(&mut report).await?;
    if whole {
        names::check(context, namespace, &mut problems).await?;
        tables::check_roots(context, &mut problems).await?;
        if let Some(pool_tables) = pool_tables {
            tables::check_pool(context, pool_tables, &mut problems).await?;
        }
        for area in context.engine.missing_areas(1).await? {
            let (version, area) = crate::version::Area::at(area);
            problems.add(format!("version {version}: keys in {area:?}, which is not noted"));
        }
        data::check(context, &mut problems, verify).await?;
    } else {
        problems.add("nodes cannot be read: names, owners and data are not checked");
    }
    report.merge(problems.into_report());
    report.notes.extend_from_slice(context.engine.recovery_notes());
    context.engine.save_damage().await?;
    Ok(report)
}

/// What this shard knows of inodes whose home it is.
pub(crate) async fn owners(
    context: &Context,
    inodes: &[(InodeNumber, SnapshotId)],
) -> Result<Vec<Owner>> {
    let (mut removing, mut cutting) = (BTreeSet::new(), BTreeSet::new());
    let target = |version| context.engine.versions.target(version);
    for (_, intent) in logged::pending(&context.engine).await? {
        match intent {
            Intent::Remove { inode, snapshot } => removing.insert((inode, target(snapshot))),
            Intent::Truncate { inode, snapshot, .. } => cutting.insert((inode, target(snapshot))),
            Intent::Create(_) | Intent::Resize { .. } => false,
        };
    }
    let mut transaction = context.engine.read();
    let mut owners = Vec::with_capacity(inodes.len());
    for (inode, snapshot) in inodes {
        let now = (*inode, target(*snapshot));
        owners.push(match Inode::seen(&mut transaction, *inode, *snapshot).await? {
            Some(seen) if !cutting.contains(&now) => Owner::Alive { data_limit: seen.data_limit },
            Some(_) => Owner::Changing,
            None if removing.contains(&now) => Owner::Changing,
            None => Owner::Gone,
        });
    }
    Ok(owners)
}

/// Asks the home shards of inodes about them.
pub(crate) async fn ask_owners(
    context: &Context,
    inodes: &[(InodeNumber, SnapshotId)],
) -> Result<BTreeMap<(InodeNumber, SnapshotId), Owner>> {
    let mut by_home: BTreeMap<ShardId, Vec<(InodeNumber, SnapshotId)>> = BTreeMap::new();
    for inode in inodes {
        by_home.entry(inode.0.home(context.engine.shard_count())).or_default().push(*inode);
    }
    let epoch = context.engine.versions.epoch();
    let mut known = BTreeMap::new();
    for (home, inodes) in by_home {
        for batch in inodes.chunks(FSCK_BATCH) {
            let request = Request::FsckOwners { inodes: batch.to_vec(), epoch };
            match context.call(home, request).await? {
                Reply::Owners(owners) => known.extend(batch.iter().copied().zip(owners)),
                other => return Err(other.mismatch("Owners")),
            }
        }
    }
    Ok(known)
}

/// Asks shard 0 about versions.
async fn ask_versions(
    context: &Context,
    snapshots: &[SnapshotId],
) -> Result<BTreeMap<SnapshotId, VersionState>> {
    let mut known = BTreeMap::new();
    for batch in snapshots.chunks(FSCK_BATCH) {
        let request = Request::FsckVersions { snapshots: batch.to_vec() };
        match context.call(ShardId(0), request).await? {
            Reply::Versions(states) => known.extend(batch.iter().copied().zip(states)),
            other => return Err(other.mismatch("Versions")),
        }
    }
    Ok(known)
}
