//! The obligation to answer an operation, and the future that waits for the answer.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use engine_memory::Buffer;

use crate::DeviceError;

/// What an operation came to: for a read, the buffer it was given, filled.
pub type Outcome = Result<Option<Buffer>, DeviceError>;

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
    slot: Rc<Slot>,
}

/// A completion and the future that it completes.
#[must_use]
pub fn completion_pair() -> (Completion, IoFuture) {
    let slot = Rc::new(Slot::default());
    (Completion { slot: Some(Rc::clone(&slot)) }, IoFuture { slot })
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
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        self.answer(Err(DeviceError::Gone { device: "(queue closed)".to_owned() }));
    }
}

impl Future for IoFuture {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        if let Some(outcome) = self.slot.outcome.borrow_mut().take() {
            return Poll::Ready(outcome);
        }
        self.slot.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}
