//! Bucket summaries: what was placed in a bucket, in order: the map from place to key.

use engine_base::BLOCK_SIZE;
use engine_device::QueueExt;
use engine_memory::Buffer;
use smallvec::SmallVec;

use super::format::{SummaryEntry, decode_summary, encode_summary, summary_blocks};
use super::table::BucketId;
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::{ExtentView, Pointer};
use crate::key::{Position, Tree, Value};

/// Extents after which a walk lets others run.
const YIELD_EXTENTS: u64 = 1024;

/// Lengths of an extent, in blocks: see [`crate::extent::Extent`].
#[derive(Clone, Copy)]
pub(super) struct Lengths {
    pub(super) blocks: u32,
    pub(super) disk_blocks: u32,
    pub(super) live_blocks: u32,
    /// Whether it is compressed.
    pub(super) frame: bool,
}

impl Engine {
    /// Writes the summaries of buckets that were filled. A summary that cannot be written is kept in
    /// memory, and rebuilt from the index after a crash.
    pub(crate) async fn write_summaries(&self) {
        loop {
            let next = self.space.tables.borrow_mut().to_seal.pop_front();
            let Some((id, generation)) = next else { return };
            let entries = {
                let mut tables = self.space.tables.borrow_mut();
                // Emptied long ago, when its table is not even loaded.
                let Some(bucket) = tables.buckets.get_mut(&id) else { continue };
                if bucket.generation != generation || bucket.draining || bucket.live_blocks == 0 {
                    continue;
                }
                let entries = bucket.summary.clone();
                // Held until the summary is written: else the bucket could be given out again, for
                // nodes, and the summary land on one of them.
                bucket.pins += u32::from(entries.is_some());
                entries
            };
            let Some(entries) = entries else { continue };
            let offset = self.summary_offset(id);
            let bytes = encode_summary(&entries, generation, offset);
            let fits = bytes.len() as u64
                <= u64::from(summary_blocks(self.space.bucket_blocks())) * BLOCK_SIZE;
            let written = fits && self.write_bytes(id.0, offset, &bytes).await.is_ok();
            let seq = self.journal.settled_by();
            let mut tables = self.space.tables.borrow_mut();
            let bucket = tables.bucket(id);
            bucket.pins -= 1;
            if written {
                bucket.summary = None;
            }
            tables.drain_if_empty(id, seq);
            drop(tables);
            // Who waits for space was told that nothing can be gained while the bucket was held.
            self.space.changed.notify_all();
        }
    }

    /// Fills the open buckets no further, so that their summaries can be written.
    pub(crate) fn seal_open_buckets(&self) {
        let mut tables = self.space.tables.borrow_mut();
        for point in 0..tables.open.len() {
            let Some(id) = tables.open[point].map(|open| open.id) else { continue };
            let bucket = tables.bucket(id);
            // Of an empty one there is nothing to tell.
            if bucket.live_blocks == 0 {
                continue;
            }
            bucket.open = false;
            let (generation, pins) = (bucket.generation, bucket.pins);
            tables.open[point] = None;
            // With an allocation in it, it is sealed when that ends.
            if pins == 0 {
                tables.to_seal.push_back((id, generation));
            }
            tables.list_bucket(id);
        }
    }

    fn summary_offset(&self, id: BucketId) -> u64 {
        (self.space.first_block(id) + u64::from(self.space.data_blocks())) * BLOCK_SIZE
    }

    /// What was placed in a bucket: from memory, from its end, or by a walk over the index.
    pub(crate) async fn summary_of(&self, id: BucketId) -> Result<Vec<SummaryEntry>> {
        let (generation, known) = {
            let mut tables = self.space.tables.borrow_mut();
            let bucket = tables.bucket(id);
            (bucket.generation, bucket.summary.clone())
        };
        if let Some(entries) = known {
            return Ok(entries);
        }
        let len = u64::from(summary_blocks(self.space.bucket_blocks())) * BLOCK_SIZE;
        let offset = self.summary_offset(id);
        let buffer = Buffer::try_new(len as usize)?;
        let read = self.member(id.0)?.read(offset, buffer).await;
        if let Ok(bytes) = read
            && let Some(entries) = decode_summary(&bytes, generation, offset)
        {
            return Ok(entries);
        }
        self.summary_from_index(id).await
    }

    /// Rebuilds a summary that was lost in a crash by a walk over all extents.
    pub(crate) async fn summary_from_index(&self, id: BucketId) -> Result<Vec<SummaryEntry>> {
        self.space.summary_misses.set(self.space.summary_misses.get() + 1);
        let first = self.space.first_block(id);
        let mut entries = Vec::new();
        self.each_place(|position, held, pointer| {
            if self.space.bucket_of(pointer.member, pointer.block) == id {
                entries.push(SummaryEntry {
                    inode: position.inode,
                    end: position.offset,
                    snapshot: position.snapshot,
                    start_block: (pointer.block - first) as u16,
                    blocks: held.blocks as u8,
                    disk_blocks: held.disk_blocks as u8,
                });
            }
        })
        .await?;
        Ok(entries)
    }

    /// Calls `of` with the key of each extent of the shard, its lengths, and each place where it lies.
    /// Lets others run meanwhile, who may change what was seen.
    pub(super) async fn each_place(
        &self,
        mut of: impl FnMut(Position, Lengths, Pointer),
    ) -> Result<()> {
        type Places = SmallVec<[Pointer; 1]>;
        let look = |_: Position, value: &Value| -> Result<(Lengths, Places)> {
            let extent = ExtentView::parse(value)?;
            let (blocks, disk_blocks) = (extent.blocks(), extent.disk_blocks());
            let (live_blocks, frame) = (extent.live_blocks(), extent.is_frame());
            let lengths = Lengths { blocks, disk_blocks, live_blocks, frame };
            Ok((lengths, extent.pointers().collect()))
        };
        let (mut from, to) = (Position::MIN, Position::MAX);
        for seen in 1_u64.. {
            let found = self.index_next(Tree::Extents, from, to, &mut None, look).await?;
            let Some((position, extent)) = found else { break };
            let (lengths, places) = extent?;
            places.into_iter().for_each(|pointer| of(position, lengths, pointer));
            if position == Position::MAX {
                break;
            }
            from = position.successor();
            if seen.is_multiple_of(YIELD_EXTENTS) {
                self.runtime().yield_now().await;
            }
        }
        Ok(())
    }
}
