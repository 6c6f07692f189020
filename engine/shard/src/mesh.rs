//! All cores and control ports, each connected to each core by a pair of bounded rings.
//!
//! * One ring per ordered pair, so every ring has one producer and one consumer; a full one is
//!   back-pressure: [`MeshHandle::try_send`] gives the message back, [`MeshHandle::send`] waits its turn.
//! * A message is visible to an awake receiver at once. Sleeping receivers are rung at the end of the
//!   sender's turn: one fence for all messages of the turn, one system call per sleeper.
//! * A core that takes messages rings a sleeping sender only if that one waits for room.
//! * Messages between two ends arrive in the order they were sent; nothing holds between other pairs.
//! * A message to a core that has ended comes back ([`SendError::Closed`]) or is dropped with its ring.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, io};

use crate::doorbell::{Doorbell, SleepFlag, publish};
use crate::error::LimitError;
use crate::limits;
use crate::poller::Poller;
use crate::port::ControlPort;
use crate::reactor::Handle;
use crate::ring::{Consumer, Producer, ring};
use crate::stats::ReactorStats;
use crate::wait_list::WaitList;

/// One end of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// A reactor, counted from 0.
    Core(usize),
    /// A control port, counted from 0.
    Port(usize),
}

/// Why a message was not sent. It is inside.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError<M> {
    /// The ring has no room now, or others wait for it already.
    #[error("the ring to the receiver is full")]
    Full(M),
    /// The receiver has ended.
    #[error("the receiver has ended")]
    Closed(M),
}

impl<M> SendError<M> {
    /// The message.
    pub fn into_message(self) -> M {
        match self {
            Self::Full(message) | Self::Closed(message) => message,
        }
    }
}

impl<M> fmt::Debug for SendError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// Takes what the mesh delivers to a core.
pub trait Inbox<M> {
    /// Takes one message, in the polling phase of a turn. Must not block; longer work is spawned.
    fn deliver(&self, from: Endpoint, message: M);

    /// Whether the core takes messages now, asked before every batch of at most
    /// [`limits::MESSAGES_PER_RING_MAX`]. While not, they stay in their rings and their senders wait.
    /// It becomes ready again by work of its own core.
    fn is_ready(&self) -> bool {
        true
    }
}

impl<M, F: Fn(Endpoint, M)> Inbox<M> for F {
    fn deliver(&self, from: Endpoint, message: M) {
        self(from, message);
    }
}

/// The sending half of a pair of ends.
pub(crate) struct Outlet<M> {
    pub(crate) ring: Producer<M>,
    pub(crate) waiters: WaitList,
    /// Raised by the sender before it sleeps with waiters.
    pub(crate) want_room: Arc<SleepFlag>,
    pub(crate) receiver: Arc<Doorbell>,
}

/// The receiving half of a pair of ends.
pub(crate) struct Inlet<M> {
    pub(crate) ring: Consumer<M>,
    pub(crate) want_room: Arc<SleepFlag>,
    pub(crate) sender: Arc<Doorbell>,
}

impl<M> Outlet<M> {
    /// Sends if nobody waits for room.
    #[inline]
    pub(crate) fn try_send(&mut self, message: M) -> Result<(), SendError<M>> {
        if self.receiver.is_closed() {
            return Err(SendError::Closed(message));
        }
        if !self.waiters.is_empty() {
            return Err(SendError::Full(message));
        }
        self.ring.push(message).map_err(SendError::Full)
    }

    /// For a sender that is about to sleep: asks to be told of room. Cross [`publish`] after it, then
    /// look at [`Outlet::can_grant`].
    pub(crate) fn ask_for_room(&self) -> bool {
        let waiting = self.waiters.has_waiting();
        if waiting {
            self.want_room.raise();
        }
        waiting
    }

    /// Whether waiters could go on.
    pub(crate) fn can_grant(&mut self) -> bool {
        self.receiver.is_closed() && self.waiters.has_waiting()
            || self.waiters.could_grant(|| self.ring.room())
    }
}

impl<M> Inlet<M> {
    /// Tells a sender that waits for room, if it sleeps. After [`publish`].
    pub(crate) fn ring_waiting_sender(&self) -> bool {
        self.want_room.take() && self.sender.ring()
    }
}

/// A core's place in the mesh, before its reactor exists. Travels to the core's thread.
pub struct MeshSeat<M> {
    core: usize,
    cores: usize,
    outlets: Vec<Outlet<M>>,
    inlets: Vec<Inlet<M>>,
    doorbell: Arc<Doorbell>,
}

/// The seats of all cores and the control ports.
pub type MeshParts<M> = (Vec<MeshSeat<M>>, Vec<ControlPort<M>>);

/// Builds the mesh of `cores` reactors and `ports` control ports with rings for `ring_capacity`
/// messages (rounded up to a power of two).
///
/// # Errors
/// More than [`limits::ENDPOINTS_MAX`] ends, no core, or no more descriptors.
pub fn mesh<M>(cores: usize, ports: usize, ring_capacity: usize) -> io::Result<MeshParts<M>> {
    let count = cores.saturating_add(ports);
    if cores == 0 || count > limits::ENDPOINTS_MAX {
        let text = format!("{cores} cores and {ports} ports: 1 to {} ends", limits::ENDPOINTS_MAX);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let doorbells: Vec<Arc<Doorbell>> =
        (0..count).map(|_| Doorbell::new().map(Arc::new)).collect::<io::Result<_>>()?;
    let mut outlets: Vec<Vec<Outlet<M>>> = (0..count).map(|_| Vec::new()).collect();
    let mut inlets: Vec<Vec<Inlet<M>>> = (0..count).map(|_| Vec::new()).collect();
    for from in 0..count {
        // Ports talk to cores only, so theirs come first: an end's number is its index.
        for to in 0..(if from < cores { count } else { cores }) {
            let (producer, consumer) = ring(ring_capacity);
            let want_room = Arc::new(SleepFlag::new());
            outlets[from].push(Outlet {
                ring: producer,
                waiters: WaitList::default(),
                want_room: want_room.clone(),
                receiver: doorbells[to].clone(),
            });
            let sender = doorbells[from].clone();
            inlets[to].push(Inlet { ring: consumer, want_room, sender });
        }
    }
    let mut ends = outlets.into_iter().zip(inlets).zip(doorbells).enumerate();
    let seats = ends
        .by_ref()
        .take(cores)
        .map(|(core, ((outlets, inlets), doorbell))| MeshSeat {
            core,
            cores,
            outlets,
            inlets,
            doorbell,
        })
        .collect();
    let ports = ends
        .map(|(end, ((outlets, inlets), doorbell))| {
            ControlPort::new(end - cores, outlets, inlets, doorbell)
        })
        .collect();
    Ok((seats, ports))
}

impl<M: 'static> MeshSeat<M> {
    /// What the reactor of this core must sleep on.
    #[must_use]
    pub fn doorbell(&self) -> Arc<Doorbell> {
        self.doorbell.clone()
    }

    /// Joins the mesh to the core's reactor.
    ///
    /// # Errors
    /// When the reactor has too many pollers.
    pub fn bind(self, handle: &Handle) -> Result<MeshHandle<M>, LimitError> {
        let ends = self.outlets.len();
        let core = Rc::new(MeshCore {
            core: self.core,
            cores: self.cores,
            outlets: self.outlets.into_iter().map(RefCell::new).collect(),
            inlets: RefCell::new(self.inlets),
            inbox: RefCell::new(None),
            unrung: (0..ends).map(|_| Cell::new(false)).collect(),
            unrung_list: RefCell::default(),
            drained: RefCell::default(),
            waiting: RefCell::default(),
            first_inlet: Cell::new(0),
            stats: handle.stats(),
            closed: ClosesDoorbells { own: self.doorbell, others: RefCell::default() },
        });
        core.closed
            .others
            .borrow_mut()
            .extend(core.outlets.iter().map(|outlet| outlet.borrow().receiver.clone()));
        handle.register_poller("mesh", core.clone())?;
        Ok(MeshHandle { core })
    }
}

impl<M> MeshSeat<M> {
    /// The core this is the seat of.
    #[must_use]
    pub fn core(&self) -> usize {
        self.core
    }
}

struct MeshCore<M> {
    core: usize,
    cores: usize,
    outlets: Vec<RefCell<Outlet<M>>>,
    inlets: RefCell<Vec<Inlet<M>>>,
    inbox: RefCell<Option<Rc<dyn Inbox<M>>>>,
    /// Ends that were sent to in this turn and not yet rung; the list names them once each.
    unrung: Vec<Cell<bool>>,
    unrung_list: RefCell<Vec<usize>>,
    /// Inlets that messages were taken from in this turn.
    drained: RefCell<Vec<usize>>,
    /// Outlets with waiters.
    waiting: RefCell<Vec<usize>>,
    /// Where the next round begins.
    first_inlet: Cell<usize>,
    stats: Arc<ReactorStats>,
    closed: ClosesDoorbells,
}

/// Tells the mesh that this core has ended, when it goes.
struct ClosesDoorbells {
    own: Arc<Doorbell>,
    others: RefCell<Vec<Arc<Doorbell>>>,
}

impl ClosesDoorbells {
    fn close(&self) {
        if !self.own.is_closed() {
            self.own.close();
            self.others.borrow().iter().for_each(|doorbell| doorbell.ring_always());
        }
    }
}

impl Drop for ClosesDoorbells {
    fn drop(&mut self) {
        self.close();
    }
}

impl<M> MeshCore<M> {
    fn endpoint(&self, index: usize) -> Endpoint {
        if index < self.cores { Endpoint::Core(index) } else { Endpoint::Port(index - self.cores) }
    }

    /// # Panics
    /// For an end the mesh does not have: a mistake of ours.
    fn index(&self, to: Endpoint) -> usize {
        let index = match to {
            Endpoint::Core(core) if core < self.cores => core,
            Endpoint::Port(port) => self.cores + port,
            Endpoint::Core(_) => usize::MAX,
        };
        assert!(index < self.outlets.len(), "the mesh has no end {to:?}");
        index
    }

    #[inline]
    fn sent(&self, index: usize) {
        self.stats.messages_out.add(1);
        if !self.unrung[index].replace(true) {
            self.unrung_list.borrow_mut().push(index);
        }
    }

    /// Lets waiters go on where there is room or nobody to send to any more.
    fn grant_room(&self) -> usize {
        if self.waiting.borrow().is_empty() {
            return 0;
        }
        let mut wakers = Vec::new();
        let mut granted = 0;
        self.waiting.borrow_mut().retain(|index| {
            let mut outlet = self.outlets[*index].borrow_mut();
            if outlet.receiver.is_closed() {
                outlet.waiters.give_up(&mut wakers);
            } else {
                let room = outlet.ring.room();
                granted += outlet.waiters.grant(room, &mut wakers);
            }
            outlet.waiters.has_waiting()
        });
        for waker in wakers {
            waker.wake();
        }
        granted
    }

    fn deliver(&self) -> usize {
        let Some(inbox) = self.inbox.borrow().clone() else { return 0 };
        let mut inlets = self.inlets.borrow_mut();
        let count = inlets.len();
        let first = self.first_inlet.get();
        self.first_inlet.set(if first + 1 == count { 0 } else { first + 1 });
        let mut taken = 0;
        for offset in 0..count {
            let index =
                if first + offset < count { first + offset } else { first + offset - count };
            let left = limits::MESSAGES_PER_TURN_MAX - taken;
            if left == 0 || inlets[index].ring.is_empty() {
                continue;
            }
            if !inbox.is_ready() {
                break;
            }
            let from = self.endpoint(index);
            let most = left.min(limits::MESSAGES_PER_RING_MAX);
            let took = inlets[index].ring.pop_batch(most, |message| inbox.deliver(from, message));
            if took > 0 {
                self.drained.borrow_mut().push(index);
                taken += took;
            }
        }
        if taken > 0 {
            self.stats.messages_in.add(taken as u64);
        }
        taken
    }
}

impl<M> Poller for MeshCore<M> {
    fn poll(&self) -> usize {
        self.grant_room() + self.deliver()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        // The reactor sleeps on the core's doorbell anyway.
        None
    }

    fn prepare_to_sleep(&self) -> bool {
        let mut asked = false;
        for index in self.waiting.borrow().iter() {
            asked |= self.outlets[*index].borrow().ask_for_room();
        }
        if asked {
            publish();
            if self
                .waiting
                .borrow()
                .iter()
                .any(|index| self.outlets[*index].borrow_mut().can_grant())
            {
                return false;
            }
        }
        let ready = self.inbox.borrow().as_ref().is_some_and(|inbox| inbox.is_ready());
        !ready || self.inlets.borrow_mut().iter_mut().all(|inlet| inlet.ring.is_empty())
    }

    fn end_turn(&self) {
        let mut unrung = self.unrung_list.borrow_mut();
        let mut drained = self.drained.borrow_mut();
        if unrung.is_empty() && drained.is_empty() {
            return;
        }
        publish();
        let mut rung = 0;
        for index in unrung.drain(..) {
            self.unrung[index].set(false);
            rung += u64::from(self.outlets[index].borrow().receiver.ring());
        }
        let inlets = self.inlets.borrow();
        for index in drained.drain(..) {
            rung += u64::from(inlets[index].ring_waiting_sender());
        }
        self.stats.doorbells_rung.add(rung);
    }
}

/// A core's way to send and receive. Stays on its core.
pub struct MeshHandle<M> {
    core: Rc<MeshCore<M>>,
}

impl<M> Clone for MeshHandle<M> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone() }
    }
}

impl<M> MeshHandle<M> {
    /// This core.
    #[must_use]
    pub fn core(&self) -> usize {
        self.core.core
    }

    /// How many cores there are.
    #[must_use]
    pub fn cores(&self) -> usize {
        self.core.cores
    }

    /// How many control ports there are.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.core.outlets.len() - self.core.cores
    }

    /// Has `inbox` take this core's messages from the next turn on. Until then they wait in their
    /// rings.
    pub fn set_inbox(&self, inbox: Rc<dyn Inbox<M>>) {
        *self.core.inbox.borrow_mut() = Some(inbox);
    }

    /// Leaves the mesh: drops the inbox and tells all others that this core has ended. [`crate::Cores`]
    /// does it at a core's end.
    pub fn close(&self) {
        let inbox = self.core.inbox.borrow_mut().take();
        drop(inbox);
        self.core.closed.close();
    }

    /// Sends now or not at all. Messages to the own core go through a ring as well.
    ///
    /// # Errors
    /// [`SendError::Full`] also while others wait for room: they come first.
    #[inline]
    pub fn try_send(&self, to: Endpoint, message: M) -> Result<(), SendError<M>> {
        let index = self.core.index(to);
        let result = self.core.outlets[index].borrow_mut().try_send(message);
        match &result {
            Ok(()) => self.core.sent(index),
            Err(SendError::Full(_)) => self.core.stats.ring_full.add(1),
            Err(SendError::Closed(_)) => {}
        }
        result
    }

    /// Sends, waiting for room if need be, behind those who wait already. Fails only with
    /// [`SendError::Closed`]. Dropping the future drops the message.
    pub fn send(&self, to: Endpoint, message: M) -> Send<M> {
        let index = self.core.index(to);
        Send { core: self.core.clone(), index, message: Some(message), ticket: None }
    }
}

/// The future of [`MeshHandle::send`].
#[must_use = "futures do nothing unless awaited"]
pub struct Send<M> {
    core: Rc<MeshCore<M>>,
    index: usize,
    message: Option<M>,
    ticket: Option<u64>,
}

// The message is moved out, never pinned.
impl<M> Unpin for Send<M> {}

impl<M> Future for Send<M> {
    type Output = Result<(), SendError<M>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut outlet = this.core.outlets[this.index].borrow_mut();
        let message = this.message.take().expect("a future is not polled after it has completed");
        if outlet.receiver.is_closed() {
            return Poll::Ready(Err(SendError::Closed(message)));
        }
        let result = match this.ticket {
            None => outlet.try_send(message),
            Some(ticket) if outlet.waiters.redeem(ticket, context.waker()) => {
                this.ticket = None;
                outlet.ring.push(message).map_err(SendError::Full)
            }
            Some(_) => {
                this.message = Some(message);
                return Poll::Pending;
            }
        };
        match result {
            Ok(()) => {
                this.core.sent(this.index);
                Poll::Ready(Ok(()))
            }
            Err(SendError::Full(message)) => {
                this.core.stats.ring_full.add(1);
                this.message = Some(message);
                this.ticket = Some(outlet.waiters.join(context.waker().clone()));
                let mut waiting = this.core.waiting.borrow_mut();
                if !waiting.contains(&this.index) {
                    waiting.push(this.index);
                }
                Poll::Pending
            }
            Err(closed) => Poll::Ready(Err(closed)),
        }
    }
}

impl<M> Drop for Send<M> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.core.outlets[self.index].borrow_mut().waiters.leave(ticket);
        }
    }
}
