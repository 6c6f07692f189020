//! Submission and completion queue entries and SGL descriptors (Base 2.0, sections 3.3.3 and 4.3.2).

use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};

wire! {
    /// An SGL descriptor (Base 2.0, figure 107 ff.).
    pub struct SglDescriptor: 16 {
        /// Address, or for in-capsule data the offset in bytes.
        0 => address: U64,
        /// Bytes.
        8 => length: U32,
        #[doc(hidden)]
        12 => reserved: [u8; 3],
        /// Descriptor type in the upper, subtype in the lower four bits.
        15 => kind: u8,
    }
}

/// SGL Data Block descriptor, subtype Offset: the data lie in the capsule.
pub const SGL_IN_CAPSULE: u8 = 0x01;
/// Transport SGL Data Block descriptor, subtype transport specific A: the transport moves the data.
pub const SGL_TRANSPORT: u8 = 0x5a;

wire! {
    /// A submission queue entry: 64 bytes (Base 2.0, figure 86).
    pub struct Sqe: 64 {
        /// Opcode.
        0 => opcode: u8,
        /// FUSE in bits 1:0, PSDT in bits 7:6.
        1 => flags: u8,
        /// Command identifier, chosen by the host.
        2 => cid: U16,
        /// Namespace; in a Fabrics command the low byte is the command type.
        4 => nsid: U32,
        /// Command double word 2.
        8 => cdw2: U32,
        /// Command double word 3.
        12 => cdw3: U32,
        /// Metadata pointer.
        16 => mptr: U64,
        /// Data pointer.
        24 => sgl: SglDescriptor,
        /// Command double word 10.
        40 => cdw10: U32,
        /// Command double word 11.
        44 => cdw11: U32,
        /// Command double word 12.
        48 => cdw12: U32,
        /// Command double word 13.
        52 => cdw13: U32,
        /// Command double word 14.
        56 => cdw14: U32,
        /// Command double word 15.
        60 => cdw15: U32,
    }
}

/// PSDT value (already in place in `flags`) that Fabrics asks for: SGLs, MPTR is a contiguous buffer.
pub const FLAGS_PSDT_SGL: u8 = 0x40;

wire! {
    /// A completion queue entry: 16 bytes (Base 2.0, figure 91).
    pub struct Cqe: 16 {
        /// Command-specific result: DW0 and DW1.
        0 => result: U64,
        /// Submission queue head pointer.
        8 => sqhd: U16,
        /// Submission queue; reserved on Fabrics.
        10 => sqid: U16,
        /// The command this answers.
        12 => cid: U16,
        /// Phase tag (bit 0, always 0 on Fabrics) and status field.
        14 => status: U16,
    }
}

impl Cqe {
    /// A completion of command `cid`.
    #[must_use]
    pub fn new(cid: u16, result: u64, status: Status) -> Self {
        Self {
            result: U64::new(result),
            sqhd: U16::ZERO,
            sqid: U16::ZERO,
            cid: U16::new(cid),
            status: U16::new(status.to_bits()),
        }
    }

    /// The status this completion tells.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_bits(self.status.get())
    }
}
