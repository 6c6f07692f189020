//! One connection, without its socket: bytes in, commands, bytes out.
//!
//! ```text
//!   Handshake --ICReq--> Connecting --Connect--> Live --+
//!       |                     |                    |     +-- peer gone, controller closed --> Closed
//!       +-- malformed PDU ----+--------------------+--> Terminating --sent, peer gone--> Closed
//! ```
//! The owner calls [`Connection::received`] with bytes, [`Connection::turn`] to let commands go on,
//! and sends what [`Connection::gather`] shows. After Closed the socket is dropped, the connection
//! when [`Connection::is_idle`]: a backend operation is never dropped half way.

mod admin;
mod command;
mod connect;
mod copy;
mod identify;
mod io;
mod log_page;
mod namespace;
mod property;
mod receive;
mod respond;
mod slot;
mod transmit;

pub use namespace::CoreContext;

use crate::backend::Backend;
use crate::controller::{Controller, QueueLink};
use crate::signal::ConnectionSignal;
use crate::stats::OperationStats;
use admin::AdminState;
use namespace::CoreNamespace;
use nvme_spec::pdu::{CommonHeader, DIGEST_DATA, DIGEST_HEADER};
use nvme_spec::pdu::{IcReq, IcResp, MAXH2CDATA_MIN, PduError, Settled, TermReq, kind};
use receive::Receiver;
use slot::{Slot, SlotState};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use transmit::Transmitter;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

/// Where a connection is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Handshake,
    Connecting,
    Live,
    Terminating,
    Closed,
}

/// The queue that a connection became by Connect.
struct Queue {
    id: u16,
    entries: u16,
    flow_control_disabled: bool,
    head: u16,
    controller: Arc<Controller>,
    link: Arc<QueueLink>,
}

/// A connection.
pub struct Connection<B: Backend> {
    context: Rc<CoreContext<B>>,
    signal: Arc<ConnectionSignal>,
    peer: Option<SocketAddr>,
    /// Our end; told to hosts that discover a listener on all addresses.
    local: Option<SocketAddr>,
    now_ns: u64,
    phase: Phase,
    deadline_ns: Option<u64>,
    settled: Option<Settled>,
    host_data_alignment: usize,
    receiver: Receiver,
    transmitter: Transmitter,
    slots: Vec<Slot<B>>,
    free_slots: Vec<u16>,
    running: usize,
    /// Slots that wait for room among the bytes in flight, in order of arrival.
    awaiting_budget: VecDeque<u16>,
    inflight_bytes: u64,
    queue: Option<Queue>,
    admin: Option<Box<AdminState<B>>>,
    namespaces: Vec<(u32, Rc<CoreNamespace<B>>)>,
    namespaces_generation: u64,
    stats: Arc<OperationStats>,
}

impl<B: Backend> Connection<B> {
    /// A new connection on a core.
    #[must_use]
    pub fn new(
        context: Rc<CoreContext<B>>,
        signal: Arc<ConnectionSignal>,
        peer: Option<SocketAddr>,
        now_ns: u64,
    ) -> Self {
        let timeout_ns = context.target.limits().handshake_timeout_ms * 1_000_000;
        let first_slot = Slot::new(signal.waker(0));
        Self {
            context,
            signal,
            peer,
            local: None,
            now_ns,
            phase: Phase::Handshake,
            deadline_ns: Some(now_ns + timeout_ns),
            settled: None,
            host_data_alignment: 4,
            receiver: Receiver::default(),
            transmitter: Transmitter::default(),
            slots: vec![first_slot],
            free_slots: vec![0],
            running: 0,
            awaiting_budget: VecDeque::new(),
            inflight_bytes: 0,
            queue: None,
            admin: None,
            namespaces: Vec::new(),
            namespaces_generation: 0,
            stats: Arc::default(),
        }
    }

    /// Tells our end of the connection.
    pub fn set_local(&mut self, local: Option<SocketAddr>) {
        self.local = local;
    }

    /// Tells the time; everything that happens until the next call happens at `now_ns`.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Lets commands go on that were announced by the connection's signal or wait for room; acts on
    /// deadlines.
    pub fn turn(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        if self.deadline_ns.is_some_and(|deadline| deadline <= now_ns) {
            self.deadline_passed();
        }
        let signal = Arc::clone(&self.signal);
        if signal.take_control() {
            self.look_at_controller();
        }
        signal.take_slots(|slot| self.poll_slot(slot));
        self.admit_waiting();
    }

    /// When [`Connection::turn`] must be called at the latest, if nothing else happens.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.deadline_ns
    }

    /// Whether commands wait for bytes that other connections hold.
    #[must_use]
    pub fn awaits_budget(&self) -> bool {
        !self.awaiting_budget.is_empty()
    }

    /// The socket shall be dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// A fatal error was or is being told to the host; once everything is sent, the sending side of
    /// the socket shall be shut down.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.phase == Phase::Terminating
    }

    /// Nothing runs any more; a closed connection that is idle can be dropped.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn has_output(&self) -> bool {
        !self.transmitter.is_empty()
    }

    /// The next parts to send, in order.
    #[must_use]
    pub fn gather(&self) -> SmallVec<[IoSlice<'_>; 64]> {
        self.transmitter.gather()
    }

    /// Notes that `len` bytes of [`Connection::gather`] were sent.
    pub fn transmitted(&mut self, len: usize) {
        let mut freed: SmallVec<[u16; 64]> = SmallVec::new();
        self.transmitter.advance(len, |slot| freed.push(slot));
        for slot in freed {
            self.free_slot(slot);
        }
    }

    /// The peer is gone, or shall be.
    pub fn disconnected(&mut self) {
        if self.phase == Phase::Closed {
            return;
        }
        self.phase = Phase::Closed;
        self.deadline_ns = None;
        self.receiver.discard_all();
        self.abandon_commands();
        self.leave_controller();
        self.namespaces.clear();
    }

    /// Tells the host a fatal error and ends the connection (TCP 1.0, section 3.5).
    fn terminate(&mut self, error: PduError, header: &[u8]) {
        if matches!(self.phase, Phase::Terminating | Phase::Closed) {
            return;
        }
        tracing::warn!(peer = ?self.peer, %error, "malformed PDU, connection terminated");
        self.transmitter.push_bytes(&TermReq::to_host(error, header));
        self.phase = Phase::Terminating;
        let linger_ns = self.context.target.limits().linger_timeout_ms * 1_000_000;
        self.deadline_ns = Some(self.now_ns + linger_ns);
        self.receiver.discard_all();
        self.leave_controller();
    }

    /// Gives up what is not with the backend.
    fn abandon_commands(&mut self) {
        self.awaiting_budget.clear();
        for slot in self.transmitter.clear() {
            self.free_slot(slot);
        }
        for index in 0..self.slots.len() {
            if !matches!(self.slots[index].state, SlotState::Free | SlotState::Running) {
                self.free_slot(index as u16);
            }
        }
    }

    fn leave_controller(&mut self) {
        self.admin = None;
        let Some(queue) = self.queue.take() else { return };
        queue.controller.remove_queue(&queue.link);
        if queue.id == 0 {
            queue.controller.close();
            queue.controller.subsystem.forget_controller(queue.controller.id);
        }
    }

    /// ICReq (TCP 1.0, section 3.6.2.2).
    fn initialize(&mut self, request: &IcReq) {
        let limits = self.context.target.limits();
        let h2c_data_max = limits.transfer_len_max().max(MAXH2CDATA_MIN);
        let digests = request.digests & (DIGEST_HEADER | DIGEST_DATA);
        let settled = Settled {
            header_digest: digests & DIGEST_HEADER != 0,
            data_digest: digests & DIGEST_DATA != 0,
            in_capsule_max: limits.in_capsule_data_max,
            h2c_data_max,
        };
        self.host_data_alignment = (usize::from(request.data_alignment) + 1) * 4;
        let mut response = IcResp::zeroed();
        response.common = CommonHeader::new(kind::IC_RESP, 0, 128, 0, 0, (false, false));
        response.format_version = U16::ZERO;
        response.digests = digests;
        response.h2c_data_max = U32::new(h2c_data_max);
        self.transmitter.push_bytes(response.as_bytes());
        self.settled = Some(settled);
        self.phase = Phase::Connecting;
    }

    fn deadline_passed(&mut self) {
        match self.phase {
            Phase::Live => self.keep_alive_due(),
            Phase::Handshake | Phase::Connecting | Phase::Terminating => {
                tracing::debug!(peer = ?self.peer, phase = ?self.phase, "connection timed out");
                self.disconnected();
            }
            Phase::Closed => self.deadline_ns = None,
        }
    }

    /// The controller, the subsystem or another queue asked for attention.
    fn look_at_controller(&mut self) {
        let Some(queue) = &self.queue else { return };
        let cut = queue.controller.is_closed() || !queue.controller.has_queue(&queue.link);
        if cut {
            self.disconnected();
            return;
        }
        let is_admin = queue.id == 0;
        if is_admin {
            self.look_at_events();
        } else {
            self.answer_aborts();
        }
        self.refresh_namespaces();
    }
}

impl<B: Backend> Drop for Connection<B> {
    fn drop(&mut self) {
        self.disconnected();
        for slot in &mut self.slots {
            self.context.release(std::mem::take(&mut slot.charged));
        }
    }
}
