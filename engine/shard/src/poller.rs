//! What a reactor looks at in every turn: device queues, sockets, rings.

use std::os::fd::RawFd;

/// A source of work that is polled. All calls come from the core the poller is registered on.
pub trait Poller {
    /// Looks for work and does it, bounded: it is one of many. Returns how much was done, 0 for
    /// nothing; a poller that says otherwise for ever keeps its core from sleeping.
    fn poll(&self) -> usize;

    /// A descriptor that becomes readable when there is work, for a core that wants to sleep; `None`
    /// when sleeping needs no descriptor. Asked anew before every sleep. Many sockets behind one
    /// poller are one epoll descriptor.
    fn wake_fd(&self) -> Option<RawFd>;

    /// Called before the core sleeps on [`Poller::wake_fd`]: arms it and takes back what is left in it
    /// from before, then returns whether the core may sleep (`false`: there is work, poll again). A
    /// descriptor that stays readable keeps the core awake.
    fn prepare_to_sleep(&self) -> bool;

    /// Called at the end of every turn, after the tasks have run: sends what the turn has gathered.
    fn end_turn(&self) {}
}

/// Names a registered poller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PollerId(pub(crate) u64);
