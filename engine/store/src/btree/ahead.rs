//! Reading nodes ahead of need: the siblings that an iteration comes to next, and the leaves of many lookups
//! side by side.

use std::rc::Rc;

use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use smallvec::SmallVec;

use super::descend::{Found, Missing};
use super::format::NodePointer;
use super::node::{Node, NodePin};
use crate::engine::Engine;
use crate::error::Result;
use crate::key::{Position, Tree};

/// Siblings read ahead of an iteration: one is on its way while another is worked on.
const SIBLINGS: usize = 2;
/// Nodes read side by side, for one transaction or ahead.
const SIDE_BY_SIDE: usize = 8;

/// Nodes that were read in, kept in the cache until whoever asked for them has used them.
pub(crate) type Read = SmallVec<[NodePin; SIDE_BY_SIDE]>;

impl Engine {
    /// Has the siblings after `node` read in, in the background, unless they are cached. For iterations:
    /// nothing waits, and what fails here is met again by who comes to it.
    pub(crate) fn read_ahead_of(&self, node: &Node) {
        if node.level > 0 || node.max == Position::MAX || self.is_root(node) {
            return;
        }
        let Ok(parent) = self.parent_of(node) else { return };
        let body = parent.body.borrow();
        let mut from = node.max.successor();
        for _ in 0..SIBLINGS {
            let Some((max, value)) = body.keys.next(from, Position::MAX) else { return };
            let Ok(pointer) = NodePointer::decode(value) else { return };
            if self.cache.get(pointer.node).is_none() {
                self.cache.want_ahead(node.tree, pointer.min);
            }
            if *max == Position::MAX {
                return;
            }
            from = max.successor();
        }
    }

    /// Reads what [`Engine::read_ahead_of`] asked for, several nodes at a time.
    pub(crate) async fn read_ahead_loop(self: Rc<Self>) {
        let mut reads = FuturesUnordered::new();
        loop {
            let wanted = self.cache.ahead_wanted.notified();
            if self.stopped().is_some() {
                break;
            }
            while reads.len() < SIDE_BY_SIDE
                && let Some((tree, position)) = self.cache.next_ahead()
            {
                // Looked up now: what was missing when it was asked for may have come and changed.
                if let Ok(Found::Missing(missing)) = self.descend(tree, 0, position) {
                    self.cache.reads_ahead.set(self.cache.reads_ahead.get() + 1);
                    reads.push(self.read_in_at_once(missing));
                }
            }
            if reads.is_empty() {
                wanted.await;
            } else {
                futures::future::select(std::pin::pin!(wanted), reads.next()).await;
            }
        }
        // A device may still write to their buffers.
        while reads.next().await.is_some() {}
    }

    /// Reads in a node, and beside it those that `others` will miss. They stay cached as long as what this
    /// gives.
    ///
    /// # Errors
    /// When the first cannot be read. The others report for themselves when they are needed.
    pub(crate) async fn read_in_with(
        &self,
        first: Missing,
        others: impl Iterator<Item = (Tree, Position)>,
    ) -> Result<Read> {
        let mut missing: SmallVec<[Missing; SIDE_BY_SIDE]> = SmallVec::new();
        missing.push(first);
        for (tree, position) in others {
            if missing.len() == SIDE_BY_SIDE {
                break;
            }
            if let Found::Missing(other) = self.descend(tree, 0, position)?
                && missing.iter().all(|known| known.node() != other.node())
            {
                missing.push(other);
            }
        }
        let others = missing.drain(1..).map(|missing| self.read_in_at_once(missing));
        let others = join_all(others.collect::<SmallVec<[_; SIDE_BY_SIDE]>>());
        let first = missing.swap_remove(0);
        let (first, others) = futures::future::join(self.read_in(first), others).await;
        let mut read = Read::new();
        read.extend(first?);
        read.extend(others.into_iter().flatten().flatten());
        Ok(read)
    }

    /// Reads in the leaves of `positions` that are not cached, side by side; for who will look all of them
    /// up one by one. Reports nothing: who looks up does.
    pub(crate) async fn warm(&self, tree: Tree, positions: impl Iterator<Item = Position>) {
        let mut positions = positions.map(|position| (tree, position));
        while let Some((tree, position)) = positions.next() {
            if let Ok(Found::Missing(missing)) = self.descend(tree, 0, position) {
                let _ = self.read_in_with(missing, positions.by_ref()).await;
                return;
            }
        }
    }
}
