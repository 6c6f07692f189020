//! Regions: runs of buckets that are handed to shards by shard 0.

use engine_base::ShardId;
use engine_base::runtime::LocalBoxFuture;

use crate::api::Region;
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::journal::Class;
use crate::key::{Position, Tree, Value};
use crate::times::Timed;

/// Where a shard gets its regions from: shard 0, by way of messages.
pub trait RegionSource {
    /// One more region for this shard; `None`: there is none left. Durable when answered. `short`: the
    /// shard is out of space and can write so many blocks more; then one may be taken from another shard
    /// that has more left.
    fn acquire(&self, short: Option<u64>) -> LocalBoxFuture<'static, Result<Option<Region>>>;

    /// The regions this shard has.
    fn list(&self) -> LocalBoxFuture<'static, Result<Vec<Region>>>;
}

impl Engine {
    /// Learns the shard's regions, once. Waits for shard 0.
    pub(crate) async fn ensure_regions(&self) -> Result<()> {
        while !self.space.tables.borrow().regions_known {
            if self.space.acquiring.replace(true) {
                self.waits.on(Timed::BlockedRegion, self.space.changed.notified()).await;
                continue;
            }
            let _done = AcquireDone(self);
            let source = self.region_source()?;
            let regions = self.waits.on(Timed::BlockedRegion, source.list()).await?;
            for region in regions {
                self.add_region(region)?;
            }
            self.space.tables.borrow_mut().regions_known = true;
        }
        Ok(())
    }

    /// Asks for one more region; `short`: see [`RegionSource::acquire`]. False: there is none to be had.
    pub(crate) async fn acquire_region(&self, short: Option<u64>) -> Result<bool> {
        if short.is_none() && self.space.tables.borrow().regions_exhausted {
            return Ok(false);
        }
        let refusals = self.space.refusals.get();
        if self.space.acquiring.replace(true) {
            // Somebody else is asking; what comes is for all, and so is a refusal.
            self.waits.on(Timed::BlockedRegion, self.space.changed.notified()).await;
            return Ok(refusals == self.space.refusals.get());
        }
        let _done = AcquireDone(self);
        let source = self.region_source()?;
        let got = self.waits.on(Timed::BlockedRegion, source.acquire(short)).await?;
        tracing::debug!(shard = self.shard().0, ?short, region = ?got, "asked for a region");
        match got {
            Some(region) => {
                self.add_region(region)?;
                Ok(true)
            }
            None => {
                self.space.tables.borrow_mut().regions_exhausted = true;
                self.space.refusals.set(refusals + u64::from(short.is_some()));
                Ok(false)
            }
        }
    }

    fn region_source(&self) -> Result<std::rc::Rc<dyn RegionSource>> {
        self.space.source.borrow().clone().ok_or_else(|| StoreError::ShuttingDown {
            why: "the shard is not connected to shard 0".to_owned(),
        })
    }

    /// The region of which a key of the regions tree tells. Each key is of another one.
    pub(crate) fn region_at(&self, position: Position) -> Result<Region> {
        let bad = || StoreError::corrupt("region", format!("{position:?} does not exist"));
        let member = u8::try_from(position.inode).map_err(|_| bad())?;
        let index = u32::try_from(position.offset).map_err(|_| bad())?;
        let region = Region { member, index };
        let members = self.space.superblock().members.len();
        if position.snapshot != 0 || usize::from(member) >= members {
            return Err(bad());
        }
        Ok(region)
    }

    /// Whether a region is on its member: one that was shrunk may have left keys behind, which go soon.
    pub(super) fn is_within(&self, region: Region) -> bool {
        region.index < self.space.superblock().member_regions(region.member)
    }

    fn check_region(&self, region: Region) -> Result<()> {
        let superblock = self.space.superblock();
        if usize::from(region.member) >= superblock.members.len()
            || region.index >= superblock.member_regions(region.member)
        {
            return Err(StoreError::corrupt("region", format!("{region:?} does not exist")));
        }
        Ok(())
    }

    /// Takes a region for one of this shard's.
    fn add_region(&self, region: Region) -> Result<()> {
        let superblock = self.space.superblock();
        self.check_region(region)?;
        let id = (region.member, region.index);
        let mut tables = self.space.tables.borrow_mut();
        let usable = tables.usable_buckets(&superblock, id);
        if !tables.regions.insert(id) {
            return Err(StoreError::corrupt("region", format!("{region:?} was given twice")));
        }
        tables.own_region(&self.space, id, usable);
        Ok(())
    }

    /// Gives a region to `shard`; durable when it returns. Shard 0 only.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub async fn region_acquire(&self, shard: ShardId) -> Result<Option<Region>> {
        let owner = Value::from_slice(&shard.0.to_le_bytes());
        let region = self
            .transact_as(Class::Reclaim, async |transaction| {
                let superblock = self.space.superblock();
                for member in 0..superblock.members.len() as u8 {
                    let mut next = 0;
                    let last = Position::new(u64::from(member), u64::MAX, 0);
                    // The first gap: regions are given out in order, so this is short.
                    let mut from = Position::new(u64::from(member), 0, 0);
                    while let Some((position, _)) =
                        transaction.next(Tree::Regions, from, last).await?
                        && position.offset == next
                    {
                        next += 1;
                        from = Position::new(u64::from(member), next, 0);
                    }
                    let end = self.space.tables.borrow().given_end(member);
                    if next < u64::from(end.div_ceil(superblock.region_buckets)) {
                        let position = Position::new(u64::from(member), next, 0);
                        transaction.put(Tree::Regions, position, owner.clone());
                        return Ok(Some(Region { member, index: next as u32 }));
                    }
                }
                Ok(None)
            })
            .await?;
        if region.is_some() {
            self.flush().await?;
        }
        Ok(region)
    }

    /// Writes down that a region went from one shard to another; durable when it returns. Shard 0 only.
    ///
    /// # Errors
    /// `Corrupt` when it is not the giver's; when the table cannot be read or written.
    pub async fn region_move(&self, region: Region, from: ShardId, to: ShardId) -> Result<()> {
        let position = Position::new(u64::from(region.member), u64::from(region.index), 0);
        tracing::debug!(?region, %from, %to, "a region changes its shard");
        self.transact_as(Class::Reclaim, async |transaction| {
            let owner = transaction.get(Tree::Regions, position).await?;
            if owner.as_deref() != Some(&from.0.to_le_bytes()[..]) {
                let what = format!("{region:?} that shard {from} gave is not its own");
                return Err(StoreError::corrupt("regions", what));
            }
            transaction.put(Tree::Regions, position, Value::from_slice(&to.0.to_le_bytes()));
            Ok(())
        })
        .await?;
        self.flush().await
    }

    /// The regions of `shard`. Shard 0 only.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn region_list(&self, shard: ShardId) -> Result<Vec<Region>> {
        let mut regions = Vec::new();
        let mut transaction = self.read();
        let mut from = Position::MIN;
        while let Some((position, value)) =
            transaction.next(Tree::Regions, from, Position::MAX).await?
        {
            let region = self.region_at(position)?;
            if value[..] == shard.0.to_le_bytes() && self.is_within(region) {
                regions.push(region);
            }
            from = position.successor();
        }
        Ok(regions)
    }

    /// Forgets who had the regions that members lost when they were shrunk; durable when it returns.
    /// Shard 0 only; idempotent.
    pub(crate) async fn drop_regions_past_ends(&self) -> Result<()> {
        let superblock = self.space.superblock();
        let mut any = false;
        for member in 0..superblock.members.len() as u8 {
            let first = u64::from(superblock.member_regions(member));
            let from = Position::new(u64::from(member), first, 0);
            let last = Position::new(u64::from(member), u64::MAX, 0);
            while let Some((position, _)) = self.read().next(Tree::Regions, from, last).await? {
                any = true;
                self.transact_as(Class::Reclaim, async |transaction| {
                    transaction.delete(Tree::Regions, position);
                    Ok(())
                })
                .await?;
            }
        }
        if any { self.flush().await } else { Ok(()) }
    }

    /// Buckets that can be allocated in regions that no shard has. Shard 0 only.
    pub(crate) async fn unassigned_buckets(&self) -> Result<u64> {
        let superblock = self.space.superblock();
        let ends = self.space.tables.borrow().ends.clone();
        let usable = |member: u8, index: u32| {
            u64::from(superblock.usable_buckets(member, index, ends[usize::from(member)]))
        };
        let mut buckets: u64 = (0..superblock.members.len() as u8)
            .flat_map(|member| (0..superblock.member_regions(member)).map(move |at| (member, at)))
            .map(|(member, index)| usable(member, index))
            .sum();
        let mut transaction = self.read();
        let mut from = Position::MIN;
        while let Some((position, _)) = transaction.next(Tree::Regions, from, Position::MAX).await?
        {
            let region = self.region_at(position)?;
            if self.is_within(region) {
                buckets = buckets.saturating_sub(usable(region.member, region.index));
            }
            from = position.successor();
        }
        Ok(buckets)
    }
}

/// Lets others ask for regions again, also when the task that asked is dropped.
struct AcquireDone<'e>(&'e Engine);

impl Drop for AcquireDone<'_> {
    fn drop(&mut self) {
        self.0.space.acquiring.set(false);
        self.0.space.changed.notify_all();
    }
}
