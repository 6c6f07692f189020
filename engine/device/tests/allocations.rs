//! After warming up, an operation on a file allocates nothing.
// The counting allocator needs it; everything here is a test or a part of one.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use engine_device::contract::block_on;
use engine_device::{Allocation, BlockDevice, FileDevice, IoVec, OpenOptions, QueueExt};
use engine_memory::Buffer;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: it only counts; all work is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn operations_on_a_file_allocate_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device");
    FileDevice::create(&path, 1 << 20, Allocation::Full).unwrap();
    let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
    let queue = device.open_queue(8).unwrap();
    let turn = |number: u64| {
        let offset = number % 64 * 4096;
        let piece = Buffer::try_new_dirty(4096).unwrap().freeze();
        // Two of the three pieces are not aligned, so this one is copied first.
        let parts = [piece.slice(0..4096), piece.slice(0..100), piece.slice(100..4096)];
        block_on(&*queue, queue.write(offset, IoVec::from_iter(parts), number.is_multiple_of(4)))
            .unwrap();
        block_on(&*queue, queue.read(offset, Buffer::try_new_dirty(8192).unwrap())).unwrap();
        block_on(&*queue, queue.flush()).unwrap();
    };
    (0..64).for_each(turn);
    let before = ALLOCATIONS.get();
    (0..256).for_each(turn);
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
