//! What every other crate may name: units, identifiers, checksums, seeded randomness, hashing and
//! the contract between the engine and whatever runs it.
//!
//! This crate knows nothing of the rest of the project and does no I/O.

pub mod checksum;
pub mod hash;
pub mod histogram;
pub mod ids;
pub mod random;
pub mod runtime;
pub mod time_stats;
pub mod units;

pub use ids::{InodeNumber, MemberIndex, ShardId, SnapshotId, SubvolumeId};
pub use units::{BLOCK_SIZE, BLOCK_SIZE_LOG2, GIB, KIB, MIB};
