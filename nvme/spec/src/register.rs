//! Controller properties (Base 2.0, section 3.1.3). On Fabrics they are reached by Property Get and Set.

/// Offset of CAP, 8 bytes.
pub const CAP: u32 = 0x00;
/// Offset of VS, 4 bytes.
pub const VS: u32 = 0x08;
/// Offset of CC, 4 bytes.
pub const CC: u32 = 0x14;
/// Offset of CSTS, 4 bytes.
pub const CSTS: u32 = 0x1c;
/// Offset of NSSR, 4 bytes.
pub const NSSR: u32 = 0x20;
/// Offset of CRTO, 4 bytes.
pub const CRTO: u32 = 0x68;

/// Version 2.0.0 as VS and Identify tell it.
pub const VERSION_2_0: u32 = 0x0002_0000;

/// Controller Capabilities (Base 2.0, section 3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Entries of the largest queue, 2 to 65536.
    pub queue_entries_max: u32,
    /// Longest time to become ready, in units of 500 ms.
    pub timeout_500ms: u8,
}

impl Capabilities {
    /// The 64-bit property: contiguous queues, the NVM command set, I/O command set selection, 4 KiB
    /// pages, "controller ready with media".
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from((self.queue_entries_max.clamp(2, 65536) - 1) as u16)
            | 1 << 16
            | u64::from(self.timeout_500ms) << 24
            | 1 << 37
            | 1 << 43
            | 1 << 59
    }
}

/// Controller Configuration (Base 2.0, section 3.1.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// CC.EN.
    #[must_use]
    pub fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// CC.CSS: 0 is the NVM command set, 6 all supported I/O command sets.
    #[must_use]
    pub fn command_sets(self) -> u8 {
        ((self.0 >> 4) & 7) as u8
    }

    /// log2 of the memory page size in bytes (CC.MPS + 12).
    #[must_use]
    pub fn page_size_log2(self) -> u32 {
        ((self.0 >> 7) & 0xf) + 12
    }

    /// CC.SHN is a normal (1) or abrupt (2) shutdown.
    #[must_use]
    pub fn shutdown(self) -> bool {
        matches!((self.0 >> 14) & 3, 1 | 2)
    }

    /// log2 of the submission queue entry size (CC.IOSQES).
    #[must_use]
    pub fn sqe_size_log2(self) -> u8 {
        ((self.0 >> 16) & 0xf) as u8
    }

    /// log2 of the completion queue entry size (CC.IOCQES).
    #[must_use]
    pub fn cqe_size_log2(self) -> u8 {
        ((self.0 >> 20) & 0xf) as u8
    }
}

/// CSTS.RDY (Base 2.0, section 3.1.3.6).
pub const CSTS_READY: u32 = 1;
/// CSTS.CFS: controller fatal status.
pub const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST: shutdown is being processed.
pub const CSTS_SHUTDOWN_PROCESSING: u32 = 1 << 2;
/// CSTS.SHST: shutdown is complete.
pub const CSTS_SHUTDOWN_COMPLETE: u32 = 2 << 2;
/// All bits of CSTS.SHST.
pub const CSTS_SHUTDOWN_MASK: u32 = 3 << 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_bits() {
        let cap = Capabilities { queue_entries_max: 128, timeout_500ms: 30 }.to_bits();
        assert_eq!(cap & 0xffff, 127);
        assert_eq!((cap >> 24) & 0xff, 30);
        assert_eq!((cap >> 37) & 0xff, 0b0100_0001);
    }

    #[test]
    fn configuration_fields() {
        // What Linux writes: EN, CSS 0, IOSQES 6, IOCQES 4.
        let cc = Configuration(0x0046_0001);
        assert!(cc.enabled() && !cc.shutdown());
        assert_eq!((cc.sqe_size_log2(), cc.cqe_size_log2(), cc.page_size_log2()), (6, 4, 12));
        assert!(Configuration(0x4000).shutdown());
        assert!(Configuration(0x8000).shutdown());
        assert!(!Configuration(0xc000).shutdown());
    }
}
