//! The gate in front of the versions (snapshot ids) of a shard.
//!
//! Whoever may add keys of a version passes the gate and holds its pass until all is committed.
//! Deleting a version closes its gate, waits for those inside, and only then sweeps: so nothing is
//! left behind the sweep. A closed gate stays closed; version ids are never used again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use engine_base::SnapshotId;

use crate::error::{Result, StoreError};

/// The gate.
pub(crate) struct VersionGate {
    dead: RefCell<BTreeSet<u32>>,
    dead_max: usize,
    /// (version, number of the pass).
    inside: RefCell<BTreeSet<(u32, u64)>>,
    next_pass: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
}

/// Leave to add keys of a version; dropping it gives it back.
pub(crate) struct Pass<'a> {
    gate: &'a VersionGate,
    version: u32,
    number: u64,
}

impl VersionGate {
    /// A gate that remembers `dead_max` deleted versions.
    pub(crate) fn new(dead_max: usize) -> Self {
        Self {
            dead: RefCell::default(),
            dead_max: dead_max.max(1),
            inside: RefCell::default(),
            next_pass: Cell::new(0),
            waiters: RefCell::default(),
        }
    }

    /// Fails when the version is deleted or being deleted.
    pub(crate) fn check(&self, version: SnapshotId) -> Result<()> {
        let dead = self.dead.borrow();
        if !dead.is_empty() && dead.contains(&version.0) {
            return Err(StoreError::not_found(format!("version {version} (deleted)")));
        }
        Ok(())
    }

    /// Whether the version was deleted since the shard was opened.
    pub(crate) fn is_closed(&self, version: SnapshotId) -> bool {
        self.check(version).is_err()
    }

    /// Leave to add keys of `version`.
    pub(crate) fn enter(&self, version: SnapshotId) -> Result<Pass<'_>> {
        self.check(version)?;
        let number = self.next_pass.replace(self.next_pass.get() + 1);
        self.inside.borrow_mut().insert((version.0, number));
        Ok(Pass { gate: self, version: version.0, number })
    }

    /// Closes the gate of `version` and waits until nobody is inside.
    pub(crate) async fn close(&self, version: SnapshotId) {
        {
            let mut dead = self.dead.borrow_mut();
            dead.insert(version.0);
            // The oldest go first, whose ids are the highest: whoever still held one has long been told.
            while dead.len() > self.dead_max {
                dead.pop_last();
            }
        }
        self.drain(version).await;
    }

    /// Waits until all who are inside `version` now have left; more may enter meanwhile.
    pub(crate) async fn drain(&self, version: SnapshotId) {
        let inside_now = (version.0, 0)..(version.0, self.next_pass.get());
        poll_fn(|context| {
            if self.inside.borrow().range(inside_now.clone()).next().is_none() {
                return Poll::Ready(());
            }
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.iter().any(|waker| waker.will_wake(context.waker())) {
                waiters.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.inside.borrow_mut().remove(&(self.version, self.number));
        for waker in self.gate.waiters.take() {
            waker.wake();
        }
    }
}
