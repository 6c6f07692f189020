//! Namespaces as a core and its connections see them.

use crate::backend::{Backend, BackendError};
use crate::stats::OperationStats;
use crate::subsystem::SharedNamespace;
use crate::target::Target;
use engine_base::hash::FastMap;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

/// A namespace, opened on this core.
pub(crate) struct CoreNamespace<B: Backend> {
    pub(crate) shared: Arc<SharedNamespace>,
    pub(crate) backend: B::Namespace,
    pub(crate) stats: Arc<OperationStats>,
}

impl<B: Backend> Drop for CoreNamespace<B> {
    fn drop(&mut self) {
        self.shared.stats.leave(&self.stats);
    }
}

/// What the connections of one core have in common.
pub struct CoreContext<B: Backend> {
    pub(crate) target: Target,
    backend: B,
    namespaces: RefCell<FastMap<u64, Weak<CoreNamespace<B>>>>,
    inflight_bytes: Cell<u64>,
    /// Bytes were given back since the core last looked.
    pub(crate) budget_released: Cell<bool>,
}

impl<B: Backend> CoreContext<B> {
    /// The context of a core of `target` with its own `backend`.
    #[must_use]
    pub fn new(target: Target, backend: B) -> Rc<Self> {
        Rc::new(Self {
            target,
            backend,
            namespaces: RefCell::default(),
            inflight_bytes: Cell::new(0),
            budget_released: Cell::new(false),
        })
    }

    pub(crate) fn open(
        &self,
        shared: &Arc<SharedNamespace>,
    ) -> Result<Rc<CoreNamespace<B>>, BackendError> {
        let mut namespaces = self.namespaces.borrow_mut();
        if let Some(open) = namespaces.get(&shared.uid).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let namespace = Rc::new(CoreNamespace {
            backend: self.backend.open(shared.config.volume)?,
            stats: shared.stats.join(),
            shared: Arc::clone(shared),
        });
        namespaces.retain(|_, open| open.strong_count() > 0);
        namespaces.insert(shared.uid, Rc::downgrade(&namespace));
        Ok(namespace)
    }

    pub(crate) fn try_charge(&self, bytes: u64) -> bool {
        let sum = self.inflight_bytes.get() + bytes;
        let fits = sum <= self.target.limits().inflight_bytes_per_core_max;
        if fits {
            self.inflight_bytes.set(sum);
        }
        fits
    }

    pub(crate) fn release(&self, bytes: u64) {
        let left = self.inflight_bytes.get().checked_sub(bytes);
        self.inflight_bytes.set(left.expect("only charged bytes are released"));
        self.budget_released.set(true);
    }

    /// Bytes of reads and writes in flight on this core.
    #[must_use]
    pub fn inflight_bytes(&self) -> u64 {
        self.inflight_bytes.get()
    }
}
