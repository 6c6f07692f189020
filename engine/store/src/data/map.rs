//! The extent map: which extents cover a range, and clearing a range.

use engine_base::{InodeNumber, SnapshotId};
use smallvec::SmallVec;

use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{EXTENT_BLOCKS_MAX, ExtentView, Pointer};
use crate::key::{Position, Tree, Value};
use crate::limits::BULK_UPDATES_MAX;
use crate::transaction::Transaction;

/// Blocks `from .. to` of an inode in one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockRange {
    pub(crate) inode: InodeNumber,
    pub(crate) snapshot: SnapshotId,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// A part of an extent that a read needs.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    /// First logical block.
    pub(crate) block: u64,
    /// Where it lies.
    pub(crate) pointer: Pointer,
    /// Of each block; their number is the length.
    pub(crate) checksums: SmallVec<[u32; 4]>,
}

impl BlockRange {
    /// The key of an extent of this inode that ends at `end`.
    pub(crate) fn key(&self, end: u64) -> Position {
        Position::new(self.inode.0, end, self.snapshot.0)
    }

    /// The first key that an extent with a block at or past `block` can have.
    pub(super) fn first_key(&self, block: u64) -> Position {
        Position::new(self.inode.0, block.saturating_add(1), 0)
    }

    /// The last key that an extent with a block before `to` can have.
    pub(super) fn last_key(&self) -> Position {
        let end = self.to.saturating_add(u64::from(EXTENT_BLOCKS_MAX) - 1);
        Position::new(self.inode.0, end, u32::MAX)
    }
}

impl Span {
    pub(crate) fn blocks(&self) -> u64 {
        self.checksums.len() as u64
    }

    pub(crate) fn end(&self) -> u64 {
        self.block + self.blocks()
    }

    /// Where logical block `block`, one of this span, lies.
    pub(crate) fn at(&self, block: u64) -> Pointer {
        Pointer { block: self.pointer.block + (block - self.block), ..self.pointer }
    }
}

/// Where extents are looked for.
trait Extents {
    /// The first in `from ..= to`.
    async fn next(&mut self, from: Position, to: Position) -> Result<Option<(Position, Value)>>;
}

impl Extents for Transaction<'_> {
    async fn next(&mut self, from: Position, to: Position) -> Result<Option<(Position, Value)>> {
        Transaction::next(self, Tree::Extents, from, to).await
    }
}

/// The index as it is, without a transaction, which takes room.
impl Extents for &Engine {
    async fn next(&mut self, from: Position, to: Position) -> Result<Option<(Position, Value)>> {
        self.index_next(Tree::Extents, from, to, &mut None).await
    }
}

/// The next extent of the range's inode and version with a key at or past `from`: its key, its first
/// block, and what `of` takes of it.
async fn next_extent<T>(
    extents: &mut impl Extents,
    range: &BlockRange,
    mut from: Position,
    of: impl Fn(ExtentView<'_>, u64, u64) -> T,
) -> Result<Option<(Position, u64, T)>> {
    loop {
        let found = extents.next(from, range.last_key()).await?;
        let Some((position, value)) = found else { return Ok(None) };
        if position.snapshot != range.snapshot.0 {
            from = position.successor();
            continue;
        }
        let extent = ExtentView::parse(&value)?;
        let end = position.offset;
        let start = end.checked_sub(u64::from(extent.blocks())).ok_or_else(|| {
            let name = format!("extent of inode {} ending at {end}", range.inode);
            StoreError::corrupt(name, "starts before block 0")
        })?;
        return Ok((start < range.to).then(|| (position, start, of(extent, start, end))));
    }
}

/// The parts of extents that cover the range, in order; holes are left out.
pub(crate) async fn lookup(mut engine: &Engine, range: &BlockRange) -> Result<SmallVec<[Span; 2]>> {
    let mut spans = SmallVec::new();
    let mut at = range.from;
    while at < range.to {
        let from = range.first_key(at);
        let part = |extent: ExtentView<'_>, start: u64, end: u64| {
            // Between two steps the map may have changed: `start` may lie before `at`.
            let (first, end) = (start.max(at), end.min(range.to));
            let part = extent.cut((first - start) as u32, (end - first) as u32);
            Span { block: first, pointer: part.pointers[0], checksums: part.checksums }
        };
        let found = next_extent(&mut engine, range, from, part).await?;
        let Some((position, _, span)) = found else { break };
        spans.push(span);
        at = position.offset.min(range.to);
    }
    Ok(spans)
}

/// Makes holes of the range within `transaction`: deletes the extents in it and trims those that
/// reach into it. Stops after [`BULK_UPDATES_MAX`] changes and then tells from which block on
/// the work is still to be done, in another transaction. A range of 256 blocks is always done.
pub(crate) async fn clear_range(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
) -> Result<Option<u64>> {
    let mut from = range.first_key(range.from);
    let budget = transaction.update_count() + BULK_UPDATES_MAX + 2;
    let whole = |extent: ExtentView<'_>, _, _| extent.cut(0, extent.blocks());
    while let Some((position, start, extent)) = next_extent(transaction, range, from, whole).await?
    {
        if transaction.update_count() >= budget {
            return Ok(Some(start.max(range.from)));
        }
        let end = position.offset;
        if start < range.from {
            let left = extent.cut(0, (range.from - start) as u32);
            transaction.put(Tree::Extents, range.key(range.from), left.encode());
        }
        if end > range.to {
            let right = extent.cut((range.to - start) as u32, (end - range.to) as u32);
            transaction.put(Tree::Extents, position, right.encode());
        } else {
            transaction.delete(Tree::Extents, position);
        }
        if end >= range.to {
            break;
        }
        from = position.successor();
    }
    Ok(None)
}
