//! The whole engine on several cores, as the daemon runs it: each core has its shards and its part of the load, and
//! sends to the other cores what is theirs.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use engine_base::ShardId;
use engine_base::random::Random;
use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_device::{BlockDevice, DeviceQueue, Discard};
use engine_embed::members;
use engine_embed::poller::QueuePoller;
use engine_memory::{Buffer, Slice};
use engine_shard::cores::{InitError, WindDown};
use engine_shard::{CoreContext, Cores, CoresConfig, Endpoint, Handle, MeshHandle};
use engine_store::StoreError;
use engine_store::api::{Data, Link, Reply, Request};
use engine_store::client::{Client, VolumeRef};
use engine_store::engine::EngineConfig;
use engine_store::limits::Limits;
use engine_store::shard::{PeerLink, Shard, ShardConfig};
use futures::channel::oneshot;
use futures::stream::{FuturesUnordered, StreamExt as _};
use slab::Slab;

use crate::engine::VOLUME;
use crate::load::{Load, Measured, Tally};

/// Operations in flight per device and core.
const QUEUE_DEPTH: u32 = 256;
/// Between two looks at whether all cores are as far.
const LOOK_NS: u64 = 100_000;

type Answer = engine_store::Result<Reply>;

/// What goes from core to core.
enum Message {
    Ask { ticket: usize, shard: ShardId, request: Request },
    Answer { ticket: usize, answer: Box<Answer> },
}

/// One core's shards, and its way to the others.
struct Hub {
    handle: Rc<Handle>,
    mesh: MeshHandle<Message>,
    shard_count: u16,
    shards: RefCell<Vec<Option<Rc<Shard>>>>,
    asked: RefCell<Slab<oneshot::Sender<Answer>>>,
}

#[derive(Clone)]
struct HubLink(Rc<Hub>);

fn gone() -> StoreError {
    StoreError::ShuttingDown { why: "the core has ended".to_owned() }
}

impl Hub {
    fn core_of(&self, shard: ShardId) -> usize {
        usize::from(shard.0) % self.mesh.cores()
    }

    fn local(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Answer> {
        match self.shards.borrow()[usize::from(shard.0)].clone() {
            Some(shard) => Box::pin(async move { shard.handle(request).await }),
            None => Box::pin(std::future::ready(Err(gone()))),
        }
    }

    fn call(self: &Rc<Self>, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Answer> {
        let core = self.core_of(shard);
        if core == self.mesh.core() {
            return self.local(shard, request);
        }
        let (sender, answer) = oneshot::channel();
        let ticket = self.asked.borrow_mut().insert(sender);
        let hub = Rc::clone(self);
        Box::pin(async move {
            let message = Message::Ask { ticket, shard, request };
            hub.mesh.send(Endpoint::Core(core), message).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        })
    }

    fn deliver(self: &Rc<Self>, from: Endpoint, message: Message) {
        match message {
            Message::Answer { ticket, answer } => {
                let asked = self.asked.borrow_mut().try_remove(ticket);
                // Who asked may be gone.
                drop(asked.map(|asked| asked.send(*answer)));
            }
            Message::Ask { ticket, shard, request } => {
                let (work, mesh) = (self.local(shard, request), self.mesh.clone());
                let answer = async move {
                    let answer = Box::new(work.await);
                    drop(mesh.send(from, Message::Answer { ticket, answer }).await);
                };
                self.handle.spawn("request", Box::pin(answer));
            }
        }
    }
}

impl Link for HubLink {
    type Call = LocalBoxFuture<'static, Answer>;

    fn shard_count(&self) -> u16 {
        self.0.shard_count
    }

    fn call(&self, shard: ShardId, request: Request) -> Self::Call {
        self.0.call(shard, request)
    }
}

impl PeerLink for HubLink {
    fn call(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Answer> {
        self.0.call(shard, request)
    }
}

/// What all cores work from.
struct Plan {
    devices: Vec<Arc<dyn BlockDevice>>,
    shard_count: u16,
    load: Load,
    /// Cores whose shards are open; cores whose load has ended.
    opened: AtomicUsize,
    ended: AtomicUsize,
    results: mpsc::Sender<Result<Tally>>,
}

/// Puts `load`, a part on each of `cores` cores, on the volume of the pool on the file.
pub(crate) fn measure(path: &Path, cores: usize, load: &Load) -> Result<Measured> {
    ensure!(load.depth as usize >= cores, "a depth of one at least for each core");
    let paths: [PathBuf; 1] = [path.to_owned()];
    let pool = members::open(&paths, Discard::Auto).map_err(|all| anyhow!(all.join("; ")))?;
    let shard_count = pool.shard_count;
    let devices = pool.members.into_iter();
    let devices = devices.map(|member| Arc::new(member.device) as Arc<dyn BlockDevice>).collect();
    let (results, ended) = mpsc::channel();
    let (opened, over) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let plan = Arc::new(Plan { devices, shard_count, load: *load, opened, ended: over, results });
    let words = |errors: Vec<engine_shard::CoreError>| {
        anyhow!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    };
    let config = CoresConfig { cores, ..CoresConfig::default() };
    let running = Cores::start(&config, move |context| init(&plan, context)).map_err(words)?;
    let mut all = Tally::default();
    for _ in 0..cores {
        all.add(ended.recv().context("a core has ended")??);
    }
    running.stop();
    running.join().map_err(words)?;
    Ok(all.over(load.block_bytes))
}

/// One core, on its thread.
fn init(
    plan: &Arc<Plan>,
    context: CoreContext<Message>,
) -> std::result::Result<WindDown, InitError> {
    let CoreContext { core, cores, handle, mesh, .. } = context;
    let mut queues: Vec<Rc<dyn DeviceQueue>> = Vec::new();
    for device in &plan.devices {
        let queue = device.open_queue(QUEUE_DEPTH)?;
        handle.register_poller("device", Rc::new(QueuePoller(Rc::clone(&queue))))?;
        queues.push(queue);
    }
    let shards = RefCell::new(vec![None; usize::from(plan.shard_count)]);
    let hub = Rc::new(Hub {
        handle: Rc::clone(&handle),
        mesh,
        shard_count: plan.shard_count,
        shards,
        asked: RefCell::default(),
    });
    let inbox = Rc::clone(&hub);
    hub.mesh.set_inbox(Rc::new(move |from, message| inbox.deliver(from, message)));
    let (work, plan) = (Rc::clone(&hub), Arc::clone(plan));
    handle.spawn(
        "load",
        Box::pin(async move {
            let result = run(&work, &plan, &queues, (core, cores)).await;
            // Who waits for it may have failed.
            drop(plan.results.send(result));
        }),
    );
    Ok(Box::pin(async move {
        let shards: Vec<Rc<Shard>> = hub.shards.borrow().iter().flatten().cloned().collect();
        for shard in shards {
            // What was measured is told already.
            drop(shard.shutdown().await);
        }
    }))
}

/// Opens the shards of a core, waits for those of the others, and puts its part of the load on all.
async fn run(
    hub: &Rc<Hub>,
    plan: &Plan,
    queues: &[Rc<dyn DeviceQueue>],
    (core, cores): (usize, usize),
) -> Result<Tally> {
    let runtime = Rc::clone(&hub.handle) as Rc<dyn Runtime>;
    for shard in (0..plan.shard_count).map(ShardId).filter(|shard| hub.core_of(*shard) == core) {
        let engine = EngineConfig {
            shard,
            shard_count: plan.shard_count,
            runtime: Rc::clone(&runtime),
            members: queues.to_vec(),
        };
        let peers = Rc::new(HubLink(Rc::clone(hub)));
        let opened = Shard::open(ShardConfig { engine, peers, limits: Limits::default() }).await?;
        hub.shards.borrow_mut()[usize::from(shard.0)] = Some(opened);
    }
    meet(&runtime, &plan.opened, cores).await;
    let client = Client::new(HubLink(Rc::clone(hub)));
    let volume = VolumeRef::from(&client.subvolume_get(VOLUME).await?);
    let tally = put_load(&client, &volume, &plan.load, (core, cores)).await;
    // A core that has ended serves the others until all have.
    meet(&runtime, &plan.ended, cores).await;
    tally
}

async fn meet(runtime: &Rc<dyn Runtime>, there: &AtomicUsize, cores: usize) {
    there.fetch_add(1, Ordering::AcqRel);
    while there.load(Ordering::Acquire) < cores {
        runtime.sleep(LOOK_NS).await;
    }
}

async fn put_load(
    client: &Client<HubLink>,
    volume: &VolumeRef,
    load: &Load,
    (core, cores): (usize, usize),
) -> Result<Tally> {
    let len = load.block_bytes;
    let blocks = volume.size_bytes / u64::from(len);
    let mut random = Random::new(load.seed ^ (core as u64) << 32);
    let mut data = Buffer::try_new(len as usize)?;
    random.fill(&mut data);
    let data: Slice = data.freeze();
    let mut next = blocks / cores as u64 * core as u64;
    let mut start = || {
        next = if load.pattern.is_random() { random.below(blocks) } else { (next + 1) % blocks };
        let (offset, data) = (next * u64::from(len), data.clone());
        async move {
            let started = Instant::now();
            if load.pattern.writes() {
                let data: Data = std::iter::once(data).collect();
                client.volume_write(volume, offset, data, false).await?;
            } else {
                drop(client.volume_read(volume, offset, u64::from(len)).await?);
            }
            Ok::<_, anyhow::Error>(started.elapsed())
        }
    };
    let mut tally = Tally::default();
    let begin = Instant::now();
    let mut running = FuturesUnordered::new();
    for _ in 0..load.depth as usize / cores {
        running.push(start());
    }
    while let Some(ended) = running.next().await {
        tally.record(ended?);
        if begin.elapsed() < load.duration {
            running.push(start());
        }
    }
    tally.end(begin.elapsed());
    Ok(tally)
}
