//! Nodes that cannot be read.
//!
//! An empty node takes the place of a lost one in the cache, under its identity and without a place on
//! disk: so the ordinary write-out puts it somewhere and changes the pointer in its parent. Until that
//! is in the journal the lost node is lost as before. In the place of an interior node stands a chain
//! of one child each, down to an empty leaf.

use std::rc::Rc;

use super::{Repairs, is_loss};
use crate::btree::{Found, Keys, Node, NodePointer};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree};

/// Trees whose lost keys can be given up. The others say which space is in use and which numbers were
/// given: without them more would be destroyed than was lost. Tallies are counted anew, and areas noted again.
pub(crate) const MENDABLE: [Tree; 7] = [
    Tree::Extents,
    Tree::Inodes,
    Tree::Dirents,
    Tree::Xattrs,
    Tree::Damage,
    Tree::Tallies,
    Tree::Areas,
];

impl Engine {
    /// Replaces every node that cannot be read.
    pub(super) async fn mend_nodes(&self, repairs: &mut Repairs) -> Result<()> {
        for tree in MENDABLE {
            for level in (0..=self.cache.root(tree).level).rev() {
                for line in self.stand_in_level(tree, level, true).await? {
                    repairs.add(line);
                }
            }
        }
        // Those that stand in since the shard was opened.
        self.write_out_all().await
    }

    /// Puts empty nodes in the place of those at `level` that cannot be read; gives a line for each.
    /// With `write`, writes them out at once, children first.
    pub(crate) async fn stand_in_level(
        &self,
        tree: Tree,
        level: u8,
        write: bool,
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut from = Position::MIN;
        loop {
            let max = match self.node_for(tree, level, from).await {
                Ok(node) => node.max,
                Err(error) if is_loss(&error) => {
                    let (nodes, max) = self.stand_in(tree, level, from, &error)?;
                    lines.push(format!("keys are lost: {error}"));
                    if write {
                        for node in &nodes {
                            self.written_out(node).await?;
                        }
                    }
                    max
                }
                Err(error) => return Err(error),
            };
            if max == Position::MAX {
                return Ok(lines);
            }
            from = max.successor();
        }
    }

    async fn written_out(&self, node: &Rc<Node>) -> Result<()> {
        loop {
            match self.write_out(node).await {
                Err(StoreError::Restart) => {}
                other => return other,
            }
        }
    }

    fn stand_in(
        &self,
        tree: Tree,
        level: u8,
        at: Position,
        error: &StoreError,
    ) -> Result<(Vec<Rc<Node>>, Position)> {
        // Anything else than a node that is missing is a fault within one that can be read.
        let Found::Missing(missing) = self.descend(tree, level, at)? else {
            return Err(error.clone());
        };
        let (min, max) = missing.range();
        if missing.level() != level {
            return Err(error.clone());
        }
        self.note_lost_keys(tree, min, max);
        Ok((self.stand_in_for(tree, level, missing.node(), (min, max)), max))
    }

    /// Empty nodes for the one named, leaf first.
    pub(crate) fn stand_in_for(
        &self,
        tree: Tree,
        level: u8,
        id: u64,
        range: (Position, Position),
    ) -> Vec<Rc<Node>> {
        let mut nodes = Vec::new();
        let mut below: Option<u64> = None;
        for at in 0..=level {
            let id = if at == level { id } else { self.new_node_id() };
            let child = below.map(|node| NodePointer::unwritten(node, range.0).encode());
            let mut keys = Keys::new();
            if let Some(pointer) = child {
                keys.insert(range.1, pointer);
            }
            let node = Rc::new(Node::new((id, tree, at), range, keys, self.cache.next_tick()));
            self.dirty_node(&node, self.journal.seq());
            self.cache.insert(&node);
            nodes.push(node);
            below = Some(id);
        }
        nodes
    }
}
