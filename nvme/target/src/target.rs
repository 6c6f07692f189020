//! The handle with which control threads configure the target and look at it.
//!
//! Lock order: subsystem table, subsystem, controller. Nothing holds a lock while it waits.

use crate::controller::{Controller, EVENT_DISCOVERY};
use crate::limits::{LISTENERS_MAX, Limits, SUBSYSTEMS_MAX};
use crate::signal::CoreSignal;
use crate::stats::StatsSnapshot;
use crate::subsystem::{NamespaceConfig, Subsystem, SubsystemConfig, lock};
use nvme_spec::Nqn;
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Why a change of the configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value breaks a rule, which the text states.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// What should be made is there.
    #[error("it exists")]
    Exists,
    /// What should be changed is not there.
    #[error("it does not exist")]
    NotFound,
    /// As many as the target can have.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// The listener could not be opened.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        cause: std::io::Error,
    },
}

/// A connection of a controller.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Queue: 0 is the admin queue.
    pub queue_id: u16,
    /// The host's address; `None` where there is no socket.
    pub peer: Option<SocketAddr>,
    /// Its counters.
    pub stats: StatsSnapshot,
}

/// A controller, for listings.
#[derive(Clone, Debug)]
pub struct ControllerInfo {
    /// Its subsystem.
    pub subsystem: Nqn,
    /// Its identifier.
    pub id: u16,
    /// The host.
    pub host_nqn: Nqn,
    /// The host's identifier.
    pub host_id: [u8; 16],
    /// CSTS.RDY.
    pub ready: bool,
    /// Its queues.
    pub connections: Vec<ConnectionInfo>,
}

/// What control threads and cores share. Clones name the same target.
#[derive(Clone, Debug)]
pub struct Target {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    discovery: Arc<Subsystem>,
    discovery_generation: AtomicU64,
    subsystems: Mutex<BTreeMap<Nqn, Arc<Subsystem>>>,
    listeners: Mutex<Vec<SocketAddr>>,
    cores: Mutex<Vec<Arc<CoreMailbox>>>,
}

/// How connections and listeners reach a core.
#[derive(Debug)]
pub(crate) struct CoreMailbox {
    pub(crate) signal: Arc<CoreSignal>,
    /// Connections on the core and on their way to it.
    pub(crate) connections: AtomicUsize,
    pub(crate) mail: Mutex<VecDeque<Mail>>,
}

/// What is sent to a core.
#[derive(Debug)]
pub(crate) enum Mail {
    /// A connection that was accepted.
    Connection(TcpStream, SocketAddr),
    /// A listener to accept from.
    Listen(TcpListener, SocketAddr),
    /// A listener to close.
    Unlisten(SocketAddr),
}

impl Target {
    /// A target without subsystems; discovery works from the start.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when the limits do not fit each other.
    pub fn new(limits: Limits) -> Result<Self, ConfigError> {
        limits.check().map_err(ConfigError::Invalid)?;
        let shared = Shared {
            limits,
            discovery: Arc::new(Subsystem::discovery()),
            discovery_generation: AtomicU64::new(1),
            subsystems: Mutex::default(),
            listeners: Mutex::default(),
            cores: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Adds a subsystem.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn add_subsystem(&self, config: SubsystemConfig) -> Result<(), ConfigError> {
        let subsystem = Arc::new(Subsystem::new(config)?);
        {
            let mut subsystems = lock(&self.shared.subsystems);
            if subsystems.contains_key(&subsystem.nqn) {
                return Err(ConfigError::Exists);
            }
            if subsystems.len() >= SUBSYSTEMS_MAX {
                return Err(ConfigError::Limit("4096 subsystems"));
            }
            subsystems.insert(subsystem.nqn.clone(), subsystem);
        }
        self.announce_discovery_change();
        Ok(())
    }

    /// Removes a subsystem and cuts its connections.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn remove_subsystem(&self, nqn: &Nqn) -> Result<(), ConfigError> {
        let subsystem = lock(&self.shared.subsystems).remove(nqn).ok_or(ConfigError::NotFound)?;
        subsystem.remove();
        self.announce_discovery_change();
        Ok(())
    }

    /// Says who may use a subsystem. Hosts that no longer may are disconnected.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn set_hosts(
        &self,
        nqn: &Nqn,
        allow_any_host: bool,
        hosts: Vec<Nqn>,
    ) -> Result<(), ConfigError> {
        self.subsystem(nqn).ok_or(ConfigError::NotFound)?.set_hosts(allow_any_host, hosts);
        self.announce_discovery_change();
        Ok(())
    }

    /// Adds a namespace. Connected hosts are told (namespace attribute notice).
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn add_namespace(&self, nqn: &Nqn, config: NamespaceConfig) -> Result<(), ConfigError> {
        self.subsystem(nqn).ok_or(ConfigError::NotFound)?.add_namespace(config)
    }

    /// Removes a namespace. Connected hosts are told; commands that were started finish, later ones
    /// fail with Invalid Namespace. Each core drops its backend namespace after its last command.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn remove_namespace(&self, nqn: &Nqn, nsid: u32) -> Result<(), ConfigError> {
        self.subsystem(nqn).ok_or(ConfigError::NotFound)?.remove_namespace(nsid)
    }

    /// Tells a namespace's new size, in logical blocks; the volume has it already (growing) or gets
    /// it afterwards (shrinking). Connected hosts are told.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resize_namespace(
        &self,
        nqn: &Nqn,
        nsid: u32,
        size_blocks: u64,
    ) -> Result<(), ConfigError> {
        self.subsystem(nqn).ok_or(ConfigError::NotFound)?.resize_namespace(nsid, size_blocks)
    }

    /// Protects a namespace against writes, or allows them.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn set_read_only(&self, nqn: &Nqn, nsid: u32, read_only: bool) -> Result<(), ConfigError> {
        self.subsystem(nqn).ok_or(ConfigError::NotFound)?.set_read_only(nsid, read_only)
    }

    /// Listens on `address` (port 0: any) and lists it in the discovery log. Cores must exist.
    /// Returns the address with its port.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn add_listener(&self, address: SocketAddr) -> Result<SocketAddr, ConfigError> {
        let core =
            self.least_loaded_core().ok_or(ConfigError::Invalid("the target has no core"))?;
        let failed = |cause| ConfigError::Listen { address, cause };
        {
            let mut listeners = lock(&self.shared.listeners);
            if listeners.len() >= LISTENERS_MAX {
                return Err(ConfigError::Limit("64 listeners"));
            }
            let listener = TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            listeners.push(address);
            core.send(Mail::Listen(listener, address));
            drop(listeners);
            self.announce_discovery_change();
            Ok(address)
        }
    }

    /// Closes a listener. Its connections stay.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn remove_listener(&self, address: SocketAddr) -> Result<(), ConfigError> {
        {
            let mut listeners = lock(&self.shared.listeners);
            let place = listeners.iter().position(|&other| other == address);
            listeners.remove(place.ok_or(ConfigError::NotFound)?);
        }
        for core in lock(&self.shared.cores).iter() {
            core.send(Mail::Unlisten(address));
        }
        self.announce_discovery_change();
        Ok(())
    }

    /// The addresses listened on.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        lock(&self.shared.listeners).clone()
    }

    /// All controllers, discovery controllers too.
    #[must_use]
    pub fn controllers(&self) -> Vec<ControllerInfo> {
        let mut subsystems: Vec<_> = lock(&self.shared.subsystems).values().cloned().collect();
        subsystems.push(Arc::clone(&self.shared.discovery));
        subsystems.iter().flat_map(|s| s.controllers()).map(|c| describe(&c)).collect()
    }

    /// Cuts a controller's connections. The host will try to connect again unless it is not allowed.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn disconnect(&self, nqn: &Nqn, controller_id: u16) -> Result<(), ConfigError> {
        let subsystem = self.subsystem(nqn).ok_or(ConfigError::NotFound)?;
        subsystem.controller(controller_id).ok_or(ConfigError::NotFound)?.close();
        Ok(())
    }

    /// The counters of a namespace, over all cores and since it was added.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`].
    pub fn namespace_stats(&self, nqn: &Nqn, nsid: u32) -> Result<StatsSnapshot, ConfigError> {
        let subsystem = self.subsystem(nqn).ok_or(ConfigError::NotFound)?;
        Ok(subsystem.namespace(nsid).ok_or(ConfigError::NotFound)?.stats.snapshot())
    }

    pub(crate) fn subsystem(&self, nqn: &Nqn) -> Option<Arc<Subsystem>> {
        if *nqn == Nqn::discovery() {
            return Some(Arc::clone(&self.shared.discovery));
        }
        lock(&self.shared.subsystems).get(nqn).cloned()
    }

    /// The subsystems that `host` may use, and the generation of the discovery log.
    pub(crate) fn discover(&self, host: &Nqn) -> (u64, Vec<Nqn>, Vec<SocketAddr>) {
        let generation = self.shared.discovery_generation.load(Ordering::Acquire);
        let subsystems = lock(&self.shared.subsystems);
        let visible = subsystems.values().filter(|s| s.allows(host)).map(|s| s.nqn.clone());
        let visible = visible.collect();
        drop(subsystems);
        (generation, visible, self.listeners())
    }

    fn announce_discovery_change(&self) {
        self.shared.discovery_generation.fetch_add(1, Ordering::AcqRel);
        for controller in self.shared.discovery.controllers() {
            controller.raise(EVENT_DISCOVERY);
        }
    }

    pub(crate) fn add_core(&self, signal: Arc<CoreSignal>) -> Arc<CoreMailbox> {
        let mailbox = Arc::new(CoreMailbox {
            signal,
            connections: AtomicUsize::new(0),
            mail: Mutex::default(),
        });
        lock(&self.shared.cores).push(Arc::clone(&mailbox));
        mailbox
    }

    pub(crate) fn remove_core(&self, mailbox: &Arc<CoreMailbox>) {
        lock(&self.shared.cores).retain(|other| !Arc::ptr_eq(other, mailbox));
    }

    pub(crate) fn least_loaded_core(&self) -> Option<Arc<CoreMailbox>> {
        let cores = lock(&self.shared.cores);
        cores.iter().min_by_key(|core| core.connections.load(Ordering::Relaxed)).cloned()
    }
}

impl CoreMailbox {
    pub(crate) fn send(&self, mail: Mail) {
        lock(&self.mail).push_back(mail);
        self.signal.notify();
    }
}

fn describe(controller: &Controller) -> ControllerInfo {
    let connections = controller.queues().into_iter().map(|link| ConnectionInfo {
        queue_id: link.queue_id,
        peer: link.peer,
        stats: link.stats.snapshot(),
    });
    ControllerInfo {
        subsystem: controller.subsystem.nqn.clone(),
        id: controller.id,
        host_nqn: controller.host_nqn.clone(),
        host_id: controller.host_id,
        ready: controller.is_ready(),
        connections: connections.collect(),
    }
}
