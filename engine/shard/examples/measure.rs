//! Costs of rings, reactor and hosts on this machine. Things that are compared are measured in turn,
//! A B A B, and given as median [min .. max] of the rounds:
//! `cargo run --release -p engine-shard --example measure --features glommio`, and after `--`
//! one of rings, reactor, hosts, wakes, idle, for that part alone.
//! Needs two CPUs for itself to mean anything.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods)]

use std::cell::Cell;
use std::future::poll_fn;
use std::hint::spin_loop;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Instant;

use engine_base::runtime::Runtime;
use engine_shard::cores::WindDown;
use engine_shard::doorbell::Doorbell;
use engine_shard::host::{Host, ThreadHost};
use engine_shard::mesh::mesh;
use engine_shard::ring::ring;
use engine_shard::{
    CoreContext, Cores, CoresConfig, Endpoint, IdlePolicy, Reactor, ReactorConfig, SendError,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const ROUNDS: usize = 5;

fn main() {
    let only = std::env::args().nth(1);
    // Whether this thread is one of those measured. Cores are placed where it may run.
    let parts: [(&str, bool, fn()); 5] = [
        ("rings", true, rings),
        ("reactor", true, reactor),
        ("hosts", false, hosts),
        ("wakes", false, wakes),
        ("idle", false, idle),
    ];
    let everywhere = sched_getaffinity(None).unwrap();
    for (name, pinned, part) in parts {
        if only.as_ref().is_none_or(|only| only == name) {
            if pinned {
                pin(0);
            }
            part();
            sched_setaffinity(None, &everywhere).unwrap();
        }
    }
}

/// Measures each in turn, several times over; a first round is thrown away.
fn compare(title: &str, unit: &str, rivals: &mut [(&str, &mut dyn FnMut() -> f64)]) {
    println!("{title}");
    let mut results = vec![Vec::new(); rivals.len()];
    for round in 0..=ROUNDS {
        for (rival, results) in rivals.iter_mut().zip(&mut results) {
            let result = rival.1();
            if round > 0 {
                results.push(result);
            }
        }
    }
    for ((name, _), mut results) in rivals.iter().zip(results) {
        results.sort_by(f64::total_cmp);
        let (median, min, max) = (results[ROUNDS / 2], results[0], results[ROUNDS - 1]);
        println!("  {name:<46} {median:>10.1} {unit}  [{min:.1} .. {max:.1}]");
    }
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    if let Err(error) = sched_setaffinity(None, &set) {
        println!("not pinned to CPU {cpu}: {error}");
    }
}

fn ns_per(count: u64, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

type Words = [u64; 8];

fn spin<T>(mut poll: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = poll() {
            return value;
        }
        spin_loop();
    }
}

fn rings() {
    const TRIPS: u64 = 20_000;
    const STREAM: u64 = 500_000;
    macro_rules! round_trip {
        ($ring:expr, $pop:ident, $count:expr) => {{
            let (mut to, mut to_end) = $ring;
            let (mut back, mut back_end) = $ring;
            let echo = std::thread::spawn(move || {
                pin(1);
                for _ in 0..$count {
                    let message: Words = spin(|| to_end.$pop());
                    back.push(message).unwrap();
                }
            });
            let ns = ns_per($count, || {
                for number in 0..$count {
                    to.push([number; 8]).unwrap();
                    spin(|| back_end.$pop());
                }
            });
            echo.join().unwrap();
            ns
        }};
    }
    macro_rules! stream {
        ($ring:expr, $take:expr) => {{
            let (mut to, mut to_end) = $ring;
            let take = $take;
            let sink = std::thread::spawn(move || {
                pin(1);
                let mut sum = 0u64;
                let mut left = STREAM;
                while left > 0 {
                    left -= take(&mut to_end, &mut sum);
                }
                sum
            });
            let ns = ns_per(STREAM, || {
                for number in 0..STREAM {
                    let mut message = [number; 8];
                    while let Err(full) = to.push(message) {
                        message = full;
                        spin_loop();
                    }
                }
            });
            assert_eq!(sink.join().unwrap(), STREAM * (STREAM - 1) / 2);
            ns
        }};
    }
    struct Option2<T>(rtrb::Consumer<T>);
    impl<T> Option2<T> {
        fn pop(&mut self) -> Option<T> {
            self.0.pop().ok()
        }
    }
    struct Push<T>(rtrb::Producer<T>);
    impl<T> Push<T> {
        fn push(&mut self, message: T) -> Result<(), T> {
            self.0.push(message).map_err(|rtrb::PushError::Full(message)| message)
        }
    }
    fn rtrb_ring() -> (Push<Words>, Option2<Words>) {
        let (producer, consumer) = rtrb::RingBuffer::new(256);
        (Push(producer), Option2(consumer))
    }
    compare(
        "round trip of 64 bytes, CPU 0 to CPU 1 and back, both spin",
        "ns",
        &mut [
            ("own ring", &mut || round_trip!(ring::<Words>(256), pop, TRIPS)),
            ("rtrb", &mut || round_trip!(rtrb_ring(), pop, TRIPS)),
        ],
    );
    compare(
        "stream of 64 byte messages, CPU 0 to CPU 1, ring of 256",
        "ns",
        &mut [
            ("own ring, pop", &mut || {
                stream!(
                    ring::<Words>(256),
                    |end: &mut engine_shard::ring::Consumer<Words>, sum: &mut u64| {
                        end.pop().map_or(0, |message| {
                            *sum += message[0];
                            1
                        })
                    }
                )
            }),
            ("own ring, pop_batch of 64", &mut || {
                stream!(
                    ring::<Words>(256),
                    |end: &mut engine_shard::ring::Consumer<Words>, sum: &mut u64| {
                        end.pop_batch(64, |message| *sum += message[0]) as u64
                    }
                )
            }),
            ("rtrb, pop", &mut || {
                stream!(rtrb_ring(), |end: &mut Option2<Words>, sum: &mut u64| {
                    end.pop().map_or(0, |message| {
                        *sum += message[0];
                        1
                    })
                })
            }),
        ],
    );
}

fn reactor() {
    const TASKS: u64 = 200_000;
    let make = || Reactor::new(&ReactorConfig::default(), Arc::new(Doorbell::new().unwrap()));
    compare(
        "one reactor, alone on its CPU",
        "ns",
        &mut [
            ("read the clock", &mut || {
                let handle = make().handle();
                ns_per(TASKS, || {
                    for _ in 0..TASKS {
                        std::hint::black_box(handle.now_ns());
                    }
                })
            }),
            ("spawn and run a task", &mut || {
                let mut reactor = make();
                let handle = reactor.handle();
                ns_per(TASKS, || {
                    for _ in 0..TASKS / 200 {
                        for number in 0..200u64 {
                            let task = async move {
                                std::hint::black_box(number);
                            };
                            handle.spawn("task", Box::pin(task));
                        }
                        reactor.turn().unwrap();
                    }
                })
            }),
            ("wake and run a task (of 200 that yield)", &mut || {
                let mut reactor = make();
                let handle = reactor.handle();
                for _ in 0..200 {
                    handle.spawn(
                        "yields",
                        Box::pin(poll_fn(|context| {
                            context.waker().wake_by_ref();
                            Poll::Pending
                        })),
                    );
                }
                ns_per(TASKS, || {
                    for _ in 0..TASKS / 200 {
                        reactor.turn().unwrap();
                    }
                })
            }),
            ("turn with nothing to do, no poller", &mut || {
                let mut reactor = make();
                ns_per(TASKS, || {
                    (0..TASKS).for_each(|_| {
                        reactor.turn().unwrap();
                    })
                })
            }),
            ("turn with nothing to do, mesh of 2 cores", &mut || idle_turn(2, TASKS)),
            ("turn with nothing to do, mesh of 64 cores", &mut || idle_turn(64, TASKS)),
        ],
    );
}

fn idle_turn(cores: usize, turns: u64) -> f64 {
    let (mut seats, _) = mesh::<Words>(cores, 0, 16).unwrap();
    let seat = seats.swap_remove(0);
    let mut reactor = Reactor::new(&ReactorConfig::default(), seat.doorbell());
    let mesh = seat.bind(&reactor.handle()).unwrap();
    mesh.set_inbox(Rc::new(|_, _| {}));
    ns_per(turns, || {
        (0..turns).for_each(|_| {
            reactor.turn().unwrap();
        })
    })
}

fn two_cores(host: Arc<dyn Host>, idle: IdlePolicy) -> CoresConfig {
    CoresConfig {
        cores: 2,
        host,
        reactor: ReactorConfig { idle, ..Default::default() },
        ..Default::default()
    }
}

fn done() -> WindDown {
    Box::pin(async {})
}

/// Core 0 keeps `depth` messages on their way to core 1 and back; each spends `work_ns` there in a task
/// of its own (none: answered from the inbox). Nanoseconds per round trip.
fn ping(host: Arc<dyn Host>, depth: u64, work_ns: u64, trips: u64) -> f64 {
    let config = two_cores(host, IdlePolicy::PollForever);
    let mut cores = Cores::start(&config, move |context: CoreContext<u64>| {
        let CoreContext { core, handle, mesh, .. } = context;
        let inbox_mesh = mesh.clone();
        if core == 1 {
            mesh.set_inbox(Rc::new(move |from, message| {
                if work_ns == 0 {
                    inbox_mesh.try_send(from, message).unwrap();
                    return;
                }
                let (mesh, clock) = (inbox_mesh.clone(), handle.clone());
                handle.spawn(
                    "work",
                    Box::pin(async move {
                        let end_ns = clock.now_ns() + work_ns;
                        while clock.now_ns() < end_ns {}
                        let sent = mesh.try_send(from, message);
                        // Core 0 may have ended: the messages still on their way are not counted.
                        assert!(!matches!(sent, Err(SendError::Full(_))));
                    }),
                );
            }));
            return Ok(done());
        }
        let left = Cell::new(trips);
        let start_ns = Cell::new(0);
        mesh.set_inbox(Rc::new(move |from, message| {
            if matches!(from, Endpoint::Port(_)) {
                start_ns.set(handle.now_ns());
                for number in 0..depth {
                    inbox_mesh.try_send(Endpoint::Core(1), number).unwrap();
                }
                return;
            }
            left.set(left.get().saturating_sub(1));
            match left.get() {
                0 => {
                    let passed_ns = handle.now_ns() - start_ns.get();
                    match inbox_mesh.try_send(Endpoint::Port(0), passed_ns) {
                        Ok(()) | Err(SendError::Full(_) | SendError::Closed(_)) => {}
                    }
                }
                _ => inbox_mesh.try_send(Endpoint::Core(1), message).unwrap(),
            }
        }));
        Ok(done())
    })
    .unwrap();
    let (sender, mut receiver) = cores.take_port().unwrap().split();
    sender.try_send(0, 0).unwrap();
    let mut passed_ns = 0;
    while passed_ns == 0 {
        receiver.wait(None).unwrap();
        receiver.receive(1, |_, ns| passed_ns = ns);
    }
    cores.stop_now();
    cores.join().unwrap();
    passed_ns as f64 / trips as f64
}

#[cfg(feature = "glommio")]
fn hosts() {
    use engine_shard::host::GlommioHost;
    compare(
        "mesh round trip, core 0 to core 1, depth 1, no task",
        "ns",
        &mut [
            ("bare thread", &mut || ping(Arc::new(ThreadHost), 1, 0, 10_000)),
            ("glommio", &mut || ping(Arc::new(GlommioHost), 1, 0, 10_000)),
        ],
    );
    compare(
        "the same at depth 32",
        "ns",
        &mut [
            ("bare thread", &mut || ping(Arc::new(ThreadHost), 32, 0, 100_000)),
            ("glommio", &mut || ping(Arc::new(GlommioHost), 32, 0, 100_000)),
        ],
    );
    compare(
        "depth 32, 500 ns of work in a task per message",
        "ns",
        &mut [
            ("bare thread", &mut || ping(Arc::new(ThreadHost), 32, 500, 20_000)),
            ("glommio", &mut || ping(Arc::new(GlommioHost), 32, 500, 20_000)),
        ],
    );
}

#[cfg(not(feature = "glommio"))]
fn hosts() {
    println!("hosts: not compared, build with --features glommio");
    compare(
        "mesh round trip, core 0 to core 1, no task, bare thread",
        "ns",
        &mut [
            ("depth 1", &mut || ping(Arc::new(ThreadHost), 1, 0, 10_000)),
            ("depth 32", &mut || ping(Arc::new(ThreadHost), 32, 0, 100_000)),
        ],
    );
}

/// One core on CPU 1; this thread on CPU 0 wakes it and spins until it sees the effect.
fn wake_latency(idle: IdlePolicy, by_message: bool, count: u64) -> f64 {
    let seen = Arc::new(AtomicU64::new(0));
    let wanted = Arc::new(AtomicU64::new(0));
    let (out, wakers) = std::sync::mpsc::sync_channel::<Waker>(1);
    let config = CoresConfig { cores: 1, cpus: vec![1], ..two_cores(Arc::new(ThreadHost), idle) };
    let (core_seen, core_wanted) = (seen.clone(), wanted.clone());
    let mut cores = Cores::start(&config, move |context: CoreContext<u64>| {
        let seen = core_seen.clone();
        context.mesh.set_inbox(Rc::new(move |_, number| seen.store(number, Ordering::Release)));
        let (seen, wanted, out) = (core_seen.clone(), core_wanted.clone(), out.clone());
        context.handle.spawn(
            "woken",
            Box::pin(poll_fn(move |task| {
                let now = wanted.load(Ordering::Acquire);
                if now == 0 {
                    out.send(task.waker().clone()).unwrap();
                }
                seen.store(now, Ordering::Release);
                Poll::<()>::Pending
            })),
        );
        Ok(done())
    })
    .unwrap();
    let (sender, _receiver) = cores.take_port().unwrap().split();
    let waker = wakers.recv().unwrap();
    let stats = cores.stats().next().unwrap().clone();
    let mut total_ns = 0;
    for number in 1..=count {
        if idle != IdlePolicy::PollForever {
            // Sleeps only after turns without work: give it the time to.
            let until = Instant::now();
            while until.elapsed().as_micros() < 200 {
                spin_loop();
            }
        }
        wanted.store(number, Ordering::Release);
        let start = Instant::now();
        if by_message {
            sender.try_send(0, number).unwrap();
        } else {
            waker.wake_by_ref();
        }
        while seen.load(Ordering::Acquire) < number {
            spin_loop();
        }
        total_ns += start.elapsed().as_nanos();
    }
    cores.stop_now();
    cores.join().unwrap();
    let sleeps = stats.snapshot().sleeps;
    assert_eq!(sleeps > 0, idle != IdlePolicy::PollForever, "{sleeps} sleeps");
    total_ns as f64 / count as f64
}

fn wakes() {
    let asleep = IdlePolicy::Window { ns: 0 };
    compare(
        "from another thread until the core has acted",
        "ns",
        &mut [
            ("task waker, core polls", &mut || wake_latency(IdlePolicy::PollForever, false, 5_000)),
            ("task waker, core sleeps", &mut || wake_latency(asleep, false, 300)),
            ("port message, core polls", &mut || {
                wake_latency(IdlePolicy::PollForever, true, 5_000)
            }),
            ("port message, core sleeps", &mut || wake_latency(asleep, true, 300)),
        ],
    );
}

/// Clock ticks of CPU time of this process so far: utime and stime of proc_pid_stat(5).
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn idle() {
    const SECONDS: u64 = 3;
    println!("CPU of two idle cores over {SECONDS} s (100 % is one CPU)");
    let window = IdlePolicy::Window { ns: 50_000 };
    for (name, idle, tick_ns) in [
        ("idle window 50 us", window, 0),
        ("idle window 50 us, a timer every 1 ms", window, 1_000_000),
        ("polling for ever", IdlePolicy::PollForever, 0),
    ] {
        let mut cores = Cores::start(&two_cores(Arc::new(ThreadHost), idle), move |context| {
            let handle = context.handle.clone();
            if tick_ns > 0 {
                context.handle.spawn(
                    "ticks",
                    Box::pin(async move {
                        loop {
                            handle.sleep_for(tick_ns).await;
                        }
                    }),
                );
            }
            context.mesh.set_inbox(Rc::new(|_, _: u64| {}));
            Ok(done())
        })
        .unwrap();
        let (_sender, mut receiver) = cores.take_port().unwrap().split();
        let before = cpu_ticks();
        let start = Instant::now();
        while start.elapsed().as_secs() < SECONDS {
            receiver.wait(Some(SECONDS * 1_000_000_000)).unwrap();
        }
        let percent = (cpu_ticks() - before) as f64 / SECONDS as f64;
        let sleeps: u64 = cores.stats().map(|stats| stats.snapshot().sleeps).sum();
        println!("  {name:<46} {percent:>10.1} %   ({sleeps} sleeps)");
        cores.stop_now();
        cores.join().unwrap();
    }
}
