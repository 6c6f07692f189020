//! A shard's part in growing and shrinking a member.
//!
//! Every member has an *end*: the bucket from which on nothing is placed. It is where the last copy of the
//! superblock lies, or will lie once the member is shrunk. Always holds:
//! - Buckets past an end are in no list that anything is taken from, and off the capacity, so that what is
//!   admitted fits before the end.
//! - A shard lets an end fall only if what it holds, with its reserves, fits before it, and only with as many free
//!   buckets before it as data must leave alone: copygc can gain others then. So emptying what is past the end
//!   never needs space that somebody else has.
//! - What is past the end and still in use is emptied bucket by bucket, as copygc does it. It is *empty* when all
//!   of it is free, the entries that emptied it are durable, and so are the checkpoints that say so: then
//!   recovery, from whatever entry, finds nothing there.
//!
//! Leaves to [`crate::resize`] when an end moves, and the superblock.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;

use super::format::BucketCheckpoint;
use super::loaded::RegionPin;
use super::table::{Bucket, BucketId, BucketKind, RegionId, Space, Tables};
use super::victims::Measure;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::resize::ShardLeft;
use crate::superblock::Superblock;

/// Pauses when nothing could be emptied, in nanoseconds: the shortest, and the longest.
const PAUSE_NS_MIN: u64 = 1_000_000;
const PAUSE_NS_MAX: u64 = 1_000_000_000;
/// Regions that are asked for at most, before a member is shrunk.
const REGIONS_MAX: u32 = 1 << 20;

impl Tables {
    /// Whether a bucket is past the end of its member.
    pub(crate) fn is_closed(&self, id: BucketId) -> bool {
        self.ends.get(usize::from(id.0)).is_some_and(|end| id.1 >= *end)
    }

    /// The end of a member, or where it may soon be.
    pub(super) fn given_end(&self, member: u8) -> u32 {
        let end = self.ends[usize::from(member)];
        match self.shrinks_to {
            Some((shrinks, to)) if shrinks == member => end.min(to),
            _ => end,
        }
    }

    /// Free buckets that are not past bucket `end` of the member.
    fn free_before(&self, (member, end): BucketId) -> usize {
        let here = self.free.iter().filter(|id| id.0 != member || id.1 < end);
        here.count() + self.known.free_before(member, end / self.region_buckets) as usize
    }

    /// The emptiest bucket with dead blocks that is not past bucket `end` of the member, and a region that is not
    /// loaded with one.
    fn victim_before(&self, (member, end): BucketId) -> (Option<BucketId>, Option<RegionId>) {
        let before = |id: BucketId| {
            (id.0 != member || id.1 < end)
                && self.buckets.get(&id).is_some_and(|bucket| bucket.pins == 0)
        };
        let here = self.victims.best(Measure::Greedy, before).map(|(_, id)| id);
        (here, self.victim_region_before((member, end)))
    }

    /// What is known past the ends.
    fn past_ends(&self) -> impl Iterator<Item = (&BucketId, &Bucket)> {
        let ends = (0_u8..).zip(&self.ends);
        ends.flat_map(|(member, end)| self.buckets.range((member, *end)..=(member, u32::MAX)))
    }

    /// Buckets of a region that can be allocated.
    pub(super) fn usable_buckets(&self, superblock: &Superblock, region: RegionId) -> u32 {
        superblock.usable_buckets(region.0, region.1, self.ends[usize::from(region.0)])
    }

    /// Whether a part of a region is past an end that is not that of the device.
    pub(super) fn is_cut(&self, superblock: &Superblock, (member, index): RegionId) -> bool {
        let end = self.given_end(member);
        let next = (index + 1).saturating_mul(self.region_buckets);
        end + 1 < superblock.member_buckets(member) && next > end
    }
}

impl Space {
    /// Buckets of this shard if the member ended at bucket `end`.
    fn owned_before(&self, tables: &Tables, (member, end): (u8, u32)) -> u64 {
        let superblock = self.superblock();
        let regions = tables.regions.iter().filter(|region| tables.leaving != Some(**region));
        let usable = regions.map(|region| {
            let now = tables.ends[usize::from(region.0)];
            let then = if region.0 == member { now.min(end) } else { now };
            u64::from(superblock.usable_buckets(region.0, region.1, then))
        });
        usable.sum()
    }

    /// Blocks that are missing for this shard if the member ended at bucket `end`; 0: it fits.
    fn missing_blocks(&self, unwritten_bytes: u64, end: (u8, u32)) -> u64 {
        let tables = self.tables.borrow();
        let capacity = self.capacity_of(&tables, self.owned_before(&tables, end));
        self.used_blocks(&tables, unwritten_bytes).saturating_sub(capacity)
    }

    /// Free buckets that are missing before bucket `end` of the member, if it ended there.
    fn missing_free(&self, end: (u8, u32)) -> usize {
        let tables = self.tables.borrow();
        let needed = Self::kept_of(self.owned_before(&tables, end)) + 1;
        needed.saturating_sub(tables.free_before(end))
    }

    /// Lists anew what the tables say of buckets from `first` on of a member whose end was moved.
    fn list_from(&self, tables: &mut Tables, (member, first): BucketId) {
        let superblock = self.superblock();
        let all = self.all_slots();
        let regions: Vec<RegionId> = tables.regions.iter().copied().collect();
        for region in regions.iter().filter(|region| region.0 == member) {
            let past = superblock.member_buckets(member);
            let usable = tables.usable_buckets(&superblock, *region);
            tables.set_usable(*region, usable);
            if !tables.is_loaded(*region) {
                continue;
            }
            let buckets = tables.buckets_of(*region).filter(|id| id.1 >= first && id.1 < past);
            for id in buckets {
                let free = tables.buckets.get(&id).is_none_or(|it| it.kind == BucketKind::Free);
                if tables.is_closed(id) {
                    tables.free.remove(&id);
                    tables.to_discard.remove(&id);
                } else if free
                    && !superblock.is_reserved(id.0, id.1)
                    && !tables.discarding.contains(&id)
                {
                    tables.note_free(id);
                }
            }
        }
        let known: Vec<BucketId> =
            tables.buckets.range((member, first)..=(member, u32::MAX)).map(|(id, _)| *id).collect();
        for id in known {
            tables.note_slots_if_index(id, all);
            tables.list_bucket(id);
        }
        let stays = regions.iter().filter(|region| tables.leaving != Some(**region));
        tables.owned =
            stays.map(|region| u64::from(tables.usable_buckets(&superblock, *region))).sum();
    }

    /// Forgets buckets and regions that a member has not any more, which ends at bucket `end`.
    fn drop_past(&self, tables: &mut Tables, (member, end): BucketId) {
        let past = (member, end)..=(member, u32::MAX);
        let gone: Vec<BucketId> = tables.buckets.range(past).map(|(id, _)| *id).collect();
        for id in gone {
            tables.buckets.remove(&id);
        }
        let regions = self.superblock().member_regions(member);
        tables.regions.retain(|region| region.0 != member || region.1 < regions);
        tables.forget_regions(member, regions);
    }
}

impl Engine {
    /// A member may soon end at bucket `end`: regions past it are not given any more.
    pub(crate) fn expect_end(&self, member: u8, end: u32) {
        self.space.tables.borrow_mut().shrinks_to = Some((member, end));
    }

    /// Gets regions until what this shard holds would fit if a member ended at bucket `end`.
    ///
    /// # Errors
    /// `NoSpace` when there are not enough.
    pub(crate) async fn prepare_end(&self, member: u8, end: u32) -> Result<()> {
        self.ensure_regions().await?;
        for _ in 0..REGIONS_MAX {
            let missing = self.missing_before(member, end);
            if missing == 0 {
                return self.make_room_before((member, end)).await;
            }
            if !self.acquire_region(None).await? && !self.acquire_region(Some(0)).await? {
                return Err(self.does_not_fit(missing));
            }
        }
        Err(self.does_not_fit(self.missing_before(member, end)))
    }

    /// Empties buckets before bucket `end` of a member until enough of them are free.
    ///
    /// # Errors
    /// `NoSpace` when there is nothing more to be gained.
    async fn make_room_before(&self, end: BucketId) -> Result<()> {
        let mut pins = Vec::new();
        // Each frees one, and fills one at most.
        let tries_max = 2 * self.space.tables.borrow().owned;
        for _ in 0..tries_max {
            if self.space.is_draining() {
                self.journal.flush().await?;
                self.release_flushed();
            }
            if self.space.missing_free(end) == 0 {
                return Ok(());
            }
            let (here, elsewhere) = self.space.tables.borrow().victim_before(end);
            match (here, elsewhere) {
                (Some(id), _) => {
                    let region = self.space.tables.borrow().region_of(id);
                    let _pin = self.pin_region(region).await?;
                    self.empty_bucket(id).await?;
                }
                (None, Some(region)) => pins.push(self.pin_region(region).await?),
                (None, None) if self.acquire_region(None).await? => {}
                (None, None) => break,
            }
        }
        match self.space.missing_free(end) as u64 {
            0 => Ok(()),
            missing => Err(self.does_not_fit(missing * u64::from(self.space.data_blocks()))),
        }
    }

    fn missing_before(&self, member: u8, end: u32) -> u64 {
        self.space.missing_blocks(self.cache.unwritten_bytes.get(), (member, end))
    }

    fn does_not_fit(&self, missing: u64) -> StoreError {
        let available = self.space.available_blocks(self.cache.unwritten_bytes.get());
        StoreError::NoSpace {
            needed_bytes: (missing + available) * BLOCK_SIZE,
            available_bytes: available * BLOCK_SIZE,
        }
    }

    /// Buckets that this shard needs to hold what it holds, with its reserves, while a member shrinks.
    pub(crate) fn buckets_needed(&self) -> u64 {
        let tables = self.space.tables.borrow();
        let unwritten_bytes = self.cache.unwritten_bytes.get();
        let used = self.space.used_blocks_as(&tables, unwritten_bytes, true);
        let mut needed = used / u64::from(self.space.data_blocks());
        while self.space.capacity_of(&tables, needed) < used {
            needed += 1;
        }
        needed
    }

    /// Lets the end of a member fall to bucket `end`, in memory only: nothing is placed past it from here
    /// on.
    ///
    /// # Errors
    /// `NoSpace` when what this shard holds does not fit before it; nothing has changed then.
    pub(crate) async fn close_end(&self, member: u8, end: u32) -> Result<()> {
        self.ensure_regions().await?;
        let _pins = self.load_from((member, end)).await?;
        let free = self.space.missing_free((member, end)) as u64;
        let missing = self.missing_before(member, end);
        let missing = missing.max(free * u64::from(self.space.data_blocks()));
        if missing > 0 {
            return Err(self.does_not_fit(missing));
        }
        self.move_end(member, end);
        Ok(())
    }

    /// Moves all ends back to where the superblock says.
    pub(crate) fn reopen_ends(&self) {
        let superblock = self.superblock();
        {
            let mut tables = self.space.tables.borrow_mut();
            tables.shrinks_to = shrinking(&superblock);
            // What was refused on account of a member that was to be shrunk may be given now.
            tables.regions_exhausted &= tables.shrinks_to.is_some();
        }
        for member in 0..superblock.members.len() as u8 {
            self.move_end(member, superblock.member_end(member));
        }
    }

    fn move_end(&self, member: u8, end: u32) {
        let mut tables = self.space.tables.borrow_mut();
        let old = std::mem::replace(&mut tables.ends[usize::from(member)], end);
        if old != end {
            self.seal_closed(&mut tables);
            self.space.list_from(&mut tables, (member, old.min(end)));
            tables.regions_exhausted &= end < old;
        }
        drop(tables);
        self.space.ends_moved.notify_all();
        self.space.changed.notify_all();
        self.space.gc_wanted.notify_all();
    }

    /// Write points leave the buckets past the ends.
    fn seal_closed(&self, tables: &mut Tables) {
        let seq = self.journal.settled_by();
        for point in 0..tables.open.len() {
            let Some(open) = tables.open[point].filter(|open| tables.is_closed(open.id)) else {
                continue;
            };
            tables.open[point] = None;
            let bucket = tables.bucket(open.id);
            bucket.open = false;
            let generation = bucket.generation;
            if bucket.pins == 0 && bucket.summary.is_some() {
                tables.to_seal.push_back((open.id, generation));
            }
            tables.drain_if_empty(open.id, seq);
        }
    }

    /// Takes over a superblock that is durable on all members; one that is not newer changes nothing.
    ///
    /// # Errors
    /// `Corrupt` when something is in use past the end of a member; when a device does not have its new
    /// size. Nothing has changed then.
    pub(crate) fn adopt(&self, superblock: &Superblock) -> Result<()> {
        let old = self.superblock();
        if superblock.sequence <= old.sequence {
            return Ok(());
        }
        for (queue, member) in self.config.members.iter().zip(&superblock.members) {
            let has = queue.refresh_size()?;
            if has < member.size_bytes {
                let (name, wants) = (&queue.info().name, member.size_bytes);
                let why = format!("{name} has {has} bytes, the pool uses {wants}");
                return Err(StoreError::corrupt("pool", why));
            }
        }
        let shrunk: Vec<BucketId> = (0..superblock.members.len() as u8)
            .filter(|at| superblock.member_buckets(*at) < old.member_buckets(*at))
            .map(|at| (at, superblock.member_end(at)))
            .collect();
        if let Some(id) = shrunk.iter().find_map(|first| self.used_from(*first)) {
            let what = format!("bucket {} of member {}", id.1, id.0);
            return Err(StoreError::corrupt(what, "is in use past the new end of its member"));
        }
        self.space.set_superblock(Rc::new(superblock.clone()));
        self.reopen_ends();
        for first in shrunk {
            self.space.drop_past(&mut self.space.tables.borrow_mut(), first);
        }
        Ok(())
    }

    /// A bucket that is in use, or not durably out of it, from `first` on.
    fn used_from(&self, first: BucketId) -> Option<BucketId> {
        let tables = self.space.tables.borrow();
        let mut from = tables.buckets.range(first..=(first.0, u32::MAX));
        let used = from.find(|(id, bucket)| {
            let free = bucket.kind == BucketKind::Free && bucket.is_empty();
            !free || bucket.dirty_seq.is_some() || tables.discarding.contains(*id)
        });
        let used = used.map(|(id, _)| *id);
        let bucket_of =
            |region: RegionId| (region.0, region.1.saturating_mul(tables.region_buckets));
        let unloaded = || tables.unloaded_from(first).into_iter();
        let unloaded = || unloaded().find(|(_, tally)| tally.used_buckets() > 0).map(|it| it.0);
        let regions = self.superblock().member_regions(first.0);
        let past = |region: &RegionId| bucket_of(*region).1 >= first.1 && region.1 < regions;
        let dirty = || tables.dirty_tallies_from(first).into_iter().find(past);
        used.or_else(|| unloaded().or_else(dirty).map(bucket_of))
    }

    /// Loads the tables of all regions of a member that hold something from bucket `first` on. They stay
    /// while the pins live, and as long as the end is there.
    async fn load_from(&self, first: BucketId) -> Result<Vec<RegionPin>> {
        let regions = self.space.tables.borrow().unloaded_from(first);
        let mut pins = Vec::new();
        for (region, tally) in regions {
            if tally.used_buckets() > 0 {
                pins.push(self.pin_region(region).await?);
            }
        }
        Ok(pins)
    }

    /// The first bucket past the end of each member.
    fn ends(&self) -> Vec<BucketId> {
        let tables = self.space.tables.borrow();
        (0_u8..).zip(&tables.ends).map(|(member, end)| (member, *end)).collect()
    }

    /// Whether a checkpoint is of a bucket that its member lost when it was shrunk: only its stamp counts.
    pub(super) fn is_left_behind(&self, id: BucketId, state: &BucketCheckpoint) -> bool {
        let superblock = self.superblock();
        usize::from(id.0) < superblock.members.len()
            && id.1 + 1 >= superblock.member_buckets(id.0)
            && (state.live_blocks, state.slots) == (0, 0)
    }

    /// What is left past the ends.
    pub(crate) fn left_past_ends(&self) -> ShardLeft {
        let node_bytes = u64::from(self.space.node_bytes());
        let sequence = self.superblock().sequence;
        let tables = self.space.tables.borrow();
        let bytes = tables.past_ends().map(|(_, bucket)| {
            u64::from(bucket.live_blocks) * BLOCK_SIZE
                + u64::from(bucket.slots.count_ones()) * node_bytes
        });
        // Of a table that is not loaded yet, all of the region: a part may lie before the end.
        let unloaded =
            (0_u8..).zip(&tables.ends).flat_map(|end| tables.unloaded_from((end.0, *end.1)));
        let unloaded = unloaded.map(|(_, tally)| {
            tally.live_blocks * BLOCK_SIZE + u64::from(tally.used_slots) * node_bytes
        });
        ShardLeft {
            sequence,
            bytes: bytes.sum::<u64>() + unloaded.sum::<u64>(),
            empty: self.space.emptied.get() == sequence,
            why: self.space.evacuation_error.borrow().clone(),
        }
    }

    /// Empties what is past the ends, until the engine stops.
    pub(crate) async fn evacuation_loop(self: Rc<Self>) {
        let mut pause_ns = PAUSE_NS_MIN;
        loop {
            let moved = self.space.ends_moved.notified();
            if self.stopped().is_some() || self.space.closing.get() {
                return;
            }
            let superblock = self.superblock();
            if shrinking(&superblock).is_none() {
                *self.space.evacuation_error.borrow_mut() = None;
                moved.await;
                continue;
            }
            let before = self.left_past_ends().bytes;
            let result = self.evacuate_once().await;
            let why = result.as_ref().err().map(ToString::to_string);
            *self.space.evacuation_error.borrow_mut() = why;
            if matches!(result, Ok(true)) {
                self.space.emptied.set(superblock.sequence);
                moved.await;
                continue;
            }
            let progress = self.left_past_ends().bytes < before;
            pause_ns = if progress { PAUSE_NS_MIN } else { (pause_ns * 2).min(PAUSE_NS_MAX) };
            let pause = std::pin::pin!(self.config.runtime.sleep(pause_ns));
            futures::future::select(pause, std::pin::pin!(moved)).await;
        }
    }

    /// Goes once through what is in use past the ends. True: nothing is, durably.
    async fn evacuate_once(&self) -> Result<bool> {
        self.ensure_regions().await?;
        let mut pins = Vec::new();
        for end in self.ends() {
            pins.append(&mut self.load_from(end).await?);
        }
        let mut result = Ok(());
        for (id, kind) in self.busy_past_ends() {
            if shrinking(&self.superblock()).is_none() || self.space.closing.get() {
                return Ok(false);
            }
            let emptied = match kind {
                BucketKind::Data if self.lives(id) => {
                    self.room_to_move().await?;
                    self.empty_bucket(id).await
                }
                BucketKind::Index => {
                    self.room_to_move().await?;
                    self.empty_index_bucket(id).await
                }
                BucketKind::Data | BucketKind::Free => Ok(()),
            };
            if let Some(error) = self.stopped() {
                return Err(error);
            }
            // What cannot be moved does not keep the others.
            result = result.and(emptied);
        }
        self.journal.flush().await?;
        self.release_flushed();
        result?;
        if !self.busy_past_ends().is_empty() {
            return Ok(false);
        }
        for id in self.dirty_past_ends() {
            self.checkpoint_bucket(id).await?;
        }
        for region in self.dirty_tallies_past_ends() {
            self.checkpoint_region(region).await?;
        }
        self.journal.flush().await?;
        Ok(self.busy_past_ends().is_empty()
            && self.dirty_past_ends().is_empty()
            && self.dirty_tallies_past_ends().is_empty())
    }

    fn lives(&self, id: BucketId) -> bool {
        let tables = self.space.tables.borrow();
        tables.buckets.get(&id).is_some_and(|bucket| bucket.live_blocks > 0)
    }

    /// Waits until more is free than what copygc and the index must find.
    async fn room_to_move(&self) -> Result<()> {
        loop {
            let changed = self.space.changed.notified();
            if let Some(error) = self.stopped() {
                return Err(error);
            }
            let enough = || {
                self.space.free_buckets() > self.space.keep_for_others() || self.space.closing.get()
            };
            if enough() || self.acquire_region(None).await? {
                return Ok(());
            }
            if self.space.is_draining() {
                self.journal.flush().await?;
                self.release_flushed();
                if enough() {
                    return Ok(());
                }
            }
            self.space.gc_wanted.notify_all();
            let pause = std::pin::pin!(self.config.runtime.sleep(PAUSE_NS_MAX));
            futures::future::select(pause, std::pin::pin!(changed)).await;
        }
    }

    /// Buckets past the ends that are not free, or are being discarded.
    fn busy_past_ends(&self) -> Vec<(BucketId, BucketKind)> {
        let tables = self.space.tables.borrow();
        let busy = tables.past_ends().filter(|(id, bucket)| {
            bucket.kind != BucketKind::Free || tables.discarding.contains(*id)
        });
        busy.map(|(id, bucket)| (*id, bucket.kind)).collect()
    }

    /// Regions that lie past an end as a whole, and whose tally is not on disk.
    fn dirty_tallies_past_ends(&self) -> Vec<RegionId> {
        let tables = self.space.tables.borrow();
        let dirty = (0_u8..).zip(&tables.ends).flat_map(|(member, end)| {
            let first = end.div_ceil(tables.region_buckets);
            let dirty = tables.dirty_tallies_from((member, *end)).into_iter();
            dirty.filter(move |region| region.1 >= first)
        });
        dirty.collect()
    }

    fn dirty_past_ends(&self) -> Vec<BucketId> {
        let tables = self.space.tables.borrow();
        let dirty = tables.past_ends().filter(|(_, bucket)| bucket.dirty_seq.is_some());
        dirty.map(|(id, _)| *id).collect()
    }
}

/// The member that is being shrunk, and the end it will have.
pub(super) fn shrinking(superblock: &Superblock) -> Option<(u8, u32)> {
    let member = superblock.members.iter().position(|member| member.shrink_to_bytes != 0)? as u8;
    Some((member, superblock.member_end(member)))
}
