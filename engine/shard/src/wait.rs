//! Blocking on all wake sources of a core at once.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Blocks until a descriptor is readable or failed, or `timeout_ns` have passed (`None`: for ever).
/// Returns whether `bell` is readable. An interruption by a signal counts as a wake.
///
/// ppoll(2) over a list made anew each time, because sleeping is the slow path and a list cannot go
/// stale: a descriptor that was closed and reused since would be waited for under epoll, or missed. A
/// closed descriptor answers POLLNVAL at once, so it costs time and hides nothing.
pub(crate) fn wait(
    bell: &impl AsFd,
    others: impl Iterator<Item = RawFd>,
    timeout_ns: Option<u64>,
) -> io::Result<bool> {
    let mut list = vec![PollFd::new(bell, PollFlags::IN)];
    for fd in others.filter(|fd| *fd >= 0) {
        // SAFETY: the number is not -1 (checked above). It is used for ppoll within this call only,
        // which names descriptors by number and never touches memory through them; if its owner closed
        // it, ppoll says so.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        list.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
    }
    let timeout = timeout_ns.map(|ns| Timespec {
        // At most 2^64 / 10^9, and below 10^9: both fit.
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as _,
    });
    match poll(&mut list, timeout.as_ref()) {
        Ok(_) => Ok(list[0].revents().contains(PollFlags::IN)),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
