//! The last resort of copygc: what it moves goes between the live blocks of a bucket that is in use.
//!
//! Copygc fills a free bucket to gain others, and a process that dies leaves that bucket partly filled. One that
//! dies again and again before anything was gained uses up the free buckets that are kept for copygc, and then
//! none could ever be gained. So when there is no free bucket, none on its way to be free and nothing open, what is
//! moved is put in the longest run of dead blocks of some bucket.
//!
//! What makes that safe:
//! - No extent names the blocks of a run: that is what a walk over the index found, in buckets whose extents did
//!   not change meanwhile (a count of live blocks does not tell: a part of a frame counts as much as the frame), to
//!   which nothing appends and in which no write is on its way. Nothing is placed there later but by whoever takes
//!   the run, once.
//! - A flush after the walk makes durable that they are dead. So no recovery names them again.
//! - What was found is forgotten when a region comes or an end moves: only while regions stay do generations tell one
//!   use of a bucket from the next.
//! - The generation of the bucket stays, as the other blocks keep their pointers. Whoever still reads what died there
//!   meets another checksum than he expects, and looks up again; data caches forget everything.

use std::collections::BTreeSet;

use engine_base::hash::FastMap;

use super::table::{Bucket, BucketId, BucketKind, OpenBucket, Space, Tables};
use crate::engine::Engine;
use crate::error::Result;
use crate::planted::{self, Bug};
use crate::reached::{Branch, mark};
use crate::space::WritePoint;

/// Buckets that one walk looks at, the emptiest: a byte for each of their blocks is held in memory.
const BUCKETS_MAX: usize = 64;

/// Dead blocks side by side in a bucket that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    id: BucketId,
    generation: u32,
    start_block: u32,
    end_block: u32,
}

impl Run {
    fn blocks(&self) -> u32 {
        self.end_block - self.start_block
    }
}

/// What a walk found out of a bucket.
struct Seen {
    generation: u32,
    /// As counted before the walk.
    live_blocks: u32,
    /// The last change of its extents before the walk.
    changed: u64,
    /// As the extents that were found count.
    found_blocks: u64,
    /// Whether an extent names the block.
    named: Vec<bool>,
}

impl Seen {
    fn name(&mut self, start_block: u64, blocks: u32) {
        let named = self.named.iter_mut().skip(start_block as usize);
        named.take(blocks as usize).for_each(|named| *named = true);
    }

    /// The longest run of blocks that nothing names.
    fn longest_run(&self) -> (u32, u32) {
        let (mut longest, mut start) = ((0, 0), 0);
        for (at, named) in (0_u32..).zip(self.named.iter().chain([&true])) {
            if *named {
                if at - start > longest.1 - longest.0 {
                    longest = (start, at);
                }
                start = at + 1;
            }
        }
        longest
    }
}

/// That somebody looks for runs.
struct Looking<'s>(&'s Space);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.looking_for_runs.set(false);
        self.0.looked_for_runs.notify_all();
    }
}

impl Tables {
    /// Whether a run of the bucket may be taken: nobody else appends to it, empties it or waits for it to be free.
    fn may_be_filled(&self, id: BucketId, bucket: &Bucket) -> bool {
        bucket.kind == BucketKind::Data
            && !bucket.open
            && bucket.pins == 0
            && !bucket.draining
            && !bucket.stuck
            && bucket.live_blocks < self.data_blocks
            && !self.emptying.contains(&id)
            && !self.is_leaving(id)
    }
}

impl Engine {
    /// Fills runs also while there are free buckets: for tests of what is hardly ever needed.
    pub fn set_fills_runs_first(&self, first: bool) {
        self.space.fills_runs_first.set(first);
    }

    /// Opens a run of dead blocks for what is moved. False: there is none.
    ///
    /// # Errors
    /// When the index cannot be read or the journal cannot be flushed.
    pub(crate) async fn open_run(&self) -> Result<bool> {
        if self.take_run() {
            return Ok(true);
        }
        if self.space.looking_for_runs.replace(true) {
            self.space.looked_for_runs.notified().await;
            return Ok(true);
        }
        let _looking = Looking(&self.space);
        let runs = self.find_runs().await?;
        if runs.is_empty() {
            return Ok(false);
        }
        self.flush().await?;
        self.space.tables.borrow_mut().runs = runs;
        self.space.changed.notify_all();
        Ok(self.take_run())
    }

    /// Opens the longest of the runs that are known, unless something else is open by now.
    fn take_run(&self) -> bool {
        let mut tables = self.space.tables.borrow_mut();
        if tables.open[WritePoint::Moved as usize].is_some() {
            return true;
        }
        while let Some(run) = tables.runs.pop() {
            let bucket = tables.buckets.get(&run.id);
            if !bucket.is_some_and(|bucket| {
                bucket.generation == run.generation && tables.may_be_filled(run.id, bucket)
            }) {
                continue;
            }
            tables.bucket(run.id).open = true;
            tables.list_bucket(run.id);
            let open =
                OpenBucket { id: run.id, next_block: run.start_block, end_block: run.end_block };
            tables.open[WritePoint::Moved as usize] = Some(open);
            self.space.runs_taken.set(self.space.runs_taken.get() + 1);
            mark(Branch::RunFilled);
            let shard = self.shard().0;
            tracing::info!(shard, ?run, "no free bucket: what is moved goes between live blocks");
            return true;
        }
        false
    }

    /// Runs of dead blocks, the longest last.
    async fn find_runs(&self) -> Result<Vec<Run>> {
        let mut seen = self.buckets_to_fill();
        // A table that was loaded anew would not know of changes.
        let _pins: Vec<_> = {
            let tables = self.space.tables.borrow();
            let regions: BTreeSet<_> = seen.keys().map(|id| tables.region_of(*id)).collect();
            drop(tables);
            regions.into_iter().filter_map(|region| self.space.pin_loaded(region)).collect()
        };
        let per_bucket = u64::from(self.space.bucket_blocks());
        // What does not fit the runs would use them up.
        let mut longest_frame = 1;
        self.each_place(|_, lengths, pointer| {
            if lengths.frame {
                longest_frame = longest_frame.max(lengths.disk_blocks);
            }
            let id = self.space.bucket_of(pointer.member, pointer.block);
            if let Some(seen) = seen.get_mut(&id)
                && seen.generation == pointer.generation
            {
                seen.name(pointer.block % per_bucket, lengths.disk_blocks);
                seen.found_blocks += u64::from(lengths.live_blocks);
            }
        })
        .await?;
        let mut runs = self.unchanged_runs(&seen);
        runs.retain(|run| run.blocks() >= longest_frame);
        Ok(runs)
    }

    /// The emptiest of the buckets whose tables are loaded.
    fn buckets_to_fill(&self) -> FastMap<BucketId, Seen> {
        let tables = self.space.tables.borrow();
        let all = tables.buckets.iter().filter(|(id, bucket)| tables.may_be_filled(**id, bucket));
        let mut all: Vec<(u32, BucketId, u32, u64)> = all
            .map(|(id, bucket)| (bucket.live_blocks, *id, bucket.generation, bucket.changed))
            .collect();
        all.sort_unstable();
        all.truncate(BUCKETS_MAX);
        let seen = |(live_blocks, id, generation, changed)| {
            let named = vec![false; tables.data_blocks as usize];
            (id, Seen { generation, live_blocks, changed, found_blocks: 0, named })
        };
        all.into_iter().map(seen).collect()
    }

    /// The longest run of each bucket that is as it was before the walk.
    fn unchanged_runs(&self, seen: &FastMap<BucketId, Seen>) -> Vec<Run> {
        let tables = self.space.tables.borrow();
        let unchanged = seen.iter().filter(|(id, seen)| {
            tables.buckets.get(id).is_some_and(|bucket| {
                bucket.generation == seen.generation
                    && bucket.changed == seen.changed
                    && bucket.live_blocks == seen.live_blocks
                    && seen.found_blocks == u64::from(seen.live_blocks)
                    && tables.may_be_filled(**id, bucket)
            })
        });
        let mut runs: Vec<Run> = unchanged
            .map(|(id, seen)| {
                let (mut start_block, end_block) = seen.longest_run();
                if planted::is(Bug::RunOverNamed) {
                    start_block = start_block.saturating_sub(1);
                }
                Run { id: *id, generation: seen.generation, start_block, end_block }
            })
            .filter(|run| run.blocks() > 0)
            .collect();
        runs.sort_unstable_by_key(|run| (run.blocks(), run.id));
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_is_found_wherever_it_is() {
        let mut seen = Seen {
            generation: 1,
            live_blocks: 0,
            changed: 0,
            found_blocks: 0,
            named: vec![false; 10],
        };
        assert_eq!(seen.longest_run(), (0, 10));
        seen.name(4, 2);
        assert_eq!(seen.longest_run(), (0, 4));
        seen.name(1, 1);
        assert_eq!(seen.longest_run(), (6, 10));
        seen.name(8, 2);
        assert_eq!(seen.longest_run(), (2, 4));
        seen.name(0, 10);
        assert_eq!(seen.longest_run().0, seen.longest_run().1);
    }
}
