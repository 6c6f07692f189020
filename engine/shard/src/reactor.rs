//! One core's loop: what a turn does, when the core sleeps, and the handle through which tasks use it.
//!
//! A [`Reactor::turn`] polls the pollers, fires timers, takes the wakes of other threads, runs ready
//! tasks (bounded by count and time, shared out by class) and lets the pollers send what was gathered.
//! [`Reactor::rest`] blocks the core when nothing was found for the idle window. Time is read once
//! a turn and once after each task.
//!
//! A panic of a task stops the reactor for good ([`ReactorFault`]). Threads, placement and stopping are
//! left to [`crate::cores`] and [`crate::host`]; rings to [`crate::mesh`].

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine_base::random::Random;
use engine_base::runtime::{LocalBoxFuture, Runtime};

use crate::clock::Clock;
use crate::doorbell::Doorbell;
use crate::error::{LimitError, ReactorFault};
use crate::executor::{CLASSES, Executor, Ran, TaskClass, TaskInfo};
use crate::limits;
use crate::poller::{Poller, PollerId};
use crate::stats::{PollerCounters, ReactorStats};
use crate::timers::{TimerKey, Timers};
use crate::wait;

/// How long a reactor polls without finding work before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Nanoseconds; 0 sleeps after the first turn without work.
    Window {
        /// Nanoseconds of polling.
        ns: u64,
    },
    /// Never sleeps: lowest latency, a whole CPU for it.
    PollForever,
}

impl Default for IdlePolicy {
    fn default() -> Self {
        Self::Window { ns: limits::IDLE_WINDOW_NS }
    }
}

/// Settings of one reactor.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// When to sleep.
    pub idle: IdlePolicy,
    /// Share of each class, by [`TaskClass`]; at least 1 each. 9 to 1: while clients have work ready,
    /// background work has a tenth of the core.
    pub shares: [u32; CLASSES],
    /// Tasks at the same time, at most [`limits::TASKS_MAX`].
    pub tasks_max: usize,
    /// Nanoseconds of one poll of a task above which it counts as a stall.
    pub stall_ns: u64,
    /// The clock; give all cores copies of one.
    pub clock: Clock,
    /// Seed of [`Runtime::random_u64`].
    pub seed: u64,
}

impl Default for ReactorConfig {
    fn default() -> Self {
        Self {
            idle: IdlePolicy::default(),
            shares: [9, 1],
            tasks_max: 65_536,
            stall_ns: limits::STALL_NS,
            clock: Clock::new(),
            seed: 0,
        }
    }
}

struct Registered {
    id: PollerId,
    poller: Rc<dyn Poller>,
    counters: Arc<PollerCounters>,
}

/// What the reactor and its handles share.
struct Inner {
    clock: Clock,
    executor: Executor,
    timers: RefCell<Timers>,
    random: RefCell<Random>,
    pollers: RefCell<Vec<Rc<Registered>>>,
    /// Raised when `pollers` changed.
    pollers_changed: Cell<bool>,
    poller_next: Cell<u64>,
    stats: Arc<ReactorStats>,
    doorbell: Arc<Doorbell>,
    tasks_max: usize,
}

/// The loop of one core. Lives and dies on the thread that made it.
pub struct Reactor {
    inner: Rc<Inner>,
    idle: IdlePolicy,
    stall_ns: u64,
    shares: [u64; CLASSES],
    /// Time each class has had, scaled by the inverse of its share.
    virtual_ns: [u64; CLASSES],
    was_ready: [bool; CLASSES],
    pollers: Vec<Rc<Registered>>,
    /// Start of the last turn, and whether it found work.
    last_turn_ns: u64,
    last_found: bool,
    /// End of the last turn that found work.
    busy_until_ns: u64,
    fault: Option<ReactorFault>,
}

impl Reactor {
    /// A reactor on the calling thread that sleeps on `doorbell`.
    #[must_use]
    pub fn new(config: &ReactorConfig, doorbell: Arc<Doorbell>) -> Self {
        let tasks_max = config.tasks_max.clamp(1, limits::TASKS_MAX);
        let inner = Rc::new(Inner {
            clock: config.clock,
            executor: Executor::new(tasks_max, doorbell.clone()),
            timers: RefCell::default(),
            random: RefCell::new(Random::new(config.seed)),
            pollers: RefCell::default(),
            pollers_changed: Cell::new(false),
            poller_next: Cell::new(0),
            stats: Arc::default(),
            doorbell,
            tasks_max,
        });
        let now_ns = config.clock.now_ns();
        Self {
            inner,
            idle: config.idle,
            stall_ns: config.stall_ns,
            shares: config.shares.map(|share| u64::from(share.max(1))),
            virtual_ns: [0; CLASSES],
            was_ready: [false; CLASSES],
            pollers: Vec::new(),
            last_turn_ns: now_ns,
            last_found: false,
            busy_until_ns: now_ns,
            fault: None,
        }
    }

    /// The handle for the tasks of this core.
    #[must_use]
    pub fn handle(&self) -> Rc<Handle> {
        Rc::new(Handle { inner: self.inner.clone(), class: None })
    }

    /// One round over everything. Returns how much work was found, 0 for none.
    ///
    /// # Errors
    /// When a task panicked, now or in an earlier turn; nothing runs any more.
    pub fn turn(&mut self) -> Result<usize, ReactorFault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let now_ns = self.begin_turn();
        let inner = self.inner.clone();
        let _entered = inner.executor.enter();
        inner.executor.take_yielded();
        let mut found = self.poll_pollers() + self.fire_timers(now_ns);
        let woken = inner.executor.take_foreign_wakes();
        if woken > 0 {
            inner.stats.foreign_wakes.add(woken as u64);
        }
        let ran = self.run_tasks(now_ns);
        for registered in &self.pollers {
            registered.poller.end_turn();
        }
        found += woken + ran?;
        self.last_found = found > 0;
        inner.stats.turns.add(1);
        if found == 0 {
            inner.stats.turns_empty.add(1);
        } else {
            inner.stats.tasks_live.set(inner.executor.len() as u64);
        }
        Ok(found)
    }

    /// Blocks until there may be work, if the last turn found none and the idle window has passed;
    /// else returns at once.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn rest(&mut self) -> Result<(), ReactorFault> {
        let IdlePolicy::Window { ns: window_ns } = self.idle else { return Ok(()) };
        let now_ns = self.last_turn_ns;
        if self.last_found || now_ns.saturating_sub(self.busy_until_ns) < window_ns {
            return Ok(());
        }
        let deadline_ns = self.inner.timers.borrow_mut().next_deadline_ns();
        // Waking up takes about as long as the window is: a timer that near is polled for.
        if deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns.saturating_add(window_ns)) {
            return Ok(());
        }
        self.sleep(deadline_ns)
    }

    /// Announce, look at everything once more, block. [`crate::doorbell`] has the argument.
    fn sleep(&mut self, deadline_ns: Option<u64>) -> Result<(), ReactorFault> {
        let inner = self.inner.clone();
        inner.doorbell.announce_sleep();
        let mut may_sleep = !inner.executor.has_work() && !inner.pollers_changed.get();
        for registered in &self.pollers {
            // Every poller is asked only while none has refused: arming costs system calls.
            may_sleep = may_sleep && registered.poller.prepare_to_sleep();
        }
        // Preparing may have woken tasks.
        if !may_sleep || inner.executor.has_work() {
            inner.doorbell.awake();
            inner.stats.sleeps_cancelled.add(1);
            return Ok(());
        }
        let before_ns = inner.clock.now_ns();
        let timeout_ns = deadline_ns.map(|deadline_ns| deadline_ns.saturating_sub(before_ns));
        let others = self.pollers.iter().filter_map(|registered| registered.poller.wake_fd());
        let waited = wait::wait(&*inner.doorbell, others, timeout_ns);
        inner.doorbell.awake();
        let after_ns = inner.clock.now_ns();
        inner.stats.sleeps.add(1);
        inner.stats.sleeping_ns.add(after_ns - before_ns);
        // Time asleep is neither busy nor polling; and after it, look around for a whole window.
        self.last_turn_ns = self.last_turn_ns.saturating_add(after_ns - before_ns);
        self.busy_until_ns = after_ns;
        match waited {
            Ok(true) => inner.doorbell.clear(),
            Ok(false) => {}
            Err(error) => {
                let fault = ReactorFault::Wait { message: error.to_string() };
                self.fault = Some(fault.clone());
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Turns and rests until `future` is done. For tests and tools; `future` must end.
    ///
    /// # Errors
    /// As [`Reactor::turn`].
    pub fn block_on<T: 'static>(
        &mut self,
        future: impl Future<Output = T> + 'static,
    ) -> Result<T, ReactorFault> {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.handle().spawn(
            "block_on",
            Box::pin(async move {
                let value = future.await;
                *slot.borrow_mut() = Some(value);
            }),
        );
        loop {
            self.turn()?;
            if let Some(value) = result.borrow_mut().take() {
                return Ok(value);
            }
            self.rest()?;
        }
    }

    /// Accounts the last turn and starts the next.
    fn begin_turn(&mut self) -> u64 {
        let now_ns = self.inner.clock.now_ns();
        let passed_ns = now_ns.saturating_sub(self.last_turn_ns);
        let stats = &self.inner.stats;
        if self.last_found {
            stats.busy_ns.add(passed_ns);
            self.busy_until_ns = now_ns;
        } else {
            stats.polling_ns.add(passed_ns);
        }
        self.last_turn_ns = now_ns;
        if self.inner.pollers_changed.replace(false) {
            self.pollers.clone_from(&self.inner.pollers.borrow());
        }
        now_ns
    }

    #[inline]
    fn poll_pollers(&self) -> usize {
        let mut found = 0;
        for registered in &self.pollers {
            let work = registered.poller.poll();
            registered.counters.polls.add(1);
            if work > 0 {
                registered.counters.work.add(work as u64);
                found += work;
            }
        }
        found
    }

    #[inline]
    fn fire_timers(&self, now_ns: u64) -> usize {
        let mut fired = 0;
        while fired < limits::TIMERS_PER_TURN_MAX {
            // Outside the borrow: a waker may drop things that cancel timers.
            let Some(waker) = self.inner.timers.borrow_mut().fire_one(now_ns) else { break };
            waker.wake();
            fired += 1;
        }
        if fired > 0 {
            self.inner.stats.timers_fired.add(fired as u64);
        }
        fired
    }

    /// Runs ready tasks until there are none or the turn's bounds are reached.
    fn run_tasks(&mut self, start_ns: u64) -> Result<usize, ReactorFault> {
        let inner = self.inner.clone();
        let mut before_ns = None;
        let mut ran = 0;
        while ran < limits::TASKS_PER_TURN_MAX {
            let Some(class) = self.next_class() else { break };
            // The first task's time starts after the polling, the others' where the last one ended.
            let task_start_ns = before_ns.unwrap_or_else(|| inner.clock.now_ns());
            let Some(outcome) = inner.executor.run_one(class) else { break };
            ran += 1;
            let after_ns = inner.clock.now_ns();
            before_ns = Some(after_ns);
            let ns = after_ns.saturating_sub(task_start_ns);
            self.charge(class, ns);
            match outcome {
                Ran::Polled(task) => inner.stats.task_ran(class, task, ns, self.stall_ns),
                Ran::Stale => {}
                Ran::Panicked { task, message } => {
                    let fault = ReactorFault::TaskPanicked { task, message };
                    self.fault = Some(fault.clone());
                    return Err(fault);
                }
            }
            if after_ns.saturating_sub(start_ns) > limits::TASKS_PER_TURN_NS {
                break;
            }
        }
        Ok(ran)
    }

    #[inline]
    fn charge(&mut self, class: TaskClass, ns: u64) {
        if self.virtual_ns[class as usize] > 1 << 62 {
            // After years. All start level again, which is unfair for a turn.
            self.virtual_ns = [0; CLASSES];
        }
        self.virtual_ns[class as usize] +=
            ns.max(1).saturating_mul(VIRTUAL_SCALE).min(1 << 62) / self.shares[class as usize];
    }

    /// The ready class that has had the least time for its share. A class that was not ready starts
    /// level with the one that was: idleness is not saved up.
    #[inline]
    fn next_class(&mut self) -> Option<TaskClass> {
        const CLIENT: usize = TaskClass::Client as usize;
        const BACKGROUND: usize = TaskClass::Background as usize;
        let executor = &self.inner.executor;
        let ready =
            [executor.is_ready(TaskClass::Client), executor.is_ready(TaskClass::Background)];
        if ready[CLIENT] && ready[BACKGROUND] {
            for (class, other) in [(CLIENT, BACKGROUND), (BACKGROUND, CLIENT)] {
                if !self.was_ready[class] && self.virtual_ns[class] < self.virtual_ns[other] {
                    self.virtual_ns[class] = self.virtual_ns[other];
                }
            }
        }
        self.was_ready = ready;
        match ready {
            [false, false] => None,
            [true, false] => Some(TaskClass::Client),
            [false, true] => Some(TaskClass::Background),
            [true, true] if self.virtual_ns[CLIENT] <= self.virtual_ns[BACKGROUND] => {
                Some(TaskClass::Client)
            }
            [true, true] => Some(TaskClass::Background),
        }
    }
}

/// Keeps whole numbers exact enough for shares up to thousands.
const VIRTUAL_SCALE: u64 = 64;

impl Drop for Reactor {
    fn drop(&mut self) {
        // Tasks hold handles and handles hold tasks: undo the knot. Wakes during it go nowhere.
        self.inner.executor.clear();
        self.pollers.clear();
        let pollers = std::mem::take(&mut *self.inner.pollers.borrow_mut());
        drop(pollers);
        self.inner.executor.clear();
    }
}

/// What tasks see of their core; the [`Runtime`] of the engine in production.
pub struct Handle {
    inner: Rc<Inner>,
    /// Class of what is spawned; `None`: that of the task that spawns.
    class: Option<TaskClass>,
}

impl Handle {
    /// The same core, for spawning into one class. A handle without a class spawns into that of the
    /// task that runs, and into [`TaskClass::Client`] outside of tasks.
    #[must_use]
    pub fn with_class(&self, class: TaskClass) -> Rc<Self> {
        Rc::new(Self { inner: self.inner.clone(), class: Some(class) })
    }

    /// Spawns, or says that there are too many tasks (`task` is dropped).
    ///
    /// # Errors
    /// [`LimitError::Tasks`].
    pub fn try_spawn(
        &self,
        class: TaskClass,
        name: &'static str,
        task: LocalBoxFuture<'static, ()>,
    ) -> Result<(), LimitError> {
        let refused = self.inner.executor.spawn(class, name, task).err();
        if refused.is_some() {
            return Err(LimitError::Tasks { task: name, max: self.inner.tasks_max });
        }
        self.inner.stats.tasks_spawned.add(1);
        Ok(())
    }

    /// Has `poller` polled in every turn from the next one on.
    ///
    /// # Errors
    /// [`LimitError::Pollers`].
    pub fn register_poller(
        &self,
        name: &'static str,
        poller: Rc<dyn Poller>,
    ) -> Result<PollerId, LimitError> {
        let mut pollers = self.inner.pollers.borrow_mut();
        if pollers.len() == limits::POLLERS_MAX {
            return Err(LimitError::Pollers { max: limits::POLLERS_MAX });
        }
        let id = PollerId(self.inner.poller_next.get());
        self.inner.poller_next.set(id.0 + 1);
        let counters = self.inner.stats.add_poller(name);
        pollers.push(Rc::new(Registered { id, poller, counters }));
        self.inner.pollers_changed.set(true);
        Ok(id)
    }

    /// Ends that, from the next turn on. Does nothing for a poller that is gone.
    pub fn unregister_poller(&self, id: PollerId) {
        let mut pollers = self.inner.pollers.borrow_mut();
        let Some(place) = pollers.iter().position(|registered| registered.id == id) else { return };
        let registered = pollers.remove(place);
        self.inner.stats.remove_poller(&registered.counters);
        self.inner.pollers_changed.set(true);
    }

    /// Sleeps like [`Runtime::sleep`], without a box.
    pub fn sleep_for(&self, ns: u64) -> Sleep {
        let deadline_ns = self.inner.clock.now_ns().saturating_add(ns);
        Sleep { inner: self.inner.clone(), deadline_ns, timer: None }
    }

    /// The counters of this core, for other threads.
    #[must_use]
    pub fn stats(&self) -> Arc<ReactorStats> {
        self.inner.stats.clone()
    }

    /// What the core sleeps on.
    #[must_use]
    pub fn doorbell(&self) -> Arc<Doorbell> {
        self.inner.doorbell.clone()
    }

    /// All live tasks.
    #[must_use]
    pub fn tasks(&self) -> Vec<TaskInfo> {
        self.inner.executor.list()
    }
}

impl Runtime for Handle {
    fn now_ns(&self) -> u64 {
        self.inner.clock.now_ns()
    }

    fn wall_clock_ns(&self) -> u64 {
        self.inner.clock.wall_clock_ns()
    }

    fn sleep(&self, ns: u64) -> LocalBoxFuture<'static, ()> {
        Box::pin(self.sleep_for(ns))
    }

    /// Panics past [`ReactorConfig::tasks_max`]: admission keeps below it, and a task that silently
    /// never runs would be worse. [`Handle::try_spawn`] answers instead.
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>) {
        let class = self.class.or_else(|| self.inner.executor.running_class());
        if let Err(error) = self.try_spawn(class.unwrap_or(TaskClass::Client), name, task) {
            panic!("{error}");
        }
    }

    fn random_u64(&self) -> u64 {
        self.inner.random.borrow_mut().next_u64()
    }
}

/// Completes when its time has come; dropping it cancels.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    inner: Rc<Inner>,
    deadline_ns: u64,
    timer: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let inner = self.inner.clone();
        let mut timers = inner.timers.borrow_mut();
        match self.timer {
            None if self.deadline_ns <= inner.clock.now_ns() => Poll::Ready(()),
            None => {
                self.timer = Some(timers.set(self.deadline_ns, context.waker().clone()));
                Poll::Pending
            }
            Some(timer) if timers.change_waker(timer, context.waker()) => Poll::Pending,
            Some(_) => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.inner.timers.borrow_mut().cancel(timer);
        }
    }
}
