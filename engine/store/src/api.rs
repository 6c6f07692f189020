//! The command vocabulary: what can be asked of a shard, and the answers.
//!
//! A [`Request`] goes to one shard and is answered by one [`Reply`]. Both own what they carry and are
//! `Send`. [`crate::client::Client`] offers these as methods and knows which shard to ask.

mod types;

use engine_base::{InodeNumber, ShardId, SnapshotId, SubvolumeId};
use engine_memory::Slice;
use smallvec::SmallVec;

pub use crate::codec::{Algorithm, Compression};
use crate::damage::DamageEntry;
use crate::error::{Result, StoreError};
pub use crate::resize::{
    MemberSize, ResizeJob, ResizePhase, ResizeRequest, ResizeStatus, ShardLeft,
};
pub use crate::scrub::{ScrubRequest, ScrubState, ScrubStatus};
pub use crate::version::{CurrentVersion, Node as VersionNode, VersionChange, VersionTable};
pub use types::*;

/// Pieces of data, in order.
pub type Data = SmallVec<[Slice; 4]>;

/// Bytes in all pieces of `data`.
#[must_use]
pub fn data_len(data: &Data) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

/// Longest name of a subvolume, directory entry or xattr, in bytes (NAME_MAX of Linux).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symbolic link target in bytes: what fits one value (PATH_MAX of Linux is 4096).
pub const SYMLINK_BYTES_MAX: usize = 1023;
/// Longest xattr value in bytes. A value lives in the index, as in bcachefs.
pub const XATTR_VALUE_BYTES_MAX: usize = 1536;
/// Longest record (see [`Request::RecordPut`]) in bytes.
pub const RECORD_BYTES_MAX: usize = 1536;
/// Most bytes in one data request.
pub const DATA_BYTES_MAX: u64 = 1 << 20;
/// Most bytes that one [`Request::FileCopy`] copies.
pub const COPY_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of a file or volume: 2^52 blocks would fit the format; 2^60 bytes is plenty.
pub const SIZE_BYTES_MAX: u64 = 1 << 60;

/// Something asked of one shard.
#[derive(Clone, Debug)]
pub enum Request {
    // ---- any shard ----
    /// Makes all that this shard has acknowledged durable. -> `Unit`
    Flush,
    /// Space and activity. -> `ShardStatus`
    Status,
    /// Checks this shard's invariants, reading data too if asked. -> `Fsck`
    Fsck {
        /// Data blocks to read.
        verify: Verify,
    },

    /// Sizes of members: see [`ResizeRequest`] for who is asked, and the answers.
    Resize(ResizeRequest),
    /// The scrub of this shard. -> `Scrub`
    Scrub(ScrubRequest),
    /// Repairs this shard. -> `Fsck`, whose notes say what was done
    Repair {
        /// Only what depends on the names of other shards, once these are repaired.
        owners: bool,
    },
    /// What is on this shard's damage list. -> `Damage`
    DamageList {
        /// Entries at most.
        limit: u32,
    },
    /// Takes entries off the damage list. -> `Count`
    DamageClear {
        /// Those of this inode only.
        inode: Option<InodeNumber>,
    },
    /// Paths of inodes whose home this shard is. -> `Paths`
    InodePaths {
        /// Inodes, each in a version.
        inodes: Vec<(InodeNumber, SnapshotId)>,
    },

    // ---- data, asked of the shard that `InodeNumber::data_shard` names; one chunk at most ----
    /// Reads; holes read as zeroes. Offset and length are multiples of 4096. -> `Data`
    DataRead {
        /// Inode.
        inode: InodeNumber,
        /// Whose.
        of: Whose,
        /// Byte offset.
        offset: u64,
        /// Bytes, at most [`DATA_BYTES_MAX`].
        len: u32,
    },
    /// Writes; offset and length are multiples of 4096. -> `Unit`
    DataWrite {
        /// Inode.
        inode: InodeNumber,
        /// Whose.
        of: Whose,
        /// Byte offset.
        offset: u64,
        /// The bytes, at most [`DATA_BYTES_MAX`].
        data: Data,
        /// Durable before it is acknowledged.
        fua: bool,
    },
    /// Drops blocks: they read as zeroes and their space is free. Multiples of 4096, any length
    /// within one chunk. -> `Unit`
    DataDiscard {
        /// Inode.
        inode: InodeNumber,
        /// Whose.
        of: Whose,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Lets a range hold what another holds, which is on this shard, too, by reference; each within one chunk, and all
    /// multiples of 4096. The two do not overlap. Each block of the target holds what it did or what the source did at
    /// some moment meanwhile. -> `Copied`
    DataCopy {
        /// First byte of the source.
        source: DataPlace,
        /// First byte of the target.
        target: DataPlace,
        /// Bytes.
        len: u64,
    },
    /// Ranges on this shard in which two subvolumes of one origin do not hold the same blocks, in order. What is told
    /// as changed may hold the same bytes, written anew. -> `Changed`
    DataDiff {
        /// Inode.
        inode: InodeNumber,
        /// What is compared with; `None`: with nothing, so that all data is told.
        base: Option<SubvolumeId>,
        /// What is looked at.
        subvolume: SubvolumeId,
        /// First byte; a multiple of 4096.
        from: u64,
        /// First byte that is not looked at any more; a multiple of 4096.
        to: u64,
        /// Ranges at most, 1 to 1000.
        limit: u32,
    },
    /// Data bytes of a subvolume on this shard. -> `Usage`
    Usage {
        /// Subvolume.
        subvolume: SubvolumeId,
    },

    /// Bytes on this shard that deleting a subvolume would give back, in time. Costs in proportion to what was written
    /// after it. -> `Count`
    FreedByDelete {
        /// Subvolume.
        subvolume: SubvolumeId,
    },

    // ---- pool-wide tables, asked of shard 0 ----
    /// Creates a subvolume; durable when answered. -> `Subvolume`
    SubvolumeCreate {
        /// Name, 1 to [`NAME_BYTES_MAX`] bytes of [A-Za-z0-9._-], not starting with '.' or '-'.
        name: String,
        /// Kind.
        kind: SubvolumeKind,
        /// Size of a volume in bytes, a multiple of 4096 (the data requests' unit) and not 0; 0 for
        /// a tree.
        size_bytes: u64,
        /// Logical block size of a volume: 512 or 4096; 0 for a tree.
        block_size: u32,
        /// How its data is stored.
        options: SubvolumeOptions,
    },
    /// Changes how new data of a subvolume is stored. Durable when answered. -> `Subvolume`
    SubvolumeSet {
        /// Name.
        name: String,
        /// What to change.
        set: SetOptions,
    },
    /// Finds a subvolume. -> `Subvolume`
    SubvolumeGet {
        /// Name.
        name: String,
    },
    /// Lists subvolumes by name. -> `Subvolumes`
    SubvolumeList {
        /// Names after this one; empty: from the first.
        after: String,
        /// Most entries, 1 to 1000.
        limit: u32,
    },
    /// Deletes a subvolume and all in it. Durable when answered; space comes back in the
    /// background, also across crashes. -> `Unit`
    SubvolumeDelete {
        /// Name.
        name: String,
    },
    /// Makes snapshots, all of one instant: what was acknowledged before it is in them, nothing that was begun
    /// after the answer. Durable when answered, with all that is in them. -> `Subvolumes`
    SnapshotCreate {
        /// 1 to [`SNAPSHOT_GROUP_MAX`], each name once.
        snapshots: Vec<NewSnapshot>,
    },
    /// Makes a volume what it was at one of its snapshots; what was written since is gone. Durable when
    /// answered. -> `Subvolume`
    SubvolumeRollback {
        /// Name of the volume.
        name: String,
        /// Name of the snapshot.
        snapshot: String,
    },
    /// What there is of versions. -> `VersionTable`
    VersionList,
    /// Grows or shrinks a volume; what is cut off is gone. Durable when answered. -> `Subvolume`
    VolumeResize {
        /// Name.
        name: String,
        /// New size in bytes.
        size_bytes: u64,
    },
    /// Keeps a small named record of a front end (an export, ...); durable when answered. -> `Unit`
    RecordPut {
        /// Collection, such as "exports".
        collection: String,
        /// Name in it.
        name: String,
        /// Opaque bytes, at most [`RECORD_BYTES_MAX`].
        bytes: Vec<u8>,
        /// What may be there before.
        mode: PutMode,
    },
    /// Lists the records of a collection by name. -> `Records`
    RecordList {
        /// Collection.
        collection: String,
    },
    /// Removes a record; durable when answered. `NotFound` if absent. -> `Unit`
    RecordDelete {
        /// Collection.
        collection: String,
        /// Name in it.
        name: String,
    },
    /// A region of buckets for a shard that ran out. -> `Region`
    RegionAcquire {
        /// Who asks.
        shard: ShardId,
        /// It is out of space and can write so many blocks more: a region may be taken from a shard that
        /// has more left.
        short: Option<u64>,
    },
    /// Gives up a region, emptied and forgotten, if there is more to spare than `blocks` beside it; asked
    /// of any shard, by shard 0. -> `Region`
    RegionGive {
        /// Blocks that the shard can still write for which it is.
        blocks: u64,
    },
    /// All regions of a shard. -> `Regions`
    RegionList {
        /// Whose.
        shard: ShardId,
    },

    // ---- file trees, asked of the tree's home shard ----
    /// Finds a name in a directory. -> `Attributes`
    Lookup {
        /// Tree.
        tree: TreeRef,
        /// Directory.
        directory: InodeNumber,
        /// Name.
        name: Vec<u8>,
    },
    /// Attributes of an inode. -> `Attributes`
    GetAttributes {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
    },
    /// Changes attributes; a smaller size drops data everywhere, also across crashes. -> `Attributes`
    SetAttributes {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
        /// What to change.
        set: SetAttributes,
    },
    /// Creates a file or directory. -> `Attributes`
    Create {
        /// Tree.
        tree: TreeRef,
        /// Directory.
        directory: InodeNumber,
        /// Name.
        name: Vec<u8>,
        /// File or Directory.
        kind: FileKind,
        /// Identity and permissions.
        attributes: CreateAttributes,
    },
    /// Creates a symbolic link. -> `Attributes`
    Symlink {
        /// Tree.
        tree: TreeRef,
        /// Directory.
        directory: InodeNumber,
        /// Name.
        name: Vec<u8>,
        /// Where it points, at most [`SYMLINK_BYTES_MAX`] bytes.
        target: Vec<u8>,
        /// Identity; the mode is always 0777.
        attributes: CreateAttributes,
    },
    /// Target of a symbolic link. -> `Bytes`
    ReadLink {
        /// Tree.
        tree: TreeRef,
        /// The link.
        inode: InodeNumber,
    },
    /// Adds a name to an inode that is not a directory. -> `Attributes`
    Link {
        /// Tree.
        tree: TreeRef,
        /// The inode.
        inode: InodeNumber,
        /// Directory.
        directory: InodeNumber,
        /// Name.
        name: Vec<u8>,
    },
    /// Removes a name; the last one takes the inode and its data with it. `directory_only`: the
    /// name must be an empty directory (rmdir), else it must not be one (unlink). -> `Unit`
    Remove {
        /// Tree.
        tree: TreeRef,
        /// Directory.
        directory: InodeNumber,
        /// Name.
        name: Vec<u8>,
        /// rmdir rather than unlink.
        directory_only: bool,
    },
    /// Renames. -> `Unit`
    Rename {
        /// Tree.
        tree: TreeRef,
        /// Source directory.
        from_directory: InodeNumber,
        /// Source name.
        from_name: Vec<u8>,
        /// Destination directory.
        to_directory: InodeNumber,
        /// Destination name.
        to_name: Vec<u8>,
        /// What happens to an existing destination.
        mode: RenameMode,
    },
    /// Lists a directory in cookie order ("." and ".." are not listed). -> `Entries`
    ReadDirectory {
        /// Tree.
        tree: TreeRef,
        /// Directory.
        directory: InodeNumber,
        /// Go on after this cookie; 0: from the start.
        cookie: u64,
        /// Most entries, 1 to 1000.
        limit: u32,
    },
    /// Paths that two subvolumes of one tree do not share, in the order of inodes, with those of a directory's entries
    /// after itself. -> `ChangedPaths`
    TreeDiff {
        /// What is looked at.
        tree: TreeRef,
        /// What is compared with; `None`: with nothing, so that all names are told as added.
        base: Option<SubvolumeId>,
        /// Also tells the paths that inodes and directories have in the base.
        in_base: bool,
        /// Where to begin.
        from: TreeDiffCursor,
    },
    /// Reads from a file; short at its end, empty past it. Any offset and length. -> `Data`
    FileRead {
        /// Tree.
        tree: TreeRef,
        /// File.
        inode: InodeNumber,
        /// Byte offset.
        offset: u64,
        /// Bytes, at most [`DATA_BYTES_MAX`].
        len: u32,
    },
    /// Writes to a file, growing it. Any offset and length. When it fails, for want of room too, each
    /// block of the range holds its old or its new content, and the file has not grown. -> `Attributes`
    FileWrite {
        /// Tree.
        tree: TreeRef,
        /// File.
        inode: InodeNumber,
        /// Byte offset.
        offset: u64,
        /// The bytes, at most [`DATA_BYTES_MAX`].
        data: Data,
    },
    /// Lets a range of a file be what another file of a tree with the same home has there, up to its end, as far as can
    /// be by reference (FICLONERANGE). The target grows. Offsets are multiples of 4096. -> `Copied`
    FileCopy {
        /// Where from; the source ends where its file does.
        source: FilePlace,
        /// Where to; asked of its home.
        target: FilePlace,
        /// Bytes, at most [`COPY_BYTES_MAX`].
        len: u64,
    },
    /// Makes a range read as zeroes and frees its whole blocks (FALLOC_FL_PUNCH_HOLE |
    /// FALLOC_FL_KEEP_SIZE). Any offset and length. -> `Unit`
    FilePunch {
        /// Tree.
        tree: TreeRef,
        /// File.
        inode: InodeNumber,
        /// Byte offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes a file's data and metadata, or a directory, durable on all shards (fsync). -> `Unit`
    FileSync {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
    },
    /// Value of an extended attribute. -> `Bytes`
    XattrGet {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
        /// Name with its namespace, such as "user.comment".
        name: Vec<u8>,
    },
    /// Sets an extended attribute. -> `Unit`
    XattrSet {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
        /// Name.
        name: Vec<u8>,
        /// Value, at most [`XATTR_VALUE_BYTES_MAX`] bytes.
        value: Vec<u8>,
        /// What may be there before.
        mode: PutMode,
    },
    /// Names of all extended attributes. -> `Names`
    XattrList {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
    },
    /// Removes an extended attribute. `NotFound` if absent. -> `Unit`
    XattrRemove {
        /// Tree.
        tree: TreeRef,
        /// Inode.
        inode: InodeNumber,
        /// Name.
        name: Vec<u8>,
    },

    // ---- between shards ----
    /// Creates the root inode of a new subvolume on its home shard, durable when answered;
    /// idempotent. -> `Inode`
    RootCreate {
        /// The new subvolume.
        subvolume: SubvolumeId,
        /// Its version.
        snapshot: SnapshotId,
        /// Kind.
        kind: SubvolumeKind,
        /// Size of a volume in bytes.
        size_bytes: u64,
    },
    /// Makes the blocks of an inode in `from .. to` on this shard, over any number of chunks, holes; idempotent; a step
    /// of truncation. -> `Unit`
    DataPunch {
        /// Inode.
        inode: InodeNumber,
        /// Version.
        version: KnownVersion,
        /// First byte to go; a multiple of 4096.
        from: u64,
        /// First byte to stay; a multiple of 4096, or `u64::MAX`.
        to: u64,
    },
    /// Drops all blocks that a version has itself of inodes that are gone in it; what it saw of older versions nobody
    /// sees any more. Idempotent. -> `Unit`
    DataForget {
        /// Inodes.
        inodes: Vec<InodeNumber>,
        /// Version.
        version: KnownVersion,
    },
    /// Tells a shard that a volume was resized: it refuses writes past the new end, drops what it
    /// holds there, and is durable when answered; idempotent. -> `Unit`
    VolumeSize {
        /// The volume.
        subvolume: SubvolumeId,
        /// Its inode.
        inode: InodeNumber,
        /// New size in bytes.
        size_bytes: u64,
    },
    /// What the home shard knows of inodes that have extents elsewhere. -> `Owners`
    FsckOwners {
        /// Inodes with their versions.
        inodes: Vec<(InodeNumber, SnapshotId)>,
        /// What the asker knows of versions: see [`KnownVersion`].
        epoch: u64,
    },
    /// What shard 0 knows of versions. -> `Versions`
    FsckVersions {
        /// The versions.
        snapshots: Vec<SnapshotId>,
    },
    /// Deletes every key of a version that this shard holds, durable when answered; idempotent.
    /// -> `Unit`
    VersionDelete {
        /// The version.
        snapshot: SnapshotId,
    },
    /// Lets writes to subvolumes wait, and ends those that are under way. -> `Unit`
    VersionHold {
        /// The subvolumes.
        subvolumes: Vec<SubvolumeId>,
    },
    /// What shard 0 has changed. -> `Unit`
    VersionSet {
        /// The change.
        change: VersionChange,
    },
    /// What receiving a subvolume takes (shard 0). -> `Subvolume`; of a note `Unit`
    Receive(ReceiveRequest),
    /// Moves every key of a version that this shard holds to the one that absorbs it, durable when answered;
    /// idempotent. -> `Unit`
    VersionAbsorb {
        /// The version whose keys are moved.
        child: SnapshotId,
        /// Where to.
        into: SnapshotId,
    },
}

/// What a home shard knows of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It exists.
    Alive {
        /// All its blocks end before this byte.
        data_limit: u64,
    },
    /// A logged operation still drops data of it.
    Changing,
    /// It does not exist.
    Gone,
}

/// What shard 0 knows of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionState {
    /// A subvolume has it.
    Alive,
    /// A logged operation creates, resizes or deletes its subvolume.
    Changing,
    /// No subvolume has it.
    Unknown,
}

/// A region of buckets on one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Member device.
    pub member: u8,
    /// Index of the region on its member.
    pub index: u32,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug)]
pub enum Reply {
    /// Done.
    Unit,
    /// Data read.
    Data(Data),
    /// Attributes of the inode concerned, after the change.
    Attributes(Box<Attributes>),
    /// Entries of a directory; fewer than asked for at its end.
    Entries(Vec<DirectoryEntry>),
    /// A link target or an xattr value.
    Bytes(Vec<u8>),
    /// Names.
    Names(Vec<Vec<u8>>),
    /// A subvolume.
    Subvolume(Box<SubvolumeInfo>),
    /// Subvolumes.
    Subvolumes(Vec<SubvolumeInfo>),
    /// Records (name, bytes).
    Records(Vec<(String, Vec<u8>)>),
    /// A region, or none left.
    Region(Option<Region>),
    /// Regions.
    Regions(Vec<Region>),
    /// What a copy did; less than was asked for where the source ends.
    Copied(CopyStats),
    /// A number.
    Count(u64),
    /// An inode.
    Inode(InodeNumber),
    /// State of a shard.
    Status(Box<ShardStatus>),
    /// Sizes of members.
    Resize(Box<ResizeStatus>),
    /// What is left to be moved away.
    ResizeLeft(Box<ShardLeft>),
    /// How the newest scrub goes.
    Scrub(Box<ScrubStatus>),
    /// Result of a check.
    Fsck(Box<FsckReport>),
    /// What is lost.
    Damage(Vec<DamageEntry>),
    /// Paths, in the order of the question; `None`: no name leads there.
    Paths(Vec<Option<Vec<u8>>>),
    /// Data of a subvolume.
    Usage(Usage),
    /// Changed ranges, and where to go on; `None`: that was all.
    Changed(Vec<ChangedRange>, Option<u64>),
    /// Changed paths, and where to go on; `None`: that was all.
    ChangedPaths(Vec<ChangedPath>, Option<TreeDiffCursor>),
    /// All versions.
    VersionTable(Box<VersionTable>),
    /// Inodes, in the order of the question.
    Owners(Vec<Owner>),
    /// Versions, in the order of the question.
    Versions(Vec<VersionState>),
}

/// A way to ask shards: over rings from another core or a control thread, or straight on the
/// same core.
pub trait Link {
    /// The pending answer.
    type Call: Future<Output = Result<Reply>>;

    /// Shards in the pool, a power of two.
    fn shard_count(&self) -> u16;

    /// Sends `request` to `shard`. Back-pressure is part of the future.
    fn call(&self, shard: ShardId, request: Request) -> Self::Call;
}

impl Request {
    /// Whether it depends on which versions there are.
    pub(crate) fn needs_versions(&self) -> bool {
        !matches!(
            self,
            Self::Flush
                | Self::Status
                | Self::VersionList
                | Self::VersionHold { .. }
                | Self::VersionSet { .. }
                | Self::RegionAcquire { .. }
                | Self::RegionGive { .. }
                | Self::RegionList { .. }
                | Self::Resize(_)
                | Self::RecordPut { .. }
                | Self::RecordList { .. }
                | Self::RecordDelete { .. }
                | Self::FsckVersions { .. }
        )
    }

    /// Whether it may change what is stored, so that its answer waits for the journal.
    pub(crate) fn changes(&self) -> bool {
        !matches!(
            self,
            Self::Flush
                | Self::Status
                | Self::Fsck { .. }
                | Self::DataRead { .. }
                | Self::DataDiff { .. }
                | Self::TreeDiff { .. }
                | Self::FreedByDelete { .. }
                | Self::Usage { .. }
                | Self::SubvolumeGet { .. }
                | Self::SubvolumeList { .. }
                | Self::RecordList { .. }
                | Self::RegionList { .. }
                | Self::Lookup { .. }
                | Self::GetAttributes { .. }
                | Self::ReadLink { .. }
                | Self::ReadDirectory { .. }
                | Self::FileRead { .. }
                | Self::FileSync { .. }
                | Self::XattrGet { .. }
                | Self::XattrList { .. }
                | Self::InodePaths { .. }
                | Self::FsckOwners { .. }
                | Self::FsckVersions { .. }
                | Self::VersionList
                | Self::VersionHold { .. }
                | Self::VersionSet { .. }
                | Self::Scrub(_)
                | Self::Resize(_)
        )
    }
}

impl Reply {
    /// The error for an answer of the wrong kind; a bug, reported instead of a panic.
    #[must_use]
    pub fn mismatch(&self, expected: &'static str) -> StoreError {
        StoreError::corrupt("reply", format!("expected {expected}, got {self:.40?}"))
    }
}
