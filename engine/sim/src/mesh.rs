//! The messages between shards, and between clients and shards, on virtual time.
//!
//! Every message takes a random time; messages of one sender to one receiver arrive in order. A request
//! that has been sent is carried out whether or not its asker still waits. Requests to a shard that is
//! still opening wait for it. The mesh of a process dies with it: [`Mesh::close`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use engine_base::ShardId;
use engine_base::random::Random;
use engine_base::runtime::LocalBoxFuture;
use engine_store::api::{Link, Reply, Request};
use engine_store::error::{Result, StoreError};
use engine_store::shard::{PeerLink, Shard};

use crate::executor::Executor;

/// A lie that the mesh can tell; the checker must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshLie {
    /// Now and then a write is answered and never delivered.
    DropsWrites,
    /// Flushes are answered and never delivered.
    DropsFlushes,
    /// Now and then an unlink or rename is answered and never delivered.
    DropsNames,
    /// Now and then an answer gets lost: its asker waits for ever.
    LosesAnswers,
}

/// A request that was not answered yet.
#[derive(Clone, Debug)]
struct Pending {
    what: String,
    from: u32,
    shard: ShardId,
    since_ns: u64,
}

struct Slot {
    /// Of the request, among those not answered.
    number: u64,
    answer: Option<Result<Reply>>,
    waker: Option<Waker>,
}

/// Waits for the answer to one request.
struct Answer(Rc<RefCell<Slot>>);

impl Future for Answer {
    type Output = Result<Reply>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.0.borrow_mut();
        match slot.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

enum Port {
    /// What waits for the shard to open, with who sent it.
    Opening(Vec<(u32, Request, Rc<RefCell<Slot>>)>),
    Open(Rc<Shard>),
    Closed,
}

struct Inner {
    executor: Executor,
    random: RefCell<Random>,
    delay_ns_max: u64,
    ports: RefCell<Vec<Port>>,
    /// When the last message of a pair arrives.
    arrivals: RefCell<BTreeMap<(u32, u32), u64>>,
    lie: Option<MeshLie>,
    /// Requests not answered, in the order in which they were made.
    pending: RefCell<BTreeMap<u64, Pending>>,
    requests: Cell<u64>,
    slowest_ns: Cell<u64>,
}

/// The messages of one process. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Mesh {
    inner: Rc<Inner>,
}

/// Addresses of clients start here; below are the shards.
const CLIENTS: u32 = 1 << 16;

impl Mesh {
    /// A mesh of `shard_count` shards, none open yet.
    #[must_use]
    pub fn new(
        executor: &Executor,
        shard_count: u16,
        delay_ns_max: u64,
        lie: Option<MeshLie>,
    ) -> Self {
        let ports = (0..shard_count).map(|_| Port::Opening(Vec::new())).collect();
        Self {
            inner: Rc::new(Inner {
                executor: executor.clone(),
                random: RefCell::new(executor.fork_random()),
                delay_ns_max,
                ports: RefCell::new(ports),
                arrivals: RefCell::default(),
                lie,
                pending: RefCell::default(),
                requests: Cell::new(0),
                slowest_ns: Cell::new(0),
            }),
        }
    }

    /// The link of a client, each with a number of its own.
    #[must_use]
    pub fn client(&self, number: u32) -> SimLink {
        SimLink { inner: Rc::clone(&self.inner), address: CLIENTS + number }
    }

    /// The link of a shard to the others.
    #[must_use]
    pub fn peer(&self, shard: ShardId) -> Rc<dyn PeerLink> {
        Rc::new(SimPeer { inner: Rc::downgrade(&self.inner), address: u32::from(shard.0) })
    }

    /// The shard is open: delivers what waited for it.
    pub fn opened(&self, shard: ShardId, opened: Rc<Shard>) {
        let port = &mut self.inner.ports.borrow_mut()[usize::from(shard.0)];
        let before = std::mem::replace(port, Port::Open(Rc::clone(&opened)));
        if let Port::Opening(waiting) = before {
            for (from, request, slot) in waiting {
                self.inner.carry_out(from, shard, &opened, request, slot);
            }
        }
    }

    /// The open shards, for an orderly shutdown.
    #[must_use]
    pub fn shards(&self) -> Vec<Rc<Shard>> {
        self.inner
            .ports
            .borrow()
            .iter()
            .filter_map(|port| match port {
                Port::Open(shard) => Some(Rc::clone(shard)),
                _ => None,
            })
            .collect()
    }

    /// Since when the request has waited that has waited longest, in virtual nanoseconds.
    #[must_use]
    pub fn oldest_since_ns(&self) -> Option<u64> {
        self.inner.pending.borrow().values().next().map(|pending| pending.since_ns)
    }

    /// Longest time of an answer so far, in virtual nanoseconds.
    #[must_use]
    pub fn slowest_ns(&self) -> u64 {
        self.inner.slowest_ns.get()
    }

    /// Who waits for an answer to what, those that wait longest first, at most `most`.
    #[must_use]
    pub fn waiting(&self, most: usize) -> Vec<String> {
        let now_ns = self.inner.executor.now_ns();
        let who = |address: u32| match address.checked_sub(CLIENTS) {
            Some(client) => format!("client {client}"),
            None => format!("shard {address}"),
        };
        let line = |pending: &Pending| {
            let for_ms = now_ns.saturating_sub(pending.since_ns) / 1_000_000;
            let (from, what, shard) = (who(pending.from), &pending.what, pending.shard);
            format!("{from} waits {for_ms} ms for {what} of shard {shard}")
        };
        self.inner.pending.borrow().values().take(most).map(line).collect()
    }

    /// Lets go of the shards.
    pub fn close(&self) {
        let ports: Vec<Port> = {
            let mut ports = self.inner.ports.borrow_mut();
            ports.iter_mut().map(|port| std::mem::replace(port, Port::Closed)).collect()
        };
        drop(ports);
    }
}

impl Inner {
    /// When a message sent now arrives: in order within its pair.
    fn arrival_ns(&self, from: u32, to: u32) -> u64 {
        let delay_ns = 1 + self.random.borrow_mut().below(self.delay_ns_max.max(1));
        let mut arrivals = self.arrivals.borrow_mut();
        let last = arrivals.entry((from, to)).or_default();
        *last = (*last).max(self.executor.now_ns() + delay_ns);
        *last
    }

    fn send(self: &Rc<Self>, from: u32, shard: ShardId, request: Request) -> Answer {
        let number = self.requests.get();
        self.requests.set(number + 1);
        let (what, since_ns) = (name_of(&request), self.executor.now_ns());
        self.pending.borrow_mut().insert(number, Pending { what, from, shard, since_ns });
        let slot = Rc::new(RefCell::new(Slot { number, answer: None, waker: None }));
        let at_ns = self.arrival_ns(from, u32::from(shard.0));
        let (inner, answer) = (Rc::downgrade(self), Rc::clone(&slot));
        self.executor.call_at(at_ns, move || {
            if let Some(inner) = inner.upgrade() {
                inner.arrive(from, shard, request, answer);
            }
        });
        Answer(slot)
    }

    fn arrive(
        self: &Rc<Self>,
        from: u32,
        shard: ShardId,
        request: Request,
        slot: Rc<RefCell<Slot>>,
    ) {
        let open = {
            let mut ports = self.ports.borrow_mut();
            match ports.get_mut(usize::from(shard.0)) {
                Some(Port::Open(open)) => Rc::clone(open),
                Some(Port::Opening(waiting)) => {
                    waiting.push((from, request, slot));
                    return;
                }
                Some(Port::Closed) => {
                    drop(ports);
                    let why = "the simulated process has ended".to_owned();
                    self.answer(shard, from, &slot, Err(StoreError::ShuttingDown { why }));
                    return;
                }
                None => {
                    drop(ports);
                    let error = StoreError::invalid(format!("there is no shard {shard}"));
                    self.answer(ShardId(0), from, &slot, Err(error));
                    return;
                }
            }
        };
        self.carry_out(from, shard, &open, request, slot);
    }

    fn lies_about(&self, from: u32, request: &Request) -> bool {
        let (wanted, one_in) = match self.lie {
            None | Some(MeshLie::LosesAnswers) => return false,
            Some(MeshLie::DropsWrites) => (matches!(request, Request::DataWrite { .. }), 100),
            Some(MeshLie::DropsFlushes) => (matches!(request, Request::Flush), 1),
            Some(MeshLie::DropsNames) => (matches!(request, Request::Remove { .. }), 20),
        };
        wanted && from >= CLIENTS && self.random.borrow_mut().chance(1, one_in)
    }

    fn carry_out(
        self: &Rc<Self>,
        from: u32,
        shard: ShardId,
        open: &Rc<Shard>,
        request: Request,
        slot: Rc<RefCell<Slot>>,
    ) {
        if self.lies_about(from, &request) {
            self.answer(shard, from, &slot, Ok(Reply::Unit));
            return;
        }
        let (open, inner) = (Rc::clone(open), Rc::downgrade(self));
        let task = Box::pin(async move {
            let answer = open.handle(request).await;
            if let Some(inner) = inner.upgrade() {
                inner.answer(shard, from, &slot, answer);
            }
        });
        self.executor.spawn(shard.0, "request", task);
    }

    fn answer(&self, shard: ShardId, to: u32, slot: &Rc<RefCell<Slot>>, answer: Result<Reply>) {
        let loses = self.lie == Some(MeshLie::LosesAnswers) && to >= CLIENTS;
        if loses && self.random.borrow_mut().chance(1, 300) {
            return;
        }
        let at_ns = self.arrival_ns(u32::from(shard.0), to);
        let slot = Rc::clone(slot);
        if let Some(pending) = self.pending.borrow_mut().remove(&slot.borrow().number) {
            let took_ns = at_ns.saturating_sub(pending.since_ns);
            self.slowest_ns.set(self.slowest_ns.get().max(took_ns));
        }
        self.executor.call_at(at_ns, move || {
            let waker = {
                let mut slot = slot.borrow_mut();
                slot.answer = Some(answer);
                slot.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        });
    }
}

/// The name of a request without its content.
fn name_of(request: &Request) -> String {
    /// Takes the first word, then refuses more.
    struct First(String);
    impl fmt::Write for First {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let taken = self.0.is_empty();
            if taken {
                self.0.push_str(text);
            }
            if taken { Ok(()) } else { Err(fmt::Error) }
        }
    }
    let mut first = First(String::new());
    // Stops as soon as it has the name: the content of a write is not for people.
    let _ = fmt::Write::write_fmt(&mut first, format_args!("{request:?}"));
    first.0
}

/// A client's way to the shards.
#[derive(Clone)]
pub struct SimLink {
    inner: Rc<Inner>,
    address: u32,
}

impl Link for SimLink {
    type Call = LocalBoxFuture<'static, Result<Reply>>;

    fn shard_count(&self) -> u16 {
        self.inner.ports.borrow().len() as u16
    }

    fn call(&self, shard: ShardId, request: Request) -> Self::Call {
        Box::pin(self.inner.send(self.address, shard, request))
    }
}

/// Weak: the mesh holds the shards, and the shards hold this.
struct SimPeer {
    inner: Weak<Inner>,
    address: u32,
}

impl PeerLink for SimPeer {
    fn call(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        match self.inner.upgrade() {
            Some(inner) => Box::pin(inner.send(self.address, shard, request)),
            None => Box::pin(async {
                Err(StoreError::ShuttingDown { why: "the simulated process has ended".to_owned() })
            }),
        }
    }
}
