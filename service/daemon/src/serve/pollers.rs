//! What a core's reactor polls besides its mesh and its devices: the NVMe/TCP target.

use std::cell::RefCell;
use std::future::Future as _;
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use engine_base::runtime::{LocalBoxFuture, Runtime as _};
use engine_shard::{Handle, Poller};
use nvme_target::{Backend, TargetCore};

/// How often a core that shuts down looks whether its connections have ended.
const DRAIN_LOOK_NS: u64 = 5_000_000;

/// Polls the target's sockets, and wakes the core for its deadlines.
pub(crate) struct TargetPoller<B: Backend> {
    core: RefCell<TargetCore<B>>,
    handle: Rc<Handle>,
    /// The timer that ends the core's sleep, and its time. Never later than the target's deadline.
    alarm: RefCell<Option<(u64, LocalBoxFuture<'static, ()>)>>,
}

impl<B: Backend> TargetPoller<B> {
    pub(crate) fn new(core: TargetCore<B>, handle: Rc<Handle>) -> Self {
        Self { core: RefCell::new(core), handle, alarm: RefCell::default() }
    }

    /// Cuts all connections, and completes when running operations have ended.
    pub(crate) async fn shut_down(&self) {
        self.core.borrow_mut().shut_down();
        while self.core.borrow().connections() > 0 {
            self.handle.sleep(DRAIN_LOOK_NS).await;
        }
    }

    /// Makes sure that the reactor does not sleep past the target's next deadline. The reactor
    /// sleeps no longer than to its next timer; nobody need be woken by it, for every turn polls.
    fn set_alarm(&self, deadline_ns: Option<u64>) {
        let mut alarm = self.alarm.borrow_mut();
        let Some(deadline_ns) = deadline_ns else {
            *alarm = None;
            return;
        };
        let now_ns = self.handle.now_ns();
        // An alarm that is early rings once in vain; deadlines move with every keep-alive, so
        // that is cheaper than a new timer each time.
        if alarm.as_ref().is_some_and(|(at_ns, _)| *at_ns <= deadline_ns && *at_ns > now_ns) {
            return;
        }
        let mut timer = self.handle.sleep(deadline_ns.saturating_sub(now_ns));
        let pending =
            Pin::new(&mut timer).poll(&mut Context::from_waker(Waker::noop())).is_pending();
        *alarm = pending.then_some((deadline_ns, timer));
    }
}

impl<B: Backend> Poller for TargetPoller<B> {
    fn poll(&self) -> usize {
        let mut core = self.core.borrow_mut();
        let work = core.poll();
        let deadline_ns = core.next_deadline_ns();
        drop(core);
        self.set_alarm(deadline_ns);
        work
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.core.borrow().wake_fd().as_raw_fd())
    }

    fn prepare_to_sleep(&self) -> bool {
        self.core.borrow_mut().prepare_to_sleep()
    }
}
