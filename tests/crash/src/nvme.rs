//! A small NVMe/TCP initiator: one queue, one command at a time.
//!
//! Enough to write, read and flush. It sends data when it is asked to (R2T) and never in the capsule,
//! uses no digests and no keep-alive. What it receives is checked, since a target that answers
//! nonsense is a finding too.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use nvme_spec::command::{FABRICS_OPCODE, io_opcode};
use nvme_spec::fabrics::{CONTROLLER_ID_DYNAMIC, ConnectData, ConnectFields, fabrics_type};
use nvme_spec::pdu::{
    CapsuleCmd, CapsuleResp, CommonHeader, DataHeader, FLAG_LAST, FLAG_SUCCESS, IcReq, IcResp,
    ReadyToTransfer, kind,
};
use nvme_spec::queue::{FLAGS_PSDT_SGL, SGL_IN_CAPSULE, SGL_TRANSPORT};
use nvme_spec::register::{CC, CSTS, CSTS_READY};
use nvme_spec::{Nqn, Sqe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes as _, IntoBytes as _};

use crate::content::BLOCK_BYTES;

/// CC of an enabled controller: entries of 64 and 16 bytes, the NVM command set, EN
/// (Base 2.0, figure 46).
const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
/// FUA of Write, in CDW12 (NVM 1.0, figure 33).
const FUA: u32 = 1 << 30;
/// Entries of a queue, 0-based: more than the one command that is ever under way.
const QUEUE_ENTRIES: u16 = 31;
/// How often CSTS is asked before the controller counts as never ready.
const READY_POLLS_MAX: u32 = 10_000;

/// A connected controller with one I/O queue, using namespace 1 with blocks of 4096 bytes.
pub(crate) struct Initiator {
    io: Queue,
    /// The controller lives as long as its admin queue.
    _admin: Queue,
}

impl Initiator {
    /// Connects to the subsystem `nqn`. `host` tells one host from another.
    pub(crate) async fn connect(address: SocketAddr, nqn: &Nqn, host: u8) -> Result<Self> {
        let mut admin = Queue::open(address).await?;
        let controller = admin.connect(nqn, host, 0, CONTROLLER_ID_DYNAMIC).await?;
        admin.enable().await?;
        let mut io = Queue::open(address).await?;
        io.connect(nqn, host, 1, controller).await?;
        Ok(Self { io, _admin: admin })
    }

    /// Writes whole blocks from block `first` on.
    pub(crate) async fn write(&mut self, first: u64, data: &[u8], fua: bool) -> Result<()> {
        let sqe = io_command(io_opcode::WRITE, first, data.len(), if fua { FUA } else { 0 })?;
        self.io.command(sqe, &[], data, None).await.map(drop)
    }

    /// Reads whole blocks from block `first` on.
    pub(crate) async fn read(&mut self, first: u64, data: &mut [u8]) -> Result<()> {
        let sqe = io_command(io_opcode::READ, first, data.len(), 0)?;
        self.io.command(sqe, &[], &[], Some(data)).await.map(drop)
    }

    /// Makes every acknowledged write durable.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let mut sqe = Sqe::zeroed();
        sqe.opcode = io_opcode::FLUSH;
        sqe.nsid = U32::new(1);
        sqe.flags = FLAGS_PSDT_SGL;
        self.io.command(sqe, &[], &[], None).await.map(drop)
    }
}

fn io_command(opcode: u8, first: u64, bytes: usize, flags: u32) -> Result<Sqe> {
    let blocks = u32::try_from(bytes / BLOCK_BYTES)?;
    ensure!(blocks > 0 && bytes.is_multiple_of(BLOCK_BYTES), "{bytes} bytes are no whole blocks");
    let mut sqe = Sqe::zeroed();
    sqe.opcode = opcode;
    sqe.nsid = U32::new(1);
    sqe.flags = FLAGS_PSDT_SGL;
    sqe.sgl.kind = SGL_TRANSPORT;
    sqe.sgl.length = U32::new(u32::try_from(bytes)?);
    sqe.cdw10 = U32::new(first as u32);
    sqe.cdw11 = U32::new((first >> 32) as u32);
    sqe.cdw12 = U32::new((blocks - 1) | flags);
    Ok(sqe)
}

struct Queue {
    stream: TcpStream,
    next_cid: u16,
    h2c_data_max: usize,
}

impl Queue {
    /// Opens a connection and initialises it (TCP 1.0, section 3.3).
    async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connecting to the target")?;
        stream.set_nodelay(true)?;
        let mut queue = Self { stream, next_cid: 0, h2c_data_max: 0 };
        let mut request = IcReq::zeroed();
        request.common = header(kind::IC_REQ, size_of::<IcReq>(), None);
        queue.stream.write_all(request.as_bytes()).await?;
        let mut bytes = [0; size_of::<IcResp>()];
        queue.stream.read_exact(&mut bytes).await?;
        let response = IcResp::read_from_bytes(&bytes).map_err(|_| anyhow::anyhow!("ICResp"))?;
        ensure!(response.common.kind == kind::IC_RESP, "no ICResp: {:?}", response.common);
        ensure!(response.digests == 0, "digests that nobody asked for");
        queue.h2c_data_max = response.h2c_data_max.get() as usize;
        ensure!(queue.h2c_data_max >= 4096, "MAXH2CDATA of {}", queue.h2c_data_max);
        Ok(queue)
    }

    /// Fabrics Connect (Base 2.0, section 6.3); returns the controller's identifier.
    async fn connect(&mut self, nqn: &Nqn, host: u8, queue: u16, controller: u16) -> Result<u16> {
        let mut data = ConnectData::zeroed();
        data.host_id = [host; 16];
        data.controller_id = U16::new(controller);
        data.subsystem_nqn = nqn.to_field();
        let host_nqn = format!("nqn.2014-08.org.nvmexpress:crash-test-host-{host}");
        data.host_nqn = Nqn::new(&host_nqn)?.to_field();

        let mut fields = ConnectFields::zeroed();
        fields.queue_id = U16::new(queue);
        fields.sq_size = U16::new(QUEUE_ENTRIES);
        let mut sqe = fabrics(fabrics_type::CONNECT);
        sqe.sgl.kind = SGL_IN_CAPSULE;
        sqe.sgl.length = U32::new(size_of::<ConnectData>() as u32);
        // Bytes 40 to 63 of the entry are the command's own.
        let mut bytes = [0; size_of::<Sqe>()];
        bytes.copy_from_slice(sqe.as_bytes());
        bytes[40..].copy_from_slice(fields.as_bytes());
        let sqe = Sqe::read_from_bytes(&bytes).map_err(|_| anyhow::anyhow!("Sqe"))?;
        let result = self.command(sqe, data.as_bytes(), &[], None).await.context("Connect")?;
        Ok(result as u16)
    }

    /// Enables the controller and waits until it says that it is ready.
    async fn enable(&mut self) -> Result<()> {
        let mut set = fabrics(fabrics_type::PROPERTY_SET);
        set.cdw11 = U32::new(CC);
        set.cdw12 = U32::new(CC_ENABLE);
        self.command(set, &[], &[], None).await.context("Property Set of CC")?;
        for _ in 0..READY_POLLS_MAX {
            let mut get = fabrics(fabrics_type::PROPERTY_GET);
            get.cdw11 = U32::new(CSTS);
            let status = self.command(get, &[], &[], None).await.context("Property Get of CSTS")?;
            if status as u32 & CSTS_READY != 0 {
                return Ok(());
            }
        }
        bail!("the controller is not ready after {READY_POLLS_MAX} looks at CSTS")
    }

    /// Sends a command and does what the target asks for until it is complete. `capsule` is sent
    /// with it, `out` when asked for, `into` is filled. Returns the completion's result.
    async fn command(
        &mut self,
        mut sqe: Sqe,
        capsule: &[u8],
        out: &[u8],
        mut into: Option<&mut [u8]>,
    ) -> Result<u64> {
        self.next_cid = self.next_cid.wrapping_add(1);
        sqe.cid = U16::new(self.next_cid);
        let data = (!capsule.is_empty()).then_some(capsule.len());
        let common = header(kind::CAPSULE_CMD, size_of::<CapsuleCmd>(), data);
        let mut message = CapsuleCmd { common, sqe }.as_bytes().to_vec();
        message.extend_from_slice(capsule);
        self.stream.write_all(&message).await?;
        let mut received = 0;
        loop {
            let common = self.receive_header().await?;
            match common.kind {
                kind::CAPSULE_RESP => {
                    let response: CapsuleResp = self.receive_rest(common).await?;
                    ensure!(response.cqe.cid == sqe.cid, "a response to another command");
                    // Bit 0 is the phase tag, unused on Fabrics.
                    let status = response.cqe.status.get() >> 1;
                    ensure!(status == 0, "opcode {:#x} failed with status {status:#x}", sqe.opcode);
                    let wanted = into.map_or(0, |buffer| buffer.len());
                    ensure!(received == wanted, "{received} bytes came instead of {wanted}");
                    return Ok(response.cqe.result.get());
                }
                kind::R2T => {
                    let request: ReadyToTransfer = self.receive_rest(common).await?;
                    ensure!(request.cid == sqe.cid, "an R2T for another command");
                    self.send_data(&request, out).await?;
                }
                kind::C2H_DATA => {
                    let buffer = into.as_deref_mut().context("data that nobody asked for")?;
                    let data: DataHeader = self.receive_rest(common).await?;
                    ensure!(data.cid == sqe.cid, "data of another command");
                    received += self.receive_data(&common, &data, buffer).await?;
                    if common.flags & FLAG_SUCCESS != 0 {
                        ensure!(received == buffer.len(), "success after {received} bytes");
                        return Ok(0);
                    }
                }
                other => bail!("an unexpected PDU of type {other:#x}"),
            }
        }
    }

    async fn receive_header(&mut self) -> Result<CommonHeader> {
        let mut bytes = [0; size_of::<CommonHeader>()];
        self.stream.read_exact(&mut bytes).await?;
        CommonHeader::read_from_bytes(&bytes).map_err(|_| anyhow::anyhow!("a PDU header"))
    }

    /// Reads what follows the common header of a PDU's header.
    async fn receive_rest<T>(&mut self, common: CommonHeader) -> Result<T>
    where
        T: zerocopy::FromBytes + zerocopy::KnownLayout,
    {
        let mut bytes = vec![0; size_of::<T>()];
        let (head, rest) = bytes.split_at_mut(size_of::<CommonHeader>());
        head.copy_from_slice(common.as_bytes());
        ensure!(usize::from(common.header_len) == size_of::<T>(), "HLEN of {common:?}");
        self.stream.read_exact(rest).await?;
        T::read_from_bytes(&bytes).map_err(|_| anyhow::anyhow!("a PDU"))
    }

    /// Reads the data of a C2HData into its place; returns how many bytes.
    async fn receive_data(
        &mut self,
        common: &CommonHeader,
        data: &DataHeader,
        buffer: &mut [u8],
    ) -> Result<usize> {
        let padding = usize::from(common.data_offset)
            .checked_sub(size_of::<DataHeader>())
            .context("PDO within the header")?;
        let mut skipped = vec![0; padding];
        self.stream.read_exact(&mut skipped).await?;
        let (offset, len) = (data.offset.get() as usize, data.len.get() as usize);
        let place = offset.checked_add(len).and_then(|end| buffer.get_mut(offset..end));
        self.stream.read_exact(place.context("data outside the buffer")?).await?;
        Ok(len)
    }

    /// Answers an R2T with H2CData, in pieces of at most MAXH2CDATA.
    async fn send_data(&mut self, request: &ReadyToTransfer, out: &[u8]) -> Result<()> {
        let (offset, len) = (request.offset.get() as usize, request.len.get() as usize);
        let wanted = offset.checked_add(len).and_then(|end| out.get(offset..end));
        let wanted = wanted.context("an R2T outside the command's data")?;
        let mut at = offset;
        for piece in wanted.chunks(self.h2c_data_max) {
            let size = size_of::<DataHeader>();
            let mut common = header(kind::H2C_DATA, size, Some(piece.len()));
            if at + piece.len() == offset + len {
                common.flags |= FLAG_LAST;
            }
            let mut data = DataHeader::zeroed();
            data.common = common;
            data.cid = request.cid;
            data.tag = request.tag;
            data.offset = U32::new(at as u32);
            data.len = U32::new(piece.len() as u32);
            self.stream.write_all(data.as_bytes()).await?;
            self.stream.write_all(piece).await?;
            at += piece.len();
        }
        Ok(())
    }
}

/// A header with `data` bytes right behind it.
fn header(kind: u8, header_len: usize, data: Option<usize>) -> CommonHeader {
    let header_len = header_len as u8;
    let offset = if data.is_some() { header_len } else { 0 };
    CommonHeader::new(kind, 0, header_len, offset, data.unwrap_or(0) as u32, (false, false))
}

fn fabrics(command: u8) -> Sqe {
    let mut sqe = Sqe::zeroed();
    sqe.opcode = FABRICS_OPCODE;
    sqe.flags = FLAGS_PSDT_SGL;
    sqe.nsid = U32::new(u32::from(command));
    sqe.sgl.address = U64::ZERO;
    sqe
}
