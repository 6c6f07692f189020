//! Nodes and node pointers on disk; drawn in docs/format.md.

use engine_base::checksum::{crc32c, crc32c_append};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Result, StoreError};
use crate::journal::format::DiskPosition;
use crate::key::{Position, Tree, VALUE_BYTES_MAX, Value};

/// Bsets start at multiples of this within a node.
pub(crate) const NODE_BLOCK: usize = 4096;
/// "CBST"
const MAGIC: [u8; 4] = *b"CBST";
const VERSION: u8 = 0;
/// Member number of a pointer to a node that was never written.
const NOWHERE: u8 = 255;

/// Start of a bset.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BsetHeader {
    /// CRC-32C of header (this field zero) and keys, then of the byte offset on the member: catches
    /// rot, torn and misdirected writes.
    crc: U32,
    magic: [u8; 4],
    version: u8,
    tree: u8,
    level: u8,
    reserved: u8,
    /// Place of this bset in its node, from 0: catches one that was skipped.
    index: U16,
    reserved2: U16,
    /// `crc` of the bset before it, 0 in the first: catches one that another run of the pool wrote at that place,
    /// of which recovery knows nothing any more.
    previous: U32,
    keys: U32,
    /// Bytes of keys that follow.
    bytes: U32,
    /// Identity of the node: catches a stale node at a reused place.
    node: U64,
    /// Newest journal entry whose changes are in it.
    journal_seq: U64,
    min: DiskPosition,
    max: DiskPosition,
}

/// Start of a key in a bset.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct KeyHeader {
    position: DiskPosition,
    /// 0: the key was deleted; 1: a value follows.
    kind: u8,
    reserved: u8,
    bytes: U16,
}

/// A pointer to a node: the value of a key in an interior node (at the child's last position), and of a
/// root record.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct DiskPointer {
    node: U64,
    block: U64,
    generation: U32,
    /// Blocks of the node that hold valid bsets.
    written_blocks: U16,
    member: u8,
    reserved: u8,
    /// `crc` of the last of these bsets. What lies there must be what was written, and not only be valid.
    last_crc: U32,
    min: DiskPosition,
}

const _: () = assert!(size_of::<BsetHeader>() == 84);
const _: () = assert!(size_of::<KeyHeader>() == 24);
const _: () = assert!(size_of::<DiskPointer>() == 48);

/// Bytes of an encoded [`NodePointer`].
pub(crate) const POINTER_BYTES: usize = size_of::<DiskPointer>();

/// Where a node lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) member: u8,
    pub(crate) generation: u32,
    /// First block on the member.
    pub(crate) block: u64,
}

/// A pointer to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodePointer {
    pub(crate) node: u64,
    /// `None`: never written; all its keys are in the journal.
    pub(crate) location: Option<Location>,
    pub(crate) written_blocks: u16,
    /// Checksum of the last bset; 0 of a node that was never written.
    pub(crate) last_crc: u32,
    pub(crate) min: Position,
}

impl NodePointer {
    /// A pointer to a node that was not written yet.
    pub(crate) fn unwritten(node: u64, min: Position) -> Self {
        Self { node, location: None, written_blocks: 0, last_crc: 0, min }
    }

    pub(crate) fn encode(&self) -> Value {
        let location =
            self.location.unwrap_or(Location { member: NOWHERE, generation: 0, block: 0 });
        let disk = DiskPointer {
            node: U64::new(self.node),
            block: U64::new(location.block),
            generation: U32::new(location.generation),
            written_blocks: U16::new(self.written_blocks),
            member: location.member,
            reserved: 0,
            last_crc: U32::new(self.last_crc),
            min: self.min.into(),
        };
        Value::from_slice(disk.as_bytes())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let disk = DiskPointer::read_from_bytes(bytes)
            .map_err(|_| StoreError::corrupt("node pointer", format!("{} bytes", bytes.len())))?;
        let location = (disk.member != NOWHERE).then(|| Location {
            member: disk.member,
            generation: disk.generation.get(),
            block: disk.block.get(),
        });
        if location.is_none() != (disk.written_blocks.get() == 0) {
            return Err(StoreError::corrupt("node pointer", "place and length disagree"));
        }
        Ok(Self {
            node: disk.node.get(),
            location,
            written_blocks: disk.written_blocks.get(),
            last_crc: disk.last_crc.get(),
            min: disk.min.into(),
        })
    }
}

/// What a bset is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BsetInfo {
    pub(crate) tree: Tree,
    pub(crate) level: u8,
    pub(crate) node: u64,
    pub(crate) index: u16,
    /// Checksum of the bset before, 0 of the first.
    pub(crate) previous: u32,
    pub(crate) journal_seq: u64,
    pub(crate) min: Position,
    pub(crate) max: Position,
}

/// A bset that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bset {
    pub(crate) info: BsetInfo,
    pub(crate) blocks: usize,
    pub(crate) crc: u32,
}

/// Bytes that a key with a value of `value_bytes` takes in a bset.
pub(crate) const fn key_bytes(value_bytes: usize) -> usize {
    size_of::<KeyHeader>() + value_bytes
}

/// Bytes of a bset's header.
pub(crate) const BSET_HEADER_BYTES: usize = size_of::<BsetHeader>();

/// Collects keys in order and seals them into a bset.
pub(crate) struct BsetWriter {
    bytes: Vec<u8>,
    keys: u32,
}

impl BsetWriter {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; BSET_HEADER_BYTES], keys: 0 }
    }

    /// Appends a key; `None`: it was deleted.
    pub(crate) fn push(&mut self, position: Position, value: Option<&[u8]>) {
        let header = KeyHeader {
            position: position.into(),
            kind: u8::from(value.is_some()),
            reserved: 0,
            bytes: U16::new(value.map_or(0, <[u8]>::len) as u16),
        };
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(value.unwrap_or_default());
        self.keys += 1;
    }

    /// Bytes so far, header included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bset for byte `offset` of its member, padded to whole blocks, and its checksum.
    pub(crate) fn seal(mut self, info: &BsetInfo, offset: u64) -> (Vec<u8>, u32) {
        let header = BsetHeader {
            crc: U32::new(0),
            magic: MAGIC,
            version: VERSION,
            tree: info.tree as u8,
            level: info.level,
            reserved: 0,
            index: U16::new(info.index),
            reserved2: U16::new(0),
            previous: U32::new(info.previous),
            keys: U32::new(self.keys),
            bytes: U32::new((self.bytes.len() - BSET_HEADER_BYTES) as u32),
            node: U64::new(info.node),
            journal_seq: U64::new(info.journal_seq),
            min: info.min.into(),
            max: info.max.into(),
        };
        self.bytes[..BSET_HEADER_BYTES].copy_from_slice(header.as_bytes());
        let crc = checksum(&self.bytes, offset);
        self.bytes[..4].copy_from_slice(U32::new(crc).as_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(NODE_BLOCK), 0);
        (self.bytes, crc)
    }
}

fn checksum(bset: &[u8], offset: u64) -> u32 {
    let crc = crc32c_append(crc32c(&[0; 4]), &bset[4..]);
    crc32c_append(crc, &offset.to_le_bytes())
}

/// Reads the bset at the start of `bytes`, which lie at byte `offset` of their member. Calls `key` for
/// each key in order.
///
/// # Errors
/// `Corrupt` when it is not a valid bset.
pub(crate) fn read_bset(
    bytes: &[u8],
    offset: u64,
    mut key: impl FnMut(Position, Option<&[u8]>),
) -> Result<Bset> {
    let bad = |why: &str| StoreError::corrupt("bset", format!("{why} at byte {offset}"));
    let (header, rest) = BsetHeader::read_from_prefix(bytes).map_err(|_| bad("header cut off"))?;
    let len = header.bytes.get() as usize;
    if header.magic != MAGIC || header.version != VERSION {
        return Err(bad("magic or version is wrong"));
    }
    if len > rest.len() {
        return Err(bad("reaches past its node"));
    }
    if checksum(&bytes[..BSET_HEADER_BYTES + len], offset) != header.crc.get() {
        return Err(bad("checksum does not match"));
    }
    let info = BsetInfo {
        tree: Tree::from_disk(header.tree)?,
        level: header.level,
        node: header.node.get(),
        index: header.index.get(),
        previous: header.previous.get(),
        journal_seq: header.journal_seq.get(),
        min: header.min.into(),
        max: header.max.into(),
    };
    let mut rest = &rest[..len];
    let mut last: Option<Position> = None;
    for _ in 0..header.keys.get() {
        let (head, after) =
            KeyHeader::read_from_prefix(rest).map_err(|_| bad("a key is cut off"))?;
        let position = Position::from(head.position);
        let value_bytes = usize::from(head.bytes.get());
        if value_bytes > after.len() || value_bytes > VALUE_BYTES_MAX || head.kind > 1 {
            return Err(bad("a value is cut off or too long"));
        }
        if last.is_some_and(|last| last >= position) || position < info.min || position > info.max {
            return Err(bad("keys are out of order or out of the node's range"));
        }
        last = Some(position);
        key(position, (head.kind == 1).then(|| &after[..value_bytes]));
        rest = &after[value_bytes..];
    }
    if !rest.is_empty() {
        return Err(bad("bytes are left after the last key"));
    }
    let blocks = (BSET_HEADER_BYTES + len).div_ceil(NODE_BLOCK);
    Ok(Bset { info, blocks, crc: header.crc.get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (BsetInfo, Vec<u8>) {
        let info = BsetInfo {
            tree: Tree::Dirents,
            level: 0,
            node: 77,
            index: 1,
            previous: 5,
            journal_seq: 9,
            min: Position::MIN,
            max: Position::MAX,
        };
        let mut writer = BsetWriter::new();
        writer.push(Position::new(1, 2, 3), Some(b"abc"));
        writer.push(Position::new(1, 2, 4), None);
        writer.push(Position::new(2, 0, 0), Some(b""));
        (info, writer.seal(&info, 4096).0)
    }

    #[test]
    fn round_trip() {
        let (info, bytes) = sample();
        let mut keys = Vec::new();
        let read = read_bset(&bytes, 4096, |position, value| {
            keys.push((position.inode, position.snapshot, value.map(<[u8]>::to_vec)));
        });
        let crc = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        assert_eq!(read, Ok(Bset { info, blocks: 1, crc }));
        let expected = [(1, 3, Some(b"abc".to_vec())), (1, 4, None), (2, 0, Some(Vec::new()))];
        assert_eq!(keys, expected);
        assert!(read_bset(&bytes, 8192, |_, _| ()).is_err(), "misdirected");
    }

    #[test]
    fn damage_is_an_error() {
        let (_, bytes) = sample();
        let len = BSET_HEADER_BYTES + 3 * 24 + 3;
        for at in 0..len {
            let mut bad = bytes.clone();
            bad[at] ^= 0x41;
            assert!(read_bset(&bad, 4096, |_, _| ()).is_err(), "byte {at}");
            assert!(read_bset(&bytes[..at], 4096, |_, _| ()).is_err());
        }
    }

    #[test]
    fn pointers_round_trip() {
        let location = Some(Location { member: 3, generation: 4, block: 1 << 33 });
        for pointer in [
            NodePointer {
                location,
                written_blocks: 5,
                last_crc: 9,
                ..NodePointer::unwritten(1, Position::new(1, 2, 3))
            },
            NodePointer::unwritten(2, Position::MIN),
        ] {
            assert_eq!(NodePointer::decode(&pointer.encode()), Ok(pointer));
        }
        assert!(NodePointer::decode(&[0; 47]).is_err());
    }
}
