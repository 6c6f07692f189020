//! I/O buffers that move by ownership from socket to device and back, and the pool they come from.
//!
//! A [`Buffer`] is unique and writable; [`Buffer::freeze`] turns it, without a copy, into a
//! [`Slice`], which is shared, read-only and can be cut. Both are `Send`: messages between cores own
//! their buffers, and the last owner may free them on any thread.
//!
//! What always holds:
//! * Every buffer starts at a multiple of [`ALIGNMENT`] and lies in one [`Region`] when it is at most
//!   [`LARGEST_POOLED_BYTES`] long. Regions never move and are never given back, so a device may be
//!   told of them once (`VFIO_IOMMU_MAP_DMA`, `IORING_REGISTER_BUFFERS`).
//! * Bytes of a buffer are always initialised: memory comes zeroed from the operating system, and
//!   recycled memory holds old bytes.
//! * Regions and larger buffers together never exceed [`limit_bytes`]; past it there is
//!   [`OutOfMemory`], never an abort.
//!
//! [`profile`] tells which part of the program holds how much memory, of the heap and of buffers.
//!
//! Left to others: who may take how much (admission), and mapping regions for devices.

mod block;
mod buffer;
mod cache;
mod limits;
mod pool;
mod pressure;
pub mod profile;
#[cfg(feature = "fault-injection")]
mod refuse;
mod region;

pub use buffer::{ALIGNMENT, Buffer, OutOfMemory, Slice, copied_bytes};
pub use cache::{
    LimitRefused, is_scarce, limit_bytes, region_count, regions, return_thread_cache,
    set_limit_bytes, set_refusal_hook, usage,
};
pub use limits::{CLASS_COUNT, LARGEST_POOLED_BYTES};
pub use pool::{ClassUsage, Usage};
pub use pressure::{GiveBack, give_back_under_pressure};
#[cfg(feature = "fault-injection")]
pub use refuse::{Refusing, refuse, spare};
pub use region::Region;
