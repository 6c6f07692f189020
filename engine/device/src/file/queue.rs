//! One core's queue on a file: what waits for room, and what becomes of results.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use engine_memory::Buffer;

use super::ring::{Request, Ring};
use super::{Shared, probe};
use crate::{Completion, DeviceError, DeviceInfo, DeviceQueue, Operation, Outcome};

/// How often in a row an operation is begun anew because the kernel asked for it (EINTR, EAGAIN):
/// enough for a passing lack of memory, and an end to any other cause.
const ATTEMPTS_MAX: u32 = 64;

pub(super) struct FileQueue {
    shared: Arc<Shared>,
    state: RefCell<State>,
    armed: Cell<bool>,
    wake: RawFd,
}

struct State {
    ring: Ring,
    /// Submitted, and not yet in the ring, in order.
    waiting: VecDeque<Request>,
    /// Why the ring cannot be used any more.
    broken: Option<String>,
}

impl FileQueue {
    pub(super) fn open(shared: Arc<Shared>, depth: u32) -> io::Result<Rc<Self>> {
        let ring = Ring::new(shared.file.as_fd(), depth)?;
        let wake = ring.wake_fd();
        let state = State { ring, waiting: VecDeque::with_capacity(depth as usize), broken: None };
        Ok(Rc::new(Self { shared, state: RefCell::new(state), armed: Cell::new(false), wake }))
    }

    /// Moves waiting operations into the ring and enters the kernel if needed. Returns those that
    /// ended without the kernel.
    fn start_waiting(&self) -> Vec<(Completion, Outcome)> {
        let mut ended = Vec::new();
        let state = &mut *self.state.borrow_mut();
        while !state.ring.is_full() {
            let Some(mut request) = state.waiting.pop_front() else { break };
            if is_empty(&request.operation) {
                ended.push((request.done, Ok(buffer_of(request.operation))));
                continue;
            }
            request.zero_by_punch = self.shared.zero_by_punch.load(Ordering::Relaxed);
            match self.align(&mut request) {
                Ok(()) => state.ring.start(request),
                Err(error) => ended.push((request.done, Err(error))),
            }
        }
        if state.ring.needs_enter()
            && let Err(error) = state.ring.enter()
        {
            match error.raw_os_error() {
                // Short of memory or of room for completions: the next poll tries again.
                Some(libc::EAGAIN | libc::EBUSY | libc::EINTR) => {}
                _ => ended.extend(self.break_down(state, &error)),
            }
        }
        ended
    }

    /// Gives a write with unaligned pieces an aligned copy, where direct I/O needs one.
    fn align(&self, request: &mut Request) -> Result<(), DeviceError> {
        let Operation::Write { data, .. } = &request.operation else { return Ok(()) };
        let Some(unit) = self.shared.direct else { return Ok(()) };
        let aligned = data.iter().all(|piece| {
            piece.as_ptr().addr().is_multiple_of(unit.memory as usize)
                && piece.len().is_multiple_of(unit.length as usize)
        });
        if aligned || request.bounce.is_some() {
            return Ok(());
        }
        let bytes = data.iter().map(|piece| piece.len()).sum();
        let copy = Buffer::try_new_dirty(bytes);
        let mut copy = copy.map_err(|_| DeviceError::OutOfMemory { what: "an aligned write" })?;
        let mut at = 0;
        for piece in data {
            copy[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        request.bounce = Some(copy);
        Ok(())
    }

    /// The ring failed: everything in it is answered, and nothing more accepted.
    fn break_down(&self, state: &mut State, error: &io::Error) -> Vec<(Completion, Outcome)> {
        let cause = format!("io_uring failed: {error}; reopen the device");
        let mut ended = Vec::new();
        for (done, operation) in state.ring.abandon() {
            ended.push((done, Err(self.io_error(operation, &cause))));
        }
        for request in state.waiting.drain(..) {
            ended.push((request.done, Err(self.io_error(&request.operation, &cause))));
        }
        state.broken = Some(cause);
        ended
    }

    /// Takes one result. `None`: none is there; `Some(None)`: the operation goes on.
    fn next_ended(&self) -> Option<Option<(Completion, Outcome)>> {
        let state = &mut *self.state.borrow_mut();
        if state.broken.is_some() {
            return None;
        }
        let (mut request, result) = state.ring.next()?;
        match self.judge(&mut request, result) {
            Verdict::Again => {
                request.attempts += 1;
                if request.attempts <= ATTEMPTS_MAX {
                    state.waiting.push_front(request);
                    return Some(None);
                }
                let error = self.io_error(&request.operation, "made no progress");
                Some(Some((request.done, Err(error))))
            }
            Verdict::Done => Some(Some((request.done, Ok(buffer_of(request.operation))))),
            Verdict::Failed(error) => Some(Some((request.done, Err(error)))),
        }
    }

    /// What the kernel's result means for a request.
    fn judge(&self, request: &mut Request, result: i32) -> Verdict {
        if result < 0 {
            return self.judge_error(request, -result);
        }
        let len = match &request.operation {
            Operation::Read { buffer, .. } => buffer.len(),
            Operation::Write { data, .. } => data.iter().map(|piece| piece.len()).sum(),
            _ => return Verdict::Done,
        };
        request.progress += result as usize;
        if request.progress == len {
            Verdict::Done
        } else if request.progress > len {
            Verdict::Failed(self.io_error(&request.operation, "more bytes than were asked for"))
        } else if result == 0 {
            let cause = "unexpected end of the file: it was made shorter";
            Verdict::Failed(self.io_error(&request.operation, cause))
        } else {
            // Something was done, so the length bounds how often this can happen.
            request.attempts = 0;
            Verdict::Again
        }
    }

    fn judge_error(&self, request: &mut Request, errno: i32) -> Verdict {
        let name = || self.shared.info.name.clone();
        match (errno, &request.operation) {
            (libc::EINTR | libc::EAGAIN, _) => Verdict::Again,
            (libc::EOPNOTSUPP, Operation::WriteZeroes { .. }) if !request.zero_by_punch => {
                self.shared.zero_by_punch.store(true, Ordering::Relaxed);
                Verdict::Again
            }
            (libc::EOPNOTSUPP, operation) => {
                Verdict::Failed(DeviceError::Unsupported { device: name(), what: what(operation) })
            }
            (libc::ENODEV | libc::ENXIO, _) => {
                Verdict::Failed(DeviceError::Gone { device: name() })
            }
            (libc::ENOMEM, operation) => {
                Verdict::Failed(DeviceError::OutOfMemory { what: what(operation) })
            }
            (errno, operation) => {
                if matches!(operation, Operation::Flush) {
                    // Linux reports a failed write-back once per open file, then forgets it
                    // (fsync(2), NOTES): a later flush would be a lie on every queue.
                    self.shared.flush_failed.store(true, Ordering::Release);
                }
                let cause = io::Error::from_raw_os_error(errno).to_string();
                Verdict::Failed(self.io_error(operation, &cause))
            }
        }
    }

    fn io_error(&self, operation: &Operation, cause: &str) -> DeviceError {
        DeviceError::Io {
            device: self.shared.info.name.clone(),
            what: what(operation),
            offset: offset(operation),
            cause: cause.to_owned(),
        }
    }

    /// Why an operation cannot be accepted.
    fn refusal(&self, operation: &Operation) -> Option<DeviceError> {
        let shared = &self.shared;
        let size_bytes = shared.size_bytes.load(Ordering::Acquire);
        if let Err(error) = shared.info.check_within(operation, size_bytes) {
            return Some(error);
        }
        if let Some(cause) = &self.state.borrow().broken {
            return Some(self.io_error(operation, cause));
        }
        let unsupported =
            |what| DeviceError::Unsupported { device: shared.info.name.clone(), what };
        match operation {
            Operation::Write { .. } if shared.read_only => {
                Some(unsupported("write: it is open read-only"))
            }
            Operation::Discard { .. } if !shared.info.discard => Some(unsupported("discard")),
            Operation::WriteZeroes { .. } if !shared.info.write_zeroes => {
                Some(unsupported("write zeroes"))
            }
            Operation::Flush | Operation::Write { fua: true, .. }
                if shared.flush_failed.load(Ordering::Acquire) =>
            {
                let cause = "an earlier flush failed, so what is durable is unknown; reopen it";
                Some(self.io_error(operation, cause))
            }
            _ => None,
        }
    }
}

enum Verdict {
    Done,
    /// Not finished: begin it anew, after what is done.
    Again,
    Failed(DeviceError),
}

impl DeviceQueue for FileQueue {
    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        let (file, info) = (&self.shared.file, &self.shared.info);
        let size_bytes = probe::size_bytes(file).map_err(|error| DeviceError::Open {
            path: info.name.clone(),
            cause: format!("its size: {error}"),
        })?;
        let size_bytes = size_bytes - size_bytes % u64::from(info.block_size);
        self.shared.size_bytes.fetch_max(size_bytes, Ordering::AcqRel);
        Ok(size_bytes)
    }

    fn submit(&self, operation: Operation, done: Completion) {
        if let Some(error) = self.refusal(&operation) {
            done.complete(Err(error));
            return;
        }
        let request = Request {
            operation,
            done,
            progress: 0,
            attempts: 0,
            bounce: None,
            zero_by_punch: false,
        };
        self.state.borrow_mut().waiting.push_back(request);
    }

    fn poll(&self) -> usize {
        if self.armed.replace(false) {
            self.state.borrow_mut().ring.disarm();
        }
        let mut answered = 0;
        // Answers are given without a borrow: who is woken may submit.
        for (done, outcome) in self.start_waiting() {
            done.complete(outcome);
            answered += 1;
        }
        while let Some(ended) = self.next_ended() {
            if let Some((done, outcome)) = ended {
                done.complete(outcome);
                answered += 1;
            }
        }
        answered
    }

    fn in_flight(&self) -> usize {
        let state = self.state.borrow();
        state.waiting.len() + state.ring.in_flight()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.wake)
    }

    fn prepare_to_sleep(&self) -> bool {
        let state = &mut *self.state.borrow_mut();
        if !state.waiting.is_empty() && !state.ring.is_full() {
            return false;
        }
        let armed = state.ring.arm();
        self.armed.set(armed);
        armed
    }
}

fn buffer_of(operation: Operation) -> Option<Buffer> {
    match operation {
        Operation::Read { buffer, .. } => Some(buffer),
        _ => None,
    }
}

fn is_empty(operation: &Operation) -> bool {
    match operation {
        Operation::Read { buffer, .. } => buffer.is_empty(),
        Operation::Write { data, .. } => data.iter().all(|piece| piece.is_empty()),
        Operation::Flush => false,
        Operation::Discard { len, .. } | Operation::WriteZeroes { len, .. } => *len == 0,
    }
}

fn what(operation: &Operation) -> &'static str {
    match operation {
        Operation::Read { .. } => "read",
        Operation::Write { .. } => "write",
        Operation::Flush => "flush",
        Operation::Discard { .. } => "discard",
        Operation::WriteZeroes { .. } => "write zeroes",
    }
}

fn offset(operation: &Operation) -> u64 {
    match operation {
        Operation::Read { offset, .. }
        | Operation::Write { offset, .. }
        | Operation::Discard { offset, .. }
        | Operation::WriteZeroes { offset, .. } => *offset,
        Operation::Flush => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::block_on;
    use crate::{Allocation, FileDevice, IoFuture, IoVec, OpenOptions, completion_pair};

    fn queue(depth: u32) -> (tempfile::TempDir, Rc<FileQueue>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        FileDevice::create(&path, 1 << 20, Allocation::Full).unwrap();
        let device = FileDevice::open(&path, &OpenOptions::default()).unwrap();
        let queue = FileQueue::open(Arc::clone(&device.shared), depth).unwrap();
        (directory, queue)
    }

    fn write(queue: &FileQueue, block: u64) -> IoFuture {
        let (done, future) = completion_pair();
        let data = IoVec::from_iter([Buffer::try_new(4096).unwrap().freeze()]);
        queue.submit(Operation::Write { offset: block * 4096, data, fua: false }, done);
        future
    }

    fn enters(queue: &FileQueue) -> u64 {
        queue.state.borrow().ring.enters()
    }

    #[test]
    fn the_kernel_is_entered_once_for_all_that_was_submitted_and_not_when_idle() {
        let (_directory, queue) = queue(32);
        for _ in 0..100 {
            queue.poll();
        }
        assert_eq!(enters(&queue), 0);
        let writes: Vec<_> = (0..32).map(|block| write(&queue, block)).collect();
        assert_eq!(enters(&queue), 0, "submitting enters nothing");
        queue.poll();
        assert_eq!(enters(&queue), 1);
        for future in writes {
            block_on(&*queue, future).unwrap();
        }
        // Completions come in at most as many batches as there are operations, most in far fewer.
        assert!(enters(&queue) <= 1 + 32, "{} enters", enters(&queue));
        let before = enters(&queue);
        for _ in 0..100 {
            queue.poll();
        }
        assert_eq!(enters(&queue), before);
    }

    /// The kernel refuses to go on with a ring only when something is badly wrong, so the failure is
    /// made by hand.
    #[test]
    fn a_broken_ring_answers_everything_and_accepts_nothing() {
        let (_directory, queue) = queue(2);
        let writes: Vec<_> = (0..6).map(|block| write(&queue, block)).collect();
        queue.poll();
        let error = io::Error::from_raw_os_error(libc::EBADF);
        let ended = queue.break_down(&mut queue.state.borrow_mut(), &error);
        let count = ended.len();
        for (done, outcome) in ended {
            done.complete(outcome);
        }
        assert!((4..=6).contains(&count), "{count} were left");
        assert_eq!((queue.in_flight(), queue.poll()), (0, 0));
        let failed = writes.into_iter().filter_map(|future| block_on(&*queue, future).err());
        assert_eq!(failed.filter(|error| matches!(error, DeviceError::Io { .. })).count(), count);
        let error = block_on(&*queue, write(&queue, 0)).unwrap_err();
        assert!(error.to_string().contains("reopen the device"), "{error}");
    }

    #[test]
    fn after_a_failed_flush_no_flush_succeeds() {
        let (_directory, queue) = queue(2);
        let (done, _future) = completion_pair();
        let mut request = Request {
            operation: Operation::Flush,
            done,
            progress: 0,
            attempts: 0,
            bounce: None,
            zero_by_punch: false,
        };
        assert!(matches!(queue.judge(&mut request, -libc::EIO), Verdict::Failed(_)));
        for fua in [false, true] {
            let (done, future) = completion_pair();
            let data = IoVec::new();
            let operation =
                if fua { Operation::Write { offset: 0, data, fua } } else { Operation::Flush };
            queue.submit(operation, done);
            let error = block_on(&*queue, future).unwrap_err();
            assert!(error.to_string().contains("an earlier flush failed"), "{error}");
        }
        assert!(block_on(&*queue, write(&queue, 0)).is_ok());
    }

    #[test]
    fn results_of_the_kernel_are_judged() {
        let (_directory, queue) = queue(2);
        let judge = |operation, results: &[i32]| {
            let (done, _future) = completion_pair();
            let mut request = Request {
                operation,
                done,
                progress: 0,
                attempts: 0,
                bounce: None,
                zero_by_punch: false,
            };
            let (last, before) = results.split_last().unwrap();
            for result in before {
                assert!(matches!(queue.judge(&mut request, *result), Verdict::Again));
            }
            match queue.judge(&mut request, *last) {
                Verdict::Done => Ok(()),
                Verdict::Again => panic!("not ended"),
                Verdict::Failed(error) => Err(error),
            }
        };
        let read = || Operation::Read { offset: 0, buffer: Buffer::try_new(8192).unwrap() };
        let zero = || Operation::WriteZeroes { offset: 0, len: 4096 };
        assert!(judge(read(), &[8192]).is_ok());
        assert!(judge(read(), &[4096, -libc::EINTR, 512, -libc::EAGAIN, 3584]).is_ok());
        assert!(matches!(judge(read(), &[4096, 0]), Err(DeviceError::Io { .. })));
        assert!(matches!(judge(read(), &[4096, 8192]), Err(DeviceError::Io { .. })));
        assert!(matches!(judge(read(), &[-libc::EIO]), Err(DeviceError::Io { .. })));
        assert!(matches!(judge(read(), &[-libc::ENODEV]), Err(DeviceError::Gone { .. })));
        assert!(matches!(judge(read(), &[-libc::ENOMEM]), Err(DeviceError::OutOfMemory { .. })));
        // The file system cannot zero a range: a hole is tried next.
        assert!(judge(zero(), &[-libc::EOPNOTSUPP, 0]).is_ok());
        assert!(queue.shared.zero_by_punch.load(Ordering::Relaxed));
        let discard = Operation::Discard { offset: 0, len: 4096 };
        let refused = judge(discard, &[-libc::EOPNOTSUPP]);
        assert!(matches!(refused, Err(DeviceError::Unsupported { .. })));
    }
}
