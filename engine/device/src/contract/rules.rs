//! The rules, each checked alone.

use engine_base::random::Random;

use super::drive::{buffer, filled, sleep};
use super::{Context, DEVICE_BYTES_MIN};
use crate::{DeviceError, IoVec, Operation, QueueExt};

pub(super) fn geometry(context: &Context<'_>) {
    let info = context.device.info();
    assert!(matches!(info.block_size, 512 | 1024 | 2048 | 4096), "{info:?}");
    assert!(info.size_bytes.is_multiple_of(u64::from(info.block_size)), "{info:?}");
    assert!(info.size_bytes >= DEVICE_BYTES_MIN, "too short to be checked: {info:?}");
    assert!(info.atomic_write_bytes >= info.block_size, "{info:?}");
    assert!(info.max_transfer_bytes >= info.block_size, "{info:?}");
    assert_eq!(context.open(4).queue().info(), info, "device and queue agree");
}

pub(super) fn invalid_operations_change_nothing(context: &Context<'_>) {
    let (drive, block) = (context.open(4), context.block);
    let size = context.device.info().size_bytes;
    let write = |offset, len, mark| Operation::Write {
        offset,
        data: IoVec::from_iter([filled(len, mark)]),
        fua: false,
    };
    let end = size - 2 * block;
    drive.write(0, filled(2 * block, 0x11));
    drive.write(end, filled(2 * block, 0x22));

    let read = |offset, len| Operation::Read { offset, buffer: buffer(len) };
    let misaligned = [
        read(1, block),
        read(0, block - 1),
        read(0, 1),
        read(size + 1, block),
        write(1, block, 0xbb),
        write(block / 2, block, 0xbb),
        write(0, block + 1, 0xbb),
        Operation::Discard { offset: 1, len: block },
        Operation::WriteZeroes { offset: 0, len: block / 2 },
    ];
    for operation in misaligned {
        let told = format!("{operation:?}");
        let error = drive.run_to_error(drive.start(operation));
        assert!(matches!(error, DeviceError::Misaligned { .. }), "{told}: {error}");
    }
    let last = u64::MAX - (block - 1);
    let outside = [
        read(size, block),
        read(end, 3 * block),
        read(last, block),
        write(size, block, 0xbb),
        write(size - block, 2 * block, 0xbb),
        write(last, block, 0xbb),
        Operation::Discard { offset: size, len: block },
        Operation::Discard { offset: block, len: last },
        Operation::WriteZeroes { offset: end, len: 3 * block },
        Operation::WriteZeroes { offset: last, len: last },
    ];
    for operation in outside {
        let told = format!("{operation:?}");
        let error = drive.run_to_error(drive.start(operation));
        assert!(matches!(error, DeviceError::OutOfRange { .. }), "{told}: {error}");
    }
    assert_eq!(drive.queue().in_flight(), 0);
    assert!(drive.read(0, 2 * block).iter().all(|byte| *byte == 0x11));
    assert!(drive.read(end, 2 * block).iter().all(|byte| *byte == 0x22));
}

pub(super) fn empty_operations_succeed(context: &Context<'_>) {
    let drive = context.open(2);
    let size = context.device.info().size_bytes;
    for offset in [0, context.block, size] {
        assert_eq!(drive.read(offset, 0).len(), 0);
        drive.write(offset, filled(0, 0));
        drive.run(drive.queue().write(offset, IoVec::new(), true));
    }
}

/// Pieces of any length and alignment in memory, as long as their sum fits.
pub(super) fn vectored_writes_are_in_order(context: &Context<'_>) {
    let drive = context.open(4);
    let mut random = Random::new(context.seed);
    for round in 0..30 {
        let blocks = random.range(1, 16);
        let len = blocks * context.block;
        let mut whole = buffer(len);
        random.fill(&mut whole);
        let whole = whole.freeze();
        let pieces_max = [1, 3, 9, 2000][round % 4];
        let mut data = IoVec::new();
        let mut at = 0;
        while at < len && data.len() < pieces_max {
            let rest = len - at;
            let piece = match random.below(3) {
                // Aligned pieces go to the device as they are, others may need a copy.
                0 => (random.range(1, blocks) * context.block).min(rest),
                1 => random.range(1, rest),
                _ => random.range(1, 100).min(rest),
            };
            data.push(whole.slice(at as usize..(at + piece) as usize));
            at += piece;
        }
        data.push(whole.slice(at as usize..len as usize));
        let offset = random.below(context.area / context.block - 16) * context.block;
        drive.run(drive.queue().write(offset, data, random.chance(1, 2)));
        assert!(drive.read(offset, len)[..] == whole[..], "seed {}", context.seed);
    }
}

pub(super) fn more_than_the_depth_waits(context: &Context<'_>) {
    for depth in [1, 3, 8] {
        let drive = context.open(depth);
        let count = 64;
        let operation = |number: u64| Operation::Write {
            offset: number * context.block,
            data: IoVec::from_iter([filled(context.block, number as u8)]),
            fua: false,
        };
        let writes: Vec<_> = (0..count).map(|number| drive.start(operation(number))).collect();
        assert_eq!(drive.queue().in_flight(), count as usize, "all are accepted");
        for write in writes {
            drive.run(write);
        }
        assert_eq!(drive.queue().in_flight(), 0);
        let reads: Vec<_> = (0..count)
            .map(|number| drive.queue().read(number * context.block, buffer(context.block)))
            .collect();
        for (number, read) in reads.into_iter().enumerate() {
            let read = drive.run(read);
            assert!(read.iter().all(|byte| *byte == number as u8), "depth {depth}");
        }
    }
}

pub(super) fn overlapping_writes_leave_one_of_them_in_each_block(context: &Context<'_>) {
    let drive = context.open(8);
    let mut random = Random::new(context.seed);
    let blocks = 8;
    for _ in 0..20 {
        drive.write(0, filled(blocks * context.block, 0));
        let mut writes = Vec::new();
        for mark in 1..=12 {
            let first = random.below(blocks);
            let count = random.range(1, blocks - first);
            writes.push(drive.start(Operation::Write {
                offset: first * context.block,
                data: IoVec::from_iter([filled(count * context.block, mark)]),
                fua: mark % 4 == 0,
            }));
        }
        for write in writes {
            drive.run(write);
        }
        let read = drive.read(0, blocks * context.block);
        for block in read.chunks(context.block as usize) {
            let mark = block[0];
            assert!(mark <= 12, "seed {}", context.seed);
            assert!(block.iter().all(|byte| *byte == mark), "torn block, seed {}", context.seed);
        }
    }
}

pub(super) fn queues_see_each_others_writes(context: &Context<'_>) {
    let (one, other) = (context.open(2), context.open(16));
    for mark in 1..20_u8 {
        let offset = u64::from(mark) * context.block;
        one.write(offset, filled(context.block, mark));
        assert!(other.read(offset, context.block).iter().all(|byte| *byte == mark));
        other.write(offset, filled(context.block, !mark));
        assert!(one.read(offset, context.block).iter().all(|byte| *byte == !mark));
    }
}

/// A flush is answered on its own, behind writes, with writes in flight, and many at once.
pub(super) fn flush_and_fua_answer(context: &Context<'_>) {
    let drive = context.open(4);
    drive.run(drive.queue().flush());
    drive.write(0, filled(context.block, 0x31));
    drive.run(drive.queue().flush());
    let pending: Vec<_> = (0..24)
        .map(|number| match number % 3 {
            0 => drive.start(Operation::Flush),
            kind => drive.start(Operation::Write {
                offset: number * context.block,
                data: IoVec::from_iter([filled(context.block, 0x40 + number as u8)]),
                fua: kind == 1,
            }),
        })
        .collect();
    for operation in pending {
        drive.run(operation);
    }
    for number in (0..24).filter(|number| number % 3 != 0) {
        let read = drive.read(number * context.block, context.block);
        assert!(read.iter().all(|byte| *byte == 0x40 + number as u8));
    }
}

pub(super) fn discard_and_zeroes(context: &Context<'_>) {
    let (drive, block) = (context.open(4), context.block);
    let info = context.device.info();
    let fill = || drive.write(0, filled(16 * block, 0x77));
    let neighbours_are_untouched = |from: u64, to: u64| {
        assert!(drive.read(0, from * block).iter().all(|byte| *byte == 0x77));
        assert!(drive.read(to * block, (16 - to) * block).iter().all(|byte| *byte == 0x77));
    };
    fill();
    let discard = drive.queue().discard(3 * block, 5 * block);
    if info.discard {
        drive.run(discard);
        neighbours_are_untouched(3, 8);
        drive.read(3 * block, 5 * block);
        drive.write(4 * block, filled(block, 0x78));
        assert!(drive.read(4 * block, block).iter().all(|byte| *byte == 0x78));
        drive.run(drive.queue().discard(0, 0));
    } else {
        let error = drive.run_to_error(discard);
        assert!(matches!(error, DeviceError::Unsupported { .. }), "{error}");
        neighbours_are_untouched(0, 0);
    }
    fill();
    let zero = drive.queue().write_zeroes(2 * block, 7 * block);
    if info.write_zeroes {
        drive.run(zero);
        assert!(drive.read(2 * block, 7 * block).iter().all(|byte| *byte == 0));
        neighbours_are_untouched(2, 9);
        drive.run(drive.queue().write_zeroes(0, context.area));
        drive.run(drive.queue().write_zeroes(0, 0));
        assert!(drive.read(0, 16 * block).iter().all(|byte| *byte == 0));
    } else {
        let error = drive.run_to_error(zero);
        assert!(matches!(error, DeviceError::Unsupported { .. }), "{error}");
        neighbours_are_untouched(0, 0);
    }
}

/// Sleeps for every single completion, so that each of them must wake.
pub(super) fn sleep_is_ended_by_a_completion(context: &Context<'_>) {
    let drive = context.open(4);
    let queue = drive.queue();
    if queue.wake_fd().is_none() {
        return;
    }
    assert!(queue.poll() == 0 && queue.prepare_to_sleep(), "an idle queue lets its core sleep");
    for round in 0..200 {
        let offset = (round % 64) * context.block;
        let future = if round % 5 == 4 {
            drive.start(Operation::Flush)
        } else if round % 2 == 0 {
            let data = IoVec::from_iter([filled(context.block, round as u8)]);
            drive.start(Operation::Write { offset, data, fua: false })
        } else {
            drive.start(Operation::Read { offset, buffer: buffer(context.block) })
        };
        assert!(!queue.prepare_to_sleep(), "no sleep before what is submitted was handed over");
        let mut answered = queue.poll();
        let mut wakes = 0;
        while answered == 0 {
            if queue.prepare_to_sleep() {
                sleep(queue);
                wakes += 1;
                assert!(wakes < 1000, "woken for nothing, seed {}", context.seed);
            }
            answered = queue.poll();
        }
        assert_eq!((answered, queue.in_flight()), (1, 0));
        drive.run(future);
    }
    // Signals left over from then must not keep the core awake.
    assert!(queue.prepare_to_sleep());
}

/// Whatever was in flight is answered, and the buffers are not written afterwards.
pub(super) fn dropping_a_queue_answers_gone(context: &Context<'_>) {
    let mut random = Random::new(context.seed);
    let blocks = 64;
    for round in 0..20_u8 {
        let (old, new) = (round, round + 100);
        let keeper = context.open(4);
        keeper.write(0, filled(blocks * context.block, old));
        let drive = context.open(8);
        let mut futures = Vec::new();
        for number in 0..blocks {
            let offset = number * context.block;
            futures.push(if random.chance(1, 2) {
                let data = IoVec::from_iter([filled(context.block, new)]);
                drive.start(Operation::Write { offset, data, fua: false })
            } else {
                drive.start(Operation::Read { offset, buffer: buffer(context.block) })
            });
        }
        for _ in 0..random.below(4) {
            drive.queue().poll();
        }
        drop(drive);
        // The freed buffers are taken again at once; if the kernel still filled one it would show.
        let taken: Vec<_> = (0..blocks).map(|_| buffer(context.block)).collect();
        for future in futures {
            match super::block_on(keeper.queue(), future) {
                Ok(_) | Err(DeviceError::Gone { .. }) => {}
                Err(error) => panic!("seed {}: {error}", context.seed),
            }
        }
        for block in keeper.read(0, blocks * context.block).chunks(context.block as usize) {
            let mark = block[0];
            assert!(mark == old || mark == new, "seed {}", context.seed);
            assert!(block.iter().all(|byte| *byte == mark), "seed {}", context.seed);
        }
        assert!(taken.iter().flat_map(|buffer| buffer.iter()).all(|byte| *byte == 0xee));
    }
}
