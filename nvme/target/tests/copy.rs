//! Copy: what is announced of it, what it does, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use nvme_spec::identify::{self, IdentifyController, IdentifyNamespace, cns};
use nvme_spec::log::{CommandEffects, EFFECT_CONTENT_CHANGE, EFFECT_SUPPORTED, ErrorEntry, page};
use nvme_spec::{Status, command::io_opcode};
use nvme_target::testing::{
    Answer, HostOptions, InProcess, TestHost, copy_ranges, entry, io_entry, test_namespace,
};
use nvme_target::{BackendError, Limits, OperationKind, VolumeKey};
use zerocopy::FromBytes;

const BLOCK: usize = 4096;

fn target(blocks: u64, seed: Option<u64>) -> (InProcess, usize, usize) {
    let mut t = InProcess::new(Limits::default(), 12, blocks, seed);
    let (admin, io) = t.connect(HostOptions::default());
    (t, admin, io)
}

/// Fills blocks `0..count`, each with its number plus one.
fn number_blocks(t: &mut InProcess, io: usize, count: u64) {
    for block in 0..count {
        let data = vec![block as u8 + 1; BLOCK];
        let answer = t.run(io, |host| host.write(1, block, 1, &data, true));
        assert_eq!(answer.status(), Status::SUCCESS);
    }
}

/// The numbers of the blocks `first..first + count`; each must be of one number throughout.
fn numbers(t: &InProcess, first: usize, count: usize) -> Vec<u8> {
    let bytes = t.volume.bytes(first * BLOCK, count * BLOCK);
    let whole = |block: &[u8]| {
        assert!(block.iter().all(|byte| *byte == block[0]));
        block[0]
    };
    bytes.chunks_exact(BLOCK).map(whole).collect()
}

fn told(answer: &Answer) -> (Status, u64) {
    (answer.status(), answer.cqe.result.get())
}

#[test]
fn copy_is_announced_with_its_limits() {
    let (mut t, admin, _) = target(64, None);
    let small = test_namespace(2, VolumeKey(1), 9, 64);
    t.target.add_namespace(&t.nqn, small).unwrap();
    let answer = t.run(admin, |host| host.identify(cns::CONTROLLER, 0));
    let controller = IdentifyController::read_from_bytes(&answer.data).unwrap();
    assert_ne!(controller.optional_io.get() & identify::IO_COPY, 0);
    assert_eq!(controller.copy_formats.get(), identify::COPY_FORMAT_0);
    for (nsid, range_blocks, blocks) in [(1, 16384, 16384), (2, 65535, 131_072)] {
        let answer = t.run(admin, |host| host.identify(cns::NAMESPACE, nsid));
        let namespace = IdentifyNamespace::read_from_bytes(&answer.data).unwrap();
        assert_eq!(namespace.copy_range_size_max.get(), range_blocks);
        assert_eq!(namespace.copy_size_max.get(), blocks);
        assert_eq!(namespace.copy_ranges_max, 127);
    }
    let log = t.run(admin, |host| host.get_log_page(page::COMMAND_EFFECTS, 0, 4096)).data;
    let log = CommandEffects::read_from_bytes(&log).unwrap();
    let effects = log.io[usize::from(io_opcode::COPY)].get();
    assert_eq!(effects, EFFECT_SUPPORTED | EFFECT_CONTENT_CHANGE);
}

#[test]
fn ranges_are_copied_one_behind_the_other() {
    for (in_capsule, seed) in [(true, None), (false, None), (false, Some(5))] {
        let (mut t, _, io) = target(64, seed);
        number_blocks(&mut t, io, 10);
        let ranges = [(7, 2), (0, 1), (3, 3), (7, 1)];
        let answer = t.run(io, |host| host.copy(1, 20, &ranges, in_capsule));
        assert_eq!(told(&answer), (Status::SUCCESS, 0));
        assert_eq!(numbers(&t, 19, 9), [0, 8, 9, 1, 4, 5, 6, 8, 0]);
        assert_eq!(numbers(&t, 0, 10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let stats = *t.target.namespace_stats(&t.nqn, 1).unwrap().of(OperationKind::Copy);
        assert_eq!((stats.operations, stats.bytes, stats.errors), (1, 7 * 4096, 0));
        assert_eq!(t.context.inflight_bytes(), 0);
    }
}

#[test]
fn the_largest_copy_and_one_of_most_ranges() {
    let (mut t, _, io) = target(40_000, None);
    let answer = t.run(io, |host| host.copy(1, 20_000, &[(3, 16384)], true));
    assert_eq!(told(&answer), (Status::SUCCESS, 0));
    let answer = t.run(io, |host| host.copy(1, 20_000, &[(0, 128); 128], true));
    assert_eq!(told(&answer), (Status::SUCCESS, 0));
    // 129 ranges, and a block too many in one range and in two.
    let limit = (Status::COMMAND_SIZE_LIMIT_EXCEEDED, 0);
    for ranges in [vec![(0, 1); 129], vec![(0, 16385)], vec![(0, 16384), (0, 1)]] {
        let answer = t.run(io, |host| host.copy(1, 20_000, &ranges, true));
        assert_eq!(told(&answer), limit, "{} ranges", ranges.len());
    }
    assert_eq!(t.context.inflight_bytes(), 0);
}

/// Linux may hand over a page whatever it needs of it.
#[test]
fn ranges_beyond_the_count_are_not_looked_at() {
    let (mut t, _, io) = target(64, None);
    number_blocks(&mut t, io, 4);
    let mut data = copy_ranges(&[(1, 2)]);
    data.resize(4096, 0xff);
    let cid = t.links[io].host.submit(io_entry(io_opcode::COPY, 1, 9, 1), &[], data);
    assert_eq!(t.answer(io, cid).status(), Status::SUCCESS);
    assert_eq!(numbers(&t, 8, 4), [0, 2, 3, 0]);
}

#[test]
fn copies_are_checked_before_they_reach_the_backend() {
    fn raw(host: &mut TestHost, dw12: u32, len: usize) -> u16 {
        let mut sqe = entry(io_opcode::COPY, 1);
        sqe.cdw10 = 32.into();
        sqe.cdw12 = dw12.into();
        let mut data = copy_ranges(&[(0, 1), (1, 1)]);
        data.resize(len, 0);
        host.submit(sqe, &data, Vec::new())
    }
    type Case = (&'static str, fn(&mut TestHost) -> u16, Status);
    let cases: &[Case] = &[
        ("format 1", |h| raw(h, 1 << 8 | 1, 64), Status::INVALID_FIELD),
        ("directive", |h| raw(h, 1 << 20 | 1, 64), Status::INVALID_FIELD),
        ("ranges are absent", |h| raw(h, 2, 64), Status::DATA_SGL_LENGTH_INVALID),
        ("half a range", |h| raw(h, 1, 63), Status::DATA_SGL_LENGTH_INVALID),
        ("over a page", |h| raw(h, 1, 4128), Status::DATA_SGL_LENGTH_INVALID),
        ("no data", |h| h.bare(io_opcode::COPY, 1), Status::DATA_SGL_LENGTH_INVALID),
        ("no such namespace", |h| h.copy(2, 32, &[(0, 1)], true), Status::INVALID_NAMESPACE),
        ("source past the end", |h| h.copy(1, 32, &[(0, 1), (63, 2)], true), {
            Status::LBA_OUT_OF_RANGE
        }),
        ("offset overflows", |h| h.copy(1, 32, &[(u64::MAX, 1)], true), Status::LBA_OUT_OF_RANGE),
        ("destination past the end", |h| h.copy(1, 62, &[(0, 2), (4, 1)], true), {
            Status::LBA_OUT_OF_RANGE
        }),
        ("onto itself", |h| h.copy(1, 5, &[(5, 1)], true), Status::INVALID_FIELD),
        ("overlap", |h| h.copy(1, 32, &[(0, 2), (33, 2)], true), Status::INVALID_FIELD),
    ];
    let (mut t, _, io) = target(64, None);
    number_blocks(&mut t, io, 4);
    for (name, submit, status) in cases {
        let answer = t.run(io, submit);
        assert_eq!(told(&answer), (*status, 0), "{name}");
    }
    t.target.set_read_only(&t.nqn, 1, true).unwrap();
    let answer = t.run(io, |host| host.copy(1, 32, &[(0, 1)], true));
    assert_eq!(told(&answer), (Status::NAMESPACE_WRITE_PROTECTED, 0));
    t.target.set_read_only(&t.nqn, 1, false).unwrap();
    assert_eq!(t.volume.bytes(4 * BLOCK, 60 * BLOCK), vec![0; 60 * BLOCK], "nothing was copied");
    let answer = t.run(io, |host| host.copy(1, 32, &[(0, 1)], true));
    assert_eq!(told(&answer), (Status::SUCCESS, 0), "the queue still works");
}

#[test]
fn a_failure_names_the_first_range_that_was_not_copied() {
    let (mut t, admin, io) = target(64, None);
    number_blocks(&mut t, io, 4);
    // The volume has shrunk, which the namespace does not know yet.
    t.volume.resize(40 * BLOCK);
    let ranges = [(0, 1), (2, 1), (45, 1), (1, 1)];
    let answer = t.run(io, |host| host.copy(1, 20, &ranges, true));
    assert_eq!(told(&answer), (Status::LBA_OUT_OF_RANGE, 2));
    assert_eq!(numbers(&t, 20, 4), [1, 3, 0, 0]);
    t.volume.fail_next(BackendError::NoSpace);
    let answer = t.run(io, |host| host.copy(1, 20, &ranges, false));
    assert_eq!(told(&answer), (Status::CAPACITY_EXCEEDED, 0));
    let stats = *t.target.namespace_stats(&t.nqn, 1).unwrap().of(OperationKind::Copy);
    assert_eq!((stats.operations, stats.bytes, stats.errors), (2, 0, 2));
    let log = t.run(admin, |host| host.get_log_page(page::ERROR, 0, 64)).data;
    let newest = ErrorEntry::read_from_prefix(&log).unwrap().0;
    assert_eq!((newest.lba.get(), newest.nsid.get()), (20, 1));
    assert_eq!(t.context.inflight_bytes(), 0);
}
