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
use engine_device::{BlockDevice, DeviceQueue, MemoryDevice};
use engine_shard::doorbell::Doorbell;
use engine_shard::{Handle, Reactor, ReactorConfig};
use engine_store::api::{Link, Reply, Request};
use engine_store::client::Client;
use engine_store::engine::EngineConfig;
use engine_store::limits::Limits;
use engine_store::pool::FormatOptions;
use engine_store::shard::{PeerLink, Shard, ShardConfig};
use engine_store::{Result, StoreError};
use futures::channel::oneshot;

use crate::members::{self, Pool};
use crate::poller::QueuePoller;

/// Operations in flight per device.
const QUEUE_DEPTH: u32 = 256;

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
        let pool = members::open(paths)?;
        let devices: Vec<&dyn BlockDevice> =
            pool.members.iter().map(|member| &member.device as &dyn BlockDevice).collect();
        let (mut reactor, queues) = assemble(&devices)?;
        let link = open_shards(&mut reactor, queues, pool.shard_count)?;
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
        let link = open_shards(&mut reactor, queues, superblock.shard_count())?;
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

/// Opens all shards, one after the other.
fn open_shards(
    reactor: &mut Reactor,
    queues: Queues,
    shard_count: u16,
) -> std::result::Result<LocalLink, Vec<String>> {
    let shards: Shards = Rc::new(RefCell::new(vec![None; usize::from(shard_count)]));
    let link = LocalLink { handle: reactor.handle(), shards };
    let opening = link.clone();
    let opened = reactor.block_on(async move {
        for shard in (0..shard_count).map(ShardId) {
            let runtime = Rc::clone(&opening.handle) as Rc<dyn Runtime>;
            let engine = EngineConfig { shard, shard_count, runtime, members: queues.clone() };
            let peers = Rc::new(opening.clone());
            let config = ShardConfig { engine, peers, limits: Limits::default() };
            let open =
                Shard::open(config).await.map_err(|error| format!("shard {shard}: {error}"))?;
            opening.shards.borrow_mut()[usize::from(shard.0)] = Some(open);
        }
        Ok::<(), String>(())
    });
    match opened {
        Ok(Ok(())) => Ok(link),
        Ok(Err(problem)) => Err(vec![problem]),
        Err(fault) => Err(vec![fault.to_string()]),
    }
}
