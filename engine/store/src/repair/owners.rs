//! Extents of inodes that are gone, or past the limit of their inode.

use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use super::Repairs;
use crate::api::Owner;
use crate::check::{ask_owners, suspects};
use crate::context::Context;
use crate::data::BlockRange;
use crate::error::Result;
use crate::extent::{Address, ExtentView};
use crate::key::{Position, Tree};
use crate::limits::FSCK_BATCH;

/// Drops them. The home shards must have repaired their inodes.
pub(super) async fn repair(context: &Context, repairs: &mut Repairs) -> Result<()> {
    let mut from = Position::MIN;
    let mut held: Vec<(InodeNumber, SnapshotId, u64)> = Vec::new();
    loop {
        let found = context.engine.read().next(Tree::Extents, from, Position::MAX).await?;
        let Some((position, value)) = found else { break };
        from = position.successor();
        if Address::is_space(position.inode) {
            break;
        }
        if ExtentView::parse(&value).is_ok_and(|extent| extent.is_hole()) {
            continue;
        }
        let (inode, snapshot) = (InodeNumber(position.inode), SnapshotId(position.snapshot));
        let end = position.offset.saturating_mul(BLOCK_SIZE);
        match held.last_mut() {
            Some(last) if (last.0, last.1) == (inode, snapshot) => last.2 = end,
            _ => held.push((inode, snapshot, end)),
        }
        if held.len() > FSCK_BATCH {
            // The last one may go on.
            let rest = held.split_off(held.len() - 1);
            drop_suspects(context, &held, repairs).await?;
            held = rest;
        }
    }
    drop_suspects(context, &held, repairs).await
}

async fn drop_suspects(
    context: &Context,
    held: &[(InodeNumber, SnapshotId, u64)],
    repairs: &mut Repairs,
) -> Result<()> {
    let bad = suspects(context, held).await?;
    let inodes: Vec<_> = bad.iter().map(|held| (held.0, held.1)).collect();
    let owners = ask_owners(context, &inodes).await?;
    for (inode, snapshot) in inodes {
        let limit = match owners.get(&(inode, snapshot)) {
            Some(Owner::Alive { data_limit }) => *data_limit,
            Some(Owner::Gone) => 0,
            Some(Owner::Changing) | None => continue,
        };
        let range = BlockRange { inode, snapshot, from: limit.div_ceil(BLOCK_SIZE), to: u64::MAX };
        context.data.drop_own(range).await?;
        repairs.add(format!(
            "inode {inode} version {snapshot}: extents past byte {limit} dropped: no inode has them"
        ));
    }
    Ok(())
}
