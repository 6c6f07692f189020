//! The engine as methods: knows which shard to ask and cuts data at chunk boundaries.
//!
//! Generic over the [`Link`], so the same code runs on a core (futures that are not `Send`) and on
//! control threads (futures that are).

mod copy;
mod transfer;

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::{InodeNumber, ShardId, SubvolumeId};
use engine_memory::Slice;

use crate::api::{
    Attributes, CreateAttributes, DATA_BYTES_MAX, Data, DirectoryEntry, FileKind, FsckReport, Link,
    NewSnapshot, PutMode, RenameMode, Reply, Request, ResizeRequest, ResizeStatus, ScrubRequest,
    ScrubState, ScrubStatus, SetAttributes, SetOptions, ShardStatus, SubvolumeInfo, SubvolumeKind,
    SubvolumeOptions, TreeRef, Usage, Verify, Whose, data_len,
};
use crate::error::{Result, StoreError};

pub(crate) use copy::copy_parts;

/// A volume to read and write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRef {
    /// Its subvolume.
    pub subvolume: SubvolumeId,
    /// Its inode.
    pub inode: InodeNumber,
    /// Size in bytes when it was opened.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// UUID of the subvolume.
    pub uuid: [u8; 16],
}

impl From<&SubvolumeInfo> for VolumeRef {
    fn from(info: &SubvolumeInfo) -> Self {
        Self {
            subvolume: info.id,
            inode: info.root,
            size_bytes: info.size_bytes,
            block_size: info.block_size,
            uuid: info.uuid,
        }
    }
}

impl From<&SubvolumeInfo> for TreeRef {
    fn from(info: &SubvolumeInfo) -> Self {
        Self { subvolume: info.id, root: info.root }
    }
}

/// The engine as methods.
#[derive(Clone, Debug)]
pub struct Client<L> {
    link: L,
}

/// The answer of a kind.
macro_rules! answer {
    ($call:expr, $kind:ident) => {
        match $call.await? {
            Reply::$kind(value) => Ok(value),
            other => Err(other.mismatch(stringify!($kind))),
        }
    };
}
use answer;

impl<L: Link> Client<L> {
    /// A client over `link`.
    pub fn new(link: L) -> Self {
        Self { link }
    }

    /// The link under it.
    pub fn link(&self) -> &L {
        &self.link
    }

    /// Asks one shard and expects nothing but success.
    async fn unit(&self, shard: ShardId, request: Request) -> Result<()> {
        match self.link.call(shard, request).await? {
            Reply::Unit => Ok(()),
            other => Err(other.mismatch("Unit")),
        }
    }

    fn home(&self, tree: TreeRef) -> ShardId {
        tree.root.home(self.link.shard_count())
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<L> {
        (0..self.link.shard_count()).map(ShardId)
    }

    /// Asks every shard the same and waits for all; the first error wins.
    async fn all_shards(&self, request: &Request) -> Result<Vec<Reply>> {
        let calls = self.shards().map(|shard| self.link.call(shard, request.clone()));
        futures::future::join_all(calls).await.into_iter().collect()
    }

    /// Makes all that was acknowledged durable, on every shard.
    pub async fn flush(&self) -> Result<()> {
        self.all_shards(&Request::Flush).await.map(drop)
    }

    /// State of every shard.
    pub async fn status(&self) -> Result<Vec<ShardStatus>> {
        let replies = self.all_shards(&Request::Status).await?;
        replies
            .into_iter()
            .map(|reply| match reply {
                Reply::Status(status) => Ok(*status),
                other => Err(other.mismatch("Status")),
            })
            .collect()
    }

    /// Checks every shard's invariants; problems of all shards in one report.
    pub async fn fsck(&self, verify: Verify) -> Result<FsckReport> {
        let mut report = FsckReport::default();
        for reply in self.all_shards(&Request::Fsck { verify }).await? {
            match reply {
                Reply::Fsck(part) => report.merge(*part),
                other => return Err(other.mismatch("Fsck")),
            }
        }
        Ok(report)
    }

    /// Starts to grow or shrink a member, to `size_bytes` rounded down to whole buckets, or as large as its
    /// device is. It goes on after the answer: see [`Client::resize_status`].
    ///
    /// # Errors
    /// `InvalidArgument` when it cannot have that size, with the one it could have; `Busy` while another
    /// change goes on.
    pub async fn resize_member(&self, member: u8, size_bytes: Option<u64>) -> Result<ResizeStatus> {
        self.resize(ResizeRequest::Start { member, size_bytes }).await
    }

    /// Sizes of the members, and how the newest change of one goes.
    pub async fn resize_status(&self) -> Result<ResizeStatus> {
        self.resize(ResizeRequest::Status).await
    }

    /// Gives up shrinking a member; it is over when the status says so.
    ///
    /// # Errors
    /// `NotFound` when none is being shrunk; `Busy` when it is too late.
    pub async fn resize_cancel(&self) -> Result<ResizeStatus> {
        self.resize(ResizeRequest::Cancel).await
    }

    async fn resize(&self, request: ResizeRequest) -> Result<ResizeStatus> {
        match self.link.call(ShardId(0), Request::Resize(request)).await? {
            Reply::Resize(status) => Ok(*status),
            other => Err(other.mismatch("Resize")),
        }
    }

    /// Starts to scrub all shards, at a rate in bytes a second for all of them together; 0: as fast as it can. It goes
    /// on after the answer.
    ///
    /// # Errors
    /// `Busy` while one goes on or is paused.
    pub async fn scrub_start(&self, bytes_per_second: u64) -> Result<ScrubStatus> {
        let before = self.scrub(ScrubRequest::Status).await?;
        if matches!(before.state, ScrubState::Running | ScrubState::Paused) {
            let why = "one is running or paused: let it end, or cancel it".to_owned();
            return Err(StoreError::Busy { what: "scrub".to_owned(), why });
        }
        let bytes_per_second = bytes_per_second.div_ceil(u64::from(self.link.shard_count()));
        self.scrub(ScrubRequest::Start { bytes_per_second }).await
    }

    /// Changes the scrub, or tells how it goes: [`Client::scrub_start`] starts one.
    pub async fn scrub(&self, request: ScrubRequest) -> Result<ScrubStatus> {
        let mut status: Option<ScrubStatus> = None;
        for reply in self.all_shards(&Request::Scrub(request)).await? {
            match (reply, &mut status) {
                (Reply::Scrub(part), Some(all)) => all.merge(*part),
                (Reply::Scrub(part), none) => *none = Some(*part),
                (other, _) => return Err(other.mismatch("Scrub")),
            }
        }
        Ok(status.unwrap_or_default())
    }

    /// Repairs what fsck finds wrong, as far as it can be; the notes of the report say what was done.
    /// May be called again, also after a crash in the middle of it.
    pub async fn repair(&self) -> Result<FsckReport> {
        let mut report = FsckReport::default();
        for owners in [false, true] {
            for reply in self.all_shards(&Request::Repair { owners }).await? {
                match reply {
                    Reply::Fsck(part) => report.merge(*part),
                    other => return Err(other.mismatch("Fsck")),
                }
            }
        }
        Ok(report)
    }

    // ---- subvolumes ----

    /// Creates a block volume.
    pub async fn volume_create(
        &self,
        name: &str,
        size_bytes: u64,
        block_size: u32,
    ) -> Result<SubvolumeInfo> {
        let options = SubvolumeOptions::default();
        self.subvolume_create(name, SubvolumeKind::Volume, (size_bytes, block_size), options).await
    }

    /// Creates a file tree.
    pub async fn tree_create(&self, name: &str) -> Result<SubvolumeInfo> {
        let options = SubvolumeOptions::default();
        self.subvolume_create(name, SubvolumeKind::FileTree, (0, 0), options).await
    }

    /// Creates a subvolume; `size`: bytes and logical block size of a volume, 0 and 0 of a tree.
    pub async fn subvolume_create(
        &self,
        name: &str,
        kind: SubvolumeKind,
        (size_bytes, block_size): (u64, u32),
        options: SubvolumeOptions,
    ) -> Result<SubvolumeInfo> {
        let name = name.to_owned();
        let request = Request::SubvolumeCreate { name, kind, size_bytes, block_size, options };
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// Changes how new data of a subvolume is stored.
    pub async fn subvolume_set(&self, name: &str, set: SetOptions) -> Result<SubvolumeInfo> {
        let request = Request::SubvolumeSet { name: name.to_owned(), set };
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// Finds a subvolume by name.
    pub async fn subvolume_get(&self, name: &str) -> Result<SubvolumeInfo> {
        let request = Request::SubvolumeGet { name: name.to_owned() };
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// Lists subvolumes by name, `limit` at most, after the name `after`.
    pub async fn subvolume_list(&self, after: &str, limit: u32) -> Result<Vec<SubvolumeInfo>> {
        let request = Request::SubvolumeList { after: after.to_owned(), limit };
        answer!(self.link.call(ShardId(0), request), Subvolumes)
    }

    /// Data that a subvolume holds on all shards.
    pub async fn subvolume_usage(&self, subvolume: SubvolumeId) -> Result<Usage> {
        let mut total = Usage::default();
        for reply in self.all_shards(&Request::Usage { subvolume }).await? {
            match reply {
                Reply::Usage(usage) => {
                    total.own_bytes = total.own_bytes.saturating_add(usage.own_bytes);
                    total.shared_bytes = total.shared_bytes.saturating_add(usage.shared_bytes);
                    total.saved_bytes = total.saved_bytes.saturating_add(usage.saved_bytes);
                }
                other => return Err(other.mismatch("Usage")),
            }
        }
        Ok(total)
    }

    /// Bytes that deleting a subvolume would give back, in time.
    pub async fn freed_by_delete(&self, subvolume: SubvolumeId) -> Result<u64> {
        let mut total: u64 = 0;
        for reply in self.all_shards(&Request::FreedByDelete { subvolume }).await? {
            match reply {
                Reply::Count(bytes) => total = total.saturating_add(bytes),
                other => return Err(other.mismatch("Count")),
            }
        }
        Ok(total)
    }

    /// Makes snapshots, all of one instant.
    pub async fn snapshot_create(&self, snapshots: &[NewSnapshot]) -> Result<Vec<SubvolumeInfo>> {
        let request = Request::SnapshotCreate { snapshots: snapshots.to_vec() };
        answer!(self.link.call(ShardId(0), request), Subvolumes)
    }

    /// Makes a volume what it was at one of its snapshots.
    pub async fn subvolume_rollback(&self, name: &str, snapshot: &str) -> Result<SubvolumeInfo> {
        let (name, snapshot) = (name.to_owned(), snapshot.to_owned());
        let request = Request::SubvolumeRollback { name, snapshot };
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// Deletes a subvolume and all in it.
    pub async fn subvolume_delete(&self, name: &str) -> Result<()> {
        self.unit(ShardId(0), Request::SubvolumeDelete { name: name.to_owned() }).await
    }

    /// Resizes a volume.
    pub async fn volume_resize(&self, name: &str, size_bytes: u64) -> Result<SubvolumeInfo> {
        let request = Request::VolumeResize { name: name.to_owned(), size_bytes };
        answer!(self.link.call(ShardId(0), request), Subvolume).map(|info| *info)
    }

    /// Keeps a record.
    pub async fn record_put(
        &self,
        collection: &str,
        name: &str,
        bytes: Vec<u8>,
        mode: PutMode,
    ) -> Result<()> {
        let (collection, name) = (collection.to_owned(), name.to_owned());
        self.unit(ShardId(0), Request::RecordPut { collection, name, bytes, mode }).await
    }

    /// All records of a collection.
    pub async fn record_list(&self, collection: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let request = Request::RecordList { collection: collection.to_owned() };
        answer!(self.link.call(ShardId(0), request), Records)
    }

    /// Removes a record.
    pub async fn record_delete(&self, collection: &str, name: &str) -> Result<()> {
        let (collection, name) = (collection.to_owned(), name.to_owned());
        self.unit(ShardId(0), Request::RecordDelete { collection, name }).await
    }

    // ---- volumes: offsets and lengths are multiples of 4096 ----

    /// The parts of a range that one request can carry: within a chunk and the size limit.
    fn parts(offset: u64, len: u64, most: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let chunk_end = ((at >> CHUNK_SIZE_LOG2) + 1) << CHUNK_SIZE_LOG2;
            let part = (at, (chunk_end - at).min(end - at).min(most));
            at += part.1;
            Some(part)
        })
    }

    fn data_shard(&self, volume: &VolumeRef, offset: u64) -> ShardId {
        volume.inode.data_shard(offset, self.link.shard_count())
    }

    /// Reads a range of a volume; holes read as zeroes.
    pub async fn volume_read(&self, volume: &VolumeRef, offset: u64, len: u64) -> Result<Data> {
        let call = |offset, len: u64| {
            let (inode, of) = (volume.inode, Whose::Subvolume(volume.subvolume));
            let request = Request::DataRead { inode, of, offset, len: len as u32 };
            self.link.call(self.data_shard(volume, offset), request)
        };
        let mut parts = Self::parts(offset, len, DATA_BYTES_MAX).peekable();
        let Some(first) = parts.next() else { return Ok(Data::new()) };
        if parts.peek().is_none() {
            return answer!(call(first.0, first.1), Data);
        }
        let calls = std::iter::once(first).chain(parts).map(|(offset, len)| call(offset, len));
        let mut whole = Data::new();
        for reply in futures::future::join_all(calls).await {
            match reply? {
                Reply::Data(data) => whole.extend(data),
                other => return Err(other.mismatch("Data")),
            }
        }
        Ok(whole)
    }

    /// Writes a range of a volume; with `fua`, durably.
    pub async fn volume_write(
        &self,
        volume: &VolumeRef,
        offset: u64,
        data: Data,
        fua: bool,
    ) -> Result<()> {
        let len = data_len(&data);
        let call = |offset, data| {
            let (inode, of) = (volume.inode, Whose::Subvolume(volume.subvolume));
            self.link.call(
                self.data_shard(volume, offset),
                Request::DataWrite { inode, of, offset, data, fua },
            )
        };
        let mut parts = Self::parts(offset, len, DATA_BYTES_MAX).peekable();
        let Some(first) = parts.next() else { return Ok(()) };
        if parts.peek().is_none() {
            return call(first.0, data).await.map(drop);
        }
        let calls = std::iter::once(first)
            .chain(parts)
            .map(|(at, len)| call(at, cut(&data, (at - offset) as usize, len as usize)));
        for reply in futures::future::join_all(calls).await {
            reply?;
        }
        Ok(())
    }

    /// Drops a range of a volume: it reads as zeroes and its space is free.
    pub async fn volume_discard(&self, volume: &VolumeRef, offset: u64, len: u64) -> Result<()> {
        let (inode, of) = (volume.inode, Whose::Subvolume(volume.subvolume));
        for (offset, len) in Self::parts(offset, len, u64::MAX) {
            let request = Request::DataDiscard { inode, of, offset, len };
            self.unit(self.data_shard(volume, offset), request).await?;
        }
        Ok(())
    }

    /// Makes everything acknowledged on this volume durable.
    pub async fn volume_flush(&self, _volume: &VolumeRef) -> Result<()> {
        self.flush().await
    }

    // ---- file trees ----

    /// Finds a name in a directory.
    pub async fn lookup(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: &[u8],
    ) -> Result<Attributes> {
        let request = Request::Lookup { tree, directory, name: name.to_vec() };
        self.attributes(tree, request).await
    }

    async fn attributes(&self, tree: TreeRef, request: Request) -> Result<Attributes> {
        answer!(self.link.call(self.home(tree), request), Attributes).map(|attributes| *attributes)
    }

    /// Attributes of an inode.
    pub async fn get_attributes(&self, tree: TreeRef, inode: InodeNumber) -> Result<Attributes> {
        self.attributes(tree, Request::GetAttributes { tree, inode }).await
    }

    /// Changes attributes.
    pub async fn set_attributes(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        set: SetAttributes,
    ) -> Result<Attributes> {
        self.attributes(tree, Request::SetAttributes { tree, inode, set }).await
    }

    /// Creates a file or directory.
    pub async fn create(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: &[u8],
        kind: FileKind,
        attributes: CreateAttributes,
    ) -> Result<Attributes> {
        let name = name.to_vec();
        self.attributes(tree, Request::Create { tree, directory, name, kind, attributes }).await
    }

    /// Creates a symbolic link.
    pub async fn symlink(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: &[u8],
        target: &[u8],
        attributes: CreateAttributes,
    ) -> Result<Attributes> {
        let (name, target) = (name.to_vec(), target.to_vec());
        self.attributes(tree, Request::Symlink { tree, directory, name, target, attributes }).await
    }

    /// Target of a symbolic link.
    pub async fn read_link(&self, tree: TreeRef, inode: InodeNumber) -> Result<Vec<u8>> {
        answer!(self.link.call(self.home(tree), Request::ReadLink { tree, inode }), Bytes)
    }

    /// Adds a name to an inode.
    pub async fn link_inode(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        directory: InodeNumber,
        name: &[u8],
    ) -> Result<Attributes> {
        let name = name.to_vec();
        self.attributes(tree, Request::Link { tree, inode, directory, name }).await
    }

    /// Removes a name: rmdir with `directory_only`, else unlink.
    pub async fn remove(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        name: &[u8],
        directory_only: bool,
    ) -> Result<()> {
        let name = name.to_vec();
        self.unit(self.home(tree), Request::Remove { tree, directory, name, directory_only }).await
    }

    /// Renames within a tree.
    pub async fn rename(
        &self,
        tree: TreeRef,
        from: (InodeNumber, &[u8]),
        to: (InodeNumber, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        let request = Request::Rename {
            tree,
            from_directory: from.0,
            from_name: from.1.to_vec(),
            to_directory: to.0,
            to_name: to.1.to_vec(),
            mode,
        };
        self.unit(self.home(tree), request).await
    }

    /// Lists a directory from after `cookie`.
    pub async fn read_directory(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        cookie: u64,
        limit: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        let request = Request::ReadDirectory { tree, directory, cookie, limit };
        answer!(self.link.call(self.home(tree), request), Entries)
    }

    /// Reads from a file, at most [`DATA_BYTES_MAX`] bytes.
    pub async fn file_read(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        offset: u64,
        len: u32,
    ) -> Result<Data> {
        let request = Request::FileRead { tree, inode, offset, len };
        answer!(self.link.call(self.home(tree), request), Data)
    }

    /// Writes to a file, at most [`DATA_BYTES_MAX`] bytes.
    pub async fn file_write(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        offset: u64,
        data: Data,
    ) -> Result<Attributes> {
        self.attributes(tree, Request::FileWrite { tree, inode, offset, data }).await
    }

    /// Punches a hole into a file.
    pub async fn file_punch(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        self.unit(self.home(tree), Request::FilePunch { tree, inode, offset, len }).await
    }

    /// Makes a file or directory durable.
    pub async fn file_sync(&self, tree: TreeRef, inode: InodeNumber) -> Result<()> {
        self.unit(self.home(tree), Request::FileSync { tree, inode }).await
    }

    /// Value of an extended attribute.
    pub async fn xattr_get(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        name: &[u8],
    ) -> Result<Vec<u8>> {
        let request = Request::XattrGet { tree, inode, name: name.to_vec() };
        answer!(self.link.call(self.home(tree), request), Bytes)
    }

    /// Sets an extended attribute.
    pub async fn xattr_set(
        &self,
        tree: TreeRef,
        inode: InodeNumber,
        name: &[u8],
        value: &[u8],
        mode: PutMode,
    ) -> Result<()> {
        let (name, value) = (name.to_vec(), value.to_vec());
        self.unit(self.home(tree), Request::XattrSet { tree, inode, name, value, mode }).await
    }

    /// Names of all extended attributes.
    pub async fn xattr_list(&self, tree: TreeRef, inode: InodeNumber) -> Result<Vec<Vec<u8>>> {
        answer!(self.link.call(self.home(tree), Request::XattrList { tree, inode }), Names)
    }

    /// Removes an extended attribute.
    pub async fn xattr_remove(&self, tree: TreeRef, inode: InodeNumber, name: &[u8]) -> Result<()> {
        let name = name.to_vec();
        self.unit(self.home(tree), Request::XattrRemove { tree, inode, name }).await
    }
}

/// The part `start .. start + len` of `data`, without a copy.
///
/// # Panics
/// When the range reaches past the end.
#[must_use]
pub fn cut(data: &Data, start: usize, len: usize) -> Data {
    let mut part = Data::new();
    let (mut skip, mut left) = (start, len);
    for piece in data {
        if left == 0 {
            break;
        }
        if skip >= piece.len() {
            skip -= piece.len();
            continue;
        }
        let take: usize = left.min(piece.len() - skip);
        let slice: Slice = piece.slice(skip..skip + take);
        part.push(slice);
        skip = 0;
        left -= take;
    }
    assert!(left == 0, "range past the end of the data");
    part
}

impl FsckReport {
    /// Adds what another shard found.
    pub fn merge(&mut self, other: Self) {
        self.problems.extend(other.problems);
        self.notes.extend(other.notes);
        for (name, count) in other.checked {
            match self.checked.iter_mut().find(|(known, _)| *known == name) {
                Some(entry) => entry.1 += count,
                None => self.checked.push((name, count)),
            }
        }
    }
}
