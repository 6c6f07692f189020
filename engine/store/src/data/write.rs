//! Stages of a write: reserve, checksum, allocate, write to the device, commit the index.
//! [`DataPath::prepare`] does all but the last, so that a caller can commit more (a file's size) in
//! the same transaction. Writes that need no more are gathered ([`super::batch`]).

use std::cell::Cell;
use std::rc::Rc;

use engine_base::checksum::{crc32c, crc32c_append};
use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};
use smallvec::SmallVec;

use super::DataPath;
use super::layers::{absorb_blocks, hide_range};
use super::map::{BlockRange, clear_range, growth_by};
use super::pack::{Frame, Frames, Whole};
use super::place::Placed;
use crate::api::{Data, SIZE_BYTES_MAX};
use crate::engine::{Reservation, WritePoint};
use crate::error::{Result, StoreError};
use crate::extent::{EXTENT_BLOCKS_MAX, Extent, Pointer};
use crate::flight::Flight;
use crate::key::Value;
use crate::limits::INSERTS_PER_TRANSACTION_MAX;
use crate::planted::{self, Bug};
use crate::transaction::Transaction;
use crate::version::View;

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
    /// Inserts of one transaction.
    per_transaction: Cell<usize>,
}

/// Blocks that are on the device and not yet in the index. Hold it until the transaction that
/// inserts them has committed.
pub(crate) struct Prepared {
    replacement: Replacement,
    _placed: Placed,
}

impl DataPath {
    /// Puts the data of the range on the device.
    pub(crate) async fn prepare(&self, range: BlockRange, data: &Data) -> Result<Prepared> {
        let range = self.written_as(range).await?;
        let blocks = range.to - range.from;
        assert!(crate::api::data_len(data) == blocks * BLOCK_SIZE, "data does not fit its range");
        let reservation = self.reserve(&range).await?;
        let stored = self.engine.pack(&range, data.clone()).await;
        let wholes: SmallVec<[Whole; 1]> = stored.frames.iter().map(Frame::whole).collect();
        let placed =
            self.engine.place(WritePoint::Data, &stored.data, &wholes, reservation).await?;
        let replacement = Replacement::new(&placed, range, 0, &stored.checksums, &stored.frames);
        Ok(Prepared { replacement, _placed: placed })
    }

    /// Room for a write: for its blocks, and for what becomes live of what it does not replace. Where there is enough,
    /// for the most that this can be.
    ///
    /// # Errors
    /// `NoSpace`, at once; when the index cannot be read.
    pub(super) async fn reserve(&self, range: &BlockRange) -> Result<Reservation> {
        let (blocks, growth) = (range.to - range.from, self.engine.space.growth_blocks());
        match self.engine.reserve(blocks + growth).await {
            Err(StoreError::NoSpace { .. }) if growth > 0 => {
                let growth = Box::pin(growth_by(&self.engine, range)).await?;
                self.engine.reserve(blocks + growth).await
            }
            result => result,
        }
    }

    /// Commits what does not fit the last transaction. Only a write that was scattered over very
    /// many pieces of free space has any, or one over much that is shared.
    pub(crate) async fn commit_all_but_last(&self, prepared: &Prepared) -> Result<()> {
        self.commit_early(&prepared.replacement, None).await
    }

    /// Replaces the range, in as many transactions as it takes.
    pub(super) async fn commit_alone(
        &self,
        replacement: &Replacement,
        flight: &Rc<Flight>,
    ) -> Result<()> {
        loop {
            let committed = self.commit_pieces(replacement, flight).await;
            match committed {
                Err(StoreError::TransactionFull(_)) if replacement.cut_smaller() => {}
                result => return result,
            }
        }
    }

    async fn commit_pieces(&self, replacement: &Replacement, flight: &Rc<Flight>) -> Result<()> {
        self.commit_early(replacement, Some(flight)).await?;
        self.engine
            .transact(async |transaction| {
                transaction.names(flight);
                replacement.insert_last(transaction).await
            })
            .await
    }

    async fn commit_early(
        &self,
        replacement: &Replacement,
        flight: Option<&Rc<Flight>>,
    ) -> Result<()> {
        let (early, _) = replacement.split();
        for batch in early.chunks(replacement.per_transaction.get()) {
            self.engine
                .transact(async |transaction| {
                    if let Some(flight) = flight {
                        transaction.names(flight);
                    }
                    replacement.insert(transaction, batch).await
                })
                .await?;
        }
        Ok(())
    }

    /// Makes holes of the range, in as many transactions as it takes.
    pub(crate) async fn punch(&self, range: BlockRange) -> Result<()> {
        let range = self.written_as(range).await?;
        let view = self.engine.versions.view(range.snapshot);
        self.clear(range, view.as_deref()).await
    }

    /// Drops what the version of the range itself holds there, whatever shows up then.
    pub(crate) async fn drop_own(&self, range: BlockRange) -> Result<()> {
        self.clear(range, None).await
    }

    /// Drops all that a version itself holds of an inode that is gone in it, and what one holds that is being merged
    /// into it.
    pub(crate) async fn forget(&self, inode: InodeNumber, version: SnapshotId) -> Result<()> {
        let whole = |snapshot| BlockRange { inode, snapshot, from: 0, to: u64::MAX };
        let versions = &self.engine.versions;
        if planted::is(Bug::SnapshotDataForgotten)
            && let Some(view) = versions.view(version)
            && let Some(older) = view.above().first()
        {
            self.drop_own(whole(SnapshotId(*older))).await?;
        }
        for id in versions.written(version) {
            self.drop_own(whole(SnapshotId(id))).await?;
        }
        Ok(())
    }

    async fn clear(&self, mut range: BlockRange, hides_in: Option<&View>) -> Result<()> {
        while range.from < range.to {
            let rest = self
                .engine
                .transact(async |transaction| match hides_in {
                    Some(view) => hide_range(transaction, &range, view).await,
                    None => clear_range(transaction, &range).await,
                })
                .await?;
            match rest {
                Some(block) => range.from = block,
                None => break,
            }
        }
        Ok(())
    }

    /// The range in the version in which it is to be written, with nothing of one that is being merged in front of it.
    pub(crate) async fn written_as(&self, range: BlockRange) -> Result<BlockRange> {
        let Some(view) = self.engine.versions.view(range.snapshot) else { return Ok(range) };
        let range = BlockRange { snapshot: SnapshotId(view.target()), ..range };
        if let Some(child) = view.absorbing() {
            let rest = BlockRange { snapshot: SnapshotId(child), ..range };
            Box::pin(absorb_blocks(&self.engine, rest, range.snapshot)).await?;
        }
        Ok(range)
    }
}

/// Makes holes of a range, which is that of [`DataPath::written_as`], within `transaction`; tells where to go on, as
/// `clear_range` does.
pub(crate) async fn punch_in(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
) -> Result<Option<u64>> {
    match transaction.engine().versions.view(range.snapshot) {
        Some(view) => hide_range(transaction, range, &view).await,
        None => clear_range(transaction, range).await,
    }
}

/// As [`DataPath::forget`], within `transaction`; whether that was enough for all of it.
pub(crate) async fn forget_in(
    transaction: &mut Transaction<'_>,
    inode: InodeNumber,
    version: SnapshotId,
) -> Result<bool> {
    let ids = transaction.engine().versions.written(version);
    // Of two versions it may be more than a transaction takes.
    if ids.len() > 1 {
        return Ok(false);
    }
    let to = SIZE_BYTES_MAX / BLOCK_SIZE;
    let range = BlockRange { inode, snapshot: SnapshotId(ids[0]), from: 0, to };
    Ok(clear_range(transaction, &range).await?.is_none())
}

impl Replacement {
    /// The extents of `range`, whose data is the part of what was placed from block `done` on, with these checksums
    /// and frames.
    pub(super) fn new(
        placed: &Placed,
        range: BlockRange,
        done: u64,
        checksums: &[u32],
        frames: &Frames,
    ) -> Self {
        let per_transaction = Cell::new(INSERTS_PER_TRANSACTION_MAX);
        let mut this = Self { range, inserts: SmallVec::new(), per_transaction };
        // How far it is, in blocks of the range and of what is stored for them.
        let (mut at, mut disk) = (0, 0);
        for frame in frames {
            this.add_plain(placed, done, (at, disk), frame.from - at, checksums);
            this.add_frame(placed, done, frame, checksums);
            at = frame.from + u64::from(frame.blocks);
            disk = frame.disk_from + u64::from(frame.disk_blocks);
        }
        this.add_plain(placed, done, (at, disk), range.to - range.from - at, checksums);
        this
    }

    /// Adds extents of blocks that are stored as they are.
    fn add_plain(
        &mut self,
        placed: &Placed,
        done: u64,
        (at, disk): (u64, u64),
        blocks: u64,
        checksums: &[u32],
    ) {
        let (mut from, mut first) = (self.range.from + at, disk as usize);
        for (pointer, blocks) in placed.parts(done + disk, blocks) {
            for (offset, blocks) in extent_cuts(from, blocks) {
                let pointer = Pointer { block: pointer.block + u64::from(offset), ..pointer };
                let extent = Extent {
                    blocks,
                    pointers: [pointer].into_iter().collect(),
                    checksums: checksums[first..first + blocks as usize].into(),
                    ..Extent::default()
                };
                self.add(from + u64::from(offset), &extent);
                first += blocks as usize;
            }
            from += u64::from(blocks);
        }
    }

    fn add_frame(&mut self, placed: &Placed, done: u64, frame: &Frame, checksums: &[u32]) {
        let (first, blocks) = (frame.disk_from as usize, frame.disk_blocks as usize);
        let parts = placed.parts(done + frame.disk_from, u64::from(frame.disk_blocks));
        assert!(parts.len() == 1, "a frame lies in one piece");
        let extent = Extent {
            blocks: frame.blocks,
            pointers: [parts[0].0].into_iter().collect(),
            checksums: checksums[first..first + blocks].into(),
            frame: Some(frame.part()),
            ..Extent::default()
        };
        self.add(self.range.from + frame.from, &extent);
    }

    fn add(&mut self, from: u64, extent: &Extent) {
        let end = from + u64::from(extent.blocks);
        self.inserts.push(Insert { from, end, value: extent.encode() });
    }
}

impl Prepared {
    /// Whether [`Prepared::insert_last`] inserts all.
    pub(crate) fn is_one_transaction(&self) -> bool {
        self.replacement.inserts.len() <= self.replacement.per_transaction.get()
    }

    /// As [`Replacement::cut_smaller`].
    pub(crate) fn cut_smaller(&self) -> bool {
        self.replacement.cut_smaller()
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

    /// Puts one extent in each transaction from here on, after one was refused as too large. False: it did before. To
    /// begin anew puts what was put already once more.
    fn cut_smaller(&self) -> bool {
        self.per_transaction.replace(1) > 1 && self.inserts.len() > 1
    }

    fn split(&self) -> (&[Insert], &[Insert]) {
        let last = self.inserts.len().min(self.per_transaction.get());
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
        if clear_range(transaction, &range).await?.is_some() {
            // Only where much is shared: what is cut there changes as well.
            return Err(StoreError::TransactionFull(transaction.update_count()));
        }
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

/// One per block that is written.
pub(crate) type Checksums = SmallVec<[u32; 8]>;

/// CRC-32C of each block; blocks may straddle pieces.
pub(crate) fn block_checksums(data: &Data) -> Checksums {
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
