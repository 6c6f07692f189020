//! Copygc: empties buckets that hold few live blocks by moving these, so that there are always free
//! buckets.
//!
//! Which bucket is emptied is the business of [`super::victims`]. Its summary names what was placed in it; the
//! index says what still lives there. A move reads, verifies, writes elsewhere, and changes the index only
//! if the extent is still the very same. So a crash at any point leaves the old place or the new one in the
//! index, with its data written before: a move is an overwrite with the same bytes.
//!
//! *Hot and cold* are kept apart by the two write points: what clients write is young and goes to one bucket,
//! what is moved has outlived its bucket and goes to another, together with what else has. A bucket of
//! moved blocks keeps the age of what is in it, so it is not taken for young and moved again soon. No third
//! write point is needed for that: what is moved twice is cold, and cold buckets are hardly ever moved.
//!
//! *Ahead of need*: it starts when free buckets are [`Space::gc_headroom`] above what data must leave alone,
//! and then chooses by cost and benefit; when somebody waits, the emptiest. *Never starved*: the last
//! free buckets are not for data, its moves are not refused space or the journal's reserve, and admission
//! keeps two buckets' worth of dead blocks, so that there always is a bucket to be gained. *Never starving
//! others*: what it fills is always less than what it empties.
//!
//! A bucket that cannot be emptied (a block of it is lost, or its device fails) is *stuck*: what can be moved
//! was moved, its dead blocks count as used, and it is tried again when no other bucket is left.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c;
use engine_device::{IoVec, QueueExt};
use engine_memory::Buffer;
use smallvec::SmallVec;

use super::format::SummaryEntry;
use super::table::{BucketId, Space};
use super::victims::Measure;
use super::{Allocation, WritePoint};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{EXTENT_BLOCKS_MAX, Extent};
use crate::journal::Class;
use crate::key::{Position, Tree, Value};

/// Extents of a bucket that are moved side by side.
const MOVES_MAX: usize = 8;
/// Time until a bucket that could not be emptied is tried again.
const STUCK_RETRY_NS: u64 = 1_000_000_000;

/// The bucket that is being emptied.
#[derive(Clone, Copy)]
struct Victim {
    id: BucketId,
    generation: u32,
    filled_at: u64,
}

/// An extent to be moved, as it was found.
type Found = (Position, Value, Extent);

impl Space {
    /// Free buckets above what data must leave alone at which copygc starts: room to work ahead. Less
    /// than the dead space that admission leaves, so that it can be reached.
    fn gc_headroom(&self) -> usize {
        1 + (self.tables.borrow().owned / 64).min(64) as usize
    }
}

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
                Err(_) => {
                    let mut tables = self.space.tables.borrow_mut();
                    tables.bucket(victim).stuck = true;
                    tables.list_bucket(victim);
                }
            }
            self.space.changed.notify_all();
        }
    }

    /// Lets buckets that could not be emptied be tried again. Says whether there were any.
    fn forgive_stuck(&self) -> bool {
        let mut tables = self.space.tables.borrow_mut();
        let stuck = tables.stuck.clone();
        for id in &stuck {
            tables.bucket(*id).stuck = false;
            tables.list_bucket(*id);
        }
        !stuck.is_empty()
    }

    /// Whether free buckets run low and no region is to be had.
    fn gc_needed(&self) -> bool {
        let keep = self.space.keep_for_others() + self.space.gc_headroom();
        let tables = self.space.tables.borrow();
        tables.regions_exhausted && tables.free.len() + tables.draining.len() <= keep
    }

    /// The data bucket that is to be emptied next.
    pub(super) fn gc_victim(&self) -> Option<BucketId> {
        let keep = self.space.keep_for_others();
        let tables = self.space.tables.borrow();
        let measure = if tables.free.len() <= keep {
            Measure::Greedy
        } else {
            Measure::CostBenefit { now: tables.written_blocks }
        };
        let ready = |id| tables.buckets.get(&id).is_some_and(|bucket| bucket.pins == 0);
        tables.victims.best(measure, ready)
    }

    /// Moves everything that lives in a bucket.
    pub(super) async fn empty_bucket(&self, id: BucketId) -> Result<()> {
        let victim = {
            let mut tables = self.space.tables.borrow_mut();
            let bucket = tables.bucket(id);
            Victim { id, generation: bucket.generation, filled_at: bucket.filled_at }
        };
        let summary = self.summary_of(id).await?;
        self.move_entries(victim, &summary).await?;
        if self.still_lives(victim) {
            let summary = self.summary_from_index(id).await?;
            self.move_entries(victim, &summary).await?;
        }
        if self.still_lives(victim) {
            return Err(StoreError::corrupt(
                format!("bucket {id:?}"),
                "blocks are counted live that no extent names",
            ));
        }
        self.space.gc_buckets.set(self.space.gc_buckets.get() + 1);
        Ok(())
    }

    fn still_lives(&self, victim: Victim) -> bool {
        let mut tables = self.space.tables.borrow_mut();
        let bucket = tables.bucket(victim.id);
        bucket.generation == victim.generation && bucket.live_blocks > 0
    }

    /// Moves what still lives of `entries`; one that cannot be moved does not keep the others.
    async fn move_entries(&self, victim: Victim, entries: &[SummaryEntry]) -> Result<()> {
        let mut batch: Vec<Found> = Vec::with_capacity(MOVES_MAX);
        let mut result = Ok(());
        for entry in entries {
            let start = entry.end.saturating_sub(u64::from(entry.blocks));
            let last = Position::new(
                entry.inode,
                entry.end.saturating_add(u64::from(EXTENT_BLOCKS_MAX)),
                u32::MAX,
            );
            let mut from = Position::new(entry.inode, start + 1, 0);
            while self.still_lives(victim)
                && let Some((position, value)) = self.read().next(Tree::Extents, from, last).await?
            {
                let extent = Extent::decode(&value)?;
                if position.offset.saturating_sub(u64::from(extent.blocks)) >= entry.end {
                    break;
                }
                let here = |pointer: &crate::extent::Pointer| {
                    pointer.generation == victim.generation
                        && self.space.bucket_of(pointer.member, pointer.block) == victim.id
                };
                if position.snapshot == entry.snapshot
                    && extent.pointers.iter().any(here)
                    && batch.iter().all(|(known, ..)| *known != position)
                {
                    batch.push((position, value, extent));
                }
                if batch.len() == MOVES_MAX {
                    result = result.and(self.move_batch(victim, &mut batch).await);
                }
                from = position.successor();
            }
        }
        result.and(self.move_batch(victim, &mut batch).await)
    }

    /// Moves extents side by side, waits for all of them; the first error wins.
    async fn move_batch(&self, victim: Victim, batch: &mut Vec<Found>) -> Result<()> {
        let moves = batch
            .iter()
            .map(|(position, value, extent)| self.move_extent(victim, *position, value, extent));
        let results = futures::future::join_all(moves).await;
        batch.clear();
        results.into_iter().collect()
    }

    /// Moves one extent, unless it changes meanwhile.
    async fn move_extent(
        &self,
        victim: Victim,
        position: Position,
        value: &Value,
        extent: &Extent,
    ) -> Result<()> {
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
            self.note_age(allocation.id, victim.filled_at);
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

    /// A bucket of moved blocks is as old as the youngest bucket they came from.
    fn note_age(&self, id: BucketId, filled_at: u64) {
        let mut tables = self.space.tables.borrow_mut();
        let bucket = tables.bucket(id);
        bucket.filled_at = bucket.filled_at.max(filled_at);
        tables.list_bucket(id);
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
