//! Compression of *frames*: runs of an inode's blocks that are compressed, and decoded, as one.
//!
//! A frame on disk is a length (u32, little-endian), so many bytes of an algorithm's output, and zeroes up to a whole
//! block. It is kept only if that saves a block at least; else the blocks are stored as they are. The checksums of an
//! extent cover what is on disk, so a decoder sees bytes that some version of this code wrote, or a bug: it is bounded
//! by the frame's size in any case.
//!
//! - LZ4: the block format (github.com/lz4/lz4, doc/lz4_Block_format.md), without its frame.
//! - gzip: raw DEFLATE (RFC 1951). zlib's head and checksum would say what the extent says.
//! - zstd: one frame (RFC 8878), without dictionary.

mod sample;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::str::FromStr;

use engine_base::BLOCK_SIZE;
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use crate::error::{Result, StoreError};
use crate::extent::EXTENT_BLOCKS_MAX;

/// Bytes of the length in front of a frame.
const HEAD_BYTES: usize = 4;
/// Longest frame, decoded.
const FRAME_BYTES_MAX: usize = EXTENT_BLOCKS_MAX as usize * BLOCK_SIZE as usize;
/// Levels of zstd and gzip where none is given: what their own tools use.
const ZSTD_LEVEL: u8 = 3;
const GZIP_LEVEL: u8 = 6;

/// How new data of a subvolume is compressed. As text: `none`, `lz4`, `zstd`, `zstd:1` to `zstd:19`, `gzip`, `gzip:1`
/// to `gzip:9`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: fast, both ways.
    Lz4,
    /// DEFLATE, with a level of 1 to 9.
    Gzip(u8),
    /// Zstandard, with a level of 1 to 19.
    Zstd(u8),
}

/// How a frame is to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// LZ4.
    Lz4 = 1,
    /// DEFLATE.
    Gzip = 2,
    /// Zstandard.
    Zstd = 3,
}

impl Algorithm {
    /// The number in an extent.
    #[must_use]
    pub fn to_disk(self) -> u8 {
        self as u8
    }

    /// The algorithm with this number in an extent.
    #[must_use]
    pub fn from_disk(number: u8) -> Option<Self> {
        [Self::Lz4, Self::Gzip, Self::Zstd].into_iter().find(|known| known.to_disk() == number)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// Its algorithm.
    #[must_use]
    pub fn algorithm(self) -> Option<Algorithm> {
        match self {
            Self::None => None,
            Self::Lz4 => Some(Algorithm::Lz4),
            Self::Gzip(_) => Some(Algorithm::Gzip),
            Self::Zstd(_) => Some(Algorithm::Zstd),
        }
    }

    /// Its level, or 0 where there is none.
    #[must_use]
    pub fn level(self) -> u8 {
        match self {
            Self::None | Self::Lz4 => 0,
            Self::Gzip(level) | Self::Zstd(level) => level,
        }
    }

    /// The compression with this algorithm and level: 0 is the usual one.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such level.
    pub fn new(algorithm: Option<Algorithm>, level: u8) -> Result<Self> {
        let (most, usual) = match algorithm {
            None | Some(Algorithm::Lz4) => (0, 0),
            Some(Algorithm::Gzip) => (9, GZIP_LEVEL),
            Some(Algorithm::Zstd) => (19, ZSTD_LEVEL),
        };
        if level > most {
            return Err(StoreError::invalid(match algorithm {
                Some(algorithm) if most > 0 => {
                    format!("compression level {level} of {algorithm}: 1 to {most}")
                }
                Some(algorithm) => format!("{algorithm} has no levels, and {level} was given"),
                None => format!("no compression has no levels, and {level} was given"),
            }));
        }
        let level = if level == 0 { usual } else { level };
        Ok(match algorithm {
            None => Self::None,
            Some(Algorithm::Lz4) => Self::Lz4,
            Some(Algorithm::Gzip) => Self::Gzip(level),
            Some(Algorithm::Zstd) => Self::Zstd(level),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.algorithm(), self.level()) {
            (None, _) => f.write_str("none"),
            (Some(algorithm), 0) => write!(f, "{algorithm}"),
            (Some(algorithm), level) => write!(f, "{algorithm}:{level}"),
        }
    }
}

impl FromStr for Compression {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            StoreError::invalid(format!(
                "compression {text:?}: none, lz4, zstd[:1-19] or gzip[:1-9]"
            ))
        };
        let (name, level) = match text.split_once(':') {
            None => (text, 0),
            Some((name, level)) => match level.parse() {
                Ok(level @ 1..) => (name, level),
                _ => return Err(unknown()),
            },
        };
        let algorithm = match name {
            "none" => None,
            "lz4" => Some(Algorithm::Lz4),
            "gzip" => Some(Algorithm::Gzip),
            "zstd" => Some(Algorithm::Zstd),
            _ => return Err(unknown()),
        };
        Self::new(algorithm, level)
    }
}

/// The compressors of a shard, with the memory they need: it is made when they are first used.
#[derive(Default)]
pub(crate) struct Codec {
    lz4: RefCell<CompressTable>,
    /// What LZ4 compresses into: it wants more room than a frame has.
    lz4_out: RefCell<Vec<u8>>,
    deflate: RefCell<Option<(u8, Compress)>>,
    inflate: RefCell<Option<Decompress>>,
    zstd: RefCell<Option<(u8, zstd::bulk::Compressor<'static>)>>,
    unzstd: RefCell<Option<zstd::bulk::Decompressor<'static>>>,
    counts: Counts,
}

/// What was compressed, in blocks.
#[derive(Default)]
struct Counts {
    taken: Cell<u64>,
    stored: Cell<u64>,
    refused: Cell<u64>,
    skipped: Cell<u64>,
    decoded: Cell<u64>,
}

fn add(counter: &Cell<u64>, bytes: usize) {
    counter.set(counter.get() + bytes as u64 / BLOCK_SIZE);
}

impl Codec {
    /// Compresses `input`, 2 to [`EXTENT_BLOCKS_MAX`] blocks, into `output`, whole blocks and fewer than `input`. Gives
    /// the blocks that it took; `None`: it does not fit, or seems not worth trying.
    pub(crate) fn encode(
        &self,
        compression: Compression,
        input: &[u8],
        output: &mut [u8],
    ) -> Option<usize> {
        let algorithm = compression.algorithm()?;
        assert!(input.len() <= FRAME_BYTES_MAX && output.len() < input.len());
        // What looks like noise is left to LZ4 to try, which is quick; what it cannot shrink is not tried further.
        if algorithm != Algorithm::Lz4 && sample::looks_random(input) {
            let room = output.len() - HEAD_BYTES;
            if self.lz4(input).is_none_or(|len| len > room) {
                add(&self.counts.skipped, input.len());
                return None;
            }
        }
        let (head, body) = output.split_at_mut(HEAD_BYTES);
        let len = match compression {
            Compression::None => None,
            Compression::Lz4 => self.lz4(input).filter(|len| *len <= body.len()).inspect(|len| {
                body[..*len].copy_from_slice(&self.lz4_out.borrow()[..*len]);
            }),
            Compression::Gzip(level) => self.deflate(level, input, body),
            Compression::Zstd(level) => self.zstd(level, input, body),
        };
        let Some(len) = len else {
            add(&self.counts.refused, input.len());
            return None;
        };
        head.copy_from_slice(&(len as u32).to_le_bytes());
        let end = (HEAD_BYTES + len).next_multiple_of(BLOCK_SIZE as usize);
        output[HEAD_BYTES + len..end].fill(0);
        add(&self.counts.taken, input.len());
        add(&self.counts.stored, end);
        Some(end / BLOCK_SIZE as usize)
    }

    /// Compresses into the buffer for it.
    fn lz4(&self, input: &[u8]) -> Option<usize> {
        let mut out = self.lz4_out.borrow_mut();
        out.resize(get_maximum_output_size(FRAME_BYTES_MAX), 0);
        compress_into_with_table(input, &mut out, &mut self.lz4.borrow_mut()).ok()
    }

    fn deflate(&self, level: u8, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let mut deflate = self.deflate.borrow_mut();
        if deflate.as_ref().is_none_or(|(with, _)| *with != level) {
            let level_of = flate2::Compression::new(u32::from(level));
            *deflate = Some((level, Compress::new(level_of, false)));
        }
        let (_, deflate) = deflate.as_mut()?;
        deflate.reset();
        match deflate.compress(input, output, FlushCompress::Finish) {
            Ok(Status::StreamEnd) => Some(deflate.total_out() as usize),
            _ => None,
        }
    }

    fn zstd(&self, level: u8, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let mut zstd = self.zstd.borrow_mut();
        if zstd.is_none() {
            *zstd = Some((level, zstd::bulk::Compressor::new(i32::from(level)).ok()?));
        }
        let (with, compressor) = zstd.as_mut()?;
        if *with != level {
            compressor.set_compression_level(i32::from(level)).ok()?;
            *with = level;
        }
        compressor.compress_to_buffer(input, output).ok()
    }

    /// Decodes a frame; `output` is as long as what was encoded.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are not such a frame.
    pub(crate) fn decode(
        &self,
        algorithm: Algorithm,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<()> {
        let bad = |why: &str| StoreError::corrupt(format!("{algorithm} frame"), why);
        let (head, body) =
            input.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| bad("shorter than its head"))?;
        let len = u32::from_le_bytes(*head) as usize;
        let body = body.get(..len).ok_or_else(|| bad("longer than its blocks"))?;
        let decoded = match algorithm {
            Algorithm::Lz4 => lz4_flex::block::decompress_into(body, output).ok(),
            Algorithm::Gzip => self.inflate(body, output),
            Algorithm::Zstd => self.unzstd(body, output),
        };
        if decoded != Some(output.len()) {
            return Err(bad("cannot be decoded, or is not as long as its extent says"));
        }
        add(&self.counts.decoded, output.len());
        Ok(())
    }

    fn inflate(&self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let mut inflate = self.inflate.borrow_mut();
        let inflate = inflate.get_or_insert_with(|| Decompress::new(false));
        inflate.reset(false);
        match inflate.decompress(input, output, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => Some(inflate.total_out() as usize),
            _ => None,
        }
    }

    fn unzstd(&self, input: &[u8], output: &mut [u8]) -> Option<usize> {
        let mut unzstd = self.unzstd.borrow_mut();
        if unzstd.is_none() {
            *unzstd = Some(zstd::bulk::Decompressor::new().ok()?);
        }
        unzstd.as_mut()?.decompress_to_buffer(input, output).ok()
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        out.push(("compression_taken_blocks", self.counts.taken.get()));
        out.push(("compression_stored_blocks", self.counts.stored.get()));
        out.push(("compression_refused_blocks", self.counts.refused.get()));
        out.push(("compression_skipped_blocks", self.counts.skipped.get()));
        out.push(("compression_decoded_blocks", self.counts.decoded.get()));
    }
}

#[cfg(test)]
mod tests;
