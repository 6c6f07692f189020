//! A queue's wake descriptor as one that can be polled.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use crate::DeviceQueue;

/// The wake descriptor, borrowed from its queue; `None` when the queue has none.
pub(super) fn wake_descriptor(queue: &dyn DeviceQueue) -> Option<BorrowedFd<'_>> {
    // SAFETY: a queue keeps its wake descriptor open as long as it lives (DeviceQueue::wake_fd), and
    // the result does not outlive the borrow of the queue.
    queue.wake_fd().map(|descriptor| unsafe { BorrowedFd::borrow_raw(descriptor) })
}
