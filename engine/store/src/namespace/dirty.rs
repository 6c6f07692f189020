//! Which other shards hold unflushed data of which files, and fsync.

use engine_base::{InodeNumber, ShardId};
use smallvec::SmallVec;

use super::{FileKey, InodeRef, Namespace};
use crate::api::{Request, TreeRef};
use crate::error::Result;
use crate::lock::Access;
use crate::times::Timed;

impl Namespace {
    /// Data shards first: when the size is durable, so is what it promises.
    pub(super) async fn file_sync(&self, tree: TreeRef, number: InodeNumber) -> Result<()> {
        self.reading(tree, async |tree| {
            InodeRef::of(tree, number).load(&mut self.context.engine.read()).await.map(drop)
        })
        .await?;
        self.sync_data((tree.subvolume, number)).await?;
        self.context.engine.flush().await
    }

    /// Flushes the other shards that hold unflushed data of the file.
    pub(super) async fn sync_data(&self, file: FileKey) -> Result<()> {
        let turn = self.syncs.lock(file.1.0, Access::Exclusive);
        let _turn = self.context.engine.waits.on(Timed::BlockedInodeLock, turn).await;
        let Some(shards) = self.dirty.borrow_mut().remove(file) else { return Ok(()) };
        let flushed =
            self.context.ask_each(shards.iter().copied().map(ShardId), &Request::Flush).await;
        if flushed.is_err() {
            shards.iter().for_each(|shard| self.mark(file, ShardId(*shard)));
        }
        flushed
    }

    /// Remembers that `shard` is about to get data of the file.
    pub(super) async fn mark_dirty(&self, file: FileKey, shard: ShardId) -> Result<()> {
        if shard == self.context.shard() {
            return Ok(());
        }
        let oldest = {
            let dirty = self.dirty.borrow();
            if dirty.contains(file) { None } else { dirty.overflow() }
        };
        if let Some(oldest) = oldest {
            self.sync_data(oldest).await?;
        }
        self.mark(file, shard);
        Ok(())
    }

    fn mark(&self, file: FileKey, shard: ShardId) {
        let mut dirty = self.dirty.borrow_mut();
        if !dirty.contains(file) {
            dirty.insert(file, SmallVec::new());
        }
        if let Some(shards) = dirty.get_mut(file)
            && !shards.contains(&shard.0)
        {
            shards.push(shard.0);
        }
    }

    /// The file is gone.
    pub(super) fn forget(&self, file: FileKey) {
        self.dirty.borrow_mut().remove(file);
        self.settled.borrow_mut().remove(file);
    }
}
