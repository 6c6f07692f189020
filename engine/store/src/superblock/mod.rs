//! The superblock: what a pool is made of. Every member holds three copies.
//!
//! Written at format and when membership or geometry changes, never in the course of I/O. Copies are
//! written one after the other with a flush between, so at any instant at least one is whole; the
//! valid copy with the highest sequence number counts.

mod format;
mod io;

#[cfg(test)]
pub(crate) use format::tests::sample as sample_for_tests;

pub use format::{
    JOURNAL_BYTES_MAX, JOURNAL_BYTES_MIN, JournalArea, MEMBERS_MAX, Member, SHARDS_MAX,
    SUPERBLOCK_BYTES, Superblock,
};
pub(crate) use io::copy_at;
pub use io::{CopyState, Inspection, ProbeError, erase, inspect, probe, repair, write};
