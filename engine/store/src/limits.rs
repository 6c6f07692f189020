//! Bounds of one shard above the engine: what may be in flight, kept in memory, or done in one
//! transaction. Bounds that the disk format fixes live beside the format.

use engine_base::BLOCK_SIZE;

use crate::transaction::UPDATES_MAX;

/// Index changes after which a bulk operation (truncate, discard, sweep) commits and goes on in a
/// new transaction. Half of what a transaction may hold: an update can split an extent in two.
pub const BULK_UPDATES_MAX: usize = 256;

/// New extents that one data transaction inserts. A write covers at most 256 blocks, so it deletes
/// or trims at most 258 old extents; with these and one inode a transaction stays in its bound.
pub const INSERTS_PER_TRANSACTION_MAX: usize = 128;

/// Times that a read looks its blocks up again because their bucket was reused under it.
pub const READ_LOOKUPS_MAX: u32 = 32;

/// Times that a namespace operation starts over because the names it locked by have changed.
pub const NAME_RETRIES_MAX: u32 = 64;

/// Ancestors that a rename walks through to see that no directory moves below itself.
pub const DIRECTORY_DEPTH_MAX: u32 = 16_384;

/// Extended attributes of one inode: they go with it in one transaction.
pub const XATTRS_MAX: usize = 128;

/// Hard links to one inode (ext4 has 65000).
pub const LINKS_MAX: u32 = 65_000;

/// Inodes or versions in one question of the check to another shard.
pub const FSCK_BATCH: usize = 1024;

/// Most entries of one listing reply.
pub const LIST_ENTRIES_MAX: u32 = 1000;

const _: () = assert!(BULK_UPDATES_MAX + 4 <= UPDATES_MAX);
const _: () = assert!(258 + INSERTS_PER_TRANSACTION_MAX + 16 <= UPDATES_MAX);
const _: () = assert!(258 + XATTRS_MAX + 32 <= UPDATES_MAX);

/// Bounds of memory and background work, per shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Removed files whose data is still to be dropped; more unlinks wait.
    pub removals_max: usize,
    /// Files with unflushed data on other shards that are remembered one by one; past it the
    /// oldest is flushed.
    pub dirty_files_max: usize,
    /// Large files known to hold nothing past their end; past it the oldest is looked at again
    /// when it next grows.
    pub settled_files_max: usize,
    /// Deleted versions remembered, to refuse late writes.
    pub dead_versions_max: usize,
    /// Subvolumes of the pool.
    pub subvolumes_max: usize,
    /// Records of the pool, over all collections.
    pub records_max: usize,
    /// Lines of an fsck report; more problems are counted.
    pub fsck_problems_max: usize,
    /// Data blocks after which a check notes how far it has verified them.
    pub fsck_note_blocks: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            removals_max: 1024,
            dirty_files_max: 16_384,
            settled_files_max: 16_384,
            dead_versions_max: 65_536,
            subvolumes_max: 65_536,
            records_max: 65_536,
            fsck_problems_max: 1000,
            fsck_note_blocks: (1 << 30) / BLOCK_SIZE,
        }
    }
}
