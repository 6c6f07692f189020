//! From a core to the shards: straight to those on the same core, by ring to the others.
//!
//! [`Hub`] is one core's table of shards and its place in the mesh. Front ends reach shards through
//! [`CoreLink`]; their requests are bounded, first by the core's table of pending requests, then by the
//! admission of the shard asked. Shards reach each other through [`PeerLink`]; these steps belong to
//! requests that were admitted already and are not bounded again, for a request that waits for a step
//! which waits for that request's place would wait for ever.
//!
//! A request that has begun is carried out whoever drops its future.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use engine_base::ShardId;
use engine_base::runtime::{LocalBoxFuture, Runtime as _};
use engine_memory::alloc_scope;
use engine_shard::{Endpoint, Handle, Inbox, MeshHandle};
use engine_store::api::{Link, Reply, Request, data_len};
use engine_store::shard::{PeerLink, Shard};
use engine_store::times::Timed;
use engine_store::{Result, StoreError};

use super::admission::{Admission, Permit};
use super::pending::{Pending, Ticket};
use crate::metrics::engine::{CoreStats, RequestKind};

/// What travels between the ends of the mesh.
pub(crate) enum Message {
    /// Something to do; answered with the same ticket.
    Ask { ticket: Ticket, what: Ask },
    /// The answer.
    Answer { ticket: Ticket, result: Box<Result<Reply>> },
}

/// What a core can be asked.
pub(crate) enum Ask {
    /// A request of a front end.
    Client { shard: ShardId, request: Request },
    /// A step of another shard's operation.
    Peer { shard: ShardId, request: Request },
    /// Whether the core turns. -> `Unit`
    Ping,
    /// Opens the core's shards. -> `Unit` when all are open
    Open,
    /// Stops what serves hosts on the core. -> `Unit` when their operations have ended
    Quiesce,
    /// Shuts the core's shards down. -> `Unit` when all that was acknowledged is durable
    Close,
    /// Publishes the load of the core's shards ([`CoreStats`]). -> `Unit`
    Publish,
}

/// A shard on this core.
struct Served {
    shard: Rc<Shard>,
    admission: Rc<Admission>,
}

/// What a core does besides serving requests.
pub(crate) trait Control {
    /// Opens the core's shards.
    fn open(&self) -> LocalBoxFuture<'static, Result<()>>;
    /// Stops what serves hosts on this core.
    fn quiesce(&self) -> LocalBoxFuture<'static, Result<()>>;
}

/// One core's shards and its place in the mesh.
pub(crate) struct Hub {
    handle: Rc<Handle>,
    mesh: MeshHandle<Message>,
    shard_count: u16,
    local: RefCell<Vec<Option<Served>>>,
    pending: RefCell<Pending<Option<Permit>>>,
    /// Bounds the requests of front ends on this core that wait for other cores.
    slots: Rc<Admission>,
    stats: Arc<CoreStats>,
    control: RefCell<Option<Rc<dyn Control>>>,
}

/// The core that a shard lives on.
pub(crate) fn core_of(shard: ShardId, cores: usize) -> usize {
    usize::from(shard.0) % cores
}

impl Hub {
    /// The hub of the core of `handle`, which may have `pending_max` requests of front ends under
    /// way to other cores.
    pub(crate) fn new(
        handle: Rc<Handle>,
        mesh: MeshHandle<Message>,
        shard_count: u16,
        pending_max: usize,
        stats: Arc<CoreStats>,
    ) -> Rc<Self> {
        let hub = Rc::new(Self {
            handle,
            shard_count,
            local: RefCell::new((0..shard_count).map(|_| None).collect()),
            pending: RefCell::default(),
            slots: Admission::new(pending_max, u64::MAX),
            stats,
            control: RefCell::default(),
            mesh,
        });
        let inbox: Rc<dyn Inbox<Message>> = Rc::new(HubInbox(Rc::clone(&hub)));
        hub.mesh.set_inbox(inbox);
        hub
    }

    /// Says what opens and closes this core.
    pub(crate) fn set_control(&self, control: Rc<dyn Control>) {
        *self.control.borrow_mut() = Some(control);
    }

    /// Serves `shard` from now on.
    pub(crate) fn add(&self, shard: Rc<Shard>, admission: Rc<Admission>) {
        let id = shard.engine().shard();
        self.local.borrow_mut()[usize::from(id.0)] = Some(Served { shard, admission });
    }

    /// The shards that are served here.
    fn shards(&self) -> Vec<Rc<Shard>> {
        self.local.borrow().iter().flatten().map(|served| Rc::clone(&served.shard)).collect()
    }

    /// Publishes how much each shard of this core has to do.
    fn publish_load(&self) {
        for (id, served) in self.local.borrow().iter().enumerate() {
            if let Some(served) = served {
                let (running, bytes, waiting) = served.admission.load();
                self.stats.set_load(id, running, bytes, waiting);
            }
        }
    }

    /// A request to a shard of this core, not begun.
    fn local(self: &Rc<Self>, ask: Ask) -> LocalBoxFuture<'static, Result<Reply>> {
        let (id, request, client) = match ask {
            Ask::Client { shard, request } => (shard, request, true),
            Ask::Peer { shard, request } => (shard, request, false),
            Ask::Ping => return Box::pin(std::future::ready(Ok(Reply::Unit))),
            Ask::Publish => {
                self.publish_load();
                return Box::pin(std::future::ready(Ok(Reply::Unit)));
            }
            Ask::Open => return self.controlled(|control| control.open()),
            Ask::Quiesce => return self.controlled(|control| control.quiesce()),
            Ask::Close => return Box::pin(Rc::clone(self).close()),
        };
        let local = self.local.borrow();
        let Some(Some(served)) = local.get(usize::from(id.0)) else {
            let error = StoreError::Busy {
                what: format!("shard {id}"),
                why: "it is not open yet; try again".to_owned(),
            };
            return Box::pin(std::future::ready(Err(error)));
        };
        let shard = Rc::clone(&served.shard);
        let admission = client.then(|| Rc::clone(&served.admission));
        let (handle, stats) = (Rc::clone(&self.handle), Arc::clone(&self.stats));
        Box::pin(async move {
            let kind = RequestKind::of(&request);
            let started_ns = handle.now_ns();
            let bytes = payload_bytes(&request);
            let waits = Rc::clone(shard.engine().waits());
            let timed = waits.start(kind.timed());
            let _permit = match admission {
                Some(admission) => {
                    Some(waits.on(Timed::BlockedAdmission, admission.enter(bytes)).await)
                }
                None => None,
            };
            let result = shard.handle(request).await;
            drop(timed);
            if result.is_ok() {
                match kind {
                    RequestKind::Read => waits.add_bytes(bytes, 0),
                    RequestKind::Write => waits.add_bytes(0, bytes),
                    _ => {}
                }
            }
            stats.record(kind, handle.now_ns().saturating_sub(started_ns), result.is_ok());
            result
        })
    }

    fn controlled(
        &self,
        what: impl FnOnce(&dyn Control) -> LocalBoxFuture<'static, Result<()>>,
    ) -> LocalBoxFuture<'static, Result<Reply>> {
        match &*self.control.borrow() {
            Some(control) => {
                let work = what(&**control);
                Box::pin(async move { work.await.map(|()| Reply::Unit) })
            }
            None => Box::pin(std::future::ready(Ok(Reply::Unit))),
        }
    }

    async fn close(self: Rc<Self>) -> Result<Reply> {
        // Shards in parallel: each waits mostly for its flush. The first error is told, all are tried.
        let shards = self.shards();
        let ends = shards.iter().map(|shard| shard.shutdown());
        let results: Vec<Result<()>> = futures::future::join_all(ends).await;
        results.into_iter().collect::<Result<Vec<()>>>().map(|_| Reply::Unit)
    }

    /// A request to another core. `permit` is held until the answer has come.
    async fn remote(
        self: Rc<Self>,
        core: usize,
        what: Ask,
        permit: Option<Permit>,
    ) -> Result<Reply> {
        let ticket = self.pending.borrow_mut().insert(permit);
        let mut wait = Wait { hub: Rc::clone(&self), ticket: Some(ticket), sent: false };
        if self.mesh.send(Endpoint::Core(core), Message::Ask { ticket, what }).await.is_err() {
            return Err(core_ended(core));
        }
        wait.sent = true;
        wait.await
    }

    fn call(self: &Rc<Self>, shard: ShardId, request: Request, client: bool) -> CoreCall {
        let core = core_of(shard, self.mesh.cores());
        if shard.0 >= self.shard_count {
            let error = StoreError::invalid(format!("there is no shard {shard}"));
            return CoreCall::Other(Box::pin(std::future::ready(Err(error))));
        }
        let what =
            if client { Ask::Client { shard, request } } else { Ask::Peer { shard, request } };
        if core == self.mesh.core() {
            let work = Some(self.local(what));
            return CoreCall::Local(Local { handle: Rc::clone(&self.handle), work, begun: false });
        }
        let hub = Rc::clone(self);
        CoreCall::Other(Box::pin(async move {
            let permit = if client { Some(hub.slots.enter(0).await) } else { None };
            hub.remote(core, what, permit).await
        }))
    }

    fn deliver(self: &Rc<Self>, from: Endpoint, message: Message) {
        match message {
            Message::Answer { ticket, result } => {
                let waker = self.pending.borrow_mut().answer(ticket, *result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Message::Ask { ticket, what } => {
                let work = self.local(what);
                let mesh = self.mesh.clone();
                let _scope = alloc_scope!("requests of other cores");
                let answer = async move {
                    let result = Box::new(work.await);
                    // An asker that has ended needs no answer.
                    let _ = mesh.send(from, Message::Answer { ticket, result }).await;
                };
                self.handle.spawn("request", Box::pin(answer));
            }
        }
    }
}

/// What a request holds of the budget of data in progress.
fn payload_bytes(request: &Request) -> u64 {
    match request {
        Request::DataRead { len, .. } | Request::FileRead { len, .. } => u64::from(*len),
        Request::DataWrite { data, .. } | Request::FileWrite { data, .. } => data_len(data),
        _ => 0,
    }
}

/// The error for a core that does not run any more.
pub(crate) fn core_ended(core: usize) -> StoreError {
    StoreError::ShuttingDown { why: format!("core {core} has ended") }
}

struct HubInbox(Rc<Hub>);

impl Inbox<Message> for HubInbox {
    fn deliver(&self, from: Endpoint, message: Message) {
        self.0.deliver(from, message);
    }
}

/// Waits for an answer by ring.
struct Wait {
    hub: Rc<Hub>,
    ticket: Option<Ticket>,
    sent: bool,
}

impl Future for Wait {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = self.ticket.expect("a future is not polled after it has completed");
        let polled = self.hub.pending.borrow_mut().poll(ticket, context);
        if polled.is_ready() {
            self.ticket = None;
        }
        polled
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.hub.pending.borrow_mut().abandon(ticket, self.sent);
        }
    }
}

/// A request to a shard of this core. Dropped after it has begun, it goes on as a task.
pub(crate) struct Local {
    handle: Rc<Handle>,
    work: Option<LocalBoxFuture<'static, Result<Reply>>>,
    begun: bool,
}

impl Future for Local {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.begun = true;
        let work = self.work.as_mut().expect("a future is not polled after it has completed");
        let polled = work.as_mut().poll(context);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(work) = self.work.take().filter(|_| self.begun) {
            self.handle.spawn("abandoned request", Box::pin(async move { drop(work.await) }));
        }
    }
}

/// The future of [`CoreLink`].
pub(crate) enum CoreCall {
    /// To a shard of this core.
    Local(Local),
    /// By ring.
    Other(LocalBoxFuture<'static, Result<Reply>>),
}

impl Future for CoreCall {
    type Output = Result<Reply>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Local(call) => Pin::new(call).poll(context),
            Self::Other(call) => call.as_mut().poll(context),
        }
    }
}

/// The way of front ends on this core.
#[derive(Clone)]
pub(crate) struct CoreLink(pub(crate) Rc<Hub>);

impl Link for CoreLink {
    type Call = CoreCall;

    fn shard_count(&self) -> u16 {
        self.0.shard_count
    }

    fn call(&self, shard: ShardId, request: Request) -> CoreCall {
        self.0.call(shard, request, true)
    }
}

/// The way of shards on this core.
pub(crate) struct ShardPeers(pub(crate) Rc<Hub>);

impl PeerLink for ShardPeers {
    fn call(&self, shard: ShardId, request: Request) -> LocalBoxFuture<'static, Result<Reply>> {
        Box::pin(self.0.call(shard, request, false))
    }
}
