//! The value of an extent: where a run of an inode's blocks lies, and the checksum of each block there.
//!
//! Key: (inode, END block, snapshot); the value tells the length. An uncompressed extent can be cut at
//! any block: pointers advance and checksums are dropped. An extent never crosses a bucket.
//!
//! A compressed extent is a *frame* ([`crate::codec`]): fewer blocks on disk than it has. It can be cut, too: each
//! part names all of the frame, and which of its decoded blocks it is. Such a part counts as as many live blocks as
//! it would take alone at most, its own or those of the frame: so the parts of a frame count for no more than its
//! decoded blocks, and moving a part elsewhere never takes more than it counted for.
//!
//! A *hole* has no pointers: its blocks read as zeroes, whatever versions above hold there ([`crate::version`]).
//!
//! Blocks that several places have in common are one *shared* extent, at a key of its own, its [`Address`], and a
//! *reference* to it at each of these places ([`crate::data`]).

use smallvec::SmallVec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::Algorithm;
use crate::error::{Result, StoreError};
use crate::key::{Position, Value};
use crate::planted::{self, Bug};

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
    /// Compression: 0 none; else an [`Algorithm`].
    compression: u8,
    /// Encryption: 0 none; others are reserved.
    encryption: u8,
    /// 0: of one inode alone; 1: a reference, an [`ExtentAddress`] follows and nothing else; 2: shared,
    /// [`ExtentHolders`] follow the checksums.
    sharing: u8,
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

/// An address on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct ExtentAddress {
    /// Its space: see [`Address`].
    space: U64,
    /// Its first block in that.
    block: U64,
}

/// Holders on disk.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct ExtentHolders {
    /// How many, at least 1.
    count: U32,
    /// Their versions, by exclusive or.
    version: U32,
    /// Their inodes, by exclusive or.
    inode: U64,
    /// Their shifts, by exclusive or.
    shift: U64,
}

const _: () = assert!(size_of::<ExtentHeader>() == 16);
const _: () = assert!(size_of::<ExtentAddress>() == 16);
const _: () = assert!(size_of::<ExtentHolders>() == 24);
const _: () = assert!(size_of::<ExtentPointer>() == 16);
const _: () = assert!(
    16 + 16 * POINTERS_MAX + 4 * (EXTENT_BLOCKS_MAX as usize) + 24 <= crate::key::VALUE_BYTES_MAX
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Length in blocks, 1 to [`EXTENT_BLOCKS_MAX`].
    pub blocks: u32,
    /// Copies, at least one; none of a hole.
    pub pointers: SmallVec<[Pointer; 1]>,
    /// CRC-32C of each block on disk: `blocks` of them, fewer when they are compressed, none of a hole.
    pub checksums: SmallVec<[u32; 4]>,
    /// How its blocks are found in what is on disk; `None`: they are what is there.
    pub frame: Option<FramePart>,
    /// Whether others have its blocks, too.
    pub sharing: Sharing,
}

/// Who has the blocks of an extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// The inode and version of its key, alone.
    #[default]
    Alone,
    /// They are at this address, perhaps in several shared extents; the extent has nothing itself.
    Reference(Address),
    /// Those who refer to it; its key is its address.
    Shared(Holders),
}

/// Where shared blocks are found in the extents tree, for as long as they are shared: named after the place on disk
/// where they were when that began, so that all that came to be shared in a bucket is side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// In place of an inode: [`Address::SPACES`], the member's number shifted left by 32, the generation of the
    /// bucket, and [`Address::FRAMES`] for blocks of a frame.
    pub space: u64,
    /// The block on the member; of a frame, 32 times the frame's first block plus the number of the decoded block.
    pub block: u64,
}

impl Address {
    /// Where the numbers of spaces begin. Inodes have lower ones.
    pub const SPACES: u64 = 1 << 63;
    /// Of blocks in frames.
    pub const FRAMES: u64 = 1 << 62;

    /// Of the first block of an extent that is no reference and no hole.
    pub(crate) fn of(extent: &Extent) -> Self {
        let Pointer { member, generation, block } = extent.pointers[0];
        let frames = if extent.frame.is_some() { Self::FRAMES } else { 0 };
        let space = Self::space(frames, member, generation);
        match extent.frame {
            None => Self { space, block },
            Some(frame) => {
                Self { space, block: block * Self::blocks_per_frame() + u64::from(frame.offset) }
            }
        }
    }

    /// The space of what was in buckets of a generation.
    pub(crate) fn space(frames: u64, member: u8, generation: u32) -> u64 {
        Self::SPACES | frames | u64::from(member) << 32 | u64::from(generation)
    }

    /// Addresses that the first block of a frame stands for.
    pub(crate) fn blocks_per_frame() -> u64 {
        u64::from(EXTENT_BLOCKS_MAX)
    }

    /// So many blocks on.
    pub(crate) fn after(self, blocks: u64) -> Self {
        Self { block: self.block + blocks, ..self }
    }

    /// Whether a key of the extents tree is an address rather than a place in an inode.
    pub(crate) fn is_space(inode: u64) -> bool {
        inode >= Self::SPACES
    }
}

/// A reference to a shared extent, told by where the extent's blocks are seen through it. Cutting a reference does not
/// change what it is to the extents that it still covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Inode with the reference.
    pub inode: u64,
    /// Version of it.
    pub version: u32,
    /// Block of the inode, less the block of the address (wrapping).
    pub shift: u64,
}

/// All references to a shared extent: how many, and who they are taken together by exclusive or. Of one reference that
/// is who it is; so the last one is found without a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// How many.
    pub count: u32,
    together: Together,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Together {
    inode: u64,
    version: u32,
    shift: u64,
}

impl Holders {
    /// One.
    #[must_use]
    pub fn one(holder: Holder) -> Self {
        let mut this = Self { count: 1, together: Together::default() };
        this.toggle(holder);
        this
    }

    /// Adds one. False: there are as many as can be counted.
    #[must_use]
    pub fn add(&mut self, holder: Holder) -> bool {
        let Some(count) = self.count.checked_add(1) else { return false };
        self.count = count;
        self.toggle(holder);
        true
    }

    /// Takes one away, which is among them.
    pub fn remove(&mut self, holder: Holder) {
        self.count = self.count.saturating_sub(1);
        self.toggle(holder);
    }

    /// The last one.
    #[must_use]
    pub fn only(&self) -> Option<Holder> {
        let Together { inode, version, shift } = self.together;
        (self.count == 1).then_some(Holder { inode, version, shift })
    }

    /// What takes these away, for [`Holders::merge`].
    pub(crate) fn gone(self) -> Self {
        Self { count: self.count.wrapping_neg(), ..self }
    }

    /// Adds others, or what takes them away.
    pub(crate) fn merge(&mut self, others: Self) {
        let Together { inode, version, shift } = others.together;
        self.count = self.count.wrapping_add(others.count);
        self.toggle(Holder { inode, version, shift });
    }

    /// Adds or takes away one without counting.
    fn toggle(&mut self, holder: Holder) {
        self.together.inode ^= holder.inode;
        self.together.version ^= holder.version;
        self.together.shift ^= holder.shift;
    }
}

/// The part of a frame that an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePart {
    /// How the frame is decoded.
    pub algorithm: Algorithm,
    /// Its blocks when it is decoded, 2 to [`EXTENT_BLOCKS_MAX`].
    pub blocks: u32,
    /// Which of these is the extent's first.
    pub offset: u32,
}

impl Extent {
    /// The keys of this extent, now at `position`, at another place, in as many pieces as that has: one, when it is
    /// compressed.
    pub(crate) fn moved_to(
        &self,
        position: Position,
        parts: &[(Pointer, u32)],
    ) -> Vec<(Position, Value)> {
        if self.frame.is_some() {
            assert!(parts.len() == 1, "a frame lies in one piece");
            let there = Self { pointers: SmallVec::from_iter([parts[0].0]), ..self.clone() };
            return vec![(position, there.encode())];
        }
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
        Self { blocks, ..Self::default() }
    }

    /// A reference to so many shared blocks.
    #[must_use]
    pub fn reference(address: Address, blocks: u32) -> Self {
        Self { blocks, sharing: Sharing::Reference(address), ..Self::default() }
    }

    /// Whether it says that there is nothing.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.pointers.is_empty() && self.address().is_none()
    }

    /// Who refers to it, of a shared extent.
    #[must_use]
    pub fn holders(&self) -> Option<Holders> {
        match self.sharing {
            Sharing::Shared(holders) => Some(holders),
            Sharing::Alone | Sharing::Reference(_) => None,
        }
    }

    /// Where its blocks are, of a reference.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        match self.sharing {
            Sharing::Reference(address) => Some(address),
            Sharing::Alone | Sharing::Shared(_) => None,
        }
    }

    /// Blocks on each device that it names.
    #[must_use]
    pub fn disk_blocks(&self) -> u32 {
        self.checksums.len() as u32
    }

    /// Blocks that it counts for: those that it takes on disk, or would at most if it were moved.
    #[must_use]
    pub fn live_blocks(&self) -> u32 {
        self.blocks.min(self.disk_blocks())
    }

    /// Whether it is all that what it names on disk holds.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.frame.is_none_or(|frame| frame.blocks == self.blocks)
    }

    /// The bytes for the index.
    #[must_use]
    pub fn encode(&self) -> Value {
        assert!(self.blocks >= 1 && self.blocks <= EXTENT_BLOCKS_MAX);
        assert!(self.pointers.len() <= POINTERS_MAX);
        assert!(match self.frame {
            None =>
                self.pointers.is_empty() && self.checksums.is_empty()
                    || self.disk_blocks() == self.blocks,
            Some(frame) =>
                self.disk_blocks() < frame.blocks && frame.offset + self.blocks <= frame.blocks,
        });
        let checksums = self.checksums.iter().copied().map(U32::new);
        let (blocks, frame, sharing) = (self.blocks, self.frame, self.sharing);
        encode((blocks, frame, sharing), self.pointers.iter().copied(), checksums)
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
        if let Some(frame) = self.frame {
            let frame = Some(FramePart { offset: frame.offset + start, ..frame });
            return Self { blocks, frame, sharing: self.sharing.after(start), ..self.clone() };
        }
        let pointers = self
            .pointers
            .iter()
            .map(|pointer| Pointer { block: pointer.block + u64::from(start), ..*pointer })
            .collect();
        let checksums = part_of(&self.checksums, start, blocks).into();
        Self { blocks, pointers, checksums, frame: None, sharing: self.sharing.after(start) }
    }
}

impl Sharing {
    /// Of what begins so many blocks on.
    fn after(self, blocks: u32) -> Self {
        match self {
            Self::Reference(address) => Self::Reference(address.after(u64::from(blocks))),
            Self::Alone | Self::Shared(_) => self,
        }
    }

    fn to_disk(self) -> u8 {
        match self {
            Self::Alone => 0,
            Self::Reference(_) => 1,
            Self::Shared(_) => 2,
        }
    }

    /// Bytes behind the checksums.
    fn bytes(self) -> usize {
        match self {
            Self::Alone => 0,
            Self::Reference(_) => size_of::<ExtentAddress>(),
            Self::Shared(_) => size_of::<ExtentHolders>(),
        }
    }

    fn append_to(self, value: &mut Value) {
        match self {
            Self::Alone => {}
            Self::Reference(Address { space, block }) => {
                let disk = ExtentAddress { space: U64::new(space), block: U64::new(block) };
                value.extend_from_slice(disk.as_bytes());
            }
            Self::Shared(Holders { count, together }) => {
                let disk = ExtentHolders {
                    count: U32::new(count),
                    version: U32::new(together.version),
                    inode: U64::new(together.inode),
                    shift: U64::new(together.shift),
                };
                value.extend_from_slice(disk.as_bytes());
            }
        }
    }
}

impl Extent {
    /// This extent and the one behind it as one, when they were cut from one and lie as they did then.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let blocks = self.blocks + next.blocks;
        let [pointer] = self.pointers.as_slice() else { return None };
        if blocks > EXTENT_BLOCKS_MAX || self.sharing != next.sharing {
            return None;
        }
        if let (Some(frame), Some(follows)) = (self.frame, next.frame) {
            let expected = FramePart { offset: frame.offset + self.blocks, ..frame };
            let same = self.pointers == next.pointers && self.checksums == next.checksums;
            return (same && follows == expected).then(|| Self { blocks, ..self.clone() });
        }
        let behind = Pointer { block: pointer.block + u64::from(self.blocks), ..*pointer };
        if self.frame.is_some() || next.frame.is_some() || next.pointers.as_slice() != [behind] {
            return None;
        }
        let checksums = self.checksums.iter().chain(&next.checksums).copied().collect();
        Some(Self { blocks, checksums, ..self.clone() })
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
    (blocks, frame, sharing): (u32, Option<FramePart>, Sharing),
    pointers: impl ExactSizeIterator<Item = Pointer>,
    checksums: impl ExactSizeIterator<Item = U32>,
) -> Value {
    let disk_blocks = checksums.len() as u16;
    let (compression, decoded_offset, decoded_blocks) = match frame {
        None => (0, 0, disk_blocks),
        Some(frame) => (frame.algorithm.to_disk(), frame.offset as u16, frame.blocks as u16),
    };
    let header = ExtentHeader {
        version: VERSION,
        pointers: pointers.len() as u8,
        checksum: u8::from(pointers.len() > 0),
        compression,
        encryption: 0,
        sharing: sharing.to_disk(),
        blocks: U16::new(blocks as u16),
        disk_blocks: U16::new(disk_blocks),
        decoded_offset_blocks: U16::new(decoded_offset),
        decoded_blocks: U16::new(decoded_blocks),
        reserved2: U16::new(0),
    };
    let bytes = size_of::<ExtentHeader>()
        + size_of::<ExtentPointer>() * pointers.len()
        + size_of::<U32>() * checksums.len()
        + sharing.bytes();
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
    sharing.append_to(&mut value);
    value
}

/// An extent as its value holds it: checked, and copied only where it is wanted. A read of one block
/// of a long extent needs one of its checksums.
#[derive(Clone, Copy)]
pub(crate) struct ExtentView<'a> {
    blocks: u32,
    pointers: &'a [ExtentPointer],
    /// One for each block on disk.
    checksums: &'a [U32],
    frame: Option<FramePart>,
    sharing: Sharing,
}

/// Parses what an extent says of its lengths: the blocks on disk, and of which frame it is a part.
fn lengths(header: &ExtentHeader) -> std::result::Result<(u32, Option<FramePart>), &'static str> {
    let blocks = u32::from(header.blocks.get());
    let disk_blocks = u32::from(header.disk_blocks.get());
    let decoded_blocks = u32::from(header.decoded_blocks.get());
    let offset = u32::from(header.decoded_offset_blocks.get());
    if blocks == 0 || blocks > EXTENT_BLOCKS_MAX {
        return Err("length is out of range");
    }
    // Or a reference.
    let is_hole = header.pointers == 0;
    if header.encryption != 0 || header.checksum != u8::from(!is_hole) {
        return Err("uses encryption or a checksum this version lacks");
    }
    if header.compression == 0 {
        let expected = if is_hole { 0 } else { blocks };
        return match (disk_blocks, decoded_blocks, offset) {
            (disk, decoded, 0) if disk == expected && decoded == expected => Ok((expected, None)),
            _ => Err("uncompressed, but its lengths differ"),
        };
    }
    let Some(algorithm) = Algorithm::from_disk(header.compression).filter(|_| !is_hole) else {
        return Err("uses a compression this version lacks");
    };
    if decoded_blocks > EXTENT_BLOCKS_MAX
        || !(1..decoded_blocks).contains(&disk_blocks)
        || offset + blocks > decoded_blocks
    {
        return Err("compressed, and its lengths do not fit each other");
    }
    Ok((disk_blocks, Some(FramePart { algorithm, blocks: decoded_blocks, offset })))
}

/// Parses what follows the checksums of an extent.
fn sharing(kind: u8, bytes: &[u8]) -> Option<Sharing> {
    if kind == 1 {
        let disk = ExtentAddress::ref_from_bytes(bytes).ok()?;
        let address = Address { space: disk.space.get(), block: disk.block.get() };
        let known = address.block < MEMBER_BLOCKS_MAX * Address::blocks_per_frame();
        return (known && Address::is_space(address.space)).then_some(Sharing::Reference(address));
    }
    let disk = ExtentHolders::ref_from_bytes(bytes).ok().filter(|_| kind == 2)?;
    let (version, inode, shift) = (disk.version.get(), disk.inode.get(), disk.shift.get());
    let together = Together { inode, version, shift };
    let holders = Holders { count: disk.count.get(), together };
    (holders.count > 0).then_some(Sharing::Shared(holders))
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
        let pointer_count = usize::from(header.pointers);
        if header.version != VERSION {
            return Err(bad("version is not known"));
        }
        let (disk_blocks, frame) = lengths(header).map_err(bad)?;
        let blocks = u32::from(header.blocks.get());
        if pointer_count > POINTERS_MAX {
            return Err(bad("number of pointers is out of range"));
        }
        let length = || bad("length does not fit its pointers and checksums");
        let (pointers, rest) = <[ExtentPointer]>::ref_from_prefix_with_elems(rest, pointer_count)
            .map_err(|_| length())?;
        let (checksums, rest) = <[U32]>::ref_from_prefix_with_elems(rest, disk_blocks as usize)
            .map_err(|_| length())?;
        let sharing = match (header.sharing, rest.len()) {
            (0, 0) => Sharing::Alone,
            (0..=2, _) => {
                let sharing = sharing(header.sharing, rest);
                let fits = |it: &Sharing| (pointer_count == 0) == (it.to_disk() == 1);
                sharing.filter(fits).ok_or_else(|| bad("what it shares does not fit it"))?
            }
            _ => return Err(bad("is shared in a way that is not known")),
        };
        // Whoever uses it counts in bytes from here on.
        if pointers.iter().any(|pointer| pointer.block.get() >= MEMBER_BLOCKS_MAX) {
            return Err(bad("lies past the end of any member"));
        }
        Ok(Self { blocks, pointers, checksums, frame, sharing })
    }

    /// Length in blocks, 1 to [`EXTENT_BLOCKS_MAX`].
    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether it says that there is nothing.
    pub(crate) fn is_hole(&self) -> bool {
        self.pointers.is_empty() && !self.is_reference()
    }

    /// Whether what it has is elsewhere.
    pub(crate) fn is_reference(&self) -> bool {
        matches!(self.sharing, Sharing::Reference(_))
    }

    /// As [`Extent::address`].
    pub(crate) fn address(&self) -> Option<Address> {
        match self.sharing {
            Sharing::Reference(address) => Some(address),
            Sharing::Alone | Sharing::Shared(_) => None,
        }
    }

    /// As [`Extent::disk_blocks`].
    pub(crate) fn disk_blocks(&self) -> u32 {
        self.checksums.len() as u32
    }

    /// Who refers to it, of a shared extent.
    pub(crate) fn holders(&self) -> Option<Holders> {
        match self.sharing {
            Sharing::Shared(holders) => Some(holders),
            Sharing::Alone | Sharing::Reference(_) => None,
        }
    }

    /// As [`Extent::live_blocks`].
    pub(crate) fn live_blocks(&self) -> u32 {
        self.blocks.min(self.disk_blocks())
    }

    /// Whether it is a frame, or a part of one.
    pub(crate) fn is_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// As [`Extent::is_whole`].
    pub(crate) fn is_whole(&self) -> bool {
        self.frame.is_none_or(|frame| frame.blocks == self.blocks)
    }

    /// Blocks that the part `start .. end` would count for, if it were an extent of its own; of none, 0.
    pub(crate) fn live_blocks_of(&self, start: u32, end: u32) -> u32 {
        (end - start).min(self.disk_blocks())
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
        let (frame, pointers, checksums) = self.part(start, blocks);
        let checksums = checksums.iter().map(|checksum| checksum.get()).collect();
        let sharing = self.sharing.after(start);
        Extent { blocks, pointers: pointers.collect(), checksums, frame, sharing }
    }

    /// [`ExtentView::cut`], as the bytes for the index.
    pub(crate) fn encode_cut(&self, start: u32, blocks: u32) -> Value {
        let (frame, pointers, checksums) = self.part(start, blocks);
        let sharing = self.sharing.after(start);
        encode((blocks, frame, sharing), pointers, checksums.iter().copied())
    }

    fn part(
        &self,
        start: u32,
        blocks: u32,
    ) -> (Option<FramePart>, impl ExactSizeIterator<Item = Pointer>, &'a [U32]) {
        assert!(blocks >= 1 && start + blocks <= self.blocks);
        let by = if planted::is(Bug::FrameOffsetForgotten) { 0 } else { start };
        let frame = self.frame.map(|frame| FramePart { offset: frame.offset + by, ..frame });
        let (by, checksums) = match frame {
            None => (u64::from(start), part_of(self.checksums, start, blocks)),
            Some(_) => (0, self.checksums),
        };
        let advanced = move |pointer: Pointer| Pointer { block: pointer.block + by, ..pointer };
        (frame, self.pointers().map(advanced), checksums)
    }
}

#[cfg(test)]
mod tests;
