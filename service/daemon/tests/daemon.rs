//! The real binary on files: configuration, start, signals, crash, metrics, rest.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::sync::Arc;

use engine_device::{BlockDevice as _, DeviceQueue, FileDevice, OpenOptions};
use engine_shard::doorbell::Doorbell;
use engine_shard::{Poller, Reactor, ReactorConfig};
use engine_store::pool::FormatOptions;
use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const CAIRND: &str = env!("CARGO_BIN_EXE_cairnd");

/// A directory with a pool and a configuration.
struct Pool {
    directory: TempDir,
    metrics_port: u16,
    nvme_port: u16,
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn cairnd(arguments: &[&str]) -> Output {
    Command::new(CAIRND).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Polls a device queue.
struct QueuePoller(Rc<dyn DeviceQueue>);

impl Poller for QueuePoller {
    fn poll(&self) -> usize {
        self.0.poll()
    }

    fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        self.0.wake_fd()
    }

    fn prepare_to_sleep(&self) -> bool {
        self.0.prepare_to_sleep()
    }
}

impl Pool {
    /// Two members of 64 MiB, formatted.
    fn new() -> Self {
        let pool = Self {
            directory: tempfile::tempdir().unwrap(),
            metrics_port: free_port(),
            nvme_port: free_port(),
        };
        pool.member("a");
        pool.member("b");
        pool.format(&["a", "b"]);
        pool.configure(&["a", "b"]);
        pool
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn member(&self, name: &str) {
        std::fs::File::create(self.path(name)).unwrap().set_len(64 << 20).unwrap();
    }

    /// Makes a pool of these members.
    fn format(&self, members: &[&str]) {
        let mut queues = Vec::new();
        let mut reactor =
            Reactor::new(&ReactorConfig::default(), Arc::new(Doorbell::new().unwrap()));
        for name in members {
            let device = FileDevice::open(self.path(name), &OpenOptions::default()).unwrap();
            let queue = device.open_queue(8).unwrap();
            let poller = Rc::new(QueuePoller(Rc::clone(&queue)));
            reactor.handle().register_poller("device", poller).unwrap();
            queues.push(queue);
        }
        // Different for each pool of these tests, the same in each run but for the directory.
        let seed = self.directory.path().as_os_str().as_encoded_bytes();
        let seed = u64::from(engine_base::checksum::crc32c(seed)) + members.len() as u64;
        let options = FormatOptions { uuid_seed: [seed, 7], ..FormatOptions::default() };
        let format = async move { engine_store::pool::format(&queues, &options).await };
        reactor.block_on(format).unwrap().unwrap();
    }

    fn configure(&self, members: &[&str]) {
        let devices: Vec<String> =
            members.iter().map(|name| format!("{:?}", self.shown(name))).collect();
        let text = format!(
            "pool.devices = [{}]\ncores.pin = false\ngrpc.socket = {:?}\n\
             grpc.socket_mode = \"0600\"\nnvme.listen = [\"127.0.0.1:{}\"]\n\
             metrics.listen = \"127.0.0.1:{}\"\nlog.format = \"json\"\n",
            devices.join(", "),
            self.shown("socket"),
            self.nvme_port,
            self.metrics_port,
        );
        std::fs::write(self.path("cairnd.toml"), text).unwrap();
    }

    fn check(&self) -> Output {
        cairnd(&["--check-config", "--config", &self.shown("cairnd.toml")])
    }

    /// Runs to its end, which must come by itself.
    fn refused(&self) -> (Option<i32>, String) {
        let ended = cairnd(&["--config", &self.shown("cairnd.toml")]);
        (ended.status.code(), text(&ended.stderr))
    }

    /// Starts the daemon and waits until it is ready, which it tells as to systemd.
    fn start(&self) -> Daemon {
        let notify = self.path("notify");
        let _ = std::fs::remove_file(&notify);
        let socket = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let child = Command::new(CAIRND)
            .args(["--config", &self.shown("cairnd.toml")])
            .env("NOTIFY_SOCKET", &notify)
            .stderr(log.unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Daemon { child, socket, log: self.path("log") };
        daemon.wait_for("READY=1");
        daemon
    }

    fn get(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics_port)).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }
}

/// A running daemon; killed when dropped.
struct Daemon {
    child: Child,
    socket: std::os::unix::net::UnixDatagram,
    log: PathBuf,
}

impl Daemon {
    /// Waits for a line to systemd. A daemon that ends first fails the test at once.
    fn wait_for(&self, line: &str) {
        let pid = Pid::from_child(&self.child);
        self.socket.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        let mut buffer = [0; 4096];
        loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) if text(&buffer[..len]).lines().any(|sent| sent == line) => return,
                Ok(_) => {}
                Err(_) => assert!(
                    Path::new(&format!("/proc/{}/fd/0", pid.as_raw_nonzero())).exists(),
                    "ended before {line}:\n{}",
                    self.log()
                ),
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends the daemon by `signal` and tells its exit code.
    fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.child.wait().unwrap().code()
    }

    /// Figures from /proc: resident memory in KiB, and processor time in ticks.
    fn usage(&self) -> (u64, u64) {
        let read =
            |name| std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap();
        let status = read("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        let resident = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split_whitespace().collect();
        (resident, fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_command_line_answers_without_a_pool() {
    let version = cairnd(&["--version"]);
    assert!(text(&version.stdout).starts_with("cairnd "));
    let printed = cairnd(&["--print-default-config"]);
    assert!(text(&printed.stdout).contains("\n[pool]\n"));
    let missing = cairnd(&["--config", "/nonexistent/cairnd.toml"]);
    assert_eq!(missing.status.code(), Some(2));
    let wanted = "cairnd: /nonexistent/cairnd.toml: cannot read /nonexistent/cairnd.toml: No such \
                  file or directory (os error 2)\n";
    assert_eq!(text(&missing.stderr), wanted);
    assert_eq!(cairnd(&["--no-such-option"]).status.code(), Some(2));
}

#[test]
fn the_configuration_check_looks_at_the_devices() {
    let pool = Pool::new();
    let checked = pool.check();
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).ends_with("cairnd.toml: good\n"));

    pool.member("blank");
    pool.configure(&["a", "b", "blank"]);
    let checked = pool.check();
    assert_eq!(checked.status.code(), Some(2));
    assert!(text(&checked.stderr).contains("not a Cairn member"), "{}", text(&checked.stderr));

    pool.configure(&["a"]);
    let checked = text(&pool.check().stderr);
    assert!(checked.contains("member 1 (") && checked.contains("is missing"), "{checked}");

    pool.configure(&["a", "absent"]);
    assert!(text(&pool.check().stderr).contains("absent: No such file or directory"));
}

#[test]
fn what_cannot_be_served_is_told_and_exits_with_1() {
    let pool = Pool::new();
    pool.configure(&["a"]);
    let (code, log) = pool.refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("is missing; add its device to pool.devices"), "{log}");

    pool.member("c");
    pool.format(&["c"]);
    pool.configure(&["a", "c", "b"]);
    let (code, log) = pool.refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("a daemon serves one pool"), "{log}");

    pool.configure(&["a", "b"]);
    let taken = TcpListener::bind(("127.0.0.1", pool.metrics_port)).unwrap();
    let (code, log) = pool.refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("metrics.listen: cannot listen on 127.0.0.1:"), "{log}");
    drop(taken);
    let taken = TcpListener::bind(("127.0.0.1", pool.nvme_port)).unwrap();
    let (code, log) = pool.refused();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("nvme.listen: cannot listen on 127.0.0.1:"), "{log}");
    drop(taken);
}

#[test]
fn serves_until_a_signal_and_again_after_a_crash() {
    let pool = Pool::new();
    let daemon = pool.start();
    let (code, log) = pool.refused();
    assert_eq!(code, Some(1), "a second daemon on the same pool: {log}");
    assert!(log.contains("in use"), "{log}");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
    assert!(!pool.path("socket").exists(), "the socket is taken away");

    let daemon = pool.start();
    assert_eq!(daemon.end(Signal::KILL), None);
    let daemon = pool.start();
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.end(Signal::INT), Some(0));
    let daemon = pool.start();
    let log = daemon.log();
    assert!(log.lines().all(|line| line.starts_with('{') && line.ends_with('}')), "{log}");
    assert_eq!(daemon.end(Signal::TERM), Some(0), "{log}");
}

#[test]
fn metrics_tell_of_every_part() {
    let pool = Pool::new();
    let daemon = pool.start();
    let page = pool.get("GET /metrics");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    for wanted in [
        "cairn_build_info{version=",
        "cairn_shards_up 1\n",
        "cairn_core_seconds_total{core=\"0\",state=\"busy\"}",
        "cairn_device_seconds_bucket{member=\"1\",path=",
        "cairn_request_seconds_count{operation=\"metadata\"}",
        "cairn_shard_bytes{shard=\"3\",kind=\"data\"}",
        "cairn_nvme_seconds_count{operation=\"read\"} 0\n",
        "cairn_wait_seconds_count{wait=\"request_metadata\"}",
        "cairn_shard_wait_seconds_total{shard=\"0\",wait=\"",
        "cairn_waiting{wait=\"blocked_journal_space\"} 0\n",
        "cairn_allocation_bytes{name=\"node cache\",",
        "cairn_allocation_bytes{name=\"write-out reserve\",",
        "cairn_buffer_bytes{kind=\"mapped\"}",
        "process_resident_memory_bytes ",
    ] {
        assert!(page.contains(wanted), "{wanted} is not in {page}");
    }
    assert!(pool.get("GET /").starts_with("HTTP/1.1 404 "));
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn grpc_tells_that_it_is_healthy() {
    let pool = Pool::new();
    let daemon = pool.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = pool.shown("socket");
    let status = runtime.block_on(async move {
        let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{socket}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        client.check(request).await.unwrap().into_inner().status
    });
    assert_eq!(status, 1, "SERVING");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

#[test]
fn what_is_logged_is_changed_while_it_runs() {
    let pool = Pool::new();
    let daemon = pool.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let socket = pool.shown("socket");
    let channel = runtime.block_on(async move {
        let endpoint = tonic::transport::Endpoint::try_from(format!("unix://{socket}")).unwrap();
        endpoint.connect().await.unwrap()
    });
    let set = |filter: Option<&str>| {
        let mut stats = v1::stats_service_client::StatsServiceClient::new(channel.clone());
        let filter = filter.map(str::to_owned);
        let request = v1::SetLogFilterRequest { filter, for_s: 0 };
        runtime.block_on(stats.set_log_filter(request))
    };
    let events_of_creating = |name: &str| {
        let before = daemon.log().len();
        let mut volumes = v1::volume_service_client::VolumeServiceClient::new(channel.clone());
        let (name, size_bytes) = (name.to_owned(), 1 << 20);
        let request = v1::CreateVolumeRequest { name, size_bytes, ..Default::default() };
        runtime.block_on(volumes.create_volume(request)).unwrap();
        let log = daemon.log();
        log[before..].lines().filter(|line| line.contains("\"engine_store::journal")).count()
    };
    assert_eq!(events_of_creating("a"), 0);
    set(Some("info,engine_store::journal=trace")).unwrap();
    assert!(events_of_creating("b") > 0, "{}", daemon.log());
    let refused = set(Some("info,engine_store::journal=loud")).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert!(refused.message().contains("engine_store::journal=loud"), "{refused}");
    assert!(events_of_creating("c") > 0, "what is refused changes nothing");
    set(None).unwrap();
    assert_eq!(events_of_creating("d"), 0);
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

/// Rest is told by the daemon's own counters and by the kernel's, not by a clock of the test: between
/// two scrapes the polled cores may have turned a bounded number of times per second slept.
#[test]
fn at_rest_it_sleeps_and_is_small() {
    let pool = Pool::new();
    let daemon = pool.start();
    // A host that is connected and says nothing.
    let _idle = TcpStream::connect(("127.0.0.1", pool.nvme_port)).unwrap();
    let figures = |page: &str| {
        let value = |name: &str| -> f64 {
            let line = page.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap()
        };
        let seconds =
            |state| value(&format!("cairn_core_seconds_total{{core=\"0\",state={state:?}}}"));
        (seconds("sleeping"), seconds("busy") + seconds("polling"))
    };
    // Scrapes wake the core, so the share of sleep only shows over seconds without any: wait for them
    // by the core's own clock, asking rarely.
    let (slept_first, awake_first) = figures(&pool.get("GET /metrics"));
    let ticks_first = daemon.usage().1;
    let mut waiter = std::os::unix::net::UnixDatagram::bind(pool.path("nobody")).unwrap();
    let (slept, awake) = loop {
        wait_seconds(&mut waiter, 2);
        let (slept, awake) = figures(&pool.get("GET /metrics"));
        if (slept - slept_first) + (awake - awake_first) > 4.0 {
            break (slept - slept_first, awake - awake_first);
        }
    };
    let ticks = daemon.usage().1 - ticks_first;
    assert!(awake < 0.01 * (slept + awake), "awake for {awake} s of {} s", slept + awake);
    let seconds = slept + awake;
    // A tick is 10 ms: 1 % of a processor is one tick a second; the scrapes take some themselves.
    assert!(ticks as f64 <= 2.0 * seconds + 4.0, "{ticks} ticks in {seconds} s");
    let (resident_kib, _) = daemon.usage();
    assert!(resident_kib < 256 << 10, "{resident_kib} KiB at rest");
    assert_eq!(daemon.end(Signal::TERM), Some(0));
}

/// Waits for a message that does not come.
fn wait_seconds(waiter: &mut std::os::unix::net::UnixDatagram, seconds: u64) {
    waiter.set_read_timeout(Some(std::time::Duration::from_secs(seconds))).unwrap();
    let nothing = waiter.recv(&mut [0; 1]);
    assert!(nothing.is_err(), "nobody knows this socket");
}

#[test]
fn a_second_signal_ends_at_once() {
    let pool = Pool::new();
    let mut daemon = pool.start();
    daemon.signal(Signal::TERM);
    daemon.wait_for("STOPPING=1");
    daemon.signal(Signal::TERM);
    // Whichever comes first: the clean end or the second signal. Neither may hang, and a daemon
    // that was cut must start again.
    let code = daemon.child.wait().unwrap().code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    drop(daemon);
    assert_eq!(pool.start().end(Signal::TERM), Some(0));
}
