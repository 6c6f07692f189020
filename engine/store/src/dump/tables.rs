//! Trees, and the tables that are made of checkpoints and the records after them.

use std::collections::BTreeMap;

use super::describe::{self, TREE_NAMES, bucket_kind, key, position};
use super::shard::{Place, Range, ShardView};
use super::{Bounded, Item};
use crate::error::{Result, StoreError};
use crate::journal::Record;
use crate::key::{Position, Tree};
use crate::logged::Intent;
use crate::space::format::{BucketCheckpoint, decode_counter};
use crate::space::{Bucket, BucketKind};

/// The tree of a name as the command line gives it.
///
/// # Errors
/// `InvalidArgument`, with the names there are.
pub fn tree_of(name: &str) -> Result<Tree> {
    TREE_NAMES.iter().find(|(known, _)| *known == name).map(|(_, tree)| *tree).ok_or_else(|| {
        let names: Vec<_> = TREE_NAMES.iter().map(|(name, _)| *name).collect();
        StoreError::invalid(format!("no tree {name:?}: use one of {}", names.join(", ")))
    })
}

fn lost(range: Range, why: &StoreError) -> Item {
    Item::Map(vec![
        ("lost_from", position(range.from)),
        ("lost_to", position(range.to)),
        ("why", Item::Text(why.to_string())),
    ])
}

impl ShardView<'_> {
    /// Keys of a tree at `level` (0: leaves) within a range, as they are after recovery. Ranges whose
    /// nodes cannot be read are told in their place.
    ///
    /// # Errors
    /// When the root is not known or there is no such level.
    pub async fn tree(
        &self,
        tree: Tree,
        level: u8,
        range: Range,
        limit: usize,
    ) -> Result<Vec<Item>> {
        let mut items = Bounded::new(limit);
        let mut from = range.from;
        loop {
            let last = match self.node_at(tree, level, from).await? {
                Place::Node(node) => {
                    for (at, value) in node.keys.range(from, Position::MAX) {
                        // A child covers the positions up to its key: the last one may end behind.
                        let past = *at > range.to;
                        if (past && level == 0) || !items.push(key(tree, level, *at, value)) {
                            return Ok(items.into_items());
                        }
                        if past {
                            break;
                        }
                    }
                    node.max
                }
                Place::Lost { min, max, why } => {
                    if !items.push(lost(Range { from: min, to: max }, &why)) {
                        break;
                    }
                    max
                }
            };
            if last >= range.to || last == Position::MAX {
                break;
            }
            from = last.successor();
        }
        Ok(items.into_items())
    }

    /// The nodes of a tree at `level`: where they lie and how many keys they hold.
    ///
    /// # Errors
    /// As [`ShardView::tree`].
    pub async fn nodes(
        &self,
        tree: Tree,
        level: u8,
        range: Range,
        limit: usize,
    ) -> Result<Vec<Item>> {
        let mut items = Bounded::new(limit);
        let mut from = range.from;
        loop {
            let (item, last) = match self.node_at(tree, level, from).await? {
                Place::Node(node) => {
                    let item = Item::Map(vec![
                        ("pointer", describe::pointer(&node.pointer)),
                        ("level", node.level.into()),
                        ("max", position(node.max)),
                        ("keys", (node.keys.len() as u64).into()),
                    ]);
                    (item, node.max)
                }
                Place::Lost { min, max, why } => (lost(Range { from: min, to: max }, &why), max),
            };
            if !items.push(item) || last >= range.to || last == Position::MAX {
                break;
            }
            from = last.successor();
        }
        Ok(items.into_items())
    }

    /// The roots of all trees.
    #[must_use]
    pub fn roots(&self) -> Vec<Item> {
        let roots = self.roots.iter().map(|(tree, (level, pointer))| {
            Item::Map(vec![
                ("tree", describe::tree_name(*tree).into()),
                ("level", (*level).into()),
                ("pointer", describe::pointer(pointer)),
            ])
        });
        roots.collect()
    }

    /// The table of buckets: checkpoints and what the journal says after them.
    ///
    /// # Errors
    /// When the root is not known.
    pub async fn buckets(&self, limit: usize) -> Result<Vec<Item>> {
        let mut items = Bounded::new(limit);
        let mut table = BTreeMap::new();
        let look =
            |found: std::result::Result<(Position, &crate::key::Value), (Range, StoreError)>| {
                match found {
                    Ok((at, value)) => {
                        if let Ok(state) = BucketCheckpoint::decode(value) {
                            let mut bucket = Bucket::new(state.kind, state.generation);
                            bucket.live_blocks = state.live_blocks;
                            bucket.slots = state.slots;
                            table.insert((at.inode as u8, at.offset as u32), (bucket, state.stamp));
                        }
                        true
                    }
                    Err((range, why)) => items.push(lost(range, &why)),
                }
            };
        self.walk(Tree::Buckets, Range::ALL, look).await?;
        for (at, record) in &self.deltas {
            apply(&mut table, *at, record);
        }
        for ((member, bucket), (state, stamp)) in &table {
            let item = Item::Map(vec![
                ("member", (*member).into()),
                ("bucket", (*bucket).into()),
                ("kind", bucket_kind(state.kind)),
                ("generation", state.generation.into()),
                ("live_blocks", state.live_blocks.into()),
                ("slots", Item::Text(format!("{:#x}", state.slots))),
                ("stamp_seq", stamp.0.into()),
            ]);
            if !items.push(item) {
                break;
            }
        }
        Ok(items.into_items())
    }

    /// The counters: checkpoints and what the journal says after them.
    ///
    /// # Errors
    /// When the root is not known.
    pub async fn counters(&self, limit: usize) -> Result<Vec<Item>> {
        let mut items = Bounded::new(limit);
        let mut table: BTreeMap<u64, (u64, (u64, u32))> = BTreeMap::new();
        self.walk(Tree::Counters, Range::ALL, |found| match found {
            Ok((at, value)) => {
                if let Ok((stamp, value)) = decode_counter(value) {
                    table.insert(at.inode, (value, stamp));
                }
                true
            }
            Err((range, why)) => items.push(lost(range, &why)),
        })
        .await?;
        for (at, record) in &self.deltas {
            match *record {
                Record::CounterAdd { counter, delta } => {
                    let state = table.entry(counter).or_default();
                    if *at >= state.1 {
                        state.0 = state.0.wrapping_add_signed(delta);
                    }
                }
                Record::CounterAtLeast { counter, least } => {
                    let state = table.entry(counter).or_default();
                    if *at >= state.1 {
                        state.0 = state.0.max(least);
                    }
                }
                _ => {}
            }
        }
        for (counter, (value, stamp)) in &table {
            let item = Item::Map(vec![
                ("counter", (*counter).into()),
                ("name", counter_name(*counter)),
                ("value", (*value).into()),
                ("stamp_seq", stamp.0.into()),
            ]);
            if !items.push(item) {
                break;
            }
        }
        Ok(items.into_items())
    }

    /// The logged operations that are not done.
    ///
    /// # Errors
    /// When the root is not known.
    pub async fn operations(&self, limit: usize) -> Result<Vec<Item>> {
        let mut items = Bounded::new(limit);
        let shard = self.shard;
        self.walk(Tree::LoggedOps, Range::ALL, |found| {
            items.push(match found {
                Ok((at, value)) => Item::Map(vec![
                    ("shard", shard.into()),
                    ("id", at.inode.into()),
                    (
                        "intent",
                        match Intent::decode(value) {
                            Ok(intent) => describe::intent(&intent),
                            Err(error) => Item::error(&error),
                        },
                    ),
                ]),
                Err((range, why)) => lost(range, &why),
            })
        })
        .await?;
        Ok(items.into_items())
    }
}

type Table = BTreeMap<(u8, u32), (Bucket, (u64, u32))>;

fn apply(table: &mut Table, at: (u64, u32), record: &Record<'_>) {
    let id = match *record {
        Record::BucketOpen { member, bucket, .. }
        | Record::BucketLive { member, bucket, .. }
        | Record::BucketSlot { member, bucket, .. } => (member, bucket),
        _ => return,
    };
    let (state, stamp) =
        table.entry(id).or_insert_with(|| (Bucket::new(BucketKind::Free, 0), (0, 0)));
    if at < *stamp {
        return;
    }
    match *record {
        Record::BucketOpen { generation, kind, .. } => {
            *state =
                Bucket::new(BucketKind::from_disk(kind).unwrap_or(BucketKind::Free), generation);
        }
        Record::BucketLive { delta, .. } => {
            state.live_blocks = state.live_blocks.wrapping_add_signed(delta);
        }
        Record::BucketSlot { slot, used, .. } => {
            let mask = 1_u64.checked_shl(u32::from(slot)).unwrap_or(0);
            if used { state.slots |= mask } else { state.slots &= !mask }
        }
        _ => {}
    }
}

fn counter_name(counter: u64) -> Item {
    match counter {
        1 => "last inode".into(),
        2 => "last snapshot".into(),
        3 => "last subvolume".into(),
        4 => "last operation".into(),
        5 => "inodes".into(),
        other if other >= 1 << 32 => {
            Item::Text(format!("data blocks of version {}", other - (1 << 32)))
        }
        _ => "unknown".into(),
    }
}
