//! Whose data is meant: which version a subvolume has now, who may write to it, and when writes wait.
//!
//! What there is of subvolumes and versions shard 0 tells when it is first needed, and whenever it changes. A snapshot
//! over several shards is of one instant because shard 0 lets writes wait on all of them ([`Request::VersionHold`])
//! before it changes what they go to.

use engine_base::{BLOCK_SIZE, ShardId, SnapshotId, SubvolumeId};

use crate::api::{KnownVersion, Reply, Request, Usage, VersionChange, Whose};
use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::gate::Pass;
use crate::key::Counter;
use crate::times::Timed;
use crate::version::CurrentVersion;

impl Context {
    /// Sees to it that the versions of the pool are known here.
    ///
    /// # Errors
    /// When shard 0 does not tell.
    pub(crate) async fn know_versions(&self) -> Result<()> {
        while !self.engine.versions.is_loaded() {
            match Box::pin(self.call(ShardId(0), Request::VersionList)).await? {
                Reply::VersionTable(table) => drop(self.engine.versions.load(&table)),
                other => return Err(other.mismatch("VersionTable")),
            }
        }
        Ok(())
    }

    /// Carries out what concerns versions on this shard.
    pub(crate) async fn handle_versions(&self, request: Request) -> Result<Reply> {
        match request {
            Request::Usage { subvolume } => self.usage(subvolume).map(Reply::Usage),
            Request::FreedByDelete { subvolume } => {
                self.freed_by_delete(subvolume).await.map(Reply::Count)
            }
            Request::VersionHold { subvolumes } => {
                self.hold(&subvolumes).await;
                Ok(Reply::Unit)
            }
            Request::VersionSet { change } => {
                self.change_versions(change).await;
                Ok(Reply::Unit)
            }
            other => Err(StoreError::invalid(format!("not about versions: {other:.40?}"))),
        }
    }

    pub(crate) fn current(&self, subvolume: SubvolumeId) -> Result<CurrentVersion> {
        let current = self.engine.versions.current(subvolume);
        current.ok_or_else(|| StoreError::not_found(format!("subvolume {subvolume} (deleted)")))
    }

    /// A version, as another shard is to be told of it.
    pub(crate) fn known(&self, id: SnapshotId) -> KnownVersion {
        KnownVersion { id, epoch: self.engine.versions.epoch() }
    }

    /// Waits until as much is known of versions here as the asker knew.
    ///
    /// # Errors
    /// `ShuttingDown`.
    pub(crate) async fn catch_up(&self, epoch: u64) -> Result<()> {
        while self.engine.versions.epoch() < epoch {
            let applied = self.background.unless_stopped(self.engine.versions.applied.notified());
            self.engine.waits.on(Timed::BlockedVersionGate, applied).await?;
        }
        Ok(())
    }

    /// The version to read.
    pub(crate) async fn to_read(&self, of: Whose) -> Result<SnapshotId> {
        let version = match of {
            Whose::Subvolume(subvolume) => self.current(subvolume)?.version,
            Whose::Version(KnownVersion { id, epoch }) => {
                self.catch_up(epoch).await?;
                id
            }
        };
        self.gate.check(version)?;
        Ok(version)
    }

    /// Leave to put keys in a version that another shard names.
    pub(crate) async fn enter_known(&self, version: KnownVersion) -> Result<Pass<'_>> {
        self.catch_up(version.epoch).await?;
        self.gate.enter(version.id)
    }

    /// Leave to write, the version to write to, and the block at which it ends.
    pub(crate) async fn to_write(&self, of: Whose) -> Result<(Pass<'_>, SnapshotId, u64)> {
        let subvolume = match of {
            Whose::Version(version) => {
                return Ok((self.enter_known(version).await?, version.id, u64::MAX));
            }
            Whose::Subvolume(subvolume) => subvolume,
        };
        while self.engine.versions.is_held(subvolume) {
            let released = self.engine.versions.released.notified();
            self.engine.waits.on(Timed::BlockedVersionGate, released).await;
        }
        if self.engine.versions.is_in_doubt(subvolume) {
            let why = format!(
                "whether subvolume {subvolume} was frozen, rolled back or deleted is known after a restart only, since \
                 shard 0 could not write; until then it is not written to"
            );
            return Err(StoreError::ShuttingDown { why });
        }
        let CurrentVersion { version, read_only, end_block, .. } = self.current(subvolume)?;
        if read_only {
            let why =
                format!("subvolume {subvolume} is a snapshot; make a clone of it to write to");
            return Err(StoreError::ReadOnly { why });
        }
        Ok((self.gate.enter(version)?, version, end_block))
    }

    /// Lets writes to these wait, and waits for those that are under way.
    async fn hold(&self, subvolumes: &[SubvolumeId]) {
        self.engine.versions.hold(subvolumes);
        for subvolume in subvolumes {
            if let Some(current) = self.engine.versions.current(*subvolume) {
                let drained = self.gate.drain(current.version);
                self.engine.waits.on(Timed::BlockedVersionGate, drained).await;
            }
        }
    }

    /// Makes a change that shard 0 tells.
    async fn change_versions(&self, mut change: VersionChange) {
        let drained = std::mem::take(&mut change.drained);
        self.hold(&drained).await;
        change.released.extend(drained);
        self.engine.versions.apply(&change);
    }

    /// Bytes that deleting a subvolume would give back on this shard.
    async fn freed_by_delete(&self, subvolume: SubvolumeId) -> Result<u64> {
        self.current(subvolume)?;
        let freed = self.engine.versions.freed_with(subvolume);
        let whole =
            freed.whole.map_or(0, |version| self.engine.counter(Counter::data_blocks(version.0)));
        let hidden = match freed.merged {
            Some((into, child)) => self.data.hidden_by(into, child).await?,
            None => 0,
        };
        Ok(bytes_of(whole.saturating_add(hidden)))
    }

    /// Data of a subvolume on this shard.
    fn usage(&self, subvolume: SubvolumeId) -> Result<Usage> {
        let version = self.current(subvolume)?.version;
        // What a version refers to counts in full, whoever else does.
        let of = |id: u32| {
            let referenced = self.engine.counter(Counter::referenced_blocks(id));
            bytes_of(self.engine.counter(Counter::data_blocks(id)).saturating_add(referenced))
        };
        let saved = |id: u32| bytes_of(self.engine.counter(Counter::saved_blocks(id)));
        let sum = |all: &mut dyn Iterator<Item = u64>| all.fold(0, u64::saturating_add);
        Ok(match self.engine.versions.view(version) {
            None => {
                Usage { own_bytes: of(version.0), shared_bytes: 0, saved_bytes: saved(version.0) }
            }
            Some(view) => {
                let own = of(view.target()).saturating_add(view.absorbing().map_or(0, of));
                let shared_bytes = sum(&mut view.above().iter().copied().map(of));
                let saved_bytes = sum(&mut view.ids().iter().copied().map(saved));
                Usage { own_bytes: own, shared_bytes, saved_bytes }
            }
        })
    }
}

/// Bytes of so many blocks. A counter on a damaged device may say anything; fsck tells that it is wrong.
fn bytes_of(blocks: u64) -> u64 {
    blocks.saturating_mul(BLOCK_SIZE)
}
