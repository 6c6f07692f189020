//! Identifiers. Each is a type of its own, so that one cannot be passed for another.

use std::fmt;

/// Index of a shard in its pool, `0 .. shard_count`. Shard 0 also keeps the pool-wide tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ShardId(pub u16);

/// Identifier of a subvolume, unique in its pool for ever; 0 is never used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SubvolumeId(pub u64);

/// Number of an inode, unique in its pool for ever; 0 is never used. Its low bits (as many as the
/// pool's shard count needs) are the index of its home shard: see [`InodeNumber::home`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct InodeNumber(pub u64);

/// Identifier of a node of the snapshot tree; part of every versioned key. 0 is used by keys that
/// are not versioned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SnapshotId(pub u32);

/// Index of a member device in the pool's member table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct MemberIndex(pub u8);

/// log2 of the bytes of a chunk, the unit in which an inode's data is spread over shards: 4 MiB.
pub const CHUNK_SIZE_LOG2: u32 = 22;

impl InodeNumber {
    /// The shard that holds this inode's metadata. `shard_count` is a power of two.
    #[must_use]
    pub fn home(self, shard_count: u16) -> ShardId {
        assert!(shard_count.is_power_of_two());
        ShardId((self.0 & u64::from(shard_count - 1)) as u16)
    }

    /// The shard that holds the data at `offset` (bytes): chunk k of an inode lives on shard
    /// `(home + k) mod shard_count`.
    #[must_use]
    pub fn data_shard(self, offset: u64, shard_count: u16) -> ShardId {
        let chunk = offset >> CHUNK_SIZE_LOG2;
        let home = u64::from(self.home(shard_count).0);
        ShardId(((home + chunk) & u64::from(shard_count - 1)) as u16)
    }
}

macro_rules! display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display!(ShardId, SubvolumeId, InodeNumber, SnapshotId, MemberIndex);
