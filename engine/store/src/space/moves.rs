//! Moving extents out of a bucket.
//!
//! A move reads, verifies, writes elsewhere, and changes the index only if the extent is still the very same. So
//! a crash at any point leaves the old place or the new one in the index, with its data written before: a
//! move is an overwrite with the same bytes.
//!
//! Extents are moved many at a time: what lies close together is read by one command, with the dead
//! blocks between; all of it is written side by side by one command, in the order of their inodes; one
//! transaction changes the index. One that cannot be read does not keep the others.
//!
//! A frame is moved as it is. Of one that was cut a part is decoded and stored anew, alone: that takes no more blocks
//! than it counts for ([`crate::extent`]).

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c;
use engine_device::QueueExt;
use engine_memory::{Buffer, Slice};
use futures::future::join_all;
use smallvec::SmallVec;

use super::WritePoint;
use super::copygc::Victim;
use super::format::SummaryEntry;
use crate::api::Data;
use crate::codec::Compression;
use crate::data::{block_checksums, keys_of_bucket};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::extent::{EXTENT_BLOCKS_MAX, Extent, FramePart, Pointer, Sharing};
use crate::journal::Class;
use crate::key::{Position, Tree, Value};
use crate::planted::{self, Bug};
use crate::reached::{Branch, mark};

/// Extents that are moved at a time: each is one change of a transaction, or two at the end of a bucket.
const EXTENTS_MAX: usize = 64;
/// Blocks that are moved at a time, unless it is one extent: bounds what a move keeps in memory.
const BLOCKS_MAX: u32 = 128;
/// Entries of a summary whose leaves are read in side by side.
const WARM_ENTRIES: usize = 32;
/// Dead blocks that are read along rather than cut a read in two.
const GAP_BLOCKS_MAX: u64 = 8;

/// An extent in a bucket, as it was found.
pub(super) struct Found {
    position: Position,
    value: Value,
    extent: Extent,
    /// Its copy in the bucket.
    pointer: Pointer,
}

/// What is to be moved together.
#[derive(Default)]
pub(super) struct Batch {
    found: Vec<Found>,
    blocks: u32,
}

impl Batch {
    /// Its extents.
    pub(super) fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.found.iter().map(|found| &found.extent)
    }

    fn is_full(&self) -> bool {
        self.found.len() == EXTENTS_MAX || self.blocks + EXTENT_BLOCKS_MAX > BLOCKS_MAX
    }

    fn push(&mut self, found: Found) {
        if self.found.iter().all(|known| known.position != found.position) {
            self.blocks += found.extent.disk_blocks().max(found.extent.blocks);
            self.found.push(found);
        }
    }
}

impl Engine {
    /// Moves what still lives of `entries`; one that cannot be moved does not keep the others.
    pub(super) async fn move_entries(
        &self,
        victim: Victim,
        entries: &[SummaryEntry],
    ) -> Result<()> {
        self.gather_entries(victim, entries, async |batch| self.move_batch(victim, batch).await)
            .await
    }

    /// Does `each` with what still lives of `entries`, some extents at a time; an error does not keep it from the
    /// others.
    pub(super) async fn gather_entries(
        &self,
        victim: Victim,
        entries: &[SummaryEntry],
        mut each: impl AsyncFnMut(Batch) -> Result<()>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        let mut result = Ok(());
        let first = |entry: &SummaryEntry| {
            let start = entry.end.saturating_sub(u64::from(entry.blocks));
            Position::new(entry.inode, start.saturating_add(1), 0)
        };
        for (index, entry) in entries.iter().enumerate() {
            if index.is_multiple_of(WARM_ENTRIES) {
                let soon = entries[index..].iter().take(WARM_ENTRIES);
                self.warm(Tree::Extents, soon.map(first)).await;
            }
            let last = Position::new(
                entry.inode,
                entry.end.saturating_add(u64::from(EXTENT_BLOCKS_MAX)),
                u32::MAX,
            );
            let mut from = first(entry);
            while self.still_lives(victim)
                && let Some((position, value)) = self.read().next(Tree::Extents, from, last).await?
            {
                let extent = Extent::decode(&value)?;
                // Its version may be another by now: that of a version which was merged with it.
                let here = |pointer: &&Pointer| {
                    pointer.generation == victim.generation
                        && self.space.bucket_of(pointer.member, pointer.block) == victim.id
                        && entry.holds(pointer.block - self.space.first_block(victim.id))
                };
                let pointer = extent.pointers.iter().find(here).copied();
                if let Some(pointer) = pointer {
                    batch.push(Found { position, value, extent, pointer });
                } else if position.snapshot == entry.snapshot
                    && position.offset.saturating_sub(u64::from(extent.blocks)) >= entry.end
                {
                    break;
                }
                if batch.is_full() {
                    let full = std::mem::take(&mut batch);
                    result = result.and(each(full).await);
                }
                from = position.successor();
            }
        }
        let shared = self.gather_shared(victim, &mut batch, &mut each).await;
        result.and(shared).and(each(batch).await)
    }

    /// As [`Engine::gather_entries`], of what came to be shared while it was in the bucket: no summary names it as it
    /// is now, and its address tells where it was.
    async fn gather_shared(
        &self,
        victim: Victim,
        batch: &mut Batch,
        each: &mut impl AsyncFnMut(Batch) -> Result<()>,
    ) -> Result<()> {
        if !self.space.shares.get() {
            return Ok(());
        }
        let mut result = Ok(());
        let first = self.space.first_block(victim.id);
        let end = first + u64::from(self.space.data_blocks());
        for (mut from, to) in keys_of_bucket((victim.id.0, victim.generation), first, end) {
            while self.still_lives(victim)
                && let Some((position, value)) = self.read().next(Tree::Extents, from, to).await?
            {
                let extent = Extent::decode(&value)?;
                let here = |pointer: &&Pointer| {
                    pointer.generation == victim.generation
                        && self.space.bucket_of(pointer.member, pointer.block) == victim.id
                };
                if let Some(pointer) = extent.pointers.iter().find(here).copied() {
                    mark(Branch::SharedMoved);
                    batch.push(Found { position, value, extent, pointer });
                }
                if batch.is_full() {
                    result = result.and(each(std::mem::take(batch)).await);
                }
                from = position.successor();
            }
        }
        result
    }

    /// Moves extents, those that still are what they were when they were found.
    async fn move_batch(&self, victim: Victim, batch: Batch) -> Result<()> {
        let (mut readable, unread) = self.read_batch(batch).await;
        let result = unread.into_iter().next().map_or(Ok(()), |(_, error)| Err(error));
        if readable.is_empty() {
            return result;
        }
        readable.sort_by_key(|(found, _)| found.position);
        let mut to_move = Vec::with_capacity(readable.len());
        for (found, slice) in readable {
            let (extent, slice) = self.as_moved(&found.extent, slice);
            to_move.push((found, extent, slice));
        }
        let (mut blocks, mut wholes) = (0, Vec::new());
        for (_, extent, _) in &to_move {
            if extent.frame.is_some() {
                wholes.push((u64::from(blocks), extent.disk_blocks()));
            }
            blocks += extent.disk_blocks();
        }
        let data: Data = to_move.iter().map(|(.., slice)| slice.clone()).collect();
        let reservation = self.reserve_for_move(blocks);
        let placed = self.place(WritePoint::Moved, &data, &wholes, reservation).await?;
        drop(data);
        for allocation in placed.allocations() {
            self.note_age(allocation.id, victim.filled_at);
        }
        let mut done = 0;
        let moved: Vec<(&Found, Vec<(Position, Value)>)> = to_move
            .iter()
            .map(|(found, extent, _)| {
                let parts = placed.parts(done, u64::from(extent.disk_blocks()));
                done += u64::from(extent.disk_blocks());
                (found, extent.moved_to(found.position, &parts))
            })
            .collect();
        self.transact_as(Class::Reclaim, async |transaction| {
            for (found, parts) in &moved {
                let now = transaction.get(Tree::Extents, found.position).await?;
                if now.as_ref() == Some(&found.value) {
                    for (position, value) in parts {
                        transaction.put_fresh_extent(*position, value.clone());
                    }
                }
            }
            Ok(())
        })
        .await?;
        let moved = self.space.gc_moved_blocks.get() + u64::from(blocks);
        self.space.gc_moved_blocks.set(moved);
        result
    }

    /// Reads what is to be moved and verifies it. An error is of one that could not be read, and is
    /// still there.
    /// What an extent is to be at its new place, but for that, and what lies there then; `slice`: what lies at the old.
    fn as_moved(&self, extent: &Extent, slice: Slice) -> (Extent, Slice) {
        if planted::is(Bug::HoldersForgotten)
            && let Some(mut holders) = extent.holders()
            && holders.count > 2
        {
            holders.count = 2;
            return (Extent { sharing: Sharing::Shared(holders), ..extent.clone() }, slice);
        }
        let Some(frame) = extent.frame.filter(|_| !extent.is_whole()) else {
            return (extent.clone(), slice);
        };
        // What cannot be decoded is somebody else's to tell.
        let mut part = extent.clone();
        if planted::is(Bug::FramePartMisread) {
            part.frame = Some(FramePart { offset: 0, ..frame });
        }
        let Ok(decoded) = self.decoded(&part, slice.clone()) else {
            return (extent.clone(), slice);
        };
        mark(Branch::FramePartMoved);
        let anew = |slice: Slice, frame| {
            let data = Data::from_iter([slice.clone()]);
            let checksums = SmallVec::from_slice(&block_checksums(&data));
            (Extent { checksums, frame, ..extent.clone() }, slice)
        };
        let (algorithm, blocks) = (frame.algorithm, extent.blocks);
        let compression = Compression::new(Some(algorithm), 0).unwrap_or_default();
        let smaller = self.compress(&Data::from_iter([decoded.clone()]), compression);
        match smaller {
            Some((stored, algorithm))
                if stored.len() as u64 <= u64::from(extent.live_blocks()) * BLOCK_SIZE =>
            {
                anew(stored, Some(FramePart { algorithm, blocks, offset: 0 }))
            }
            _ if blocks == extent.live_blocks() => anew(decoded, None),
            _ => (extent.clone(), slice),
        }
    }

    /// Reads the blocks of extents; and gives those that could not be read, with the error.
    pub(super) async fn read_batch(
        &self,
        batch: Batch,
    ) -> (Vec<(Found, Slice)>, Vec<(Found, StoreError)>) {
        let mut found = batch.found;
        found.sort_by_key(|found| found.pointer.block);
        let runs = runs_of(&found, self.superblock().bucket_bytes);
        let reads = runs.iter().map(|(pointer, blocks)| self.read_blocks(pointer, *blocks));
        let read: Vec<_> = join_all(reads).await;
        let (mut readable, mut unread) = (Vec::with_capacity(found.len()), Vec::new());
        for found in found {
            let run =
                runs.iter().zip(&read).rfind(|((first, _), _)| first.block <= found.pointer.block);
            let slice = run.and_then(|((first, _), slice)| {
                let slice = slice.as_ref().ok()?;
                let start = (found.pointer.block - first.block) as usize * BLOCK_SIZE as usize;
                let len = found.extent.disk_blocks() as usize * BLOCK_SIZE as usize;
                Some(slice.slice(start..start + len))
            });
            match slice {
                Some(slice) if found.verify(&slice).is_ok() => readable.push((found, slice)),
                _ => match self.read_alone(&found).await {
                    Ok(Some(slice)) => readable.push((found, slice)),
                    Ok(None) => {}
                    Err(error) => unread.push((found, error)),
                },
            }
        }
        (readable, unread)
    }

    /// Reads one extent again. `None`: it is no longer there.
    async fn read_alone(&self, found: &Found) -> Result<Option<Slice>> {
        let read = self.read_blocks(&found.pointer, found.extent.disk_blocks()).await;
        let error = match read.and_then(|slice| found.verify(&slice).map(|()| slice)) {
            Ok(slice) => return Ok(Some(slice)),
            Err(error) => error,
        };
        // Overwritten and its bucket reused while it was read? Then there is nothing to move.
        let now = self.read().get(Tree::Extents, found.position).await?;
        if now.as_ref() == Some(&found.value) { Err(error) } else { Ok(None) }
    }

    async fn read_blocks(&self, pointer: &Pointer, blocks: u32) -> Result<Slice> {
        self.check_pointer(pointer, blocks)?;
        let place = (pointer.member, pointer.block, u64::from(blocks));
        // One that ended elsewhere is not what its checksum says here, and looked up again.
        self.flights.settled(&self.journal, &self.waits, place).await?;
        let buffer = Buffer::try_new_dirty(blocks as usize * BLOCK_SIZE as usize)?;
        let member = self.member(pointer.member)?;
        Ok(member.read(pointer.block * BLOCK_SIZE, buffer).await?.freeze())
    }
}

/// Reads that cover all of `found`, which are sorted by place: first block and length in blocks.
fn runs_of(found: &[Found], bytes_max: u32) -> Vec<(Pointer, u32)> {
    let most = u64::from(bytes_max.min(1 << 20)) / BLOCK_SIZE;
    let mut runs: Vec<(Pointer, u32)> = Vec::new();
    for found in found {
        let end = found.pointer.block + u64::from(found.extent.disk_blocks());
        match runs.last_mut() {
            Some((first, blocks))
                if found.pointer.block <= first.block + u64::from(*blocks) + GAP_BLOCKS_MAX
                    && end - first.block <= most =>
            {
                *blocks = (*blocks).max((end - first.block) as u32);
            }
            _ => runs.push((found.pointer, found.extent.disk_blocks())),
        }
    }
    runs
}

impl Found {
    /// Its key, and its length in blocks.
    pub(super) fn place(&self) -> (Position, u32) {
        (self.position, self.extent.blocks)
    }

    fn verify(&self, bytes: &[u8]) -> Result<()> {
        let blocks = bytes.chunks(BLOCK_SIZE as usize);
        if blocks.zip(&self.extent.checksums).any(|(block, checksum)| crc32c(block) != *checksum) {
            let (block, member) = (self.pointer.block, self.pointer.member);
            let what = format!("block {block} of member {member}");
            return Err(StoreError::DataLoss { what });
        }
        Ok(())
    }
}
