//! The way to the common pool: per-thread lists of free blocks, and the process-wide functions.
//!
//! A thread keeps a bounded number of free blocks of each class; taking and freeing touch only
//! them, without lock or shared counter. They are filled from and spilled to the pool in batches. A
//! block may be freed on another thread than took it. At its end a thread gives everything back.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::block::{Block, Descriptor, large_block_bytes};
use crate::buffer::OutOfMemory;
use crate::limits::{CLASS_COUNT, batch_blocks, cached_blocks_max, class_of};
use crate::pool::{Pool, Usage};
use crate::region::Region;
use crate::{alloc_scope, pressure, profile};

/// Why the limit was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitRefused {
    /// It can be set once only.
    #[error("the limit of buffer memory is set already, to {limit_bytes} bytes")]
    SetAlready {
        /// The limit in force.
        limit_bytes: u64,
    },
    /// More is in use already; regions are never given back.
    #[error("{mapped_bytes} bytes of buffer memory are in use already")]
    InUse {
        /// Bytes had from the system so far.
        mapped_bytes: u64,
    },
}

/// The process's pool. Its lock is never held while anything else runs, so poisoning (a failed
/// assertion inside) leaves nothing half done that a later user could trip over in silence.
struct Shared {
    pool: Pool,
    limit_set: bool,
    /// Free blocks kept by each thread; a row outlives its thread and serves the next one.
    rows: Vec<&'static Row>,
    free_rows: Vec<&'static Row>,
}

/// Number of free blocks a thread keeps of each class. Written by that thread only.
type Row = [AtomicU32; CLASS_COUNT];

static SHARED: Mutex<Shared> = Mutex::new(Shared {
    pool: Pool::new(),
    limit_set: false,
    rows: Vec::new(),
    free_rows: Vec::new(),
});

static REFUSAL_HOOK: OnceLock<fn(OutOfMemory)> = OnceLock::new();

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache::new()) };
}

fn shared() -> MutexGuard<'static, Shared> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the bound in bytes of all buffer memory of the process, free blocks included. Once, at
/// start. Memory is had in pieces of at least 2 MiB.
///
/// # Errors
/// When it was set before, or more is in use already.
pub fn set_limit_bytes(limit_bytes: u64) -> Result<(), LimitRefused> {
    let mut shared = shared();
    if shared.limit_set {
        return Err(LimitRefused::SetAlready { limit_bytes: shared.pool.limit_bytes() });
    }
    let mapped_bytes = shared.pool.mapped_bytes();
    if mapped_bytes > limit_bytes {
        return Err(LimitRefused::InUse { mapped_bytes });
    }
    shared.pool.set_limit_bytes(limit_bytes);
    shared.limit_set = true;
    Ok(())
}

/// The bound in bytes of all buffer memory of the process: as set, or half of the machine's memory.
#[must_use]
pub fn limit_bytes() -> u64 {
    shared().pool.limit_bytes()
}

/// What is in use now. Takes the pool's lock: for metrics, not for every operation.
#[must_use]
pub fn usage() -> Usage {
    let mut shared = shared();
    let mut cached = [0; CLASS_COUNT];
    for row in &shared.rows {
        for (sum, count) in cached.iter_mut().zip(*row) {
            *sum += u64::from(count.load(Ordering::Relaxed));
        }
    }
    shared.pool.usage(cached)
}

/// Whether more than seven eighths of the limit are in use: caches should give memory back, and take
/// none. Takes the pool's lock, not for every operation.
#[must_use]
pub fn is_scarce() -> bool {
    shared().pool.is_scarce()
}

/// All regions, in the order they were had. Only ever grows, at the end.
#[must_use]
pub fn regions() -> Vec<Region> {
    shared().pool.regions().to_vec()
}

/// How many regions there are: to see cheaply whether [`regions`] has grown.
#[must_use]
pub fn region_count() -> usize {
    shared().pool.regions().len()
}

/// Has `hook` called, on the thread concerned, each time that memory for a buffer is refused. Once; a
/// further hook is not taken. The hook must not wait, and bounds itself what it does.
pub fn set_refusal_hook(hook: fn(OutOfMemory)) {
    let _ = REFUSAL_HOOK.set(hook);
}

/// Gives the free blocks that the calling thread keeps to the common pool, for a thread that will
/// not need buffers for long.
pub fn return_thread_cache() {
    let _ = CACHE.try_with(|cache| cache.borrow_mut().spill_all(&mut shared()));
}

/// A block of at least `len` initialised bytes, owned by the caller alone and charged to the current
/// site.
pub(crate) fn take(len: usize) -> Option<Block> {
    #[cfg(feature = "fault-injection")]
    if crate::refuse::is_refused() {
        refused(len);
        return None;
    }
    let mut block = take_block(len);
    while block.is_none() && pressure::relieve(len) {
        block = take_block(len);
    }
    match &block {
        Some(block) => block.charge(),
        None => refused(len),
    }
    block
}

#[cold]
fn refused(bytes: usize) {
    profile::buffers::refuse();
    if let Some(hook) = REFUSAL_HOOK.get() {
        hook(OutOfMemory { bytes });
    }
}

fn take_block(len: usize) -> Option<Block> {
    let Some(class) = class_of(len) else { return take_large(len) };
    let descriptor = CACHE
        .try_with(|cache| cache.borrow_mut().take(class))
        .unwrap_or_else(|_| take_uncached(class));
    if descriptor.is_none() {
        shared().pool.count_failure();
    }
    descriptor.map(Block::own)
}

/// Takes a pooled block back whose last owner is gone.
pub(crate) fn give(descriptor: &'static Descriptor) {
    if CACHE.try_with(|cache| cache.borrow_mut().give(descriptor)).is_err() {
        // This thread is ending and has given its cache back.
        shared().pool.give(descriptor);
    }
}

/// Takes back the room of a large block.
pub(crate) fn large_freed(bytes: usize) {
    shared().pool.release_large(bytes as u64);
}

fn take_large(len: usize) -> Option<Block> {
    let bytes = large_block_bytes(len);
    let reserved = bytes.filter(|bytes| shared().pool.reserve_large(*bytes as u64));
    let block = reserved.and_then(|_| Block::new_large(len));
    if block.is_none() {
        let mut shared = shared();
        shared.pool.count_failure();
        if let Some(bytes) = reserved {
            shared.pool.release_large(bytes as u64);
        }
    }
    block
}

fn take_uncached(class: usize) -> Option<&'static Descriptor> {
    let mut taken = None;
    shared().pool.take(class, 1, |descriptor| taken = Some(descriptor));
    taken
}

/// Free blocks of one thread.
struct Cache {
    lists: [Vec<&'static Descriptor>; CLASS_COUNT],
    row: Option<&'static Row>,
}

impl Cache {
    const fn new() -> Self {
        Self { lists: [const { Vec::new() }; CLASS_COUNT], row: None }
    }

    fn take(&mut self, class: usize) -> Option<&'static Descriptor> {
        if self.lists[class].is_empty() {
            self.fill(class);
        }
        let descriptor = self.lists[class].pop();
        self.count(class);
        // Without memory for the list itself there is still the pool.
        descriptor.or_else(|| take_uncached(class))
    }

    fn give(&mut self, descriptor: &'static Descriptor) {
        let class = descriptor.class();
        if self.lists[class].len() == cached_blocks_max(class) {
            let mut shared = shared();
            for spilled in self.lists[class].drain(..batch_blocks(class)) {
                shared.pool.give(spilled);
            }
        }
        if self.has_room(class) {
            self.lists[class].push(descriptor);
            self.count(class);
        } else {
            shared().pool.give(descriptor);
        }
    }

    /// Gets a batch from the pool; if that has none, gives it back what this thread keeps of other
    /// classes first.
    fn fill(&mut self, class: usize) {
        if !self.has_room(class) {
            return;
        }
        let mut shared = shared();
        for attempt in 0..2 {
            let list = &mut self.lists[class];
            let taken = shared.pool.take(class, batch_blocks(class), |block| list.push(block));
            if taken > 0 || attempt == 1 {
                return;
            }
            self.spill_all(&mut shared);
        }
    }

    /// Whether the list of `class` can grow to its bound without allocating.
    fn has_room(&mut self, class: usize) -> bool {
        let list = &mut self.lists[class];
        if list.capacity() >= cached_blocks_max(class) {
            return true;
        }
        // It stays, and is nothing that whoever happens to ask first should pay for.
        let _scope = alloc_scope!("buffer pool");
        list.try_reserve_exact(cached_blocks_max(class) - list.len()).is_ok() && self.has_row()
    }

    /// Registers this thread's counts, once.
    fn has_row(&mut self) -> bool {
        if self.row.is_none() {
            let mut shared = shared();
            if let Some(row) = shared.free_rows.pop() {
                self.row = Some(row);
            } else if shared.rows.try_reserve(1).is_ok() {
                // Some 36 bytes for each thread that ever runs at the same time as the others.
                let row: &'static Row = Box::leak(Box::default());
                shared.rows.push(row);
                self.row = Some(row);
            }
        }
        self.row.is_some()
    }

    fn count(&self, class: usize) {
        if let Some(row) = self.row {
            row[class].store(self.lists[class].len() as u32, Ordering::Relaxed);
        }
    }

    fn spill_all(&mut self, shared: &mut Shared) {
        for class in 0..CLASS_COUNT {
            for descriptor in self.lists[class].drain(..) {
                shared.pool.give(descriptor);
            }
            self.count(class);
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let mut shared = shared();
        self.spill_all(&mut shared);
        // Room for it was there when the row was taken or made; if not, the row stays unused.
        if let Some(row) = self.row.take()
            && shared.free_rows.try_reserve(1).is_ok()
        {
            shared.free_rows.push(row);
        }
    }
}
