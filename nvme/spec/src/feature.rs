//! Feature identifiers and the values of those that are more than one number
//! (Base 2.0, section 5.27.1).

/// Feature identifiers.
pub struct FeatureId;

impl FeatureId {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIG: u8 = 0x0b;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR: u8 = 0x16;
    /// I/O Command Set Profile.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Host Identifier.
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

/// Asynchronous Event Configuration: critical warnings of the SMART / Health log (bits 7:0), which no
/// bit of OAES announces: every I/O controller takes them.
pub const AEC_CRITICAL_WARNINGS: u32 = 0xff;
/// Asynchronous Event Configuration: namespace attribute notices.
pub const AEC_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// Asynchronous Event Configuration: discovery log page change notices.
pub const AEC_DISCOVERY_CHANGE: u32 = 1 << 31;

/// DW0 of the completion of an Asynchronous Event Request (Base 2.0, figure 146).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent {
    /// Event type: 2 is a notice.
    pub kind: u8,
    /// Event information.
    pub information: u8,
    /// Log page that tells more, and whose reading re-arms this kind of event.
    pub log_page: u8,
}

impl AsyncEvent {
    /// A namespace was added, removed or changed.
    pub const NAMESPACE_ATTRIBUTE_CHANGED: Self =
        Self { kind: 2, information: 0x00, log_page: 0x04 };
    /// The discovery log page changed.
    pub const DISCOVERY_CHANGED: Self = Self { kind: 2, information: 0xf0, log_page: 0x70 };

    /// The double word.
    #[must_use]
    pub fn to_bits(self) -> u32 {
        u32::from(self.kind) | u32::from(self.information) << 8 | u32::from(self.log_page) << 16
    }
}
