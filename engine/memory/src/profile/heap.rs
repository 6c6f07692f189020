//! The global allocator: the system's, with the site of each allocation written behind it.
//!
//! ```text
//!   |<----------- size ---------->|<- 2 ->|
//!   +-----------------------------+-------+
//!   | what the program asked for  |  tag  |
//!   +-----------------------------+-------+
//! ```
//! Behind and not before, so that no alignment costs more than these two bytes: glibc's chunks hold
//! 24, 40, 56, ... bytes, of which an allocation of a round size leaves 8 unused.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use super::counts::{allocated_here, current, failed, freed, resized};
use super::mode::{charges, credits};
use super::site::Tag;

/// Bytes of a tag.
const TAG_BYTES: usize = size_of::<u16>();

/// The system's allocator with counting, for `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Profiler;

impl Profiler {
    /// Whether this program counts its heap, that is, has a `Profiler` as its global allocator. Known
    /// from the counts: a program has allocated before its `main`, when counting was on.
    #[must_use]
    pub fn is_installed() -> bool {
        super::site::sites()
            .any(|(number, _)| super::counts::sum(Tag::heap(number)).allocations > 0)
    }
}

/// Whether `size`, which a layout of this alignment may have, leaves room for the tag: the sum, rounded
/// up to the alignment, must not exceed `isize::MAX`.
#[inline]
fn has_room_for_tag(size: usize, align: usize) -> bool {
    size.wrapping_add(TAG_BYTES) <= isize::MAX as usize - (align - 1)
}

/// The layout with room for the tag; `None` when that is longer than any allocation may be.
#[inline]
fn with_tag(layout: Layout) -> Option<Layout> {
    if !has_room_for_tag(layout.size(), layout.align()) {
        return None;
    }
    let size = layout.size().wrapping_add(TAG_BYTES);
    // SAFETY: the alignment is that of a layout, and the size rounded up to it is no more than
    // isize::MAX, as was just checked.
    Some(unsafe { Layout::from_size_align_unchecked(size, layout.align()) })
}

/// Counts an allocation of `size` bytes and writes its tag behind it.
///
/// # Safety
/// 1. `pointer` is null, or the start of `size + TAG_BYTES` bytes that nobody else uses.
#[inline]
unsafe fn charge(pointer: *mut u8, size: usize) {
    if pointer.is_null() {
        failed(current());
        return;
    }
    let tag = if charges() { allocated_here(size) } else { Tag::NOBODY };
    // SAFETY: `size` is within the bytes of the caller's contract.
    let end = unsafe { pointer.add(size) };
    // SAFETY: TAG_BYTES bytes follow; the write needs no alignment.
    unsafe { end.cast::<u16>().write_unaligned(tag.0) };
}

/// The tag of an allocation.
///
/// # Safety
/// 1. `pointer` and `size` are those of an allocation that `charge` saw and nobody has freed.
#[inline]
unsafe fn tag_of(pointer: *mut u8, size: usize) -> Tag {
    // SAFETY: `size + TAG_BYTES` bytes were allocated.
    let end = unsafe { pointer.add(size) };
    // SAFETY: `charge` wrote the tag there, and it is no part of what the program got.
    Tag(unsafe { end.cast::<u16>().read_unaligned() })
}

// SAFETY: all work is the system allocator's, asked for TAG_BYTES more than the program wants each
// time, so a layout given to `dealloc` or `realloc` becomes the one that its block was made with.
unsafe impl GlobalAlloc for Profiler {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(longer) = with_tag(layout) else { return std::ptr::null_mut() };
        // SAFETY: the size is not 0, as a tag is not.
        let pointer = unsafe { System.alloc(longer) };
        // SAFETY: (1) the block is new and of `longer`.
        unsafe { charge(pointer, layout.size()) };
        pointer
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(longer) = with_tag(layout) else { return std::ptr::null_mut() };
        // SAFETY: the size is not 0, as a tag is not.
        let pointer = unsafe { System.alloc_zeroed(longer) };
        // SAFETY: (1) the block is new and of `longer`.
        unsafe { charge(pointer, layout.size()) };
        pointer
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if credits() {
            // SAFETY: (1) by the caller's contract this is a live block of `layout`, made above.
            let tag = unsafe { tag_of(pointer, layout.size()) };
            if tag != Tag::NOBODY {
                freed(tag, layout.size());
            }
        }
        // SAFETY: the sum did not overflow when the block was made with this layout, and the
        // alignment is the caller's.
        let longer = unsafe {
            Layout::from_size_align_unchecked(layout.size().wrapping_add(TAG_BYTES), layout.align())
        };
        // SAFETY: the block was made by System with `longer`.
        unsafe { System.dealloc(pointer, longer) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // By the caller's contract `new_size` is a size that a layout may have.
        if !has_room_for_tag(new_size, layout.align()) {
            return std::ptr::null_mut();
        }
        // SAFETY: (1) by the caller's contract this is a live block of `layout`.
        let tag = unsafe { tag_of(pointer, layout.size()) };
        // SAFETY: the sum did not overflow when the block was made with this layout, and the
        // alignment is the caller's.
        let longer = unsafe {
            Layout::from_size_align_unchecked(layout.size().wrapping_add(TAG_BYTES), layout.align())
        };
        // SAFETY: the block was made by System with `longer`; the new size is not 0 and was checked.
        let moved = unsafe { System.realloc(pointer, longer, new_size.wrapping_add(TAG_BYTES)) };
        if moved.is_null() {
            failed(tag);
            return moved;
        }
        // SAFETY: the block now has `new_size + TAG_BYTES` bytes.
        let end = unsafe { moved.add(new_size) };
        // SAFETY: as above; the write needs no alignment.
        unsafe { end.cast::<u16>().write_unaligned(tag.0) };
        if tag != Tag::NOBODY && credits() {
            // It stays with the site that has paid for it so far.
            resized(tag, layout.size(), new_size);
        }
        moved
    }
}
