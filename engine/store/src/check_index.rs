//! Checks of the engine's own invariants: trees, extents, space.
//!
//! Walks every node of every tree, so it reads the whole index. Runs beside other work: what it finds counts when
//! nothing changed while it walked. Where something always does, commits of clients wait for one walk, but not for
//! long; what could not be compared all the same is told as such, and is not called a problem.

mod sharing;

use std::collections::BTreeMap;
use std::rc::Rc;

pub(crate) use sharing::SharingSeen;

use futures::future::{Either, select};

use crate::api::FsckReport;
use crate::btree::{Found, Node, NodePointer};
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::Extent;
use crate::key::{Counter, Position, Tree};
use crate::space::BucketKind;

/// Most problems that are written down; the rest is counted.
const PROBLEMS_MAX: usize = 1000;
/// Times a count is repeated while transactions change what is counted.
const TRIES: u32 = 5;
/// Times it is repeated while commits of clients wait for it, how long they do at most, and for how long they are let
/// through between two such times.
const HELD_TRIES: u32 = 3;
const HOLD_NS_MAX: u64 = 1_000_000_000;
const LET_THROUGH_NS: u64 = 200_000_000;

/// Who uses the place of a frame that was cut.
const PART: &str = "a part of a frame";

/// What the index says is in a bucket.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Counted {
    pub(crate) live_blocks: u64,
    pub(crate) slots: u64,
    pub(crate) newest_generation: u32,
}

/// Everything the walk adds up.
#[derive(Default)]
pub(crate) struct Walk {
    pub(crate) buckets: BTreeMap<(u8, u32), Counted>,
    /// Those that count blocks of versions.
    pub(crate) counters: BTreeMap<Counter, u64>,
    /// Shared extents, and who refers to them.
    sharing: SharingSeen,
    /// Used ranges of members: start block -> (blocks, who).
    ranges: BTreeMap<(u8, u64), (u64, String)>,
    problems: Vec<String>,
    /// Those of them that are so whatever changed meanwhile.
    sure: Vec<String>,
    /// Nodes that cannot be read.
    lost: u64,
    nodes: u64,
    keys: u64,
    extents: u64,
}

impl Walk {
    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }

    fn sure_problem(&mut self, text: String) {
        self.problem(text.clone());
        if self.sure.len() < PROBLEMS_MAX {
            self.sure.push(text);
        }
    }
}

/// While it lives, commits of clients wait.
struct Hold<'a>(&'a Engine);

impl<'a> Hold<'a> {
    fn new(engine: &'a Engine) -> Self {
        engine.held.count.set(engine.held.count.get() + 1);
        Self(engine)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.held.count.set(self.0.held.count.get() - 1);
        self.0.held.ended.notify_all();
    }
}

impl Engine {
    /// Checks the structure of all trees, that extents and nodes do not overlap, and that the space
    /// tables equal a recount.
    ///
    /// Gives whether every node could be read.
    ///
    /// # Errors
    /// When a device fails; damage is reported, not an error.
    pub async fn check(&self, report: &mut FsckReport) -> Result<bool> {
        let (mut walk, mut quiet) = self.walk_all().await?;
        for _ in 1..TRIES {
            if walk.problems.is_empty() || quiet {
                break;
            }
            (walk, quiet) = self.walk_all().await?;
        }
        for held in 0..HELD_TRIES {
            if walk.problems.is_empty() || quiet {
                break;
            }
            if held > 0 {
                self.runtime().sleep(LET_THROUGH_NS).await;
            }
            let hold = Hold::new(self);
            let late = self.runtime().sleep(HOLD_NS_MAX);
            (walk, quiet) = match select(Box::pin(self.walk_all()), late).await {
                Either::Left((walked, _)) => walked?,
                Either::Right((_, walking)) => {
                    drop(hold);
                    walking.await?
                }
            };
        }
        let shard = self.shard();
        if !quiet && walk.problems.len() > walk.sure.len() {
            walk.problems = std::mem::take(&mut walk.sure);
            report.notes.push(format!(
                "shard {shard}: the index changed all the time, so not all of it could be compared with the space \
                 tables; check again when less is written, or offline"
            ));
        }
        report.problems.extend(walk.problems.iter().map(|text| format!("shard {shard}: {text}")));
        report.merge(FsckReport {
            problems: Vec::new(),
            checked: vec![("nodes", walk.nodes), ("keys", walk.keys), ("extents", walk.extents)],
            notes: Vec::new(),
        });
        Ok(walk.lost == 0)
    }

    /// Walks all trees, and says whether nothing changed meanwhile.
    async fn walk_all(&self) -> Result<(Walk, bool)> {
        let before = (self.commits.get(), self.cache.rewrites.get());
        let mut walk = Walk::default();
        let (_keep, lost) = self.load_all().await?;
        for error in lost {
            walk.sure_problem(error.to_string());
        }
        for tree in Tree::ALL {
            self.walk_tree(tree, &mut walk).await?;
        }
        self.compare_space(&mut walk);
        for text in walk.sharing.problems() {
            walk.problem(text);
        }
        Ok((walk, before == (self.commits.get(), self.cache.rewrites.get())))
    }

    /// Walks a tree level by level, left to right.
    pub(crate) async fn walk_tree(&self, tree: Tree, walk: &mut Walk) -> Result<()> {
        let top = self.cache.root(tree).level;
        for level in (0..=top).rev() {
            let mut from = Position::MIN;
            let mut last_extent: Option<Position> = None;
            loop {
                let node = match self.node_for(tree, level, from).await {
                    Ok(node) => node,
                    Err(error @ crate::StoreError::Corrupt { .. }) => {
                        let text = format!("tree {tree:?} level {level} at {from:?}: {error}");
                        walk.sure_problem(text);
                        walk.lost += 1;
                        match self.lost_range(tree, level, from) {
                            Some(max) if max < Position::MAX => from = max.successor(),
                            _ => break,
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let _shared = node.lock.shared();
                self.read_ahead_of(&node);
                walk.nodes += 1;
                if level == 0 {
                    walk.keys += node.body.borrow().keys.len() as u64;
                }
                self.walk_node(&node, walk);
                if tree == Tree::Extents && level == 0 {
                    self.walk_extents(&node, &mut last_extent, walk);
                }
                if node.max == Position::MAX {
                    break;
                }
                from = node.max.successor();
                self.runtime().yield_now().await;
            }
        }
        Ok(())
    }

    /// Puts the range of a node that cannot be read on the damage list, and gives its end.
    fn lost_range(&self, tree: Tree, level: u8, at: Position) -> Option<Position> {
        match self.descend(tree, level, at) {
            Ok(Found::Missing(missing)) => {
                let (min, max) = missing.range();
                self.note_lost_keys(tree, min, max);
                Some(max)
            }
            Ok(Found::Node(_)) | Err(_) => None,
        }
    }

    fn walk_node(&self, node: &Rc<Node>, walk: &mut Walk) {
        let body = node.body.borrow();
        let who = format!("node {} of tree {:?} level {}", node.id, node.tree, node.level);
        if let Some(location) = body.location {
            let id = self.space.bucket_of(location.member, location.block);
            let within = location.block - self.space.first_block(id);
            let node_blocks = u64::from(self.space.node_blocks());
            let counted = walk.buckets.entry(id).or_default();
            counted.newest_generation = counted.newest_generation.max(location.generation);
            let bit = 1 << (within / node_blocks).min(63);
            if counted.slots & bit != 0 {
                walk.problem(format!("{who} shares its place with another node"));
            } else {
                counted.slots |= bit;
            }
            self.use_range(walk, location.member, location.block, node_blocks, who.clone());
        }
        if node.level == 0 {
            return;
        }
        let mut next = node.min;
        for (position, value) in body.keys.iter() {
            match NodePointer::decode(value) {
                Ok(pointer) if pointer.min != next => {
                    walk.problem(format!("{who}: child at {position:?} leaves a gap or overlaps"));
                }
                Ok(_) => {}
                Err(error) => walk.problem(format!("{who}: {error}")),
            }
            next = position.successor();
        }
        if body.keys.last() != Some(&node.max) {
            walk.problem(format!("{who}: its last child ends before it does"));
        }
    }

    fn walk_extents(&self, node: &Rc<Node>, last: &mut Option<Position>, walk: &mut Walk) {
        for (position, value) in node.body.borrow().keys.iter() {
            walk.extents += 1;
            let extent = match Extent::decode(value) {
                Ok(extent) => extent,
                Err(error) => {
                    walk.problem(format!("extent at {position:?}: {error}"));
                    continue;
                }
            };
            let blocks = u64::from(extent.blocks);
            if position.offset < blocks {
                walk.problem(format!("extent at {position:?} starts before its inode"));
            } else if let Some(last) = last
                && (last.inode, last.snapshot) == (position.inode, position.snapshot)
                && position.offset - blocks < last.offset
            {
                walk.problem(format!("extent at {position:?} overlaps the one before"));
            }
            *last = Some(*position);
            let (live, version) = (u64::from(extent.live_blocks()), position.snapshot);
            walk.sharing.note(*position, &extent);
            if extent.address().is_some() {
                *walk.counters.entry(Counter::referenced_blocks(version)).or_default() += blocks;
                continue;
            }
            if !extent.is_hole() {
                *walk.counters.entry(Counter::data_blocks(version)).or_default() += live;
            }
            if !extent.is_hole() && live < blocks {
                *walk.counters.entry(Counter::saved_blocks(version)).or_default() += blocks - live;
            }
            for pointer in &extent.pointers {
                let who = format!("extent at {position:?}");
                let disk_blocks = extent.disk_blocks();
                match self.space.check_pointer(pointer.member, pointer.block, disk_blocks) {
                    Ok(id) => {
                        let counted = walk.buckets.entry(id).or_default();
                        counted.live_blocks += live;
                        let newest = counted.newest_generation.max(pointer.generation);
                        counted.newest_generation = newest;
                        if !self.pointer_is_current(pointer) {
                            walk.problem(format!("{who} has a stale pointer"));
                        }
                    }
                    Err(error) => walk.problem(format!("{who}: {error}")),
                }
                let place = (pointer.member, pointer.block);
                // The parts of a frame share it.
                if !extent.is_whole() && walk.ranges.get(&place).is_some_and(|(_, it)| *it == PART)
                {
                    continue;
                }
                let who = if extent.is_whole() { who } else { PART.to_owned() };
                self.use_range(walk, pointer.member, pointer.block, u64::from(disk_blocks), who);
            }
        }
    }

    /// Notes a used range and looks for overlaps with its neighbours.
    fn use_range(&self, walk: &mut Walk, member: u8, block: u64, blocks: u64, who: String) {
        let before = walk.ranges.range(..=(member, block)).next_back();
        let after = walk.ranges.range((member, block)..).next();
        let clash = before
            .filter(|((other, start), (len, _))| *other == member && start + len > block)
            .or_else(|| {
                after.filter(|((other, start), _)| *other == member && *start < block + blocks)
            })
            .map(|(_, (_, other))| format!("{who} overlaps {other} on member {member}"));
        if let Some(text) = clash {
            walk.problem(text);
        }
        walk.ranges.insert((member, block), (blocks, who));
    }

    /// Compares the tables in memory with what was counted.
    fn compare_space(&self, walk: &mut Walk) {
        let tables = self.space.tables.borrow();
        let mut problems = Vec::new();
        let mut live = 0;
        for (id, bucket) in &tables.buckets {
            let counted = walk.buckets.remove(id).unwrap_or_default();
            live += u64::from(bucket.live_blocks);
            if u64::from(bucket.live_blocks) != counted.live_blocks || bucket.slots != counted.slots
            {
                problems.push(format!(
                    "bucket {id:?}: the table says {} live blocks and slots {:#x}, the index {} and \
                     {:#x}",
                    bucket.live_blocks, bucket.slots, counted.live_blocks, counted.slots
                ));
            }
            if counted.newest_generation > bucket.generation {
                problems.push(format!("bucket {id:?}: a pointer is of a generation to come"));
            }
            let holds = counted.live_blocks > 0 || counted.slots != 0;
            if holds && (bucket.kind == BucketKind::Free || bucket.draining) {
                problems.push(format!("bucket {id:?} is free and in use"));
            }
        }
        for (id, counted) in &walk.buckets {
            problems.push(format!("bucket {id:?} is in use ({counted:?}) and in no table"));
        }
        if live != tables.live_blocks {
            let total = tables.live_blocks;
            problems.push(format!("{live} live blocks in buckets, {total} in the total"));
        }
        problems.extend(tables.tallies_that_lie());
        drop(tables);
        for (counter, blocks) in &walk.counters {
            let (says, version) = (self.counter(*counter), counter.0 as u32);
            let what = counter.of_version();
            if says != *blocks {
                problems.push(format!(
                    "version {version}: the counter says {says} {what}, the index {blocks}"
                ));
            }
        }
        for text in problems {
            walk.problem(text);
        }
    }
}
