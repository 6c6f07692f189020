//! Drives a queue as a core does: polls, and sleeps when there is nothing to do.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use engine_memory::{Buffer, Slice};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::descriptor::wake_descriptor;
use crate::{DeviceError, DeviceQueue, IoFuture, IoVec, Operation, QueueExt, completion_pair};

/// Seconds after which a sleep counts as a lost wake-up: no disk takes that long for an answer
/// (Linux gives up on a request after 30).
const WAKE_SECONDS_MAX: i64 = 60;

/// Polls in a row without an answer, of a queue that has no wake descriptor, that count as a hang.
const IDLE_POLLS_MAX: u32 = 1_000_000;

/// A queue, and blocking calls on it for tests.
pub struct Drive {
    queue: Rc<dyn DeviceQueue>,
    seed: u64,
}

/// Runs `future`, driving `queue` meanwhile.
///
/// # Panics
/// When the queue has no answer for a long time.
pub fn block_on<T>(queue: &dyn DeviceQueue, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let mut idle_polls = 0;
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        if queue.poll() > 0 {
            idle_polls = 0;
            continue;
        }
        idle_polls += 1;
        assert!(idle_polls < IDLE_POLLS_MAX, "{} never answers", queue.info().name);
        // A look at the future first: what it waits for may have been answered by `submit`.
        if queue.wake_fd().is_some() && queue.in_flight() > 0 && queue.prepare_to_sleep() {
            sleep(queue);
        }
    }
}

/// Sleeps on the wake descriptor, which was armed.
pub(super) fn sleep(queue: &dyn DeviceQueue) {
    let descriptor = wake_descriptor(queue).expect("it was armed");
    let timeout = Timespec { tv_sec: WAKE_SECONDS_MAX, tv_nsec: 0 };
    loop {
        let mut descriptors = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        match rustix::event::poll(&mut descriptors, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(0) => panic!("{}: no wake-up: a completion was lost", queue.info().name),
            Ok(_) => return,
            Err(error) => panic!("poll of the wake descriptor: {error}"),
        }
    }
}

impl Drive {
    pub(super) fn new(queue: Rc<dyn DeviceQueue>, seed: u64) -> Self {
        Self { queue, seed }
    }

    /// The queue itself.
    #[must_use]
    pub fn queue(&self) -> &dyn DeviceQueue {
        &*self.queue
    }

    pub(super) fn run<T>(&self, future: impl Future<Output = Result<T, DeviceError>>) -> T {
        match block_on(&*self.queue, future) {
            Ok(value) => value,
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    pub(super) fn run_to_error<T>(
        &self,
        future: impl Future<Output = Result<T, DeviceError>>,
    ) -> DeviceError {
        match block_on(&*self.queue, future) {
            Ok(_) => panic!("seed {}: success where an error was due", self.seed),
            Err(error) => error,
        }
    }

    pub(super) fn start(&self, operation: Operation) -> IoFuture {
        let (done, future) = completion_pair();
        self.queue.submit(operation, done);
        future
    }

    pub(super) fn read(&self, offset: u64, len: u64) -> Buffer {
        self.run(self.queue.read(offset, buffer(len)))
    }

    pub(super) fn write(&self, offset: u64, data: Slice) {
        self.run(self.queue.write(offset, IoVec::from_iter([data]), false));
    }
}

/// A buffer that holds no zeroes, so that a read which fills too little is seen.
pub(super) fn buffer(len: u64) -> Buffer {
    let mut buffer = Buffer::try_new_dirty(len as usize).expect("tests stay below the limit");
    buffer.fill(0xee);
    buffer
}

/// `len` bytes of `mark`.
pub(super) fn filled(len: u64, mark: u8) -> Slice {
    let mut buffer = buffer(len);
    buffer.fill(mark);
    buffer.freeze()
}
