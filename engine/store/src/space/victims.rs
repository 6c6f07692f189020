//! Which bucket copygc should empty next: an index of the data buckets that hold dead blocks, kept up to
//! date as blocks die, so that a choice costs a look at each class and never a scan of all buckets.
//!
//! A bucket stands in one of [`CLASSES`] by how full it is, within its class by age. Buckets of one class
//! cost about the same to empty, so the oldest of a class is the best of it, and the best of all is found
//! among these few. Two measures:
//!
//! - *Cost and benefit* (Rosenblum and Ousterhout 1992): free space gained times age, over blocks read and
//!   written, (1 - u) * age / (1 + u). What was not touched for long stays as it is, so space gained there
//!   lasts; what is young will lose more blocks by itself and is left alone. Copygc chooses so while it
//!   works ahead of need.
//! - *Greedy*: the emptiest. It gives space soonest, for when somebody already waits for it.
//!
//! Age is counted in blocks that the shard has written since the bucket was filled: the engine has no
//! clock, and a pause in the load makes nothing older. A bucket of moved blocks is as old as the
//! youngest bucket that they came from.

use std::collections::BTreeSet;

use super::table::BucketId;

/// Classes by how full a bucket is.
const CLASSES: usize = 64;

/// Where a bucket stands in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    class: u8,
    /// Blocks the shard had written when the bucket was filled.
    filled_at: u64,
}

impl Standing {
    /// The standing of a bucket with `live` of `blocks` blocks alive; `live` is less than `blocks`.
    pub(crate) fn of(live: u32, blocks: u32, filled_at: u64) -> Self {
        let class = u64::from(live) * CLASSES as u64 / u64::from(blocks.max(1));
        Self { class: class.min(CLASSES as u64 - 1) as u8, filled_at }
    }
}

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Free space times age over work; `now` is what the shard has written.
    CostBenefit { now: u64 },
    /// The emptiest.
    Greedy,
}

impl Measure {
    /// How good a bucket is to empty: the higher, the better.
    pub(crate) fn score(self, at: Standing) -> u128 {
        match self {
            Self::CostBenefit { now } => {
                let age = u128::from(now.saturating_sub(at.filled_at)) + 1;
                // The middle of the class, in halves of a class.
                let live = 2 * u128::from(at.class) + 1;
                let all = 2 * CLASSES as u128;
                (all - live) * age * (1 << 20) / (all + live)
            }
            Self::Greedy => {
                (CLASSES as u128 - u128::from(at.class)) << 64 | u128::from(!at.filled_at)
            }
        }
    }
}

/// The index.
pub(crate) struct Victims {
    classes: Vec<BTreeSet<(u64, BucketId)>>,
    len: usize,
}

impl Default for Victims {
    fn default() -> Self {
        Self { classes: vec![BTreeSet::new(); CLASSES], len: 0 }
    }
}

impl Victims {
    /// Buckets in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, id: BucketId, at: Standing) {
        self.len += usize::from(self.classes[usize::from(at.class)].insert((at.filled_at, id)));
    }

    pub(crate) fn remove(&mut self, id: BucketId, at: Standing) {
        self.len -= usize::from(self.classes[usize::from(at.class)].remove(&(at.filled_at, id)));
    }

    /// The best bucket of those that `ready` lets pass, with its score. It is asked for buckets that
    /// something still holds, which are few, and once for each class.
    pub(crate) fn best(
        &self,
        measure: Measure,
        ready: impl Fn(BucketId) -> bool,
    ) -> Option<(u128, BucketId)> {
        let mut best: Option<(u128, BucketId)> = None;
        for (class, buckets) in self.classes.iter().enumerate() {
            let Some((filled_at, id)) = buckets.iter().find(|(_, id)| ready(*id)) else { continue };
            let score = measure.score(Standing { class: class as u8, filled_at: *filled_at });
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, *id));
            }
            if measure == Measure::Greedy {
                break;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(
        victims: &Victims,
        measure: Measure,
        ready: impl Fn(BucketId) -> bool,
    ) -> Option<BucketId> {
        victims.best(measure, ready).map(|(_, id)| id)
    }

    fn index(buckets: &[(u32, u32, u64)]) -> Victims {
        let mut victims = Victims::default();
        for (id, live, filled_at) in buckets {
            victims.insert((0, *id), Standing::of(*live, 100, *filled_at));
        }
        victims
    }

    #[test]
    fn greedy_takes_the_emptiest_and_the_oldest_of_equals() {
        let victims = index(&[(1, 90, 0), (2, 10, 500), (3, 10, 400), (4, 40, 1)]);
        assert_eq!(best(&victims, Measure::Greedy, |_| true), Some((0, 3)));
        assert_eq!(best(&victims, Measure::Greedy, |id| id.1 != 3), Some((0, 2)));
        assert_eq!(best(&victims, Measure::Greedy, |_| false), None);
    }

    #[test]
    fn cost_benefit_prefers_old_space_to_a_little_more_young_space() {
        // Half full and old against a third full and just written.
        let victims = index(&[(1, 50, 0), (2, 33, 9_900)]);
        let measure = Measure::CostBenefit { now: 10_000 };
        assert_eq!(best(&victims, measure, |_| true), Some((0, 1)));
        // Of one age, the emptier.
        let victims = index(&[(1, 50, 9_900), (2, 33, 9_900)]);
        assert_eq!(best(&victims, measure, |_| true), Some((0, 2)));
        // Nearly full costs more than its age is worth.
        let victims = index(&[(1, 99, 5_000), (2, 33, 8_000)]);
        assert_eq!(best(&victims, measure, |_| true), Some((0, 2)));
    }

    /// Against a scan of all, through random changes.
    #[test]
    fn the_choice_is_that_of_a_scan() {
        use engine_base::random::Random;
        let mut random = Random::new(5);
        let mut victims = Victims::default();
        let mut model: Vec<Option<(u32, u64)>> = vec![None; 200];
        for now in 1..20_000_u64 {
            let at = random.below(200) as usize;
            if let Some((live, filled_at)) = model[at].take() {
                victims.remove((0, at as u32), Standing::of(live, 64, filled_at));
            }
            if random.chance(3, 4) {
                let new = (random.below(64) as u32, random.below(now));
                model[at] = Some(new);
                victims.insert((0, at as u32), Standing::of(new.0, 64, new.1));
            }
            assert_eq!(victims.len(), model.iter().flatten().count());
            let score = |live: u32, filled_at: u64| {
                let u = (f64::from(live) + 0.5) / 64.0;
                (1.0 - u) * (now - filled_at + 1) as f64 / (1.0 + u)
            };
            let known = |id: BucketId| model[id.1 as usize].expect("it is in the index");
            let chosen = best(&victims, Measure::CostBenefit { now }, |_| true).map(known);
            let most = model.iter().flatten().map(|(live, at)| score(*live, *at));
            let most = most.fold(0.0, f64::max);
            assert!(chosen.map_or(0.0, |(live, at)| score(live, at)) >= most * 0.9999);
            let least = model.iter().flatten().map(|(live, _)| *live).min();
            let greedy = best(&victims, Measure::Greedy, |_| true).map(|id| known(id).0);
            assert_eq!(greedy, least);
        }
    }
}
