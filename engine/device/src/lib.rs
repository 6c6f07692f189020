//! Block devices and their queues.
//!
//! A [`BlockDevice`] is shared by all cores; a [`DeviceQueue`] belongs to one core and is not `Send`,
//! so there is no lock between cores. Callers use the futures of [`QueueExt`]; an implementation sees
//! [`Operation`] and [`Completion`] only.

mod completion;
pub mod contract;
mod error;
mod file;
mod memory;
mod queue;

pub use completion::{Completion, IoFuture, Outcome, completion_pair};
pub use error::DeviceError;
pub use file::{Allocation, DEPTH_MAX, DirectIo, FileDevice, OpenOptions};
pub use memory::MemoryDevice;
pub use queue::{BlockDevice, DeviceInfo, DeviceQueue, IoVec, Operation, QueueExt};
