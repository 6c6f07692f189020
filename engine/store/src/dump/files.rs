//! Inodes with their extents, and the way from a path to an inode.

use engine_base::{InodeNumber, SnapshotId};

use super::describe;
use super::shard::{Range, ShardView};
use super::view::View;
use super::{Bounded, Item};
use crate::api::{SubvolumeInfo, VersionNode};
use crate::error::{Result, StoreError};
use crate::key::{Position, Tree, Value};
use crate::namespace::{Entry, Hashed, Inode, Slot, home_place, inode_position};
use crate::subvolume::format::decode_subvolume;
use crate::version::Versions;

/// Longest chain of names with one hash; see docs/format.md, "Trees and positions".
const PROBES_MAX: u64 = 1024;

/// What a path leads to.
struct Found {
    inode: InodeNumber,
    /// The versions that the subvolume sees.
    ids: Vec<u32>,
    steps: Vec<Item>,
}

impl View {
    /// An inode: its value in each version (or in one), and its extents on all
    /// shards in the order of their blocks, `limit` of them.
    ///
    /// # Errors
    /// When a journal cannot be read at all. Lost ranges are told in place.
    pub async fn inode(&self, inode: u64, version: Option<u32>, limit: usize) -> Result<Vec<Item>> {
        let version = version.map(|version| [version]);
        let versions = version.as_ref().map(|version| &version[..]);
        self.inode_of(InodeNumber(inode), versions, limit).await
    }

    /// An inode in some versions, or in all.
    async fn inode_of(
        &self,
        inode: InodeNumber,
        versions: Option<&[u32]>,
        limit: usize,
    ) -> Result<Vec<Item>> {
        let is_wanted = |at: Position| versions.is_none_or(|ids| ids.contains(&at.snapshot));
        let home = self.shard(inode.home(self.superblock.shard_count()).0).await?;
        let mut items = Bounded::new(limit);
        for note in &home.notes {
            items.push(Item::Map(vec![("note", Item::Text(note.clone()))]));
        }
        let range =
            Range { from: Position::new(inode.0, 0, 0), to: Position::new(inode.0, 0, u32::MAX) };
        home.walk(Tree::Inodes, range, |found| {
            items.push(match found {
                Ok((at, _)) if !is_wanted(at) => return true,
                Ok((at, value)) => Item::Map(vec![
                    ("inode", at.inode.into()),
                    ("version", at.snapshot.into()),
                    ("value", describe::value(Tree::Inodes, 0, at, value)),
                ]),
                Err((range, why)) => lost(Tree::Inodes, range, &why),
            })
        })
        .await?;
        drop(home);
        for extent in self.extents(inode, versions, limit).await? {
            if !items.push(extent) {
                break;
            }
        }
        Ok(items.into_items())
    }

    /// Extents of an inode, sorted by version and block.
    async fn extents(
        &self,
        inode: InodeNumber,
        versions: Option<&[u32]>,
        limit: usize,
    ) -> Result<Vec<Item>> {
        let range = Range {
            from: Position::new(inode.0, 0, 0),
            to: Position::new(inode.0, u64::MAX, u32::MAX),
        };
        let mut extents = Vec::new();
        let mut others = Vec::new();
        for shard in 0..self.superblock.shard_count() {
            let found = match self.shard(shard).await {
                Ok(found) => found,
                Err(error) => {
                    let text = format!("shard {shard}: {error}");
                    others.push(Item::Map(vec![("error", Item::Text(text))]));
                    continue;
                }
            };
            let mut taken = 0;
            let walked = found.walk(Tree::Extents, range, |found| match found {
                Ok((at, value)) => {
                    if versions.is_none_or(|ids| ids.contains(&at.snapshot)) {
                        taken += 1;
                        let value = describe::value(Tree::Extents, 0, at, value);
                        let fields = vec![
                            ("version", at.snapshot.into()),
                            ("shard", shard.into()),
                            ("end", at.offset.into()),
                            ("extent", value),
                        ];
                        extents.push(((at.snapshot, at.offset), Item::Map(fields)));
                    }
                    taken <= limit
                }
                Err((range, why)) => {
                    others.push(lost(Tree::Extents, range, &why));
                    others.len() <= limit
                }
            });
            walked.await?;
        }
        extents.sort_by_key(|(at, _)| *at);
        others.extend(extents.into_iter().map(|(_, item)| item));
        Ok(others)
    }

    /// The way to a path of a file tree, or to a volume (an empty path), and the inode it leads to.
    ///
    /// # Errors
    /// `NotFound` when there is no such name; when what is on the way cannot be read.
    pub async fn path(&self, subvolume: &str, path: &[u8], limit: usize) -> Result<Vec<Item>> {
        let found = self.resolve(subvolume, path).await?;
        let mut items = found.steps;
        items.extend(self.inode_of(found.inode, Some(&found.ids), limit).await?);
        Ok(items)
    }

    async fn resolve(&self, subvolume: &str, path: &[u8]) -> Result<Found> {
        let shard0 = self.shard(0).await?;
        let info = subvolume_named(&shard0, subvolume).await?;
        let snapshot = info.snapshot;
        let ids = seen_by(&shard0, snapshot).await?;
        let home = self.shard(info.root.home(self.superblock.shard_count()).0).await?;
        let mut found = Found { inode: info.root, ids, steps: Vec::new() };
        found.steps.push(Item::Map(vec![
            ("subvolume", Item::Name(subvolume.as_bytes().to_vec())),
            ("version", snapshot.0.into()),
            ("sees", Item::List(found.ids.iter().map(|id| (*id).into()).collect())),
            ("inode", info.root.0.into()),
        ]));
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            let shown = String::from_utf8_lossy(name);
            let at = inode_position(found.inode, snapshot);
            let value = nearest(&home, Tree::Inodes, at, &found.ids).await?;
            let slot = value.map(|value| Inode::decode_slot(&value)).transpose()?;
            let directory = slot
                .and_then(Slot::entry)
                .ok_or_else(|| StoreError::not_found(format!("inode {}", found.inode)))?;
            let (place, entry) = lookup(&home, found.inode, &found.ids, directory.hash_key, name)
                .await?
                .ok_or_else(|| StoreError::not_found(format!("{shown:?} on the way")))?;
            found.steps.push(Item::Map(vec![
                ("name", Item::Name(name.to_vec())),
                ("directory", found.inode.0.into()),
                ("place", place.into()),
                ("inode", entry.inode.0.into()),
            ]));
            found.inode = entry.inode;
        }
        Ok(found)
    }
}

async fn subvolume_named(shard0: &ShardView<'_>, name: &str) -> Result<SubvolumeInfo> {
    let mut found = None;
    let mut lost = None;
    shard0
        .walk(Tree::Subvolumes, Range::ALL, |item| match item {
            Ok((at, value)) if at.offset == 0 => {
                found = decode_subvolume(at.inode, value).ok().filter(|info| info.name == name);
                found.is_none()
            }
            Ok(_) => true,
            Err((_, why)) => {
                lost = Some(why);
                true
            }
        })
        .await?;
    match (found, lost) {
        (Some(info), _) => Ok(info),
        (None, Some(why)) => Err(why),
        (None, None) => Err(StoreError::not_found(format!("subvolume {name:?}"))),
    }
}

/// The versions that one sees, the nearest first.
async fn seen_by(shard0: &ShardView<'_>, version: SnapshotId) -> Result<Vec<u32>> {
    let versions = Versions::default();
    let mut wrong = None;
    shard0
        .walk(Tree::Versions, Range::ALL, |item| {
            let node = item.map_err(|(_, why)| why).and_then(|(at, value)| {
                let id = SnapshotId(at.inode as u32);
                VersionNode::decode(id, value).map(|node| (id, node))
            });
            match node {
                Ok((id, node)) => versions.put(id, node),
                Err(why) => wrong = Some(why),
            }
            wrong.is_none()
        })
        .await?;
    match (wrong, versions.view(version)) {
        (Some(why), _) => Err(why),
        (None, Some(view)) => Ok(view.ids().to_vec()),
        (None, None) => Ok(vec![version.0]),
    }
}

/// What the first of `ids` that has something at a place has there.
async fn nearest(
    home: &ShardView<'_>,
    tree: Tree,
    place: Position,
    ids: &[u32],
) -> Result<Option<Value>> {
    for id in ids {
        let at = Position { snapshot: *id, ..place };
        if let Some((_, value)) = home.next(tree, at, at).await? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

async fn lookup(
    home: &ShardView<'_>,
    directory: InodeNumber,
    ids: &[u32],
    hash_key: u64,
    name: &[u8],
) -> Result<Option<(u64, Entry)>> {
    let first = home_place(hash_key, name);
    for place in first..first + PROBES_MAX {
        let at = Position::new(directory.0, place, 0);
        let Some(value) = nearest(home, Tree::Dirents, at, ids).await? else { return Ok(None) };
        if let Slot::Entry(entry) = Entry::decode(&value)?
            && entry.name() == name
        {
            return Ok(Some((place, entry)));
        }
    }
    Ok(None)
}

fn lost(tree: Tree, range: Range, why: &StoreError) -> Item {
    Item::Map(vec![
        ("tree", describe::tree_name(tree).into()),
        ("lost_from", describe::position(range.from)),
        ("lost_to", describe::position(range.to)),
        ("why", Item::Text(why.to_string())),
    ])
}
