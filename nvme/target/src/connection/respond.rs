//! Ends of commands: completions, data to the host, and the release of slots and budget.

use super::{Connection, Phase};
use crate::backend::Backend;
use crate::connection::slot::{SlotState, Work};
use engine_base::checksum::{crc32c, crc32c_append};
use engine_memory::{Buffer, Slice};
use nvme_spec::log::ErrorEntry;
use nvme_spec::pdu::{CapsuleResp, CommonHeader, DataHeader, FLAG_LAST, FLAG_SUCCESS};
use nvme_spec::pdu::{ReadyToTransfer, kind};
use nvme_spec::{Cqe, DataPointer, IoCommand, Status};
use smallvec::SmallVec;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

impl<B: Backend> Connection<B> {
    /// Queues the completion of a command.
    pub(super) fn complete(&mut self, index: u16, result: u64, status: Status) {
        if !status.is_success() {
            self.log_error(index, status);
        }
        self.count(index, status);
        let cid = self.slots[usize::from(index)].cid;
        let mut cqe = Cqe::new(cid, result, status);
        if let Some(queue) = &self.queue
            && !queue.flow_control_disabled
        {
            cqe.sqhd = U16::new(queue.head);
        }
        self.push_completion(cqe);
        self.responding(index);
    }

    /// Queues a completion as it is.
    pub(super) fn push_completion(&mut self, cqe: Cqe) {
        let digests = self.digests();
        let common = CommonHeader::new(kind::CAPSULE_RESP, 0, 24, 0, 0, digests);
        self.push_header(CapsuleResp { common, cqe }.as_bytes());
    }

    /// Queues data for the host and the success of the command.
    pub(super) fn complete_with_data(&mut self, index: u16, data: SmallVec<[Slice; 4]>) {
        let len: usize = data.iter().map(|slice| slice.len()).sum();
        let success = self.may_omit_completion();
        let flags = FLAG_LAST | if success { FLAG_SUCCESS } else { 0 };
        let digests = self.digests();
        let head_len = 24 + if digests.0 { 4 } else { 0 };
        let data_offset = usize::next_multiple_of(head_len, self.host_data_alignment);
        let mut header = DataHeader::zeroed();
        header.common =
            CommonHeader::new(kind::C2H_DATA, flags, 24, data_offset as u8, len as u32, digests);
        header.cid = U16::new(self.slots[usize::from(index)].cid);
        header.len = U32::new(len as u32);
        self.push_header(header.as_bytes());
        let padding = [0; 128];
        self.transmitter.push_bytes(&padding[..data_offset - head_len]);
        let mut crc = 0;
        for slice in data {
            if digests.1 {
                crc = crc32c_append(crc, &slice);
            }
            self.transmitter.push_data(slice);
        }
        if digests.1 {
            self.transmitter.push_bytes(&crc.to_le_bytes());
        }
        if success {
            self.count(index, Status::SUCCESS);
            self.responding(index);
        } else {
            self.complete(index, 0, Status::SUCCESS);
        }
    }

    /// Answers an admin command with bytes, cut to what the host asked for.
    pub(super) fn complete_with_bytes(&mut self, index: u16, wanted: DataPointer, bytes: &[u8]) {
        let DataPointer::Transport { len } = wanted else {
            return self.complete(index, 0, Status::SGL_TYPE_INVALID);
        };
        let bytes = &bytes[..bytes.len().min(len as usize)];
        match Buffer::try_copy_of(bytes) {
            Ok(buffer) => {
                self.slots[usize::from(index)].data_len = bytes.len() as u32;
                self.complete_with_data(index, SmallVec::from_iter([buffer.freeze()]));
            }
            Err(_) => self.complete(index, 0, Status::INTERNAL_ERROR),
        }
    }

    /// Asks the host for the data of a command; the slot's number is the tag.
    pub(super) fn push_ready_to_transfer(&mut self, index: u16) {
        let slot = &self.slots[usize::from(index)];
        let mut ready = ReadyToTransfer::zeroed();
        ready.common = CommonHeader::new(kind::R2T, 0, 24, 0, 0, self.digests());
        ready.cid = U16::new(slot.cid);
        ready.tag = U16::new(index);
        ready.len = U32::new(slot.data_len);
        self.push_header(ready.as_bytes());
    }

    fn push_header(&mut self, header: &[u8]) {
        self.transmitter.push_bytes(header);
        if self.digests().0 {
            self.transmitter.push_bytes(&crc32c(header).to_le_bytes());
        }
    }

    fn digests(&self) -> (bool, bool) {
        self.settled.map_or((false, false), |settled| (settled.header_digest, settled.data_digest))
    }

    /// Whether C2HData may say SUCCESS in place of a completion: the host does without SQHD
    /// (Base 2.0, section 6.3, CATTR), or the limits say that all hosts do.
    fn may_omit_completion(&self) -> bool {
        let limits = self.context.target.limits();
        !limits.success_needs_flow_control_off
            || self.queue.as_ref().is_some_and(|queue| queue.flow_control_disabled)
    }

    fn responding(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.state = SlotState::Responding;
        slot.clear();
        self.transmitter.mark(index);
    }

    fn count(&self, index: u16, status: Status) {
        let slot = &self.slots[usize::from(index)];
        let latency_ns = self.now_ns.saturating_sub(slot.started_ns);
        let (bytes, failed) = (u64::from(slot.data_len), !status.is_success());
        self.stats.record(slot.kind, bytes, failed, latency_ns);
        if let Some(namespace) = &slot.namespace {
            namespace.stats.record(slot.kind, bytes, failed, latency_ns);
        }
    }

    fn log_error(&self, index: u16, status: Status) {
        let (slot, Some(queue)) = (&self.slots[usize::from(index)], &self.queue) else { return };
        tracing::debug!(peer = ?self.peer, queue = queue.id, cid = slot.cid, ?status, "command failed");
        let mut entry = ErrorEntry::zeroed();
        entry.sqid = U16::new(queue.id);
        entry.cid = U16::new(slot.cid);
        entry.status = U16::new(status.to_bits());
        entry.parameter_location = U16::new(0xffff);
        if let Some(Work::Io(command)) = slot.work {
            entry.nsid = U32::new(command.nsid());
            let first = match command {
                IoCommand::Read { range, .. }
                | IoCommand::Write { range, .. }
                | IoCommand::WriteZeroes { range, .. } => range.first,
                IoCommand::Copy { destination, .. } => destination,
                IoCommand::Flush { .. } | IoCommand::DatasetManagement { .. } => 0,
            };
            entry.lba = U64::new(first);
        }
        queue.controller.log_error(entry);
    }

    /// The slot's answer is out, or nobody wants it.
    pub(super) fn free_slot(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.state != SlotState::Free && slot.future.is_none());
        slot.state = SlotState::Free;
        slot.clear();
        let charged = std::mem::take(&mut slot.charged);
        self.free_slots.push(index);
        self.release(charged);
    }

    /// Reserves room among the bytes in flight.
    pub(super) fn try_charge(&mut self, index: u16, bytes: u64) -> bool {
        let limit = self.context.target.limits().inflight_bytes_per_connection_max;
        if self.inflight_bytes + bytes > limit || !self.context.try_charge(bytes) {
            return false;
        }
        self.inflight_bytes += bytes;
        self.slots[usize::from(index)].charged += bytes;
        true
    }

    pub(super) fn release(&mut self, bytes: u64) {
        if bytes > 0 {
            self.inflight_bytes -= bytes;
            self.context.release(bytes);
        }
    }

    /// Whether answers still reach the host.
    pub(super) fn answers(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Live)
    }
}
