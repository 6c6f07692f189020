//! The counters: a row for each thread, one for all that have none, and a peak for each tag.
//!
//! Only its thread writes a row, with plain loads and stores; it is claimed and given back by a flag
//! (acquire and release), so the next thread goes on with the counts it finds. Sums over rows wrap in
//! between and are right in the end, as memory may be freed by another thread than took it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use super::site::{NOBODY, TAGS, Tag, UNSCOPED_NUMBER};

/// Threads that have a row of their own at one time; more share one, with locked instructions. Rows
/// are zero pages of the program until they are used.
const THREADS_MAX: usize = 128;

/// Bytes by which what a thread took of a site may have changed before the site's peak is looked at:
/// so peaks are seen to this precision for each thread.
const PEAK_STEP_BYTES: i64 = 64 << 10;

/// What one thread did on behalf of one tag. All but `unseen_bytes` only grow.
struct Counter {
    allocations: AtomicU64,
    allocated_bytes: AtomicU64,
    frees: AtomicU64,
    freed_bytes: AtomicU64,
    /// Change of the live bytes since the peak was looked at.
    unseen_bytes: AtomicI64,
}

impl Counter {
    const fn new() -> Self {
        Self {
            allocations: AtomicU64::new(0),
            allocated_bytes: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            freed_bytes: AtomicU64::new(0),
            unseen_bytes: AtomicI64::new(0),
        }
    }
}

/// Aligned to two cache lines, which processors fetch together: rows share none.
#[repr(align(128))]
struct Row {
    taken: AtomicBool,
    counters: [Counter; TAGS],
}

impl Row {
    const fn new() -> Self {
        Self { taken: AtomicBool::new(false), counters: [const { Counter::new() }; TAGS] }
    }
}

/// What all threads together hold of one tag, as far as they told.
struct Total {
    seen_bytes: AtomicI64,
    peak_bytes: AtomicI64,
    failures: AtomicU64,
}

static ROWS: [Row; THREADS_MAX] = [const { Row::new() }; THREADS_MAX];
/// For threads that have no row: beyond [`THREADS_MAX`], or ending.
static COMMON: Row = Row::new();
static TOTALS: [Total; TAGS] = [const {
    Total {
        seen_bytes: AtomicI64::new(0),
        peak_bytes: AtomicI64::new(0),
        failures: AtomicU64::new(0),
    }
}; TAGS];

/// What a thread keeps. No part of it needs dropping, so it is there until the thread is gone, and
/// using it allocates nothing.
struct Local {
    row: Cell<Option<&'static Row>>,
    /// Whether it may still claim a row.
    ended: Cell<bool>,
    site: Cell<u16>,
}

thread_local! {
    static LOCAL: Local = const {
        Local { row: Cell::new(None), ended: Cell::new(false), site: Cell::new(UNSCOPED_NUMBER) }
    };
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

/// Number of the current site of this thread.
pub(crate) fn current() -> u16 {
    LOCAL.with(|local| local.site.get())
}

/// Makes `number` the current site and returns the one before.
pub(crate) fn replace_current(number: u16) -> u16 {
    debug_assert_ne!(number, NOBODY);
    LOCAL.with(|local| local.site.replace(number))
}

/// Counts an allocation.
#[inline]
pub(crate) fn allocated(tag: Tag, bytes: usize) {
    LOCAL.with(|local| match local.row.get() {
        Some(row) => {
            let Some(counter) = row.counters.get(usize::from(tag.0)) else { return };
            bump(&counter.allocations, 1);
            bump(&counter.allocated_bytes, bytes as u64);
            change(counter, tag, bytes as i64);
        }
        None => without_row(local, tag, |counter| {
            counter.allocations.fetch_add(1, Ordering::Relaxed);
            counter.allocated_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            bytes as i64
        }),
    });
}

/// Counts a free of what was allocated with `tag`; a tag that cannot be is ignored.
#[inline]
pub(crate) fn freed(tag: Tag, bytes: usize) {
    LOCAL.with(|local| match local.row.get() {
        Some(row) => {
            let Some(counter) = row.counters.get(usize::from(tag.0)) else { return };
            bump(&counter.frees, 1);
            bump(&counter.freed_bytes, bytes as u64);
            change(counter, tag, -(bytes as i64));
        }
        None => without_row(local, tag, |counter| {
            counter.frees.fetch_add(1, Ordering::Relaxed);
            counter.freed_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            -(bytes as i64)
        }),
    });
}

/// Counts an allocation that changed its length.
#[inline]
pub(crate) fn resized(tag: Tag, from_bytes: usize, to_bytes: usize) {
    LOCAL.with(|local| match local.row.get() {
        Some(row) => {
            let Some(counter) = row.counters.get(usize::from(tag.0)) else { return };
            bump(&counter.freed_bytes, from_bytes as u64);
            bump(&counter.allocated_bytes, to_bytes as u64);
            change(counter, tag, to_bytes as i64 - from_bytes as i64);
        }
        None => without_row(local, tag, |counter| {
            counter.freed_bytes.fetch_add(from_bytes as u64, Ordering::Relaxed);
            counter.allocated_bytes.fetch_add(to_bytes as u64, Ordering::Relaxed);
            to_bytes as i64 - from_bytes as i64
        }),
    });
}

/// Counts an allocation that was refused.
#[cold]
pub(crate) fn failed(tag: Tag) {
    if let Some(total) = TOTALS.get(usize::from(tag.0)) {
        total.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// Adds to a counter of the thread's own row.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

fn change(counter: &Counter, tag: Tag, bytes: i64) {
    let unseen = counter.unseen_bytes.load(Ordering::Relaxed).wrapping_add(bytes);
    if unseen.unsigned_abs() < PEAK_STEP_BYTES as u64 {
        counter.unseen_bytes.store(unseen, Ordering::Relaxed);
    } else {
        counter.unseen_bytes.store(0, Ordering::Relaxed);
        show(tag, unseen);
    }
}

/// Adds to what all threads hold, and to its peak.
#[cold]
fn show(tag: Tag, bytes: i64) {
    if let Some(total) = TOTALS.get(usize::from(tag.0)) {
        let now = total.seen_bytes.fetch_add(bytes, Ordering::Relaxed).wrapping_add(bytes);
        total.peak_bytes.fetch_max(now, Ordering::Relaxed);
    }
}

/// Counts in the common row, and claims a row for the next time.
#[cold]
fn without_row(local: &Local, tag: Tag, count: impl FnOnce(&Counter) -> i64) {
    if let Some(counter) = COMMON.counters.get(usize::from(tag.0)) {
        show(tag, count(counter));
    }
    if local.ended.get() {
        return;
    }
    let free = |row: &&Row| {
        row.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    let Some(row) = ROWS.iter().find(free) else { return };
    local.row.set(Some(row));
    // Last, as registering the destructor may allocate. It cannot be gone already: it is what sets
    // `ended`, unless the thread ends without having come here.
    if ENDING.try_with(|_| ()).is_err() {
        local.row.set(None);
        local.ended.set(true);
        row.taken.store(false, Ordering::Release);
    }
}

/// The sum of all rows for one tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) allocations: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) live_objects: u64,
    pub(crate) live_bytes: u64,
    pub(crate) peak_bytes: u64,
    pub(crate) failures: u64,
}

/// Sums up what was counted for `tag`. Exact when nobody allocates meanwhile; else each figure is
/// one of the recent past, and never wraps below 0.
pub(crate) fn sum(tag: Tag) -> Sum {
    let index = usize::from(tag.0);
    let (mut sum, mut frees, mut freed_bytes) = (Sum::default(), 0_u64, 0_u64);
    for row in ROWS.iter().chain([&COMMON]) {
        let counter = &row.counters[index];
        // Frees first: what is freed after we looked was allocated before we look.
        frees = frees.wrapping_add(counter.frees.load(Ordering::Relaxed));
        freed_bytes = freed_bytes.wrapping_add(counter.freed_bytes.load(Ordering::Relaxed));
        sum.allocations = sum.allocations.wrapping_add(counter.allocations.load(Ordering::Relaxed));
        let bytes = counter.allocated_bytes.load(Ordering::Relaxed);
        sum.allocated_bytes = sum.allocated_bytes.wrapping_add(bytes);
    }
    sum.live_objects = not_negative(sum.allocations.wrapping_sub(frees));
    sum.live_bytes = not_negative(sum.allocated_bytes.wrapping_sub(freed_bytes));
    let total = &TOTALS[index];
    let live = i64::try_from(sum.live_bytes).unwrap_or(i64::MAX);
    let peak = total.peak_bytes.fetch_max(live, Ordering::Relaxed).max(live);
    sum.peak_bytes = u64::try_from(peak).unwrap_or(0);
    sum.failures = total.failures.load(Ordering::Relaxed);
    sum
}

/// A difference that other threads may have made negative while it was read.
fn not_negative(difference: u64) -> u64 {
    if (difference as i64) < 0 { 0 } else { difference }
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
        assert_eq!((now.allocations, now.allocated_bytes), (4000, peak));
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

    #[test]
    fn a_tag_that_cannot_be_is_ignored() {
        allocated(Tag(TAGS as u16), 8);
        freed(Tag(u16::MAX), 8);
        resized(Tag(u16::MAX), 8, 16);
        failed(Tag(u16::MAX));
        let last = sum(Tag(TAGS as u16 - 1));
        assert_eq!((last, last.live_bytes), (Sum::default(), 0));
    }
}
