//! Keys and values of the index.
//!
//! Every tree maps a [`Position`] to a [`Value`]. Positions of all trees have the same shape, so that
//! nodes, the journal and replay are generic; what the fields mean is up to the tree.

use std::cmp::Ordering;

use smallvec::SmallVec;

use crate::error::{Result, StoreError};

/// Longest value in bytes. A node must hold several: see the node size in `btree`.
pub const VALUE_BYTES_MAX: usize = 2048;

/// The trees of a shard. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tree {
    /// (inode, END of the extent in blocks, snapshot) -> extent.
    Extents = 0,
    /// (inode, 0, snapshot) -> inode.
    Inodes = 1,
    /// (directory inode, hash of the name, snapshot) -> directory entry.
    Dirents = 2,
    /// (inode, hash of the name, snapshot) -> extended attribute.
    Xattrs = 3,
    /// (subvolume id, 0, 0) -> subvolume, on shard 0; (subvolume id, 1, 0) -> its root, on its home.
    Subvolumes = 4,
    /// (hash of the name, collision index, 0) -> subvolume id or record. Shard 0 only.
    Names = 5,
    /// (operation id, 0, 0) -> logged operation.
    LoggedOps = 6,
    /// (member, bucket, 0) -> bucket state, checkpointed.
    Buckets = 7,
    /// (counter id, 0, 0) -> counter, checkpointed.
    Counters = 8,
    /// (member, region, 0) -> owning shard. Shard 0 only.
    Regions = 9,
    /// (inode, block or kind of lost keys, snapshot) -> damage entry.
    Damage = 10,
    /// (member, region, 0) -> tally: what the buckets of a region hold together, checkpointed.
    Tallies = 11,
    /// (version and high bits of the chunk, group of inodes, low bits of the chunk) -> nothing: where in the other
    /// trees a version has keys ([`crate::version`]).
    Areas = 12,
    /// (version, 0, 0) -> what it was made from. Shard 0 only.
    Versions = 13,
}

impl Tree {
    /// Every tree, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Extents,
        Self::Inodes,
        Self::Dirents,
        Self::Xattrs,
        Self::Subvolumes,
        Self::Names,
        Self::LoggedOps,
        Self::Buckets,
        Self::Counters,
        Self::Regions,
        Self::Damage,
        Self::Tallies,
        Self::Areas,
        Self::Versions,
    ];

    /// Whether several versions have keys at one place, of which those of the nearest are seen.
    #[must_use]
    pub const fn is_versioned(self) -> bool {
        matches!(self, Self::Extents | Self::Inodes | Self::Dirents | Self::Xattrs)
    }

    /// The tree of a number read from disk.
    ///
    /// # Errors
    /// `Corrupt` for a number that no tree has.
    pub fn from_disk(number: u8) -> Result<Self> {
        Self::ALL
            .get(usize::from(number))
            .copied()
            .ok_or_else(|| StoreError::corrupt("tree number", format!("{number} is not known")))
    }
}

/// Where a key lies in its tree; ordered by inode, then offset, then snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Position {
    /// Inode number, or the tree's first coordinate.
    pub inode: u64,
    /// Offset, or the tree's second coordinate.
    pub offset: u64,
    /// Snapshot id; 0 in trees that are not versioned.
    pub snapshot: u32,
}

/// By inode, offset and snapshot. Searches compare positions more than anything else, so the first two are
/// compared as one number, without a branch between them.
impl Ord for Position {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.head().cmp(&other.head()).then(self.snapshot.cmp(&other.snapshot))
    }
}

impl PartialOrd for Position {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    #[inline]
    fn lt(&self, other: &Self) -> bool {
        let (head, others) = (self.head(), other.head());
        (head < others) | ((head == others) & (self.snapshot < other.snapshot))
    }
}

impl Position {
    /// The first position of all.
    pub const MIN: Self = Self { inode: 0, offset: 0, snapshot: 0 };
    /// The last position of all.
    pub const MAX: Self = Self { inode: u64::MAX, offset: u64::MAX, snapshot: u32::MAX };

    /// A position.
    #[must_use]
    pub const fn new(inode: u64, offset: u64, snapshot: u32) -> Self {
        Self { inode, offset, snapshot }
    }

    const fn head(&self) -> u128 {
        (self.inode as u128) << 64 | self.offset as u128
    }

    /// The next position in order; `MAX` stays.
    #[must_use]
    pub const fn successor(self) -> Self {
        if self.snapshot < u32::MAX {
            Self { snapshot: self.snapshot + 1, ..self }
        } else if self.offset < u64::MAX {
            Self { inode: self.inode, offset: self.offset + 1, snapshot: 0 }
        } else if self.inode < u64::MAX {
            Self { inode: self.inode + 1, offset: 0, snapshot: 0 }
        } else {
            Self::MAX
        }
    }

    /// The previous position in order; `MIN` stays.
    #[must_use]
    pub const fn predecessor(self) -> Self {
        if self.snapshot > 0 {
            Self { snapshot: self.snapshot - 1, ..self }
        } else if self.offset > 0 {
            Self { inode: self.inode, offset: self.offset - 1, snapshot: u32::MAX }
        } else if self.inode > 0 {
            Self { inode: self.inode - 1, offset: u64::MAX, snapshot: u32::MAX }
        } else {
            Self::MIN
        }
    }
}

/// Bytes of a value. Small ones (an extent of one block, a directory entry with a short name) are
/// held without an allocation.
pub type Value = SmallVec<[u8; 48]>;

/// A named number of a shard, kept exact by the transactions that change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter(pub u64);

impl Counter {
    /// Next inode sequence number of this shard (see `Transaction::take`).
    pub const NEXT_INODE: Self = Self(1);
    /// Next snapshot id (shard 0).
    pub const NEXT_SNAPSHOT: Self = Self(2);
    /// Next subvolume id (shard 0).
    pub const NEXT_SUBVOLUME: Self = Self(3);
    /// Next logged operation id.
    pub const NEXT_OPERATION: Self = Self(4);
    /// Files, directories and symlinks on this shard.
    pub const INODES: Self = Self(5);

    /// How the newest scrub of this shard goes: see [`crate::scrub`].
    pub const SCRUB_STATE: Self = Self(6);
    /// When it began, nanoseconds since the epoch.
    pub const SCRUB_BEGAN: Self = Self(7);
    /// When it ended.
    pub const SCRUB_ENDED: Self = Self(8);
    /// Bytes that it reads a second at most; 0: no bound.
    pub const SCRUB_RATE: Self = Self(9);
    /// Bytes to be read.
    pub const SCRUB_TOTAL: Self = Self(10);
    /// Bytes of these that are done.
    pub const SCRUB_DONE: Self = Self(11);
    /// What it found wrong.
    pub const SCRUB_PROBLEMS: Self = Self(12);
    /// What of that was written anew.
    pub const SCRUB_HEALED: Self = Self(13);
    /// What is to be read next.
    pub const SCRUB_PLACE: Self = Self(14);

    /// Blocks on disk of the largest frame that this shard ever had.
    pub const FRAME_BLOCKS: Self = Self(15);

    /// Live data blocks of what is shared on this shard, which is of no version.
    pub const SHARED_BLOCKS: Self = Self::data_blocks(0);

    /// Live data blocks of a version on this shard; kept by the engine itself from the extents that
    /// transactions put and delete.
    #[must_use]
    pub const fn data_blocks(snapshot: u32) -> Self {
        Self((1 << 32) | snapshot as u64)
    }

    /// Blocks of a version on this shard beyond its live data blocks: what compression saves.
    #[must_use]
    pub const fn saved_blocks(snapshot: u32) -> Self {
        Self((2 << 32) | snapshot as u64)
    }

    /// Blocks of a version on this shard that are references: they live elsewhere, perhaps for others, too.
    #[must_use]
    pub const fn referenced_blocks(snapshot: u32) -> Self {
        Self((3 << 32) | snapshot as u64)
    }

    /// What it counts of a version's blocks, in words.
    #[must_use]
    pub const fn of_version(self) -> &'static str {
        match self.0 >> 32 {
            2 => "saved blocks",
            3 => "referenced blocks",
            _ => "blocks",
        }
    }

    /// Whether it is one of [`Counter::saved_blocks`].
    #[must_use]
    pub const fn is_saved_blocks(self) -> bool {
        self.0 >> 32 == 2
    }
}
