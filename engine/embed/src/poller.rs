//! A device queue as a poller of a reactor.

use std::os::fd::RawFd;
use std::rc::Rc;

use engine_device::DeviceQueue;
use engine_shard::Poller;

/// Polls a device queue.
pub struct QueuePoller(pub Rc<dyn DeviceQueue>);

impl Poller for QueuePoller {
    fn poll(&self) -> usize {
        self.0.poll()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.0.wake_fd()
    }

    fn prepare_to_sleep(&self) -> bool {
        self.0.prepare_to_sleep()
    }

    fn end_turn(&self) {
        // What the turn's tasks have submitted goes to the device before the core rests.
        self.0.poll();
    }
}
