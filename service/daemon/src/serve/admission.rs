//! How many requests, and how much data, one shard works on at a time.
//!
//! First come, first served: a large request is not overtaken for ever by small ones. A request that
//! is larger than the whole budget runs when nothing else does. Belongs to one core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The bound of one shard.
pub(crate) struct Admission {
    requests_max: usize,
    bytes_max: u64,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    requests: usize,
    bytes: u64,
    waiting: VecDeque<Rc<Waiter>>,
}

struct Waiter {
    bytes: u64,
    granted: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// The right to work on one request; dropping it lets the next one in.
pub(crate) struct Permit {
    admission: Rc<Admission>,
    bytes: u64,
}

/// Waits for a [`Permit`].
pub(crate) struct Enter {
    admission: Rc<Admission>,
    bytes: u64,
    waiter: Option<Rc<Waiter>>,
}

impl Admission {
    /// Admits `requests_max` requests with `bytes_max` bytes of data together; both at least 1.
    pub(crate) fn new(requests_max: usize, bytes_max: u64) -> Rc<Self> {
        assert!(requests_max > 0 && bytes_max > 0);
        Rc::new(Self { requests_max, bytes_max, state: RefCell::default() })
    }

    /// Waits until a request that carries `bytes` of data may run.
    pub(crate) fn enter(self: &Rc<Self>, bytes: u64) -> Enter {
        Enter { admission: Rc::clone(self), bytes, waiter: None }
    }

    /// Requests running, their bytes, and requests waiting.
    pub(crate) fn load(&self) -> (usize, u64, usize) {
        let state = self.state.borrow();
        (state.requests, state.bytes, state.waiting.len())
    }

    fn fits(&self, state: &State, bytes: u64) -> bool {
        state.requests == 0
            || (state.requests < self.requests_max
                && state.bytes.saturating_add(bytes) <= self.bytes_max)
    }

    fn leave(&self, bytes: u64) {
        {
            let mut state = self.state.borrow_mut();
            state.requests -= 1;
            state.bytes -= bytes;
        }
        self.admit();
    }

    /// Takes a waiter away that will not be there any more; those behind it may fit.
    fn give_up(&self, waiter: &Rc<Waiter>) {
        self.state.borrow_mut().waiting.retain(|other| !Rc::ptr_eq(other, waiter));
        self.admit();
    }

    fn admit(&self) {
        let mut woken = Vec::new();
        {
            let mut state = self.state.borrow_mut();
            while let Some(next) = state.waiting.front() {
                if !self.fits(&state, next.bytes) {
                    break;
                }
                let Some(next) = state.waiting.pop_front() else { break };
                state.requests += 1;
                state.bytes += next.bytes;
                next.granted.set(true);
                woken.extend(next.waker.take());
            }
        }
        // Outside of the borrow: a waker may come straight back.
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Future for Enter {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let admission = Rc::clone(&self.admission);
        let bytes = self.bytes;
        if let Some(waiter) = &self.waiter {
            if waiter.granted.get() {
                self.waiter = None;
                return Poll::Ready(Permit { admission, bytes });
            }
            waiter.waker.set(Some(context.waker().clone()));
            return Poll::Pending;
        }
        let mut state = admission.state.borrow_mut();
        if state.waiting.is_empty() && admission.fits(&state, bytes) {
            state.requests += 1;
            state.bytes += bytes;
            drop(state);
            return Poll::Ready(Permit { admission, bytes });
        }
        let waiter = Rc::new(Waiter {
            bytes,
            granted: Cell::new(false),
            waker: Cell::new(Some(context.waker().clone())),
        });
        state.waiting.push_back(Rc::clone(&waiter));
        drop(state);
        self.waiter = Some(waiter);
        Poll::Pending
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        if waiter.granted.get() {
            self.admission.leave(waiter.bytes);
            return;
        }
        self.admission.give_up(&waiter);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.leave(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use engine_base::random::Random;

    use super::*;

    fn poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn in_order_and_never_too_many() {
        let admission = Admission::new(2, 100);
        let a = poll(&mut admission.enter(60)).unwrap();
        let mut b = admission.enter(50);
        let mut c = admission.enter(1);
        assert!(poll(&mut b).is_none(), "110 bytes are too many");
        assert!(poll(&mut c).is_none(), "c would fit but b was first");
        assert_eq!(admission.load(), (1, 60, 2));
        drop(a);
        let b = poll(&mut b).unwrap();
        let c = poll(&mut c).unwrap();
        let mut d = admission.enter(0);
        assert!(poll(&mut d).is_none(), "two requests at most");
        drop((b, c));
        assert!(poll(&mut d).is_some());
        assert_eq!(admission.load(), (0, 0, 0));
    }

    #[test]
    fn larger_than_the_budget_runs_alone() {
        let admission = Admission::new(8, 100);
        let small = poll(&mut admission.enter(1)).unwrap();
        let mut large = admission.enter(1000);
        assert!(poll(&mut large).is_none());
        drop(small);
        let large = poll(&mut large).unwrap();
        let mut next = admission.enter(1);
        assert!(poll(&mut next).is_none());
        drop(large);
        assert!(poll(&mut next).is_some());
    }

    #[test]
    fn who_gives_up_blocks_nobody() {
        let admission = Admission::new(8, 100);
        let first = poll(&mut admission.enter(100)).unwrap();
        let mut large = admission.enter(100);
        let mut small = admission.enter(0);
        assert!(poll(&mut large).is_none() && poll(&mut small).is_none());
        drop(large);
        assert!(poll(&mut small).is_some(), "it fits beside the first");
        let mut granted = admission.enter(100);
        assert!(poll(&mut granted).is_none());
        drop(first);
        drop(granted);
        assert_eq!(admission.load(), (0, 0, 0), "a grant that nobody took is given back");
    }

    #[test]
    fn bounds_hold_in_any_order() {
        let seed = 7;
        let mut random = Random::new(seed);
        let admission = Admission::new(5, 50);
        let (mut waiting, mut running) = (Vec::new(), Vec::new());
        for _ in 0..20_000 {
            match random.below(4) {
                0 | 1 => waiting.push(admission.enter(random.below(30))),
                2 if !running.is_empty() => {
                    let victim = random.below(running.len() as u64) as usize;
                    drop::<Permit>(running.swap_remove(victim));
                }
                _ if !waiting.is_empty() && random.chance(1, 4) => {
                    let victim = random.below(waiting.len() as u64) as usize;
                    drop::<Enter>(waiting.remove(victim));
                }
                _ => {}
            }
            waiting.retain_mut(|enter| match poll(enter) {
                Some(permit) => {
                    running.push(permit);
                    false
                }
                None => true,
            });
            let (requests, bytes, queued) = admission.load();
            assert_eq!((requests, queued), (running.len(), waiting.len()), "seed {seed}");
            assert!(requests <= 5 && bytes <= 50, "seed {seed}");
            assert!(requests > 0 || queued == 0, "nobody waits for nothing, seed {seed}");
        }
    }
}
