//! Owners of the shard's extents, and the blocks themselves.

use std::collections::{BTreeMap, BTreeSet};

use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::progress::Progress;
use super::{Problems, ask_owners, ask_versions};
use crate::api::{Owner, SIZE_BYTES_MAX, Verify, VersionState};
use crate::context::Context;
use crate::data::{BlockRange, lookup};
use crate::error::{Result, StoreError};
use crate::extent::{Address, Extent, ExtentView};
use crate::key::{Position, Tree};
use crate::limits::FSCK_BATCH;

/// An inode with extents here, and the end in bytes of the last.
type Held = (InodeNumber, SnapshotId, u64);

pub(super) async fn check(
    context: &Context,
    problems: &mut Problems,
    verify: Verify,
) -> Result<()> {
    let mut progress = Progress::begin(context, verify, problems).await?;
    // What extents of one inode and version end at, at most.
    let mut held: BTreeMap<(InodeNumber, SnapshotId), u64> = BTreeMap::new();
    let mut from = Position::MIN;
    loop {
        let found = context.engine.read().next(Tree::Extents, from, Position::MAX).await?;
        let Some((position, value)) = found else { break };
        from = position.successor();
        let (inode, snapshot) = (InodeNumber(position.inode), SnapshotId(position.snapshot));
        let end = position.offset.saturating_mul(BLOCK_SIZE);
        // What hides something may lie past the end.
        // Shared extents belong to those who refer to them.
        let shared = Address::is_space(position.inode);
        if !shared && !ExtentView::parse(&value).is_ok_and(|extent| extent.is_hole()) {
            if held.len() >= FSCK_BATCH {
                check_owners(context, &std::mem::take(&mut held), problems).await?;
            }
            held.insert((inode, snapshot), end);
        }
        // What is not an extent is told by the engine's own check.
        let Ok(extent) = Extent::decode(&value) else { continue };
        let start = position.offset.saturating_sub(u64::from(extent.blocks));
        for byte in [start.saturating_mul(BLOCK_SIZE), end.saturating_sub(1)] {
            if !shared && !context.is_here(inode, byte) {
                problems.add(format!("extent at {position:?} belongs to another shard"));
                break;
            }
        }
        if let Some(progress) = &mut progress
            && !extent.pointers.is_empty()
            && !progress.is_done(position)
        {
            let range = BlockRange { inode, snapshot, from: start, to: position.offset };
            read_blocks(context, range, problems).await?;
            progress.verified(position, u64::from(extent.blocks), problems).await?;
        }
    }
    check_owners(context, &held, problems).await?;
    match progress {
        Some(progress) => progress.finish(problems).await,
        None => Ok(()),
    }
}

/// Reads blocks of the shard; those that are lost are told, and go on the damage list.
pub(crate) async fn read_blocks(
    context: &Context,
    range: BlockRange,
    problems: &mut Problems,
) -> Result<()> {
    match context.data.read_medium(range).await {
        Ok(_) => (range.from..range.to).for_each(|_| problems.count("blocks verified")),
        // Which of them.
        Err(StoreError::DataLoss { .. } | StoreError::Device(_)) if range.from + 1 < range.to => {
            for from in range.from..range.to {
                let block = BlockRange { from, to: from + 1, ..range };
                Box::pin(read_blocks(context, block, problems)).await?;
            }
        }
        Err(StoreError::DataLoss { what }) => problems.add(format!("data lost: {what}")),
        Err(StoreError::Device(error)) => {
            if let Some(span) = lookup(&context.engine, &range).await?.first() {
                let place = span.at(span.block).pointer;
                context.engine.note_lost_block(&range, range.from, place);
            }
            problems.add(format!("inode {} block {}: {error}", range.inode, range.from));
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Every inode with extents exists, and they end before its limit. What looks wrong is looked at a
/// second time: it may have changed between the two questions.
async fn check_owners(
    context: &Context,
    held: &BTreeMap<(InodeNumber, SnapshotId), u64>,
    problems: &mut Problems,
) -> Result<()> {
    let held: Vec<Held> = held.iter().map(|((inode, of), end)| (*inode, *of, *end)).collect();
    let mut again = Vec::new();
    for (inode, snapshot, end) in suspects(context, &held).await? {
        if let Some(last) = last_block(context, inode, snapshot).await? {
            again.push((inode, snapshot, end.min(last.saturating_mul(BLOCK_SIZE))));
        }
    }
    for (inode, snapshot, end) in self::suspects(context, &again).await? {
        problems.add(format!(
            "inode {inode} version {snapshot}: extents up to byte {end} past its limit, or it is gone"
        ));
    }
    Ok(())
}

/// Where the last extent of a version of an inode ends, holes left out.
async fn last_block(
    context: &Context,
    inode: InodeNumber,
    snapshot: SnapshotId,
) -> Result<Option<u64>> {
    let first = Position::new(inode.0, 0, 0);
    let mut last = Position::new(inode.0, SIZE_BYTES_MAX, snapshot.0);
    let mut transaction = context.engine.read();
    while let Some((at, value)) = transaction.previous(Tree::Extents, first, last).await? {
        let hole = ExtentView::parse(&value).is_ok_and(|extent| extent.is_hole());
        if at.snapshot == snapshot.0 && !hole {
            return Ok(Some(at.offset));
        }
        last = at.predecessor();
    }
    Ok(None)
}

pub(crate) async fn suspects(context: &Context, held: &[Held]) -> Result<Vec<Held>> {
    let inodes: Vec<_> = held.iter().map(|held| (held.0, held.1)).collect();
    let owners = ask_owners(context, &inodes).await?;
    let bad: Vec<Held> = held
        .iter()
        .filter(|(inode, snapshot, end)| match owners.get(&(*inode, *snapshot)) {
            Some(Owner::Alive { data_limit }) => end > data_limit,
            Some(Owner::Changing) => false,
            Some(Owner::Gone) | None => true,
        })
        .copied()
        .collect();
    // A version may be on its way out, or a volume being resized.
    let versions: BTreeSet<SnapshotId> = bad.iter().map(|held| held.1).collect();
    let states = ask_versions(context, &versions.into_iter().collect::<Vec<_>>()).await?;
    Ok(bad
        .into_iter()
        .filter(|held| states.get(&held.1) != Some(&VersionState::Changing))
        .collect())
}
