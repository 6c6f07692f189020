//! Admission: who may write how much. What is granted here is there when it is allocated.
//!
//! What the status of a shard says is free can be written: it is what admission would grant in the
//! smallest pieces, each with its share for the index. So a client is refused here, before anything is
//! written, or not at all. Deletion, truncation and discard are never refused: the keys they may add go
//! into free buckets that data must leave alone.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;

use super::table::{Space, Tables};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::key::Tree;

/// Index blocks that an operation is charged beyond its data: its share of keys.
const INDEX_SHARE: u64 = 16;
/// Blocks that must be left for an operation that only adds keys.
const KEYS_ONLY_BLOCKS: u64 = 4;

/// Nodes that the next rewrite may need beyond those there are: a leaf is split, and its parent.
const NODES_AHEAD: u64 = 4;

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
        let tables = self.tables.borrow();
        self.capacity_of(&tables, tables.owned)
    }

    /// As [`Space::capacity_blocks`], with `owned` buckets.
    pub(super) fn capacity_of(&self, tables: &Tables, owned: u64) -> u64 {
        let keep = Self::kept_of(owned) as u64;
        // Copygc frees a bucket by filling another: it needs dead blocks to exist. Two buckets' worth
        // are enough to always find one more (one may lie idle in the bucket that is being filled with
        // what is moved); what is above makes it cheap.
        let slack = 2 + owned / 32;
        // Every tree will have a node of its own sooner or later.
        let slots = u64::from(self.slots());
        let index = tables.index_buckets.max((Tree::ALL.len() as u64).div_ceil(slots));
        let usable = owned.saturating_sub(index + keep + slack);
        usable * u64::from(self.filled_blocks())
    }

    /// Data blocks that can be granted now. `unwritten_bytes`: what keys in memory will need in nodes
    /// beyond what is written; twice, since a split leaves nodes half full. Free slots hold a part of it.
    pub(crate) fn available_blocks(&self, unwritten_bytes: u64) -> u64 {
        let capacity = self.capacity_blocks();
        let tables = self.tables.borrow();
        capacity.saturating_sub(self.used_blocks(&tables, unwritten_bytes))
    }

    /// Blocks that are taken off the capacity, or will be.
    pub(super) fn used_blocks(&self, tables: &Tables, unwritten_bytes: u64) -> u64 {
        self.used_blocks_as(tables, unwritten_bytes, tables.shrinks_to.is_some())
    }

    /// [`Space::used_blocks`], while a member shrinks or not.
    pub(super) fn used_blocks_as(
        &self,
        tables: &Tables,
        unwritten_bytes: u64,
        shrinks: bool,
    ) -> u64 {
        let slots = u64::from(self.slots());
        let node_bytes = u64::from(self.node_bytes());
        let mut spare = (tables.index_buckets * slots).saturating_sub(tables.used_slots);
        if shrinks {
            // Free slots past the end are of no use.
            spare = 0;
        }
        let growth = (2 * unwritten_bytes + NODES_AHEAD * node_bytes)
            .saturating_sub(spare * node_bytes)
            .div_ceil(BLOCK_SIZE);
        // Dead blocks that cannot be had back are as good as alive.
        let used =
            tables.live_blocks + tables.stuck_dead + tables.pending_blocks + tables.reserved_blocks;
        used + growth
    }

    /// Blocks that clients can write in any pieces until they are refused: what can be granted, without
    /// what each grant takes for the index. `unassigned`: buckets in regions that may yet be had.
    pub(crate) fn writable_blocks(&self, unwritten_bytes: u64, unassigned: u64) -> u64 {
        // Of a region that is yet to come the reserves go off: see `capacity_blocks`.
        let more = unassigned.saturating_sub((unassigned * 3).div_ceil(32));
        let data_blocks = u64::from(self.filled_blocks());
        let granted = self.available_blocks(unwritten_bytes) + more * data_blocks;
        // One bucket is kept back, for the index: it grows by whole buckets.
        granted.saturating_sub(data_blocks) * INDEX_SHARE / (INDEX_SHARE + 1)
    }
}

impl Engine {
    /// Space for copygc to move `blocks`: it frees as many, so it is never refused.
    pub(crate) fn reserve_for_move(&self, blocks: u32) -> Reservation {
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
            // What others have to spare is as good as what nobody has, only dearer.
            if !self.acquire_region(None).await? && !self.acquire_region(Some(available)).await? {
                return Err(StoreError::NoSpace {
                    needed_bytes: needed * BLOCK_SIZE,
                    available_bytes: available * BLOCK_SIZE,
                });
            }
        }
    }
}
