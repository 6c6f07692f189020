//! The value of an extent: where a run of an inode's blocks lies, and the checksum of each.
//!
//! Key: (inode, END block, snapshot); the value tells the length. An uncompressed extent can be cut at
//! any block: pointers advance and checksums are dropped. An extent never crosses a bucket.
//!
//! A *hole* has no pointers: its blocks read as zeroes, whatever versions above hold there ([`crate::version`]).

use smallvec::SmallVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Result, StoreError};
use crate::key::{Position, Value};

/// Longest extent in blocks: 128 KiB. What one device command carries well, and what keeps a value
/// with its checksums below [`crate::key::VALUE_BYTES_MAX`].
pub const EXTENT_BLOCKS_MAX: u32 = 32;

/// Blocks of the largest member: 2^31 buckets of 64 MiB.
const MEMBER_BLOCKS_MAX: u64 = 1 << (31 + 14);
/// Most copies of one extent.
pub const POINTERS_MAX: usize = 4;

const VERSION: u8 = 1;

/// Fixed part of an extent on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct ExtentHeader {
    /// Version of this layout: 1.
    version: u8,
    /// Pointers that follow, 1 to 4; 0 in a hole.
    pointers: u8,
    /// Checksum of each block: 0 none (a hole), 1 CRC-32C.
    checksum: u8,
    /// Compression: 0 none; others are reserved.
    compression: u8,
    /// Encryption: 0 none; others are reserved.
    encryption: u8,
    /// Reserved, zero.
    reserved: u8,
    /// Logical length in blocks.
    blocks: U16,
    /// Blocks on disk (equal to `blocks` unless compressed; 0 of a hole).
    disk_blocks: U16,
    /// First logical block within the decoded data (0 unless compressed and cut).
    decoded_offset_blocks: U16,
    /// Blocks of the decoded data (equal to `blocks` unless compressed; 0 of a hole).
    decoded_blocks: U16,
    /// Reserved, zero.
    reserved2: U16,
}

/// A pointer on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct ExtentPointer {
    /// First block on the member (4096-byte units from its start).
    block: U64,
    /// Generation of the bucket when it was written: a stale pointer is recognised by it.
    generation: U32,
    /// Member device.
    member: u8,
    /// Reserved, zero.
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<ExtentHeader>() == 16);
const _: () = assert!(size_of::<ExtentPointer>() == 16);
const _: () = assert!(
    16 + 16 * POINTERS_MAX + 4 * (EXTENT_BLOCKS_MAX as usize) <= crate::key::VALUE_BYTES_MAX
);

/// One copy of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// Member device.
    pub member: u8,
    /// Generation of the bucket when it was written.
    pub generation: u32,
    /// First block on the member.
    pub block: u64,
}

/// A decoded extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in blocks, 1 to [`EXTENT_BLOCKS_MAX`].
    pub blocks: u32,
    /// Copies, at least one; none of a hole.
    pub pointers: SmallVec<[Pointer; 1]>,
    /// CRC-32C of each block, `blocks` of them; none of a hole.
    pub checksums: SmallVec<[u32; 4]>,
}

impl Extent {
    /// The keys of this extent, now at `position`, at another place, in as many pieces as that has.
    pub(crate) fn moved_to(
        &self,
        position: Position,
        parts: &[(Pointer, u32)],
    ) -> Vec<(Position, Value)> {
        let mut done = 0;
        let keys = parts.iter().map(|(pointer, blocks)| {
            let mut part = self.cut(done, *blocks);
            part.pointers = SmallVec::from_iter([*pointer]);
            done += blocks;
            let left = u64::from(self.blocks - done);
            let end = Position { offset: position.offset - left, ..position };
            (end, part.encode())
        });
        keys.collect()
    }

    /// A hole of so many blocks.
    #[must_use]
    pub fn hole(blocks: u32) -> Self {
        Self { blocks, pointers: SmallVec::new(), checksums: SmallVec::new() }
    }

    /// Whether it says that there is nothing.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.pointers.is_empty()
    }

    /// Blocks of its data that lie on devices.
    #[must_use]
    pub fn data_blocks(&self) -> u32 {
        if self.is_hole() { 0 } else { self.blocks }
    }

    /// The bytes for the index.
    #[must_use]
    pub fn encode(&self) -> Value {
        assert!(self.blocks >= 1 && self.blocks <= EXTENT_BLOCKS_MAX);
        assert!(self.pointers.len() <= POINTERS_MAX);
        assert!(self.checksums.len() == self.data_blocks() as usize);
        let checksums = self.checksums.iter().copied().map(U32::new);
        encode(self.blocks, self.pointers.iter().copied(), checksums)
    }

    /// Parses a value of the extents tree.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not an extent of this format.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let view = ExtentView::parse(bytes)?;
        Ok(view.cut(0, view.blocks()))
    }

    /// The part `start .. start + blocks` of this extent.
    ///
    /// # Panics
    /// When the part is empty or reaches past the end.
    #[must_use]
    pub fn cut(&self, start: u32, blocks: u32) -> Self {
        assert!(blocks >= 1 && start + blocks <= self.blocks);
        let pointers = self
            .pointers
            .iter()
            .map(|pointer| Pointer { block: pointer.block + u64::from(start), ..*pointer })
            .collect();
        let checksums = part_of(&self.checksums, start, blocks).into();
        Self { blocks, pointers, checksums }
    }
}

/// The checksums of a part of an extent; of a hole, which has none, none.
fn part_of<T>(checksums: &[T], start: u32, blocks: u32) -> &[T] {
    if checksums.is_empty() {
        return checksums;
    }
    &checksums[start as usize..(start + blocks) as usize]
}

/// The bytes of an extent with these pointers and checksums.
fn encode(
    blocks: u32,
    pointers: impl ExactSizeIterator<Item = Pointer>,
    checksums: impl ExactSizeIterator<Item = U32>,
) -> Value {
    let data_blocks = U16::new(checksums.len() as u16);
    let header = ExtentHeader {
        version: VERSION,
        pointers: pointers.len() as u8,
        checksum: u8::from(pointers.len() > 0),
        compression: 0,
        encryption: 0,
        reserved: 0,
        blocks: U16::new(blocks as u16),
        disk_blocks: data_blocks,
        decoded_offset_blocks: U16::new(0),
        decoded_blocks: data_blocks,
        reserved2: U16::new(0),
    };
    let bytes = size_of::<ExtentHeader>()
        + size_of::<ExtentPointer>() * pointers.len()
        + size_of::<U32>() * checksums.len();
    let mut value = Value::with_capacity(bytes);
    value.extend_from_slice(header.as_bytes());
    for pointer in pointers {
        let disk = ExtentPointer {
            block: U64::new(pointer.block),
            generation: U32::new(pointer.generation),
            member: pointer.member,
            reserved: [0; 3],
        };
        value.extend_from_slice(disk.as_bytes());
    }
    for checksum in checksums {
        value.extend_from_slice(checksum.as_bytes());
    }
    value
}

/// An extent as its value holds it: checked, and copied only where it is wanted. A read of one block
/// of a long extent needs one of its checksums.
#[derive(Clone, Copy)]
pub(crate) struct ExtentView<'a> {
    blocks: u32,
    pointers: &'a [ExtentPointer],
    /// `blocks` of them, or of a hole none.
    checksums: &'a [U32],
}

impl<'a> ExtentView<'a> {
    /// Parses a value of the extents tree.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not an extent of this format.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let bad = |why: &str| StoreError::corrupt("extent", why);
        let (header, rest) =
            ExtentHeader::ref_from_prefix(bytes).map_err(|_| bad("shorter than its header"))?;
        let blocks = u32::from(header.blocks.get());
        let pointer_count = usize::from(header.pointers);
        if header.version != VERSION {
            return Err(bad("version is not known"));
        }
        let is_hole = pointer_count == 0;
        if header.compression != 0
            || header.encryption != 0
            || header.checksum != u8::from(!is_hole)
        {
            return Err(bad("uses compression, encryption or a checksum this version lacks"));
        }
        if blocks == 0 || blocks > EXTENT_BLOCKS_MAX {
            return Err(bad("length is out of range"));
        }
        let data_blocks = if is_hole { 0 } else { blocks };
        if u32::from(header.disk_blocks.get()) != data_blocks
            || u32::from(header.decoded_blocks.get()) != data_blocks
            || header.decoded_offset_blocks.get() != 0
        {
            return Err(bad("uncompressed, but its lengths differ"));
        }
        if pointer_count > POINTERS_MAX {
            return Err(bad("number of pointers is out of range"));
        }
        let length = || bad("length does not fit its pointers and checksums");
        let (pointers, rest) = <[ExtentPointer]>::ref_from_prefix_with_elems(rest, pointer_count)
            .map_err(|_| length())?;
        let checksums =
            <[U32]>::ref_from_bytes_with_elems(rest, data_blocks as usize).map_err(|_| length())?;
        // Whoever uses it counts in bytes from here on.
        if pointers.iter().any(|pointer| pointer.block.get() >= MEMBER_BLOCKS_MAX) {
            return Err(bad("lies past the end of any member"));
        }
        Ok(Self { blocks, pointers, checksums })
    }

    /// Length in blocks, 1 to [`EXTENT_BLOCKS_MAX`].
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether it says that there is nothing.
    pub(crate) fn is_hole(&self) -> bool {
        self.pointers.is_empty()
    }

    /// Copies, at least one; none of a hole.
    pub(crate) fn pointers(&self) -> impl ExactSizeIterator<Item = Pointer> {
        self.pointers.iter().map(|disk| Pointer {
            member: disk.member,
            generation: disk.generation.get(),
            block: disk.block.get(),
        })
    }

    /// The part `start .. start + blocks`.
    ///
    /// # Panics
    /// When the part is empty or reaches past the end.
    pub(crate) fn cut(&self, start: u32, blocks: u32) -> Extent {
        let (pointers, checksums) = self.part(start, blocks);
        let checksums = checksums.iter().map(|checksum| checksum.get()).collect();
        Extent { blocks, pointers: pointers.collect(), checksums }
    }

    /// [`ExtentView::cut`], as the bytes for the index.
    pub(crate) fn encode_cut(&self, start: u32, blocks: u32) -> Value {
        let (pointers, checksums) = self.part(start, blocks);
        encode(blocks, pointers, checksums.iter().copied())
    }

    fn part(&self, start: u32, blocks: u32) -> (impl ExactSizeIterator<Item = Pointer>, &'a [U32]) {
        assert!(blocks >= 1 && start + blocks <= self.blocks);
        let advanced =
            move |pointer: Pointer| Pointer { block: pointer.block + u64::from(start), ..pointer };
        let checksums = part_of(self.checksums, start, blocks);
        (self.pointers().map(advanced), checksums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Extent {
        Extent {
            blocks: 3,
            pointers: [Pointer { member: 2, generation: 7, block: 1 << 40 }].into_iter().collect(),
            checksums: [1, 2, 3].into_iter().collect(),
        }
    }

    /// A place past any member was taken, and its byte offset overflowed when it was read.
    #[test]
    fn a_place_past_the_end_of_any_member_is_refused() {
        for (block, good) in [(MEMBER_BLOCKS_MAX - 1, true), (MEMBER_BLOCKS_MAX, false)] {
            let mut extent = sample();
            extent.pointers[0].block = block;
            assert_eq!(Extent::decode(&extent.encode()).is_ok(), good, "{block}");
        }
    }

    #[test]
    fn encodes_and_decodes() {
        let extent = sample();
        assert_eq!(Extent::decode(&extent.encode()), Ok(extent.clone()));
        let part = extent.cut(1, 2);
        assert_eq!(part.pointers[0].block, (1 << 40) + 1);
        assert_eq!(part.checksums.as_slice(), [2, 3]);
        assert_eq!(Extent::decode(&part.encode()), Ok(part.clone()));
        let value = extent.encode();
        let view = ExtentView::parse(&value).unwrap();
        assert_eq!(view.cut(1, 2), part);
        assert_eq!(view.encode_cut(1, 2), part.encode());
    }

    #[test]
    fn a_hole_has_a_length_and_nothing_else() {
        let hole = Extent::hole(32);
        let value = hole.encode();
        assert_eq!(Extent::decode(&value), Ok(hole.clone()));
        let view = ExtentView::parse(&value).unwrap();
        assert!(view.is_hole() && hole.is_hole() && !sample().is_hole());
        assert_eq!((view.blocks(), hole.data_blocks(), view.pointers().len()), (32, 0, 0));
        assert_eq!(view.encode_cut(3, 7), Extent::hole(7).encode());
        assert_eq!(hole.cut(3, 7), Extent::hole(7));
        let mut two = sample();
        two.pointers.clear();
        two.checksums.clear();
        assert_eq!(two, Extent::hole(3));
    }

    #[test]
    fn any_damage_is_an_error_or_another_extent_but_no_panic() {
        let good = sample().encode();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = Extent::decode(&bad);
            }
            assert!(Extent::decode(&good[..at]).is_err());
        }
    }
}
