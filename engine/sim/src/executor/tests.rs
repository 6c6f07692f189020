use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::*;

/// Ten tasks on three cores that yield, sleep and draw random numbers; returns what happened.
fn trace(seed: u64, schedule: Schedule) -> Vec<(u64, u64, u64)> {
    let executor = Executor::new(seed, schedule);
    let events = Rc::new(RefCell::new(Vec::new()));
    for task in 0..10_u64 {
        let runtime = executor.core((task % 3) as u16);
        let events = Rc::clone(&events);
        let body = {
            let runtime = Rc::clone(&runtime);
            async move {
                for _ in 0..20 {
                    let random = runtime.random_u64();
                    events.borrow_mut().push((task, runtime.now_ns(), random));
                    match random % 3 {
                        0 => runtime.yield_now().await,
                        _ => runtime.sleep(random % 1000).await,
                    }
                }
            }
        };
        runtime.spawn("trace", Box::pin(body));
    }
    assert_eq!(executor.run(1_000_000, || false), RunEnd::Idle);
    let events = events.borrow().clone();
    assert_eq!(events.len(), 200);
    events
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for schedule in [Schedule::Random, Schedule::Fifo, Schedule::Bursts] {
        for seed in 0..5 {
            assert_eq!(trace(seed, schedule), trace(seed, schedule));
        }
        assert_ne!(trace(1, schedule), trace(2, schedule));
    }
    assert_ne!(trace(1, Schedule::Random), trace(1, Schedule::Fifo));
}

#[test]
fn a_task_that_spins_cannot_stop_the_clock() {
    let executor = Executor::new(7, Schedule::Bursts);
    let runtime = executor.core(0);
    let woke = Rc::new(Cell::new(false));
    let spinning = Rc::clone(&runtime);
    runtime.spawn(
        "spin",
        Box::pin(async move {
            loop {
                spinning.yield_now().await;
            }
        }),
    );
    let sleeper = runtime.sleep(1_000_000);
    let flag = Rc::clone(&woke);
    runtime.spawn(
        "sleep",
        Box::pin(async move {
            sleeper.await;
            flag.set(true);
        }),
    );
    assert_eq!(executor.run(100_000, || woke.get()), RunEnd::Done);
    assert!(executor.now_ns() >= 1_000_000);
}

#[test]
fn time_jumps_only_when_nothing_is_ready() {
    let executor = Executor::new(3, Schedule::Random);
    let runtime = executor.core(0);
    let order = Rc::new(RefCell::new(Vec::new()));
    for ns in [5_000_000_000, 1_000, 70_000] {
        let sleep = runtime.sleep(ns);
        let order = Rc::clone(&order);
        runtime.spawn(
            "sleep",
            Box::pin(async move {
                sleep.await;
                order.borrow_mut().push(ns);
            }),
        );
    }
    assert_eq!(executor.run(100, || false), RunEnd::Idle);
    assert_eq!(*order.borrow(), [1_000, 70_000, 5_000_000_000]);
}

#[test]
fn a_crash_drops_everything_and_nothing_comes_back() {
    struct Noisy {
        runtime: Rc<CoreRuntime>,
        dropped: Rc<Cell<u32>>,
        ran: Rc<Cell<bool>>,
    }
    impl Drop for Noisy {
        fn drop(&mut self) {
            self.dropped.set(self.dropped.get() + 1);
            let ran = Rc::clone(&self.ran);
            // A task that starts another while it is dropped: it must never run.
            self.runtime.spawn("ghost", Box::pin(async move { ran.set(true) }));
        }
    }
    let executor = Executor::new(9, Schedule::Random);
    let runtime = executor.core(0);
    let (dropped, ran) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    for _ in 0..5 {
        let noisy = Noisy {
            runtime: Rc::clone(&runtime),
            dropped: Rc::clone(&dropped),
            ran: Rc::clone(&ran),
        };
        let sleep = runtime.sleep(1_000);
        runtime.spawn(
            "noisy",
            Box::pin(async move {
                sleep.await;
                drop(noisy);
            }),
        );
    }
    let called = Rc::clone(&ran);
    executor.call_at(10, move || called.set(true));
    executor.crash(|| {});
    assert_eq!(dropped.get(), 5);
    assert_eq!(executor.run(1_000, || false), RunEnd::Idle);
    assert!(!ran.get());

    // And it works again afterwards.
    let again = Rc::new(Cell::new(false));
    let flag = Rc::clone(&again);
    executor.spawn(0, "again", Box::pin(async move { flag.set(true) }));
    assert_eq!(executor.run(1_000, || false), RunEnd::Idle);
    assert!(again.get());
}

#[test]
fn a_stale_waker_does_not_touch_the_next_task_in_its_slot() {
    let executor = Executor::new(1, Schedule::Random);
    let stale = Rc::new(RefCell::new(None));
    let keep = Rc::clone(&stale);
    executor.spawn(
        0,
        "first",
        Box::pin(std::future::poll_fn(move |context| {
            *keep.borrow_mut() = Some(context.waker().clone());
            Poll::Ready(())
        })),
    );
    executor.run(10, || false);
    let polled = Rc::new(Cell::new(0));
    let count = Rc::clone(&polled);
    executor.spawn(
        0,
        "second",
        Box::pin(std::future::poll_fn(move |_| {
            count.set(count.get() + 1);
            Poll::Pending
        })),
    );
    executor.run(10, || false);
    stale.borrow_mut().take().expect("first task ran").wake();
    executor.run(10, || false);
    assert_eq!(polled.get(), 1);
}
