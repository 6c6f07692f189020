//! Subvolumes and records: the pool's tables on shard 0, and the steps that other shards take for
//! them.
//!
//! Tables: `Subvolumes` by id, `Names` by hash of (collection, name). The names are few: all of them
//! are kept in memory, in order, and the hash only gives them a place in the tree. Whoever changes a
//! name holds its lock, so a name has one change at a time, and a logged operation that is resumed
//! keeps its name locked until it is done.

pub(crate) mod format;
mod names;
mod receive;
mod records;
mod snapshots;
mod step;
mod sweep;
mod tables;
mod versions;

pub(crate) use format::{DiskOptions, PoolName, kind_from_disk, kind_to_disk, some_uuid};
pub(crate) use step::{handle_step, home_of, roots};
pub(crate) use tables::Tables;
