//! Runtimes for tests and examples: virtual time, and the machine's clock.

use engine_base::runtime::{LocalBoxFuture, Runtime};
use std::cell::Cell;
use std::time::Instant;

/// Time that moves when the test says so.
#[derive(Debug, Default)]
pub struct VirtualRuntime {
    now_ns: Cell<u64>,
}

impl VirtualRuntime {
    /// Moves the time.
    pub fn advance_ms(&self, ms: u64) {
        self.now_ns.set(self.now_ns.get() + ms * 1_000_000);
    }
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct HostRuntime {
    start: Instant,
}

impl HostRuntime {
    /// Starts the clock.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the host that reads the clock")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for HostRuntime {
    fn default() -> Self {
        Self::new()
    }
}

// The target uses the clock only; tasks, timers and randomness are not its business.
macro_rules! clock_only {
    ($kind:ty, $now:expr) => {
        impl Runtime for $kind {
            fn now_ns(&self) -> u64 {
                let now: fn(&$kind) -> u64 = $now;
                now(self)
            }

            fn wall_clock_ns(&self) -> u64 {
                self.now_ns()
            }

            fn sleep(&self, _ns: u64) -> LocalBoxFuture<'static, ()> {
                unreachable!("the target does not sleep")
            }

            fn spawn(&self, _name: &'static str, _task: LocalBoxFuture<'static, ()>) {
                unreachable!("the target spawns no tasks")
            }

            fn random_u64(&self) -> u64 {
                unreachable!("the target uses no randomness")
            }
        }
    };
}
clock_only!(VirtualRuntime, |this| this.now_ns.get());
clock_only!(HostRuntime, |this| this.start.elapsed().as_nanos() as u64);
