//! Blocks: the memory of one buffer with its descriptor, which holds the count of owners.
//!
//! The descriptor lies beside the pooled memory (a table per region) or before the bytes of a large
//! block, so a buffer costs no allocation of its own and its bytes stay aligned.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc as _, Layout, System};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicUsize, Ordering, fence};

use crate::limits::{CLASS_COUNT, class_bytes};
use crate::profile::{Tag, buffers};
use crate::{ALIGNMENT, cache};

/// What is known of one block. `owners` is 1 while a Buffer has it, and the number of slices once
/// it is shared; it means nothing while the block is free.
pub(crate) struct Descriptor {
    start: NonNull<u8>,
    owners: AtomicUsize,
    /// Bytes of the whole allocation, descriptor included; 0 for a pooled block.
    large_bytes: usize,
    chunk: u32,
    /// Class it was handed out in last; the same page can serve several over time.
    class: AtomicU8,
    /// The site that pays for it while it is out.
    tag: AtomicU16,
}

// SAFETY: `start` is only an address here; who may touch the bytes is ruled by Buffer (unique) and
// Slice (shared, read-only). The other fields are atomic or never change.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// The descriptor of a page of a region; its address must be valid for ever.
    pub(crate) fn pooled(start: NonNull<u8>, chunk: u32) -> Self {
        Self {
            start,
            owners: AtomicUsize::new(0),
            large_bytes: 0,
            chunk,
            class: AtomicU8::new(0),
            tag: AtomicU16::new(Tag::NOBODY.0),
        }
    }

    /// Bytes of memory that the block takes.
    pub(crate) fn bytes(&self) -> usize {
        if self.large_bytes == 0 { class_bytes(self.class()) } else { self.large_bytes }
    }

    pub(crate) fn chunk(&self) -> u32 {
        self.chunk
    }

    pub(crate) fn class(&self) -> usize {
        usize::from(self.class.load(Ordering::Relaxed))
    }

    pub(crate) fn set_class(&self, class: usize) {
        assert!(class < CLASS_COUNT);
        self.class.store(class as u8, Ordering::Relaxed);
    }
}

/// One owner of a block. Dropping the last one frees it.
pub(crate) struct Block {
    descriptor: NonNull<Descriptor>,
}

// SAFETY: the descriptor is Sync and lives as long as any owner (pooled: for ever; large: until the
// last Block is dropped, which the count in it decides atomically).
unsafe impl Send for Block {}
// SAFETY: as above; `&Block` gives out nothing but the address of the bytes.
unsafe impl Sync for Block {}

impl Block {
    /// The only owner of a free pooled block, which must have come from the pool just now.
    pub(crate) fn own(descriptor: &'static Descriptor) -> Self {
        descriptor.owners.store(1, Ordering::Relaxed);
        Self { descriptor: NonNull::from(descriptor) }
    }

    /// A zeroed block too long for the pool; `None` when there is no memory.
    pub(crate) fn new_large(len: usize) -> Option<Self> {
        let bytes = large_block_bytes(len)?;
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // Past the global allocator: buffers are charged as such, not once more as heap.
        // SAFETY: the layout has at least the bytes of the descriptor's page.
        let memory = NonNull::new(unsafe { System.alloc_zeroed(layout) })?;
        // SAFETY: the allocation is longer than ALIGNMENT (large_block_bytes).
        let start = unsafe { memory.add(ALIGNMENT) };
        let descriptor = memory.cast::<Descriptor>();
        let value = Descriptor {
            start,
            owners: AtomicUsize::new(1),
            large_bytes: bytes,
            chunk: 0,
            class: AtomicU8::new(0),
            tag: AtomicU16::new(Tag::NOBODY.0),
        };
        // SAFETY: the first page is ours, is aligned to 4096 and holds a Descriptor (asserted below).
        unsafe { descriptor.write(value) };
        Some(Self { descriptor })
    }

    /// Charges the block to the current site; for its first owner.
    pub(crate) fn charge(&self) {
        let descriptor = self.descriptor();
        let tag = buffers::charge(descriptor.bytes());
        descriptor.tag.store(tag.0, Ordering::Relaxed);
    }

    fn descriptor(&self) -> &Descriptor {
        // SAFETY: it was made by `own` or `new_large` and lives until the last owner is dropped.
        unsafe { self.descriptor.as_ref() }
    }

    /// Address of the first byte. The bytes up to the block's length are initialised.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.descriptor().start
    }

    /// One more owner.
    pub(crate) fn share(&self) -> Self {
        // Cannot overflow: at one a nanosecond 64 bits last five centuries. Relaxed is enough, as a
        // new owner is made from one that is there (as in std's Arc).
        self.descriptor().owners.fetch_add(1, Ordering::Relaxed);
        Self { descriptor: self.descriptor }
    }

    /// Whether this is the only owner; if so, what former owners read happened before.
    pub(crate) fn is_unique(&self) -> bool {
        self.descriptor().owners.load(Ordering::Acquire) == 1
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let descriptor = self.descriptor();
        // Release: our reads are done before whoever frees the block. A lone owner need not count
        // down: nobody else can come, as new owners are made from owners.
        if descriptor.owners.load(Ordering::Acquire) != 1
            && descriptor.owners.fetch_sub(1, Ordering::Release) != 1
        {
            return;
        }
        fence(Ordering::Acquire);
        buffers::credit(Tag(descriptor.tag.load(Ordering::Relaxed)), descriptor.bytes());
        let large_bytes = descriptor.large_bytes;
        if large_bytes == 0 {
            // SAFETY: pooled descriptors are `'static` (region::map leaks them).
            cache::give(unsafe { self.descriptor.as_ref() });
            return;
        }
        let layout = Layout::from_size_align(large_bytes, ALIGNMENT)
            .expect("the layout was valid when the block was made");
        // SAFETY: this is the last owner; the block came from `new_large` with this very layout, and
        // a Descriptor needs no drop.
        unsafe { System.dealloc(self.descriptor.as_ptr().cast(), layout) };
        cache::large_freed(large_bytes);
    }
}

/// Bytes that a large block of `len` takes with its descriptor; `None` when that overflows.
pub(crate) fn large_block_bytes(len: usize) -> Option<usize> {
    len.checked_next_multiple_of(ALIGNMENT)?.checked_add(ALIGNMENT)
}

const _: () = assert!(size_of::<Descriptor>() <= 32);
const _: () = assert!(align_of::<Descriptor>() <= ALIGNMENT);
const _: () = assert!(!std::mem::needs_drop::<Descriptor>());
