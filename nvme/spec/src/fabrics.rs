//! Fabrics commands (Base 2.0, section 6) and the discovery log page (section 5.16.1.23).

use crate::command::{DataPointer, FABRICS_OPCODE};
use crate::nqn::{NQN_FIELD_LEN, Nqn};
use crate::queue::Sqe;
use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};

/// Fabrics command types.
pub mod fabrics_type {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
}

/// A Fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FabricsCommand {
    /// Connect (Base 2.0, section 6.3).
    Connect {
        /// Record format; only 0 is defined.
        record_format: u16,
        /// Queue: 0 is the admin queue.
        queue_id: u16,
        /// Entries of the submission queue, 0-based.
        sq_size: u16,
        /// CATTR bit 2: the host asks to do without submission queue flow control.
        disable_flow_control: bool,
        /// Keep alive timeout in milliseconds; 0 is none.
        keep_alive_ms: u32,
        /// Where the 1024 bytes of [`ConnectData`] are.
        data: DataPointer,
    },
    /// Property Get (Base 2.0, section 6.4).
    PropertyGet {
        /// The property is 8 bytes wide, not 4.
        wide: bool,
        /// Offset of the property.
        offset: u32,
    },
    /// Property Set (Base 2.0, section 6.5).
    PropertySet {
        /// The property is 8 bytes wide, not 4.
        wide: bool,
        /// Offset of the property.
        offset: u32,
        /// The new value.
        value: u64,
    },
}

impl FabricsCommand {
    /// Whether `sqe` is a Fabrics command.
    #[must_use]
    pub fn is_fabrics(sqe: &Sqe) -> bool {
        sqe.opcode == FABRICS_OPCODE
    }

    /// Parses a Fabrics command.
    ///
    /// # Errors
    /// The status to complete the command with.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        if sqe.flags & 3 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let (dw10, dw11, dw12) = (sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw12.get());
        let wide = match dw10 & 7 {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Status::INVALID_FIELD),
        };
        match sqe.nsid.get() as u8 {
            fabrics_type::CONNECT => Ok(Self::Connect {
                record_format: dw10 as u16,
                queue_id: (dw10 >> 16) as u16,
                sq_size: dw11 as u16,
                disable_flow_control: dw11 & (1 << 18) != 0,
                keep_alive_ms: dw12,
                data: DataPointer::parse(sqe)?,
            }),
            fabrics_type::PROPERTY_GET => Ok(Self::PropertyGet { wide: wide?, offset: dw11 }),
            fabrics_type::PROPERTY_SET => Ok(Self::PropertySet {
                wide: wide?,
                offset: dw11,
                value: u64::from(dw12) | u64::from(sqe.cdw13.get()) << 32,
            }),
            _ => Err(Status::INVALID_OPCODE),
        }
    }
}

wire! {
    /// Data of Connect (Base 2.0, figure 384).
    pub struct ConnectData: 1024 {
        /// Host identifier.
        0 => host_id: [u8; 16],
        /// Controller identifier asked for; 0xFFFF asks for any (dynamic model).
        16 => controller_id: U16,
        #[doc(hidden)]
        18 => reserved_18: [u8; 238],
        /// Subsystem's name.
        256 => subsystem_nqn: [u8; NQN_FIELD_LEN],
        /// Host's name.
        512 => host_nqn: [u8; NQN_FIELD_LEN],
        #[doc(hidden)]
        768 => reserved_768: [u8; 256],
    }
}

/// The controller identifier with which a host asks for any controller.
pub const CONTROLLER_ID_DYNAMIC: u16 = 0xffff;
/// Greatest controller identifier (0xFFF0 and up are reserved; Base 2.0, section 3.1.2).
pub const CONTROLLER_ID_MAX: u16 = 0xffef;

/// Names the offending field of a Connect that had invalid parameters (Base 2.0, figure 385).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidParameter {
    /// Byte offset of the field.
    pub offset: u16,
    /// The field is in the data, not in the submission queue entry.
    pub in_data: bool,
}

impl InvalidParameter {
    /// SQSIZE of the entry.
    pub const SQ_SIZE: Self = Self { offset: 44, in_data: false };
    /// QID of the entry.
    pub const QUEUE_ID: Self = Self { offset: 42, in_data: false };
    /// CNTLID of the data.
    pub const CONTROLLER_ID: Self = Self { offset: 16, in_data: true };
    /// HOSTID of the data.
    pub const HOST_ID: Self = Self { offset: 0, in_data: true };
    /// SUBNQN of the data.
    pub const SUBSYSTEM_NQN: Self = Self { offset: 256, in_data: true };
    /// HOSTNQN of the data.
    pub const HOST_NQN: Self = Self { offset: 512, in_data: true };

    /// DW0 of the completion: IPO in bits 15:0, IATTR in bit 16.
    #[must_use]
    pub fn to_result(self) -> u64 {
        u64::from(self.offset) | u64::from(self.in_data) << 16
    }
}

wire! {
    /// Head of the discovery log page (Base 2.0, figure 265).
    pub struct DiscoveryLogHeader: 1024 {
        /// Generation counter.
        0 => generation: U64,
        /// Entries that follow.
        8 => record_count: U64,
        /// Record format: 0.
        16 => record_format: U16,
        #[doc(hidden)]
        18 => reserved: [u8; 1006],
    }
}

wire! {
    /// An entry of the discovery log page (Base 2.0, figure 266).
    pub struct DiscoveryLogEntry: 1024 {
        /// Transport type: 3 is TCP.
        0 => transport_type: u8,
        /// Address family: 1 IPv4, 2 IPv6.
        1 => address_family: u8,
        /// Subsystem type: 1 referral, 2 NVM, 3 current discovery subsystem.
        2 => subsystem_type: u8,
        /// TREQ: secure channel requirements in bits 1:0, bit 2 "flow control may be disabled".
        3 => transport_requirements: u8,
        /// Port identifier.
        4 => port_id: U16,
        /// Controller identifier: 0xFFFF, dynamic.
        6 => controller_id: U16,
        /// Entries of the largest admin submission queue.
        8 => admin_queue_entries_max: U16,
        /// EFLAGS: bit 1 "explicit persistent connection supported", bit 0 duplicate returned information.
        10 => entry_flags: U16,
        #[doc(hidden)]
        12 => reserved_12: [u8; 20],
        /// Transport service identifier: the TCP port in decimal.
        32 => service_id: [u8; 32],
        #[doc(hidden)]
        64 => reserved_64: [u8; 192],
        /// Subsystem's name.
        256 => subsystem_nqn: [u8; NQN_FIELD_LEN],
        /// Transport address.
        512 => address: [u8; 256],
        /// Transport specific address subtype: byte 0 is the security type, 0 none.
        768 => address_subtype: [u8; 256],
    }
}

/// Transport type TCP.
pub const TRANSPORT_TCP: u8 = 3;
/// Subsystem type: an NVM subsystem.
pub const SUBSYSTEM_NVM: u8 = 2;
/// Subsystem type: the discovery subsystem itself.
pub const SUBSYSTEM_CURRENT_DISCOVERY: u8 = 3;
/// EFLAGS bit: persistent connections are supported.
pub const ENTRY_PERSISTENT_CONNECTION: u16 = 1 << 1;
/// TREQ: secure channel not specified (00b, there is none) and submission queue flow control may be
/// disabled (bit 2).
pub const REQUIREMENT_NONE: u8 = 0b100;

impl DiscoveryLogEntry {
    /// An entry for subsystem `nqn`, of `subsystem_type`, at a TCP address.
    #[must_use]
    pub fn tcp(nqn: &Nqn, subsystem_type: u8, address: std::net::SocketAddr, port_id: u16) -> Self {
        let mut entry = Self::zeroed();
        entry.transport_type = TRANSPORT_TCP;
        entry.address_family = if address.is_ipv4() { 1 } else { 2 };
        entry.subsystem_type = subsystem_type;
        entry.transport_requirements = REQUIREMENT_NONE;
        entry.port_id = U16::new(port_id);
        entry.controller_id = U16::new(CONTROLLER_ID_DYNAMIC);
        entry.subsystem_nqn = nqn.to_field();
        fill_text(&mut entry.service_id, &address.port().to_string());
        fill_text(&mut entry.address, &address.ip().to_string());
        entry
    }
}

/// Writes `text` padded with spaces, which is how Linux's target fills these fields and nvme-cli
/// trims them.
fn fill_text(field: &mut [u8], text: &str) {
    crate::nqn::fill_ascii_field(field, text);
}

wire! {
    /// Bytes 40 to 63 of a Connect entry, for hosts that build one.
    pub struct ConnectFields: 24 {
        /// Record format.
        0 => record_format: U16,
        /// Queue.
        2 => queue_id: U16,
        /// Entries of the submission queue, 0-based.
        4 => sq_size: U16,
        /// CATTR.
        6 => attributes: u8,
        #[doc(hidden)]
        7 => reserved_7: u8,
        /// Keep alive timeout, ms.
        8 => keep_alive_ms: U32,
        #[doc(hidden)]
        12 => reserved_12: [u8; 12],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromBytes, IntoBytes};

    #[test]
    fn connect_entry() {
        let mut sqe = Sqe::zeroed();
        sqe.opcode = FABRICS_OPCODE;
        sqe.flags = crate::queue::FLAGS_PSDT_SGL;
        sqe.nsid = U32::new(u32::from(fabrics_type::CONNECT));
        sqe.sgl.kind = crate::queue::SGL_IN_CAPSULE;
        sqe.sgl.length = U32::new(1024);
        let mut fields = ConnectFields::zeroed();
        fields.queue_id = U16::new(5);
        fields.sq_size = U16::new(127);
        fields.attributes = 4;
        fields.keep_alive_ms = U32::new(15_000);
        let mut bytes = [0; 64];
        bytes.copy_from_slice(sqe.as_bytes());
        bytes[40..].copy_from_slice(fields.as_bytes());
        let sqe = Sqe::read_from_bytes(&bytes).unwrap();
        assert_eq!(
            FabricsCommand::parse(&sqe),
            Ok(FabricsCommand::Connect {
                record_format: 0,
                queue_id: 5,
                sq_size: 127,
                disable_flow_control: true,
                keep_alive_ms: 15_000,
                data: DataPointer::InCapsule { offset: 0, len: 1024 },
            })
        );
    }

    #[test]
    fn unknown_types_are_refused() {
        let mut sqe = Sqe::zeroed();
        sqe.opcode = FABRICS_OPCODE;
        sqe.nsid = U32::new(0x77);
        assert_eq!(FabricsCommand::parse(&sqe), Err(Status::INVALID_OPCODE));
        sqe.nsid = U32::new(u32::from(fabrics_type::PROPERTY_GET));
        sqe.cdw10 = U32::new(3);
        assert_eq!(FabricsCommand::parse(&sqe), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn discovery_entry_text() {
        let entry = DiscoveryLogEntry::tcp(
            &Nqn::discovery(),
            SUBSYSTEM_CURRENT_DISCOVERY,
            "[::1]:8009".parse().unwrap(),
            1,
        );
        assert_eq!(entry.address_family, 2);
        assert_eq!(&entry.service_id[..5], b"8009 ");
        assert_eq!(&entry.address[..4], b"::1 ");
    }
}
