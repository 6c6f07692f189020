//! Single-threaded executor on virtual time, driven by one seed.
//!
//! What always holds:
//! - The same seed and the same calls give the same order of polls, the same times and the same random
//!   numbers: nothing here reads a clock, a thread id or an address.
//! - A task is polled only after it was woken. Among the woken ones the seed chooses.
//! - Every poll costs some virtual time, so a task that spins on `yield_now` cannot stop the clock.
//!   When nothing is ready the clock jumps to the next timer.
//! - [`Executor::crash`] may be called between any two polls. It drops every task, timer and
//!   scheduled action; what they do while being dropped has no effect on what runs afterwards.
//!
//! What it leaves to others: which core a message goes to and how long it takes ([`crate::mesh`]), what
//! survives a crash ([`crate::disk`]).

use std::cell::{Cell, RefCell};
use std::cmp::Ordering as Order;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use engine_base::random::Random;
use engine_base::runtime::{LocalBoxFuture, Runtime};
use slab::Slab;

/// Which of the ready tasks runs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// Any, with equal chance.
    Random,
    /// The one that was woken first, as a fair reactor does.
    Fifo,
    /// Mostly the one woken last: long chains run to their end while others wait.
    Bursts,
}

/// Why [`Executor::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// The condition came true.
    Done,
    /// The allowed number of polls is used up.
    PollsSpent,
    /// Nothing is ready and no timer is set: what still waits will wait for ever.
    Idle,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct TaskKey {
    slot: usize,
    generation: u64,
}

type ReadyList = Arc<Mutex<VecDeque<TaskKey>>>;

/// Puts its task on the ready list, once until the next poll.
struct TaskWaker {
    key: TaskKey,
    queued: AtomicBool,
    ready: ReadyList,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Everything runs on one thread; the atomics are here only because wakers must be `Send`.
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.key);
        }
    }
}

struct Task {
    generation: u64,
    name: &'static str,
    core: u16,
    /// When it was polled last, or started.
    polled_ns: u64,
    /// Taken out while the task is polled.
    future: Option<LocalBoxFuture<'static, ()>>,
    waker: Arc<TaskWaker>,
}

enum Action {
    /// Wakes a sleeper, if it still sleeps.
    Wake(Weak<SleepState>),
    /// Runs a closure: the end of a device operation, the delivery of a message.
    Call(Box<dyn FnOnce()>),
}

struct Timer {
    at_ns: u64,
    sequence: u64,
    action: Action,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    /// The heap gives the greatest first, so the earliest timer is the greatest.
    fn cmp(&self, other: &Self) -> Order {
        (other.at_ns, other.sequence).cmp(&(self.at_ns, self.sequence))
    }
}

#[derive(Default)]
struct SleepState {
    fired: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

struct Sleep {
    executor: Weak<Inner>,
    deadline_ns: u64,
    state: Option<Rc<SleepState>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(executor) = self.executor.upgrade() else { return Poll::Pending };
        let state = match &self.state {
            Some(state) => Rc::clone(state),
            None if executor.now_ns.get() >= self.deadline_ns => return Poll::Ready(()),
            None => {
                let state = Rc::new(SleepState::default());
                executor.push_timer(self.deadline_ns, Action::Wake(Rc::downgrade(&state)));
                self.state = Some(Rc::clone(&state));
                state
            }
        };
        if state.fired.get() {
            return Poll::Ready(());
        }
        state.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

struct Inner {
    now_ns: Cell<u64>,
    polls: Cell<u64>,
    crashing: Cell<bool>,
    schedule: Cell<Schedule>,
    random: RefCell<Random>,
    tasks: RefCell<Slab<Task>>,
    generations: Cell<u64>,
    ready: ReadyList,
    timers: RefCell<BinaryHeap<Timer>>,
    timer_sequence: Cell<u64>,
}

/// Most virtual nanoseconds that one poll takes; about what a turn of a busy reactor does.
const POLL_COST_NS_MAX: u64 = 400;

/// The executor. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Executor {
    inner: Rc<Inner>,
}

impl Executor {
    /// An executor whose every choice follows from `seed`.
    #[must_use]
    pub fn new(seed: u64, schedule: Schedule) -> Self {
        Self {
            inner: Rc::new(Inner {
                now_ns: Cell::new(1),
                polls: Cell::new(0),
                crashing: Cell::new(false),
                schedule: Cell::new(schedule),
                random: RefCell::new(Random::new(seed)),
                tasks: RefCell::default(),
                generations: Cell::new(0),
                ready: ReadyList::default(),
                timers: RefCell::default(),
                timer_sequence: Cell::new(0),
            }),
        }
    }

    /// Virtual nanoseconds since the start.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.inner.now_ns.get()
    }

    /// Polls made so far.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.inner.polls.get()
    }

    /// An independent stream of random numbers.
    #[must_use]
    pub fn fork_random(&self) -> Random {
        self.inner.random.borrow_mut().fork()
    }

    /// The runtime of one simulated core.
    #[must_use]
    pub fn core(&self, core: u16) -> Rc<CoreRuntime> {
        let random = RefCell::new(self.fork_random());
        Rc::new(CoreRuntime { inner: Rc::downgrade(&self.inner), core, random })
    }

    /// Starts a task on `core`.
    pub fn spawn(&self, core: u16, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        self.inner.spawn(core, name, task);
    }

    /// Runs `action` at `at_ns`, or at once in the next poll when that is past. Actions of the same
    /// instant run in the order in which they were asked for.
    pub fn call_at(&self, at_ns: u64, action: impl FnOnce() + 'static) {
        if !self.inner.crashing.get() {
            self.inner.push_timer(at_ns, Action::Call(Box::new(action)));
        }
    }

    /// Polls tasks until `done`, `polls_max` polls were made, or nothing can ever happen again.
    pub fn run(&self, polls_max: u64, mut done: impl FnMut() -> bool) -> RunEnd {
        for _ in 0..polls_max {
            if done() {
                return RunEnd::Done;
            }
            self.inner.fire_due();
            loop {
                if let Some(key) = self.inner.pick() {
                    self.inner.poll(key);
                    break;
                }
                if !self.inner.advance() {
                    return if done() { RunEnd::Done } else { RunEnd::Idle };
                }
                if done() {
                    return RunEnd::Done;
                }
            }
        }
        if done() { RunEnd::Done } else { RunEnd::PollsSpent }
    }

    /// Drops every task, in an order the seed chooses, runs `also` (which drops what else belongs to
    /// the dead process), then drops all timers and scheduled actions.
    pub fn crash(&self, also: impl FnOnce()) {
        let inner = &self.inner;
        inner.crashing.set(true);
        let mut tasks: Vec<Task> = inner.tasks.borrow_mut().drain().collect();
        while !tasks.is_empty() {
            let at = inner.random.borrow_mut().below(tasks.len() as u64) as usize;
            drop(tasks.swap_remove(at));
        }
        also();
        let timers = std::mem::take(&mut *inner.timers.borrow_mut());
        drop(timers);
        inner.ready.lock().unwrap_or_else(PoisonError::into_inner).clear();
        inner.crashing.set(false);
    }

    /// The living tasks, for the report of a hang: name, core, how many of that name, and the virtual
    /// nanoseconds for which the one that was polled longest ago has not been.
    #[must_use]
    pub fn waiting_tasks(&self) -> Vec<(&'static str, u16, usize, u64)> {
        let mut names: BTreeMap<(&'static str, u16), (usize, u64)> = BTreeMap::new();
        for (_, task) in self.inner.tasks.borrow().iter() {
            let (count, longest_ns) = names.entry((task.name, task.core)).or_default();
            *count += 1;
            *longest_ns = (*longest_ns).max(self.now_ns().saturating_sub(task.polled_ns));
        }
        names.into_iter().map(|((name, core), (count, ns))| (name, core, count, ns)).collect()
    }

    /// Tasks that live, and timers that are set, those of dropped sleepers among them.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize) {
        (self.inner.tasks.borrow().len(), self.inner.timers.borrow().len())
    }
}

impl Inner {
    fn spawn(self: &Rc<Self>, core: u16, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        if self.crashing.get() {
            return;
        }
        let generation = self.generations.get() + 1;
        self.generations.set(generation);
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let key = TaskKey { slot: entry.key(), generation };
        let waker = Arc::new(TaskWaker {
            key,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.ready),
        });
        waker.wake_by_ref();
        let polled_ns = self.now_ns.get();
        entry.insert(Task { generation, name, core, polled_ns, future: Some(task), waker });
    }

    fn push_timer(&self, at_ns: u64, action: Action) {
        let sequence = self.timer_sequence.get();
        self.timer_sequence.set(sequence + 1);
        self.timers.borrow_mut().push(Timer { at_ns, sequence, action });
    }

    /// Runs what is due.
    fn fire_due(&self) {
        loop {
            let timer = {
                let mut timers = self.timers.borrow_mut();
                match timers.peek() {
                    Some(timer) if timer.at_ns <= self.now_ns.get() => timers.pop(),
                    _ => None,
                }
            };
            let Some(timer) = timer else { return };
            match timer.action {
                Action::Call(action) => action(),
                Action::Wake(state) => {
                    if let Some(state) = state.upgrade() {
                        state.fired.set(true);
                        if let Some(waker) = state.waker.take() {
                            waker.wake();
                        }
                    }
                }
            }
        }
    }

    /// Jumps to the next timer that anyone waits for and runs what is due then; `false`: none is set.
    fn advance(&self) -> bool {
        loop {
            let next = {
                let mut timers = self.timers.borrow_mut();
                let Some(timer) = timers.peek() else { return false };
                match &timer.action {
                    // Dropped sleepers do not hold the clock.
                    Action::Wake(state) if state.strong_count() == 0 => {
                        timers.pop();
                        continue;
                    }
                    _ => timer.at_ns,
                }
            };
            self.now_ns.set(self.now_ns.get().max(next));
            self.fire_due();
            return true;
        }
    }

    fn pick(&self) -> Option<TaskKey> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let last = ready.len().checked_sub(1)?;
        let mut random = self.random.borrow_mut();
        let at = match self.schedule.get() {
            Schedule::Fifo => 0,
            Schedule::Random => random.below(last as u64 + 1) as usize,
            // One in four is chosen freely, so that nothing starves.
            Schedule::Bursts if random.chance(1, 4) => random.below(last as u64 + 1) as usize,
            Schedule::Bursts => last,
        };
        if at == 0 { ready.pop_front() } else { ready.swap_remove_back(at) }
    }

    fn poll(&self, key: TaskKey) {
        self.polls.set(self.polls.get() + 1);
        let cost_ns = 1 + self.random.borrow_mut().below(POLL_COST_NS_MAX);
        self.now_ns.set(self.now_ns.get() + cost_ns);
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get_mut(key.slot) {
                Some(task) if task.generation == key.generation => {
                    task.polled_ns = self.now_ns.get();
                    task.future.take().map(|future| (future, Arc::clone(&task.waker)))
                }
                _ => None,
            }
        };
        let Some((mut future, task_waker)) = taken else { return };
        task_waker.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(task_waker);
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if ended {
            let task = self.tasks.borrow_mut().try_remove(key.slot);
            drop(future);
            drop(task);
        } else if let Some(task) = self.tasks.borrow_mut().get_mut(key.slot) {
            task.future = Some(future);
        }
    }
}

/// One simulated core.
pub struct CoreRuntime {
    /// Weak: tasks hold their runtime, and the executor holds the tasks.
    inner: Weak<Inner>,
    core: u16,
    random: RefCell<Random>,
}

/// 2026-01-01T00:00:00Z: where the wall clock of every run starts.
const EPOCH_START_NS: u64 = 1_767_225_600_000_000_000;

impl Runtime for CoreRuntime {
    fn now_ns(&self) -> u64 {
        self.inner.upgrade().map_or(u64::MAX, |inner| inner.now_ns.get())
    }

    fn wall_clock_ns(&self) -> u64 {
        EPOCH_START_NS.saturating_add(self.now_ns())
    }

    fn sleep(&self, ns: u64) -> LocalBoxFuture<'static, ()> {
        let deadline_ns = self.now_ns().saturating_add(ns);
        Box::pin(Sleep { executor: self.inner.clone(), deadline_ns, state: None })
    }

    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        if let Some(inner) = self.inner.upgrade() {
            inner.spawn(self.core, name, task);
        }
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }
}

#[cfg(test)]
mod tests;
