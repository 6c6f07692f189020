//! Causes of failure of the engine. Front ends map causes to codes of their protocol; nobody else
//! does.

use engine_device::DeviceError;

/// Result of an engine operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why an engine operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The named thing does not exist (ENOENT).
    #[error("{what} not found")]
    NotFound {
        /// What was looked for, for people.
        what: String,
    },
    /// The name is taken (EEXIST).
    #[error("{what} already exists")]
    AlreadyExists {
        /// What is there already.
        what: String,
    },
    /// A directory that must be empty is not (ENOTEMPTY).
    #[error("directory not empty: {what}")]
    NotEmpty {
        /// Which directory.
        what: String,
    },
    /// A directory is needed (ENOTDIR).
    #[error("not a directory: {what}")]
    NotDirectory {
        /// What was named instead.
        what: String,
    },
    /// A directory was named where none may be (EISDIR).
    #[error("is a directory: {what}")]
    IsDirectory {
        /// Which directory.
        what: String,
    },
    /// Rename or link across subvolumes (EXDEV).
    #[error("source and destination are in different subvolumes")]
    CrossSubvolume,
    /// An argument is out of its range (EINVAL).
    #[error("invalid argument: {why}")]
    InvalidArgument {
        /// What is wrong and what would be right.
        why: String,
    },
    /// Symbolic links nested too deep (ELOOP).
    #[error("too many levels of symbolic links in {path}")]
    TooManySymlinks {
        /// The path that was walked.
        path: String,
    },
    /// The hard link limit is reached (EMLINK).
    #[error("too many links to inode {inode}")]
    TooManyLinks {
        /// The inode.
        inode: u64,
    },
    /// The pool cannot hold it (ENOSPC); decided before anything is written.
    #[error("no space: {needed_bytes} bytes needed, {available_bytes} bytes available")]
    NoSpace {
        /// What the operation could need at worst.
        needed_bytes: u64,
        /// What can be granted now.
        available_bytes: u64,
    },
    /// The state of the object forbids it now (EBUSY): in use, exported, being deleted.
    #[error("{what} is busy: {why}")]
    Busy {
        /// The object.
        what: String,
        /// What holds it and what to do.
        why: String,
    },
    /// The pool or subvolume takes no writes.
    #[error("read-only: {why}")]
    ReadOnly {
        /// Since when or by what.
        why: String,
    },
    /// No good copy of the data is left: it failed its checksum everywhere.
    #[error("data lost: {what}")]
    DataLoss {
        /// Which data.
        what: String,
    },
    /// A structure on disk is not what it must be.
    #[error("corrupt {structure}: {why}")]
    Corrupt {
        /// Which structure and where.
        structure: String,
        /// What was found.
        why: String,
    },
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No memory within the configured bounds.
    #[error("out of memory: {what}")]
    OutOfMemory {
        /// What wanted it.
        what: String,
    },
    /// More is in flight than the configured bounds allow; try again.
    #[error("overloaded: {what}")]
    Overloaded {
        /// Which bound was met.
        what: String,
    },
    /// The feature is not built.
    #[error("not supported: {what}")]
    Unsupported {
        /// Which feature.
        what: String,
    },
    /// The shard is stopping or has stopped after a failed write.
    #[error("shutting down: {why}")]
    ShuttingDown {
        /// Why.
        why: String,
    },
    /// A transaction met a conflict and must run again. Never leaves the engine.
    #[error("transaction restart")]
    Restart,
    /// A transaction would change more keys than one may: it must be cut into several. Never leaves the engine.
    #[error("a transaction of {0} changes, more than one takes")]
    TransactionFull(usize),
}

impl StoreError {
    /// Shorthand for [`StoreError::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// Shorthand for [`StoreError::InvalidArgument`].
    pub fn invalid(why: impl Into<String>) -> Self {
        Self::InvalidArgument { why: why.into() }
    }

    /// Shorthand for [`StoreError::Corrupt`].
    pub fn corrupt(structure: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Corrupt { structure: structure.into(), why: why.into() }
    }
}

impl From<engine_memory::OutOfMemory> for StoreError {
    fn from(error: engine_memory::OutOfMemory) -> Self {
        Self::OutOfMemory { what: error.to_string() }
    }
}
