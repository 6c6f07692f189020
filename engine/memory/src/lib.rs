//! I/O buffers that move by ownership from socket to device and back.
//!
//! A [`Buffer`] is unique and writable; [`Buffer::freeze`] turns it, without a copy, into a
//! [`Slice`], which is shared, read-only and can be cut. Both are `Send`: messages between cores own
//! their buffers.

mod buffer;

pub use buffer::{ALIGNMENT, Buffer, OutOfMemory, Slice};
