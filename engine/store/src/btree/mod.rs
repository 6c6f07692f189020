//! The b+trees of a shard: log-structured nodes, cached.
//!
//! A node on disk is a run of *bsets*: the first holds the node as it was built, each further one the
//! keys changed since, newest last. The parent's pointer tells how many blocks of the node are valid, so
//! a lost or torn append is noticed; the pointer change is journalled like any key. A node whose bsets
//! have filled it is *rewritten*: merged into one bset at a new place, split when it is large, joined with
//! its right neighbour when it is small. Height never shrinks, so a (tree, level, key) in the journal names
//! the same thing at replay.
//!
//! In memory a node is one sorted map of its live keys. Changes are applied to it in one turn by
//! commits; its lock (see `six`) keeps write-outs of one node apart and numbers the changes.
//!
//! Always holds: the ancestors of a cached node are cached; only clean nodes without holders and without
//! cached children are evicted.

mod ahead;
mod cache;
mod descend;
pub(crate) mod format;
mod keys;
mod node;
mod rewrite;
mod writeout;

pub(crate) use ahead::Read;
pub(crate) use cache::Cache;
pub(crate) use descend::Found;
pub(crate) use format::NodePointer;
pub(crate) use keys::Keys;
pub(crate) use node::{Node, NodePin};
