//! Waiting for other tasks of the same core.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::planted::{self, Bug};

/// Wakes every task that waits. A task must re-check its condition after it was woken.
#[derive(Default)]
pub(crate) struct Notify {
    generation: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes all who wait now.
    pub(crate) fn notify_all(&self) {
        self.generation.set(self.generation.get() + 1);
        if self.waiting.borrow().is_empty() {
            return;
        }
        // Waking may make others wait here, so the list is not borrowed meanwhile.
        let mut waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        if planted::is(Bug::LostWakeup) && waiting.len() > 1 {
            waiting.pop();
        }
        for waker in waiting.drain(..) {
            waker.wake();
        }
        // Its memory serves those who wait next.
        let mut next = self.waiting.borrow_mut();
        if next.is_empty() {
            *next = waiting;
        }
    }

    /// Waits for the next `notify_all`. The wait starts at the call, not at the first poll, so a
    /// condition checked just before the call cannot change unseen.
    pub(crate) fn notified(&self) -> impl Future<Output = ()> + '_ {
        let start = self.generation.get();
        poll_fn(move |context| {
            if self.generation.get() != start {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
    }
}
