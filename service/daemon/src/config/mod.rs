//! `cairnd.toml`: what may stand in it, read into types that prove it.
//!
//! [`keys::KEYS`] is the one table of every key: its kind, its range, its default, its
//! documentation and the advice given when a value is wrong. The commented default file, the check
//! of unknown keys and the check of every single value are made from it. The structs here only hold
//! the result; [`validate`] adds the rules that concern more than one key.
//!
//! Reading a configuration touches no device, no socket and no clock: `check` in [`crate::inspect`]
//! does that.

mod error;
mod keys;
mod read;
mod validate;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

pub(crate) use error::Problem;
pub(crate) use keys::default_text;
pub(crate) use read::load;
#[cfg(test)]
pub(crate) use read::parse;

/// A whole, checked configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) pool: Pool,
    pub(crate) cores: Cores,
    pub(crate) memory: Memory,
    pub(crate) grpc: Grpc,
    pub(crate) nvme: Nvme,
    pub(crate) metrics: Metrics,
    pub(crate) log: Log,
    pub(crate) shutdown: Shutdown,
}

/// The pool to serve.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    /// Paths of all members.
    pub(crate) devices: Vec<PathBuf>,
    /// What is discarded.
    pub(crate) discard: Discard,
}

/// What is discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discard {
    /// Block devices, not files.
    Auto,
    /// Both.
    Always,
    /// Nothing.
    Never,
}

impl From<Discard> for engine_device::Discard {
    fn from(discard: Discard) -> Self {
        match discard {
            Discard::Auto => Self::Auto,
            Discard::Always => Self::Always,
            Discard::Never => Self::Never,
        }
    }
}

/// The polled cores.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cores {
    /// How many; 0: chosen from the processors available.
    pub(crate) count: u32,
    /// Which processors exactly, instead of a count.
    pub(crate) list: Option<Vec<u32>>,
    /// Whether each thread stays on its processor.
    pub(crate) pin: bool,
    /// What runs the polled loops.
    pub(crate) host: CoreHost,
    /// How long a core polls in vain before it sleeps, in microseconds.
    pub(crate) idle_window_us: u64,
    /// Most requests in flight per shard.
    pub(crate) shard_requests_max: u32,
    /// Depth of each core's queue to each device.
    pub(crate) device_queue_depth: u32,
}

/// What runs a core's polled loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CoreHost {
    /// A bare thread.
    Thread,
    /// A glommio executor.
    Glommio,
}

/// Bounds of memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Memory {
    /// Index cache of all shards together, in MiB.
    pub(crate) index_cache_mib: u64,
    /// Cached data of all shards together, in MiB.
    pub(crate) data_cache_mib: u64,
    /// Data of requests in progress on all cores together, in MiB.
    pub(crate) io_buffers_mib: u64,
    /// Whether allocations are counted.
    pub(crate) allocation_profiling: Profiling,
}

/// Whether allocations are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Profiling {
    /// From the start.
    On,
    /// Until it is switched on.
    Off,
    /// Not in this process.
    Never,
}

/// The gRPC server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grpc {
    /// Path of the Unix socket.
    pub(crate) socket: PathBuf,
    /// Permission bits of the socket.
    pub(crate) socket_mode: Mode,
    /// Group that owns the socket.
    pub(crate) socket_group: Option<String>,
    /// TCP address, off when absent.
    pub(crate) listen: Option<SocketAddr>,
    /// Certificate chain (PEM).
    pub(crate) tls_certificate: Option<PathBuf>,
    /// Private key (PEM).
    pub(crate) tls_key: Option<PathBuf>,
    /// Authorities (PEM) that client certificates must come from.
    pub(crate) tls_client_ca: Option<PathBuf>,
}

/// The NVMe/TCP target.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nvme {
    /// Whether it runs.
    pub(crate) enable: bool,
    /// Where it listens.
    pub(crate) listen: Vec<SocketAddr>,
    /// Most TCP connections over all cores.
    pub(crate) connections_max: u32,
    /// Most I/O queues of one controller.
    pub(crate) queues_max: u32,
    /// Bytes of commands in flight on all cores together, in MiB.
    pub(crate) in_flight_mib: u64,
}

/// The metrics endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Whether it runs.
    pub(crate) enable: bool,
    /// Where it listens.
    pub(crate) listen: SocketAddr,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// Filter directives of the `tracing` family.
    pub(crate) filter: String,
    /// Form of the lines.
    pub(crate) format: LogFormat,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shutdown {
    /// Bound of a clean shutdown, in seconds.
    pub(crate) timeout_s: u64,
}

/// Permission bits, written as an octal string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Mode(pub(crate) u32);

impl TryFrom<String> for Mode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(bits) if bits <= 0o777 && (3..=4).contains(&text.len()) => Ok(Self(bits)),
            _ => Err(format!("{text:?} is not an octal mode")),
        }
    }
}

#[cfg(test)]
mod tests;
