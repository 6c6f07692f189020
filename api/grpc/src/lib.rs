//! gRPC front end: serves the package `cairn.v1` over a Unix socket, and over TCP with TLS.
//!
//! - [`server`]: configuration, listeners, graceful stop. Start here.
//! - [`export`]: what the daemon implements so that exports can be managed.
//! - [`status`]: the one table from causes of failure to gRPC codes.
//!
//! Always holds: what a client sends is checked before the engine sees it; calls, streams, bytes in
//! flight and messages are bounded (see [`limits`]); a volume that is exported is neither deleted
//! nor shrunk. Left to others: permissions of files (whoever may connect may do everything), the
//! NVMe/TCP target, and storage itself. Knows no devices.

mod allocations;
mod convert;
mod core;
pub mod export;
mod file;
mod gate;
mod info;
pub mod limits;
mod listen;
mod log_filter;
pub mod observe;
mod outgoing;
mod path;
mod pool;
mod scrub;
pub mod server;
mod snapshot;
mod stats;
pub mod status;
mod subvolume;
mod token;
mod transfer;
mod volume;

pub use export::{Export, ExportControl, ExportNamespace, ExportSpec};
pub use info::{MemberInfo, ServerInfo};
pub use log_filter::LogControl;
pub use observe::{CoreTime, MethodTimes, Observe, Scope, Timing, WaitingNow};
pub use server::{Limits, Server, ServerConfig, StartError, TcpConfig, TlsConfig, UnixConfig};
