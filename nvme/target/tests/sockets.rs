//! The same target over real loopback sockets, on one core and on two.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use engine_base::runtime::Runtime;
use nvme_spec::{Nqn, Status, register};
use nvme_target::testing::{
    Answer, CC_ENABLE, HostOptions, HostRuntime, MemoryBackend, MemoryVolume, TestHost,
    test_namespace,
};
use nvme_target::{Limits, OperationKind, SubsystemConfig, Target, TargetCore, VolumeKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A target whose cores run on threads of their own and sleep when idle.
struct Served {
    target: Target,
    nqn: Nqn,
    volume: MemoryVolume,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

fn serve(cores: usize, limits: Limits) -> Served {
    let target = Target::new(limits).unwrap();
    let nqn = Nqn::new("nqn.2026-01.io.cairn:sockets").unwrap();
    let backend = MemoryBackend::default();
    let volume = backend.add(VolumeKey(1), 4 << 20);
    target.add_subsystem(SubsystemConfig::open_to_all(nqn.clone(), "SOCKETS")).unwrap();
    target.add_namespace(&nqn, test_namespace(1, VolumeKey(1), 12, 1024)).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (ready, started) = std::sync::mpsc::channel();
    let threads = (0..cores)
        .map(|_| {
            let (target, backend) = (target.clone(), backend.clone());
            let (stop, ready) = (Arc::clone(&stop), ready.clone());
            std::thread::spawn(move || {
                let runtime = Rc::new(HostRuntime::new());
                let core = TargetCore::new(&target, backend, runtime.clone()).unwrap();
                ready.send(()).unwrap();
                drive(core, &runtime, &stop);
            })
        })
        .collect();
    (0..cores).for_each(|_| started.recv().unwrap());
    let address = target.add_listener("127.0.0.1:0".parse().unwrap()).unwrap();
    Served { target, nqn, volume, address, stop, threads }
}

fn drive(mut core: TargetCore<MemoryBackend>, runtime: &HostRuntime, stop: &AtomicBool) {
    loop {
        if core.poll() > 0 {
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            core.shut_down();
            while core.connections() > 0 {
                core.poll();
            }
            return;
        }
        if core.prepare_to_sleep() {
            // The stop flag has no descriptor: look at it now and then.
            let most = 20_000_000;
            let due =
                core.next_deadline_ns().map_or(most, |at| at.saturating_sub(runtime.now_ns()));
            let timeout = Timespec { tv_sec: 0, tv_nsec: due.min(most) as i64 };
            let mut fds = [PollFd::from_borrowed_fd(core.wake_fd(), PollFlags::IN)];
            let _ = poll(&mut fds, Some(&timeout));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

struct SocketHost {
    stream: TcpStream,
    host: TestHost,
}

impl SocketHost {
    fn connect(served: &Served, options: HostOptions) -> Self {
        let stream = TcpStream::connect(served.address).unwrap();
        Self { stream, host: TestHost::new(options) }
    }

    fn send(&mut self) {
        let output = self.host.take_output();
        self.stream.write_all(&output).unwrap();
    }

    fn wait(&mut self, cid: u16) -> Answer {
        let mut buffer = vec![0; 65536];
        loop {
            self.send();
            if let Some(answer) = self.host.take_answer(cid) {
                return answer;
            }
            let len = self.stream.read(&mut buffer).unwrap();
            assert!(len > 0, "the target closed the connection");
            self.host.feed(&buffer[..len]);
        }
    }

    fn run(&mut self, submit: impl FnOnce(&mut TestHost) -> u16) -> Answer {
        let cid = submit(&mut self.host);
        self.wait(cid)
    }

    /// Reads until the target closes; returns what came.
    fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        bytes
    }
}

fn connect(served: &Served, options: HostOptions, queues: u16) -> (SocketHost, Vec<SocketHost>) {
    let host_nqn = Nqn::new("nqn.2026-01.io.cairn:host").unwrap();
    let mut admin = SocketHost::connect(served, options);
    let answer = admin.run(|host| host.connect(0, None, &served.nqn, &host_nqn, 60_000));
    assert_eq!(answer.status(), Status::SUCCESS);
    let id = answer.cqe.result.get() as u16;
    admin.run(|host| host.property_set(register::CC, CC_ENABLE));
    let io = (1..=queues).map(|queue| {
        let mut io = SocketHost::connect(served, options);
        let answer = io.run(|host| host.connect(queue, Some(id), &served.nqn, &host_nqn, 0));
        assert_eq!(answer.status(), Status::SUCCESS);
        io
    });
    let io = io.collect();
    (admin, io)
}

#[test]
fn data_travel_over_sockets_with_and_without_digests() {
    let served = serve(1, Limits::default());
    for digests in [false, true] {
        let options = HostOptions {
            header_digest: digests,
            data_digest: digests,
            disable_flow_control: !digests,
            ..HostOptions::default()
        };
        let (mut admin, mut io) = connect(&served, options, 1);
        let io = &mut io[0];
        let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i >> 3) as u8 ^ u8::from(digests)).collect();
        let written = io.run(|host| host.write(1, 0, 256, &data, false));
        assert_eq!(written.status(), Status::SUCCESS);
        let read = io.run(|host| host.read(1, 0, 256, 1 << 20));
        assert!(read.data == data);
        // A queue full of small commands in one send.
        let commands: Vec<u16> = (0..30)
            .map(|i| {
                if i % 2 == 0 {
                    io.host.write(1, i, 1, &data[..4096], true)
                } else {
                    io.host.read(1, 512 + i, 1, 4096)
                }
            })
            .collect();
        for cid in commands {
            assert_eq!(io.wait(cid).status(), Status::SUCCESS);
        }
        assert_eq!(io.run(|host| host.bare(0, 1)).status(), Status::SUCCESS);
        assert_eq!(admin.run(|host| host.bare(0x18, 0)).status(), Status::SUCCESS);
    }
    assert_eq!(served.volume.flushes(), 2);
    let stats = served.target.namespace_stats(&served.nqn, 1).unwrap();
    assert_eq!(stats.of(OperationKind::Write).operations, 2 * 16);
}

#[test]
fn queues_spread_over_cores_and_abort_crosses_them() {
    let limits = Limits {
        transfer_len_max_log2: 16,
        inflight_bytes_per_connection_max: 64 << 10,
        ..Limits::default()
    };
    let served = serve(2, limits);
    let (mut admin, mut io) = connect(&served, HostOptions::default(), 4);
    for (i, queue) in io.iter_mut().enumerate() {
        let block = [i as u8 + 1; 4096];
        let written = queue.run(|host| host.write(1, i as u64, 1, &block, true));
        assert_eq!(written.status(), Status::SUCCESS);
    }
    for (i, queue) in io.iter_mut().enumerate() {
        let other = (i as u64 + 1) % 4;
        let read = queue.run(|host| host.read(1, other, 1, 4096));
        assert_eq!(read.data, [other as u8 + 1; 4096]);
    }
    served.volume.hold(true);
    for (i, queue) in io.iter_mut().enumerate() {
        let running = queue.host.read(1, 0, 16, 65536);
        let waiting = queue.host.read(1, 0, 1, 4096);
        queue.send();
        // The abort may overtake the command; then it is told "not aborted", and is sent again.
        while admin.run(|host| host.abort(i as u16 + 1, waiting)).cqe.result.get() != 0 {}
        assert_eq!(queue.wait(waiting).status(), Status::ABORTED_BY_REQUEST);
        served.volume.hold(false);
        assert_eq!(queue.wait(running).status(), Status::SUCCESS);
        served.volume.hold(true);
    }
    served.volume.hold(false);
    let connections = served.target.controllers()[0].connections.len();
    assert_eq!(connections, 5);
}

#[test]
fn the_end_of_the_admin_connection_ends_the_controller() {
    let served = serve(2, Limits::default());
    let (admin, mut io) = connect(&served, HostOptions::default(), 2);
    drop(admin);
    for queue in &mut io {
        assert!(queue.read_to_end().is_empty());
    }
    // The queues closed after the controller was forgotten.
    assert!(served.target.controllers().is_empty());
}

#[test]
fn a_malformed_pdu_is_answered_and_the_socket_closed() {
    let served = serve(1, Limits::default());
    let mut host = SocketHost::connect(&served, HostOptions::default());
    host.stream.write_all(&[0xaa; 4096]).unwrap();
    let answer = host.read_to_end();
    assert_eq!(answer[..10], [3, 0, 24, 0, 32, 0, 0, 0, 1, 0]);
}

#[test]
fn a_removed_subsystem_closes_sockets() {
    let served = serve(1, Limits::default());
    let (mut admin, mut io) = connect(&served, HostOptions::default(), 1);
    served.target.remove_subsystem(&served.nqn).unwrap();
    assert!(admin.read_to_end().is_empty());
    assert!(io[0].read_to_end().is_empty());
}

#[test]
fn a_removed_listener_accepts_no_more() {
    let served = serve(1, Limits::default());
    let (mut admin, _io) = connect(&served, HostOptions::default(), 1);
    served.target.remove_listener(served.address).unwrap();
    // The core closes it in a turn of its own: connections made until then may still be accepted.
    while TcpStream::connect(served.address).is_ok() {
        assert_eq!(admin.run(|host| host.bare(0x18, 0)).status(), Status::SUCCESS);
    }
    assert_eq!(admin.run(|host| host.bare(0x18, 0)).status(), Status::SUCCESS);
}

#[test]
fn silent_connections_are_cut_in_time() {
    let limits = Limits { handshake_timeout_ms: 50, ..Limits::default() };
    let served = serve(1, limits);
    let mut silent = TcpStream::connect(served.address).unwrap();
    let mut byte = [0];
    assert_eq!(silent.read(&mut byte).unwrap(), 0);
}

#[test]
fn connections_over_the_limit_are_refused() {
    let limits = Limits { connections_per_core_max: 3, ..Limits::default() };
    let served = serve(1, limits);
    let (_admin, _io) = connect(&served, HostOptions::default(), 2);
    let mut extra = SocketHost::connect(&served, HostOptions::default());
    assert!(extra.read_to_end().is_empty());
}
