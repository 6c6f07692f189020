//! The index nodes of a shard, as they are on its devices.

use std::rc::Rc;

use super::{GoesOn, Scrubber};
use crate::btree::{Node, NodePointer};
use crate::engine::Engine;
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree, Value};
use crate::tail::Tail;
use crate::times::Timed;

/// How a node was found.
enum Found {
    /// Whole, or replaced meanwhile.
    Good,
    /// Not whole, and written anew from memory.
    Healed(StoreError),
    /// Lost.
    Lost(StoreError),
}

impl Scrubber {
    /// Reads all index nodes, those that are cached, too.
    pub(super) async fn nodes(&self, turn: u64) -> GoesOn {
        let engine = &self.context.engine;
        for tree in Tree::ALL {
            let root = engine.cache.root(tree);
            self.node(turn, tree, root.level, Position::MAX, root.pointer().encode()).await?;
            for level in (1..=root.level).rev() {
                let mut from = Some(Position::MIN);
                while let Some(position) = from {
                    let children = match engine.children_of(tree, level, position).await {
                        Ok(children) => children,
                        Err(error) => {
                            let place = format!("tree {tree:?} level {level} at {position:?}");
                            self.problem(turn, format!("{place}: {error}"))?;
                            break;
                        }
                    };
                    from = children
                        .last()
                        .map(|(last, _)| *last)
                        .filter(|last| *last < Position::MAX)
                        .map(Position::successor);
                    for (position, value) in children {
                        self.node(turn, tree, level - 1, position, value).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn node(&self, turn: u64, tree: Tree, level: u8, max: Position, value: Value) -> GoesOn {
        let engine = &self.context.engine;
        match engine.scrub_node(tree, level, max, &value).await {
            Ok(Found::Good) => {}
            Ok(Found::Healed(error)) => {
                let text = format!("node of tree {tree:?} up to {max:?}, written anew: {error}");
                self.problem(turn, text)?;
                self.job.borrow_mut().healed += 1;
            }
            Ok(Found::Lost(error)) | Err(error) => {
                self.problem(turn, format!("node of tree {tree:?} up to {max:?}: {error}"))?;
            }
        }
        self.done(turn, u64::from(engine.space.node_bytes())).await
    }
}

impl Engine {
    /// The pointers of the node at a position.
    async fn children_of(
        &self,
        tree: Tree,
        level: u8,
        position: Position,
    ) -> Result<Vec<(Position, Value)>> {
        let node = self.node_for(tree, level, position).await?;
        let children =
            node.body.borrow().keys.iter().map(|(at, value)| (*at, value.clone())).collect();
        Ok(children)
    }

    /// What names the node that ends at a position, now.
    async fn names_now(&self, tree: Tree, level: u8, max: Position) -> Result<Option<Value>> {
        let root = self.cache.root(tree);
        if level >= root.level {
            return Ok(Some(root.pointer().encode()));
        }
        let parent = self.node_for(tree, level + 1, max).await?;
        let value = parent.body.borrow().keys.get(&max).cloned();
        Ok(value)
    }

    async fn scrub_node(
        &self,
        tree: Tree,
        level: u8,
        max: Position,
        value: &Value,
    ) -> Result<Found> {
        let mut tail = Tail::new(&self.space, &self.config.members);
        let error = match tail.node(tree, level, max, value).await {
            Ok(()) => return Ok(Found::Good),
            Err(error) => error,
        };
        if self.names_now(tree, level, max).await?.as_ref() != Some(value) {
            return Ok(Found::Good);
        }
        let pointer = NodePointer::decode(value)?;
        if let Some(node) = self.cache.get(pointer.node) {
            self.write_anew(&node).await?;
            return Ok(Found::Healed(error));
        }
        match self.node_for(tree, level, max).await {
            // It could be read now.
            Ok(node) => {
                self.write_anew(&node).await?;
                Ok(Found::Healed(error))
            }
            Err(error) => {
                self.note_lost_keys(tree, pointer.min, max);
                Ok(Found::Lost(error))
            }
        }
    }

    /// Writes a node to another place.
    async fn write_anew(&self, node: &Rc<Node>) -> Result<()> {
        let intent = self.waits.on(Timed::BlockedNodeLock, node.lock.intent()).await;
        if node.dead.get() { Ok(()) } else { self.rewrite(node, intent).await }
    }
}
