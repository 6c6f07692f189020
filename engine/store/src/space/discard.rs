//! Telling devices which buckets hold nothing any more, so that they need not keep it.
//!
//! A bucket is discarded after it became free, that is after the entry that emptied it is durable: whatever
//! recovery goes back to, nothing of worth is in it. While its discard is on its way it is not among the free
//! buckets, so no write can meet it there; a crash meanwhile leaves a free bucket with any content. That is what
//! free buckets hold anyway, and nothing reads one before it was written.
//!
//! It happens in the background, when buckets have been free for [`DELAY_NS`], so that neighbours go in one command
//! and what is used again soon is not discarded at all: writing to it anew tells the device as much, and a discard
//! costs commands, and on a file or a thin device the allocation of what was given back. It takes buckets only
//! while more are free than copygc wants, and a bounded number at a time. A device that cannot, or that answers
//! with an error, is not asked again until the shard is opened anew. What was free when the shard stopped is not
//! discarded later.

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use engine_device::QueueExt;
use futures::future::Either;

use super::table::{BucketId, Tables};
use crate::engine::Engine;

/// Time that buckets stay free at least before they are discarded; twice that at most, while there are few.
/// btrfs gives block groups that nothing uses any more as long.
pub(super) const DELAY_NS: u64 = 10_000_000_000;
/// Buckets that are on their way at a time.
const BUCKETS_MAX: usize = 64;
/// Buckets that may wait. When there are more the oldest go at once: the tables of their regions stay in memory.
const WAITING_MAX: usize = 16 * 1024;

/// Free buckets that are to be discarded.
#[derive(Default)]
pub(super) struct ToDiscard {
    /// Since the delay began that is running.
    fresh: BTreeSet<BucketId>,
    /// For longer.
    aged: BTreeSet<BucketId>,
}

impl ToDiscard {
    fn insert(&mut self, id: BucketId) {
        if !self.aged.contains(&id) {
            self.fresh.insert(id);
        }
        if self.fresh.len() > WAITING_MAX {
            self.grow_older();
        }
    }

    /// Those that are in use again, or not this shard's any more.
    pub(super) fn remove(&mut self, id: &BucketId) {
        let _ = self.fresh.remove(id) || self.aged.remove(id);
    }

    pub(super) fn has_any_in(&self, range: Range<BucketId>) -> bool {
        let any = |set: &BTreeSet<BucketId>| set.range(range.clone()).next().is_some();
        any(&self.fresh) || any(&self.aged)
    }

    fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.aged.is_empty()
    }

    /// A delay has passed. Says whether any were fresh.
    fn grow_older(&mut self) -> bool {
        let any = !self.fresh.is_empty();
        self.aged.append(&mut self.fresh);
        any
    }
}

/// Neighbouring buckets of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    member: u8,
    first: u32,
    count: u32,
}

impl Engine {
    /// These members take discards.
    pub(crate) fn start_discards(&self, members: impl Iterator<Item = u8>) {
        let mut known = self.space.discard_members.borrow_mut();
        known.extend(members);
        self.space.tables.borrow_mut().wants_discard = !known.is_empty();
    }

    /// Discards free buckets until the engine stops.
    pub(crate) async fn discard_loop(self: Rc<Self>) {
        loop {
            let wanted = self.space.changed.notified();
            if self.stopped().is_some() || self.space.discard_members.borrow().is_empty() {
                return;
            }
            if self.space.tables.borrow().to_discard.is_empty() {
                wanted.await;
                continue;
            }
            self.discard_delay().await;
            let mut any = false;
            loop {
                let taken = self.take_for_discard();
                if taken.is_empty() {
                    break;
                }
                let runs = runs_of(&taken);
                let commands = runs.iter().map(|run| self.discard_run(*run));
                futures::future::join_all(commands).await;
                any = true;
            }
            let changed = self.space.changed.notified();
            let older = self.space.tables.borrow_mut().to_discard.grow_older();
            if !any && !older {
                // Too few are free to take some away.
                changed.await;
            }
        }
    }

    /// Waits until those that are fresh have aged, or are too many.
    async fn discard_delay(&self) {
        let mut delay = self.config.runtime.sleep(self.space.discard_delay_ns.get());
        loop {
            let changed = self.space.changed.notified();
            if self.stopped().is_some()
                || self.space.tables.borrow().to_discard.aged.len() > WAITING_MAX
            {
                return;
            }
            match futures::future::select(delay, std::pin::pin!(changed)).await {
                Either::Left(_) => return,
                Either::Right((_, rest)) => delay = rest,
            }
        }
    }

    /// Time that buckets stay free at least before they are discarded, in nanoseconds.
    pub fn set_discard_delay_ns(&self, delay_ns: u64) {
        self.space.discard_delay_ns.set(delay_ns);
    }

    /// Takes buckets out of the free ones, the highest first: they are the last to be used again.
    fn take_for_discard(&self) -> Vec<BucketId> {
        let keep = self.space.keep_for_others() + self.space.gc_headroom();
        let mut tables = self.space.tables.borrow_mut();
        if self.stopped().is_some() || self.space.closing.get() {
            return Vec::new();
        }
        let spare = tables.free_buckets().saturating_sub(keep);
        let members = self.space.discard_members.borrow();
        tables.to_discard.aged.retain(|id| members.contains(&id.0));
        tables.to_discard.fresh.retain(|id| members.contains(&id.0));
        let most = spare.min(BUCKETS_MAX);
        let mut taken: Vec<_> = tables.to_discard.aged.iter().rev().take(most).copied().collect();
        taken.reverse();
        for id in &taken {
            tables.to_discard.remove(id);
            assert!(tables.free.remove(id), "{id:?} is to be discarded and not free");
            tables.discarding.insert(*id);
        }
        taken
    }

    async fn discard_run(&self, run: Run) {
        let bucket_bytes = u64::from(self.superblock().bucket_bytes);
        let (offset, len) = (u64::from(run.first), u64::from(run.count));
        let done = match self.member(run.member) {
            Ok(queue) => queue.discard(offset * bucket_bytes, len * bucket_bytes).await.is_ok(),
            Err(_) => false,
        };
        if done {
            let bytes = self.space.discarded_bytes.get() + len * bucket_bytes;
            self.space.discarded_bytes.set(bytes);
        } else {
            self.space.discard_members.borrow_mut().remove(&run.member);
        }
        let mut tables = self.space.tables.borrow_mut();
        tables.wants_discard = !self.space.discard_members.borrow().is_empty();
        for bucket in run.first..run.first + run.count {
            let id = (run.member, bucket);
            tables.discarding.remove(&id);
            if !tables.is_leaving(id) {
                tables.free.insert(id);
            }
        }
        drop(tables);
        self.space.changed.notify_all();
    }

    /// Starts no more discards and waits for those on their way: after a close another may use the
    /// devices.
    pub(crate) async fn end_discards(&self) {
        self.space.closing.set(true);
        loop {
            let changed = self.space.changed.notified();
            if self.space.tables.borrow().discarding.is_empty() {
                return;
            }
            changed.await;
        }
    }
}

impl Tables {
    /// A bucket became free.
    pub(super) fn note_free(&mut self, id: BucketId) {
        if self.is_leaving(id) {
            return;
        }
        self.free.insert(id);
        if self.wants_discard {
            self.to_discard.insert(id);
        }
    }

    /// Takes the lowest free bucket; while a member is about to be shrunk, one past its new end if there is
    /// one: those before are needed when it ends there.
    pub(super) fn take_free(&mut self) -> Option<BucketId> {
        let leaving = self.shrinks_to.and_then(|(member, end)| {
            let last = self.free.range((member, end)..=(member, u32::MAX)).next_back();
            last.copied()
        });
        let id = match leaving {
            Some(id) => self.free.take(&id),
            None => self.free.pop_first(),
        }?;
        self.to_discard.remove(&id);
        Some(id)
    }
}

/// Joins neighbours; `ids` are in order.
fn runs_of(ids: &[BucketId]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (member, bucket) in ids.iter().copied() {
        match runs.last_mut() {
            Some(run) if run.member == member && run.first + run.count == bucket => run.count += 1,
            _ => runs.push(Run { member, first: bucket, count: 1 }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_member_join() {
        let runs = runs_of(&[(0, 3), (0, 4), (0, 6), (1, 7), (1, 8)]);
        let expected = [(0, 3, 2), (0, 6, 1), (1, 7, 2)].map(|(member, first, count)| Run {
            member,
            first,
            count,
        });
        assert_eq!(runs, expected);
    }
}
