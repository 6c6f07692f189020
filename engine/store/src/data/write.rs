//! Stages of a write: reserve, checksum, allocate, write to the device, commit the index.
//! [`DataPath::prepare`] does all but the last, so that a caller can commit more (a file's size) in
//! the same transaction. Writes that need no more are gathered ([`super::batch`]).

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_base::checksum::{crc32c, crc32c_append};
use engine_device::{IoVec, QueueExt};
use smallvec::SmallVec;

use super::DataPath;
use super::map::{BlockRange, clear_range};
use crate::api::Data;
use crate::client::cut;
use crate::engine::{Allocation, Reservation, WritePoint};
use crate::error::Result;
use crate::extent::{EXTENT_BLOCKS_MAX, Extent, Pointer};
use crate::key::Value;
use crate::limits::INSERTS_PER_TRANSACTION_MAX;
use crate::planted::{self, Bug};
use crate::transaction::Transaction;

/// An extent to be inserted.
struct Insert {
    from: u64,
    end: u64,
    value: Value,
}

/// What is to replace the blocks of one range in the index.
pub(super) struct Replacement {
    pub(super) range: BlockRange,
    inserts: SmallVec<[Insert; 2]>,
}

/// Blocks that are on the device and not yet in the index. Hold it until the transaction that
/// inserts them has committed.
pub(crate) struct Prepared {
    replacement: Replacement,
    _placed: Placed,
}

/// Where data was put.
pub(super) struct Placed {
    allocations: SmallVec<[Allocation; 2]>,
    _reservation: Reservation,
}

impl DataPath {
    /// Puts the data of the range on the device.
    pub(crate) async fn prepare(&self, range: BlockRange, data: &Data) -> Result<Prepared> {
        let blocks = range.to - range.from;
        assert!(crate::api::data_len(data) == blocks * BLOCK_SIZE, "data does not fit its range");
        let reservation = self.engine.reserve(blocks).await?;
        let checksums = block_checksums(data);
        let placed = self.place(blocks, data, reservation).await?;
        let replacement = placed.replacement(range, 0, &checksums);
        Ok(Prepared { replacement, _placed: placed })
    }

    /// Allocates `blocks` out of `reservation` and writes `data` there.
    pub(super) async fn place(
        &self,
        blocks: u64,
        data: &Data,
        mut reservation: Reservation,
    ) -> Result<Placed> {
        let mut allocations: SmallVec<[Allocation; 2]> = SmallVec::new();
        let mut allocated = 0;
        while allocated < blocks {
            let want = (blocks - allocated) as u32;
            let allocation = self.engine.allocate(WritePoint::Data, want, &mut reservation).await?;
            assert!(allocation.blocks >= 1 && allocation.blocks <= want);
            allocated += u64::from(allocation.blocks);
            allocations.push(allocation);
        }
        self.write_allocations(&allocations, data).await?;
        Ok(Placed { allocations, _reservation: reservation })
    }

    /// One or more device commands per allocation, all at the same time. Waits for all of them, also
    /// when one fails: the space must not be given back under a command in flight.
    async fn write_allocations(&self, allocations: &[Allocation], data: &Data) -> Result<()> {
        if planted::is(Bug::IndexBeforeData) {
            self.write_later(allocations, data)?;
            return Ok(());
        }
        if let [only] = allocations {
            let queue = self.engine.member(only.pointer.member)?;
            if u64::from(queue.info().max_transfer_bytes) >= u64::from(only.blocks) * BLOCK_SIZE {
                let offset = only.pointer.block * BLOCK_SIZE;
                return Ok(queue.write(offset, IoVec::from(data.as_slice()), false).await?);
            }
        }
        let mut commands = Vec::new();
        let mut done = 0_usize;
        for allocation in allocations {
            let queue = self.engine.member(allocation.pointer.member)?;
            let transfer = u64::from(queue.info().max_transfer_bytes).max(BLOCK_SIZE);
            let len = u64::from(allocation.blocks) * BLOCK_SIZE;
            let mut at = 0;
            while at < len {
                let part = (len - at).min(transfer / BLOCK_SIZE * BLOCK_SIZE);
                let pieces = cut(data, done, part as usize);
                let offset = allocation.pointer.block * BLOCK_SIZE + at;
                commands.push(queue.write(offset, pieces, false));
                done += part as usize;
                at += part;
            }
        }
        for result in futures::future::join_all(commands).await {
            result?;
        }
        Ok(())
    }

    /// The planted bug: the index names the blocks while they are on their way.
    fn write_later(&self, allocations: &[Allocation], data: &Data) -> Result<()> {
        let mut done = 0;
        for allocation in allocations {
            let queue = Rc::clone(self.engine.member(allocation.pointer.member)?);
            let len = allocation.blocks as usize * BLOCK_SIZE as usize;
            let pieces = cut(data, done, len);
            let offset = allocation.pointer.block * BLOCK_SIZE;
            done += len;
            let late = async move {
                let _ = queue.write(offset, pieces, false).await;
            };
            self.engine.runtime().spawn("planted bug", Box::pin(late));
        }
        Ok(())
    }

    /// Commits what does not fit the last transaction. Only a write that was scattered over very
    /// many pieces of free space has any.
    pub(crate) async fn commit_all_but_last(&self, prepared: &Prepared) -> Result<()> {
        self.commit_early(&prepared.replacement).await
    }

    /// Replaces the range, in as many transactions as it takes.
    pub(super) async fn commit_alone(&self, replacement: &Replacement) -> Result<()> {
        self.commit_early(replacement).await?;
        self.engine.transact(async |transaction| replacement.insert_last(transaction).await).await
    }

    async fn commit_early(&self, replacement: &Replacement) -> Result<()> {
        let (early, _) = replacement.split();
        for batch in early.chunks(INSERTS_PER_TRANSACTION_MAX) {
            self.engine
                .transact(async |transaction| replacement.insert(transaction, batch).await)
                .await?;
        }
        Ok(())
    }

    /// Makes holes of the range, in as many transactions as it takes.
    pub(crate) async fn punch(&self, mut range: BlockRange) -> Result<()> {
        while range.from < range.to {
            let rest = self
                .engine
                .transact(async |transaction| clear_range(transaction, &range).await)
                .await?;
            match rest {
                Some(block) => range.from = block,
                None => break,
            }
        }
        Ok(())
    }
}

impl Placed {
    /// The extents of `range`, whose data is the part of what was placed from block `done` on.
    pub(super) fn replacement(
        &self,
        range: BlockRange,
        done: u64,
        checksums: &[u32],
    ) -> Replacement {
        let mut inserts = SmallVec::new();
        let (mut start, mut from) = (0, range.from);
        for allocation in &self.allocations {
            let end = start + u64::from(allocation.blocks);
            let skip = (done + (from - range.from)).saturating_sub(start);
            start = end;
            if skip >= u64::from(allocation.blocks) {
                continue;
            }
            let blocks = (u64::from(allocation.blocks) - skip).min(range.to - from) as u32;
            for (offset, blocks) in extent_cuts(from, blocks) {
                let at = from + u64::from(offset);
                let first = (at - range.from) as usize;
                let pointer = Pointer {
                    block: allocation.pointer.block + skip + u64::from(offset),
                    ..allocation.pointer
                };
                let extent = Extent {
                    blocks,
                    pointers: [pointer].into_iter().collect(),
                    checksums: checksums[first..first + blocks as usize].into(),
                };
                let value = extent.encode();
                inserts.push(Insert { from: at, end: at + u64::from(blocks), value });
            }
            from += u64::from(blocks);
            if from == range.to {
                break;
            }
        }
        assert!(from == range.to, "less was placed than the range is long");
        Replacement { range, inserts }
    }
}

impl Prepared {
    /// Whether [`Prepared::insert_last`] inserts all.
    pub(crate) fn is_one_transaction(&self) -> bool {
        self.replacement.inserts.len() <= INSERTS_PER_TRANSACTION_MAX
    }

    /// Puts the last (nearly always the only) batch of extents in place of what was there.
    pub(crate) async fn insert_last(&self, transaction: &mut Transaction<'_>) -> Result<()> {
        self.replacement.insert_last(transaction).await
    }
}

impl Replacement {
    /// Extents to be inserted.
    pub(super) fn inserts(&self) -> usize {
        self.inserts.len()
    }

    fn split(&self) -> (&[Insert], &[Insert]) {
        let last = self.inserts.len().min(INSERTS_PER_TRANSACTION_MAX);
        self.inserts.split_at(self.inserts.len() - last)
    }

    /// As [`Prepared::insert_last`].
    pub(super) async fn insert_last(&self, transaction: &mut Transaction<'_>) -> Result<()> {
        let (_, last) = self.split();
        self.insert(transaction, last).await
    }

    async fn insert(&self, transaction: &mut Transaction<'_>, batch: &[Insert]) -> Result<()> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(()) };
        let range = BlockRange { from: first.from, to: last.end, ..self.range };
        let rest = clear_range(transaction, &range).await?;
        assert!(rest.is_none(), "a write covers more than one transaction can clear");
        for insert in batch {
            transaction.put_fresh_extent(self.range.key(insert.end), insert.value.clone());
        }
        Ok(())
    }
}

/// Cuts `blocks` from logical block `first` on at multiples of the longest extent, so that a later
/// aligned write replaces whole extents. Yields (offset, blocks).
fn extent_cuts(first: u64, blocks: u32) -> impl Iterator<Item = (u32, u32)> {
    let most = u64::from(EXTENT_BLOCKS_MAX);
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= blocks {
            return None;
        }
        let block = first + u64::from(at);
        let until_boundary = (most - block % most) as u32;
        let part = (at, until_boundary.min(blocks - at));
        at += part.1;
        Some(part)
    })
}

/// One per block of a write.
pub(super) type Checksums = SmallVec<[u32; 8]>;

/// CRC-32C of each block; blocks may straddle pieces.
pub(super) fn block_checksums(data: &Data) -> Checksums {
    let mut checksums = SmallVec::new();
    let (mut crc, mut filled) = (0_u32, 0_usize);
    for piece in data {
        let mut rest: &[u8] = piece;
        while !rest.is_empty() {
            let take = rest.len().min(BLOCK_SIZE as usize - filled);
            let (now, later) = rest.split_at(take);
            crc = if filled == 0 { crc32c(now) } else { crc32c_append(crc, now) };
            filled += take;
            rest = later;
            if filled == BLOCK_SIZE as usize {
                checksums.push(crc);
                filled = 0;
            }
        }
    }
    checksums
}

#[cfg(test)]
mod tests {
    use engine_memory::Buffer;

    use super::*;

    #[test]
    fn cuts_fall_on_extent_boundaries() {
        let cuts: Vec<_> = extent_cuts(5, 64).collect();
        assert_eq!(cuts, [(0, 27), (27, 32), (59, 5)]);
        assert_eq!(extent_cuts(32, 32).collect::<Vec<_>>(), [(0, 32)]);
        assert_eq!(extent_cuts(7, 1).collect::<Vec<_>>(), [(0, 1)]);
    }

    #[test]
    fn checksums_do_not_depend_on_the_pieces() {
        let bytes: Vec<u8> = (0..3 * 4096_u32).map(|at| (at * 7 % 251) as u8).collect();
        let whole: Vec<u32> = bytes.chunks(4096).map(crc32c).collect();
        let slice = Buffer::try_copy_of(&bytes).unwrap().freeze();
        for cut_at in [1, 4095, 4096, 4097, 9000] {
            let data: Data =
                [slice.slice(0..cut_at), slice.slice(cut_at..bytes.len())].into_iter().collect();
            assert_eq!(block_checksums(&data).as_slice(), whole);
        }
    }
}
