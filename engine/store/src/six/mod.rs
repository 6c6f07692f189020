//! SIX locks: shared, intent, exclusive; for index nodes, whose holders wait for I/O.
//!
//! ```text
//!              shared   intent   exclusive      (may be held together by different tasks)
//!   shared       yes      yes       no
//!   intent       yes      no        yes
//!   exclusive    no       yes       no
//! ```
//! Intent keeps other write-outs of the node away while its holder allocates and waits for the device;
//! readers and commits go on beside it. Exclusive is taken for the moment of change only: on one core
//! that moment contains no await, so it is a check that nobody holds the lock shared, never a wait
//! while holding it. Each change raises the sequence number: who dropped the lock before a wait
//! compares numbers afterwards and restarts when they differ. After bcachefs's six.c.
//!
//! [`state`] has the transitions, checked between threads by loom; this file has the waiting.

use std::cell::Cell;

use state::State;

use crate::sync::Notify;

mod state;

/// The lock of one node. Tasks of one core only.
pub(crate) struct SixLock {
    state: State<Cell<u64>>,
    released: Notify,
}

/// Holds a lock shared.
pub(crate) struct SharedGuard<'l>(&'l SixLock);

/// Holds a lock with intent.
pub(crate) struct IntentGuard<'l>(&'l SixLock);

impl SixLock {
    /// An unheld lock whose changes are numbered from `sequence` on.
    pub(crate) fn new(sequence: u64) -> Self {
        Self { state: State::new(sequence), released: Notify::default() }
    }

    /// Number of the last change.
    pub(crate) fn sequence(&self) -> u64 {
        self.state.sequence()
    }

    /// Takes the lock shared; never waits, since exclusive is never held across a wait.
    pub(crate) fn shared(&self) -> SharedGuard<'_> {
        assert!(self.state.try_share(), "exclusive is held across a wait");
        SharedGuard(self)
    }

    /// Takes the lock with intent, after whoever holds it so.
    pub(crate) async fn intent(&self) -> IntentGuard<'_> {
        loop {
            match self.try_intent() {
                Some(guard) => return guard,
                None => self.released.notified().await,
            }
        }
    }

    /// Takes the lock with intent if nobody holds it so.
    pub(crate) fn try_intent(&self) -> Option<IntentGuard<'_>> {
        self.state.try_intend().then(|| IntentGuard(self))
    }

    /// Whether somebody holds it with intent.
    pub(crate) fn intent_held(&self) -> bool {
        self.state.intent_held()
    }

    /// Whether a change could be made now: nobody holds it shared.
    pub(crate) fn can_change(&self) -> bool {
        self.state.can_change()
    }

    /// The moment of change: numbers it `sequence`. The caller changes the node in the same turn.
    ///
    /// # Panics
    /// When the lock is held shared, or numbers do not rise.
    pub(crate) fn change(&self, sequence: u64) {
        assert!(self.state.try_begin_change(), "a node is changed while it is read");
        // Ended before the caller's change: nobody else runs before the turn is over.
        self.state.end_change(sequence);
    }

    /// Waits until some holder lets go.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

impl Drop for SharedGuard<'_> {
    fn drop(&mut self) {
        self.0.state.unshare();
        self.0.released.notify_all();
    }
}

impl Drop for IntentGuard<'_> {
    fn drop(&mut self) {
        self.0.state.unintend();
        self.0.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    /// Enumerates the compatibility table in the module's header.
    #[test]
    fn compatibility() {
        let lock = SixLock::new(1);
        let shared = lock.shared();
        let shared2 = lock.shared();
        assert!(!lock.can_change());
        let intent = lock.intent().now_or_never().expect("intent goes with shared");
        assert!(lock.intent().now_or_never().is_none());
        assert!(!lock.can_change(), "intent makes no difference to readers");
        drop((shared, shared2));
        assert!(lock.can_change());
        lock.change(2);
        assert_eq!(lock.sequence(), 2, "changed beside intent");
        drop(intent);
        assert!(lock.try_intent().is_some());
        assert!(lock.try_intent().is_some(), "the guard before was dropped");
    }

    #[test]
    fn intent_is_handed_on() {
        let lock = SixLock::new(1);
        let first = lock.intent().now_or_never().expect("free");
        let mut second = Box::pin(lock.intent());
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(second.now_or_never().is_some());
    }

    #[test]
    #[should_panic(expected = "changed while it is read")]
    fn change_under_a_reader_is_a_bug() {
        let lock = SixLock::new(1);
        let _shared = lock.shared();
        lock.change(2);
    }
}
