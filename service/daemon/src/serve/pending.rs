//! Requests that were sent and not yet answered, by ticket.
//!
//! A ticket is not used again before its answer has come, even if nobody waits for it any more: a late
//! answer never reaches the wrong asker. What bounds the table (a permit) is kept in it for as long.

use std::task::{Context, Poll, Waker};

use engine_store::Result;
use engine_store::api::Reply;
use slab::Slab;

/// Names a request in its table.
pub(crate) type Ticket = usize;

enum State {
    Waiting(Option<Waker>),
    Answered(Box<Result<Reply>>),
    Abandoned,
}

struct Slot<P> {
    state: State,
    _permit: P,
}

/// The table; `P` is what each request holds until it is answered.
pub(crate) struct Pending<P> {
    slots: Slab<Slot<P>>,
}

impl<P> Default for Pending<P> {
    fn default() -> Self {
        Self { slots: Slab::new() }
    }
}

impl<P> Pending<P> {
    /// A ticket for a request that is about to be sent.
    pub(crate) fn insert(&mut self, permit: P) -> Ticket {
        self.slots.insert(Slot { state: State::Waiting(None), _permit: permit })
    }

    /// Takes an answer. Wake what comes back, with no lock held.
    pub(crate) fn answer(&mut self, ticket: Ticket, result: Result<Reply>) -> Option<Waker> {
        let slot = self.slots.get_mut(ticket)?;
        match &mut slot.state {
            State::Waiting(waker) => {
                let waker = waker.take();
                slot.state = State::Answered(Box::new(result));
                waker
            }
            State::Answered(_) => None,
            State::Abandoned => {
                self.slots.remove(ticket);
                None
            }
        }
    }

    /// The answer, which ends the ticket, or a promise to wake.
    pub(crate) fn poll(
        &mut self,
        ticket: Ticket,
        context: &mut Context<'_>,
    ) -> Poll<Result<Reply>> {
        let slot = self.slots.get_mut(ticket).expect("its asker holds the ticket");
        if let State::Waiting(waker) = &mut slot.state {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        match self.slots.remove(ticket).state {
            State::Answered(result) => Poll::Ready(*result),
            State::Waiting(_) | State::Abandoned => unreachable!("its asker holds the ticket"),
        }
    }

    /// The asker has gone. `sent`: an answer may still come.
    pub(crate) fn abandon(&mut self, ticket: Ticket, sent: bool) {
        let Some(slot) = self.slots.get_mut(ticket) else { return };
        if sent && matches!(slot.state, State::Waiting(_)) {
            slot.state = State::Abandoned;
        } else {
            self.slots.remove(ticket);
        }
    }

    /// Answers everything that waits with what `make` says. Wake what comes back.
    pub(crate) fn answer_all(&mut self, make: impl Fn() -> Result<Reply>) -> Vec<Waker> {
        let tickets: Vec<Ticket> = self.slots.iter().map(|(ticket, _)| ticket).collect();
        tickets.into_iter().filter_map(|ticket| self.answer(ticket, make())).collect()
    }

    /// Requests not answered, or answered and not yet looked at.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    fn poll(pending: &mut Pending<Rc<()>>, ticket: Ticket) -> Option<Result<Reply>> {
        match pending.poll(ticket, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_ticket_is_kept_until_its_answer_comes() {
        let permit = Rc::new(());
        let mut pending = Pending::default();
        let abandoned = pending.insert(Rc::clone(&permit));
        pending.abandon(abandoned, true);
        let next = pending.insert(Rc::clone(&permit));
        assert_ne!(abandoned, next);
        assert_eq!(Rc::strong_count(&permit), 3, "the abandoned one still counts");
        pending.answer(abandoned, Ok(Reply::Count(1)));
        assert_eq!(Rc::strong_count(&permit), 2);
        assert!(poll(&mut pending, next).is_none());
        assert!(pending.answer(next, Ok(Reply::Count(2))).is_some());
        assert!(matches!(poll(&mut pending, next), Some(Ok(Reply::Count(2)))));
        assert_eq!((pending.len(), Rc::strong_count(&permit)), (0, 1));
    }

    #[test]
    fn what_was_not_sent_is_forgotten_at_once() {
        let mut pending = Pending::default();
        let ticket = pending.insert(Rc::new(()));
        pending.abandon(ticket, false);
        assert_eq!(pending.len(), 0);
        let ticket = pending.insert(Rc::new(()));
        pending.answer(ticket, Ok(Reply::Unit));
        pending.abandon(ticket, true);
        assert_eq!(pending.len(), 0, "answered and not wanted any more");
    }

    #[test]
    fn strange_answers_are_dropped() {
        let mut pending = Pending::default();
        assert!(pending.answer(17, Ok(Reply::Unit)).is_none());
        let ticket = pending.insert(Rc::new(()));
        pending.answer(ticket, Ok(Reply::Count(1)));
        pending.answer(ticket, Ok(Reply::Count(2)));
        assert!(matches!(poll(&mut pending, ticket), Some(Ok(Reply::Count(1)))));
    }

    #[test]
    fn all_are_answered_at_the_end() {
        let mut pending = Pending::default();
        let (a, b) = (pending.insert(Rc::new(())), pending.insert(Rc::new(())));
        assert!(poll(&mut pending, a).is_none());
        pending.abandon(b, true);
        assert_eq!(pending.answer_all(|| Ok(Reply::Unit)).len(), 1);
        assert!(poll(&mut pending, a).is_some());
        assert_eq!(pending.len(), 0);
    }
}
