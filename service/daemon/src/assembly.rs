//! The cores of a pool, started: from devices to a link that reaches every shard.
//!
//! Nothing here names a file or a socket but those of the target, so the tests assemble the same on
//! devices in memory.

use std::sync::{Arc, OnceLock};

use engine_device::BlockDevice;
use engine_shard::clock::Clock;
use engine_shard::cores::FaultHook;
use engine_shard::{Cores, CoresConfig, IdlePolicy, ReactorConfig};
use engine_store::Result;
use nvme_target::{Limits, Target};
use tokio::sync::mpsc;

use crate::config::{Config, CoreHost};
use crate::exports::Volumes;
use crate::metrics::device::DeviceStats;
use crate::metrics::engine::CoreStats;
use crate::serve::control::{ControlLink, pump};
use crate::serve::core::{Plan, init};
use crate::serve::link::{Ask, Message};

/// Largest idle window; a configuration that asks for it means never to sleep.
const IDLE_WINDOW_US_MAX: u64 = 1_000_000_000;
/// Cores may have as many tasks as a reactor takes: what is admitted and what waits is bounded
/// elsewhere, by the tables of pending requests of every core and of the control threads.
const TASKS_MAX: usize = engine_shard::limits::TASKS_MAX;

/// Running cores.
pub(crate) struct Assembly {
    /// The threads.
    pub(crate) cores: Cores<Message>,
    /// The way to them.
    pub(crate) link: ControlLink,
    /// What they were made from.
    pub(crate) plan: Arc<Plan>,
    /// The clock of the cores.
    pub(crate) clock: Clock,
}

/// How many cores to use: as configured, and never more than there are shards.
pub(crate) fn core_count(config: &Config, processors: usize, shard_count: u16) -> usize {
    let wanted = match (&config.cores.list, config.cores.count) {
        (Some(list), _) => list.len(),
        (None, 0) => processors.saturating_sub(1).max(1),
        (None, count) => count as usize,
    };
    wanted.min(usize::from(shard_count))
}

/// Cores that stopped by themselves, in words.
pub(crate) type Faults = mpsc::Receiver<String>;

/// Starts the cores on `devices` (members by index). Shards are not open yet: [`open`] does that. Must
/// be called within a tokio runtime.
///
/// # Errors
/// What refused to start, a line for each core concerned.
pub(crate) fn start(
    config: &Config,
    devices: Vec<Arc<dyn BlockDevice>>,
    shard_count: u16,
    processors: usize,
) -> std::result::Result<(Assembly, Faults), String> {
    let cores = core_count(config, processors, shard_count);
    let target = target(config, cores)?;
    let (fault_in, faults) = mpsc::channel(cores);
    let on_fault: FaultHook = Arc::new(move |core, fault| {
        // Full: others have told already, and one is enough to end the daemon.
        let _ = fault_in.try_send(format!("core {core}: {fault}"));
    });
    let seed =
        engine_embed::members::random_seed().map_err(|error| format!("/dev/urandom: {error}"))?;
    let members = devices.len();
    let per_shard =
        |mib: u64| usize::try_from((mib << 20) / u64::from(shard_count)).unwrap_or(usize::MAX);
    let plan = Arc::new(Plan {
        devices,
        shard_count,
        queue_depth: config.cores.device_queue_depth,
        shard_requests_max: config.cores.shard_requests_max as usize,
        index_cache_bytes: per_shard(config.memory.index_cache_mib),
        data_cache_bytes: per_shard(config.memory.data_cache_mib),
        shard_bytes_max: (config.memory.io_buffers_mib << 20) / u64::from(shard_count),
        target,
        volumes: Arc::new(Volumes::default()),
        core_stats: (0..cores).map(|_| Arc::new(CoreStats::new(shard_count))).collect(),
        device_stats: (0..cores)
            .map(|_| (0..members).map(|_| Arc::new(DeviceStats::default())).collect())
            .collect(),
        times: (0..shard_count).map(|_| OnceLock::new()).collect(),
    });
    let clock = Clock::new();
    let cores_config = CoresConfig {
        cores,
        cpus: config.cores.list.iter().flatten().map(|cpu| *cpu as usize).collect(),
        pin: config.cores.pin,
        ports: 1,
        reactor: reactor(config, clock, seed),
        host: host(config.cores.host)?,
        on_fault: Some(on_fault),
        ..CoresConfig::default()
    };
    let for_cores = Arc::clone(&plan);
    let mut cores = Cores::start(&cores_config, move |context| init(&for_cores, context))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    for placement in cores.placements() {
        tracing::debug!(?placement, "core");
    }
    let port = cores.take_port().ok_or("the mesh has no control port")?;
    let (sender, receiver) = port.split();
    let link = ControlLink::new(sender, shard_count);
    tokio::spawn(pump_answers(receiver, link.clone()));
    Ok((Assembly { cores, link, plan, clock }, faults))
}

fn reactor(config: &Config, clock: Clock, seed: u64) -> ReactorConfig {
    let idle = match config.cores.idle_window_us {
        IDLE_WINDOW_US_MAX => IdlePolicy::PollForever,
        us => IdlePolicy::Window { ns: us * 1000 },
    };
    ReactorConfig { idle, tasks_max: TASKS_MAX, seed, clock, ..ReactorConfig::default() }
}

async fn pump_answers(receiver: engine_shard::PortReceiver<Message>, link: ControlLink) {
    if let Err(error) = pump(receiver, link.clone()).await {
        tracing::error!(%error, "cannot take answers from the cores");
        link.close("the control port has failed");
    }
}

/// Opens all shards.
///
/// # Errors
/// The first that cannot be opened.
pub(crate) async fn open(link: &ControlLink) -> Result<()> {
    ask_all(link, || Ask::Open).await
}

/// Asks every core the same, at once; waits for all, the first error wins.
///
/// # Errors
/// The first error.
pub(crate) async fn ask_all(link: &ControlLink, what: impl Fn() -> Ask) -> Result<()> {
    let asked = (0..link.cores()).map(|core| link.ask(core, what()));
    futures::future::join_all(asked).await.into_iter().try_for_each(|answer| answer.map(drop))
}

fn target(config: &Config, cores: usize) -> std::result::Result<Option<Target>, String> {
    if !config.nvme.enable {
        return Ok(None);
    }
    let nvme = &config.nvme;
    let per_core = (nvme.in_flight_mib << 20) / cores as u64;
    let defaults = Limits::default();
    let transfer = u64::from(defaults.transfer_len_max());
    // A core has room for one largest transfer at least, or nothing would ever move.
    let per_core = per_core.max(transfer);
    let limits = Limits {
        connections_per_core_max: (nvme.connections_max as usize).div_ceil(cores),
        io_queues_max: u16::try_from(nvme.queues_max).unwrap_or(u16::MAX),
        inflight_bytes_per_core_max: per_core,
        inflight_bytes_per_connection_max: defaults.inflight_bytes_per_connection_max.min(per_core),
        ..defaults
    };
    Target::new(limits).map(Some).map_err(|error| format!("NVMe/TCP target: {error}"))
}

#[cfg(feature = "glommio")]
fn host(host: CoreHost) -> std::result::Result<Arc<dyn engine_shard::host::Host>, String> {
    Ok(match host {
        CoreHost::Thread => Arc::new(engine_shard::host::ThreadHost),
        CoreHost::Glommio => Arc::new(engine_shard::host::GlommioHost),
    })
}

#[cfg(not(feature = "glommio"))]
fn host(host: CoreHost) -> std::result::Result<Arc<dyn engine_shard::host::Host>, String> {
    match host {
        CoreHost::Thread => Ok(Arc::new(engine_shard::host::ThreadHost)),
        CoreHost::Glommio => Err("this cairnd was built without glommio".to_owned()),
    }
}

#[cfg(test)]
mod tests;
