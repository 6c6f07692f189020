//! NVMe/TCP target: I/O and discovery subsystems over a [`Backend`] that the host of this crate gives.
//!
//! ```text
//!   control thread                 each core
//!   Target ---- subsystems ---->   TargetCore: sockets, epoll, slots of commands
//!     |         controllers          Connection: bytes in, commands, bytes out (no sockets)
//!     |         (mutex, atomics)       Namespace futures of the Backend
//! ```
//!
//! What always holds:
//! - A [`Connection`] belongs to one core and touches no lock on the I/O path; what several cores
//!   share ([`Target`], subsystems, controllers) is used at connect time, by admin commands and when
//!   the configuration changes.
//! - Bytes from the wire are parsed once, by `nvme_spec`; a malformed PDU ends its connection, a
//!   malformed command gets a status.
//! - Memory is bounded by [`Limits`]: slots of a queue, bytes in flight per connection and per core.
//!
//! It knows neither the engine nor gRPC, reads no clock and spawns no thread.

mod backend;
mod connection;
mod controller;
mod core;
mod limits;
mod signal;
mod socket;
mod stats;
mod subsystem;
mod target;
#[cfg(feature = "testing")]
pub mod testing;

pub use backend::{
    Backend, BackendError, ByteRange, IoOutput, IoRequest, IoResult, Namespace, VolumeKey,
};
pub use connection::{Connection, CoreContext};
pub use core::{CoreError, TargetCore};
pub use limits::Limits;
pub use signal::{ConnectionSignal, CoreSignal};
pub use stats::{LATENCY_BUCKETS, OperationKind, OperationSnapshot, OperationStats, StatsSnapshot};
pub use subsystem::{NamespaceConfig, SubsystemConfig};
pub use target::{ConfigError, ConnectionInfo, ControllerInfo, Target};
