//! What is shared: set to what the references say.

use super::Repairs;
use crate::check_index::SharingSeen;
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::{Address, Extent, Sharing};
use crate::key::{Position, Tree};

impl Engine {
    /// Counts references anew, drops what nobody refers to, and cuts what leads to nothing.
    pub(super) async fn mend_sharing(&self, repairs: &mut Repairs) -> Result<()> {
        let mut seen = SharingSeen::default();
        self.each_extent(async |position, extent| {
            seen.note(position, &extent);
            Ok(())
        })
        .await?;
        self.each_extent(async |position, extent| {
            if extent.address().is_some() {
                self.mend_reference(position, &extent, &seen, repairs).await
            } else if Address::is_space(position.inode) != extent.holders().is_some() {
                self.note_lost_keys(Tree::Extents, position, position);
                self.set_key(Tree::Extents, position, None).await?;
                repairs.add(format!("extent at {position:?}: dropped, not shared as its key says"));
                Ok(())
            } else {
                Ok(())
            }
        })
        .await?;
        let truth = seen.truth();
        for (address, blocks, holders) in seen.extents() {
            let held = truth.held(address, blocks);
            if held.len() == 1 && held[0].holders == holders {
                continue;
            }
            let at = |block| Position::new(address.space, block, 0);
            let position = at(address.block + blocks);
            let Some(value) = self.read().get(Tree::Extents, position).await? else { continue };
            let extent = Extent::decode(&value)?;
            self.set_key(Tree::Extents, position, None).await?;
            for run in held.iter().filter(|run| run.holders.count > 0) {
                let start = (run.from - address.block) as u32;
                let part = extent.cut(start, (run.to - run.from) as u32);
                let part = Extent { sharing: Sharing::Shared(run.holders), ..part };
                self.set_key(Tree::Extents, at(run.to), Some(part.encode())).await?;
            }
            repairs.add(format!("shared extent at {address:?}: references counted anew"));
        }
        Ok(())
    }

    async fn mend_reference(
        &self,
        position: Position,
        reference: &Extent,
        seen: &SharingSeen,
        repairs: &mut Repairs,
    ) -> Result<()> {
        let Some(address) = reference.address() else { return Ok(()) };
        let missing = seen.missing(address, u64::from(reference.blocks));
        if missing.is_empty() {
            return Ok(());
        }
        self.note_lost_keys(Tree::Extents, position, position);
        self.set_key(Tree::Extents, position, None).await?;
        let end = address.block + u64::from(reference.blocks);
        let gaps = missing.iter().copied().chain([(end, end)]);
        let mut at = address.block;
        for (from, to) in gaps {
            if at < from {
                let part = reference.cut((at - address.block) as u32, (from - at) as u32);
                let place = Position { offset: position.offset - (end - from), ..position };
                self.set_key(Tree::Extents, place, Some(part.encode())).await?;
            }
            at = to;
        }
        repairs.add(format!("extent at {position:?}: cut, shared data is lost"));
        Ok(())
    }

    /// Calls `of` with each extent of the shard; what does not decode is dropped before.
    async fn each_extent(
        &self,
        mut of: impl AsyncFnMut(Position, Extent) -> Result<()>,
    ) -> Result<()> {
        let mut from = Position::MIN;
        loop {
            let found = self.read().next(Tree::Extents, from, Position::MAX).await?;
            let Some((position, value)) = found else { return Ok(()) };
            of(position, Extent::decode(&value)?).await?;
            if position == Position::MAX {
                return Ok(());
            }
            from = position.successor();
        }
    }
}
