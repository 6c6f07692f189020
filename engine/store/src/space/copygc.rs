//! Copygc: empties buckets that hold few live blocks by moving these, so that there are always free
//! buckets.
//!
//! Which bucket is emptied is the business of [`super::victims`]. Its summary names what was placed in it; the
//! index says what still lives there; [`super::moves`] puts it elsewhere.
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

use super::format::SummaryEntry;
use super::loaded::RegionPin;
use super::table::{BucketId, Space};
use super::victims::Measure;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::repair::is_loss;
use crate::times::Timed;

/// Tables that are loaded, at most, for a better bucket than is at hand.
const TABLES_MAX: usize = 4;
/// Time until a table is asked for again for which there was no memory.
const LOAD_RETRY_NS: u64 = 10_000_000;
/// Time until a bucket that could not be emptied is tried again.
const STUCK_RETRY_NS: u64 = 1_000_000_000;

/// Times that a bucket is gone over by its summary before the whole index is looked at.
const PASSES_MAX: usize = 3;
/// Times that the whole index is looked at: a walk may miss what is cut or comes meanwhile.
const WALKS_MAX: usize = 3;

/// The bucket that is being emptied.
#[derive(Clone, Copy)]
pub(super) struct Victim {
    pub(super) id: BucketId,
    pub(super) generation: u32,
    pub(super) filled_at: u64,
}

/// That a bucket is being emptied: what is moved is not put there.
struct Emptying<'s>(&'s Space, BucketId);

impl<'s> Emptying<'s> {
    fn new(space: &'s Space, id: BucketId) -> Self {
        space.tables.borrow_mut().emptying.push(id);
        Self(space, id)
    }
}

impl Drop for Emptying<'_> {
    fn drop(&mut self) {
        let mut tables = self.0.tables.borrow_mut();
        if let Some(at) = tables.emptying.iter().position(|id| *id == self.1) {
            tables.emptying.swap_remove(at);
        }
    }
}

impl Space {
    /// Free buckets above what data must leave alone at which copygc starts: room to work ahead. Less
    /// than the dead space that admission leaves, so that it can be reached.
    pub(super) fn gc_headroom(&self) -> usize {
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
            let found = if needed { self.find_victim().await } else { None };
            let Some((victim, _pin)) = found else {
                if needed && !self.space.tables.borrow().stuck.is_empty() {
                    // A device that failed may be well again. Until then there is nothing to be gained, and who
                    // waits for space is to see that.
                    let rounds = self.space.hopeless.rounds.get();
                    self.space.hopeless.rounds.set(rounds.saturating_add(1));
                    self.space.changed.notify_all();
                    self.config.runtime.sleep(STUCK_RETRY_NS).await;
                    self.forgive_stuck();
                } else {
                    if !needed {
                        self.space.hopeless.rounds.set(0);
                    }
                    wanted.await;
                }
                continue;
            };
            self.tell_victim(victim);
            self.gc_active.set(true);
            let timed = self.waits.start(Timed::CopygcBucket);
            let emptied = self.empty_bucket(victim).await;
            drop(timed);
            self.gc_active.set(false);
            match emptied {
                Ok(()) => self.space.hopeless.rounds.set(0),
                Err(StoreError::ShuttingDown { .. }) => return,
                Err(error) => {
                    let (shard, bucket) = (self.shard().0, victim);
                    tracing::debug!(shard, ?bucket, %error, "copygc cannot empty a bucket");
                    self.space.hopeless.error.replace(Some(error));
                    let mut tables = self.space.tables.borrow_mut();
                    tables.bucket(victim).stuck = true;
                    tables.list_bucket(victim);
                }
            }
            self.space.changed.notify_all();
        }
    }

    fn tell_victim(&self, id: BucketId) {
        let tables = self.space.tables.borrow();
        let live = tables.buckets.get(&id).map(|bucket| bucket.live_blocks);
        let (shard, free) = (self.shard().0, tables.free.len());
        tracing::debug!(shard, bucket = ?id, live_blocks = live, free, "copygc empties a bucket");
    }

    /// Lets buckets that could not be emptied be tried again.
    fn forgive_stuck(&self) {
        let mut tables = self.space.tables.borrow_mut();
        let stuck = tables.stuck.clone();
        for id in &stuck {
            tables.bucket(*id).stuck = false;
            tables.list_bucket(*id);
        }
    }

    /// Whether free buckets run low and no region is to be had.
    fn gc_needed(&self) -> bool {
        let keep = self.space.keep_for_others() + self.space.gc_headroom();
        let tables = self.space.tables.borrow();
        tables.regions_exhausted && tables.free_buckets() + tables.draining.len() <= keep
    }

    fn gc_measure(&self) -> Measure {
        let keep = self.space.keep_for_others();
        let tables = self.space.tables.borrow();
        if tables.free_buckets() <= keep {
            Measure::Greedy
        } else {
            Measure::CostBenefit { now: tables.written_blocks }
        }
    }

    /// The best data bucket of those whose table is loaded.
    fn gc_victim(&self, measure: Measure) -> Option<(u128, BucketId)> {
        let tables = self.space.tables.borrow();
        let ready = |id| tables.buckets.get(&id).is_some_and(|bucket| bucket.pins == 0);
        tables.victims.best(measure, ready)
    }

    /// Whether there is a bucket to empty.
    pub(super) fn gc_has_victim(&self) -> bool {
        self.gc_victim(Measure::Greedy).is_some()
            || self.space.tables.borrow().victim_elsewhere(Measure::Greedy).is_some()
    }

    /// The data bucket that is to be emptied next. A table that may hold a better one than those that
    /// are loaded is loaded first.
    async fn find_victim(&self) -> Option<(BucketId, RegionPin)> {
        let measure = self.gc_measure();
        let mut pins = Vec::new();
        loop {
            let here = self.gc_victim(measure);
            let elsewhere = self.space.tables.borrow().victim_elsewhere(measure);
            let better = elsewhere.filter(|(score, _)| here.is_none_or(|it| it.0 < *score));
            match (here, better) {
                (here, Some((_, region))) if here.is_none() || pins.len() < TABLES_MAX => {
                    match self.pin_region(region).await {
                        Ok(pin) => pins.push(pin),
                        // It is not asked for again.
                        Err(error) if is_loss(&error) => {}
                        Err(_) => self.config.runtime.sleep(LOAD_RETRY_NS).await,
                    }
                    if self.stopped().is_some() {
                        return None;
                    }
                }
                (Some((_, id)), _) => {
                    let region = self.space.tables.borrow().region_of(id);
                    // It is loaded; if it became unreadable in this turn there is nothing to do.
                    return Some((id, self.pin_region(region).await.ok()?));
                }
                (None, _) => return None,
            }
        }
    }

    /// Moves everything that lives in a bucket.
    pub(super) async fn empty_bucket(&self, id: BucketId) -> Result<()> {
        let _emptying = Emptying::new(&self.space, id);
        let victim = self.victim_of(id);
        let mut summary = self.summary_of(id).await?;
        // What was cut by a client while it was moved stays behind.
        for _ in 0..PASSES_MAX {
            self.leave_out_dead(id, &mut summary);
            self.move_entries(victim, &summary).await?;
            if !self.still_lives(victim) {
                break;
            }
        }
        for _ in 0..WALKS_MAX {
            if !self.still_lives(victim) {
                break;
            }
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

    /// A bucket, as it is now.
    pub(super) fn victim_of(&self, id: BucketId) -> Victim {
        let mut tables = self.space.tables.borrow_mut();
        let bucket = tables.bucket(id);
        Victim { id, generation: bucket.generation, filled_at: bucket.filled_at }
    }

    /// Leaves out of a summary what is known to live no more.
    fn leave_out_dead(&self, id: BucketId, summary: &mut Vec<SummaryEntry>) {
        let all = summary.len();
        let mut tables = self.space.tables.borrow_mut();
        let dead = &tables.bucket(id).dead;
        summary.retain(|it| !dead.has_all(it.range()));
        drop(tables);
        let skipped = (all - summary.len()) as u64;
        let entries = &self.space.gc_entries;
        entries.skipped.set(entries.skipped.get() + skipped);
        entries.looked_up.set(entries.looked_up.get() + summary.len() as u64);
    }

    pub(super) fn still_lives(&self, victim: Victim) -> bool {
        let mut tables = self.space.tables.borrow_mut();
        let bucket = tables.bucket(victim.id);
        bucket.generation == victim.generation && bucket.live_blocks > 0
    }

    /// A bucket of moved blocks is as old as the youngest bucket they came from.
    pub(super) fn note_age(&self, id: BucketId, filled_at: u64) {
        let mut tables = self.space.tables.borrow_mut();
        let bucket = tables.bucket(id);
        bucket.filled_at = bucket.filled_at.max(filled_at);
        tables.list_bucket(id);
    }
}
