//! What changed between two snapshots of a file tree: names that came and went, and inodes that were changed.
//!
//! Only areas of versions that one of the two sees and the other does not are looked at, so the cost is that of what
//! was changed between them; and that of the directories on the way to it, whose entries are read for the paths.

use std::collections::{BTreeMap, BTreeSet};

use engine_base::{InodeNumber, SnapshotId};

use crate::api::{ChangeKind, ChangedPath, FileKind, TreeDiffCursor};
use crate::check::paths;
use crate::context::Context;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree};
use crate::namespace::{Entry, Hashed, Inode, Slot};
use crate::transaction::Transaction;
use crate::version::Area;

/// Places that are looked at for one answer.
const PLACES_MAX: usize = 1024;

/// Two versions of one tree; `base` may be one that holds nothing.
#[derive(Clone, Copy)]
pub(crate) struct Compared {
    pub(crate) base: Option<SnapshotId>,
    pub(crate) now: SnapshotId,
    /// Whether paths in the base are told, too.
    pub(crate) in_base: bool,
}

/// A change whose path is still to be found.
struct Change {
    kind: ChangeKind,
    inode: InodeNumber,
    file_kind: FileKind,
    /// The directory and the name in it; `None`: of the inode itself.
    name: Option<(InodeNumber, Vec<u8>)>,
    version: SnapshotId,
}

/// Changes from `from` on, some of them, and where to go on.
///
/// # Errors
/// When the index cannot be read, or no name leads to what was changed.
pub(crate) async fn changed(
    context: &Context,
    compared: Compared,
    from: TreeDiffCursor,
) -> Result<(Vec<ChangedPath>, Option<TreeDiffCursor>)> {
    let ids = context.engine.unshared(compared.base, compared.now);
    let (places, next) = gather(&context.engine, &ids, from).await?;
    let mut changes = Vec::new();
    for place in places {
        let mut transaction = context.engine.read();
        if place.place == 0 {
            changes.extend(changed_inode(&mut transaction, compared, place.inode).await?);
        } else {
            changed_name(&mut transaction, compared, place, &mut changes).await?;
        }
    }
    Ok((with_paths(context, compared, changes).await?, next))
}

/// Places in which one of `ids` has something, in order, and where to go on. What is being merged moves to an older
/// version: who looks at the younger ones first misses nothing.
async fn gather(
    engine: &Engine,
    ids: &[u32],
    from: TreeDiffCursor,
) -> Result<(BTreeSet<TreeDiffCursor>, Option<TreeDiffCursor>)> {
    let (mut places, mut from) = (BTreeSet::new(), from);
    while places.len() < PLACES_MAX {
        let first = Area::of_names(InodeNumber(from.inode), engine.shard_count());
        let mut area: Option<Area> = None;
        for id in ids {
            let found = engine.next_names(SnapshotId(*id), first).await?;
            area = [area, found].into_iter().flatten().min();
        }
        let Some(area) = area else { return Ok((places, None)) };
        // Past this something may not have been seen.
        let mut end = area.end(engine.shard_count());
        for (index, id) in ids.iter().enumerate() {
            for tree in [Tree::Inodes, Tree::Dirents] {
                let (mut at, mut taken) = (from, 0);
                let mut transaction = engine.read();
                while let Some(found) =
                    next_place(&mut transaction, tree, area, SnapshotId(*id), at).await?
                {
                    if found >= end {
                        break;
                    }
                    places.insert(found);
                    at = found.next();
                    taken += 1;
                    if taken >= PLACES_MAX {
                        end = at;
                        break;
                    }
                }
            }
            if index % 16 == 15 {
                engine.runtime().yield_now().await;
            }
        }
        places.retain(|place| *place < end);
        from = end;
    }
    Ok((places, Some(from)))
}

async fn next_place(
    transaction: &mut Transaction<'_>,
    tree: Tree,
    area: Area,
    version: SnapshotId,
    from: TreeDiffCursor,
) -> Result<Option<TreeDiffCursor>> {
    // An inode comes before its names.
    let offset = if tree == Tree::Inodes && from.place > 0 { u64::MAX } else { from.place };
    let at = Position::new(from.inode, offset, 0);
    let found = transaction.next_in_area(tree, area, version, at).await?;
    Ok(found.map(|(at, _)| TreeDiffCursor { inode: at.inode, place: at.offset }))
}

/// An inode that both have, if it was changed. A file may have been written without a trace in its attributes.
async fn changed_inode(
    transaction: &mut Transaction<'_>,
    compared: Compared,
    inode: u64,
) -> Result<Option<Change>> {
    let (inode, version) = (InodeNumber(inode), compared.now);
    let Some(base) = compared.base else { return Ok(None) };
    let Some(before) = Inode::seen(transaction, inode, base).await? else { return Ok(None) };
    let Some(now) = Inode::seen(transaction, inode, version).await? else { return Ok(None) };
    let (kind, file_kind) = (ChangeKind::Modified, now.kind);
    let same = file_kind != FileKind::File && Inode { copied: now.copied, ..before } == now;
    let change = Change { kind, inode, file_kind, name: None, version };
    Ok((!same && !now.is_volume).then_some(change))
}

async fn changed_name(
    transaction: &mut Transaction<'_>,
    compared: Compared,
    place: TreeDiffCursor,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let before = match compared.base {
        Some(base) => entry(transaction, place, base).await?,
        None => None,
    };
    let now = entry(transaction, place, compared.now).await?;
    if before == now {
        return Ok(());
    }
    let versions = [(ChangeKind::Removed, before, compared.base), {
        (ChangeKind::Added, now, Some(compared.now))
    }];
    for (kind, entry, version) in versions {
        if let (Some(Entry { inode, kind: file_kind, name }), Some(version)) = (entry, version) {
            let name = Some((InodeNumber(place.inode), name));
            changes.push(Change { kind, inode, file_kind, name, version });
        }
    }
    Ok(())
}

async fn entry(
    transaction: &mut Transaction<'_>,
    place: TreeDiffCursor,
    version: SnapshotId,
) -> Result<Option<Entry>> {
    let at = Position::new(place.inode, place.place, version.0);
    let slot = transaction.seen(Tree::Dirents, at).await?;
    let slot = slot.map(|value| Entry::decode(&value)).transpose()?;
    Ok(slot.and_then(Slot::entry))
}

/// Paths in the base of what is there.
async fn paths_in_base(
    context: &Context,
    compared: Compared,
    changes: &[Change],
) -> Result<BTreeMap<InodeNumber, Vec<u8>>> {
    let Some(base) = compared.base.filter(|_| compared.in_base) else {
        return Ok(BTreeMap::new());
    };
    let directory = |change: &Change| change.name.as_ref().map(|(directory, _)| *directory);
    let inodes = changes.iter().flat_map(|change| [Some(change.inode), directory(change)]);
    let mut wanted = Vec::new();
    for inode in inodes.flatten().collect::<BTreeSet<_>>() {
        let mut transaction = context.engine.read();
        if Inode::seen(&mut transaction, inode, base).await?.is_some() {
            wanted.push((inode, base));
        }
    }
    let found = wanted.iter().zip(paths(context, &wanted).await?);
    Ok(found.filter_map(|((inode, _), path)| Some((*inode, path?))).collect())
}

async fn with_paths(
    context: &Context,
    compared: Compared,
    changes: Vec<Change>,
) -> Result<Vec<ChangedPath>> {
    let before = paths_in_base(context, compared, &changes).await?;
    let of = |change: &Change| {
        let inode = change.name.as_ref().map_or(change.inode, |(directory, _)| *directory);
        (inode, change.version)
    };
    let wanted: BTreeSet<_> = changes.iter().map(of).collect();
    let wanted: Vec<_> = wanted.into_iter().collect();
    let found: BTreeMap<_, _> =
        wanted.iter().copied().zip(paths(context, &wanted).await?).collect();
    let mut told = Vec::with_capacity(changes.len());
    for change in changes {
        let (inode, _) = of(&change);
        let path = found.get(&of(&change)).cloned().flatten();
        let mut path = path.ok_or_else(|| {
            StoreError::corrupt(format!("inode {inode}"), "no name leads to it; run fsck")
        })?;
        if let Some((_, name)) = &change.name {
            if path != b"/" {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        let Change { kind, inode, file_kind, name, .. } = change;
        let directory = name.map(|(directory, _)| directory);
        let in_base = before.get(&inode).cloned();
        let directory_in_base = directory.and_then(|directory| before.get(&directory).cloned());
        told.push(ChangedPath {
            kind,
            path,
            inode,
            file_kind,
            directory,
            in_base,
            directory_in_base,
        });
    }
    Ok(told)
}
