//! Get Log Page (Base 2.0, section 5.16).

use super::Connection;
use crate::backend::Backend;
use crate::controller::{Controller, ControllerKind, EVENT_DISCOVERY, EVENT_NAMESPACES};
use crate::limits::ERROR_LOG_MAX;
use crate::stats::{OperationKind, StatsSnapshot};
use crate::target::Target;
use nvme_spec::command::{AdminCommand, NSID_ALL, admin_opcode, io_opcode};
use nvme_spec::fabrics::{
    DiscoveryLogEntry, DiscoveryLogHeader, ENTRY_PERSISTENT_CONNECTION,
    SUBSYSTEM_CURRENT_DISCOVERY, SUBSYSTEM_NVM,
};
use nvme_spec::feature::FeatureId;
use nvme_spec::log::{
    ChangedNamespaces, CommandEffects, EFFECT_CONTENT_CHANGE, EFFECT_SUPPORTED, ErrorEntry,
    FEATURE_SCOPE_CONTROLLER, FEATURE_SCOPE_NAMESPACE, FEATURE_SUPPORTED, FeatureEffects,
    FirmwareSlotLog, SmartLog, SupportedLogPages, page,
};
use nvme_spec::nqn::fill_ascii_field;
use nvme_spec::{Nqn, Status};
use std::net::SocketAddr;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

impl<B: Backend> Connection<B> {
    pub(super) fn execute_get_log_page(&mut self, index: u16, command: AdminCommand) {
        let AdminCommand::GetLogPage { page, retain_event, offset, len, data, .. } = command else {
            return;
        };
        if len > self.context.target.limits().transfer_len_max() {
            return self.complete(index, 0, Status::INVALID_FIELD);
        }
        let bytes = match self.log_page(page, retain_event) {
            Ok(bytes) => bytes,
            Err(status) => return self.complete(index, 0, status),
        };
        let Some(rest) = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)) else {
            return self.complete(index, 0, Status::INVALID_FIELD);
        };
        // Beyond its end a page reads as zeroes.
        let mut part = vec![0; len as usize];
        let present = rest.len().min(part.len());
        part[..present].copy_from_slice(&rest[..present]);
        self.complete_with_bytes(index, data, &part);
    }

    fn log_page(&mut self, which: u8, retain_event: bool) -> Result<Vec<u8>, Status> {
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let controller = queue.controller.clone();
        let discovery = controller.kind == ControllerKind::Discovery;
        match which {
            page::SUPPORTED => Ok(supported_pages(discovery).as_bytes().to_vec()),
            page::ERROR => Ok(error_log(&controller)),
            page::DISCOVERY if discovery => {
                if !retain_event {
                    self.rearm_event(EVENT_DISCOVERY);
                }
                Ok(discovery_log(&self.context.target, &controller.host_nqn, self.local))
            }
            page::SMART if !discovery => Ok(smart_log(&controller).as_bytes().to_vec()),
            page::FIRMWARE_SLOT if !discovery => {
                let mut log = FirmwareSlotLog::zeroed();
                log.active_slot = 1;
                fill_ascii_field(&mut log.revisions[0], env!("CARGO_PKG_VERSION"));
                Ok(log.as_bytes().to_vec())
            }
            page::CHANGED_NAMESPACES if !discovery => {
                if !retain_event {
                    self.rearm_event(EVENT_NAMESPACES);
                }
                Ok(changed_namespaces(&controller, !retain_event).as_bytes().to_vec())
            }
            page::COMMAND_EFFECTS => Ok(command_effects(discovery).as_bytes().to_vec()),
            page::FEATURE_EFFECTS => Ok(feature_effects(discovery).as_bytes().to_vec()),
            _ => Err(Status::INVALID_LOG_PAGE),
        }
    }
}

fn supported_pages(discovery: bool) -> SupportedLogPages {
    let mut log = SupportedLogPages::zeroed();
    let pages: &[u8] = if discovery {
        &[
            page::SUPPORTED,
            page::ERROR,
            page::COMMAND_EFFECTS,
            page::FEATURE_EFFECTS,
            page::DISCOVERY,
        ]
    } else {
        &[
            page::SUPPORTED,
            page::ERROR,
            page::SMART,
            page::FIRMWARE_SLOT,
            page::CHANGED_NAMESPACES,
            page::COMMAND_EFFECTS,
            page::FEATURE_EFFECTS,
        ]
    };
    for &page in pages {
        log.pages[usize::from(page)] = U32::new(1);
    }
    log
}

fn error_log(controller: &Controller) -> Vec<u8> {
    let (entries, _) = controller.errors();
    let mut bytes = vec![0; ERROR_LOG_MAX * size_of::<ErrorEntry>()];
    for (place, entry) in bytes.chunks_exact_mut(size_of::<ErrorEntry>()).zip(entries) {
        place.copy_from_slice(entry.as_bytes());
    }
    bytes
}

/// The host's view of the volumes: operations of all namespaces of the subsystem. There is no
/// temperature or wear to tell of a virtual controller; spare is full.
fn smart_log(controller: &Controller) -> SmartLog {
    let mut sum = StatsSnapshot::default();
    for namespace in controller.subsystem.namespaces() {
        sum.merge(&namespace.stats.snapshot());
    }
    let (reads, writes) = (sum.of(OperationKind::Read), sum.of(OperationKind::Write));
    let data_units = |bytes: u64| U64::new(bytes.div_ceil(512_000));
    let mut log = SmartLog::zeroed();
    // 0 C; NVMe has no way to say that there is no sensor.
    log.temperature_kelvin = U16::new(273);
    log.available_spare = 100;
    log.available_spare_threshold = 10;
    log.data_units_read[0] = data_units(reads.bytes);
    log.data_units_written[0] = data_units(writes.bytes);
    log.host_reads[0] = U64::new(reads.operations);
    log.host_writes[0] = U64::new(writes.operations);
    log.media_errors[0] = U64::new(reads.errors);
    log.error_log_entries[0] = U64::new(controller.errors().1);
    log
}

fn changed_namespaces(controller: &Controller, clear: bool) -> ChangedNamespaces {
    let mut log = ChangedNamespaces::zeroed();
    match controller.changed_namespaces(clear) {
        Some(nsids) => {
            for (place, nsid) in log.nsids.iter_mut().zip(nsids) {
                *place = U32::new(nsid);
            }
        }
        None => log.nsids[0] = U32::new(NSID_ALL),
    }
    log
}

/// The commands of a controller; a discovery controller has no I/O commands.
fn command_effects(discovery: bool) -> CommandEffects {
    let mut log = CommandEffects::zeroed();
    for opcode in [
        admin_opcode::GET_LOG_PAGE,
        admin_opcode::IDENTIFY,
        admin_opcode::ABORT,
        admin_opcode::SET_FEATURES,
        admin_opcode::GET_FEATURES,
        admin_opcode::ASYNC_EVENT_REQUEST,
        admin_opcode::KEEP_ALIVE,
    ] {
        log.admin[usize::from(opcode)] = U32::new(EFFECT_SUPPORTED);
    }
    if discovery {
        return log;
    }
    for opcode in [io_opcode::FLUSH, io_opcode::READ] {
        log.io[usize::from(opcode)] = U32::new(EFFECT_SUPPORTED);
    }
    for opcode in
        [io_opcode::WRITE, io_opcode::WRITE_ZEROES, io_opcode::DATASET_MANAGEMENT, io_opcode::COPY]
    {
        log.io[usize::from(opcode)] = U32::new(EFFECT_SUPPORTED | EFFECT_CONTENT_CHANGE);
    }
    log
}

/// The features that Get Features knows, and what each is set for (Base 2.1, figure 385). None
/// changes data, namespaces or capabilities.
fn feature_effects(discovery: bool) -> FeatureEffects {
    let both =
        [FeatureId::ASYNC_EVENT_CONFIG, FeatureId::KEEP_ALIVE_TIMER, FeatureId::HOST_IDENTIFIER];
    let io: &[u8] = &[
        FeatureId::ARBITRATION,
        FeatureId::POWER_MANAGEMENT,
        FeatureId::TEMPERATURE_THRESHOLD,
        FeatureId::VOLATILE_WRITE_CACHE,
        FeatureId::NUMBER_OF_QUEUES,
        FeatureId::WRITE_ATOMICITY,
        FeatureId::COMMAND_SET_PROFILE,
    ];
    let mut log = FeatureEffects::zeroed();
    for &id in both.iter().chain(if discovery { &[] } else { io }) {
        log.features[usize::from(id)] = U32::new(FEATURE_SUPPORTED | FEATURE_SCOPE_CONTROLLER);
    }
    if !discovery {
        log.features[usize::from(FeatureId::ERROR_RECOVERY)] =
            U32::new(FEATURE_SUPPORTED | FEATURE_SCOPE_NAMESPACE);
    }
    log
}

/// The discovery log: this discovery subsystem and what `host` may connect to, at every listener.
fn discovery_log(target: &Target, host: &Nqn, local: Option<SocketAddr>) -> Vec<u8> {
    let (generation, subsystems, listeners) = target.discover(host);
    let mut entries = Vec::new();
    for (port_id, &listener) in listeners.iter().enumerate() {
        let address = reachable(listener, local);
        let port_id = port_id as u16 + 1;
        let mut own = DiscoveryLogEntry::tcp(
            &Nqn::discovery(),
            SUBSYSTEM_CURRENT_DISCOVERY,
            address,
            port_id,
        );
        own.entry_flags = U16::new(ENTRY_PERSISTENT_CONNECTION);
        entries.push(own);
        for nqn in &subsystems {
            entries.push(DiscoveryLogEntry::tcp(nqn, SUBSYSTEM_NVM, address, port_id));
        }
    }
    for entry in &mut entries {
        entry.admin_queue_entries_max = U16::new(target.limits().queue_entries_max);
    }
    let mut header = DiscoveryLogHeader::zeroed();
    header.generation = U64::new(generation);
    header.record_count = U64::new(entries.len() as u64);
    let mut bytes = header.as_bytes().to_vec();
    for entry in &entries {
        bytes.extend_from_slice(entry.as_bytes());
    }
    bytes
}

/// A listener on all addresses has none of its own; the host is told the one it asked. `local` is
/// our end of the host's connection.
fn reachable(listener: SocketAddr, local: Option<SocketAddr>) -> SocketAddr {
    match local {
        Some(local) if listener.ip().is_unspecified() => {
            SocketAddr::new(local.ip().to_canonical(), listener.port())
        }
        _ => listener,
    }
}
