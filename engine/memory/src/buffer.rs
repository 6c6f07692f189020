//! [`Buffer`] and [`Slice`].
#![allow(unsafe_code)]

use std::alloc::Layout;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

/// Alignment in bytes of every buffer: enough for O_DIRECT on 4 KiB blocks and for NVMe PRPs.
pub const ALIGNMENT: usize = 4096;

/// No memory could be had for a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for an I/O buffer of {bytes} bytes")]
pub struct OutOfMemory {
    /// What was asked for.
    pub bytes: usize,
}

struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a Block owns its memory; access to the bytes goes through Buffer (unique) or Slice (shared,
// read-only), so moving it to another thread is sound.
unsafe impl Send for Block {}
// SAFETY: shared access to a Block only ever reads its bytes (see Slice).
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout in Buffer::try_new.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// A unique, writable, 4 KiB-aligned buffer.
pub struct Buffer {
    block: Arc<Block>,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer of `len` bytes.
    ///
    /// # Errors
    /// [`OutOfMemory`] when there is no memory. Never aborts.
    pub fn try_new(len: usize) -> Result<Self, OutOfMemory> {
        let error = OutOfMemory { bytes: len };
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT).map_err(|_| error)?;
        // SAFETY: the layout has a size of at least one byte.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or(error)?;
        Ok(Self { block: Arc::new(Block { start, layout }), len })
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// As [`Buffer::try_new`].
    pub fn try_copy_of(bytes: &[u8]) -> Result<Self, OutOfMemory> {
        let mut buffer = Self::try_new(bytes.len())?;
        buffer.copy_from_slice(bytes);
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
        // SAFETY: the block holds at least `len` initialised bytes and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.block.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref; a Buffer is the only holder of its block, so this access is unique.
        unsafe { std::slice::from_raw_parts_mut(self.block.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// A shared, read-only part of a buffer. Cloning and cutting copy no bytes.
#[derive(Clone)]
pub struct Slice {
    block: Arc<Block>,
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
            block: Arc::clone(&self.block),
            start: self.start + range.start,
            len: range.end - range.start,
        }
    }

    /// The unique buffer again, if nothing else shares it and the slice starts at its beginning.
    ///
    /// # Errors
    /// Gives the slice back when it is shared or does not start at the block's beginning.
    pub fn try_into_buffer(self) -> Result<Buffer, Self> {
        let mut block = self.block;
        if self.start == 0 && Arc::get_mut(&mut block).is_some() {
            Ok(Buffer { block, len: self.len })
        } else {
            Err(Self { block, ..self })
        }
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start + len` is within the block (checked when the slice was cut).
        let first = unsafe { self.block.start.as_ptr().add(self.start) };
        // SAFETY: the bytes are initialised, and nobody writes to a block that has a Slice.
        unsafe { std::slice::from_raw_parts(first, self.len) }
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({} bytes)", self.len)
    }
}
