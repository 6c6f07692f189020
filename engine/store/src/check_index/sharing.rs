//! What is shared, counted anew: shared extents against the references to them.
//!
//! Where a reference begins and where it ends, who holds what is there changes; the sum of all changes up to an address
//! is who holds it. That is compared with what shared extents say.

use std::collections::BTreeMap;

use crate::extent::{Address, Extent, Holder, Holders};
use crate::key::Position;

/// Most problems that are told.
const PROBLEMS_MAX: usize = 100;

/// What a walk over all extents has seen of sharing.
#[derive(Default)]
pub(crate) struct SharingSeen {
    /// Shared extents: blocks, and who they say has them.
    extents: BTreeMap<Address, (u64, Holders)>,
    /// What changes at an address.
    edges: BTreeMap<Address, Holders>,
    problems: Vec<String>,
}

/// A run of shared blocks with the same holders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) holders: Holders,
}

/// Who holds what, by references: from each address on, until the next.
pub(crate) struct Truth(BTreeMap<Address, Holders>);

impl SharingSeen {
    /// Notes an extent.
    pub(crate) fn note(&mut self, position: Position, extent: &Extent) {
        let blocks = u64::from(extent.blocks);
        let Some(start) = position.offset.checked_sub(blocks) else { return };
        match (Address::is_space(position.inode), extent.holders()) {
            (true, Some(holders)) if position.snapshot == 0 => {
                let address = Address { space: position.inode, block: start };
                self.extents.insert(address, (blocks, holders));
            }
            (false, None) => {}
            _ => self.problem(format!("extent at {position:?}: not shared as its key says")),
        }
        if let Some(address) = extent.address() {
            let shift = start.wrapping_sub(address.block);
            let holder = Holder { inode: position.inode, version: position.snapshot, shift };
            let (begins, ends) = (Holders::one(holder), Holders::one(holder).gone());
            self.edges.entry(address).or_default().merge(begins);
            self.edges.entry(address.after(blocks)).or_default().merge(ends);
        }
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }

    /// What the references say.
    pub(crate) fn truth(&self) -> Truth {
        let (mut now, mut space) = (Holders::default(), 0);
        let sums = self.edges.iter().map(|(address, change)| {
            if address.space != space {
                (now, space) = (Holders::default(), address.space);
            }
            now.merge(*change);
            (*address, now)
        });
        Truth(sums.collect())
    }

    /// Where shared extents are, and what they say: blocks, and who has them.
    pub(crate) fn extents(&self) -> impl Iterator<Item = (Address, u64, Holders)> {
        self.extents.iter().map(|(address, (blocks, holders))| (*address, *blocks, *holders))
    }

    /// The parts of so many blocks at an address that no shared extent covers.
    pub(crate) fn missing(&self, address: Address, blocks: u64) -> Vec<(u64, u64)> {
        let (mut at, end) = (address.block, address.block + blocks);
        let mut missing = Vec::new();
        let before = self.extents.range(..address).next_back();
        let within = self.extents.range(address..Address { block: end, ..address });
        for (there, (len, _)) in before.into_iter().chain(within) {
            if there.space != address.space || there.block + len <= at {
                continue;
            }
            if there.block > at {
                missing.push((at, there.block));
            }
            at = there.block + len;
        }
        if at < end {
            missing.push((at, end));
        }
        missing
    }

    /// What is wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let truth = self.truth();
        let mut problems = self.problems.clone();
        for (address, blocks, holders) in self.extents() {
            let held = truth.held(address, blocks);
            let right = Held { from: address.block, to: address.block + blocks, holders };
            if held != [right] {
                let there: Vec<_> =
                    held.iter().map(|it| (it.to - it.from, it.holders.count)).collect();
                let (count, only) = (holders.count, holders.only());
                problems.push(format!(
                    "shared extent of {blocks} blocks at {address:?}: it counts {count} references \
                     ({only:?}), there are (blocks, references) {there:?}"
                ));
            }
        }
        for (address, blocks) in truth.referenced() {
            for (from, to) in self.missing(address, blocks) {
                let missing = Address { block: from, ..address };
                problems.push(format!(
                    "{} shared blocks at {missing:?} are referred to and not there",
                    to - from
                ));
            }
        }
        problems.truncate(PROBLEMS_MAX);
        problems
    }
}

impl Truth {
    /// Who holds so many blocks at an address, in runs; also those that nobody holds.
    pub(crate) fn held(&self, address: Address, blocks: u64) -> Vec<Held> {
        let end = address.block + blocks;
        let before = self.0.range(..=address).next_back();
        let first = before.filter(|(at, _)| at.space == address.space);
        let mut runs = vec![Held {
            from: address.block,
            to: end,
            holders: first.map(|(_, holders)| *holders).unwrap_or_default(),
        }];
        for (at, holders) in self.0.range(address.after(1)..Address { block: end, ..address }) {
            let last = runs.last_mut().expect("begins with one");
            if last.holders != *holders {
                last.to = at.block;
                runs.push(Held { from: at.block, to: end, holders: *holders });
            }
        }
        runs
    }

    /// Runs of blocks to which something refers.
    fn referenced(&self) -> impl Iterator<Item = (Address, u64)> {
        let runs = self.0.iter().zip(self.0.keys().skip(1));
        let within = runs
            .filter(|((address, holders), next)| holders.count > 0 && next.space == address.space);
        within.map(|((address, _), next)| (*address, next.block - address.block))
    }
}

#[cfg(test)]
mod tests {
    use smallvec::SmallVec;

    use super::*;
    use crate::extent::{Pointer, Sharing};

    const SPACE: u64 = Address::SPACES | 7;

    fn at(block: u64) -> Address {
        Address { space: SPACE, block }
    }

    fn reference(
        seen: &mut SharingSeen,
        inode: u64,
        end: u64,
        address: Address,
        blocks: u32,
    ) -> Holder {
        let position = Position::new(inode, end, 9);
        seen.note(position, &Extent::reference(address, blocks));
        let shift = (end - u64::from(blocks)).wrapping_sub(address.block);
        Holder { inode, version: 9, shift }
    }

    fn shared(seen: &mut SharingSeen, block: u64, blocks: u32, holders: &[Holder]) {
        let mut all = Holders::one(holders[0]);
        holders[1..].iter().for_each(|holder| assert!(all.add(*holder)));
        let pointer = Pointer { member: 0, generation: 7, block };
        let extent = Extent {
            blocks,
            pointers: SmallVec::from_iter([pointer]),
            checksums: SmallVec::from_elem(1, blocks as usize),
            sharing: Sharing::Shared(all),
            ..Extent::default()
        };
        seen.note(Position::new(SPACE, block + u64::from(blocks), 0), &extent);
    }

    #[test]
    fn extents_that_count_right_are_right() {
        let mut seen = SharingSeen::default();
        let first = reference(&mut seen, 1, 32, at(100), 32);
        let second = reference(&mut seen, 2, 8, at(108), 8);
        // Cut in two, and the same to what it covers.
        let third = reference(&mut seen, 3, 40, at(100), 20);
        assert_eq!(third, reference(&mut seen, 3, 52, at(120), 12));
        shared(&mut seen, 100, 8, &[first, third]);
        shared(&mut seen, 108, 8, &[first, second, third]);
        shared(&mut seen, 116, 16, &[third, first]);
        assert_eq!(seen.problems(), Vec::<String>::new());
    }

    #[test]
    fn what_is_counted_wrong_is_told() {
        let mut seen = SharingSeen::default();
        let first = reference(&mut seen, 1, 32, at(100), 32);
        let second = reference(&mut seen, 2, 8, at(108), 8);
        shared(&mut seen, 100, 8, &[first, second]);
        shared(&mut seen, 108, 24, &[first, second]);
        shared(&mut seen, 200, 1, &[first]);
        let problems = seen.problems();
        assert_eq!(problems.len(), 3, "{problems:?}");
        let held = seen.truth().held(at(108), 24);
        assert_eq!(
            held.iter().map(|it| (it.from, it.holders.count)).collect::<Vec<_>>(),
            [(108, 2), (116, 1)]
        );
    }

    #[test]
    fn another_holder_in_place_of_one_is_told() {
        let mut seen = SharingSeen::default();
        let first = reference(&mut seen, 1, 32, at(100), 32);
        shared(&mut seen, 100, 32, &[Holder { inode: 2, ..first }]);
        assert_eq!(seen.problems().len(), 1);
    }

    #[test]
    fn what_is_not_there_is_told() {
        let mut seen = SharingSeen::default();
        let first = reference(&mut seen, 1, 32, at(100), 32);
        shared(&mut seen, 104, 4, &[first]);
        assert_eq!(seen.missing(at(100), 32), [(100, 104), (108, 132)]);
        assert_eq!(seen.missing(at(105), 3), []);
        assert_eq!(seen.problems().len(), 2, "{:?}", seen.problems());
    }

    #[test]
    fn kinds_in_the_wrong_place_are_told() {
        let mut seen = SharingSeen::default();
        seen.note(Position::new(SPACE, 9, 0), &Extent::hole(3));
        assert_eq!(seen.problems().len(), 1);
    }
}
