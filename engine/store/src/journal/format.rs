//! Journal entries on disk; drawn in docs/format.md.

use engine_base::checksum::{crc32c, crc32c_append};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Result, StoreError};
use crate::key::{Position, Tree, VALUE_BYTES_MAX};

/// Entries start at multiples of this and are padded to it.
pub(crate) const JOURNAL_BLOCK: usize = 4096;
/// Bytes of an entry's header.
pub(crate) const HEADER_BYTES: usize = size_of::<EntryHeader>();
/// Longest entry in bytes, header included.
pub(crate) const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Largest sequence number: an entry a microsecond for centuries; node ids are these times 2^20.
pub(crate) const SEQ_MAX: u64 = 1 << 43;
/// "CAIRNJE" and the version of the layout, 0.
const MAGIC: [u8; 8] = *b"CAIRNJE\0";
const FLAG_FLUSH: u8 = 1;

/// Start of every entry.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct EntryHeader {
    /// CRC-32C of header (this field zero), records, and the entry's byte offset in its ring: catches
    /// torn, rotten and misdirected entries.
    crc: U32,
    /// Bytes of records that follow.
    records_bytes: U32,
    magic: [u8; 8],
    /// Catches entries of another pool that used the device before.
    pool_uuid: [u8; 16],
    seq: U64,
    /// Oldest entry that is still needed when this one is the newest.
    last_seq: U64,
    shard: U16,
    flags: u8,
    reserved: [u8; 5],
}

const _: () = assert!(size_of::<EntryHeader>() == 56);

/// What the header of an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryInfo {
    pub(crate) seq: u64,
    pub(crate) last_seq: u64,
    /// Everything before it was durable when it was written.
    pub(crate) flush: bool,
    /// Blocks of the entry in the ring.
    pub(crate) blocks: u32,
}

/// Start of every record.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RecordHeader {
    kind: u8,
    tree: u8,
    level: u8,
    /// [`RECORD_FRESH`], or 0.
    flags: u8,
    /// Bytes after this header.
    bytes: U16,
}

const _: () = assert!(size_of::<RecordHeader>() == 6);

/// A position on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct DiskPosition {
    inode: U64,
    offset: U64,
    snapshot: U32,
}

const _: () = assert!(size_of::<DiskPosition>() == 20);

impl From<Position> for DiskPosition {
    fn from(position: Position) -> Self {
        Self {
            inode: U64::new(position.inode),
            offset: U64::new(position.offset),
            snapshot: U32::new(position.snapshot),
        }
    }
}

impl From<DiskPosition> for Position {
    fn from(disk: DiskPosition) -> Self {
        Self::new(disk.inode.get(), disk.offset.get(), disk.snapshot.get())
    }
}

/// One thing an entry says. Bytes are borrowed from the entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// A key of a node at `level` got a value. `fresh`: an extent whose blocks were written for it, so
    /// that they are durable no earlier than this entry.
    Put { tree: Tree, level: u8, position: Position, value: &'a [u8], fresh: bool },
    /// A key is gone.
    Delete { tree: Tree, level: u8, position: Position },
    /// Where the root of a tree is (an encoded node pointer), and its level. In every entry.
    Root { tree: Tree, level: u8, pointer: &'a [u8] },
    /// A bucket was opened for a kind of content, under a new generation.
    BucketOpen { member: u8, bucket: u32, generation: u32, kind: u8 },
    /// Live blocks of a data bucket changed.
    BucketLive { member: u8, bucket: u32, delta: i32 },
    /// A node slot of an index bucket came into use or fell out of it.
    BucketSlot { member: u8, bucket: u32, slot: u8, used: bool },
    /// A counter was added to.
    CounterAdd { counter: u64, delta: i64 },
    /// A counter was raised to at least this.
    CounterAtLeast { counter: u64, least: u64 },
    /// Entries with these numbers, both included, are never replayed.
    Blacklist { first: u64, last: u64 },
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const ROOT: u8 = 3;
const BUCKET_OPEN: u8 = 4;
const BUCKET_LIVE: u8 = 5;
const BUCKET_SLOT: u8 = 6;
const COUNTER_ADD: u8 = 7;
const COUNTER_AT_LEAST: u8 = 8;
const BLACKLIST: u8 = 9;

/// Flag of a `Put` record.
const RECORD_FRESH: u8 = 1;

/// Appends records to the buffer of an entry.
pub(crate) struct RecordWriter<'b>(pub(crate) &'b mut Vec<u8>);

impl RecordWriter<'_> {
    /// Most bytes that `Put` of a value of `value_bytes` takes.
    pub(crate) const fn put_bytes(value_bytes: usize) -> usize {
        size_of::<RecordHeader>() + size_of::<DiskPosition>() + value_bytes
    }

    /// Appends one record.
    pub(crate) fn push(&mut self, record: &Record<'_>) {
        match *record {
            Record::Put { tree, level, position, value, fresh } => {
                let position = DiskPosition::from(position);
                let flags = if fresh { RECORD_FRESH } else { 0 };
                self.flagged(PUT, tree as u8, level, flags, &[position.as_bytes(), value]);
            }
            Record::Delete { tree, level, position } => {
                let position = DiskPosition::from(position);
                self.raw(DELETE, tree as u8, level, &[position.as_bytes()]);
            }
            Record::Root { tree, level, pointer } => {
                self.raw(ROOT, tree as u8, level, &[pointer]);
            }
            Record::BucketOpen { member, bucket, generation, kind } => {
                let (bucket, generation) = (U32::new(bucket), U32::new(generation));
                self.raw(BUCKET_OPEN, member, kind, &[bucket.as_bytes(), generation.as_bytes()]);
            }
            Record::BucketLive { member, bucket, delta } => {
                let (bucket, delta) = (U32::new(bucket), delta.to_le_bytes());
                self.raw(BUCKET_LIVE, member, 0, &[bucket.as_bytes(), &delta]);
            }
            Record::BucketSlot { member, bucket, slot, used } => {
                let bucket = U32::new(bucket);
                self.raw(BUCKET_SLOT, member, slot, &[bucket.as_bytes(), &[u8::from(used)]]);
            }
            Record::CounterAdd { counter, delta } => {
                let counter = U64::new(counter);
                self.raw(COUNTER_ADD, 0, 0, &[counter.as_bytes(), &delta.to_le_bytes()]);
            }
            Record::CounterAtLeast { counter, least } => {
                let (counter, least) = (U64::new(counter), U64::new(least));
                self.raw(COUNTER_AT_LEAST, 0, 0, &[counter.as_bytes(), least.as_bytes()]);
            }
            Record::Blacklist { first, last } => {
                let (first, last) = (U64::new(first), U64::new(last));
                self.raw(BLACKLIST, 0, 0, &[first.as_bytes(), last.as_bytes()]);
            }
        }
    }

    fn raw(&mut self, kind: u8, tree: u8, level: u8, parts: &[&[u8]]) {
        self.flagged(kind, tree, level, 0, parts);
    }

    fn flagged(&mut self, kind: u8, tree: u8, level: u8, flags: u8, parts: &[&[u8]]) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        assert!(bytes <= size_of::<DiskPosition>() + VALUE_BYTES_MAX);
        let header = RecordHeader { kind, tree, level, flags, bytes: U16::new(bytes as u16) };
        self.0.extend_from_slice(header.as_bytes());
        for part in parts {
            self.0.extend_from_slice(part);
        }
    }
}

/// Completes an entry in place: `entry` is room for the header, then the records. Pads it to whole
/// blocks.
pub(crate) fn seal_entry(
    entry: &mut Vec<u8>,
    info: &EntryInfo,
    pool_uuid: [u8; 16],
    shard: u16,
    ring_offset: u64,
) {
    assert!(entry.len() >= HEADER_BYTES && entry.len() <= ENTRY_BYTES_MAX);
    let header = EntryHeader {
        crc: U32::new(0),
        records_bytes: U32::new((entry.len() - HEADER_BYTES) as u32),
        magic: MAGIC,
        pool_uuid,
        seq: U64::new(info.seq),
        last_seq: U64::new(info.last_seq),
        shard: U16::new(shard),
        flags: u8::from(info.flush) * FLAG_FLUSH,
        reserved: [0; 5],
    };
    entry[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    let crc = checksum(entry, ring_offset);
    entry[..4].copy_from_slice(U32::new(crc).as_bytes());
    entry.resize(entry.len().next_multiple_of(JOURNAL_BLOCK), 0);
}

/// Makes an ordinary entry of a flush entry that was sealed for `ring_offset`.
pub(crate) fn take_flush_flag(entry: &mut Vec<u8>, ring_offset: u64) {
    let padded = entry.len();
    let mut header = EntryHeader::read_from_prefix(entry).map(|(header, _)| header);
    if let Ok(header) = &mut header {
        header.flags &= !FLAG_FLUSH;
        entry.truncate(HEADER_BYTES + header.records_bytes.get() as usize);
        entry[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    }
    let crc = checksum(entry, ring_offset);
    entry[..4].copy_from_slice(U32::new(crc).as_bytes());
    entry.resize(padded, 0);
}

/// Looks for an entry at the start of `bytes`, which lie at `ring_offset`. `None`: there is none, or not
/// a whole one of this pool and shard.
pub(crate) fn parse_entry(
    bytes: &[u8],
    pool_uuid: [u8; 16],
    shard: u16,
    ring_offset: u64,
) -> Option<(EntryInfo, &[u8])> {
    let (header, _) = EntryHeader::read_from_prefix(bytes).ok()?;
    if header.magic != MAGIC || header.pool_uuid != pool_uuid || header.shard.get() != shard {
        return None;
    }
    let whole = HEADER_BYTES.checked_add(header.records_bytes.get() as usize)?;
    if whole > ENTRY_BYTES_MAX || whole > bytes.len() {
        return None;
    }
    if checksum(&bytes[..whole], ring_offset) != header.crc.get()
        || header.seq.get() > SEQ_MAX
        || header.last_seq.get() > header.seq.get()
    {
        return None;
    }
    let info = EntryInfo {
        seq: header.seq.get(),
        last_seq: header.last_seq.get(),
        flush: header.flags & FLAG_FLUSH != 0,
        blocks: whole.div_ceil(JOURNAL_BLOCK) as u32,
    };
    Some((info, &bytes[HEADER_BYTES..whole]))
}

/// Whether bytes begin as an entry of this pool and shard does, whole or not.
pub(crate) fn is_entry_head(bytes: &[u8], pool_uuid: [u8; 16], shard: u16) -> bool {
    EntryHeader::read_from_prefix(bytes).is_ok_and(|(header, _)| {
        header.magic == MAGIC && header.pool_uuid == pool_uuid && header.shard.get() == shard
    })
}

fn checksum(entry: &[u8], ring_offset: u64) -> u32 {
    let crc = crc32c_append(crc32c(&[0; 4]), &entry[4..]);
    crc32c_append(crc, &ring_offset.to_le_bytes())
}

/// The records of an entry, in order.
///
/// # Errors
/// Each item is an error when the bytes are not records of this format; nothing follows it.
pub(crate) fn records(mut bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>>> {
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed || bytes.is_empty() {
            return None;
        }
        let record = next_record(&mut bytes);
        failed = record.is_err();
        Some(record)
    })
}

fn next_record<'a>(bytes: &mut &'a [u8]) -> Result<Record<'a>> {
    let bad = |why: &str| StoreError::corrupt("journal record", why);
    let (header, rest) =
        RecordHeader::read_from_prefix(bytes).map_err(|_| bad("header is cut off"))?;
    let len = usize::from(header.bytes.get());
    if len > rest.len() {
        return Err(bad("reaches past the entry"));
    }
    let (body, rest) = rest.split_at(len);
    *bytes = rest;
    let (tree, level) = (header.tree, header.level);
    let keyed = |body: &'a [u8]| -> Result<(Tree, Position, &'a [u8])> {
        let (position, value) =
            DiskPosition::read_from_prefix(body).map_err(|_| bad("key is cut off"))?;
        Ok((Tree::from_disk(tree)?, position.into(), value))
    };
    match header.kind {
        PUT => {
            let (tree, position, value) = keyed(body)?;
            let fresh = header.flags & RECORD_FRESH != 0;
            Ok(Record::Put { tree, level, position, value, fresh })
        }
        DELETE => {
            let (tree, position, _) = keyed(body)?;
            Ok(Record::Delete { tree, level, position })
        }
        ROOT => Ok(Record::Root { tree: Tree::from_disk(tree)?, level, pointer: body }),
        _ => fixed_record(&header, body).ok_or_else(|| bad("kind or length is not known")),
    }
}

fn fixed_record<'a>(header: &RecordHeader, body: &[u8]) -> Option<Record<'a>> {
    let word = |at: usize| Some(u32::from_le_bytes(body.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(body.get(at..at + 8)?.try_into().ok()?));
    let member = header.tree;
    let record = match (header.kind, body.len()) {
        (BUCKET_OPEN, 8) => Record::BucketOpen {
            member,
            bucket: word(0)?,
            generation: word(4)?,
            kind: header.level,
        },
        (BUCKET_LIVE, 8) => {
            Record::BucketLive { member, bucket: word(0)?, delta: word(4)?.cast_signed() }
        }
        (BUCKET_SLOT, 5) => Record::BucketSlot {
            member,
            bucket: word(0)?,
            slot: header.level,
            used: *body.get(4)? != 0,
        },
        (COUNTER_ADD, 16) => {
            Record::CounterAdd { counter: long(0)?, delta: long(8)?.cast_signed() }
        }
        (COUNTER_AT_LEAST, 16) => Record::CounterAtLeast { counter: long(0)?, least: long(8)? },
        (BLACKLIST, 16) => Record::Blacklist { first: long(0)?, last: long(8)? },
        _ => return None,
    };
    Some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_records() -> Vec<Record<'static>> {
        let position = Position::new(1, 2, 3);
        vec![
            Record::Put { tree: Tree::Inodes, level: 1, position, value: b"value", fresh: false },
            Record::Put { tree: Tree::Extents, level: 0, position, value: b"extent", fresh: true },
            Record::Delete { tree: Tree::Extents, level: 0, position },
            Record::Root { tree: Tree::Names, level: 2, pointer: b"pointer" },
            Record::BucketOpen { member: 1, bucket: 2, generation: 3, kind: 1 },
            Record::BucketLive { member: 1, bucket: 2, delta: -3 },
            Record::BucketSlot { member: 1, bucket: 2, slot: 63, used: true },
            Record::CounterAdd { counter: 9, delta: -1 },
            Record::CounterAtLeast { counter: 9, least: 1 },
            Record::Blacklist { first: 4, last: 9 },
        ]
    }

    fn sealed() -> Vec<u8> {
        let mut entry = vec![0; HEADER_BYTES];
        for record in all_records() {
            RecordWriter(&mut entry).push(&record);
        }
        let info = EntryInfo { seq: 7, last_seq: 5, flush: true, blocks: 1 };
        seal_entry(&mut entry, &info, [3; 16], 2, 8192);
        entry
    }

    #[test]
    fn round_trip() {
        let entry = sealed();
        let (info, bytes) = parse_entry(&entry, [3; 16], 2, 8192).expect("valid");
        assert_eq!((info.seq, info.last_seq, info.flush, info.blocks), (7, 5, true, 1));
        let read: Vec<_> = records(bytes).map(|record| record.expect("valid")).collect();
        assert_eq!(read, all_records());
    }

    #[test]
    fn other_places_pools_and_shards_are_not_entries() {
        let entry = sealed();
        assert!(parse_entry(&entry, [3; 16], 2, 4096).is_none());
        assert!(parse_entry(&entry, [4; 16], 2, 8192).is_none());
        assert!(parse_entry(&entry, [3; 16], 1, 8192).is_none());
    }

    #[test]
    fn damaged_records_are_errors_not_panics() {
        let entry = sealed();
        let (_, good) = parse_entry(&entry, [3; 16], 2, 8192).expect("valid");
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.to_vec();
                bad[at] = value;
                let _ = records(&bad).count();
            }
            let _ = records(&good[..at]).count();
        }
        for at in 0..entry.len().min(HEADER_BYTES + good.len()) {
            let mut bad = entry.clone();
            bad[at] ^= 0x10;
            assert!(parse_entry(&bad, [3; 16], 2, 8192).is_none(), "byte {at}");
        }
    }
}
