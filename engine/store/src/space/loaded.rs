//! Tables of regions in memory: read when something needs them, dropped when nothing does.
//!
//! A shard knows a *tally* of each of its regions: what the buckets of the region hold together. That is
//! little, and read when the shard is opened. The table of a region, the state of each of its buckets, is
//! *loaded* when something is allocated or freed in it, when copygc or a repair looks there, or when the
//! journal to be replayed names a bucket of it. So a mount costs what is in the journal, not what is in
//! the pool.
//!
//! What always holds:
//! - The state of a bucket is asked for and changed only while the table of its region is loaded.
//!   Who changes it after a wait holds a [`RegionPin`] meanwhile.
//! - A table is dropped only when it is *idle*: all of it is in checkpoints, nothing is open, pinned, being
//!   emptied or discarded in it. What is dropped is what a load will find.
//! - Of a region that no journal entry to be replayed names, the tally on disk is exact. A region
//!   whose bucket changed holds the entry of the change until its tally was written after it, just as
//!   the bucket does. A load compares the two and refuses a table that contradicts its tally.
//! - Totals of the shard, free buckets too, count what is not loaded by its tally.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::format::{BucketCheckpoint, Stamp, Tally};
use super::table::{Bucket, BucketId, BucketKind, KnownAs, RegionId, Space, Tables};
use super::victims::{Measure, Standing};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree};
use crate::planted::{self, Bug};
use crate::repair::is_loss;
use crate::times::Timed;

/// Buckets of loaded tables that a shard keeps, roughly, when their regions are idle: some 10 MiB.
const BUCKETS_MAX: usize = 1 << 16;
/// Fewest tables that are kept.
const TABLES_MIN: usize = 8;
/// Free buckets of loaded tables that are kept at hand: who writes out nodes finds a place without a
/// read.
const FREE_AT_HAND: usize = 16;

/// Buckets with their states on disk; others with their stamps.
type States = Vec<(BucketId, BucketCheckpoint)>;
type Stamps = Vec<(BucketId, Stamp)>;

/// What is known of a region.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    /// As last loaded, checkpointed or dropped.
    pub(super) tally: Tally,
    /// Buckets of it that can be allocated, once it is known to be this shard's.
    usable: u32,
    owned: bool,
    pub(super) loaded: bool,
    loading: bool,
    /// Its table could not be read; nothing is allocated there.
    unreadable: bool,
    pins: u32,
    used: u64,
    /// Journal entry that the difference to the tally on disk pins.
    pub(super) dirty_seq: Option<u64>,
}

impl Known {
    /// Free buckets that can be had by loading the table.
    fn free(&self) -> u64 {
        if self.owned && !self.loaded && !self.unreadable {
            u64::from(self.usable.saturating_sub(self.tally.used_buckets()))
        } else {
            0
        }
    }

    /// Whether its table could be read, as far as it was tried.
    pub(super) fn is_readable(&self) -> bool {
        !self.unreadable
    }

    fn can_be_loaded(&self) -> bool {
        !self.loaded && !self.unreadable
    }
}

/// The regions of a shard.
pub(crate) struct Regions {
    known: BTreeMap<RegionId, Known>,
    loaded: usize,
    /// Sum of [`Known::free`].
    free: u64,
    tick: u64,
    /// Idle tables are dropped down to `most`, when there are more than `drop_at`.
    most: usize,
    drop_at: usize,
    /// Nothing is dropped while somebody needs all tables.
    keep: u32,
    loads: u64,
    drops: u64,
}

impl Regions {
    pub(super) fn new(region_buckets: u32) -> Self {
        let most = (BUCKETS_MAX / region_buckets.max(1) as usize).max(TABLES_MIN);
        Self {
            known: BTreeMap::new(),
            loaded: 0,
            free: 0,
            tick: 0,
            most,
            drop_at: most,
            keep: 0,
            loads: 0,
            drops: 0,
        }
    }

    /// Changes what is known of a region; keeps the sums in step.
    fn change<T>(&mut self, region: RegionId, work: impl FnOnce(&mut Known) -> T) -> T {
        let known = self.known.entry(region).or_default();
        let before = (known.free(), known.loaded);
        let result = work(known);
        self.free = self.free - before.0 + known.free();
        self.loaded = self.loaded - usize::from(before.1) + usize::from(known.loaded);
        result
    }

    pub(super) fn known(&self) -> impl Iterator<Item = (RegionId, &Known)> {
        self.known.iter().map(|(region, known)| (*region, known))
    }

    /// Free buckets of regions that are not loaded and that lie before region `end` of the member.
    pub(super) fn free_before(&self, member: u8, end: u32) -> u64 {
        let before = self.known.iter().filter(|(id, _)| id.0 != member || id.1 < end);
        before.map(|(_, known)| known.free()).sum()
    }

    pub(super) fn get(&self, region: RegionId) -> Option<&Known> {
        self.known.get(&region)
    }

    pub(super) fn is_loaded(&self, region: RegionId) -> bool {
        self.known.get(&region).is_some_and(|known| known.loaded)
    }

    /// Named counters for metrics.
    pub(super) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        out.push(("space_tables_loaded", self.loaded as u64));
        out.push(("space_table_loads", self.loads));
        out.push(("space_table_drops", self.drops));
    }
}

/// Keeps the table of a region loaded.
pub(crate) struct RegionPin {
    space: Rc<Space>,
    region: RegionId,
}

impl Drop for RegionPin {
    fn drop(&mut self) {
        let mut tables = self.space.tables.borrow_mut();
        // A region that its member has lost is not known any more.
        if tables.known.get(self.region).is_some() {
            tables.known.change(self.region, |known| known.pins = known.pins.saturating_sub(1));
        }
    }
}

/// Keeps all tables that are loaded.
pub(crate) struct KeepAll(Rc<Space>);

impl Drop for KeepAll {
    fn drop(&mut self) {
        self.0.tables.borrow_mut().known.keep -= 1;
    }
}

/// Ends the loading of a table, also when the task that loads is dropped.
struct Loading<'e>(&'e Engine, RegionId);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.0.space.tables.borrow_mut().known.change(self.1, |known| known.loading = false);
        self.0.space.table_loaded.notify_all();
    }
}

impl Engine {
    /// Keeps at most about `most` tables of regions in memory, those in use apart.
    pub fn set_region_tables_max(&self, most: usize) {
        let mut tables = self.space.tables.borrow_mut();
        tables.known.most = most.max(1);
        tables.known.drop_at = most.max(1);
    }

    /// Loads the table of a region, if need be, and keeps it while the pin lives.
    ///
    /// # Errors
    /// When it cannot be read, or contradicts its tally.
    pub(crate) async fn pin_region(&self, region: RegionId) -> Result<RegionPin> {
        loop {
            let loaded = self.space.table_loaded.notified();
            if let Some(pin) = self.space.pin_loaded(region) {
                return Ok(pin);
            }
            let busy = {
                let mut tables = self.space.tables.borrow_mut();
                tables.known.change(region, |known| std::mem::replace(&mut known.loading, true))
            };
            if !busy {
                break;
            }
            self.waits.on(Timed::BlockedNodeRead, loaded).await;
        }
        // Nobody changes what is on disk of it meanwhile: that takes a loaded table.
        let _loading = Loading(self, region);
        let read = self.read_region(region).await;
        let mut tables = self.space.tables.borrow_mut();
        let installed = read.and_then(|(states, _)| tables.install(&self.space, region, &states));
        drop(tables);
        if let Err(error) = installed {
            if is_loss(&error) {
                let mut tables = self.space.tables.borrow_mut();
                tables.known.change(region, |known| known.unreadable = true);
            }
            return Err(error);
        }
        let pin = self.space.pin_loaded(region);
        let Some(pin) = pin else { unreachable!("it was loaded in this turn") };
        self.space.tables.borrow_mut().drop_idle();
        Ok(pin)
    }

    /// As [`Engine::pin_region`] where another region will do as well: false when this one cannot be
    /// read, and will not be asked for again.
    pub(super) async fn try_load_region(&self, region: RegionId) -> Result<bool> {
        match self.pin_region(region).await {
            Ok(_) => Ok(true),
            Err(error) if is_loss(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The checkpoints of a region's buckets, and the stamps of those that its member lost when it was
    /// shrunk.
    pub(super) async fn read_region(&self, region: RegionId) -> Result<(States, Stamps)> {
        let (first, end) = self.space.tables.borrow().range_of(region);
        let member = u64::from(region.0);
        let mut from = Position::new(member, u64::from(first), 0);
        let last = Position::new(member, u64::from(end) - 1, u32::MAX);
        let (mut states, mut left_behind) = (States::new(), Stamps::new());
        while let Some((position, value)) = self.read().next(Tree::Buckets, from, last).await? {
            let id = self.bucket_at(position)?;
            let state = BucketCheckpoint::decode(&value)?;
            if self.is_left_behind(id, &state) {
                left_behind.push((id, state.stamp));
            } else {
                self.space.check_pointer(id.0, self.space.first_block(id), 1)?;
                states.push((id, state));
            }
            from = position.successor();
        }
        Ok((states, left_behind))
    }

    /// The bucket of which a key of the buckets tree tells; it may be past the end of its member.
    pub(crate) fn bucket_at(&self, position: Position) -> Result<BucketId> {
        let bad = || StoreError::corrupt("bucket", format!("{position:?} does not exist"));
        let member = u8::try_from(position.inode).map_err(|_| bad())?;
        let id = (member, u32::try_from(position.offset).map_err(|_| bad())?);
        if position.snapshot != 0 {
            return Err(bad());
        }
        Ok(id)
    }

    /// Loads every table, and keeps them while the result lives. Gives also what could not be read.
    ///
    /// # Errors
    /// Those that are not of one table.
    pub(crate) async fn load_all(&self) -> Result<(KeepAll, Vec<StoreError>)> {
        self.space.tables.borrow_mut().known.keep += 1;
        let keep = KeepAll(Rc::clone(&self.space));
        let missing: Vec<RegionId> = {
            let tables = self.space.tables.borrow();
            let known = tables.known.known().filter(|(_, known)| !known.loaded);
            known.map(|(region, _)| region).collect()
        };
        let mut lost = Vec::new();
        for region in missing {
            match self.pin_region(region).await {
                Ok(_) => {}
                Err(error) if is_loss(&error) => lost.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok((keep, lost))
    }

    /// Notes that what a region holds differs from its tally on disk since entry `seq`.
    pub(crate) fn dirty_region(&self, tables: &mut Tables, region: RegionId, seq: u64) {
        let known = tables.known.known.entry(region).or_default();
        tables.known.tick += 1;
        known.used = tables.known.tick;
        if known.dirty_seq.is_none() && !planted::is(Bug::TallyNotPinned) {
            known.dirty_seq = Some(seq);
            self.journal.pin(seq, crate::journal::Holder::Region(region.0, region.1));
        }
    }
}

impl Space {
    /// Free buckets of this shard, of loaded tables and of others.
    pub(crate) fn free_buckets(&self) -> usize {
        self.tables.borrow().free_buckets()
    }

    /// Keeps the table of a region loaded, if it is.
    pub(super) fn pin_loaded(self: &Rc<Self>, region: RegionId) -> Option<RegionPin> {
        let mut tables = self.tables.borrow_mut();
        if !tables.known.is_loaded(region) {
            return None;
        }
        tables.known.tick += 1;
        let tick = tables.known.tick;
        tables.known.change(region, |known| {
            known.pins += 1;
            known.used = tick;
        });
        Some(RegionPin { space: Rc::clone(self), region })
    }
}

impl Tables {
    /// Whether the table of a region is loaded.
    pub(crate) fn is_loaded(&self, region: RegionId) -> bool {
        self.known.is_loaded(region)
    }

    /// The region of a bucket.
    pub(crate) fn region_of(&self, id: BucketId) -> RegionId {
        (id.0, id.1 / self.region_buckets)
    }

    /// The region of a bucket, if its table is not loaded.
    pub(crate) fn unloaded(&self, id: BucketId) -> Option<RegionId> {
        let region = self.region_of(id);
        (!self.buckets.contains_key(&id) && !self.known.is_loaded(region)).then_some(region)
    }

    /// First bucket of a region, and the one after its last.
    fn range_of(&self, region: RegionId) -> (u32, u32) {
        let first = region.1.saturating_mul(self.region_buckets);
        (first, first.saturating_add(self.region_buckets))
    }

    /// Free buckets, of loaded tables and of others.
    pub(crate) fn free_buckets(&self) -> usize {
        self.free.len() + self.known.free as usize
    }

    /// What the buckets of a loaded region hold together, as a recovery will see it.
    pub(crate) fn tally_of(&self, region: RegionId) -> Tally {
        let mut tally = Tally::default();
        let (first, end) = self.range_of(region);
        for (_, bucket) in self.buckets.range((region.0, first)..(region.0, end)) {
            tally.newest = tally.newest.max(bucket.filled_at);
            if bucket.kind == BucketKind::Data && bucket.live_blocks > 0 {
                tally.data_buckets += 1;
                tally.live_blocks += u64::from(bucket.live_blocks);
                if bucket.live_blocks < self.data_blocks {
                    tally.least_live = tally.least_live.min(bucket.live_blocks);
                    tally.oldest = tally.oldest.min(bucket.filled_at);
                }
            }
            if bucket.kind == BucketKind::Index && bucket.slots != 0 {
                tally.index_buckets += 1;
                tally.used_slots += bucket.slots.count_ones();
            }
        }
        tally
    }

    /// What is to be written as the tally of a region whose tally is not on disk, with the entry that
    /// this pins; it does no more.
    pub(super) fn take_dirty_tally(&mut self, region: RegionId) -> Option<(u64, Tally)> {
        let tally = self.tally_of(region);
        self.known.change(region, |known| {
            let seq = known.dirty_seq.take()?;
            assert!(known.loaded, "the table of a region that changed was dropped");
            known.tally = tally;
            Some((seq, tally))
        })
    }

    /// Takes over the tally of a region that is on disk.
    pub(crate) fn know(&mut self, region: RegionId, tally: Tally) {
        self.known.change(region, |known| known.tally = tally);
    }

    /// Takes the checkpoint of a bucket into the tables.
    pub(crate) fn take_checkpoint(&mut self, id: BucketId, state: &BucketCheckpoint) {
        let mut bucket = Bucket::new(state.kind, state.generation);
        bucket.live_blocks = state.live_blocks;
        bucket.slots = state.slots;
        bucket.filled_at = state.filled_at;
        self.buckets.insert(id, bucket);
    }

    /// The table of a region is there from now on, to be settled.
    pub(crate) fn mark_loaded(&mut self, region: RegionId) {
        self.known.loads += 1;
        self.known.change(region, |known| {
            known.loaded = true;
            known.unreadable = false;
        });
    }

    /// Takes in the table of a region as it is on disk, if it agrees with the tally.
    fn install(
        &mut self,
        space: &Space,
        region: RegionId,
        states: &[(BucketId, BucketCheckpoint)],
    ) -> Result<()> {
        for (id, state) in states {
            self.take_checkpoint(*id, state);
        }
        let tally = self.known.get(region).map_or_else(Tally::default, |known| known.tally);
        let settled = self.settle_region(space, region).and_then(|()| {
            let found = self.tally_of(region);
            if found.agrees(&tally) {
                return Ok(());
            }
            let what = format!("table of region {} of member {}", region.1, region.0);
            Err(StoreError::corrupt(what, format!("holds {found:?}, its tally says {tally:?}")))
        });
        if settled.is_err() {
            self.forget_table(region);
            return settled;
        }
        self.mark_loaded(region);
        self.list_free(space, region);
        Ok(())
    }

    /// Every region of which something is known.
    pub(crate) fn known_regions(&self) -> Vec<RegionId> {
        self.known.known().map(|(region, _)| region).collect()
    }

    /// The regions whose table is loaded.
    pub(crate) fn loaded_regions(&self) -> Vec<RegionId> {
        let loaded = self.known.known().filter(|(_, known)| known.loaded);
        loaded.map(|(region, _)| region).collect()
    }

    /// What is wrong with the tallies of loaded regions that should be as on disk, and with the sums.
    pub(crate) fn tallies_that_lie(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (mut free, mut slots) = (0, 0);
        for (region, known) in self.known.known() {
            let tally = if known.loaded { self.tally_of(region) } else { known.tally };
            free += known.free();
            slots += u64::from(tally.used_slots);
            if known.dirty_seq.is_none() && !tally.agrees(&known.tally) {
                let says = known.tally;
                problems
                    .push(format!("region {region:?} holds {tally:?}, its tally says {says:?}"));
            }
        }
        if free != self.known.free || slots != self.used_slots {
            let (known, used) = (self.known.free, self.used_slots);
            problems.push(format!(
                "{free} free buckets in tables that are not loaded, {known} in the total; {slots} \
                 slots are used, {used} in the total"
            ));
        }
        problems
    }

    /// Drops no table any more.
    pub(crate) fn keep_all_for_good(&mut self) {
        self.known.keep += 1;
    }

    /// Counts the totals of the shard, from tables where they are loaded, else from tallies.
    pub(crate) fn count_all(&mut self) {
        let (mut live, mut slots, mut index) = (0, 0, 0);
        for (region, known) in self.known.known() {
            let tally = if known.loaded { self.tally_of(region) } else { known.tally };
            live += tally.live_blocks;
            slots += u64::from(tally.used_slots);
            index += u64::from(tally.index_buckets);
        }
        (self.live_blocks, self.used_slots, self.index_buckets) = (live, slots, index);
    }

    /// Derives what follows from the states of the buckets of a region, and checks them.
    pub(crate) fn settle_region(&mut self, space: &Space, region: RegionId) -> Result<()> {
        let all = space.all_slots();
        let (first, end) = self.range_of(region);
        let most = space.live_blocks_max();
        let mut indexes = Vec::new();
        let mut datas = Vec::new();
        for (id, state) in self.buckets.range_mut((region.0, first)..(region.0, end)) {
            let is_too_much = state.live_blocks > most || state.slots & !all != 0;
            if is_too_much || (state.kind == BucketKind::Free && !state.is_empty()) {
                let Bucket { kind, live_blocks, slots, .. } = state;
                return Err(StoreError::corrupt(
                    format!("bucket {} of member {}", id.1, id.0),
                    format!("{kind:?}, {live_blocks} live blocks, slots {slots:#x}"),
                ));
            }
            if state.is_empty() {
                state.kind = BucketKind::Free;
            }
            match state.kind {
                BucketKind::Index => indexes.push(*id),
                BucketKind::Data => datas.push(*id),
                BucketKind::Free => {}
            }
        }
        for id in datas {
            self.list_bucket(id);
        }
        for id in indexes {
            self.note_slots(id, all);
        }
        Ok(())
    }

    /// Lists the free buckets of a loaded region that is this shard's.
    fn list_free(&mut self, space: &Space, region: RegionId) {
        if !self.known.get(region).is_some_and(|known| known.owned && known.loaded) {
            return;
        }
        let (first, end) = self.range_of(region);
        let superblock = space.superblock();
        let end = end.min(superblock.member_buckets(region.0));
        for bucket in first..end {
            let id = (region.0, bucket);
            let free = self.buckets.get(&id).is_none_or(|state| state.kind == BucketKind::Free);
            if free && !superblock.is_reserved(region.0, bucket) && !self.is_closed(id) {
                self.free.insert(id);
            }
        }
    }

    /// A region is this shard's from now on, with so many buckets that can be allocated.
    pub(super) fn own_region(&mut self, space: &Space, region: RegionId, usable: u32) {
        self.owned += u64::from(usable);
        // Its buckets begin anew, maybe under generations that they had here before.
        self.runs.clear();
        self.known.change(region, |known| {
            known.owned = true;
            known.usable = usable;
        });
        self.list_free(space, region);
    }

    /// A region, which is empty, is no longer this shard's.
    pub(super) fn disown_region(&mut self, region: RegionId) {
        self.regions.remove(&region);
        self.known.change(region, |known| known.owned = false);
    }

    /// The first region that is not loaded and has a free bucket.
    pub(super) fn free_elsewhere(&self) -> Option<RegionId> {
        self.known.known().find(|(_, known)| known.free() > 0).map(|(region, _)| region)
    }

    /// The first region that is not loaded and has a free slot in an index bucket.
    pub(super) fn slots_elsewhere(&self, slots_of_bucket: u32) -> Option<RegionId> {
        let spare = |known: &Known| {
            known.can_be_loaded()
                && known.tally.index_buckets.saturating_mul(slots_of_bucket)
                    > known.tally.used_slots
        };
        self.known.known().find(|(_, known)| spare(known)).map(|(region, _)| region)
    }

    /// Whether a region can be loaded and has a bucket for copygc then.
    fn has_dead_blocks(&self, known: &Known) -> bool {
        known.can_be_loaded() && known.tally.least_live < self.data_blocks
    }

    /// The region that is not loaded and may hold the best bucket for copygc, with the most that this
    /// bucket can score.
    pub(super) fn victim_elsewhere(&self, measure: Measure) -> Option<(u128, RegionId)> {
        let blocks = self.data_blocks;
        let scores = self.known.known().filter_map(|(region, known)| {
            let tally = &known.tally;
            self.has_dead_blocks(known).then(|| {
                let best = Standing::of(tally.least_live, blocks, tally.oldest);
                (measure.score(best), std::cmp::Reverse(region))
            })
        });
        scores.max().map(|(score, region)| (score, region.0))
    }

    /// A region that is not loaded, begins before bucket `end` of the member and has dead blocks.
    pub(super) fn victim_region_before(&self, (member, end): BucketId) -> Option<RegionId> {
        let mut known = self.known.known();
        let has = |(region, known): &(RegionId, &Known)| {
            self.has_dead_blocks(known) && (region.0 != member || self.range_of(*region).0 < end)
        };
        known.find(has).map(|(region, _)| region)
    }

    /// Ends were moved: so many buckets of a region can be allocated now.
    pub(super) fn set_usable(&mut self, region: RegionId, usable: u32) {
        self.runs.clear();
        self.known.change(region, |known| known.usable = usable);
    }

    /// Regions of a member that hold something from bucket `first` on, or may, and are not loaded.
    pub(super) fn unloaded_from(&self, (member, first): BucketId) -> Vec<(RegionId, Tally)> {
        let from = (member, first / self.region_buckets);
        let known = self.known.known.range(from..=(member, u32::MAX));
        let unloaded = known.filter(|(_, known)| !known.loaded);
        unloaded.map(|(region, known)| (*region, known.tally)).collect()
    }

    /// Regions of a member from bucket `first` on whose tally is not on disk.
    pub(super) fn dirty_tallies_from(&self, (member, first): BucketId) -> Vec<RegionId> {
        let from = (member, first / self.region_buckets);
        let known = self.known.known.range(from..=(member, u32::MAX));
        known.filter(|(_, known)| known.dirty_seq.is_some()).map(|(region, _)| *region).collect()
    }

    /// Forgets regions that a member has not any more, of which it now has `regions`. They are empty, and
    /// their tallies are on disk.
    pub(super) fn forget_regions(&mut self, member: u8, regions: u32) {
        self.runs.clear();
        let gone = self.known.known.range((member, regions)..=(member, u32::MAX));
        let gone: Vec<RegionId> = gone.map(|(region, _)| *region).collect();
        for region in gone {
            self.known.change(region, |known| {
                assert!(known.dirty_seq.is_none(), "a region past the end is dirty");
                (known.loaded, known.owned) = (false, false);
            });
            self.known.known.remove(&region);
        }
    }

    /// Whether a table can be dropped: all of it is on disk and nothing goes on in it. Those past the end
    /// of their member stay: they are being emptied.
    fn is_idle(&self, region: RegionId, known: &Known) -> bool {
        if !known.loaded || known.pins > 0 || known.dirty_seq.is_some() {
            return false;
        }
        let (first, end) = self.range_of(region);
        let range = (region.0, first)..(region.0, end);
        self.leaving != Some(region)
            && end <= self.given_end(region.0)
            && self.discarding.range(range.clone()).next().is_none()
            && !self.to_discard.has_any_in(range.clone())
            && self.buckets.range(range).all(|(_, bucket)| bucket.is_idle())
    }

    /// Drops the tables that were not used for longest, of those that are idle.
    fn drop_idle(&mut self) {
        if self.known.keep > 0 || self.known.loaded <= self.known.drop_at {
            return;
        }
        let mut idle: Vec<(u64, RegionId)> = self
            .known
            .known()
            .filter(|(region, known)| self.is_idle(*region, known))
            .map(|(region, known)| (known.used, region))
            .collect();
        idle.sort_unstable();
        for (_, region) in idle {
            if self.known.loaded <= self.known.most / 8 * 7 {
                break;
            }
            let (first, end) = self.range_of(region);
            let free = self.free.range((region.0, first)..(region.0, end)).count();
            if free == 0 || self.free.len() - free >= FREE_AT_HAND {
                self.drop_table(region);
            }
        }
        // Those that are in use are not looked at again at each load.
        let loaded = self.known.loaded;
        self.known.drop_at = self.known.most.max(loaded + loaded / 8);
    }

    fn drop_table(&mut self, region: RegionId) {
        let tally = self.tally_of(region);
        self.forget_table(region);
        self.known.drops += 1;
        let owned = self.known.change(region, |known| {
            known.loaded = false;
            known.tally = tally;
            known.owned
        });
        if !owned && tally.used_buckets() == 0 {
            self.known.known.remove(&region);
        }
    }

    /// Takes the buckets of a region out of all lists.
    fn forget_table(&mut self, region: RegionId) {
        let (first, end) = self.range_of(region);
        let range = (region.0, first)..(region.0, end);
        let ids: Vec<BucketId> = self.buckets.range(range.clone()).map(|(id, _)| *id).collect();
        for id in ids {
            let bucket = self.buckets.remove(&id);
            if let Some(KnownAs::Victim(at)) = bucket.map(|bucket| bucket.known_as) {
                self.victims.remove(id, at);
            }
            self.partial.remove(&id);
        }
        let free: Vec<BucketId> = self.free.range(range).copied().collect();
        for id in free {
            self.free.remove(&id);
        }
    }
}

impl Bucket {
    /// Whether all that memory knows of it is in its checkpoint.
    fn is_idle(&self) -> bool {
        let held = match self.kind {
            BucketKind::Free => true,
            BucketKind::Data => self.live_blocks > 0,
            BucketKind::Index => self.slots != 0,
        };
        held && self.dirty_seq.is_none()
            && !self.open
            && self.pins == 0
            && (self.slots_pending | self.slots_draining) == 0
            && !self.draining
            && !self.stuck
            && self.summary.is_none()
    }
}
