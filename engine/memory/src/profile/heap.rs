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
//!
//! A request of a small alignment, which nearly all are, goes to malloc(3) itself, others to
//! [`System`]. The alignment of a block never changes, so no block of the one reaches the other.
//! Each costs some fifteen instructions more than it would uncounted. What happens rarely is kept out of
//! line, at the end of a function, so that nothing has to be saved for it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use super::counts::{self, Counter, Look, current, failed, freed};
use super::mode::charges;
use super::site::Tag;

/// Bytes of a tag.
const TAG_BYTES: usize = size_of::<u16>();

/// Alignments up to this are those that every malloc gives to every block.
const ALIGN_MAX: usize = 8;

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
fn has_room_for_tag(size: usize, align: usize) -> bool {
    size.wrapping_add(TAG_BYTES) <= isize::MAX as usize - (align - 1)
}

/// The layout with room for the tag; `None` when that is longer than any allocation may be.
fn with_tag(layout: Layout) -> Option<Layout> {
    if !has_room_for_tag(layout.size(), layout.align()) {
        return None;
    }
    let size = layout.size().wrapping_add(TAG_BYTES);
    // SAFETY: the alignment is that of a layout, and the size rounded up to it is no more than
    // isize::MAX, as was just checked.
    Some(unsafe { Layout::from_size_align_unchecked(size, layout.align()) })
}

/// Writes the tag of an allocation behind it.
///
/// # Safety
/// 1. `pointer` is the start of `size + TAG_BYTES` bytes that nobody else uses.
#[inline]
unsafe fn write_tag(pointer: *mut u8, size: usize, tag: Tag) {
    // SAFETY: `size` is within the bytes of the caller's contract.
    let end = unsafe { pointer.add(size) };
    // SAFETY: TAG_BYTES bytes follow; the write needs no alignment.
    unsafe { end.cast::<u16>().write_unaligned(tag.0) };
}

/// The tag of an allocation.
///
/// # Safety
/// 1. `pointer` and `size` are those of an allocation that `write_tag` saw and nobody has freed.
#[inline]
unsafe fn tag_of(pointer: *mut u8, size: usize) -> Tag {
    // SAFETY: `size + TAG_BYTES` bytes were allocated.
    let end = unsafe { pointer.add(size) };
    // SAFETY: `write_tag` wrote it there, and it is no part of what the program got.
    Tag(unsafe { end.cast::<u16>().read_unaligned() })
}

/// Charges an allocation of `size` bytes to the current site, and gives it back.
///
/// # Safety
/// 1. `pointer` is null, or the start of `size + TAG_BYTES` bytes that nobody else uses.
#[inline]
unsafe fn charge(pointer: *mut u8, size: usize) -> *mut u8 {
    if pointer.is_null() {
        return refused(current());
    }
    if !charges() {
        // SAFETY: (1) by the caller's contract, and it is not null.
        unsafe { write_tag(pointer, size, Tag::NOBODY) };
        return pointer;
    }
    let tag = current();
    // SAFETY: (1) as above.
    unsafe { write_tag(pointer, size, tag) };
    let Some(counter) = counts::counter(tag) else { return charge_without_row(pointer, size, tag) };
    match counter.allocated(size) {
        Look::Not => pointer,
        Look::Due => look(pointer, counter, tag),
    }
}

#[cold]
#[inline(never)]
fn refused(tag: Tag) -> *mut u8 {
    failed(tag);
    std::ptr::null_mut()
}

#[cold]
#[inline(never)]
fn charge_without_row(pointer: *mut u8, size: usize, tag: Tag) -> *mut u8 {
    counts::allocated(tag, size);
    pointer
}

#[cold]
#[inline(never)]
fn look(pointer: *mut u8, counter: &Counter, tag: Tag) -> *mut u8 {
    counter.look(tag);
    pointer
}

/// The layout that `System` knows a live allocation by.
///
/// # Safety
/// 1. An allocation of `layout` was made by this allocator.
unsafe fn as_made(layout: Layout) -> Layout {
    let size = layout.size().wrapping_add(TAG_BYTES);
    // SAFETY: the sum did not overflow when the block was made with this layout, and the alignment
    // is the caller's.
    unsafe { Layout::from_size_align_unchecked(size, layout.align()) }
}

#[cold]
#[inline(never)]
fn alloc_aligned(layout: Layout) -> *mut u8 {
    let Some(longer) = with_tag(layout) else { return std::ptr::null_mut() };
    // SAFETY: the size is not 0, as a tag is not.
    let pointer = unsafe { System.alloc(longer) };
    // SAFETY: (1) the block is new and of `longer`.
    unsafe { charge(pointer, layout.size()) }
}

#[cold]
#[inline(never)]
fn alloc_zeroed_aligned(layout: Layout) -> *mut u8 {
    let Some(longer) = with_tag(layout) else { return std::ptr::null_mut() };
    // SAFETY: the size is not 0, as a tag is not.
    let pointer = unsafe { System.alloc_zeroed(longer) };
    // SAFETY: (1) the block is new and of `longer`.
    unsafe { charge(pointer, layout.size()) }
}

/// Frees a block whose free is counted already.
///
/// # Safety
/// 1. `pointer` and `layout` are those of a live allocation of this allocator.
#[inline]
unsafe fn release(pointer: *mut u8, layout: Layout) {
    if layout.align() > ALIGN_MAX {
        // SAFETY: (1) by the caller's contract.
        let longer = unsafe { as_made(layout) };
        // SAFETY: a block of this alignment was made by System with `longer`.
        return unsafe { System.dealloc(pointer, longer) };
    }
    // SAFETY: a block of this alignment was made by malloc or its relatives.
    unsafe { libc::free(pointer.cast()) };
}

/// Counts and frees a block, in a thread without counters.
///
/// # Safety
/// 1. `pointer` and `layout` are those of a live allocation of this allocator.
#[cold]
#[inline(never)]
unsafe fn release_without_row(pointer: *mut u8, layout: Layout, tag: Tag) {
    freed(tag, layout.size());
    // SAFETY: (1) by the caller's contract.
    unsafe { release(pointer, layout) };
}

/// Frees a block after whose free a counter is to be looked at.
///
/// # Safety
/// 1. `pointer` and `layout` are those of a live allocation of this allocator.
#[cold]
#[inline(never)]
unsafe fn release_and_look(pointer: *mut u8, layout: Layout, counter: &Counter, tag: Tag) {
    counter.look(tag);
    // SAFETY: (1) by the caller's contract.
    unsafe { release(pointer, layout) };
}

/// As `realloc` of the trait.
///
/// # Safety
/// 1. As of `GlobalAlloc::realloc`, and the alignment is more than [`ALIGN_MAX`].
#[cold]
#[inline(never)]
unsafe fn realloc_aligned(pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
    // By the caller's contract `new_size` is a size that a layout may have.
    if !has_room_for_tag(new_size, layout.align()) {
        return std::ptr::null_mut();
    }
    // SAFETY: (1) by the caller's contract this is a live block of `layout`.
    let tag = unsafe { tag_of(pointer, layout.size()) };
    // SAFETY: (1) by the caller's contract.
    let longer = unsafe { as_made(layout) };
    // SAFETY: a block of this alignment was made by System with `longer`; the new size is not 0 and
    // was checked.
    let moved = unsafe { System.realloc(pointer, longer, new_size.wrapping_add(TAG_BYTES)) };
    // SAFETY: (1) the block has the new size; `tag` was its.
    unsafe { recharge(moved, tag, layout.size(), new_size) }
}

/// Moves the tag of an allocation to its new end, and counts the change: it stays with the site that has
/// paid for it so far.
///
/// # Safety
/// 1. `moved` is null, or a block of `to_bytes + TAG_BYTES` bytes that nobody else uses.
#[inline]
unsafe fn recharge(moved: *mut u8, tag: Tag, from_bytes: usize, to_bytes: usize) -> *mut u8 {
    if moved.is_null() {
        return refused(tag);
    }
    // SAFETY: (1) by the caller's contract.
    unsafe { write_tag(moved, to_bytes, tag) };
    if tag == Tag::NOBODY {
        return moved;
    }
    let Some(counter) = counts::counter(tag) else {
        return recharge_without_row(moved, tag, from_bytes, to_bytes);
    };
    // Neither is more than isize::MAX.
    match counter.resized((to_bytes as i64).wrapping_sub(from_bytes as i64)) {
        Look::Not => moved,
        Look::Due => look(moved, counter, tag),
    }
}

#[cold]
#[inline(never)]
fn recharge_without_row(moved: *mut u8, tag: Tag, from_bytes: usize, to_bytes: usize) -> *mut u8 {
    counts::resized(tag, from_bytes, to_bytes);
    moved
}

/// As `alloc` of the trait. Generic, so that it is compiled with the program: there the place of a
/// thread-local is a constant, here it would be asked of the linker's runtime. And out of line: grown by
/// this, the functions that allocate would be too large to be inlined themselves.
///
/// # Safety
/// 1. As of `GlobalAlloc::alloc`.
#[inline(never)]
#[expect(clippy::extra_unused_type_parameters, reason = "compiled in the program, not here")]
unsafe fn alloc_in_program<T>(layout: Layout) -> *mut u8 {
    if layout.align() > ALIGN_MAX {
        return alloc_aligned(layout);
    }
    // No overflow, as a layout's size is at most isize::MAX; malloc refuses what is longer.
    // SAFETY: malloc takes any size.
    let pointer = unsafe { libc::malloc(layout.size().wrapping_add(TAG_BYTES)) };
    // SAFETY: (1) the block is new and of that size.
    unsafe { charge(pointer.cast(), layout.size()) }
}

/// As `dealloc` of the trait; generic and out of line as above.
///
/// # Safety
/// 1. As of `GlobalAlloc::dealloc`.
#[inline(never)]
#[expect(clippy::extra_unused_type_parameters, reason = "compiled in the program, not here")]
unsafe fn dealloc_in_program<T>(pointer: *mut u8, layout: Layout) {
    // SAFETY: (1) by the caller's contract this is a live block of `layout`.
    let tag = unsafe { tag_of(pointer, layout.size()) };
    if tag != Tag::NOBODY {
        let Some(counter) = counts::counter(tag) else {
            // SAFETY: (1) as above.
            return unsafe { release_without_row(pointer, layout, tag) };
        };
        if counter.freed(layout.size()) == Look::Due {
            // SAFETY: (1) as above.
            return unsafe { release_and_look(pointer, layout, counter, tag) };
        }
    }
    // SAFETY: (1) as above.
    unsafe { release(pointer, layout) };
}

// SAFETY: all work is that of malloc(3) or of the system allocator, asked for TAG_BYTES more than the
// program wants each time. Which of the two depends on the alignment alone, and that is the same in
// all calls for a block; so is the layout that `System` gets.
unsafe impl GlobalAlloc for Profiler {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: (1) by the caller's contract.
        unsafe { alloc_in_program::<()>(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.align() > ALIGN_MAX {
            return alloc_zeroed_aligned(layout);
        }
        // SAFETY: calloc takes any size.
        let pointer = unsafe { libc::calloc(1, layout.size().wrapping_add(TAG_BYTES)) };
        // SAFETY: (1) the block is new and of that size.
        unsafe { charge(pointer.cast(), layout.size()) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: (1) by the caller's contract.
        unsafe { dealloc_in_program::<()>(pointer, layout) };
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.align() > ALIGN_MAX {
            // SAFETY: (1) by the caller's contract, and the alignment was just looked at.
            return unsafe { realloc_aligned(pointer, layout, new_size) };
        }
        // SAFETY: (1) by the caller's contract this is a live block of `layout`.
        let tag = unsafe { tag_of(pointer, layout.size()) };
        // SAFETY: a block of this alignment was made by malloc or its relatives; realloc takes any
        // size, and this one is not 0.
        let moved = unsafe { libc::realloc(pointer.cast(), new_size.wrapping_add(TAG_BYTES)) };
        // SAFETY: (1) the block has the new size; `tag` was its.
        unsafe { recharge(moved.cast(), tag, layout.size(), new_size) }
    }
}
