//! What runs on one polled core: device queues, shards, the target's sockets.
//!
//! [`init`] is called on the core's thread by engine-shard; it does what cannot wait, and leaves the
//! opening of shards to [`Ask::Open`], when all cores turn and can answer each other.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use engine_base::ShardId;
use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_device::{BlockDevice, DeviceQueue};
use engine_memory::alloc_site;
use engine_memory::profile::set_thread_site;
use engine_shard::cores::{InitError, WindDown};
use engine_shard::{CoreContext, Handle};
use engine_store::Result;
use engine_store::engine::EngineConfig;
use engine_store::shard::{Shard, ShardConfig};
use engine_store::times::Times;
use nvme_target::{Target, TargetCore};

use super::admission::Admission;
use super::backend::EngineBackend;
use super::link::{Control, CoreLink, Hub, Message, ShardPeers, core_of};
use engine_embed::OPENING_MAX;
use engine_embed::poller::QueuePoller;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use super::pollers::TargetPoller;
use crate::exports::Volumes;
use crate::metrics::device::{DeviceStats, MeasuredQueue};
use crate::metrics::engine::CoreStats;

/// Requests of one core's front ends under way to other cores; more wait on their own core.
const PENDING_MAX: usize = 1024;

/// What all cores are made from.
pub(crate) struct Plan {
    /// Members of the pool, by member index.
    pub(crate) devices: Vec<Arc<dyn BlockDevice>>,
    /// Shards of the pool.
    pub(crate) shard_count: u16,
    /// Depth of each core's queue to each device.
    pub(crate) queue_depth: u32,
    /// Most requests of front ends in progress per shard.
    pub(crate) shard_requests_max: usize,
    /// Memory for index nodes per shard, in bytes.
    pub(crate) index_cache_bytes: usize,
    /// Memory for data that may be read again, per shard, in bytes.
    pub(crate) data_cache_bytes: usize,
    /// Most data of these in progress per shard, in bytes.
    pub(crate) shard_bytes_max: u64,
    /// The NVMe/TCP target, if it is switched on.
    pub(crate) target: Option<Target>,
    /// Volumes it may open.
    pub(crate) volumes: Arc<Volumes>,
    /// Counters by core.
    pub(crate) core_stats: Vec<Arc<CoreStats>>,
    /// Counters by core and member.
    pub(crate) device_stats: Vec<Vec<Arc<DeviceStats>>>,
    /// Time statistics by shard; empty until a shard is open.
    pub(crate) times: Vec<OnceLock<Arc<Times>>>,
}

/// One core, assembled.
struct Core {
    plan: Arc<Plan>,
    core: usize,
    cores: usize,
    handle: Rc<Handle>,
    hub: Rc<Hub>,
    members: Vec<Rc<dyn DeviceQueue>>,
    target: RefCell<Option<Rc<TargetPoller<EngineBackend<CoreLink>>>>>,
}

/// Assembles a core, on its thread.
///
/// # Errors
/// When the kernel refuses a queue or a descriptor.
pub(crate) fn init(
    plan: &Arc<Plan>,
    context: CoreContext<Message>,
) -> std::result::Result<WindDown, InitError> {
    set_thread_site(alloc_site!("cores"));
    let CoreContext { core, cores, handle, mesh, .. } = context;
    let stats = Arc::clone(&plan.core_stats[core]);
    let hub = Hub::new(Rc::clone(&handle), mesh, plan.shard_count, PENDING_MAX, stats);
    let runtime: Rc<dyn Runtime> = Rc::clone(&handle) as Rc<dyn Runtime>;
    let mut members = Vec::with_capacity(plan.devices.len());
    for (device, stats) in plan.devices.iter().zip(&plan.device_stats[core]) {
        let queue = device.open_queue(plan.queue_depth)?;
        let measured = MeasuredQueue::new(queue, Arc::clone(stats), Rc::clone(&runtime));
        let queue: Rc<dyn DeviceQueue> = Rc::new(measured);
        handle.register_poller("device", Rc::new(QueuePoller(Rc::clone(&queue))))?;
        members.push(queue);
    }
    let target = match &plan.target {
        Some(target) => {
            let backend = EngineBackend::new(CoreLink(Rc::clone(&hub)), Arc::clone(&plan.volumes));
            let target = TargetCore::new(target, backend, runtime)?;
            let poller = Rc::new(TargetPoller::new(target, Rc::clone(&handle)));
            handle.register_poller("nvme", Rc::clone(&poller) as Rc<dyn engine_shard::Poller>)?;
            Some(poller)
        }
        None => None,
    };
    let plan = Arc::clone(plan);
    let target = RefCell::new(target);
    let assembled = Core { plan, core, cores, handle, hub: Rc::clone(&hub), members, target };
    hub.set_control(Rc::new(Assembled(Rc::new(assembled))));
    // Everything is shut down by request before the cores are told to stop (crate::lifecycle), so
    // that a failure is told and not only logged.
    Ok(Box::pin(std::future::ready(())))
}

struct Assembled(Rc<Core>);

impl Control for Assembled {
    fn open(&self) -> LocalBoxFuture<'static, Result<()>> {
        let core = Rc::clone(&self.0);
        Box::pin(async move { core.open_shards().await })
    }

    fn quiesce(&self) -> LocalBoxFuture<'static, Result<()>> {
        let target = self.0.target.borrow_mut().take();
        Box::pin(async move {
            if let Some(target) = target {
                target.shut_down().await;
            }
            Ok(())
        })
    }
}

impl Core {
    /// Opens the shards of this core, some at a time: each mostly waits for its device, and holds its
    /// journal in memory meanwhile.
    async fn open_shards(&self) -> Result<()> {
        let mine = (0..self.plan.shard_count)
            .map(ShardId)
            .filter(|shard| core_of(*shard, self.cores) == self.core);
        let opened = stream::iter(mine).map(|shard| self.open_shard(shard));
        opened.buffer_unordered(OPENING_MAX).try_collect().await
    }

    async fn open_shard(&self, shard: ShardId) -> Result<()> {
        let engine = EngineConfig {
            shard,
            shard_count: self.plan.shard_count,
            runtime: Rc::clone(&self.handle) as Rc<dyn Runtime>,
            members: self.members.clone(),
        };
        let peers = Rc::new(ShardPeers(Rc::clone(&self.hub)));
        let limits = engine_store::limits::Limits::default();
        let opened = Shard::open(ShardConfig { engine, peers, limits }).await?;
        opened.engine().set_cache_bytes(self.plan.index_cache_bytes);
        opened.set_data_cache_bytes(self.plan.data_cache_bytes);
        for note in opened.engine().recovery_notes() {
            tracing::warn!(shard = shard.0, "recovery: {note}");
        }
        // Opened twice, it would be a second core's mistake: the first one's are kept.
        let _ =
            self.plan.times[usize::from(shard.0)].set(Arc::clone(opened.engine().waits().times()));
        let admission = Admission::new(self.plan.shard_requests_max, self.plan.shard_bytes_max);
        self.hub.add(opened, admission);
        tracing::debug!(shard = shard.0, core = self.core, "shard is open");
        Ok(())
    }
}
