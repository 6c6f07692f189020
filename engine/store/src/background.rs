//! Work that goes on after its request was answered: counted, and stopped in order.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use engine_base::runtime::{LocalBoxFuture, Runtime};

use crate::error::{Result, StoreError};

/// First and longest pause between attempts at a step that failed.
const RETRY_NS_MIN: u64 = 10_000_000;
const RETRY_NS_MAX: u64 = 5_000_000_000;

/// The background tasks of a shard.
pub(crate) struct Background {
    runtime: Rc<dyn Runtime>,
    stopping: Cell<bool>,
    running: Cell<usize>,
    retries: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
}

struct Running(Rc<Background>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.wake_all();
    }
}

impl Background {
    pub(crate) fn new(runtime: Rc<dyn Runtime>) -> Rc<Self> {
        Rc::new(Self {
            runtime,
            stopping: Cell::new(false),
            running: Cell::new(0),
            retries: Cell::new(0),
            wakers: RefCell::default(),
        })
    }

    /// Runs `task`; [`Background::stop`] waits for it.
    pub(crate) fn spawn(self: &Rc<Self>, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.running.set(self.running.get() + 1);
        let running = Running(Rc::clone(self));
        let counted = async move {
            task.await;
            drop(running);
        };
        self.runtime.spawn(name, Box::pin(counted));
    }

    pub(crate) fn running(&self) -> usize {
        self.running.get()
    }

    /// Steps that failed and were tried again.
    pub(crate) fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// Fails once the shard is stopping.
    pub(crate) fn check(&self) -> Result<()> {
        if self.stopping.get() { Err(stopped()) } else { Ok(()) }
    }

    /// `work`, or an error as soon as the shard stops. What is dropped unfinished must be harmless:
    /// waiting, not writing.
    pub(crate) async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.stopping.get() {
                return Poll::Ready(Err(stopped()));
            }
            self.register(context);
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Repeats an idempotent step until it succeeds. `false`: the shard stops first.
    pub(crate) async fn repeat(&self, mut step: impl AsyncFnMut() -> Result<()>) -> bool {
        let mut pause_ns = RETRY_NS_MIN;
        loop {
            if self.stopping.get() {
                return false;
            }
            if step().await.is_ok() {
                return true;
            }
            self.retries.set(self.retries.get() + 1);
            if self.unless_stopped(self.runtime.sleep(pause_ns)).await.is_err() {
                return false;
            }
            pause_ns = (pause_ns * 2).min(RETRY_NS_MAX);
        }
    }

    /// Tells all tasks to stop and waits until they have.
    pub(crate) async fn stop(&self) {
        self.stopping.set(true);
        self.wake_all();
        self.idle().await;
    }

    /// Waits until no task runs.
    pub(crate) async fn idle(&self) {
        poll_fn(|context| {
            if self.running.get() == 0 {
                return Poll::Ready(());
            }
            self.register(context);
            Poll::Pending
        })
        .await;
    }

    /// Waits until fewer than `most` tasks run.
    pub(crate) async fn wait_below(&self, most: usize) -> Result<()> {
        poll_fn(|context| {
            if self.stopping.get() {
                return Poll::Ready(Err(stopped()));
            }
            if self.running.get() < most.max(1) {
                return Poll::Ready(Ok(()));
            }
            self.register(context);
            Poll::Pending
        })
        .await
    }

    fn register(&self, context: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
    }

    fn wake_all(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }
}

fn stopped() -> StoreError {
    StoreError::ShuttingDown { why: "the shard is being closed".to_owned() }
}
