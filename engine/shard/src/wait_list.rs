//! Who waits for room in a ring, first come, first served.
//!
//! Room is *granted*: a grant sets one place of the ring aside until its waiter has used or dropped it,
//! so nobody overtakes. Not thread-safe by itself: a core keeps it in a cell, a control port behind its
//! lock.

use std::collections::BTreeMap;
use std::task::Waker;

#[derive(Debug)]
enum Waiter {
    Waiting(Waker),
    Granted,
}

/// The waiters for one ring.
#[derive(Debug, Default)]
pub(crate) struct WaitList {
    /// By ticket; the granted ones are the oldest.
    waiters: BTreeMap<u64, Waiter>,
    granted: usize,
    ticket_next: u64,
}

impl WaitList {
    /// Whether nobody waits or holds a grant, so that anyone may use the ring.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Whether somebody waits without a grant.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiters.len() > self.granted
    }

    /// Whether [`WaitList::grant`] would grant. Places that are set aside already are no room.
    pub(crate) fn could_grant(&self, room: impl FnOnce() -> usize) -> bool {
        self.has_waiting() && room() > self.granted
    }

    /// Queues up.
    pub(crate) fn join(&mut self, waker: Waker) -> u64 {
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        self.waiters.insert(ticket, Waiter::Waiting(waker));
        ticket
    }

    /// If `ticket` has its grant, ends it: the caller uses its place now. Else has `waker` woken.
    pub(crate) fn redeem(&mut self, ticket: u64, waker: &Waker) -> bool {
        match self.waiters.get_mut(&ticket) {
            Some(Waiter::Waiting(old)) => {
                old.clone_from(waker);
                false
            }
            Some(Waiter::Granted) => {
                self.leave(ticket);
                true
            }
            None => false,
        }
    }

    /// Gives the place in the queue, or the grant, back.
    pub(crate) fn leave(&mut self, ticket: u64) {
        if let Some(Waiter::Granted) = self.waiters.remove(&ticket) {
            self.granted -= 1;
        }
    }

    /// Grants what `room` free places allow; the wakers are for the caller to wake. Returns how many
    /// were granted.
    pub(crate) fn grant(&mut self, room: usize, wakers: &mut Vec<Waker>) -> usize {
        let count = room.saturating_sub(self.granted);
        let mut done = 0;
        for waiter in self.waiters.values_mut().skip(self.granted).take(count) {
            if let Waiter::Waiting(waker) = std::mem::replace(waiter, Waiter::Granted) {
                wakers.push(waker);
            }
            done += 1;
        }
        self.granted += done;
        done
    }

    /// Takes the wakers of all who wait, because nothing will be granted any more. They leave when
    /// they are polled.
    pub(crate) fn give_up(&mut self, wakers: &mut Vec<Waker>) {
        for waiter in self.waiters.values_mut() {
            if let Waiter::Waiting(waker) = waiter {
                wakers.push(waker.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(list: &mut WaitList, room: usize) -> usize {
        let mut wakers = Vec::new();
        let granted = list.grant(room, &mut wakers);
        assert_eq!(granted, wakers.len());
        granted
    }

    #[test]
    fn room_is_granted_once_and_in_order() {
        let waker = Waker::noop();
        let mut list = WaitList::default();
        let [first, second, third] = std::array::from_fn(|_| list.join(waker.clone()));
        assert!(list.could_grant(|| 1));
        assert_eq!(grant(&mut list, 1), 1);
        // The one place is set aside: a sleeper that took it for room would never sleep.
        assert!(!list.could_grant(|| 1));
        assert_eq!(grant(&mut list, 1), 0);
        assert!(!list.redeem(second, waker));
        assert!(list.redeem(first, waker));
        assert_eq!(grant(&mut list, 1), 1);
        // Given back unused, it goes to the next.
        list.leave(second);
        assert_eq!(grant(&mut list, 5), 1);
        assert!(!list.has_waiting());
        assert!(list.redeem(third, waker));
        assert!(list.is_empty());
        assert!(!list.redeem(third, waker), "a ticket is used once");
    }
}
