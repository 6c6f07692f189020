//! [`Buffer`] and [`Slice`].
#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};

use crate::block::Block;
use crate::cache;

/// Alignment in bytes of every buffer: enough for O_DIRECT on 4 KiB blocks and for NVMe PRPs.
pub const ALIGNMENT: usize = 4096;

thread_local! {
    static COPIED_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Bytes that this thread has copied into new buffers so far: for counting what an operation costs.
#[must_use]
pub fn copied_bytes() -> u64 {
    COPIED_BYTES.get()
}

/// No memory could be had for a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for an I/O buffer of {bytes} bytes")]
pub struct OutOfMemory {
    /// What was asked for.
    pub bytes: usize,
}

/// A unique, writable, 4 KiB-aligned buffer.
pub struct Buffer {
    block: Block,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of `len` bytes.
    ///
    /// # Errors
    /// [`OutOfMemory`] when there is no memory, or the limit is reached. Never aborts.
    pub fn try_new(len: usize) -> Result<Self, OutOfMemory> {
        let mut buffer = Self::try_new_dirty(len)?;
        buffer.fill(0);
        Ok(buffer)
    }

    /// A buffer of `len` bytes whose content is unspecified: zeroes, or what a freed buffer of this
    /// process held. For reads, which overwrite it whole; what is not overwritten must not leave the
    /// process.
    ///
    /// # Errors
    /// As [`Buffer::try_new`].
    pub fn try_new_dirty(len: usize) -> Result<Self, OutOfMemory> {
        match cache::take(len) {
            Some(block) => Ok(Self { block, len }),
            None => Err(OutOfMemory { bytes: len }),
        }
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// As [`Buffer::try_new`].
    pub fn try_copy_of(bytes: &[u8]) -> Result<Self, OutOfMemory> {
        let mut buffer = Self::try_new_dirty(bytes.len())?;
        buffer.copy_from_slice(bytes);
        COPIED_BYTES.set(COPIED_BYTES.get() + bytes.len() as u64);
        Ok(buffer)
    }

    /// Makes the buffer shorter; the memory stays with it.
    ///
    /// # Panics
    /// When `len` is more than the present length.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len);
        self.len = len;
    }

    /// Turns the buffer into a shared, read-only one. Copies nothing.
    #[must_use]
    pub fn freeze(self) -> Slice {
        Slice { start: 0, len: self.len, block: self.block }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the block holds at least `len` initialised bytes (cache::take) and lives as long as
        // `self`; a Buffer is the only owner, so nobody writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.block.start().as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; a Buffer is the only owner of its block, so this access is unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.start().as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// A shared, read-only part of a buffer. Cloning and cutting copy no bytes.
pub struct Slice {
    block: Block,
    start: usize,
    len: usize,
}

impl Slice {
    /// The part `range` of this slice.
    ///
    /// # Panics
    /// When the range reaches past the end.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len);
        Self {
            block: self.block.share(),
            start: self.start + range.start,
            len: range.end - range.start,
        }
    }

    /// The unique buffer again, if nothing else shares it and the slice starts at its beginning.
    ///
    /// # Errors
    /// Gives the slice back when it is shared or does not start at the block's beginning.
    pub fn try_into_buffer(self) -> Result<Buffer, Self> {
        if self.start == 0 && self.block.is_unique() {
            Ok(Buffer { block: self.block, len: self.len })
        } else {
            Err(self)
        }
    }
}

impl Clone for Slice {
    fn clone(&self) -> Self {
        Self { block: self.block.share(), start: self.start, len: self.len }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start + len` is within the block (checked when the slice was cut).
        let first = unsafe { self.block.start().as_ptr().add(self.start) };
        // SAFETY: the bytes are initialised, and nobody writes to a block that has a Slice.
        unsafe { std::slice::from_raw_parts(first, self.len) }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}
