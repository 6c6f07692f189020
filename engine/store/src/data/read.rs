//! Reading blocks: look up, read only the blocks that are needed, verify each one.

use std::ops::Range;

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c;
use engine_device::QueueExt;
use engine_memory::{Buffer, Slice};
use smallvec::SmallVec;

use super::DataPath;
use super::map::{BlockRange, Span, lookup};
use crate::api::Data;
use crate::error::{Result, StoreError};
use crate::limits::READ_LOOKUPS_MAX;
use crate::planted::{self, Bug};
use crate::times::Timed;

type Spans = SmallVec<[Span; 2]>;

/// How a run of spans was found to be after its read.
enum Verdict {
    Good,
    /// A bucket was reused meanwhile: look up again.
    Stale,
    /// The checksum of this logical block does not match.
    Bad(u64),
}

impl DataPath {
    /// Reads the range; holes are zeroes.
    pub(crate) async fn read(&self, range: BlockRange) -> Result<Data> {
        for _ in 0..READ_LOOKUPS_MAX {
            let spans = lookup(&self.engine, &range).await?;
            if let Some(slices) = self.read_spans(&range, &spans).await? {
                return Ok(self.assemble(&range, &spans, &slices));
            }
        }
        Err(StoreError::Overloaded {
            what: format!(
                "inode {} block {}: space moves faster than it is read",
                range.inode, range.from
            ),
        })
    }

    /// Reads all spans, neighbours on disk in one command; `None` when they have moved.
    async fn read_spans(&self, range: &BlockRange, spans: &Spans) -> Result<Option<Slices>> {
        let runs = self.runs(spans)?;
        let mut slices = Slices::new();
        if let [run] = runs.as_slice() {
            let Some(slice) = self.read_run(range, &spans[run.clone()]).await? else {
                return Ok(None);
            };
            slices.push((run.clone(), slice));
            return Ok(Some(slices));
        }
        let reads = runs.iter().map(|run| self.read_run(range, &spans[run.clone()]));
        let results = futures::future::join_all(reads).await;
        for (run, result) in runs.into_iter().zip(results) {
            let Some(slice) = result? else { return Ok(None) };
            slices.push((run, slice));
        }
        Ok(Some(slices))
    }

    /// Groups spans that follow each other both in the inode and on a member.
    fn runs(&self, spans: &Spans) -> Result<SmallVec<[Range<usize>; 2]>> {
        let mut runs: SmallVec<[Range<usize>; 2]> = SmallVec::new();
        let mut bytes = 0;
        for (index, span) in spans.iter().enumerate() {
            let len = span.blocks() * BLOCK_SIZE;
            let follows = index > 0 && {
                let before = &spans[index - 1];
                before.end() == span.block
                    && before.pointer.member == span.pointer.member
                    && before.pointer.block + before.blocks() == span.pointer.block
            };
            let queue = self.engine.member(span.pointer.member)?;
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
        let pointer = run[0].pointer;
        let queue = self.engine.member(pointer.member)?;
        let len = run.iter().map(Span::blocks).sum::<u64>() * BLOCK_SIZE;
        let mut buffer = Buffer::try_new(len as usize)?;
        for last in [false, true] {
            let timed = self.engine.waits.start(Timed::DataRead);
            buffer = queue.read(pointer.block * BLOCK_SIZE, buffer).await?;
            drop(timed);
            match self.verify(run, &buffer) {
                Verdict::Good => return Ok(Some(buffer.freeze())),
                Verdict::Stale => return Ok(None),
                Verdict::Bad(block) if last => {
                    if let Some(span) = run.iter().find(|it| (it.block..it.end()).contains(&block))
                    {
                        self.engine.note_lost_block(range, block, span.at(block));
                    }
                    let offset = block.saturating_mul(BLOCK_SIZE);
                    let what = format!(
                        "inode {} version {} offset {offset}: checksum mismatch on member {}",
                        range.inode, range.snapshot, pointer.member
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

    fn verify(&self, run: &[Span], bytes: &[u8]) -> Verdict {
        if run.iter().any(|span| !self.engine.pointer_is_current(&span.pointer)) {
            return Verdict::Stale;
        }
        let checksums = run.iter().flat_map(|span| {
            span.checksums.iter().enumerate().map(|(index, sum)| (span.block + index as u64, *sum))
        });
        for (block, (logical, expected)) in bytes.chunks_exact(BLOCK_SIZE as usize).zip(checksums) {
            if crc32c(block) != expected && !planted::is(Bug::ChecksumNotVerified) {
                return Verdict::Bad(logical);
            }
        }
        Verdict::Good
    }

    fn assemble(&self, range: &BlockRange, spans: &Spans, slices: &Slices) -> Data {
        let mut data = Data::new();
        let mut at = range.from;
        for (run, slice) in slices {
            let (first, end) = (spans[run.start].block, spans[run.end - 1].end());
            self.push_zeroes(&mut data, (first - at) * BLOCK_SIZE);
            data.push(slice.clone());
            at = end;
        }
        self.push_zeroes(&mut data, (range.to - at) * BLOCK_SIZE);
        data
    }
}

/// What was read: the spans of each run, and their bytes.
type Slices = SmallVec<[(Range<usize>, Slice); 2]>;
