//! A whole pool in one thread: for tools that work on devices no daemon uses, and for measurements of
//! the engine in process. Also what tools and daemon share: opening devices and recognising the members
//! of a pool among them.
//!
//! Knows nothing of protocols and configuration; messages between shards are direct calls here.

pub mod format;
pub mod image;
pub mod local;
pub mod look;
pub mod members;
pub mod poller;

pub use format::{FormatError, FormatRequest, format};
pub use image::{ImageError, image};
pub use local::{LocalLink, LocalPool, OPENING_MAX, OpenError};
pub use look::look;
