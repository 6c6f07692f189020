//! Announcements between threads, over all interleavings that loom tells apart. A wake that never
//! comes is a deadlock, which loom reports.

use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::{Announced, BitSet};

/// A core's announcements and what an eventfd is to them: a counter that is blocked on until it is
/// not zero.
struct Core {
    announced: Announced,
    slots: BitSet,
    work: AtomicU64,
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Core {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            announced: Announced::new(2),
            slots: BitSet::new(2),
            work: AtomicU64::new(0),
            rung: Mutex::new(false),
            changed: Condvar::new(),
        })
    }

    /// What a waker does: work, the bit of its slot, the bit of its connection, the core.
    fn wake(&self, index: usize) {
        self.work.fetch_add(1, Ordering::Relaxed);
        self.slots.set(index);
        self.announced.connections.set(index);
        if self.announced.announce() {
            *self.rung.lock().unwrap() = true;
            self.changed.notify_one();
        }
    }

    /// What `TargetCore::poll` does; the slots that it found.
    fn poll(&self) -> u64 {
        self.announced.awake();
        let (mut connections, mut found) = (0, 0);
        if self.announced.take(|_| connections += 1) && connections > 0 {
            self.slots.take(|_| found += 1);
        }
        found
    }

    fn sleep(&self) {
        if self.announced.prepare_to_sleep() {
            let mut rung = self.rung.lock().unwrap();
            while !*rung {
                rung = self.changed.wait(rung).unwrap();
            }
            *rung = false;
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
fn a_command_wakes_a_core_that_goes_to_sleep() {
    loom::model(|| {
        let core = Core::new();
        let waker = Arc::clone(&core);
        let thread = thread::spawn(move || waker.wake(0));
        while core.poll() == 0 {
            core.sleep();
        }
        assert_eq!(core.work.load(Ordering::Relaxed), 1, "what came before the wake is seen");
        thread.join().unwrap();
    });
}

/// Two announcements may be taken as one: then the bits of both are seen.
#[test]
fn no_bit_is_lost_when_two_announce() {
    bounded_model(3, || {
        let core = Core::new();
        let threads: Vec<_> = (0..2)
            .map(|index| {
                let core = Arc::clone(&core);
                thread::spawn(move || core.wake(index))
            })
            .collect();
        let mut found = 0;
        while found < 2 {
            found += core.poll();
            if found < 2 {
                core.sleep();
            }
        }
        assert_eq!(core.work.load(Ordering::Relaxed), 2);
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
