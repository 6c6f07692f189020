//! The tables of shard 0, and the operations that create, resize and delete subvolumes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use engine_base::{BLOCK_SIZE, SnapshotId, SubvolumeId};

use super::format::{PoolName, decode_subvolume, encode_subvolume, subvolume_position};
use super::names;
use super::snapshots::next_version;
use super::step::home_of;
use super::versions::{VersionTree, current_of};
use crate::api::{
    Received, Receiving, Reply, Request, SIZE_BYTES_MAX, SetOptions, SubvolumeInfo, SubvolumeKind,
    SubvolumeOptions, VersionChange, VersionNode,
};
use crate::background::Held;
use crate::context::Context;
use crate::error::{Result, StoreError};
use crate::key::{Counter, Position, Tree};
use crate::limits::LIST_ENTRIES_MAX;
use crate::lock::{Access, LockGuard, LockTable};
use crate::logged::{self, Intent, NewSubvolume, OperationId};
use crate::reached::{Branch, mark};
use crate::times::Timed;
use crate::version::version_position;

/// (collection, name); the collection of subvolumes has no name.
pub(super) type NameKey = (String, String);

/// The pool-wide tables.
pub(crate) struct Tables {
    pub(super) context: Rc<Context>,
    pub(super) subvolumes: RefCell<BTreeMap<String, SubvolumeInfo>>,
    pub(super) records: RefCell<BTreeSet<NameKey>>,
    pub(super) names: Rc<LockTable<NameKey>>,
    pub(super) versions: VersionTree,
}

pub(super) fn key_of(name: &str) -> NameKey {
    (String::new(), name.to_owned())
}

impl Tables {
    /// Loads the names.
    pub(crate) async fn open(context: &Rc<Context>) -> Result<Rc<Self>> {
        let mut transaction = context.engine.read();
        let mut subvolumes = BTreeMap::new();
        let mut from = Position::MIN;
        while let Some((position, value)) =
            transaction.next(Tree::Subvolumes, from, Position::MAX).await?
        {
            if position == subvolume_position(SubvolumeId(position.inode)) {
                let info = decode_subvolume(position.inode, &value)?;
                subvolumes.insert(info.name.clone(), info);
            }
            from = position.successor();
        }
        let mut records = BTreeSet::new();
        from = Position::MIN;
        while let Some((position, value)) =
            transaction.next(Tree::Names, from, Position::MAX).await?
        {
            if let PoolName::Record { collection, name, .. } = PoolName::decode(&value)? {
                records.insert((collection, name));
            }
            from = position.successor();
        }
        let tables = Self {
            context: Rc::clone(context),
            subvolumes: RefCell::new(subvolumes),
            records: RefCell::new(records),
            names: LockTable::new(),
            versions: VersionTree::load(&context.engine).await?,
        };
        context.engine.versions.load(&tables.version_table());
        Ok(Rc::new(tables))
    }

    /// Carries out a request about subvolumes or records.
    pub(crate) async fn handle(self: &Rc<Self>, request: Request) -> Result<Reply> {
        let subvolume = |info| Reply::Subvolume(Box::new(info));
        match request {
            Request::SubvolumeCreate { name, kind, size_bytes, block_size, options } => {
                let _lock = self.lock_name(&name).await?;
                let shape = Shape { kind, size_bytes, block_size };
                self.create(name, shape, options, None).await.map(subvolume)
            }
            Request::SubvolumeSet { name, set } => {
                self.set_options(&name, set).await.map(subvolume)
            }
            Request::SubvolumeGet { name } => self.get(&name).map(subvolume),
            Request::SubvolumeList { after, limit } => {
                self.list(after, limit).map(Reply::Subvolumes)
            }
            Request::SubvolumeDelete { name } => self.delete(&name).await.map(|()| Reply::Unit),
            Request::SnapshotCreate { snapshots } => {
                self.snapshot(snapshots).await.map(Reply::Subvolumes)
            }
            Request::SubvolumeRollback { name, snapshot } => {
                self.rollback(&name, &snapshot).await.map(subvolume)
            }
            Request::Receive(request) => self.receive(request).await,
            Request::VersionList => Ok(Reply::VersionTable(Box::new(self.version_table()))),
            Request::VolumeResize { name, size_bytes } => {
                self.resize(&name, size_bytes).await.map(subvolume)
            }
            Request::RecordPut { collection, name, bytes, mode } => {
                self.record_put(collection, name, bytes, mode).await.map(|()| Reply::Unit)
            }
            Request::RecordList { collection } => {
                self.record_list(&collection).await.map(Reply::Records)
            }
            Request::RecordDelete { collection, name } => {
                self.record_delete(collection, name).await.map(|()| Reply::Unit)
            }
            other => Err(StoreError::invalid(format!("not about subvolumes: {other:.40?}"))),
        }
    }

    /// Takes up the operations that were interrupted: their names are locked before this returns, the
    /// work goes on in the background.
    pub(crate) async fn resume(self: &Rc<Self>) -> Result<()> {
        for (operation, intent) in logged::pending(&self.context.engine).await? {
            mark(match &intent {
                Intent::Create(_) => Branch::ResumeCreate,
                Intent::Resize { .. } => Branch::ResumeResize,
                // Of files; the namespace takes these up.
                Intent::Truncate { .. } | Intent::Remove { .. } => continue,
            });
            let lock = match &intent {
                Intent::Create(NewSubvolume { name, .. }) | Intent::Resize { name, .. } => {
                    Some(self.names.lock(key_of(name), Access::Exclusive).await)
                }
                _ => None,
            };
            self.carry_out(operation, intent, lock);
        }
        self.mark_duties();
        self.tidy();
        Ok(())
    }

    /// Locks a record.
    pub(super) async fn lock_record(&self, key: NameKey) -> LockGuard<NameKey> {
        let lock = self.names.lock(key, Access::Exclusive);
        self.context.engine.waits.on(Timed::BlockedNameLock, lock).await
    }

    /// # Errors
    /// That of background work which holds the name and makes no progress.
    pub(super) async fn lock_name(&self, name: &str) -> Result<LockGuard<NameKey>> {
        let waits = &self.context.engine.waits;
        let lock = self.names.lock(key_of(name), Access::Exclusive);
        let lock = waits.on(Timed::BlockedNameLock, lock);
        let held = [Held::Subvolume(name.to_owned())];
        self.context.background.unless_stalled(&held, lock).await
    }

    /// Works on an intent in the background until it is done, holding `lock`.
    fn carry_out(
        self: &Rc<Self>,
        operation: OperationId,
        intent: Intent,
        lock: Option<LockGuard<NameKey>>,
    ) {
        let tables = Rc::clone(self);
        let work = async move {
            let background = &tables.context.background;
            let held = match (&lock, &intent) {
                (Some(_), Intent::Create(NewSubvolume { name, .. }))
                | (Some(_), Intent::Resize { name, .. }) => Held::Subvolume(name.clone()),
                _ => Held::Nothing,
            };
            background.repeat(held, async || tables.steps(operation, &intent).await).await;
            drop(lock);
        };
        self.context.background.spawn("subvolume operation", Box::pin(work));
    }

    /// All steps of an intent, then its removal.
    async fn steps(&self, operation: OperationId, intent: &Intent) -> Result<()> {
        let context = &self.context;
        match intent {
            Intent::Create(new) => return self.finish_create(operation, new).await.map(drop),
            Intent::Resize { subvolume, inode, size_bytes, .. } => {
                let request = Request::VolumeSize {
                    subvolume: *subvolume,
                    inode: *inode,
                    size_bytes: *size_bytes,
                };
                context.step_each(context.shards(), &request).await?;
            }
            Intent::Truncate { .. } | Intent::Remove { .. } => {
                return Err(StoreError::invalid("not an operation on a subvolume"));
            }
        }
        context
            .engine
            .transact(async |transaction| {
                logged::remove(transaction, operation);
                Ok(())
            })
            .await
    }

    /// All subvolumes, by name.
    pub(crate) fn all(&self) -> Vec<SubvolumeInfo> {
        self.subvolumes.borrow().values().cloned().collect()
    }

    pub(super) fn get(&self, name: &str) -> Result<SubvolumeInfo> {
        let found = self.subvolumes.borrow().get(name).cloned();
        found.ok_or_else(|| StoreError::not_found(format!("subvolume {name:?}")))
    }

    fn list(&self, after: String, limit: u32) -> Result<Vec<SubvolumeInfo>> {
        if !(1..=LIST_ENTRIES_MAX).contains(&limit) {
            return Err(StoreError::invalid(format!("limit {limit}: 1 to {LIST_ENTRIES_MAX}")));
        }
        let subvolumes = self.subvolumes.borrow();
        let rest = subvolumes.range((Bound::Excluded(after), Bound::Unbounded));
        Ok(rest.take(limit as usize).map(|(_, info)| info.clone()).collect())
    }

    /// Creates a subvolume, whose name is locked; `source`: to be received from that snapshot.
    pub(super) async fn create(
        self: &Rc<Self>,
        name: String,
        Shape { kind, size_bytes, block_size }: Shape,
        options: SubvolumeOptions,
        source: Option<[u8; 16]>,
    ) -> Result<SubvolumeInfo> {
        names::check_subvolume_name(&name)?;
        check_shape(kind, size_bytes, block_size)?;
        options.check()?;
        let context = &self.context;
        if self.subvolumes.borrow().contains_key(&name) {
            return Err(StoreError::AlreadyExists { what: format!("subvolume {name:?}") });
        }
        let most = context.limits.subvolumes_max;
        if self.subvolumes.borrow().len() >= most {
            return Err(StoreError::Overloaded { what: format!("subvolumes: {most} at most") });
        }
        let _reservation = context.engine.reserve(0).await?;
        let runtime = context.engine.runtime();
        let new = NewSubvolume {
            id: SubvolumeId(0),
            snapshot: SnapshotId(0),
            name,
            kind,
            size_bytes,
            block_size,
            created_ns: runtime.wall_clock_ns(),
            uuid: uuid_v4(runtime.random_u64(), runtime.random_u64()),
            options,
            source,
        };
        let (operation, new) = context
            .engine
            .transact(async |transaction| {
                let mut new = new.clone();
                new.id = SubvolumeId(transaction.take(Counter::NEXT_SUBVOLUME)?);
                new.snapshot = next_version(transaction)?;
                let operation = logged::put(transaction, &Intent::Create(new.clone()))?;
                Ok((operation, new))
            })
            .await?;
        // The ids are durable before another shard uses them: they must never be given twice.
        context.engine.flush().await?;
        match self.finish_create(operation, &new).await {
            Ok(info) => Ok(info),
            Err(error) => {
                self.give_up_create(operation, &new).await?;
                Err(error)
            }
        }
    }

    /// Creates the root, then makes the subvolume visible.
    async fn finish_create(
        &self,
        operation: OperationId,
        new: &NewSubvolume,
    ) -> Result<SubvolumeInfo> {
        let context = &self.context;
        let request = Request::RootCreate {
            subvolume: new.id,
            snapshot: new.snapshot,
            kind: new.kind,
            size_bytes: new.size_bytes,
        };
        let home = home_of(new.id, context.engine.shard_count());
        let root = match context.call(home, request).await? {
            Reply::Inode(root) => root,
            other => return Err(other.mismatch("Inode")),
        };
        let info = SubvolumeInfo {
            id: new.id,
            name: new.name.clone(),
            kind: new.kind,
            root,
            snapshot: new.snapshot,
            read_only: false,
            origin: None,
            size_bytes: new.size_bytes,
            block_size: new.block_size,
            used_bytes: 0,
            created_ns: new.created_ns,
            uuid: new.uuid,
            options: new.options,
            received: new.source.map(|source| {
                let receiving = Some(Receiving::default());
                Received { source, receiving }
            }),
        };
        let name = PoolName::Subvolume { name: new.name.clone(), id: new.id };
        let node = VersionNode { parent: None, absorbs: None };
        let _versions = self.lock_versions().await;
        context
            .engine
            .transact(async |transaction| {
                let position = subvolume_position(info.id);
                transaction.put(Tree::Subvolumes, position, encode_subvolume(&info));
                transaction.put(Tree::Versions, version_position(info.snapshot), node.encode());
                names::put(transaction, &name).await?;
                logged::remove(transaction, operation);
                Ok(())
            })
            .await?;
        let nodes = vec![(info.snapshot, Some(node))];
        self.note_nodes(&nodes);
        self.subvolumes.borrow_mut().insert(info.name.clone(), info.clone());
        context.engine.flush().await?;
        let subvolumes = vec![(info.id, Some(current_of(&info)))];
        self.announce(VersionChange { nodes, subvolumes, ..VersionChange::default() }).await?;
        Ok(info)
    }

    /// The root could not be created: the version becomes one that nobody has, which goes in the background. The
    /// name is free meanwhile.
    async fn give_up_create(
        self: &Rc<Self>,
        operation: OperationId,
        new: &NewSubvolume,
    ) -> Result<()> {
        if self.subvolumes.borrow().contains_key(&new.name) {
            // Visible and committed, only the flush failed: the engine has stopped, and its
            // recovery decides.
            return Ok(());
        }
        let _versions = self.lock_versions().await;
        let node = VersionNode { parent: None, absorbs: None };
        self.context
            .engine
            .transact(async |transaction| {
                let position = version_position(new.snapshot);
                transaction.put(Tree::Versions, position, node.encode());
                logged::remove(transaction, operation);
                Ok(())
            })
            .await?;
        let nodes = vec![(new.snapshot, Some(node))];
        self.note_nodes(&nodes);
        self.context.engine.flush().await?;
        let told = self.announce(VersionChange { nodes, ..VersionChange::default() }).await;
        self.tidy();
        told
    }

    /// Its version goes in the background, if nobody else sees it: see [`Tables::tidy`].
    async fn delete(self: &Rc<Self>, name: &str) -> Result<()> {
        let _lock = self.lock_name(name).await?;
        let _versions = self.lock_versions().await;
        let info = self.get(name)?;
        self.context
            .engine
            .transact(async |transaction| {
                transaction.delete(Tree::Subvolumes, subvolume_position(info.id));
                names::delete(transaction, "", name).await
            })
            .await?;
        self.subvolumes.borrow_mut().remove(name);
        // Durable here before anything is dropped elsewhere.
        if let Err(error) = self.context.engine.flush().await {
            let in_doubt = vec![info.id];
            self.announce(VersionChange { in_doubt, ..VersionChange::default() }).await?;
            return Err(error);
        }
        let subvolumes = vec![(info.id, None)];
        let told = self.announce(VersionChange { subvolumes, ..VersionChange::default() }).await;
        self.tidy();
        told
    }

    /// What is written after the answer is stored so, on all shards.
    async fn set_options(&self, name: &str, set: SetOptions) -> Result<SubvolumeInfo> {
        let _lock = self.lock_name(name).await?;
        let _versions = self.lock_versions().await;
        let mut info = self.get(name)?;
        if info.read_only {
            return Err(StoreError::ReadOnly { why: format!("{name:?} is a snapshot") });
        }
        info.options = set.apply(info.options);
        info.options.check()?;
        let _reservation = self.context.engine.reserve(0).await?;
        self.context
            .engine
            .transact(async |transaction| {
                let position = subvolume_position(info.id);
                transaction.put(Tree::Subvolumes, position, encode_subvolume(&info));
                Ok(())
            })
            .await?;
        self.subvolumes.borrow_mut().insert(name.to_owned(), info.clone());
        self.context.engine.flush().await?;
        let subvolumes = vec![(info.id, Some(current_of(&info)))];
        self.announce(VersionChange { subvolumes, ..VersionChange::default() }).await?;
        Ok(info)
    }

    async fn resize(self: &Rc<Self>, name: &str, size_bytes: u64) -> Result<SubvolumeInfo> {
        let lock = self.lock_name(name).await?;
        let versions = self.lock_versions().await;
        let mut info = self.get(name)?;
        if info.kind != SubvolumeKind::Volume {
            return Err(StoreError::invalid(format!("subvolume {name:?} is not a volume")));
        }
        if info.read_only {
            return Err(StoreError::ReadOnly { why: format!("{name:?} is a snapshot") });
        }
        check_shape(info.kind, size_bytes, info.block_size)?;
        if info.size_bytes == size_bytes {
            return Ok(info);
        }
        info.size_bytes = size_bytes;
        let intent = Intent::Resize {
            subvolume: info.id,
            name: name.to_owned(),
            inode: info.root,
            size_bytes,
        };
        let _reservation = self.context.engine.reserve(0).await?;
        let operation = self
            .context
            .engine
            .transact(async |transaction| {
                let position = subvolume_position(info.id);
                transaction.put(Tree::Subvolumes, position, encode_subvolume(&info));
                logged::put(transaction, &intent)
            })
            .await?;
        self.subvolumes.borrow_mut().insert(name.to_owned(), info.clone());
        drop(versions);
        self.context.engine.flush().await?;
        if self.steps(operation, &intent).await.is_err() {
            // Decided and durable; another shard does not answer now, so it is done later.
            self.carry_out(operation, intent, Some(lock));
        }
        Ok(info)
    }
}

/// What a subvolume is.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) kind: SubvolumeKind,
    pub(super) size_bytes: u64,
    pub(super) block_size: u32,
}

fn check_shape(kind: SubvolumeKind, size_bytes: u64, block_size: u32) -> Result<()> {
    match kind {
        SubvolumeKind::Volume => {
            if block_size != 512 && block_size != 4096 {
                return Err(StoreError::invalid(format!("block size {block_size}: 512 or 4096")));
            }
            if size_bytes == 0
                || !size_bytes.is_multiple_of(BLOCK_SIZE)
                || size_bytes > SIZE_BYTES_MAX
            {
                return Err(StoreError::invalid(format!(
                    "volume size {size_bytes}: a multiple of {BLOCK_SIZE}, 1 to {SIZE_BYTES_MAX}"
                )));
            }
            Ok(())
        }
        SubvolumeKind::FileTree if size_bytes == 0 && block_size == 0 => Ok(()),
        SubvolumeKind::FileTree => {
            Err(StoreError::invalid("a file tree has neither size nor block size"))
        }
    }
}

/// RFC 9562, section 5.4.
pub(super) fn uuid_v4(high: u64, low: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&high.to_le_bytes());
    bytes[8..].copy_from_slice(&low.to_le_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}
