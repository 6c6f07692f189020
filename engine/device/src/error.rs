//! Why a device operation failed.

/// Cause of a failed device operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The range is not aligned to the device's block size, or the buffer's length does not fit it.
    #[error("{what} at byte {offset} is not aligned to {unit} bytes")]
    Misaligned {
        /// What was asked.
        what: &'static str,
        /// Byte offset of the operation.
        offset: u64,
        /// The unit it should be a multiple of.
        unit: u32,
    },
    /// The range reaches past the end of the device.
    #[error("range {offset}+{len} reaches past the device's end at {size}")]
    OutOfRange {
        /// Byte offset of the operation.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Size of the device in bytes.
        size: u64,
    },
    /// The medium failed to read or write.
    #[error("I/O error on {device}: {what} at byte {offset}: {cause}")]
    Io {
        /// The device's name.
        device: String,
        /// What was asked.
        what: &'static str,
        /// Byte offset of the operation.
        offset: u64,
        /// The operating system's or controller's words.
        cause: String,
    },
    /// The device does not do this operation.
    #[error("{device} does not support {what}")]
    Unsupported {
        /// The device's name.
        device: String,
        /// The operation.
        what: &'static str,
    },
    /// The device is gone, or its queue was closed with the operation in flight.
    #[error("device {device} is gone")]
    Gone {
        /// The device's name.
        device: String,
    },
    /// The device could not be opened.
    #[error("cannot open {path}: {cause}")]
    Open {
        /// Path of the file or device node.
        path: String,
        /// Why, and what to do about it.
        cause: String,
    },
    /// No memory for the operation.
    #[error("no memory for {what}")]
    OutOfMemory {
        /// What was asked.
        what: &'static str,
    },
}
