//! The tasks of a core that other threads have woken: a tree of bits, one bit a task.
//!
//! Setting is wait-free and cannot overflow, since a task that is woken twice needs one bit. The
//! owner looks at one word when nothing was set. A set bit of an upper level says that the word below
//! it may have bits; the setter sets from the leaf up and the owner clears from the top down, so a bit
//! is never left below a cleared word without the setter still being on its way up.

use crate::sync::{AtomicU64, Ordering};

const BITS: usize = 64;

/// A set of task indices that any thread may add to and the owning core drains.
#[derive(Debug)]
pub struct WakeSet {
    top: AtomicU64,
    middle: Box<[AtomicU64]>,
    leaves: Box<[AtomicU64]>,
}

impl WakeSet {
    /// The most indices a set can be made for.
    pub const CAPACITY_MAX: usize = BITS * BITS * BITS;

    /// A set for the indices `0 .. capacity`, rounded up to a multiple of 64.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        assert!(capacity <= Self::CAPACITY_MAX, "{capacity} tasks, at most 2^18 are possible");
        let leaves = capacity.div_ceil(BITS).max(1);
        let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { top: AtomicU64::new(0), middle: words(leaves.div_ceil(BITS)), leaves: words(leaves) }
    }

    /// Adds `index`. Follow it with [`crate::doorbell::publish`] and a look at the owner's flag.
    pub fn set(&self, index: usize) {
        let leaf = index / BITS;
        let middle = leaf / BITS;
        // Release: what the waker wrote before is seen by the task, whose next poll follows an
        // Acquire of this word. AcqRel on the way up, so that the owner who sees an upper bit sees
        // the lower ones.
        if self.leaves[leaf].fetch_or(1 << (index % BITS), Ordering::AcqRel) >> (index % BITS) & 1
            == 1
        {
            // Whoever set it first carries it up.
            return;
        }
        self.middle[middle].fetch_or(1 << (leaf % BITS), Ordering::AcqRel);
        self.top.fetch_or(1 << middle, Ordering::AcqRel);
    }

    /// Whether nothing is known to be set. For the owner.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.top.load(Ordering::Acquire) == 0
    }

    /// Empties the set, giving each index to `each`. For the owner. Returns how many.
    #[inline]
    pub fn drain(&self, each: impl FnMut(usize)) -> usize {
        if self.is_empty() { 0 } else { self.drain_some(each) }
    }

    #[cold]
    fn drain_some(&self, mut each: impl FnMut(usize)) -> usize {
        let mut count = 0;
        for middle in bits(self.top.swap(0, Ordering::AcqRel)) {
            for leaf in bits(self.middle[middle].swap(0, Ordering::AcqRel)) {
                let leaf = middle * BITS + leaf;
                for bit in bits(self.leaves[leaf].swap(0, Ordering::AcqRel)) {
                    each(leaf * BITS + bit);
                    count += 1;
                }
            }
        }
        count
    }
}

/// The positions of the bits of `word`, lowest first.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        if bit as usize == BITS {
            return None;
        }
        word &= word - 1;
        Some(bit as usize)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use engine_base::random::Random;

    use super::*;

    #[test]
    fn is_a_set() {
        let seed = crate::test_seed();
        let mut random = Random::new(seed);
        for capacity in [1, 64, 65, 5000, WakeSet::CAPACITY_MAX] {
            let set = WakeSet::new(capacity);
            for _ in 0..20 {
                let mut model = BTreeSet::new();
                for _ in 0..random.below(100) {
                    let index = random.below(capacity as u64) as usize;
                    set.set(index);
                    model.insert(index);
                }
                assert_eq!(set.is_empty(), model.is_empty(), "seed {seed}");
                let mut got = Vec::new();
                assert_eq!(set.drain(|index| got.push(index)), model.len(), "seed {seed}");
                assert_eq!(got, model.into_iter().collect::<Vec<_>>(), "seed {seed}");
                assert!(set.is_empty());
            }
        }
    }
}
