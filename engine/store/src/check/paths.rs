//! Paths of inodes: which names lead to them.
//!
//! Directories know their parents, and other inodes a directory that names them, or did. Where it does not any more,
//! all entries of the shard are walked.

use std::collections::{BTreeMap, BTreeSet};

use engine_base::{InodeNumber, SnapshotId};

use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree, Value};
use crate::limits::DIRECTORY_DEPTH_MAX;
use crate::namespace::{Entry, Hashed, Inode, Slot};

/// Longest path that is told, in bytes.
const PATH_BYTES_MAX: usize = 16 << 10;

type Key = (InodeNumber, SnapshotId);
/// Directory and name of an inode.
type Names = BTreeMap<Key, (InodeNumber, Vec<u8>)>;

/// A path of each inode whose home this shard is; `None`: no name leads to it.
pub(crate) async fn paths(context: &Context, inodes: &[Key]) -> Result<Vec<Option<Vec<u8>>>> {
    let mut names = Names::new();
    let mut siblings: BTreeMap<Key, BTreeSet<InodeNumber>> = BTreeMap::new();
    for (inode, version) in inodes {
        if let Some(seen) = seen(context, *inode, *version).await? {
            siblings.entry((seen.parent, *version)).or_default().insert(*inode);
        }
    }
    for ((parent, version), wanted) in siblings {
        find_names(context, &mut names, (parent, version), wanted).await?;
    }
    let mut paths = Vec::with_capacity(inodes.len());
    for key in inodes {
        paths.push(climb(context, &mut names, *key).await?);
    }
    let missing = inodes.iter().zip(&paths).filter(|(_, path)| path.is_none());
    let missing: BTreeSet<Key> = missing.map(|(key, _)| *key).collect();
    if !missing.is_empty() {
        search(context, &mut names, &missing).await?;
        for (key, path) in inodes.iter().zip(&mut paths).filter(|(_, path)| path.is_none()) {
            *path = climb(context, &mut names, *key).await?;
        }
    }
    Ok(paths)
}

/// Looks through all entries of the shard.
async fn search(context: &Context, names: &mut Names, wanted: &BTreeSet<Key>) -> Result<()> {
    let mut left = wanted.len();
    let mut from = Position::MIN;
    while let Some((at, value)) = next(context, from, Position::MAX).await? {
        from = at.successor();
        let Ok(Slot::Entry(entry)) = Entry::decode(&value) else { continue };
        let of = (entry.inode, SnapshotId(0))..=(entry.inode, SnapshotId(u32::MAX));
        for key in wanted.range(of) {
            if !names.contains_key(key) && is_seen(context, at, key.1, &value).await? {
                names.insert(*key, (InodeNumber(at.inode), entry.name.clone()));
                left -= 1;
            }
        }
        if left == 0 {
            break;
        }
    }
    Ok(())
}

async fn seen(context: &Context, inode: InodeNumber, version: SnapshotId) -> Result<Option<Inode>> {
    match Inode::seen(&mut context.engine.read(), inode, version).await {
        Err(StoreError::Corrupt { .. }) => Ok(None),
        seen => seen,
    }
}

/// Whether what is at a place in one version is what another sees there.
async fn is_seen(
    context: &Context,
    at: Position,
    version: SnapshotId,
    value: &Value,
) -> Result<bool> {
    if at.snapshot == version.0 {
        return Ok(true);
    }
    if !context.engine.versions.sees(version, SnapshotId(at.snapshot)) {
        return Ok(false);
    }
    let position = Position { snapshot: version.0, ..at };
    match context.engine.read().seen(Tree::Dirents, position).await {
        Err(StoreError::Corrupt { .. }) => Ok(false),
        seen => Ok(seen?.as_ref() == Some(value)),
    }
}

async fn next(
    context: &Context,
    mut from: Position,
    to: Position,
) -> Result<Option<(Position, Value)>> {
    loop {
        match context.engine.read().next(Tree::Dirents, from, to).await {
            // Names that are lost lead nowhere; those of other directories may be there.
            Err(StoreError::Corrupt { .. }) if from.inode < to.inode => {
                from = Position::new(from.inode + 1, 0, 0);
            }
            Err(StoreError::Corrupt { .. }) => return Ok(None),
            other => return other,
        }
    }
}

async fn climb(context: &Context, names: &mut Names, of: Key) -> Result<Option<Vec<u8>>> {
    let snapshot = of.1;
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let mut at = of.0;
    for _ in 0..DIRECTORY_DEPTH_MAX {
        let Some(inode) = seen(context, at, snapshot).await? else { return Ok(None) };
        if inode.parent == at {
            let mut path = Vec::new();
            for part in parts.iter().rev() {
                path.push(b'/');
                path.extend_from_slice(part);
            }
            return Ok(Some(if path.is_empty() { b"/".to_vec() } else { path }));
        }
        if !names.contains_key(&(at, snapshot)) && inode.parent.0 != 0 {
            let wanted = BTreeSet::from([at]);
            find_names(context, names, (inode.parent, snapshot), wanted).await?;
        }
        let Some((directory, name)) = names.get(&(at, snapshot)) else { return Ok(None) };
        parts.push(name.clone());
        if parts.iter().map(Vec::len).sum::<usize>() > PATH_BYTES_MAX {
            return Ok(None);
        }
        at = *directory;
    }
    Ok(None)
}

/// Looks for names of inodes in a directory.
async fn find_names(
    context: &Context,
    names: &mut Names,
    (parent, version): Key,
    mut wanted: BTreeSet<InodeNumber>,
) -> Result<()> {
    let (mut from, to) =
        (Position::new(parent.0, 0, 0), Position::new(parent.0, u64::MAX, u32::MAX));
    while let Some((at, value)) = next(context, from, to).await? {
        from = at.successor();
        if let Ok(Slot::Entry(entry)) = Entry::decode(&value)
            && wanted.contains(&entry.inode)
            && is_seen(context, at, version, &value).await?
        {
            wanted.remove(&entry.inode);
            names.insert((entry.inode, version), (parent, entry.name));
            if wanted.is_empty() {
                return Ok(());
            }
        }
    }
    Ok(())
}
