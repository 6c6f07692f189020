//! Regions: large pieces of memory from the operating system, cut into pages with a descriptor each.
//!
//! A region is never given back, so its descriptors and bytes are `'static`.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::ALIGNMENT;
use crate::block::Descriptor;
use crate::limits::{PAGES_PER_CHUNK, REGION_BYTES_MIN};

/// A piece of memory that buffers lie in. Stays where it is until the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Address of its first byte: a multiple of 2 MiB.
    pub address: usize,
    /// Its length in bytes: a multiple of 2 MiB.
    pub bytes: usize,
}

/// A region that was just mapped, all zeroes.
pub(crate) struct Mapped {
    pub(crate) region: Region,
    /// One for each page, in order of address.
    pub(crate) descriptors: &'static [Descriptor],
}

/// Maps `bytes` (a multiple of [`REGION_BYTES_MIN`]) whose chunks are numbered from `first_chunk`.
/// `None` when the system has no memory.
pub(crate) fn map(bytes: usize, first_chunk: u32) -> Option<Mapped> {
    assert!(bytes > 0 && bytes.is_multiple_of(REGION_BYTES_MIN));
    let pages = bytes / ALIGNMENT;
    let mut descriptors = Vec::new();
    descriptors.try_reserve_exact(pages).ok()?;
    let start = system::map_zeroed(bytes)?;
    assert!(start.addr().get().is_multiple_of(REGION_BYTES_MIN));
    for page in 0..pages {
        // SAFETY: page < pages, so the result is within the `bytes` just mapped.
        let address = unsafe { start.add(page * ALIGNMENT) };
        descriptors
            .push(Descriptor::pooled(address, first_chunk + (page / PAGES_PER_CHUNK) as u32));
    }
    let region = Region { address: start.addr().get(), bytes };
    Some(Mapped { region, descriptors: descriptors.leak() })
}

/// Bytes of physical memory of this machine; `None` when the system does not tell.
pub(crate) fn physical_memory_bytes() -> Option<u64> {
    if cfg!(miri) {
        return None;
    }
    // SAFETY: sysconf only reads its argument.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    // SAFETY: as above.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(page_bytes).ok()?)
}

#[cfg(not(miri))]
mod system {
    use super::{NonNull, REGION_BYTES_MIN};

    /// Zeroed memory aligned to [`REGION_BYTES_MIN`], of huge pages if the system likes.
    pub(super) fn map_zeroed(bytes: usize) -> Option<NonNull<u8>> {
        let mapped_bytes = bytes.checked_add(REGION_BYTES_MIN)?;
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing.
        let mapped =
            unsafe { libc::mmap(std::ptr::null_mut(), mapped_bytes, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return None;
        }
        let mapped = NonNull::new(mapped.cast::<u8>())?;
        let before = mapped.align_offset(REGION_BYTES_MIN);
        // SAFETY: `before` < REGION_BYTES_MIN, the surplus that was mapped.
        let start = unsafe { mapped.add(before) };
        // SAFETY: `before + bytes` <= mapped_bytes.
        let end = unsafe { start.add(bytes) };
        unmap(mapped, before);
        unmap(end, REGION_BYTES_MIN - before);
        // SAFETY: [start, start + bytes) is the rest of our own mapping; advice changes no content.
        // Refusal (no huge pages in this kernel) costs speed only.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(start)
    }

    /// Gives back the surplus of a mapping, of which nobody has an address.
    fn unmap(start: NonNull<u8>, bytes: usize) {
        if bytes > 0 {
            // SAFETY: the caller names a page-aligned part of its own new mapping that is not used.
            let result = unsafe { libc::munmap(start.as_ptr().cast(), bytes) };
            assert_eq!(result, 0, "munmap of a part of our own mapping");
        }
    }
}

#[cfg(miri)]
mod system {
    use super::{NonNull, REGION_BYTES_MIN};

    /// Zeroed memory aligned to [`REGION_BYTES_MIN`]. Miri knows no madvise and no partial munmap.
    pub(super) fn map_zeroed(bytes: usize) -> Option<NonNull<u8>> {
        let layout = std::alloc::Layout::from_size_align(bytes, REGION_BYTES_MIN).ok()?;
        // SAFETY: the layout's size is not 0 (asserted by `map`).
        NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
    }
}
