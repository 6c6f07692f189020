//! The reactor that drives one core, and what cores and control threads talk through.
//!
//! * [`reactor`]: one core's loop; tasks, timers and pollers; sleeping when idle.
//! * [`mesh`], [`port`]: cores to cores, and control threads to cores.
//! * [`cores`], [`host`]: starting, placing and stopping the threads.
//! * [`ring`], [`doorbell`], [`wake_set`]: the lock-free parts, model-checked by tests/loom.rs.
//!
//! Always: nothing here blocks but an idle core; no structure of a core is touched by another one
//! except through the three lock-free parts; every queue is bounded ([`limits`]). Generic over the
//! message; knows nothing of storage, devices or protocols.

#[cfg(not(loom))]
pub mod clock;
#[cfg(not(loom))]
pub mod cores;
pub mod doorbell;
#[cfg(not(loom))]
pub mod error;
#[cfg(not(loom))]
pub mod executor;
#[cfg(not(loom))]
pub mod host;
#[cfg(all(not(loom), feature = "glommio"))]
mod host_glommio;
#[cfg(not(loom))]
pub mod limits;
#[cfg(not(loom))]
pub mod mesh;
#[cfg(not(loom))]
pub mod poller;
#[cfg(not(loom))]
pub mod port;
#[cfg(all(not(loom), feature = "tokio"))]
pub mod port_tokio;
#[cfg(not(loom))]
pub mod reactor;
pub mod ring;
#[cfg(not(loom))]
pub mod stats;
mod sync;
#[cfg(not(loom))]
mod timers;
#[cfg(not(loom))]
mod wait;
#[cfg(not(loom))]
mod wait_list;
pub mod wake_set;

#[cfg(not(loom))]
pub use cores::{CoreContext, Cores, CoresConfig};
#[cfg(not(loom))]
pub use error::{CoreError, LimitError, ReactorFault};
#[cfg(not(loom))]
pub use executor::{TaskClass, TaskInfo};
#[cfg(not(loom))]
pub use mesh::{Endpoint, Inbox, MeshHandle, SendError};
#[cfg(not(loom))]
pub use poller::{Poller, PollerId};
#[cfg(not(loom))]
pub use port::{ControlPort, PortReceiver, PortSender};
#[cfg(not(loom))]
pub use reactor::{Handle, IdlePolicy, Reactor, ReactorConfig};
#[cfg(not(loom))]
pub use stats::{ReactorSnapshot, ReactorStats};

/// The seed of a random test: `SHARD_TEST_SEED`, or the clock. Printed, so that a failure can be
/// repeated.
#[cfg(all(test, not(loom)))]
#[allow(clippy::disallowed_methods, clippy::print_stdout)]
pub(crate) fn test_seed() -> u64 {
    let seed = std::env::var("SHARD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| since.as_nanos() as u64)
    });
    println!("SHARD_TEST_SEED={seed}");
    seed
}
