//! Reading data buckets to see whether what lives in them is what was written.

use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::copygc::Victim;
use super::format::SummaryEntry;
use super::loaded::RegionPin;
use super::table::{BucketId, BucketKind};
use crate::data::BlockRange;
use crate::engine::Engine;
use crate::error::{Result, StoreError};

/// A bucket and its loaded table, or the first bucket behind a table that cannot be read.
pub(crate) type NextBucket =
    std::result::Result<Option<(BucketId, RegionPin)>, (BucketId, StoreError)>;

/// What was found in a bucket.
#[derive(Default)]
pub(crate) struct Scrubbed {
    /// Blocks that were read.
    pub(crate) blocks: u64,
    /// What could not be read, or was not what it should be.
    pub(crate) unread: Vec<BlockRange>,
}

impl Engine {
    /// Bytes that the shard holds.
    pub(crate) fn bytes_to_scrub(&self) -> u64 {
        let tables = self.space.tables.borrow();
        tables.live_blocks * BLOCK_SIZE + tables.used_slots * u64::from(self.space.node_bytes())
    }

    /// The next bucket with data, from `from` on; its table stays loaded with the pin.
    ///
    /// # Errors
    /// That of a table that cannot be read, with the first bucket behind it.
    pub(crate) async fn next_data_bucket(&self, from: BucketId) -> NextBucket {
        let (mut regions, first) = {
            let tables = self.space.tables.borrow();
            (tables.known_regions(), tables.region_of(from))
        };
        regions.sort_unstable();
        for region in regions.into_iter().filter(|region| *region >= first) {
            if self.space.tables.borrow().tally_of(region).live_blocks == 0 {
                continue;
            }
            let pin = self.pin_region(region).await.map_err(|error| {
                let buckets = self.space.tables.borrow().region_buckets;
                ((region.0, (region.1 + 1).saturating_mul(buckets)), error)
            })?;
            let tables = self.space.tables.borrow();
            let mut held = tables.buckets_of(region).filter(|id| {
                let bucket = tables.buckets.get(id);
                *id >= from
                    && bucket.is_some_and(|it| it.kind == BucketKind::Data && it.live_blocks > 0)
            });
            if let Some(id) = held.next() {
                return Ok(Some((id, pin)));
            }
        }
        Ok(None)
    }

    /// Reads all that lives in a bucket. Its table is loaded.
    ///
    /// # Errors
    /// When the index cannot be read, or memory is refused.
    pub(crate) async fn scrub_bucket(&self, id: BucketId) -> Result<Scrubbed> {
        let victim = self.victim_of(id);
        let summary = self.summary_of(id).await?;
        let (mut found, counted) = self.scrub_entries(victim, &summary).await?;
        if counted < self.closed_live_blocks(victim) {
            // The summary does not have all: it was lost, or an extent came here under another key.
            let summary = self.summary_from_index(id).await?;
            (found, _) = self.scrub_entries(victim, &summary).await?;
        }
        Ok(found)
    }

    /// Live blocks of a bucket to which nothing is added.
    fn closed_live_blocks(&self, victim: Victim) -> u64 {
        let tables = self.space.tables.borrow();
        let bucket = tables.buckets.get(&victim.id);
        bucket
            .filter(|it| !it.open && it.pins == 0 && it.generation == victim.generation)
            .map_or(0, |it| u64::from(it.live_blocks))
    }

    /// What was found, and how many live blocks the extents count for.
    async fn scrub_entries(
        &self,
        victim: Victim,
        entries: &[SummaryEntry],
    ) -> Result<(Scrubbed, u64)> {
        let (mut scrubbed, mut counted) = (Scrubbed::default(), 0);
        self.gather_entries(victim, entries, async |batch| {
            for extent in batch.extents() {
                counted += u64::from(extent.live_blocks());
                scrubbed.blocks += u64::from(extent.disk_blocks());
            }
            let (_, unread) = self.read_batch(batch).await;
            for (position, blocks) in unread.iter().map(|(found, _)| found.place()) {
                scrubbed.unread.push(BlockRange {
                    inode: InodeNumber(position.inode),
                    snapshot: SnapshotId(position.snapshot),
                    from: position.offset.saturating_sub(u64::from(blocks)),
                    to: position.offset,
                });
            }
            Ok(())
        })
        .await?;
        Ok((scrubbed, counted))
    }
}
