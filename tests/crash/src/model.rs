//! What the daemon has promised, and so what may be found after a crash.
//!
//! [`Blocks`] is the contract of a disk with a volatile cache: a block shows the last version made
//! durable, or any later one that was sent; never an older one, never a mixture.
//! [`Tree`] is the contract within one shard: the files are as they were at one instant, not before
//! the last sync. Each has one writer, which waits for an answer before it goes on.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Result, bail, ensure};

/// The promises for a range of blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    /// The version that must be there at least; 0: never written.
    durable: u64,
    /// Later versions that were sent, in order; those acknowledged and at most one in doubt.
    sent: Vec<u64>,
    /// Whether the last of `sent` was acknowledged.
    acknowledged: bool,
}

impl Blocks {
    pub(crate) fn new(count: usize) -> Self {
        Self { blocks: vec![Block::default(); count] }
    }

    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// A write of `version` is about to be sent.
    pub(crate) fn sent(&mut self, block: usize, version: u64) {
        let block = &mut self.blocks[block];
        block.sent.push(version);
        block.acknowledged = false;
    }

    /// That write was acknowledged; with `durable` as on the device (FUA, or synchronous).
    pub(crate) fn acknowledged(&mut self, block: usize, durable: bool) {
        let block = &mut self.blocks[block];
        block.acknowledged = true;
        if durable {
            block.settle();
        }
    }

    /// A flush was acknowledged that was sent when nothing else was under way.
    pub(crate) fn flushed(&mut self) {
        for block in self.blocks.iter_mut().filter(|block| block.acknowledged) {
            block.settle();
        }
    }

    /// What a read must show while the daemon lives; `None` when a write of this block is in doubt.
    pub(crate) fn expected(&self, block: usize) -> Option<u64> {
        let block = &self.blocks[block];
        match block.sent.last() {
            None => Some(block.durable),
            Some(&last) => block.acknowledged.then_some(last),
        }
    }

    /// What was read after a restart; from then on it must stay.
    ///
    /// # Errors
    /// When it is not one of the versions that were promised.
    pub(crate) fn recovered(&mut self, block: usize, version: u64) -> Result<Outcome> {
        let state = &mut self.blocks[block];
        let outcome = if version == state.durable {
            if state.sent.is_empty() { Outcome::Kept } else { Outcome::Lost }
        } else if state.sent.contains(&version) {
            Outcome::Survived
        } else {
            bail!("block {block} shows version {version}, promised was {state:?}");
        };
        *state = Block { durable: version, ..Block::default() };
        Ok(outcome)
    }
}

impl Block {
    fn settle(&mut self) {
        if let Some(&last) = self.sent.last() {
            self.durable = last;
            self.sent.clear();
        }
    }
}

/// What became of a block or a tree over a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing was at stake.
    Kept,
    /// Something not yet durable survived.
    Survived,
    /// Something not yet durable was lost, as it may be.
    Lost,
}

/// Which version each file has; a file that is absent has none.
pub(crate) type Files = BTreeMap<u64, u64>;

/// The promises for the files of one tree.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// As at the last sync.
    durable: Files,
    /// Changes since, in order: (file, new version; 0: removed). The last may be in doubt.
    changes: VecDeque<(u64, u64)>,
    /// How many of `changes` were acknowledged.
    acknowledged: usize,
}

impl Tree {
    /// A change is about to be sent: `file` becomes `version`, or 0: is removed.
    pub(crate) fn sent(&mut self, file: u64, version: u64) {
        self.changes.push_back((file, version));
    }

    /// The change was acknowledged.
    pub(crate) fn acknowledged(&mut self) {
        self.acknowledged = self.changes.len();
    }

    /// A sync was acknowledged that was sent when nothing else was under way.
    pub(crate) fn synced(&mut self) {
        for _ in 0..self.acknowledged {
            if let Some(change) = self.changes.pop_front() {
                apply(&mut self.durable, change);
            }
        }
        self.acknowledged = 0;
    }

    /// The files as a client sees them while nothing is in doubt.
    pub(crate) fn current(&self) -> Files {
        let mut files = self.durable.clone();
        self.changes.iter().for_each(|&change| apply(&mut files, change));
        files
    }

    /// What was found after a restart; from then on it must stay.
    ///
    /// # Errors
    /// When the tree never looked like this since the last sync.
    pub(crate) fn recovered(&mut self, found: &Files) -> Result<Outcome> {
        let mut instant = self.durable.clone();
        let mut matching = (instant == *found).then_some(0);
        for (index, &change) in self.changes.iter().enumerate() {
            apply(&mut instant, change);
            if instant == *found {
                matching = Some(index + 1);
            }
        }
        let Some(survived) = matching else {
            bail!("found {found:?}, which never was; durable and changes since: {self:?}");
        };
        ensure!(survived <= self.changes.len(), "more changes than were sent");
        let outcome = match (self.changes.len(), survived) {
            (0, _) => Outcome::Kept,
            (all, some) if some < all => Outcome::Lost,
            _ => Outcome::Survived,
        };
        *self = Self { durable: found.clone(), ..Self::default() };
        Ok(outcome)
    }
}

fn apply(files: &mut Files, (file, version): (u64, u64)) {
    if version == 0 {
        files.remove(&file);
    } else {
        files.insert(file, version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flushed_block_must_stay() {
        let mut blocks = Blocks::new(1);
        blocks.sent(0, 1);
        blocks.acknowledged(0, false);
        blocks.flushed();
        blocks.sent(0, 2);
        blocks.acknowledged(0, false);
        assert_eq!(blocks.expected(0), Some(2));
        assert!(blocks.recovered(0, 0).is_err(), "older than the flush");
        assert!(blocks.recovered(0, 3).is_err(), "never written");
        assert_eq!(blocks.recovered(0, 2).unwrap(), Outcome::Survived);
        assert!(blocks.recovered(0, 1).is_err(), "what was recovered must stay");
    }

    #[test]
    fn an_unflushed_block_may_go_and_one_in_doubt_may_stay() {
        let mut blocks = Blocks::new(2);
        blocks.sent(0, 1);
        blocks.acknowledged(0, false);
        assert_eq!(blocks.recovered(0, 0).unwrap(), Outcome::Lost);
        blocks.sent(1, 2);
        assert_eq!(blocks.expected(1), None);
        blocks.flushed();
        assert_eq!(blocks.recovered(1, 0).unwrap(), Outcome::Lost);
        blocks.sent(1, 3);
        blocks.acknowledged(1, true);
        assert!(blocks.recovered(1, 0).is_err(), "written with FUA");
    }

    #[test]
    fn a_tree_is_as_at_one_instant() {
        let history = || {
            let mut tree = Tree::default();
            tree.sent(1, 10);
            tree.acknowledged();
            tree.synced();
            for (file, version) in [(2, 20), (1, 11), (3, 30)] {
                tree.sent(file, version);
                tree.acknowledged();
            }
            tree.sent(2, 0);
            tree
        };
        let found = |files: &[(u64, u64)]| history().recovered(&files.iter().copied().collect());
        assert_eq!(found(&[(1, 10)]).unwrap(), Outcome::Lost);
        assert_eq!(found(&[(1, 10), (2, 20)]).unwrap(), Outcome::Lost);
        assert_eq!(found(&[(1, 11), (3, 30)]).unwrap(), Outcome::Survived);
        assert!(found(&[]).is_err(), "older than the sync");
        assert!(found(&[(1, 11)]).is_err(), "the second change without the first");
        assert!(found(&[(1, 10), (3, 30)]).is_err(), "a later change without the earlier ones");
    }
}
