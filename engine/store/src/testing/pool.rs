//! Shards on devices in memory, and the links between them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;

use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_base::{ShardId, SnapshotId, SubvolumeId};
use engine_device::{
    BlockDevice, Completion, DeviceError, DeviceInfo, DeviceQueue, Faults, FaultyDevice,
    MemoryDevice, Operation,
};
use futures::channel::oneshot;

use super::TestRuntime;
use crate::api::{Link, Reply, Request};
use crate::client::Client;
use crate::engine::{EngineConfig, Opening};
use crate::error::{Result, StoreError};
use crate::key::Counter;
use crate::limits::Limits;
use crate::pool::FormatOptions;
use crate::shard::{PeerLink, Shard, ShardConfig};

const DEVICE_BYTES: u64 = 256 << 20;

/// What the devices of a pool were asked to do.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) written_bytes: Cell<u64>,
    pub(crate) reads: Cell<u64>,
    pub(crate) read_bytes: Cell<u64>,
    /// Members with a write that is not durable since their last flush began.
    pub(crate) unflushed: RefCell<BTreeSet<String>>,
    /// Flushes, by member.
    pub(crate) flushes: RefCell<BTreeMap<String, u64>>,
    /// (offset, length) of discards.
    pub(crate) discards: RefCell<Vec<(u64, u64)>>,
    /// What the devices answer to a discard, when not by filling the range with garbage.
    pub(crate) discard_fails: Cell<bool>,
    /// Writes until the devices take no more; `None`: no bound.
    pub(crate) writes_left: Cell<Option<u64>>,
}

/// A queue that remembers what it was asked.
struct Recorder {
    inner: Rc<dyn DeviceQueue>,
    device: MemoryDevice,
    asked: Rc<Asked>,
}

impl DeviceQueue for Recorder {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn refresh_size(&self) -> std::result::Result<u64, DeviceError> {
        self.inner.refresh_size()
    }

    fn submit(&self, operation: Operation, done: Completion) {
        match &operation {
            Operation::Write { data, fua, .. } => {
                if let Some(left) = self.asked.writes_left.get() {
                    if left == 0 {
                        let device = self.info().name.clone();
                        return done.complete(Err(DeviceError::Gone { device }));
                    }
                    self.asked.writes_left.set(Some(left - 1));
                }
                if !*fua {
                    self.asked.unflushed.borrow_mut().insert(self.info().name.clone());
                }
                let bytes = data.iter().map(|piece| piece.len() as u64).sum::<u64>();
                self.asked.written_bytes.set(self.asked.written_bytes.get() + bytes);
            }
            Operation::Read { buffer, .. } => {
                self.asked.reads.set(self.asked.reads.get() + 1);
                self.asked.read_bytes.set(self.asked.read_bytes.get() + buffer.len() as u64);
            }
            Operation::Flush => {
                self.asked.unflushed.borrow_mut().remove(&self.info().name);
                let mut flushes = self.asked.flushes.borrow_mut();
                *flushes.entry(self.info().name.clone()).or_default() += 1;
            }
            Operation::Discard { offset, len } => {
                self.asked.discards.borrow_mut().push((*offset, *len));
                if self.asked.discard_fails.get() {
                    let device = self.info().name.clone();
                    return done.complete(Err(DeviceError::Gone { device }));
                }
                let range = *offset as usize..(*offset + *len) as usize;
                self.device.with_bytes(|bytes| bytes[range].fill(0xdb));
                return self.inner.submit(Operation::Flush, done);
            }
            _ => {}
        }
        self.inner.submit(operation, done);
    }

    fn poll(&self) -> usize {
        self.inner.poll()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.inner.wake_fd()
    }

    fn prepare_to_sleep(&self) -> bool {
        self.inner.prepare_to_sleep()
    }
}

/// The way to the shards, for clients and for the shards themselves.
#[derive(Clone)]
pub(crate) struct TestLink {
    runtime: Rc<TestRuntime>,
    shards: Rc<RefCell<Vec<Option<Rc<Shard>>>>>,
}

impl TestLink {
    fn start(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        let gone = || StoreError::ShuttingDown { why: "the shard is not open".to_owned() };
        let target = self.shards.borrow()[usize::from(shard.0)].clone();
        let Some(target) = target else { return Box::pin(async move { Err(gone()) }) };
        let (sender, receiver) = oneshot::channel();
        let task = async move {
            // The asker may be gone; the request is carried out all the same.
            let _ = sender.send(target.handle(request).await);
        };
        self.runtime.spawn("request", Box::pin(task));
        Box::pin(async move { receiver.await.unwrap_or_else(|_| Err(gone())) })
    }
}

impl PeerLink for TestLink {
    fn call(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        self.start(shard, request)
    }
}

impl Link for TestLink {
    type Call = LocalBoxFuture<'static, Result<Reply>>;

    fn shard_count(&self) -> u16 {
        self.shards.borrow().len() as u16
    }

    fn call(&self, shard: ShardId, request: Request) -> Self::Call {
        self.start(shard, request)
    }
}

/// A pool.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(crate) runtime: Rc<TestRuntime>,
    link: TestLink,
    devices: Vec<MemoryDevice>,
    /// The way to each of them, which fails when a test says so.
    faulty: Vec<FaultyDevice>,
    /// Which device is given as which member.
    order: Rc<RefCell<Vec<usize>>>,
    limits: Limits,
    asked: Rc<Asked>,
}

impl Pool {
    /// Shards on fresh devices, open.
    pub(crate) fn new(seed: u64, shard_count: u16) -> Self {
        let options = FormatOptions { shards: Some(shard_count), ..FormatOptions::default() };
        Self::with_members(seed, &[DEVICE_BYTES], options)
    }

    /// Shards on fresh devices of these sizes.
    pub(crate) fn with_members(seed: u64, sizes: &[u64], options: FormatOptions) -> Self {
        let shard_count = options.shards.unwrap_or(4);
        let runtime = TestRuntime::new(seed);
        let shards = Rc::new(RefCell::new(vec![None; usize::from(shard_count)]));
        let link = TestLink { runtime: Rc::clone(&runtime), shards };
        let devices: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(index, size)| MemoryDevice::new(&format!("memory{index}"), *size, 4096))
            .collect();
        let faulty = devices
            .iter()
            .map(|device| FaultyDevice::new(Arc::new(device.clone()), seed))
            .collect();
        let order = Rc::new(RefCell::new((0..devices.len()).collect()));
        let (limits, asked) = (Limits::default(), Rc::default());
        let pool = Self { runtime, link, devices, faulty, order, limits, asked };
        let opening = pool.clone();
        pool.runtime.block_on(async move {
            crate::pool::format(&opening.queues(), &options).await.unwrap();
            for shard in 0..shard_count {
                opening.open(ShardId(shard)).await.unwrap();
            }
        });
        pool
    }

    /// Shards opened from now on have these bounds.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// What goes wrong with the device of a member.
    pub(crate) fn faults(&self, member: usize) -> Faults {
        self.faulty[member].faults().clone()
    }

    /// Queues to the devices, in the order of the members.
    pub(crate) fn queues(&self) -> Vec<Rc<dyn DeviceQueue>> {
        let order = self.order.borrow();
        let queues = order.iter().map(|index| {
            let inner = self.faulty[*index].open_queue(32).unwrap();
            let (device, asked) = (self.devices[*index].clone(), Rc::clone(&self.asked));
            let queue = Rc::new(Recorder { inner, device, asked });
            let queue = queue as Rc<dyn DeviceQueue>;
            self.runtime.add_queue(Rc::clone(&queue));
            queue
        });
        queues.collect()
    }

    /// Gives the devices as members in another order from now on.
    pub(crate) fn set_order(&self, order: &[usize]) {
        *self.order.borrow_mut() = order.to_vec();
    }

    async fn open(&self, shard: ShardId) -> Result<()> {
        self.open_as(shard, Opening::Whole).await
    }

    async fn open_as(&self, shard: ShardId, opening: Opening) -> Result<()> {
        let engine = EngineConfig {
            shard,
            shard_count: self.link.shard_count(),
            runtime: Rc::clone(&self.runtime) as Rc<dyn Runtime>,
            members: self.queues(),
        };
        let peers = Rc::new(self.link.clone());
        let config = ShardConfig { engine, peers, limits: self.limits.clone() };
        let opened = Shard::open_as(config, opening).await?;
        self.link.shards.borrow_mut()[usize::from(shard.0)] = Some(opened);
        Ok(())
    }

    /// Everything in memory is gone, at once; then the shards are opened again.
    pub(crate) fn crash_and_open(&self) {
        self.try_crash_and_open().unwrap();
    }

    /// As [`Pool::crash_and_open`]; the first shard that refuses to open ends it.
    pub(crate) fn try_crash_and_open(&self) -> Result<()> {
        self.runtime.crash();
        self.link.shards.borrow_mut().fill(None);
        let opening = self.clone();
        self.runtime.block_on(async move {
            for shard in 0..opening.link.shard_count() {
                opening.open(ShardId(shard)).await?;
            }
            Ok(())
        })
    }

    /// As [`Pool::crash_and_open`], whatever cannot be read.
    pub(crate) fn crash_and_salvage(&self) {
        self.try_crash_and_salvage().unwrap();
    }

    /// As [`Pool::crash_and_salvage`]; the first shard that refuses all the same ends it.
    pub(crate) fn try_crash_and_salvage(&self) -> Result<()> {
        self.runtime.crash();
        self.link.shards.borrow_mut().fill(None);
        let opening = self.clone();
        self.runtime.block_on(async move {
            for shard in 0..opening.link.shard_count() {
                opening.open_as(ShardId(shard), Opening::Salvage).await?;
            }
            Ok(())
        })
    }

    /// What the shards said when they were opened.
    pub(crate) fn notes(&self) -> Vec<String> {
        let shards = 0..self.link.shard_count();
        shards.flat_map(|shard| self.shard(shard).engine().recovery_notes().to_vec()).collect()
    }

    pub(crate) fn client(&self) -> Client<TestLink> {
        Client::new(self.link.clone())
    }

    pub(crate) fn shard_count(&self) -> u16 {
        Link::shard_count(&self.link)
    }

    /// The shard, if the pool has so many.
    pub(crate) fn open_shard(&self, shard: u16) -> Option<Rc<Shard>> {
        self.link.shards.borrow().get(usize::from(shard)).cloned().flatten()
    }

    pub(crate) fn shard(&self, shard: u16) -> Rc<Shard> {
        self.link.shards.borrow()[usize::from(shard)].clone().unwrap()
    }

    /// Data blocks that a version holds on all shards.
    pub(crate) fn data_blocks_of(&self, version: SnapshotId) -> u64 {
        let counter = Counter::data_blocks(version.0);
        (0..self.shard_count()).map(|shard| self.shard(shard).engine().counter(counter)).sum()
    }

    /// The version that a subvolume has now.
    pub(crate) fn version_of(&self, subvolume: SubvolumeId) -> SnapshotId {
        self.shard(0).engine().versions.current(subvolume).expect("it is there").version
    }

    /// What the device was asked to do by the shards.
    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(crate) fn device(&self) -> &MemoryDevice {
        &self.devices[0]
    }

    /// A member's device.
    pub(crate) fn member(&self, index: usize) -> &MemoryDevice {
        &self.devices[index]
    }

    /// Waits until no shard works in the background.
    pub(crate) async fn quiet(&self) {
        for shard in 0..self.link.shard_count() {
            self.shard(shard).background_idle().await;
        }
    }

    /// Runs `work` with a copy of this pool.
    pub(crate) fn run<T: 'static>(&self, work: impl AsyncFnOnce(Pool) -> T + 'static) -> T {
        let pool = self.clone();
        self.runtime.block_on(async move { work(pool).await })
    }
}
