//! The contract of a device and of its queues. `contract` (a test suite) checks every implementation.

use std::future::Future;
use std::os::fd::RawFd;
use std::rc::Rc;

use engine_memory::{Buffer, Slice};
use smallvec::SmallVec;

use crate::{Completion, DeviceError, IoFuture, completion_pair};

/// The pieces of one write, in order. Their sum is a multiple of the device's block size.
pub type IoVec = SmallVec<[Slice; 4]>;

/// Geometry and capabilities of a device, fixed while it is open; its size may change, see
/// [`DeviceQueue::refresh_size`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name for people: a path, or a PCI address and namespace.
    pub name: String,
    /// Bytes of the device when it was opened; a multiple of `block_size`.
    pub size_bytes: u64,
    /// Unit in bytes of offsets and lengths (512 or 4096).
    pub block_size: u32,
    /// Bytes that are written wholly or not at all across a power loss; at least `block_size`.
    pub atomic_write_bytes: u32,
    /// Whether writes can be lost by power loss until a flush.
    pub volatile_write_cache: bool,
    /// Whether discard is supported. Discarded blocks read as anything until written again.
    pub discard: bool,
    /// Whether write zeroes is supported without sending the zeroes.
    pub write_zeroes: bool,
    /// Largest read or write in bytes of one operation.
    pub max_transfer_bytes: u32,
}

/// One operation. Offsets and lengths are bytes.
#[derive(Debug)]
pub enum Operation {
    /// Fills the whole buffer from `offset`. The buffer comes back in the outcome.
    Read {
        /// Byte offset.
        offset: u64,
        /// Where to; its length is the length of the read.
        buffer: Buffer,
    },
    /// Writes the pieces of `data` one after the other from `offset` on.
    Write {
        /// Byte offset.
        offset: u64,
        /// What to write.
        data: IoVec,
        /// Force unit access: durable, this write alone, before it completes.
        fua: bool,
    },
    /// Makes every write that completed before this was submitted durable.
    Flush,
    /// The range holds nothing of worth any more.
    Discard {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// A device that several cores use, each by a queue of its own.
pub trait BlockDevice: Send + Sync {
    /// Geometry and capabilities.
    fn info(&self) -> &DeviceInfo;

    /// A queue for the calling core with room for `depth` operations in flight. More may be
    /// submitted: they wait inside the queue.
    ///
    /// # Errors
    /// When the operating system or the controller refuses one more queue.
    fn open_queue(&self, depth: u32) -> Result<Rc<dyn DeviceQueue>, DeviceError>;
}

/// One core's way to a device.
///
/// Operations in flight at the same time may be done in any order. A write is not durable before a
/// flush that was submitted after it completed, unless it asked for `fua`. An operation that is
/// misaligned or out of range is answered with an error and changes nothing. A failed write leaves
/// each of its blocks old, new or unreadable.
pub trait DeviceQueue {
    /// Geometry and capabilities.
    fn info(&self) -> &DeviceInfo;

    /// Looks how large the device is now, in whole blocks. It may have grown since it was opened: then
    /// this queue takes operations up to the new end from here on. One that has shrunk tells so, and
    /// answers operations past its end with errors of its own.
    ///
    /// # Errors
    /// When the device does not tell.
    fn refresh_size(&self) -> Result<u64, DeviceError>;

    /// Starts an operation. Never blocks; `done` is answered from [`DeviceQueue::poll`], or from
    /// here when the operation is invalid.
    fn submit(&self, operation: Operation, done: Completion);

    /// Hands submitted operations to the device and answers those that have ended. Returns how
    /// many were answered. Called once per turn of the reactor.
    fn poll(&self) -> usize;

    /// Operations submitted and not yet answered.
    fn in_flight(&self) -> usize;

    /// A descriptor that becomes readable when an operation ends, for a core that wants to sleep;
    /// `None` when the queue never needs waiting for (everything ends in `submit` or `poll`). It
    /// stays open as long as the queue lives; `poll` clears it.
    fn wake_fd(&self) -> Option<RawFd>;

    /// Called before the core sleeps on [`DeviceQueue::wake_fd`]: arms it, then returns whether the
    /// core may sleep (`false`: something has ended already, poll again).
    fn prepare_to_sleep(&self) -> bool;
}

/// The futures callers use, for every queue.
pub trait QueueExt {
    /// Reads `len` bytes at `offset`.
    fn read(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = Result<Buffer, DeviceError>>;
    /// Writes `data` at `offset`; with `fua`, durably.
    fn write(
        &self,
        offset: u64,
        data: IoVec,
        fua: bool,
    ) -> impl Future<Output = Result<(), DeviceError>>;
    /// Makes all completed writes durable.
    fn flush(&self) -> impl Future<Output = Result<(), DeviceError>>;
    /// Drops the content of a range.
    fn discard(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), DeviceError>>;
    /// Zeroes a range.
    fn write_zeroes(&self, offset: u64, len: u64) -> impl Future<Output = Result<(), DeviceError>>;
}

fn start<Q: DeviceQueue + ?Sized>(queue: &Q, operation: Operation) -> IoFuture {
    let (done, future) = completion_pair();
    queue.submit(operation, done);
    future
}

impl<Q: DeviceQueue + ?Sized> QueueExt for Q {
    async fn read(&self, offset: u64, buffer: Buffer) -> Result<Buffer, DeviceError> {
        match start(self, Operation::Read { offset, buffer }).await? {
            Some(buffer) => Ok(buffer),
            None => Err(DeviceError::Gone { device: self.info().name.clone() }),
        }
    }

    async fn write(&self, offset: u64, data: IoVec, fua: bool) -> Result<(), DeviceError> {
        start(self, Operation::Write { offset, data, fua }).await.map(drop)
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        start(self, Operation::Flush).await.map(drop)
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        start(self, Operation::Discard { offset, len }).await.map(drop)
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        start(self, Operation::WriteZeroes { offset, len }).await.map(drop)
    }
}

impl DeviceInfo {
    /// Checks alignment and range of an operation; every implementation calls this first, or
    /// [`DeviceInfo::check_within`].
    ///
    /// # Errors
    /// [`DeviceError::Misaligned`] or [`DeviceError::OutOfRange`].
    pub fn check(&self, operation: &Operation) -> Result<(), DeviceError> {
        self.check_within(operation, self.size_bytes)
    }

    /// [`DeviceInfo::check`] for a device that has `size_bytes` by now.
    ///
    /// # Errors
    /// As [`DeviceInfo::check`].
    pub fn check_within(&self, operation: &Operation, size_bytes: u64) -> Result<(), DeviceError> {
        let (what, offset, len) = match operation {
            Operation::Read { offset, buffer } => ("read", *offset, buffer.len() as u64),
            Operation::Write { offset, data, .. } => {
                ("write", *offset, data.iter().map(|piece| piece.len() as u64).sum())
            }
            Operation::Flush => return Ok(()),
            Operation::Discard { offset, len } => ("discard", *offset, *len),
            Operation::WriteZeroes { offset, len } => ("write zeroes", *offset, *len),
        };
        let unit = u64::from(self.block_size);
        if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(DeviceError::Misaligned { what, offset, unit: self.block_size });
        }
        match offset.checked_add(len) {
            Some(end) if end <= size_bytes => Ok(()),
            _ => Err(DeviceError::OutOfRange { offset, len, size: size_bytes }),
        }
    }
}
