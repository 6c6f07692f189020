//! Subvolumes: the tables of shard 0 and the roots on their home shards.

use engine_base::{SnapshotId, SubvolumeId};

use super::{Problems, ask_owners, ask_versions};
use crate::api::{Owner, VersionState};
use crate::context::Context;
use crate::error::Result;
use crate::key::{Position, Tree};
use crate::logged::{self, Intent};
use crate::subvolume::{PoolName, Tables, home_of, roots};

/// What shard 0 knows of versions.
pub(crate) async fn version_states(
    context: &Context,
    tables: &Tables,
    snapshots: &[SnapshotId],
) -> Result<Vec<VersionState>> {
    let (mut changing, mut resizing) = (Vec::new(), Vec::new());
    for (_, intent) in logged::pending(&context.engine).await? {
        match intent {
            Intent::Create(new) => changing.push(new.snapshot),
            Intent::Resize { subvolume, .. } => resizing.push(subvolume),
            Intent::Truncate { .. } | Intent::Remove { .. } => {}
        }
    }
    let resized = tables.all().into_iter().filter(|info| resizing.contains(&info.id));
    changing.extend(resized.map(|info| info.snapshot));
    Ok(snapshots
        .iter()
        .map(|snapshot| {
            if changing.contains(snapshot) || tables.version_changes(*snapshot) {
                VersionState::Changing
            } else if tables.has_version(*snapshot) {
                VersionState::Alive
            } else {
                VersionState::Unknown
            }
        })
        .collect())
}

/// Every root here is of a subvolume that exists.
pub(super) async fn check_roots(context: &Context, problems: &mut Problems) -> Result<()> {
    let roots = roots(context).await?;
    let versions: Vec<_> = roots.iter().map(|(_, root)| root.snapshot).collect();
    let states = ask_versions(context, &versions).await?;
    let owners: Vec<_> = roots.iter().map(|(_, root)| (root.inode, root.snapshot)).collect();
    let owners = ask_owners(context, &owners).await?;
    for (position, root) in roots {
        problems.count("roots");
        let id = SubvolumeId(position.inode);
        if home_of(id, context.engine.shard_count()) != context.shard() {
            problems.add(format!("root of subvolume {id} does not belong here"));
        }
        // Deleted since it was read: its place is empty now.
        let still_there = context.engine.read().get(Tree::Subvolumes, position).await?.is_some();
        if !still_there || states.get(&root.snapshot) == Some(&VersionState::Changing) {
            continue;
        }
        if states.get(&root.snapshot) != Some(&VersionState::Alive) {
            problems.add(format!("root of subvolume {id}, which shard 0 does not know"));
        }
        if owners.get(&(root.inode, root.snapshot)) == Some(&Owner::Gone) {
            problems.add(format!("root inode {} of subvolume {id} does not exist", root.inode));
        }
    }
    Ok(())
}

/// Every subvolume has its name and its root; every name its subvolume.
pub(super) async fn check_pool(
    context: &Context,
    tables: &Tables,
    problems: &mut Problems,
) -> Result<()> {
    let subvolumes = tables.all();
    let roots: Vec<_> = subvolumes.iter().map(|info| (info.root, info.snapshot)).collect();
    let owners = ask_owners(context, &roots).await?;
    let mut names = Vec::new();
    let mut from = Position::MIN;
    loop {
        let found = context.engine.read().next(Tree::Names, from, Position::MAX).await?;
        let Some((position, value)) = found else { break };
        from = position.successor();
        problems.count("pool names");
        match PoolName::decode(&value) {
            Ok(PoolName::Subvolume { name, id }) => names.push((name, id)),
            Ok(PoolName::Record { .. }) => {}
            Err(error) => problems.add(format!("pool name at {position:?}: {error}")),
        }
    }
    let now = tables.all();
    for info in &subvolumes {
        problems.count("subvolumes");
        if !now.contains(info) {
            continue;
        }
        if names.iter().filter(|name| name.1 == info.id && name.0 == info.name).count() != 1 {
            problems.add(format!("subvolume {:?} is not in the table of names once", info.name));
        }
        if owners.get(&(info.root, info.snapshot)) == Some(&Owner::Gone) {
            problems.add(format!("subvolume {:?}: root {} does not exist", info.name, info.root));
        }
    }
    for (name, id) in names {
        let known = |list: &[crate::api::SubvolumeInfo]| list.iter().any(|info| info.id == id);
        if !known(&subvolumes) && !known(&now) {
            problems.add(format!("name {name:?} of subvolume {id}, which does not exist"));
        }
    }
    Ok(())
}
