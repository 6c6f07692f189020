//! How threads that are no reactors talk to cores: requests in by ring, completions out by ring.
//!
//! The sending half is shared by any number of threads behind a lock, which a control plane can
//! afford; the receiving half belongs to one thread or task. A core wakes it at most once a turn,
//! however many completions the turn had, and only if it sleeps.
//!
//! Senders that wait for room are let go on by the receiving half, in [`PortReceiver::receive`] and
//! [`PortReceiver::prepare_to_sleep`]: somebody must drive it.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use crate::doorbell::{Doorbell, publish};
use crate::mesh::{Inlet, Outlet, SendError};
use crate::wait;

/// A way into the mesh for threads that are no reactors.
pub struct ControlPort<M> {
    sender: PortSender<M>,
    receiver: PortReceiver<M>,
}

struct Shared<M> {
    outlets: Mutex<Vec<Outlet<M>>>,
    /// Of the receiving half; closed when that is gone.
    doorbell: Arc<Doorbell>,
}

impl<M> Shared<M> {
    /// Nothing panics while it holds the lock, and what it guards is whole between any two steps.
    fn outlets(&self) -> MutexGuard<'_, Vec<Outlet<M>>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending half of a port, for any number of threads.
pub struct PortSender<M> {
    number: usize,
    shared: Arc<Shared<M>>,
}

impl<M> Clone for PortSender<M> {
    fn clone(&self) -> Self {
        Self { number: self.number, shared: self.shared.clone() }
    }
}

/// The receiving half of a port. Its descriptor becomes readable when something came while it was
/// prepared to sleep; tokio's `AsyncFd` takes it.
pub struct PortReceiver<M> {
    shared: Arc<Shared<M>>,
    inlets: Vec<Inlet<M>>,
    first_inlet: usize,
    doorbell: Arc<Doorbell>,
}

impl<M> ControlPort<M> {
    pub(crate) fn new(
        number: usize,
        outlets: Vec<Outlet<M>>,
        inlets: Vec<Inlet<M>>,
        doorbell: Arc<Doorbell>,
    ) -> Self {
        let shared = Arc::new(Shared { outlets: Mutex::new(outlets), doorbell: doorbell.clone() });
        Self {
            sender: PortSender { number, shared: shared.clone() },
            receiver: PortReceiver { shared, inlets, first_inlet: 0, doorbell },
        }
    }

    /// The two halves.
    #[must_use]
    pub fn split(self) -> (PortSender<M>, PortReceiver<M>) {
        (self.sender, self.receiver)
    }
}

impl<M> PortSender<M> {
    /// The number of the port: what a core answers to is `Endpoint::Port(number)`.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// How many cores there are.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.shared.outlets().len()
    }

    /// Sends to a core now or not at all, and wakes it if it sleeps. Panics for a core that the mesh
    /// does not have.
    ///
    /// # Errors
    /// [`SendError::Full`] also while others wait for room: they come first. [`SendError::Closed`] also
    /// when the receiving half is gone, since no answer could come.
    pub fn try_send(&self, core: usize, message: M) -> Result<(), SendError<M>> {
        if self.shared.doorbell.is_closed() {
            return Err(SendError::Closed(message));
        }
        let mut outlets = self.shared.outlets();
        let outlet = &mut outlets[core];
        outlet.try_send(message)?;
        outlet.receiver.publish_and_ring();
        Ok(())
    }

    /// Sends, waiting for room if need be, behind those who wait already. Fails only with
    /// [`SendError::Closed`]. Dropping the future drops the message.
    pub fn send(&self, core: usize, message: M) -> PortSend<'_, M> {
        PortSend { sender: self, core, message: Some(message), ticket: None }
    }
}

impl<M> PortReceiver<M> {
    /// Takes up to `count_max` messages, giving each with the number of its core to `each`, and lets
    /// waiting senders go on. Returns how many were taken.
    pub fn receive(&mut self, count_max: usize, mut each: impl FnMut(usize, M)) -> usize {
        let mut taken = 0;
        let count = self.inlets.len();
        for offset in 0..count {
            let core = (self.first_inlet + offset) % count;
            let inlet = &mut self.inlets[core];
            let took = inlet.ring.pop_batch(count_max - taken, |message| each(core, message));
            if took > 0 {
                publish();
                inlet.ring_waiting_sender();
            }
            taken += took;
        }
        self.first_inlet = (self.first_inlet + 1) % count;
        self.let_senders_go_on();
        taken
    }

    /// Announces sleep and looks at everything once more. True: wait until the descriptor is readable,
    /// then call [`PortReceiver::wake_up`]. False: there is something to receive already.
    pub fn prepare_to_sleep(&mut self) -> bool {
        self.doorbell.announce_sleep();
        let mut outlets = self.shared.outlets();
        let mut asked = false;
        for outlet in outlets.iter() {
            asked |= outlet.ask_for_room();
        }
        if asked {
            publish();
        }
        let may_sleep = self.inlets.iter_mut().all(|inlet| inlet.ring.is_empty())
            && !outlets.iter_mut().any(Outlet::can_grant);
        drop(outlets);
        if !may_sleep {
            self.doorbell.awake();
        }
        may_sleep
    }

    /// Takes the wake back, after the descriptor was readable (or whenever the wait is given up).
    pub fn wake_up(&mut self) {
        self.doorbell.awake();
        self.doorbell.clear();
    }

    /// For plain threads: blocks until there is something to receive, or a sender can go on, or
    /// `timeout_ns` have passed, or for no reason.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<()> {
        if self.prepare_to_sleep() {
            let waited = wait::wait(&*self.doorbell, std::iter::empty(), timeout_ns);
            self.wake_up();
            waited?;
        }
        Ok(())
    }

    /// Whether every core has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inlets.iter().all(|inlet| inlet.sender.is_closed())
    }

    fn let_senders_go_on(&self) {
        let mut wakers = Vec::new();
        let mut outlets = self.shared.outlets();
        for outlet in outlets.iter_mut().filter(|outlet| outlet.waiters.has_waiting()) {
            if outlet.receiver.is_closed() {
                outlet.waiters.give_up(&mut wakers);
            } else {
                let room = outlet.ring.room();
                outlet.waiters.grant(room, &mut wakers);
            }
        }
        drop(outlets);
        for waker in wakers {
            waker.wake();
        }
    }
}

impl<M> Drop for PortReceiver<M> {
    fn drop(&mut self) {
        self.doorbell.close();
        for inlet in &self.inlets {
            // Cores that wait for room here learn that there will be none.
            inlet.sender.ring_always();
        }
        let mut wakers = Vec::new();
        for outlet in self.shared.outlets().iter_mut() {
            outlet.waiters.give_up(&mut wakers);
        }
        for waker in wakers {
            waker.wake();
        }
    }
}

impl<M> AsFd for PortReceiver<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }
}

impl<M> AsRawFd for PortReceiver<M> {
    fn as_raw_fd(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }
}

/// The future of [`PortSender::send`].
#[must_use = "futures do nothing unless awaited"]
pub struct PortSend<'a, M> {
    sender: &'a PortSender<M>,
    core: usize,
    message: Option<M>,
    ticket: Option<u64>,
}

// The message is moved out, never pinned.
impl<M> Unpin for PortSend<'_, M> {}

impl<M> Future for PortSend<'_, M> {
    type Output = Result<(), SendError<M>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut wakers = Vec::new();
        let mut outlets = this.sender.shared.outlets();
        let outlet = &mut outlets[this.core];
        let message = this.message.take().expect("a future is not polled after it has completed");
        if outlet.receiver.is_closed() || this.sender.shared.doorbell.is_closed() {
            return Poll::Ready(Err(SendError::Closed(message)));
        }
        let result = match this.ticket {
            None => outlet.try_send(message),
            Some(ticket) if outlet.waiters.redeem(ticket, context.waker()) => {
                this.ticket = None;
                outlet.ring.push(message).map_err(SendError::Full)
            }
            Some(_) => Err(SendError::Full(message)),
        };
        match result {
            Ok(()) => {
                outlet.receiver.publish_and_ring();
                Poll::Ready(Ok(()))
            }
            Err(SendError::Full(message)) => {
                this.message = Some(message);
                if this.ticket.is_none() {
                    this.ticket = Some(outlet.waiters.join(context.waker().clone()));
                    // The receiving half may sleep without having asked for room on our behalf.
                    outlet.want_room.raise();
                    publish();
                    let room = outlet.ring.room();
                    outlet.waiters.grant(room, &mut wakers);
                }
                drop(outlets);
                for waker in wakers {
                    waker.wake();
                }
                Poll::Pending
            }
            Err(closed) => Poll::Ready(Err(closed)),
        }
    }
}

impl<M> Drop for PortSend<'_, M> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.sender.shared.outlets()[self.core].waiters.leave(ticket);
        }
    }
}
