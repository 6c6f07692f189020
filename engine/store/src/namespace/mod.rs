//! File trees on their home shard.

mod format;

pub(crate) use format::{Inode, inode_position};
