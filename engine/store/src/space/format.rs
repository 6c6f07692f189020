//! Bucket and counter checkpoints, tallies of regions, and bucket summaries on disk; drawn in docs/format.md.

use std::ops::Range;

use engine_base::checksum::{crc32c, crc32c_append};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::table::BucketKind;
use crate::error::{Result, StoreError};
use crate::key::Value;

/// State of a bucket, the value of a key in the buckets tree.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskBucket {
    /// Journal position (entry, record) up to which changes are in it: later ones are replayed.
    stamp_seq: U64,
    stamp_record: U32,
    generation: U32,
    /// Live blocks of a data bucket.
    live_blocks: U32,
    /// Used slots of an index bucket.
    slots: U64,
    kind: u8,
    reserved: [u8; 3],
    /// Blocks the shard had written when it was filled: its age, for copygc.
    filled_at: U64,
}

/// A counter, the value of a key in the counters tree.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskCounter {
    stamp_seq: U64,
    stamp_record: U32,
    reserved: U32,
    value: U64,
}

/// What the buckets of a region hold together, the value of a key in the tallies tree.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskTally {
    version: u8,
    reserved: [u8; 3],
    /// Data buckets with live blocks, index buckets with used slots, and these slots.
    data_buckets: U32,
    index_buckets: U32,
    used_slots: U32,
    live_blocks: U64,
    /// Live blocks of the emptiest data bucket that holds dead ones; all ones: there is none.
    least_live: U32,
    reserved2: U32,
    /// Lowest `filled_at` of these buckets; highest of all.
    oldest: U64,
    newest: U64,
}

/// Start of a bucket's summary, which fills the last blocks of the bucket.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct SummaryHeader {
    /// CRC-32C of the header (this field zero) and the entries, then of the summary's byte offset.
    crc: U32,
    entries: U32,
    magic: [u8; 8],
    /// Generation of the bucket: catches the summary of an earlier use.
    generation: U32,
    reserved: U32,
}

/// One extent placed in a bucket.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskSummaryEntry {
    inode: U64,
    end: U64,
    snapshot: U32,
    start_block: U16,
    blocks: u8,
    disk_blocks: u8,
}

const _: () = assert!(size_of::<DiskBucket>() == 40);
const _: () = assert!(size_of::<DiskCounter>() == 24);
const _: () = assert!(size_of::<DiskTally>() == 48);
const _: () = assert!(size_of::<SummaryHeader>() == 24);
const _: () = assert!(size_of::<DiskSummaryEntry>() == 24);
const SUMMARY_MAGIC: [u8; 8] = *b"CAIRNSU\0";

/// A journal position: everything before it is in a checkpoint.
pub(crate) type Stamp = (u64, u32);

/// A bucket's checkpointed state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BucketCheckpoint {
    pub(crate) stamp: Stamp,
    pub(crate) generation: u32,
    pub(crate) live_blocks: u32,
    pub(crate) slots: u64,
    pub(crate) kind: BucketKind,
    pub(crate) filled_at: u64,
}

impl BucketCheckpoint {
    pub(crate) fn encode(&self) -> Value {
        let disk = DiskBucket {
            stamp_seq: U64::new(self.stamp.0),
            stamp_record: U32::new(self.stamp.1),
            generation: U32::new(self.generation),
            live_blocks: U32::new(self.live_blocks),
            slots: U64::new(self.slots),
            kind: self.kind as u8,
            reserved: [0; 3],
            filled_at: U64::new(self.filled_at),
        };
        Value::from_slice(disk.as_bytes())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let disk = DiskBucket::read_from_bytes(bytes)
            .map_err(|_| StoreError::corrupt("bucket state", format!("{} bytes", bytes.len())))?;
        Ok(Self {
            stamp: (disk.stamp_seq.get(), disk.stamp_record.get()),
            generation: disk.generation.get(),
            live_blocks: disk.live_blocks.get(),
            slots: disk.slots.get(),
            kind: BucketKind::from_disk(disk.kind)?,
            filled_at: disk.filled_at.get(),
        })
    }
}

const TALLY_VERSION: u8 = 1;

/// What the buckets of a region hold together. Of a region that holds nothing there is no tally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) data_buckets: u32,
    pub(crate) index_buckets: u32,
    pub(crate) used_slots: u32,
    pub(crate) live_blocks: u64,
    /// Live blocks of the emptiest data bucket that holds dead ones; `u32::MAX`: there is none.
    pub(crate) least_live: u32,
    /// Hints: the lowest `filled_at` of buckets with dead blocks, and the highest of all.
    pub(crate) oldest: u64,
    pub(crate) newest: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            data_buckets: 0,
            index_buckets: 0,
            used_slots: 0,
            live_blocks: 0,
            least_live: u32::MAX,
            oldest: u64::MAX,
            newest: 0,
        }
    }
}

impl Tally {
    /// Buckets that hold something.
    pub(crate) fn used_buckets(&self) -> u32 {
        self.data_buckets.saturating_add(self.index_buckets)
    }

    /// Whether all that is not a hint is the same.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let hints = (other.oldest, other.newest);
        Self { oldest: hints.0, newest: hints.1, ..*self } == *other
    }

    pub(crate) fn encode(&self) -> Value {
        let disk = DiskTally {
            version: TALLY_VERSION,
            reserved: [0; 3],
            data_buckets: U32::new(self.data_buckets),
            index_buckets: U32::new(self.index_buckets),
            used_slots: U32::new(self.used_slots),
            live_blocks: U64::new(self.live_blocks),
            least_live: U32::new(self.least_live),
            reserved2: U32::new(0),
            oldest: U64::new(self.oldest),
            newest: U64::new(self.newest),
        };
        Value::from_slice(disk.as_bytes())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why: String| StoreError::corrupt("tally of a region", why);
        let disk =
            DiskTally::read_from_bytes(bytes).map_err(|_| bad(format!("{} bytes", bytes.len())))?;
        if disk.version != TALLY_VERSION {
            return Err(bad(format!("version {} is not known", disk.version)));
        }
        Ok(Self {
            data_buckets: disk.data_buckets.get(),
            index_buckets: disk.index_buckets.get(),
            used_slots: disk.used_slots.get(),
            live_blocks: disk.live_blocks.get(),
            least_live: disk.least_live.get(),
            oldest: disk.oldest.get(),
            newest: disk.newest.get(),
        })
    }
}

/// Encodes a counter's checkpoint.
pub(crate) fn encode_counter(stamp: Stamp, value: u64) -> Value {
    let disk = DiskCounter {
        stamp_seq: U64::new(stamp.0),
        stamp_record: U32::new(stamp.1),
        reserved: U32::new(0),
        value: U64::new(value),
    };
    Value::from_slice(disk.as_bytes())
}

/// Decodes a counter's checkpoint.
pub(crate) fn decode_counter(bytes: &[u8]) -> Result<(Stamp, u64)> {
    let disk = DiskCounter::read_from_bytes(bytes)
        .map_err(|_| StoreError::corrupt("counter", format!("{} bytes", bytes.len())))?;
    Ok(((disk.stamp_seq.get(), disk.stamp_record.get()), disk.value.get()))
}

/// An extent that was placed in a bucket; the index says whether it still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SummaryEntry {
    pub(crate) inode: u64,
    pub(crate) end: u64,
    pub(crate) snapshot: u32,
    /// First block within the bucket.
    pub(crate) start_block: u16,
    /// Blocks of the extent, and of the bucket: of a frame these are fewer.
    pub(crate) blocks: u8,
    pub(crate) disk_blocks: u8,
}

impl SummaryEntry {
    /// Whether it is what was placed in block `block` of the bucket.
    pub(crate) fn holds(&self, block: u64) -> bool {
        let start = u64::from(self.start_block);
        (start..start + u64::from(self.disk_blocks)).contains(&block)
    }

    /// The blocks of the bucket.
    pub(crate) fn range(&self) -> Range<u16> {
        self.start_block..self.start_block.saturating_add(u16::from(self.disk_blocks))
    }
}

/// Blocks at the end of a data bucket of `bucket_blocks` that its summary takes: enough for one entry
/// per block of data.
pub(crate) const fn summary_blocks(bucket_blocks: u32) -> u32 {
    let bytes = size_of::<SummaryHeader>() + bucket_blocks as usize * size_of::<DiskSummaryEntry>();
    bytes.div_ceil(4096) as u32
}

/// The summary for the bucket at byte `offset`, padded to whole blocks.
pub(crate) fn encode_summary(entries: &[SummaryEntry], generation: u32, offset: u64) -> Vec<u8> {
    let header = SummaryHeader {
        crc: U32::new(0),
        entries: U32::new(entries.len() as u32),
        magic: SUMMARY_MAGIC,
        generation: U32::new(generation),
        reserved: U32::new(0),
    };
    let mut bytes = header.as_bytes().to_vec();
    for entry in entries {
        let disk = DiskSummaryEntry {
            inode: U64::new(entry.inode),
            end: U64::new(entry.end),
            snapshot: U32::new(entry.snapshot),
            start_block: U16::new(entry.start_block),
            blocks: entry.blocks,
            disk_blocks: entry.disk_blocks,
        };
        bytes.extend_from_slice(disk.as_bytes());
    }
    let crc = summary_checksum(&bytes, offset);
    bytes[..4].copy_from_slice(U32::new(crc).as_bytes());
    bytes.resize(bytes.len().next_multiple_of(4096), 0);
    bytes
}

/// Parses a summary. `None`: it is not a valid one of this generation of the bucket.
pub(crate) fn decode_summary(
    bytes: &[u8],
    generation: u32,
    offset: u64,
) -> Option<Vec<SummaryEntry>> {
    decode_any_summary(bytes, offset).filter(|found| found.0 == generation).map(|found| found.1)
}

/// Parses a summary of whichever generation: (generation, entries). `None`: it is not a valid one.
pub(crate) fn decode_any_summary(bytes: &[u8], offset: u64) -> Option<(u32, Vec<SummaryEntry>)> {
    let (header, rest) = SummaryHeader::read_from_prefix(bytes).ok()?;
    let len = (header.entries.get() as usize).checked_mul(size_of::<DiskSummaryEntry>())?;
    if header.magic != SUMMARY_MAGIC || len > rest.len() {
        return None;
    }
    if summary_checksum(&bytes[..size_of::<SummaryHeader>() + len], offset) != header.crc.get() {
        return None;
    }
    let entries = rest[..len]
        .chunks_exact(size_of::<DiskSummaryEntry>())
        .filter_map(|raw| DiskSummaryEntry::read_from_bytes(raw).ok())
        .map(|disk| SummaryEntry {
            inode: disk.inode.get(),
            end: disk.end.get(),
            snapshot: disk.snapshot.get(),
            start_block: disk.start_block.get(),
            blocks: disk.blocks,
            disk_blocks: disk.disk_blocks,
        });
    Some((header.generation.get(), entries.collect()))
}

fn summary_checksum(bytes: &[u8], offset: u64) -> u32 {
    crc32c_append(crc32c_append(crc32c(&[0; 4]), &bytes[4..]), &offset.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_round_trip() {
        let bucket = BucketCheckpoint {
            stamp: (5, 6),
            generation: 7,
            live_blocks: 8,
            slots: 9,
            kind: BucketKind::Index,
            filled_at: 10,
        };
        assert_eq!(BucketCheckpoint::decode(&bucket.encode()), Ok(bucket));
        assert!(BucketCheckpoint::decode(&[9; 40]).is_err());
        assert_eq!(decode_counter(&encode_counter((1, 2), 3)), Ok(((1, 2), 3)));
        assert!(decode_counter(&[0; 23]).is_err());
        let tally = Tally {
            data_buckets: 1,
            index_buckets: 2,
            used_slots: 3,
            live_blocks: 4,
            least_live: 5,
            oldest: 6,
            newest: 7,
        };
        assert_eq!(Tally::decode(&tally.encode()), Ok(tally));
        assert!(tally.agrees(&Tally { oldest: 8, newest: 9, ..tally }));
        assert!(!tally.agrees(&Tally { live_blocks: 5, ..tally }));
        assert!(Tally::decode(&[2; 48]).is_err() && Tally::decode(&[1; 47]).is_err());
    }

    #[test]
    fn summaries_round_trip_and_refuse_damage() {
        let entry = SummaryEntry {
            inode: 1,
            end: 2,
            snapshot: 3,
            start_block: 4,
            blocks: 5,
            disk_blocks: 2,
        };
        assert_eq!((entry.range(), entry.holds(5), entry.holds(6)), (4..6, true, false));
        let bytes = encode_summary(&[entry; 3], 9, 1 << 20);
        assert_eq!(decode_summary(&bytes, 9, 1 << 20), Some(vec![entry; 3]));
        assert_eq!(decode_summary(&bytes, 8, 1 << 20), None);
        assert_eq!(decode_summary(&bytes, 9, 1 << 21), None);
        for at in 0..24 + 72 {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(decode_summary(&bad, 9, 1 << 20), None, "byte {at}");
        }
    }
}
