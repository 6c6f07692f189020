//! Admission: who may write how much. What is granted here is there when it is allocated.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;

use super::table::Space;
use crate::engine::Engine;
use crate::error::{Result, StoreError};

/// Index blocks that an operation is charged beyond its data: its share of keys.
const INDEX_SHARE: u64 = 16;
/// Blocks that must be left for an operation that only adds keys.
const KEYS_ONLY_BLOCKS: u64 = 4;

/// Space set aside for an operation before it starts. Dropping it gives back what is left.
pub struct Reservation {
    space: Rc<Space>,
    /// Data blocks left, and index blocks charged with them.
    blocks: u64,
    index_blocks: u64,
}

impl Reservation {
    /// Data blocks left.
    pub(super) fn left(&self) -> u64 {
        self.blocks
    }

    /// Takes over what another one has left.
    pub(crate) fn absorb(&mut self, mut other: Self) {
        assert!(Rc::ptr_eq(&self.space, &other.space), "reservations of two shards");
        self.blocks += std::mem::take(&mut other.blocks);
        self.index_blocks += std::mem::take(&mut other.index_blocks);
    }

    /// The blocks count as pending from here on (see Allocation), then as live.
    pub(super) fn take(&mut self, blocks: u32) {
        let blocks = u64::from(blocks);
        self.blocks -= blocks;
        self.space.tables.borrow_mut().reserved_blocks -= blocks;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut tables = self.space.tables.borrow_mut();
        tables.reserved_blocks -= self.blocks + self.index_blocks;
    }
}

impl Space {
    /// Data blocks that this shard's buckets can hold for clients.
    pub(crate) fn capacity_blocks(&self) -> u64 {
        let keep = self.keep_for_others() as u64;
        let tables = self.tables.borrow();
        // Copygc frees a bucket by filling another: it needs dead blocks to exist. An eighth of a
        // bucket in each of eight is what one more bucket gives, so a thirty-second is kept.
        let slack = 2 + tables.owned / 32;
        let usable = tables.owned.saturating_sub(tables.index_buckets + keep + slack);
        usable * u64::from(self.data_blocks())
    }

    /// Data blocks that can be granted now. `unwritten_bytes`: what keys in memory will need in nodes
    /// beyond what is written; twice, since a split leaves nodes half full.
    pub(crate) fn available_blocks(&self, unwritten_bytes: u64) -> u64 {
        let kept = self.keep_for_index() as u64 * u64::from(self.bucket_blocks());
        let growth = (2 * unwritten_bytes).div_ceil(BLOCK_SIZE).saturating_sub(kept);
        let capacity = self.capacity_blocks();
        let tables = self.tables.borrow();
        let used = tables.live_blocks + tables.pending_blocks + tables.reserved_blocks;
        capacity.saturating_sub(used + growth)
    }
}

impl Engine {
    /// Space for copygc to move `blocks`: it frees as many, so it is never refused.
    pub(super) fn reserve_for_move(&self, blocks: u32) -> Reservation {
        let blocks = u64::from(blocks);
        self.space.tables.borrow_mut().reserved_blocks += blocks;
        Reservation { space: Rc::clone(&self.space), blocks, index_blocks: 0 }
    }

    /// Sets space aside for an operation that writes `blocks` data blocks, with what its index updates
    /// need. An operation that writes no data but may add keys reserves 0 blocks: it still waits for
    /// or is refused index space. Deletion needs no reservation.
    ///
    /// # Errors
    /// `NoSpace`, at once: nothing has been written.
    pub async fn reserve(&self, blocks: u64) -> Result<Reservation> {
        self.ensure_regions().await?;
        let index_blocks = blocks.div_ceil(INDEX_SHARE);
        let needed = (blocks + index_blocks).max(KEYS_ONLY_BLOCKS);
        loop {
            if let Some(error) = self.stopped() {
                return Err(error);
            }
            let available = self.space.available_blocks(self.cache.unwritten_bytes.get());
            if available >= needed {
                self.space.tables.borrow_mut().reserved_blocks += blocks + index_blocks;
                return Ok(Reservation { space: Rc::clone(&self.space), blocks, index_blocks });
            }
            if !self.acquire_region().await? {
                return Err(StoreError::NoSpace {
                    needed_bytes: needed * BLOCK_SIZE,
                    available_bytes: available * BLOCK_SIZE,
                });
            }
        }
    }
}
