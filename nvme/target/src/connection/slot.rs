//! Command slots: the life of a command on its queue.
//!
//! ```text
//!             +-> ReceivingCapsule -+
//!   Free -----+-> AwaitingBudget ---+-> ReceivingData -+-> Running -> Responding -> Free
//!             +------------------------------------------> Parked (AER, Abort)  ----^
//! ```
//! A slot is freed when the last byte of its answer was given to the socket, so a host that honours
//! the queue's size always finds one free.

use crate::backend::{Backend, Namespace};
use crate::connection::namespace::CoreNamespace;
use crate::stats::OperationKind;
use engine_memory::Buffer;
use nvme_spec::fabrics::FabricsCommand;
use nvme_spec::{AdminCommand, IoCommand};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Waker;

/// Where a command is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SlotState {
    Free,
    /// Its in-capsule data arrive.
    ReceivingCapsule,
    /// It waits for room among the bytes in flight.
    AwaitingBudget,
    /// R2T was sent, H2CData arrive.
    ReceivingData,
    /// The backend works on it.
    Running,
    /// It waits for an event (Asynchronous Event Request) or for another queue's answer (Abort).
    Parked,
    /// Its answer waits to be sent.
    Responding,
}

/// A command, parsed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Fabrics(FabricsCommand),
    Admin(AdminCommand),
    Io(IoCommand),
}

type FutureOf<B> = <<B as Backend>::Namespace as Namespace>::Future;

/// A place for one command.
pub(crate) struct Slot<B: Backend> {
    pub(crate) state: SlotState,
    pub(crate) cid: u16,
    pub(crate) kind: OperationKind,
    pub(crate) started_ns: u64,
    pub(crate) work: Option<Work>,
    pub(crate) namespace: Option<Rc<CoreNamespace<B>>>,
    /// Data from the host; `filled` bytes have arrived.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) filled: usize,
    /// Where the command's data begin in `buffer` (offset of the in-capsule SGL).
    pub(crate) data_start: usize,
    /// Bytes of the command's data.
    pub(crate) data_len: u32,
    pub(crate) digest_failed: bool,
    /// Bytes charged to the budget of bytes in flight.
    pub(crate) charged: u64,
    pub(crate) future: Pin<Box<Option<FutureOf<B>>>>,
    pub(crate) waker: Waker,
}

impl<B: Backend> Slot<B> {
    pub(crate) fn new(waker: Waker) -> Self {
        Self {
            state: SlotState::Free,
            cid: 0,
            kind: OperationKind::Admin,
            started_ns: 0,
            work: None,
            namespace: None,
            buffer: None,
            filled: 0,
            data_start: 0,
            data_len: 0,
            digest_failed: false,
            charged: 0,
            future: Box::pin(None),
            waker,
        }
    }

    /// Takes the slot for command `cid`.
    pub(crate) fn occupy(&mut self, cid: u16, now_ns: u64) {
        assert!(self.state == SlotState::Free && self.charged == 0 && self.future.is_none());
        self.cid = cid;
        self.kind = OperationKind::Admin;
        self.started_ns = now_ns;
        self.filled = 0;
        self.data_start = 0;
        self.data_len = 0;
        self.digest_failed = false;
        self.state = SlotState::Running;
    }

    /// Drops what the command held, its budget excepted.
    pub(crate) fn clear(&mut self) {
        self.work = None;
        self.namespace = None;
        self.buffer = None;
    }
}
