//! Noticing who reads in order, and how far to read ahead of them.
//!
//! A read that begins where another ended begins a *stream*. The first time a little is read ahead of it, then
//! twice as much each time, up to [`WINDOW_MAX`]; the next window is asked for when half of the last one is
//! left, so that a steady reader never waits. A bounded number of streams is known; reads here and there
//! become none, and cost two short searches.
//!
//! An inode's chunks lie on all shards in turn. Here its blocks are counted without those of other shards, so
//! that a stream goes on from one chunk of this shard to its next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::map::BlockRange;
use crate::sync::Notify;

/// Blocks first read ahead of a stream: 64 KiB.
const WINDOW_MIN: u64 = 16;
/// Most blocks of one window: 1 MiB.
const WINDOW_MAX: u64 = 256;
/// Longer reads need nobody to read ahead of them.
const READ_MAX: u64 = WINDOW_MAX / 2;
/// Streams known at a time, and ends of reads that may become one.
const STREAMS_MAX: usize = 8;
const ENDS_MAX: usize = 16;
/// Windows being read at a time.
const WINDOWS_COMING_MAX: usize = 4;
/// Blocks by which reads of one stream may come out of order.
const SLACK: u64 = 32;
const CHUNK_BLOCKS: u64 = (1 << CHUNK_SIZE_LOG2) / BLOCK_SIZE;

/// Somebody who reads in order. Blocks are counted as the module says.
struct Stream {
    inode: InodeNumber,
    snapshot: SnapshotId,
    /// Where the next read should begin, and how far was read ahead.
    next: u64,
    ahead: u64,
    window: u64,
    used: u64,
}

/// The streams of a shard.
pub(super) struct Streams {
    shards: u64,
    streams: RefCell<Vec<Stream>>,
    /// Where the last reads ended that belong to no stream: a ring.
    ends: RefCell<[(InodeNumber, SnapshotId, u64); ENDS_MAX]>,
    tick: Cell<u64>,
    /// Windows being read.
    coming: RefCell<Vec<BlockRange>>,
    pub(super) came: Notify,
}

/// A window being read; it ends with this.
pub(super) struct Coming {
    streams: Rc<Streams>,
    pub(super) range: BlockRange,
}

impl Streams {
    pub(super) fn new(shards: u16) -> Self {
        Self {
            shards: u64::from(shards),
            streams: RefCell::default(),
            ends: RefCell::new([(InodeNumber(0), SnapshotId(0), 0); ENDS_MAX]),
            tick: Cell::new(0),
            coming: RefCell::default(),
            came: Notify::default(),
        }
    }

    /// Notes a read; what should be read ahead now, all in one chunk. `window_max`: most blocks of it.
    pub(super) fn note(&self, range: &BlockRange, window_max: u64) -> Option<BlockRange> {
        let blocks = range.to - range.from;
        if blocks == 0 || blocks > READ_MAX {
            return None;
        }
        let window_max = window_max.min(WINDOW_MAX);
        self.tick.set(self.tick.get() + 1);
        let from = self.own(range.from);
        let to = from + blocks;
        let mut streams = self.streams.borrow_mut();
        let known = streams.iter_mut().find(|stream| {
            (stream.inode, stream.snapshot) == (range.inode, range.snapshot)
                && from <= stream.next + SLACK
                && from + SLACK >= stream.next
        });
        if let Some(stream) = known {
            stream.used = self.tick.get();
            stream.next = stream.next.max(to);
            return self.next_window(stream, range, window_max);
        }
        let mut ends = self.ends.borrow_mut();
        let end = ends.iter_mut().find(|end| **end == (range.inode, range.snapshot, from));
        let Some(end) = end.filter(|_| from > 0) else {
            ends[self.tick.get() as usize % ENDS_MAX] = (range.inode, range.snapshot, to);
            return None;
        };
        *end = (InodeNumber(0), SnapshotId(0), 0);
        let mut stream = Stream {
            inode: range.inode,
            snapshot: range.snapshot,
            next: to,
            ahead: to,
            window: WINDOW_MIN.max(2 * blocks),
            used: self.tick.get(),
        };
        let window = self.next_window(&mut stream, range, window_max);
        if streams.len() < STREAMS_MAX {
            streams.push(stream);
        } else if let Some(oldest) = streams.iter_mut().min_by_key(|stream| stream.used) {
            *oldest = stream;
        }
        window
    }

    fn next_window(&self, stream: &mut Stream, read: &BlockRange, max: u64) -> Option<BlockRange> {
        let window = stream.window.min(max);
        if window == 0 || stream.next + window / 2 < stream.ahead {
            return None;
        }
        let first = stream.ahead.max(stream.next);
        let chunk_end = (first / CHUNK_BLOCKS + 1) * CHUNK_BLOCKS;
        let end = (first + window).min(chunk_end);
        stream.ahead = end;
        stream.window = (window * 2).min(WINDOW_MAX);
        let from = self.of_inode(first, read.from);
        let to = from.checked_add(end - first)?;
        Some(BlockRange { from, to, ..*read })
    }

    /// A block's number among those of this shard.
    fn own(&self, block: u64) -> u64 {
        block / CHUNK_BLOCKS / self.shards * CHUNK_BLOCKS + block % CHUNK_BLOCKS
    }

    /// The other way round; `like`: a block of the same inode on this shard.
    fn of_inode(&self, own: u64, like: u64) -> u64 {
        let place = like / CHUNK_BLOCKS % self.shards;
        let chunk = (own / CHUNK_BLOCKS).saturating_mul(self.shards) + place;
        chunk.saturating_mul(CHUNK_BLOCKS) + own % CHUNK_BLOCKS
    }

    /// Begins to read a window; `None` when enough are being read.
    pub(super) fn begin(self: &Rc<Self>, range: BlockRange) -> Option<Coming> {
        let mut coming = self.coming.borrow_mut();
        if coming.len() >= WINDOWS_COMING_MAX {
            return None;
        }
        coming.push(range);
        Some(Coming { streams: Rc::clone(self), range })
    }

    /// Whether a part of the range is being read ahead.
    pub(super) fn is_coming(&self, range: &BlockRange) -> bool {
        self.coming.borrow().iter().any(|window| {
            (window.inode, window.snapshot) == (range.inode, range.snapshot)
                && window.from < range.to
                && range.from < window.to
        })
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut coming = self.streams.coming.borrow_mut();
        if let Some(at) = coming.iter().position(|range| *range == self.range) {
            coming.swap_remove(at);
        }
        drop(coming);
        self.streams.came.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u64, blocks: u64) -> BlockRange {
        BlockRange { inode: InodeNumber(5), snapshot: SnapshotId(1), from, to: from + blocks }
    }

    #[test]
    fn windows_double_follow_each_other_and_stay_ahead_of_the_reader() {
        let streams = Streams::new(1);
        let (mut ahead, mut longest) = (0, 0);
        for block in 0..CHUNK_BLOCKS {
            if let Some(window) = streams.note(&range(block, 1), 256) {
                assert_eq!(window.from, if ahead == 0 { 2 } else { ahead }, "no gap, no overlap");
                assert!(window.to - window.from <= 256 && window.to <= CHUNK_BLOCKS * 2);
                longest = longest.max(window.to - window.from);
                ahead = window.to;
            }
            assert!(block < 2 || ahead > block + 1 || ahead.is_multiple_of(CHUNK_BLOCKS));
        }
        assert_eq!(longest, 256);
    }

    #[test]
    fn a_stream_goes_on_from_chunk_to_chunk_of_the_shard() {
        let streams = Streams::new(4);
        // Chunks 2, 6, 10 of an inode are here.
        let mut ahead = Vec::new();
        for chunk in [2, 6, 10] {
            for block in 0..CHUNK_BLOCKS {
                ahead.extend(streams.note(&range(chunk * CHUNK_BLOCKS + block, 1), 64));
            }
        }
        for window in &ahead {
            assert_eq!(window.from / CHUNK_BLOCKS % 4, 2);
            assert_eq!(window.from / CHUNK_BLOCKS, (window.to - 1) / CHUNK_BLOCKS, "one chunk");
        }
        let blocks: u64 = ahead.iter().map(|window| window.to - window.from).sum();
        let chunks = 3 * CHUNK_BLOCKS;
        assert!((chunks - 2..=chunks + 64).contains(&blocks), "{blocks}");
    }

    #[test]
    fn reads_here_and_there_are_no_stream_and_do_not_end_one() {
        let streams = Streams::new(1);
        let mut random = engine_base::random::Random::new(3);
        streams.note(&range(0, 1), 256);
        let mut windows = 0;
        for block in 1..500 {
            windows += u64::from(streams.note(&range(block, 1), 256).is_some());
            for _ in 0..5 {
                let there = range(5000 + random.below(1 << 40) * 2, 1);
                assert_eq!(streams.note(&there, 256), None);
            }
        }
        assert!(windows > 3);
        assert!(streams.streams.borrow().len() == 1);
    }
}
