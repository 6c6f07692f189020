//! A pool in memory that answers the engine's vocabulary: the simplest thing that behaves as the
//! engine's interface says, for tests of what stands on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine_base::{InodeNumber, ShardId, SnapshotId, SubvolumeId};
use engine_memory::Buffer;
use engine_store::api::{
    Attributes, ChangeKind, ChangedPath, ChangedRange, CopyStats, CreateAttributes, Data,
    DirectoryEntry, FileKind, FsckReport, Link, PutMode, ReceiveRequest, Received, Receiving,
    RenameMode, Reply, Request, ResizeJob, ResizePhase, ResizeRequest, ResizeStatus, ScrubRequest,
    ScrubState, ScrubStatus, SetAttributes, ShardStatus, SubvolumeInfo, SubvolumeKind,
    TreeDiffCursor, Usage, Verify,
};
use engine_store::damage::DamageEntry;
use engine_store::{Result, StoreError};
use futures::future::BoxFuture;
use tokio::sync::watch;

const BLOCK: u64 = 4096;
const SHARDS: u16 = 2;

#[derive(Clone)]
struct Node {
    attributes: Attributes,
    entries: BTreeMap<Vec<u8>, (InodeNumber, u64)>,
    blocks: BTreeMap<u64, Vec<u8>>,
    target: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    parent: InodeNumber,
}

#[derive(Default)]
struct State {
    subvolumes: BTreeMap<String, SubvolumeInfo>,
    /// Of volumes that are received, by inode and offset.
    volumes: BTreeMap<(InodeNumber, u64), Vec<u8>>,
    nodes: BTreeMap<InodeNumber, Node>,
    next: u64,
    fail: Option<StoreError>,
    syncs: usize,
    job: Option<ResizeJob>,
    scrub: ScrubStatus,
}

/// What tests see and steer beside the requests.
pub struct Controls {
    state: Mutex<State>,
    clock: AtomicI64,
    data_in_flight: AtomicUsize,
    data_in_flight_max: AtomicUsize,
    data_requests: AtomicUsize,
    held: watch::Sender<bool>,
}

/// The fake pool.
#[derive(Clone)]
pub struct Fake(Arc<Controls>);

impl Fake {
    pub fn new() -> Self {
        Self(Arc::new(Controls {
            state: Mutex::default(),
            clock: AtomicI64::new(1_700_000_000_000_000_000),
            data_in_flight: AtomicUsize::new(0),
            data_in_flight_max: AtomicUsize::new(0),
            data_requests: AtomicUsize::new(0),
            held: watch::Sender::new(false),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request that works on files fails with this.
    pub fn fail_next(&self, error: StoreError) {
        self.state().fail = Some(error);
    }

    /// Holds reads and writes of data until released.
    pub fn hold_data(&self, hold: bool) {
        self.0.held.send_replace(hold);
    }

    /// Waits until `count` reads or writes of data are in flight.
    pub async fn until_in_flight(&self, count: usize) {
        while self.0.data_in_flight.load(Ordering::SeqCst) != count {
            tokio::task::yield_now().await;
        }
    }

    pub fn data_in_flight_max(&self) -> usize {
        self.0.data_in_flight_max.load(Ordering::SeqCst)
    }

    pub fn data_requests(&self) -> usize {
        self.0.data_requests.load(Ordering::SeqCst)
    }

    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    fn now(&self) -> i64 {
        self.0.clock.fetch_add(1, Ordering::SeqCst)
    }
}

impl Link for Fake {
    type Call = BoxFuture<'static, Result<Reply>>;

    fn shard_count(&self) -> u16 {
        SHARDS
    }

    fn call(&self, shard: ShardId, request: Request) -> Self::Call {
        let fake = self.clone();
        Box::pin(async move {
            let data = matches!(request, Request::FileRead { .. } | Request::FileWrite { .. });
            let _in_flight = data.then(|| InFlight::new(fake.clone()));
            if data {
                let mut held = fake.0.held.subscribe();
                let _ = held.wait_for(|held| !*held).await;
            }
            tokio::task::yield_now().await;
            fake.answer(shard, request)
        })
    }
}

struct InFlight(Fake);

impl InFlight {
    fn new(fake: Fake) -> Self {
        let now = fake.0.data_in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        fake.0.data_in_flight_max.fetch_max(now, Ordering::SeqCst);
        fake.0.data_requests.fetch_add(1, Ordering::SeqCst);
        Self(fake)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.data_in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

fn missing(what: &str) -> StoreError {
    StoreError::not_found(what)
}

impl State {
    fn node(&mut self, inode: InodeNumber) -> Result<&mut Node> {
        self.nodes.get_mut(&inode).ok_or_else(|| missing("inode"))
    }

    fn directory(&mut self, inode: InodeNumber) -> Result<&mut Node> {
        let node = self.node(inode)?;
        match node.attributes.kind {
            FileKind::Directory => Ok(node),
            _ => Err(StoreError::NotDirectory { what: format!("inode {inode}") }),
        }
    }

    fn child(&mut self, directory: InodeNumber, name: &[u8]) -> Result<InodeNumber> {
        let directory = self.directory(directory)?;
        directory.entries.get(name).map(|entry| entry.0).ok_or_else(|| missing("name"))
    }

    fn new_node(&mut self, kind: FileKind, create: CreateAttributes, now: i64) -> InodeNumber {
        self.next += 1;
        // Shard 0 is the home of everything.
        let inode = InodeNumber(self.next * u64::from(SHARDS));
        let attributes = Attributes {
            inode,
            kind,
            mode: create.mode,
            uid: create.uid,
            gid: create.gid,
            links: if kind == FileKind::Directory { 2 } else { 1 },
            size: 0,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
            btime_ns: now,
        };
        let node = Node {
            attributes,
            entries: BTreeMap::new(),
            blocks: BTreeMap::new(),
            target: Vec::new(),
            xattrs: BTreeMap::new(),
            parent: inode,
        };
        self.nodes.insert(inode, node);
        inode
    }

    fn enter(&mut self, directory: InodeNumber, name: &[u8], inode: InodeNumber) -> Result<()> {
        self.next += 1;
        let cookie = self.next;
        self.directory(directory)?.entries.insert(name.to_vec(), (inode, cookie));
        self.count(directory)?;
        self.node(inode)?.parent = directory;
        Ok(())
    }

    fn leave(&mut self, directory: InodeNumber, name: &[u8]) -> Result<()> {
        self.directory(directory)?.entries.remove(name);
        self.count(directory)
    }

    fn count(&mut self, directory: InodeNumber) -> Result<()> {
        let directory = self.directory(directory)?;
        directory.attributes.size = directory.entries.len() as u64;
        Ok(())
    }

    fn drop_link(&mut self, inode: InodeNumber) -> Result<()> {
        let node = self.node(inode)?;
        node.attributes.links -= 1;
        let least = if node.attributes.kind == FileKind::Directory { 1 } else { 0 };
        if node.attributes.links <= least {
            self.nodes.remove(&inode);
        }
        Ok(())
    }

    fn create(
        &mut self,
        directory: InodeNumber,
        name: &[u8],
        kind: FileKind,
        create: CreateAttributes,
        now: i64,
    ) -> Result<&mut Node> {
        if self.directory(directory)?.entries.contains_key(name) {
            return Err(StoreError::AlreadyExists { what: "name".to_owned() });
        }
        let inode = self.new_node(kind, create, now);
        self.enter(directory, name, inode)?;
        self.node(inode)
    }

    fn remove(&mut self, directory: InodeNumber, name: &[u8], rmdir: bool) -> Result<()> {
        let inode = self.child(directory, name)?;
        let node = self.node(inode)?;
        match (node.attributes.kind, rmdir) {
            (FileKind::Directory, false) => {
                return Err(StoreError::IsDirectory { what: "name".to_owned() });
            }
            (FileKind::Directory, true) if !node.entries.is_empty() => {
                return Err(StoreError::NotEmpty { what: "name".to_owned() });
            }
            (FileKind::File | FileKind::Symlink, true) => {
                return Err(StoreError::NotDirectory { what: "name".to_owned() });
            }
            _ => {}
        }
        self.leave(directory, name)?;
        self.drop_link(inode)
    }

    fn rename(
        &mut self,
        from: (InodeNumber, &[u8]),
        to: (InodeNumber, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        let moved = self.child(from.0, from.1)?;
        let there = self.child(to.0, to.1).ok();
        let mut above = to.0;
        loop {
            if above == moved {
                return Err(StoreError::invalid("a directory cannot move below itself"));
            }
            let parent = self.node(above)?.parent;
            if parent == above {
                break;
            }
            above = parent;
        }
        match (mode, there) {
            (RenameMode::NoReplace, Some(_)) => {
                return Err(StoreError::AlreadyExists { what: "destination".to_owned() });
            }
            (RenameMode::Exchange, None) => return Err(missing("destination")),
            (RenameMode::Exchange, Some(other)) => {
                self.enter(from.0, from.1, other)?;
                return self.enter(to.0, to.1, moved);
            }
            (RenameMode::Replace, Some(other)) if other != moved => {
                let kind = self.node(moved)?.attributes.kind;
                self.remove(to.0, to.1, kind == FileKind::Directory)?;
            }
            _ => {}
        }
        self.leave(from.0, from.1)?;
        self.enter(to.0, to.1, moved)
    }

    fn read(&mut self, inode: InodeNumber, offset: u64, len: u32) -> Result<Data> {
        let node = self.node(inode)?;
        let end = (offset + u64::from(len)).min(node.attributes.size);
        let mut data = Data::new();
        // In pieces of up to 512 KiB, as the engine may.
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(512 << 10);
            let mut buffer = Buffer::try_new(piece as usize)?;
            let mut done = 0;
            while done < piece {
                let position = at + done;
                let within = (position % BLOCK) as usize;
                let take = (BLOCK - within as u64).min(piece - done) as usize;
                if let Some(block) = node.blocks.get(&(position / BLOCK)) {
                    let from = &block[within..within + take];
                    buffer[done as usize..done as usize + take].copy_from_slice(from);
                }
                done += take as u64;
            }
            data.push(buffer.freeze());
            at += piece;
        }
        Ok(data)
    }

    fn write(&mut self, inode: InodeNumber, offset: u64, data: &Data) -> Result<()> {
        let node = self.node(inode)?;
        let mut at = offset;
        for piece in data {
            let mut rest: &[u8] = piece;
            while !rest.is_empty() {
                let block =
                    node.blocks.entry(at / BLOCK).or_insert_with(|| vec![0; BLOCK as usize]);
                let within = (at % BLOCK) as usize;
                let take = rest.len().min(block.len() - within);
                block[within..within + take].copy_from_slice(&rest[..take]);
                rest = &rest[take..];
                at += take as u64;
            }
        }
        node.attributes.size = node.attributes.size.max(at);
        Ok(())
    }

    /// Zeroes `start .. end`, dropping whole blocks.
    fn punch(&mut self, inode: InodeNumber, start: u64, end: u64) -> Result<()> {
        let node = self.node(inode)?;
        let touched: Vec<u64> =
            node.blocks.range(start / BLOCK..end.div_ceil(BLOCK)).map(|b| *b.0).collect();
        for index in touched {
            let first = index * BLOCK;
            if start <= first && first + BLOCK <= end {
                node.blocks.remove(&index);
            } else if let Some(block) = node.blocks.get_mut(&index) {
                let from = start.saturating_sub(first) as usize;
                let to = (end - first).min(BLOCK) as usize;
                block[from..to].fill(0);
            }
        }
        Ok(())
    }

    fn set(&mut self, inode: InodeNumber, set: &SetAttributes, now: i64) -> Result<Attributes> {
        if let Some(size) = set.size {
            let old = self.node(inode)?.attributes.size;
            if size < old {
                self.punch(inode, size, old.next_multiple_of(BLOCK))?;
            }
        }
        let attributes = &mut self.node(inode)?.attributes;
        if let Some(size) = set.size {
            attributes.size = size;
            attributes.mtime_ns = now;
        }
        attributes.mode = set.mode.unwrap_or(attributes.mode);
        attributes.uid = set.uid.unwrap_or(attributes.uid);
        attributes.gid = set.gid.unwrap_or(attributes.gid);
        attributes.atime_ns = set.atime_ns.unwrap_or(attributes.atime_ns);
        attributes.mtime_ns = set.mtime_ns.unwrap_or(attributes.mtime_ns);
        attributes.ctime_ns = now;
        Ok(attributes.clone())
    }

    fn list(
        &mut self,
        directory: InodeNumber,
        cookie: u64,
        limit: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        let mut entries: Vec<_> = self
            .directory(directory)?
            .entries
            .iter()
            .filter(|(_, entry)| entry.1 > cookie)
            .map(|(name, entry)| (entry.1, name.clone(), entry.0))
            .collect();
        entries.sort();
        entries.truncate(limit as usize);
        entries
            .into_iter()
            .map(|(cookie, name, inode)| {
                let attributes = self.node(inode)?.attributes.clone();
                Ok(DirectoryEntry { name, attributes, cookie })
            })
            .collect()
    }
}

/// Growing is done at once, shrinking goes on until it is given up.
fn resize(state: &mut State, request: &ResizeRequest) -> Result<Reply> {
    const SIZE: u64 = 3 << 30;
    match *request {
        ResizeRequest::Start { size_bytes: Some(to_bytes), .. } if to_bytes < 1 << 30 => {
            return Err(StoreError::invalid("1 GiB is the smallest size possible now"));
        }
        ResizeRequest::Start { member, size_bytes } => {
            let to_bytes = size_bytes.unwrap_or(4 << 30);
            let (phase, left_bytes) = match to_bytes < SIZE {
                true => (ResizePhase::Running, 4096),
                false => (ResizePhase::Done, 0),
            };
            let (from_bytes, why) = (SIZE, String::new());
            state.job = Some(ResizeJob { member, from_bytes, to_bytes, phase, left_bytes, why });
        }
        ResizeRequest::Cancel => match &mut state.job {
            Some(job) if job.phase == ResizePhase::Running => job.phase = ResizePhase::Cancelled,
            _ => return Err(StoreError::NotFound { what: "a member being shrunk".to_owned() }),
        },
        _ => {}
    }
    let status = ResizeStatus { members: Vec::new(), job: state.job.clone() };
    Ok(Reply::Resize(Box::new(status)))
}

/// Of one shard; the others say the same.
fn scrub(state: &mut State, request: ScrubRequest) -> Reply {
    let now = match request {
        ScrubRequest::Start { bytes_per_second } => ScrubStatus {
            state: ScrubState::Running,
            began_ns: 5,
            bytes_per_second,
            total_bytes: 4096,
            done_bytes: 1024,
            ..ScrubStatus::default()
        },
        ScrubRequest::Status => state.scrub.clone(),
        ScrubRequest::Pause => ScrubStatus { state: ScrubState::Paused, ..state.scrub.clone() },
        ScrubRequest::Resume => ScrubStatus { state: ScrubState::Running, ..state.scrub.clone() },
        ScrubRequest::Cancel => ScrubStatus {
            state: ScrubState::Cancelled,
            ended_ns: 9,
            problems: 1,
            last_problem: Some("a block".to_owned()),
            ..state.scrub.clone()
        },
    };
    state.scrub = now.clone();
    Reply::Scrub(Box::new(now))
}

fn attributes(node: &Node) -> Reply {
    Reply::Attributes(Box::new(node.attributes.clone()))
}

impl Fake {
    fn answer(&self, shard: ShardId, request: Request) -> Result<Reply> {
        let now = self.now();
        let mut state = self.state();
        match request {
            Request::Flush => Ok(Reply::Unit),
            Request::Status => Ok(Reply::Status(Box::new(status(shard, &state)))),
            Request::Fsck { verify } => {
                let blocks = match verify {
                    Verify::Nothing => 0,
                    Verify::Resume => 3,
                    Verify::All => 7,
                };
                let report = FsckReport {
                    checked: vec![("keys", 3), ("blocks", blocks)],
                    notes: vec!["a copy was mended".to_owned()],
                    ..FsckReport::default()
                };
                Ok(Reply::Fsck(Box::new(report)))
            }
            Request::Resize(request) => resize(&mut state, &request),
            Request::Scrub(request) => Ok(scrub(&mut state, request)),
            Request::Usage { .. } => {
                Ok(Reply::Usage(Usage { own_bytes: 4096, shared_bytes: 0, saved_bytes: 8192 }))
            }
            Request::TreeDiff { from, .. } => {
                let next = TreeDiffCursor { inode: 7, place: 99 };
                let (path, next) = if from == next { (b"/b", None) } else { (b"/a", Some(next)) };
                let (kind, inode) = (ChangeKind::Added, InodeNumber(8));
                let path = path.to_vec();
                let change = ChangedPath {
                    kind,
                    path,
                    inode,
                    file_kind: FileKind::File,
                    directory: None,
                    in_base: None,
                    directory_in_base: None,
                };
                Ok(Reply::ChangedPaths(vec![change], next))
            }
            Request::FreedByDelete { .. } => Ok(Reply::Count(4096)),
            Request::DataDiff { .. } => {
                let range = ChangedRange { offset: 4096, len: 8192, has_data: true };
                let ranges = if shard == ShardId(0) { vec![range] } else { vec![] };
                Ok(Reply::Changed(ranges, None))
            }
            Request::Repair { owners } => {
                let count = u64::from(!owners);
                let notes = vec!["a link count".to_owned(); usize::from(!owners)];
                let checked = vec![("repairs", count)];
                Ok(Reply::Fsck(Box::new(FsckReport { checked, notes, ..FsckReport::default() })))
            }
            Request::DamageList { .. } => Ok(Reply::Damage(match shard {
                ShardId(0) => vec![DamageEntry {
                    inode: InodeNumber(9),
                    snapshot: SnapshotId(77),
                    offset: 4096,
                    len: 8192,
                    found_ns: 5,
                    what: "data at byte 12288 of /dev/one".to_owned(),
                }],
                _ => Vec::new(),
            })),
            Request::DamageClear { inode } => {
                Ok(Reply::Count(u64::from(inode.is_none_or(|inode| inode.0 == 9))))
            }
            Request::InodePaths { inodes } => {
                Ok(Reply::Paths(inodes.iter().map(|_| Some(b"/a".to_vec())).collect()))
            }
            Request::SubvolumeCreate { .. }
            | Request::SubvolumeSet { .. }
            | Request::SubvolumeGet { .. }
            | Request::SubvolumeList { .. }
            | Request::SubvolumeDelete { .. }
            | Request::SnapshotCreate { .. }
            | Request::SubvolumeRollback { .. }
            | Request::VolumeResize { .. } => subvolume(&mut state, request, now),
            Request::Receive(_) | Request::DataRead { .. } | Request::DataWrite { .. } => {
                receive(&mut state, request, now)
            }
            other => match state.fail.take() {
                Some(error) => Err(error),
                None => file(&mut state, other, now),
            },
        }
    }
}

/// What volumes hold that were not received.
pub fn stamp(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(|at| (at / BLOCK + 1) as u8).collect()
}

fn receive(state: &mut State, request: Request, now: i64) -> Result<Reply> {
    let missing = |name: &str| StoreError::not_found(format!("subvolume {name}"));
    match request {
        Request::DataRead { inode, offset, len, .. } => {
            let kept = state.volumes.get(&(inode, offset)).cloned();
            let bytes = kept.unwrap_or_else(|| stamp(offset, u64::from(len)));
            Ok(Reply::Data(Data::from_iter([Buffer::try_copy_of(&bytes)?.freeze()])))
        }
        Request::DataWrite { inode, offset, data, .. } => {
            let bytes = data.iter().flat_map(|piece| piece.to_vec()).collect();
            state.volumes.insert((inode, offset), bytes);
            Ok(Reply::Unit)
        }
        Request::Receive(ReceiveRequest::Begin(new)) => {
            let receiving = Receiving { base: new.base.map(|(uuid, _)| uuid), position: 0 };
            let received = Some(Received { source: new.source, receiving: Some(receiving) });
            if let Some(there) = state.subvolumes.get(&new.name) {
                let same = there.received.map(|there| there.source) == Some(new.source);
                return match (there.receiving(), same) {
                    (Some(_), true) => Ok(Reply::Subvolume(Box::new(there.clone()))),
                    (Some(_), false) => Err(StoreError::invalid("another is being received")),
                    (None, _) => Err(StoreError::AlreadyExists { what: new.name }),
                };
            }
            let (name, kind, options) = (new.name.clone(), new.kind, new.options);
            let (size_bytes, block_size) = (new.size_bytes, new.block_size);
            let create = Request::SubvolumeCreate { name, kind, size_bytes, block_size, options };
            subvolume(state, create, now)?;
            let info = state.subvolumes.get_mut(&new.name).ok_or_else(|| missing(&new.name))?;
            info.received = received;
            Ok(Reply::Subvolume(Box::new(info.clone())))
        }
        Request::Receive(ReceiveRequest::Note { name, position }) => {
            let info = state.subvolumes.get_mut(&name).ok_or_else(|| missing(&name))?;
            let receiving = info.received.as_mut().and_then(|received| received.receiving.as_mut());
            receiving.ok_or_else(|| missing(&name))?.position = position;
            Ok(Reply::Unit)
        }
        Request::Receive(ReceiveRequest::End { name }) => {
            let info = state.subvolumes.get_mut(&name).ok_or_else(|| missing(&name))?;
            info.read_only = true;
            let received = info.received.as_mut().ok_or_else(|| missing(&name))?;
            received.receiving = None;
            Ok(Reply::Subvolume(Box::new(info.clone())))
        }
        other => Err(StoreError::invalid(format!("{other:.40?}"))),
    }
}

fn status(shard: ShardId, state: &State) -> ShardStatus {
    ShardStatus {
        shard,
        capacity_bytes: 1 << 30,
        data_bytes: 4096,
        available_bytes: 1 << 29,
        unassigned_bytes: if shard.0 == 0 { 1 << 28 } else { 0 },
        inodes: state.nodes.len() as u64,
        counters: vec![("journal_entries", 11), ("restarts", 0)],
        ..ShardStatus::default()
    }
}

fn subvolume(state: &mut State, request: Request, now: i64) -> Result<Reply> {
    match request {
        Request::SubvolumeSet { name, set } => {
            let info = state.subvolumes.get_mut(&name);
            let info = info.ok_or_else(|| StoreError::not_found(format!("subvolume {name}")))?;
            if info.read_only {
                return Err(StoreError::ReadOnly { why: format!("{name} is a snapshot") });
            }
            info.options = set.apply(info.options);
            Ok(Reply::Subvolume(Box::new(info.clone())))
        }
        Request::SubvolumeCreate { name, kind, size_bytes, block_size, options } => {
            if state.subvolumes.contains_key(&name) {
                return Err(StoreError::AlreadyExists { what: format!("subvolume {name}") });
            }
            let root = match kind {
                SubvolumeKind::FileTree => FileKind::Directory,
                SubvolumeKind::Volume => FileKind::File,
            };
            let create = CreateAttributes { mode: 0o755, uid: 0, gid: 0 };
            let root = state.new_node(root, create, now);
            let info = SubvolumeInfo {
                id: SubvolumeId(root.0),
                name: name.clone(),
                kind,
                root,
                snapshot: SnapshotId(root.0 as u32),
                read_only: false,
                origin: None,
                size_bytes,
                block_size,
                used_bytes: 0,
                created_ns: now as u64,
                uuid: [root.0 as u8; 16],
                options,
                received: None,
            };
            state.subvolumes.insert(name, info.clone());
            Ok(Reply::Subvolume(Box::new(info)))
        }
        Request::SubvolumeGet { name } => {
            let info = state.subvolumes.get(&name).ok_or_else(|| missing("subvolume"))?;
            Ok(Reply::Subvolume(Box::new(info.clone())))
        }
        Request::SubvolumeList { after, limit } => {
            let rest = state.subvolumes.values().filter(|info| info.name > after);
            Ok(Reply::Subvolumes(rest.take(limit as usize).cloned().collect()))
        }
        Request::SubvolumeDelete { name } => {
            state.subvolumes.remove(&name).ok_or_else(|| missing("subvolume"))?;
            Ok(Reply::Unit)
        }
        Request::SnapshotCreate { snapshots } => {
            let mut made = Vec::new();
            for new in snapshots {
                let source = state.subvolumes.get(&new.source).ok_or_else(|| missing("volume"))?;
                if state.subvolumes.contains_key(&new.name) {
                    return Err(StoreError::AlreadyExists { what: new.name });
                }
                let info = SubvolumeInfo {
                    id: SubvolumeId(1000 + state.subvolumes.len() as u64),
                    name: new.name.clone(),
                    read_only: !new.writable,
                    origin: Some(source.id),
                    uuid: [100 + state.subvolumes.len() as u8; 16],
                    received: None,
                    ..source.clone()
                };
                state.subvolumes.insert(new.name, info.clone());
                made.push(info);
            }
            Ok(Reply::Subvolumes(made))
        }
        Request::SubvolumeRollback { name, snapshot } => {
            let from = state.subvolumes.get(&snapshot).ok_or_else(|| missing("snapshot"))?;
            let size_bytes = from.size_bytes;
            let info = state.subvolumes.get_mut(&name).ok_or_else(|| missing("volume"))?;
            info.size_bytes = size_bytes;
            Ok(Reply::Subvolume(Box::new(info.clone())))
        }
        Request::VolumeResize { name, size_bytes } => {
            let info = state.subvolumes.get_mut(&name).ok_or_else(|| missing("subvolume"))?;
            info.size_bytes = size_bytes;
            Ok(Reply::Subvolume(Box::new(info.clone())))
        }
        other => Err(StoreError::Unsupported { what: format!("{other:?}") }),
    }
}

fn file(state: &mut State, request: Request, now: i64) -> Result<Reply> {
    match request {
        Request::Lookup { directory, name, .. } => {
            let inode = state.child(directory, &name)?;
            state.node(inode).map(|node| attributes(node))
        }
        Request::GetAttributes { inode, .. } => state.node(inode).map(|node| attributes(node)),
        Request::SetAttributes { inode, set, .. } => {
            state.set(inode, &set, now).map(|set| Reply::Attributes(Box::new(set)))
        }
        Request::Create { directory, name, kind, attributes: create, .. } => {
            state.create(directory, &name, kind, create, now).map(|node| attributes(node))
        }
        Request::Symlink { directory, name, target, attributes: create, .. } => {
            let node = state.create(directory, &name, FileKind::Symlink, create, now)?;
            node.attributes.mode = 0o777;
            node.attributes.size = target.len() as u64;
            node.target = target;
            Ok(attributes(node))
        }
        Request::ReadLink { inode, .. } => Ok(Reply::Bytes(state.node(inode)?.target.clone())),
        Request::Link { inode, directory, name, .. } => {
            if state.child(directory, &name).is_ok() {
                return Err(StoreError::AlreadyExists { what: "name".to_owned() });
            }
            let parent = state.node(inode)?.parent;
            state.enter(directory, &name, inode)?;
            let node = state.node(inode)?;
            node.parent = parent;
            node.attributes.links += 1;
            Ok(attributes(node))
        }
        Request::Remove { directory, name, directory_only, .. } => {
            state.remove(directory, &name, directory_only).map(|()| Reply::Unit)
        }
        Request::Rename { from_directory, from_name, to_directory, to_name, mode, .. } => state
            .rename((from_directory, &from_name), (to_directory, &to_name), mode)
            .map(|()| Reply::Unit),
        Request::ReadDirectory { directory, cookie, limit, .. } => {
            state.list(directory, cookie, limit).map(Reply::Entries)
        }
        Request::FileRead { inode, offset, len, .. } => {
            state.read(inode, offset, len).map(Reply::Data)
        }
        Request::FileWrite { inode, offset, data, .. } => {
            state.write(inode, offset, &data)?;
            state.node(inode).map(|node| attributes(node))
        }
        Request::FileCopy { source, target, len } => {
            // Not by reference, but it says so.
            let data = state.read(source.inode, source.offset, len as u32)?;
            let shared_bytes = data.iter().map(|piece| piece.len() as u64).sum();
            if shared_bytes > 0 {
                state.write(target.inode, target.offset, &data)?;
            }
            Ok(Reply::Copied(CopyStats { shared_bytes, copied_bytes: 0 }))
        }
        Request::FilePunch { inode, offset, len, .. } => {
            state.punch(inode, offset, offset + len).map(|()| Reply::Unit)
        }
        Request::FileSync { inode, .. } => {
            state.node(inode)?;
            state.syncs += 1;
            Ok(Reply::Unit)
        }
        other => xattr(state, other),
    }
}

fn xattr(state: &mut State, request: Request) -> Result<Reply> {
    match request {
        Request::XattrGet { inode, name, .. } => {
            let value = state.node(inode)?.xattrs.get(&name).cloned();
            value.map(Reply::Bytes).ok_or_else(|| missing("xattr"))
        }
        Request::XattrSet { inode, name, value, mode, .. } => {
            let xattrs = &mut state.node(inode)?.xattrs;
            match (mode, xattrs.contains_key(&name)) {
                (PutMode::Create, true) => {
                    return Err(StoreError::AlreadyExists { what: "xattr".to_owned() });
                }
                (PutMode::Replace, false) => return Err(missing("xattr")),
                _ => {}
            }
            xattrs.insert(name, value);
            Ok(Reply::Unit)
        }
        Request::XattrList { inode, .. } => {
            Ok(Reply::Names(state.node(inode)?.xattrs.keys().cloned().collect()))
        }
        Request::XattrRemove { inode, name, .. } => {
            let removed = state.node(inode)?.xattrs.remove(&name);
            removed.map(|_| Reply::Unit).ok_or_else(|| missing("xattr"))
        }
        other => Err(StoreError::Unsupported { what: format!("{other:?}") }),
    }
}
