//! Structures of Identify (Base 2.0, section 5.17.2; NVM 1.0, section 4.1.5).

use zerocopy::little_endian::{U16, U32, U64};

/// Bytes of every Identify structure.
pub const IDENTIFY_LEN: usize = 4096;

/// Controller or Namespace Structure: which structure Identify returns (Base 2.0, figure 273).
pub mod cns {
    /// Namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace identifiers.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptors.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Namespace, for an I/O command set.
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    /// Controller, for an I/O command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    /// Active namespace identifiers of an I/O command set.
    pub const COMMAND_SET_ACTIVE_NAMESPACES: u8 = 0x07;
    /// Namespace, independent of the command set.
    pub const INDEPENDENT_NAMESPACE: u8 = 0x08;
    /// Allocated namespace identifiers.
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    /// Allocated namespace.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers of the subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// I/O command set combinations.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Command set identifier of the NVM command set.
pub const CSI_NVM: u8 = 0;

wire! {
    /// Identify Controller (Base 2.0, figure 275); parts we leave zero are reserved here.
    pub struct IdentifyController: 4096 {
        /// PCI vendor; 0 on Fabrics.
        0 => vid: U16,
        /// PCI subsystem vendor.
        2 => ssvid: U16,
        /// Serial number, ASCII.
        4 => serial: [u8; 20],
        /// Model number, ASCII.
        24 => model: [u8; 40],
        /// Firmware revision, ASCII.
        64 => firmware: [u8; 8],
        /// Recommended arbitration burst.
        72 => rab: u8,
        /// IEEE OUI.
        73 => ieee: [u8; 3],
        /// CMIC: bit 0 many ports, bit 1 many controllers, bit 3 ANA.
        76 => multipath: u8,
        /// MDTS: log2 of the largest transfer in memory pages (CAP.MPSMIN); 0 is no limit.
        77 => mdts: u8,
        /// Controller identifier.
        78 => controller_id: U16,
        /// VS again.
        80 => version: U32,
        /// RTD3 resume latency, us.
        84 => rtd3r: U32,
        /// RTD3 entry latency, us: the time a host gives a shutdown.
        88 => rtd3e: U32,
        /// OAES: asynchronous events supported.
        92 => async_events: U32,
        /// CTRATT: controller attributes.
        96 => attributes: U32,
        /// Read recovery levels.
        100 => rrls: U16,
        #[doc(hidden)]
        102 => reserved_102: [u8; 9],
        /// CNTRLTYPE: 1 I/O, 2 discovery.
        111 => controller_type: u8,
        /// FRU identifier.
        112 => fguid: [u8; 16],
        /// Command retry delay times, in 100 ms.
        128 => retry_delays: [U16; 3],
        #[doc(hidden)]
        134 => reserved_134: [u8; 122],
        /// OACS: optional admin commands.
        256 => optional_admin: U16,
        /// ACL: aborts in flight, 0-based.
        258 => abort_limit: u8,
        /// AERL: asynchronous event requests, 0-based.
        259 => async_event_limit: u8,
        /// FRMW.
        260 => firmware_updates: u8,
        /// LPA: log page attributes.
        261 => log_page_attributes: u8,
        /// ELPE: error log entries, 0-based.
        262 => error_log_entries: u8,
        /// NPSS: power states, 0-based.
        263 => power_states: u8,
        /// AVSCC.
        264 => avscc: u8,
        /// APSTA.
        265 => apsta: u8,
        /// Warning temperature, kelvins.
        266 => warning_temperature: U16,
        /// Critical temperature, kelvins.
        268 => critical_temperature: U16,
        #[doc(hidden)]
        270 => reserved_270: [u8; 50],
        /// KAS: granularity of the keep alive timer in 100 ms; 0 is no support.
        320 => keep_alive_100ms: U16,
        #[doc(hidden)]
        322 => reserved_322: [u8; 190],
        /// SQES: log2 of the entry size, required in 3:0 and largest in 7:4.
        512 => sqe_size: u8,
        /// CQES, likewise.
        513 => cqe_size: u8,
        /// MAXCMD: commands in flight per queue.
        514 => commands_max: U16,
        /// NN: greatest namespace identifier.
        516 => namespace_count: U32,
        /// ONCS: optional I/O commands.
        520 => optional_io: U16,
        /// FUSES: fused operations.
        522 => fused: U16,
        /// FNA.
        524 => format_attributes: u8,
        /// VWC: bit 0 a volatile write cache is present, bits 2:1 how Flush treats all namespaces.
        525 => write_cache: u8,
        /// AWUN: atomic write unit, normal, in logical blocks, 0-based.
        526 => atomic_write_unit: U16,
        /// AWUPF: atomic write unit over power failure, 0-based.
        528 => atomic_write_unit_power_fail: U16,
        /// ICSVSCC.
        530 => icsvscc: u8,
        /// NWPC: namespace write protection.
        531 => write_protect: u8,
        /// ACWU.
        532 => acwu: U16,
        /// OCFS: copy formats; bit 0 is format 0.
        534 => copy_formats: U16,
        /// SGLS: SGL support.
        536 => sgl_support: U32,
        /// MNAN: greatest number of namespaces; 0 means NN says it.
        540 => namespaces_max: U32,
        #[doc(hidden)]
        544 => reserved_544: [u8; 224],
        /// SUBNQN, zero-terminated.
        768 => subsystem_nqn: [u8; 256],
        #[doc(hidden)]
        1024 => reserved_1024: [u8; 768],
        /// IOCCSZ: I/O capsule size in 16 bytes, 4 at least.
        1792 => io_capsule_16b: U32,
        /// IORCSZ: response capsule size in 16 bytes: 1.
        1796 => response_capsule_16b: U32,
        /// ICDOFF: offset of in-capsule data, in 16 bytes.
        1800 => in_capsule_offset_16b: U16,
        /// FCATT: bit 0 is 0 for dynamic controllers.
        1802 => fabrics_attributes: u8,
        /// MSDBD: SGL data block descriptors per command.
        1803 => sgl_descriptors_max: u8,
        /// OFCS: bit 0 Disconnect is supported.
        1804 => optional_fabrics: U16,
        #[doc(hidden)]
        1806 => reserved_1806: [u8; 242],
        /// Power state descriptors.
        2048 => power_state_descriptors: [[u8; 32]; 32],
        #[doc(hidden)]
        3072 => vendor: [u8; 1024],
    }
}

/// CTRATT: the controller reports 128-bit host identifiers.
pub const ATTRIBUTE_HOST_ID_128: u32 = 1;
/// CTRATT: any command within the keep alive timeout counts as a keep alive (TBKAS).
pub const ATTRIBUTE_TRAFFIC_KEEP_ALIVE: u32 = 1 << 6;
/// ONCS: Dataset Management.
pub const IO_DATASET_MANAGEMENT: u16 = 1 << 2;
/// ONCS: Write Zeroes.
pub const IO_WRITE_ZEROES: u16 = 1 << 3;
/// ONCS: the save and select fields of features are supported.
pub const IO_FEATURE_SELECT: u16 = 1 << 4;
/// ONCS: Copy.
pub const IO_COPY: u16 = 1 << 8;
/// OCFS: descriptor format 0.
pub const COPY_FORMAT_0: u16 = 1;
/// SGLS: SGLs without alignment (bits 1:0 = 01b), in-capsule offset (20), transport data block (21).
pub const SGL_TCP: u32 = 1 | 1 << 20 | 1 << 21;
/// OAES: namespace attribute notices.
pub const EVENT_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// OAES: discovery log page change notices.
pub const EVENT_DISCOVERY_CHANGE: u32 = 1 << 31;
/// LPA: the Commands Supported and Effects log page is served.
pub const LOG_COMMAND_EFFECTS: u8 = 1 << 1;
/// LPA: Get Log Page takes an offset and 32 bits of length.
pub const LOG_EXTENDED_DATA: u8 = 1 << 2;
/// LPA: the log pages 00h, 12h and 13h are served, and the page of command effects tells the scope of
/// each command. Without the bit, 00h and 12h may be served all the same.
pub const LOG_SCOPES: u8 = 1 << 5;

wire! {
    /// An LBA format (NVM 1.0, figure 98).
    pub struct LbaFormat: 4 {
        /// Metadata bytes.
        0 => metadata_size: U16,
        /// log2 of the data bytes.
        2 => data_size_log2: u8,
        /// Relative performance.
        3 => performance: u8,
    }
}

wire! {
    /// Identify Namespace for the NVM command set (NVM 1.0, figure 97).
    pub struct IdentifyNamespace: 4096 {
        /// NSZE, in logical blocks.
        0 => size_blocks: U64,
        /// NCAP.
        8 => capacity_blocks: U64,
        /// NUSE.
        16 => used_blocks: U64,
        /// NSFEAT: bit 0 thin provisioning, bit 1 NAWUN and NAWUPF, bit 4 optimal I/O hints.
        24 => features: u8,
        /// NLBAF, 0-based.
        25 => format_count: u8,
        /// FLBAS: the format in use.
        26 => format: u8,
        /// MC.
        27 => metadata: u8,
        /// DPC.
        28 => protection_capabilities: u8,
        /// DPS.
        29 => protection: u8,
        /// NMIC: bit 0, several controllers may attach.
        30 => sharing: u8,
        /// RESCAP.
        31 => reservations: u8,
        /// FPI.
        32 => format_progress: u8,
        /// DLFEAT: bits 2:0 = 1, deallocated blocks read zero; bit 3 DEAC of Write Zeroes supported.
        33 => deallocate: u8,
        /// NAWUN: atomic write unit, normal, 0-based.
        34 => atomic_write_unit: U16,
        /// NAWUPF.
        36 => atomic_write_unit_power_fail: U16,
        /// NACWU.
        38 => nacwu: U16,
        /// NABSN.
        40 => nabsn: U16,
        /// NABO.
        42 => nabo: U16,
        /// NABSPF.
        44 => nabspf: U16,
        /// NOIOB: optimal I/O boundary in logical blocks.
        46 => optimal_io_boundary: U16,
        /// NVMCAP, 16 bytes.
        48 => nvm_capacity: [U64; 2],
        /// NPWG: preferred write granularity, 0-based.
        64 => preferred_write_granularity: U16,
        /// NPWA: preferred write alignment, 0-based.
        66 => preferred_write_alignment: U16,
        /// NPDG: preferred deallocate granularity, 0-based.
        68 => preferred_deallocate_granularity: U16,
        /// NPDA: preferred deallocate alignment, 0-based.
        70 => preferred_deallocate_alignment: U16,
        /// NOWS: optimal write size, 0-based.
        72 => optimal_write_size: U16,
        /// MSSRL: logical blocks of a source range of Copy.
        74 => copy_range_size_max: U16,
        /// MCL: logical blocks of a Copy.
        76 => copy_size_max: U32,
        /// MSRC: source ranges of a Copy, 0-based.
        80 => copy_ranges_max: u8,
        #[doc(hidden)]
        81 => reserved_81: [u8; 11],
        /// ANAGRPID.
        92 => ana_group: U32,
        #[doc(hidden)]
        96 => reserved_96: [u8; 3],
        /// NSATTR: bit 0 write protected.
        99 => attributes: u8,
        /// NVMSETID.
        100 => nvm_set: U16,
        /// ENDGID.
        102 => endurance_group: U16,
        /// NGUID.
        104 => nguid: [u8; 16],
        /// EUI64.
        120 => eui64: [u8; 8],
        /// Formats.
        128 => formats: [LbaFormat; 64],
        #[doc(hidden)]
        384 => vendor: [u8; 3712],
    }
}

wire! {
    /// I/O command set independent Identify Namespace (Base 2.0, figure 280).
    pub struct IndependentNamespace: 4096 {
        /// NSFEAT.
        0 => features: u8,
        /// NMIC.
        1 => sharing: u8,
        /// RESCAP.
        2 => reservations: u8,
        /// FPI.
        3 => format_progress: u8,
        /// ANAGRPID.
        4 => ana_group: U32,
        /// NSATTR.
        8 => attributes: u8,
        #[doc(hidden)]
        9 => reserved_9: u8,
        /// NVMSETID.
        10 => nvm_set: U16,
        /// ENDGID.
        12 => endurance_group: U16,
        /// NSTAT: bit 0 ready.
        14 => status: u8,
        #[doc(hidden)]
        15 => reserved_15: [u8; 4081],
    }
}

wire! {
    /// I/O command set specific Identify Controller of the NVM command set (NVM 1.0, figure 102).
    pub struct NvmController: 4096 {
        /// VSL.
        0 => verify_size_limit: u8,
        /// WZSL: log2 of the largest Write Zeroes in memory pages; 0 is no limit.
        1 => write_zeroes_size_limit: u8,
        /// WUSL.
        2 => write_uncorrectable_size_limit: u8,
        /// DMRL: ranges of a Dataset Management; 0 is no limit.
        3 => dsm_ranges_max: u8,
        /// DMRSL: logical blocks of a range.
        4 => dsm_range_size_max: U32,
        /// DMSL: logical blocks of a command.
        8 => dsm_size_max: U64,
        #[doc(hidden)]
        16 => reserved_16: [u8; 4080],
    }
}

/// Types of namespace identification descriptors (Base 2.0, figure 276).
pub mod descriptor {
    /// EUI64, 8 bytes.
    pub const EUI64: u8 = 1;
    /// NGUID, 16 bytes.
    pub const NGUID: u8 = 2;
    /// UUID, 16 bytes.
    pub const UUID: u8 = 3;
    /// Command set identifier, 1 byte.
    pub const CSI: u8 = 4;
}
