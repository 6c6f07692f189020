//! Extents of several versions: which covers a block is the one of the nearest version ([`crate::version`]).
//!
//! What lies in a version above is left as it is when a version below writes over it, so a write costs the same with
//! and without snapshots. Extents of different versions overlap in any way; the one with a block ends within
//! [`EXTENT_BLOCKS_MAX`] blocks of it, so all that may have the blocks of a range are few keys side by side.

use engine_base::SnapshotId;
use smallvec::SmallVec;

use super::map::{BlockRange, Span, Spans, clear_range, next_extent};
use super::shared;
use crate::engine::{Engine, Scan};
use crate::error::{Result, StoreError};
use crate::extent::{EXTENT_BLOCKS_MAX, Extent, ExtentView};
use crate::key::{Position, Tree, Value};
use crate::limits::BULK_UPDATES_MAX;
use crate::planted::{self, Bug};
use crate::transaction::Transaction;
use crate::version::{self, View};

/// Most blocks that are looked at at a time.
const WINDOW_BLOCKS: u64 = 256;
/// Versions up to which those at one place are passed one by one.
const SKIPPED_VERSIONS_MAX: usize = 16;
/// Rank of a block that nobody covers.
const NOBODY: u32 = u32::MAX;

/// A part of an extent that may be seen.
struct Piece {
    start: u64,
    /// What it has from `start` on; may be a hole.
    extent: Extent,
}

/// Who covers each block of a window.
struct Cover {
    from: u64,
    /// Of each block: the rank of the nearest version that covers it, and which piece does.
    blocks: SmallVec<[(u32, u32); 8]>,
    pieces: SmallVec<[Piece; 2]>,
}

impl Cover {
    fn new(from: u64, to: u64) -> Self {
        let blocks = SmallVec::from_elem((NOBODY, 0), (to - from) as usize);
        Self { from, blocks, pieces: SmallVec::new() }
    }

    /// Blocks `start .. end`, as far as they are in the window.
    fn of(&mut self, start: u64, end: u64) -> &mut [(u32, u32)] {
        let place = |block: u64| (block.max(self.from) - self.from) as usize;
        let (from, to) = (place(start), place(end).min(self.blocks.len()));
        &mut self.blocks[from.min(to)..to]
    }

    fn add(&mut self, rank: u32, piece: Piece, end: u64) {
        let index = self.pieces.len() as u32;
        let mut seen = false;
        for block in self.of(piece.start, end) {
            if rank < block.0 {
                *block = (rank, index);
                seen = true;
            }
        }
        if seen {
            self.pieces.push(piece);
        }
    }

    /// Whether no version farther than `rank` is seen in blocks before `end`.
    fn hides(&mut self, rank: u32, end: u64) -> bool {
        let start = end.saturating_sub(u64::from(EXTENT_BLOCKS_MAX));
        self.of(start, end).iter().all(|block| block.0 <= rank)
    }

    fn has_data(&self) -> bool {
        self.blocks
            .iter()
            .any(|(rank, piece)| *rank != NOBODY && !self.pieces[*piece as usize].extent.is_hole())
    }

    /// The data that is seen, in order.
    fn spans(&self) -> Spans {
        let mut block = self.from;
        let runs = self.blocks.chunk_by(|before, block| before == block);
        let spans = runs.filter_map(|run| {
            let (first, (rank, index)) = (block, run[0]);
            block += run.len() as u64;
            let piece = (rank != NOBODY).then(|| &self.pieces[index as usize])?;
            let start = (first - piece.start) as u32;
            let part = || piece.extent.cut(start, run.len() as u32);
            (!piece.extent.is_hole()).then(|| Span { block: first, extent: part() })
        });
        spans.collect()
    }
}

/// What a version sees of a range, all at one instant.
pub(super) async fn lookup(engine: &Engine, range: &BlockRange, view: &View) -> Result<Spans> {
    engine.transact(async |transaction| spans(transaction, range, view).await).await
}

/// As [`lookup`], within `transaction`, which has changed nothing of it.
pub(super) async fn spans(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    view: &View,
) -> Result<Spans> {
    let mut spans = Spans::new();
    let mut at = range.from;
    while let Some(window) = next_window(transaction, range, view.ids(), at).await? {
        spans.extend(cover(transaction, &window, view.ids()).await?.spans());
        at = window.to;
    }
    Ok(spans)
}

/// Who has data of a range as a version sees it, up to the end of the first window with any: blocks and version, in
/// order; and where that window ends.
pub(super) async fn owners(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    view: &View,
) -> Result<(Vec<(u64, u64, SnapshotId)>, u64)> {
    let Some(window) = next_window(transaction, range, view.ids(), range.from).await? else {
        return Ok((Vec::new(), range.to));
    };
    let cover = cover(transaction, &window, view.ids()).await?;
    let mut block = window.from;
    let mut owners = Vec::new();
    for run in cover.blocks.chunk_by(|before, block| before == block) {
        let (from, (rank, piece)) = (block, run[0]);
        block += run.len() as u64;
        if rank != NOBODY && !cover.pieces[piece as usize].extent.is_hole() {
            owners.push((from, block, SnapshotId(view.ids()[rank as usize])));
        }
    }
    Ok((owners, window.to))
}

/// Makes holes of a range of a version that sees others: its own extents go, and holes hide those of others, as far
/// as there are any. As [`clear_range`], tells where to go on.
pub(crate) async fn hide_range(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    view: &View,
) -> Result<Option<u64>> {
    let budget = transaction.update_count() + BULK_UPDATES_MAX + 2;
    let rest = clear_range(transaction, range).await?;
    let range = BlockRange { to: rest.unwrap_or(range.to), ..*range };
    let mut at = range.from;
    while let Some(window) = next_window(transaction, &range, view.above(), at).await? {
        if transaction.update_count() >= budget {
            return Ok(Some(window.from));
        }
        // One hole for all of the longest extent's room, so that holes do not outnumber what they hide.
        let room = u64::from(EXTENT_BLOCKS_MAX);
        let first = window.from / room * room;
        let (from, to) = (first.max(range.from), (first + room).min(range.to));
        let window = BlockRange { from, to, ..range };
        if cover(transaction, &window, view.above()).await?.has_data()
            && !planted::is(Bug::HoleForgotten)
        {
            let hole = Extent::hole((to - from) as u32);
            transaction.put(Tree::Extents, range.key(to), hole.encode());
        }
        at = to;
    }
    Ok(rest)
}

/// Moves what `range.snapshot` has of the range to `into`, which absorbs it: in front of what that has there.
pub(crate) async fn absorb_blocks(
    engine: &Engine,
    mut range: BlockRange,
    into: SnapshotId,
) -> Result<()> {
    // Holes are there to hide; where nothing is above, nothing is hidden.
    let hides = engine.versions.view(into).is_some_and(|view| !view.above().is_empty());
    let whole = |extent: ExtentView<'_>, start: u64, _| {
        (start, extent.is_hole(), extent.address(), extent.encode_cut(0, extent.blocks()))
    };
    loop {
        let rest = engine
            .transact(async |transaction| {
                let mut from = range.first_key(range.from);
                while let Some((position, (start, is_hole, address, value))) =
                    next_extent(transaction, &range, from, whole).await?
                {
                    if transaction.update_count() >= BULK_UPDATES_MAX {
                        return Ok(Some(start.max(range.from)));
                    }
                    let to =
                        BlockRange { snapshot: into, from: start, to: position.offset, ..range };
                    let rest = clear_range(transaction, &to).await?;
                    assert!(rest.is_none(), "an extent covers more than one transaction can clear");
                    if let Some(address) = address {
                        let holder = |of| shared::holder(range.inode, of, start, address);
                        let there = shared::range_at(address, position.offset - start);
                        let (from, to) = (holder(range.snapshot), holder(into));
                        Box::pin(shared::rename(transaction, &there, from, to)).await?;
                    }
                    if hides || !is_hole {
                        transaction.put(Tree::Extents, to.key(position.offset), value);
                    }
                    transaction.delete(Tree::Extents, position);
                    from = position.successor();
                }
                Ok(None)
            })
            .await?;
        match rest {
            Some(block) => range.from = block,
            None => return Ok(()),
        }
    }
}

/// The next blocks from `at` on that extents of `ids` may cover, within `range`.
async fn next_window(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
    ids: &[u32],
    at: u64,
) -> Result<Option<BlockRange>> {
    if at >= range.to || ids.is_empty() {
        return Ok(None);
    }
    let keys = (range.first_key(at), range.last_key());
    let mut found = None;
    let see = |position: Position, _: &Value| {
        if version::rank(ids, position.snapshot).is_none() {
            return Scan::Next;
        }
        // One that ends later may begin before this one does.
        let start = position.offset.saturating_sub(u64::from(EXTENT_BLOCKS_MAX));
        found = Some(start.max(at));
        Scan::End
    };
    let (engine, reads) = (transaction.engine, &mut transaction.reads);
    engine.index_scan(Tree::Extents, keys, reads, see).await?;
    let window = found.map(|from| {
        let to = range.to.min(from.saturating_add(WINDOW_BLOCKS));
        BlockRange { from, to, ..*range }
    });
    Ok(window.filter(|window| window.from < window.to))
}

/// Who covers the blocks of a window, of `ids`. What the transaction has changed of these itself is not seen.
async fn cover(
    transaction: &mut Transaction<'_>,
    window: &BlockRange,
    ids: &[u32],
) -> Result<Cover> {
    let ids = if planted::is(Bug::FarVersionUnseen) { &ids[..ids.len().min(3)] } else { ids };
    let mut cover = Cover::new(window.from, window.to);
    let mut result = Ok(());
    // Blocks that end here are all known.
    let mut done_at = None;
    let see = |position: Position, value: &Value| {
        if done_at == Some(position.offset) {
            return past(position, ids.len());
        }
        let Some(rank) = version::rank(ids, position.snapshot) else { return Scan::Next };
        match piece_of(position, value, window) {
            Ok(Some(piece)) => cover.add(rank, piece, position.offset),
            Ok(None) => return Scan::Next,
            Err(error) => {
                result = Err(error);
                return Scan::End;
            }
        }
        if position.offset >= window.to && cover.blocks.iter().all(|block| block.0 == 0) {
            return Scan::End;
        }
        if !cover.hides(rank, position.offset) {
            return Scan::Next;
        }
        done_at = Some(position.offset);
        past(position, ids.len())
    };
    let keys = (window.first_key(window.from), window.last_key());
    let (engine, reads) = (transaction.engine, &mut transaction.reads);
    engine.index_scan(Tree::Extents, keys, reads, see).await?;
    result.map(|()| cover)
}

/// To what ends later: past the other versions at the place, which are few or many.
fn past(position: Position, versions: usize) -> Scan {
    match versions {
        0..=SKIPPED_VERSIONS_MAX => Scan::Next,
        _ => Scan::From(Position { snapshot: u32::MAX, ..position }.successor()),
    }
}

/// What an extent that ends past the window's first block has of it, if anything.
fn piece_of(position: Position, value: &Value, window: &BlockRange) -> Result<Option<Piece>> {
    let extent = ExtentView::parse(value)?;
    let end = position.offset;
    let start = end.checked_sub(u64::from(extent.blocks())).ok_or_else(|| {
        let name = format!("extent of inode {} ending at {end}", position.inode);
        StoreError::corrupt(name, "starts before block 0")
    })?;
    // Of all that are looked at most.
    if start >= window.to {
        return Ok(None);
    }
    let shown = start.max(window.from);
    let extent = extent.cut((shown - start) as u32, (end - shown) as u32);
    Ok(Some(Piece { start: shown, extent }))
}
