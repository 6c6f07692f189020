//! Frames of a stream: docs/format.md, "Streams".

use engine_base::BLOCK_SIZE;
use engine_base::checksum::crc32c_append;
use engine_store::StoreError;
use engine_store::api::{
    Algorithm, Compression, NAME_BYTES_MAX, SIZE_BYTES_MAX, SubvolumeKind, SubvolumeOptions,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::FRAME_DATA_MAX;
use crate::tree_frame::TreeFrame;

/// First bytes of every frame.
const MAGIC: [u8; 4] = *b"CRNf";
/// Version of the format that this writes, and the only one that it reads.
pub const VERSION: u16 = 1;

const BEGIN: u8 = 1;
const DATA: u8 = 2;
const HOLE: u8 = 3;
const END: u8 = 4;
const PLACE: u8 = 5;
// Of file trees: tree.rs.
pub(crate) const REMOVED: u8 = 6;
pub(crate) const NEW: u8 = 7;
pub(crate) const NAME: u8 = 8;
pub(crate) const NAMED: u8 = 9;
pub(crate) const NODE: u8 = 10;
pub(crate) const XATTR: u8 = 11;
pub(crate) const ATTRIBUTES: u8 = 12;

const KIND_VOLUME: u8 = 1;
const KIND_FILE_TREE: u8 = 2;

/// In front of each frame.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct FrameHeader {
    magic: [u8; 4],
    /// What the frame is.
    kind: u8,
    /// Reserved, zero.
    reserved: [u8; 3],
    /// Bytes that follow.
    len: U32,
    /// CRC-32C of this header with zero here, and of what follows; begun with the checksum of the first frame.
    crc: U32,
    /// Number of the frame; the first is 0.
    sequence: U64,
}

/// What the first frame holds; the name of the snapshot follows.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct BeginPayload {
    version: U16,
    /// Volume or file tree.
    kind: u8,
    /// Bytes of the name.
    name_len: u8,
    block_size: U32,
    source: [u8; 16],
    /// Zeroes: none.
    base: [u8; 16],
    size: U64,
    from: U64,
    created: U64,
    /// 0 none, else the algorithm, as in an extent.
    compression: u8,
    level: u8,
    reserved: U16,
    frame_bytes: U32,
}

const _: () = assert!(size_of::<FrameHeader>() == HEADER_BYTES);
const _: () = assert!(size_of::<BeginPayload>() == 72);

/// Bytes in front of what a frame holds.
pub const HEADER_BYTES: usize = 24;
/// Bytes that a frame holds at most.
const PAYLOAD_MAX: usize = FRAME_DATA_MAX + 8;

/// What a stream tells, and of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Name of the snapshot where it was sent; of no meaning elsewhere.
    pub name: String,
    /// Volume or file tree.
    pub kind: SubvolumeKind,
    /// What the snapshot holds: see [`crate::content_of`].
    pub source: [u8; 16],
    /// The same of the snapshot to which the stream tells the difference; `None`: it tells all.
    pub base: Option<[u8; 16]>,
    /// Size of a volume in bytes.
    pub size_bytes: u64,
    /// Logical block size of a volume in bytes.
    pub block_size: u32,
    /// How the data was to be stored.
    pub options: SubvolumeOptions,
    /// All before this position is left out.
    pub from: u64,
    /// When the snapshot was made, nanoseconds since the Unix epoch.
    pub created_ns: u64,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first.
    Begin(Begin),
    /// Data of a volume, or of the file that was named last.
    Data {
        /// First byte, a multiple of 4096.
        offset: u64,
        /// Whole blocks; the last of a file may be cut at its end.
        bytes: Vec<u8>,
    },
    /// A range of that reads as zeroes.
    Hole {
        /// First byte, a multiple of 4096.
        offset: u64,
        /// Bytes, a multiple of 4096, not 0.
        len: u64,
    },
    /// All before this place was told.
    Place {
        /// Where a stream may go on.
        position: u64,
    },
    /// Something of a file tree.
    Tree(TreeFrame),
    /// The last: all was told.
    End,
}

/// Why a stream is refused.
pub(crate) fn bad(why: impl std::fmt::Display) -> StoreError {
    StoreError::invalid(format!("stream: {why}"))
}

/// Makes frames.
#[derive(Default)]
pub struct Encoder {
    sequence: u64,
    seed: u32,
}

impl Encoder {
    /// The bytes of the next frame. What it holds is of [`FRAME_DATA_MAX`] bytes at most.
    #[must_use]
    pub fn frame(&mut self, frame: &Frame) -> Vec<u8> {
        match frame {
            Frame::Begin(begin) => {
                let payload = BeginPayload {
                    version: U16::new(VERSION),
                    kind: match begin.kind {
                        SubvolumeKind::Volume => KIND_VOLUME,
                        SubvolumeKind::FileTree => KIND_FILE_TREE,
                    },
                    name_len: begin.name.len() as u8,
                    block_size: U32::new(begin.block_size),
                    source: begin.source,
                    base: begin.base.unwrap_or_default(),
                    size: U64::new(begin.size_bytes),
                    from: U64::new(begin.from),
                    created: U64::new(begin.created_ns),
                    compression: begin
                        .options
                        .compression
                        .algorithm()
                        .map_or(0, Algorithm::to_disk),
                    level: begin.options.compression.level(),
                    reserved: U16::ZERO,
                    frame_bytes: U32::new(begin.options.frame_bytes),
                };
                let bytes = self.bytes(BEGIN, &[payload.as_bytes(), begin.name.as_bytes()]);
                self.seed = crc_of(&bytes);
                bytes
            }
            Frame::Data { offset, bytes } => self.data(*offset, &[bytes]),
            Frame::Hole { offset, len } => {
                self.bytes(HOLE, &[&offset.to_le_bytes(), &len.to_le_bytes()])
            }
            Frame::Place { position } => self.bytes(PLACE, &[&position.to_le_bytes()]),
            Frame::Tree(frame) => {
                let (kind, payload) = frame.encode();
                self.bytes(kind, &[&payload])
            }
            Frame::End => self.bytes(END, &[]),
        }
    }

    /// The bytes of a frame of data in pieces.
    #[must_use]
    pub fn data(&mut self, offset: u64, pieces: &[&[u8]]) -> Vec<u8> {
        let offset = offset.to_le_bytes();
        let mut payload: Vec<&[u8]> = Vec::with_capacity(pieces.len() + 1);
        payload.push(&offset);
        payload.extend(pieces);
        self.bytes(DATA, &payload)
    }

    fn bytes(&mut self, kind: u8, payload: &[&[u8]]) -> Vec<u8> {
        let len: usize = payload.iter().map(|piece| piece.len()).sum();
        assert!(len <= PAYLOAD_MAX, "a frame of {len} bytes");
        let header = FrameHeader {
            magic: MAGIC,
            kind,
            reserved: [0; 3],
            len: U32::new(len as u32),
            crc: U32::ZERO,
            sequence: U64::new(self.sequence),
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + len);
        bytes.extend_from_slice(header.as_bytes());
        payload.iter().for_each(|piece| bytes.extend_from_slice(piece));
        let crc = crc32c_append(self.seed, &bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        self.sequence += 1;
        bytes
    }
}

/// The checksum in the header of a frame.
fn crc_of(frame: &[u8]) -> u32 {
    FrameHeader::read_from_prefix(frame).map_or(0, |(header, _)| header.crc.get())
}

/// Takes a stream apart, in pieces of any size.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Of `buffer`, what is done with.
    taken: usize,
    sequence: u64,
    seed: u32,
    ended: bool,
}

impl Decoder {
    /// Takes bytes over; [`Decoder::next_frame`] is to be asked until there is no frame before more are given.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the last frame was met.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// When it is damaged, not of this stream, not the next one, or follows the end.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, StoreError> {
        let rest = &self.buffer[self.taken..];
        if rest.is_empty() {
            return Ok(None);
        }
        if self.ended {
            return Err(bad("goes on after its end"));
        }
        let start = &rest[..rest.len().min(4)];
        if *start != MAGIC[..start.len()] {
            let why = match self.sequence {
                0 => "is not one that cairn sent",
                _ => "is damaged: a frame does not begin as it must",
            };
            return Err(bad(why));
        }
        let Ok((header, _)) = FrameHeader::read_from_prefix(rest) else { return Ok(None) };
        let len = header.len.get() as usize;
        if len > PAYLOAD_MAX {
            return Err(bad(format!("is damaged: a frame of {len} bytes")));
        }
        let Some(payload) = rest.get(HEADER_BYTES..HEADER_BYTES + len) else { return Ok(None) };
        let plain = FrameHeader { crc: U32::ZERO, ..header };
        let crc = crc32c_append(crc32c_append(self.seed, plain.as_bytes()), payload);
        if crc != header.crc.get() || header.sequence.get() != self.sequence {
            let at = self.sequence;
            return Err(bad(format!("is damaged, or parts of it are missing: at frame {at}")));
        }
        let frame = decode(header.kind, payload)?;
        if (self.sequence == 0) != matches!(frame, Frame::Begin(_)) {
            return Err(bad("does not begin with what it tells, or begins twice"));
        }
        if self.sequence == 0 {
            self.seed = crc;
        }
        self.ended = frame == Frame::End;
        self.sequence += 1;
        self.taken += HEADER_BYTES + len;
        Ok(Some(frame))
    }
}

fn decode(kind: u8, payload: &[u8]) -> Result<Frame, StoreError> {
    let short = || bad("a frame is shorter than what it holds");
    let word = |bytes: &[u8]| -> Result<u64, StoreError> {
        bytes.try_into().map(u64::from_le_bytes).map_err(|_| short())
    };
    let whole = |offset: u64, len: u64| {
        let good = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE) && len > 0;
        let fits = offset.checked_add(len).is_some_and(|end| end <= SIZE_BYTES_MAX);
        if good && fits { Ok(()) } else { Err(bad(format!("{len} bytes at {offset}"))) }
    };
    match kind {
        BEGIN => decode_begin(payload).map(Frame::Begin),
        DATA => {
            let (offset, bytes) = payload.split_at_checked(8).ok_or_else(short)?;
            let offset = word(offset)?;
            whole(offset, (bytes.len() as u64).next_multiple_of(BLOCK_SIZE))?;
            Ok(Frame::Data { offset, bytes: bytes.to_vec() })
        }
        HOLE => {
            let (offset, len) = payload.split_at_checked(8).ok_or_else(short)?;
            let (offset, len) = (word(offset)?, word(len)?);
            whole(offset, len)?;
            Ok(Frame::Hole { offset, len })
        }
        PLACE => Ok(Frame::Place { position: word(payload)? }),
        REMOVED | NEW | NAME | NAMED | NODE | XATTR | ATTRIBUTES => {
            TreeFrame::decode(kind, payload).map(Frame::Tree)
        }
        END if payload.is_empty() => Ok(Frame::End),
        other => Err(bad(format!("a frame of kind {other} is not known; a newer cairn sent it"))),
    }
}

fn decode_begin(payload: &[u8]) -> Result<Begin, StoreError> {
    let version = payload.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
    if version != VERSION {
        return Err(bad(format!("is of version {version}; this reads version {VERSION}")));
    }
    let (header, name) =
        BeginPayload::read_from_prefix(payload).map_err(|_| bad("its first frame is too short"))?;
    if name.len() != usize::from(header.name_len) || name.len() > NAME_BYTES_MAX {
        return Err(bad("the length of its name is wrong"));
    }
    let algorithm = match header.compression {
        0 => None,
        number => {
            Some(Algorithm::from_disk(number).ok_or_else(|| bad("its compression is not known"))?)
        }
    };
    let options = SubvolumeOptions {
        compression: Compression::new(algorithm, header.level)?,
        frame_bytes: header.frame_bytes.get(),
    };
    options.check()?;
    let (size_bytes, from) = (header.size.get(), header.from.get());
    if size_bytes > SIZE_BYTES_MAX || header.source == [0; 16] {
        return Err(bad("its size is out of range, or it does not name its snapshot"));
    }
    Ok(Begin {
        name: str::from_utf8(name).map_err(|_| bad("its name is not text"))?.to_owned(),
        kind: match header.kind {
            KIND_VOLUME => SubvolumeKind::Volume,
            KIND_FILE_TREE => SubvolumeKind::FileTree,
            other => return Err(bad(format!("subvolumes of kind {other} are not known"))),
        },
        source: header.source,
        base: Some(header.base).filter(|base| *base != [0; 16]),
        size_bytes,
        block_size: header.block_size.get(),
        options,
        from,
        created_ns: header.created.get(),
    })
}

/// What a fuzzer gives, in two pieces: nothing but errors and frames may come of it.
pub fn fuzz(bytes: &[u8], cut: usize) {
    let mut decoder = Decoder::default();
    let (first, rest) = bytes.split_at(cut.min(bytes.len()));
    for piece in [first, rest] {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    // Behind the checksum.
    let (kind, payload) = bytes.split_first().unwrap_or((&0, &[]));
    let _ = decode(*kind, payload);
}

#[cfg(test)]
mod tests;
