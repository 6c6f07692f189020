//! SIX locks: shared, intent, exclusive; for index nodes, whose holders wait for I/O.
//!
//! ```text
//!              shared   intent   exclusive      (may be held together by different tasks)
//!   shared       yes      yes       no
//!   intent       yes      no        no
//!   exclusive    no       no        no
//! ```
//! Intent keeps other writers out and lets readers in while its holder reads, allocates and waits for
//! the device. Exclusive is taken for the moment of change only: on one core that moment contains no
//! await, so it is a check that nobody holds the lock shared, never a wait while holding it. Each
//! change raises the sequence number: who dropped the lock before a wait compares numbers afterwards
//! and restarts when they differ. After bcachefs's six.c.

use std::cell::Cell;

use crate::sync::Notify;

/// The lock of one node. Tasks of one core only.
pub(crate) struct SixLock {
    readers: Cell<u32>,
    intent: Cell<bool>,
    sequence: Cell<u64>,
    released: Notify,
}

/// Holds a lock shared.
pub(crate) struct SharedGuard<'l>(&'l SixLock);

/// Holds a lock with intent.
pub(crate) struct IntentGuard<'l>(&'l SixLock);

impl SixLock {
    /// An unheld lock whose changes are numbered from `sequence` on.
    pub(crate) fn new(sequence: u64) -> Self {
        Self {
            readers: Cell::new(0),
            intent: Cell::new(false),
            sequence: Cell::new(sequence),
            released: Notify::default(),
        }
    }

    /// Number of the last change.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.get()
    }

    /// Takes the lock shared; never waits, since exclusive is never held across a wait.
    pub(crate) fn shared(&self) -> SharedGuard<'_> {
        self.readers.set(self.readers.get() + 1);
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
        if self.intent.replace(true) { None } else { Some(IntentGuard(self)) }
    }

    /// Whether somebody holds it with intent.
    pub(crate) fn intent_held(&self) -> bool {
        self.intent.get()
    }

    /// Whether a change could be made now: nobody holds it shared.
    pub(crate) fn can_change(&self) -> bool {
        self.readers.get() == 0
    }

    /// The moment of change: numbers it `sequence`. The caller changes the node in the same turn.
    ///
    /// # Panics
    /// When the lock is held shared, or numbers do not rise.
    pub(crate) fn change(&self, sequence: u64) {
        assert!(self.can_change(), "a node is changed while it is read");
        assert!(sequence > self.sequence.get(), "sequence numbers of changes must rise");
        self.sequence.set(sequence);
    }

    /// Waits until some holder lets go.
    pub(crate) async fn released(&self) {
        self.released.notified().await;
    }
}

impl Drop for SharedGuard<'_> {
    fn drop(&mut self) {
        self.0.readers.set(self.0.readers.get() - 1);
        self.0.released.notify_all();
    }
}

impl Drop for IntentGuard<'_> {
    fn drop(&mut self) {
        assert!(self.0.intent.replace(false));
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
        drop((shared, shared2));
        assert!(lock.can_change());
        lock.change(2);
        assert_eq!(lock.sequence(), 2);
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
