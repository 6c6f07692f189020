//! Work that goes on after its request was answered: counted, repeated until it succeeds, and stopped
//! in order.
//!
//! What keeps failing (another shard has stopped, a block cannot be read) is *stalled*: it goes on
//! trying, but requests that wait for what it holds fail as it does, so that none waits for ever.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use engine_base::runtime::{LocalBoxFuture, Runtime};
use engine_memory::alloc_site;
use engine_memory::profile::Scoped;

use crate::error::{Result, StoreError};

/// First and longest pause between attempts at a step that failed.
const RETRY_NS_MIN: u64 = 10_000_000;
const RETRY_NS_MAX: u64 = 5_000_000_000;
/// Attempts in a row that fail until work counts as stalled: with the pauses between them 2.5 seconds,
/// so that what passes by itself does not fail requests.
const STALLED_ATTEMPTS: u32 = 9;

/// What background work keeps locked and requests may wait for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// An inode.
    Inode(u64),
    /// The name of a subvolume.
    Subvolume(String),
}

/// The background tasks of a shard.
pub(crate) struct Background {
    runtime: Rc<dyn Runtime>,
    stopping: Cell<bool>,
    running: Cell<usize>,
    retries: Cell<u64>,
    next_work: Cell<u64>,
    /// What each piece of work that is stalled holds, and its last error.
    stalled: RefCell<BTreeMap<u64, (Held, StoreError)>>,
    next_waiter: Cell<u64>,
    /// Those who wait for locks, to be woken when work stalls.
    lock_waiters: RefCell<BTreeMap<u64, Waker>>,
    wakers: RefCell<Vec<Waker>>,
}

struct Running(Rc<Background>);

/// A wait for locks; dropping it ends it.
struct LockWait<'a> {
    background: &'a Background,
    number: u64,
}

impl Drop for LockWait<'_> {
    fn drop(&mut self) {
        self.background.lock_waiters.borrow_mut().remove(&self.number);
    }
}

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
            next_work: Cell::new(0),
            stalled: RefCell::default(),
            next_waiter: Cell::new(0),
            lock_waiters: RefCell::default(),
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
        let counted = Scoped::new(alloc_site!("background work"), counted);
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

    /// Repeats an idempotent step until it succeeds, for work that keeps `held` locked. `false`: the
    /// shard stops first.
    pub(crate) async fn repeat(
        &self,
        held: Held,
        mut step: impl AsyncFnMut() -> Result<()>,
    ) -> bool {
        let work = self.next_work.replace(self.next_work.get() + 1);
        let mut pause_ns = RETRY_NS_MIN;
        let mut failed = 0_u32;
        let done = loop {
            if self.stopping.get() {
                break false;
            }
            let Err(error) = step().await else { break true };
            self.retries.set(self.retries.get() + 1);
            failed = failed.saturating_add(1);
            if failed >= STALLED_ATTEMPTS {
                self.stall(work, held.clone(), error);
            }
            if self.unless_stopped(self.runtime.sleep(pause_ns)).await.is_err() {
                break false;
            }
            pause_ns = (pause_ns * 2).min(RETRY_NS_MAX);
        };
        self.stalled.borrow_mut().remove(&work);
        done
    }

    /// `work`, which waits for locks; or the error of stalled work that holds one of `wanted`, or that
    /// the shard stops: then locks are given up before what they guard is done.
    pub(crate) async fn unless_stalled<T>(
        &self,
        wanted: &[Held],
        work: impl Future<Output = T>,
    ) -> Result<T> {
        let mut work = pin!(work);
        let number = self.next_waiter.replace(self.next_waiter.get() + 1);
        let _wait = LockWait { background: self, number };
        poll_fn(|context| {
            if self.stopping.get() {
                return Poll::Ready(Err(stopped()));
            }
            if let Poll::Ready(done) = work.as_mut().poll(context) {
                return Poll::Ready(Ok(done));
            }
            let stalled = self.stalled.borrow();
            if let Some((_, error)) = stalled.values().find(|(held, _)| wanted.contains(held)) {
                return Poll::Ready(Err(error.clone()));
            }
            self.lock_waiters.borrow_mut().insert(number, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn stall(&self, work: u64, held: Held, error: StoreError) {
        self.stalled.borrow_mut().insert(work, (held, error));
        self.wake_all();
        self.wake_lock_waiters();
    }

    fn wake_lock_waiters(&self) {
        let waiters: Vec<Waker> = self.lock_waiters.borrow().values().cloned().collect();
        waiters.into_iter().for_each(Waker::wake);
    }

    /// Tells all tasks to stop and waits until they have.
    pub(crate) async fn stop(&self) {
        self.stopping.set(true);
        self.wake_all();
        self.wake_lock_waiters();
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

    /// Waits until fewer than `most` tasks run; fails when so many are stalled.
    pub(crate) async fn wait_below(&self, most: usize) -> Result<()> {
        poll_fn(|context| {
            if self.stopping.get() {
                return Poll::Ready(Err(stopped()));
            }
            if self.running.get() < most.max(1) {
                return Poll::Ready(Ok(()));
            }
            let stalled = self.stalled.borrow();
            if stalled.len() >= most.max(1)
                && let Some((_, error)) = stalled.values().next_back()
            {
                return Poll::Ready(Err(error.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestRuntime;

    #[test]
    fn nobody_waits_for_work_that_keeps_failing() {
        let runtime = TestRuntime::new(31);
        let background = Background::new(Rc::clone(&runtime) as Rc<dyn Runtime>);
        runtime.block_on(async move {
            let failing = Rc::new(Cell::new(true));
            let (worker, fails) = (Rc::clone(&background), Rc::clone(&failing));
            let work = async move {
                let step = async || if fails.get() { Err(stopped()) } else { Ok(()) };
                assert!(worker.repeat(Held::Inode(7), step).await);
            };
            background.spawn("work", Box::pin(work));
            let never = std::future::pending::<()>;
            let wanted = [Held::Inode(3), Held::Inode(7)];
            assert_eq!(background.unless_stalled(&wanted, never()).await, Err(stopped()));
            assert_eq!(background.retries(), u64::from(STALLED_ATTEMPTS));
            // At once, now that it is known; others wait as ever.
            assert_eq!(background.unless_stalled(&wanted, never()).await, Err(stopped()));
            let other = background.unless_stalled(&[Held::Inode(3)], async { 5 }).await;
            assert_eq!(other, Ok(5));
            assert_eq!(background.wait_below(1).await, Err(stopped()));
            assert_eq!(background.wait_below(2).await, Ok(()));
            assert!(background.lock_waiters.borrow().is_empty());
            failing.set(false);
            background.idle().await;
            assert!(background.stalled.borrow().is_empty());
            assert_eq!(background.wait_below(1).await, Ok(()));
            background.stop().await;
            let late = background.unless_stalled(&[Held::Inode(7)], async { 5 }).await;
            assert_eq!(late, Err(stopped()));
        });
    }
}
