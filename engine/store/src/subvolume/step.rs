//! What a shard does for an operation that shard 0 coordinates: create a root, resize a volume,
//! delete a version. All idempotent, all durable when answered.

use std::rc::Rc;

use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SnapshotId, SubvolumeId};

use super::format::{Root, root_position};
use crate::api::{FileKind, Reply, Request, SubvolumeKind, Whose};
use crate::context::Context;
use crate::data::{BlockRange, absorb_blocks};
use crate::error::{Result, StoreError};
use crate::key::{Counter, Position, Tree, Value};
use crate::limits::BULK_UPDATES_MAX;
use crate::namespace::{Inode, inode_position};
use crate::times::Timed;
use crate::transaction::Transaction;
use crate::version::Area;

/// The shard that holds the metadata of a subvolume.
pub(crate) fn home_of(subvolume: SubvolumeId, shard_count: u16) -> ShardId {
    ShardId((subvolume.0 % u64::from(shard_count)) as u16)
}

/// Carries out a step.
pub(crate) async fn handle_step(context: &Rc<Context>, request: Request) -> Result<Reply> {
    match request {
        Request::RootCreate { subvolume, snapshot, kind, size_bytes } => {
            root_create(context, subvolume, snapshot, kind, size_bytes).await.map(Reply::Inode)
        }
        Request::VolumeSize { subvolume, inode, size_bytes } => {
            volume_size(context, subvolume, inode, size_bytes).await.map(|()| Reply::Unit)
        }
        Request::VersionAbsorb { child, into } => {
            version_absorb(context, child, into).await.map(|()| Reply::Unit)
        }
        Request::VersionDelete { snapshot } => {
            version_delete(context, snapshot).await.map(|()| Reply::Unit)
        }
        other => Err(StoreError::invalid(format!("not a step of a subvolume: {other:.40?}"))),
    }
}

async fn root_create(
    context: &Context,
    subvolume: SubvolumeId,
    snapshot: SnapshotId,
    kind: SubvolumeKind,
    size_bytes: u64,
) -> Result<InodeNumber> {
    let engine = &context.engine;
    if home_of(subvolume, engine.shard_count()) != context.shard() {
        return Err(StoreError::invalid(format!("subvolume {subvolume} has another home shard")));
    }
    let _pass = context.gate.enter(snapshot)?;
    let _reservation = engine.reserve(0).await?;
    let (now, random) = (context.now(), engine.runtime().random_u64());
    let number = engine
        .transact(async |transaction| {
            if let Some(value) = transaction.get(Tree::Subvolumes, root_position(subvolume)).await?
            {
                let root = Root::decode(&value)?;
                if root.snapshot == snapshot && root.kind == kind {
                    return Ok(root.inode);
                }
                return Err(StoreError::corrupt("subvolume root", "is of another version"));
            }
            let number = InodeNumber(
                transaction.take(Counter::NEXT_INODE) << engine.shard_count().trailing_zeros()
                    | u64::from(context.shard().0),
            );
            let is_volume = kind == SubvolumeKind::Volume;
            let inode = Inode {
                kind: if is_volume { FileKind::File } else { FileKind::Directory },
                is_volume,
                mode: if is_volume { 0o600 } else { 0o755 },
                uid: 0,
                gid: 0,
                links: 1,
                generation: (random >> 32) as u32,
                size: size_bytes,
                data_limit: size_bytes,
                parent: if is_volume { InodeNumber(0) } else { number },
                hash_key: random,
                atime: now,
                mtime: now,
                ctime: now,
                btime: now,
                target: Vec::new(),
            };
            transaction.put(Tree::Inodes, inode_position(number, snapshot), inode.encode());
            let root = Root { kind, snapshot, inode: number };
            transaction.put(Tree::Subvolumes, root_position(subvolume), root.encode());
            if !is_volume {
                transaction.add(Counter::INODES, 1);
            }
            Ok(number)
        })
        .await?;
    engine.flush().await?;
    Ok(number)
}

async fn volume_size(
    context: &Context,
    subvolume: SubvolumeId,
    number: InodeNumber,
    size_bytes: u64,
) -> Result<()> {
    let (engine, end) = (&context.engine, size_bytes.div_ceil(BLOCK_SIZE));
    let Some(current) = engine.versions.current(subvolume) else { return Ok(()) };
    engine.versions.set_end(subvolume, end);
    // Writes that were let in under the old size end before the rest is dropped.
    let drained = context.gate.drain(current.version);
    engine.waits.on(Timed::BlockedVersionGate, drained).await;
    let (_pass, snapshot, _) = match context.to_write(Whose::Subvolume(subvolume)).await {
        // Deleted meanwhile.
        Err(StoreError::NotFound { .. }) => return Ok(()),
        other => other?,
    };
    context.data.punch(BlockRange { inode: number, snapshot, from: end, to: u64::MAX }).await?;
    if number.home(context.engine.shard_count()) == context.shard() {
        let now = context.now();
        context
            .engine
            .transact(async |transaction| {
                let position = inode_position(number, snapshot);
                let Some(value) = transaction.seen(Tree::Inodes, position).await? else {
                    return Ok(());
                };
                let mut inode = Inode::decode(&value)?;
                inode.size = size_bytes;
                inode.data_limit = size_bytes;
                inode.ctime = now;
                transaction.put(Tree::Inodes, position, inode.encode());
                transaction.drop_absorbed(Tree::Inodes, position);
                Ok(())
            })
            .await?;
    }
    context.engine.flush().await
}

async fn version_delete(context: &Context, snapshot: SnapshotId) -> Result<()> {
    context.engine.waits.on(Timed::BlockedVersionGate, context.gate.close(snapshot)).await;
    let mut after = None;
    while let Some(area) = context.engine.next_area(snapshot, after).await? {
        each_key(context, area, snapshot, |transaction, tree, position, value| {
            if tree == Tree::Inodes && !Inode::decode(&value)?.is_volume {
                transaction.add(Counter::INODES, -1);
            }
            transaction.delete(tree, position);
            Ok(())
        })
        .await?;
        forget_area(context, area, snapshot).await?;
        after = Some(area);
    }
    delete_roots(context, snapshot).await?;
    context.engine.flush().await
}

/// Hands all keys of a version in an area to `change`, which takes them away, some at a time.
async fn each_key(
    context: &Context,
    area: Area,
    version: SnapshotId,
    change: impl Fn(&mut Transaction<'_>, Tree, Position, Value) -> Result<()>,
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
                        change(transaction, *tree, position, value)?;
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

/// Moves all keys of `child` to `into`, in front of what that has, area by area.
async fn version_absorb(context: &Context, child: SnapshotId, into: SnapshotId) -> Result<()> {
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
            each_key(context, area, child, |transaction, tree, position, value| {
                transaction.put(tree, Position { snapshot: into.0, ..position }, value);
                transaction.delete(tree, position);
                Ok(())
            })
            .await?;
        }
        forget_area(context, area, child).await?;
        after = Some(area);
    }
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

async fn delete_roots(context: &Context, snapshot: SnapshotId) -> Result<()> {
    let mut found = Vec::new();
    for (position, root) in roots(context).await? {
        if root.snapshot == snapshot {
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

/// The roots on this shard, with their places.
pub(crate) async fn roots(context: &Context) -> Result<Vec<(Position, Root)>> {
    let mut transaction = context.engine.read();
    let (mut from, mut all) = (Position::MIN, Vec::new());
    while let Some((position, value)) =
        transaction.next(Tree::Subvolumes, from, Position::MAX).await?
    {
        if position.offset == root_position(SubvolumeId(0)).offset {
            all.push((position, Root::decode(&value)?));
        }
        from = position.successor();
    }
    Ok(all)
}
