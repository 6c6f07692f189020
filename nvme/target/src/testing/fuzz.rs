//! Bodies of the fuzz targets: each takes any bytes and must return.

use super::host::{HostOptions, TestHost};
use super::in_process::InProcess;
use crate::limits::Limits;
use nvme_spec::fabrics::FabricsCommand;
use nvme_spec::pdu::{CommonHeader, IcReq, Layout, Settled};
use nvme_spec::{AdminCommand, IoCommand, Sqe};
use zerocopy::{FromBytes, IntoBytes};

/// Any 8 bytes as a common header: what parses is consistent with itself and its limits.
pub fn pdu_header(bytes: &[u8]) {
    let Some((&mode, bytes)) = bytes.split_first() else { return };
    let Ok((common, rest)) = CommonHeader::read_from_prefix(bytes) else { return };
    let settled = Settled {
        header_digest: mode & 1 != 0,
        data_digest: mode & 2 != 0,
        in_capsule_max: 8192,
        h2c_data_max: 1 << 20,
    };
    let settled = (mode & 4 != 0).then_some(settled);
    if let Ok(layout) = Layout::parse(&common, settled.as_ref()) {
        let tail = if layout.data_digest { 4 } else { 0 };
        let sum = layout.head_len() + layout.pad_len + layout.data_len as usize + tail;
        assert_eq!(sum, common.pdu_len.get() as usize);
        assert!(layout.data_len <= 1 << 20);
    }
    if let Some(request) = rest.first_chunk::<128>() {
        let _ = IcReq::parse(request);
    }
}

/// Any 64 bytes as a submission queue entry.
pub fn sqe_parse(bytes: &[u8]) {
    let Ok((sqe, _)) = Sqe::read_from_prefix(bytes) else { return };
    if let Ok(AdminCommand::GetLogPage { offset, len, .. }) = AdminCommand::parse(&sqe) {
        assert!(offset % 4 == 0 && len % 4 == 0);
    }
    if let Ok(IoCommand::Read { range, .. } | IoCommand::Write { range, .. }) =
        IoCommand::parse(&sqe)
    {
        assert!((1..=65536).contains(&range.blocks));
        let _ = range.check_within(u64::MAX);
    }
    let _ = FabricsCommand::parse(&sqe);
}

/// A connection that is live gets any bytes. The first byte chooses what kind of connection, the
/// second how the bytes are cut.
pub fn connection_stream(bytes: &[u8]) {
    let [mode, cut, bytes @ ..] = bytes else { return };
    let mut target = InProcess::new(Limits::default(), 12, 64, None);
    let options = HostOptions {
        header_digest: false,
        data_digest: mode & 4 != 0,
        disable_flow_control: mode & 8 != 0,
        ..HostOptions::default()
    };
    let link = match mode & 3 {
        0 => target.open(TestHost::silent(options)),
        1 => {
            let link = target.open(TestHost::new(options));
            target.pump();
            link
        }
        2 => target.connect_admin(options, 10_000).0,
        _ => target.connect(options).1,
    };
    let connection = &mut target.links[link].connection;
    for part in bytes.chunks(usize::from(*cut) + 1) {
        connection.feed(part);
        connection.turn(2);
        while connection.has_output() {
            let len = connection.gather().iter().map(|part| part.len()).sum();
            connection.transmitted(len);
        }
    }
    connection.turn(60_000_000_000);
    connection.disconnected();
    assert!(connection.is_idle(), "the memory backend ends every command at once");
    drop(target.links);
    assert_eq!(target.context.inflight_bytes(), 0);
}

/// Well-formed streams to start from: what a host sends after the greeting.
#[must_use]
pub fn connection_stream_corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    let nqn = nvme_spec::Nqn::new("nqn.2026-01.io.cairn:test").expect("a name");
    let host_nqn = nvme_spec::Nqn::new("nqn.2026-01.io.cairn:host").expect("a name");
    let mut add = |mode: u8, fill: &dyn Fn(&mut TestHost)| {
        let mut host = if mode & 3 == 0 {
            TestHost::new(HostOptions::default())
        } else {
            TestHost::silent(HostOptions::default())
        };
        fill(&mut host);
        let mut bytes = vec![mode, 255];
        bytes.extend(host.take_output());
        corpus.push(bytes);
    };
    add(0, &|host| {
        host.connect(0, None, &nqn, &host_nqn, 1000);
    });
    add(1, &|host| {
        host.connect(0, None, &nqn, &host_nqn, 0);
        host.property_get(0, true);
    });
    add(2, &|host| {
        host.identify(1, 0);
        host.identify(3, 1);
        host.get_log_page(2, 0, 512);
        host.set_feature(7, 0x0003_0003);
        host.set_feature(0x0b, 0x100);
        host.bare(0x0c, 0);
        host.abort(0, 6);
        host.property_set(0x14, 0);
    });
    add(3, &|host| {
        host.write(1, 0, 1, &[1; 4096], true);
        host.read(1, 0, 4, 16384);
        host.deallocate(1, &[(0, 4), (8, 8)], true);
        host.write_zeroes(1, 0, 8);
        host.copy(1, 8, &[(0, 4), (32, 8)], true);
        host.bare(0, 1);
    });
    add(3, &|host| {
        // The first command of the queue takes slot 0, which is its tag.
        let cid = host.write(1, 4, 4, &[2; 16384], false);
        let ready = nvme_spec::pdu::ReadyToTransfer::zeroed();
        for (offset, last) in [(0, false), (8192, true)] {
            let mut header = host.data_header(&ready, offset, 8192, last);
            header.cid = cid.into();
            host.send_raw(header.as_bytes());
            host.send_raw(&[3; 8192]);
        }
    });
    corpus
}
