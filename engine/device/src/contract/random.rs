//! Random operations, many in flight, against a model that is a list of what each block holds.

use engine_base::random::Random;

use super::Context;
use super::drive::{Drive, buffer, filled};
use crate::{IoFuture, IoVec, Operation};

/// What a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Content {
    /// This byte throughout.
    Mark(u8),
    /// Anything: never written, or discarded.
    Anything,
}

struct Pending {
    future: IoFuture,
    first: usize,
    count: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Read,
    /// What the blocks hold afterwards.
    Change(Content),
    Flush,
}

/// Blocks in one operation.
const BLOCKS_MAX: u64 = 40;

/// Operations of one round touch blocks that no other of the round touches, so the order in which
/// they are done does not matter; everything is answered between the rounds.
pub(super) fn operations_agree_with_a_model(context: &Context<'_>, rounds: u32) {
    let mut random = Random::new(context.seed);
    let mut model = vec![Content::Anything; (context.area / context.block) as usize];
    let mut drive = context.open(8);
    for _ in 0..rounds {
        if random.chance(1, 20) {
            drive = context.open(random.range(1, 32) as u32);
        }
        let mut busy = vec![false; model.len()];
        let mut pending = Vec::new();
        for _ in 0..random.range(1, 40) {
            if let Some(started) = start_one(context, &drive, &mut random, &mut busy) {
                pending.push(started);
            }
            if random.chance(1, 4) {
                drive.queue().poll();
            }
        }
        for operation in pending {
            finish(context, &drive, operation, &mut model);
        }
        assert_eq!(drive.queue().in_flight(), 0, "seed {}", context.seed);
    }
    for first in (0..model.len()).step_by(BLOCKS_MAX as usize) {
        let count = (BLOCKS_MAX as usize).min(model.len() - first);
        let offset = first as u64 * context.block;
        let read = Operation::Read { offset, buffer: buffer(count as u64 * context.block) };
        let read = Pending { future: drive.start(read), first, count, kind: Kind::Read };
        finish(context, &drive, read, &mut model);
    }
}

fn start_one(
    context: &Context<'_>,
    drive: &Drive,
    random: &mut Random,
    busy: &mut [bool],
) -> Option<Pending> {
    let info = context.device.info();
    let first = random.below(busy.len() as u64) as usize;
    let count = (random.range(1, BLOCKS_MAX) as usize).min(busy.len() - first);
    if busy[first..first + count].contains(&true) {
        return None;
    }
    let (offset, len) = (first as u64 * context.block, count as u64 * context.block);
    let mark = random.next_u64() as u8;
    let (operation, kind) = match random.below(20) {
        0 => (Operation::Flush, Kind::Flush),
        1 if info.discard => (Operation::Discard { offset, len }, Kind::Change(Content::Anything)),
        2 if info.write_zeroes => {
            (Operation::WriteZeroes { offset, len }, Kind::Change(Content::Mark(0)))
        }
        3..=10 => {
            let data = cut(random, len, mark);
            let fua = random.chance(1, 8);
            (Operation::Write { offset, data, fua }, Kind::Change(Content::Mark(mark)))
        }
        _ => (Operation::Read { offset, buffer: buffer(len) }, Kind::Read),
    };
    busy[first..first + count].fill(true);
    Some(Pending { future: drive.start(operation), first, count, kind })
}

/// `len` bytes of `mark` in some pieces.
fn cut(random: &mut Random, len: u64, mark: u8) -> IoVec {
    let whole = filled(len, mark);
    let mut data = IoVec::new();
    let mut at = 0;
    while at < len {
        let piece = if random.chance(1, 2) { len - at } else { random.range(1, len - at) };
        data.push(whole.slice(at as usize..(at + piece) as usize));
        at += piece;
    }
    data
}

fn finish(context: &Context<'_>, drive: &Drive, pending: Pending, model: &mut [Content]) {
    let Pending { future, first, count, kind } = pending;
    let outcome = drive.run(future);
    match kind {
        Kind::Change(content) => model[first..first + count].fill(content),
        Kind::Flush => {}
        Kind::Read => {
            let read = outcome.expect("a read returns its buffer");
            assert_eq!(read.len(), count * context.block as usize);
            for (index, block) in read.chunks(context.block as usize).enumerate() {
                if let Content::Mark(mark) = model[first + index] {
                    let right = block.iter().all(|byte| *byte == mark);
                    assert!(right, "seed {}: block {} is wrong", context.seed, first + index);
                }
            }
        }
    }
}
