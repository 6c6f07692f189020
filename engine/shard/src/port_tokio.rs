//! A control port that a tokio task awaits.
#![allow(unsafe_code)]

use std::io;

use tokio::io::unix::AsyncFd;

use crate::port::PortReceiver;

/// The receiving half of a port, registered with the tokio runtime it was made in.
pub struct AsyncPortReceiver<M> {
    receiver: AsyncFd<PortReceiver<M>>,
}

impl<M> AsyncPortReceiver<M> {
    /// Registers the port. Call it inside a tokio runtime with I/O enabled.
    ///
    /// # Errors
    /// When the kernel refuses one more descriptor in the runtime's epoll.
    pub fn new(receiver: PortReceiver<M>) -> io::Result<Self> {
        // SAFETY: `register` asks that `as_raw_fd` gives the same open descriptor for the life of the
        // `AsyncFd`. It is the eventfd of the port's doorbell, which `PortReceiver` owns through an
        // `Arc` that it never exchanges, and which is closed after its last owner only.
        let registered = unsafe { AsyncFd::register(receiver) };
        Ok(Self { receiver: registered? })
    }

    /// Waits until there is something, then takes up to `count_max` messages, giving each with the
    /// number of its core to `each`. Returns how many; 0 when every core has ended. Lets waiting
    /// senders go on, so one task has to sit in here. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn receive(
        &mut self,
        count_max: usize,
        mut each: impl FnMut(usize, M),
    ) -> io::Result<usize> {
        loop {
            let port = self.receiver.get_mut();
            // Asked before: what a core sent before it ended is received after it ended.
            let closed = port.is_closed();
            let taken = port.receive(count_max, &mut each);
            if taken > 0 || closed {
                return Ok(taken);
            }
            if port.prepare_to_sleep() {
                let mut ready = self.receiver.readable_mut().await?;
                ready.get_inner_mut().wake_up();
                ready.clear_ready();
            }
        }
    }
}
