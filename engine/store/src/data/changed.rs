//! Which blocks of an inode two versions do not share: the base of incremental backup and changed-block tracking.
//!
//! What both see of older versions they share. So only areas of versions that one of the two sees and the other does
//! not are looked at: the cost is that of what was written between them, not of what they hold.

use std::collections::BTreeSet;

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::DataPath;
use super::map::{BlockRange, Place, Span, lookup, next_extent};
use crate::api::ChangedRange;
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::ExtentView;
use crate::key::{Position, Tree};
use crate::transaction::Transaction;

const CHUNK_BLOCKS: u64 = (1 << CHUNK_SIZE_LOG2) / BLOCK_SIZE;
/// Chunks whose areas are gathered at a time.
const GATHERED_CHUNKS: u64 = 4096;

/// What is compared.
#[derive(Clone, Copy)]
pub(crate) struct Compared {
    pub(crate) inode: InodeNumber,
    /// `None`: a version that holds nothing.
    pub(crate) base: Option<SnapshotId>,
    pub(crate) version: SnapshotId,
}

/// Changed ranges being put together.
struct Changes {
    ranges: Vec<ChangedRange>,
    limit: usize,
}

impl Changes {
    /// Adds a block; false: no room is left.
    fn add(&mut self, block: u64, has_data: bool) -> bool {
        let offset = block * BLOCK_SIZE;
        if let Some(last) = self.ranges.last_mut()
            && last.offset + last.len == offset
            && last.has_data == has_data
        {
            last.len += BLOCK_SIZE;
            return true;
        }
        if self.ranges.len() >= self.limit {
            return false;
        }
        self.ranges.push(ChangedRange { offset, len: BLOCK_SIZE, has_data });
        true
    }
}

impl DataPath {
    /// The changed ranges in `from .. to` (blocks), `limit` at most, and the block at which to go on.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) async fn changed(
        &self,
        compared: Compared,
        from: u64,
        to: u64,
        limit: usize,
    ) -> Result<(Vec<ChangedRange>, Option<u64>)> {
        let mut changes = Changes { ranges: Vec::new(), limit };
        let ids = self.engine.unshared(compared.base, compared.version);
        let mut chunk = from / CHUNK_BLOCKS;
        let last = to.div_ceil(CHUNK_BLOCKS);
        while chunk < last && !ids.is_empty() {
            let (chunks, next) = gather(&self.engine, &ids, compared.inode, chunk, last).await?;
            for chunk in chunks {
                let start = from.max(chunk * CHUNK_BLOCKS);
                let end = to.min((chunk + 1) * CHUNK_BLOCKS);
                if let Some(block) = self.compare(compared, start, end, &mut changes).await? {
                    return Ok((changes.ranges, Some(block)));
                }
            }
            chunk = next;
        }
        Ok((changes.ranges, None))
    }

    /// Compares the blocks of a chunk; gives the one for which no room was left.
    async fn compare(
        &self,
        compared: Compared,
        from: u64,
        to: u64,
        changes: &mut Changes,
    ) -> Result<Option<u64>> {
        let of = async |version: Option<SnapshotId>| -> Result<Vec<Option<Place>>> {
            let mut blocks = vec![None; (to - from) as usize];
            let Some(snapshot) = version else { return Ok(blocks) };
            let range = BlockRange { inode: compared.inode, snapshot, from, to };
            for span in lookup(&self.engine, &range).await? {
                put(&mut blocks, from, &span);
            }
            Ok(blocks)
        };
        let (base, now) = (of(compared.base).await?, of(Some(compared.version)).await?);
        for ((block, base), now) in (from..).zip(base).zip(now) {
            if base != now && !changes.add(block, now.is_some()) {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }
}

impl DataPath {
    /// Blocks of a version that a younger one, which alone sees it, hides.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) async fn hidden_by(&self, version: SnapshotId, child: SnapshotId) -> Result<u64> {
        let (engine, mut after, mut hidden) = (&self.engine, None, 0_i64);
        while let Some(area) = engine.next_area(child, after).await? {
            after = Some(area);
            let mut at = area.is_data().then_some(Position::MIN);
            while let Some(from) = at {
                let mut transaction = engine.read();
                let found = transaction.next_in_area(Tree::Extents, area, child, from).await?;
                let Some((position, value)) = found else { break };
                at = Some(position.successor());
                let blocks = u64::from(ExtentView::parse(&value)?.blocks());
                let start = position.offset.saturating_sub(blocks);
                let inode = InodeNumber(position.inode);
                let range =
                    BlockRange { inode, snapshot: version, from: start, to: position.offset };
                hidden += own_blocks(&mut transaction, &range).await?;
            }
            engine.runtime().yield_now().await;
        }
        Ok(hidden.max(0).cast_unsigned())
    }
}

/// Blocks of a range that its version has itself, as they count: what would be given back without them.
async fn own_blocks(transaction: &mut Transaction<'_>, range: &BlockRange) -> Result<i64> {
    let (mut from, mut blocks) = (range.first_key(range.from), 0);
    let within = |extent: ExtentView<'_>, start: u64, end: u64| {
        let (first, last) = (start.max(range.from) - start, end.min(range.to) - start);
        let left = extent.live_blocks_of(0, first as u32);
        let right = extent.live_blocks_of(last as u32, extent.blocks());
        // What is left of a frame on both sides may count for more than it did as a whole.
        i64::from(extent.live_blocks()) - i64::from(left) - i64::from(right)
    };
    while let Some((position, held)) = next_extent(transaction, range, from, within).await? {
        blocks += held;
        from = position.successor();
    }
    Ok(blocks)
}

fn put(blocks: &mut [Option<Place>], from: u64, span: &Span) {
    for block in span.block..span.end() {
        blocks[(block - from) as usize] = Some(span.at(block));
    }
}

impl Engine {
    /// The versions that one of the two sees and the other does not, the youngest first; with no `base`, all that
    /// `version` sees.
    pub(crate) fn unshared(&self, base: Option<SnapshotId>, version: SnapshotId) -> Vec<u32> {
        let seen = |version: SnapshotId| -> BTreeSet<u32> {
            match self.versions.view(version) {
                Some(view) => view.ids().iter().copied().collect(),
                None => BTreeSet::from([version.0]),
            }
        };
        let base = base.map(seen).unwrap_or_default();
        base.symmetric_difference(&seen(version)).copied().collect()
    }
}

/// Chunks from `from` on in which one of `ids` has something, some of them, and where to go on. What is being merged
/// moves to an older version: who looks at the younger ones first misses nothing.
async fn gather(
    engine: &Engine,
    ids: &[u32],
    inode: InodeNumber,
    from: u64,
    to: u64,
) -> Result<(BTreeSet<u64>, u64)> {
    let mut chunks = BTreeSet::new();
    let mut end = to;
    for (index, id) in ids.iter().enumerate() {
        let mut at = from;
        while let Some(chunk) = engine.next_chunk(SnapshotId(*id), inode, at, end).await? {
            end = end.min(chunk.saturating_add(GATHERED_CHUNKS));
            chunks.insert(chunk);
            at = chunk + 1;
        }
        if index % 64 == 63 {
            engine.runtime().yield_now().await;
        }
    }
    chunks.retain(|chunk| *chunk < end);
    Ok((chunks, end))
}
