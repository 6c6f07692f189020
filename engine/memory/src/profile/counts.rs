//! The counters: a row for each thread, one for all that have none, and a peak for each tag.
//!
//! Only its thread writes a row, with plain loads and stores; it is claimed and given back by a flag
//! (acquire and release), so the next thread goes on with the counts it finds. Sums over rows wrap in
//! between and are right in the end, as memory may be freed by another thread than took it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use super::site::{TAGS, Tag, UNSCOPED_NUMBER};

/// Threads that have a row of their own at one time; more share one, with locked instructions. Rows
/// are zero pages of the program until they are used.
const THREADS_MAX: usize = 128;

/// Bytes by which what a thread took of a site may have changed before the site's peak is looked at:
/// so peaks are seen to this precision for each thread.
const PEAK_STEP_BYTES: i64 = 64 << 10;

/// What one thread did on behalf of one tag. A cache line of its own.
#[repr(align(64))]
pub(crate) struct Counter {
    allocations: AtomicU64,
    frees: AtomicU64,
    /// Bytes allocated less bytes freed by this thread: negative where it frees what others took.
    live_bytes: AtomicI64,
    /// `live_bytes` when the site's peak was looked at last.
    shown_bytes: AtomicI64,
    /// `live_bytes` past which it is looked at again, above and below: compared with each change, so
    /// kept and not computed. Both are 0 at first, so that the first change sets them.
    look_above_bytes: AtomicI64,
    look_below_bytes: AtomicI64,
}

/// The index of a counter is a shift.
const _: () = assert!(size_of::<Counter>() == 64);

/// That a counter wants to be looked at: its site holds more or less by a step.
#[must_use = "the site's peak is missed"]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Not,
    Due,
}

impl Look {
    const fn due_if(is_due: bool) -> Self {
        if is_due { Self::Due } else { Self::Not }
    }
}

impl Counter {
    const fn new() -> Self {
        Self {
            allocations: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            live_bytes: AtomicI64::new(0),
            shown_bytes: AtomicI64::new(0),
            look_above_bytes: AtomicI64::new(0),
            look_below_bytes: AtomicI64::new(0),
        }
    }

    /// Counts an allocation, for the thread whose row this is in.
    #[inline]
    pub(crate) fn allocated(&self, bytes: usize) -> Look {
        bump(&self.allocations);
        Look::due_if(self.add(bytes as i64) > self.look_above_bytes.load(Ordering::Relaxed))
    }

    /// Counts a free; as above.
    #[inline]
    pub(crate) fn freed(&self, bytes: usize) -> Look {
        bump(&self.frees);
        let live = self.add((bytes as i64).wrapping_neg());
        Look::due_if(live < self.look_below_bytes.load(Ordering::Relaxed))
    }

    /// Counts that an allocation grew by `bytes`, or shrank; as above.
    #[inline]
    pub(crate) fn resized(&self, bytes: i64) -> Look {
        let live = self.add(bytes);
        let above = self.look_above_bytes.load(Ordering::Relaxed);
        let below = self.look_below_bytes.load(Ordering::Relaxed);
        Look::due_if(live > above || live < below)
    }

    #[inline]
    fn add(&self, bytes: i64) -> i64 {
        let live = self.live_bytes.load(Ordering::Relaxed).wrapping_add(bytes);
        self.live_bytes.store(live, Ordering::Relaxed);
        live
    }

    /// Tells what changed since the last look to the site's total, and its peak.
    #[cold]
    pub(crate) fn look(&self, tag: Tag) {
        let live = self.live_bytes.load(Ordering::Relaxed);
        show(tag, live.wrapping_sub(self.shown_bytes.load(Ordering::Relaxed)));
        self.shown_bytes.store(live, Ordering::Relaxed);
        let (above, below) =
            (live.wrapping_add(PEAK_STEP_BYTES), live.wrapping_sub(PEAK_STEP_BYTES));
        self.look_above_bytes.store(above, Ordering::Relaxed);
        self.look_below_bytes.store(below, Ordering::Relaxed);
    }
}

/// Adds one to a counter that only this thread writes.
#[inline]
fn bump(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Aligned to two cache lines, which processors fetch together: rows share none.
#[repr(align(128))]
struct Row {
    counters: [Counter; TAGS],
    taken: AtomicBool,
}

impl Row {
    const fn new() -> Self {
        Self { counters: [const { Counter::new() }; TAGS], taken: AtomicBool::new(false) }
    }

    /// The counter of `tag`. A number that no tag has, of a block that was written past its end, names
    /// the counter of another one and does no harm beyond that.
    #[inline]
    fn counter(&self, tag: Tag) -> &Counter {
        &self.counters[usize::from(tag.0) % TAGS]
    }
}

/// What all threads together hold of one tag, as far as they told.
struct Total {
    seen_bytes: AtomicI64,
    peak_bytes: AtomicI64,
    failures: AtomicU64,
}

impl Total {
    const fn new() -> Self {
        Self {
            seen_bytes: AtomicI64::new(0),
            peak_bytes: AtomicI64::new(0),
            failures: AtomicU64::new(0),
        }
    }
}

static ROWS: [Row; THREADS_MAX] = [const { Row::new() }; THREADS_MAX];
/// For threads that have no row: beyond [`THREADS_MAX`], or ending.
static COMMON: Row = Row::new();
static TOTALS: [Total; TAGS] = [const { Total::new() }; TAGS];

/// What a thread keeps. No part of it needs dropping, so it is there until the thread is gone, and
/// using it allocates nothing.
struct Local {
    /// The current site, as the tag of its heap.
    tag: Cell<Tag>,
    row: Cell<Option<&'static Row>>,
    /// Whether it may claim no row any more.
    ended: Cell<bool>,
}

impl Local {
    const fn new() -> Self {
        Self {
            tag: Cell::new(Tag::heap(UNSCOPED_NUMBER)),
            row: Cell::new(None),
            ended: Cell::new(false),
        }
    }
}

thread_local! {
    static LOCAL: Local = const { Local::new() };
    static ENDING: Ending = const { Ending };
}

/// Gives the thread's row back at its end.
struct Ending;

impl Drop for Ending {
    fn drop(&mut self) {
        LOCAL.with(|local| {
            local.ended.set(true);
            if let Some(row) = local.row.take() {
                row.taken.store(false, Ordering::Release);
            }
        });
    }
}

/// The current site of this thread, as the tag of its heap.
#[inline]
pub(crate) fn current() -> Tag {
    LOCAL.with(|local| local.tag.get())
}

/// Makes `tag`, of a heap, the current one and returns the one before.
#[inline]
pub(crate) fn replace_current(tag: Tag) -> Tag {
    LOCAL.with(|local| local.tag.replace(tag))
}

/// This thread's counter of `tag`, if the thread has a row.
#[inline]
pub(crate) fn counter(tag: Tag) -> Option<&'static Counter> {
    LOCAL.with(|local| local.row.get()).map(|row| row.counter(tag))
}

/// Counts an allocation.
#[inline]
pub(crate) fn allocated(tag: Tag, bytes: usize) {
    match counter(tag) {
        Some(counter) => {
            if counter.allocated(bytes) == Look::Due {
                counter.look(tag);
            }
        }
        None => without_row(tag, 1, 0, bytes as i64),
    }
}

/// Counts a free of what was allocated with `tag`.
#[inline]
pub(crate) fn freed(tag: Tag, bytes: usize) {
    match counter(tag) {
        Some(counter) => {
            if counter.freed(bytes) == Look::Due {
                counter.look(tag);
            }
        }
        None => without_row(tag, 0, 1, -(bytes as i64)),
    }
}

/// Counts that an allocation changed its length.
#[inline]
pub(crate) fn resized(tag: Tag, from_bytes: usize, to_bytes: usize) {
    let bytes = (to_bytes as i64).wrapping_sub(from_bytes as i64);
    match counter(tag) {
        Some(counter) => {
            if counter.resized(bytes) == Look::Due {
                counter.look(tag);
            }
        }
        None => without_row(tag, 0, 0, bytes),
    }
}

/// Counts an allocation that was refused.
#[cold]
pub(crate) fn failed(tag: Tag) {
    TOTALS[usize::from(tag.0) % TAGS].failures.fetch_add(1, Ordering::Relaxed);
}

/// Adds to what all threads hold, and to its peak.
#[cold]
fn show(tag: Tag, bytes: i64) {
    let total = &TOTALS[usize::from(tag.0) % TAGS];
    let now = total.seen_bytes.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
    total.peak_bytes.fetch_max(now, Ordering::Relaxed);
}

/// Counts in the common row, and claims a row for the next time.
#[cold]
fn without_row(tag: Tag, allocations: u64, frees: u64, bytes: i64) {
    let counter = COMMON.counter(tag);
    counter.allocations.fetch_add(allocations, Ordering::Relaxed);
    counter.frees.fetch_add(frees, Ordering::Relaxed);
    counter.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    show(tag, bytes);
    LOCAL.with(claim_row);
}

/// Finds a row for the thread, unless it is ending or all are taken.
fn claim_row(local: &Local) {
    if local.ended.get() {
        return;
    }
    let free = |row: &&Row| {
        row.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    let Some(row) = ROWS.iter().find(free) else { return };
    local.row.set(Some(row));
    // Last, as registering the destructor may allocate. If it cannot be registered any more, the
    // thread is ending.
    if ENDING.try_with(|_| ()).is_err() {
        local.ended.set(true);
        local.row.set(None);
        row.taken.store(false, Ordering::Release);
    }
}

/// The sum of all rows for one tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) allocations: u64,
    pub(crate) live_objects: u64,
    pub(crate) live_bytes: u64,
    pub(crate) peak_bytes: u64,
    pub(crate) failures: u64,
}

/// Sums up what was counted for `tag`. Exact when nobody allocates meanwhile; else each figure is
/// one of the recent past, and never below 0.
pub(crate) fn sum(tag: Tag) -> Sum {
    let index = usize::from(tag.0);
    let (mut allocations, mut frees, mut bytes) = (0_u64, 0_u64, 0_i64);
    for row in ROWS.iter().chain([&COMMON]) {
        let counter = &row.counters[index];
        frees = frees.wrapping_add(counter.frees.load(Ordering::Relaxed));
        allocations = allocations.wrapping_add(counter.allocations.load(Ordering::Relaxed));
        bytes = bytes.wrapping_add(counter.live_bytes.load(Ordering::Relaxed));
    }
    let live_objects = allocations.wrapping_sub(frees) as i64;
    let total = &TOTALS[index];
    let peak_bytes = total.peak_bytes.fetch_max(bytes, Ordering::Relaxed).max(bytes);
    // Other threads may have made a difference negative while it was read.
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    Sum {
        allocations,
        live_objects: positive(live_objects),
        live_bytes: positive(bytes),
        peak_bytes: positive(peak_bytes),
        failures: total.failures.load(Ordering::Relaxed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc_site;

    fn tag(site: &'static super::super::Site) -> Tag {
        Tag::heap(site.number())
    }

    #[test]
    fn frees_on_other_threads_are_given_back_to_the_site_that_paid() {
        let tag = tag(alloc_site!("across threads"));
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                scope.spawn(move || (0..1000).for_each(|_| allocated(tag, 100 * thread)));
            }
        });
        let peak = 1000 * 100 * (1 + 2 + 3 + 4);
        assert_eq!(sum(tag).live_bytes, peak);
        assert_eq!(sum(tag).live_objects, 4000);
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                scope.spawn(move || (0..1000).for_each(|_| freed(tag, 100 * thread)));
            }
        });
        let now = sum(tag);
        assert_eq!((now.live_bytes, now.live_objects), (0, 0));
        assert_eq!(now.allocations, 4000);
        assert_eq!(now.peak_bytes, peak);
    }

    #[test]
    fn the_peak_is_seen_between_reports_too() {
        let tag = tag(alloc_site!("peak"));
        allocated(tag, 10 << 20);
        freed(tag, 10 << 20);
        resized(tag, 0, 1 << 20);
        resized(tag, 1 << 20, 0);
        let now = sum(tag);
        assert_eq!(now.live_bytes, 0);
        assert!(now.peak_bytes >= 10 << 20, "{now:?}");
    }

    /// More threads at once than there are rows, each of which ends and gives its row back.
    #[test]
    fn threads_beyond_the_rows_are_counted_as_well() {
        let tag = tag(alloc_site!("many threads"));
        let threads = if cfg!(miri) { 3 } else { THREADS_MAX + 40 };
        let barrier = std::sync::Barrier::new(threads);
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        allocated(tag, 8);
                        barrier.wait();
                        (0..50).for_each(|_| allocated(tag, 8));
                        (0..51).for_each(|_| freed(tag, 8));
                    });
                }
            });
        }
        let now = sum(tag);
        assert_eq!((now.live_bytes, now.live_objects), (0, 0));
        assert_eq!(now.allocations, 2 * 51 * threads as u64);
        // All rows are free again, but those of threads of this test program that still live.
        let taken = ROWS.iter().filter(|row| row.taken.load(Ordering::Relaxed)).count();
        assert!(taken < THREADS_MAX, "{taken} rows are not given back");
    }

    /// As a block has whose end was overwritten.
    #[test]
    fn a_tag_that_cannot_be_does_no_harm() {
        for tag in [Tag(TAGS as u16), Tag(u16::MAX)] {
            allocated(tag, 8);
            resized(tag, 8, 16);
            freed(tag, 16);
            failed(tag);
        }
        assert_eq!(sum(Tag::NOBODY).live_bytes, 0);
        assert_eq!(sum(Tag(TAGS as u16 - 1)).live_bytes, 0);
    }
}
