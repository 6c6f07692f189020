//! The contract between the engine and whatever runs it: a clock, timers, tasks and randomness.
//!
//! The engine is async Rust without `Send`. In production the reactor of engine/shard implements
//! [`Runtime`]; in the simulator its executor does, on virtual time. Nothing below `service` reads a
//! clock or a random source by any other way.

use std::future::Future;
use std::pin::Pin;

/// A boxed future that stays on its core.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What one core offers the tasks on it.
pub trait Runtime {
    /// Nanoseconds of monotonic time since an arbitrary start. Never goes back.
    fn now_ns(&self) -> u64;

    /// Nanoseconds since the Unix epoch, for time stamps shown to people and clients.
    fn wall_clock_ns(&self) -> u64;

    /// Completes after at least `ns` nanoseconds.
    fn sleep(&self, ns: u64) -> LocalBoxFuture<'static, ()>;

    /// Runs `task` on this core until it ends. `name` is static and shown in task listings.
    fn spawn(&self, name: &'static str, task: LocalBoxFuture<'static, ()>);

    /// 64 random bits. Reproducible in the simulator.
    fn random_u64(&self) -> u64;

    /// Lets other tasks of this core run; completes in a later turn of the reactor.
    fn yield_now(&self) -> LocalBoxFuture<'static, ()> {
        let mut polled = false;
        Box::pin(std::future::poll_fn(move |context| {
            if polled {
                return std::task::Poll::Ready(());
            }
            polled = true;
            context.waker().wake_by_ref();
            std::task::Poll::Pending
        }))
    }
}
