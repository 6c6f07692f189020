//! The state of an engine, for people and metrics.

use engine_base::BLOCK_SIZE;

use crate::api::ShardStatus;
use crate::engine::Engine;
use crate::error::Result;
use crate::space::BucketKind;

impl Engine {
    /// Space and counters of this shard.
    ///
    /// # Errors
    /// On shard 0, when the table of regions cannot be read.
    pub async fn status(&self) -> Result<ShardStatus> {
        self.ensure_regions().await?;
        let unassigned = if self.shard().0 == 0 { self.unassigned_buckets().await? } else { 0 };
        let bucket_bytes = u64::from(self.superblock().bucket_bytes);
        let available = self.space.available_blocks(self.cache.unwritten_bytes.get());
        let tables = self.space.tables.borrow();
        let data_buckets =
            tables.buckets.values().filter(|bucket| bucket.kind == BucketKind::Data).count() as u64;
        let node_slots: u32 = tables.buckets.values().map(|bucket| bucket.slots.count_ones()).sum();
        let held = data_buckets * u64::from(self.space.data_blocks());
        Ok(ShardStatus {
            shard: self.shard(),
            capacity_bytes: tables.owned * bucket_bytes,
            data_bytes: tables.live_blocks * BLOCK_SIZE,
            index_bytes: u64::from(node_slots) * u64::from(self.superblock().node_bytes),
            journal_bytes: self.journal.ring_bytes(),
            fragmented_bytes: held.saturating_sub(tables.live_blocks) * BLOCK_SIZE,
            available_bytes: available * BLOCK_SIZE,
            unassigned_bytes: unassigned * bucket_bytes,
            inodes: 0,
            counters: self.counters(),
        })
    }
}
