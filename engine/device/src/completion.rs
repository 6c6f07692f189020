//! The obligation to answer an operation, and the future that waits for the answer.
//!
//! Both share a slot. Slots are reused through a bounded list of the thread, so after warming up an
//! operation allocates nothing here.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use engine_memory::Buffer;

use crate::DeviceError;

/// What an operation came to: for a read, the buffer it was given, filled.
pub type Outcome = Result<Option<Buffer>, DeviceError>;

/// Free slots a thread keeps: as many operations as a core may have in flight on a few devices.
const FREE_SLOTS_MAX: usize = 1024;

thread_local! {
    static FREE_SLOTS: RefCell<Vec<Rc<Slot>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct Slot {
    outcome: RefCell<Option<Outcome>>,
    waker: Cell<Option<Waker>>,
}

/// The obligation to answer one operation. Dropping it unanswered answers [`DeviceError::Gone`]: a
/// waiting task is never left hanging.
pub struct Completion {
    slot: Option<Rc<Slot>>,
}

/// Waits for the answer to one operation.
pub struct IoFuture {
    slot: Option<Rc<Slot>>,
}

/// A completion and the future that it completes.
#[must_use]
pub fn completion_pair() -> (Completion, IoFuture) {
    let slot =
        FREE_SLOTS.try_with(|slots| slots.borrow_mut().pop()).ok().flatten().unwrap_or_default();
    (Completion { slot: Some(Rc::clone(&slot)) }, IoFuture { slot: Some(slot) })
}

/// Gives up one of the two holds on a slot; the second one puts it on the thread's list.
fn release(slot: Rc<Slot>) {
    if Rc::strong_count(&slot) > 1 {
        return;
    }
    // Dropped outside the borrow below: a buffer or a waker may run other people's code.
    drop(slot.outcome.take());
    drop(slot.waker.take());
    let _ = FREE_SLOTS.try_with(|slots| {
        let mut slots = slots.borrow_mut();
        if slots.len() < FREE_SLOTS_MAX {
            slots.push(slot);
        }
    });
}

impl Completion {
    /// Answers the operation and wakes who waits for it.
    pub fn complete(mut self, outcome: Outcome) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: Outcome) {
        if let Some(slot) = self.slot.take() {
            *slot.outcome.borrow_mut() = Some(outcome);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
            release(slot);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.answer(Err(DeviceError::Gone { device: "(queue closed)".to_owned() }));
        }
    }
}

impl Future for IoFuture {
    type Output = Outcome;

    /// # Panics
    /// When polled again after it was ready, as futures may.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let slot = self.slot.as_ref().expect("a future is not polled after it was ready");
        let outcome = slot.outcome.borrow_mut().take();
        let Some(outcome) = outcome else {
            slot.waker.set(Some(context.waker().clone()));
            return Poll::Pending;
        };
        if let Some(slot) = self.slot.take() {
            release(slot);
        }
        Poll::Ready(outcome)
    }
}

impl Drop for IoFuture {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            release(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    struct CountWakes(std::sync::atomic::AtomicUsize);

    impl Wake for CountWakes {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn poll(future: &mut IoFuture, waker: &Waker) -> Poll<Outcome> {
        Pin::new(future).poll(&mut Context::from_waker(waker))
    }

    #[test]
    fn an_answer_wakes_once_and_arrives() {
        let count = std::sync::Arc::new(CountWakes(0.into()));
        let waker = Waker::from(std::sync::Arc::clone(&count));
        let (done, mut future) = completion_pair();
        assert!(poll(&mut future, &waker).is_pending());
        assert!(poll(&mut future, &waker).is_pending());
        done.complete(Ok(None));
        assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(matches!(poll(&mut future, &waker), Poll::Ready(Ok(None))));
    }

    #[test]
    fn a_dropped_obligation_answers_gone() {
        let (done, mut future) = completion_pair();
        drop(done);
        let outcome = poll(&mut future, Waker::noop());
        assert!(matches!(outcome, Poll::Ready(Err(DeviceError::Gone { .. }))));
    }

    #[test]
    fn slots_are_reused_clean_and_bounded() {
        for _ in 0..3 {
            let pairs: Vec<_> = (0..FREE_SLOTS_MAX + 10).map(|_| completion_pair()).collect();
            for (number, (done, future)) in pairs.into_iter().enumerate() {
                match number % 3 {
                    0 => drop(future),
                    1 => done.complete(Ok(None)),
                    _ => {}
                }
            }
            FREE_SLOTS.with(|slots| assert!(slots.borrow().len() <= FREE_SLOTS_MAX));
        }
        let (_done, mut future) = completion_pair();
        assert!(poll(&mut future, Waker::noop()).is_pending(), "a reused slot holds no answer");
    }
}
