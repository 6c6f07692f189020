//! Where entries lie in the ring, and what is free. In blocks of 4096 bytes.

use std::collections::VecDeque;

/// An entry in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) seq: u64,
    pub(crate) start: u32,
    pub(crate) blocks: u32,
}

/// The ring. Entries are adjacent blocks; one that does not fit before the end starts at 0 again.
pub(crate) struct Ring {
    blocks: u32,
    entries: VecDeque<Placed>,
}

impl Ring {
    /// A ring of `blocks` with these entries in it, oldest first.
    pub(crate) fn new(blocks: u32, entries: impl IntoIterator<Item = Placed>) -> Self {
        Self { blocks, entries: entries.into_iter().collect() }
    }

    pub(crate) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Number of the newest entry placed.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.entries.back().map(|entry| entry.seq)
    }

    /// Gives back the space of entries older than `seq`.
    pub(crate) fn release_before(&mut self, seq: u64) {
        while self.entries.front().is_some_and(|entry| entry.seq < seq) {
            self.entries.pop_front();
        }
    }

    /// (length of the free run at the head, length of the free run after wrapping).
    fn free_runs(&self) -> (u32, u32) {
        let (Some(oldest), Some(newest)) = (self.entries.front(), self.entries.back()) else {
            return (self.blocks, 0);
        };
        let head = newest.start + newest.blocks;
        if head > oldest.start {
            (self.blocks - head, oldest.start)
        } else {
            (oldest.start - head, 0)
        }
    }

    /// Blocks that are free, in at most two runs.
    pub(crate) fn free(&self) -> u32 {
        let (first, second) = self.free_runs();
        first + second
    }

    /// Blocks that are free after an entry of `blocks` was placed; `None`: it has no room. A run that
    /// is too short for it is lost until the ring comes round.
    pub(crate) fn free_after(&self, blocks: u32) -> Option<u32> {
        let (first, second) = self.free_runs();
        if blocks <= first { Some(first - blocks + second) } else { second.checked_sub(blocks) }
    }

    /// Places an entry. `None`: no room.
    pub(crate) fn place(&mut self, seq: u64, blocks: u32) -> Option<Placed> {
        let (first, second) = self.free_runs();
        let head = self.entries.back().map_or(0, |newest| newest.start + newest.blocks);
        let start = if blocks <= first {
            head
        } else if blocks <= second {
            0
        } else {
            return None;
        };
        let placed = Placed { seq, start, blocks };
        self.entries.push_back(placed);
        Some(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_base::random::Random;

    /// Random placing and releasing against a map of used blocks.
    #[test]
    fn entries_never_overlap() {
        let mut random = Random::new(11);
        let mut ring = Ring::new(64, []);
        let mut live: VecDeque<Placed> = VecDeque::new();
        for seq in 1..20_000 {
            let blocks = random.range(1, 9) as u32;
            let fits = ring.free_after(blocks).is_some();
            match ring.place(seq, blocks) {
                None => {
                    assert!(!fits);
                    let keep = random.below(live.len() as u64 + 1) as usize;
                    let cut = live.len() - keep;
                    live.drain(..cut);
                    ring.release_before(live.front().map_or(u64::MAX, |entry| entry.seq));
                }
                Some(placed) => {
                    assert!(fits && placed.start + placed.blocks <= 64);
                    for other in &live {
                        assert!(
                            placed.start + placed.blocks <= other.start
                                || other.start + other.blocks <= placed.start
                        );
                    }
                    live.push_back(placed);
                }
            }
            let used: u32 = live.iter().map(|entry| entry.blocks).sum();
            assert!(ring.free() + used <= 64);
        }
    }
}
