//! Subsystems and their namespaces, as all cores share them.
//!
//! The namespace map changes under a mutex and moves `generation`; connections keep their own copy
//! and look at the generation with one load per command.

use crate::backend::VolumeKey;
use crate::controller::{Controller, ControllerKind};
use crate::limits::{CONTROLLERS_MAX, NAMESPACES_MAX};
use crate::stats::{OperationStats, StatsSnapshot};
use crate::target::ConfigError;
use nvme_spec::Nqn;
use nvme_spec::fabrics::CONTROLLER_ID_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Locks; a thread that panicked with the lock held left nothing half done that matters here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a subsystem is called and who may use it.
#[derive(Clone, Debug)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number: up to 20 printable ASCII characters. The same on every node that offers the
    /// subsystem.
    pub serial: String,
    /// Controller identifiers this node gives out; disjoint ranges let several nodes offer the same
    /// subsystem. Within 1 to 0xFFEF.
    pub controller_ids: RangeInclusive<u16>,
    /// Any host may connect.
    pub allow_any_host: bool,
    /// The hosts that may connect otherwise.
    pub hosts: Vec<Nqn>,
}

impl SubsystemConfig {
    /// A subsystem that any host may use, with all controller identifiers.
    #[must_use]
    pub fn open_to_all(nqn: Nqn, serial: &str) -> Self {
        Self {
            nqn,
            serial: serial.to_owned(),
            controller_ids: 1..=CONTROLLER_ID_MAX,
            allow_any_host: true,
            hosts: Vec::new(),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let serial_ok = (1..=20).contains(&self.serial.len())
            && self.serial.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !serial_ok {
            return Err(ConfigError::Invalid("a serial number has 1 to 20 ASCII characters"));
        }
        let ids = &self.controller_ids;
        if ids.is_empty() || *ids.start() == 0 || *ids.end() > CONTROLLER_ID_MAX {
            return Err(ConfigError::Invalid("controller identifiers lie within 1 and 0xFFEF"));
        }
        if self.nqn == Nqn::discovery() {
            return Err(ConfigError::Invalid("the discovery name is taken"));
        }
        Ok(())
    }
}

/// A namespace of a subsystem.
#[derive(Clone, Debug)]
pub struct NamespaceConfig {
    /// Its identifier, 1 to 1024.
    pub nsid: u32,
    /// The backend's volume.
    pub volume: VolumeKey,
    /// log2 of the logical block size: 9 or 12.
    pub block_size_log2: u8,
    /// Size in logical blocks, at least 1.
    pub size_blocks: u64,
    /// Globally unique identifier, the same on every node; not all zero.
    pub nguid: [u8; 16],
    /// UUID, the same on every node; not all zero.
    pub uuid: [u8; 16],
    /// Writes are refused.
    pub read_only: bool,
    /// Logical blocks that a power failure leaves wholly old or wholly new, 1 or more.
    pub atomic_write_blocks: u32,
    /// Preferred granularity and alignment of writes and deallocations in logical blocks, 1 or more.
    pub preferred_io_blocks: u32,
}

impl NamespaceConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let rules = [
            ((1..=NAMESPACES_MAX).contains(&self.nsid), "a namespace identifier is 1 to 1024"),
            (matches!(self.block_size_log2, 9 | 12), "logical blocks have 512 or 4096 bytes"),
            (self.nguid != [0; 16] && self.uuid != [0; 16], "NGUID and UUID are not zero"),
            (
                (1..=65536).contains(&self.atomic_write_blocks)
                    && (1..=65536).contains(&self.preferred_io_blocks),
                "atomic and preferred units are 1 to 65536 logical blocks",
            ),
        ];
        if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(ConfigError::Invalid(rule));
        }
        check_size(self.size_blocks, self.block_size_log2)
    }
}

fn check_size(size_blocks: u64, block_size_log2: u8) -> Result<(), ConfigError> {
    if size_blocks == 0 || size_blocks > (i64::MAX as u64) >> block_size_log2 {
        return Err(ConfigError::Invalid("a size is 1 block to 2^63 - 1 bytes"));
    }
    Ok(())
}

/// A namespace, as all cores share it.
#[derive(Debug)]
pub(crate) struct SharedNamespace {
    /// Unique in the process, for the cores' caches.
    pub(crate) uid: u64,
    pub(crate) config: NamespaceConfig,
    pub(crate) size_blocks: AtomicU64,
    pub(crate) read_only: AtomicBool,
    pub(crate) stats: NamespaceStats,
}

/// Counters of a namespace: one set per core that uses it, and what dropped sets had counted.
#[derive(Default, Debug)]
pub(crate) struct NamespaceStats {
    inner: Mutex<(StatsSnapshot, Vec<Arc<OperationStats>>)>,
}

impl NamespaceStats {
    pub(crate) fn join(&self) -> Arc<OperationStats> {
        let stats = Arc::new(OperationStats::default());
        lock(&self.inner).1.push(Arc::clone(&stats));
        stats
    }

    pub(crate) fn leave(&self, stats: &Arc<OperationStats>) {
        let mut inner = lock(&self.inner);
        inner.0.add(stats);
        inner.1.retain(|other| !Arc::ptr_eq(other, stats));
    }

    pub(crate) fn snapshot(&self) -> StatsSnapshot {
        let inner = lock(&self.inner);
        let mut sum = inner.0;
        inner.1.iter().for_each(|stats| sum.add(stats));
        sum
    }
}

impl SharedNamespace {
    fn new(config: NamespaceConfig) -> Self {
        static NEXT_UID: AtomicU64 = AtomicU64::new(1);
        Self {
            uid: NEXT_UID.fetch_add(1, Ordering::Relaxed),
            size_blocks: AtomicU64::new(config.size_blocks),
            read_only: AtomicBool::new(config.read_only),
            config,
            stats: NamespaceStats::default(),
        }
    }
}

/// A subsystem, as all cores share it.
#[derive(Debug)]
pub(crate) struct Subsystem {
    pub(crate) nqn: Nqn,
    pub(crate) serial: String,
    kind: ControllerKind,
    controller_ids: RangeInclusive<u16>,
    generation: AtomicU64,
    state: Mutex<SubsystemState>,
}

#[derive(Debug)]
struct SubsystemState {
    removed: bool,
    allow_any_host: bool,
    hosts: BTreeSet<Nqn>,
    namespaces: BTreeMap<u32, Arc<SharedNamespace>>,
    controllers: BTreeMap<u16, Arc<Controller>>,
    next_id: u16,
}

/// Why a host gets no controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    HostNotAllowed,
    NoController,
    Removed,
}

impl Subsystem {
    pub(crate) fn new(config: SubsystemConfig) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self::build(config, ControllerKind::Io))
    }

    pub(crate) fn discovery() -> Self {
        let config = SubsystemConfig::open_to_all(Nqn::discovery(), "cairn-discovery");
        Self::build(config, ControllerKind::Discovery)
    }

    fn build(config: SubsystemConfig, kind: ControllerKind) -> Self {
        let state = SubsystemState {
            removed: false,
            allow_any_host: config.allow_any_host,
            hosts: config.hosts.into_iter().collect(),
            namespaces: BTreeMap::new(),
            controllers: BTreeMap::new(),
            next_id: *config.controller_ids.start(),
        };
        Self {
            nqn: config.nqn,
            serial: config.serial,
            kind,
            controller_ids: config.controller_ids,
            generation: AtomicU64::new(1),
            state: Mutex::new(state),
        }
    }

    /// Moves with every change of the namespace map.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn namespaces(&self) -> Vec<Arc<SharedNamespace>> {
        lock(&self.state).namespaces.values().cloned().collect()
    }

    pub(crate) fn namespace(&self, nsid: u32) -> Option<Arc<SharedNamespace>> {
        lock(&self.state).namespaces.get(&nsid).cloned()
    }

    pub(crate) fn controllers(&self) -> Vec<Arc<Controller>> {
        lock(&self.state).controllers.values().cloned().collect()
    }

    pub(crate) fn controller(&self, id: u16) -> Option<Arc<Controller>> {
        lock(&self.state).controllers.get(&id).cloned()
    }

    pub(crate) fn allows(&self, host: &Nqn) -> bool {
        let state = lock(&self.state);
        !state.removed && (state.allow_any_host || state.hosts.contains(host))
    }

    /// Makes a controller for a host; the next free identifier, in turn, so that one that was just
    /// given up is not given out again at once.
    pub(crate) fn create_controller(
        self: &Arc<Self>,
        host_nqn: &Nqn,
        host_id: [u8; 16],
    ) -> Result<Arc<Controller>, Refusal> {
        let mut state = lock(&self.state);
        if state.removed {
            return Err(Refusal::Removed);
        }
        if !state.allow_any_host && !state.hosts.contains(host_nqn) {
            return Err(Refusal::HostNotAllowed);
        }
        let (first, last) = (*self.controller_ids.start(), *self.controller_ids.end());
        let ids = usize::from(last - first) + 1;
        if state.controllers.len() >= ids.min(CONTROLLERS_MAX) {
            return Err(Refusal::NoController);
        }
        let mut id = state.next_id;
        while state.controllers.contains_key(&id) {
            id = if id == last { first } else { id + 1 };
        }
        state.next_id = if id == last { first } else { id + 1 };
        let controller =
            Arc::new(Controller::new(id, self.kind, Arc::clone(self), host_nqn.clone(), host_id));
        state.controllers.insert(id, Arc::clone(&controller));
        Ok(controller)
    }

    pub(crate) fn forget_controller(&self, id: u16) {
        lock(&self.state).controllers.remove(&id);
    }

    pub(crate) fn set_hosts(&self, allow_any_host: bool, hosts: Vec<Nqn>) {
        let evicted: Vec<_> = {
            let mut state = lock(&self.state);
            state.allow_any_host = allow_any_host;
            state.hosts = hosts.into_iter().collect();
            let state = &*state;
            state
                .controllers
                .values()
                .filter(|c| !allow_any_host && !state.hosts.contains(&c.host_nqn))
                .cloned()
                .collect()
        };
        evicted.iter().for_each(|controller| controller.close());
    }

    pub(crate) fn add_namespace(&self, config: NamespaceConfig) -> Result<(), ConfigError> {
        config.check()?;
        let nsid = config.nsid;
        {
            let mut state = lock(&self.state);
            if state.namespaces.contains_key(&nsid) {
                return Err(ConfigError::Exists);
            }
            state.namespaces.insert(nsid, Arc::new(SharedNamespace::new(config)));
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.announce_change(nsid);
        Ok(())
    }

    pub(crate) fn remove_namespace(&self, nsid: u32) -> Result<(), ConfigError> {
        {
            let mut state = lock(&self.state);
            state.namespaces.remove(&nsid).ok_or(ConfigError::NotFound)?;
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        self.announce_change(nsid);
        Ok(())
    }

    pub(crate) fn resize_namespace(&self, nsid: u32, size_blocks: u64) -> Result<(), ConfigError> {
        let namespace = self.namespace(nsid).ok_or(ConfigError::NotFound)?;
        check_size(size_blocks, namespace.config.block_size_log2)?;
        namespace.size_blocks.store(size_blocks, Ordering::Release);
        self.announce_change(nsid);
        Ok(())
    }

    pub(crate) fn set_read_only(&self, nsid: u32, read_only: bool) -> Result<(), ConfigError> {
        let namespace = self.namespace(nsid).ok_or(ConfigError::NotFound)?;
        namespace.read_only.store(read_only, Ordering::Release);
        self.announce_change(nsid);
        Ok(())
    }

    fn announce_change(&self, nsid: u32) {
        for controller in self.controllers() {
            controller.namespace_changed(nsid);
        }
    }

    /// Lets nobody connect any more and closes what is connected.
    pub(crate) fn remove(&self) {
        lock(&self.state).removed = true;
        self.controllers().iter().for_each(|controller| controller.close());
    }
}
