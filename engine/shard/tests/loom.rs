//! Model checks of the lock-free parts, over the interleavings loom can distinguish:
//! `RUSTFLAGS="--cfg loom" cargo test -p engine-shard --test loom --release`
#![cfg(loom)]
#![allow(missing_docs, clippy::unwrap_used)]

use engine_shard::doorbell::{SleepFlag, publish};
use engine_shard::ring::ring;
use engine_shard::wake_set::WakeSet;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// Every interleaving with at most `preemptions` switches away from a thread that could go on (CHESS:
/// Musuvathi, Qadeer 2007, found two to be enough for nearly all real bugs). Unbounded, the models
/// below that have three threads or block do not end within an hour.
fn bounded_model(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// What an eventfd is to the protocol: a counter that is blocked on until it is not zero. A wake that
/// never comes is a deadlock, which loom reports.
struct Event {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    fn new() -> Self {
        Self { rung: Mutex::new(false), changed: Condvar::new() }
    }

    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn block(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.changed.wait(rung).unwrap();
        }
        *rung = false;
    }
}

struct Bell {
    flag: SleepFlag,
    event: Event,
}

impl Bell {
    fn new() -> Arc<Self> {
        Arc::new(Self { flag: SleepFlag::new(), event: Event::new() })
    }

    fn ring(&self) {
        if self.flag.take() {
            self.event.ring();
        }
    }

    /// The reactor's `rest`: announce, look again, block.
    fn sleep_unless(&self, mut found: impl FnMut() -> bool) {
        self.flag.raise();
        publish();
        if !found() {
            self.event.block();
        }
        self.flag.lower();
    }
}

#[test]
fn a_ring_hands_over_every_message_once_and_in_order() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::<Box<u32>>(2);
        let sender = thread::spawn(move || {
            for value in 0..3 {
                let mut message = Box::new(value);
                while let Err(back) = producer.push(message) {
                    message = back;
                    thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < 3 {
            match consumer.pop() {
                Some(message) => {
                    assert_eq!(*message, next);
                    next += 1;
                }
                None => thread::yield_now(),
            }
        }
        sender.join().unwrap();
        assert!(consumer.pop().is_none());
    });
}

#[test]
fn a_ring_hands_over_batches() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring::<Box<u32>>(2);
        let sender = thread::spawn(move || {
            let mut sent = 0;
            for value in 0..3 {
                if producer.push(Box::new(value)).is_err() {
                    break;
                }
                sent += 1;
            }
            sent
        });
        let mut got = Vec::new();
        consumer.pop_batch(2, |message| got.push(*message));
        consumer.pop_batch(2, |message| got.push(*message));
        let sent = sender.join().unwrap();
        while consumer.pop_batch(2, |message| got.push(*message)) > 0 {}
        assert_eq!(got, (0..sent).collect::<Vec<_>>());
    });
}

#[test]
fn a_ring_dropped_on_two_threads_drops_its_messages() {
    loom::model(|| {
        let (mut producer, mut consumer) = ring(2);
        let witness = Arc::new(());
        let message = witness.clone();
        let sender = thread::spawn(move || {
            producer.push(message.clone()).unwrap();
            producer.push(message).unwrap();
        });
        drop(consumer.pop());
        drop(consumer);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&witness), 1);
    });
}

#[test]
fn a_sleeper_is_woken_for_a_message() {
    bounded_model(4, || {
        let (mut producer, mut consumer) = ring::<u32>(2);
        let bell = Bell::new();
        let sender_bell = bell.clone();
        let sender = thread::spawn(move || {
            for value in 0..2 {
                producer.push(value).unwrap();
                publish();
                sender_bell.ring();
            }
        });
        let mut got = 0;
        while got < 2 {
            match consumer.pop() {
                Some(_) => got += 1,
                None => bell.sleep_unless(|| !consumer.is_empty()),
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn one_fence_serves_the_sleepers_of_a_whole_turn() {
    bounded_model(3, || {
        let bells = [Bell::new(), Bell::new()];
        let (mut first, mut first_out) = ring::<u32>(1);
        let (mut second, mut second_out) = ring::<u32>(1);
        let senders_bells = bells.clone();
        let receiver_bell = bells[1].clone();
        let receiver = thread::spawn(move || {
            while second_out.pop().is_none() {
                receiver_bell.sleep_unless(|| !second_out.is_empty());
            }
        });
        let sender = thread::spawn(move || {
            first.push(1).unwrap();
            second.push(2).unwrap();
            publish();
            senders_bells[0].ring();
            senders_bells[1].ring();
        });
        while first_out.pop().is_none() {
            bells[0].sleep_unless(|| !first_out.is_empty());
        }
        sender.join().unwrap();
        receiver.join().unwrap();
    });
}

#[test]
fn a_sender_that_waits_for_room_is_woken() {
    bounded_model(4, || {
        let (mut producer, mut consumer) = ring::<u32>(1);
        producer.push(0).unwrap();
        let bell = Bell::new();
        let want_room = Arc::new(SleepFlag::new());
        let (sender_bell, sender_want) = (bell.clone(), want_room.clone());
        let sender = thread::spawn(move || {
            while producer.push(1).is_err() {
                // As Mesh::prepare_to_sleep does it: inside the announcement of the core.
                sender_bell.sleep_unless(|| {
                    sender_want.raise();
                    publish();
                    producer.room() > 0
                });
            }
        });
        let mut got = 0;
        while got < 2 {
            match consumer.pop() {
                Some(_) => {
                    got += 1;
                    publish();
                    if want_room.take() {
                        bell.ring();
                    }
                }
                None => thread::yield_now(),
            }
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_foreign_wake_is_never_lost() {
    bounded_model(3, || {
        let set = Arc::new(WakeSet::new(128));
        let bell = Bell::new();
        let data = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        // Two tasks of one leaf word would race for it; two of different words for the words above.
        let wakers: Vec<_> = [3usize, 70]
            .into_iter()
            .enumerate()
            .map(|(number, index)| {
                let (set, bell, data) = (set.clone(), bell.clone(), data.clone());
                thread::spawn(move || {
                    data[number].store(true, Ordering::Relaxed);
                    set.set(index);
                    publish();
                    bell.ring();
                })
            })
            .collect();
        let mut woken = [false; 2];
        while woken != [true; 2] {
            let count = set.drain(|index| {
                let number = usize::from(index == 70);
                assert!(data[number].load(Ordering::Relaxed), "what came before the wake is seen");
                woken[number] = true;
            });
            if count == 0 {
                bell.sleep_unless(|| !set.is_empty());
            }
        }
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

#[test]
fn a_task_woken_twice_runs_after_the_last_wake() {
    bounded_model(3, || {
        let set = Arc::new(WakeSet::new(64));
        let bell = Bell::new();
        let events = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (set, bell, events) = (set.clone(), bell.clone(), events.clone());
                thread::spawn(move || {
                    events.fetch_add(1, Ordering::Relaxed);
                    set.set(5);
                    publish();
                    bell.ring();
                })
            })
            .collect();
        // The task is done when a poll that follows a wake has seen both events.
        let mut seen = 0;
        while seen < 2 {
            if set.drain(|_| seen = events.load(Ordering::Relaxed)) == 0 {
                bell.sleep_unless(|| !set.is_empty());
            }
        }
        for waker in wakers {
            waker.join().unwrap();
        }
    });
}

/// What `tokio::io::unix::AsyncFd` is to an eventfd: readiness that the I/O driver caches, told of
/// edges some time after they happen, and cleared by who found nothing more to read unless another
/// edge was told since (tokio's `AsyncFdReadyMutGuard::clear_ready`).
struct AsyncEvent {
    counter: Mutex<bool>,
    /// (ready, number of the edges told)
    readiness: Mutex<(bool, u64)>,
    told: Condvar,
}

impl AsyncEvent {
    fn new() -> Self {
        Self { counter: Mutex::new(false), readiness: Mutex::new((false, 0)), told: Condvar::new() }
    }

    /// Rings, and then is the driver that tells of the edge: between the two, anything may happen.
    fn ring(&self) {
        *self.counter.lock().unwrap() = true;
        let mut readiness = self.readiness.lock().unwrap();
        *readiness = (true, readiness.1 + 1);
        self.told.notify_one();
    }

    /// `AsyncFd::readable_mut`.
    fn readable(&self) -> u64 {
        let mut readiness = self.readiness.lock().unwrap();
        while !readiness.0 {
            readiness = self.told.wait(readiness).unwrap();
        }
        readiness.1
    }

    fn clear_ready(&self, seen: u64) {
        let mut readiness = self.readiness.lock().unwrap();
        if readiness.1 == seen {
            readiness.0 = false;
        }
    }
}

/// The steps of `port_tokio::AsyncPortReceiver::receive`, in its order: take; announce and look again;
/// wait for readiness; lower the flag, empty the eventfd, clear the readiness; take again.
#[test]
fn a_control_port_in_tokio_is_woken_for_every_message() {
    bounded_model(3, || {
        let (mut producer, mut consumer) = ring::<u32>(2);
        let flag = Arc::new(SleepFlag::new());
        let event = Arc::new(AsyncEvent::new());
        let (senders_flag, senders_event) = (flag.clone(), event.clone());
        let sender = thread::spawn(move || {
            for value in 0..2 {
                producer.push(value).unwrap();
                publish();
                if senders_flag.take() {
                    senders_event.ring();
                }
            }
        });
        let mut got = 0;
        while got < 2 {
            let taken = consumer.pop_batch(2, |_| ());
            got += taken;
            if taken > 0 {
                continue;
            }
            flag.raise();
            publish();
            if consumer.is_empty() {
                let seen = event.readable();
                flag.lower();
                *event.counter.lock().unwrap() = false;
                event.clear_ready(seen);
            } else {
                flag.lower();
            }
        }
        sender.join().unwrap();
    });
}
