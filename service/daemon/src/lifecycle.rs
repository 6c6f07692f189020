//! The life of the daemon: start, serve, end.
//!
//! ```text
//!   open devices -> bind sockets -> start cores -> open shards -> restore exports -> listen
//!        |                                                                             |
//!        +--- any failure: exit 1, nothing served                        READY=1, serve until
//!                                                        a signal        | a fault of a core
//!   stop gRPC -> cut NVMe hosts -> shut shards down -> end cores <-------+--> exit 1 at once
//!        exit 0; past shutdown.timeout_s: say what was pending, exit 1
//! ```
//!
//! Sockets are bound before recovery begins, so that a second daemon or a port in use is told at
//! once; the ports of the target need the cores and come last, which is also when hosts can be
//! served.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api_grpc::{MemberInfo, Server, ServerConfig, ServerInfo, TcpConfig, TlsConfig, UnixConfig};
use engine_device::BlockDevice;
use engine_memory::alloc_site;
use engine_memory::profile::set_thread_site;
use engine_shard::clock::Clock;
use engine_store::client::Client;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::assembly::{self, Assembly, Faults};
use crate::config::Config;
use crate::exports::{Exports, SharedExports};
use crate::logging::Logging;
use crate::metrics::observed::Observed;
use crate::metrics::scrape::Sources;
use crate::metrics::server;
use crate::serve::control::ControlLink;
use crate::serve::link::Ask;
use crate::{EXIT_FAILURE, inspect, notify};
use engine_embed::members::{self, Pool, uuid_text};

/// Threads for gRPC, metrics and control. Two: one may be in a long call to the kernel.
const CONTROL_THREADS: usize = 2;
/// How long the cores may take to show the watchdog that they turn. Below every sensible
/// WatchdogSec and far above any stall that is not a fault.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon ended other than by request.
type Failure = String;

/// Runs the daemon to its end.
pub(crate) fn run(config: &Config, log: Logging) -> ExitCode {
    let pool = match members::open(&config.pool.devices, config.pool.discard.into()) {
        Ok(pool) => pool,
        Err(problems) => {
            for problem in problems {
                tracing::error!("pool: {problem}");
            }
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .on_thread_start(|| set_thread_site(alloc_site!("control threads")))
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the control threads");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    match runtime.block_on(live(config, pool, log)) {
        Ok(()) => {
            tracing::info!("clean shutdown");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            tracing::error!("{failure}");
            notify::status(&failure);
            // Not by returning: threads that hang must not keep the process.
            std::process::exit(i32::from(EXIT_FAILURE));
        }
    }
}

/// Signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

async fn live(config: &Config, pool: Pool, log: Logging) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(|error| format!("cannot watch signals: {error}"))?;
    tokio::spawn(ignore_hangup());
    let started_ns = Clock::new().wall_clock_ns();
    let sockets = Sockets::bind(config, log).await?;
    let info = server_info(&pool, started_ns);
    let devices = pool.members.iter().map(|member| {
        let device: Arc<dyn BlockDevice> = Arc::new(member.device.clone());
        device
    });
    let processors = inspect::processors()?.len();
    let (assembly, mut faults) =
        assembly::start(config, devices.collect(), pool.shard_count, processors)?;
    tracing::info!(
        pool = uuid_text(&pool.uuid),
        members = pool.members.len(),
        shards = pool.shard_count,
        cores = assembly.link.cores(),
        "opening the pool"
    );
    notify::status("opening the pool");
    let opened = tokio::select! {
        opened = open(config, &assembly) => opened,
        Some(fault) = faults.recv() => Err(fault),
        name = signals.next() => {
            // Nothing was served yet; recovery is repeatable.
            tracing::info!(signal = name, "ending while the pool was being opened");
            assembly.cores.stop_now();
            return Ok(());
        }
    };
    let exports = opened.inspect_err(|_| assembly.cores.stop_now())?;
    let mut serving = sockets.serve(&assembly, &exports, info, &pool, started_ns);
    notify::ready("serving");
    tracing::info!("serving");
    let watchdog = notify::alive_period()
        .map(|period| tokio::spawn(feed_watchdog(assembly.link.clone(), period)));
    let ended = tokio::select! {
        name = signals.next() => Ok(name),
        Some(fault) = faults.recv() => Err(fault),
        failure = serving.failure() => Err(failure),
    };
    let name = ended?;
    tracing::info!(signal = name, "shutting down");
    notify::stopping("shutting down");
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::error!(signal = name, "second signal: ending at once; the next start recovers");
        std::process::exit(i32::from(EXIT_FAILURE));
    });
    let result = shut_down(config, assembly, faults, serving).await;
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    result
}

/// Opens the shards, serves the exports again, and lets hosts in.
async fn open(config: &Config, assembly: &Assembly) -> Result<Arc<Exports<ControlLink>>, Failure> {
    let plan = &assembly.plan;
    assembly::open(&assembly.link)
        .await
        .map_err(|error| format!("cannot open the pool: {error}"))?;
    let client = Client::new(assembly.link.clone());
    let exports = Arc::new(Exports::new(client, plan.target.clone(), Arc::clone(&plan.volumes)));
    let count =
        exports.restore().await.map_err(|error| format!("cannot read the exports: {error}"))?;
    tracing::info!(count, "exports are served");
    if let Some(target) = &plan.target {
        for address in &config.nvme.listen {
            target.add_listener(*address).map_err(|error| format!("nvme.listen: {error}"))?;
        }
    }
    Ok(exports)
}

/// Bound and not yet served.
struct Sockets {
    grpc: Server,
    metrics: Option<TcpListener>,
}

impl Sockets {
    async fn bind(config: &Config, log: Logging) -> Result<Self, Failure> {
        let grpc =
            Server::bind(&grpc_config(config)).await.map_err(|error| format!("grpc: {error}"))?;
        let grpc = grpc.changing_log(Arc::new(log));
        if let Some(group) = &config.grpc.socket_group {
            let socket = &config.grpc.socket;
            let id = inspect::group_id(group)?;
            std::os::unix::fs::chown(socket, None, Some(id)).map_err(|error| {
                format!("grpc.socket_group: cannot give {} to {group}: {error}", socket.display())
            })?;
        }
        let metrics = match config.metrics.enable {
            true => {
                let address = config.metrics.listen;
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|error| {
                    format!("metrics.listen: cannot listen on {address}: {error}")
                })?)
            }
            false => None,
        };
        Ok(Self { grpc, metrics })
    }

    fn serve(
        self,
        assembly: &Assembly,
        exports: &Arc<Exports<ControlLink>>,
        info: ServerInfo,
        pool: &Pool,
        started_ns: u64,
    ) -> Serving {
        let observed = Arc::new(Observed {
            plan: Arc::clone(&assembly.plan),
            reactors: assembly.cores.stats().cloned().collect(),
            clock: assembly.clock,
        });
        let metrics = self.metrics.map(|listener| {
            let sources = Sources {
                observed: Arc::clone(&observed),
                methods: self.grpc.method_times(),
                link: assembly.link.clone(),
                reactors: assembly.cores.stats().cloned().collect(),
                cores: assembly.plan.core_stats.clone(),
                devices: assembly.plan.device_stats.clone(),
                members: pool.members.iter().map(|one| one.path.display().to_string()).collect(),
                target: assembly.plan.target.clone(),
                exports: Arc::clone(exports),
                pool_uuid: uuid_text(&pool.uuid),
                started_s: started_ns as f64 / 1e9,
            };
            tokio::spawn(server::serve(listener, Arc::new(sources)))
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let client = Client::new(assembly.link.clone());
        let exports = SharedExports(Arc::clone(exports));
        let grpc = self.grpc.showing(observed);
        let grpc = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            let served = grpc.serve(client, exports, info, stopped).await;
            served.map_err(|error| format!("grpc: {error}"))
        });
        Serving { grpc, stop, metrics }
    }
}

/// What serves clients on the control threads.
struct Serving {
    grpc: JoinHandle<Result<(), Failure>>,
    stop: oneshot::Sender<()>,
    metrics: Option<JoinHandle<()>>,
}

impl Serving {
    /// Completes when a server ended by itself.
    async fn failure(&mut self) -> Failure {
        match (&mut self.grpc).await {
            Ok(Ok(())) => "grpc: the server ended by itself".to_owned(),
            Ok(Err(failure)) => failure,
            Err(error) => format!("grpc: {error}"),
        }
    }
}

fn grpc_config(config: &Config) -> ServerConfig {
    let grpc = &config.grpc;
    let tls = grpc.tls_certificate.clone().zip(grpc.tls_key.clone());
    let tcp = grpc.listen.map(|address| TcpConfig {
        address,
        plaintext: tls.is_none(),
        tls: tls.map(|(certificate, key)| TlsConfig {
            certificate,
            key,
            client_ca: grpc.tls_client_ca.clone(),
        }),
        plaintext_beyond_loopback: false,
    });
    let unix = UnixConfig { mode: grpc.socket_mode.0, ..UnixConfig::new(&grpc.socket) };
    let limits = api_grpc::Limits {
        // A third of the time for calls in progress, the rest for making everything durable.
        shutdown_grace: Duration::from_secs(config.shutdown.timeout_s) / 3,
        ..api_grpc::Limits::default()
    };
    ServerConfig { unix: Some(unix), tcp: tcp.into_iter().collect(), limits }
}

fn server_info(pool: &Pool, started_ns: u64) -> ServerInfo {
    let members = pool.members.iter().enumerate().map(|(index, member)| MemberInfo {
        index: index as u8,
        uuid: member.uuid,
        path: member.path.display().to_string(),
        size_bytes: member.device.info().size_bytes,
        block_size: member.device.info().block_size,
    });
    ServerInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pool_uuid: pool.uuid,
        started_ns,
        members: members.collect(),
    }
}

/// Ends everything in order, within the configured time.
async fn shut_down(
    config: &Config,
    assembly: Assembly,
    faults: Faults,
    serving: Serving,
) -> Result<(), Failure> {
    let phase = Arc::new(Mutex::new("gRPC calls in progress"));
    let link = assembly.link.clone();
    let timeout = Duration::from_secs(config.shutdown.timeout_s);
    let ended =
        tokio::time::timeout(timeout, in_order(assembly, faults, serving, Arc::clone(&phase)));
    match ended.await {
        Ok(result) => result,
        Err(_) => {
            let phase = *phase.lock().unwrap_or_else(PoisonError::into_inner);
            Err(format!(
                "no clean shutdown within shutdown.timeout_s = {} s; pending: {phase}, {} requests \
                 under way; the next start recovers from the journal",
                timeout.as_secs(),
                link.pending()
            ))
        }
    }
}

async fn in_order(
    assembly: Assembly,
    mut faults: Faults,
    serving: Serving,
    phase: Arc<Mutex<&'static str>>,
) -> Result<(), Failure> {
    let enter = |name| {
        tracing::debug!(phase = name, "shutdown");
        *phase.lock().unwrap_or_else(PoisonError::into_inner) = name;
    };
    let Serving { grpc, stop, metrics } = serving;
    // Ended already: then there is nobody to tell.
    let _ = stop.send(());
    let work = async {
        match grpc.await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => tracing::error!("{failure}"),
            Err(error) => tracing::error!("grpc: {error}"),
        }
        enter("NVMe commands in progress");
        assembly::ask_all(&assembly.link, || Ask::Quiesce).await?;
        enter("making everything durable");
        assembly::ask_all(&assembly.link, || Ask::Close).await
    };
    let closed = tokio::select! {
        closed = work => closed.map_err(|error| format!("shutdown: {error}")),
        Some(fault) = faults.recv() => Err(fault),
    };
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    enter("ending the cores");
    assembly.cores.stop();
    let joined = tokio::task::spawn_blocking(move || assembly.cores.join()).await;
    closed?;
    match joined {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errors)) => {
            Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        }
        Err(error) => Err(format!("ending the cores: {error}")),
    }
}

/// Tells systemd that the daemon lives, as long as every core answers.
async fn feed_watchdog(link: ControlLink, period: Duration) {
    loop {
        match tokio::time::timeout(PING_TIMEOUT, assembly::ask_all(&link, || Ask::Ping)).await {
            Ok(Ok(())) => notify::alive(),
            Ok(Err(error)) => tracing::error!(%error, "watchdog: a core does not answer"),
            Err(_) => tracing::error!("watchdog: a core does not turn"),
        }
        tokio::time::sleep(period).await;
    }
}

async fn ignore_hangup() {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP does nothing: the configuration is read at start; restart instead");
    }
}
