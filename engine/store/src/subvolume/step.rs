//! What a shard does for an operation that shard 0 coordinates: create a root, resize a volume, and, in
//! [`sweep`](super::sweep), delete or merge a version. All idempotent, all durable when answered.

use std::rc::Rc;

use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SnapshotId, SubvolumeId};

use super::format::{Root, root_position};
use super::sweep::{self, beside_check};
use crate::api::{FileKind, Reply, Request, SubvolumeKind, Whose};
use crate::context::Context;
use crate::data::BlockRange;
use crate::error::{Result, StoreError};
use crate::key::{Counter, Position, Tree};
use crate::namespace::{Inode, Namespace, inode_position};
use crate::times::Timed;

/// The shard that holds the metadata of a subvolume.
pub(crate) fn home_of(subvolume: SubvolumeId, shard_count: u16) -> ShardId {
    ShardId((subvolume.0 % u64::from(shard_count)) as u16)
}

/// Carries out a step.
pub(crate) async fn handle_step(
    context: &Rc<Context>,
    namespace: &Namespace,
    request: Request,
) -> Result<Reply> {
    match request {
        Request::RootCreate { subvolume, snapshot, kind, size_bytes } => {
            let _lock = beside_check(context, namespace).await;
            root_create(context, subvolume, snapshot, kind, size_bytes).await.map(Reply::Inode)
        }
        Request::VolumeSize { subvolume, inode, size_bytes } => {
            volume_size(context, subvolume, inode, size_bytes).await.map(|()| Reply::Unit)
        }
        Request::VersionAbsorb { child, into } => {
            sweep::absorb(context, namespace, child, into).await.map(|()| Reply::Unit)
        }
        Request::VersionDelete { snapshot } => {
            sweep::delete(context, namespace, snapshot).await.map(|()| Reply::Unit)
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
                transaction.take(Counter::NEXT_INODE)? << engine.shard_count().trailing_zeros()
                    | u64::from(context.shard().0),
            );
            let is_volume = kind == SubvolumeKind::Volume;
            let inode = Inode {
                kind: if is_volume { FileKind::File } else { FileKind::Directory },
                is_volume,
                copied: false,
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
                let Some(mut inode) = Inode::seen(transaction, number, snapshot).await? else {
                    return Ok(());
                };
                inode.size = size_bytes;
                inode.data_limit = size_bytes;
                inode.ctime = now;
                inode.store(transaction, number, snapshot).await
            })
            .await?;
    }
    context.engine.flush().await
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
