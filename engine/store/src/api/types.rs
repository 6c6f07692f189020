//! What requests and answers are made of.

use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SnapshotId, SubvolumeId};

#[cfg(doc)]
use super::Request;
use crate::codec::Compression;
use crate::error::{Result, StoreError};
use crate::extent::EXTENT_BLOCKS_MAX;

/// What a subvolume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubvolumeKind {
    /// A block volume: one inode of fixed size.
    Volume,
    /// A tree of files.
    FileTree,
}

/// How new data of a subvolume is stored; what is there already stays as it is. Snapshots and clones take them over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubvolumeOptions {
    /// How it is compressed.
    pub compression: Compression,
    /// Bytes that are compressed as one, and decoded as one when a part of them is read: a power of two of 8 KiB to
    /// 128 KiB. Larger ones shrink more, smaller ones are read faster in parts.
    pub frame_bytes: u32,
}

impl SubvolumeOptions {
    /// What [`SubvolumeOptions::frame_bytes`] is where nothing is said.
    pub const FRAME_BYTES: u32 = 16 << 10;
    /// Its range.
    pub const FRAME_BYTES_MIN: u32 = 2 * BLOCK_SIZE as u32;
    /// Its range.
    pub const FRAME_BYTES_MAX: u32 = EXTENT_BLOCKS_MAX * BLOCK_SIZE as u32;

    /// Blocks of a frame.
    #[must_use]
    pub fn frame_blocks(&self) -> u64 {
        u64::from(self.frame_bytes) / BLOCK_SIZE
    }

    /// Whether every option is in its range.
    ///
    /// # Errors
    /// `InvalidArgument`, with the range.
    pub fn check(&self) -> Result<()> {
        let frames = Self::FRAME_BYTES_MIN..=Self::FRAME_BYTES_MAX;
        if !self.frame_bytes.is_power_of_two() || !frames.contains(&self.frame_bytes) {
            return Err(StoreError::invalid(format!(
                "compression frame of {} bytes: a power of two of {} to {}",
                self.frame_bytes,
                frames.start(),
                frames.end()
            )));
        }
        Compression::new(self.compression.algorithm(), self.compression.level()).map(drop)
    }
}

impl Default for SubvolumeOptions {
    fn default() -> Self {
        Self { compression: Compression::None, frame_bytes: Self::FRAME_BYTES }
    }
}

/// Options to change; `None` leaves as is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetOptions {
    /// See [`SubvolumeOptions::compression`].
    pub compression: Option<Compression>,
    /// See [`SubvolumeOptions::frame_bytes`].
    pub frame_bytes: Option<u32>,
}

impl SetOptions {
    /// What `options` are after the change.
    #[must_use]
    pub fn apply(&self, options: SubvolumeOptions) -> SubvolumeOptions {
        SubvolumeOptions {
            compression: self.compression.unwrap_or(options.compression),
            frame_bytes: self.frame_bytes.unwrap_or(options.frame_bytes),
        }
    }
}

/// A place in the data of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPlace {
    /// Inode.
    pub inode: InodeNumber,
    /// Whose.
    pub of: Whose,
    /// Byte offset.
    pub offset: u64,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePlace {
    /// Tree.
    pub tree: TreeRef,
    /// File.
    pub inode: InodeNumber,
    /// Byte offset.
    pub offset: u64,
}

/// Whether a copy is by reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyMode {
    /// Where it can be.
    #[default]
    Auto,
    /// It must be: see [`Client::can_share`](crate::client::Client::can_share).
    Always,
    /// The copy has blocks of its own.
    Never,
}

/// What a copy did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyStats {
    /// Bytes that both places have in common now; holes count.
    pub shared_bytes: u64,
    /// Bytes that were read and written.
    pub copied_bytes: u64,
}

impl CopyStats {
    /// With those of another part.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            shared_bytes: self.shared_bytes + other.shared_bytes,
            copied_bytes: self.copied_bytes + other.copied_bytes,
        }
    }
}

/// A subvolume as shown to clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Identifier, never reused.
    pub id: SubvolumeId,
    /// Name, unique in the pool.
    pub name: String,
    /// Volume or file tree.
    pub kind: SubvolumeKind,
    /// The volume's inode, or the root directory.
    pub root: InodeNumber,
    /// Version of its keys, now.
    pub snapshot: SnapshotId,
    /// Whether it is a snapshot that nobody may write to.
    pub read_only: bool,
    /// What it is a snapshot or a clone of; that may be gone by now.
    pub origin: Option<SubvolumeId>,
    /// Size of a volume in bytes; 0 for a file tree.
    pub size_bytes: u64,
    /// Logical block size of a volume in bytes (512 or 4096); 0 for a file tree.
    pub block_size: u32,
    /// Bytes of data held on all shards (only where asked for; see `usage`).
    pub used_bytes: u64,
    /// Time of creation, nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// A UUID (version 4) for protocols that want one.
    pub uuid: [u8; 16],
    /// How new data is stored.
    pub options: SubvolumeOptions,
    /// Which snapshot of some pool it was received from, or is being received from.
    pub received: Option<Received>,
}

impl SubvolumeInfo {
    /// How far receiving it has come; `None`: it is whole.
    #[must_use]
    pub fn receiving(&self) -> Option<Receiving> {
        self.received.and_then(|received| received.receiving)
    }
}

/// Where a subvolume came from that was received, or is being received, from a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// UUID of the snapshot that was sent; not all zeroes.
    pub source: [u8; 16],
    /// It is not whole yet.
    pub receiving: Option<Receiving>,
}

/// How far receiving a subvolume has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receiving {
    /// UUID of the snapshot that the stream tells the difference to; `None`: it tells all.
    pub base: Option<[u8; 16]>,
    /// All before this position of the stream is there, durably; what a position is, the stream says.
    pub position: u64,
}

/// What receiving a subvolume takes; each durable when answered.
#[derive(Clone, Debug)]
pub enum ReceiveRequest {
    /// Begins, or tells how far it has come.
    Begin(Box<NewReceived>),
    /// Notes how far it has come, which is durable.
    Note {
        /// Name of what is received.
        name: String,
        /// Position in the stream.
        position: u64,
    },
    /// Makes it a snapshot, with all that was written to it.
    End {
        /// Name of what is received.
        name: String,
    },
}

/// A subvolume that is to be received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReceived {
    /// Its name.
    pub name: String,
    /// UUID of the snapshot that is sent; not all zeroes.
    pub source: [u8; 16],
    /// UUID of the snapshot that the stream tells the difference to, and the name of the snapshot here that holds the
    /// same; `None`: the stream tells all.
    pub base: Option<([u8; 16], String)>,
    /// Volume or file tree.
    pub kind: SubvolumeKind,
    /// Size of a volume in bytes; 0 of a file tree. With a base, that of the base.
    pub size_bytes: u64,
    /// Logical block size of a volume in bytes; 0 of a file tree.
    pub block_size: u32,
    /// How its data is stored; with a base, as that of the base.
    pub options: SubvolumeOptions,
}

/// Kind of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// Regular file (also: a block volume's inode).
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Inode number.
    pub inode: InodeNumber,
    /// Kind.
    pub kind: FileKind,
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Size in bytes; for a directory the number of entries.
    pub size: u64,
    /// Last access, nanoseconds since the Unix epoch.
    pub atime_ns: i64,
    /// Last change of content.
    pub mtime_ns: i64,
    /// Last change of the inode.
    pub ctime_ns: i64,
    /// Creation.
    pub btime_ns: i64,
}

/// Attributes to change; `None` leaves as is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// New size: truncates or extends with zeroes. Files only.
    pub size: Option<u64>,
    /// Last access.
    pub atime_ns: Option<i64>,
    /// Last change of content.
    pub mtime_ns: Option<i64>,
}

/// Identity and permission bits of a new inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CreateAttributes {
    /// Permission bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A file tree to work in: what names of files are resolved against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TreeRef {
    /// The subvolume: which version it has is looked up when the request is carried out.
    pub subvolume: SubvolumeId,
    /// Its root directory; also tells the home shard.
    pub root: InodeNumber,
}

/// An entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Name.
    pub name: Vec<u8>,
    /// Attributes of the inode it names.
    pub attributes: Attributes,
    /// Where to go on after this entry. Stable: an entry that exists through a whole listing is
    /// seen once, whatever is created and removed meanwhile.
    pub cookie: u64,
}

/// How a rename treats an existing destination (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces the destination atomically, as rename(2).
    Replace,
    /// Fails with `AlreadyExists` (RENAME_NOREPLACE).
    NoReplace,
    /// Swaps source and destination atomically (RENAME_EXCHANGE).
    Exchange,
}

/// How [`Request::XattrSet`] treats an existing value (setxattr(2)), and [`Request::RecordPut`] one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Creates or replaces.
    Any,
    /// Fails with `AlreadyExists` if it is there.
    Create,
    /// Fails with `NotFound` if it is not there.
    Replace,
}

/// Space and activity of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardStatus {
    /// Which shard.
    pub shard: ShardId,
    /// Bytes in regions handed to this shard.
    pub capacity_bytes: u64,
    /// Live data bytes.
    pub data_bytes: u64,
    /// Bytes of index nodes.
    pub index_bytes: u64,
    /// Bytes of the journal ring.
    pub journal_bytes: u64,
    /// Dead bytes in buckets that also hold live ones; copygc gives them back.
    pub fragmented_bytes: u64,
    /// Bytes that clients can still write into this shard's regions, with the index for them, in blocks
    /// as small as they like. Shard 0 adds what can be written into regions that no shard has.
    pub available_bytes: u64,
    /// Bytes in regions that no shard has (shard 0 only), reserves included.
    pub unassigned_bytes: u64,
    /// Files, directories and symlinks (volumes not counted).
    pub inodes: u64,
    /// Named counters for metrics, in a fixed order: journal, index cache, transactions, waits.
    pub counters: Vec<(&'static str, u64)>,
}

/// Data blocks that a check reads, to verify their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// None: metadata is checked.
    #[default]
    Nothing,
    /// All of them. How far it got is noted now and then; it ends with `Busy` when another begins.
    All,
    /// Those that a check of all did not get to before it was cut short; where none was, all.
    Resume,
}

/// What fsck found. Empty `problems`: every invariant holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsckReport {
    /// One line per violated invariant, with the object and what was found.
    pub problems: Vec<String>,
    /// What was looked at: keys, nodes, extents, inodes, blocks verified, in (name, count) pairs.
    pub checked: Vec<(&'static str, u64)>,
    /// What was found and done when the shards were opened, and how far a check before this one got;
    /// not problems that are still there.
    pub notes: Vec<String>,
}

/// Whose data is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of a subvolume, as it is when the request is carried out.
    Subvolume(SubvolumeId),
    /// Of this very version: between shards.
    Version(KnownVersion),
}

/// A version, and how much the asker knew of versions when it said so. A shard that knows less waits until it has been
/// told: else it would take a version that was just made, or merged, for one that sees only its own keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownVersion {
    /// The version.
    pub id: SnapshotId,
    /// See [`VersionTable::epoch`](crate::api::VersionTable::epoch).
    pub epoch: u64,
}

/// A snapshot to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Name of the subvolume, or of a snapshot of one.
    pub source: String,
    /// Name of the new subvolume, as in [`Request::SubvolumeCreate`].
    pub name: String,
    /// Whether it may be written to: a clone.
    pub writable: bool,
}

/// Most snapshots that are made at one instant.
pub const SNAPSHOT_GROUP_MAX: usize = 64;

/// A range of a volume that two snapshots do not share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedRange {
    /// Byte offset, a multiple of 4096.
    pub offset: u64,
    /// Bytes, a multiple of 4096, not 0.
    pub len: u64,
    /// Whether the later one has data there; else it reads as zeroes.
    pub has_data: bool,
}

/// How a path differs between two snapshots of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The name leads somewhere else than before, or led nowhere.
    Added,
    /// The name does not lead where it led before; if it leads elsewhere now, that is told as added.
    Removed,
    /// The inode was there before, and was changed since: content, attributes or entries. Of a file that was written
    /// anew with the same content this is told, too.
    Modified,
}

/// A path that differs between two snapshots of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedPath {
    /// How.
    pub kind: ChangeKind,
    /// The path; of what was removed, that in the earlier snapshot.
    pub path: Vec<u8>,
    /// Where it leads, or led. A name that was removed and one that was added of one inode are a rename.
    pub inode: InodeNumber,
    /// What that is.
    pub file_kind: FileKind,
    /// The directory of a name; `None`: what is told is of the inode itself.
    pub directory: Option<InodeNumber>,
    /// The path of the inode in the earlier snapshot, if it was there; only where asked for.
    pub in_base: Option<Vec<u8>>,
    /// The same of the directory.
    pub directory_in_base: Option<Vec<u8>>,
}

/// Where the differences between two snapshots of a tree go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeDiffCursor {
    /// The first inode, or directory.
    pub inode: u64,
    /// 0: the inode itself; else the first place in the directory.
    pub place: u64,
}

impl TreeDiffCursor {
    /// The next after this one.
    pub(crate) fn next(self) -> Self {
        match self.place.checked_add(1) {
            Some(place) => Self { place, ..self },
            None => Self { inode: self.inode.saturating_add(1), place: 0 },
        }
    }
}

/// Data of a subvolume, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Written since it was made, or since the last snapshot of it.
    pub own_bytes: u64,
    /// Held by what it was made from, seen by it or not.
    pub shared_bytes: u64,
    /// What both would hold beyond that if nothing were compressed.
    pub saved_bytes: u64,
}
