//! What the target asks of storage. The daemon adapts the engine to it, tests a piece of memory.

use engine_memory::Slice;
use nvme_spec::Status;
use smallvec::SmallVec;
use std::future::Future;

/// The backend's own name of a volume; the target only passes it on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VolumeKey(pub u64);

/// Storage as one core sees it. Each core has its own backend and its own namespaces; nothing here
/// is shared between threads.
pub trait Backend: 'static {
    /// A volume, opened on this core.
    type Namespace: Namespace;

    /// Opens `volume` on this core. Called when a connection of this core first uses the namespace;
    /// the result is shared by the core's connections and dropped when the last of them is done or
    /// the namespace was removed.
    ///
    /// # Errors
    /// Commands to the namespace complete with the status of the error.
    fn open(&self, volume: VolumeKey) -> Result<Self::Namespace, BackendError>;
}

/// A volume, opened on one core.
pub trait Namespace: 'static {
    /// An operation under way. It is polled in a slot that is allocated once per queue entry, so a
    /// backend whose future has a name needs no allocation per command; a boxed future also fits.
    ///
    /// It is polled until it ends, even when the connection is gone: an operation that was started
    /// is never dropped half way. It must wake the waker it was last polled with, from any thread.
    type Future: Future<Output = IoResult> + 'static;

    /// Starts an operation. The range was checked against the size and the block size of the
    /// namespace; `read_only` was checked too.
    fn submit(&self, request: IoRequest) -> Self::Future;

    /// Bytes of the volume that occupy space (told as NUSE); `None` when that is not known.
    fn used_bytes(&self) -> Option<u64> {
        None
    }
}

/// Bytes `offset .. offset + len` of a volume, aligned to its logical blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// An operation on a volume.
#[derive(Clone, Debug)]
pub enum IoRequest {
    /// Read `len` bytes. The answer is [`IoOutput::Data`] with exactly that many.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes; at most the largest transfer.
        len: u32,
    },
    /// Write `data` at `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// What to write; the backend may keep it.
        data: Slice,
        /// Complete only when durable.
        fua: bool,
    },
    /// Make all completed writes durable.
    Flush,
    /// The ranges are no longer needed; they read as zeroes from now on. They may overlap.
    Deallocate {
        /// 1 to 256 ranges.
        ranges: SmallVec<[ByteRange; 4]>,
    },
    /// Make a range read as zeroes.
    WriteZeroes {
        /// What to clear.
        range: ByteRange,
        /// Free the space, too.
        deallocate: bool,
        /// Complete only when durable.
        fua: bool,
    },
    /// Let the blocks from `offset` on hold what those of the sources do, one source behind the other
    /// and in their order. No source overlaps the destination. Meanwhile, and when it fails, each block
    /// of the destination holds what it did or what its source did meanwhile. A failure is
    /// [`IoOutput::Stopped`] where it is known which source it was.
    Copy {
        /// 1 to 128 ranges; they may overlap each other.
        sources: SmallVec<[ByteRange; 4]>,
        /// First byte of the destination.
        offset: u64,
        /// Complete only when durable.
        fua: bool,
    },
}

/// What an operation yields.
#[derive(Clone, Debug)]
pub enum IoOutput {
    /// Done; nothing to return.
    Done,
    /// The bytes read, in order.
    Data(SmallVec<[Slice; 4]>),
    /// A copy failed half way.
    Stopped {
        /// Sources that were copied whole, so the number of the first that was not.
        copied: u32,
        /// Why that one was not.
        cause: BackendError,
    },
}

/// The end of an operation.
pub type IoResult = Result<IoOutput, BackendError>;

/// Why an operation failed. The target maps causes to NVMe status; see [`BackendError::to_status`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackendError {
    /// The range lies outside the volume (it shrank since the check).
    #[error("range outside the volume")]
    OutOfRange,
    /// No space for the write.
    #[error("no space left")]
    NoSpace,
    /// No copy of the data could be read or matched its checksum.
    #[error("unrecovered read error")]
    Read,
    /// The medium failed to write.
    #[error("write fault")]
    Write,
    /// Overloaded for now; the host shall try again.
    #[error("busy")]
    Busy,
    /// The volume is read-only.
    #[error("read-only")]
    ReadOnly,
    /// The volume does not exist (any more).
    #[error("no such volume")]
    Gone,
    /// The pool is not ready or being shut down; another path or a later try may work.
    #[error("shutting down or not ready")]
    ShuttingDown,
    /// The operation is not supported.
    #[error("not supported")]
    Unsupported,
    /// Something else failed.
    #[error("internal error")]
    Internal,
}

impl BackendError {
    /// The status a host is told. Do Not Retry is set for causes that a second try meets again.
    #[must_use]
    pub fn to_status(self) -> Status {
        match self {
            Self::OutOfRange => Status::LBA_OUT_OF_RANGE,
            Self::NoSpace => Status::CAPACITY_EXCEEDED,
            Self::Read => Status::UNRECOVERED_READ_ERROR,
            Self::Write => Status::WRITE_FAULT,
            Self::Busy | Self::ShuttingDown => Status::NAMESPACE_NOT_READY,
            Self::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED,
            Self::Gone => Status::INVALID_NAMESPACE,
            Self::Unsupported => Status::INVALID_OPCODE,
            Self::Internal => Status::INTERNAL_ERROR,
        }
    }
}
