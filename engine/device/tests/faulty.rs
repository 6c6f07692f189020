//! The faulty device fails as told, and the contract suite notices broken devices.
// Everything here is a test or a part of one.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use engine_device::contract::{self, Plan, block_on};
use engine_device::{
    BlockDevice, DeviceError, DeviceQueue, Fault, FaultyDevice, IoVec, MemoryDevice, OperationKind,
    QueueExt, Rule,
};
use engine_memory::Buffer;

const BLOCK: u64 = 4096;

fn device() -> FaultyDevice {
    FaultyDevice::new(Arc::new(MemoryDevice::new("memory", 4 << 20, BLOCK as u32)), 7)
}

fn write(
    queue: &Rc<dyn DeviceQueue>,
    block: u64,
    blocks: u64,
    mark: u8,
) -> Result<(), DeviceError> {
    let mut buffer = Buffer::try_new((blocks * BLOCK) as usize).unwrap();
    buffer.fill(mark);
    let data = IoVec::from_iter([buffer.freeze()]);
    block_on(&**queue, queue.write(block * BLOCK, data, false))
}

fn read(queue: &Rc<dyn DeviceQueue>, block: u64, blocks: u64) -> Result<Buffer, DeviceError> {
    let buffer = Buffer::try_new((blocks * BLOCK) as usize).unwrap();
    block_on(&**queue, queue.read(block * BLOCK, buffer))
}

fn marks(queue: &Rc<dyn DeviceQueue>, blocks: u64) -> Vec<u8> {
    let buffer = read(queue, 0, blocks).unwrap();
    buffer.chunks(BLOCK as usize).map(|block| block[0]).collect()
}

#[test]
fn the_nth_write_fails_and_changes_nothing() {
    let device = device();
    let queue = device.open_queue(4).unwrap();
    let rule = device.faults().add(Rule::nth(&[OperationKind::Write], 3, Fault::Error));
    let results: Vec<bool> = (0..5).map(|n| write(&queue, n, 1, 9).is_ok()).collect();
    assert_eq!(results, [true, true, false, true, true]);
    assert_eq!(marks(&queue, 5), [9, 9, 0, 9, 9]);
    assert_eq!(device.faults().fired(rule), 1);
}

#[test]
fn a_bad_range_fails_until_the_rule_is_removed() {
    let device = device();
    let queue = device.open_queue(4).unwrap();
    let range = Some(5 * BLOCK..7 * BLOCK);
    let rule = Rule { range, ..Rule::always(&OperationKind::ALL, Fault::Error) };
    let rule = device.faults().add(rule);
    assert!(read(&queue, 4, 1).is_ok());
    assert!(matches!(read(&queue, 4, 2), Err(DeviceError::Io { what: "read", .. })));
    assert!(read(&queue, 6, 1).is_err());
    assert!(read(&queue, 7, 1).is_ok());
    assert!(block_on(&*queue, queue.flush()).is_ok());
    device.faults().remove(rule);
    assert!(read(&queue, 5, 2).is_ok());
    assert_eq!(device.faults().fired(rule), 2);
}

#[test]
fn torn_writes_leave_a_beginning() {
    for reported in [false, true] {
        let device = device();
        let queue = device.open_queue(4).unwrap();
        device.faults().add(Rule::always(&[OperationKind::Write], Fault::Torn { reported }));
        let mut lengths = std::collections::BTreeSet::new();
        for mark in 1..60 {
            assert_eq!(write(&queue, 0, 8, mark).is_err(), reported);
            let marks = marks(&queue, 8);
            let written = marks.iter().take_while(|found| **found == mark).count();
            assert!(written < 8 && !marks[written..].contains(&mark), "{marks:?}");
            lengths.insert(written);
        }
        assert_eq!(lengths.len(), 8, "every length happens");
    }
}

#[test]
fn lost_and_corrupted_data_is_reported_as_good() {
    let device = device();
    let queue = device.open_queue(4).unwrap();
    write(&queue, 0, 1, 1).unwrap();
    device.faults().add(Rule::nth(&[OperationKind::Write], 1, Fault::Lost));
    write(&queue, 0, 1, 2).unwrap();
    assert_eq!(marks(&queue, 1), [1]);
    device.faults().add(Rule::nth(&[OperationKind::Read], 1, Fault::CorruptRead));
    let wrong = read(&queue, 0, 1).unwrap();
    let bits: u32 = wrong.iter().map(|byte| (byte ^ 1).count_ones()).sum();
    assert_eq!(bits, 1);
    assert!(read(&queue, 0, 1).unwrap().iter().all(|byte| *byte == 1), "the medium is unharmed");
    let flush = device.faults().add(Rule::always(&[OperationKind::Flush], Fault::Lost));
    block_on(&*queue, queue.flush()).unwrap();
    assert_eq!(device.faults().fired(flush), 1);
}

#[test]
fn a_delay_counts_polls_and_keeps_the_core_awake() {
    let device = device();
    let queue = device.open_queue(4).unwrap();
    device.faults().add(Rule::nth(&[OperationKind::Flush], 1, Fault::Delay { polls: 5 }));
    let (done, future) = engine_device::completion_pair();
    queue.submit(engine_device::Operation::Flush, done);
    let answers: Vec<usize> = (0..5)
        .map(|_| {
            assert!(!queue.prepare_to_sleep());
            queue.poll()
        })
        .collect();
    assert_eq!(answers, [0, 0, 0, 0, 1]);
    assert!(block_on(&*queue, future).is_ok());
    assert!(queue.prepare_to_sleep());
}

#[test]
fn a_device_that_goes_takes_all_queues_along() {
    let device = device();
    let (one, other) = (device.open_queue(4).unwrap(), device.open_queue(4).unwrap());
    write(&one, 0, 1, 5).unwrap();
    device.faults().add(Rule::nth(&[OperationKind::Read], 2, Fault::Gone));
    assert!(read(&one, 0, 1).is_ok());
    assert!(matches!(read(&one, 0, 1), Err(DeviceError::Gone { .. })));
    assert!(matches!(write(&other, 0, 1, 6), Err(DeviceError::Gone { .. })));
    assert!(matches!(device.open_queue(1), Err(DeviceError::Gone { .. })));
    device.faults().set_gone(false);
    assert_eq!(marks(&other, 1), [5]);
}

#[test]
fn the_same_seed_fails_the_same_operations() {
    let run = |seed| {
        let memory = Arc::new(MemoryDevice::new("memory", 4 << 20, BLOCK as u32));
        let device = FaultyDevice::new(memory, seed);
        let queue = device.open_queue(4).unwrap();
        let rule = Rule { chance: (1, 3), ..Rule::always(&[OperationKind::Write], Fault::Error) };
        device.faults().add(rule);
        (0..64).map(|n| write(&queue, n, 1, 1).is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

/// The suite must fail for a device that breaks its promises in silence.
#[test]
fn the_contract_suite_notices_a_broken_device() {
    let writes = [OperationKind::Write];
    for rule in [
        Rule::nth(&writes, 2, Fault::Lost),
        Rule { skip: 2000, chance: (1, 20), ..Rule::always(&writes, Fault::Lost) },
        Rule::nth(&writes, 2000, Fault::ErrorAfterwards),
        Rule::nth(&[OperationKind::WriteZeroes], 1, Fault::Lost),
        Rule { chance: (1, 50), ..Rule::always(&writes, Fault::Torn { reported: false }) },
        Rule { chance: (1, 50), ..Rule::always(&[OperationKind::Read], Fault::CorruptRead) },
        Rule::nth(&[OperationKind::Flush], 3, Fault::Error),
    ] {
        let device = device();
        let id = device.faults().add(rule.clone());
        let check = AssertUnwindSafe(|| contract::check(&device, Plan { seed: 5, rounds: 300 }));
        assert!(catch_unwind(check).is_err(), "not noticed: {rule:?}");
        assert!(device.faults().fired(id) > 0);
    }
}
