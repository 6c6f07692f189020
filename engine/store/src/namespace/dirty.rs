//! Which other shards hold unflushed data of which files, and fsync.

use engine_base::{InodeNumber, ShardId};
use smallvec::SmallVec;

use super::{InodeRef, Namespace};
use crate::api::{Request, TreeRef};
use crate::error::Result;
use crate::lock::Access;
use crate::times::Timed;

impl Namespace {
    /// Data shards first: when the size is durable, so is what it promises.
    pub(super) async fn file_sync(&self, tree: TreeRef, number: InodeNumber) -> Result<()> {
        self.check(tree)?;
        InodeRef::of(tree, number).load(&mut self.context.engine.read()).await?;
        self.sync_data(number).await?;
        self.context.engine.flush().await
    }

    /// Flushes the other shards that hold unflushed data of the inode.
    pub(super) async fn sync_data(&self, number: InodeNumber) -> Result<()> {
        let turn = self.syncs.lock(number.0, Access::Exclusive);
        let _turn = self.context.engine.waits.on(Timed::BlockedInodeLock, turn).await;
        let Some(shards) = self.dirty.borrow_mut().remove(number.0) else { return Ok(()) };
        let flushed =
            self.context.ask_each(shards.iter().copied().map(ShardId), &Request::Flush).await;
        if flushed.is_err() {
            shards.iter().for_each(|shard| self.mark(number, ShardId(*shard)));
        }
        flushed
    }

    /// Remembers that `shard` is about to get data of the inode.
    pub(super) async fn mark_dirty(&self, number: InodeNumber, shard: ShardId) -> Result<()> {
        if shard == self.context.shard() {
            return Ok(());
        }
        let oldest = {
            let dirty = self.dirty.borrow();
            if dirty.contains(number.0) { None } else { dirty.overflow() }
        };
        if let Some(oldest) = oldest {
            self.sync_data(InodeNumber(oldest)).await?;
        }
        self.mark(number, shard);
        Ok(())
    }

    fn mark(&self, number: InodeNumber, shard: ShardId) {
        let mut dirty = self.dirty.borrow_mut();
        if !dirty.contains(number.0) {
            dirty.insert(number.0, SmallVec::new());
        }
        if let Some(shards) = dirty.get_mut(number.0)
            && !shards.contains(&shard.0)
        {
            shards.push(shard.0);
        }
    }

    /// The inode is gone.
    pub(super) fn forget(&self, number: InodeNumber) {
        self.dirty.borrow_mut().remove(number.0);
        self.settled.borrow_mut().remove(number.0);
    }
}
