//! The target on one core: its sockets, their epoll descriptor and its connections.
//!
//! The owner (a reactor, or a plain loop) calls [`TargetCore::poll`] in every turn. To sleep it calls
//! [`TargetCore::prepare_to_sleep`] and, if told so, waits until [`TargetCore::wake_fd`] is readable or
//! [`TargetCore::next_deadline_ns`] has come, then calls `poll` again.
//!
//! Sockets are watched edge-triggered: a connection is looked at when an event, a waker or a deadline
//! says so, and stays on the list of active ones as long as its socket had more.

use crate::backend::Backend;
use crate::connection::{Connection, CoreContext};
use crate::signal::{ConnectionSignal, CoreSignal};
use crate::socket::{Progress, Socket};
use crate::subsystem::lock;
use crate::target::{CoreMailbox, Mail, Target};
use engine_base::runtime::Runtime;
use engine_memory::alloc_scope;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const EVENT_TOKEN: u64 = u64::MAX;
const LISTENER_TOKEN: u64 = 1 << 32;
/// Events taken from epoll per turn.
const EVENTS_MAX: usize = 64;
/// Receives on one connection per turn, so that a busy one does not starve the others.
const RECEIVES_MAX: usize = 4;
/// Gathered sends on one connection per turn.
const SENDS_MAX: usize = 8;
/// Connections accepted per listener and turn.
const ACCEPTS_MAX: usize = 16;
/// How long a listener rests after accept failed (no descriptors, no memory).
const ACCEPT_PAUSE_NS: u64 = 1_000_000_000;

/// A core could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up a target core: {what}: {cause}")]
pub struct CoreError {
    what: &'static str,
    cause: std::io::Error,
}

struct Entry<B: Backend> {
    connection: Connection<B>,
    socket: Option<Socket>,
    readable: bool,
    writable: bool,
    /// The peer's end was announced: read until it shows.
    hangup: bool,
    sending_shut: bool,
    active: bool,
}

struct Listening {
    listener: TcpListener,
    address: SocketAddr,
    paused_until_ns: u64,
}

/// The target on one core. Not `Send`.
pub struct TargetCore<B: Backend> {
    context: Rc<CoreContext<B>>,
    runtime: Rc<dyn Runtime>,
    mailbox: Arc<CoreMailbox>,
    signal: Arc<CoreSignal>,
    epoll: OwnedFd,
    entries: Vec<Option<Entry<B>>>,
    free: Vec<usize>,
    active: Vec<usize>,
    /// The list being served; kept for its memory.
    serving: Vec<usize>,
    listeners: Vec<Listening>,
    next_deadline_ns: u64,
}

impl<B: Backend> TargetCore<B> {
    /// Sets up the target on the calling core.
    ///
    /// # Errors
    /// [`CoreError`] when the kernel gives no epoll or event descriptor.
    pub fn new(target: &Target, backend: B, runtime: Rc<dyn Runtime>) -> Result<Self, CoreError> {
        let failed = |what| move |cause: rustix::io::Errno| CoreError { what, cause: cause.into() };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(failed("eventfd"))?;
        epoll::add(&epoll, &event, EventData::new_u64(EVENT_TOKEN), EventFlags::IN)
            .map_err(failed("epoll_ctl"))?;
        let capacity = target.limits().connections_per_core_max;
        let signal = Arc::new(CoreSignal::new(capacity, Some(event)));
        Ok(Self {
            context: CoreContext::new(target.clone(), backend),
            runtime,
            mailbox: target.add_core(Arc::clone(&signal)),
            signal,
            epoll,
            entries: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            serving: Vec::new(),
            listeners: Vec::new(),
            next_deadline_ns: u64::MAX,
        })
    }

    /// Does what there is to do; returns how many connections, events and messages it served. Zero
    /// means that nothing was to be done.
    pub fn poll(&mut self) -> usize {
        let _scope = alloc_scope!("nvme target");
        let now_ns = self.runtime.now_ns();
        self.signal.awake();
        let mut work = self.take_signals(now_ns);
        work += self.take_events(now_ns);
        if self.context.budget_released.take() {
            self.activate_where(|entry| entry.connection.awaits_budget());
        }
        if now_ns >= self.next_deadline_ns {
            self.deadlines_passed(now_ns);
        }
        let mut serving = std::mem::take(&mut self.serving);
        std::mem::swap(&mut serving, &mut self.active);
        work += serving.len();
        for index in serving.drain(..) {
            self.serve(index, now_ns);
        }
        self.serving = serving;
        work
    }

    /// The descriptor to wait on: readable when there is something to do.
    #[must_use]
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Announces that the owner is going to wait. False: there is work, poll instead.
    pub fn prepare_to_sleep(&mut self) -> bool {
        self.active.is_empty() && !self.context.budget_released.get() && {
            self.signal.prepare_to_sleep()
        }
    }

    /// When `poll` must be called at the latest, in the runtime's nanoseconds.
    #[must_use]
    pub fn next_deadline_ns(&self) -> Option<u64> {
        (self.next_deadline_ns != u64::MAX).then_some(self.next_deadline_ns)
    }

    /// Connections of this core, those that are being torn down included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Cuts all connections and closes the listeners; `poll` until [`TargetCore::connections`] is 0
    /// to let running operations end.
    pub fn shut_down(&mut self) {
        self.listeners.clear();
        self.context.target.remove_core(&self.mailbox);
        for entry in self.entries.iter_mut().flatten() {
            entry.connection.disconnected();
        }
        self.activate_where(|_| true);
    }

    fn activate(&mut self, index: usize) {
        if let Some(Some(entry)) = self.entries.get_mut(index)
            && !entry.active
        {
            entry.active = true;
            self.active.push(index);
        }
    }

    fn activate_where(&mut self, wanted: impl Fn(&Entry<B>) -> bool) {
        for index in 0..self.entries.len() {
            if self.entries[index].as_ref().is_some_and(&wanted) {
                self.activate(index);
            }
        }
    }

    fn take_signals(&mut self, now_ns: u64) -> usize {
        let mut announced = Vec::new();
        let signal = Arc::clone(&self.signal);
        if !signal.take(|index| announced.push(index)) {
            return 0;
        }
        for index in announced {
            self.activate(index);
        }
        let mail = std::mem::take(&mut *lock(&self.mailbox.mail));
        let count = mail.len();
        for letter in mail {
            match letter {
                Mail::Connection(stream, peer) => self.adopt(stream, peer, now_ns),
                Mail::Listen(listener, address) => self.listen(listener, address),
                Mail::Unlisten(address) => self.listeners.retain(|l| l.address != address),
            }
        }
        count + 1
    }

    fn take_events(&mut self, now_ns: u64) -> usize {
        let mut buffer = [MaybeUninit::uninit(); EVENTS_MAX];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut seen = [(0, EventFlags::empty()); EVENTS_MAX];
        let count = match epoll::wait(&self.epoll, &mut buffer, Some(&no_wait)) {
            Ok((events, _)) => {
                for (place, event) in seen.iter_mut().zip(events.iter()) {
                    *place = (event.data.u64(), event.flags);
                }
                events.len()
            }
            // EINTR: the next turn looks again.
            Err(_) => 0,
        };
        for &(token, flags) in &seen[..count] {
            match token {
                EVENT_TOKEN => self.drain_event(),
                LISTENER_TOKEN.. => self.accept(now_ns),
                index => self.socket_event(index as usize, flags),
            }
        }
        count
    }

    fn drain_event(&self) {
        if let Some(event) = self.signal.event() {
            let mut count = [0; 8];
            // EAGAIN: another turn emptied it.
            let _ = rustix::io::read(event, &mut count);
        }
    }

    fn socket_event(&mut self, index: usize, flags: EventFlags) {
        if let Some(Some(entry)) = self.entries.get_mut(index) {
            let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            entry.hangup |= flags.intersects(ends);
            entry.readable |= flags.intersects(EventFlags::IN | ends);
            entry.writable |= flags.contains(EventFlags::OUT);
            self.activate(index);
        }
    }

    fn listen(&mut self, listener: TcpListener, address: SocketAddr) {
        let data = EventData::new_u64(LISTENER_TOKEN);
        match epoll::add(&self.epoll, &listener, data, EventFlags::IN) {
            Ok(()) => {
                tracing::info!(%address, "listening for NVMe/TCP");
                self.listeners.push(Listening { listener, address, paused_until_ns: 0 });
            }
            Err(cause) => tracing::error!(%address, %cause, "cannot watch the listener"),
        }
    }

    /// Accepts what waits and hands each connection to the core that has fewest.
    fn accept(&mut self, now_ns: u64) {
        let mut accepted = Vec::new();
        for listening in self.listeners.iter_mut().filter(|l| l.paused_until_ns <= now_ns) {
            for _ in 0..ACCEPTS_MAX {
                match listening.listener.accept() {
                    Ok(connection) => accepted.push(connection),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        tracing::warn!(address = %listening.address, %error, "accept failed");
                        listening.paused_until_ns = now_ns + ACCEPT_PAUSE_NS;
                        // Level-triggered, it would keep the core awake.
                        let _ = epoll::delete(&self.epoll, &listening.listener);
                        self.next_deadline_ns =
                            self.next_deadline_ns.min(listening.paused_until_ns);
                        break;
                    }
                }
            }
        }
        for (stream, peer) in accepted {
            let Some(core) = self.context.target.least_loaded_core() else { return };
            let limit = self.context.target.limits().connections_per_core_max;
            if core.connections.load(Ordering::Relaxed) >= limit {
                tracing::warn!(%peer, limit, "all cores have all the connections they may have");
                continue;
            }
            core.connections.fetch_add(1, Ordering::Relaxed);
            if Arc::ptr_eq(&core, &self.mailbox) {
                self.adopt(stream, peer, now_ns);
            } else {
                core.send(Mail::Connection(stream, peer));
            }
        }
    }

    /// Makes a connection of this core; the mailbox counts it already.
    fn adopt(&mut self, stream: TcpStream, peer: SocketAddr, now_ns: u64) {
        let _scope = alloc_scope!("nvme connections");
        let index = self.free.pop().unwrap_or(self.entries.len());
        let watched = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let socket = Socket::new(stream).and_then(|socket| {
            epoll::add(&self.epoll, &socket, EventData::new_u64(index as u64), watched)?;
            Ok(socket)
        });
        let entry = match socket {
            Ok(socket) => {
                let slots = usize::from(self.context.target.limits().queue_entries_max);
                let signal = ConnectionSignal::new(Arc::clone(&self.signal), index, slots);
                let mut connection =
                    Connection::new(Rc::clone(&self.context), signal, Some(peer), now_ns);
                connection.set_local(socket.local_addr());
                Some(Entry {
                    connection,
                    socket: Some(socket),
                    readable: true,
                    writable: true,
                    hangup: false,
                    sending_shut: false,
                    active: false,
                })
            }
            Err(error) => {
                tracing::warn!(%peer, %error, "cannot set up the connection");
                None
            }
        };
        let failed = entry.is_none();
        if index == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries[index] = entry;
        }
        if failed {
            self.free.push(index);
            self.mailbox.connections.fetch_sub(1, Ordering::Relaxed);
        } else {
            self.activate(index);
        }
    }

    fn deadlines_passed(&mut self, now_ns: u64) {
        for listening in self.listeners.iter_mut().filter(|l| l.paused_until_ns > 0) {
            if listening.paused_until_ns <= now_ns {
                listening.paused_until_ns = 0;
                let data = EventData::new_u64(LISTENER_TOKEN);
                let _ = epoll::add(&self.epoll, &listening.listener, data, EventFlags::IN);
            }
        }
        self.activate_where(|entry| {
            entry.connection.deadline_ns().is_some_and(|deadline| deadline <= now_ns)
        });
        let connections = self.entries.iter().flatten().filter_map(|e| e.connection.deadline_ns());
        let listeners = self.listeners.iter().map(|l| l.paused_until_ns).filter(|&ns| ns > 0);
        let next = connections.chain(listeners).filter(|&ns| ns > now_ns).min();
        self.next_deadline_ns = next.unwrap_or(u64::MAX);
    }

    /// Serves one connection: receive, let commands go on, send, clean up.
    fn serve(&mut self, index: usize, now_ns: u64) {
        let Some(Some(entry)) = self.entries.get_mut(index) else { return };
        entry.active = false;
        entry.connection.set_now(now_ns);
        entry.receive();
        entry.connection.turn(now_ns);
        entry.send();
        if entry.connection.is_closed() {
            // Dropping the socket takes it out of epoll.
            entry.socket = None;
            if entry.connection.is_idle() {
                self.entries[index] = None;
                self.free.push(index);
                self.mailbox.connections.fetch_sub(1, Ordering::Relaxed);
            }
            return;
        }
        if let Some(deadline) = entry.connection.deadline_ns() {
            self.next_deadline_ns = self.next_deadline_ns.min(deadline);
        }
        if entry.readable || (entry.writable && entry.connection.has_output()) {
            self.activate(index);
        }
    }
}

impl<B: Backend> Entry<B> {
    fn receive(&mut self) {
        let Some(socket) = &self.socket else { return };
        for _ in 0..RECEIVES_MAX {
            if !self.readable || self.connection.is_closed() {
                return;
            }
            let buffers = self.connection.receive_buffers();
            let room = buffers[0].len() + buffers[1].len();
            match socket.receive(buffers) {
                Progress::Bytes(len) => {
                    // Less than there was room for: the socket is empty, unless its end is near.
                    self.readable = len == room || self.hangup;
                    self.connection.received(len);
                }
                Progress::WouldBlock => self.readable = false,
                Progress::Gone => {
                    self.readable = false;
                    self.connection.disconnected();
                }
            }
        }
    }

    fn send(&mut self) {
        let Some(socket) = &self.socket else { return };
        for _ in 0..SENDS_MAX {
            if !self.writable || !self.connection.has_output() || self.connection.is_closed() {
                break;
            }
            let progress = socket.send(&self.connection.gather());
            match progress {
                Progress::Bytes(len) => self.connection.transmitted(len),
                Progress::WouldBlock => self.writable = false,
                Progress::Gone => self.connection.disconnected(),
            }
        }
        let told = self.connection.is_terminating() && !self.connection.has_output();
        if told && !self.sending_shut {
            socket.shut_down_sending();
            self.sending_shut = true;
        }
    }
}

impl<B: Backend> Drop for TargetCore<B> {
    fn drop(&mut self) {
        self.context.target.remove_core(&self.mailbox);
    }
}
