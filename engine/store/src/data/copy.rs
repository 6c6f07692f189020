//! Copies of blocks by reference: what the source has is shared with the target ([`super::shared`]), extent by extent,
//! some in a transaction. Nothing is read or written, but where a place cannot be shared.
//!
//! Each block of the target is at any time what it was or what the source had at some moment of the copy.

use engine_base::SnapshotId;

use super::DataPath;
use super::batch::Until;
use super::layers;
use super::map::{BlockRange, clear_range, next_extent};
use super::shared::{acquire, holder, range_at, shared_part};
use super::write::punch_in;
use crate::error::Result;
use crate::extent::{EXTENT_BLOCKS_MAX, Extent, ExtentView};
use crate::key::Tree;
use crate::reached::{Branch, mark};
use crate::transaction::Transaction;

/// Changes after which a step commits: one extent more changes less than a hundred keys.
const STEP_UPDATES_MAX: usize = 200;
/// Extents that a step looks at.
const STEP_EXTENTS_MAX: usize = 64;
/// Extents of a step where some are frames: cutting one may make more blocks live, so room is set aside.
const STEP_FRAMES_MAX: usize = 8;

/// What a copy did, in blocks; holes count as shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) shared: u64,
    pub(crate) copied: u64,
}

/// How far a step came.
struct Step {
    /// First block of the source that is still to be copied.
    at: u64,
    /// It cannot be shared.
    stuck: bool,
}

impl DataPath {
    /// Lets the blocks of `target`, as many as those of `source`, be those of `source`. The two do not overlap.
    ///
    /// # Errors
    /// Those of the index and of devices; `NoSpace`.
    pub(crate) async fn copy(&self, source: BlockRange, target: BlockRange) -> Result<Copied> {
        assert!(
            source.to - source.from == target.to - target.from,
            "a copy is as long as its source"
        );
        let mut done = Copied::default();
        let mut at = source.from;
        while at < source.to {
            let shared =
                self.share(BlockRange { from: at, ..source }, &target, source.from).await?;
            done.shared += shared - at;
            at = shared;
            if at == source.to {
                break;
            }
            mark(Branch::CopiedNotShared);
            let to = source.to.min(at + u64::from(EXTENT_BLOCKS_MAX));
            let data = self.read(BlockRange { from: at, to, ..source }).await?;
            let there = part_of(&target, source.from, (at, to));
            self.write(there, data, Until::Committed).await?;
            done.copied += to - at;
            at = to;
        }
        Ok(done)
    }

    /// Shares from the first block of `source` on, which is a part of what begins at `begin` and is to be `target`; up
    /// to which block.
    async fn share(&self, mut source: BlockRange, target: &BlockRange, begin: u64) -> Result<u64> {
        let target = self.written_as(*target).await?;
        while source.from < source.to {
            let extents_max = match self.engine.space.saved_blocks.get() {
                0 => STEP_EXTENTS_MAX,
                _ => STEP_FRAMES_MAX,
            };
            let frames = if extents_max == STEP_FRAMES_MAX { extents_max as u64 + 2 } else { 0 };
            let _room = self.engine.reserve(frames * u64::from(EXTENT_BLOCKS_MAX)).await?;
            let step = self
                .engine
                .transact(async |transaction| {
                    share_step(transaction, &source, (&target, begin), extents_max).await
                })
                .await?;
            source.from = step.at;
            if step.stuck {
                break;
            }
        }
        Ok(source.from)
    }
}

/// The part of the target that blocks of the source go to.
fn part_of(target: &BlockRange, begin: u64, (from, to): (u64, u64)) -> BlockRange {
    BlockRange { from: target.from + (from - begin), to: target.from + (to - begin), ..*target }
}

async fn share_step(
    transaction: &mut Transaction<'_>,
    source: &BlockRange,
    (target, begin): (&BlockRange, u64),
    extents_max: usize,
) -> Result<Step> {
    let (owners, window_end) = match transaction.engine().versions.view(source.snapshot) {
        Some(view) => layers::owners(transaction, source, &view).await?,
        None => own_parts(transaction, source).await?,
    };
    let mut at = source.from;
    let mut extents = 0;
    for (from, to, version) in owners {
        if let Some(rest) = make_hole(transaction, (at, from), (target, begin)).await? {
            return Ok(Step { at: rest, stuck: false });
        }
        at = from;
        while at < to {
            if extents == extents_max || transaction.update_count() >= STEP_UPDATES_MAX {
                return Ok(Step { at, stuck: false });
            }
            extents += 1;
            let part = BlockRange { snapshot: version, from: at, to, ..*source };
            let Some((address, blocks)) = shared_part(transaction, &part).await? else {
                return Ok(Step { at, stuck: true });
            };
            let there = part_of(target, begin, (at, at + blocks));
            let new = holder(there.inode, there.snapshot, there.from, address);
            acquire(transaction, &range_at(address, blocks), new).await?;
            let rest = clear_range(transaction, &there).await?;
            assert!(rest.is_none(), "an extent covers more than one transaction can clear");
            let reference = Extent::reference(address, blocks as u32);
            transaction.put(Tree::Extents, there.key(there.to), reference.encode());
            at += blocks;
        }
    }
    let rest = make_hole(transaction, (at, window_end), (target, begin)).await?;
    Ok(Step { at: rest.unwrap_or(window_end), stuck: false })
}

/// Makes a hole where the source has one; tells where in the source to go on, if that is too much for the transaction.
async fn make_hole(
    transaction: &mut Transaction<'_>,
    hole: (u64, u64),
    (target, begin): (&BlockRange, u64),
) -> Result<Option<u64>> {
    if hole.0 >= hole.1 {
        return Ok(None);
    }
    if transaction.update_count() >= STEP_UPDATES_MAX {
        return Ok(Some(hole.0));
    }
    let rest = punch_in(transaction, &part_of(target, begin, hole)).await?;
    Ok(rest.map(|block| begin + (block - target.from)))
}

/// As [`layers::owners`], of a version that sees no other.
async fn own_parts(
    transaction: &mut Transaction<'_>,
    range: &BlockRange,
) -> Result<(Vec<(u64, u64, SnapshotId)>, u64)> {
    let (mut parts, mut at) = (Vec::new(), range.from);
    while parts.len() < STEP_EXTENTS_MAX && at < range.to {
        let part = |extent: ExtentView<'_>, start: u64, end: u64| {
            (!extent.is_hole()).then(|| (start.max(at), end.min(range.to), range.snapshot))
        };
        let found = next_extent(transaction, range, range.first_key(at), part).await?;
        let Some((position, part)) = found else { return Ok((parts, range.to)) };
        parts.extend(part);
        at = position.offset;
    }
    Ok((parts, at.min(range.to)))
}
