//! PDUs of the TCP transport (TCP 1.0, section 3.6) and the check of the headers a host sends.
//!
//! ```text
//! | CH 8 bytes | PDU specific header | HDGST 4? | pad to PDO | data ... | DDGST 4? |
//! |<----------- HLEN --------------->|                        |<- whole is PLEN -->|
//! ```

use crate::queue::{Cqe, Sqe};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// PDU types.
pub mod kind {
    /// Initialize Connection Request, host to controller.
    pub const IC_REQ: u8 = 0x00;
    /// Initialize Connection Response.
    pub const IC_RESP: u8 = 0x01;
    /// Terminate Connection Request, host to controller.
    pub const H2C_TERM_REQ: u8 = 0x02;
    /// Terminate Connection Request, controller to host.
    pub const C2H_TERM_REQ: u8 = 0x03;
    /// Command capsule.
    pub const CAPSULE_CMD: u8 = 0x04;
    /// Response capsule.
    pub const CAPSULE_RESP: u8 = 0x05;
    /// Data, host to controller.
    pub const H2C_DATA: u8 = 0x06;
    /// Data, controller to host.
    pub const C2H_DATA: u8 = 0x07;
    /// Ready to Transfer.
    pub const R2T: u8 = 0x09;
}

/// FLAGS: a header digest follows the header.
pub const FLAG_HEADER_DIGEST: u8 = 1;
/// FLAGS: a data digest follows the data.
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// FLAGS of data PDUs: the last one of its R2T or command.
pub const FLAG_LAST: u8 = 1 << 2;
/// FLAGS of C2HData: the command succeeded, no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;
/// Bytes of a digest.
pub const DIGEST_LEN: usize = 4;
/// DGST of ICReq and ICResp: header digest.
pub const DIGEST_HEADER: u8 = 1;
/// DGST of ICReq and ICResp: data digest.
pub const DIGEST_DATA: u8 = 1 << 1;
/// Least MAXH2CDATA (TCP 1.0, figure 29).
pub const MAXH2CDATA_MIN: u32 = 4096;

wire! {
    /// The header that all PDUs begin with (TCP 1.0, figure 26).
    pub struct CommonHeader: 8 {
        /// PDU type.
        0 => kind: u8,
        /// FLAGS.
        1 => flags: u8,
        /// HLEN: header bytes without digest.
        2 => header_len: u8,
        /// PDO: offset of the data from the start of the PDU.
        3 => data_offset: u8,
        /// PLEN: bytes of the whole PDU.
        4 => pdu_len: U32,
    }
}

wire! {
    /// ICReq (TCP 1.0, figure 28).
    pub struct IcReq: 128 {
        /// Common header.
        0 => common: CommonHeader,
        /// PFV: 0.
        8 => format_version: U16,
        /// HPDA: alignment of C2HData data, (value + 1) * 4 bytes; 0 to 31.
        10 => data_alignment: u8,
        /// DGST.
        11 => digests: u8,
        /// MAXR2T, 0-based: R2Ts outstanding per command.
        12 => r2t_max: U32,
        #[doc(hidden)]
        16 => reserved_16: [u8; 112],
    }
}

wire! {
    /// ICResp (TCP 1.0, figure 29).
    pub struct IcResp: 128 {
        /// Common header.
        0 => common: CommonHeader,
        /// PFV: 0.
        8 => format_version: U16,
        /// CPDA: alignment of data from the host; Linux accepts 0 only.
        10 => data_alignment: u8,
        /// DGST: the digests in use.
        11 => digests: u8,
        /// MAXH2CDATA: most data bytes of one H2CData PDU.
        12 => h2c_data_max: U32,
        #[doc(hidden)]
        16 => reserved_16: [u8; 112],
    }
}

wire! {
    /// H2CTermReq and C2HTermReq, without the offending header that follows (TCP 1.0, figures 30, 31).
    pub struct TermReq: 24 {
        /// Common header.
        0 => common: CommonHeader,
        /// FES: fatal error status.
        8 => status: U16,
        /// FEI: what FES asks for.
        10 => information: U32,
        #[doc(hidden)]
        14 => reserved_14: [u8; 10],
    }
}

/// Most bytes of the offending PDU's header that a TermReq carries.
pub const TERM_REQ_HEADER_MAX: usize = 128;

wire! {
    /// Command capsule (TCP 1.0, figure 32).
    pub struct CapsuleCmd: 72 {
        /// Common header.
        0 => common: CommonHeader,
        /// The entry.
        8 => sqe: Sqe,
    }
}

wire! {
    /// Response capsule (TCP 1.0, figure 33).
    pub struct CapsuleResp: 24 {
        /// Common header.
        0 => common: CommonHeader,
        /// The entry.
        8 => cqe: Cqe,
    }
}

wire! {
    /// H2CData and C2HData (TCP 1.0, figures 34, 35).
    pub struct DataHeader: 24 {
        /// Common header.
        0 => common: CommonHeader,
        /// CCCID: the command.
        8 => cid: U16,
        /// TTAG of the R2T; reserved in C2HData.
        10 => tag: U16,
        /// DATAO: byte offset in the command's data.
        12 => offset: U32,
        /// DATAL: data bytes.
        16 => len: U32,
        #[doc(hidden)]
        20 => reserved_20: U32,
    }
}

wire! {
    /// Ready to Transfer (TCP 1.0, figure 36).
    pub struct ReadyToTransfer: 24 {
        /// Common header.
        0 => common: CommonHeader,
        /// CCCID: the command.
        8 => cid: U16,
        /// TTAG: to be returned in H2CData.
        10 => tag: U16,
        /// R2TO: byte offset in the command's data.
        12 => offset: U32,
        /// R2TL: bytes asked for.
        16 => len: U32,
        #[doc(hidden)]
        20 => reserved_20: U32,
    }
}

/// Fatal error status of a TermReq (TCP 1.0, figure 30).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FatalError {
    /// A header field is invalid; FEI is its byte offset.
    InvalidHeaderField = 1,
    /// The PDU is not allowed at this point.
    SequenceError = 2,
    /// The header digest does not match; FEI is the digest received.
    HeaderDigest = 3,
    /// Data outside the range asked for.
    DataOutOfRange = 4,
    /// More data than allowed (R2T limit in the other direction).
    LimitExceeded = 5,
    /// A parameter is not supported; FEI is its byte offset.
    UnsupportedParameter = 6,
}

/// Why a PDU ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status:?}, information {information:#x}")]
pub struct PduError {
    /// FES.
    pub status: FatalError,
    /// FEI.
    pub information: u32,
}

impl PduError {
    /// A header field at `offset` is invalid.
    #[must_use]
    pub fn field(offset: u32) -> Self {
        Self { status: FatalError::InvalidHeaderField, information: offset }
    }

    /// Another cause, without information.
    #[must_use]
    pub fn new(status: FatalError) -> Self {
        Self { status, information: 0 }
    }
}

/// What ICReq and ICResp settled, as far as headers from the host depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Header digests are in use.
    pub header_digest: bool,
    /// Data digests are in use.
    pub data_digest: bool,
    /// Most data bytes in a command capsule.
    pub in_capsule_max: u32,
    /// Most data bytes in an H2CData.
    pub h2c_data_max: u32,
}

/// Type of a PDU that a host may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPdu {
    /// ICReq.
    IcReq,
    /// H2CTermReq.
    TermReq,
    /// Command capsule.
    Capsule,
    /// H2CData.
    Data,
}

/// How a PDU lies in the stream; made only by [`Layout::parse`], so its lengths are consistent and
/// within the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Its type.
    pub pdu: HostPdu,
    /// Header bytes, without digest.
    pub header_len: usize,
    /// A header digest follows the header.
    pub header_digest: bool,
    /// Padding between header (and digest) and data.
    pub pad_len: usize,
    /// Data bytes.
    pub data_len: u32,
    /// A data digest follows the data.
    pub data_digest: bool,
    /// FLAG_LAST was set.
    pub last: bool,
}

const KIND_AT: u32 = 0;
const FLAGS_AT: u32 = 1;
const HEADER_LEN_AT: u32 = 2;
const DATA_OFFSET_AT: u32 = 3;
const PDU_LEN_AT: u32 = 4;

impl Layout {
    /// Checks the common header of a PDU from a host. `settled` is `None` before ICReq.
    ///
    /// # Errors
    /// What to put into C2HTermReq.
    pub fn parse(common: &CommonHeader, settled: Option<&Settled>) -> Result<Self, PduError> {
        let sequence = PduError::new(FatalError::SequenceError);
        let (pdu, header_len) = match (common.kind, settled) {
            (kind::IC_REQ, None) => (HostPdu::IcReq, 128),
            (kind::H2C_TERM_REQ, _) => (HostPdu::TermReq, 24),
            (kind::CAPSULE_CMD, Some(_)) => (HostPdu::Capsule, 72),
            (kind::H2C_DATA, Some(_)) => (HostPdu::Data, 24),
            (kind::IC_REQ | kind::CAPSULE_CMD | kind::H2C_DATA, _) => return Err(sequence),
            _ => return Err(PduError::field(KIND_AT)),
        };
        if usize::from(common.header_len) != header_len {
            return Err(PduError::field(HEADER_LEN_AT));
        }
        let pdu_len = common.pdu_len.get();
        match (pdu, settled) {
            (HostPdu::Capsule | HostPdu::Data, Some(settled)) => {
                Self::parse_with_data(common, settled, pdu, header_len)
            }
            (HostPdu::TermReq, _) => {
                let carried = pdu_len.checked_sub(header_len as u32);
                let carried = carried.filter(|&len| len <= TERM_REQ_HEADER_MAX as u32);
                let data_len = carried.ok_or(PduError::field(PDU_LEN_AT))?;
                Ok(Self::bare(pdu, header_len, data_len))
            }
            _ if pdu_len == header_len as u32 => Ok(Self::bare(pdu, header_len, 0)),
            _ => Err(PduError::field(PDU_LEN_AT)),
        }
    }

    fn bare(pdu: HostPdu, header_len: usize, data_len: u32) -> Self {
        Self {
            pdu,
            header_len,
            header_digest: false,
            pad_len: 0,
            data_len,
            data_digest: false,
            last: false,
        }
    }

    fn parse_with_data(
        common: &CommonHeader,
        settled: &Settled,
        pdu: HostPdu,
        header_len: usize,
    ) -> Result<Self, PduError> {
        if (common.flags & FLAG_HEADER_DIGEST != 0) != settled.header_digest {
            return Err(PduError::field(FLAGS_AT));
        }
        let digest_len = if settled.header_digest { DIGEST_LEN } else { 0 };
        let head = header_len + digest_len;
        let pdu_len = common.pdu_len.get();
        let last = common.flags & FLAG_LAST != 0;
        if pdu_len as usize == head && pdu == HostPdu::Capsule {
            let mut layout = Self::bare(pdu, header_len, 0);
            layout.header_digest = settled.header_digest;
            return Ok(layout);
        }
        if (common.flags & FLAG_DATA_DIGEST != 0) != settled.data_digest {
            return Err(PduError::field(FLAGS_AT));
        }
        let data_offset = usize::from(common.data_offset);
        // CPDA is 0: data are aligned to 4 bytes (TCP 1.0, section 3.6.2.3).
        if data_offset < head || !data_offset.is_multiple_of(4) {
            return Err(PduError::field(DATA_OFFSET_AT));
        }
        let tail = if settled.data_digest { DIGEST_LEN } else { 0 };
        let data_len = (pdu_len as usize).checked_sub(data_offset + tail);
        let data_len = data_len.filter(|&len| len > 0).ok_or(PduError::field(PDU_LEN_AT))? as u32;
        let limit = match pdu {
            HostPdu::Capsule => settled.in_capsule_max,
            _ => settled.h2c_data_max,
        };
        if data_len > limit {
            return Err(PduError::new(FatalError::LimitExceeded));
        }
        Ok(Self {
            pdu,
            header_len,
            header_digest: settled.header_digest,
            pad_len: data_offset - head,
            data_len,
            data_digest: settled.data_digest,
            last,
        })
    }

    /// Bytes of header and header digest.
    #[must_use]
    pub fn head_len(&self) -> usize {
        self.header_len + if self.header_digest { DIGEST_LEN } else { 0 }
    }
}

impl CommonHeader {
    /// A header for a PDU that carries `data_len` bytes at `data_offset`, with the digests told.
    /// `data_offset` 0 means no data.
    #[must_use]
    pub fn new(
        kind: u8,
        flags: u8,
        header_len: u8,
        data_offset: u8,
        data_len: u32,
        digests: (bool, bool),
    ) -> Self {
        let (header_digest, data_digest) = digests;
        let mut flags = flags;
        let mut len = u32::from(header_len);
        if header_digest {
            flags |= FLAG_HEADER_DIGEST;
            len += DIGEST_LEN as u32;
        }
        if data_offset != 0 {
            len = u32::from(data_offset) + data_len;
            if data_digest {
                flags |= FLAG_DATA_DIGEST;
                len += DIGEST_LEN as u32;
            }
        }
        Self { kind, flags, header_len, data_offset, pdu_len: U32::new(len) }
    }
}

impl IcReq {
    /// Checks a request.
    ///
    /// # Errors
    /// What to put into C2HTermReq: an unsupported format version, or a bad alignment.
    pub fn parse(bytes: &[u8; 128]) -> Result<Self, PduError> {
        let request = Self::read_from_bytes(bytes).expect("the array has the structure's size");
        if request.format_version.get() != 0 {
            return Err(PduError { status: FatalError::UnsupportedParameter, information: 8 });
        }
        if request.data_alignment > 31 {
            return Err(PduError::field(10));
        }
        Ok(request)
    }
}

impl TermReq {
    /// A C2HTermReq that returns the offending `header` (cut to what may be carried).
    #[must_use]
    pub fn to_host(error: PduError, header: &[u8]) -> Vec<u8> {
        let carried = &header[..header.len().min(TERM_REQ_HEADER_MAX)];
        let mut term = Self::zeroed();
        term.common = CommonHeader {
            kind: kind::C2H_TERM_REQ,
            flags: 0,
            header_len: 24,
            data_offset: 0,
            pdu_len: U32::new(24 + carried.len() as u32),
        };
        term.status = U16::new(error.status as u16);
        term.information = U32::new(error.information);
        let mut bytes = term.as_bytes().to_vec();
        bytes.extend_from_slice(carried);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Settled = Settled {
        header_digest: false,
        data_digest: false,
        in_capsule_max: 8192,
        h2c_data_max: 131_072,
    };
    const DIGESTS: Settled = Settled { header_digest: true, data_digest: true, ..PLAIN };

    #[test]
    fn capsule_layouts() {
        let bare = CommonHeader::new(kind::CAPSULE_CMD, 0, 72, 0, 0, (false, false));
        assert_eq!(bare.pdu_len.get(), 72);
        assert_eq!(Layout::parse(&bare, Some(&PLAIN)).unwrap().data_len, 0);
        let data = CommonHeader::new(kind::CAPSULE_CMD, 0, 72, 80, 4096, (true, true));
        let layout = Layout::parse(&data, Some(&DIGESTS)).unwrap();
        assert_eq!((layout.pad_len, layout.data_len, layout.head_len()), (4, 4096, 76));
        assert!(layout.data_digest);
        assert_eq!(Layout::parse(&data, Some(&PLAIN)), Err(PduError::field(FLAGS_AT)));
    }

    #[test]
    fn every_layout_is_consistent() {
        // All small headers: whatever parses adds up to PLEN and respects the limits.
        for kind in 0..=10u8 {
            for flags in 0..16u8 {
                for (header_len, data_offset) in [(24, 24), (24, 28), (72, 72), (72, 76), (128, 0)]
                {
                    for len in [0, 23, 24, 28, 72, 76, 80, 128, 4168, 8264, 8265, u32::MAX] {
                        let common = CommonHeader {
                            kind,
                            flags,
                            header_len,
                            data_offset,
                            pdu_len: U32::new(len),
                        };
                        for settled in [None, Some(&PLAIN), Some(&DIGESTS)] {
                            let Ok(layout) = Layout::parse(&common, settled) else { continue };
                            let tail = if layout.data_digest { 4 } else { 0 };
                            let sum = layout.head_len() + layout.pad_len + tail;
                            assert_eq!(sum as u64 + u64::from(layout.data_len), u64::from(len));
                            assert!(layout.data_len <= 131_072);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn term_req_carries_the_header() {
        let bytes = TermReq::to_host(PduError::field(2), &[0xaa; 200]);
        assert_eq!(bytes.len(), 24 + 128);
        assert_eq!(&bytes[..14], &[3, 0, 24, 0, 152, 0, 0, 0, 1, 0, 2, 0, 0, 0]);
    }
}
