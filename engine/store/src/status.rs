//! The state of an engine, for people and metrics.

use engine_base::BLOCK_SIZE;

use crate::api::ShardStatus;
use crate::engine::Engine;
use crate::error::Result;

impl Engine {
    /// Space and counters of this shard.
    ///
    /// # Errors
    /// On shard 0, when the table of regions cannot be read.
    pub async fn status(&self) -> Result<ShardStatus> {
        self.ensure_regions().await?;
        let unassigned = if self.shard().0 == 0 { self.unassigned_buckets().await? } else { 0 };
        let bucket_bytes = u64::from(self.superblock().bucket_bytes);
        let available = self.space.writable_blocks(self.cache.unwritten_bytes.get(), unassigned);
        let tables = self.space.tables.borrow();
        let not_data = (tables.free_buckets() + tables.discarding.len() + tables.draining.len())
            as u64
            + tables.index_buckets;
        let held = tables.owned.saturating_sub(not_data) * u64::from(self.space.data_blocks());
        Ok(ShardStatus {
            shard: self.shard(),
            capacity_bytes: tables.owned * bucket_bytes,
            data_bytes: tables.live_blocks * BLOCK_SIZE,
            index_bytes: tables.used_slots * u64::from(self.superblock().node_bytes),
            journal_bytes: self.journal.ring_bytes(),
            fragmented_bytes: held.saturating_sub(tables.live_blocks) * BLOCK_SIZE,
            available_bytes: available * BLOCK_SIZE,
            unassigned_bytes: unassigned * bucket_bytes,
            inodes: 0,
            counters: self.counters(),
        })
    }
}
