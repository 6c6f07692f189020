//! Maps of a node in memory, ordered by position: its keys, and which of them are dirty.
//!
//! Runs of up to [`RUN_KEYS_MAX`] keys lie side by side, with the last position of each run in a list of
//! their own: a lookup is two binary searches in adjacent memory, and a change moves one run at most.
//! Measured against the standard library's map, whose nodes hold eleven keys: docs/benchmarks.md.
//!
//! Always true: no run is empty or longer than [`RUN_KEYS_MAX`]; positions rise strictly within a run and
//! from run to run; `lasts[i]` is the last position of run `i`.

use crate::key::{Position, Value};

/// Live keys of a node.
pub(crate) type Keys = Sorted<Value>;
/// Positions of a node.
pub(crate) type Positions = Sorted<()>;

/// Keys of one run: a change moves half of them on average, some 2 KiB.
const RUN_KEYS_MAX: usize = 64;

/// What a value takes on the heap beyond its own size.
pub(crate) trait HeapBytes {
    /// Bytes of memory elsewhere.
    fn heap_bytes(&self) -> usize;
}

impl HeapBytes for Value {
    fn heap_bytes(&self) -> usize {
        if self.spilled() { self.capacity() } else { 0 }
    }
}

impl HeapBytes for () {
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Values by position.
pub(crate) struct Sorted<V> {
    lasts: Vec<Position>,
    runs: Vec<Run<V>>,
    len: usize,
    /// Bytes that values take on the heap beyond their runs.
    spilled: usize,
}

/// The place of a key among the others, as (run, place in it): good until the next change.
pub(crate) type Place = (u32, u32);

struct Run<V> {
    positions: Vec<Position>,
    values: Vec<V>,
}

impl<V> Default for Sorted<V> {
    fn default() -> Self {
        Self { lasts: Vec::new(), runs: Vec::new(), len: 0, spilled: 0 }
    }
}

impl<V> Run<V> {
    fn new() -> Self {
        let (positions, values) =
            (Vec::with_capacity(RUN_KEYS_MAX), Vec::with_capacity(RUN_KEYS_MAX));
        Self { positions, values }
    }

    fn len(&self) -> usize {
        self.positions.len()
    }

    /// Index of the first key at or past `position`.
    fn first_from(&self, position: &Position) -> usize {
        self.positions.partition_point(|other| other < position)
    }

    /// As [`Run::first_from`], of a run that follows `before` and reaches to `position`: looks where it would be
    /// if keys were spread evenly first. Extents of a volume mostly are, and each look may be a cache miss.
    fn first_from_guess(&self, position: &Position, before: &Position, last: &Position) -> usize {
        let len = self.len();
        let guess = (before.inode == position.inode && position.inode == last.inode)
            .then(|| {
                let past = (position.offset - before.offset).saturating_sub(1);
                let at = past.checked_mul(len as u64)?;
                at.checked_div(last.offset - before.offset)
            })
            .flatten();
        let Some(guess) = guess else { return self.first_from(position) };
        let guess = (guess as usize).min(len - 1);
        // Ever farther from there until the place is between two looks.
        let (mut from, mut to, mut step) = (guess, guess, 1);
        if self.positions[guess] < *position {
            to += 1;
            while to < len && self.positions[to] < *position {
                from = to;
                to = (to + step).min(len);
                step *= 2;
            }
            from += 1;
        } else {
            while from > 0 && self.positions[from - 1] >= *position {
                to = from - 1;
                from = from.saturating_sub(step);
                step *= 2;
            }
        }
        from + self.positions[from..to].partition_point(|other| other < position)
    }

    fn last(&self) -> Position {
        self.positions[self.len() - 1]
    }
}

impl<V: HeapBytes> Sorted<V> {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the keys take: runs have the room of a full one from the start.
    pub(crate) fn heap_bytes(&self) -> usize {
        let entry = size_of::<Position>() + size_of::<V>();
        let run = size_of::<Run<V>>() + size_of::<Position>() + RUN_KEYS_MAX * entry;
        self.runs.len() * run + self.spilled
    }

    /// Index of the first run that reaches to `position`.
    fn run_for(&self, position: &Position) -> usize {
        self.lasts.partition_point(|last| last < position)
    }

    pub(crate) fn get(&self, position: &Position) -> Option<&V> {
        let (found, value) = self.next(*position, *position)?;
        (found == position).then_some(value)
    }

    /// The first key in `from ..= to`.
    pub(crate) fn next(&self, from: Position, to: Position) -> Option<(&Position, &V)> {
        self.next_placed(from, to).map(|(position, value, _)| (position, value))
    }

    /// The first key in `from ..= to`, and its place.
    pub(crate) fn next_placed(
        &self,
        from: Position,
        to: Position,
    ) -> Option<(&Position, &V, Place)> {
        let (index, at) = self.place_from(&from)?;
        let run = &self.runs[index];
        let position = &run.positions[at];
        (*position <= to).then(|| (position, &run.values[at], (index as u32, at as u32)))
    }

    /// Run and place in it of the first key at or past `from`.
    fn place_from(&self, from: &Position) -> Option<(usize, usize)> {
        let index = self.run_for(from);
        let run = self.runs.get(index)?;
        let at = match index.checked_sub(1) {
            Some(before) => run.first_from_guess(from, &self.lasts[before], &self.lasts[index]),
            None => run.first_from(from),
        };
        Some((index, at))
    }

    /// The keys from `from` on.
    pub(crate) fn iter_from(&self, from: Position) -> impl Iterator<Item = (&Position, &V)> {
        let (index, at) = self.place_from(&from).unwrap_or((self.runs.len(), 0));
        let starts = std::iter::once(at).chain(std::iter::repeat(0));
        let runs = self.runs[index..].iter().zip(starts);
        runs.flat_map(|(run, at)| run.positions[at..].iter().zip(&run.values[at..]))
    }

    /// The first key in `from ..= to` of a version, and its place.
    pub(crate) fn next_of_version(
        &self,
        from: Position,
        to: Position,
        version: u32,
    ) -> Option<(&Position, &V, Place)> {
        let (first, mut at) = self.place_from(&from)?;
        // Positions lie side by side: of those of other versions nothing else is looked at.
        for (index, run) in (first..).zip(&self.runs[first..]) {
            for (at, position) in (at..).zip(&run.positions[at..]) {
                if *position > to {
                    return None;
                }
                if position.snapshot == version {
                    return Some((position, &run.values[at], (index as u32, at as u32)));
                }
            }
            at = 0;
        }
        None
    }

    /// The last key in `from ..= to`.
    pub(crate) fn previous(&self, from: Position, to: Position) -> Option<(&Position, &V)> {
        let index = self.run_for(&to);
        let within = self
            .runs
            .get(index)
            .map_or(0, |run| run.positions.partition_point(|position| *position <= to));
        let (run, at) = match within {
            0 => {
                let run = self.runs.get(index.checked_sub(1)?)?;
                (run, run.len() - 1)
            }
            within => (&self.runs[index], within - 1),
        };
        let position = &run.positions[at];
        (*position >= from).then(|| (position, &run.values[at]))
    }

    /// The last key of all.
    pub(crate) fn last(&self) -> Option<&Position> {
        self.lasts.last()
    }

    /// Puts a value and gives back the one it replaces.
    pub(crate) fn insert(&mut self, position: Position, value: V) -> Option<V> {
        self.spilled += value.heap_bytes();
        let mut index = self.run_for(&position);
        if index == self.runs.len() {
            // Past all keys: at the end of the last run, or, when that is full, in a new one.
            match self.runs.last() {
                Some(run) if run.len() < RUN_KEYS_MAX => index -= 1,
                _ => {
                    self.runs.push(Run::new());
                    self.lasts.push(position);
                }
            }
        }
        let mut at = self.runs[index].first_from(&position);
        if self.runs[index].positions.get(at) == Some(&position) {
            let old = std::mem::replace(&mut self.runs[index].values[at], value);
            self.spilled -= old.heap_bytes();
            return Some(old);
        }
        if self.runs[index].len() == RUN_KEYS_MAX {
            self.split(index);
            let left = self.runs[index].len();
            if at > left {
                (index, at) = (index + 1, at - left);
            }
        }
        let run = &mut self.runs[index];
        run.positions.insert(at, position);
        run.values.insert(at, value);
        self.lasts[index] = run.last();
        self.len += 1;
        None
    }

    pub(crate) fn remove(&mut self, position: &Position) -> Option<V> {
        let index = self.run_for(position);
        let run = self.runs.get_mut(index)?;
        let at = run.first_from(position);
        if run.positions.get(at) != Some(position) {
            return None;
        }
        run.positions.remove(at);
        let value = run.values.remove(at);
        self.len -= 1;
        self.spilled -= value.heap_bytes();
        if run.len() == 0 {
            self.runs.remove(index);
            self.lasts.remove(index);
        } else {
            self.lasts[index] = run.last();
            self.join_if_small(index);
        }
        Some(value)
    }

    /// Takes over all keys of `other`, which lie past all of this.
    pub(crate) fn append(&mut self, other: &mut Self) {
        assert!(
            self.last().zip(other.runs.first()).is_none_or(|(last, run)| *last < run.positions[0]),
            "keys that are appended lie past those that are there"
        );
        self.lasts.append(&mut other.lasts);
        self.runs.append(&mut other.runs);
        self.len += std::mem::take(&mut other.len);
        self.spilled += std::mem::take(&mut other.spilled);
    }

    /// Takes out the keys at or past `position`.
    pub(crate) fn split_off(&mut self, position: &Position) -> Self {
        let index = self.run_for(position);
        let (lasts, runs) = (self.lasts.split_off(index), self.runs.split_off(index));
        let mut right = Self { lasts, runs, len: 0, spilled: 0 };
        // The first of these runs may begin before the cut.
        if let Some(run) = right.runs.first_mut() {
            let at = run.first_from(position);
            if at > 0 {
                let mut left = Run::new();
                left.positions.extend(run.positions.drain(..at));
                left.values.extend(run.values.drain(..at));
                self.lasts.push(left.last());
                self.runs.push(left);
            }
        }
        right.len = right.runs.iter().map(|run| run.len()).sum();
        self.len -= right.len;
        right.spilled = right.iter().map(|(_, value)| value.heap_bytes()).sum();
        self.spilled -= right.spilled;
        right
    }

    /// All in `from ..= to`, in order.
    pub(crate) fn range(
        &self,
        from: Position,
        to: Position,
    ) -> impl Iterator<Item = (&Position, &V)> {
        self.runs[self.run_for(&from)..]
            .iter()
            .flat_map(|run| run.positions.iter().zip(&run.values))
            .skip_while(move |(position, _)| **position < from)
            .take_while(move |(position, _)| **position <= to)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Position, &V)> {
        self.runs.iter().flat_map(|run| run.positions.iter().zip(&run.values))
    }

    fn split(&mut self, index: usize) {
        let run = &mut self.runs[index];
        let half = run.len() / 2;
        let mut right = Run::new();
        right.positions.extend(run.positions.drain(half..));
        right.values.extend(run.values.drain(half..));
        let last = run.last();
        self.lasts.insert(index + 1, right.last());
        self.lasts[index] = last;
        self.runs.insert(index + 1, right);
    }

    /// Joins a run with the next when both are small: many removals leave no long list of short runs.
    fn join_if_small(&mut self, index: usize) {
        let next = self.runs.get(index + 1).map_or(RUN_KEYS_MAX, |run| run.len());
        if self.runs[index].len() + next > RUN_KEYS_MAX / 2 {
            return;
        }
        let mut right = self.runs.remove(index + 1);
        let run = &mut self.runs[index];
        run.positions.append(&mut right.positions);
        run.values.append(&mut right.values);
        let last = run.last();
        self.lasts.remove(index + 1);
        self.lasts[index] = last;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use engine_base::random::Random;

    use super::*;
    use crate::testing::with_seeds;

    fn position(random: &mut Random, most: u64) -> Position {
        Position::new(random.below(3), random.below(most), random.below(2) as u32)
    }

    fn check(keys: &Keys, model: &BTreeMap<Position, Value>) {
        assert!(keys.iter().eq(model.iter()));
        assert_eq!((keys.len(), keys.is_empty()), (model.len(), model.is_empty()));
        assert_eq!(keys.last(), model.keys().next_back());
        assert!(keys.runs.iter().all(|run| (1..=RUN_KEYS_MAX).contains(&run.len())));
        assert_eq!(keys.spilled, keys.iter().map(|(_, value)| value.heap_bytes()).sum::<usize>());
        assert!(keys.lasts.iter().eq(keys.runs.iter().map(|run| &run.positions[run.len() - 1])));
    }

    #[test]
    fn equals_an_ordered_map() {
        with_seeds(|seed| {
            let mut random = Random::new(seed);
            let (mut keys, mut model) = (Keys::new(), BTreeMap::new());
            for step in 0..20_000_u32 {
                // Grows, then shrinks, and is dense or sparse by turns.
                let most = *random.pick(&[20, 400, 4000]);
                let at = position(&mut random, most);
                let grows = step % 8000 < 5000;
                if random.chance(if grows { 3 } else { 1 }, 4) {
                    let len = *random.pick(&[4, 48, 49, 200]);
                    let value = Value::from_elem(step as u8, len);
                    assert_eq!(keys.insert(at, value.clone()), model.insert(at, value));
                } else {
                    assert_eq!(keys.remove(&at), model.remove(&at));
                }
                let (a, b) = (position(&mut random, most), position(&mut random, most));
                let (from, to) = (a.min(b), a.max(b));
                assert_eq!(keys.get(&a), model.get(&a));
                assert_eq!(keys.next(from, to), model.range(from..=to).next());
                assert!(keys.range(from, to).eq(model.range(from..=to)));
                assert_eq!(keys.previous(from, to), model.range(from..=to).next_back());
                if step % 500 == 0 {
                    check(&keys, &model);
                    let (mut right, more) = (keys.split_off(&a), model.split_off(&a));
                    check(&keys, &model);
                    check(&right, &more);
                    keys.append(&mut right);
                    model.extend(more);
                    check(&keys, &model);
                }
            }
            check(&keys, &model);
        });
    }

    #[test]
    fn keys_in_order_fill_their_runs() {
        let mut keys = Keys::new();
        for offset in 0..1000 {
            keys.insert(Position::new(1, offset, 0), Value::new());
        }
        assert_eq!(keys.runs.len(), 1000_usize.div_ceil(RUN_KEYS_MAX));
        let mut more = Keys::new();
        for offset in 1000..1100 {
            more.insert(Position::new(1, offset, 0), Value::new());
        }
        keys.append(&mut more);
        assert_eq!((keys.len(), more.len()), (1100, 0));
        assert!(keys.iter().map(|(position, _)| position.offset).eq(0..1100));
    }
}
