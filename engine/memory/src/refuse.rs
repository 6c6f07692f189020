//! Refusing buffers on purpose, for tests of what happens then.
//!
//! For the calling thread only, as tests run side by side. Not part of a program: the feature
//! `fault-injection` is for tests.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    /// Requests still to grant, then requests still to refuse; requests seen.
    static PLAN: Cell<(u64, u64)> = const { Cell::new((u64::MAX, 0)) };
    static SEEN: Cell<u64> = const { Cell::new(0) };
}

/// Ends the refusing when it is dropped.
#[must_use = "refusing ends when this is dropped"]
#[derive(Debug)]
pub struct Refusing(PhantomData<*const ()>);

/// Has this thread's requests for buffers refused: after `granted` more that are granted, the next
/// `refused`.
pub fn refuse(granted: u64, refused: u64) -> Refusing {
    PLAN.set((granted, refused));
    SEEN.set(0);
    Refusing(PhantomData)
}

/// Grants what `work` asks for, uncounted: for what a test needs for itself.
pub fn spare<T>(work: impl FnOnce() -> T) -> T {
    let (plan, seen) = (PLAN.replace((u64::MAX, 0)), SEEN.get());
    let result = work();
    PLAN.set(plan);
    SEEN.set(seen);
    result
}

impl Refusing {
    /// Requests of this thread since the plan was made.
    #[must_use]
    pub fn requests(&self) -> u64 {
        SEEN.get()
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        PLAN.set((u64::MAX, 0));
    }
}

/// Whether the request that is made now is refused.
pub(crate) fn is_refused() -> bool {
    SEEN.set(SEEN.get() + 1);
    match PLAN.get() {
        (0, 0) => false,
        (0, refused) => {
            PLAN.set((0, refused - 1));
            true
        }
        (granted, refused) => {
            PLAN.set((granted - 1, refused));
            false
        }
    }
}
