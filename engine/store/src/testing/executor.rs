//! A seeded executor on virtual time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use engine_base::random::Random;
use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_device::DeviceQueue;

/// Turns after which a test is taken to hang.
const TURNS_MAX: u64 = 50_000_000;

struct TaskWaker {
    task: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap();
        if !ready.contains(&self.task) {
            ready.push(self.task);
        }
    }
}

struct Timer {
    due_ns: u64,
    fired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The executor.
pub(crate) struct TestRuntime {
    now_ns: Cell<u64>,
    random: RefCell<Random>,
    next_task: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, LocalBoxFuture<'static, ()>>>,
    ready: Arc<Mutex<Vec<u64>>>,
    timers: RefCell<Vec<Rc<Timer>>>,
    queues: RefCell<Vec<Rc<dyn DeviceQueue>>>,
}

impl TestRuntime {
    pub(crate) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            now_ns: Cell::new(1),
            random: RefCell::new(Random::new(seed)),
            next_task: Cell::new(0),
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            queues: RefCell::default(),
        })
    }

    /// A queue that is polled when nothing else is ready.
    pub(crate) fn add_queue(&self, queue: Rc<dyn DeviceQueue>) {
        self.queues.borrow_mut().push(queue);
    }

    /// Forgets all tasks, timers and queues: what a crash does.
    pub(crate) fn crash(&self) {
        let tasks = self.tasks.take();
        drop(tasks);
        self.timers.borrow_mut().clear();
        self.queues.borrow_mut().clear();
        self.ready.lock().unwrap().clear();
    }

    /// Runs `future` and all tasks until it ends.
    pub(crate) fn block_on<T: 'static>(
        self: &Rc<Self>,
        future: impl Future<Output = T> + 'static,
    ) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&result);
        self.spawn("main", Box::pin(async move { *slot.borrow_mut() = Some(future.await) }));
        for _ in 0..TURNS_MAX {
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            self.turn();
        }
        panic!("the test hangs: {TURNS_MAX} turns");
    }

    fn turn(&self) {
        let next = {
            let mut ready = self.ready.lock().unwrap();
            let count = ready.len() as u64;
            (count > 0).then(|| ready.swap_remove(self.random.borrow_mut().below(count) as usize))
        };
        if next.is_none() || self.random.borrow_mut().chance(1, 8) {
            let queues = self.queues.borrow().clone();
            let answered: usize = queues.iter().map(|queue| queue.poll()).sum();
            let busy = queues.iter().any(|queue| queue.in_flight() > 0);
            if next.is_none() && answered == 0 && !busy {
                self.advance();
            }
        }
        if let Some(task) = next {
            self.poll_task(task);
        }
    }

    fn poll_task(&self, task: u64) {
        let Some(mut future) = self.tasks.borrow_mut().remove(&task) else { return };
        let waker = Waker::from(Arc::new(TaskWaker { task, ready: Arc::clone(&self.ready) }));
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut().insert(task, future);
        }
    }

    /// Nothing is ready: on to the next timer.
    fn advance(&self) {
        let mut timers = self.timers.borrow_mut();
        let next = timers.iter().map(|timer| timer.due_ns).min();
        let next = next.unwrap_or_else(|| panic!("deadlock: no task is ready and no timer runs"));
        self.now_ns.set(self.now_ns.get().max(next));
        timers.retain(|timer| {
            if timer.due_ns > next {
                return true;
            }
            timer.fired.set(true);
            if let Some(waker) = timer.waker.take() {
                waker.wake();
            }
            false
        });
    }
}

impl Runtime for TestRuntime {
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }

    fn wall_clock_ns(&self) -> u64 {
        // Every look at the clock finds it later, so that changes of times can be seen.
        self.now_ns.set(self.now_ns.get() + 1);
        1_700_000_000_000_000_000 + self.now_ns.get()
    }

    fn sleep(&self, ns: u64) -> LocalBoxFuture<'static, ()> {
        let timer = Rc::new(Timer {
            due_ns: self.now_ns.get().saturating_add(ns),
            fired: Cell::new(false),
            waker: RefCell::default(),
        });
        self.timers.borrow_mut().push(Rc::clone(&timer));
        Box::pin(std::future::poll_fn(move |context| {
            if timer.fired.get() {
                return Poll::Ready(());
            }
            *timer.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        }))
    }

    fn spawn(&self, _name: &'static str, task: LocalBoxFuture<'static, ()>) {
        let number = self.next_task.replace(self.next_task.get() + 1);
        self.tasks.borrow_mut().insert(number, task);
        self.ready.lock().unwrap().push(number);
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }
}
