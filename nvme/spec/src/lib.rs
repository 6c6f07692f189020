//! Structures of the NVMe specifications, shared by the target, the host and the PCIe driver.
//!
//! Sources: NVM Express Base Specification 2.0/2.1 ("Base"), NVM Command Set Specification 1.0 ("NVM"),
//! NVMe/TCP Transport Specification 1.0 ("TCP"). Layouts are `zerocopy` structs of little-endian
//! fields, without padding, whose size and offsets the compiler checks. What comes from the wire is
//! parsed once, in [`command`] and [`pdu`], into types that prove it was looked at; nobody behind them
//! touches a raw double word. This crate does no I/O and knows none of its users.

#[macro_use]
mod wire;

pub mod command;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod nqn;
pub mod pdu;
pub mod queue;
pub mod register;
pub mod status;

pub use command::{AdminCommand, DataPointer, Feature, IoCommand, LbaRange};
pub use nqn::Nqn;
pub use queue::{Cqe, SglDescriptor, Sqe};
pub use status::Status;
