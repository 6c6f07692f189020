//! Extents that cannot be: not decoded, outside of their inode, of the members or over one another.
//!
//! Changes keys without counting: what buckets and versions hold is counted anew afterwards.

use super::Repairs;
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::Extent;
use crate::key::{Position, Tree, Value};

impl Engine {
    /// Drops or cuts what is wrong.
    pub(super) async fn mend_extents(&self, repairs: &mut Repairs) -> Result<()> {
        let mut from = Position::MIN;
        let mut last: Option<Position> = None;
        loop {
            let found = self.read().next(Tree::Extents, from, Position::MAX).await?;
            let Some((position, value)) = found else { return Ok(()) };
            let before = last
                .filter(|last| (last.inode, last.snapshot) == (position.inode, position.snapshot))
                .map_or(0, |last| last.offset);
            let fixed = self.fixed(position, &value, before);
            match &fixed {
                Some(kept) if *kept == value => {}
                Some(kept) => {
                    self.set_key(Tree::Extents, position, Some(kept.clone())).await?;
                    repairs.add(format!("extent at {position:?}: cut to what it has alone"));
                }
                None => {
                    self.note_lost_keys(Tree::Extents, position, position);
                    self.set_key(Tree::Extents, position, None).await?;
                    repairs.add(format!("extent at {position:?}: dropped, it names no data"));
                }
            }
            if fixed.is_some() {
                last = Some(position);
            }
            if position == Position::MAX {
                return Ok(());
            }
            from = position.successor();
        }
    }

    /// What an extent must be, when the one before it ends at block `before`; `None`: nothing.
    fn fixed(&self, position: Position, value: &Value, before: u64) -> Option<Value> {
        let extent = Extent::decode(value).ok()?;
        for pointer in &extent.pointers {
            self.space.check_pointer(pointer.member, pointer.block, extent.disk_blocks()).ok()?;
            let id = self.space.bucket_of(pointer.member, pointer.block);
            let tables = self.space.tables.borrow();
            // Of a generation before: the bucket holds something else now.
            if tables.buckets.get(&id).is_some_and(|it| it.generation > pointer.generation) {
                return None;
            }
        }
        let start = position.offset.saturating_sub(u64::from(extent.blocks)).max(before);
        let blocks = u32::try_from(position.offset.checked_sub(start)?).ok()?;
        match blocks {
            0 => None,
            blocks if blocks == extent.blocks => Some(value.clone()),
            blocks => Some(extent.cut(extent.blocks - blocks, blocks).encode()),
        }
    }
}
