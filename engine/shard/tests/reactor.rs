//! Tasks, timers and pollers of one reactor, turned by hand on the test's thread.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};

use engine_base::runtime::Runtime;
use engine_shard::doorbell::Doorbell;
use engine_shard::limits::TASKS_PER_TURN_MAX;
use engine_shard::{
    Handle, IdlePolicy, LimitError, Poller, Reactor, ReactorConfig, ReactorFault, TaskClass,
};

/// Turns after which something that should have happened by now never will.
const TURNS_MAX: usize = 10_000_000;

fn reactor_with(config: &ReactorConfig) -> (Reactor, Rc<Handle>) {
    let reactor = Reactor::new(config, Arc::new(Doorbell::new().unwrap()));
    let handle = reactor.handle();
    (reactor, handle)
}

fn reactor() -> (Reactor, Rc<Handle>) {
    reactor_with(&ReactorConfig::default())
}

type Log = Rc<RefCell<Vec<u32>>>;

#[test]
fn tasks_run_in_the_order_they_were_woken() {
    let (mut reactor, handle) = reactor();
    let log = Log::default();
    let wakers: Rc<RefCell<Vec<Waker>>> = Rc::default();
    for number in 0..4 {
        let (log, wakers) = (log.clone(), wakers.clone());
        let mut waited = false;
        handle.spawn(
            "waits once",
            Box::pin(poll_fn(move |context| {
                log.borrow_mut().push(number);
                if std::mem::replace(&mut waited, true) {
                    return Poll::Ready(());
                }
                wakers.borrow_mut().push(context.waker().clone());
                Poll::Pending
            })),
        );
    }
    reactor.turn().unwrap();
    assert_eq!(*log.borrow(), [0, 1, 2, 3]);
    assert_eq!(reactor.turn().unwrap(), 0);
    let order = wakers.clone();
    handle.spawn(
        "wakes them",
        Box::pin(async move {
            for number in [2, 0, 3, 0, 1] {
                order.borrow()[number].wake_by_ref();
            }
        }),
    );
    reactor.turn().unwrap();
    assert_eq!(*log.borrow(), [0, 1, 2, 3, 2, 0, 3, 1]);
    assert!(handle.tasks().is_empty());
    // Wakes of tasks that are gone do nothing.
    wakers.borrow().iter().for_each(Waker::wake_by_ref);
    assert_eq!(reactor.turn().unwrap(), 0);
}

#[test]
fn a_task_spawns_others_and_slots_are_used_again() {
    let (mut reactor, handle) = reactor();
    let count = Rc::new(Cell::new(0));
    let (inner_handle, inner_count) = (handle.clone(), count.clone());
    handle.spawn(
        "parent",
        Box::pin(async move {
            for _ in 0..1000 {
                let count = inner_count.clone();
                inner_handle.spawn("child", Box::pin(async move { count.set(count.get() + 1) }));
                inner_handle.yield_now().await;
            }
        }),
    );
    let mut turns = 0;
    while !handle.tasks().is_empty() {
        reactor.turn().unwrap();
        turns += 1;
        assert!(turns < 3000);
        assert!(handle.tasks().len() <= 2);
    }
    assert_eq!(count.get(), 1000);
    assert_eq!(handle.stats().snapshot().tasks_spawned, 1001);
}

#[test]
fn a_yield_lets_a_whole_turn_pass() {
    let (mut reactor, handle) = reactor();
    let polls = Rc::new(Cell::new(0));
    let counted = polls.clone();
    handle.spawn(
        "yields for ever",
        Box::pin(poll_fn(move |context| {
            counted.set(counted.get() + 1);
            context.waker().wake_by_ref();
            Poll::Pending
        })),
    );
    for turn in 1..=50 {
        assert_eq!(reactor.turn().unwrap(), 1);
        assert_eq!(polls.get(), turn);
    }
}

#[test]
fn a_turn_is_bounded_and_loses_nothing() {
    let (mut reactor, handle) = reactor();
    let count = Rc::new(Cell::new(0));
    let tasks = 3 * TASKS_PER_TURN_MAX;
    for _ in 0..tasks {
        let count = count.clone();
        handle.spawn("one of many", Box::pin(async move { count.set(count.get() + 1) }));
    }
    assert!(reactor.turn().unwrap() <= TASKS_PER_TURN_MAX);
    assert!(count.get() <= TASKS_PER_TURN_MAX);
    for _ in 0..tasks {
        reactor.turn().unwrap();
    }
    assert_eq!(count.get(), tasks);
}

struct DropCounts(Rc<Cell<usize>>);

impl Drop for DropCounts {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn tasks_are_dropped_when_they_end_and_with_the_reactor() {
    let (mut reactor, handle) = reactor();
    let drops = Rc::new(Cell::new(0));
    let (ends, stays) = (DropCounts(drops.clone()), DropCounts(drops.clone()));
    handle.spawn("ends", Box::pin(async move { drop(ends) }));
    let held = handle.clone();
    handle.spawn(
        "stays",
        Box::pin(async move {
            let _stays = stays;
            // Holds its own reactor, which would be a leak if the reactor did not undo it.
            let _held = held;
            std::future::pending::<()>().await;
        }),
    );
    reactor.turn().unwrap();
    assert_eq!(drops.get(), 1);
    drop(reactor);
    assert_eq!(drops.get(), 2);
}

#[test]
fn a_panic_stops_the_reactor_for_good() {
    let (mut reactor, handle) = reactor();
    let drops = Rc::new(Cell::new(0));
    let owned = DropCounts(drops.clone());
    handle.spawn(
        "breaks",
        Box::pin(async move {
            let _owned = owned;
            panic!("invariant {} does not hold", 7);
        }),
    );
    handle.spawn("innocent", Box::pin(async { unreachable!("nothing runs after a panic") }));
    let fault = ReactorFault::TaskPanicked {
        task: "breaks",
        message: "invariant 7 does not hold".to_owned(),
    };
    assert_eq!(reactor.turn(), Err(fault.clone()));
    assert_eq!(drops.get(), 1, "what the task owned is dropped");
    assert_eq!(reactor.turn(), Err(fault));
}

#[test]
fn too_many_tasks_are_refused() {
    let (mut reactor, handle) = reactor_with(&ReactorConfig { tasks_max: 3, ..Default::default() });
    let spawn = || handle.try_spawn(TaskClass::Client, "waits", Box::pin(std::future::pending()));
    for _ in 0..3 {
        spawn().unwrap();
    }
    assert_eq!(spawn(), Err(LimitError::Tasks { task: "waits", max: 3 }));
    reactor.turn().unwrap();
    assert_eq!(handle.tasks().len(), 3);
}

#[test]
fn background_work_never_crowds_out_clients() {
    let (mut reactor, handle) = reactor();
    // Every task of both classes is always ready, passing the turn on to the next of its kind, and
    // takes about as long as any other.
    let polls = [Rc::new(Cell::new(0u64)), Rc::new(Cell::new(0u64))];
    for class in TaskClass::ALL {
        for _ in 0..400 {
            let count = polls[class as usize].clone();
            let busy = handle.clone();
            handle.with_class(class).spawn(
                "busy",
                Box::pin(poll_fn(move |context| {
                    count.set(count.get() + 1);
                    let end_ns = busy.now_ns() + 2_000;
                    while busy.now_ns() < end_ns {}
                    context.waker().wake_by_ref();
                    Poll::Pending
                })),
            );
        }
    }
    for _ in 0..200 {
        reactor.turn().unwrap();
    }
    let stats = handle.stats().snapshot();
    let [client_ns, background_ns] = stats.class_ns;
    assert_eq!(stats.class_tasks_run, [polls[0].get(), polls[1].get()]);
    // Shares are 9 to 1; the bounds allow for what the machine does to single polls.
    assert!(background_ns > 0, "background work goes on");
    assert!(client_ns > 3 * background_ns, "{client_ns} ns to {background_ns} ns");
}

#[test]
fn tasks_inherit_the_class_of_their_parent() {
    let (mut reactor, handle) = reactor();
    let inner = handle.clone();
    handle.with_class(TaskClass::Background).spawn(
        "parent",
        Box::pin(async move {
            inner.spawn("child", Box::pin(std::future::pending()));
        }),
    );
    handle.spawn("orphan", Box::pin(std::future::pending()));
    reactor.turn().unwrap();
    let tasks = handle.tasks();
    let class_of = |name| tasks.iter().find(|task| task.name == name).unwrap().class;
    assert_eq!(class_of("child"), TaskClass::Background);
    assert_eq!(class_of("orphan"), TaskClass::Client);
}

#[test]
fn sleeps_end_in_order_and_not_early() {
    let (mut reactor, handle) = reactor();
    let log = Log::default();
    let inner = handle.clone();
    let inner_log = log.clone();
    reactor
        .block_on(async move {
            let left = Rc::new(Cell::new(5));
            for number in [3u32, 1, 4, 0, 2] {
                let (handle, log, left) = (inner.clone(), inner_log.clone(), left.clone());
                inner.spawn(
                    "sleeper",
                    Box::pin(async move {
                        let ns = u64::from(number) * 3_000_000;
                        let before_ns = handle.now_ns();
                        handle.sleep(ns).await;
                        assert!(handle.now_ns() >= before_ns + ns);
                        log.borrow_mut().push(number);
                        left.set(left.get() - 1);
                    }),
                );
            }
            while left.get() > 0 {
                inner.sleep_for(1_000_000).await;
            }
        })
        .unwrap();
    assert_eq!(*log.borrow(), [0, 1, 2, 3, 4]);
    assert!(handle.stats().snapshot().timers_fired >= 4);
}

#[test]
fn a_dropped_sleep_wakes_nobody() {
    let (mut reactor, handle) = reactor();
    let inner = handle.clone();
    reactor
        .block_on(async move {
            let mut long = inner.sleep(u64::MAX);
            let mut polled = false;
            poll_fn(|context| {
                if std::mem::replace(&mut polled, true) {
                    return Poll::Ready(());
                }
                assert!(long.as_mut().poll(context).is_pending());
                context.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
        })
        .unwrap();
    for _ in 0..10 {
        assert_eq!(reactor.turn().unwrap(), 0);
    }
}

/// Has work a number of times, then lets the core sleep.
struct Source {
    left: Cell<usize>,
    polls: Cell<usize>,
    turn_ends: Cell<usize>,
}

impl Poller for Source {
    fn poll(&self) -> usize {
        self.polls.set(self.polls.get() + 1);
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        usize::from(left > 0)
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }

    fn prepare_to_sleep(&self) -> bool {
        self.left.get() == 0
    }

    fn end_turn(&self) {
        self.turn_ends.set(self.turn_ends.get() + 1);
    }
}

#[test]
fn pollers_are_polled_every_turn_until_they_leave() {
    let (mut reactor, handle) = reactor();
    let source =
        Rc::new(Source { left: Cell::new(3), polls: Cell::new(0), turn_ends: Cell::new(0) });
    let id = handle.register_poller("source", source.clone()).unwrap();
    let found: Vec<usize> = (0..5).map(|_| reactor.turn().unwrap()).collect();
    assert_eq!(found, [1, 1, 1, 0, 0]);
    assert_eq!((source.polls.get(), source.turn_ends.get()), (5, 5));
    let snapshot = handle.stats().snapshot();
    assert_eq!((snapshot.turns, snapshot.turns_empty), (5, 2));
    assert_eq!((snapshot.pollers[0].polls, snapshot.pollers[0].work), (5, 3));
    handle.unregister_poller(id);
    reactor.turn().unwrap();
    assert_eq!(source.polls.get(), 5);
    assert!(handle.stats().snapshot().pollers.is_empty());
    assert_eq!(Rc::strong_count(&source), 1);
}

#[test]
fn a_poller_with_work_keeps_its_core_awake() {
    let config = ReactorConfig { idle: IdlePolicy::Window { ns: 0 }, ..Default::default() };
    let (mut reactor, handle) = reactor_with(&config);
    let source =
        Rc::new(Source { left: Cell::new(1), polls: Cell::new(0), turn_ends: Cell::new(0) });
    reactor.turn().unwrap();
    // Registered after the last turn: not polled yet, so it must not be slept over.
    handle.register_poller("source", source.clone()).unwrap();
    reactor.rest().unwrap();
    assert_eq!(reactor.turn().unwrap(), 1);
    assert_eq!(reactor.turn().unwrap(), 0);
    source.left.set(1);
    reactor.rest().unwrap();
    assert_eq!(reactor.turn().unwrap(), 1);
    assert_eq!(handle.stats().snapshot().sleeps, 0);
    assert_eq!(handle.stats().snapshot().sleeps_cancelled, 2);
}

#[test]
fn a_sleeping_core_wakes_for_a_descriptor() {
    struct Pipe {
        reader: RefCell<std::io::PipeReader>,
        got: Cell<usize>,
        armed: Cell<bool>,
    }
    impl Poller for Pipe {
        fn poll(&self) -> usize {
            if !self.armed.replace(false) {
                return 0;
            }
            let mut byte = [0];
            std::io::Read::read_exact(&mut *self.reader.borrow_mut(), &mut byte).unwrap();
            self.got.set(self.got.get() + 1);
            1
        }
        fn wake_fd(&self) -> Option<RawFd> {
            Some(std::os::fd::AsRawFd::as_raw_fd(&*self.reader.borrow()))
        }
        fn prepare_to_sleep(&self) -> bool {
            // It is asked only before a sleep, which ends when there is something to read.
            self.armed.set(true);
            true
        }
    }
    let config = ReactorConfig { idle: IdlePolicy::Window { ns: 0 }, ..Default::default() };
    let (mut reactor, handle) = reactor_with(&config);
    let (reader, mut writer) = std::io::pipe().unwrap();
    let pipe =
        Rc::new(Pipe { reader: RefCell::new(reader), got: Cell::new(0), armed: Cell::new(false) });
    handle.register_poller("pipe", pipe.clone()).unwrap();
    reactor.turn().unwrap();
    let other = std::thread::spawn(move || {
        std::io::Write::write_all(&mut writer, &[1]).unwrap();
        writer
    });
    let mut turns = 0;
    while pipe.got.get() == 0 {
        reactor.turn().unwrap();
        if pipe.got.get() == 0 {
            reactor.rest().unwrap();
        }
        turns += 1;
        assert!(turns < 100, "one sleep is enough");
    }
    drop(other.join().unwrap());
    assert!(handle.stats().snapshot().sleeps >= 1);
}

/// The core sleeps as soon as it can, another thread wakes its task as soon as the last wake was
/// seen. A lost wake leaves the core asleep; the timer that ends the test then is the watchdog.
#[test]
fn no_foreign_wake_is_lost_between_check_and_sleep() {
    const WAKES: usize = 20_000;
    const WATCHDOG_NS: u64 = 60_000_000_000;
    let config = ReactorConfig { idle: IdlePolicy::Window { ns: 0 }, ..Default::default() };
    let (mut reactor, handle) = reactor_with(&config);
    let sent = Arc::new(AtomicUsize::new(0));
    let seen = Arc::new(AtomicUsize::new(0));
    let (wakers_out, wakers_in) = std::sync::mpsc::channel::<Waker>();
    let waking = {
        let (sent, seen) = (sent.clone(), seen.clone());
        std::thread::spawn(move || {
            let waker = wakers_in.recv().unwrap();
            for number in 1..=WAKES {
                sent.store(number, Ordering::Release);
                waker.wake_by_ref();
                let mut spins = 0;
                while seen.load(Ordering::Acquire) < number {
                    spins += 1;
                    if spins > 100 {
                        std::thread::yield_now();
                    }
                    assert!(spins < TURNS_MAX * 10, "wake {number} was lost");
                }
            }
        })
    };
    let watchdog = handle.sleep_for(WATCHDOG_NS);
    handle.spawn(
        "watchdog",
        Box::pin(async move {
            watchdog.await;
            panic!("a wake was lost: the core slept until the watchdog came");
        }),
    );
    reactor
        .block_on(poll_fn(move |context| {
            if seen.load(Ordering::Relaxed) == 0 && sent.load(Ordering::Relaxed) == 0 {
                let _ = wakers_out.send(context.waker().clone());
            }
            let now = sent.load(Ordering::Acquire);
            seen.store(now, Ordering::Release);
            if now == WAKES { Poll::Ready(()) } else { Poll::Pending }
        }))
        .unwrap();
    waking.join().unwrap();
    let snapshot = handle.stats().snapshot();
    // A wake of the last poll may be seen before it is counted; two wakes never become one here.
    assert!(snapshot.foreign_wakes >= WAKES as u64 - 1, "{snapshot:?}");
}

#[test]
fn stalls_are_counted_and_named() {
    let (mut reactor, handle) =
        reactor_with(&ReactorConfig { stall_ns: 1_000, ..Default::default() });
    let clock = handle.clone();
    handle.spawn(
        "long",
        Box::pin(async move {
            let end_ns = clock.now_ns() + 50_000;
            while clock.now_ns() < end_ns {}
        }),
    );
    reactor.turn().unwrap();
    let snapshot = handle.stats().snapshot();
    assert_eq!((snapshot.stalls, snapshot.longest_task), (1, "long"));
    assert!(snapshot.longest_ns >= 50_000);
}

#[test]
fn two_reactors_on_one_thread_do_not_mix_their_tasks() {
    let (mut first, first_handle) = reactor();
    let (mut second, second_handle) = reactor();
    let waker: Rc<RefCell<Option<Waker>>> = Rc::default();
    let slot = waker.clone();
    let done = Rc::new(Cell::new(false));
    let set = done.clone();
    first_handle.spawn(
        "waits",
        Box::pin(poll_fn(move |context| {
            if slot.borrow_mut().replace(context.waker().clone()).is_some() {
                set.set(true);
                return Poll::Ready(());
            }
            Poll::Pending
        })),
    );
    first.turn().unwrap();
    let wakes = waker.clone();
    second_handle.spawn(
        "wakes",
        Box::pin(async move {
            wakes.borrow().as_ref().unwrap().wake_by_ref();
        }),
    );
    second.turn().unwrap();
    assert!(!done.get());
    assert_eq!(second.turn().unwrap(), 0);
    first.turn().unwrap();
    assert!(done.get());
    assert_eq!(first_handle.stats().snapshot().foreign_wakes, 1);
}

#[test]
fn random_numbers_follow_the_seed() {
    let numbers = |seed| {
        let (_reactor, handle) = reactor_with(&ReactorConfig { seed, ..Default::default() });
        [handle.random_u64(), handle.random_u64()]
    };
    assert_eq!(numbers(1), numbers(1));
    assert_ne!(numbers(1), numbers(2));
}
