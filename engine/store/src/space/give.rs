//! Giving a region to a shard that needs it more.
//!
//! A shard that is out of space asks shard 0, and when no region is left that nobody has, shard 0 asks the
//! others one after the other. One that has more to spare than the one who asks empties a region: moves what lives
//! there, data and nodes, forgets the region, and says which it was. Then shard 0 writes down the new owner.
//!
//! A region never has two owners, whatever ends when:
//! 1. From the choice on nothing is placed in the region: its free buckets are in no list, and its blocks are
//!    off the capacity, so that what is admitted meanwhile still fits.
//! 2. It is forgotten when all its buckets are free, that is when the entries that emptied them are durable,
//!    none is being discarded, and their checkpoints, which say so, are durable. So a recovery of the giver, from
//!    whatever entry, finds no extent and no node there: deltas older than a checkpoint are not replayed.
//! 3. Only then shard 0 changes the owner, in one transaction and only from this giver, flushes it, and only
//!    then tells the one who asked.
//!
//! A crash between 2 and 3 leaves the region to the giver, empty. One after the transaction of 3 leaves it to the
//! one who asked, who finds it in the list when it opens. A giver whose answer is lost does without the region
//! until it is opened again. When emptying fails, the region goes on as before.
//!
//! What a former owner left in a bucket is never taken for the new owner's: nodes carry the shard in their
//! identity, extents their checksums, and a summary is a hint.
//!
//! Nobody gives what he would soon ask for: after the gift the giver still has at least as much left to
//! write as the one who asked, without the region.

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_device::QueueExt;
use engine_memory::Buffer;

use super::table::{BucketId, BucketKind, RegionId, Tables};
use crate::api::Region;
use crate::btree::Node;
use crate::btree::format::read_bset;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::superblock::Superblock;

/// Times that the buckets of a region are looked at until all are free.
const ROUNDS_MAX: u32 = 200;
/// Pause between them: for writes of summaries and discards that are on their way.
const PAUSE_NS: u64 = 1_000_000;

/// A region on its way out. Dropped before it was forgotten, it stays.
struct Leaving<'e> {
    engine: &'e Engine,
    region: RegionId,
    gone: bool,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut tables = self.engine.space.tables.borrow_mut();
        tables.leaving = None;
        if !self.gone {
            let superblock = self.engine.superblock();
            tables.owned += u64::from(tables.usable_buckets(&superblock, self.region));
            let all = self.engine.space.all_slots();
            for id in tables.buckets_of(self.region) {
                let free = tables.buckets.get(&id).is_none_or(|it| it.kind == BucketKind::Free);
                let reserved = superblock.is_reserved(id.0, id.1);
                if free && !reserved && !tables.discarding.contains(&id) {
                    tables.note_free(id);
                }
                tables.note_slots_if_index(id, all);
            }
        }
        drop(tables);
        self.engine.space.changed.notify_all();
    }
}

impl Engine {
    /// Gives up a region, emptied, if this shard has more to spare than one that can still write
    /// `blocks`. The region is durably forgotten when it is told.
    ///
    /// # Errors
    /// When a device fails, or what lives in the region cannot be moved; the region stays then.
    pub async fn give_region(&self, blocks: u64) -> Result<Option<Region>> {
        self.ensure_regions().await?;
        let Some(region) = self.choose_region(blocks) else { return Ok(None) };
        let _pin = self.pin_region(region).await?;
        // Something may have happened meanwhile.
        if !self.can_be_spared(region, blocks) {
            return Ok(None);
        }
        let mut leaving = self.start_leaving(region);
        self.empty_region(region).await?;
        self.forget_region(region).await?;
        leaving.gone = true;
        drop(leaving);
        let gone = self.space.regions_given.get() + 1;
        self.space.regions_given.set(gone);
        Ok(Some(Region { member: region.0, index: region.1 }))
    }

    /// Whether this shard has a region to spare, and none is leaving already.
    fn has_to_spare(&self, blocks: u64) -> bool {
        let most =
            u64::from(self.superblock().region_buckets) * u64::from(self.space.data_blocks());
        let left = self.space.available_blocks(self.cache.unwritten_bytes.get());
        let tables = self.space.tables.borrow();
        tables.leaving.is_none() && !self.space.closing.get() && left >= most + blocks.max(1)
    }

    fn can_be_spared(&self, region: RegionId, blocks: u64) -> bool {
        let tables = self.space.tables.borrow();
        let owned = tables.regions.contains(&region);
        owned
            && tables.cost_to_empty(&self.superblock(), region).is_some()
            && self.has_to_spare(blocks)
    }

    /// The region with the least to move, if one can be spared and none is leaving already.
    fn choose_region(&self, blocks: u64) -> Option<RegionId> {
        if !self.has_to_spare(blocks) {
            return None;
        }
        let tables = self.space.tables.borrow();
        let superblock = self.superblock();
        let costs = tables
            .regions
            .iter()
            .filter_map(|region| Some((tables.cost_to_empty(&superblock, *region)?, *region)));
        costs
            .min_by_key(|(cost, (member, index))| (*cost, std::cmp::Reverse((*member, *index))))
            .map(|(_, region)| region)
    }

    fn start_leaving(&self, region: RegionId) -> Leaving<'_> {
        let superblock = self.superblock();
        let mut tables = self.space.tables.borrow_mut();
        tables.leaving = Some(region);
        tables.owned -= u64::from(tables.usable_buckets(&superblock, region));
        for id in tables.buckets_of(region) {
            tables.free.remove(&id);
            tables.to_discard.remove(&id);
            tables.partial.remove(&id);
        }
        Leaving { engine: self, region, gone: false }
    }

    /// Moves what lives in a region until all its buckets are free.
    async fn empty_region(&self, region: RegionId) -> Result<()> {
        for _ in 0..ROUNDS_MAX {
            let busy = self.busy_buckets(region);
            if busy.is_empty() {
                return Ok(());
            }
            for (id, kind) in &busy {
                let lives = self.space.tables.borrow_mut().bucket(*id).live_blocks > 0;
                match kind {
                    BucketKind::Data if lives => self.empty_bucket(*id).await?,
                    BucketKind::Index => self.empty_index_bucket(*id).await?,
                    BucketKind::Data | BucketKind::Free => {}
                }
            }
            self.journal.flush().await?;
            self.release_flushed();
            if !self.busy_buckets(region).is_empty() {
                self.config.runtime.sleep(PAUSE_NS).await;
            }
        }
        Err(StoreError::Busy {
            what: format!("region {} of member {}", region.1, region.0),
            why: "does not become empty".to_owned(),
        })
    }

    /// Buckets of a region that are not free, or are being discarded (as free ones).
    fn busy_buckets(&self, region: RegionId) -> Vec<(BucketId, BucketKind)> {
        let tables = self.space.tables.borrow();
        let mut busy = Vec::new();
        for id in tables.buckets_of(region) {
            let kind = tables.buckets.get(&id).map_or(BucketKind::Free, |bucket| bucket.kind);
            if kind != BucketKind::Free || tables.discarding.contains(&id) {
                busy.push((id, kind));
            }
        }
        busy
    }

    /// Rewrites the nodes of an index bucket, to other places.
    pub(super) async fn empty_index_bucket(&self, id: BucketId) -> Result<()> {
        let slots = self.space.tables.borrow_mut().bucket(id).slots;
        let node_blocks = u64::from(self.space.node_blocks());
        for slot in (0..64).filter(|slot| slots & (1 << slot) != 0) {
            let block = self.space.first_block(id) + slot * node_blocks;
            let Some(node) = self.node_at(id.0, block).await? else { continue };
            let intent = node.lock.intent().await;
            let here = node.body.borrow().location;
            let here = here.is_some_and(|place| (place.member, place.block) == (id.0, block));
            if node.dead.get() || !here {
                continue;
            }
            match self.rewrite(&node, intent).await {
                // Something is in the way; the next round finds it again.
                Ok(()) | Err(StoreError::Restart) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The node of the index that lies at a block, as far as its first bset tells.
    async fn node_at(&self, member: u8, block: u64) -> Result<Option<Rc<Node>>> {
        let len = u64::from(self.space.node_blocks()) * BLOCK_SIZE;
        let buffer = Buffer::try_new(len as usize)?;
        let bytes = self.member(member)?.read(block * BLOCK_SIZE, buffer).await?;
        let info = match read_bset(&bytes, block * BLOCK_SIZE, |_, _| {}) {
            Ok(bset) => bset.info,
            Err(error) => {
                // Freed and given again while it was read; if not, the next round meets it again.
                let used = self.space.bucket_of(member, block);
                let within =
                    (block - self.space.first_block(used)) / u64::from(self.space.node_blocks());
                let slots = self.space.tables.borrow_mut().bucket(used).slots;
                return if slots & (1 << within) == 0 { Ok(None) } else { Err(error) };
            }
        };
        if info.level > self.cache.root(info.tree).level {
            return Ok(None);
        }
        self.node_for(info.tree, info.level, info.min).await.map(Some)
    }

    /// Makes durable that all buckets of a region are free, and gives it up.
    async fn forget_region(&self, region: RegionId) -> Result<()> {
        let ids = self.space.tables.borrow().buckets_of(region);
        for id in ids.clone() {
            self.checkpoint_bucket(id).await?;
        }
        self.checkpoint_region(region).await?;
        self.journal.flush().await?;
        let mut tables = self.space.tables.borrow_mut();
        for id in ids {
            let gone = tables.buckets.get(&id).is_none_or(|bucket| {
                bucket.kind == BucketKind::Free && bucket.is_empty() && bucket.dirty_seq.is_none()
            });
            assert!(gone, "bucket {id:?} of a region that is given away is in use");
        }
        tables.disown_region(region);
        Ok(())
    }
}

impl Tables {
    /// Blocks that must be moved to empty a region; `None`: something is just put there, or its table
    /// cannot be read.
    fn cost_to_empty(&self, superblock: &Superblock, region: RegionId) -> Option<u64> {
        // What is past an end is of no use to anybody.
        if self.is_cut(superblock, region) {
            return None;
        }
        let known = self.known.get(region)?;
        let mut cost = 0;
        if !known.loaded {
            let tally = known.tally;
            let slots = u64::from(tally.used_slots);
            return known.is_readable().then_some(tally.live_blocks + slots * self.node_blocks);
        }
        for id in self.buckets_of(region) {
            let Some(bucket) = self.buckets.get(&id) else { continue };
            if bucket.open || bucket.pins > 0 || bucket.slots_pending != 0 {
                return None;
            }
            let nodes = u64::from(bucket.slots.count_ones()) * self.node_blocks;
            cost += u64::from(bucket.live_blocks) + nodes;
        }
        Some(cost)
    }

    /// All buckets of a region, reserved ones too.
    pub(super) fn buckets_of(
        &self,
        (member, index): RegionId,
    ) -> impl Iterator<Item = BucketId> + Clone + use<> {
        let first = index * self.region_buckets;
        (first..first.saturating_add(self.region_buckets)).map(move |bucket| (member, bucket))
    }

    /// Whether a bucket is in the region that is leaving, or past an end: then nothing may be placed in
    /// it.
    pub(super) fn is_leaving(&self, id: BucketId) -> bool {
        self.leaving == Some((id.0, id.1 / self.region_buckets)) || self.is_closed(id)
    }

    pub(super) fn note_slots_if_index(&mut self, id: BucketId, all_slots: u64) {
        if self.buckets.get(&id).is_some_and(|bucket| bucket.kind == BucketKind::Index) {
            self.note_slots(id, all_slots);
        }
    }
}
