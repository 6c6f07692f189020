//! Identify (Base 2.0, section 5.17).

use super::Connection;
use super::copy::CopyLimits;
use crate::backend::{Backend, Namespace};
use crate::controller::{Controller, ControllerKind};
use crate::limits::{
    ABORTS_MAX, ASYNC_EVENTS_MAX, COPY_RANGES_MAX, ERROR_LOG_MAX, KEEP_ALIVE_GRANULARITY_100MS,
    Limits, NAMESPACES_MAX,
};
use crate::subsystem::SharedNamespace;
use nvme_spec::command::{AdminCommand, NSID_ALL};
use nvme_spec::identify::{self, IDENTIFY_LEN, IdentifyController, IdentifyNamespace, cns};
use nvme_spec::identify::{IndependentNamespace, NvmController, descriptor};
use nvme_spec::nqn::fill_ascii_field;
use nvme_spec::{Status, register};
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Model number of our subsystems.
const MODEL: &str = "Cairn";
/// RTD3E in microseconds: how long a host waits for a shutdown, which flushes.
const SHUTDOWN_TIME_US: u32 = 30_000_000;

impl<B: Backend> Connection<B> {
    pub(super) fn execute_identify(&mut self, index: u16, command: AdminCommand) {
        let AdminCommand::Identify { cns, nsid, cntid, csi, data } = command else { return };
        if (data.len() as usize) < IDENTIFY_LEN {
            return self.complete(index, 0, Status::DATA_SGL_LENGTH_INVALID);
        }
        match self.identify(cns, nsid, cntid, csi) {
            Ok(bytes) => self.complete_with_bytes(index, data, &bytes),
            Err(status) => self.complete(index, 0, status),
        }
    }

    fn identify(&mut self, which: u8, nsid: u32, cntid: u16, csi: u8) -> Result<Vec<u8>, Status> {
        let queue = self.queue.as_ref().ok_or(Status::COMMAND_SEQUENCE_ERROR)?;
        let controller = queue.controller.clone();
        let limits = self.context.target.limits();
        if which == cns::CONTROLLER {
            return Ok(identify_controller(&controller, limits).as_bytes().to_vec());
        }
        if controller.kind == ControllerKind::Discovery {
            return Err(Status::INVALID_FIELD);
        }
        let needs_nvm = matches!(
            which,
            cns::COMMAND_SET_NAMESPACE
                | cns::COMMAND_SET_CONTROLLER
                | cns::COMMAND_SET_ACTIVE_NAMESPACES
        );
        if needs_nvm && csi != identify::CSI_NVM {
            return Err(Status::INVALID_FIELD);
        }
        match which {
            cns::NAMESPACE | cns::ALLOCATED_NAMESPACE => self.identify_namespace(nsid),
            cns::ACTIVE_NAMESPACES
            | cns::ALLOCATED_NAMESPACES
            | cns::COMMAND_SET_ACTIVE_NAMESPACES => namespace_list(&controller, nsid),
            cns::NAMESPACE_DESCRIPTORS => {
                let namespace = controller.subsystem.namespace(nsid);
                Ok(namespace_descriptors(&*namespace.ok_or(Status::INVALID_NAMESPACE)?))
            }
            cns::COMMAND_SET_NAMESPACE => {
                let namespace = controller.subsystem.namespace(nsid);
                namespace.ok_or(Status::INVALID_NAMESPACE)?;
                // No protection information: all fields of the NVM structure are zero.
                Ok(vec![0; IDENTIFY_LEN])
            }
            cns::COMMAND_SET_CONTROLLER => Ok(nvm_controller().as_bytes().to_vec()),
            cns::INDEPENDENT_NAMESPACE => {
                let namespace = controller.subsystem.namespace(nsid);
                let namespace = namespace.ok_or(Status::INVALID_NAMESPACE)?;
                let mut independent = IndependentNamespace::zeroed();
                independent.sharing = 1;
                independent.attributes = u8::from(namespace.read_only.load(Ordering::Acquire));
                independent.status = 1;
                Ok(independent.as_bytes().to_vec())
            }
            cns::CONTROLLERS => {
                let ids: Vec<u16> =
                    controller.subsystem.controllers().iter().map(|c| c.id).collect();
                Ok(controller_list(&ids, cntid))
            }
            cns::COMMAND_SETS => {
                let mut bytes = vec![0; IDENTIFY_LEN];
                // Combination 0: the NVM command set.
                bytes[0] = 1;
                Ok(bytes)
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    fn identify_namespace(&mut self, nsid: u32) -> Result<Vec<u8>, Status> {
        if nsid == 0 || (nsid > NAMESPACES_MAX && nsid != NSID_ALL) {
            return Err(Status::INVALID_NAMESPACE);
        }
        if nsid == NSID_ALL {
            // What all namespaces have in common: the formats (Base 2.0, section 5.17.2.1).
            let mut common = IdentifyNamespace::zeroed();
            common.format_count = 1;
            set_formats(&mut common);
            return Ok(common.as_bytes().to_vec());
        }
        let open = match self.namespace(nsid) {
            Ok(open) => open,
            // An inactive namespace is all zeroes.
            Err(Status::INVALID_NAMESPACE) => return Ok(vec![0; IDENTIFY_LEN]),
            Err(status) => return Err(status),
        };
        let used_bytes = open.backend.used_bytes();
        Ok(namespace_structure(&open.shared, used_bytes).as_bytes().to_vec())
    }
}

fn identify_controller(controller: &Controller, limits: &Limits) -> IdentifyController {
    let mut id = IdentifyController::zeroed();
    let io = controller.kind == ControllerKind::Io;
    fill_ascii_field(&mut id.serial, &controller.subsystem.serial);
    fill_ascii_field(&mut id.model, MODEL);
    fill_ascii_field(&mut id.firmware, env!("CARGO_PKG_VERSION"));
    id.controller_id = U16::new(controller.id);
    id.version = U32::new(register::VERSION_2_0);
    id.mdts = limits.transfer_len_max_log2 - 12;
    id.attributes =
        U32::new(identify::ATTRIBUTE_HOST_ID_128 | identify::ATTRIBUTE_TRAFFIC_KEEP_ALIVE);
    id.controller_type = if io { 1 } else { 2 };
    id.async_event_limit = ASYNC_EVENTS_MAX as u8 - 1;
    id.error_log_entries = ERROR_LOG_MAX as u8 - 1;
    // Not LOG_SCOPES: Linux takes the scope of an I/O command for an effect, and warns of it.
    id.log_page_attributes = identify::LOG_COMMAND_EFFECTS | identify::LOG_EXTENDED_DATA;
    id.keep_alive_100ms = U16::new(KEEP_ALIVE_GRANULARITY_100MS);
    id.commands_max = U16::new(limits.queue_entries_max);
    id.sgl_support = U32::new(identify::SGL_TCP);
    id.subsystem_nqn = controller.subsystem.nqn.to_field();
    if !io {
        id.async_events = U32::new(identify::EVENT_DISCOVERY_CHANGE);
        return id;
    }
    id.multipath = 0b11;
    id.async_events = U32::new(identify::EVENT_NAMESPACE_ATTRIBUTE);
    id.rtd3e = U32::new(SHUTDOWN_TIME_US);
    id.abort_limit = ABORTS_MAX as u8 - 1;
    // One firmware slot, read-only.
    id.firmware_updates = 0b11;
    id.sqe_size = 0x66;
    id.cqe_size = 0x44;
    id.namespace_count = U32::new(NAMESPACES_MAX);
    id.namespaces_max = U32::new(NAMESPACES_MAX);
    id.optional_io =
        U16::new(identify::IO_DATASET_MANAGEMENT | identify::IO_WRITE_ZEROES | identify::IO_COPY);
    id.copy_formats = U16::new(identify::COPY_FORMAT_0);
    // A volatile write cache is present; Flush is for one namespace (bits 2:1 = 10b).
    id.write_cache = 0b101;
    id.io_capsule_16b = U32::new((64 + limits.in_capsule_data_max) / 16);
    id.response_capsule_16b = U32::new(1);
    id.sgl_descriptors_max = 1;
    id
}

fn set_formats(id: &mut IdentifyNamespace) {
    id.formats[0].data_size_log2 = 9;
    id.formats[1].data_size_log2 = 12;
    // Blocks of 4096 bytes are the better ones.
    id.formats[0].performance = 1;
}

fn namespace_structure(namespace: &SharedNamespace, used_bytes: Option<u64>) -> IdentifyNamespace {
    let config = &namespace.config;
    let size_blocks = namespace.size_blocks.load(Ordering::Acquire);
    let used_blocks = used_bytes
        .map_or(size_blocks, |bytes| bytes.div_ceil(1 << config.block_size_log2).min(size_blocks));
    let mut id = IdentifyNamespace::zeroed();
    id.size_blocks = U64::new(size_blocks);
    id.capacity_blocks = U64::new(size_blocks);
    id.used_blocks = U64::new(used_blocks);
    // Thin provisioning if NUSE is known; NAWUN and NAWUPF; optimal I/O hints.
    id.features = u8::from(used_bytes.is_some()) | 1 << 1 | 1 << 4;
    id.format_count = 1;
    id.format = u8::from(config.block_size_log2 == 12);
    set_formats(&mut id);
    id.sharing = 1;
    // Deallocated blocks read as zeroes; Write Zeroes knows DEAC.
    id.deallocate = 0b1001;
    let zero_based = |blocks: u32| U16::new((blocks.clamp(1, 65536) - 1) as u16);
    id.atomic_write_unit = zero_based(config.atomic_write_blocks);
    id.atomic_write_unit_power_fail = zero_based(config.atomic_write_blocks);
    let preferred = zero_based(config.preferred_io_blocks);
    id.preferred_write_granularity = preferred;
    id.preferred_write_alignment = preferred;
    id.preferred_deallocate_granularity = preferred;
    id.preferred_deallocate_alignment = preferred;
    let copy = CopyLimits::new(config.block_size_log2);
    id.copy_range_size_max = U16::new(copy.range_blocks_max);
    id.copy_size_max = U32::new(copy.blocks_max);
    id.copy_ranges_max = (COPY_RANGES_MAX - 1) as u8;
    id.nvm_capacity[0] = U64::new(size_blocks << config.block_size_log2);
    id.attributes = u8::from(namespace.read_only.load(Ordering::Acquire));
    id.nguid = config.nguid;
    id
}

fn namespace_list(controller: &Controller, after: u32) -> Result<Vec<u8>, Status> {
    if after >= 0xffff_fffe {
        return Err(Status::INVALID_NAMESPACE);
    }
    let mut bytes = vec![0; IDENTIFY_LEN];
    let namespaces = controller.subsystem.namespaces();
    let nsids = namespaces.iter().map(|ns| ns.config.nsid).filter(|&nsid| nsid > after);
    for (place, nsid) in bytes.chunks_exact_mut(4).zip(nsids) {
        place.copy_from_slice(&nsid.to_le_bytes());
    }
    Ok(bytes)
}

fn namespace_descriptors(namespace: &SharedNamespace) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IDENTIFY_LEN);
    let config = &namespace.config;
    let identifiers: [(u8, &[u8]); 3] = [
        (descriptor::NGUID, &config.nguid),
        (descriptor::UUID, &config.uuid),
        (descriptor::CSI, &[identify::CSI_NVM]),
    ];
    for (kind, value) in identifiers {
        bytes.extend_from_slice(&[kind, value.len() as u8, 0, 0]);
        bytes.extend_from_slice(value);
    }
    bytes.resize(IDENTIFY_LEN, 0);
    bytes
}

fn nvm_controller() -> NvmController {
    let mut id = NvmController::zeroed();
    // 0 would mean "no limit reported"; 255 of at most 256 ranges is what the field can say.
    id.dsm_ranges_max = u8::MAX;
    id
}

fn controller_list(ids: &[u16], from: u16) -> Vec<u8> {
    let mut bytes = vec![0; IDENTIFY_LEN];
    let wanted: Vec<u16> = ids.iter().copied().filter(|&id| id >= from).take(2047).collect();
    bytes[..2].copy_from_slice(&(wanted.len() as u16).to_le_bytes());
    for (place, id) in bytes[2..].chunks_exact_mut(2).zip(wanted) {
        place.copy_from_slice(&id.to_le_bytes());
    }
    bytes
}
