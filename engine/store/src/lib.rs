//! The storage engine, one shard at a time, as futures over devices, clock, randomness and spawner
//! that are handed in. Knows no threads, no sockets, no wall clock, no NVMe.

pub mod api;
pub mod client;
pub mod dump;
pub mod engine;
pub mod error;
pub mod extent;
pub mod key;
pub mod limits;
pub mod planted;
pub mod pool;
pub mod reached;
mod scrub;
pub mod shard;
pub mod times;
pub mod transaction;
mod tree_diff;
mod version;

mod access;
mod background;
mod btree;
mod check;
mod check_index;
pub mod codec;
mod commit;
mod context;
pub mod damage;
mod data;
mod flight;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod gate;
mod journal;
mod lock;
mod logged;
mod namespace;
mod recovery;
mod repair;
mod reserve;
mod resize;
mod six;
mod space;
mod status;
mod subvolume;
pub mod superblock;
mod sync;
mod tail;
#[cfg(test)]
mod testing;

pub use error::{Result, StoreError};
pub use space::RegionSource;
