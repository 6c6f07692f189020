//! A controller: what its admin queue and its I/O queues, perhaps on other cores, share.
//!
//! ```text
//!   Connect (admin queue) -> disabled --CC.EN=1--> ready --CC.EN=0--> disabled (I/O queues closed)
//!                                                    |--CC.SHN----> shutting down -> shut down
//!   admin connection ends, KATO expires, subsystem removed -> closed: all its queues are cut
//! ```

use crate::limits::{ABORTS_MAX, ERROR_LOG_MAX};
use crate::signal::ConnectionSignal;
use crate::stats::OperationStats;
use crate::subsystem::{Subsystem, lock};
use nvme_spec::Nqn;
use nvme_spec::log::{CHANGED_NAMESPACES_MAX, ErrorEntry};
use nvme_spec::register;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use zerocopy::little_endian::U64;

/// What a controller is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ControllerKind {
    /// Namespaces and I/O.
    Io,
    /// The discovery log.
    Discovery,
}

/// Events that wait for an Asynchronous Event Request: namespace attributes changed.
pub(crate) const EVENT_NAMESPACES: u32 = 1;
/// Events: the discovery log changed.
pub(crate) const EVENT_DISCOVERY: u32 = 2;

/// A request to abort a command of an I/O queue, made by the admin queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AbortRequest {
    /// The command to abort.
    pub(crate) cid: u16,
    /// The admin queue's slot that waits for the answer.
    pub(crate) admin_slot: u16,
}

/// The answer to an [`AbortRequest`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct AbortReply {
    pub(crate) admin_slot: u16,
    pub(crate) aborted: bool,
}

/// A queue of a controller, as others reach it.
#[derive(Debug)]
pub(crate) struct QueueLink {
    pub(crate) queue_id: u16,
    pub(crate) signal: Arc<ConnectionSignal>,
    pub(crate) stats: Arc<OperationStats>,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) aborts: Mutex<Vec<AbortRequest>>,
}

/// A controller.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) id: u16,
    pub(crate) kind: ControllerKind,
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) host_nqn: Nqn,
    pub(crate) host_id: [u8; 16],
    configuration: AtomicU32,
    status: AtomicU32,
    closed: AtomicBool,
    /// A command came since the keep alive timer last looked (TBKAS).
    traffic: AtomicBool,
    events: AtomicU32,
    queues: Mutex<BTreeMap<u16, Arc<QueueLink>>>,
    abort_replies: Mutex<Vec<AbortReply>>,
    changed: Mutex<ChangedNamespaces>,
    errors: Mutex<ErrorLog>,
}

#[derive(Default, Debug)]
struct ChangedNamespaces {
    nsids: BTreeSet<u32>,
    overflow: bool,
}

#[derive(Default, Debug)]
struct ErrorLog {
    entries: VecDeque<ErrorEntry>,
    count: u64,
}

impl Controller {
    pub(crate) fn new(
        id: u16,
        kind: ControllerKind,
        subsystem: Arc<Subsystem>,
        host_nqn: Nqn,
        host_id: [u8; 16],
    ) -> Self {
        Self {
            id,
            kind,
            subsystem,
            host_nqn,
            host_id,
            configuration: AtomicU32::new(0),
            status: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            traffic: AtomicBool::new(false),
            events: AtomicU32::new(0),
            queues: Mutex::default(),
            abort_replies: Mutex::default(),
            changed: Mutex::default(),
            errors: Mutex::default(),
        }
    }

    pub(crate) fn configuration(&self) -> register::Configuration {
        register::Configuration(self.configuration.load(Ordering::Acquire))
    }

    pub(crate) fn set_configuration(&self, value: register::Configuration) {
        self.configuration.store(value.0, Ordering::Release);
    }

    pub(crate) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    pub(crate) fn set_status(&self, value: u32) {
        self.status.store(value, Ordering::Release);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.status() & register::CSTS_READY != 0 && !self.is_closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Cuts all queues. The admin connection, on its core, forgets the controller when it goes.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.notify_queues(|_| true);
    }

    /// Cuts the I/O queues: a controller reset (Base 2.0, section 3.7.2).
    pub(crate) fn close_io_queues(&self) {
        let links: Vec<_> = {
            let mut queues = lock(&self.queues);
            let admin = queues.remove(&0);
            let links = std::mem::take(&mut *queues).into_values().collect();
            queues.extend(admin.map(|link| (0, link)));
            links
        };
        // A queue whose link is gone from the table ends its connection.
        links.iter().for_each(|link: &Arc<QueueLink>| link.signal.notify_control());
    }

    fn notify_queues(&self, wanted: impl Fn(u16) -> bool) {
        for (&id, link) in lock(&self.queues).iter() {
            if wanted(id) {
                link.signal.notify_control();
            }
        }
    }

    /// Adds a queue. False: there is one of that number.
    pub(crate) fn add_queue(&self, link: Arc<QueueLink>) -> bool {
        let mut queues = lock(&self.queues);
        if queues.contains_key(&link.queue_id) {
            return false;
        }
        queues.insert(link.queue_id, link);
        true
    }

    pub(crate) fn remove_queue(&self, link: &Arc<QueueLink>) {
        let mut queues = lock(&self.queues);
        if queues.get(&link.queue_id).is_some_and(|other| Arc::ptr_eq(other, link)) {
            queues.remove(&link.queue_id);
        }
    }

    /// Whether `link` is (still) this controller's queue.
    pub(crate) fn has_queue(&self, link: &Arc<QueueLink>) -> bool {
        lock(&self.queues).get(&link.queue_id).is_some_and(|other| Arc::ptr_eq(other, link))
    }

    pub(crate) fn queues(&self) -> Vec<Arc<QueueLink>> {
        lock(&self.queues).values().cloned().collect()
    }

    /// Notes that a command came. A shared line is written once per keep alive interval only.
    pub(crate) fn note_traffic(&self) {
        if !self.traffic.load(Ordering::Relaxed) {
            self.traffic.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn take_traffic(&self) -> bool {
        self.traffic.swap(false, Ordering::Relaxed)
    }

    /// Notes an event and wakes the admin queue.
    pub(crate) fn raise(&self, event: u32) {
        self.events.fetch_or(event, Ordering::AcqRel);
        self.notify_queues(|id| id == 0);
    }

    pub(crate) fn events(&self) -> u32 {
        self.events.load(Ordering::Acquire)
    }

    pub(crate) fn clear_event(&self, event: u32) {
        self.events.fetch_and(!event, Ordering::AcqRel);
    }

    /// Notes that a namespace changed; all queues look at the namespace map again.
    pub(crate) fn namespace_changed(&self, nsid: u32) {
        {
            let mut changed = lock(&self.changed);
            if changed.nsids.len() < CHANGED_NAMESPACES_MAX {
                changed.nsids.insert(nsid);
            } else if !changed.nsids.contains(&nsid) {
                changed.overflow = true;
            }
        }
        self.events.fetch_or(EVENT_NAMESPACES, Ordering::AcqRel);
        self.notify_queues(|_| true);
    }

    /// The changed namespaces; `None` when there were more than the log holds. Clears them if told.
    pub(crate) fn changed_namespaces(&self, clear: bool) -> Option<Vec<u32>> {
        let mut changed = lock(&self.changed);
        let list = (!changed.overflow).then(|| changed.nsids.iter().copied().collect());
        if clear {
            *changed = ChangedNamespaces::default();
        }
        list
    }

    /// Passes an abort to the queue it concerns. False: there is no such queue, or too many wait.
    pub(crate) fn request_abort(&self, queue_id: u16, request: AbortRequest) -> bool {
        let Some(link) = lock(&self.queues).get(&queue_id).cloned() else { return false };
        let mut aborts = lock(&link.aborts);
        if aborts.len() >= ABORTS_MAX {
            return false;
        }
        aborts.push(request);
        link.signal.notify_control();
        true
    }

    pub(crate) fn reply_abort(&self, reply: AbortReply) {
        lock(&self.abort_replies).push(reply);
        self.notify_queues(|id| id == 0);
    }

    pub(crate) fn take_abort_replies(&self) -> Vec<AbortReply> {
        std::mem::take(&mut *lock(&self.abort_replies))
    }

    pub(crate) fn log_error(&self, mut entry: ErrorEntry) {
        let mut errors = lock(&self.errors);
        errors.count += 1;
        entry.error_count = U64::new(errors.count);
        errors.entries.truncate(ERROR_LOG_MAX - 1);
        errors.entries.push_front(entry);
    }

    /// Errors, newest first, and how many there ever were.
    pub(crate) fn errors(&self) -> (Vec<ErrorEntry>, u64) {
        let errors = lock(&self.errors);
        (errors.entries.iter().copied().collect(), errors.count)
    }
}
