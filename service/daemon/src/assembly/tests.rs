//! Cores, shards and links together, on devices in memory.

use std::rc::Rc;
use std::sync::Arc;

use api_grpc::{ExportNamespace, ExportSpec};
use engine_device::{
    BlockDevice, Completion, DeviceError, DeviceInfo, DeviceQueue, MemoryDevice, Operation,
};
use engine_memory::Buffer;
use engine_shard::Reactor;
use engine_shard::doorbell::Doorbell;
use engine_store::StoreError;
use engine_store::api::{Data, Link as _};
use engine_store::client::{Client, VolumeRef};
use engine_store::pool::FormatOptions;

use super::*;
use crate::config::parse;
use crate::exports::Exports;
use crate::metrics::observed::Observed;
use api_grpc::Observe as _;
use engine_base::time_stats::TimeSnapshot;
use engine_embed::poller::QueuePoller;

const SHARDS: u16 = 4;

fn config(more: &str) -> Config {
    parse(&format!("pool.devices = [\"/dev/memory\"]\n{more}")).unwrap()
}

/// A formatted device.
fn device() -> Arc<dyn BlockDevice> {
    let device = MemoryDevice::new("memory", 256 << 20, 4096);
    let mut reactor = Reactor::new(&ReactorConfig::default(), Arc::new(Doorbell::new().unwrap()));
    let queue = device.open_queue(8).unwrap();
    reactor.handle().register_poller("device", Rc::new(QueuePoller(Rc::clone(&queue)))).unwrap();
    let options = FormatOptions { shards: Some(SHARDS), uuid_seed: [1, 2], ..Default::default() };
    let format = async move { engine_store::pool::format(&[queue], &options).await };
    reactor.block_on(format).unwrap().unwrap();
    Arc::new(device)
}

/// Two cores, open, with two shards each.
async fn open_pool(device: Arc<dyn BlockDevice>) -> (Assembly, Faults) {
    let config = config("cores.count = 2\ncores.pin = false\ncores.idle_window_us = 0");
    let (assembly, faults) = start(&config, vec![device], SHARDS, 2).unwrap();
    open(&assembly.link).await.unwrap();
    (assembly, faults)
}

async fn end(assembly: Assembly) {
    ask_all(&assembly.link, || Ask::Quiesce).await.unwrap();
    ask_all(&assembly.link, || Ask::Close).await.unwrap();
    assembly.cores.stop();
    tokio::task::spawn_blocking(move || assembly.cores.join()).await.unwrap().unwrap();
}

fn exports(assembly: &Assembly) -> Exports<ControlLink> {
    let plan = &assembly.plan;
    let client = Client::new(assembly.link.clone());
    Exports::new(client, plan.target.clone(), Arc::clone(&plan.volumes))
}

fn spec(nqn: &str, volume: &str) -> ExportSpec {
    ExportSpec {
        nqn: nqn.to_owned(),
        namespaces: vec![ExportNamespace { nsid: 1, volume: volume.to_owned() }],
        allow_any_host: true,
        host_nqns: Vec::new(),
    }
}

#[test]
fn cores_fit_machine_and_pool() {
    let automatic = config("");
    assert_eq!(core_count(&automatic, 1, 8), 1);
    assert_eq!(core_count(&automatic, 4, 8), 3);
    assert_eq!(core_count(&automatic, 64, 8), 8);
    assert_eq!(core_count(&config("cores.count = 5"), 2, 8), 5);
    assert_eq!(core_count(&config("cores.list = [3, 1]"), 64, 8), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_is_read_and_shutdown_is_told() {
    let (assembly, _faults) = open_pool(device()).await;
    let client = Client::new(assembly.link.clone());
    let info = client.volume_create("v", 64 << 20, 4096).await.unwrap();
    let volume = VolumeRef::from(&info);
    let data: Data = [Buffer::try_copy_of(&[9; 8192]).unwrap().freeze()].into_iter().collect();
    client.volume_write(&volume, 4096, data, true).await.unwrap();
    let read = client.volume_read(&volume, 0, 16384).await.unwrap();
    let read: Vec<u8> = read.iter().flat_map(|piece| piece.to_vec()).collect();
    assert!(read[..4096].iter().chain(&read[12288..]).all(|byte| *byte == 0));
    assert!(read[4096..12288].iter().all(|byte| *byte == 9));
    assert_eq!(client.status().await.unwrap().len(), usize::from(SHARDS));
    let counted: u64 = assembly
        .plan
        .core_stats
        .iter()
        .map(|core| {
            let mut all = engine_base::histogram::Snapshot::default();
            core.latencies.iter().for_each(|one| all.add(one));
            all.count()
        })
        .sum();
    assert!(counted >= 7, "{counted} requests: 1 create, 1 write, 1 read, {SHARDS} states");
    time_statistics_tell_of_it(&assembly);
    ask_all(&assembly.link, || Ask::Quiesce).await.unwrap();
    ask_all(&assembly.link, || Ask::Close).await.unwrap();
    let late = client.volume_read(&volume, 0, 4096).await;
    assert!(matches!(late, Err(StoreError::ShuttingDown { .. })), "{late:?}");
    assembly.cores.stop();
    let link = assembly.link.clone();
    tokio::task::spawn_blocking(move || assembly.cores.join()).await.unwrap().unwrap();
    let ended = link.ask(0, Ask::Ping).await;
    assert!(matches!(ended, Err(StoreError::ShuttingDown { .. })), "{ended:?}");
}

/// One create, one durable write of 8192 bytes and one read, all answered.
fn time_statistics_tell_of_it(assembly: &Assembly) {
    let observed = Observed {
        plan: Arc::clone(&assembly.plan),
        reactors: assembly.cores.stats().cloned().collect(),
        clock: assembly.clock,
    };
    let timings = observed.timings();
    let of = |name: &str| {
        let mut whole = TimeSnapshot::default();
        timings.iter().filter(|one| one.name == name).for_each(|one| whole.merge(&one.times));
        whole
    };
    assert_eq!((of("request_write").count, of("request_read").count), (1, 1));
    for name in ["data_write", "data_read", "device_write", "device_read", "device_flush"] {
        assert!(of(name).count > 0, "{name}: {timings:?}");
    }
    for name in ["journal_flush_write", "blocked_journal_flush", "peer_request"] {
        assert!(of(name).count > 0, "{name}: {timings:?}");
    }
    let (whole, part) = (of("request_write"), of("data_write"));
    assert!(part.max_ns <= whole.max_ns, "a part is no longer than the whole");
    assert_eq!(observed.shards().count(), usize::from(SHARDS));
    let bytes = observed.shards().map(|(_, times)| times.bytes());
    let bytes = bytes.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!(bytes, (16384, 8192));
    // Only what goes on by itself is still going on.
    let requests = observed.waiting().into_iter().filter(|one| one.name.starts_with("request_"));
    assert_eq!(requests.count(), 0);
    assert_eq!(observed.cores().len(), assembly.link.cores());
    assert!(observed.cores().iter().all(|core| core.busy_ns > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_not_open_says_so() {
    let config = config("cores.count = 2\ncores.pin = false\ncores.idle_window_us = 0");
    let (assembly, _faults) = start(&config, vec![device()], SHARDS, 2).unwrap();
    let early = Client::new(assembly.link.clone()).status().await;
    assert!(matches!(early, Err(StoreError::Busy { .. })), "{early:?}");
    let wrong = assembly.link.call(engine_base::ShardId(99), engine_store::api::Request::Flush);
    assert!(wrong.await.is_err());
    open(&assembly.link).await.unwrap();
    end(assembly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_requests_than_any_table_or_ring_holds() {
    let (assembly, _faults) = open_pool(device()).await;
    let client = Client::new(assembly.link.clone());
    let all = (0..3000).map(|_| client.status());
    let answers = futures::future::join_all(all).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(assembly.link.pending(), 0);
    end(assembly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_dropped_leave_nothing_behind() {
    let (assembly, _faults) = open_pool(device()).await;
    let client = Client::new(assembly.link.clone());
    for round in 0..200 {
        let name = format!("t{round}");
        let create = client.tree_create(&name);
        // Ready at the same time: whichever is polled first wins, so some are dropped half way.
        tokio::select! {
            _ = create => {}
            () = tokio::task::yield_now() => {}
        }
    }
    // Requests of one sender to one shard are answered in no promised order, so wait by asking until
    // the table is empty; it would never be, were a slot lost.
    while assembly.link.pending() > 0 {
        assembly.link.ask(0, Ask::Ping).await.unwrap();
    }
    end(assembly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_come_back_and_guard_their_volumes() {
    let (assembly, _faults) = open_pool(device()).await;
    let client = Client::new(assembly.link.clone());
    client.volume_create("v", 64 << 20, 4096).await.unwrap();
    client.volume_create("small", 64 << 20, 512).await.unwrap();
    client.tree_create("tree").await.unwrap();
    let first = exports(&assembly);
    let nqn = "nqn.2026-01.org.example:v";
    let made = first.create(spec(nqn, "v")).await.unwrap();
    assert_eq!(made.spec, spec(nqn, "v"));
    for (volume, wanted) in [("v", "exists"), ("small", "512"), ("tree", "not a volume")] {
        let nqn = if volume == "v" { nqn.to_owned() } else { format!("{nqn}2") };
        let error = first.create(spec(&nqn, volume)).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{volume}: {error}");
    }
    assert_eq!(first.volume_in_use("v").await.as_deref(), Some(nqn));
    assert_eq!(first.volume_in_use("small").await, None);
    let info = client.volume_resize("v", 128 << 20).await.unwrap();
    first.volume_resized(&info).await.unwrap();

    // A restart: the target forgets, the records do not.
    let name = nvme_spec::Nqn::new(nqn).unwrap();
    assembly.plan.target.as_ref().unwrap().remove_subsystem(&name).unwrap();
    let second = exports(&assembly);
    assert_eq!(second.restore().await.unwrap(), 1);
    assert_eq!(second.list().await, [made]);
    assert_eq!(second.namespaces().await, [(name.clone(), 1)]);
    assert!(assembly.plan.target.as_ref().unwrap().namespace_stats(&name, 1).is_ok());
    second.delete(nqn).await.unwrap();
    assert!(matches!(second.delete(nqn).await, Err(StoreError::NotFound { .. })));
    assert!(assembly.plan.target.as_ref().unwrap().namespace_stats(&name, 1).is_err());
    let third = exports(&assembly);
    assert_eq!(third.restore().await.unwrap(), 0);
    end(assembly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_does_not_fit_a_record_is_refused_and_not_served() {
    let (assembly, _faults) = open_pool(device()).await;
    let client = Client::new(assembly.link.clone());
    let mut large = spec("nqn.2026-01.org.example:large", "x");
    large.namespaces.clear();
    for nsid in 1..=10 {
        let volume = format!("{}{nsid}", "x".repeat(200));
        client.volume_create(&volume, 1 << 20, 4096).await.unwrap();
        large.namespaces.push(ExportNamespace { nsid, volume });
    }
    let exports = exports(&assembly);
    let error = exports.create(large).await.unwrap_err().to_string();
    assert!(error.contains("1536 are allowed"), "{error}");
    assert!(exports.list().await.is_empty());
    end(assembly).await;
}

/// A device whose writes panic.
struct Cursed(Arc<dyn BlockDevice>);

struct CursedQueue(Rc<dyn DeviceQueue>);

impl BlockDevice for Cursed {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn open_queue(&self, depth: u32) -> std::result::Result<Rc<dyn DeviceQueue>, DeviceError> {
        Ok(Rc::new(CursedQueue(self.0.open_queue(depth)?)))
    }
}

impl DeviceQueue for CursedQueue {
    fn info(&self) -> &DeviceInfo {
        self.0.info()
    }

    fn refresh_size(&self) -> std::result::Result<u64, DeviceError> {
        self.0.refresh_size()
    }

    fn submit(&self, operation: Operation, done: Completion) {
        assert!(!matches!(operation, Operation::Write { .. }), "the device is cursed");
        self.0.submit(operation, done);
    }

    fn poll(&self) -> usize {
        self.0.poll()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        self.0.wake_fd()
    }

    fn prepare_to_sleep(&self) -> bool {
        self.0.prepare_to_sleep()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_on_a_core_is_reported_and_ends_all_calls() {
    let (assembly, mut faults) = open_pool(Arc::new(Cursed(device()))).await;
    let client = Client::new(assembly.link.clone());
    let created = client.tree_create("t").await;
    assert!(matches!(created, Err(StoreError::ShuttingDown { .. })), "{created:?}");
    let fault = faults.recv().await.unwrap();
    assert!(fault.contains("the device is cursed"), "{fault}");
    let joined = tokio::task::spawn_blocking(move || assembly.cores.join()).await.unwrap();
    assert!(joined.is_err());
}
