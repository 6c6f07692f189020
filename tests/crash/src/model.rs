//! What the daemon has promised, and so what may be found after it was killed.
//!
//! What was acknowledged stays, flushed or not; what was in doubt may be there or not. [`Blocks`]: a
//! block shows the last version acknowledged or the one in doubt; never an older one, never a mixture.
//! [`Tree`]: the files are as after the last change acknowledged, or the one in doubt. Each has one
//! writer, which waits for an answer before it goes on.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// The promises for a range of blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    /// The version that was acknowledged last; 0: never written.
    acknowledged: u64,
    /// A later version that was sent.
    in_doubt: Option<u64>,
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
        self.blocks[block].in_doubt = Some(version);
    }

    /// That write was acknowledged.
    pub(crate) fn acknowledged(&mut self, block: usize) {
        let block = &mut self.blocks[block];
        block.acknowledged = block.in_doubt.take().unwrap_or(block.acknowledged);
    }

    /// What a read must show while the daemon lives; `None` when a write of this block is in doubt.
    pub(crate) fn expected(&self, block: usize) -> Option<u64> {
        let block = &self.blocks[block];
        block.in_doubt.is_none().then_some(block.acknowledged)
    }

    /// What was read after a restart; from then on it must stay.
    ///
    /// # Errors
    /// When it is not one of the versions that were promised.
    pub(crate) fn recovered(&mut self, block: usize, version: u64) -> Result<Outcome> {
        let state = &mut self.blocks[block];
        let outcome = match state.in_doubt {
            None if version == state.acknowledged => Outcome::Kept,
            Some(in_doubt) if version == in_doubt => Outcome::Survived,
            Some(_) if version == state.acknowledged => Outcome::Lost,
            _ => bail!("block {block} shows version {version}, promised was {state:?}"),
        };
        *state = Block { acknowledged: version, in_doubt: None };
        Ok(outcome)
    }
}

/// What became of a block or a tree over a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing was in doubt.
    Kept,
    /// What was in doubt is there.
    Survived,
    /// What was in doubt is not there.
    Lost,
}

/// Which version each file has; a file that is absent has none.
pub(crate) type Files = BTreeMap<u64, u64>;

/// The promises for the files of one tree.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// As after the last change that was acknowledged.
    acknowledged: Files,
    /// A change that was sent: (file, new version; 0: removed).
    in_doubt: Option<(u64, u64)>,
}

impl Tree {
    /// A change is about to be sent: `file` becomes `version`, or 0: is removed.
    pub(crate) fn sent(&mut self, file: u64, version: u64) {
        self.in_doubt = Some((file, version));
    }

    /// The change was acknowledged.
    pub(crate) fn acknowledged(&mut self) {
        if let Some(change) = self.in_doubt.take() {
            apply(&mut self.acknowledged, change);
        }
    }

    /// The files as a client sees them while nothing is in doubt.
    pub(crate) fn current(&self) -> Files {
        self.acknowledged.clone()
    }

    /// What was found after a restart; from then on it must stay.
    ///
    /// # Errors
    /// When an acknowledged change is not there, or something else is.
    pub(crate) fn recovered(&mut self, found: &Files) -> Result<Outcome> {
        let mut after = self.acknowledged.clone();
        self.in_doubt.iter().for_each(|&change| apply(&mut after, change));
        let outcome = match self.in_doubt {
            None if *found == self.acknowledged => Outcome::Kept,
            Some(_) if *found == after => Outcome::Survived,
            Some(_) if *found == self.acknowledged => Outcome::Lost,
            _ => bail!("found {found:?}, promised was {self:?}"),
        };
        *self = Self { acknowledged: found.clone(), in_doubt: None };
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
    fn what_was_acknowledged_must_stay() {
        let mut blocks = Blocks::new(1);
        blocks.sent(0, 1);
        assert_eq!(blocks.expected(0), None);
        blocks.acknowledged(0);
        assert_eq!(blocks.expected(0), Some(1));
        assert!(blocks.recovered(0, 0).is_err(), "older than acknowledged");
        assert!(blocks.recovered(0, 2).is_err(), "never written");
        assert_eq!(blocks.recovered(0, 1).unwrap(), Outcome::Kept);
    }

    #[test]
    fn what_is_in_doubt_may_go_or_stay() {
        let history = || {
            let mut blocks = Blocks::new(1);
            blocks.sent(0, 1);
            blocks.acknowledged(0);
            blocks.sent(0, 2);
            blocks
        };
        assert_eq!(history().recovered(0, 1).unwrap(), Outcome::Lost);
        assert!(history().recovered(0, 0).is_err());
        let mut blocks = history();
        assert_eq!(blocks.recovered(0, 2).unwrap(), Outcome::Survived);
        assert!(blocks.recovered(0, 1).is_err(), "what was recovered must stay");
    }

    #[test]
    fn a_tree_is_as_after_the_last_change() {
        let history = || {
            let mut tree = Tree::default();
            for (file, version) in [(1, 10), (2, 20), (1, 11)] {
                tree.sent(file, version);
                tree.acknowledged();
            }
            tree.sent(2, 0);
            tree
        };
        let found = |files: &[(u64, u64)]| history().recovered(&files.iter().copied().collect());
        assert_eq!(found(&[(1, 11), (2, 20)]).unwrap(), Outcome::Lost);
        assert_eq!(found(&[(1, 11)]).unwrap(), Outcome::Survived);
        assert!(found(&[(1, 10), (2, 20)]).is_err(), "an acknowledged change is gone");
        assert!(found(&[]).is_err(), "what was never removed is gone");
    }
}
