//! All shards of a pool on one reactor.

use std::cell::RefCell;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine_base::ShardId;
use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_device::{BlockDevice, DeviceQueue, Discard, MemoryDevice};
use engine_shard::doorbell::Doorbell;
use engine_shard::{Handle, Reactor, ReactorConfig};
use engine_store::api::{Link, Reply, Request};
use engine_store::client::Client;
use engine_store::engine::{EngineConfig, Opening};
use engine_store::limits::Limits;
use engine_store::pool::FormatOptions;
use engine_store::shard::{PeerLink, Shard, ShardConfig};
use engine_store::{Result, StoreError};
use futures::channel::oneshot;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::members::{self, Pool};
use crate::poller::QueuePoller;

/// Operations in flight per device.
const QUEUE_DEPTH: u32 = 256;

/// Shards that are opened side by side on one core: each mostly waits for its device, and holds its
/// journal (64 MiB, unless it was asked for more) in memory until it is replayed.
pub const OPENING_MAX: usize = 4;

/// Why a pool was not opened, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The devices are not all members of one pool, or in use.
    Members(Vec<String>),
    /// What is on them cannot be opened.
    Shard(String),
}

type Shards = Rc<RefCell<Vec<Option<Rc<Shard>>>>>;

/// The way to shards on the same thread.
#[derive(Clone)]
pub struct LocalLink {
    handle: Rc<Handle>,
    shards: Shards,
}

/// A request that a shard works on. Dropping it leaves the request running.
pub struct LocalCall {
    answer: oneshot::Receiver<Result<Reply>>,
}

impl Future for LocalCall {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer)
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err(gone())))
    }
}

fn gone() -> StoreError {
    StoreError::ShuttingDown { why: "the shard is not open".to_owned() }
}

impl LocalLink {
    fn start(&self, shard: ShardId, request: Request) -> LocalCall {
        let (sender, answer) = oneshot::channel();
        let target = self.shards.borrow().get(usize::from(shard.0)).cloned().flatten();
        match target {
            Some(target) => {
                let task = async move {
                    // Who asked may be gone; the request is carried out all the same.
                    let _ = sender.send(target.handle(request).await);
                };
                self.handle.spawn("request", Box::pin(task));
            }
            None => {
                let _ = sender.send(Err(gone()));
            }
        }
        LocalCall { answer }
    }
}

impl PeerLink for LocalLink {
    fn call(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        Box::pin(self.start(shard, request))
    }
}

impl Link for LocalLink {
    type Call = LocalCall;

    fn shard_count(&self) -> u16 {
        self.shards.borrow().len() as u16
    }

    fn call(&self, shard: ShardId, request: Request) -> LocalCall {
        self.start(shard, request)
    }
}

/// An open pool.
pub struct LocalPool {
    reactor: Reactor,
    link: LocalLink,
    /// Keeps the devices locked against others; a pool in memory has nothing to lock.
    _pool: Option<Pool>,
}

impl LocalPool {
    /// Opens the pool on `paths` for this process alone, and replays its journals.
    ///
    /// # Errors
    /// What is wrong, in words for people.
    pub fn open(paths: &[PathBuf]) -> std::result::Result<Self, Vec<String>> {
        Self::open_as(paths, Opening::Whole).map_err(|error| match error {
            OpenError::Members(problems) => problems,
            OpenError::Shard(problem) => vec![problem],
        })
    }

    /// [`LocalPool::open`], also when index nodes cannot be read, if `opening` says so.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_as(paths: &[PathBuf], opening: Opening) -> std::result::Result<Self, OpenError> {
        let pool = members::open(paths, Discard::Auto).map_err(OpenError::Members)?;
        let devices: Vec<&dyn BlockDevice> =
            pool.members.iter().map(|member| &member.device as &dyn BlockDevice).collect();
        let (mut reactor, queues) = assemble(&devices).map_err(OpenError::Members)?;
        let link = open_shards(&mut reactor, queues, pool.shard_count, opening)
            .map_err(OpenError::Shard)?;
        Ok(Self { reactor, link, _pool: Some(pool) })
    }

    /// A new pool on devices in memory: what the engine costs without what devices cost.
    ///
    /// # Errors
    /// What is wrong with `options` or the devices, in words for people.
    pub fn in_memory(
        devices: &[MemoryDevice],
        options: FormatOptions,
    ) -> std::result::Result<Self, Vec<String>> {
        let devices: Vec<&dyn BlockDevice> =
            devices.iter().map(|device| device as &dyn BlockDevice).collect();
        let (mut reactor, queues) = assemble(&devices)?;
        let members = queues.clone();
        let superblock = reactor
            .block_on(async move { engine_store::pool::format(&members, &options).await })
            .map_err(|fault| vec![fault.to_string()])?
            .map_err(|error| vec![error.to_string()])?;
        let link = open_shards(&mut reactor, queues, superblock.shard_count(), Opening::Whole)
            .map_err(|problem| vec![problem])?;
        Ok(Self { reactor, link, _pool: None })
    }

    /// Runs `work` on the pool's thread, which is this one.
    ///
    /// # Errors
    /// When the reactor fails: a task has panicked.
    pub fn run<T: 'static>(
        &mut self,
        work: impl AsyncFnOnce(Client<LocalLink>, Rc<dyn Runtime>) -> T + 'static,
    ) -> std::result::Result<T, String> {
        let client = Client::new(self.link.clone());
        let runtime = Rc::clone(&self.link.handle) as Rc<dyn Runtime>;
        self.reactor
            .block_on(async move { work(client, runtime).await })
            .map_err(|fault| fault.to_string())
    }

    /// Bounds the memory for data that may be read again, of all shards together; 0, which it is at first:
    /// none is kept.
    pub fn set_data_cache_bytes(&self, bytes: usize) {
        let shards = self.link.shards.borrow();
        for shard in shards.iter().flatten() {
            shard.set_data_cache_bytes(bytes / shards.len());
        }
    }

    /// The pool as methods; its calls go on while [`LocalPool::turn`] or [`LocalPool::run`] runs.
    #[must_use]
    pub fn client(&self) -> Client<LocalLink> {
        Client::new(self.link.clone())
    }

    /// One turn of the reactor, for callers that drive it themselves.
    ///
    /// # Errors
    /// When the reactor fails: a task has panicked.
    pub fn turn(&mut self) -> std::result::Result<(), String> {
        self.reactor.turn().map(drop).map_err(|fault| fault.to_string())
    }

    /// Flushes and closes.
    ///
    /// # Errors
    /// When something could not be made durable.
    pub fn close(mut self) -> std::result::Result<(), String> {
        let shards: Vec<Rc<Shard>> = self.link.shards.borrow().iter().flatten().cloned().collect();
        let closed = self.reactor.block_on(async move {
            let mut first = Ok(());
            for shard in shards {
                let result = shard.shutdown().await;
                first = first.and(result);
            }
            first
        });
        match closed {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(fault) => Err(fault.to_string()),
        }
    }
}

type Queues = Vec<Rc<dyn DeviceQueue>>;

/// A reactor that polls a queue to each device.
fn assemble(devices: &[&dyn BlockDevice]) -> std::result::Result<(Reactor, Queues), Vec<String>> {
    let one = |text: String| vec![text];
    let doorbell = Doorbell::new().map_err(|error| one(format!("no descriptor: {error}")))?;
    let seed = members::random_seed().map_err(|error| one(format!("no randomness: {error}")))?;
    let config = ReactorConfig { seed, ..ReactorConfig::default() };
    let reactor = Reactor::new(&config, Arc::new(doorbell));
    let handle = reactor.handle();
    let mut queues = Queues::new();
    for device in devices {
        let queue = device.open_queue(QUEUE_DEPTH).map_err(|error| one(error.to_string()))?;
        let poller = Rc::new(QueuePoller(Rc::clone(&queue)));
        handle.register_poller("device", poller).map_err(|error| one(error.to_string()))?;
        queues.push(queue);
    }
    Ok((reactor, queues))
}

/// Opens all shards, some at a time.
fn open_shards(
    reactor: &mut Reactor,
    queues: Queues,
    shard_count: u16,
    opening: Opening,
) -> std::result::Result<LocalLink, String> {
    let shards: Shards = Rc::new(RefCell::new(vec![None; usize::from(shard_count)]));
    let link = LocalLink { handle: reactor.handle(), shards };
    let to_open = link.clone();
    let opened = reactor.block_on(async move {
        let open = async |shard: ShardId| {
            let runtime = Rc::clone(&to_open.handle) as Rc<dyn Runtime>;
            let engine = EngineConfig { shard, shard_count, runtime, members: queues.clone() };
            let peers = Rc::new(to_open.clone());
            let config = ShardConfig { engine, peers, limits: Limits::default() };
            let open = Shard::open_as(config, opening)
                .await
                .map_err(|error| format!("shard {shard}: {error}"))?;
            to_open.shards.borrow_mut()[usize::from(shard.0)] = Some(open);
            Ok::<(), String>(())
        };
        let shards = stream::iter((0..shard_count).map(ShardId)).map(open);
        shards.buffer_unordered(OPENING_MAX).try_collect::<()>().await
    });
    match opened {
        Ok(Ok(())) => Ok(link),
        Ok(Err(problem)) => Err(problem),
        Err(fault) => Err(fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::fd::RawFd;
    use std::sync::Mutex;

    use engine_device::{Completion, DeviceError, DeviceInfo, Operation};
    use engine_store::superblock::Superblock;

    use super::*;

    /// A device in memory that notes of how many journals it is asked to read at a time. It answers when it
    /// is polled, so what was asked between two polls is on its way at the same time.
    #[derive(Clone)]
    struct Watched {
        memory: MemoryDevice,
        superblock: Arc<Mutex<Option<Superblock>>>,
        most: Arc<Mutex<usize>>,
    }

    struct WatchedQueue {
        device: Watched,
        inner: Rc<dyn DeviceQueue>,
        journals: RefCell<BTreeSet<usize>>,
    }

    impl BlockDevice for Watched {
        fn info(&self) -> &DeviceInfo {
            self.memory.info()
        }

        fn open_queue(&self, depth: u32) -> std::result::Result<Rc<dyn DeviceQueue>, DeviceError> {
            let inner = self.memory.open_queue(depth)?;
            Ok(Rc::new(WatchedQueue { device: self.clone(), inner, journals: RefCell::default() }))
        }
    }

    impl DeviceQueue for WatchedQueue {
        fn info(&self) -> &DeviceInfo {
            self.inner.info()
        }

        fn refresh_size(&self) -> std::result::Result<u64, DeviceError> {
            self.inner.refresh_size()
        }

        fn submit(&self, operation: Operation, done: Completion) {
            if let Operation::Read { offset, .. } = &operation
                && let Some(superblock) = &*self.device.superblock.lock().unwrap()
            {
                let bucket = (offset / u64::from(superblock.bucket_bytes)) as u32;
                let journal = superblock.journals.iter().position(|area| {
                    (area.first_bucket..area.first_bucket + area.buckets).contains(&bucket)
                });
                self.journals.borrow_mut().extend(journal);
            }
            self.inner.submit(operation, done);
        }

        fn poll(&self) -> usize {
            let journals = self.journals.take().len();
            let mut most = self.device.most.lock().unwrap();
            *most = (*most).max(journals);
            drop(most);
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

    #[test]
    fn shards_read_their_journals_side_by_side() {
        let device = Watched {
            memory: MemoryDevice::new("memory", 256 << 20, 4096),
            superblock: Arc::default(),
            most: Arc::default(),
        };
        let (mut reactor, queues) = assemble(&[&device]).unwrap();
        let options = FormatOptions { shards: Some(8), ..FormatOptions::default() };
        let members = queues.clone();
        let format = async move { engine_store::pool::format(&members, &options).await };
        let superblock = reactor.block_on(format).unwrap().unwrap();
        *device.superblock.lock().unwrap() = Some(superblock);
        open_shards(&mut reactor, queues, 8, Opening::Whole).map(drop).unwrap();
        assert_eq!(*device.most.lock().unwrap(), OPENING_MAX);
    }
}
