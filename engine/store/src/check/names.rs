//! Inodes, directory entries and extended attributes of the shard.

use std::collections::BTreeMap;

use engine_base::{InodeNumber, SnapshotId};

use super::Problems;
use crate::api::FileKind;
use crate::context::Context;
use crate::error::Result;
use crate::key::{Counter, Position, Tree};
use crate::limits::DIRECTORY_DEPTH_MAX;
use crate::lock::Access;
use crate::namespace::{Entry, Hashed, Inode, Namespace, SHARD_LOCK, Slot, Xattr, home_place};
use crate::times::Timed;

type Key = (u64, u32);

/// What is remembered of an inode.
struct Seen {
    kind: FileKind,
    is_volume: bool,
    links: u32,
    size: u64,
    parent: u64,
    hash_key: u64,
    names: u32,
    entries: u64,
}

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

pub(super) async fn check(
    context: &Context,
    namespace: &Namespace,
    problems: &mut Problems,
) -> Result<()> {
    let alone = namespace.locks.lock(SHARD_LOCK, Access::Exclusive);
    let _alone = context.engine.waits.on(Timed::BlockedInodeLock, alone).await;
    let mut inodes: BTreeMap<Key, Seen> = BTreeMap::new();
    let mut counted = 0_u64;
    walk(context, Tree::Inodes, async |position, value| {
        problems.count("inodes");
        match Inode::decode(value) {
            Ok(inode) => {
                let home = InodeNumber(position.inode).home(context.engine.shard_count());
                if home != context.shard() || position.offset != 0 {
                    problems.add(format!("inode at {position:?} does not belong here"));
                }
                counted += u64::from(!inode.is_volume);
                inodes.insert((position.inode, position.snapshot), Seen::of(&inode));
            }
            Err(error) => problems.add(format!("inode at {position:?}: {error}")),
        }
        Ok(())
    })
    .await?;
    walk(context, Tree::Dirents, async |position, value| {
        problems.count("directory entries");
        if let Some(entry) =
            check_slot::<Entry>(context, position, value, &inodes, problems).await?
        {
            check_entry(position, &entry, &mut inodes, problems, context);
        }
        Ok(())
    })
    .await?;
    walk(context, Tree::Xattrs, async |position, value| {
        problems.count("xattrs");
        check_slot::<Xattr>(context, position, value, &inodes, problems).await.map(drop)
    })
    .await?;
    check_inodes(context, &inodes, problems);
    let counter = context.engine.counter(Counter::INODES);
    // A version that is being deleted loses its inodes meanwhile; the counter moves with them.
    if counter != counted && context.background.running() == 0 {
        problems.add(format!("{counted} inodes, but the counter says {counter}"));
    }
    Ok(())
}

impl Seen {
    fn of(inode: &Inode) -> Self {
        Self {
            kind: inode.kind,
            is_volume: inode.is_volume,
            links: inode.links,
            size: inode.size,
            parent: inode.parent.0,
            hash_key: inode.hash_key,
            names: 0,
            entries: 0,
        }
    }
}

/// A place of a hashed table: decodes, belongs to an inode, and is reached from its hash.
async fn check_slot<T: Hashed>(
    context: &Context,
    position: Position,
    value: &[u8],
    inodes: &BTreeMap<Key, Seen>,
    problems: &mut Problems,
) -> Result<Option<T>> {
    let tree = if T::IS_ENTRY { Tree::Dirents } else { Tree::Xattrs };
    let what = format!("{tree:?} at {position:?}");
    let slot = match T::decode(value) {
        Ok(slot) => slot,
        Err(error) => {
            problems.add(format!("{what}: {error}"));
            return Ok(None);
        }
    };
    let key = (position.inode, position.snapshot);
    let Some(owner) = inodes.get(&key) else {
        if !context.gate.is_closed(SnapshotId(position.snapshot)) {
            problems.add(format!("{what}: its inode does not exist"));
        }
        return Ok(None);
    };
    let entry = match slot {
        Slot::Entry(entry) => entry,
        Slot::Whiteout => {
            let next = Position { offset: position.offset + 1, ..position };
            if context.engine.read().get(tree, next).await?.is_none() {
                problems.add(format!("{what}: a whiteout at the end of its chain"));
            }
            return Ok(None);
        }
    };
    let first = home_place(owner.hash_key, entry.name());
    if first > position.offset || position.offset - first > 1024 {
        problems.add(format!("{what}: the hash of its name is {first}"));
        return Ok(Some(entry));
    }
    for place in first..position.offset {
        let before = Position { offset: place, ..position };
        match context.engine.read().get(tree, before).await?.map(|value| T::decode(&value)) {
            None => problems.add(format!("{what}: a gap before it at {place}")),
            Some(Ok(Slot::Entry(other))) if other.name() == entry.name() => {
                problems.add(format!("{what}: its name is also at {place}"));
            }
            Some(_) => {}
        }
    }
    Ok(Some(entry))
}

fn check_entry(
    position: Position,
    entry: &Entry,
    inodes: &mut BTreeMap<Key, Seen>,
    problems: &mut Problems,
    context: &Context,
) {
    let what =
        format!("entry {:?} of directory {}", String::from_utf8_lossy(&entry.name), position.inode);
    if let Some(directory) = inodes.get_mut(&(position.inode, position.snapshot)) {
        directory.entries += 1;
        if directory.kind != FileKind::Directory {
            problems.add(format!("{what}: that is no directory"));
        }
    }
    match inodes.get_mut(&(entry.inode.0, position.snapshot)) {
        Some(child) => {
            child.names += 1;
            if child.kind != entry.kind {
                problems.add(format!("{what}: says {:?}, the inode {:?}", entry.kind, child.kind));
            }
            if child.kind == FileKind::Directory && child.parent != position.inode {
                problems.add(format!("{what}: the inode says its parent is {}", child.parent));
            }
        }
        None if context.gate.is_closed(SnapshotId(position.snapshot)) => {}
        None => problems.add(format!("{what}: inode {} does not exist", entry.inode)),
    }
}

fn check_inodes(context: &Context, inodes: &BTreeMap<Key, Seen>, problems: &mut Problems) {
    for ((number, snapshot), inode) in inodes {
        if inode.is_volume || context.gate.is_closed(SnapshotId(*snapshot)) {
            continue;
        }
        let is_root = inode.kind == FileKind::Directory && inode.parent == *number;
        let expected = inode.names + u32::from(is_root);
        if expected == 0 {
            problems.add(format!("inode {number}: no name leads to it"));
        } else if inode.links != expected {
            problems.add(format!("inode {number}: {} links, {expected} names", inode.links));
        }
        if inode.kind != FileKind::Directory {
            continue;
        }
        if expected > 1 {
            problems.add(format!("directory {number} has {expected} names"));
        }
        if inode.size != inode.entries {
            problems
                .add(format!("directory {number}: size {}, {} entries", inode.size, inode.entries));
        }
        let (mut at, mut steps) = (*number, 0);
        while let Some(directory) = inodes.get(&(at, *snapshot)) {
            if directory.parent == at {
                break;
            }
            at = directory.parent;
            steps += 1;
            if steps > DIRECTORY_DEPTH_MAX {
                problems.add(format!("directory {number} is not below its root"));
                break;
            }
        }
        if !inodes.contains_key(&(at, *snapshot)) {
            problems.add(format!("directory {number}: ancestor {at} does not exist"));
        }
    }
}
