//! Model of a file tree: a small POSIX file system, and the log of what was done to it.
//!
//! One client works on a tree, one operation after the other. After a crash the tree must equal the
//! model after some number of operations, not fewer than were durable, where the next one may be
//! there in part if it changes the content of a file (each block old or new).
//!
//! Content past the first chunk lives on other shards and is outside that prefix: each such block may
//! be as it was at any instant since the last sync.

mod compare;
mod state;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use engine_base::{InodeNumber, ShardId};

use crate::model::Promises;
pub use compare::{Difference, Matching};
pub use state::{FileData, Mistake, Node, NodeId, NodeKind, ROOT, TreeOp, TreeState};

/// One operation of the log.
#[derive(Clone, Debug)]
struct Logged {
    op: TreeOp,
    started: u64,
    /// `None`: a crash cut it off, or its outcome is not known.
    ended: Option<u64>,
}

/// Model of one tree.
pub struct TreeModel {
    /// The shard that holds its metadata.
    pub home: ShardId,
    shard_count: u16,
    /// As it is after all operations that were acknowledged.
    now: TreeState,
    /// As it is after all that is known to be durable.
    base: TreeState,
    log: Vec<Logged>,
    torn: bool,
    /// Inode numbers that replies named.
    inodes: BTreeMap<NodeId, InodeNumber>,
    next_node: NodeId,
    next_version: u64,
}

/// A tree as it was at one instant: one of several, until it is looked at.
#[derive(Clone, Debug)]
pub struct TreeCopy {
    states: Vec<TreeState>,
    inodes: BTreeMap<NodeId, InodeNumber>,
}

impl TreeCopy {
    /// The instant may also be that of the tree as it is now.
    pub fn or_now(&mut self, model: &TreeModel) {
        self.states.push(model.now.clone());
        self.inodes.extend(model.inodes.iter().map(|(node, inode)| (*node, *inode)));
    }

    /// The instant may also be after an operation that is under way.
    pub fn or_soon(&mut self, model: &TreeModel) {
        let under_way = model.log.last().filter(|logged| logged.ended.is_none());
        let mut state = model.now.clone();
        if under_way.is_some_and(|logged| state.apply(&logged.op).is_ok()) {
            self.states.push(state);
        }
    }

    /// The same as it is once received from a stream, when it is known which it is: inodes have other numbers.
    #[must_use]
    pub fn elsewhere(&self) -> Option<Self> {
        let states = vec![self.known()?.clone()];
        Some(Self { states, inodes: BTreeMap::new() })
    }

    /// The tree, when it is known which it is.
    #[must_use]
    pub fn known(&self) -> Option<&TreeState> {
        match &self.states[..] {
            [state] => Some(state),
            _ => None,
        }
    }

    /// Compares a tree that was read back with it; from then on it must be that.
    ///
    /// # Errors
    /// The first difference to the last of them when none matches.
    pub fn check(&mut self, found: &TreeState) -> Result<(), String> {
        let mut difference = String::new();
        for at in (0..self.states.len()).rev() {
            match compare_whole(&self.states[at], &self.inodes, found) {
                Ok(()) => {
                    self.states = vec![self.states.swap_remove(at)];
                    return Ok(());
                }
                Err(wrong) if difference.is_empty() => difference = wrong,
                Err(_) => {}
            }
        }
        Err(format!("{difference} (of {} states)", self.states.len()))
    }
}

/// All pages must be as they are in `state`.
fn compare_whole(
    state: &TreeState,
    inodes: &BTreeMap<NodeId, InodeNumber>,
    found: &TreeState,
) -> Result<(), String> {
    let far = compare::FarHistory::default();
    // One shard: content past the first chunk is compared exactly, too.
    let matching = Matching { found, inodes, shard_count: 1, far: &far };
    matching.compare(state, None).map_err(|difference| difference.to_string())
}

/// What a check after a crash came to.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Operations of the log that are there.
    pub operations: usize,
    /// Proven: what ended on the home shard before this instant is there.
    pub reached: u64,
}

impl TreeModel {
    /// A new tree with an empty root.
    #[must_use]
    pub fn new(root: InodeNumber, shard_count: u16) -> Self {
        Self {
            home: root.home(shard_count),
            shard_count,
            now: TreeState::new(),
            base: TreeState::new(),
            log: Vec::new(),
            torn: false,
            inodes: BTreeMap::from([(ROOT, root)]),
            next_node: ROOT + 1,
            next_version: 1,
        }
    }

    /// A clone, of which what it is made from is known and durable; what is written to it differs from what is written
    /// there.
    #[must_use]
    pub fn of(copy: &TreeCopy, home: ShardId, shard_count: u16, number: u64) -> Self {
        let state = copy.known().cloned().unwrap_or_default();
        // Replies have named more nodes than are in the state: no other node takes the name of one of these.
        let named = copy.inodes.keys().copied();
        let next_node = state.ids().chain(named).max().unwrap_or(ROOT) + 1;
        Self {
            home,
            shard_count,
            now: state.clone(),
            base: state,
            log: Vec::new(),
            torn: false,
            inodes: copy.inodes.clone(),
            next_node,
            next_version: number << 32 | 1,
        }
    }

    /// The tree as it is now.
    #[must_use]
    pub fn copy(&self) -> TreeCopy {
        TreeCopy { states: vec![self.now.clone()], inodes: self.inodes.clone() }
    }

    /// The tree is to become what it was, which is known.
    pub fn start_rollback(&mut self, promises: &mut Promises, copy: &TreeCopy) -> u64 {
        let state = copy.known().cloned().unwrap_or_default();
        // Nodes have names of their own in all that there ever was of a tree.
        self.inodes.extend(copy.inodes.iter().map(|(node, inode)| (*node, *inode)));
        self.start(promises, &TreeOp::Become(Box::new(state))).0
    }

    /// It has become that, durably.
    pub fn rolled_back(&mut self, promises: &mut Promises) {
        self.done(promises, None);
        self.base = self.now.clone();
        self.log.clear();
    }

    /// The tree as clients must see it now.
    #[must_use]
    pub fn state(&self) -> &TreeState {
        &self.now
    }

    /// The inode number of a node, when a reply has named it.
    #[must_use]
    pub fn inode(&self, node: NodeId) -> Option<InodeNumber> {
        self.inodes.get(&node).copied()
    }

    /// The name for a node about to be created.
    pub fn new_node(&mut self) -> NodeId {
        self.next_node += 1;
        self.next_node - 1
    }

    /// The version for a write about to be made.
    pub fn new_version(&mut self) -> u64 {
        self.next_version += 1;
        self.next_version - 1
    }

    /// An operation starts; what it must come to is the result.
    pub fn start(&mut self, promises: &mut Promises, op: &TreeOp) -> (u64, Result<(), Mistake>) {
        let started = promises.start();
        let expected = self.now.clone().apply(op);
        self.log.push(Logged { op: op.clone(), started, ended: None });
        (started, expected)
    }

    /// The operation that was started last has taken effect.
    pub fn done(&mut self, promises: &mut Promises, inode: Option<(NodeId, InodeNumber)>) {
        let Some(last) = self.log.last_mut() else { return };
        last.ended = Some(promises.end(last.started));
        let applied = self.now.apply(&last.op);
        assert!(applied.is_ok(), "checked when it started");
        if let Some((node, inode)) = inode {
            self.inodes.insert(node, inode);
        }
        self.fold(promises.floor(self.home.0));
    }

    /// The operation that was started last has had no effect.
    pub fn refused(&mut self, promises: &mut Promises) {
        if let Some(last) = self.log.pop() {
            promises.end(last.started);
        }
    }

    /// The operation that was started last was refused for want of room, and the file it changes was
    /// read back: `found` is what the pages of its range hold now.
    ///
    /// # Errors
    /// A page that holds neither what it held before nor what the operation makes of it.
    pub fn refused_partly(
        &mut self,
        promises: &mut Promises,
        found: &FileData,
    ) -> Result<(), String> {
        let Some(last) = self.log.last_mut() else { return Ok(()) };
        let (Some(node), Some(range)) = (last.op.changes_content_of(), last.op.range()) else {
            return Ok(());
        };
        let mut after = self.now.clone();
        let applied = after.apply(&last.op);
        assert!(applied.is_ok(), "what a mistake refuses finds no want of room");
        let nothing = FileData::default();
        let before = self.now.file(node).unwrap_or(&nothing);
        let after = after.file(node).unwrap_or(&nothing);
        let changed = before.changed_pages(after, found, range).map_err(|page| {
            format!("{:?} found no room, page {page} is neither as before nor as after", last.op)
        })?;
        if changed.is_empty() {
            self.refused(promises);
        } else {
            last.op = TreeOp::Partly { op: Box::new(last.op.clone()), pages: changed };
            self.done(promises, None);
        }
        Ok(())
    }

    /// Whether the operation that was started last may have had its effect in part.
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// The operation that was started last may or may not have had its effect: nothing more can be
    /// done with the tree before a crash settles it.
    pub fn unknown(&mut self, promises: &mut Promises) {
        self.torn = true;
        if let Some(last) = self.log.last() {
            promises.end(last.started);
        }
    }

    /// Moves what is durable from the log into the base.
    fn fold(&mut self, floor: u64) {
        let durable = self
            .log
            .iter()
            .take_while(|logged| logged.ended.is_some_and(|ended| ended < floor))
            .count();
        // Folding costs nothing when done in bulk, and history is kept for blocks on other shards.
        if durable < 16 || self.has_far_data() {
            return;
        }
        for logged in self.log.drain(..durable) {
            // What a crash of the process cut off may be an operation that would be refused; the
            // state found after the crash follows it.
            let _ = self.base.apply(&logged.op);
        }
    }

    fn has_far_data(&self) -> bool {
        self.shard_count > 1 && (self.now.has_far_pages() || self.base.has_far_pages())
    }

    /// Operations not yet known to be durable, newest last.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.log.len()
    }

    /// The whole tree, all shards, is durable up to `instant`.
    pub fn all_durable(&mut self, instant: u64) {
        let durable = self
            .log
            .iter()
            .take_while(|logged| logged.ended.is_some_and(|ended| ended < instant))
            .count();
        for logged in self.log.drain(..durable) {
            // What a crash of the process cut off may be an operation that would be refused; the
            // state found after the crash follows it.
            let _ = self.base.apply(&logged.op);
        }
    }

    /// Compares what was found after a crash with the model after each number of operations.
    /// `reached`: what is proven already about the home shard by other means.
    ///
    /// # Errors
    /// The difference to the nearest state when none matches.
    pub fn check_crash(
        &self,
        promises: &Promises,
        found: &TreeState,
        reached: u64,
    ) -> Result<Recovered, String> {
        let floor = promises.present(self.home.0).max(reached);
        // All shards are as far as this one: content of other shards is part of the prefix.
        let shard_count = if promises.all_present() { 1 } else { self.shard_count };
        let least = self
            .log
            .iter()
            .take_while(|logged| logged.ended.is_some_and(|ended| ended < floor))
            .count();
        let far = compare::far_history(shard_count, &self.base, &self.log);
        let matching = Matching { found, inodes: &self.inodes, shard_count, far: &far };
        if let Ok(count) = self.first_match(&matching, least..=self.log.len()) {
            let reached = count.checked_sub(1).map_or(0, |last| self.log[last].started);
            return Ok(Recovered { operations: count, reached });
        }
        // Something is wrong; what it is nearest to helps to find out what.
        match self.first_match(&matching, 0..=self.log.len()) {
            Ok(count) => Err(format!(
                "the tree is as after {count} of {} operations, but {least} were durable: {:?}",
                self.log.len(),
                self.log.get(count).map(|logged| &logged.op)
            )),
            Err(nearest) => Err(self.no_match(least, nearest)),
        }
    }

    /// The first of these states that is what was found, or the one that is nearest.
    fn first_match(
        &self,
        matching: &Matching<'_>,
        counts: RangeInclusive<usize>,
    ) -> Result<usize, (usize, Difference)> {
        let mut nearest: Option<(usize, Difference)> = None;
        let mut state = self.base.clone();
        for count in 0..=*counts.end() {
            let next = self.log.get(count).map(|logged| &logged.op);
            if counts.contains(&count) {
                match matching.compare(&state, next) {
                    Ok(()) => return Ok(count),
                    Err(difference) => {
                        if nearest.as_ref().is_none_or(|(_, best)| difference <= *best) {
                            nearest = Some((count, difference));
                        }
                    }
                }
            }
            if let Some(op) = next {
                // The last one may be an operation that was cut off and would have been refused.
                let _ = state.apply(op);
            }
        }
        Err(nearest.unwrap_or_default())
    }

    fn no_match(&self, least: usize, (count, difference): (usize, Difference)) -> String {
        let from = count.saturating_sub(2);
        let around: Vec<&TreeOp> =
            self.log[from..].iter().take(5).map(|logged| &logged.op).collect();
        format!(
            "the tree equals no state of its history ({} operations, {least} durable); nearest after \
             {count}: {difference}; operations from {from}: {around:?}",
            self.log.len()
        )
    }

    /// After the check: the tree is what was found. With `durable`, also after a loss of power.
    pub fn settle(&mut self, promises: &mut Promises, found: TreeState, durable: bool) {
        let (state, inodes) = self.renamed(&found);
        self.torn = false;
        self.inodes = inodes;
        self.now = state.clone();
        if durable {
            self.base = state;
            self.log.clear();
            return;
        }
        let started = promises.start();
        let ended = promises.end(started);
        for logged in &mut self.log {
            logged.ended.get_or_insert(started - 1);
        }
        self.log.push(Logged { op: TreeOp::Become(Box::new(state)), started, ended: Some(ended) });
    }

    /// The found tree (its nodes named by inode number) with fresh node names.
    fn renamed(&mut self, found: &TreeState) -> (TreeState, BTreeMap<NodeId, InodeNumber>) {
        let mut names = BTreeMap::from([(found.root(), ROOT)]);
        let mut inodes = BTreeMap::from([(ROOT, InodeNumber(found.root()))]);
        for inode in found.ids().filter(|inode| *inode != found.root()) {
            let node = self.new_node();
            names.insert(inode, node);
            inodes.insert(node, InodeNumber(inode));
        }
        (found.renamed(&names), inodes)
    }

    /// Compares a tree read without a crash between with the model.
    ///
    /// # Errors
    /// The first difference.
    pub fn check_now(&self, found: &TreeState) -> Result<(), String> {
        compare_whole(&self.now, &self.inodes, found)
    }
}

#[cfg(test)]
mod tests;
