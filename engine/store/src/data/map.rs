//! The extent map: which extents cover a range, and clearing a range.

use engine_base::{InodeNumber, SnapshotId};
use smallvec::SmallVec;

use super::{layers, shared};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{Address, EXTENT_BLOCKS_MAX, Extent, ExtentView, Pointer};
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
    /// The part: no hole.
    pub(crate) extent: Extent,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its block on disk, or the first of its frame.
    pub(crate) pointer: Pointer,
    /// 0; of a frame: its number among the decoded blocks, plus one.
    pub(crate) in_frame: u32,
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
        u64::from(self.extent.blocks)
    }

    /// Blocks on disk that are to be read for it.
    pub(crate) fn disk_blocks(&self) -> u64 {
        u64::from(self.extent.disk_blocks())
    }

    /// The first of these.
    pub(crate) fn pointer(&self) -> Pointer {
        self.extent.pointers[0]
    }

    pub(crate) fn end(&self) -> u64 {
        self.block + self.blocks()
    }

    /// Where logical block `block`, one of this span, lies.
    pub(crate) fn at(&self, block: u64) -> Place {
        let (pointer, within) = (self.pointer(), block - self.block);
        match self.extent.frame {
            None => {
                let pointer = Pointer { block: pointer.block + within, ..pointer };
                Place { pointer, in_frame: 0 }
            }
            Some(frame) => Place { pointer, in_frame: frame.offset + within as u32 + 1 },
        }
    }

    /// Blocks `from .. to` of it, which has them.
    pub(crate) fn cut(&self, from: u64, to: u64) -> Self {
        let extent = self.extent.cut((from - self.block) as u32, (to - from) as u32);
        Self { block: from, extent }
    }
}

/// Spans in order.
pub(crate) type Spans = SmallVec<[Span; 2]>;

/// Where extents are looked for.
pub(super) trait Extents {
    /// The first of a version in `from ..= to`, and what `of` takes of it and its value, which is not copied.
    async fn next<T>(
        &mut self,
        version: u32,
        range: (Position, Position),
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>>;
}

impl Extents for Transaction<'_> {
    async fn next<T>(
        &mut self,
        version: u32,
        range: (Position, Position),
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>> {
        self.next_of_version_as(Tree::Extents, Some(version), range, of).await
    }
}

/// The index as it is, without a transaction, which takes room.
impl Extents for &Engine {
    async fn next<T>(
        &mut self,
        version: u32,
        range: (Position, Position),
        of: impl Fn(Position, &Value) -> T,
    ) -> Result<Option<(Position, T)>> {
        self.index_next_of(Tree::Extents, Some(version), range, &mut None, of).await
    }
}

/// The next extent of the range's inode and version with a key at or past `from`: its key, and what `of`
/// takes of it, its first block and its end. `None` also when it lies past the range.
pub(super) async fn next_extent<T>(
    extents: &mut impl Extents,
    range: &BlockRange,
    from: Position,
    of: impl Fn(ExtentView<'_>, u64, u64) -> T,
) -> Result<Option<(Position, T)>> {
    let seen = |position: Position, value: &Value| -> Result<Option<T>> {
        let extent = ExtentView::parse(value)?;
        let end = position.offset;
        let start = end.checked_sub(u64::from(extent.blocks())).ok_or_else(|| {
            let name = format!("extent of inode {} ending at {end}", range.inode);
            StoreError::corrupt(name, "starts before block 0")
        })?;
        Ok((start < range.to).then(|| of(extent, start, end)))
    };
    let found = extents.next(range.snapshot.0, (from, range.last_key()), seen).await?;
    match found {
        Some((position, seen)) => Ok(seen?.map(|taken| (position, taken))),
        None => Ok(None),
    }
}

/// The parts of extents that cover the range, in order, as its version sees them; holes are left out.
pub(crate) async fn lookup(mut engine: &Engine, range: &BlockRange) -> Result<Spans> {
    let spans = match engine.versions.view(range.snapshot) {
        Some(view) => Box::pin(layers::lookup(engine, range, &view)).await?,
        None => own_spans(&mut engine, range).await?,
    };
    if spans.iter().any(|span| span.extent.address().is_some()) {
        return Box::pin(shared::lookup(engine, range)).await;
    }
    Ok(spans)
}

/// The parts of extents of the range's own version that cover it, in order, holes left out, references as they are.
pub(super) async fn own_spans(extents: &mut impl Extents, range: &BlockRange) -> Result<Spans> {
    let mut spans = Spans::new();
    let mut at = range.from;
    while at < range.to {
        let from = range.first_key(at);
        let part = |extent: ExtentView<'_>, start: u64, end: u64| {
            // Between two steps the map may have changed: `start` may lie before `at`.
            let (first, end) = (start.max(at), end.min(range.to));
            let part = || extent.cut((first - start) as u32, (end - first) as u32);
            (!extent.is_hole()).then(|| Span { block: first, extent: part() })
        };
        let found = next_extent(extents, range, from, part).await?;
        let Some((position, span)) = found else { break };
        spans.extend(span);
        at = position.offset.min(range.to);
    }
    Ok(spans)
}

/// Blocks that the parts which a write to a range leaves of a frame count for, beyond what the frame does.
pub(crate) async fn growth_by(mut engine: &Engine, range: &BlockRange) -> Result<u64> {
    let parts = |extent: ExtentView<'_>, start: u64, end: u64| {
        // One that begins in the range, or ends in it, leaves one part at most.
        let cut = start < range.from && end > range.to;
        let growth = cut.then(|| {
            let left = extent.live_blocks_of(0, (range.from - start) as u32);
            let right = extent.live_blocks_of((range.to - start) as u32, extent.blocks());
            u64::from((left + right).saturating_sub(extent.live_blocks()))
        });
        growth.unwrap_or(0)
    };
    let found = next_extent(&mut engine, range, range.first_key(range.from), parts).await?;
    let mut growth = found.map_or(0, |(_, growth)| growth);
    if engine.space.shares.get() {
        for edge in [range.from, range.to] {
            growth += growth_of_shared(engine, range, edge).await?;
        }
    }
    Ok(growth)
}

/// Blocks that a shared extent counts for more when it is cut where a reference is, at `edge`: all of it may stay.
async fn growth_of_shared(mut engine: &Engine, range: &BlockRange, edge: u64) -> Result<u64> {
    let block = BlockRange { from: edge, to: edge.saturating_add(1), ..*range };
    let seen = |extent: ExtentView<'_>, start: u64, _| (start, extent.address());
    let found = next_extent(&mut engine, &block, block.first_key(edge), seen).await?;
    let Some((_, (start, Some(address)))) = found.filter(|(_, (start, _))| *start < edge) else {
        return Ok(0);
    };
    let there = shared::range_at(address.after(edge - start), 1);
    let parts = |extent: ExtentView<'_>, start: u64, _| {
        let within = there.from.saturating_sub(start) as u32;
        let left = extent.live_blocks_of(0, within);
        let right = extent.live_blocks_of(within, extent.blocks());
        u64::from((left + right).saturating_sub(extent.live_blocks()))
    };
    let found = next_extent(&mut engine, &there, there.first_key(there.from), parts).await?;
    Ok(found.map_or(0, |(_, growth)| growth))
}

/// Takes a reference away that begins at `start` and is at `address` there, as far as it is in `gone`.
pub(super) async fn release(
    transaction: &mut Transaction<'_>,
    gone: &BlockRange,
    start: u64,
    address: Address,
) -> Result<()> {
    let holder = shared::holder(gone.inode, gone.snapshot, start, address);
    let there = shared::range_at(address.after(gone.from - start), gone.to - gone.from);
    shared::release(transaction, &there, holder).await
}

/// Deletes the extents of the range's version in it and trims those that reach into it, within `transaction`. Where
/// the version sees others, these show up: see [`hide_range`](layers::hide_range). Stops after [`BULK_UPDATES_MAX`]
/// changes and then tells from which block on the work is still to be done, in another transaction. A range of 256
/// blocks is always done.
pub(crate) async fn clear_range(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
) -> Result<Option<u64>> {
    let mut from = range.first_key(range.from);
    let budget = transaction.update_count() + BULK_UPDATES_MAX + 2;
    // What stays of an extent before the range, and past it, and what it refers to.
    let rests = |extent: ExtentView<'_>, start: u64, end: u64| {
        let left = (start < range.from).then(|| extent.encode_cut(0, (range.from - start) as u32));
        let right = (end > range.to)
            .then(|| extent.encode_cut((range.to - start) as u32, (end - range.to) as u32));
        (start, left, right, extent.address())
    };
    while let Some((position, (start, left, right, address))) =
        next_extent(transaction, range, from, rests).await?
    {
        if transaction.update_count() >= budget {
            return Ok(Some(start.max(range.from)));
        }
        if let Some(address) = address {
            let gone = BlockRange {
                from: start.max(range.from),
                to: position.offset.min(range.to),
                ..*range
            };
            Box::pin(release(transaction, &gone, start, address)).await?;
        }
        if let Some(left) = left {
            transaction.put(Tree::Extents, range.key(range.from), left);
        }
        match right {
            Some(right) => transaction.put(Tree::Extents, position, right),
            None => transaction.delete(Tree::Extents, position),
        }
        if position.offset >= range.to {
            break;
        }
        from = position.successor();
    }
    Ok(None)
}
