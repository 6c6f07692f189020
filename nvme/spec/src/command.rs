//! Commands, parsed once: a raw submission queue entry becomes one of these, or a status.
//!
//! What a parsed command proves: its fields are in the ranges of the specification. It does not prove
//! that a namespace exists or that a range lies within it; that needs state and is the target's part.

use crate::queue::{SGL_IN_CAPSULE, SGL_TRANSPORT, Sqe};
use crate::status::Status;
use zerocopy::little_endian::{U16, U32, U64};

/// Opcodes of the admin command set (Base 2.0, figure 138).
pub mod admin_opcode {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
}

/// Opcodes of the NVM command set (NVM 1.0, figure 21).
pub mod io_opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Copy.
    pub const COPY: u8 = 0x19;
}

/// The opcode of all Fabrics commands.
pub const FABRICS_OPCODE: u8 = 0x7f;

/// The namespace identifier that means all namespaces.
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Where the data of a command are, on the TCP transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// `len` bytes at `offset` of the data that came in the capsule.
    InCapsule {
        /// Bytes from the start of the capsule's data.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// `len` bytes that data PDUs move.
    Transport {
        /// Bytes.
        len: u32,
    },
}

impl DataPointer {
    /// Parses the data pointer of a command that moves data.
    ///
    /// # Errors
    /// PRPs (PSDT 0 or reserved) are an invalid field on Fabrics (Base 2.0, section 4.3.1); other
    /// descriptors than the two of the TCP transport are an invalid SGL type (TCP 1.0, section 3.3.1).
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        if !matches!(sqe.flags >> 6, 1 | 2) {
            return Err(Status::INVALID_FIELD);
        }
        let (address, len) = (sqe.sgl.address.get(), sqe.sgl.length.get());
        match sqe.sgl.kind {
            SGL_IN_CAPSULE => Ok(Self::InCapsule { offset: address, len }),
            SGL_TRANSPORT => Ok(Self::Transport { len }),
            _ => Err(Status::SGL_TYPE_INVALID),
        }
    }

    /// Bytes to move.
    #[must_use]
    pub fn len(self) -> u32 {
        match self {
            Self::InCapsule { len, .. } | Self::Transport { len } => len,
        }
    }

    /// Whether there is nothing to move.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

fn reject_fused(sqe: &Sqe) -> Result<(), Status> {
    if sqe.flags & 3 != 0 { Err(Status::INVALID_FIELD) } else { Ok(()) }
}

/// DTYPE of Write and Copy: no directives are supported (Base 2.0, section 8.7).
fn reject_directive(dw12: u32) -> Result<(), Status> {
    if (dw12 >> 20) & 0xf != 0 { Err(Status::INVALID_FIELD) } else { Ok(()) }
}

/// An admin command other than a Fabrics command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminCommand {
    /// Identify (Base 2.0, section 5.17).
    Identify {
        /// Which structure.
        cns: u8,
        /// Namespace the structure is about.
        nsid: u32,
        /// Controller the structure is about.
        cntid: u16,
        /// Command set.
        csi: u8,
        /// Where to.
        data: DataPointer,
    },
    /// Get Log Page (Base 2.0, section 5.16).
    GetLogPage {
        /// Which page.
        page: u8,
        /// Namespace the page is about.
        nsid: u32,
        /// Log specific field.
        specific: u8,
        /// Keep the event that this page would clear.
        retain_event: bool,
        /// First byte wanted.
        offset: u64,
        /// Bytes wanted, a multiple of 4; equal to the data pointer's length.
        len: u32,
        /// Where to.
        data: DataPointer,
    },
    /// Set Features (Base 2.0, section 5.27).
    SetFeatures {
        /// Which feature and its value.
        feature: Feature,
        /// Namespace the feature is about.
        nsid: u32,
        /// SV: keep the value over resets.
        save: bool,
    },
    /// Get Features (Base 2.0, section 5.15).
    GetFeatures {
        /// Which feature.
        id: u8,
        /// SEL: 0 current, 1 default, 2 saved, 3 supported capabilities.
        select: u8,
        /// Namespace the feature is about.
        nsid: u32,
        /// CDW11.
        cdw11: u32,
        /// Data pointer, for the features that have data.
        data: Option<DataPointer>,
    },
    /// Asynchronous Event Request (Base 2.0, section 5.2).
    AsyncEventRequest,
    /// Abort (Base 2.0, section 5.1).
    Abort {
        /// Queue of the command to abort.
        sqid: u16,
        /// The command to abort.
        cid: u16,
    },
    /// Keep Alive (Base 2.0, section 5.18).
    KeepAlive,
}

/// A feature to set, with its value (Base 2.0, section 5.27.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Feature identifier.
    pub id: u8,
    /// CDW11.
    pub cdw11: u32,
    /// CDW12.
    pub cdw12: u32,
}

impl AdminCommand {
    /// Parses an entry of the admin queue.
    ///
    /// # Errors
    /// The status to complete the command with.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        reject_fused(sqe)?;
        let (dw10, dw11, dw12) = (sqe.cdw10.get(), sqe.cdw11.get(), sqe.cdw12.get());
        let nsid = sqe.nsid.get();
        match sqe.opcode {
            admin_opcode::IDENTIFY => Ok(Self::Identify {
                cns: dw10 as u8,
                nsid,
                cntid: (dw10 >> 16) as u16,
                csi: (dw11 >> 24) as u8,
                data: DataPointer::parse(sqe)?,
            }),
            admin_opcode::GET_LOG_PAGE => Self::parse_get_log_page(sqe),
            admin_opcode::SET_FEATURES => Ok(Self::SetFeatures {
                feature: Feature { id: dw10 as u8, cdw11: dw11, cdw12: dw12 },
                nsid,
                save: dw10 >> 31 != 0,
            }),
            admin_opcode::GET_FEATURES => Ok(Self::GetFeatures {
                id: dw10 as u8,
                select: ((dw10 >> 8) & 7) as u8,
                nsid,
                cdw11: dw11,
                data: DataPointer::parse(sqe).ok(),
            }),
            admin_opcode::ASYNC_EVENT_REQUEST => Ok(Self::AsyncEventRequest),
            admin_opcode::ABORT => Ok(Self::Abort { sqid: dw10 as u16, cid: (dw10 >> 16) as u16 }),
            admin_opcode::KEEP_ALIVE => Ok(Self::KeepAlive),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn parse_get_log_page(sqe: &Sqe) -> Result<Self, Status> {
        let (dw10, dw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        let dwords = u64::from(dw10 >> 16) | u64::from(dw11 & 0xffff) << 16;
        let data = DataPointer::parse(sqe)?;
        let bytes = (dwords + 1) * 4;
        if u64::from(data.len()) != bytes {
            return Err(Status::DATA_SGL_LENGTH_INVALID);
        }
        // OT (bit 23): the offset is an index of structures, which no page of ours supports.
        if sqe.cdw14.get() & (1 << 23) != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let offset = u64::from(sqe.cdw12.get()) | u64::from(sqe.cdw13.get()) << 32;
        if !offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        Ok(Self::GetLogPage {
            page: dw10 as u8,
            nsid: sqe.nsid.get(),
            specific: ((dw10 >> 8) & 0x7f) as u8,
            retain_event: dw10 & (1 << 15) != 0,
            offset,
            len: data.len(),
            data,
        })
    }
}

/// A contiguous range of logical blocks; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaRange {
    /// First logical block.
    pub first: u64,
    /// Logical blocks, 1 to 65536 for commands, up to 2^32 - 1 in a DSM range.
    pub blocks: u32,
}

impl LbaRange {
    /// The end, in logical blocks, if the range lies within `size_blocks`.
    ///
    /// # Errors
    /// [`Status::LBA_OUT_OF_RANGE`].
    pub fn check_within(self, size_blocks: u64) -> Result<u64, Status> {
        self.first
            .checked_add(u64::from(self.blocks))
            .filter(|&end| end <= size_blocks)
            .ok_or(Status::LBA_OUT_OF_RANGE)
    }
}

/// A command of the NVM command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoCommand {
    /// Flush (Base 2.0, section 7.1).
    Flush {
        /// Namespace, or [`NSID_ALL`].
        nsid: u32,
    },
    /// Read (NVM 1.0, section 3.2.4).
    Read {
        /// Namespace.
        nsid: u32,
        /// What to read.
        range: LbaRange,
        /// Where to.
        data: DataPointer,
    },
    /// Write (NVM 1.0, section 3.2.6).
    Write {
        /// Namespace.
        nsid: u32,
        /// What to write.
        range: LbaRange,
        /// Force unit access: durable when completed.
        fua: bool,
        /// Where from.
        data: DataPointer,
    },
    /// Write Zeroes (NVM 1.0, section 3.2.8).
    WriteZeroes {
        /// Namespace.
        nsid: u32,
        /// What to clear.
        range: LbaRange,
        /// The host asks that the blocks be deallocated.
        deallocate: bool,
        /// Force unit access.
        fua: bool,
    },
    /// Dataset Management (NVM 1.0, section 3.2.3).
    DatasetManagement {
        /// Namespace.
        nsid: u32,
        /// Ranges in the data, 1 to 256.
        range_count: u16,
        /// Attribute Deallocate; without it the command is only a hint.
        deallocate: bool,
        /// Where the ranges are.
        data: DataPointer,
    },
    /// Copy within a namespace, by descriptors of format 0 (NVM 1.0, section 3.2.2).
    Copy {
        /// Namespace.
        nsid: u32,
        /// First logical block of the destination (SDLBA).
        destination: u64,
        /// Source ranges in the data, 1 to 256.
        range_count: u16,
        /// Force unit access.
        fua: bool,
        /// Where the source ranges are.
        data: DataPointer,
    },
}

impl IoCommand {
    /// Parses an entry of an I/O queue.
    ///
    /// # Errors
    /// The status to complete the command with.
    pub fn parse(sqe: &Sqe) -> Result<Self, Status> {
        reject_fused(sqe)?;
        let nsid = sqe.nsid.get();
        let dw12 = sqe.cdw12.get();
        let range = LbaRange {
            first: u64::from(sqe.cdw10.get()) | u64::from(sqe.cdw11.get()) << 32,
            blocks: (dw12 & 0xffff) + 1,
        };
        let fua = dw12 & (1 << 30) != 0;
        match sqe.opcode {
            io_opcode::FLUSH => Ok(Self::Flush { nsid }),
            io_opcode::READ => Ok(Self::Read { nsid, range, data: DataPointer::parse(sqe)? }),
            io_opcode::WRITE => {
                reject_directive(dw12)?;
                Ok(Self::Write { nsid, range, fua, data: DataPointer::parse(sqe)? })
            }
            io_opcode::WRITE_ZEROES => {
                Ok(Self::WriteZeroes { nsid, range, deallocate: dw12 & (1 << 25) != 0, fua })
            }
            io_opcode::DATASET_MANAGEMENT => Ok(Self::DatasetManagement {
                nsid,
                range_count: (sqe.cdw10.get() & 0xff) as u16 + 1,
                deallocate: sqe.cdw11.get() & 4 != 0,
                data: DataPointer::parse(sqe)?,
            }),
            io_opcode::COPY => {
                reject_directive(dw12)?;
                // Descriptor format: the others are for protection information and other namespaces.
                if (dw12 >> 8) & 0xf != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                Ok(Self::Copy {
                    nsid,
                    destination: range.first,
                    range_count: (dw12 & 0xff) as u16 + 1,
                    fua,
                    data: DataPointer::parse(sqe)?,
                })
            }
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// The namespace addressed.
    #[must_use]
    pub fn nsid(&self) -> u32 {
        match *self {
            Self::Flush { nsid }
            | Self::Read { nsid, .. }
            | Self::Write { nsid, .. }
            | Self::WriteZeroes { nsid, .. }
            | Self::DatasetManagement { nsid, .. }
            | Self::Copy { nsid, .. } => nsid,
        }
    }
}

wire! {
    /// A range of Dataset Management (NVM 1.0, figure 44).
    pub struct DsmRange: 16 {
        /// Context attributes: hints.
        0 => attributes: U32,
        /// Length in logical blocks.
        4 => blocks: U32,
        /// First logical block.
        8 => first: U64,
    }
}

/// Most ranges in one Dataset Management command.
pub const DSM_RANGES_MAX: usize = 256;

wire! {
    /// A source range of Copy, descriptor format 0 (NVM 1.0, section 3.2.2).
    pub struct CopyRange: 32 {
        #[doc(hidden)]
        0 => reserved_0: U64,
        /// SLBA: first logical block.
        8 => first: U64,
        /// NLB: logical blocks, 0-based.
        16 => blocks: U16,
        #[doc(hidden)]
        18 => reserved_18: [u8; 6],
        /// EILBRT: protection information, unused without.
        24 => expected_reference_tag: U32,
        /// ELBAT.
        28 => expected_application_tag: U16,
        /// ELBATM.
        30 => expected_application_tag_mask: U16,
    }
}

impl CopyRange {
    /// The range that the descriptor names.
    #[must_use]
    pub fn range(&self) -> LbaRange {
        LbaRange { first: self.first.get(), blocks: u32::from(self.blocks.get()) + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromBytes;

    fn sqe(opcode: u8) -> Sqe {
        let mut sqe = Sqe::zeroed();
        sqe.opcode = opcode;
        sqe.flags = crate::queue::FLAGS_PSDT_SGL;
        sqe.cid = U16::new(7);
        sqe.sgl.kind = SGL_TRANSPORT;
        sqe
    }

    #[test]
    fn read_fields() {
        let mut raw = sqe(io_opcode::READ);
        raw.nsid = U32::new(3);
        raw.cdw10 = U32::new(0xffff_fffe);
        raw.cdw11 = U32::new(1);
        raw.cdw12 = U32::new(7);
        raw.sgl.length = U32::new(4096);
        assert_eq!(
            IoCommand::parse(&raw),
            Ok(IoCommand::Read {
                nsid: 3,
                range: LbaRange { first: 0x1_ffff_fffe, blocks: 8 },
                data: DataPointer::Transport { len: 4096 },
            })
        );
    }

    #[test]
    fn copy_fields() {
        let mut raw = sqe(io_opcode::COPY);
        raw.nsid = U32::new(2);
        raw.cdw10 = U32::new(5);
        raw.cdw11 = U32::new(1);
        // FUA; LR, both PRINFO fields and what else is reserved are passed over.
        raw.cdw12 = U32::new(1 << 31 | 1 << 30 | 0xf << 26 | 0xf << 12 | 255);
        raw.sgl.length = U32::new(8192);
        let parsed = IoCommand::Copy {
            nsid: 2,
            destination: 0x1_0000_0005,
            range_count: 256,
            fua: true,
            data: DataPointer::Transport { len: 8192 },
        };
        assert_eq!(IoCommand::parse(&raw), Ok(parsed));
        assert_eq!(parsed.nsid(), 2);
        for refused in [1 << 8, 0xf << 8, 1 << 20, 0xf << 20] {
            raw.cdw12 = U32::new(refused);
            assert_eq!(IoCommand::parse(&raw), Err(Status::INVALID_FIELD), "{refused:#x}");
        }
    }

    #[test]
    fn copy_range_fields() {
        let mut bytes = [0; 32];
        bytes[8..18].copy_from_slice(&[3, 2, 1, 0, 0, 0, 0, 9, 0xff, 0xff]);
        bytes[24..].fill(0xee);
        let range = CopyRange::read_from_bytes(&bytes).unwrap().range();
        assert_eq!(range, LbaRange { first: 0x0900_0000_0001_0203, blocks: 65536 });
    }

    #[test]
    fn refused_entries() {
        let mut fused = sqe(io_opcode::WRITE);
        fused.flags |= 1;
        assert_eq!(IoCommand::parse(&fused), Err(Status::INVALID_FIELD));
        let mut prp = sqe(io_opcode::READ);
        prp.flags = 0;
        assert_eq!(IoCommand::parse(&prp), Err(Status::INVALID_FIELD));
        let mut bucket = sqe(io_opcode::READ);
        bucket.sgl.kind = 0x10;
        assert_eq!(IoCommand::parse(&bucket), Err(Status::SGL_TYPE_INVALID));
        assert_eq!(IoCommand::parse(&sqe(0x7e)), Err(Status::INVALID_OPCODE));
        assert_eq!(AdminCommand::parse(&sqe(0x01)), Err(Status::INVALID_OPCODE));
        let mut directive = sqe(io_opcode::WRITE);
        directive.cdw12 = U32::new(1 << 20);
        assert_eq!(IoCommand::parse(&directive), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn log_page_length_is_checked_against_the_sgl() {
        let mut raw = sqe(admin_opcode::GET_LOG_PAGE);
        raw.cdw10 = U32::new(0x70 | (255 << 16));
        raw.sgl.length = U32::new(1024);
        assert!(matches!(
            AdminCommand::parse(&raw),
            Ok(AdminCommand::GetLogPage { page: 0x70, len: 1024, offset: 0, .. })
        ));
        raw.sgl.length = U32::new(1020);
        assert_eq!(AdminCommand::parse(&raw), Err(Status::DATA_SGL_LENGTH_INVALID));
        raw.sgl.length = U32::new(1024);
        raw.cdw12 = U32::new(2);
        assert_eq!(AdminCommand::parse(&raw), Err(Status::INVALID_FIELD));
    }

    #[test]
    fn ranges_do_not_overflow() {
        let range = LbaRange { first: u64::MAX, blocks: 1 };
        assert_eq!(range.check_within(u64::MAX), Err(Status::LBA_OUT_OF_RANGE));
        assert_eq!(LbaRange { first: 6, blocks: 2 }.check_within(8), Ok(8));
        assert_eq!(LbaRange { first: 7, blocks: 2 }.check_within(8), Err(Status::LBA_OUT_OF_RANGE));
    }
}
