//! Data blocks kept in memory, those of one shard.
//!
//! A block is known by its *place*: member and block number there; one of a compressed frame by that of the frame, its
//! number in it, and the checksums of the frame: it is kept decoded. Data is never overwritten in place, and
//! the index is asked first in every case, so no write, hole, truncation or move has to tell the cache: after
//! it the index names another place. What a place holds changes only when its bucket is used again, under
//! another generation (or, when no bucket is free, between live blocks of its own: then everything is forgotten); an
//! entry counts only with the generation and the checksum that the index names. So
//! all front ends see one truth, and what is served is what verified when it came from the device.
//!
//! Which blocks stay is decided by a CLOCK-Pro like policy (`quick_cache`): one that is used once passes through
//! the cold part, so a scan does not throw out what is used again and again. The first use of a block that
//! was read ahead says nothing, and does not count.
//!
//! Written data is not kept: most of it is not read soon, it would push out what is, and writes would pay for
//! it; the first read brings it in. Reads for a check of the medium pass the cache by.
//!
//! The memory is bounded, and given back before anybody is refused a buffer on this thread; when little is
//! left of the process's limit nothing is added. Each entry owns one buffer of a block, so what is evicted
//! is free at once. All is off with a bound of 0, and then costs one comparison for a read.

use std::cell::{Cell, RefCell};
use std::hash::BuildHasherDefault;
use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_base::hash::MixHasher;
use engine_memory::{GiveBack, Slice, alloc_scope};
use quick_cache::unsync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, UnitWeighter};

use super::map::Place;

/// Least blocks of a cache that is on.
const BLOCKS_MIN: usize = 64;
/// Part of the cache for what has proved itself. The rest is for what is new: what was read ahead for all
/// streams fits into it.
const HOT_PART: f64 = 0.8;

/// A block that was read and verified.
struct Entry {
    slice: Slice,
    generation: u32,
    checksum: u32,
    /// It was read ahead, and nobody has asked for it yet.
    ahead: Cell<bool>,
}

/// What the cache has done, for metrics.
#[derive(Default)]
struct Counts {
    hits: Cell<u64>,
    misses: Cell<u64>,
    evictions: Cell<u64>,
    ahead: Cell<u64>,
    ahead_used: Cell<u64>,
    ahead_wasted: Cell<u64>,
    given_back: Cell<u64>,
}

/// Counts what is evicted.
struct Evicted(Rc<Counts>);

impl Lifecycle<u64, Entry> for Evicted {
    type RequestState = ();

    fn on_evict(&self, _state: &mut (), _key: u64, entry: Entry) {
        add(&self.0.evictions, 1);
        if entry.ahead.get() {
            add(&self.0.ahead_wasted, 1);
        }
    }
}

type Blocks = Cache<u64, Entry, UnitWeighter, BuildHasherDefault<MixHasher>, Evicted>;

/// The cached blocks of a shard.
pub(crate) struct DataCache {
    /// `None`: the cache is off.
    blocks: RefCell<Option<Blocks>>,
    blocks_max: Cell<usize>,
    /// Places of live generations that were used again, as of the last look.
    reused: Cell<u64>,
    counts: Rc<Counts>,
}

impl DataCache {
    /// A cache that is off.
    pub(crate) fn new() -> Rc<Self> {
        let cache = Rc::new(Self {
            blocks: RefCell::new(None),
            blocks_max: Cell::new(0),
            reused: Cell::new(0),
            counts: Rc::default(),
        });
        let this = Rc::downgrade(&cache);
        engine_memory::give_back_under_pressure(this);
        cache
    }

    /// Bounds the memory of the blocks, in bytes; forgets all of them. 0: the cache is off.
    pub(crate) fn set_bytes_max(&self, bytes: usize) {
        let blocks_max = match bytes / BLOCK_SIZE as usize {
            0 => 0,
            blocks => blocks.max(BLOCKS_MIN),
        };
        self.blocks_max.set(blocks_max);
        self.renew();
    }

    /// Forgets all blocks if a place was used again under its generation since the last call: so many times in all.
    pub(crate) fn forget_before(&self, reused: u64) {
        if self.reused.replace(reused) != reused {
            self.renew();
        }
    }

    /// Forgets all blocks.
    fn renew(&self) {
        let _scope = alloc_scope!("data cache");
        let blocks_max = self.blocks_max.get();
        let options = OptionsBuilder::new()
            .estimated_items_capacity(blocks_max)
            .weight_capacity(blocks_max as u64)
            .hot_allocation(HOT_PART)
            .build()
            .expect("capacities are given");
        let blocks = (blocks_max > 0).then(|| {
            let hasher = BuildHasherDefault::default();
            Blocks::with_options(options, UnitWeighter, hasher, Evicted(Rc::clone(&self.counts)))
        });
        *self.blocks.borrow_mut() = blocks;
    }

    /// Most blocks that it may hold; 0 when it is off.
    pub(crate) fn blocks_max(&self) -> usize {
        self.blocks_max.get()
    }

    /// Whether it keeps anything.
    pub(crate) fn is_on(&self) -> bool {
        self.blocks_max.get() > 0
    }

    /// The block at `place` with this checksum.
    pub(crate) fn get(&self, place: Place, checksum: u32) -> Option<Slice> {
        let blocks = self.blocks.borrow();
        let blocks = blocks.as_ref()?;
        let key = key(place);
        let entry = blocks.peek(&key).filter(|entry| entry.is(place, checksum))?;
        add(&self.counts.hits, 1);
        if entry.ahead.replace(false) {
            add(&self.counts.ahead_used, 1);
        } else {
            // This is what counts as a use.
            let _ = blocks.get(&key);
        }
        Some(entry.slice.clone())
    }

    /// Counts blocks that somebody asked for and that came from a device.
    pub(crate) fn missed(&self, blocks: u64) {
        add(&self.counts.misses, blocks);
    }

    /// Whether it has the block at `place` with this checksum. Does not count as a use.
    pub(crate) fn has(&self, place: Place, checksum: u32) -> bool {
        let blocks = self.blocks.borrow();
        let entry = blocks.as_ref().and_then(|blocks| blocks.peek(&key(place)));
        entry.is_some_and(|entry| entry.is(place, checksum))
    }

    /// Whether there is memory for more blocks. If not, some are given back.
    pub(crate) fn has_room(&self) -> bool {
        if !self.is_on() {
            return false;
        }
        let scarce = engine_memory::is_scarce();
        if scarce {
            self.give_back(self.blocks_max() * BLOCK_SIZE as usize / 16);
        }
        !scarce
    }

    /// Keeps the block at `place`, which verified against `checksum`. `slice` is all of its buffer.
    pub(crate) fn insert(&self, place: Place, checksum: u32, slice: Slice, ahead: bool) {
        let _scope = alloc_scope!("data cache");
        let (generation, ahead) = (place.pointer.generation, Cell::new(ahead));
        if let Some(blocks) = self.blocks.borrow_mut().as_mut() {
            add(&self.counts.ahead, u64::from(ahead.get()));
            blocks.insert(key(place), Entry { slice, generation, checksum, ahead });
        }
    }

    /// Bytes of the blocks it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.borrow().as_ref().map_or(0, Blocks::len) * BLOCK_SIZE as usize
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        let counts = &self.counts;
        out.push(("data_cache_bytes", self.bytes() as u64));
        out.push(("data_cache_hits", counts.hits.get()));
        out.push(("data_cache_misses", counts.misses.get()));
        out.push(("data_cache_evictions", counts.evictions.get()));
        out.push(("data_cache_given_back_bytes", counts.given_back.get()));
        out.push(("data_read_ahead_blocks", counts.ahead.get()));
        out.push(("data_read_ahead_used", counts.ahead_used.get()));
        out.push(("data_read_ahead_wasted", counts.ahead_wasted.get()));
    }
}

impl GiveBack for DataCache {
    fn give_back(&self, bytes: usize) -> usize {
        let Ok(mut blocks) = self.blocks.try_borrow_mut() else { return 0 };
        let Some(blocks) = blocks.as_mut() else { return 0 };
        let before = blocks.len();
        // At least an eighth: memory passes from one size of buffers to another in large pieces only.
        let fewer = bytes.div_ceil(BLOCK_SIZE as usize).max(before / 8);
        let keep = before.saturating_sub(fewer);
        if keep == 0 {
            blocks.clear();
        } else {
            blocks.set_capacity(keep as u64);
            blocks.set_capacity(self.blocks_max() as u64);
        }
        let given = (before - blocks.len()) * BLOCK_SIZE as usize;
        add(&self.counts.given_back, given as u64);
        given
    }
}

impl Entry {
    fn is(&self, place: Place, checksum: u32) -> bool {
        self.generation == place.pointer.generation && self.checksum == checksum
    }
}

/// A member has fewer than 2^45 blocks, a frame at most 32.
fn key(place: Place) -> u64 {
    let Place { pointer, in_frame } = place;
    u64::from(pointer.member) << 56 | u64::from(in_frame) << 48 | pointer.block
}

fn add(counter: &Cell<u64>, delta: u64) {
    counter.set(counter.get() + delta);
}
