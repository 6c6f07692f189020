//! What a well-behaved host sees, over the state machine without sockets.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use nvme_spec::fabrics::{DiscoveryLogEntry, DiscoveryLogHeader, InvalidParameter};
use nvme_spec::feature::{AEC_DISCOVERY_CHANGE, AEC_NAMESPACE_ATTRIBUTE, AsyncEvent, FeatureId};
use nvme_spec::identify::{IdentifyController, IdentifyNamespace, cns};
use nvme_spec::log::{ChangedNamespaces, ErrorEntry, SmartLog, page};
use nvme_spec::{Nqn, Status, register};
use nvme_target::testing::{
    CC_ENABLE, HostOptions, InProcess, TestHost, connect_entry, entry, io_entry, test_namespace,
};
use nvme_target::{BackendError, Limits, OperationKind, SubsystemConfig, VolumeKey};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

const READ: u8 = 0x02;

fn plain() -> HostOptions {
    HostOptions::default()
}

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512) as u8 ^ (i as u8).wrapping_mul(31) ^ salt).collect()
}

fn all_options() -> Vec<HostOptions> {
    let mut all = Vec::new();
    for bits in 0..8 {
        all.push(HostOptions {
            header_digest: bits & 1 != 0,
            data_digest: bits & 2 != 0,
            disable_flow_control: bits & 4 != 0,
            data_alignment: [0, 1, 31][bits % 3],
            h2c_data_max: [0, 4096, 60_000][bits % 3],
        });
    }
    all
}

#[test]
fn a_host_comes_up_as_linux_does() {
    let mut t = InProcess::new(Limits::default(), 9, 2048, None);
    let (nqn, host_nqn) = (t.nqn.clone(), t.host_nqn.clone());
    let admin = t.open(TestHost::new(plain()));
    t.pump();
    let response = *t.links[admin].host.initialized().expect("ICResp");
    assert_eq!((response.data_alignment, response.digests), (0, 0));
    assert!(response.h2c_data_max.get() >= 4096 && response.h2c_data_max.get().is_multiple_of(4));
    let connected = t.run(admin, |host| host.connect(0, None, &nqn, &host_nqn, 5000));
    assert_eq!(connected.status(), Status::SUCCESS);
    let id = connected.cqe.result.get() as u16;
    assert!(id != 0 && connected.cqe.result.get() >> 16 == 0, "no authentication asked");
    let cap = t.run(admin, |host| host.property_get(register::CAP, true)).cqe.result.get();
    assert_eq!(cap & 0xffff, 255);
    let version = t.run(admin, |host| host.property_get(register::VS, false)).cqe.result.get();
    assert_eq!(version, u64::from(register::VERSION_2_0));
    assert_eq!(t.run(admin, |host| host.property_get(register::CSTS, false)).cqe.result.get(), 0);
    t.run(admin, |host| host.property_set(register::CC, CC_ENABLE));
    let status = t.run(admin, |host| host.property_get(register::CSTS, false)).cqe.result.get();
    assert_eq!(status, 1);
    let answer = t.run(admin, |host| host.identify(cns::CONTROLLER, 0));
    let controller = IdentifyController::read_from_bytes(&answer.data).unwrap();
    assert_eq!(controller.controller_id.get(), id);
    assert!(controller.keep_alive_100ms.get() > 0 && controller.io_capsule_16b.get() >= 4 + 256);
    assert_eq!(controller.subsystem_nqn, nqn.to_field());
    assert_eq!(controller.sgl_support.get() & (1 | 1 << 20), 1 | 1 << 20);
    assert_eq!(&controller.model[..6], b"Cairn ");
    let queues = t.run(admin, |host| host.set_feature(FeatureId::NUMBER_OF_QUEUES, 0x0007_0007));
    assert_eq!(queues.cqe.result.get(), 0x003f_003f);
    let io = t.connect_io(plain(), id, 1);
    let list = t.run(admin, |host| host.identify(cns::ACTIVE_NAMESPACES, 0));
    assert_eq!(&list.data[..8], &[1, 0, 0, 0, 0, 0, 0, 0]);
    let answer = t.run(admin, |host| host.identify(cns::NAMESPACE, 1));
    let namespace = IdentifyNamespace::read_from_bytes(&answer.data).unwrap();
    assert_eq!(namespace.size_blocks.get(), 2048);
    assert_eq!(namespace.formats[usize::from(namespace.format)].data_size_log2, 9);
    let read = t.run(io, |host| host.read(1, 0, 8, 4096));
    assert_eq!((read.status(), read.data), (Status::SUCCESS, vec![0; 4096]));
    let info = t.target.controllers();
    assert_eq!(info.len(), 1);
    assert_eq!(info[0].connections.iter().map(|c| c.queue_id).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn identify_structures_answer_or_refuse() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, _) = t.connect(plain());
    for which in [
        cns::NAMESPACE,
        cns::CONTROLLER,
        cns::NAMESPACE_DESCRIPTORS,
        cns::COMMAND_SET_NAMESPACE,
        cns::INDEPENDENT_NAMESPACE,
    ] {
        let answer = t.run(admin, |host| host.identify(which, 1));
        assert_eq!((answer.status(), answer.data.len()), (Status::SUCCESS, 4096), "{which:#x}");
    }
    for which in
        [cns::COMMAND_SET_CONTROLLER, cns::COMMAND_SET_ACTIVE_NAMESPACES, cns::COMMAND_SETS]
    {
        let answer = t.run(admin, |host| host.identify(which, 0));
        assert_eq!((answer.status(), answer.data.len()), (Status::SUCCESS, 4096), "{which:#x}");
    }
    let descriptors = t.run(admin, |host| host.identify(cns::NAMESPACE_DESCRIPTORS, 1)).data;
    assert_eq!(&descriptors[..4], &[2, 16, 0, 0]);
    assert_eq!(&descriptors[20..24], &[3, 16, 0, 0]);
    assert_eq!(&descriptors[40..46], &[4, 1, 0, 0, 0, 0]);
    let absent = t.run(admin, |host| host.identify(cns::NAMESPACE, 2));
    assert_eq!((absent.status(), absent.data), (Status::SUCCESS, vec![0; 4096]));
    let refused = [
        (cns::NAMESPACE, 0, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE, 4000, Status::INVALID_NAMESPACE),
        (cns::NAMESPACE_DESCRIPTORS, 2, Status::INVALID_NAMESPACE),
        (cns::INDEPENDENT_NAMESPACE, 2, Status::INVALID_NAMESPACE),
        (cns::ACTIVE_NAMESPACES, u32::MAX, Status::INVALID_NAMESPACE),
        (0x77, 1, Status::INVALID_FIELD),
    ];
    for (which, nsid, status) in refused {
        assert_eq!(t.run(admin, |host| host.identify(which, nsid)).status(), status, "{which:#x}");
    }
}

#[test]
fn data_arrive_with_all_digests_alignments_and_sizes() {
    for (number, options) in all_options().into_iter().enumerate() {
        let seed = 0x5eed + number as u64;
        println!("{options:?}, seed {seed}");
        let mut t = InProcess::new(Limits::default(), 12, 512, Some(seed));
        let (_, io) = t.connect(options);
        for (blocks, in_capsule) in [(1, true), (2, true), (1, false), (33, false), (256, false)] {
            let data = pattern(blocks << 12, blocks as u8);
            let first = 256 - blocks as u64;
            let before = t.links[io].host.ready_to_transfers;
            let written = t.run(io, |host| host.write(1, first, blocks as u32, &data, in_capsule));
            assert_eq!(written.status(), Status::SUCCESS);
            assert_eq!(t.links[io].host.ready_to_transfers - before, usize::from(!in_capsule));
            let read = t.run(io, |host| host.read(1, first, blocks as u32, (blocks << 12) as u32));
            assert!(read.status().is_success() && read.data == data);
            assert_eq!(read.capsule, !options.disable_flow_control, "SUCCESS only without SQHD");
        }
        assert_eq!(t.context.inflight_bytes(), 0);
    }
}

/// HPDA is a number of double words, not a power of two: with HPDA 2 the target once met an assertion
/// of its alignment arithmetic, so that a host's greeting and one read ended the process.
#[test]
fn every_host_data_alignment_is_honoured() {
    for data_alignment in 0..32 {
        for header_digest in [false, true] {
            let options = HostOptions { data_alignment, header_digest, ..plain() };
            let mut t = InProcess::new(Limits::default(), 12, 64, None);
            let (_, io) = t.connect(options);
            let read = t.run(io, |host| host.read(1, 0, 1, 4096));
            assert_eq!((read.status(), read.data.len()), (Status::SUCCESS, 4096));
        }
    }
}

#[test]
fn the_data_of_a_capsule_may_begin_at_an_offset() {
    let mut t = InProcess::new(Limits::default(), 12, 64, Some(3));
    let (_, io) = t.connect(plain());
    let data = pattern(8192, 9);
    let mut sqe = io_entry(0x01, 1, 5, 1);
    sqe.flags = 0x40;
    sqe.cid = 77.into();
    sqe.sgl.kind = 0x01;
    sqe.sgl.address = 4096.into();
    sqe.sgl.length = 4096.into();
    t.links[io].host.submit_as_is(&sqe, &data, Vec::new());
    assert_eq!(t.answer(io, 77).status(), Status::SUCCESS);
    assert_eq!(t.volume.bytes(5 << 12, 4096), data[4096..]);
}

#[test]
fn flush_deallocate_and_write_zeroes_reach_the_backend() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (_, io) = t.connect(plain());
    for block in 0..16 {
        let data = pattern(4096, block as u8);
        t.run(io, |host| host.write(1, block, 1, &data, true));
    }
    assert_eq!(t.run(io, |host| host.bare(0x00, 1)).status(), Status::SUCCESS);
    assert_eq!(t.volume.flushes(), 1);
    for in_capsule in [true, false] {
        let ranges = [(1, 2), (0, 0), (8, 1)];
        let answer = t.run(io, |host| host.deallocate(1, &ranges, in_capsule));
        assert_eq!(answer.status(), Status::SUCCESS);
    }
    assert_eq!(t.volume.deallocated().len(), 4, "empty ranges are left out");
    assert_eq!(t.volume.bytes(4096, 8192), vec![0; 8192]);
    assert_eq!(t.run(io, |host| host.write_zeroes(1, 4, 2)).status(), Status::SUCCESS);
    assert_eq!(t.volume.bytes(4 << 12, 8192), vec![0; 8192]);
    assert_ne!(t.volume.bytes(6 << 12, 4096), vec![0; 4096]);
    let stats = t.target.namespace_stats(&t.nqn, 1).unwrap();
    assert_eq!(stats.of(OperationKind::Write).bytes, 16 * 4096);
    assert_eq!(stats.of(OperationKind::Deallocate).operations, 2);
    assert_eq!(stats.of(OperationKind::Flush).operations, 1);
}

#[test]
fn commands_are_checked_before_they_reach_the_backend() {
    let mut t = InProcess::new(Limits::default(), 12, 512, None);
    let (_, io) = t.connect(plain());
    let block = vec![1; 4096];
    type Case = (&'static str, fn(&mut TestHost, &[u8]) -> u16, Status);
    let cases: &[Case] = &[
        ("read past the end", |h, _| h.read(1, 512, 1, 4096), Status::LBA_OUT_OF_RANGE),
        ("read across the end", |h, _| h.read(1, 511, 2, 8192), Status::LBA_OUT_OF_RANGE),
        ("offset overflows", |h, _| h.read(1, u64::MAX, 1, 4096), Status::LBA_OUT_OF_RANGE),
        ("no such namespace", |h, _| h.read(2, 0, 1, 4096), Status::INVALID_NAMESPACE),
        ("namespace 0", |h, _| h.read(0, 0, 1, 4096), Status::INVALID_NAMESPACE),
        ("flush of all", |h, _| h.bare(0, u32::MAX), Status::INVALID_NAMESPACE),
        ("SGL too short", |h, _| h.read(1, 0, 2, 4096), Status::DATA_SGL_LENGTH_INVALID),
        ("SGL too long", |h, _| h.read(1, 0, 1, 8192), Status::DATA_SGL_LENGTH_INVALID),
        ("over MDTS", |h, _| h.read(1, 0, 257, 257 << 12), Status::INVALID_FIELD),
        ("write past the end", |h, d| h.write(1, 512, 1, d, true), Status::LBA_OUT_OF_RANGE),
        ("capsule too short", |h, d| h.write(1, 0, 2, d, true), Status::DATA_SGL_LENGTH_INVALID),
        ("zeroes past the end", |h, _| h.write_zeroes(1, 500, 13), Status::LBA_OUT_OF_RANGE),
        ("range past the end", |h, _| h.deallocate(1, &[(0, 1), (512, 1)], true), {
            Status::LBA_OUT_OF_RANGE
        }),
        ("unknown opcode", |h, _| h.bare(0x7d, 1), Status::INVALID_OPCODE),
        ("compare is not built", |h, _| h.bare(0x05, 1), Status::INVALID_OPCODE),
        (
            "fused",
            |h, _| {
                let mut sqe = io_entry(READ, 1, 0, 1);
                sqe.flags = 1;
                h.submit(sqe, &[], Vec::new())
            },
            Status::INVALID_FIELD,
        ),
        (
            "in-capsule read",
            |h, d| h.submit(io_entry(READ, 1, 0, 1), d, Vec::new()),
            Status::SGL_TYPE_INVALID,
        ),
    ];
    for (name, submit, status) in cases {
        let answer = t.run(io, |host| submit(host, &block));
        assert_eq!(answer.status(), *status, "{name}");
    }
    let good = t.run(io, |host| host.read(1, 0, 1, 4096));
    assert_eq!(good.data, vec![0; 4096], "nothing was written and the queue still works");
}

#[test]
fn causes_of_the_backend_become_status() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, io) = t.connect(plain());
    let cases = [
        (BackendError::OutOfRange, 0x80, 0, true),
        (BackendError::NoSpace, 0x81, 0, true),
        (BackendError::Read, 0x81, 2, true),
        (BackendError::Write, 0x80, 2, false),
        (BackendError::Busy, 0x82, 0, false),
        (BackendError::ShuttingDown, 0x82, 0, false),
        (BackendError::ReadOnly, 0x20, 0, true),
        (BackendError::Gone, 0x0b, 0, true),
        (BackendError::Unsupported, 0x01, 0, true),
        (BackendError::Internal, 0x06, 0, false),
    ];
    for (error, code, code_type, dnr) in cases {
        t.volume.fail_next(error);
        let status = t.run(io, |host| host.read(1, 3, 1, 4096)).status();
        assert_eq!(status, Status { code_type, code, dnr }, "{error}");
    }
    let log = t.run(admin, |host| host.get_log_page(page::ERROR, 0, 64 * 64)).data;
    let newest = ErrorEntry::read_from_prefix(&log).unwrap().0;
    assert_eq!(newest.error_count.get(), cases.len() as u64);
    assert_eq!((newest.lba.get(), newest.nsid.get(), newest.sqid.get()), (3, 1, 1));
    let smart = t.run(admin, |host| host.get_log_page(page::SMART, 0, 512)).data;
    let smart = SmartLog::read_from_bytes(&smart).unwrap();
    assert_eq!(smart.media_errors[0].get(), cases.len() as u64);
    assert_eq!(smart.host_reads[0].get(), cases.len() as u64);
}

#[test]
fn connect_says_which_parameter_is_wrong() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (nqn, host_nqn) = (t.nqn.clone(), t.host_nqn.clone());
    let other = Nqn::new("nqn.2026-01.io.cairn:other").unwrap();
    let (_, id) = t.connect_admin(plain(), 0);
    let mut check = |submit: &dyn Fn(&mut TestHost) -> u16, status: Status, result: u64| {
        let link = t.open(TestHost::new(plain()));
        let answer = t.run(link, submit);
        assert_eq!((answer.status(), answer.cqe.result.get()), (status, result));
    };
    let invalid = Status::CONNECT_INVALID_PARAMETERS;
    let at = InvalidParameter::to_result;
    check(
        &|h| h.connect(0, None, &other, &host_nqn, 0),
        invalid,
        at(InvalidParameter::SUBSYSTEM_NQN),
    );
    check(
        &|h| h.connect(0, Some(5), &nqn, &host_nqn, 0),
        invalid,
        at(InvalidParameter::CONTROLLER_ID),
    );
    check(
        &|h| h.connect(1, Some(id + 1), &nqn, &host_nqn, 0),
        invalid,
        at(InvalidParameter::CONTROLLER_ID),
    );
    check(&|h| h.connect(1, Some(id), &nqn, &other, 0), invalid, at(InvalidParameter::HOST_NQN));
    check(
        &|h| h.connect(65, Some(id), &nqn, &host_nqn, 0),
        invalid,
        at(InvalidParameter::QUEUE_ID),
    );
    check(
        &|h| h.submit(connect_entry(0, 0, 0, 0), &[0; 1024], Vec::new()),
        invalid,
        at(InvalidParameter::SQ_SIZE),
    );
    check(
        &|h| h.submit(connect_entry(0, 4096, 0, 0), &[0; 1024], Vec::new()),
        invalid,
        at(InvalidParameter::SQ_SIZE),
    );
    check(
        &|h| h.submit(connect_entry(0, 31, 0, 0), &[0xff; 1024], Vec::new()),
        invalid,
        at(InvalidParameter::SUBSYSTEM_NQN),
    );
    check(
        &|h| h.submit(connect_entry(0, 31, 0, 0), &[0; 1020], Vec::new()),
        Status::DATA_SGL_LENGTH_INVALID,
        0,
    );
    check(
        &|h| {
            let mut sqe = connect_entry(0, 31, 0, 0);
            sqe.cdw10 = U32::new(1);
            h.submit(sqe, &[0; 1024], Vec::new())
        },
        Status::CONNECT_INCOMPATIBLE_FORMAT,
        0,
    );
    check(&|h| h.property_get(0, true), Status::COMMAND_SEQUENCE_ERROR, 0);
    check(&|h| h.identify(1, 0), Status::COMMAND_SEQUENCE_ERROR, 0);
    let io = t.connect_io(plain(), id, 1);
    let again = t.run(io, |host| host.connect(1, Some(id), &nqn, &host_nqn, 0));
    assert_eq!(again.status(), Status::COMMAND_SEQUENCE_ERROR, "a queue connects once");
    let twin = t.open(TestHost::new(plain()));
    let answer = t.run(twin, |host| host.connect(1, Some(id), &nqn, &host_nqn, 0));
    assert_eq!(answer.status(), Status::COMMAND_SEQUENCE_ERROR, "the queue exists");
}

#[test]
fn connect_data_may_come_by_r2t() {
    let mut t = InProcess::new(Limits::default(), 12, 64, Some(8));
    let (nqn, host_nqn) = (t.nqn.clone(), t.host_nqn.clone());
    let link = t.open(TestHost::new(plain()));
    t.pump();
    let mut data = nvme_spec::fabrics::ConnectData::zeroed();
    data.controller_id = 0xffff.into();
    data.subsystem_nqn = nqn.to_field();
    data.host_nqn = host_nqn.to_field();
    let cid = t.links[link].host.submit(connect_entry(0, 31, 0, 0), &[], data.as_bytes().to_vec());
    assert_eq!(t.answer(link, cid).status(), Status::SUCCESS);
    assert_eq!(t.links[link].host.ready_to_transfers, 1);
}

#[test]
fn only_allowed_hosts_connect_and_lose_the_connection_with_the_right() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (nqn, host_nqn) = (t.nqn.clone(), t.host_nqn.clone());
    let other = Nqn::new("nqn.2026-01.io.cairn:other").unwrap();
    t.target.set_hosts(&nqn, false, vec![host_nqn.clone()]).unwrap();
    let refused = t.open(TestHost::new(plain()));
    let answer = t.run(refused, |host| host.connect(0, None, &nqn, &other, 0));
    assert_eq!(answer.status(), Status::CONNECT_INVALID_HOST);
    let (admin, io) = t.connect(plain());
    t.target.set_hosts(&nqn, false, vec![other]).unwrap();
    t.pump();
    assert!(t.links[admin].connection.is_closed() && t.links[io].connection.is_closed());
    assert!(t.target.controllers().is_empty());
}

#[test]
fn keep_alive_expires_on_virtual_time_unless_there_is_traffic() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, id) = t.connect_admin(plain(), 2000);
    let io = t.connect_io(plain(), id, 1);
    for _ in 0..10 {
        t.advance_ms(1500);
        t.run(admin, |host| host.bare(0x18, 0));
    }
    assert!(!t.links[admin].connection.is_closed(), "keep alive commands were sent");
    for _ in 0..10 {
        t.advance_ms(1500);
        t.run(io, |host| host.read(1, 0, 1, 4096));
    }
    assert!(!t.links[admin].connection.is_closed(), "I/O is a sign of life, too");
    t.advance_ms(1900);
    t.advance_ms(1900);
    t.advance_ms(2100);
    assert!(t.links[admin].connection.is_closed() && t.links[io].connection.is_closed());
    assert!(t.target.controllers().is_empty());
    let (quiet, _) = t.connect_admin(plain(), 0);
    t.advance_ms(86_400_000);
    assert!(!t.links[quiet].connection.is_closed(), "KATO 0 is no timer");
}

#[test]
fn handshakes_time_out() {
    let limits = Limits { handshake_timeout_ms: 500, ..Limits::default() };
    let mut t = InProcess::new(limits, 12, 64, None);
    let silent = t.open(TestHost::silent(plain()));
    let greeted = t.open(TestHost::new(plain()));
    t.advance_ms(499);
    assert!(!t.links[silent].connection.is_closed() && !t.links[greeted].connection.is_closed());
    t.advance_ms(1);
    assert!(t.links[silent].connection.is_closed() && t.links[greeted].connection.is_closed());
}

#[test]
fn namespace_changes_are_told_once_until_the_log_is_read() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, io) = t.connect(plain());
    let nqn = t.nqn.clone();
    t.run(admin, |host| host.set_feature(FeatureId::ASYNC_EVENT_CONFIG, AEC_NAMESPACE_ATTRIBUTE));
    let first = t.links[admin].host.bare(0x0c, 0);
    let second = t.links[admin].host.bare(0x0c, 0);
    t.pump();
    assert_eq!(t.links[admin].host.outstanding(), 2);
    t.backend.add(VolumeKey(5), 64 << 12);
    t.target.add_namespace(&nqn, test_namespace(5, VolumeKey(5), 12, 64)).unwrap();
    t.volume.resize(128 << 12);
    t.target.resize_namespace(&nqn, 1, 128).unwrap();
    let event = t.answer(admin, first);
    let expected = AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED.to_bits();
    assert_eq!(event.cqe.result.get(), u64::from(expected));
    t.pump();
    assert_eq!(t.links[admin].host.outstanding(), 1, "masked until the log is read");
    let log = t.run(admin, |host| host.get_log_page(page::CHANGED_NAMESPACES, 0, 4096)).data;
    let log = ChangedNamespaces::read_from_bytes(&log).unwrap();
    assert_eq!(log.nsids[..3], [1.into(), 5.into(), U32::ZERO]);
    let log = t.run(admin, |host| host.get_log_page(page::CHANGED_NAMESPACES, 0, 4096)).data;
    assert_eq!(log, vec![0; 4096]);
    assert_eq!(t.run(io, |host| host.read(1, 127, 1, 4096)).status(), Status::SUCCESS);
    assert_eq!(t.run(io, |host| host.read(5, 63, 1, 4096)).status(), Status::SUCCESS);
    t.target.remove_namespace(&nqn, 5).unwrap();
    assert_eq!(t.run(io, |host| host.read(5, 0, 1, 4096)).status(), Status::INVALID_NAMESPACE);
    assert_eq!(t.answer(admin, second).cqe.result.get(), u64::from(expected));
    let list = t.run(admin, |host| host.identify(cns::ACTIVE_NAMESPACES, 0)).data;
    assert_eq!(list[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    t.target.set_read_only(&nqn, 1, true).unwrap();
    let write = t.run(io, |host| host.write(1, 0, 1, &[1; 4096], true));
    assert_eq!(write.status(), Status::NAMESPACE_WRITE_PROTECTED);
}

#[test]
fn event_requests_have_a_limit_and_can_be_aborted() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, _) = t.connect(plain());
    let parked: Vec<u16> = (0..4).map(|_| t.links[admin].host.bare(0x0c, 0)).collect();
    let fifth = t.run(admin, |host| host.bare(0x0c, 0));
    assert_eq!(fifth.status(), Status::AER_LIMIT_EXCEEDED);
    let abort = t.run(admin, |host| host.abort(0, parked[2]));
    assert_eq!((abort.status(), abort.cqe.result.get()), (Status::SUCCESS, 0));
    assert_eq!(t.answer(admin, parked[2]).status(), Status::ABORTED_BY_REQUEST);
    let again = t.run(admin, |host| host.abort(0, parked[2]));
    assert_eq!(again.cqe.result.get(), 1, "there is no such command any more");
    let nowhere = t.run(admin, |host| host.abort(9, 1));
    assert_eq!(nowhere.cqe.result.get(), 1, "there is no such queue");
}

#[test]
fn waiting_io_is_aborted_and_running_io_is_not() {
    let limits = Limits {
        transfer_len_max_log2: 16,
        inflight_bytes_per_connection_max: 64 << 10,
        ..Limits::default()
    };
    let mut t = InProcess::new(limits, 12, 64, None);
    let (admin, io) = t.connect(plain());
    t.volume.hold(true);
    let running = t.links[io].host.read(1, 0, 16, 65536);
    let waiting = t.links[io].host.read(1, 0, 1, 4096);
    t.pump();
    assert_eq!(t.run(admin, |host| host.abort(1, running)).cqe.result.get(), 1);
    assert_eq!(t.run(admin, |host| host.abort(1, waiting)).cqe.result.get(), 0);
    assert_eq!(t.answer(io, waiting).status(), Status::ABORTED_BY_REQUEST);
    t.volume.hold(false);
    assert_eq!(t.answer(io, running).status(), Status::SUCCESS);
}

#[test]
fn bytes_in_flight_are_bounded_and_everybody_gets_a_turn() {
    let limits = Limits {
        transfer_len_max_log2: 16,
        inflight_bytes_per_connection_max: 128 << 10,
        inflight_bytes_per_core_max: 128 << 10,
        ..Limits::default()
    };
    let mut t = InProcess::new(limits, 12, 64, Some(4));
    let (admin, io) = t.connect(plain());
    let other = t.connect(plain()).1;
    t.volume.hold(true);
    let mut commands = Vec::new();
    for i in 0..20 {
        let link = if i % 2 == 0 { io } else { other };
        let host = &mut t.links[link].host;
        let cid = if i % 3 == 0 {
            host.write(1, 0, 16, &pattern(65536, 1), false)
        } else {
            host.read(1, 0, 16, 65536)
        };
        commands.push((link, cid));
    }
    t.pump();
    assert!(t.context.inflight_bytes() <= 128 << 10);
    t.volume.hold(false);
    for _ in 0..100 {
        t.pump();
    }
    for (link, cid) in commands {
        let answer = t.links[link].host.take_answer(cid).expect("all were served");
        assert_eq!(answer.status(), Status::SUCCESS);
    }
    assert_eq!(t.context.inflight_bytes(), 0);
    assert!(!t.links[admin].connection.is_closed());
}

#[test]
fn a_shutdown_flushes_before_it_is_complete() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, _) = t.connect(plain());
    t.volume.hold(true);
    t.run(admin, |host| host.property_set(register::CC, CC_ENABLE | 1 << 14));
    let status = t.run(admin, |host| host.property_get(register::CSTS, false)).cqe.result.get();
    assert_eq!(status, u64::from(register::CSTS_READY | register::CSTS_SHUTDOWN_PROCESSING));
    t.volume.hold(false);
    t.pump();
    let status = t.run(admin, |host| host.property_get(register::CSTS, false)).cqe.result.get();
    assert_eq!(status, u64::from(register::CSTS_READY | register::CSTS_SHUTDOWN_COMPLETE));
    assert_eq!(t.volume.flushes(), 1);
}

#[test]
fn a_reset_cuts_the_io_queues_and_the_controller_comes_up_again() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, id) = t.connect_admin(plain(), 0);
    let io = t.connect_io(plain(), id, 1);
    t.links[admin].host.bare(0x0c, 0);
    t.run(admin, |host| host.property_set(register::CC, CC_ENABLE & !1));
    t.pump();
    assert!(t.links[io].connection.is_closed() && !t.links[admin].connection.is_closed());
    let status = t.run(admin, |host| host.property_get(register::CSTS, false)).cqe.result.get();
    assert_eq!(status, 0);
    t.run(admin, |host| host.property_set(register::CC, CC_ENABLE));
    let io = t.connect_io(plain(), id, 1);
    assert_eq!(t.run(io, |host| host.read(1, 0, 1, 4096)).status(), Status::SUCCESS);
    t.run(admin, |host| host.property_set(register::CC, 0));
    t.run(admin, |host| host.property_set(register::CC, CC_ENABLE | 5 << 7));
    let status = t.run(admin, |host| host.property_get(register::CSTS, false)).cqe.result.get();
    assert_eq!(status, u64::from(register::CSTS_FATAL), "pages of 128 KiB are not supported");
}

#[test]
fn a_started_operation_outlives_its_connection() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, io) = t.connect(plain());
    t.volume.hold(true);
    let data = pattern(4096, 7);
    t.links[io].host.write(1, 9, 1, &data, true);
    t.pump();
    t.links[admin].connection.disconnected();
    t.pump();
    assert!(t.links[io].connection.is_closed(), "the admin queue's end ends the controller");
    assert!(!t.links[io].connection.is_idle());
    t.volume.hold(false);
    t.pump();
    assert!(t.links[io].connection.is_idle());
    assert_eq!(t.volume.bytes(9 << 12, 4096), data);
}

#[test]
fn features_answer_or_refuse() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (admin, _) = t.connect(plain());
    let get = [(0x07, 0x003f_003f), (0x0f, 0), (0x06, 1), (0x0b, 0), (0x04, 0xffff), (0x19, 0)];
    for (id, value) in get {
        let answer = t.run(admin, |host| host.get_feature(id));
        assert_eq!((answer.status(), answer.cqe.result.get()), (Status::SUCCESS, value), "{id:#x}");
    }
    let set = [
        (0x06, 1, Status::SUCCESS),
        (0x06, 0, Status::FEATURE_NOT_CHANGEABLE),
        (0x07, 0xffff, Status::INVALID_FIELD),
        (0x0b, 0x200, Status::INVALID_FIELD),
        (0x0b, 1 << 31, Status::INVALID_FIELD),
        (0x0b, 0x1ff, Status::SUCCESS),
        // What SPDK asks for: five critical warnings and the notices of OAES.
        (0x0b, 0x11f, Status::SUCCESS),
        (0x0f, u32::MAX, Status::KEEP_ALIVE_INVALID),
        (0x0f, 1500, Status::SUCCESS),
        (0x01, 1, Status::FEATURE_NOT_CHANGEABLE),
        (0x81, 0, Status::COMMAND_SEQUENCE_ERROR),
        (0x7f, 0, Status::INVALID_FIELD),
    ];
    for (id, value, status) in set {
        assert_eq!(t.run(admin, |host| host.set_feature(id, value)).status(), status, "{id:#x}");
    }
    assert_eq!(t.run(admin, |host| host.get_feature(0x0f)).cqe.result.get(), 2000, "rounded up");
    assert_eq!(t.run(admin, |host| host.get_feature(0x0b)).cqe.result.get(), 0x11f, "kept");
    let mut sqe = entry(0x0a, 0);
    sqe.cdw10 = U32::new(0x81);
    sqe.cdw11 = U32::new(1);
    sqe.sgl.length = U32::new(16);
    let cid = t.links[admin].host.submit(sqe, &[], Vec::new());
    assert_eq!(t.answer(admin, cid).data, [7; 16]);
}

#[test]
fn discovery_lists_what_the_host_may_use_and_tells_changes() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (discovery, host_nqn) = (Nqn::discovery(), t.host_nqn.clone());
    let mut hidden = SubsystemConfig::open_to_all(Nqn::new("nqn.x:hidden").unwrap(), "H");
    hidden.allow_any_host = false;
    t.target.add_subsystem(hidden.clone()).unwrap();
    let link = t.open(TestHost::new(plain()));
    t.run(link, |host| host.connect(0, None, &discovery, &host_nqn, 30_000));
    t.run(link, |host| host.property_set(register::CC, CC_ENABLE));
    let answer = t.run(link, |host| host.identify(cns::CONTROLLER, 0));
    let controller = IdentifyController::read_from_bytes(&answer.data).unwrap();
    assert_eq!(controller.controller_type, 2);
    assert_eq!(controller.async_events.get(), 1 << 31);
    let read = |t: &mut InProcess| {
        let log = t.run(link, |host| host.get_log_page(page::DISCOVERY, 0, 8192)).data;
        let (header, rest) = DiscoveryLogHeader::read_from_prefix(&log).unwrap();
        let count = header.record_count.get() as usize;
        let names: Vec<String> = rest
            .chunks_exact(1024)
            .take(count)
            .map(|e| DiscoveryLogEntry::read_from_bytes(e).unwrap().subsystem_nqn)
            .map(|field| Nqn::from_field(&field).unwrap().to_string())
            .collect();
        (header.generation.get(), names)
    };
    let (generation, names) = read(&mut t);
    assert!(names.is_empty(), "there is no listener without a core");
    let core = nvme_target::TargetCore::new(
        &t.target,
        t.backend.clone(),
        std::rc::Rc::new(nvme_target::testing::VirtualRuntime::default()),
    );
    let _core = core.unwrap();
    t.target.add_listener("127.0.0.1:0".parse().unwrap()).unwrap();
    let (moved, names) = read(&mut t);
    assert!(moved > generation);
    assert_eq!(names, [discovery.to_string(), t.nqn.to_string()]);
    let refused = t.run(link, |host| host.set_feature(FeatureId::ASYNC_EVENT_CONFIG, 0x1f));
    assert_eq!(refused.status(), Status::INVALID_FIELD, "a discovery controller has no SMART log");
    t.run(link, |host| host.set_feature(FeatureId::ASYNC_EVENT_CONFIG, AEC_DISCOVERY_CHANGE));
    let event = t.links[link].host.bare(0x0c, 0);
    t.target.set_hosts(&hidden.nqn, true, Vec::new()).unwrap();
    let expected = u64::from(AsyncEvent::DISCOVERY_CHANGED.to_bits());
    assert_eq!(t.answer(link, event).cqe.result.get(), expected);
    assert_eq!(read(&mut t).1.len(), 3);
    let io = t.open(TestHost::new(plain()));
    let answer = t.run(io, |host| host.connect(1, Some(1), &discovery, &host_nqn, 0));
    assert_eq!(answer.status(), Status::CONNECT_INVALID_PARAMETERS, "no I/O queues here");
    let smart = t.run(link, |host| host.get_log_page(page::SMART, 0, 512));
    assert_eq!(smart.status(), Status::INVALID_LOG_PAGE);
    t.advance_ms(30_000);
    t.advance_ms(30_000);
    assert!(t.links[link].connection.is_closed(), "a persistent discovery controller has a KATO");
}

#[test]
fn a_removed_subsystem_takes_its_connections_along() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (nqn, host_nqn) = (t.nqn.clone(), t.host_nqn.clone());
    let (admin, io) = t.connect(plain());
    t.target.remove_subsystem(&nqn).unwrap();
    t.pump();
    assert!(t.links[admin].connection.is_closed() && t.links[io].connection.is_closed());
    let late = t.open(TestHost::new(plain()));
    let answer = t.run(late, |host| host.connect(0, None, &nqn, &host_nqn, 0));
    assert_eq!(answer.status(), Status::CONNECT_INVALID_PARAMETERS);
    assert!(t.target.remove_subsystem(&nqn).is_err());
}

#[test]
fn controller_identifiers_stay_in_their_range_and_are_not_reused_at_once() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let nqn = Nqn::new("nqn.2026-01.io.cairn:range").unwrap();
    let mut config = SubsystemConfig::open_to_all(nqn.clone(), "R");
    config.controller_ids = 100..=101;
    t.target.add_subsystem(config).unwrap();
    t.nqn = nqn.clone();
    let (first, first_id) = t.connect_admin(plain(), 0);
    let (_, second_id) = t.connect_admin(plain(), 0);
    assert_eq!((first_id, second_id), (100, 101));
    let host_nqn = t.host_nqn.clone();
    let third = t.open(TestHost::new(plain()));
    let answer = t.run(third, |host| host.connect(0, None, &nqn, &host_nqn, 0));
    assert_eq!(answer.status(), Status::CONNECT_CONTROLLER_BUSY);
    t.links[first].connection.disconnected();
    assert_eq!(t.connect_admin(plain(), 0).1, 100);
    assert!(t.target.disconnect(&nqn, 101).is_ok());
    t.pump();
    assert_eq!(t.target.controllers().len(), 1);
}

#[test]
fn sqhd_follows_the_commands_unless_flow_control_is_off() {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let (_, io) = t.connect(plain());
    for i in 0..100 {
        let answer = t.run(io, |host| host.bare(0, 1));
        assert_eq!(u32::from(answer.cqe.sqhd.get()), (i + 2) % 32);
    }
    let quiet = HostOptions { disable_flow_control: true, ..plain() };
    let (nqn, host_nqn) = (t.nqn.clone(), t.host_nqn.clone());
    let link = t.open(TestHost::new(quiet));
    let answer = t.run(link, |host| host.connect(0, None, &nqn, &host_nqn, 0));
    assert_eq!(answer.cqe.sqhd.get(), 0xffff, "the target agrees");
}

#[test]
fn configuration_errors_are_told() {
    let t = InProcess::new(Limits::default(), 12, 64, None);
    let bad = |change: &dyn Fn(&mut nvme_target::NamespaceConfig)| {
        let mut config = test_namespace(3, VolumeKey(1), 12, 64);
        change(&mut config);
        assert!(t.target.add_namespace(&t.nqn, config).is_err());
    };
    bad(&|c| c.nsid = 0);
    bad(&|c| c.nsid = 1025);
    bad(&|c| c.nsid = 1);
    bad(&|c| c.block_size_log2 = 10);
    bad(&|c| c.size_blocks = 0);
    bad(&|c| c.size_blocks = u64::MAX);
    bad(&|c| c.nguid = [0; 16]);
    bad(&|c| c.atomic_write_blocks = 0);
    assert!(t.target.add_subsystem(SubsystemConfig::open_to_all(t.nqn.clone(), "S")).is_err());
    assert!(t.target.add_subsystem(SubsystemConfig::open_to_all(Nqn::discovery(), "S")).is_err());
    let long = SubsystemConfig::open_to_all(Nqn::new("nqn.long").unwrap(), &"s".repeat(21));
    assert!(t.target.add_subsystem(long).is_err());
    assert!(t.target.resize_namespace(&t.nqn, 9, 1).is_err());
    assert!(
        nvme_target::Target::new(Limits { queue_entries_max: 1, ..Limits::default() }).is_err()
    );
}
