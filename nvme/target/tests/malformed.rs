//! PDUs and capsules that no host should send, each with the answer it gets.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use nvme_spec::fabrics::ConnectData;
use nvme_spec::pdu::{
    CapsuleCmd, CommonHeader, DataHeader, FLAG_LAST, FatalError, IcReq, ReadyToTransfer, TermReq,
    kind,
};
use nvme_spec::{Sqe, Status};
use nvme_target::Limits;
use nvme_target::testing::{HostOptions, InProcess, TestHost, connect_entry, io_entry};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

#[derive(Clone, Copy)]
enum At {
    /// Nothing was sent.
    Fresh,
    /// ICReq was answered.
    Greeted,
    /// An I/O queue.
    Live,
    /// An I/O queue with a write of 16 KiB (command 2) that got its R2T.
    Writing,
    /// An I/O queue with digests.
    Digests,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expect {
    /// C2HTermReq with FES and FEI.
    Fatal(FatalError, u32),
    /// C2HTermReq with FES and any FEI.
    FatalAny(FatalError),
    /// A completion of command 0xbad with this status, and the connection lives.
    Answer(Status),
    /// Closed without a word.
    Closed,
    /// Nothing: the connection waits for more.
    Waits,
}

use Expect::{Answer, Closed, Fatal, FatalAny, Waits};
use FatalError::{
    DataOutOfRange, HeaderDigest, InvalidHeaderField, LimitExceeded, SequenceError,
    UnsupportedParameter,
};

fn common(kind: u8, flags: u8, header_len: u8, data_offset: u8, pdu_len: u32) -> CommonHeader {
    CommonHeader { kind, flags, header_len, data_offset, pdu_len: U32::new(pdu_len) }
}

fn with(common: CommonHeader, rest: usize) -> Vec<u8> {
    let mut bytes = common.as_bytes().to_vec();
    bytes.resize(8 + rest, 0);
    bytes
}

fn greeting(change: impl FnOnce(&mut IcReq)) -> Vec<u8> {
    let mut request = IcReq::zeroed();
    request.common = common(kind::IC_REQ, 0, 128, 0, 128);
    change(&mut request);
    request.as_bytes().to_vec()
}

fn capsule(sqe: Sqe, data: &[u8], change: impl FnOnce(&mut CapsuleCmd)) -> Vec<u8> {
    let offset = if data.is_empty() { 0 } else { 72 };
    let header =
        CommonHeader::new(kind::CAPSULE_CMD, 0, 72, offset, data.len() as u32, (false, false));
    let mut capsule = CapsuleCmd { common: header, sqe };
    capsule.sqe.cid = U16::new(0xbad);
    change(&mut capsule);
    [capsule.as_bytes(), data].concat()
}

fn write_in_capsule(len: u32) -> Sqe {
    let mut sqe = io_entry(0x01, 1, 0, 1);
    sqe.flags = 0x40;
    sqe.sgl.kind = 0x01;
    sqe.sgl.length = U32::new(len);
    sqe
}

/// H2CData for the write of [`At::Writing`]: its slot is the tag.
fn data(tag: u16, offset: u32, len: u32, change: impl FnOnce(&mut DataHeader)) -> Vec<u8> {
    let mut header = DataHeader::zeroed();
    header.common = CommonHeader::new(kind::H2C_DATA, 0, 24, 24, len, (false, false));
    header.cid = U16::new(2);
    header.tag = U16::new(tag);
    header.offset = U32::new(offset);
    header.len = U32::new(len);
    change(&mut header);
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(24 + len as usize, 0);
    bytes
}

/// The slot that the write of [`At::Writing`] took: Connect's, which was freed last.
const WRITE_TAG: u16 = 0;

fn cases() -> Vec<(&'static str, At, Vec<u8>, Expect)> {
    let read = io_entry(0x02, 1, 0, 1);
    let block = vec![0; 4096];
    let field = |offset| Fatal(InvalidHeaderField, offset);
    let last = |h: &mut DataHeader| h.common.flags |= FLAG_LAST;
    vec![
        ("unknown type first", At::Fresh, with(common(0x0b, 0, 8, 0, 8), 0), field(0)),
        ("capsule before ICReq", At::Fresh, capsule(read, &[], |_| ()), FatalAny(SequenceError)),
        ("data before ICReq", At::Fresh, data(0, 0, 8, last), FatalAny(SequenceError)),
        ("an answer from the host", At::Fresh, with(common(1, 0, 128, 0, 128), 120), field(0)),
        ("ICReq with HLEN 127", At::Fresh, greeting(|r| r.common.header_len = 127), field(2)),
        ("ICReq with PLEN 127", At::Fresh, greeting(|r| r.common.pdu_len = 127.into()), field(4)),
        (
            "ICReq with PLEN 2^32-1",
            At::Fresh,
            greeting(|r| r.common.pdu_len = u32::MAX.into()),
            field(4),
        ),
        ("ICReq of format 1", At::Fresh, greeting(|r| r.format_version = 1.into()), {
            Fatal(UnsupportedParameter, 8)
        }),
        ("ICReq with HPDA 32", At::Fresh, greeting(|r| r.data_alignment = 32), field(10)),
        ("half a header", At::Fresh, vec![0, 0, 128, 0], Waits),
        ("half an ICReq", At::Fresh, greeting(|_| ())[..100].to_vec(), Waits),
        ("random text", At::Fresh, b"GET / HTTP/1.1\r\n\r\n".to_vec(), field(0)),
        ("ICReq twice", At::Greeted, greeting(|_| ()), FatalAny(SequenceError)),
        ("C2HData from the host", At::Live, with(common(7, 0, 24, 24, 32), 24), field(0)),
        ("R2T from the host", At::Live, with(common(9, 0, 24, 0, 24), 16), field(0)),
        ("type 0xff", At::Live, with(common(0xff, 0, 72, 0, 72), 64), field(0)),
        (
            "capsule with HLEN 64",
            At::Live,
            capsule(read, &[], |c| c.common.header_len = 64),
            field(2),
        ),
        (
            "capsule with PLEN 0",
            At::Live,
            capsule(read, &[], |c| c.common.pdu_len = 0.into()),
            field(3),
        ),
        (
            "capsule with PLEN 71",
            At::Live,
            capsule(read, &[], |c| c.common.pdu_len = 71.into()),
            field(3),
        ),
        (
            "capsule with data but PDO 0",
            At::Live,
            capsule(write_in_capsule(4096), &block, |c| c.common.data_offset = 0),
            field(3),
        ),
        (
            "capsule with PDO 70",
            At::Live,
            capsule(write_in_capsule(4096), &block, |c| c.common.data_offset = 70),
            field(3),
        ),
        (
            "capsule with PDO 74",
            At::Live,
            capsule(write_in_capsule(4096), &block, |c| c.common.data_offset = 74),
            field(3),
        ),
        (
            "capsule whose PDO is its PLEN",
            At::Live,
            capsule(read, &[], |c| {
                c.common.data_offset = 76;
                c.common.pdu_len = 76.into();
            }),
            field(4),
        ),
        (
            "capsule with too much data",
            At::Live,
            capsule(write_in_capsule(8196), &vec![0; 8196], |_| ()),
            FatalAny(LimitExceeded),
        ),
        (
            "capsule with a digest nobody agreed to",
            At::Live,
            capsule(read, &[], |c| c.common.flags = 1),
            field(1),
        ),
        (
            "capsule with a data digest nobody agreed to",
            At::Live,
            capsule(write_in_capsule(4096), &block, |c| c.common.flags = 2),
            field(1),
        ),
        ("capsule without the digest agreed to", At::Digests, capsule(read, &[], |_| ()), field(1)),
        (
            "capsule with a wrong header digest",
            At::Digests,
            {
                let mut bytes = capsule(read, &[], |c| {
                    c.common.flags = 1;
                    c.common.pdu_len = 76.into();
                });
                bytes.extend_from_slice(&[1, 2, 3, 4]);
                bytes
            },
            Fatal(HeaderDigest, 0x0403_0201),
        ),
        ("data nobody asked for", At::Live, data(0, 0, 4096, last), field(10)),
        ("data with a tag out of range", At::Writing, data(32, 0, 16384, last), field(10)),
        ("data with another's tag", At::Writing, data(1, 0, 16384, last), field(10)),
        (
            "data for another command",
            At::Writing,
            data(WRITE_TAG, 0, 16384, |h| {
                last(h);
                h.cid = 9.into();
            }),
            field(8),
        ),
        ("data at a wrong offset", At::Writing, data(WRITE_TAG, 4096, 4096, |_| ()), {
            FatalAny(DataOutOfRange)
        }),
        ("more data than asked for", At::Writing, data(WRITE_TAG, 0, 16388, last), {
            FatalAny(DataOutOfRange)
        }),
        (
            "DATAL unlike PLEN",
            At::Writing,
            data(WRITE_TAG, 0, 4096, |h| h.len = 4092.into()),
            field(16),
        ),
        ("all data without LAST_PDU", At::Writing, data(WRITE_TAG, 0, 16384, |_| ()), field(1)),
        ("LAST_PDU too early", At::Writing, data(WRITE_TAG, 0, 4096, last), field(1)),
        ("data PDU without data", At::Writing, data(WRITE_TAG, 0, 0, last), field(4)),
        (
            "data PDU with PDO 20",
            At::Writing,
            data(WRITE_TAG, 0, 4096, |h| h.common.data_offset = 20),
            field(3),
        ),
        (
            "data over MAXH2CDATA",
            At::Writing,
            data(WRITE_TAG, 0, (1 << 20) + 4, last),
            FatalAny(LimitExceeded),
        ),
        (
            "the host terminates",
            At::Live,
            with(common(kind::H2C_TERM_REQ, 0, 24, 0, 24), 16),
            Closed,
        ),
        (
            "the host terminates with a header",
            At::Live,
            with(common(kind::H2C_TERM_REQ, 0, 24, 0, 152), 144),
            Closed,
        ),
        (
            "the host terminates with too much",
            At::Live,
            with(common(kind::H2C_TERM_REQ, 0, 24, 0, 156), 148),
            field(4),
        ),
        (
            "in-capsule offset past the capsule",
            At::Live,
            {
                let mut sqe = write_in_capsule(4096);
                sqe.sgl.address = 4.into();
                capsule(sqe, &block, |_| ())
            },
            Answer(Status::SGL_OFFSET_INVALID),
        ),
        (
            "in-capsule offset that overflows",
            At::Live,
            {
                let mut sqe = write_in_capsule(4096);
                sqe.sgl.address = u64::MAX.into();
                capsule(sqe, &block, |_| ())
            },
            Answer(Status::SGL_OFFSET_INVALID),
        ),
        (
            "in-capsule data that did not come",
            At::Live,
            capsule(write_in_capsule(4096), &[], |_| ()),
            Answer(Status::SGL_OFFSET_INVALID),
        ),
        ("PRP", At::Live, capsule(read, &[], |c| c.sqe.flags = 0), Answer(Status::INVALID_FIELD)),
        (
            "PSDT 3",
            At::Live,
            capsule(read, &[], |c| c.sqe.flags = 0xc0),
            Answer(Status::INVALID_FIELD),
        ),
        (
            "keyed SGL",
            At::Live,
            capsule(read, &[], |c| {
                c.sqe.flags = 0x40;
                c.sqe.sgl.kind = 0x40;
            }),
            Answer(Status::SGL_TYPE_INVALID),
        ),
        (
            "Property Get on an I/O queue",
            At::Live,
            {
                let mut sqe = io_entry(0x7f, 4, 0, 1);
                sqe.cdw10 = U32::new(1);
                capsule(sqe, &[], |_| ())
            },
            Answer(Status::COMMAND_SEQUENCE_ERROR),
        ),
        (
            "unknown Fabrics type",
            At::Live,
            capsule(io_entry(0x7f, 0x33, 0, 1), &[], |_| ()),
            Answer(Status::INVALID_OPCODE),
        ),
        (
            "I/O before Connect",
            At::Greeted,
            capsule(read, &[], |_| ()),
            Answer(Status::COMMAND_SEQUENCE_ERROR),
        ),
        (
            "Connect with unterminated names",
            At::Greeted,
            {
                let mut sqe = connect_entry(0, 31, 0, 0);
                sqe.flags = 0x40;
                sqe.sgl.kind = 1;
                sqe.sgl.length = 1024.into();
                let mut connect = ConnectData::zeroed();
                connect.subsystem_nqn = [b'n'; 256];
                capsule(sqe, connect.as_bytes(), |_| ())
            },
            Answer(Status::CONNECT_INVALID_PARAMETERS),
        ),
        (
            "33 commands on a queue of 32",
            At::Live,
            {
                let mut sqe = io_entry(0x01, 1, 0, 4);
                sqe.flags = 0x40;
                sqe.sgl.kind = 0x5a;
                sqe.sgl.length = 16384.into();
                (0..33).flat_map(|_| capsule(sqe, &[], |_| ())).collect()
            },
            FatalAny(SequenceError),
        ),
    ]
}

/// A host that only counts: `TestHost` would complain about what it did not ask for.
fn drain(t: &mut InProcess, link: usize) -> Vec<u8> {
    let connection = &mut t.links[link].connection;
    let mut bytes = Vec::new();
    while connection.has_output() {
        let part: Vec<u8> = connection.gather().iter().flat_map(|part| part.to_vec()).collect();
        connection.transmitted(part.len());
        bytes.extend(part);
    }
    bytes
}

fn set_up(at: At) -> (InProcess, usize) {
    let mut t = InProcess::new(Limits::default(), 12, 64, None);
    let plain = HostOptions::default();
    let link = match at {
        At::Fresh => t.open(TestHost::silent(plain)),
        At::Greeted => t.open(TestHost::new(plain)),
        At::Live | At::Writing => t.connect(plain).1,
        At::Digests => t.connect(HostOptions { header_digest: true, data_digest: true, ..plain }).1,
    };
    t.pump();
    if let At::Writing = at {
        let mut sqe = io_entry(0x01, 1, 0, 4);
        sqe.flags = 0x40;
        sqe.sgl.kind = 0x5a;
        sqe.sgl.length = 16384.into();
        let bytes = capsule(sqe, &[], |c| c.sqe.cid = 2.into());
        t.links[link].connection.feed(&bytes);
        let ready = drain(&mut t, link);
        let ready = <ReadyToTransfer as zerocopy::FromBytes>::read_from_bytes(&ready).unwrap();
        assert_eq!(ready.tag.get(), WRITE_TAG);
    }
    (t, link)
}

#[test]
fn every_malformed_pdu_gets_its_answer() {
    let cases = cases();
    assert!(cases.len() >= 25);
    for (name, at, bytes, expect) in &cases {
        // Whole, and byte by byte.
        for step in [bytes.len().max(1), 1] {
            let (mut t, link) = set_up(*at);
            for part in bytes.chunks(step) {
                t.links[link].connection.feed(part);
            }
            let answer = drain(&mut t, link);
            let connection = &mut t.links[link].connection;
            let kind_of_answer = answer.first().copied();
            match expect {
                Fatal(..) | FatalAny(_) => {
                    // R2Ts may come before the end.
                    let start = (0..answer.len()).step_by(24).find(|&i| answer[i] == 3);
                    let start = start.unwrap_or_else(|| panic!("{name}: no C2HTermReq"));
                    let term = <TermReq as zerocopy::FromBytes>::read_from_prefix(&answer[start..]);
                    let term = term.unwrap().0;
                    assert_eq!(term.common.pdu_len.get() as usize, answer.len() - start, "{name}");
                    match *expect {
                        Fatal(status, information) => assert_eq!(
                            (term.status.get(), term.information.get()),
                            (status as u16, information),
                            "{name}"
                        ),
                        FatalAny(status) => assert_eq!(term.status.get(), status as u16, "{name}"),
                        _ => unreachable!(),
                    }
                    assert!(connection.is_terminating(), "{name}");
                    connection.feed(&[0xff; 1000]);
                    assert!(!connection.has_output(), "{name}: nothing more is said");
                    connection.turn(u64::MAX / 2);
                    assert!(connection.is_closed() && connection.is_idle(), "{name}");
                }
                Answer(status) => {
                    assert_eq!(kind_of_answer, Some(kind::CAPSULE_RESP), "{name}");
                    let response = nvme_spec::pdu::CapsuleResp::zeroed();
                    let response = <_ as zerocopy::FromBytes>::read_from_prefix(&answer)
                        .map_or(response, |(r, _)| r);
                    assert_eq!(response.cqe.cid.get(), 0xbad, "{name}");
                    assert_eq!(response.cqe.status(), *status, "{name}");
                    assert!(!connection.is_terminating() && !connection.is_closed(), "{name}");
                }
                Closed => assert!(answer.is_empty() && connection.is_closed(), "{name}"),
                Waits => {
                    assert!(answer.is_empty(), "{name}");
                    assert!(!connection.is_terminating() && !connection.is_closed(), "{name}");
                }
            }
        }
    }
}

/// A data digest error fails the command, not the connection (TCP 1.0, section 3.5.1).
#[test]
fn a_wrong_data_digest_fails_its_command_only() {
    let options = HostOptions { data_digest: true, ..HostOptions::default() };
    for in_capsule in [true, false] {
        let mut t = InProcess::new(Limits::default(), 12, 64, Some(11));
        let (_, io) = t.connect(options);
        let cid = t.links[io].host.write(1, 0, 1, &[5; 4096], in_capsule);
        if !in_capsule {
            let output = t.links[io].host.take_output();
            t.links[io].connection.feed(&output);
            let ready = drain(&mut t, io);
            t.links[io].host.feed(&ready);
        }
        let mut bytes = t.links[io].host.take_output();
        *bytes.last_mut().unwrap() ^= 1;
        t.links[io].connection.feed(&bytes);
        assert_eq!(t.answer(io, cid).status(), Status::TRANSIENT_TRANSPORT_ERROR);
        assert_eq!(t.volume.bytes(0, 4096), [0; 4096]);
        let again = t.run(io, |host| host.write(1, 0, 1, &[5; 4096], in_capsule));
        assert_eq!(again.status(), Status::SUCCESS);
    }
}
