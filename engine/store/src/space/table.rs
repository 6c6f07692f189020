//! The buckets of a shard, in memory.

use std::cell::{Cell, RefCell};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use super::dead::DeadBlocks;
use super::discard::{self, ToDiscard};
use super::format::{SummaryEntry, summary_blocks};
use super::loaded::Regions;
use super::regions::RegionSource;
use super::runs::Run;
use super::victims::{Standing, Victims};
use crate::error::{Result, StoreError};
use crate::extent::EXTENT_BLOCKS_MAX;
use crate::key::Counter;
use crate::superblock::Superblock;
use crate::sync::Notify;

/// The largest frame is one of so many parts of a bucket.
const FRAMES_PER_BUCKET_MIN: u32 = 8;

/// Member and index of a bucket.
pub(crate) type BucketId = (u8, u32);

/// Member and index of a region.
pub(crate) type RegionId = (u8, u32);

/// What a bucket holds. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BucketKind {
    Free = 0,
    Data = 1,
    Index = 2,
}

impl BucketKind {
    pub(crate) fn from_disk(number: u8) -> Result<Self> {
        match number {
            0 => Ok(Self::Free),
            1 => Ok(Self::Data),
            2 => Ok(Self::Index),
            _ => Err(StoreError::corrupt("bucket state", format!("kind {number} is not known"))),
        }
    }
}

/// State of one bucket. What the checkpoint keeps, and what only matters while the shard runs.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub(crate) kind: BucketKind,
    pub(crate) generation: u32,
    pub(crate) live_blocks: u32,
    pub(crate) slots: u64,
    /// Journal entry that the difference to the checkpoint pins.
    pub(crate) dirty_seq: Option<u64>,
    /// A write point appends to it.
    pub(crate) open: bool,
    /// Allocations in it that the index does not name yet.
    pub(crate) pins: u32,
    /// Slots given out and not in the index yet; slots freed by an entry that is not durable yet.
    pub(crate) slots_pending: u64,
    pub(crate) slots_draining: u64,
    /// Emptied, and waiting for that to be durable.
    pub(crate) draining: bool,
    /// Copygc could not move all of it; tried again when nothing else is left to empty.
    pub(crate) stuck: bool,
    /// What the shard had written when it was filled; see [`super::victims`].
    pub(crate) filled_at: u64,
    /// Number of the last change of the extents that name it, since its table was loaded.
    pub(crate) changed: u64,
    /// How [`Tables`] knows it.
    pub(super) known_as: KnownAs,
    /// What was placed in it since it was opened; `None` when the summary is on disk, or lost.
    pub(crate) summary: Option<Vec<SummaryEntry>>,
    /// What of it is known to live no more.
    pub(crate) dead: DeadBlocks,
}

/// Where a bucket is listed for copygc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownAs {
    /// Nowhere: nothing is to be gained from it now.
    Nothing,
    /// As one to empty.
    Victim(Standing),
    /// As one that could not be emptied, with so many dead blocks.
    Stuck(u32),
}

impl Bucket {
    pub(crate) fn new(kind: BucketKind, generation: u32) -> Self {
        Self {
            kind,
            generation,
            live_blocks: 0,
            slots: 0,
            dirty_seq: None,
            open: false,
            pins: 0,
            slots_pending: 0,
            slots_draining: 0,
            draining: false,
            stuck: false,
            filled_at: 0,
            changed: 0,
            known_as: KnownAs::Nothing,
            summary: None,
            dead: DeadBlocks::default(),
        }
    }

    /// Where it belongs, when a bucket holds `blocks` of data.
    fn belongs(&self, blocks: u32) -> KnownAs {
        if self.kind != BucketKind::Data || self.open || self.draining || self.live_blocks >= blocks
        {
            KnownAs::Nothing
        } else if self.stuck {
            KnownAs::Stuck(blocks - self.live_blocks)
        } else {
            KnownAs::Victim(Standing::of(self.live_blocks, blocks, self.filled_at))
        }
    }

    /// Brings up to date where it is listed, when a bucket holds `blocks` of data and this one is `closed` or
    /// not: where it was and where it belongs now, for [`Tables::list_as`].
    pub(crate) fn belongs_now(&mut self, blocks: u32, closed: bool) -> Option<(KnownAs, KnownAs)> {
        // One past the end is emptied by others, and no space is gained from it.
        let belongs = if closed { KnownAs::Nothing } else { self.belongs(blocks) };
        let was = std::mem::replace(&mut self.known_as, belongs);
        (was != belongs).then_some((was, belongs))
    }

    /// Notes that an extent names blocks of it; `fresh`: ones that were just written, for the summary, which
    /// has `most` entries. What is left of an extent that was cut is found where that was.
    pub(crate) fn note_placed(&mut self, entry: SummaryEntry, fresh: bool, most: u32) {
        self.dead.unmark(entry.range());
        if fresh
            && self.kind == BucketKind::Data
            && let Some(summary) = self.summary.as_mut()
            && summary.len() < most as usize
            && summary.last() != Some(&entry)
        {
            summary.push(entry);
        }
    }

    /// Nothing is in it any more, and nobody has noticed yet.
    pub(crate) fn drains(&self) -> bool {
        self.kind != BucketKind::Free && !self.draining && self.is_empty()
    }

    /// Begins anew, empty; what memory knows of it besides stays.
    pub(crate) fn reopen(&mut self, kind: BucketKind, generation: u32) {
        let (dirty_seq, known_as) = (self.dirty_seq, self.known_as);
        *self = Self::new(kind, generation);
        self.dirty_seq = dirty_seq;
        self.known_as = known_as;
    }

    /// Nothing is in it and nobody is about to put something in.
    pub(crate) fn is_empty(&self) -> bool {
        !self.open
            && self.pins == 0
            && self.live_blocks == 0
            && (self.slots | self.slots_pending | self.slots_draining) == 0
    }
}

/// Where a write point appends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenBucket {
    pub(crate) id: BucketId,
    pub(crate) next_block: u32,
    /// The block before which it ends.
    pub(crate) end_block: u32,
}

/// What changes in the space of a shard.
pub(crate) struct Tables {
    /// Every bucket that was ever used, of regions whose table is loaded; a free one remembers its
    /// generation.
    pub(crate) buckets: BTreeMap<BucketId, Bucket>,
    /// The lowest is taken first, so that what is used stays together and whole regions stay empty.
    pub(crate) free: BTreeSet<BucketId>,
    /// Of the free ones, those that were emptied and not discarded; those taken out meanwhile.
    pub(super) to_discard: ToDiscard,
    pub(super) wants_discard: bool,
    pub(crate) discarding: BTreeSet<BucketId>,
    /// Buckets emptied, and slots freed, by the entry of that number.
    pub(crate) draining: VecDeque<(u64, BucketId)>,
    pub(crate) slots_draining: VecDeque<(u64, BucketId, u8)>,
    /// Index buckets with a slot to give.
    pub(crate) partial: BTreeSet<BucketId>,
    pub(crate) open: [Option<OpenBucket>; 2],
    /// Of buckets in use, where what is moved may go when no bucket is free; the longest last.
    pub(super) runs: Vec<Run>,
    /// Buckets that are being emptied, each as often as somebody does.
    pub(super) emptying: Vec<BucketId>,
    /// What is known of regions; see [`super::loaded`].
    pub(super) known: Regions,
    /// Regions handed to this shard, and the one it is about to give up.
    pub(crate) regions: BTreeSet<RegionId>,
    pub(super) leaving: Option<RegionId>,
    /// By member, the bucket from which on nothing is placed; see [`super::resize`].
    pub(super) ends: Vec<u32>,
    /// A member that may be shrunk, and where to: regions past that are not given any more.
    pub(super) shrinks_to: Option<(u8, u32)>,
    pub(super) region_buckets: u32,
    /// Buckets handed to this shard that can be used at all, without those that are leaving.
    pub(crate) owned: u64,
    pub(crate) index_buckets: u64,
    /// Slots that hold nodes of the index.
    pub(crate) used_slots: u64,
    pub(crate) live_blocks: u64,
    /// Blocks given out for data since the pool was made, roughly: the clock of [`super::victims`].
    pub(crate) written_blocks: u64,
    /// Data blocks of a bucket; blocks of a node.
    pub(super) data_blocks: u32,
    pub(super) node_blocks: u64,
    /// Data buckets with dead blocks: those to empty, and those that could not be, with the dead
    /// blocks of the latter.
    pub(super) victims: Victims,
    pub(super) stuck: BTreeSet<BucketId>,
    pub(super) stuck_dead: u64,
    /// Blocks set aside by reservations.
    pub(crate) reserved_blocks: u64,
    /// Blocks allocated and not yet named by the index.
    pub(crate) pending_blocks: u64,
    /// Full buckets (with their generation) whose summary is to be written.
    pub(crate) to_seal: VecDeque<(BucketId, u32)>,
    /// Shard 0 has no more regions to give, as of the last answer.
    pub(crate) regions_exhausted: bool,
    pub(crate) regions_known: bool,
}

/// Entries of summaries that copygc looked up, and those that it knew to be dead.
#[derive(Default)]
pub(super) struct GcEntries {
    pub(super) looked_up: Cell<u64>,
    pub(super) skipped: Cell<u64>,
}

/// That no bucket can be emptied.
#[derive(Default)]
pub(super) struct Hopeless {
    /// Why one could not, the last time that one could not.
    pub(super) error: RefCell<Option<StoreError>>,
    /// How often none could, one time after the other.
    pub(super) rounds: Cell<u32>,
}

/// The space of a shard.
pub(crate) struct Space {
    superblock: RefCell<Rc<Superblock>>,
    /// Of the superblock, those that never change.
    bucket_bytes: u32,
    node_bytes: u32,
    pub(crate) tables: RefCell<Tables>,
    /// Something became free, or a task that waits should look again.
    pub(crate) changed: Notify,
    /// A table was loaded, or could not be.
    pub(super) table_loaded: Notify,
    /// Copygc should look.
    pub(crate) gc_wanted: Notify,
    pub(crate) source: RefCell<Option<Rc<dyn RegionSource>>>,
    pub(crate) acquiring: Cell<bool>,
    /// Times that no other shard had a region to spare; regions that this one gave.
    pub(super) refusals: Cell<u64>,
    pub(super) regions_given: Cell<u64>,
    /// Members that take discards; one that failed leaves.
    pub(crate) discard_members: RefCell<BTreeSet<u8>>,
    pub(crate) discarded_bytes: Cell<u64>,
    pub(super) discard_delay_ns: Cell<u64>,
    /// The shard is being closed: nothing is begun in the background.
    pub(crate) closing: Cell<bool>,
    /// An end was moved, or the superblock was replaced.
    pub(crate) ends_moved: Notify,
    /// Number of the superblock with which all that is past the ends was found empty.
    pub(super) emptied: Cell<u64>,
    /// What went wrong when it was last tried to empty it.
    pub(super) evacuation_error: RefCell<Option<String>>,
    pub(super) hopeless: Hopeless,
    /// Blocks that compression saves.
    pub(crate) saved_blocks: Cell<u64>,
    /// Whether anything is shared.
    pub(crate) shares: Cell<bool>,
    /// Blocks on disk of the largest frame that there was.
    pub(crate) frame_blocks: Cell<u32>,
    /// Changes of extents, of all buckets.
    pub(crate) changes: Cell<u64>,
    pub(crate) gc_moved_blocks: Cell<u64>,
    pub(crate) gc_buckets: Cell<u64>,
    pub(crate) summary_misses: Cell<u64>,
    pub(super) gc_entries: GcEntries,
    pub(crate) allocation_waits: Cell<u64>,
    /// Somebody looks for runs; runs that were taken so far.
    pub(super) looking_for_runs: Cell<bool>,
    pub(super) looked_for_runs: Notify,
    pub(super) fills_runs_first: Cell<bool>,
    pub(crate) runs_taken: Cell<u64>,
}

impl Space {
    pub(crate) fn new(superblock: Rc<Superblock>) -> Self {
        let tables = Tables::new(&superblock);
        Self {
            bucket_bytes: superblock.bucket_bytes,
            node_bytes: superblock.node_bytes,
            superblock: RefCell::new(superblock),
            tables: RefCell::new(tables),
            changed: Notify::default(),
            table_loaded: Notify::default(),
            gc_wanted: Notify::default(),
            source: RefCell::default(),
            acquiring: Cell::new(false),
            refusals: Cell::new(0),
            regions_given: Cell::new(0),
            discard_members: RefCell::default(),
            discarded_bytes: Cell::new(0),
            discard_delay_ns: Cell::new(discard::DELAY_NS),
            closing: Cell::new(false),
            ends_moved: Notify::default(),
            emptied: Cell::new(0),
            evacuation_error: RefCell::default(),
            hopeless: Hopeless::default(),
            saved_blocks: Cell::new(0),
            shares: Cell::new(false),
            frame_blocks: Cell::new(0),
            changes: Cell::new(0),
            gc_moved_blocks: Cell::new(0),
            gc_buckets: Cell::new(0),
            summary_misses: Cell::new(0),
            gc_entries: GcEntries::default(),
            allocation_waits: Cell::new(0),
            looking_for_runs: Cell::new(false),
            looked_for_runs: Notify::default(),
            fills_runs_first: Cell::new(false),
            runs_taken: Cell::new(0),
        }
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        let tables = self.tables.borrow();
        out.push(("space_buckets_owned", tables.owned));
        out.push(("space_buckets_free", tables.free_buckets() as u64));
        out.push(("space_buckets_draining", tables.draining.len() as u64));
        out.push(("space_buckets_discarding", tables.discarding.len() as u64));
        out.push(("space_buckets_index", tables.index_buckets));
        out.push(("space_index_slots_used", tables.used_slots));
        out.push(("space_live_blocks", tables.live_blocks));
        out.push(("space_reserved_blocks", tables.reserved_blocks + tables.pending_blocks));
        out.push(("space_allocation_waits", self.allocation_waits.get()));
        out.push(("space_regions", tables.regions.len() as u64));
        tables.known.counters(out);
        out.push(("space_regions_given", self.regions_given.get()));
        out.push(("space_regions_refused", self.refusals.get()));
        out.push(("space_discarded_bytes", self.discarded_bytes.get()));
        out.push(("copygc_buckets_to_empty", tables.victims.len() as u64));
        out.push(("copygc_buckets_stuck", tables.stuck.len() as u64));
        out.push(("copygc_buckets_emptied", self.gc_buckets.get()));
        out.push(("space_saved_blocks", self.saved_blocks.get()));
        out.push(("copygc_blocks_moved", self.gc_moved_blocks.get()));
        out.push(("copygc_runs_filled", self.runs_taken.get()));
        out.push(("copygc_summary_misses", self.summary_misses.get()));
        out.push(("copygc_entries_looked_up", self.gc_entries.looked_up.get()));
        out.push(("copygc_entries_skipped", self.gc_entries.skipped.get()));
    }

    /// Whether something was emptied that is not durable yet.
    pub(crate) fn is_draining(&self) -> bool {
        let tables = self.tables.borrow();
        !tables.draining.is_empty() || !tables.slots_draining.is_empty()
    }

    /// Blocks of a bucket.
    pub(crate) fn bucket_blocks(&self) -> u32 {
        self.bucket_bytes / 4096
    }

    /// Blocks of a data bucket that hold data; the rest is its summary.
    pub(crate) fn data_blocks(&self) -> u32 {
        self.bucket_blocks() - summary_blocks(self.bucket_blocks())
    }

    /// Most live blocks that a data bucket can count: of a frame that was cut each part counts, see
    /// [`crate::extent`].
    pub(crate) fn live_blocks_max(&self) -> u32 {
        self.data_blocks() * EXTENT_BLOCKS_MAX
    }

    /// Most blocks by which a write may make live what it does not replace: the parts that it leaves of a frame may
    /// count for more than the frame did. None, where nothing is compressed.
    pub(crate) fn growth_blocks(&self) -> u64 {
        let each = u64::from(EXTENT_BLOCKS_MAX - 1);
        match (self.saved_blocks.get(), self.shares.get()) {
            (0, _) => 0,
            (_, false) => each,
            // What is shared stays where it is cut, and may be another frame at either end.
            (_, true) => 2 * each,
        }
    }

    /// Learns what a counter says now that concerns space.
    pub(crate) fn note_counter(&self, counter: Counter, value: u64) {
        match counter {
            Counter::SHARED_BLOCKS => self.shares.set(value > 0),
            Counter::FRAME_BLOCKS => {
                self.frame_blocks.set(value.min(u64::from(EXTENT_BLOCKS_MAX)) as u32)
            }
            _ => {}
        }
    }

    /// Blocks that a frame may have on disk: what does not fit the end of a bucket is no more than an eighth of it.
    pub(crate) fn frame_blocks_max(&self) -> u32 {
        (self.data_blocks() / FRAMES_PER_BUCKET_MIN).clamp(1, EXTENT_BLOCKS_MAX - 1)
    }

    /// Blocks of a data bucket that are filled whatever comes: a frame that does not fit the rest goes elsewhere.
    pub(crate) fn filled_blocks(&self) -> u32 {
        self.data_blocks() - self.frame_blocks.get().saturating_sub(1).min(self.data_blocks() - 1)
    }

    /// Blocks of a node slot.
    pub(crate) fn node_blocks(&self) -> u32 {
        self.node_bytes / 4096
    }

    /// Slots of an index bucket.
    pub(crate) fn slots(&self) -> u32 {
        self.bucket_bytes / self.node_bytes
    }

    /// Bytes of a node slot.
    pub(crate) fn node_bytes(&self) -> u32 {
        self.node_bytes
    }

    /// What the pool is made of, as of the newest superblock that is durable.
    pub(crate) fn superblock(&self) -> Rc<Superblock> {
        Rc::clone(&self.superblock.borrow())
    }

    /// Replaces it.
    pub(super) fn set_superblock(&self, superblock: Rc<Superblock>) {
        *self.superblock.borrow_mut() = superblock;
    }

    /// Slots of an index bucket, as a mask of ones.
    pub(crate) fn all_slots(&self) -> u64 {
        let slots = self.slots();
        if slots == 64 { u64::MAX } else { (1 << slots) - 1 }
    }

    /// The bucket that holds a block of a member.
    pub(crate) fn bucket_of(&self, member: u8, block: u64) -> BucketId {
        (member, (block / u64::from(self.bucket_blocks())) as u32)
    }

    /// First block of a bucket.
    pub(crate) fn first_block(&self, id: BucketId) -> u64 {
        u64::from(id.1) * u64::from(self.bucket_blocks())
    }

    /// Checks that `blocks` from `block` on lie in one allocatable bucket of the member.
    pub(crate) fn check_pointer(&self, member: u8, block: u64, blocks: u32) -> Result<BucketId> {
        let bad = || {
            StoreError::corrupt("pointer", format!("{blocks} blocks at {block} of member {member}"))
        };
        let superblock = self.superblock.borrow();
        if usize::from(member) >= superblock.members.len() || blocks == 0 {
            return Err(bad());
        }
        let id = self.bucket_of(member, block);
        let last = block.checked_add(u64::from(blocks) - 1).ok_or_else(bad)?;
        if block / u64::from(self.bucket_blocks()) >= u64::from(superblock.member_buckets(member))
            || self.bucket_of(member, last) != id
            || superblock.is_reserved(member, id.1)
        {
            return Err(bad());
        }
        Ok(id)
    }
}

impl Tables {
    /// Nothing is known yet.
    fn new(superblock: &Superblock) -> Self {
        let bucket_blocks = superblock.bucket_bytes / 4096;
        Self {
            buckets: BTreeMap::new(),
            free: BTreeSet::new(),
            to_discard: ToDiscard::default(),
            wants_discard: false,
            discarding: BTreeSet::new(),
            draining: VecDeque::new(),
            slots_draining: VecDeque::new(),
            partial: BTreeSet::new(),
            open: [None; 2],
            runs: Vec::new(),
            emptying: Vec::new(),
            known: Regions::new(superblock.region_buckets),
            regions: BTreeSet::new(),
            leaving: None,
            ends: (0..superblock.members.len() as u8).map(|at| superblock.member_end(at)).collect(),
            shrinks_to: super::resize::shrinking(superblock),
            region_buckets: superblock.region_buckets,
            owned: 0,
            index_buckets: 0,
            used_slots: 0,
            live_blocks: 0,
            written_blocks: 0,
            data_blocks: bucket_blocks - summary_blocks(bucket_blocks),
            node_blocks: u64::from(superblock.node_bytes / 4096),
            victims: Victims::default(),
            stuck: BTreeSet::new(),
            stuck_dead: 0,
            reserved_blocks: 0,
            pending_blocks: 0,
            to_seal: VecDeque::new(),
            regions_exhausted: false,
            regions_known: false,
        }
    }

    /// The bucket. The table of its region must be loaded.
    pub(crate) fn bucket(&mut self, id: BucketId) -> &mut Bucket {
        match self.buckets.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let region = (id.0, id.1 / self.region_buckets);
                assert!(
                    self.known.is_loaded(region),
                    "the table of region {region:?} is not loaded"
                );
                new.insert(Bucket::new(BucketKind::Free, 0))
            }
        }
    }

    /// Keeps the lists for copygc in step with a data bucket that was changed.
    pub(crate) fn list_bucket(&mut self, id: BucketId) {
        let (blocks, closed) = (self.data_blocks, self.is_closed(id));
        if let Some((was, belongs)) = self.bucket(id).belongs_now(blocks, closed) {
            self.list_as(id, was, belongs);
        }
    }

    /// Moves a bucket from one list to another.
    pub(crate) fn list_as(&mut self, id: BucketId, was: KnownAs, belongs: KnownAs) {
        match was {
            KnownAs::Nothing => {}
            KnownAs::Victim(at) => self.victims.remove(id, at),
            KnownAs::Stuck(dead) => {
                self.stuck.remove(&id);
                self.stuck_dead -= u64::from(dead);
            }
        }
        match belongs {
            KnownAs::Nothing => {}
            KnownAs::Victim(at) => self.victims.insert(id, at),
            KnownAs::Stuck(dead) => {
                self.stuck.insert(id);
                self.stuck_dead += u64::from(dead);
            }
        }
    }

    /// Puts a bucket that holds nothing any more on the way to be free, once `seq` is durable.
    pub(crate) fn drain_if_empty(&mut self, id: BucketId, seq: u64) {
        let bucket = self.bucket(id);
        if !bucket.drains() {
            return;
        }
        bucket.draining = true;
        self.list_bucket(id);
        let bucket = self.bucket(id);
        if bucket.kind == BucketKind::Index {
            self.index_buckets -= 1;
            self.partial.remove(&id);
        }
        self.draining.push_back((seq, id));
    }

    /// Makes buckets and slots free that were emptied by entries up to `flushed_seq`. Says whether
    /// there were any.
    pub(crate) fn release(&mut self, flushed_seq: u64, all_slots: u64) -> bool {
        let mut any = false;
        while let Some((seq, id, slot)) = self.slots_draining.front().copied()
            && seq <= flushed_seq
        {
            self.slots_draining.pop_front();
            let bucket = self.bucket(id);
            bucket.slots_draining &= !(1 << slot);
            if bucket.is_empty() {
                self.drain_if_empty(id, seq);
            } else {
                self.note_slots(id, all_slots);
            }
            any = true;
        }
        while let Some((seq, id)) = self.draining.front().copied()
            && seq <= flushed_seq
        {
            self.draining.pop_front();
            let bucket = self.bucket(id);
            bucket.kind = BucketKind::Free;
            bucket.draining = false;
            bucket.stuck = false;
            bucket.summary = None;
            // Before the regions are known it counts as free by its kind: see add_region.
            if self.regions_known {
                self.note_free(id);
            }
            any = true;
        }
        any
    }

    /// Keeps `partial` in step with the slots of an index bucket.
    pub(crate) fn note_slots(&mut self, id: BucketId, all_slots: u64) {
        let leaving = self.is_leaving(id);
        let bucket = self.bucket(id);
        let taken = bucket.slots | bucket.slots_pending | bucket.slots_draining;
        if !leaving && bucket.kind == BucketKind::Index && !bucket.draining && taken != all_slots {
            self.partial.insert(id);
        } else {
            self.partial.remove(&id);
        }
    }
}
