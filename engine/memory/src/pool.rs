//! The common pool: chunks of regions, cut into blocks of one class at a time.
//!
//! A chunk belongs to one class while any of its blocks is out, and goes back to the free chunks
//! when the last one returns, so memory moves between classes. Chunks of a class with free blocks
//! form a list. All of it is plain data behind one lock, which threads take once for a batch of
//! blocks (see `cache`). Nothing here touches the blocks' bytes.

use crate::alloc_scope;
use crate::block::Descriptor;
use crate::limits::{
    CHUNK_BYTES, CLASS_COUNT, PAGES_PER_CHUNK, REGION_BYTES_MAX, REGION_BYTES_MIN, class_bytes,
};
use crate::region::{self, Region};

/// End of a list of chunks.
const NONE: u32 = u32::MAX;
/// The list of chunks of no class; the lists of classes come first.
const FREE_CHUNKS: usize = CLASS_COUNT;

/// Memory in use, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of buffers that exist now, each counted with the size of its class.
    pub live_bytes: u64,
    /// Bytes of free blocks kept by threads for their next buffers. Bounded per thread.
    pub cached_bytes: u64,
    /// The most that buffers and thread caches together ever took, in bytes.
    pub peak_bytes: u64,
    /// Bytes had from the system: all regions, and buffers too long for the pool.
    pub mapped_bytes: u64,
    /// Bound of `mapped_bytes`.
    pub limit_bytes: u64,
    /// Requests that failed for want of memory.
    pub failures: u64,
    /// Bytes of live buffers too long for the pool, part of `live_bytes`.
    pub large_bytes: u64,
    /// By size class, smallest first.
    pub classes: [ClassUsage; CLASS_COUNT],
}

/// Memory in use in one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassUsage {
    /// Bytes of one block.
    pub block_bytes: u64,
    /// Buffers that exist now.
    pub live_blocks: u64,
    /// Free blocks kept by threads.
    pub cached_blocks: u64,
}

struct Chunk {
    /// One for each page of the chunk; a block is known by that of its first page.
    descriptors: &'static [Descriptor],
    /// Bit i set: block i is free. Only the first `blocks of the class` bits are used.
    free: [u64; PAGES_PER_CHUNK / 64],
    free_blocks: u16,
    /// Its class, or [`FREE_CHUNKS`].
    class: u8,
    previous: u32,
    next: u32,
}

/// All memory, and what of it is out.
pub(crate) struct Pool {
    chunks: Vec<Chunk>,
    regions: Vec<Region>,
    /// First chunk of each list.
    heads: [u32; CLASS_COUNT + 1],
    outside_blocks: [u64; CLASS_COUNT],
    outside_bytes: u64,
    peak_bytes: u64,
    region_bytes: u64,
    large_bytes: u64,
    failures: u64,
    /// Bound of region_bytes + large_bytes; `None` until somebody needs it.
    limit_bytes: Option<u64>,
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self {
            chunks: Vec::new(),
            regions: Vec::new(),
            heads: [NONE; CLASS_COUNT + 1],
            outside_blocks: [0; CLASS_COUNT],
            outside_bytes: 0,
            peak_bytes: 0,
            region_bytes: 0,
            large_bytes: 0,
            failures: 0,
            limit_bytes: None,
        }
    }

    /// The bound in bytes of everything had from the system. Unless set, half of the machine's
    /// memory: the rest is for heaps, page tables and the page cache.
    pub(crate) fn limit_bytes(&mut self) -> u64 {
        const FALLBACK: u64 = 4 << 30;
        *self
            .limit_bytes
            .get_or_insert_with(|| region::physical_memory_bytes().map_or(FALLBACK, |all| all / 2))
    }

    pub(crate) fn set_limit_bytes(&mut self, limit_bytes: u64) {
        self.limit_bytes = Some(limit_bytes);
    }

    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.region_bytes + self.large_bytes
    }

    pub(crate) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Takes up to `count` free blocks of `class` and hands each to `keep`. Maps a new region only
    /// when there is none at all. Returns how many were taken.
    pub(crate) fn take(
        &mut self,
        class: usize,
        count: usize,
        mut keep: impl FnMut(&'static Descriptor),
    ) -> usize {
        for taken in 0..count {
            let may_map = taken == 0;
            if self.heads[class] == NONE && !self.add_chunk(class, may_map) {
                return taken;
            }
            keep(self.take_block(class));
        }
        count
    }

    /// Puts a block back that came from `take`.
    pub(crate) fn give(&mut self, descriptor: &'static Descriptor) {
        let class = descriptor.class();
        let index = descriptor.chunk();
        let chunk = &mut self.chunks[index as usize];
        assert_eq!(usize::from(chunk.class), class, "a block returns to a chunk of its class");
        let first = std::ptr::from_ref(&chunk.descriptors[0]).addr();
        let page = (std::ptr::from_ref(descriptor).addr() - first) / size_of::<Descriptor>();
        let block = page >> class;
        let (word, bit) = (block / 64, 1 << (block % 64));
        assert_eq!(chunk.free[word] & bit, 0, "a block is freed once");
        chunk.free[word] |= bit;
        chunk.free_blocks += 1;
        let free_blocks = usize::from(chunk.free_blocks);
        self.outside_blocks[class] -= 1;
        self.outside_bytes -= class_bytes(class) as u64;
        if free_blocks == 1 {
            self.link(class, index);
        }
        if free_blocks == blocks_per_chunk(class) {
            self.unlink(class, index);
            self.chunks[index as usize].class = FREE_CHUNKS as u8;
            self.link(FREE_CHUNKS, index);
        }
    }

    /// Reserves room under the limit for a block that is not pooled.
    pub(crate) fn reserve_large(&mut self, bytes: u64) -> bool {
        let limit = self.limit_bytes();
        let fits = self.mapped_bytes().checked_add(bytes).is_some_and(|sum| sum <= limit);
        if fits {
            self.large_bytes += bytes;
            self.outside_bytes += bytes;
            self.peak_bytes = self.peak_bytes.max(self.outside_bytes);
        }
        fits
    }

    pub(crate) fn release_large(&mut self, bytes: u64) {
        self.large_bytes -= bytes;
        self.outside_bytes -= bytes;
    }

    /// Whether more than seven eighths of the limit are in use.
    pub(crate) fn is_scarce(&mut self) -> bool {
        let limit_bytes = self.limit_bytes();
        self.outside_bytes > limit_bytes - limit_bytes / 8
    }

    pub(crate) fn count_failure(&mut self) {
        self.failures += 1;
    }

    /// What is in use, given how many free blocks threads keep.
    pub(crate) fn usage(&mut self, cached_blocks: [u64; CLASS_COUNT]) -> Usage {
        let limit_bytes = self.limit_bytes();
        let mut classes = [ClassUsage::default(); CLASS_COUNT];
        let mut cached_bytes = 0;
        for (class, usage) in classes.iter_mut().enumerate() {
            let block_bytes = class_bytes(class) as u64;
            // Threads count what they keep without the lock, so the sum can be ahead for a moment.
            let cached = cached_blocks[class].min(self.outside_blocks[class]);
            cached_bytes += cached * block_bytes;
            *usage = ClassUsage {
                block_bytes,
                live_blocks: self.outside_blocks[class] - cached,
                cached_blocks: cached,
            };
        }
        Usage {
            live_bytes: self.outside_bytes - cached_bytes,
            cached_bytes,
            peak_bytes: self.peak_bytes,
            mapped_bytes: self.mapped_bytes(),
            limit_bytes,
            failures: self.failures,
            large_bytes: self.large_bytes,
            classes,
        }
    }

    /// Takes a block of the first chunk in the list of `class`, which must not be empty.
    fn take_block(&mut self, class: usize) -> &'static Descriptor {
        let index = self.heads[class];
        let chunk = &mut self.chunks[index as usize];
        let word = chunk.free.iter().position(|word| *word != 0);
        let word = word.expect("a chunk in the list of a class has a free block");
        let bit = chunk.free[word].trailing_zeros() as usize;
        chunk.free[word] &= !(1 << bit);
        chunk.free_blocks -= 1;
        let descriptor = &chunk.descriptors[(word * 64 + bit) << class];
        descriptor.set_class(class);
        if chunk.free_blocks == 0 {
            self.unlink(class, index);
        }
        self.outside_blocks[class] += 1;
        self.outside_bytes += class_bytes(class) as u64;
        self.peak_bytes = self.peak_bytes.max(self.outside_bytes);
        descriptor
    }

    /// Gives a chunk of no class to `class`. False when there is none and none can be had.
    fn add_chunk(&mut self, class: usize, may_map: bool) -> bool {
        if self.heads[FREE_CHUNKS] == NONE && !(may_map && self.add_region()) {
            return false;
        }
        let index = self.heads[FREE_CHUNKS];
        self.unlink(FREE_CHUNKS, index);
        let blocks = blocks_per_chunk(class);
        let chunk = &mut self.chunks[index as usize];
        chunk.class = class as u8;
        chunk.free_blocks = blocks as u16;
        for (number, word) in chunk.free.iter_mut().enumerate() {
            let bits = blocks.saturating_sub(number * 64).min(64) as u32;
            *word = u64::MAX.checked_shr(64 - bits).unwrap_or(0);
        }
        self.link(class, index);
        true
    }

    /// Maps one more region, if limit and system allow it.
    fn add_region(&mut self) -> bool {
        let _scope = alloc_scope!("buffer pool");
        let room = self.limit_bytes().saturating_sub(self.mapped_bytes());
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        // An eighth more each time: few regions for a large pool, little waste for a small one.
        let wanted = (self.region_bytes / 8).min(REGION_BYTES_MAX as u64) as usize;
        let bytes = wanted.max(REGION_BYTES_MIN).min(room);
        let bytes = bytes - bytes % REGION_BYTES_MIN;
        let chunks = bytes / CHUNK_BYTES;
        if bytes == 0
            || self.regions.try_reserve(1).is_err()
            || self.chunks.try_reserve(chunks).is_err()
        {
            return false;
        }
        let first = self.chunks.len();
        let fits = u32::try_from(first + chunks).is_ok_and(|end| end < NONE);
        let Some(mapped) = fits.then(|| region::map(bytes, first as u32)).flatten() else {
            return false;
        };
        for (number, descriptors) in mapped.descriptors.chunks(PAGES_PER_CHUNK).enumerate() {
            self.chunks.push(Chunk {
                descriptors,
                free: [0; PAGES_PER_CHUNK / 64],
                free_blocks: 0,
                class: FREE_CHUNKS as u8,
                previous: NONE,
                next: NONE,
            });
            self.link(FREE_CHUNKS, (first + number) as u32);
        }
        self.regions.push(mapped.region);
        self.region_bytes += bytes as u64;
        true
    }

    fn link(&mut self, list: usize, index: u32) {
        let head = std::mem::replace(&mut self.heads[list], index);
        let chunk = &mut self.chunks[index as usize];
        chunk.previous = NONE;
        chunk.next = head;
        if head != NONE {
            self.chunks[head as usize].previous = index;
        }
    }

    fn unlink(&mut self, list: usize, index: u32) {
        let chunk = &self.chunks[index as usize];
        let (previous, next) = (chunk.previous, chunk.next);
        if previous == NONE {
            assert_eq!(self.heads[list], index, "a chunk is in the list of its class");
            self.heads[list] = next;
        } else {
            self.chunks[previous as usize].next = next;
        }
        if next != NONE {
            self.chunks[next as usize].previous = previous;
        }
    }
}

const fn blocks_per_chunk(class: usize) -> usize {
    CHUNK_BYTES / class_bytes(class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_base::random::Random;

    fn take_one(pool: &mut Pool, class: usize) -> Option<&'static Descriptor> {
        let mut taken = None;
        pool.take(class, 1, |descriptor| taken = Some(descriptor));
        taken
    }

    #[test]
    fn the_limit_bounds_what_is_mapped_and_freed_chunks_serve_every_class() {
        let mut pool = Pool::new();
        pool.set_limit_bytes(5 << 20);
        let mut held = Vec::new();
        while let Some(block) = take_one(&mut pool, 0) {
            held.push(block);
        }
        assert_eq!(held.len(), 2 * (2 << 20) / 4096, "5 MiB hold two regions");
        assert!(take_one(&mut pool, CLASS_COUNT - 1).is_none());
        held.drain(..).for_each(|block| pool.give(block));
        while let Some(block) = take_one(&mut pool, CLASS_COUNT - 1) {
            held.push(block);
        }
        assert_eq!(held.len(), 4);
        assert_eq!(pool.usage([0; CLASS_COUNT]).live_bytes, 4 << 20);
        held.drain(..).for_each(|block| pool.give(block));
        assert_eq!(pool.usage([0; CLASS_COUNT]).live_bytes, 0);
        assert_eq!(pool.usage([0; CLASS_COUNT]).peak_bytes, 4 << 20);
    }

    #[test]
    fn large_blocks_count_against_the_limit() {
        let mut pool = Pool::new();
        pool.set_limit_bytes(4 << 20);
        assert!(pool.reserve_large(3 << 20));
        assert!(!pool.reserve_large(2 << 20));
        assert!(!pool.reserve_large(u64::MAX));
        assert!(take_one(&mut pool, 0).is_none(), "no room for a region");
        pool.release_large(3 << 20);
        assert!(take_one(&mut pool, 0).is_some());
    }

    /// Random takes and gives of all classes: blocks never overlap, and the counts agree with the
    /// model, which is a plain list of what is held.
    #[test]
    fn blocks_that_are_out_never_overlap() {
        let steps = if cfg!(miri) { 300 } else { 20_000 };
        for seed in 0..if cfg!(miri) { 1 } else { 8 } {
            let mut random = Random::new(seed);
            let mut pool = Pool::new();
            pool.set_limit_bytes(16 << 20);
            let mut held: Vec<(usize, &'static Descriptor)> = Vec::new();
            for _ in 0..steps {
                if random.chance(55, 100) {
                    let class = random.below(CLASS_COUNT as u64) as usize;
                    let count = random.range(1, 5) as usize;
                    pool.take(class, count, |block| held.push((class, block)));
                } else if !held.is_empty() {
                    let (_, block) = held.swap_remove(random.below(held.len() as u64) as usize);
                    pool.give(block);
                }
            }
            let live: u64 = held.iter().map(|(class, _)| class_bytes(*class) as u64).sum();
            assert_eq!(pool.usage([0; CLASS_COUNT]).live_bytes, live, "seed {seed}");
            assert!(pool.mapped_bytes() <= 16 << 20, "seed {seed}");
            check_disjoint(&pool, &held, seed);
        }
    }

    fn check_disjoint(pool: &Pool, held: &[(usize, &'static Descriptor)], seed: u64) {
        let mut ranges: Vec<(usize, usize)> = held
            .iter()
            .map(|(class, block)| {
                let chunk = &pool.chunks[block.chunk() as usize];
                let page = chunk.descriptors.iter().position(|other| std::ptr::eq(other, *block));
                let start = block.chunk() as usize * CHUNK_BYTES + page.unwrap() * 4096;
                (start, start + class_bytes(*class))
            })
            .collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "seed {seed}: {pair:?} overlap");
        }
    }

    #[test]
    #[should_panic(expected = "freed once")]
    fn freeing_a_block_twice_is_noticed() {
        let mut pool = Pool::new();
        pool.set_limit_bytes(2 << 20);
        let (first, _second) = (take_one(&mut pool, 0).unwrap(), take_one(&mut pool, 0).unwrap());
        pool.give(first);
        pool.give(first);
    }
}
