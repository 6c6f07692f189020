//! A small NVMe/TCP host without sockets: commands in, bytes out, bytes in, answers out.
//!
//! It checks what it receives (types, lengths, digests, order of data) and panics on a fault of the
//! target, because it serves tests only.

use engine_base::checksum::crc32c;
use nvme_spec::command::{FABRICS_OPCODE, admin_opcode, io_opcode};
use nvme_spec::fabrics::{CONTROLLER_ID_DYNAMIC, ConnectData, fabrics_type};
use nvme_spec::pdu::{
    CapsuleCmd, CapsuleResp, CommonHeader, DIGEST_DATA, DIGEST_HEADER, DataHeader, FLAG_LAST,
    FLAG_SUCCESS, IcReq, IcResp, ReadyToTransfer, TermReq, kind,
};
use nvme_spec::queue::{FLAGS_PSDT_SGL, SGL_IN_CAPSULE, SGL_TRANSPORT};
use nvme_spec::{Cqe, Nqn, Sqe, Status};
use std::collections::BTreeMap;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// What a host asks for in ICReq and Connect.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostOptions {
    /// Ask for header digests.
    pub header_digest: bool,
    /// Ask for data digests.
    pub data_digest: bool,
    /// HPDA.
    pub data_alignment: u8,
    /// Ask to do without submission queue flow control.
    pub disable_flow_control: bool,
    /// Most data bytes of one H2CData, below what the target allows; 0: what it allows.
    pub h2c_data_max: u32,
}

/// The end of a command.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The completion; made up when C2HData said SUCCESS.
    pub cqe: Cqe,
    /// Data read.
    pub data: Vec<u8>,
    /// There was a completion capsule.
    pub capsule: bool,
}

impl Answer {
    /// The completion's status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.cqe.status()
    }
}

#[derive(Default, Debug)]
struct Pending {
    /// Data to send when R2T asks for them.
    write: Vec<u8>,
    read: Vec<u8>,
}

/// A host's end of one connection.
#[derive(Debug)]
pub struct TestHost {
    options: HostOptions,
    output: Vec<u8>,
    input: Vec<u8>,
    next_cid: u16,
    pending: BTreeMap<u16, Pending>,
    answers: BTreeMap<u16, Answer>,
    initialized: Option<IcResp>,
    terminated: Option<TermReq>,
    /// R2Ts received.
    pub ready_to_transfers: usize,
}

impl TestHost {
    /// A host that has sent ICReq.
    #[must_use]
    pub fn new(options: HostOptions) -> Self {
        let mut host = Self::silent(options);
        let mut request = IcReq::zeroed();
        request.common = CommonHeader::new(kind::IC_REQ, 0, 128, 0, 0, (false, false));
        request.data_alignment = options.data_alignment;
        request.digests = if options.header_digest { DIGEST_HEADER } else { 0 }
            | if options.data_digest { DIGEST_DATA } else { 0 };
        host.output.extend_from_slice(request.as_bytes());
        host
    }

    /// A host that has sent nothing.
    #[must_use]
    pub fn silent(options: HostOptions) -> Self {
        Self {
            options,
            output: Vec::new(),
            input: Vec::new(),
            next_cid: 1,
            pending: BTreeMap::new(),
            answers: BTreeMap::new(),
            initialized: None,
            terminated: None,
            ready_to_transfers: 0,
        }
    }

    /// Bytes for the target.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// The target's ICResp.
    #[must_use]
    pub fn initialized(&self) -> Option<&IcResp> {
        self.initialized.as_ref()
    }

    /// The target's C2HTermReq.
    #[must_use]
    pub fn terminated(&self) -> Option<&TermReq> {
        self.terminated.as_ref()
    }

    /// Commands without an answer.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.pending.len()
    }

    /// Takes the answer of a command.
    pub fn take_answer(&mut self, cid: u16) -> Option<Answer> {
        self.answers.remove(&cid)
    }

    fn digests(&self) -> (bool, bool) {
        (self.options.header_digest, self.options.data_digest)
    }

    fn push(&mut self, header: &[u8], data: &[u8]) {
        self.output.extend_from_slice(header);
        if self.options.header_digest {
            self.output.extend_from_slice(&crc32c(header).to_le_bytes());
        }
        self.output.extend_from_slice(data);
        if self.options.data_digest && !data.is_empty() {
            self.output.extend_from_slice(&crc32c(data).to_le_bytes());
        }
    }

    /// Submits a command; `in_capsule` goes with it, `write` when R2T asks.
    pub fn submit(&mut self, mut sqe: Sqe, in_capsule: &[u8], write: Vec<u8>) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        sqe.cid = U16::new(cid);
        sqe.flags |= FLAGS_PSDT_SGL;
        if !in_capsule.is_empty() {
            sqe.sgl.kind = SGL_IN_CAPSULE;
            sqe.sgl.length = U32::new(in_capsule.len() as u32);
        } else {
            sqe.sgl.kind = SGL_TRANSPORT;
            if !write.is_empty() {
                sqe.sgl.length = U32::new(write.len() as u32);
            }
        }
        self.submit_as_is(&sqe, in_capsule, write);
        cid
    }

    /// Submits an entry without touching it.
    pub fn submit_as_is(&mut self, sqe: &Sqe, in_capsule: &[u8], write: Vec<u8>) {
        let head = 72 + if self.options.header_digest { 4 } else { 0 };
        let offset = if in_capsule.is_empty() { 0 } else { head };
        let len = in_capsule.len() as u32;
        let digests = self.digests();
        let common = CommonHeader::new(kind::CAPSULE_CMD, 0, 72, offset, len, digests);
        self.pending.insert(sqe.cid.get(), Pending { write, read: Vec::new() });
        self.push(CapsuleCmd { common, sqe: *sqe }.as_bytes(), in_capsule);
    }

    /// Takes bytes from the target.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        loop {
            let Ok((common, _)) = CommonHeader::read_from_prefix(&self.input) else { return };
            let len = common.pdu_len.get() as usize;
            assert!((8..=64 << 20).contains(&len), "PLEN {len}");
            if self.input.len() < len {
                return;
            }
            let pdu: Vec<u8> = self.input.drain(..len).collect();
            self.take_pdu(common, &pdu);
        }
    }

    fn take_pdu(&mut self, common: CommonHeader, pdu: &[u8]) {
        let header_len = usize::from(common.header_len);
        let header = &pdu[..header_len];
        let digests = self.digests();
        if !matches!(common.kind, kind::IC_RESP | kind::C2H_TERM_REQ) {
            assert_eq!(common.flags & 1 != 0, digests.0, "HDGSTF");
            if digests.0 {
                assert_eq!(pdu[header_len..header_len + 4], crc32c(header).to_le_bytes());
            }
        }
        match common.kind {
            kind::IC_RESP => {
                let response = IcResp::read_from_bytes(pdu).expect("ICResp has 128 bytes");
                assert!(response.h2c_data_max.get() >= 4096 && response.data_alignment == 0);
                self.initialized = Some(response);
            }
            kind::C2H_TERM_REQ => {
                self.terminated = Some(TermReq::read_from_prefix(pdu).expect("TermReq").0);
            }
            kind::CAPSULE_RESP => {
                let response = CapsuleResp::read_from_bytes(header).expect("response capsule");
                let cid = response.cqe.cid.get();
                let pending = self.pending.remove(&cid).expect("an answer to a command");
                let answer = Answer { cqe: response.cqe, data: pending.read, capsule: true };
                self.answers.insert(cid, answer);
            }
            kind::C2H_DATA => self.take_data(common, pdu),
            kind::R2T => self.take_ready_to_transfer(header),
            other => panic!("PDU type {other} from the target"),
        }
    }

    fn take_data(&mut self, common: CommonHeader, pdu: &[u8]) {
        let data = DataHeader::read_from_prefix(pdu).expect("data header").0;
        let start = usize::from(common.data_offset);
        let alignment = (usize::from(self.options.data_alignment) + 1) * 4;
        assert!(start.is_multiple_of(alignment), "PDO {start}");
        let end = start + data.len.get() as usize;
        let bytes = &pdu[start..end];
        if self.options.data_digest {
            assert_eq!(pdu[end..], crc32c(bytes).to_le_bytes(), "DDGST");
        } else {
            assert_eq!(pdu.len(), end);
        }
        let cid = data.cid.get();
        let pending = self.pending.get_mut(&cid).expect("data for a command");
        assert_eq!(pending.read.len(), data.offset.get() as usize);
        pending.read.extend_from_slice(bytes);
        if common.flags & FLAG_SUCCESS != 0 {
            assert!(common.flags & FLAG_LAST != 0);
            let read = self.pending.remove(&cid).expect("just seen").read;
            let cqe = Cqe::new(cid, 0, Status::SUCCESS);
            self.answers.insert(cid, Answer { cqe, data: read, capsule: false });
        }
    }

    fn take_ready_to_transfer(&mut self, header: &[u8]) {
        let ready = ReadyToTransfer::read_from_bytes(header).expect("R2T");
        self.ready_to_transfers += 1;
        let write = &self.pending.get(&ready.cid.get()).expect("R2T for a command").write;
        let start = ready.offset.get() as usize;
        let bytes = write[start..start + ready.len.get() as usize].to_vec();
        let allowed = self.initialized.expect("after ICResp").h2c_data_max.get();
        let max = if self.options.h2c_data_max == 0 { allowed } else { self.options.h2c_data_max };
        let mut offset = start;
        let chunks: Vec<&[u8]> = bytes.chunks(max as usize).collect();
        for (i, chunk) in chunks.iter().enumerate() {
            let last = i + 1 == chunks.len();
            let header = self.data_header(&ready, offset as u32, chunk.len() as u32, last);
            self.push(header.as_bytes(), chunk);
            offset += chunk.len();
        }
    }

    /// The header of an H2CData that answers `ready`.
    #[must_use]
    pub fn data_header(
        &self,
        ready: &ReadyToTransfer,
        offset: u32,
        len: u32,
        last: bool,
    ) -> DataHeader {
        let mut header = DataHeader::zeroed();
        let data_offset = 24 + if self.options.header_digest { 4 } else { 0 };
        let flags = if last { FLAG_LAST } else { 0 };
        let digests = self.digests();
        header.common = CommonHeader::new(kind::H2C_DATA, flags, 24, data_offset, len, digests);
        header.cid = ready.cid;
        header.tag = ready.tag;
        header.offset = U32::new(offset);
        header.len = U32::new(len);
        header
    }

    /// Connect. `controller_id` is `None` for the admin queue.
    pub fn connect(
        &mut self,
        queue_id: u16,
        controller_id: Option<u16>,
        subsystem: &Nqn,
        host: &Nqn,
        keep_alive_ms: u32,
    ) -> u16 {
        let mut data = ConnectData::zeroed();
        data.host_id = [7; 16];
        data.controller_id = U16::new(controller_id.unwrap_or(CONTROLLER_ID_DYNAMIC));
        data.subsystem_nqn = subsystem.to_field();
        data.host_nqn = host.to_field();
        let flow = u32::from(self.options.disable_flow_control) << 18;
        let sqe = connect_entry(queue_id, 31, flow, keep_alive_ms);
        self.submit(sqe, data.as_bytes(), Vec::new())
    }

    /// Property Get.
    pub fn property_get(&mut self, offset: u32, wide: bool) -> u16 {
        let mut sqe = fabrics(fabrics_type::PROPERTY_GET);
        sqe.cdw10 = U32::new(u32::from(wide));
        sqe.cdw11 = U32::new(offset);
        self.submit(sqe, &[], Vec::new())
    }

    /// Property Set of 4 bytes.
    pub fn property_set(&mut self, offset: u32, value: u32) -> u16 {
        let mut sqe = fabrics(fabrics_type::PROPERTY_SET);
        sqe.cdw11 = U32::new(offset);
        sqe.cdw12 = U32::new(value);
        self.submit(sqe, &[], Vec::new())
    }

    /// Identify.
    pub fn identify(&mut self, cns: u8, nsid: u32) -> u16 {
        let mut sqe = entry(admin_opcode::IDENTIFY, nsid);
        sqe.cdw10 = U32::new(u32::from(cns));
        sqe.sgl.length = U32::new(4096);
        self.submit(sqe, &[], Vec::new())
    }

    /// Get Log Page of `len` bytes at `offset`.
    pub fn get_log_page(&mut self, page: u8, offset: u32, len: u32) -> u16 {
        let mut sqe = entry(admin_opcode::GET_LOG_PAGE, 0xffff_ffff);
        let dwords = len / 4 - 1;
        sqe.cdw10 = U32::new(u32::from(page) | dwords << 16);
        sqe.cdw11 = U32::new(dwords >> 16);
        sqe.cdw12 = U32::new(offset);
        sqe.sgl.length = U32::new(len);
        self.submit(sqe, &[], Vec::new())
    }

    /// Set Features with one number.
    pub fn set_feature(&mut self, id: u8, value: u32) -> u16 {
        let mut sqe = entry(admin_opcode::SET_FEATURES, 0);
        sqe.cdw10 = U32::new(u32::from(id));
        sqe.cdw11 = U32::new(value);
        self.submit(sqe, &[], Vec::new())
    }

    /// Get Features.
    pub fn get_feature(&mut self, id: u8) -> u16 {
        let mut sqe = entry(admin_opcode::GET_FEATURES, 0);
        sqe.cdw10 = U32::new(u32::from(id));
        self.submit(sqe, &[], Vec::new())
    }

    /// A command without data and parameters.
    pub fn bare(&mut self, opcode: u8, nsid: u32) -> u16 {
        self.submit(entry(opcode, nsid), &[], Vec::new())
    }

    /// Abort.
    pub fn abort(&mut self, queue_id: u16, cid: u16) -> u16 {
        let mut sqe = entry(admin_opcode::ABORT, 0);
        sqe.cdw10 = U32::new(u32::from(queue_id) | u32::from(cid) << 16);
        self.submit(sqe, &[], Vec::new())
    }

    /// Read of `blocks` blocks, `bytes` long.
    pub fn read(&mut self, nsid: u32, first: u64, blocks: u32, bytes: u32) -> u16 {
        let mut sqe = io_entry(io_opcode::READ, nsid, first, blocks);
        sqe.sgl.length = U32::new(bytes);
        self.submit(sqe, &[], Vec::new())
    }

    /// Write of `blocks` blocks, in the capsule or by R2T.
    pub fn write(
        &mut self,
        nsid: u32,
        first: u64,
        blocks: u32,
        data: &[u8],
        in_capsule: bool,
    ) -> u16 {
        let sqe = io_entry(io_opcode::WRITE, nsid, first, blocks);
        if in_capsule {
            self.submit(sqe, data, Vec::new())
        } else {
            self.submit(sqe, &[], data.to_vec())
        }
    }

    /// Write Zeroes.
    pub fn write_zeroes(&mut self, nsid: u32, first: u64, blocks: u32) -> u16 {
        self.submit(io_entry(io_opcode::WRITE_ZEROES, nsid, first, blocks), &[], Vec::new())
    }

    /// Dataset Management, deallocate, of ranges `(first, blocks)`.
    pub fn deallocate(&mut self, nsid: u32, ranges: &[(u64, u32)], in_capsule: bool) -> u16 {
        let mut sqe = entry(io_opcode::DATASET_MANAGEMENT, nsid);
        sqe.cdw10 = U32::new(ranges.len() as u32 - 1);
        sqe.cdw11 = U32::new(4);
        let mut data = Vec::new();
        for &(first, blocks) in ranges {
            let mut range = nvme_spec::command::DsmRange::zeroed();
            range.first = U64::new(first);
            range.blocks = U32::new(blocks);
            data.extend_from_slice(range.as_bytes());
        }
        if in_capsule { self.submit(sqe, &data, Vec::new()) } else { self.submit(sqe, &[], data) }
    }

    /// Copy of ranges `(first, blocks)` to block `destination`.
    pub fn copy(
        &mut self,
        nsid: u32,
        destination: u64,
        ranges: &[(u64, u32)],
        in_capsule: bool,
    ) -> u16 {
        let sqe = io_entry(io_opcode::COPY, nsid, destination, ranges.len() as u32);
        let data = copy_ranges(ranges);
        if in_capsule { self.submit(sqe, &data, Vec::new()) } else { self.submit(sqe, &[], data) }
    }
}

/// The data of Copy for ranges `(first, blocks)`.
#[must_use]
pub fn copy_ranges(ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut data = Vec::new();
    for &(first, blocks) in ranges {
        let mut range = nvme_spec::command::CopyRange::zeroed();
        range.first = U64::new(first);
        range.blocks = U16::new((blocks - 1) as u16);
        data.extend_from_slice(range.as_bytes());
    }
    data
}

/// An entry with an opcode and a namespace.
#[must_use]
pub fn entry(opcode: u8, nsid: u32) -> Sqe {
    let mut sqe = Sqe::zeroed();
    sqe.opcode = opcode;
    sqe.nsid = U32::new(nsid);
    sqe
}

/// A Fabrics entry.
#[must_use]
pub fn fabrics(command_type: u8) -> Sqe {
    entry(FABRICS_OPCODE, u32::from(command_type))
}

/// A Connect entry.
#[must_use]
pub fn connect_entry(queue_id: u16, sq_size: u16, attributes: u32, keep_alive_ms: u32) -> Sqe {
    let mut sqe = fabrics(fabrics_type::CONNECT);
    sqe.cdw10 = U32::new(u32::from(queue_id) << 16);
    sqe.cdw11 = U32::new(u32::from(sq_size) | attributes);
    sqe.cdw12 = U32::new(keep_alive_ms);
    sqe
}

/// An entry that addresses logical blocks.
#[must_use]
pub fn io_entry(opcode: u8, nsid: u32, first: u64, blocks: u32) -> Sqe {
    let mut sqe = entry(opcode, nsid);
    sqe.cdw10 = U32::new(first as u32);
    sqe.cdw11 = U32::new((first >> 32) as u32);
    sqe.cdw12 = U32::new(blocks - 1);
    sqe
}
