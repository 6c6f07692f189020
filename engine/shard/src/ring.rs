//! Bounded ring for one producer and one consumer.
//!
//! `head` and `tail` run freely and wrap; `tail - head` is the number of messages in the ring, never
//! more than the capacity, which is a power of two. Each side owns one index and keeps a copy of the
//! other's that may lag behind, which only makes the ring look fuller (to the producer) or emptier (to
//! the consumer) until the copy is refreshed. Slots in `head .. tail` hold messages; no others do.
//!
//! Waking a side that sleeps is left to [`crate::doorbell`]. Why not an existing crate:
//! docs/decisions/0003-rings.md.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::MaybeUninit;

use crate::sync::{Arc, AtomicUsize, CachePadded, Ordering, UnsafeCell};

struct Shared<T> {
    /// Next slot to read. Written by the consumer only.
    head: CachePadded<AtomicUsize>,
    /// Next slot to write. Written by the producer only.
    tail: CachePadded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is touched by one side at a time: the producer writes only slots outside `head ..
// tail`, the consumer reads only slots inside, and the Release stores and Acquire loads of the two
// indices hand slots over. Messages cross threads, hence `T: Send`.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; there are exactly one `Producer` and one `Consumer`, neither is `Clone`, and all
// access is by `&mut`.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    #[inline(always)]
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }

    /// Moves the message out of slot `index`.
    ///
    /// # Safety
    /// 1. `index` is inside `head .. tail`, as seen through an Acquire load of `tail`.
    /// 2. The caller is the consumer (or the last owner) and moves `head` past `index` before the
    ///    slot is looked at again.
    #[inline(always)]
    unsafe fn take(&self, index: usize) -> T {
        self.slot(index).with(|slot| {
            // SAFETY: the slot is initialised (1) and nobody writes it until `head` passes it (2).
            let slot = unsafe { &*slot };
            // SAFETY: initialised (1), and read only once (2).
            unsafe { slot.assume_init_read() }
        })
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let mut head = self.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: both sides are gone, so this is the only owner; the slot is inside `head ..
            // tail` and `head` moves past it at once.
            drop(unsafe { self.take(head) });
            head = head.wrapping_add(1);
        }
    }
}

/// The sending side of a ring.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    tail: usize,
    head_seen: usize,
}

/// The receiving side of a ring.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    head: usize,
    tail_seen: usize,
}

/// A ring for at least `capacity` messages (rounded up to a power of two; at least 1, at most 2^31).
#[must_use]
pub fn ring<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity <= 1 << 31, "a ring of more than 2^31 messages is a mistake");
    let capacity = capacity.max(1).next_power_of_two();
    let shared = Arc::new(Shared {
        head: CachePadded(AtomicUsize::new(0)),
        tail: CachePadded(AtomicUsize::new(0)),
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
    });
    (
        Producer { shared: shared.clone(), tail: 0, head_seen: 0 },
        Consumer { shared, head: 0, tail_seen: 0 },
    )
}

impl<T> Producer<T> {
    /// Appends a message.
    ///
    /// # Errors
    /// Gives the message back when the ring is full.
    #[inline]
    pub fn push(&mut self, message: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_seen) == self.capacity() {
            self.head_seen = self.shared.head.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) == self.capacity() {
                return Err(message);
            }
        }
        self.shared.slot(self.tail).with_mut(|slot| {
            // SAFETY: the slot lies outside `head .. tail`: the check above saw room through an
            // Acquire load of `head`, so the consumer is done with it, and it reads the slot only
            // after the Release store of `tail` below.
            let slot = unsafe { &mut *slot };
            slot.write(message);
        });
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// How many messages fit now. Looks at the consumer's index.
    #[inline]
    pub fn room(&mut self) -> usize {
        self.head_seen = self.shared.head.load(Ordering::Acquire);
        self.capacity() - self.tail.wrapping_sub(self.head_seen)
    }

    /// How many messages the ring holds at most.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest message.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.available() == 0 {
            return None;
        }
        // SAFETY: `available` saw `head` inside `head .. tail` through an Acquire load of `tail`;
        // `head` moves past the slot in the next line.
        let message = unsafe { self.shared.take(self.head) };
        self.head = self.head.wrapping_add(1);
        self.shared.head.store(self.head, Ordering::Release);
        Some(message)
    }

    /// Takes up to `count_max` messages, oldest first, and gives the producer their room back in one
    /// store after the last. Returns how many. If `each` panics, the messages it was given are gone
    /// and the rest stay.
    #[inline]
    pub fn pop_batch(&mut self, count_max: usize, mut each: impl FnMut(T)) -> usize {
        // A fresh look each time: one load a batch, and no message left behind by a stale copy.
        self.tail_seen = self.shared.tail.load(Ordering::Acquire);
        let count = self.tail_seen.wrapping_sub(self.head).min(count_max);
        if count == 0 {
            return 0;
        }
        let publish = PublishHead(self);
        for _ in 0..count {
            // SAFETY: the Acquire load of `tail` above saw `count` messages from `head` on; `head`
            // moves past the slot in the next line, before `each` can panic, and `publish` stores it
            // on every way out.
            let message = unsafe { publish.0.shared.take(publish.0.head) };
            publish.0.head = publish.0.head.wrapping_add(1);
            each(message);
        }
        count
    }

    /// Whether the ring holds nothing.
    #[inline]
    pub fn is_empty(&mut self) -> bool {
        self.available() == 0
    }

    /// How many messages the ring holds at most.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.slots.len()
    }

    /// Messages known to be there; looks at the producer's index only when none is.
    #[inline(always)]
    fn available(&mut self) -> usize {
        if self.tail_seen == self.head {
            self.tail_seen = self.shared.tail.load(Ordering::Acquire);
        }
        self.tail_seen.wrapping_sub(self.head)
    }
}

/// Publishes the consumer's `head` when it goes out of scope.
struct PublishHead<'a, T>(&'a mut Consumer<T>);

impl<T> Drop for PublishHead<'_, T> {
    fn drop(&mut self) {
        self.0.shared.head.store(self.0.head, Ordering::Release);
    }
}

impl<T> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("head", &self.head).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;
    use std::rc::Rc;

    use engine_base::random::Random;

    use super::*;

    #[test]
    fn behaves_as_a_bounded_queue() {
        let seed = crate::test_seed();
        let mut random = Random::new(seed);
        for _ in 0..200 {
            let (mut producer, mut consumer) = ring::<u64>(random.range(0, 9) as usize);
            let mut model = VecDeque::new();
            for step in 0..300 {
                match random.below(3) {
                    0 => {
                        let full = model.len() == producer.capacity();
                        assert_eq!(producer.push(step).is_err(), full, "seed {seed}");
                        if !full {
                            model.push_back(step);
                        }
                    }
                    1 => assert_eq!(consumer.pop(), model.pop_front(), "seed {seed}"),
                    _ => {
                        let budget = random.below(5) as usize;
                        let mut got = Vec::new();
                        let count = consumer.pop_batch(budget, |message| got.push(message));
                        assert_eq!(count, got.len());
                        assert_eq!(count, budget.min(model.len()), "seed {seed}");
                        let expected: Vec<u64> = model.drain(..count).collect();
                        assert_eq!(got, expected, "seed {seed}");
                    }
                }
                assert_eq!(producer.room(), producer.capacity() - model.len(), "seed {seed}");
                assert_eq!(consumer.is_empty(), model.is_empty(), "seed {seed}");
            }
        }
    }

    #[test]
    fn drops_what_was_never_taken() {
        let witness = Rc::new(());
        let (mut producer, mut consumer) = ring(4);
        for _ in 0..4 {
            producer.push(witness.clone()).expect("room for four");
        }
        assert!(producer.push(witness.clone()).is_err());
        drop(consumer.pop());
        assert_eq!(Rc::strong_count(&witness), 4);
        drop(producer);
        assert_eq!(Rc::strong_count(&witness), 4, "the consumer may still want them");
        drop(consumer);
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    fn a_panicking_receiver_neither_repeats_nor_loses() {
        let (mut producer, mut consumer) = ring(4);
        for value in 0..4 {
            producer.push(Box::new(value)).expect("room for four");
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            consumer.pop_batch(4, |value| assert!(*value != 1));
        }));
        assert!(outcome.is_err());
        assert_eq!(producer.room(), 2);
        assert_eq!(consumer.pop().as_deref(), Some(&2));
        assert_eq!(consumer.pop().as_deref(), Some(&3));
        assert_eq!(consumer.pop(), None);
    }

    #[test]
    fn keeps_order_between_threads() {
        const COUNT: u64 = 200_000;
        let (mut producer, mut consumer) = ring(64);
        let sender = std::thread::spawn(move || {
            for value in 0..COUNT {
                while producer.push(value).is_err() {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            let count = consumer.pop_batch(16, |value| {
                assert_eq!(value, next);
                next += 1;
            });
            if count == 0 {
                std::thread::yield_now();
            }
        }
        sender.join().expect("the sender does not panic");
        assert_eq!(consumer.pop(), None);
    }
}
