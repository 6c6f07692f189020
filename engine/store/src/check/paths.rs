//! Paths of inodes, for people: which names lead to them.
//!
//! Inodes of files do not know their names, so the entries of the whole shard are walked once; from
//! there on up, directories know their parents.

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
    let wanted: BTreeSet<Key> = inodes.iter().copied().collect();
    let mut names = Names::new();
    let mut from = Position::MIN;
    while let Some((at, value)) = next(context, from, Position::MAX).await? {
        from = at.successor();
        let Ok(Slot::Entry(entry)) = Entry::decode(&value) else { continue };
        let of = (entry.inode, SnapshotId(0))..=(entry.inode, SnapshotId(u32::MAX));
        for key in wanted.range(of) {
            if !names.contains_key(key) && is_seen(context, at, key.1, &value).await? {
                names.insert(*key, (InodeNumber(at.inode), entry.name.clone()));
            }
        }
        if names.len() == wanted.len() {
            break;
        }
    }
    let mut paths = Vec::with_capacity(inodes.len());
    for key in inodes {
        paths.push(climb(context, &mut names, *key).await?);
    }
    Ok(paths)
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
        let inode = match Inode::seen(&mut context.engine.read(), at, snapshot).await {
            Ok(Some(inode)) => inode,
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        if inode.parent == at {
            let mut path = Vec::new();
            for part in parts.iter().rev() {
                path.push(b'/');
                path.extend_from_slice(part);
            }
            return Ok(Some(if path.is_empty() { b"/".to_vec() } else { path }));
        }
        if !names.contains_key(&(at, snapshot)) && inode.parent.0 != 0 {
            find_name(context, names, (at, snapshot), inode.parent).await?;
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

/// Looks for the name of a directory in its parent.
async fn find_name(
    context: &Context,
    names: &mut Names,
    of: Key,
    parent: InodeNumber,
) -> Result<()> {
    let (mut from, to) =
        (Position::new(parent.0, 0, 0), Position::new(parent.0, u64::MAX, u32::MAX));
    while let Some((at, value)) = next(context, from, to).await? {
        from = at.successor();
        if let Ok(Slot::Entry(entry)) = Entry::decode(&value)
            && entry.inode == of.0
            && is_seen(context, at, of.1, &value).await?
        {
            names.insert(of, (parent, entry.name));
            return Ok(());
        }
    }
    Ok(())
}
