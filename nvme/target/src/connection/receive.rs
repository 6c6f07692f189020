//! The receive side: finds PDUs in the byte stream and brings payload to where it belongs.
//!
//! ```text
//!   Head --(header with data)--> Pad -> Data -> Digest --+
//!     ^---------------------------------------------------+      Discard: after a fatal error
//! ```
//! Headers and small payloads go through a staging area; payload that has not arrived when its
//! header is parsed is received straight into the command's buffer.

use super::{Connection, Phase};
use crate::backend::Backend;
use crate::connection::slot::SlotState;
use crate::limits::{STAGING_LEN, STAGING_LEN_BEFORE_LARGE_DATA};
use engine_base::checksum::{crc32c, crc32c_append};
use nvme_spec::pdu::{
    CapsuleCmd, CommonHeader, DIGEST_LEN, DataHeader, FatalError, HostPdu, IcReq, Layout, PduError,
};
use zerocopy::FromBytes;

/// Longest header with its digest.
const HEAD_LEN_MAX: usize = 128 + DIGEST_LEN;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Head,
    Pad { left: usize, payload: Payload },
    Data { left: usize, payload: Payload },
    Digest { payload: Payload },
    Discard,
}

/// Payload that is arriving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Payload {
    /// The slot whose buffer it fills; `None`: nobody wants it.
    slot: Option<u16>,
    len: usize,
    digest: bool,
    crc: u32,
}

/// The receive side of a connection.
pub(crate) struct Receiver {
    staging: Box<[u8]>,
    start: usize,
    end: usize,
    step: Step,
    /// Bytes of R2Ts that have not arrived.
    pub(crate) expected_bytes: u64,
}

impl Default for Receiver {
    fn default() -> Self {
        Self {
            staging: vec![0; STAGING_LEN].into(),
            start: 0,
            end: 0,
            step: Step::Head,
            expected_bytes: 0,
        }
    }
}

impl Receiver {
    fn available(&self) -> &[u8] {
        &self.staging[self.start..self.end]
    }

    fn consume(&mut self, len: usize) {
        self.start += len;
        assert!(self.start <= self.end);
    }

    fn compact(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.staging.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    pub(crate) fn discard_all(&mut self) {
        self.step = Step::Discard;
        self.start = 0;
        self.end = 0;
    }
}

impl<B: Backend> Connection<B> {
    /// Where the next bytes from the host go: first the payload part (perhaps empty), then staging.
    pub fn receive_buffers(&mut self) -> [&mut [u8]; 2] {
        let receiver = &mut self.receiver;
        receiver.compact();
        let payload: &mut [u8] = match receiver.step {
            Step::Data { left, payload: Payload { slot: Some(slot), .. } } => {
                let slot = &mut self.slots[usize::from(slot)];
                let filled = slot.filled;
                match slot.buffer.as_mut() {
                    Some(buffer) => &mut buffer[filled..filled + left],
                    None => &mut [],
                }
            }
            _ => &mut [],
        };
        let mut limit = receiver.staging.len();
        if payload.is_empty() && receiver.expected_bytes > STAGING_LEN as u64 {
            limit = STAGING_LEN_BEFORE_LARGE_DATA.max(receiver.end + HEAD_LEN_MAX).min(limit);
        }
        [payload, &mut receiver.staging[receiver.end..limit]]
    }

    /// Notes that `len` bytes arrived in the buffers of [`Connection::receive_buffers`], and acts on
    /// them.
    pub fn received(&mut self, len: usize) {
        let mut len = len;
        if let Step::Data { left, payload: Payload { slot: Some(_), .. } } = self.receiver.step {
            let direct = len.min(left);
            self.payload_arrived(direct);
            len -= direct;
        }
        self.receiver.end += len;
        assert!(self.receiver.end <= self.receiver.staging.len());
        while self.receive_step() {}
        if self.receiver.step == Step::Discard {
            self.receiver.discard_all();
        }
    }

    /// Copies `bytes` into the connection, as if they had been received.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let mut taken = 0;
            for buffer in self.receive_buffers() {
                let len = buffer.len().min(rest.len() - taken);
                buffer[..len].copy_from_slice(&rest[taken..taken + len]);
                taken += len;
            }
            self.received(taken);
            rest = &rest[taken..];
        }
    }

    /// One step; false when more bytes are needed or none are wanted.
    fn receive_step(&mut self) -> bool {
        let available = self.receiver.available().len();
        match self.receiver.step {
            Step::Discard => false,
            Step::Head => self.receive_head(),
            Step::Pad { left, payload } => {
                let len = left.min(available);
                self.receiver.consume(len);
                self.receiver.step = if len == left {
                    Step::Data { left: payload.len, payload }
                } else {
                    Step::Pad { left: left - len, payload }
                };
                len == left
            }
            Step::Data { left, payload } => {
                let len = left.min(available);
                if len == 0 {
                    return false;
                }
                if let Some(slot) = payload.slot {
                    let slot = &mut self.slots[usize::from(slot)];
                    let filled = slot.filled;
                    if let Some(buffer) = slot.buffer.as_mut() {
                        let bytes = &self.receiver.staging[self.receiver.start..][..len];
                        buffer[filled..filled + len].copy_from_slice(bytes);
                    }
                }
                self.receiver.consume(len);
                self.payload_arrived(len);
                true
            }
            Step::Digest { payload } => {
                let Some(digest) = self.receiver.available().first_chunk::<DIGEST_LEN>() else {
                    return false;
                };
                let matches = u32::from_le_bytes(*digest) == payload.crc;
                self.receiver.consume(DIGEST_LEN);
                self.receiver.step = Step::Head;
                if let Some(index) = payload.slot {
                    self.slots[usize::from(index)].digest_failed |= !matches;
                    self.payload_complete(index);
                }
                true
            }
        }
    }

    /// `len` bytes of payload are in place.
    fn payload_arrived(&mut self, len: usize) {
        let Step::Data { left, mut payload } = self.receiver.step else { return };
        if let Some(index) = payload.slot {
            let slot = &mut self.slots[usize::from(index)];
            if payload.digest
                && let Some(buffer) = slot.buffer.as_ref()
            {
                payload.crc = crc32c_append(payload.crc, &buffer[slot.filled..slot.filled + len]);
            }
            slot.filled += len;
        }
        if len < left {
            self.receiver.step = Step::Data { left: left - len, payload };
        } else if payload.digest {
            self.receiver.step = Step::Digest { payload };
        } else {
            self.receiver.step = Step::Head;
            if let Some(index) = payload.slot {
                self.payload_complete(index);
            }
        }
    }

    /// A PDU's payload is complete, and checked; the command may need more.
    fn payload_complete(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        let whole = slot.buffer.as_ref().is_some_and(|buffer| slot.filled == buffer.len());
        if whole {
            self.host_data_complete(index);
        }
    }

    fn receive_head(&mut self) -> bool {
        let available = self.receiver.available();
        let Ok((common, _)) = CommonHeader::read_from_prefix(available) else { return false };
        let settled = self.settled;
        let layout = match Layout::parse(&common, settled.as_ref()) {
            Ok(layout) => layout,
            Err(error) => {
                let header = available[..available.len().min(8)].to_vec();
                self.terminate(error, &header);
                return false;
            }
        };
        let head_len = layout.head_len();
        if available.len() < head_len {
            return false;
        }
        let mut head = [0; HEAD_LEN_MAX];
        head[..head_len].copy_from_slice(&available[..head_len]);
        self.receiver.consume(head_len);
        let (header, digest) = head[..head_len].split_at(layout.header_len);
        if let Some(digest) = digest.first_chunk::<DIGEST_LEN>() {
            let digest = u32::from_le_bytes(*digest);
            if crc32c(header) != digest {
                let error = PduError { status: FatalError::HeaderDigest, information: digest };
                self.terminate(error, header);
                return false;
            }
        }
        match self.accept(&layout, header) {
            Ok(slot) => {
                self.enter_payload(&layout, slot);
                self.receiver.step != Step::Discard
            }
            Err(error) => {
                self.terminate(error, header);
                false
            }
        }
    }

    /// Acts on a whole header; returns the slot that wants the payload.
    fn accept(&mut self, layout: &Layout, header: &[u8]) -> Result<Option<u16>, PduError> {
        match layout.pdu {
            HostPdu::IcReq => {
                let header = header.first_chunk::<128>().expect("the layout says 128 bytes");
                self.initialize(&IcReq::parse(header)?);
                Ok(None)
            }
            HostPdu::TermReq => {
                tracing::info!(peer = ?self.peer, "the host terminated the connection");
                self.disconnected();
                Ok(None)
            }
            HostPdu::Capsule => {
                let capsule = CapsuleCmd::read_from_bytes(header)
                    .expect("the layout says the capsule's header length");
                self.begin_command(&capsule.sqe, layout.data_len)
            }
            HostPdu::Data => {
                let data = DataHeader::read_from_bytes(header)
                    .expect("the layout says the data header's length");
                self.begin_data(&data, layout).map(Some)
            }
        }
    }

    fn enter_payload(&mut self, layout: &Layout, slot: Option<u16>) {
        if layout.data_len == 0 || self.receiver.step == Step::Discard {
            return;
        }
        let payload =
            Payload { slot, len: layout.data_len as usize, digest: layout.data_digest, crc: 0 };
        self.receiver.step = Step::Pad { left: layout.pad_len, payload };
    }

    /// Checks H2CData against the R2T it answers (TCP 1.0, section 3.6.2.6).
    fn begin_data(&mut self, data: &DataHeader, layout: &Layout) -> Result<u16, PduError> {
        const CID_AT: u32 = 8;
        const TAG_AT: u32 = 10;
        const LEN_AT: u32 = 16;
        let index = data.tag.get();
        let slot = self.slots.get(usize::from(index)).ok_or(PduError::field(TAG_AT))?;
        if slot.state != SlotState::ReceivingData {
            return Err(PduError::field(TAG_AT));
        }
        if slot.cid != data.cid.get() {
            return Err(PduError::field(CID_AT));
        }
        if data.len.get() != layout.data_len {
            return Err(PduError::field(LEN_AT));
        }
        let left = slot.data_len - slot.filled as u32;
        if data.offset.get() as usize != slot.filled || layout.data_len > left {
            return Err(PduError::new(FatalError::DataOutOfRange));
        }
        // LAST_PDU is set in the PDU that completes the R2T, and in no other.
        if layout.last != (layout.data_len == left) {
            return Err(PduError::field(1));
        }
        self.receiver.expected_bytes -= u64::from(layout.data_len);
        Ok(index)
    }

    /// Whether bytes of the host are still of interest.
    pub fn wants_bytes(&self) -> bool {
        self.phase != Phase::Closed
    }
}
