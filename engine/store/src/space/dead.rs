//! Which blocks of a data bucket are known to be dead.
//!
//! Copygc asks the index whether what a summary names still lives. Of a bucket that is worth emptying most does not,
//! and each question is a search in a leaf that nobody else wants: those whose extents were seen to go need
//! not be asked. It is a hint and nothing more: not on disk, not complete for a bucket that was filled before the
//! shard was opened. Copygc believes that a bucket is empty when its count of live blocks says so, and looks
//! at all of it otherwise.

use std::ops::Range;

/// A bit for each block, set when an extent that named it left the index; no bits, while none has.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeadBlocks(Vec<u64>);

impl DeadBlocks {
    /// An extent that named these blocks left the index, of a bucket with `of` blocks.
    pub(crate) fn mark(&mut self, blocks: Range<u16>, of: u32) {
        if self.0.is_empty() {
            self.0.resize(of.div_ceil(64) as usize, 0);
        }
        for (word, bits) in words(blocks) {
            if let Some(word) = self.0.get_mut(word) {
                *word |= bits;
            }
        }
    }

    /// An extent that names these blocks came into the index.
    pub(crate) fn unmark(&mut self, blocks: Range<u16>) {
        if self.0.is_empty() {
            return;
        }
        for (word, bits) in words(blocks) {
            if let Some(word) = self.0.get_mut(word) {
                *word &= !bits;
            }
        }
    }

    /// Whether all of these are known to be dead.
    pub(crate) fn has_all(&self, blocks: Range<u16>) -> bool {
        words(blocks).all(|(word, bits)| self.0.get(word).is_some_and(|word| word & bits == bits))
    }
}

/// The words of the bits in a range, and which bits of each.
fn words(blocks: Range<u16>) -> impl Iterator<Item = (usize, u64)> {
    let (mut at, end) = (u32::from(blocks.start), u32::from(blocks.end));
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let (word, bit) = (at / 64, at % 64);
        let count = (64 - bit).min(end - at);
        at += count;
        Some((word as usize, (u64::MAX >> (64 - count)) << bit))
    })
}

#[cfg(test)]
mod tests {
    use engine_base::random::Random;

    use super::*;
    use crate::testing::with_seeds;

    #[test]
    fn is_a_set_of_blocks() {
        with_seeds(|seed| {
            let mut random = Random::new(seed);
            let of = 1 + random.below(300) as u16;
            let (mut dead, mut expected) = (DeadBlocks::default(), vec![false; usize::from(of)]);
            for _ in 0..200 {
                let start = random.below(u64::from(of)) as u16;
                let end = start + 1 + random.below(u64::from(of - start)) as u16;
                let (range, within) = (start..end, usize::from(start)..usize::from(end));
                match random.below(3) {
                    0 => {
                        dead.mark(range, u32::from(of));
                        expected[within].fill(true);
                    }
                    1 => {
                        dead.unmark(range);
                        expected[within].fill(false);
                    }
                    _ => {
                        let all = expected[within].iter().all(|dead| *dead);
                        assert_eq!(dead.has_all(range), all);
                    }
                }
            }
        });
    }

    #[test]
    fn takes_nothing_past_its_end_for_dead() {
        let mut dead = DeadBlocks::default();
        dead.mark(0..254, 254);
        assert!(dead.has_all(0..254));
        assert!(!dead.has_all(0..300));
        dead.unmark(250..400);
        assert!(!dead.has_all(249..251) && dead.has_all(0..250));
    }
}
