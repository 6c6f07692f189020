//! The structures of an image one by one: read, checked, scrubbed, sealed, and written at the same place.

use engine_base::BLOCK_SIZE;
use engine_device::{DeviceQueue, IoVec, QueueExt as _};
use engine_memory::Buffer;

use super::Imager;
use crate::btree::NodePointer;
use crate::btree::format::{Bset, BsetWriter, NODE_BLOCK, read_bset};
use crate::dump::replay::place;
use crate::error::{Result, StoreError};
use crate::journal::format::{
    ENTRY_BYTES_MAX, EntryInfo, HEADER_BYTES, is_entry_head, parse_entry, records, seal_entry,
};
use crate::journal::{Record, RecordWriter};
use crate::key::{Position, Tree, VALUE_BYTES_MAX};
use crate::space::format::{decode_any_summary, encode_summary, summary_blocks};
use crate::superblock::{CopyState, SUPERBLOCK_BYTES, copy_at, inspect};

/// What a bset must be part of: tree, level, node, its index, range.
type Expected = (Tree, u8, u64, u16, Position, Position);

/// Bytes of one command.
const TRANSFER_BYTES: usize = 1 << 20;

/// `len` bytes at `offset`.
async fn read(device: &dyn DeviceQueue, offset: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| StoreError::OutOfMemory { what: "reading for an image".to_owned() })?;
    while bytes.len() < len {
        let part = Buffer::try_new(TRANSFER_BYTES.min(len - bytes.len()))?;
        bytes.extend_from_slice(&device.read(offset + bytes.len() as u64, part).await?);
    }
    Ok(bytes)
}

impl Imager<'_> {
    /// Writes to the image of a member, which is there.
    async fn write(&self, member: u8, offset: u64, bytes: &[u8]) -> Result<()> {
        let absent = || StoreError::invalid(format!("no place for the image of member {member}"));
        let target = self.targets.get(usize::from(member)).and_then(Option::as_ref);
        let target = target.ok_or_else(absent)?;
        for (index, part) in bytes.chunks(TRANSFER_BYTES).enumerate() {
            let data = IoVec::from_iter([Buffer::try_copy_of(part)?.freeze()]);
            target.write(offset + (index * TRANSFER_BYTES) as u64, data, false).await?;
        }
        Ok(())
    }

    /// The member's device and its image, if it was given and `offset .. offset + len` lies on both.
    fn source(&self, member: u8, offset: u64, len: u64) -> Result<&dyn DeviceQueue> {
        let bad = |why: String| StoreError::corrupt(format!("member {member}"), why);
        let device = self.view.members.get(usize::from(member));
        let target = self.targets.get(usize::from(member)).and_then(Option::as_ref);
        let (Some(device), Some(target)) = (device, target) else {
            return Err(bad("is not given".to_owned()));
        };
        let size = target.info().size_bytes.min(device.info().size_bytes);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(bad(format!("ends before byte {offset} + {len}")));
        }
        Ok(&**device)
    }

    /// All valid entries of a shard's ring as they are now. They are kept, since pointers in them can be
    /// scrubbed only after nodes, and a daemon that writes changes both meanwhile.
    ///
    /// # Errors
    /// When memory is out.
    pub(super) async fn read_journal(&mut self, shard: u16) -> Result<Vec<FoundEntry>> {
        let mut entries = Vec::new();
        let (place, ring_blocks) = place(self.view, shard);
        let ring_bytes = u64::from(ring_blocks) * BLOCK_SIZE;
        if let Err(error) = self.source(place.member, place.base_bytes, ring_bytes) {
            self.note(format!("journal of shard {shard}: {error}"));
            return Ok(entries);
        }
        let mut ring = Window { start: 0, bytes: Vec::new() };
        let mut at = 0;
        while at < ring_bytes {
            let end = ring_bytes.min(at + ENTRY_BYTES_MAX as u64);
            self.fill(&mut ring, &*place.queue, place.base_bytes, at..end, ring_bytes).await?;
            let bytes = &ring.bytes[(at - ring.start) as usize..(end - ring.start) as usize];
            let Some((info, found)) = parse_entry(bytes, place.pool_uuid, shard, at) else {
                if is_entry_head(bytes, place.pool_uuid, shard) {
                    self.left_out.journal_entries += 1;
                    self.note(format!("journal of shard {shard}: no whole entry at its byte {at}"));
                }
                at += BLOCK_SIZE;
                continue;
            };
            let mut records = Vec::new();
            records
                .try_reserve_exact(found.len())
                .map_err(|_| StoreError::OutOfMemory { what: "a journal's image".to_owned() })?;
            records.extend_from_slice(found);
            entries.push(FoundEntry { at, info, records });
            at += u64::from(info.blocks) * BLOCK_SIZE;
        }
        Ok(entries)
    }

    /// The entries, scrubbed.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub(super) async fn journal(&mut self, shard: u16, entries: &[FoundEntry]) -> Result<()> {
        let (place, _) = place(self.view, shard);
        for FoundEntry { at, info, records } in entries {
            let entry = self.entry(info, records, place.pool_uuid, shard, *at);
            // Its records are as long as they were, or fewer.
            if entry.len() as u64 <= u64::from(info.blocks) * BLOCK_SIZE {
                self.write(place.member, place.base_bytes + at, &entry).await?;
                self.copied.journal_entries += 1;
            }
        }
        Ok(())
    }

    /// The entry with its records scrubbed; from a record on that is none, they are left out.
    fn entry(
        &mut self,
        info: &EntryInfo,
        found: &[u8],
        pool_uuid: [u8; 16],
        shard: u16,
        at: u64,
    ) -> Vec<u8> {
        let mut entry = vec![0; HEADER_BYTES];
        for record in records(found) {
            match record.and_then(no_longer_than_any) {
                Ok(record) => {
                    self.scrub.record(&record, |record| RecordWriter(&mut entry).push(record));
                }
                Err(error) => {
                    self.left_out.journal_entries_cut += 1;
                    self.note(format!("journal of shard {shard}, entry {}: {error}", info.seq));
                    break;
                }
            }
        }
        seal_entry(&mut entry, info, pool_uuid, shard, at);
        entry
    }

    /// Makes the window hold bytes `wanted` of the ring. Blocks that cannot be read become zeroes.
    async fn fill(
        &mut self,
        ring: &mut Window,
        queue: &dyn DeviceQueue,
        base_bytes: u64,
        wanted: std::ops::Range<u64>,
        ring_bytes: u64,
    ) -> Result<()> {
        if ring.end() >= wanted.end {
            return Ok(());
        }
        // An entry that ended past the window's end was whole: what is wanted begins within, or at its end.
        let passed = (wanted.start - ring.start).min(ring.bytes.len() as u64);
        ring.bytes.drain(..passed as usize);
        ring.start += passed;
        while ring.end() < wanted.end {
            let from = base_bytes + ring.end();
            let len = (TRANSFER_BYTES as u64).min(ring_bytes - ring.end()) as usize;
            match read(queue, from, len).await {
                Ok(part) => ring.bytes.extend_from_slice(&part),
                Err(error @ StoreError::OutOfMemory { .. }) => return Err(error),
                Err(error) => {
                    self.note(format!("journal at byte {from} of {}: {error}", queue.info().name));
                    for at in (0..len as u64).step_by(BLOCK_SIZE as usize) {
                        match read(queue, from + at, BLOCK_SIZE as usize).await {
                            Ok(block) => ring.bytes.extend_from_slice(&block),
                            Err(_) => {
                                self.left_out.journal_blocks += 1;
                                ring.bytes.resize(ring.bytes.len() + BLOCK_SIZE as usize, 0);
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The node that `pointer`, at `max` in its parent, names. Of one that is damaged, the bsets before
    /// the first that is bad; behind one that is whole, valid bsets that were left there.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub(super) async fn node(
        &mut self,
        (tree, level): (Tree, u8),
        pointer: &NodePointer,
        max: Position,
    ) -> Result<()> {
        let Some(location) = pointer.location else { return Ok(()) };
        let offset = location.block.saturating_mul(BLOCK_SIZE);
        let bytes = match self.node_bytes(pointer, location.member, offset).await {
            Ok(bytes) => bytes,
            Err(error @ StoreError::OutOfMemory { .. }) => return Err(error),
            Err(error) => {
                self.lost_node(tree, pointer, &error);
                return Ok(());
            }
        };
        let written = usize::from(pointer.written_blocks) * NODE_BLOCK;
        let (mut at, mut index, mut last) = (0, 0_u16, (0, 0));
        while at < bytes.len() {
            let (end, expected) = match at < written {
                true => (written, Some((tree, level, pointer.node, index, pointer.min, max))),
                false => (bytes.len(), None),
            };
            let place = offset + at as u64;
            match self.bset(&bytes[at..end], place, expected, last) {
                Ok((bset, crcs)) => {
                    self.write(location.member, place, &bset).await?;
                    at += bset.len();
                    let blocks = (at / NODE_BLOCK) as u16;
                    self.scrub.checksum(location, blocks, crcs);
                    last = crcs;
                }
                Err(_) if at >= written => break,
                Err(error) => {
                    self.lost_node(tree, pointer, &error);
                    return Ok(());
                }
            }
            index = index.wrapping_add(1);
        }
        self.copied.nodes += 1;
        Ok(())
    }

    fn lost_node(&mut self, tree: Tree, pointer: &NodePointer, error: &StoreError) {
        self.left_out.nodes += 1;
        self.note(format!("node {} of tree {tree:?}: {error}", pointer.node));
    }

    /// The node and what lies behind it in its slot.
    async fn node_bytes(&self, pointer: &NodePointer, member: u8, offset: u64) -> Result<Vec<u8>> {
        let (written, whole) =
            (u64::from(pointer.written_blocks) * BLOCK_SIZE, self.view.superblock.node_bytes);
        if written > u64::from(whole) {
            return Err(StoreError::corrupt("node pointer", "is longer than a node"));
        }
        if let Ok(device) = self.source(member, offset, u64::from(whole))
            && let Ok(bytes) = read(device, offset, whole as usize).await
        {
            return Ok(bytes);
        }
        read(self.source(member, offset, written)?, offset, written as usize).await
    }

    /// The bset at the start of `bytes`, scrubbed and sealed for the same place, if it is what is
    /// expected; and its checksum in the pool and in the image. `last` are those of the bset before it.
    fn bset(
        &mut self,
        bytes: &[u8],
        offset: u64,
        expected: Option<Expected>,
        last: (u32, u32),
    ) -> Result<(Vec<u8>, (u32, u32))> {
        let bad = |why: &str| StoreError::corrupt("bset", format!("{why} at byte {offset}"));
        let Bset { mut info, blocks, crc } = read_bset(bytes, offset, |_, _| ())?;
        let found = (info.tree, info.level, info.node, info.index, info.min, info.max);
        if expected.is_some_and(|expected| expected != found) {
            return Err(bad("another node"));
        }
        let mut writer = BsetWriter::new();
        read_bset(bytes, offset, |at, value| {
            let value = value.map(|value| self.scrub.value(info.tree, info.level, at, value));
            writer.push(at, value.as_deref());
        })?;
        info.previous = match info.previous == last.0 {
            true => last.1,
            false => self.scrub.stray_checksum(info.previous),
        };
        let (sealed, own) = writer.seal(&info, offset);
        if sealed.len() != blocks * NODE_BLOCK {
            return Err(bad("another length"));
        }
        Ok((sealed, (crc, own)))
    }

    /// The summary of a bucket, if it has a valid one.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub(super) async fn summary(&mut self, member: u64, bucket: u64) -> Result<()> {
        let superblock = &self.view.superblock;
        let (Ok(member), Ok(bucket)) = (u8::try_from(member), u32::try_from(bucket)) else {
            return Ok(());
        };
        if usize::from(member) >= superblock.members.len()
            || bucket >= superblock.member_buckets(member)
            || superblock.is_reserved(member, bucket)
        {
            return Ok(());
        }
        let bucket_blocks = superblock.bucket_bytes / BLOCK_SIZE as u32;
        let blocks = summary_blocks(bucket_blocks);
        let first = u64::from(bucket) * u64::from(bucket_blocks);
        let offset = (first + u64::from(bucket_blocks - blocks)) * BLOCK_SIZE;
        let len = u64::from(blocks) * BLOCK_SIZE;
        let found = match self.source(member, offset, len) {
            Ok(device) => read(device, offset, len as usize).await,
            Err(error) => Err(error),
        };
        match found.map(|bytes| decode_any_summary(&bytes, offset)) {
            Ok(Some((generation, entries))) => {
                let bytes = encode_summary(&entries, generation, offset);
                self.write(member, offset, &bytes).await?;
                self.copied.summaries += 1;
            }
            Err(error @ StoreError::OutOfMemory { .. }) => return Err(error),
            Ok(None) | Err(_) => self.left_out.summaries += 1,
        }
        Ok(())
    }

    /// The valid copies of a member's superblock, scrubbed and with the mark of an image; then nothing is
    /// left in a cache of the image.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub(super) async fn superblocks(&mut self, member: u8, tails: &[u32]) -> Result<()> {
        let Ok(device) = self.source(member, 0, 0) else { return Ok(()) };
        let found = inspect(device).await.map_err(|error| match error {
            crate::superblock::ProbeError::Store(error) => error,
            other => StoreError::corrupt("superblock", other.to_string()),
        })?;
        let mut copies = Vec::new();
        for (offset, state) in &found.copies {
            let valid = match state {
                CopyState::Bad { .. } => None,
                CopyState::Good | CopyState::Old { .. } => {
                    let device = self.source(member, *offset, SUPERBLOCK_BYTES as u64)?;
                    copy_at(device, *offset).await?.filter(|(superblock, uuid)| {
                        (superblock.pool_uuid, *uuid)
                            == (self.view.superblock.pool_uuid, found.member_uuid)
                    })
                }
            };
            let index = valid.as_ref().and_then(|(superblock, uuid)| {
                superblock.members.iter().position(|member| member.uuid == *uuid)
            });
            match (valid, index) {
                (Some((superblock, _)), Some(index)) => {
                    let scrubbed = self.scrub.superblock(superblock, tails);
                    copies.push((*offset, scrubbed.encode(index as u8, *offset)));
                }
                _ => self.left_out.superblock_copies += 1,
            }
        }
        for (offset, bytes) in copies {
            self.write(member, offset, &bytes).await?;
            self.copied.superblock_copies += 1;
        }
        if let Some(target) = &self.targets[usize::from(member)] {
            target.flush().await?;
        }
        Ok(())
    }
}

/// The record, if a writer of journals takes its value.
fn no_longer_than_any(record: Record<'_>) -> Result<Record<'_>> {
    match record {
        Record::Put { value, .. } | Record::Root { pointer: value, .. }
            if value.len() > VALUE_BYTES_MAX =>
        {
            Err(StoreError::corrupt("journal record", "its value is too long"))
        }
        record => Ok(record),
    }
}

/// A journal entry.
pub(super) struct FoundEntry {
    /// Its first byte in the ring.
    at: u64,
    info: EntryInfo,
    records: Vec<u8>,
}

/// A part of a journal's ring.
struct Window {
    /// Where it begins in the ring.
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}
