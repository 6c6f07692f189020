//! Check-then-sleep: how a core goes to sleep without missing work, and how it is woken for the price
//! of a system call only when it does sleep.
//!
//! The sleeper raises its [`SleepFlag`], crosses a full fence, looks at every source of work once
//! more, and only then blocks. Whoever brings work publishes it, crosses a full fence, and only then
//! looks at the flag. The two fences are ordered one way or the other, so at least one side sees
//! the other: work is never published unseen to a sleeper (Dekker's argument; tests/loom.rs checks it).
//!
//! The fence of the bringer is apart from the look at the flag ([`publish`]), so that one fence serves
//! all messages of a turn.

use crate::sync::{AtomicBool, CachePadded, Ordering, fence};

/// Orders everything published before it against every flag looked at after it.
#[inline]
pub fn publish() {
    fence(Ordering::SeqCst);
}

/// Says that a side wants to be told of a change. At most one teller acts on each raising.
#[derive(Debug)]
pub struct SleepFlag {
    raised: CachePadded<AtomicBool>,
}

impl Default for SleepFlag {
    fn default() -> Self {
        Self::new()
    }
}

impl SleepFlag {
    /// A lowered flag.
    #[must_use]
    pub fn new() -> Self {
        Self { raised: CachePadded(AtomicBool::new(false)) }
    }

    /// Raises the flag, for a sleeper. It must cross [`publish`] and then look at its sources once
    /// more before it blocks; several flags may share one crossing.
    #[inline]
    pub fn raise(&self) {
        // A read-modify-write, here and in `lower`: it follows the takes of others in the flag's
        // order, also in loom's eyes, which does not order a plain store after them.
        self.raised.swap(true, Ordering::AcqRel);
    }

    /// Lowers the flag, for a sleeper that is awake again.
    #[inline]
    pub fn lower(&self) {
        self.raised.swap(false, Ordering::AcqRel);
    }

    /// Lowers the flag and returns whether it was up: then the caller must wake the sleeper. Call
    /// [`publish`] between publishing the work and this.
    #[inline]
    pub fn take(&self) -> bool {
        // The load keeps the line shared among the tellers while nobody sleeps.
        self.raised.load(Ordering::Relaxed) && self.raised.swap(false, Ordering::AcqRel)
    }
}

#[cfg(not(loom))]
pub use bell::Doorbell;

#[cfg(not(loom))]
mod bell {
    use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::{fmt, io};

    use rustix::event::{EventfdFlags, eventfd};

    use super::{SleepFlag, publish};

    /// The sleep flag of one core (or control port) and the eventfd it blocks on.
    pub struct Doorbell {
        flag: SleepFlag,
        closed: AtomicBool,
        event: OwnedFd,
    }

    impl fmt::Debug for Doorbell {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Doorbell").field("event", &self.event.as_raw_fd()).finish()
        }
    }

    impl Doorbell {
        /// A doorbell with an eventfd of its own.
        ///
        /// # Errors
        /// When the operating system refuses the descriptor.
        pub fn new() -> io::Result<Self> {
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Self { flag: SleepFlag::new(), closed: AtomicBool::new(false), event })
        }

        /// Wakes the owner if it sleeps or is about to; returns whether it took a system call. Call
        /// [`publish`] between publishing the work and this, or use [`Doorbell::publish_and_ring`].
        #[inline]
        pub fn ring(&self) -> bool {
            let asleep = self.flag.take();
            if asleep {
                self.ring_always();
            }
            asleep
        }

        /// [`publish`], then [`Doorbell::ring`].
        #[inline]
        pub fn publish_and_ring(&self) -> bool {
            publish();
            self.ring()
        }

        /// Wakes the owner, or keeps it from its next sleep if it is awake. Always a system call.
        // eventfd(2): a counter in host byte order.
        #[allow(clippy::host_endian_bytes)]
        pub fn ring_always(&self) {
            // The counter of an eventfd overflows after 2^64 - 1 rings without a read; a full one
            // is readable, which is all that matters. No other error can happen to a live eventfd.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }

        /// The owner's announcement that it is about to sleep. Look at all sources after it.
        pub fn announce_sleep(&self) {
            self.flag.raise();
            publish();
        }

        /// The owner is awake again, or found something before it slept.
        pub fn awake(&self) {
            self.flag.lower();
        }

        /// Empties the eventfd, so that the next sleep is not cut short by a ring of before.
        pub fn clear(&self) {
            let mut count = [0u8; 8];
            // WouldBlock says that it is empty already.
            let _ = rustix::io::read(&self.event, &mut count);
        }

        /// The owner has ended: nothing sent to it will be received.
        pub fn close(&self) {
            self.closed.store(true, Ordering::Release);
        }

        /// Whether the owner has ended.
        #[inline]
        #[must_use]
        pub fn is_closed(&self) -> bool {
            self.closed.load(Ordering::Acquire)
        }
    }

    impl AsFd for Doorbell {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.event.as_fd()
        }
    }

    impl AsRawFd for Doorbell {
        fn as_raw_fd(&self) -> RawFd {
            self.event.as_raw_fd()
        }
    }
}
