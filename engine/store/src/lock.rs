//! Locks for the tasks of one core: keyed, shared or exclusive, first come first served.
//!
//! A lock exists only while someone holds or waits for it. Nobody is overtaken: a waiter for
//! exclusive access holds back those who come for shared access after it. Who takes several locks
//! takes them in ascending order of their keys ([`LockTable::lock_all`]), so there is no deadlock.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// With others.
    Shared,
    /// Alone.
    Exclusive,
}

/// Locks by key.
pub(crate) struct LockTable<K> {
    locks: RefCell<BTreeMap<K, LockState>>,
}

#[derive(Default)]
struct LockState {
    shared: u32,
    exclusive: bool,
    queue: VecDeque<Rc<Waiter>>,
}

struct Waiter {
    access: Access,
    granted: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// A held lock, or a place in its queue; dropping it gives it up.
pub(crate) struct LockGuard<K: Ord + Clone> {
    table: Rc<LockTable<K>>,
    key: K,
    access: Access,
    waiter: Option<Rc<Waiter>>,
}

impl LockState {
    fn admits(&self, access: Access) -> bool {
        match access {
            Access::Shared => !self.exclusive,
            Access::Exclusive => !self.exclusive && self.shared == 0,
        }
    }

    fn take(&mut self, access: Access) {
        assert!(self.admits(access));
        match access {
            Access::Shared => self.shared += 1,
            Access::Exclusive => self.exclusive = true,
        }
    }

    fn put_back(&mut self, access: Access) {
        match access {
            Access::Shared => {
                assert!(self.shared > 0);
                self.shared -= 1;
            }
            Access::Exclusive => {
                assert!(self.exclusive);
                self.exclusive = false;
            }
        }
    }

    fn grant(&mut self) {
        while let Some(first) = self.queue.front() {
            if !self.admits(first.access) {
                return;
            }
            let Some(waiter) = self.queue.pop_front() else { return };
            self.take(waiter.access);
            waiter.granted.set(true);
            if let Some(waker) = waiter.waker.take() {
                waker.wake();
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.shared == 0 && !self.exclusive && self.queue.is_empty()
    }
}

impl<K: Ord + Clone> LockTable<K> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { locks: RefCell::new(BTreeMap::new()) })
    }

    /// Takes the lock of `key`; waits for those who came before.
    pub(crate) async fn lock(self: &Rc<Self>, key: K, access: Access) -> LockGuard<K> {
        let guard = self.enqueue(key, access);
        if let Some(waiter) = &guard.waiter {
            poll_fn(|context| {
                if waiter.granted.get() {
                    return Poll::Ready(());
                }
                waiter.waker.set(Some(context.waker().clone()));
                Poll::Pending
            })
            .await;
        }
        guard
    }

    /// Takes several locks in ascending order; a key named twice is taken once, exclusively if any
    /// mention asks for it.
    pub(crate) async fn lock_all(
        self: &Rc<Self>,
        wanted: impl IntoIterator<Item = (K, Access)>,
    ) -> Vec<LockGuard<K>> {
        let mut sorted = BTreeMap::new();
        for (key, access) in wanted {
            let entry = sorted.entry(key).or_insert(access);
            *entry = (*entry).max(access);
        }
        let mut guards = Vec::with_capacity(sorted.len());
        for (key, access) in sorted {
            guards.push(self.lock(key, access).await);
        }
        guards
    }

    fn enqueue(self: &Rc<Self>, key: K, access: Access) -> LockGuard<K> {
        let mut locks = self.locks.borrow_mut();
        let state = locks.entry(key.clone()).or_default();
        let waiter = if state.queue.is_empty() && state.admits(access) {
            state.take(access);
            None
        } else {
            let waiter =
                Rc::new(Waiter { access, granted: Cell::new(false), waker: Cell::new(None) });
            state.queue.push_back(Rc::clone(&waiter));
            Some(waiter)
        };
        LockGuard { table: Rc::clone(self), key, access, waiter }
    }
}

impl<K: Ord + Clone> Drop for LockGuard<K> {
    fn drop(&mut self) {
        let mut locks = self.table.locks.borrow_mut();
        let Some(state) = locks.get_mut(&self.key) else { return };
        match &self.waiter {
            Some(waiter) if !waiter.granted.get() => {
                state.queue.retain(|other| !Rc::ptr_eq(other, waiter));
            }
            _ => state.put_back(self.access),
        }
        state.grant();
        if state.is_idle() {
            locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    use futures::task::noop_waker;

    use super::*;

    fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&noop_waker()))
    }

    #[test]
    fn nobody_overtakes_a_waiter() {
        let table = LockTable::new();
        let mut first = pin!(table.lock(1_u64, Access::Shared));
        let Poll::Ready(first) = poll_once(first.as_mut()) else { panic!("free lock") };
        let mut writer = pin!(table.lock(1, Access::Exclusive));
        assert!(poll_once(writer.as_mut()).is_pending());
        let mut late = pin!(table.lock(1, Access::Shared));
        assert!(poll_once(late.as_mut()).is_pending(), "a reader overtook the waiting writer");
        drop(first);
        let Poll::Ready(writer) = poll_once(writer.as_mut()) else { panic!("granted") };
        assert!(poll_once(late.as_mut()).is_pending());
        drop(writer);
        assert!(poll_once(late.as_mut()).is_ready());
    }

    #[test]
    fn a_waiter_that_gives_up_holds_nobody_back() {
        let table = LockTable::new();
        let mut first = pin!(table.lock(1_u64, Access::Shared));
        let Poll::Ready(_first) = poll_once(first.as_mut()) else { panic!("free lock") };
        let mut writer = Box::pin(table.lock(1, Access::Exclusive));
        assert!(poll_once(writer.as_mut()).is_pending());
        let mut late = Box::pin(table.lock(1, Access::Shared));
        assert!(poll_once(late.as_mut()).is_pending());
        drop(writer);
        assert!(poll_once(late.as_mut()).is_ready());
    }

    #[test]
    fn an_idle_table_is_empty() {
        let table = LockTable::new();
        let mut all = Box::pin(table.lock_all([
            (3_u64, Access::Shared),
            (1, Access::Exclusive),
            (3, Access::Exclusive),
        ]));
        let Poll::Ready(guards) = poll_once(all.as_mut()) else { panic!("free locks") };
        assert_eq!(guards.len(), 2);
        assert!(guards.iter().all(|guard| guard.access == Access::Exclusive));
        drop(guards);
        assert!(table.locks.borrow().is_empty());
    }
}
