//! Deterministic simulator of whole pools.
//!
//! Shards, clients and disks run on one thread and on virtual time; every choice follows from one
//! seed. Crashes, power losses and device faults are injected, the pool is opened again, and a small
//! reference model that knows every promise made to a client judges what is found.
//!
//! - [`executor`]: tasks, timers and time; [`disk`]: what survives; [`mesh`]: messages.
//! - [`model`]: what was promised; [`clients`]: who does the work; [`verify`]: the judgement.
//! - [`options`]: what a seed does; [`simulation`]: the run of one seed.
//!
//! What it leaves to others: real time, real devices, threads (loom in engine/shard), and the front
//! ends.

pub mod clients;
pub mod disk;
pub mod executor;
pub mod mesh;
pub mod model;
pub mod options;
pub mod pool;
pub mod simulation;
pub mod stamp;
pub mod verify;
pub mod world;
