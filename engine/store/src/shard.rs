//! One shard: takes a [`Request`], answers with a [`Reply`].
//!
//! Always true:
//! - What is acknowledged is committed in the engine, atomically per shard, and written to the journal:
//!   it outlives this process. It outlives a loss of power after a flush, or when answered where
//!   [`crate::api`] says so.
//! - After a crash each shard is a prefix of its own transactions, and different shards are prefixes
//!   of different length. So an operation over several shards writes its intent first, makes it
//!   durable, and only then takes steps elsewhere ([`crate::logged`]).
//! - The future of [`Shard::handle`] is run to its end; dropping it may leave a device writing into
//!   space that was given back.
//!
//! Leaves placement on cores, rings and limits on requests in flight to its host.

use std::rc::{Rc, Weak};

use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::runtime::LocalBoxFuture;
use engine_base::{BLOCK_SIZE, InodeNumber, ShardId, SnapshotId, SubvolumeId};
use engine_memory::alloc_site;
use engine_memory::profile::Scoped;

use crate::RegionSource;
use crate::api::{
    CopyStats, DATA_BYTES_MAX, Data, DataPlace, KnownVersion, Region, Reply, Request, ShardStatus,
    Whose, data_len,
};
use crate::context::{Context, block_range};
use crate::data::{BlockRange, Compared, Until};
use crate::engine::{Engine, EngineConfig, Opening};
use crate::error::{Result, StoreError};
use crate::key::Counter;
use crate::limits::{LIST_ENTRIES_MAX, Limits};
use crate::namespace::Namespace;
use crate::resize::Resizer;
use crate::scrub::Scrubber;
use crate::subvolume::Tables;

/// The way from one shard to the others, and to itself. A call's future may be dropped by the
/// asker; the request must be carried out all the same.
pub trait PeerLink {
    /// Sends `request` to `shard`.
    fn call(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Result<Reply>>;
}

/// What a shard is opened with.
#[derive(Clone)]
pub struct ShardConfig {
    /// Its engine.
    pub engine: EngineConfig,
    /// The way to the other shards.
    pub peers: Rc<dyn PeerLink>,
    /// Bounds of memory and background work.
    pub limits: Limits,
}

/// Shard 0 gives itself regions; those of others it gets as all do.
struct OwnRegions {
    engine: Weak<Engine>,
    peers: PeerRegions,
}

impl RegionSource for OwnRegions {
    fn acquire(&self, short: Option<u64>) -> LocalBoxFuture<'static, Result<Option<Region>>> {
        if short.is_some() {
            return self.peers.acquire(short);
        }
        let engine = self.engine.upgrade();
        Box::pin(async move {
            match engine {
                Some(engine) => engine.region_acquire(ShardId(0)).await,
                None => Ok(None),
            }
        })
    }

    fn list(&self) -> LocalBoxFuture<'static, Result<Vec<Region>>> {
        let engine = self.engine.upgrade();
        Box::pin(async move {
            match engine {
                Some(engine) => engine.region_list(ShardId(0)).await,
                None => Ok(Vec::new()),
            }
        })
    }
}

/// Regions come from shard 0, by messages.
struct PeerRegions {
    peers: Rc<dyn PeerLink>,
    shard: ShardId,
}

impl RegionSource for PeerRegions {
    fn acquire(&self, short: Option<u64>) -> LocalBoxFuture<'static, Result<Option<Region>>> {
        let request = Request::RegionAcquire { shard: self.shard, short };
        let call = self.peers.call(ShardId(0), request);
        Box::pin(async move {
            match call.await? {
                Reply::Region(region) => Ok(region),
                other => Err(other.mismatch("Region")),
            }
        })
    }

    fn list(&self) -> LocalBoxFuture<'static, Result<Vec<Region>>> {
        let call = self.peers.call(ShardId(0), Request::RegionList { shard: self.shard });
        Box::pin(async move {
            match call.await? {
                Reply::Regions(regions) => Ok(regions),
                other => Err(other.mismatch("Regions")),
            }
        })
    }
}

/// One shard of a pool.
pub struct Shard {
    context: Rc<Context>,
    /// The pool-wide tables; on shard 0 only.
    tables: Option<Rc<Tables>>,
    /// Changes of the sizes of members; on shard 0 only.
    resizer: Option<Rc<Resizer>>,
    namespace: Rc<Namespace>,
    scrubber: Rc<Scrubber>,
}

impl Shard {
    /// Opens the engine and what is kept in memory above it, and starts to resume the logged
    /// operations that were interrupted. These need the other shards: they are retried until
    /// these answer.
    ///
    /// # Errors
    /// When a device fails or what is on it is damaged.
    pub async fn open(config: ShardConfig) -> Result<Rc<Self>> {
        Self::open_as(config, Opening::Whole).await
    }

    /// [`Shard::open`], also when index nodes cannot be read, if `opening` says so.
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub async fn open_as(config: ShardConfig, opening: Opening) -> Result<Rc<Self>> {
        let ShardConfig { engine, peers, limits } = config;
        let engine = Engine::open_as(engine, opening).await?;
        let shard = engine.shard();
        let regions = PeerRegions { peers: Rc::clone(&peers), shard };
        engine.set_region_source(match shard {
            ShardId(0) => Rc::new(OwnRegions { engine: Rc::downgrade(&engine), peers: regions }),
            _ => Rc::new(regions),
        });
        let context = Rc::new(Context::new(engine, peers, limits)?);
        let tables = match context.shard() {
            ShardId(0) => Some(Tables::open(&context).await?),
            _ => None,
        };
        let namespace = Namespace::new(&context);
        let resizer = tables.is_some().then(|| Resizer::open(&context));
        let scrubber = Scrubber::open(&context)?;
        let shard = Rc::new(Self { context, tables, resizer, namespace, scrubber });
        shard.resume().await?;
        Ok(shard)
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// Those of the request; `ShuttingDown` after [`Shard::shutdown`].
    pub async fn handle(self: &Rc<Self>, request: Request) -> Result<Reply> {
        self.context.background.check()?;
        // A write of data waits for as much itself, together with others.
        let changes = request.changes() && !matches!(request, Request::DataWrite { .. });
        let reply = self.carry_out(request).await.inspect_err(|error| self.tell_refused(error))?;
        if changes {
            self.context.engine.written().await?;
        }
        Ok(reply)
    }

    #[cold]
    fn tell_refused(&self, error: &StoreError) {
        tracing::debug!(shard = self.context.shard().0, %error, "request refused");
    }

    async fn carry_out(self: &Rc<Self>, request: Request) -> Result<Reply> {
        if request.needs_versions() {
            self.context.know_versions().await?;
        }
        match request {
            Request::DataRead { inode, of, offset, len } => {
                let read = self.data_read(inode, of, offset, u64::from(len));
                Scoped::new(alloc_site!("data read"), read).await.map(Reply::Data)
            }
            Request::DataWrite { inode, of, offset, data, fua } => {
                let until = if fua { Until::Flushed } else { Until::Written };
                let write = self.data_write(inode, of, offset, data, until);
                Scoped::new(alloc_site!("data write"), write).await.map(|()| Reply::Unit)
            }
            Request::Flush => self.context.engine.flush().await.map(|()| Reply::Unit),
            // The rest is rarer and its futures are large: they live on the heap.
            other => {
                let work = Scoped::new(alloc_site!("requests"), self.handle_other(other));
                Box::pin(work).await
            }
        }
    }

    /// Ends the background work and flushes.
    ///
    /// # Errors
    /// When the flush fails.
    pub async fn shutdown(&self) -> Result<()> {
        self.context.background.stop().await;
        self.context.engine.close().await
    }

    /// The engine below.
    #[must_use]
    pub fn engine(&self) -> &Rc<Engine> {
        &self.context.engine
    }

    /// Bounds the memory for data that may be read again, in bytes; with 0, which it is at first, none is
    /// kept, and nothing is read ahead.
    pub fn set_data_cache_bytes(&self, bytes: usize) {
        self.context.data.set_cache_bytes(bytes);
    }

    /// Waits until the work that goes on in the background (space of removed files and subvolumes)
    /// is done.
    pub async fn background_idle(&self) {
        self.context.background.idle().await;
    }

    async fn handle_other(self: &Rc<Self>, request: Request) -> Result<Reply> {
        match request {
            request @ (Request::DataDiscard { .. }
            | Request::DataPunch { .. }
            | Request::DataForget { .. }
            | Request::DataCopy { .. }
            | Request::DataDiff { .. }) => self.handle_data(request).await,
            Request::Status => self.status().await.map(|status| Reply::Status(Box::new(status))),
            request @ (Request::SubvolumeCreate { .. }
            | Request::SubvolumeGet { .. }
            | Request::SubvolumeList { .. }
            | Request::SubvolumeDelete { .. }
            | Request::SubvolumeSet { .. }
            | Request::SnapshotCreate { .. }
            | Request::SubvolumeRollback { .. }
            | Request::Receive(_)
            | Request::VersionList
            | Request::VolumeResize { .. }
            | Request::RecordPut { .. }
            | Request::RecordList { .. }
            | Request::RecordDelete { .. }) => {
                let work = self.tables()?.handle(request);
                Scoped::new(alloc_site!("subvolume tables"), work).await
            }
            request @ (Request::RootCreate { .. }
            | Request::VersionDelete { .. }
            | Request::VersionAbsorb { .. }
            | Request::VolumeSize { .. }) => {
                crate::subvolume::handle_step(&self.context, &self.namespace, request).await
            }
            request @ (Request::Usage { .. }
            | Request::FreedByDelete { .. }
            | Request::VersionHold { .. }
            | Request::VersionSet { .. }) => self.context.handle_versions(request).await,
            request @ (Request::RegionAcquire { .. }
            | Request::RegionGive { .. }
            | Request::RegionList { .. }) => self.handle_regions(request).await,
            Request::Resize(request) => match &self.resizer {
                Some(resizer) => resizer.handle(request).await,
                None => crate::resize::handle_step(&self.context, request).await,
            },
            request @ (Request::Fsck { .. }
            | Request::Repair { .. }
            | Request::Scrub(_)
            | Request::FsckOwners { .. }
            | Request::FsckVersions { .. }
            | Request::DamageList { .. }
            | Request::DamageClear { .. }
            | Request::InodePaths { .. }) => self.handle_check(request).await,
            Request::TreeDiff { tree, base, in_base, from } => {
                self.namespace.diff(tree, base, in_base, from).await
            }
            other => Scoped::new(alloc_site!("namespace"), self.namespace.handle(other)).await,
        }
    }

    /// What concerns the regions that shards have.
    async fn handle_regions(&self, request: Request) -> Result<Reply> {
        match request {
            Request::RegionAcquire { shard, short } => {
                self.tables()?;
                self.region_acquire(shard, short).await.map(Reply::Region)
            }
            Request::RegionGive { blocks } => {
                self.context.engine.give_region(blocks).await.map(Reply::Region)
            }
            Request::RegionList { shard } => {
                self.tables()?;
                self.context.engine.region_list(shard).await.map(Reply::Regions)
            }
            other => Err(StoreError::invalid(format!("not about regions: {other:.40?}"))),
        }
    }

    /// What concerns blocks and is neither a read nor a write.
    async fn handle_data(&self, request: Request) -> Result<Reply> {
        match request {
            Request::DataDiscard { inode, of, offset, len } => {
                self.data_discard(inode, of, offset, len).await.map(|()| Reply::Unit)
            }
            Request::DataPunch { inode, version, from, to } => {
                self.data_punch(inode, version, from, to).await.map(|()| Reply::Unit)
            }
            Request::DataForget { inodes, version } => {
                self.data_forget(&inodes, version).await.map(|()| Reply::Unit)
            }
            Request::DataCopy { source, target, len } => {
                self.data_copy(source, target, len).await.map(Reply::Copied)
            }
            Request::DataDiff { inode, base, subvolume, from, to, limit } => {
                self.data_diff(inode, (base, subvolume), (from, to), limit).await
            }
            other => Err(StoreError::invalid(format!("not about blocks: {other:.40?}"))),
        }
    }

    /// What has to do with damage: checks, and the list of what is lost.
    async fn handle_check(self: &Rc<Self>, request: Request) -> Result<Reply> {
        match request {
            Request::Fsck { verify } => {
                let tables = self.tables.as_ref();
                let report =
                    crate::check::fsck(&self.context, &self.namespace, tables, verify).await?;
                Ok(Reply::Fsck(Box::new(report)))
            }
            Request::Scrub(request) => self.scrubber.handle(request).await,
            Request::Repair { owners } => {
                let report = crate::repair::repair(&self.context, &self.namespace, owners).await?;
                Ok(Reply::Fsck(Box::new(report)))
            }
            Request::DamageList { limit } => {
                self.context.engine.damage(limit as usize).await.map(Reply::Damage)
            }
            Request::DamageClear { inode } => {
                self.context.engine.clear_damage(inode).await.map(Reply::Count)
            }
            Request::InodePaths { inodes } => {
                crate::check::paths(&self.context, &inodes).await.map(Reply::Paths)
            }
            Request::FsckOwners { inodes, epoch } => {
                self.context.catch_up(epoch).await?;
                crate::check::owners(&self.context, &inodes).await.map(Reply::Owners)
            }
            Request::FsckVersions { snapshots } => {
                let tables = self.tables()?;
                let states =
                    crate::check::version_states(&self.context, tables, &snapshots).await?;
                Ok(Reply::Versions(states))
            }
            other => Err(StoreError::invalid(format!("not a check: {other:.40?}"))),
        }
    }

    fn tables(&self) -> Result<&Rc<Tables>> {
        self.tables.as_ref().ok_or_else(|| {
            let shard = self.context.shard();
            StoreError::invalid(format!("shard {shard} does not keep the pool's tables"))
        })
    }

    async fn resume(&self) -> Result<()> {
        if let Some(tables) = &self.tables {
            tables.resume().await?;
        }
        self.namespace.resume().await
    }

    async fn status(&self) -> Result<ShardStatus> {
        let engine = &self.context.engine;
        let mut status = engine.status().await?;
        status.inodes = engine.counter(Counter::INODES);
        self.context.data.counters(&mut status.counters);
        status.counters.push(("background_tasks", self.context.background.running() as u64));
        status.counters.push(("background_retries", self.context.background.retries()));
        let (read, written) = engine.waits().times().bytes();
        status.counters.push(("request_read_bytes", read));
        status.counters.push(("request_written_bytes", written));
        Ok(status)
    }

    /// A region for `shard`: one that nobody has, or if it is `short`, one that another can spare.
    async fn region_acquire(&self, shard: ShardId, short: Option<u64>) -> Result<Option<Region>> {
        let engine = &self.context.engine;
        if let Some(region) = engine.region_acquire(shard).await? {
            return Ok(Some(region));
        }
        let Some(blocks) = short else { return Ok(None) };
        for donor in self.context.shards().filter(|donor| *donor != shard) {
            let call = self.context.peers.call(donor, Request::RegionGive { blocks });
            // One that cannot give, for whatever reason, is passed over.
            if let Ok(Ok(Reply::Region(Some(region)))) =
                self.context.background.unless_stopped(call).await
            {
                engine.region_move(region, donor, shard).await?;
                return Ok(Some(region));
            }
        }
        Ok(None)
    }

    /// The blocks of a client's range, which must lie in one chunk of this shard.
    fn chunk_range(
        &self,
        inode: InodeNumber,
        snapshot: SnapshotId,
        offset: u64,
        len: u64,
    ) -> Result<BlockRange> {
        let range = block_range(inode, snapshot, offset, len)?;
        if inode.0 == 0 {
            return Err(StoreError::invalid("inode number 0"));
        }
        if !self.context.is_here(inode, offset) {
            let shard = self.context.shard();
            return Err(StoreError::invalid(format!(
                "offset {offset} of inode {inode} is not on shard {shard}"
            )));
        }
        if len > 0 && offset >> CHUNK_SIZE_LOG2 != (offset + len - 1) >> CHUNK_SIZE_LOG2 {
            return Err(StoreError::invalid(format!("range {offset}+{len} crosses a chunk")));
        }
        Ok(range)
    }

    async fn data_read(
        &self,
        inode: InodeNumber,
        of: Whose,
        offset: u64,
        len: u64,
    ) -> Result<Data> {
        if len > DATA_BYTES_MAX {
            return Err(StoreError::invalid(format!(
                "read of {len} bytes: {DATA_BYTES_MAX} at most"
            )));
        }
        let range = self.chunk_range(inode, self.context.to_read(of).await?, offset, len)?;
        self.context.data.read(range).await
    }

    async fn data_write(
        &self,
        inode: InodeNumber,
        of: Whose,
        offset: u64,
        data: Data,
        until: Until,
    ) -> Result<()> {
        let len = data_len(&data);
        if len > DATA_BYTES_MAX {
            return Err(StoreError::invalid(format!(
                "write of {len} bytes: {DATA_BYTES_MAX} at most"
            )));
        }
        let (_pass, snapshot, end) = self.context.to_write(of).await?;
        let range = self.chunk_range(inode, snapshot, offset, len)?;
        if len == 0 {
            return Ok(());
        }
        if range.to > end {
            return Err(StoreError::invalid(format!(
                "write {offset}+{len} is past the end of the volume, which was resized"
            )));
        }
        self.context.data.write(range, data, until).await
    }

    async fn data_copy(&self, source: DataPlace, target: DataPlace, len: u64) -> Result<CopyStats> {
        // The pass of the target may have to wait for a snapshot; the source's never does.
        let (_pass, to, end) = self.context.to_write(target.of).await?;
        let from = self.context.to_read(source.of).await?;
        let _source_pass = self.context.gate.enter(from)?;
        let target = self.chunk_range(target.inode, to, target.offset, len)?;
        let from = self.chunk_range(source.inode, from, source.offset, len)?;
        let source_end = match source.of {
            Whose::Subvolume(subvolume) => self.context.current(subvolume)?.end_block,
            Whose::Version(_) => u64::MAX,
        };
        if target.to > end || from.to > source_end {
            return Err(StoreError::invalid(format!(
                "copy of {len} bytes: past the end of the volume, which was resized"
            )));
        }
        let same = (from.inode, from.snapshot) == (target.inode, target.snapshot);
        if same && from.from < target.to && target.from < from.to {
            return Err(StoreError::invalid("a copy within a volume: the ranges overlap"));
        }
        if len == 0 {
            return Ok(CopyStats::default());
        }
        let done = self.context.data.copy(from, target).await?;
        let bytes = |blocks| blocks * engine_base::BLOCK_SIZE;
        Ok(CopyStats { shared_bytes: bytes(done.shared), copied_bytes: bytes(done.copied) })
    }

    async fn data_discard(
        &self,
        inode: InodeNumber,
        of: Whose,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let (_pass, snapshot, _) = self.context.to_write(of).await?;
        let range = self.chunk_range(inode, snapshot, offset, len)?;
        self.context.data.punch(range).await
    }

    async fn data_punch(
        &self,
        inode: InodeNumber,
        version: KnownVersion,
        from: u64,
        to: u64,
    ) -> Result<()> {
        // Holes are keys, too.
        let _pass = self.context.enter_known(version).await?;
        if !from.is_multiple_of(BLOCK_SIZE) || (to != u64::MAX && !to.is_multiple_of(BLOCK_SIZE)) {
            return Err(StoreError::invalid(format!("{from} to {to}: not at block boundaries")));
        }
        let (from, to) = (from / BLOCK_SIZE, to / BLOCK_SIZE);
        self.context.data.punch(BlockRange { inode, snapshot: version.id, from, to }).await
    }

    async fn data_diff(
        &self,
        inode: InodeNumber,
        (base, subvolume): (Option<SubvolumeId>, SubvolumeId),
        (from, to): (u64, u64),
        limit: u32,
    ) -> Result<Reply> {
        if !from.is_multiple_of(BLOCK_SIZE) || !to.is_multiple_of(BLOCK_SIZE) {
            return Err(StoreError::invalid(format!("{from} to {to}: not at block boundaries")));
        }
        if !(1..=LIST_ENTRIES_MAX).contains(&limit) {
            return Err(StoreError::invalid(format!("limit {limit}: 1 to {LIST_ENTRIES_MAX}")));
        }
        let version = self.context.to_read(Whose::Subvolume(subvolume)).await?;
        let base = match base {
            Some(base) => Some(self.context.to_read(Whose::Subvolume(base)).await?),
            None => None,
        };
        let compared = Compared { inode, base, version };
        let (from, to) = (from / BLOCK_SIZE, to / BLOCK_SIZE);
        let (ranges, next) = self.context.data.changed(compared, from, to, limit as usize).await?;
        Ok(Reply::Changed(ranges, next.map(|block| block * BLOCK_SIZE)))
    }

    /// Not stopped by the gate: it only drops.
    async fn data_forget(&self, inodes: &[InodeNumber], version: KnownVersion) -> Result<()> {
        self.context.catch_up(version.epoch).await?;
        for inode in inodes {
            self.context.data.forget(*inode, version.id).await?;
        }
        Ok(())
    }
}
