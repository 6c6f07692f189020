//! Logged operations: what must be carried out on several shards, also across crashes.
//!
//! The shard that coordinates commits an [`Intent`] in one transaction with the change that clients
//! see, makes it durable, and only then takes idempotent steps elsewhere. When the steps are durable
//! there, the intent is removed. An intent found at open is carried out again from its start.

mod format;

use engine_base::{InodeNumber, SnapshotId, SubvolumeId};

use crate::api::{SubvolumeKind, SubvolumeOptions};
use crate::engine::Engine;
use crate::error::Result;
use crate::key::{Counter, Position, Tree};
use crate::transaction::Transaction;

/// A subvolume that is being created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewSubvolume {
    pub(crate) id: SubvolumeId,
    pub(crate) snapshot: SnapshotId,
    pub(crate) name: String,
    pub(crate) kind: SubvolumeKind,
    pub(crate) size_bytes: u64,
    pub(crate) block_size: u32,
    pub(crate) created_ns: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) options: SubvolumeOptions,
    /// UUID of the snapshot that it is to be received from.
    pub(crate) source: Option<[u8; 16]>,
}

/// What is to be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Create the root, then make the subvolume visible (shard 0).
    Create(NewSubvolume),
    /// Drop what a volume holds past its new end (shard 0).
    Resize { subvolume: SubvolumeId, name: String, inode: InodeNumber, size_bytes: u64 },
    /// Drop what a file holds past its new end, and zero the rest of its last block.
    Truncate { inode: InodeNumber, snapshot: SnapshotId, size: u64 },
    /// Drop the data of a file that is gone.
    Remove { inode: InodeNumber, snapshot: SnapshotId },
}

/// Number of a logged operation of this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OperationId(pub(crate) u64);

impl OperationId {
    fn position(self) -> Position {
        Position::new(self.0, 0, 0)
    }
}

/// Commits to `intent` with `transaction`.
///
/// # Errors
/// Those of [`Transaction::take`].
pub(crate) fn put(transaction: &mut Transaction<'_>, intent: &Intent) -> Result<OperationId> {
    let id = OperationId(transaction.take(Counter::NEXT_OPERATION)?);
    replace(transaction, id, intent);
    Ok(id)
}

/// Changes what a logged operation is to do.
pub(crate) fn replace(transaction: &mut Transaction<'_>, id: OperationId, intent: &Intent) {
    transaction.put(Tree::LoggedOps, id.position(), intent.encode());
}

/// As [`replace`], unless the operation is done.
///
/// # Errors
/// When a node cannot be read, or `Restart`.
pub(crate) async fn replace_pending(
    transaction: &mut Transaction<'_>,
    id: OperationId,
    intent: &Intent,
) -> Result<()> {
    if transaction.get(Tree::LoggedOps, id.position()).await?.is_some() {
        replace(transaction, id, intent);
    }
    Ok(())
}

/// The operation is done.
pub(crate) fn remove(transaction: &mut Transaction<'_>, id: OperationId) {
    transaction.delete(Tree::LoggedOps, id.position());
}

/// All operations that are not done, in the order in which they began.
pub(crate) async fn pending(engine: &Engine) -> Result<Vec<(OperationId, Intent)>> {
    let mut transaction = engine.read();
    let mut all = Vec::new();
    let mut from = Position::MIN;
    while let Some((position, value)) =
        transaction.next(Tree::LoggedOps, from, Position::MAX).await?
    {
        let (id, intent) = (OperationId(position.inode), Intent::decode(&value)?);
        tracing::debug!(shard = engine.shard().0, ?id, ?intent, "an operation goes on");
        all.push((id, intent));
        from = position.successor();
    }
    Ok(all)
}
