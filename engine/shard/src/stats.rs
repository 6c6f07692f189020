//! What a reactor counts, written by its core alone and readable from every thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::executor::{CLASSES, TaskClass};

/// A counter with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline(always)]
    pub(crate) fn add(&self, count: u64) {
        // One writer: a load and a store, without the locked instruction of fetch_add.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one poller.
#[derive(Debug)]
pub(crate) struct PollerCounters {
    pub(crate) name: &'static str,
    pub(crate) polls: Counter,
    pub(crate) work: Counter,
}

/// Counters of one reactor.
#[derive(Debug, Default)]
pub struct ReactorStats {
    pub(crate) busy_ns: Counter,
    pub(crate) polling_ns: Counter,
    pub(crate) sleeping_ns: Counter,
    pub(crate) turns: Counter,
    pub(crate) turns_empty: Counter,
    pub(crate) sleeps: Counter,
    pub(crate) sleeps_cancelled: Counter,
    pub(crate) class_ns: [Counter; CLASSES],
    pub(crate) class_tasks_run: [Counter; CLASSES],
    pub(crate) tasks_live: Counter,
    pub(crate) tasks_spawned: Counter,
    pub(crate) foreign_wakes: Counter,
    pub(crate) timers_fired: Counter,
    pub(crate) messages_in: Counter,
    pub(crate) messages_out: Counter,
    pub(crate) ring_full: Counter,
    pub(crate) doorbells_rung: Counter,
    pub(crate) stalls: Counter,
    pub(crate) longest_ns: Counter,
    longest_task: Mutex<&'static str>,
    pollers: Mutex<Vec<Arc<PollerCounters>>>,
}

/// A copy of the counters of one reactor. Counters are totals since its start; those of one snapshot
/// may be some turns apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReactorSnapshot {
    /// Nanoseconds of turns that found work.
    pub busy_ns: u64,
    /// Nanoseconds of turns that found none.
    pub polling_ns: u64,
    /// Nanoseconds blocked in the kernel.
    pub sleeping_ns: u64,
    /// Turns, with or without work.
    pub turns: u64,
    /// Turns without work.
    pub turns_empty: u64,
    /// Times the reactor blocked.
    pub sleeps: u64,
    /// Times the last look before blocking found work.
    pub sleeps_cancelled: u64,
    /// Nanoseconds spent in tasks, by [`TaskClass`].
    pub class_ns: [u64; CLASSES],
    /// Polls of tasks, by [`TaskClass`].
    pub class_tasks_run: [u64; CLASSES],
    /// Tasks alive after the last turn.
    pub tasks_live: u64,
    /// Tasks ever spawned.
    pub tasks_spawned: u64,
    /// Wakes that came from other threads.
    pub foreign_wakes: u64,
    /// Timers fired.
    pub timers_fired: u64,
    /// Messages taken from rings.
    pub messages_in: u64,
    /// Messages put into rings.
    pub messages_out: u64,
    /// Times a send found its ring full.
    pub ring_full: u64,
    /// Wakes of sleeping cores and ports: one system call each.
    pub doorbells_rung: u64,
    /// Polls of a task that took longer than the configured threshold.
    pub stalls: u64,
    /// Nanoseconds of the longest poll of a task.
    pub longest_ns: u64,
    /// The task of that poll; empty before the first.
    pub longest_task: &'static str,
    /// Polls and work by poller, in order of registration.
    pub pollers: Vec<PollerSnapshot>,
}

/// A copy of the counters of one poller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PollerSnapshot {
    /// The name it was registered with.
    pub name: &'static str,
    /// Calls.
    pub polls: u64,
    /// What its calls returned, summed up.
    pub work: u64,
}

impl ReactorStats {
    /// A copy of all counters.
    #[must_use]
    pub fn snapshot(&self) -> ReactorSnapshot {
        let pollers = self.pollers.lock().unwrap_or_else(PoisonError::into_inner);
        ReactorSnapshot {
            busy_ns: self.busy_ns.get(),
            polling_ns: self.polling_ns.get(),
            sleeping_ns: self.sleeping_ns.get(),
            turns: self.turns.get(),
            turns_empty: self.turns_empty.get(),
            sleeps: self.sleeps.get(),
            sleeps_cancelled: self.sleeps_cancelled.get(),
            class_ns: TaskClass::ALL.map(|class| self.class_ns[class as usize].get()),
            class_tasks_run: TaskClass::ALL.map(|class| self.class_tasks_run[class as usize].get()),
            tasks_live: self.tasks_live.get(),
            tasks_spawned: self.tasks_spawned.get(),
            foreign_wakes: self.foreign_wakes.get(),
            timers_fired: self.timers_fired.get(),
            messages_in: self.messages_in.get(),
            messages_out: self.messages_out.get(),
            ring_full: self.ring_full.get(),
            doorbells_rung: self.doorbells_rung.get(),
            stalls: self.stalls.get(),
            longest_ns: self.longest_ns.get(),
            longest_task: *self.longest_task.lock().unwrap_or_else(PoisonError::into_inner),
            pollers: pollers
                .iter()
                .map(|poller| PollerSnapshot {
                    name: poller.name,
                    polls: poller.polls.get(),
                    work: poller.work.get(),
                })
                .collect(),
        }
    }

    /// Accounts one poll of a task.
    #[inline]
    pub(crate) fn task_ran(&self, class: TaskClass, task: &'static str, ns: u64, stall_ns: u64) {
        self.class_tasks_run[class as usize].add(1);
        self.class_ns[class as usize].add(ns);
        if ns > self.longest_ns.get() {
            self.longest_ns.set(ns);
            *self.longest_task.lock().unwrap_or_else(PoisonError::into_inner) = task;
        }
        if ns > stall_ns {
            self.stalls.add(1);
        }
    }

    pub(crate) fn add_poller(&self, name: &'static str) -> Arc<PollerCounters> {
        let counters =
            Arc::new(PollerCounters { name, polls: Counter::default(), work: Counter::default() });
        self.pollers.lock().unwrap_or_else(PoisonError::into_inner).push(counters.clone());
        counters
    }

    pub(crate) fn remove_poller(&self, counters: &Arc<PollerCounters>) {
        let mut pollers = self.pollers.lock().unwrap_or_else(PoisonError::into_inner);
        pollers.retain(|poller| !Arc::ptr_eq(poller, counters));
    }
}
