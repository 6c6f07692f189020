//! Buckets and counters: set to what the index says.
//!
//! The index is counted while nothing changes; then the differences go into the journal as the ordinary
//! records of buckets and counters, some at a time. When something has changed in between, the count
//! begins anew.

use super::Repairs;
use crate::check_index::{Counted, Walk};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::journal::{Class, Record};
use crate::key::{Counter, Tree};
use crate::space::{Bucket, BucketKind};
use crate::transaction::CounterUpdate;

/// Buckets that are set in one turn.
const BUCKETS_PER_TURN: usize = 32;
/// Bytes of records for one bucket at most: open, live, and 64 slots.
const BUCKET_BYTES: usize = 2 * 14 + 64 * 11;
/// Counters that are set in one turn, and bytes of a record for one.
const COUNTERS_PER_TURN: usize = 64;
const COUNTER_BYTES: usize = 22;
/// Counts before it is given up because clients change too much.
const TRIES: u32 = 20;
/// Counters from here on count the blocks of versions; see docs/format.md, "Trees and positions".
const VERSIONS_FROM: u64 = 1 << 32;

type Id = (u8, u32);

impl Engine {
    /// Sets buckets and counters.
    pub(super) async fn mend_space(&self, repairs: &mut Repairs) -> Result<()> {
        for _ in 0..TRIES {
            if self.mend_space_once(repairs).await? {
                return Ok(());
            }
            self.runtime().yield_now().await;
        }
        Err(StoreError::Overloaded {
            what:
                "repair: clients change the shard while it is counted; try again when it is quiet"
                    .to_owned(),
        })
    }

    fn activity(&self) -> (u64, u64) {
        (self.commits.get(), self.cache.rewrites.get())
    }

    async fn mend_space_once(&self, repairs: &mut Repairs) -> Result<bool> {
        let before = self.activity();
        let mut walk = Walk::default();
        for tree in Tree::ALL {
            self.walk_tree(tree, &mut walk).await?;
        }
        let wrong = self.wrong_buckets(&mut walk);
        // What the index names may lie in a region of which nothing was known; all tables are kept.
        for (id, _) in &wrong {
            let region = self.space.tables.borrow().unloaded(*id);
            if let Some(region) = region {
                self.pin_region(region).await?;
            }
        }
        for batch in wrong.chunks(BUCKETS_PER_TURN) {
            self.journal.admit(batch.len() * BUCKET_BYTES, Class::Reclaim).await?;
            if before != self.activity() {
                return Ok(false);
            }
            for (id, counted) in batch {
                repairs.add(self.set_bucket(*id, counted));
            }
        }
        let wrong = self.wrong_counters(&walk);
        for batch in wrong.chunks(COUNTERS_PER_TURN) {
            self.journal.admit(batch.len() * COUNTER_BYTES, Class::Reclaim).await?;
            if before != self.activity() {
                return Ok(false);
            }
            for (counter, delta) in batch {
                self.apply_counter(CounterUpdate::Add(*counter, *delta), self.journal.seq());
                let (version, what) = (counter.0 as u32, counter.of_version());
                repairs.add(format!("version {version}: its counter of {what}, by {delta}"));
            }
        }
        self.settle_totals();
        self.renew_tallies();
        Ok(before == self.activity())
    }

    /// Buckets that differ from what was counted.
    fn wrong_buckets(&self, walk: &mut Walk) -> Vec<(Id, Counted)> {
        let tables = self.space.tables.borrow();
        let mut wrong = Vec::new();
        for (id, bucket) in &tables.buckets {
            let counted = walk.buckets.remove(id).unwrap_or_default();
            let holds = counted.live_blocks > 0 || counted.slots != 0;
            if u64::from(bucket.live_blocks) != counted.live_blocks
                || bucket.slots != counted.slots
                || counted.newest_generation > bucket.generation
                || (holds && (bucket.kind == BucketKind::Free || bucket.draining))
            {
                wrong.push((*id, counted));
            }
        }
        wrong.extend(std::mem::take(&mut walk.buckets));
        wrong
    }

    fn wrong_counters(&self, walk: &Walk) -> Vec<(Counter, i64)> {
        let counters = self.counters.borrow();
        let mut of_versions: Vec<Counter> = walk.counters.keys().copied().collect();
        of_versions.extend(counters.keys().filter(|counter| counter.0 >= VERSIONS_FROM));
        of_versions.sort_unstable();
        of_versions.dedup();
        let wrong = of_versions.into_iter().filter_map(|counter| {
            let says = counters.get(&counter).map_or(0, |state| state.value);
            let is = walk.counters.get(&counter).copied().unwrap_or(0);
            (says != is).then(|| (counter, is.wrapping_sub(says).cast_signed()))
        });
        wrong.collect()
    }

    /// Sets one bucket; admitted to the journal in the same turn.
    fn set_bucket(&self, id: Id, counted: &Counted) -> String {
        let seq = self.journal.seq();
        let (member, bucket) = id;
        let mut tables = self.space.tables.borrow_mut();
        let state = tables.bucket(id);
        let (old_live, old_slots) = (state.live_blocks, state.slots);
        let kind = if counted.slots != 0 { BucketKind::Index } else { BucketKind::Data };
        let holds = counted.live_blocks > 0 || counted.slots != 0;
        if holds && (state.kind != kind || counted.newest_generation > state.generation) {
            let generation = counted.newest_generation.max(state.generation);
            state.reopen(kind, generation);
            let kind = kind as u8;
            self.journal.append(&[Record::BucketOpen { member, bucket, generation, kind }]);
        }
        state.draining = false;
        let live = u32::try_from(counted.live_blocks).unwrap_or(u32::MAX);
        let delta = live.wrapping_sub(state.live_blocks).cast_signed();
        if delta != 0 {
            self.journal.append(&[Record::BucketLive { member, bucket, delta }]);
            state.live_blocks = live;
        }
        let mut freed = Vec::new();
        for slot in 0..64_u8 {
            let (is, says) = (counted.slots >> slot & 1 == 1, state.slots >> slot & 1 == 1);
            if is != says {
                self.journal.append(&[Record::BucketSlot { member, bucket, slot, used: is }]);
                state.slots ^= 1 << slot;
                if says {
                    state.slots_draining |= 1 << slot;
                    freed.push(slot);
                }
            }
        }
        // What was taken for empty may have been made ready to be given.
        tables.free.remove(&id);
        tables.draining.retain(|(_, other)| *other != id);
        tables.slots_draining.extend(freed.into_iter().map(|slot| (seq, id, slot)));
        self.dirty_bucket(&mut tables, id, seq);
        tables.note_slots(id, self.space.all_slots());
        tables.list_bucket(id);
        tables.drain_if_empty(id, seq);
        format!(
            "bucket {bucket} of member {member}: {old_live} live blocks and slots {old_slots:#x} \
             are {live} and {:#x}",
            counted.slots
        )
    }

    /// The tallies of all regions are written anew.
    fn renew_tallies(&self) {
        let seq = self.journal.seq();
        let mut tables = self.space.tables.borrow_mut();
        for region in tables.loaded_regions() {
            self.dirty_region(&mut tables, region, seq);
        }
    }

    /// Sums that follow from the buckets.
    fn settle_totals(&self) {
        let mut tables = self.space.tables.borrow_mut();
        tables.live_blocks = tables.buckets.values().map(|it| u64::from(it.live_blocks)).sum();
        let index = |it: &&Bucket| it.kind == BucketKind::Index && !it.draining;
        tables.used_slots =
            tables.buckets.values().map(|it| u64::from(it.slots.count_ones())).sum();
        tables.index_buckets = tables.buckets.values().filter(index).count() as u64;
    }
}
