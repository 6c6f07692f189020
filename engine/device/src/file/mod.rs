//! Files and block devices through io_uring.
//!
//! Direct I/O where the file system has it; elsewhere (tmpfs, some network file systems) buffered,
//! and [`FileDevice::buffered_because`] says why. Every queue is a ring of its own, used by one
//! thread. Writes are in a volatile cache until a flush: for a file always, for a block device if it
//! says so.
//!
//! What always holds: while a device is open for exclusive use nobody else who asks for that has it
//! open (`flock` for files, `O_EXCL` for block devices); no operation blocks the calling thread;
//! after a failed flush no flush succeeds until the device is opened anew.
//!
//! A file or device that grew while it is open is used up to its new end once it was looked at again
//! ([`DeviceQueue::refresh_size`], through any of its queues).

mod open;
mod probe;
mod queue;
mod ring;

use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

pub use open::{Allocation, DirectIo, Discard, OpenOptions};
pub use ring::kernel_entries;

use crate::{BlockDevice, DeviceError, DeviceInfo, DeviceQueue};

/// Deepest queue: what the kernel's rings take is more, but no device gains from it, and each
/// entry holds memory.
pub const DEPTH_MAX: u32 = 4096;

/// A file or block device.
#[derive(Clone)]
pub struct FileDevice {
    shared: Arc<Shared>,
}

/// What the device's queues have in common.
struct Shared {
    file: File,
    info: DeviceInfo,
    /// Bytes of the device as far as is known by now; it never falls.
    size_bytes: AtomicU64,
    read_only: bool,
    /// Units of direct I/O; `None` when it is buffered.
    direct: Option<Alignment>,
    buffered_because: Option<String>,
    /// Set once the file system said that it cannot zero a range but by punching a hole.
    zero_by_punch: AtomicBool,
    flush_failed: AtomicBool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Closing would do, but the kernel may hold the file a moment longer (see `ring`).
        let _ = rustix::fs::flock(&self.file, rustix::fs::FlockOperation::Unlock);
    }
}

/// What direct I/O asks of addresses and of lengths, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    memory: u32,
    length: u32,
}

impl FileDevice {
    /// Why this device is read and written through the page cache; `None` when it is not.
    #[must_use]
    pub fn buffered_because(&self) -> Option<&str> {
        self.shared.buffered_because.as_deref()
    }

    /// Whether it was opened read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.read_only
    }
}

impl BlockDevice for FileDevice {
    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    /// The depth is 1 to [`DEPTH_MAX`].
    fn open_queue(&self, depth: u32) -> Result<Rc<dyn DeviceQueue>, DeviceError> {
        let path = &self.shared.info.name;
        if depth == 0 || depth > DEPTH_MAX {
            let cause = format!("a queue depth of {depth} is not within 1 to {DEPTH_MAX}");
            return Err(DeviceError::Open { path: path.clone(), cause });
        }
        match queue::FileQueue::open(Arc::clone(&self.shared), depth) {
            Ok(queue) => Ok(queue),
            Err(error) => Err(open::ring_error(path, &error)),
        }
    }
}
