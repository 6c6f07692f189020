//! Logged operations of files: dropping the data of a removed file, cutting off a shortened one.

use std::rc::Rc;

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::units::{align_down, align_up};
use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SnapshotId};
use engine_memory::Buffer;

use super::{Inode, Namespace};
use crate::api::{Data, Request};
use crate::background::Held;
use crate::error::{Result, StoreError};
use crate::lock::{Access, LockGuard};
use crate::logged::{self, Intent, OperationId};
use crate::reached::{Branch, mark};

/// A file that is to be cut off.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) operation: OperationId,
    pub(super) inode: InodeNumber,
    pub(super) snapshot: SnapshotId,
    pub(super) size: u64,
}

impl Namespace {
    /// Takes up what was interrupted. Files that are to be cut off are locked before this returns.
    pub(crate) async fn resume(self: &Rc<Self>) -> Result<()> {
        for (operation, intent) in logged::pending(&self.context.engine).await? {
            match intent {
                Intent::Truncate { inode, snapshot, size } => {
                    mark(Branch::ResumeTruncate);
                    let cut = Cut { operation, inode, snapshot, size };
                    let lock = self.locks.lock(inode.0, Access::Exclusive).await;
                    self.start_cut(cut, lock);
                }
                Intent::Remove { inode, snapshot } => {
                    mark(Branch::ResumeRemove);
                    self.start_removal(operation, inode, snapshot);
                }
                // Of subvolumes; the tables take these up.
                Intent::Create(_) | Intent::Resize { .. } => {}
            }
        }
        Ok(())
    }

    /// Drops the data of an inode that is gone, in the background.
    pub(super) fn start_removal(
        self: &Rc<Self>,
        operation: OperationId,
        inode: InodeNumber,
        snapshot: SnapshotId,
    ) {
        let namespace = Rc::clone(self);
        let work = async move {
            let background = &namespace.context.background;
            let step = async || namespace.removal(operation, inode, snapshot).await;
            background.repeat(Held::Nothing, step).await;
        };
        self.context.background.spawn("file removal", Box::pin(work));
    }

    async fn removal(
        &self,
        operation: OperationId,
        inode: InodeNumber,
        snapshot: SnapshotId,
    ) -> Result<()> {
        let context = &self.context;
        // Nothing is dropped elsewhere before it is durable here that the file is gone.
        context.engine.flush().await?;
        let request = Request::DataForget { inodes: vec![inode], version: context.known(snapshot) };
        context.step_each(context.shards(), &request).await?;
        context.step_each(context.shards(), &Request::Flush).await?;
        context
            .engine
            .transact(async |transaction| {
                logged::remove(transaction, operation);
                Ok(())
            })
            .await
    }

    /// Cuts off a file in the background; its lock is held until that is done.
    pub(super) fn start_cut(self: &Rc<Self>, cut: Cut, lock: LockGuard<u64>) {
        let namespace = Rc::clone(self);
        let work = async move {
            let background = &namespace.context.background;
            let held = Held::Inode(cut.inode.0);
            background.repeat(held, async || namespace.cut_off(cut).await).await;
            drop(lock);
        };
        self.context.background.spawn("file truncation", Box::pin(work));
    }

    /// All steps of cutting off a file. Its lock is held.
    pub(super) async fn cut_off(&self, cut: Cut) -> Result<()> {
        let Cut { operation, inode, snapshot, size } = cut;
        let context = &self.context;
        let from = align_up(size, BLOCK_SIZE);
        // A version that is being deleted takes this file along: nothing is left to do then. Else the
        // deletion waits for this.
        let pass = context.gate.enter(snapshot);
        if pass.is_ok() {
            // Nothing is dropped elsewhere before the new size is durable here.
            context.engine.flush().await?;
            let version = context.known(snapshot);
            let request = Request::DataPunch { inode, version, from, to: u64::MAX };
            unless_deleted(context.step_each(context.shards(), &request).await)?;
            unless_deleted(self.zero_tail(inode, snapshot, size).await.map(drop))?;
            context.step_each(context.shards(), &Request::Flush).await?;
        }
        context
            .engine
            .transact(async |transaction| {
                logged::remove(transaction, operation);
                let Some(mut found) = Inode::seen(transaction, inode, snapshot).await? else {
                    return Ok(());
                };
                found.data_limit = found.data_limit.min(from);
                found.store(transaction, inode, snapshot).await
            })
            .await
    }

    /// The block that holds the last, incomplete part of a file of `size` bytes, with zeroes after
    /// it; `None` when there is no such block or it is as it should be.
    pub(super) async fn zeroed_tail(
        &self,
        inode: InodeNumber,
        snapshot: SnapshotId,
        size: u64,
    ) -> Result<Option<(u64, Data)>> {
        let start = align_down(size, BLOCK_SIZE);
        if start == size {
            return Ok(None);
        }
        let data = self.context.read_blocks(inode, snapshot, start, BLOCK_SIZE).await?;
        let mut block = Buffer::try_new(BLOCK_SIZE as usize)?;
        super::file::copy_out(&data, 0, &mut block);
        let tail = &mut block[(size - start) as usize..];
        if tail.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        tail.fill(0);
        Ok(Some((start, Data::from_iter([block.freeze()]))))
    }

    /// Makes what follows the end of a file in its last block zeroes. Tells which shard has changed.
    pub(super) async fn zero_tail(
        &self,
        inode: InodeNumber,
        snapshot: SnapshotId,
        size: u64,
    ) -> Result<Option<ShardId>> {
        let Some((start, data)) = self.zeroed_tail(inode, snapshot, size).await? else {
            return Ok(None);
        };
        self.context.write_blocks(inode, snapshot, start, data).await?;
        Ok(Some(inode.data_shard(start, self.context.engine.shard_count())))
    }

    /// The shards that hold chunks of `from .. to` of an inode.
    pub(super) fn shards_of(&self, inode: InodeNumber, from: u64, to: u64) -> Vec<ShardId> {
        let count = self.context.engine.shard_count();
        if from >= to {
            return Vec::new();
        }
        let (first, last) = (from >> CHUNK_SIZE_LOG2, (to - 1) >> CHUNK_SIZE_LOG2);
        if last - first >= u64::from(count) {
            return self.context.shards().collect();
        }
        (first..=last).map(|chunk| inode.data_shard(chunk << CHUNK_SIZE_LOG2, count)).collect()
    }
}

/// A step on shards of which one may delete the version already: nothing is left to do there then.
fn unless_deleted(done: Result<()>) -> Result<()> {
    match done {
        Err(StoreError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
