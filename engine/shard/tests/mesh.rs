//! Messages between cores: order, back-pressure, the end of a receiver. All reactors of a test run on
//! its thread and are turned by hand, so every run with the same seed is the same.
#![cfg(not(loom))]
#![allow(missing_docs, clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use engine_base::random::Random;
use engine_base::runtime::Runtime;
use engine_shard::limits::{MESSAGES_PER_RING_MAX, MESSAGES_PER_TURN_MAX};
use engine_shard::mesh::{MeshSeat, mesh};
use engine_shard::{
    Endpoint, Handle, IdlePolicy, Inbox, MeshHandle, Reactor, ReactorConfig, SendError,
};

#[allow(clippy::disallowed_methods, clippy::print_stdout)]
fn seed() -> u64 {
    let given = std::env::var("SHARD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.unwrap().as_nanos() as u64
    });
    println!("SHARD_TEST_SEED={seed}");
    seed
}

struct Core<M: 'static> {
    reactor: Reactor,
    handle: Rc<Handle>,
    mesh: MeshHandle<M>,
}

impl<M: 'static> Core<M> {
    fn new(seat: MeshSeat<M>) -> Self {
        let config = ReactorConfig { idle: IdlePolicy::Window { ns: 0 }, ..Default::default() };
        let reactor = Reactor::new(&config, seat.doorbell());
        let handle = reactor.handle();
        let mesh = seat.bind(&handle).unwrap();
        Self { reactor, handle, mesh }
    }
}

fn cores<M: 'static>(count: usize, ring_capacity: usize) -> Vec<Core<M>> {
    let (seats, _) = mesh(count, 0, ring_capacity).unwrap();
    seats.into_iter().map(Core::new).collect()
}

/// Keeps what comes; takes nothing while it is not ready.
struct Kept {
    messages: RefCell<Vec<(Endpoint, u64)>>,
    ready: Cell<bool>,
}

impl Inbox<u64> for Kept {
    fn deliver(&self, from: Endpoint, message: u64) {
        self.messages.borrow_mut().push((from, message));
    }

    fn is_ready(&self) -> bool {
        self.ready.get()
    }
}

fn kept(core: &Core<u64>) -> Rc<Kept> {
    let kept = Rc::new(Kept { messages: RefCell::default(), ready: Cell::new(true) });
    core.mesh.set_inbox(kept.clone());
    kept
}

/// Random sends, turns and refusals to receive against one bounded queue per ordered pair.
#[test]
fn the_mesh_is_a_bounded_queue_per_ordered_pair() {
    let seed = seed();
    let mut random = Random::new(seed);
    for _ in 0..20 {
        let count = random.range(1, 4) as usize;
        let capacity = 1 << random.below(5);
        let mut cores = cores::<u64>(count, capacity);
        let inboxes: Vec<Rc<Kept>> = cores.iter().map(kept).collect();
        let mut model: Vec<Vec<VecDeque<u64>>> = vec![vec![VecDeque::new(); count]; count];
        let mut next = 0;
        for _ in 0..2000 {
            let core = random.below(count as u64) as usize;
            match random.below(10) {
                0..=5 => {
                    let to = random.below(count as u64) as usize;
                    let queue = &mut model[core][to];
                    let result = cores[core].mesh.try_send(Endpoint::Core(to), next);
                    if queue.len() < capacity {
                        assert_eq!(result, Ok(()), "seed {seed}");
                        queue.push_back(next);
                    } else {
                        assert_eq!(result, Err(SendError::Full(next)), "seed {seed}");
                    }
                    next += 1;
                }
                6 => inboxes[core].ready.set(!inboxes[core].ready.get()),
                _ => {
                    cores[core].reactor.turn().unwrap();
                    let got = std::mem::take(&mut *inboxes[core].messages.borrow_mut());
                    assert!(got.is_empty() || inboxes[core].ready.get(), "seed {seed}");
                    for (from, message) in got {
                        let Endpoint::Core(from) = from else { panic!("there are no ports") };
                        assert_eq!(model[from][core].pop_front(), Some(message), "seed {seed}");
                    }
                    // Rings here are far smaller than a turn's budget: all is taken or nothing.
                    let left: usize = model.iter().map(|row| row[core].len()).sum();
                    assert!(left == 0 || !inboxes[core].ready.get(), "seed {seed}");
                }
            }
        }
    }
}

#[test]
fn waiting_senders_get_room_in_the_order_they_came() {
    let mut cores = cores::<u64>(2, 2);
    let inbox = kept(&cores[1]);
    let done = Rc::new(RefCell::new(Vec::new()));
    for number in 0..10 {
        let (mesh, done) = (cores[0].mesh.clone(), done.clone());
        cores[0].handle.spawn(
            "sends",
            Box::pin(async move {
                mesh.send(Endpoint::Core(1), number).await.unwrap();
                done.borrow_mut().push(number);
            }),
        );
    }
    cores[0].reactor.turn().unwrap();
    assert_eq!(*done.borrow(), [0, 1]);
    // Who does not wait does not overtake.
    assert_eq!(cores[0].mesh.try_send(Endpoint::Core(1), 99), Err(SendError::Full(99)));
    cores[1].reactor.turn().unwrap();
    assert_eq!(cores[0].mesh.try_send(Endpoint::Core(1), 99), Err(SendError::Full(99)));
    for _ in 0..10 {
        cores[0].reactor.turn().unwrap();
        cores[1].reactor.turn().unwrap();
    }
    assert_eq!(*done.borrow(), (0..10).collect::<Vec<_>>());
    let got: Vec<u64> = inbox.messages.borrow().iter().map(|message| message.1).collect();
    assert_eq!(got, (0..10).collect::<Vec<_>>());
    assert_eq!(cores[0].mesh.try_send(Endpoint::Core(1), 99), Ok(()));
    assert!(cores[0].handle.stats().snapshot().ring_full >= 8);
}

#[test]
fn a_sender_that_gives_up_passes_its_room_on() {
    let mut cores = cores::<u64>(2, 1);
    let inbox = kept(&cores[1]);
    cores[0].mesh.try_send(Endpoint::Core(1), 0).unwrap();
    let mesh = cores[0].mesh.clone();
    let gives_up = Rc::new(Cell::new(false));
    let stop = gives_up.clone();
    cores[0].handle.spawn(
        "gives up",
        Box::pin(async move {
            let mut send = Box::pin(mesh.send(Endpoint::Core(1), 1));
            std::future::poll_fn(|context| {
                // Dropped with its grant: this poll comes when the grant was given.
                if stop.replace(true) {
                    return std::task::Poll::Ready(());
                }
                assert!(send.as_mut().poll(context).is_pending());
                std::task::Poll::Pending
            })
            .await;
        }),
    );
    let mesh = cores[0].mesh.clone();
    cores[0].handle.spawn(
        "waits",
        Box::pin(async move {
            mesh.send(Endpoint::Core(1), 2).await.unwrap();
        }),
    );
    for _ in 0..6 {
        cores[0].reactor.turn().unwrap();
        cores[1].reactor.turn().unwrap();
    }
    assert!(cores[0].handle.tasks().is_empty());
    let got: Vec<u64> = inbox.messages.borrow().iter().map(|message| message.1).collect();
    assert_eq!(got, [0, 2]);
}

#[test]
fn a_turn_takes_a_bounded_share_of_every_ring() {
    let mut cores = cores::<u64>(9, 1024);
    let inbox = kept(&cores[0]);
    for sender in &cores[1..] {
        for number in 0..1000 {
            sender.mesh.try_send(Endpoint::Core(0), number).unwrap();
        }
    }
    let mut took = [0; 9];
    let mut turns = 0;
    while took.iter().sum::<usize>() < 8000 {
        cores[0].reactor.turn().unwrap();
        let got = std::mem::take(&mut *inbox.messages.borrow_mut());
        assert!(!got.is_empty() && got.len() <= MESSAGES_PER_TURN_MAX);
        for (from, message) in got {
            let Endpoint::Core(from) = from else { panic!("there are no ports") };
            assert_eq!(message as usize, took[from]);
            took[from] += 1;
        }
        turns += 1;
        let served = &took[1..];
        let ahead = served.iter().max().unwrap() - served.iter().min().unwrap();
        assert!(ahead <= 2 * MESSAGES_PER_RING_MAX, "no ring is far ahead: {took:?}");
    }
    assert!(turns >= 8000 / MESSAGES_PER_TURN_MAX);
}

#[test]
fn senders_learn_that_the_receiver_has_ended() {
    let mut cores = cores::<Rc<()>>(2, 1);
    let witness = Rc::new(());
    cores[0].mesh.try_send(Endpoint::Core(1), witness.clone()).unwrap();
    let outcome = Rc::new(Cell::new(false));
    let (mesh, set, message) = (cores[0].mesh.clone(), outcome.clone(), witness.clone());
    cores[0].handle.spawn(
        "waits",
        Box::pin(async move {
            let result = mesh.send(Endpoint::Core(1), message).await;
            set.set(matches!(result, Err(SendError::Closed(_))));
        }),
    );
    cores[0].reactor.turn().unwrap();
    assert!(!outcome.get());
    let ended = cores.pop().unwrap();
    ended.mesh.close();
    drop(ended);
    // The ring of an ended core counts as work: sleeping now would wait for ever.
    cores[0].reactor.rest().unwrap();
    cores[0].reactor.turn().unwrap();
    assert!(outcome.get());
    assert!(matches!(
        cores[0].mesh.try_send(Endpoint::Core(1), witness.clone()),
        Err(SendError::Closed(_))
    ));
    drop(cores);
    assert_eq!(Rc::strong_count(&witness), 1, "what was in the ring is dropped");
}

#[test]
fn meshes_of_impossible_sizes_are_refused() {
    assert!(mesh::<u64>(0, 1, 8).is_err());
    assert!(mesh::<u64>(1, usize::MAX, 8).is_err());
    assert!(mesh::<u64>(600, 600, 8).is_err());
}
