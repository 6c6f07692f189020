//! The storage engine, one shard at a time, as futures over devices, clock, randomness and spawner
//! that are handed in. Knows no threads, no sockets, no wall clock, no NVMe.

pub mod api;
pub mod client;
pub mod engine;
pub mod error;
pub mod extent;
pub mod key;
pub mod limits;
pub mod shard;
pub mod transaction;

mod background;
mod context;
mod data;
mod gate;
mod lock;
mod logged;
mod namespace;
mod subvolume;
#[cfg(test)]
mod testing;

pub use error::{Result, StoreError};
