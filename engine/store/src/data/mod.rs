//! The data of inodes on one shard: write, read and drop blocks.
//!
//! Always true:
//! - Extents of an inode and version do not overlap. Their key is their END block (exclusive), so
//!   the first key past a block is the only extent that can hold it.
//! - Data is on the device, or on its way there and known to be ([`crate::flight`]), when a transaction names it; the
//!   space it replaces is not reused before that transaction is durable (the engine sees to it).
//! - One transaction replaces any block wholly: old or new, never a mixture.
//! - What several places have in common is counted ([`shared`]).
//!
//! Knows nothing of files and sizes: a block that no extent names reads as zeroes. Futures that write
//! must run to their end: a device may still be writing into space that a dropped future gave back.

mod ahead;
mod batch;
mod cache;
mod changed;
mod copy;
mod layers;
mod map;
mod pack;
mod place;
mod read;
mod rescue;
mod shared;
mod unshare;
mod write;

use std::rc::Rc;

use engine_base::BLOCK_SIZE;
use engine_memory::{Buffer, Slice};

use crate::api::Data;
use crate::engine::Engine;
use crate::error::{Result, StoreError};

pub(crate) use batch::Until;
pub(crate) use changed::Compared;
pub(crate) use layers::absorb_blocks;
pub(crate) use map::{BlockRange, lookup};
pub(crate) use shared::{drop_extent, keys_of_bucket};
pub(crate) use unshare::Unsharing;
pub(crate) use write::{Prepared, block_checksums, forget_in, punch_in};

/// Bytes of zeroes kept for holes.
const ZEROES_BYTES: usize = 256 << 10;

/// Reads and writes the blocks of inodes.
pub(crate) struct DataPath {
    engine: Rc<Engine>,
    zeroes: Slice,
    batches: batch::Batches,
    reader: Rc<read::Reader>,
}

impl DataPath {
    pub(crate) fn new(engine: Rc<Engine>) -> Result<Self> {
        let zeroes = Buffer::try_new(ZEROES_BYTES)?.freeze();
        let reader = read::Reader::new(Rc::clone(&engine));
        Ok(Self { engine, zeroes, batches: batch::Batches::default(), reader })
    }

    /// Bounds the memory for data that may be read again, in bytes; 0: none is kept, nothing read ahead.
    pub(crate) fn set_cache_bytes(&self, bytes: usize) {
        self.reader.set_cache_bytes(bytes);
    }

    /// Named counters for metrics.
    pub(crate) fn counters(&self, out: &mut Vec<(&'static str, u64)>) {
        self.batches.counters(out);
        self.reader.counters(out);
    }

    /// Appends `len` zero bytes to `data`, without memory of their own.
    pub(crate) fn push_zeroes(&self, data: &mut Data, mut len: u64) {
        while len > 0 {
            let part = len.min(ZEROES_BYTES as u64);
            data.push(self.zeroes.slice(0..part as usize));
            len -= part;
        }
    }
}

/// The blocks of a byte range whose ends are multiples of the block size.
pub(crate) fn blocks_of(offset: u64, len: u64) -> Result<(u64, u64)> {
    let end = offset.checked_add(len).filter(|end| *end <= crate::api::SIZE_BYTES_MAX);
    match end {
        Some(end) if offset.is_multiple_of(BLOCK_SIZE) && end.is_multiple_of(BLOCK_SIZE) => {
            Ok((offset / BLOCK_SIZE, end / BLOCK_SIZE))
        }
        Some(_) => Err(StoreError::invalid(format!(
            "offset {offset} and length {len} must be multiples of {BLOCK_SIZE}"
        ))),
        None => Err(StoreError::invalid(format!("range {offset}+{len} is past the largest size"))),
    }
}
