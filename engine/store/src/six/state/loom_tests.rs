//! The transitions between threads, over all interleavings that loom tells apart.
//!
//! What the orderings have to do: whoever takes a hold sees all that was done under the holds that
//! excluded it and were given back. A hold is taken and given back by read-modify-writes of one word
//! and by nothing else. So the steps between a release and the step that takes over from it form a
//! release sequence (C++20, 6.9.2.2 [intro.races]): an acquiring step synchronises with *every*
//! releasing step before it, not with the last one only. A changer thus sees that all readers are
//! done, though it reads the word as the last of them left it. Giving back would need Release only
//! and taking Acquire only; upgrade and downgrade do both, and so that there is one rule every step
//! is AcqRel. A refused step takes nothing and orders nothing, hence Relaxed.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

use super::{State, Word};

impl Word for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    fn get(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    fn step(&self, step: impl Fn(u64) -> Option<u64>) -> bool {
        self.fetch_update(Ordering::AcqRel, Ordering::Relaxed, step).is_ok()
    }
}

/// A lock and what it guards. The guarded number is read and written relaxed, so only the lock orders
/// it: where an ordering is missing, loom lets somebody see an old one.
struct Guarded {
    state: State<AtomicU64>,
    /// The number of the change that wrote it.
    value: AtomicU64,
}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { state: State::new(1), value: AtomicU64::new(1) })
    }

    fn read(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// Waits for its turn and makes one change.
    fn change(&self) {
        while !self.state.try_begin_change() {
            thread::yield_now();
        }
        let number = self.state.sequence();
        assert_eq!(self.read(), number, "the change before is seen");
        self.value.store(number + 1, Ordering::Relaxed);
        self.state.end_change(number + 1);
    }

    fn share(&self) {
        while !self.state.try_share() {
            thread::yield_now();
        }
    }
}

/// At most `preemptions` switches away from a thread that could go on, as in engine/shard.
fn bounded_model(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[test]
fn a_change_is_seen_whole_and_with_its_number() {
    bounded_model(3, || {
        let guarded = Guarded::new();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let guarded = Arc::clone(&guarded);
                thread::spawn(move || {
                    if !guarded.state.try_share() {
                        return;
                    }
                    let (before, number) = (guarded.read(), guarded.state.sequence());
                    assert_eq!(before, number);
                    assert_eq!(guarded.read(), before, "nothing changes under a reader");
                    guarded.state.unshare();
                })
            })
            .collect();
        guarded.change();
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(guarded.state.can_change());
    });
}

#[test]
fn changes_of_two_threads_follow_each_other() {
    loom::model(|| {
        let guarded = Guarded::new();
        let other = Arc::clone(&guarded);
        let thread = thread::spawn(move || other.change());
        guarded.change();
        thread.join().unwrap();
        guarded.share();
        assert_eq!((guarded.read(), guarded.state.sequence()), (3, 3));
    });
}

/// Who let go before a wait compares numbers afterwards: the same number, the same content.
#[test]
fn an_equal_number_means_that_nothing_changed() {
    loom::model(|| {
        let guarded = Guarded::new();
        let other = Arc::clone(&guarded);
        let thread = thread::spawn(move || other.change());
        guarded.share();
        let (value, number) = (guarded.read(), guarded.state.sequence());
        guarded.state.unshare();
        guarded.share();
        assert_eq!(guarded.state.sequence() == number, guarded.read() == value);
        guarded.state.unshare();
        thread.join().unwrap();
    });
}

/// Intent is one at a time, whichever way it is taken, beside readers and changes.
#[test]
fn intent_is_held_by_one() {
    bounded_model(3, || {
        let guarded = Guarded::new();
        let owned = Arc::new(AtomicU64::new(0));
        // Two that had intent at once, or one that did not see the other's, would lose a count.
        let own = |owned: &AtomicU64| {
            let count = owned.load(Ordering::Relaxed);
            thread::yield_now();
            owned.store(count + 1, Ordering::Relaxed);
            1
        };
        let (other, others) = (Arc::clone(&guarded), Arc::clone(&owned));
        let thread = thread::spawn(move || {
            other.share();
            let mut had = 0;
            if other.state.try_upgrade() {
                had = own(&others);
                if other.state.try_downgrade() {
                    other.state.unshare();
                } else {
                    other.state.unintend();
                }
            } else {
                other.state.unshare();
            }
            had
        });
        let mut had = 0;
        if guarded.state.try_intend() {
            had = own(&owned);
            guarded.state.unintend();
        }
        guarded.change();
        had += thread.join().unwrap();
        assert_eq!(owned.load(Ordering::Relaxed), had);
        assert!(!guarded.state.intent_held() && guarded.state.can_change());
    });
}
