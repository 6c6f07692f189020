//! Deterministic simulator of whole pools.
//!
//! Shards, clients and disks run on one thread and on virtual time; every choice follows from one
//! seed. Crashes, power losses and device faults are injected, the pool is opened again, and a small
//! reference model that knows every promise made to a client judges what is found.
//!
//! What it leaves to others: real time, real devices, threads (loom in engine/shard), and the front
//! ends.

pub mod disk;
pub mod executor;
pub mod model;
pub mod stamp;
