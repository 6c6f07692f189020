//! Copygc: empties buckets that hold few live blocks by moving these, so that there are always free
//! buckets.
//!
//! The victim is the data bucket with the fewest live blocks. Its summary names what was placed in it; the
//! index says what still lives there. A move reads, verifies, writes elsewhere, and changes the index only
//! if the extent is still the very same.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c;
use engine_device::{IoVec, QueueExt};
use engine_memory::Buffer;
use smallvec::SmallVec;

use super::format::SummaryEntry;
use super::table::{BucketId, BucketKind};
use super::{Allocation, WritePoint};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{EXTENT_BLOCKS_MAX, Extent};
use crate::journal::Class;
use crate::key::{Position, Tree, Value};

/// Free buckets above what data must leave alone at which copygc starts: room to work ahead.
const START_ABOVE: usize = 2;
/// Time until a bucket that could not be emptied is tried again.
const STUCK_RETRY_NS: u64 = 1_000_000_000;

impl Engine {
    /// Runs copygc until the engine stops.
    pub(crate) async fn copygc_loop(self: Rc<Self>) {
        loop {
            let wanted = self.space.gc_wanted.notified();
            self.write_summaries().await;
            if self.stopped().is_some() {
                return;
            }
            let needed = self.gc_needed();
            let victim = if needed { self.gc_victim() } else { None };
            let Some(victim) = victim else {
                if needed && self.forgive_stuck() {
                    // A device that failed may be well again; who waits learns of it either way.
                    self.config.runtime.sleep(STUCK_RETRY_NS).await;
                } else {
                    wanted.await;
                }
                continue;
            };
            self.gc_active.set(true);
            let emptied = self.empty_bucket(victim).await;
            self.gc_active.set(false);
            match emptied {
                Ok(()) => {}
                Err(StoreError::ShuttingDown { .. }) => return,
                Err(_) => self.space.tables.borrow_mut().bucket(victim).stuck = true,
            }
            self.space.changed.notify_all();
        }
    }

    /// Lets buckets that could not be emptied be tried again. Says whether there were any.
    fn forgive_stuck(&self) -> bool {
        let mut tables = self.space.tables.borrow_mut();
        let mut any = false;
        for bucket in tables.buckets.values_mut() {
            any |= std::mem::take(&mut bucket.stuck);
        }
        any
    }

    /// Whether free buckets run low and no region is to be had.
    fn gc_needed(&self) -> bool {
        let keep = self.space.keep_for_others() + START_ABOVE;
        let tables = self.space.tables.borrow();
        tables.regions_exhausted && tables.free.len() + tables.draining.len() <= keep
    }

    /// The data bucket with the fewest live blocks that is worth emptying.
    pub(super) fn gc_victim(&self) -> Option<BucketId> {
        let worth = self.space.data_blocks();
        let tables = self.space.tables.borrow();
        tables
            .buckets
            .iter()
            .filter(|(_, bucket)| {
                bucket.kind == BucketKind::Data
                    && !bucket.open
                    && !bucket.draining
                    && !bucket.stuck
                    && bucket.pins == 0
                    && bucket.live_blocks < worth
            })
            .min_by_key(|(_, bucket)| bucket.live_blocks)
            .map(|(id, _)| *id)
    }

    /// Moves everything that lives in a bucket.
    async fn empty_bucket(&self, id: BucketId) -> Result<()> {
        let generation = self.space.tables.borrow_mut().bucket(id).generation;
        let summary = self.summary_of(id).await?;
        self.move_entries(id, generation, &summary).await?;
        if self.still_lives(id, generation) {
            let summary = self.summary_from_index(id).await?;
            self.move_entries(id, generation, &summary).await?;
        }
        if self.still_lives(id, generation) {
            return Err(StoreError::corrupt(
                format!("bucket {id:?}"),
                "blocks are counted live that no extent names",
            ));
        }
        self.space.gc_buckets.set(self.space.gc_buckets.get() + 1);
        Ok(())
    }

    fn still_lives(&self, id: BucketId, generation: u32) -> bool {
        let mut tables = self.space.tables.borrow_mut();
        let bucket = tables.bucket(id);
        bucket.generation == generation && bucket.live_blocks > 0
    }

    async fn move_entries(
        &self,
        id: BucketId,
        generation: u32,
        entries: &[SummaryEntry],
    ) -> Result<()> {
        for entry in entries {
            let start = entry.end.saturating_sub(u64::from(entry.blocks));
            let last = Position::new(
                entry.inode,
                entry.end.saturating_add(u64::from(EXTENT_BLOCKS_MAX)),
                u32::MAX,
            );
            let mut from = Position::new(entry.inode, start + 1, 0);
            while self.still_lives(id, generation)
                && let Some((position, value)) = self.read().next(Tree::Extents, from, last).await?
            {
                let extent = Extent::decode(&value)?;
                if position.offset.saturating_sub(u64::from(extent.blocks)) >= entry.end {
                    break;
                }
                let here = |pointer: &crate::extent::Pointer| {
                    pointer.generation == generation
                        && self.space.bucket_of(pointer.member, pointer.block) == id
                };
                if position.snapshot == entry.snapshot && extent.pointers.iter().any(here) {
                    self.move_extent(position, &value, &extent).await?;
                }
                from = position.successor();
            }
        }
        Ok(())
    }

    /// Moves one extent, unless it changes meanwhile.
    async fn move_extent(&self, position: Position, value: &Value, extent: &Extent) -> Result<()> {
        let data = match self.read_extent(extent).await {
            Ok(data) => data.freeze(),
            Err(error) => {
                // Overwritten and its bucket reused while it was read? Then there is nothing to move.
                let now = self.read().get(Tree::Extents, position).await?;
                return if now.as_ref() == Some(value) { Err(error) } else { Ok(()) };
            }
        };
        let mut reservation = self.reserve_for_move(extent.blocks);
        let mut moved: SmallVec<[(Position, Extent, Allocation); 2]> = SmallVec::new();
        let mut done = 0;
        while done < extent.blocks {
            let allocation =
                self.allocate(WritePoint::Moved, extent.blocks - done, &mut reservation).await?;
            let blocks = allocation.blocks;
            let range =
                done as usize * BLOCK_SIZE as usize..(done + blocks) as usize * BLOCK_SIZE as usize;
            let offset = allocation.pointer.block * BLOCK_SIZE;
            let member = self.member(allocation.pointer.member)?;
            member.write(offset, IoVec::from_iter([data.slice(range)]), false).await?;
            let mut part = extent.cut(done, blocks);
            part.pointers = SmallVec::from_iter([allocation.pointer]);
            done += blocks;
            let left = u64::from(extent.blocks - done);
            let end = Position { offset: position.offset - left, ..position };
            moved.push((end, part, allocation));
        }
        self.transact_as(Class::Reclaim, async |transaction| {
            if transaction.get(Tree::Extents, position).await?.as_ref() != Some(value) {
                return Ok(());
            }
            for (end, part, _) in &moved {
                transaction.put_fresh_extent(*end, part.encode());
            }
            Ok(())
        })
        .await?;
        let blocks = self.space.gc_moved_blocks.get() + u64::from(extent.blocks);
        self.space.gc_moved_blocks.set(blocks);
        Ok(())
    }

    /// Reads a whole extent and verifies it.
    async fn read_extent(&self, extent: &Extent) -> Result<Buffer> {
        let pointer = &extent.pointers[0];
        self.check_pointer(pointer, extent.blocks)?;
        let buffer = Buffer::try_new(extent.blocks as usize * BLOCK_SIZE as usize)?;
        let member = self.member(pointer.member)?;
        let data = member.read(pointer.block * BLOCK_SIZE, buffer).await?;
        let blocks = data.chunks(BLOCK_SIZE as usize);
        if blocks.zip(&extent.checksums).any(|(block, checksum)| crc32c(block) != *checksum) {
            let what = format!("block {} of member {}", pointer.block, pointer.member);
            return Err(StoreError::DataLoss { what });
        }
        Ok(data)
    }
}
