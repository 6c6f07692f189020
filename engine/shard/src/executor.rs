//! Tasks of one core: slots, ready queues and wakers.
//!
//! * A task is in a ready queue at most once (`TaskHeader::queued`), and in the set of foreign wakes
//!   at most once (its bit), so both are bounded by the number of tasks.
//! * A wake from the own core is a push to the ready queue; from any other thread it is a bit and, if
//!   the core sleeps, a write to its eventfd. Wakers are `Send + Sync` without a lock.
//! * Tasks of a class run in the order they were woken. A task that wakes itself while it runs (a yield)
//!   runs in the next turn, after everything that was polled in between.
//! * Among classes, the one that has had the least time for its share runs next ([`TaskClass`]).
//!
//! A stale wake of a slot's former task may poll its present task once too often, which futures
//! allow for. Timing, polling and sleeping are the reactor's.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use engine_base::runtime::LocalBoxFuture;

use crate::doorbell::Doorbell;
use crate::wake_set::WakeSet;

/// What a task works for. Each class has a share of the core's time while both have tasks ready; a
/// class alone has all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskClass {
    /// Work that somebody waits for.
    Client = 0,
    /// Copying garbage collection, scrub, rebalance and the like.
    Background = 1,
}

impl TaskClass {
    /// All classes, in the order of their indices.
    pub const ALL: [TaskClass; CLASSES] = [TaskClass::Client, TaskClass::Background];
}

/// How many classes there are.
pub const CLASSES: usize = 2;

/// One line of a task listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskInfo {
    /// The name it was spawned with.
    pub name: &'static str,
    /// What it works for.
    pub class: TaskClass,
    /// How often it was polled.
    pub polls: u64,
}

/// A reference to a task that may have ended meanwhile.
#[derive(Clone, Copy, Debug)]
struct Entry {
    slot: u32,
    generation: u32,
}

/// The part of a task that its wakers share.
struct TaskHeader {
    /// The ready queues of its core, named by address: only compared, never followed.
    home: usize,
    foreign: Arc<ForeignWakes>,
    class: TaskClass,
    entry: Entry,
    /// In a ready queue. Touched on the own core only, so plain loads and stores do.
    queued: AtomicBool,
    finished: AtomicBool,
}

/// How other threads reach the tasks of a core.
pub(crate) struct ForeignWakes {
    pub(crate) set: WakeSet,
    pub(crate) doorbell: Arc<Doorbell>,
}

#[derive(Default)]
struct ReadyQueues {
    queues: [RefCell<VecDeque<Entry>>; CLASSES],
    /// Woke themselves while they ran; ready in the next turn.
    yielded: RefCell<Vec<(TaskClass, Entry)>>,
    /// Slot and class of the task that runs.
    running: Cell<Option<(u32, TaskClass)>>,
}

thread_local! {
    /// The core whose turn runs on this thread. A thread may host several reactors, one at a time.
    static CURRENT: RefCell<Option<Rc<ReadyQueues>>> = const { RefCell::new(None) };
}

impl Wake for TaskHeader {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.finished.load(Ordering::Relaxed) {
            return;
        }
        let local = CURRENT.try_with(|current| match &*current.borrow() {
            Some(ready) if Rc::as_ptr(ready) as usize == self.home => {
                ready.push(self);
                true
            }
            _ => false,
        });
        if local != Ok(true) {
            self.foreign.set.set(self.entry.slot as usize);
            self.foreign.doorbell.publish_and_ring();
        }
    }
}

impl ReadyQueues {
    fn push(&self, header: &TaskHeader) {
        if header.queued.load(Ordering::Relaxed) {
            return;
        }
        header.queued.store(true, Ordering::Relaxed);
        if self.running.get().is_some_and(|(slot, _)| slot == header.entry.slot) {
            self.yielded.borrow_mut().push((header.class, header.entry));
        } else {
            self.queues[header.class as usize].borrow_mut().push_back(header.entry);
        }
    }
}

struct Slot {
    header: Arc<TaskHeader>,
    /// Made once for the task; away while it runs.
    waker: Option<Waker>,
    /// Away while it runs; `None` with `running` unset in a free slot.
    future: Option<LocalBoxFuture<'static, ()>>,
    name: &'static str,
    polls: u64,
    live: bool,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

/// What one poll of a task came to.
#[derive(Debug)]
pub(crate) enum Ran {
    /// It waits or has ended.
    Polled(&'static str),
    /// It was gone already.
    Stale,
    /// It panicked and was dropped.
    Panicked { task: &'static str, message: String },
}

/// The tasks of one core.
pub(crate) struct Executor {
    slots: RefCell<Slots>,
    ready: Rc<ReadyQueues>,
    foreign: Arc<ForeignWakes>,
    tasks_max: usize,
}

/// While it lives, wakes on this thread go straight to the ready queues of one core.
pub(crate) struct Entered(Option<Rc<ReadyQueues>>);

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with(|current| *current.borrow_mut() = before);
    }
}

impl Executor {
    pub(crate) fn new(tasks_max: usize, doorbell: Arc<Doorbell>) -> Self {
        let set = WakeSet::new(tasks_max);
        Self {
            slots: RefCell::default(),
            ready: Rc::default(),
            foreign: Arc::new(ForeignWakes { set, doorbell }),
            tasks_max,
        }
    }

    /// Makes this thread the core's own until the guard drops.
    pub(crate) fn enter(&self) -> Entered {
        Entered(CURRENT.with(|current| current.borrow_mut().replace(self.ready.clone())))
    }

    /// Adds a task, ready to run. Gives it back when there are too many.
    pub(crate) fn spawn(
        &self,
        class: TaskClass,
        name: &'static str,
        future: LocalBoxFuture<'static, ()>,
    ) -> Result<(), LocalBoxFuture<'static, ()>> {
        let mut slots = self.slots.borrow_mut();
        let Slots { slots, free } = &mut *slots;
        let index = match free.pop() {
            Some(index) => {
                let slot = &mut slots[index as usize];
                let generation = slot.header.entry.generation.wrapping_add(1);
                self.renew_header(&mut slot.header, class, Entry { slot: index, generation });
                index
            }
            None if slots.len() == self.tasks_max => return Err(future),
            None => {
                let index = slots.len() as u32;
                let header = Arc::new(self.header(class, Entry { slot: index, generation: 0 }));
                slots.push(Slot { header, waker: None, future: None, name, polls: 0, live: false });
                index
            }
        };
        let slot = &mut slots[index as usize];
        slot.waker = Some(Waker::from(slot.header.clone()));
        slot.future = Some(future);
        slot.name = name;
        slot.polls = 0;
        slot.live = true;
        slot.header.queued.store(true, Ordering::Relaxed);
        self.ready.queues[class as usize].borrow_mut().push_back(slot.header.entry);
        Ok(())
    }

    /// Makes the header of a free slot that of its next task: in place if no waker of the last one is
    /// left, else anew.
    fn renew_header(&self, header: &mut Arc<TaskHeader>, class: TaskClass, entry: Entry) {
        let fresh = self.header(class, entry);
        match Arc::get_mut(header) {
            Some(header) => *header = fresh,
            None => *header = Arc::new(fresh),
        }
    }

    fn header(&self, class: TaskClass, entry: Entry) -> TaskHeader {
        TaskHeader {
            home: Rc::as_ptr(&self.ready) as usize,
            foreign: self.foreign.clone(),
            class,
            entry,
            queued: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        }
    }

    /// Class of the task that runs.
    pub(crate) fn running_class(&self) -> Option<TaskClass> {
        self.ready.running.get().map(|(_, class)| class)
    }

    /// Moves the tasks that other threads have woken to the ready queues. Returns how many.
    #[inline]
    pub(crate) fn take_foreign_wakes(&self) -> usize {
        self.foreign.set.drain(|index| {
            let slots = self.slots.borrow();
            // The bits are as many as the tasks may be, rounded up.
            if let Some(slot) = slots.slots.get(index).filter(|slot| slot.live) {
                self.ready.push(&slot.header);
            }
        })
    }

    /// Makes the tasks that yielded in the last turn ready.
    #[inline]
    pub(crate) fn take_yielded(&self) {
        let mut yielded = self.ready.yielded.borrow_mut();
        for (class, entry) in yielded.drain(..) {
            self.ready.queues[class as usize].borrow_mut().push_back(entry);
        }
    }

    /// Whether a task of the class is ready in this turn.
    #[inline]
    pub(crate) fn is_ready(&self, class: TaskClass) -> bool {
        !self.ready.queues[class as usize].borrow().is_empty()
    }

    /// Whether any task can run in this turn or the next.
    pub(crate) fn has_work(&self) -> bool {
        TaskClass::ALL.into_iter().any(|class| self.is_ready(class))
            || !self.ready.yielded.borrow().is_empty()
            || !self.foreign.set.is_empty()
    }

    /// Polls the first ready task of the class.
    #[inline]
    pub(crate) fn run_one(&self, class: TaskClass) -> Option<Ran> {
        let entry = self.ready.queues[class as usize].borrow_mut().pop_front()?;
        Some(self.run(class, entry))
    }

    fn run(&self, class: TaskClass, entry: Entry) -> Ran {
        let (mut future, waker, name) = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots.slots[entry.slot as usize];
            if slot.header.entry.generation != entry.generation {
                return Ran::Stale;
            }
            let (Some(future), Some(waker)) = (slot.future.take(), slot.waker.take()) else {
                return Ran::Stale;
            };
            slot.header.queued.store(false, Ordering::Relaxed);
            slot.polls += 1;
            (future, waker, slot.name)
        };
        self.ready.running.set(Some((entry.slot, class)));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => Some(future),
                Poll::Ready(()) => {
                    drop(future);
                    None
                }
            }
        }));
        self.ready.running.set(None);
        match outcome {
            Ok(Some(future)) => {
                let mut slots = self.slots.borrow_mut();
                let slot = &mut slots.slots[entry.slot as usize];
                slot.future = Some(future);
                slot.waker = Some(waker);
                Ran::Polled(name)
            }
            Ok(None) => {
                drop(waker);
                self.release(entry.slot);
                Ran::Polled(name)
            }
            Err(payload) => {
                self.release(entry.slot);
                Ran::Panicked { task: name, message: panic_message(&*payload) }
            }
        }
    }

    fn release(&self, index: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots.slots[index as usize];
        slot.live = false;
        slot.header.finished.store(true, Ordering::Relaxed);
        slots.free.push(index);
    }

    /// Live tasks.
    pub(crate) fn len(&self) -> usize {
        let slots = self.slots.borrow();
        slots.slots.len() - slots.free.len()
    }

    /// All live tasks.
    pub(crate) fn list(&self) -> Vec<TaskInfo> {
        let slots = self.slots.borrow();
        let live = slots.slots.iter().filter(|slot| slot.live);
        live.map(|slot| TaskInfo { name: slot.name, class: slot.header.class, polls: slot.polls })
            .collect()
    }

    /// Drops all tasks, also those that the dropping of others spawns, up to a bound. Returns how
    /// many were dropped.
    pub(crate) fn clear(&self) -> usize {
        let mut count = 0;
        while count < 2 * self.tasks_max {
            // One at a time and outside the borrow: what a future owns may wake, spawn or cancel.
            let next = {
                let mut slots = self.slots.borrow_mut();
                slots.slots.iter_mut().find_map(|slot| {
                    slot.future.take().map(|future| (future, slot.header.entry.slot))
                })
            };
            let Some((future, index)) = next else { break };
            drop(future);
            self.slots.borrow_mut().slots[index as usize].waker = None;
            self.release(index);
            count += 1;
        }
        count
    }
}

/// The text of a panic.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a panic without a message".to_owned()
    }
}
