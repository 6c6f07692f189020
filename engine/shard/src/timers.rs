//! Timers of one core: a binary heap by deadline, exact to the nanosecond the caller asked for.
//!
//! A dropped sleep leaves its heap entry behind; entries whose slot has moved on are skipped when
//! they come up and swept when they are the majority, so the heap is never longer than twice the
//! live sleeps plus [`SWEEP_MIN`]. Live sleeps are futures that their callers hold, and bounded as they are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::task::Waker;

/// Below this length the heap is not worth sweeping.
const SWEEP_MIN: usize = 64;

/// Names a timer until it has fired or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey {
    /// Unique, and ascending: timers with the same deadline fire in the order they were set.
    sequence: u64,
    slot: u32,
}

#[derive(Debug)]
enum Slot {
    Free,
    Set { sequence: u64, waker: Waker },
}

/// All timers of one core.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(u64, TimerKey)>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    sequence_next: u64,
}

impl Timers {
    /// Wakes `waker` once `deadline_ns` has come.
    pub(crate) fn set(&mut self, deadline_ns: u64, waker: Waker) -> TimerKey {
        let sequence = self.sequence_next;
        self.sequence_next += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            u32::try_from(self.slots.len() - 1).expect("2^32 sleeps do not fit into memory")
        });
        self.slots[slot as usize] = Slot::Set { sequence, waker };
        let key = TimerKey { sequence, slot };
        self.heap.push(Reverse((deadline_ns, key)));
        key
    }

    /// Has the timer wake another waker. Returns false when it has fired.
    pub(crate) fn change_waker(&mut self, key: TimerKey, with: &Waker) -> bool {
        match &mut self.slots[key.slot as usize] {
            Slot::Set { sequence, waker } if *sequence == key.sequence => {
                waker.clone_from(with);
                true
            }
            _ => false,
        }
    }

    /// Forgets the timer, if it has not fired.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        if self.take(key).is_some() && self.heap.len() > SWEEP_MIN + 2 * self.live() {
            let slots = &self.slots;
            self.heap.retain(|Reverse((_, key))| is_set(slots, *key));
        }
    }

    /// Deadline of the next timer to fire.
    pub(crate) fn next_deadline_ns(&mut self) -> Option<u64> {
        while let Some(Reverse((deadline_ns, key))) = self.heap.peek() {
            if is_set(&self.slots, *key) {
                return Some(*deadline_ns);
            }
            self.heap.pop();
        }
        None
    }

    /// Takes the waker of one timer that is due.
    pub(crate) fn fire_one(&mut self, now_ns: u64) -> Option<Waker> {
        while let Some(Reverse((deadline_ns, key))) = self.heap.peek().copied() {
            if deadline_ns > now_ns {
                return None;
            }
            self.heap.pop();
            if let Some(waker) = self.take(key) {
                return Some(waker);
            }
        }
        None
    }

    /// Timers set and neither fired nor cancelled.
    pub(crate) fn live(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn take(&mut self, key: TimerKey) -> Option<Waker> {
        if !is_set(&self.slots, key) {
            return None;
        }
        self.free.push(key.slot);
        match std::mem::replace(&mut self.slots[key.slot as usize], Slot::Free) {
            Slot::Set { waker, .. } => Some(waker),
            Slot::Free => None,
        }
    }
}

fn is_set(slots: &[Slot], key: TimerKey) -> bool {
    matches!(&slots[key.slot as usize], Slot::Set { sequence, .. } if *sequence == key.sequence)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use engine_base::random::Random;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn fires_what_is_due_in_order_and_nothing_else() {
        let seed = crate::test_seed();
        let mut random = Random::new(seed);
        let mut timers = Timers::default();
        // The model: what is set, by deadline and then by order of setting.
        let mut model = BTreeMap::new();
        let mut now_ns = 0;
        for _ in 0..20_000 {
            match random.below(10) {
                0..=4 => {
                    let deadline_ns = now_ns + random.below(50);
                    let count = Arc::new(Count(AtomicUsize::new(0)));
                    let key = timers.set(deadline_ns, Waker::from(count.clone()));
                    model.insert((deadline_ns, key), count);
                }
                5..=7 if !model.is_empty() => {
                    let nth = random.below(model.len() as u64) as usize;
                    let key = *model.keys().nth(nth).expect("inside the model");
                    let count = model.remove(&key).expect("just found");
                    timers.cancel(key.1);
                    assert_eq!(Arc::strong_count(&count), 1, "seed {seed}");
                }
                _ => {
                    now_ns += random.below(20);
                    while let Some(waker) = timers.fire_one(now_ns) {
                        let ((deadline_ns, key), count) =
                            model.pop_first().expect("only what is set fires");
                        assert!(deadline_ns <= now_ns, "seed {seed}");
                        assert!(!timers.change_waker(key, &waker), "seed {seed}");
                        waker.wake();
                        assert_eq!(count.0.load(Ordering::Relaxed), 1, "seed {seed}");
                    }
                }
            }
            let expected = model.keys().next().map(|key| key.0);
            assert_eq!(timers.next_deadline_ns(), expected, "seed {seed}");
            assert_eq!(timers.live(), model.len(), "seed {seed}");
        }
    }

    #[test]
    fn cancelled_timers_do_not_pile_up() {
        let mut timers = Timers::default();
        for round in 0..10_000 {
            let key = timers.set(1_000_000 + round, Waker::noop().clone());
            timers.cancel(key);
            assert!(timers.heap.len() <= SWEEP_MIN + 1);
        }
    }
}
