//! A queue that measures the queue under it.
//!
//! Every operation goes to the inner queue with a completion of ours; when that is answered, its
//! waker sets a bit, and the next [`DeviceQueue::poll`] takes the bits, records the latency and
//! answers the caller. The slots and their wakers are made once, so an operation costs no allocation
//! but that of the completion pair. Operations past [`SLOTS`] in flight go through unmeasured.

use std::cell::RefCell;
use std::future::Future as _;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use engine_base::runtime::Runtime;
use engine_device::{
    Completion, DeviceError, DeviceInfo, DeviceQueue, IoFuture, Operation, Outcome, completion_pair,
};

use engine_base::time_stats::TimeStats;

/// Operations measured at a time on one queue; the greatest configurable queue depth.
const SLOTS: usize = 4096;
const WORD_BITS: usize = u64::BITS as usize;

/// Kinds of device operations, as metrics name them.
pub(crate) const OPERATIONS: [&str; 5] = ["read", "write", "flush", "discard", "write_zeroes"];

/// What one core saw of one device. Written by that core alone.
#[derive(Debug, Default)]
pub(crate) struct DeviceStats {
    /// How long they take, in the order of [`OPERATIONS`].
    pub(crate) times: [TimeStats; OPERATIONS.len()],
    /// Bytes read and written.
    pub(crate) bytes: [AtomicU64; 2],
    /// Operations that failed, in the order of [`OPERATIONS`].
    pub(crate) errors: [AtomicU64; OPERATIONS.len()],
    /// Operations in flight.
    pub(crate) in_flight: AtomicU64,
}

/// See the module.
pub(crate) struct MeasuredQueue {
    inner: Rc<dyn DeviceQueue>,
    stats: Arc<DeviceStats>,
    runtime: Rc<dyn Runtime>,
    ended: Arc<Ended>,
    slots: RefCell<Slots>,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

struct Slot {
    waker: Waker,
    operation: Option<InFlight>,
}

struct InFlight {
    kind: usize,
    bytes: u64,
    started_ns: u64,
    future: IoFuture,
    done: Completion,
}

/// Which slots were woken. Set from wakers, taken by the queue's core.
struct Ended {
    words: [AtomicU64; SLOTS / WORD_BITS],
}

struct SlotWaker {
    ended: Arc<Ended>,
    slot: usize,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let bit = 1 << (self.slot % WORD_BITS);
        self.ended.words[self.slot / WORD_BITS].fetch_or(bit, Ordering::Relaxed);
    }
}

impl MeasuredQueue {
    /// Measures `inner` into `stats` by the clock of `runtime`.
    pub(crate) fn new(
        inner: Rc<dyn DeviceQueue>,
        stats: Arc<DeviceStats>,
        runtime: Rc<dyn Runtime>,
    ) -> Self {
        let ended = Arc::new(Ended { words: std::array::from_fn(|_| AtomicU64::new(0)) });
        Self { inner, stats, runtime, ended, slots: RefCell::default() }
    }

    /// Answers the callers of the operations that ended; how many.
    fn answer_ended(&self) -> usize {
        let mut answered = 0;
        // No more words than slots were ever used.
        let words = self.slots.borrow().slots.len().div_ceil(WORD_BITS);
        for (index, word) in self.ended.words[..words].iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Relaxed);
            while bits != 0 {
                let slot = index * WORD_BITS + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                if let Some((done, outcome)) = self.take_ended(slot) {
                    // Answered with no slot borrowed: the waker may come back with a submit.
                    done.complete(outcome);
                    answered += 1;
                }
            }
        }
        answered
    }

    fn take_ended(&self, slot: usize) -> Option<(Completion, Outcome)> {
        let mut slots = self.slots.borrow_mut();
        let Slot { waker, operation } = slots.slots.get_mut(slot)?;
        let mut context = Context::from_waker(waker);
        let Poll::Ready(outcome) = Pin::new(&mut operation.as_mut()?.future).poll(&mut context)
        else {
            return None;
        };
        let InFlight { kind, bytes, started_ns, done, .. } = operation.take()?;
        slots.free.push(slot);
        self.record(kind, bytes, started_ns, outcome.is_ok());
        Some((done, outcome))
    }

    fn record(&self, kind: usize, bytes: u64, started_ns: u64, good: bool) {
        let stats = &self.stats;
        let now_ns = self.runtime.now_ns();
        stats.times[kind].record(now_ns, now_ns.saturating_sub(started_ns));
        if good {
            if let Some(counter) = stats.bytes.get(kind) {
                add_alone(counter, bytes);
            }
        } else {
            add_alone(&stats.errors[kind], 1);
        }
    }
}

/// Adds without a locked instruction: the queue's core is the sole writer.
fn add_alone(counter: &AtomicU64, delta: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(delta), Ordering::Relaxed);
}

/// Index into [`OPERATIONS`] and bytes moved.
fn describe(operation: &Operation) -> (usize, u64) {
    match operation {
        Operation::Read { buffer, .. } => (0, buffer.len() as u64),
        Operation::Write { data, .. } => (1, data.iter().map(|piece| piece.len() as u64).sum()),
        Operation::Flush => (2, 0),
        Operation::Discard { .. } => (3, 0),
        Operation::WriteZeroes { .. } => (4, 0),
    }
}

impl Slots {
    /// A free slot; `None` when all are taken.
    fn take(&mut self, ended: &Arc<Ended>) -> Option<usize> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let slot = self.slots.len();
        if slot >= SLOTS {
            return None;
        }
        let waker = Waker::from(Arc::new(SlotWaker { ended: Arc::clone(ended), slot }));
        self.slots.push(Slot { waker, operation: None });
        Some(slot)
    }
}

impl DeviceQueue for MeasuredQueue {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn refresh_size(&self) -> Result<u64, DeviceError> {
        self.inner.refresh_size()
    }

    fn submit(&self, operation: Operation, done: Completion) {
        let Some(slot) = self.slots.borrow_mut().take(&self.ended) else {
            return self.inner.submit(operation, done);
        };
        let (kind, bytes) = describe(&operation);
        let started_ns = self.runtime.now_ns();
        let (ours, mut future) = completion_pair();
        self.inner.submit(operation, ours);
        let mut slots = self.slots.borrow_mut();
        let Slot { waker, operation } = &mut slots.slots[slot];
        match Pin::new(&mut future).poll(&mut Context::from_waker(waker)) {
            // The contract answers here only what is invalid; it is no operation of the device.
            Poll::Ready(outcome) => {
                slots.free.push(slot);
                drop(slots);
                done.complete(outcome);
            }
            Poll::Pending => *operation = Some(InFlight { kind, bytes, started_ns, future, done }),
        }
    }

    fn poll(&self) -> usize {
        self.inner.poll();
        let answered = self.answer_ended();
        self.stats.in_flight.store(self.in_flight() as u64, Ordering::Relaxed);
        answered
    }

    fn in_flight(&self) -> usize {
        // Ended inside and not yet answered by us still counts, so this is not the inner number.
        let slots = self.slots.borrow();
        (slots.slots.len() - slots.free.len()).max(self.inner.in_flight())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.inner.wake_fd()
    }

    fn prepare_to_sleep(&self) -> bool {
        let words = self.slots.borrow().slots.len().div_ceil(WORD_BITS);
        let ended = self.ended.words[..words].iter().any(|word| word.load(Ordering::Relaxed) != 0);
        !ended && self.inner.prepare_to_sleep()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use engine_base::runtime::LocalBoxFuture;
    use engine_device::{BlockDevice as _, MemoryDevice};
    use engine_memory::Buffer;

    use super::*;

    /// A clock that moves by a microsecond whenever it is read.
    struct Clock(Cell<u64>);

    impl Runtime for Clock {
        fn now_ns(&self) -> u64 {
            self.0.replace(self.0.get() + 1000)
        }

        fn wall_clock_ns(&self) -> u64 {
            0
        }

        fn sleep(&self, _ns: u64) -> LocalBoxFuture<'static, ()> {
            unreachable!("not asked for here")
        }

        fn spawn(&self, _name: &'static str, _task: LocalBoxFuture<'static, ()>) {
            unreachable!("not asked for here")
        }

        fn random_u64(&self) -> u64 {
            0
        }
    }

    fn queue() -> (MeasuredQueue, Arc<DeviceStats>) {
        // It holds operations back until it is polled.
        let inner = MemoryDevice::new("memory", 1 << 20, 4096).open_queue(8).unwrap();
        let stats = Arc::new(DeviceStats::default());
        let clock = Rc::new(Clock(Cell::new(0)));
        (MeasuredQueue::new(inner, Arc::clone(&stats), clock), stats)
    }

    fn ready(future: &mut IoFuture) -> Option<Outcome> {
        match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    fn submit(queue: &MeasuredQueue, operation: Operation) -> IoFuture {
        let (done, future) = completion_pair();
        queue.submit(operation, done);
        future
    }

    fn counted(stats: &DeviceStats, kind: usize) -> u64 {
        stats.times[kind].snapshot(0).count
    }

    #[test]
    fn operations_pass_through_and_are_counted() {
        let (queue, stats) = queue();
        let data = Buffer::try_copy_of(&[7; 4096]).unwrap().freeze();
        let write =
            Operation::Write { offset: 4096, data: [data].into_iter().collect(), fua: true };
        let mut write = submit(&queue, write);
        let mut flush = submit(&queue, Operation::Flush);
        assert_eq!(queue.in_flight(), 2);
        assert!(!queue.prepare_to_sleep());
        assert!(ready(&mut write).is_none());
        assert_eq!(queue.poll(), 2);
        assert!(ready(&mut write).unwrap().is_ok() && ready(&mut flush).unwrap().is_ok());
        let buffer = Buffer::try_new(8192).unwrap();
        let mut read = submit(&queue, Operation::Read { offset: 0, buffer });
        assert_eq!(queue.poll(), 1);
        let read = ready(&mut read).unwrap().unwrap().unwrap();
        assert!(read[..4096].iter().all(|b| *b == 0) && read[4096..].iter().all(|b| *b == 7));
        assert_eq!([0, 1, 2, 3, 4].map(|kind| counted(&stats, kind)), [1, 1, 1, 0, 0]);
        assert_eq!(stats.bytes[0].load(Ordering::Relaxed), 8192);
        assert_eq!(stats.bytes[1].load(Ordering::Relaxed), 4096);
        assert_eq!(queue.in_flight(), 0);
        assert!(queue.prepare_to_sleep());
    }

    #[test]
    fn invalid_operations_are_answered_at_once_and_not_counted() {
        let (queue, stats) = queue();
        let mut bad = submit(&queue, Operation::Discard { offset: 1, len: 4096 });
        assert!(matches!(ready(&mut bad), Some(Err(DeviceError::Misaligned { .. }))));
        assert_eq!(counted(&stats, 3), 0);
        assert_eq!(queue.in_flight(), 0);
    }

    #[test]
    fn more_than_the_slots_go_unmeasured_and_nothing_is_lost() {
        let (queue, stats) = queue();
        let mut flushes: Vec<_> =
            (0..SLOTS + 10).map(|_| submit(&queue, Operation::Flush)).collect();
        assert_eq!(queue.in_flight(), SLOTS + 10);
        queue.poll();
        assert!(flushes.iter_mut().all(|flush| ready(flush).is_some_and(|done| done.is_ok())));
        assert_eq!(counted(&stats, 2), SLOTS as u64);
        let mut again = submit(&queue, Operation::Flush);
        queue.poll();
        assert!(ready(&mut again).is_some());
        assert_eq!(counted(&stats, 2), SLOTS as u64 + 1);
    }

    #[test]
    fn callers_that_gave_up_do_no_harm() {
        let (queue, stats) = queue();
        drop(submit(&queue, Operation::Flush));
        assert_eq!(queue.poll(), 1);
        assert_eq!(counted(&stats, 2), 1);
        assert_eq!(queue.in_flight(), 0);
    }
}
