//! Sweeps over the keys of a version on this shard, area by area: deleting it, or merging it into the one that absorbs
//! it. Their cost is that of what the version holds.

use std::rc::Rc;

use engine_base::{InodeNumber, ShardId, SnapshotId};

use super::format::Root;
use super::step::roots;
use crate::api::Request;
use crate::context::Context;
use crate::data::{BlockRange, absorb_blocks, drop_extent};
use crate::error::{Result, StoreError};
use crate::key::{Counter, Position, Tree, Value};
use crate::limits::BULK_UPDATES_MAX;
use crate::lock::{Access, LockGuard};
use crate::logged::{self, Intent};
use crate::namespace::{Inode, Namespace, SHARD_LOCK, Slot, absorb_key};
use crate::times::Timed;
use crate::transaction::Transaction;
use crate::version::Area;

/// Deletes all keys of a version that nobody sees.
pub(super) async fn delete(
    context: &Context,
    namespace: &Namespace,
    version: SnapshotId,
) -> Result<()> {
    context.engine.waits.on(Timed::BlockedVersionGate, context.gate.close(version)).await;
    let mut after = None;
    while let Some(area) = context.engine.next_area(version, after).await? {
        let _lock = match area.is_data() {
            true => None,
            false => Some(beside_check(context, namespace).await),
        };
        each_key(context, area, version, async |transaction, tree, position, value| {
            if tree == Tree::Inodes
                && let Slot::Entry(inode) = Inode::decode_slot(value)?
                && !inode.is_volume
                && !inode.copied
            {
                transaction.add(Counter::INODES, -1);
            }
            if tree == Tree::Extents {
                return drop_extent(transaction, position, value).await;
            }
            transaction.delete(tree, position);
            Ok(())
        })
        .await?;
        forget_area(context, area, version).await?;
        after = Some(area);
    }
    delete_roots(context, version).await?;
    context.engine.flush().await
}

/// Moves all keys of `child` to `into`, in front of what that has, area by area.
pub(super) async fn absorb(
    context: &Rc<Context>,
    namespace: &Namespace,
    child: SnapshotId,
    into: SnapshotId,
) -> Result<()> {
    let engine = &context.engine;
    if engine.versions.target(child) != into {
        // Writes may still go to the child here, behind what is moved.
        let (what, why) = (format!("version {child}"), "is not known to be merged".to_owned());
        return Err(StoreError::Busy { what, why });
    }
    let mut after = None;
    while let Some(area) = engine.next_area(child, after).await? {
        if area.is_data() {
            absorb_data(context, area, child, into).await?;
        } else {
            forget_removed(context, area, child).await?;
            let _lock = beside_check(context, namespace).await;
            each_key(context, area, child, async |transaction, tree, position, value| {
                absorb_key(transaction, tree, position, value, into).await
            })
            .await?;
        }
        forget_area(context, area, child).await?;
        after = Some(area);
    }
    move_intents(context, child, into).await?;
    for (position, root) in roots(context).await? {
        if root.snapshot != child {
            continue;
        }
        let root = Root { snapshot: into, ..root };
        engine
            .transact(async |transaction| {
                transaction.put(Tree::Subvolumes, position, root.encode());
                Ok(())
            })
            .await?;
    }
    engine.flush().await
}

/// Names and inodes do not change while they are checked.
pub(super) async fn beside_check(context: &Context, namespace: &Namespace) -> LockGuard<u64> {
    let lock = namespace.locks.lock(SHARD_LOCK, Access::Shared);
    context.engine.waits.on(Timed::BlockedInodeLock, lock).await
}

/// Hands all keys of a version in an area to `change`, which takes them away, some at a time.
async fn each_key(
    context: &Context,
    area: Area,
    version: SnapshotId,
    change: impl AsyncFn(&mut Transaction<'_>, Tree, Position, &Value) -> Result<()>,
) -> Result<()> {
    let engine = &context.engine;
    for tree in area.trees() {
        let mut next = Some(Position::MIN);
        while let Some(start) = next {
            next = engine
                .transact(async |transaction| {
                    let mut from = start;
                    while transaction.update_count() < BULK_UPDATES_MAX {
                        let found = transaction.next_in_area(*tree, area, version, from).await?;
                        let Some((position, value)) = found else { return Ok(None) };
                        change(transaction, *tree, position, &value).await?;
                        from = position.successor();
                    }
                    Ok(Some(from))
                })
                .await?;
            engine.runtime().yield_now().await;
        }
    }
    Ok(())
}

/// What is still to be dropped of files of `child` is to be dropped of `into`: after a restart nobody knows what became
/// of `child`.
async fn move_intents(context: &Context, child: SnapshotId, into: SnapshotId) -> Result<()> {
    for (id, intent) in logged::pending(&context.engine).await? {
        let moved = match intent {
            Intent::Truncate { inode, snapshot, size } if snapshot == child => {
                Intent::Truncate { inode, snapshot: into, size }
            }
            Intent::Remove { inode, snapshot } if snapshot == child => {
                Intent::Remove { inode, snapshot: into }
            }
            _ => continue,
        };
        context
            .engine
            .transact(async |transaction| logged::replace_pending(transaction, id, &moved).await)
            .await?;
    }
    Ok(())
}

/// Nothing of the version is left in the area, and nothing will be put there.
async fn forget_area(context: &Context, area: Area, version: SnapshotId) -> Result<()> {
    context
        .engine
        .transact(async |transaction| {
            transaction.delete(Tree::Areas, area.position(version));
            Ok(())
        })
        .await
}

/// Drops the data of inodes of an area that are gone in `child`, also what the version has that absorbs it: nobody else
/// sees that. While their whiteouts are still there, so that this is found again after a crash.
async fn forget_removed(context: &Context, area: Area, child: SnapshotId) -> Result<()> {
    let engine = &context.engine;
    let (mut from, mut flushed) = (Some(Position::MIN), false);
    while let Some(start) = from {
        let mut removed = Vec::new();
        let mut at = start;
        let mut transaction = engine.read();
        from = loop {
            let found = transaction.next_in_area(Tree::Inodes, area, child, at).await?;
            let Some((position, value)) = found else { break None };
            at = position.successor();
            if Inode::decode_slot(&value)? == Slot::Whiteout {
                removed.push(InodeNumber(position.inode));
            }
            if removed.len() >= BULK_UPDATES_MAX {
                break Some(at);
            }
        };
        if removed.is_empty() {
            continue;
        }
        if !std::mem::replace(&mut flushed, true) {
            // Nothing is dropped elsewhere before it is durable here that they are gone.
            engine.flush().await?;
        }
        let request = Request::DataForget { inodes: removed, version: context.known(child) };
        context.step_each(context.shards(), &request).await?;
    }
    if flushed {
        let others = context.shards().filter(|shard: &ShardId| *shard != context.shard());
        context.step_each(others, &Request::Flush).await?;
    }
    Ok(())
}

/// The extents of an area, inode by inode.
async fn absorb_data(
    context: &Context,
    area: Area,
    child: SnapshotId,
    into: SnapshotId,
) -> Result<()> {
    let engine = &context.engine;
    let (from, to) = area.blocks();
    let mut at = Position::MIN;
    loop {
        let mut transaction = engine.read();
        let found = transaction.next_in_area(Tree::Extents, area, child, at).await?;
        let Some((position, _)) = found else { return Ok(()) };
        let inode = InodeNumber(position.inode);
        let range = BlockRange { inode, snapshot: child, from, to };
        absorb_blocks(engine, range, into).await?;
        at = Position { offset: to, snapshot: u32::MAX, ..position };
        engine.runtime().yield_now().await;
    }
}

async fn delete_roots(context: &Context, version: SnapshotId) -> Result<()> {
    let mut found = Vec::new();
    for (position, root) in roots(context).await? {
        if root.snapshot == version {
            found.push(position);
        }
    }
    context
        .engine
        .transact(async |transaction| {
            for position in &found {
                transaction.delete(Tree::Subvolumes, *position);
            }
            Ok(())
        })
        .await
}
