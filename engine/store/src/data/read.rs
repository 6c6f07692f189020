//! Reading blocks: look up, take from the cache what is there, read only the blocks that are needed besides,
//! verify each one. Reads in order are read ahead of, in the background.

use std::ops::Range;
use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c;
use engine_device::QueueExt;
use engine_memory::profile::Scoped;
use engine_memory::{Buffer, Slice, alloc_site};
use smallvec::SmallVec;

use super::DataPath;
use super::ahead::Streams;
use super::cache::DataCache;
use super::map::{BlockRange, Place, Span, Spans, lookup};
use crate::api::Data;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{Extent, Pointer};
use crate::limits::READ_LOOKUPS_MAX;
use crate::planted::{self, Bug};
use crate::times::Timed;

/// What was read: first block and bytes, in order.
type Pieces = SmallVec<[(u64, Slice); 2]>;

/// Part of the cache that one window of what is read ahead may take.
const WINDOW_PART: u64 = 64;

/// How a run of spans was found to be after its read.
enum Verdict {
    Good,
    /// A bucket was reused meanwhile: look up again.
    Stale,
    /// The checksum of this logical block does not match.
    Bad(u64),
}

/// Reads what is on devices, or was.
pub(super) struct Reader {
    engine: Rc<Engine>,
    cache: Rc<DataCache>,
    streams: Rc<Streams>,
}

impl DataPath {
    /// Reads the range; holes are zeroes.
    pub(crate) async fn read(&self, range: BlockRange) -> Result<Data> {
        let cached = self.reader.cache.is_on();
        if cached {
            self.reader.follow(&range).await;
        }
        self.read_as(range, cached).await
    }

    /// Reads the range from its devices, whatever is cached: to see whether they can still be read.
    pub(crate) async fn read_medium(&self, range: BlockRange) -> Result<Data> {
        self.read_as(range, false).await
    }

    async fn read_as(&self, range: BlockRange, cached: bool) -> Result<Data> {
        for _ in 0..READ_LOOKUPS_MAX {
            let spans = lookup(&self.engine, &range).await?;
            if let Some(pieces) = self.reader.read_spans(&range, &spans, cached).await? {
                return Ok(self.assemble(&range, pieces));
            }
        }
        Err(StoreError::Overloaded {
            what: format!(
                "inode {} block {}: space moves faster than it is read",
                range.inode, range.from
            ),
        })
    }

    fn assemble(&self, range: &BlockRange, pieces: Pieces) -> Data {
        let mut data = Data::new();
        let mut at = range.from;
        for (first, slice) in pieces {
            self.push_zeroes(&mut data, (first - at) * BLOCK_SIZE);
            at = first + slice.len() as u64 / BLOCK_SIZE;
            data.push(slice);
        }
        self.push_zeroes(&mut data, (range.to - at) * BLOCK_SIZE);
        data
    }
}

impl Reader {
    pub(super) fn new(engine: Rc<Engine>) -> Rc<Self> {
        let streams = Rc::new(Streams::new(engine.shard_count()));
        Rc::new(Self { engine, cache: DataCache::new(), streams })
    }

    pub(super) fn set_cache_bytes(&self, bytes: usize) {
        self.cache.set_bytes_max(bytes);
    }

    pub(super) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        self.cache.counters(out);
    }

    /// Reads ahead of a read of `range` if it goes on where others ended, and waits for what of it is being
    /// read ahead already.
    async fn follow(self: &Rc<Self>, range: &BlockRange) {
        let window_max = self.cache.blocks_max() as u64 / WINDOW_PART;
        if let Some(window) = self.streams.note(range, window_max)
            && self.cache.has_room()
            && let Some(coming) = self.streams.begin(window)
        {
            let reader = Rc::clone(self);
            let read = async move {
                // Who needs it meets the error himself.
                let _ = reader.read_ahead(&coming.range).await;
                drop(coming);
            };
            let read = Scoped::new(alloc_site!("data cache"), read);
            self.engine.runtime().spawn("data read-ahead", Box::pin(read));
        }
        while self.streams.is_coming(range) {
            self.engine.waits.on(Timed::BlockedReadAhead, self.streams.came.notified()).await;
        }
    }

    /// Reads blocks into the cache.
    async fn read_ahead(&self, range: &BlockRange) -> Result<()> {
        let spans = lookup(&self.engine, range).await?;
        for run in self.runs(&spans)? {
            let run = &spans[run];
            let lacks =
                |(_, place, checksum): &(u64, Place, u32)| !self.cache.has(*place, *checksum);
            let (Some((from, ..)), Some((last, ..))) =
                (blocks_of(run).find(lacks), blocks_of(run).rfind(lacks))
            else {
                continue;
            };
            let run = cut(run, from, last + 1);
            if !self.has_landed(&run).await? {
                continue;
            }
            let buffer = Buffer::try_new(bytes_of(&run))?;
            let buffer = self.read_once(&run, buffer, Timed::DataReadAhead).await?;
            if matches!(self.verify(&run, &buffer), Verdict::Good) {
                let pieces = self.decode(&run, buffer.freeze()).await?;
                self.keep(&run, &pieces, true);
            }
        }
        Ok(())
    }

    /// Reads all spans, neighbours on disk in one command; `None` when they have moved.
    async fn read_spans(
        &self,
        range: &BlockRange,
        spans: &Spans,
        cached: bool,
    ) -> Result<Option<Pieces>> {
        let runs = self.runs(spans)?;
        if let [run] = runs.as_slice() {
            return self.read_pieces(range, &spans[run.clone()], cached).await;
        }
        let reads = runs.into_iter().map(|run| self.read_pieces(range, &spans[run], cached));
        let mut all = Pieces::new();
        for pieces in futures::future::join_all(reads).await {
            let Some(pieces) = pieces? else { return Ok(None) };
            all.extend(pieces);
        }
        Ok(Some(all))
    }

    /// Reads one run: what lies between the first and the last block that is not cached by one command.
    async fn read_pieces(
        &self,
        range: &BlockRange,
        run: &[Span],
        cached: bool,
    ) -> Result<Option<Pieces>> {
        let mut pieces = Pieces::new();
        if !cached {
            let Some(slice) = self.read_run(range, run).await? else { return Ok(None) };
            return self.decode(run, slice).await.map(Some);
        }
        self.cache.forget_before(self.engine.space.runs_taken.get());
        let end = run[run.len() - 1].end();
        let hit = |(block, place, checksum): (u64, Place, u32)| {
            self.cache.get(place, checksum).map(|slice| (block, slice))
        };
        pieces.extend(blocks_of(run).map_while(hit));
        let from = run[0].block + pieces.len() as u64;
        if from == end {
            return Ok(Some(pieces));
        }
        // The block at `from` is not there, so this ends before it.
        let behind: Pieces = blocks_of(run).rev().map_while(hit).collect();
        let missing = cut(run, from, end - behind.len() as u64);
        let Some(slice) = self.read_run(range, &missing).await? else { return Ok(None) };
        self.cache.missed(missing.iter().map(Span::blocks).sum());
        let read = self.decode(&missing, slice).await?;
        self.keep(&missing, &read, false);
        pieces.extend(read);
        pieces.extend(behind.into_iter().rev());
        Ok(Some(pieces))
    }

    /// Puts the blocks of a run that was read, verified and decoded into the cache.
    fn keep(&self, run: &[Span], pieces: &Pieces, ahead: bool) {
        if !self.cache.has_room() {
            return;
        }
        const BLOCK: usize = BLOCK_SIZE as usize;
        if let ([Span { extent: Extent { frame: None, blocks: 1, .. }, .. }], [(block, slice)]) =
            (run, pieces.as_slice())
        {
            let (place, checksum) = (run[0].at(*block), run[0].extent.checksums[0]);
            return self.cache.insert(place, checksum, slice.clone(), ahead);
        }
        let blocks = pieces.iter().flat_map(|(_, slice)| slice.chunks_exact(BLOCK));
        for ((_, place, checksum), bytes) in blocks_of(run).zip(blocks) {
            // Of its own, so that it is free when it is evicted. Allocated while the cache is not borrowed.
            match Buffer::try_copy_of(bytes) {
                Ok(copy) => self.cache.insert(place, checksum, copy.freeze(), ahead),
                Err(_) => return,
            }
        }
    }

    /// The blocks of a run in what was read for it, which verified.
    async fn decode(&self, run: &[Span], slice: Slice) -> Result<Pieces> {
        let mut pieces = Pieces::new();
        if run.iter().all(|span| span.extent.frame.is_none()) {
            pieces.push((run[0].block, slice));
            return Ok(pieces);
        }
        let mut at = 0;
        for span in run {
            let len = (span.disk_blocks() * BLOCK_SIZE) as usize;
            let disk = slice.slice(at..at + len);
            at += len;
            if span.extent.frame.is_some() && !pieces.is_empty() {
                // Others have their turn between two frames.
                self.engine.runtime().yield_now().await;
            }
            pieces.push((span.block, self.engine.decoded(&span.extent, disk)?));
        }
        Ok(pieces)
    }

    /// Groups spans that follow each other both in the inode and on a member.
    fn runs(&self, spans: &Spans) -> Result<SmallVec<[Range<usize>; 2]>> {
        let mut runs: SmallVec<[Range<usize>; 2]> = SmallVec::new();
        let mut bytes = 0;
        for (index, span) in spans.iter().enumerate() {
            let (len, pointer) = (span.disk_blocks() * BLOCK_SIZE, span.pointer());
            let follows = index > 0 && {
                let before = &spans[index - 1];
                before.end() == span.block
                    && before.pointer().member == pointer.member
                    && before.pointer().block + before.disk_blocks() == pointer.block
            };
            let queue = self.engine.member(pointer.member)?;
            match runs.last_mut() {
                Some(run)
                    if follows && bytes + len <= u64::from(queue.info().max_transfer_bytes) =>
                {
                    run.end = index + 1;
                    bytes += len;
                }
                _ => {
                    runs.push(index..index + 1);
                    bytes = len;
                }
            }
        }
        Ok(runs)
    }

    /// One command. A block that fails its checksum is read once more; then it is lost.
    async fn read_run(&self, range: &BlockRange, run: &[Span]) -> Result<Option<Slice>> {
        if !self.has_landed(run).await? {
            return Ok(None);
        }
        let mut buffer = Buffer::try_new_dirty(bytes_of(run))?;
        for last in [false, true] {
            buffer = self.read_once(run, buffer, Timed::DataRead).await?;
            match self.verify(run, &buffer) {
                Verdict::Good => return Ok(Some(buffer.freeze())),
                Verdict::Stale => return Ok(None),
                Verdict::Bad(block) if last => {
                    for span in run {
                        let pointer = span.pointer();
                        let current = self.engine.pointer_is_surely_current(&pointer);
                        if !Box::pin(current).await? {
                            return Ok(None);
                        }
                    }
                    if let Some(span) = run.iter().find(|it| (it.block..it.end()).contains(&block))
                    {
                        if !self.still_names(range, block, span.at(block)).await? {
                            return Ok(None);
                        }
                        // Of a frame all are lost.
                        let frame = span.extent.frame.map(|_| span.block..span.end());
                        for block in frame.unwrap_or(block..block + 1) {
                            self.engine.note_lost_block(range, block, span.at(block).pointer);
                        }
                    }
                    let offset = block.saturating_mul(BLOCK_SIZE);
                    let what = format!(
                        "inode {} version {} offset {offset}: checksum mismatch on member {}",
                        range.inode,
                        range.snapshot,
                        run[0].pointer().member
                    );
                    return Err(StoreError::DataLoss { what });
                }
                Verdict::Bad(block) => {
                    let shard = self.engine.shard().0;
                    tracing::debug!(shard, inode = %range.inode, block, "read again: checksum");
                }
            }
        }
        Ok(None)
    }

    /// Whether the index names this place for the block. If not, what was read there may be somebody else's.
    async fn still_names(&self, range: &BlockRange, block: u64, place: Place) -> Result<bool> {
        let range = BlockRange { from: block, to: block.saturating_add(1), ..*range };
        let now = lookup(&self.engine, &range).await?;
        Ok(now.iter().any(|span| span.block == block && span.at(block) == place))
    }

    /// Waits for what of a run is on its way. False: look up again.
    async fn has_landed(&self, run: &[Span]) -> Result<bool> {
        let (Pointer { member, block, .. }, engine) = (run[0].pointer(), &self.engine);
        let blocks = run.iter().map(Span::disk_blocks).sum();
        engine.flights.settled(&engine.journal, &engine.waits, (member, block, blocks)).await
    }

    async fn read_once(&self, run: &[Span], buffer: Buffer, kind: Timed) -> Result<Buffer> {
        let pointer = run[0].pointer();
        let queue = self.engine.member(pointer.member)?;
        let _timed = self.engine.waits.start(kind);
        Ok(queue.read(pointer.block * BLOCK_SIZE, buffer).await?)
    }

    fn verify(&self, run: &[Span], bytes: &[u8]) -> Verdict {
        if run.iter().any(|span| !self.engine.pointer_is_current(&span.pointer())) {
            return Verdict::Stale;
        }
        let checksums = run.iter().flat_map(|span| {
            let per_block = u64::from(span.extent.frame.is_none());
            (0_u64..)
                .zip(&span.extent.checksums)
                .map(move |(index, sum)| (span.block + index * per_block, *sum))
        });
        for (block, (logical, expected)) in bytes.chunks_exact(BLOCK_SIZE as usize).zip(checksums) {
            if crc32c(block) != expected && !planted::is(Bug::ChecksumNotVerified) {
                return Verdict::Bad(logical);
            }
        }
        Verdict::Good
    }
}

/// Each block of a run: its number, its place, its checksum or one of its frame.
fn blocks_of(run: &[Span]) -> impl DoubleEndedIterator<Item = (u64, Place, u32)> + '_ {
    run.iter().flat_map(|span| {
        let sums = &span.extent.checksums;
        let of_frame = span
            .extent
            .frame
            .map(|_| sums.iter().fold(0, |all: u32, sum| all.rotate_left(5) ^ sum));
        (span.block..span.end()).map(move |block| {
            let sum = of_frame.unwrap_or_else(|| sums[(block - span.block) as usize]);
            (block, span.at(block), sum)
        })
    })
}

/// Blocks `from .. to` of a run, which has them.
fn cut(run: &[Span], from: u64, to: u64) -> Spans {
    let within = run.iter().filter(|span| span.block < to && from < span.end());
    within.map(|span| span.cut(span.block.max(from), span.end().min(to))).collect()
}

fn bytes_of(run: &[Span]) -> usize {
    (run.iter().map(Span::disk_blocks).sum::<u64>() * BLOCK_SIZE) as usize
}
