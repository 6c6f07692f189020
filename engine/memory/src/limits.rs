//! Sizes and bounds of the pool, each with its reason.

use crate::ALIGNMENT;

/// Binary logarithm of the smallest class: a page, the least that O_DIRECT and NVMe PRPs can use.
const SMALLEST_LOG2: u32 = 12;

/// Number of size classes: 4, 8, 16, ... 1024 KiB.
pub const CLASS_COUNT: usize = 9;

/// Largest buffer in bytes that comes from the pool. Larger ones come one by one from the system's
/// allocator and lie in no [`Region`](crate::Region); no data path needs them, as an extent is at
/// most this long.
pub const LARGEST_POOLED_BYTES: usize = class_bytes(CLASS_COUNT - 1);

/// Unit in bytes in which memory passes between classes: one block of the largest class, so that
/// every class divides it.
pub(crate) const CHUNK_BYTES: usize = LARGEST_POOLED_BYTES;

/// Descriptors (and smallest blocks) of one chunk.
pub(crate) const PAGES_PER_CHUNK: usize = CHUNK_BYTES / ALIGNMENT;

/// Smallest region in bytes, and the alignment of all: the huge page of x86-64 and of arm64 with
/// 4 KiB pages.
pub(crate) const REGION_BYTES_MIN: usize = 2 << 20;

/// Largest region in bytes. Regions grow with the pool up to this, so that 512 GiB are about 8,000
/// regions: below the 16,384 buffers of one io_uring (IORING_MAX_REG_BUFFERS) and the 65,535
/// mappings of VFIO (`dma_entry_limit`).
pub(crate) const REGION_BYTES_MAX: usize = 64 << 20;

/// Bytes one thread may keep of one class, so at most 9 of these (or a little more, see
/// [`cached_blocks_max`]) for a thread. Past it half goes to the common pool.
const CACHED_BYTES_MAX: usize = 1 << 20;

/// Bytes of a block of a class.
pub(crate) const fn class_bytes(class: usize) -> usize {
    1 << (SMALLEST_LOG2 as usize + class)
}

/// The smallest class that holds `len` bytes; `None` when it is too long for the pool.
pub(crate) const fn class_of(len: usize) -> Option<usize> {
    if len > LARGEST_POOLED_BYTES {
        return None;
    }
    let bytes = if len <= ALIGNMENT { ALIGNMENT } else { len.next_power_of_two() };
    Some((bytes.trailing_zeros() - SMALLEST_LOG2) as usize)
}

/// Blocks of a class that one thread may keep: at least two, so that a thread that takes and frees
/// in turn does not touch the common pool.
pub(crate) const fn cached_blocks_max(class: usize) -> usize {
    let blocks = CACHED_BYTES_MAX / class_bytes(class);
    if blocks < 2 { 2 } else { blocks }
}

/// Blocks moved between a thread and the common pool at once.
pub(crate) const fn batch_blocks(class: usize) -> usize {
    cached_blocks_max(class) / 2
}

const _: () = assert!(class_bytes(0) == ALIGNMENT);
const _: () = assert!(CHUNK_BYTES == 1 << 20);
const _: () = assert!(REGION_BYTES_MIN.is_multiple_of(CHUNK_BYTES));
const _: () = assert!(REGION_BYTES_MAX.is_multiple_of(REGION_BYTES_MIN));
const _: () = assert!(batch_blocks(CLASS_COUNT - 1) >= 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_what_it_is_chosen_for_and_the_one_below_does_not() {
        for len in (0..=LARGEST_POOLED_BYTES).step_by(511).chain([4096, 4097, 8192, 1 << 20]) {
            let class = class_of(len).unwrap();
            assert!(class_bytes(class) >= len);
            assert!(class == 0 || class_bytes(class - 1) < len, "{len} bytes in class {class}");
        }
        assert_eq!(class_of(LARGEST_POOLED_BYTES + 1), None);
        assert_eq!(class_of(usize::MAX), None);
    }
}
