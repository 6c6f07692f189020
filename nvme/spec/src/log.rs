//! Log pages (Base 2.0, section 5.16.1). Each reads at any offset; the target cuts the part asked for.

use zerocopy::little_endian::{U16, U32, U64};

/// Log page identifiers.
pub mod page {
    /// Supported Log Pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const SMART: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE_SLOT: u8 = 0x03;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const COMMAND_EFFECTS: u8 = 0x05;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURE_EFFECTS: u8 = 0x12;
    /// Discovery.
    pub const DISCOVERY: u8 = 0x70;
}

wire! {
    /// An entry of the error log (Base 2.0, figure 206).
    pub struct ErrorEntry: 64 {
        /// Number of this error, from 1; 0 is an empty entry.
        0 => error_count: U64,
        /// Queue of the command.
        8 => sqid: U16,
        /// The command.
        10 => cid: U16,
        /// Status field of its completion.
        12 => status: U16,
        /// Byte and bit of the offending parameter; 0xFFFF is unknown.
        14 => parameter_location: U16,
        /// First logical block of the command.
        16 => lba: U64,
        /// Namespace.
        24 => nsid: U32,
        #[doc(hidden)]
        28 => reserved_28: [u8; 36],
    }
}

wire! {
    /// SMART / Health Information (Base 2.0, figure 207). The 16-byte counters are split in halves.
    pub struct SmartLog: 512 {
        /// Critical warnings.
        0 => critical_warning: u8,
        /// Composite temperature in kelvins.
        1 => temperature_kelvin: U16,
        /// Available spare, percent.
        3 => available_spare: u8,
        /// Available spare threshold, percent.
        4 => available_spare_threshold: u8,
        /// Percentage used.
        5 => percentage_used: u8,
        #[doc(hidden)]
        6 => reserved_6: [u8; 26],
        /// Data read, in thousands of 512 bytes, rounded up.
        32 => data_units_read: [U64; 2],
        /// Data written, in thousands of 512 bytes, rounded up.
        48 => data_units_written: [U64; 2],
        /// Read commands.
        64 => host_reads: [U64; 2],
        /// Write commands.
        80 => host_writes: [U64; 2],
        /// Controller busy time.
        96 => busy_minutes: [U64; 2],
        /// Power cycles.
        112 => power_cycles: [U64; 2],
        /// Power on hours.
        128 => power_on_hours: [U64; 2],
        /// Unsafe shutdowns.
        144 => unsafe_shutdowns: [U64; 2],
        /// Media and data integrity errors.
        160 => media_errors: [U64; 2],
        /// Entries ever written to the error log.
        176 => error_log_entries: [U64; 2],
        #[doc(hidden)]
        192 => reserved_192: [u8; 320],
    }
}

wire! {
    /// Firmware Slot Information (Base 2.0, figure 208).
    pub struct FirmwareSlotLog: 512 {
        /// Active firmware slot: 1.
        0 => active_slot: u8,
        #[doc(hidden)]
        1 => reserved_1: [u8; 7],
        /// Revision in each of seven slots.
        8 => revisions: [[u8; 8]; 7],
        #[doc(hidden)]
        64 => reserved_64: [u8; 448],
    }
}

/// Entries of the changed namespace list.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

wire! {
    /// Changed Namespace List (Base 2.0, section 5.16.1.5): ascending, zero-filled; the first entry is
    /// [`crate::command::NSID_ALL`] when there are more than fit.
    pub struct ChangedNamespaces: 4096 {
        /// Namespaces.
        0 => nsids: [U32; CHANGED_NAMESPACES_MAX],
    }
}

wire! {
    /// Commands Supported and Effects (Base 2.0, figure 211): CSUPP is bit 0, LBCC bit 1, and so on.
    pub struct CommandEffects: 4096 {
        /// Admin commands.
        0 => admin: [U32; 256],
        /// I/O commands.
        1024 => io: [U32; 256],
        #[doc(hidden)]
        2048 => reserved: [u8; 2048],
    }
}

/// CSUPP: the command is supported.
pub const EFFECT_SUPPORTED: u32 = 1;
/// LBCC: the command may change logical block content.
pub const EFFECT_CONTENT_CHANGE: u32 = 1 << 1;

wire! {
    /// Feature Identifiers Supported and Effects (Base 2.1, section 5.1.12.1.18): bit 0 says that a
    /// feature is supported, bits 31:20 are its scope.
    pub struct FeatureEffects: 1024 {
        /// A descriptor for each feature.
        0 => features: [U32; 256],
    }
}

/// FSUPP: the feature is supported.
pub const FEATURE_SUPPORTED: u32 = 1;
/// FSP: the feature is set for a namespace.
pub const FEATURE_SCOPE_NAMESPACE: u32 = 1 << 20;
/// FSP: the feature is set for a controller.
pub const FEATURE_SCOPE_CONTROLLER: u32 = 1 << 21;

wire! {
    /// Supported Log Pages (Base 2.0, figure 204): bit 0 says that a page is supported.
    pub struct SupportedLogPages: 1024 {
        /// A descriptor for each page.
        0 => pages: [U32; 256],
    }
}
