//! One scrape: collects what all parts count, as Prometheus text.
//!
//! Everything but the state of the shards is read without asking anyone. That is asked of the cores,
//! with a time limit, so that a scrape of a daemon in trouble still tells of the rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine_memory::alloc_site;
use engine_memory::profile::Scoped;
use engine_shard::{ReactorStats, TaskClass};
use engine_store::api::ShardStatus;
use engine_store::client::Client;
use nvme_target::{LATENCY_BUCKETS, OperationKind, StatsSnapshot, Target};

use super::device::{DeviceStats, OPERATIONS};
use super::engine::{CoreStats, RequestKind};
use super::families::Families;
use super::observed::Observed;
use super::process;
use super::server::Scrape;
use crate::exports::Exports;
use crate::serve::control::ControlLink;
use crate::serve::link::Ask;
use api_grpc::{MethodTimes, Observe as _};
use engine_base::histogram::Snapshot;
use engine_base::time_stats::TimeSnapshot;
use engine_store::times::Timed;

/// How long the shards may take to tell their state.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Namespaces shown one by one; the histograms always cover all.
const NAMESPACES_MAX: usize = 1000;

/// What a scrape reads.
pub(crate) struct Sources {
    /// The way to the shards.
    pub(crate) link: ControlLink,
    /// By core.
    pub(crate) reactors: Vec<Arc<ReactorStats>>,
    /// By core.
    pub(crate) cores: Vec<Arc<CoreStats>>,
    /// By core and member.
    pub(crate) devices: Vec<Vec<Arc<DeviceStats>>>,
    /// Path of each member.
    pub(crate) members: Vec<String>,
    /// The NVMe/TCP target.
    pub(crate) target: Option<Target>,
    /// Its exports.
    pub(crate) exports: Arc<Exports<ControlLink>>,
    /// Time statistics and cores.
    pub(crate) observed: Arc<Observed>,
    /// Of the gRPC server.
    pub(crate) methods: MethodTimes,
    /// UUID of the pool.
    pub(crate) pool_uuid: String,
    /// Start of the daemon, seconds since the Unix epoch.
    pub(crate) started_s: f64,
}

impl Scrape for Sources {
    async fn scrape(&self) -> Result<Vec<u8>, String> {
        Scoped::new(alloc_site!("metrics"), self.collect()).await
    }
}

impl Sources {
    async fn collect(&self) -> Result<Vec<u8>, String> {
        let mut families = Families::default();
        self.build(&mut families);
        process::collect(&mut families);
        process::allocations(&mut families);
        self.reactors(&mut families);
        self.devices(&mut families);
        self.waits(&mut families);
        self.methods(&mut families);
        let status = tokio::time::timeout(STATUS_TIMEOUT, self.status()).await;
        self.requests(&mut families);
        let good = matches!(status, Ok(Ok(_)));
        let help = "Whether all shards told their state in this scrape.";
        families.gauge("cairn_shards_up", help, &[], f64::from(u8::from(good)));
        if let Ok(Ok(status)) = status {
            shards(&mut families, &status);
        }
        self.nvme(&mut families).await;
        families.encode().map_err(|error| format!("cannot write the metrics: {error}"))
    }
}

impl Sources {
    /// Asks the cores for their load and the shards for their state.
    async fn status(&self) -> engine_store::Result<Vec<ShardStatus>> {
        for core in 0..self.link.cores() {
            self.link.ask(core, Ask::Publish).await?;
        }
        Client::new(self.link.clone()).status().await
    }

    fn build(&self, families: &mut Families) {
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("pool", self.pool_uuid.as_str())];
        families.gauge("cairn_build_info", "Always 1; the labels tell.", &labels, 1.0);
        let help = "Start of the daemon, seconds since the Unix epoch.";
        families.gauge("process_start_time_seconds", help, &[], self.started_s);
        let help = "Requests of control threads (gRPC, metrics) under way to the cores.";
        families.gauge("cairn_control_requests", help, &[], self.link.pending() as f64);
    }

    fn reactors(&self, families: &mut Families) {
        for (core, stats) in self.reactors.iter().enumerate() {
            let snapshot = stats.snapshot();
            let core = core.to_string();
            let seconds = |ns: u64| ns as f64 / 1e9;
            for (state, ns) in [
                ("busy", snapshot.busy_ns),
                ("polling", snapshot.polling_ns),
                ("sleeping", snapshot.sleeping_ns),
            ] {
                let help = "Time of a core: turns that found work, turns that found none, sleep.";
                let labels = [("core", core.as_str()), ("state", state)];
                families.counter("cairn_core_seconds_total", help, &labels, seconds(ns));
            }
            for (class, ns) in TaskClass::ALL.iter().zip(snapshot.class_ns) {
                let class = match class {
                    TaskClass::Client => "client",
                    TaskClass::Background => "background",
                };
                let labels = [("core", core.as_str()), ("class", class)];
                let help = "Time spent in tasks.";
                families.counter("cairn_core_task_seconds_total", help, &labels, seconds(ns));
            }
            let labels = [("core", core.as_str())];
            let tasks = snapshot.tasks_live as f64;
            families.gauge("cairn_core_tasks", "Tasks alive.", &labels, tasks);
            let longest = seconds(snapshot.longest_ns);
            let help = "Longest time that a task held its core.";
            families.gauge("cairn_core_task_seconds_max", help, &labels, longest);
            for (name, help, count) in [
                ("cairn_core_turns_total", "Turns.", snapshot.turns),
                ("cairn_core_sleeps_total", "Times the core slept.", snapshot.sleeps),
                ("cairn_core_messages_in_total", "Messages received.", snapshot.messages_in),
                ("cairn_core_messages_out_total", "Messages sent.", snapshot.messages_out),
                ("cairn_core_ring_full_total", "Sends that waited for room.", snapshot.ring_full),
                ("cairn_core_stalls_total", "Tasks that held a core too long.", snapshot.stalls),
            ] {
                families.counter(name, help, &labels, count as f64);
            }
        }
    }

    fn devices(&self, families: &mut Families) {
        for (member, path) in self.members.iter().enumerate() {
            let index = member.to_string();
            let base = [("member", index.as_str()), ("path", path.as_str())];
            let all = || self.devices.iter().map(|core| &*core[member]);
            for (kind, operation) in OPERATIONS.iter().enumerate() {
                let labels = [base[0], base[1], ("operation", *operation)];
                let mut latencies = TimeSnapshot::default();
                all().for_each(|stats| latencies.merge(&stats.times[kind].snapshot(0)));
                let help = "Latency of device operations, as the daemon sees it.";
                families.histogram("cairn_device_seconds", help, &labels, &latencies.histogram);
                let errors = sum(all().map(|stats| &stats.errors[kind]));
                let help = "Device operations that failed.";
                families.counter("cairn_device_errors_total", help, &labels, errors);
            }
            for (kind, operation) in OPERATIONS.iter().take(2).enumerate() {
                let labels = [base[0], base[1], ("operation", *operation)];
                let bytes = sum(all().map(|stats| &stats.bytes[kind]));
                let help = "Bytes read from and written to devices.";
                families.counter("cairn_device_bytes_total", help, &labels, bytes);
            }
            let in_flight = sum(all().map(|stats| &stats.in_flight));
            let help = "Device operations in flight.";
            families.gauge("cairn_device_operations", help, &base, in_flight);
        }
    }

    /// Summed over the shards, with the time of each shard beside it.
    fn waits(&self, families: &mut Families) {
        for (kind, name) in Timed::ALL {
            let mut whole = TimeSnapshot::default();
            for (shard, times) in self.observed.shards() {
                let one = times.snapshot(*kind, 0);
                if one.count > 0 {
                    let shard = shard.to_string();
                    let labels = [("shard", shard.as_str()), ("wait", *name)];
                    let seconds = one.total_ns() as f64 / 1e9;
                    let help = "Time that requests and waits of a shard took, side by side.";
                    families.counter("cairn_shard_wait_seconds_total", help, &labels, seconds);
                }
                whole.merge(&one);
            }
            let help = "Requests, waits and steps of the engine, by what they wait for.";
            families.histogram("cairn_wait_seconds", help, &[("wait", *name)], &whole.histogram);
        }
        let mut now = BTreeMap::new();
        for waiting in self.observed.waiting() {
            let (count, longest_ns) = now.entry(waiting.name).or_insert((0_u64, 0));
            *count += 1;
            *longest_ns = waiting.waited_ns.max(*longest_ns);
        }
        for (_, name) in Timed::ALL {
            let (count, longest_ns) = now.get(name).copied().unwrap_or_default();
            let labels = [("wait", *name)];
            let help = "Requests, waits and steps that go on now.";
            families.gauge("cairn_waiting", help, &labels, count as f64);
            let help = "How long the oldest of these goes on.";
            families.gauge("cairn_waiting_seconds_max", help, &labels, longest_ns as f64 / 1e9);
        }
    }

    fn methods(&self, families: &mut Families) {
        for (method, times) in self.methods.snapshot() {
            let help = "Calls of the gRPC interface, streams until their end.";
            let labels = [("method", method)];
            families.histogram("cairn_grpc_seconds", help, &labels, &times.histogram);
        }
    }

    fn requests(&self, families: &mut Families) {
        for (kind, name) in RequestKind::ALL {
            let labels = [("operation", name)];
            let mut latencies = Snapshot::default();
            self.cores.iter().for_each(|core| latencies.add(&core.latencies[kind as usize]));
            let help = "Latency of requests to shards, from their arrival on the shard's core.";
            families.histogram("cairn_request_seconds", help, &labels, &latencies);
            let mut seen = Snapshot::default();
            seen.add(&self.link.latencies()[kind as usize]);
            let help = "Latency of requests to shards as control threads (gRPC) see it.";
            families.histogram("cairn_control_request_seconds", help, &labels, &seen);
            let errors = sum(self.cores.iter().map(|core| &core.errors[kind as usize]));
            let help = "Requests to shards that failed.";
            families.counter("cairn_request_errors_total", help, &labels, errors);
        }
        let shard_count = self.cores.first().map_or(0, |core| core.loads.len());
        for shard in 0..shard_count {
            let id = shard.to_string();
            let labels = [("shard", id.as_str())];
            let loads = || self.cores.iter().map(move |core| &core.loads[shard]);
            let running = sum(loads().map(|load| &load.running));
            families.gauge("cairn_shard_requests", "Requests in progress.", &labels, running);
            let waiting = sum(loads().map(|load| &load.waiting));
            let help = "Requests that wait to be admitted.";
            families.gauge("cairn_shard_requests_waiting", help, &labels, waiting);
            let bytes = sum(loads().map(|load| &load.bytes));
            let help = "Data of the requests in progress.";
            families.gauge("cairn_shard_request_bytes", help, &labels, bytes);
        }
    }

    async fn nvme(&self, families: &mut Families) {
        let Some(target) = &self.target else { return };
        let controllers = target.controllers();
        let connections: usize = controllers.iter().map(|one| one.connections.len()).sum();
        let count = controllers.len() as f64;
        families.gauge("cairn_nvme_controllers", "Controllers of hosts.", &[], count);
        let help = "Connections of these.";
        families.gauge("cairn_nvme_connections", help, &[], connections as f64);
        let mut whole = StatsSnapshot::default();
        for (index, (nqn, nsid)) in self.exports.namespaces().await.into_iter().enumerate() {
            // One that is being deleted is gone already.
            let Ok(stats) = target.namespace_stats(&nqn, nsid) else { continue };
            whole.merge(&stats);
            if index < NAMESPACES_MAX {
                namespace(families, nqn.as_str(), nsid, &stats);
            }
        }
        for kind in OperationKind::ALL {
            let stats = whole.of(kind);
            let mut below = 0;
            let bounds = (0..LATENCY_BUCKETS - 1).map(|bucket| (1_u64 << bucket) as f64 / 1e6);
            let buckets = bounds.zip(stats.latency_buckets).map(|(bound, count)| {
                below += count;
                (bound, below)
            });
            let buckets: Vec<_> = buckets.collect();
            families.cumulative(
                "cairn_nvme_seconds",
                "Latency of NVMe commands of all exports, from arrival to answer.",
                &[("operation", kind.name())],
                buckets.into_iter(),
                stats.latency_buckets.iter().sum(),
                stats.latency_ns as f64 / 1e9,
            );
        }
    }
}

fn namespace(families: &mut Families, nqn: &str, nsid: u32, stats: &StatsSnapshot) {
    let nsid = nsid.to_string();
    for kind in OperationKind::ALL {
        let counts = stats.of(kind);
        let labels = [("nqn", nqn), ("nsid", nsid.as_str()), ("operation", kind.name())];
        for (name, help, count) in [
            ("cairn_nvme_operations_total", "NVMe commands completed.", counts.operations),
            ("cairn_nvme_bytes_total", "Bytes of NVMe commands that succeeded.", counts.bytes),
            ("cairn_nvme_errors_total", "NVMe commands that failed.", counts.errors),
        ] {
            families.counter(name, help, &labels, count as f64);
        }
    }
}

fn shards(families: &mut Families, all: &[ShardStatus]) {
    for status in all {
        let shard = status.shard.to_string();
        let labels = [("shard", shard.as_str())];
        for (kind, bytes) in [
            ("capacity", status.capacity_bytes),
            ("data", status.data_bytes),
            ("index", status.index_bytes),
            ("journal", status.journal_bytes),
            ("fragmented", status.fragmented_bytes),
            ("available", status.available_bytes),
            ("unassigned", status.unassigned_bytes),
        ] {
            let labels = [labels[0], ("kind", kind)];
            families.gauge("cairn_shard_bytes", "Space of a shard.", &labels, bytes as f64);
        }
        let help = "Files, directories and symbolic links.";
        families.gauge("cairn_shard_inodes", help, &labels, status.inodes as f64);
        for (counter, value) in &status.counters {
            let labels = [labels[0], ("counter", *counter)];
            let help = "What the engine counts: journal, index cache, transactions, waits.";
            families.gauge("cairn_shard_engine", help, &labels, *value as f64);
        }
    }
}

fn sum<'a>(counters: impl Iterator<Item = &'a AtomicU64>) -> f64 {
    counters.map(|counter| counter.load(Ordering::Relaxed) as f64).sum()
}
