//! Block devices and their queues.
//!
//! A [`BlockDevice`] is shared by all cores; a [`DeviceQueue`] belongs to one core and is not `Send`,
//! so there is no lock between cores. Callers use the futures of [`QueueExt`]; an implementation sees
//! [`Operation`] and [`Completion`] only.
//!
//! | device | what it is |
//! | --- | --- |
//! | [`FileDevice`] | a file or block device, through io_uring |
//! | [`MemoryDevice`] | bytes in memory, for tests and as the null peer in measurements |
//! | [`FaultyDevice`] | another device that fails by script, for tests |
//!
//! What always holds is written at [`DeviceQueue`], and [`contract`] checks it for every device, those
//! of other crates included. `FLUSH` and force unit access are what NVMe and Linux mean by them. Who
//! orders operations, retries them or keeps copies is no matter of devices.
//!
//! Unsafe code is in `file/ring.rs` (memory the kernel has hold of) and `contract/descriptor.rs`.

mod completion;
pub mod contract;
mod error;
mod faulty;
mod file;
mod memory;
mod queue;

pub use completion::{Completion, IoFuture, Outcome, completion_pair};
pub use error::DeviceError;
pub use faulty::{Fault, Faults, FaultyDevice, OperationKind, Rule, RuleId};
pub use file::{Allocation, DEPTH_MAX, DirectIo, Discard, FileDevice, OpenOptions, kernel_entries};
pub use memory::{MemoryDevice, Traffic};
pub use queue::{BlockDevice, DeviceInfo, DeviceQueue, IoVec, Operation, QueueExt};
