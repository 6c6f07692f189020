//! From control threads to the shards and cores, by a control port of the mesh.
//!
//! [`ControlLink`] may be used from any number of tokio tasks at once; [`pump`] is the one task that
//! takes the answers and must run for any of them to come. [`PENDING_MAX`] requests may be under way;
//! more wait. A call that is dropped is carried out all the same.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use engine_base::ShardId;
use engine_shard::clock::Clock;
use engine_shard::port_tokio::AsyncPortReceiver;
use engine_shard::{PortReceiver, PortSender};
use engine_store::api::{Link, Reply, Request};
use engine_store::{Result, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::link::{Ask, Message, core_ended, core_of};
use super::pending::{Pending, Ticket};
use crate::metrics::engine::RequestKind;
use engine_base::histogram::Histogram;

/// Requests of all control threads under way at a time. Each gRPC stream has four at most; with
/// their data this is 1 GiB in the worst case, which the admission of the shards cuts to its budget.
pub(crate) const PENDING_MAX: usize = 1024;
/// Answers taken before other tasks of the control thread run.
const ANSWERS_PER_TURN: usize = 256;

struct Shared {
    sender: PortSender<Message>,
    clock: Clock,
    latencies: [Histogram; RequestKind::ALL.len()],
    cores: usize,
    shard_count: u16,
    pending: Mutex<Table>,
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct Table {
    pending: Pending<OwnedSemaphorePermit>,
    /// Set when no answers will come any more.
    closed: Option<String>,
}

/// The way of control threads.
#[derive(Clone)]
pub(crate) struct ControlLink {
    shared: Arc<Shared>,
}

impl ControlLink {
    /// A link over the sending half of a port, for a pool of `shard_count` shards.
    pub(crate) fn new(sender: PortSender<Message>, shard_count: u16) -> Self {
        let cores = sender.cores();
        let permits = Arc::new(Semaphore::new(PENDING_MAX));
        let shared = Shared {
            sender,
            clock: Clock::new(),
            latencies: Default::default(),
            cores,
            shard_count,
            pending: Mutex::default(),
            permits,
        };
        Self { shared: Arc::new(shared) }
    }

    /// How many cores there are.
    pub(crate) fn cores(&self) -> usize {
        self.shared.cores
    }

    /// Asks a core.
    pub(crate) async fn ask(&self, core: usize, what: Ask) -> Result<Reply> {
        let shared = Arc::clone(&self.shared);
        let permit = Arc::clone(&shared.permits)
            .acquire_owned()
            .await
            .map_err(|_| StoreError::ShuttingDown { why: "the daemon ends".to_owned() })?;
        let ticket = {
            let mut table = shared.table();
            if let Some(why) = &table.closed {
                return Err(StoreError::ShuttingDown { why: why.clone() });
            }
            table.pending.insert(permit)
        };
        let mut wait = Wait { shared: Arc::clone(&shared), ticket: Some(ticket), sent: false };
        let message = Message::Ask { ticket, what };
        if shared.sender.send(core, message).await.is_err() {
            return Err(core_ended(core));
        }
        wait.sent = true;
        wait.await
    }

    /// Latencies of requests to shards as control threads see them, by [`RequestKind`].
    pub(crate) fn latencies(&self) -> &[Histogram; RequestKind::ALL.len()] {
        &self.shared.latencies
    }

    /// Requests under way.
    pub(crate) fn pending(&self) -> usize {
        self.shared.table().pending.len()
    }

    /// Answers everything under way, and all that comes later, with "shutting down: `why`".
    pub(crate) fn close(&self, why: &str) {
        self.shared.close(why);
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing panics with the lock held, and the table is whole between any two steps.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, why: &str) {
        let wakers = {
            let mut table = self.table();
            table.closed.get_or_insert_with(|| why.to_owned());
            table.pending.answer_all(|| Err(StoreError::ShuttingDown { why: why.to_owned() }))
        };
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Link for ControlLink {
    type Call = Pin<Box<dyn Future<Output = Result<Reply>> + Send>>;

    fn shard_count(&self) -> u16 {
        self.shared.shard_count
    }

    fn call(&self, shard: ShardId, request: Request) -> Self::Call {
        let link = self.clone();
        let core = core_of(shard, self.shared.cores);
        Box::pin(async move {
            let kind = RequestKind::of(&request);
            let started_ns = link.shared.clock.now_ns();
            let result = link.ask(core, Ask::Client { shard, request }).await;
            let ns = link.shared.clock.now_ns().saturating_sub(started_ns);
            link.shared.latencies[kind as usize].record_shared(ns);
            result
        })
    }
}

/// Takes answers until every core has ended.
///
/// # Errors
/// When the port's descriptor cannot be waited for.
pub(crate) async fn pump(
    receiver: PortReceiver<Message>,
    link: ControlLink,
) -> std::io::Result<()> {
    let mut port = AsyncPortReceiver::new(receiver)?;
    loop {
        let take = |_, message| {
            let Message::Answer { ticket, result } = message else { return };
            let waker = link.shared.table().pending.answer(ticket, *result);
            if let Some(waker) = waker {
                waker.wake();
            }
        };
        if port.receive(ANSWERS_PER_TURN, take).await? == 0 {
            link.close("all cores have ended");
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}

/// Waits for an answer.
struct Wait {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
    sent: bool,
}

impl Future for Wait {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let ticket = self.ticket.expect("a future is not polled after it has completed");
        let polled = self.shared.table().pending.poll(ticket, context);
        if polled.is_ready() {
            self.ticket = None;
        }
        polled
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.shared.table().pending.abandon(ticket, self.sent);
        }
    }
}
