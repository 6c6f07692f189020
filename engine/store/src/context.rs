//! What the parts of a shard share: engine, data path, way to other shards, gate, background work.

use std::cell::Cell;
use std::rc::Rc;

use engine_base::{InodeNumber, ShardId, SnapshotId};

use crate::api::{Data, Reply, Request, Whose};
use crate::background::Background;
use crate::data::{BlockRange, DataPath, Until};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::gate::VersionGate;
use crate::limits::Limits;
use crate::shard::PeerLink;
use crate::times::Timed;

/// Shared by the parts of one shard.
pub(crate) struct Context {
    pub(crate) engine: Rc<Engine>,
    pub(crate) peers: Rc<dyn PeerLink>,
    pub(crate) limits: Limits,
    pub(crate) data: DataPath,
    pub(crate) gate: VersionGate,
    pub(crate) background: Rc<Background>,
    /// Checks of the data that were begun; the last goes on, those before it end.
    pub(crate) verifying: Cell<u64>,
}

impl Context {
    pub(crate) fn new(engine: Rc<Engine>, peers: Rc<dyn PeerLink>, limits: Limits) -> Result<Self> {
        Ok(Self {
            data: DataPath::new(Rc::clone(&engine))?,
            gate: VersionGate::new(limits.dead_versions_max),
            background: Background::new(Rc::clone(engine.runtime())),
            engine,
            peers,
            limits,
            verifying: Cell::new(0),
        })
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.engine.shard()
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.engine.shard_count()).map(ShardId)
    }

    pub(crate) fn is_here(&self, inode: InodeNumber, offset: u64) -> bool {
        inode.data_shard(offset, self.engine.shard_count()) == self.shard()
    }

    /// Nanoseconds since the epoch, as inodes keep them.
    pub(crate) fn now(&self) -> i64 {
        i64::try_from(self.engine.runtime().wall_clock_ns()).unwrap_or(i64::MAX)
    }

    /// Asks a shard (this one too).
    pub(crate) async fn call(&self, shard: ShardId, request: Request) -> Result<Reply> {
        self.engine.waits.on(Timed::PeerRequest, self.peers.call(shard, request)).await
    }

    /// Asks a shard (this one too) and expects nothing but success.
    pub(crate) async fn ask_unit(&self, shard: ShardId, request: Request) -> Result<()> {
        match self.call(shard, request).await? {
            Reply::Unit => Ok(()),
            other => Err(other.mismatch("Unit")),
        }
    }

    /// Asks each of `shards` the same, all at once; waits for all, the first error wins.
    pub(crate) async fn ask_each(
        &self,
        shards: impl IntoIterator<Item = ShardId>,
        request: &Request,
    ) -> Result<()> {
        let calls = shards.into_iter().map(|shard| self.ask_unit(shard, request.clone()));
        futures::future::join_all(calls).await.into_iter().collect()
    }

    /// As [`Context::ask_each`], given up when this shard stops. For idempotent steps.
    pub(crate) async fn step_each(
        &self,
        shards: impl IntoIterator<Item = ShardId>,
        request: &Request,
    ) -> Result<()> {
        self.background.unless_stopped(self.ask_each(shards, request)).await?
    }

    /// Reads blocks of one chunk, here or on the shard that holds them.
    pub(crate) async fn read_blocks(
        &self,
        inode: InodeNumber,
        snapshot: SnapshotId,
        offset: u64,
        len: u64,
    ) -> Result<Data> {
        if self.is_here(inode, offset) {
            return self.data.read(block_range(inode, snapshot, offset, len)?).await;
        }
        let len = u32::try_from(len).map_err(|_| StoreError::invalid("read is too long"))?;
        let shard = inode.data_shard(offset, self.engine.shard_count());
        let request =
            Request::DataRead { inode, of: Whose::Version(self.known(snapshot)), offset, len };
        match self.call(shard, request).await? {
            Reply::Data(data) => Ok(data),
            other => Err(other.mismatch("Data")),
        }
    }

    /// Writes blocks of one chunk, here or on the shard that holds them.
    pub(crate) async fn write_blocks(
        &self,
        inode: InodeNumber,
        snapshot: SnapshotId,
        offset: u64,
        data: Data,
    ) -> Result<()> {
        if self.is_here(inode, offset) {
            let len = crate::api::data_len(&data);
            let range = block_range(inode, snapshot, offset, len)?;
            return self.data.write(range, data, Until::Committed).await;
        }
        let shard = inode.data_shard(offset, self.engine.shard_count());
        let of = Whose::Version(self.known(snapshot));
        let request = Request::DataWrite { inode, of, offset, data, fua: false };
        self.ask_unit(shard, request).await
    }
}

/// The blocks of a byte range.
pub(crate) fn block_range(
    inode: InodeNumber,
    snapshot: SnapshotId,
    offset: u64,
    len: u64,
) -> Result<BlockRange> {
    let (from, to) = crate::data::blocks_of(offset, len)?;
    Ok(BlockRange { inode, snapshot, from, to })
}
