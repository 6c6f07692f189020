//! Where a version has keys, so that deleting, merging and comparing versions costs what they hold, not what the pool
//! holds.
//!
//! An *area* is a part of the trees in which keys have versions: the inodes, names and attributes of
//! [`GROUP_INODES`] inodes that were made one after the other, or one chunk of each of these. The first key that a
//! version gets in an area is put together with a key of the tree `Areas`, which goes with the last.

use std::cell::RefCell;

use engine_base::hash::FastMap;
use engine_base::ids::CHUNK_SIZE_LOG2;
use engine_base::{BLOCK_SIZE, InodeNumber, SnapshotId};

use crate::api::TreeDiffCursor;
use crate::engine::Engine;
use crate::error::Result;
use crate::extent::Address;
use crate::key::{Position, Tree, Value};
use crate::limits::BULK_UPDATES_MAX;
use crate::transaction::{Transaction, Update};

/// Inodes of a group, as many as follow each other on their home shard: small files share areas.
const GROUP_INODES_LOG2: u32 = 6;
const GROUP_INODES: u64 = 1 << GROUP_INODES_LOG2;
/// Blocks of a chunk.
const CHUNK_BLOCKS: u64 = (1 << CHUNK_SIZE_LOG2) / BLOCK_SIZE;
/// Areas that are known to be noted; past it all are forgotten, and noted again.
const KNOWN_MAX: usize = 32_768;
/// In place of the high bits of a chunk: inodes, names and attributes.
const METADATA: u64 = u32::MAX as u64;

/// A part of the versioned trees of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Area {
    /// The inodes concerned.
    group: u64,
    /// The chunk of their data; `None`: their inodes, names and attributes.
    chunk: Option<u64>,
}

impl Area {
    /// Where the key of a tree lies; `None` when its keys have no version.
    pub(crate) fn of(tree: Tree, position: Position, shard_count: u16) -> Option<Self> {
        // The key of an extent is its end.
        let chunk = position.offset.saturating_sub(1) / CHUNK_BLOCKS;
        let data = Self::of_data(InodeNumber(position.inode), chunk, shard_count);
        match tree {
            // What is shared is of no version.
            Tree::Extents if Address::is_space(position.inode) => None,
            Tree::Extents => Some(data),
            _ if tree.is_versioned() => Some(Self { chunk: None, ..data }),
            _ => None,
        }
    }

    /// Where data of an inode is.
    fn of_data(inode: InodeNumber, chunk: u64, shard_count: u16) -> Self {
        let bits = shard_count.trailing_zeros();
        let shard = inode.0 & (u64::from(shard_count) - 1);
        Self { group: inode.0 >> (bits + GROUP_INODES_LOG2) << bits | shard, chunk: Some(chunk) }
    }

    /// Where the inode and its names are.
    pub(crate) fn of_names(inode: InodeNumber, shard_count: u16) -> Self {
        Self { chunk: None, ..Self::of_data(inode, 0, shard_count) }
    }

    /// The place after all inodes and names in it.
    pub(crate) fn end(self, shard_count: u16) -> TreeDiffCursor {
        TreeDiffCursor { inode: self.inodes(shard_count).1, place: u64::MAX }.next()
    }

    /// Its key among the areas of a version.
    pub(crate) fn position(self, version: SnapshotId) -> Position {
        let (high, low) = match self.chunk {
            Some(chunk) => (chunk >> 32, chunk as u32),
            None => (METADATA, 0),
        };
        Position::new(u64::from(version.0) << 32 | high, self.group, low)
    }

    /// The area of a key, and its version.
    pub(crate) fn at(position: Position) -> (SnapshotId, Self) {
        let version = SnapshotId((position.inode >> 32) as u32);
        let high = position.inode & METADATA;
        let chunk = (high != METADATA).then(|| high << 32 | u64::from(position.snapshot));
        (version, Self { group: position.offset, chunk })
    }

    /// The trees whose keys it holds.
    pub(crate) fn trees(self) -> &'static [Tree] {
        match self.chunk {
            Some(_) => &[Tree::Extents],
            None => &[Tree::Xattrs, Tree::Dirents, Tree::Inodes],
        }
    }

    /// Whether it holds data; else metadata.
    pub(crate) fn is_data(self) -> bool {
        self.chunk.is_some()
    }

    /// Its first and its last inode. Between them are those of other homes.
    fn inodes(self, shard_count: u16) -> (u64, u64) {
        let bits = shard_count.trailing_zeros();
        let shard = self.group & (u64::from(shard_count) - 1);
        let first = self.group >> bits << GROUP_INODES_LOG2;
        let number = |sequence: u64| sequence << bits | shard;
        (number(first), number(first + GROUP_INODES - 1))
    }

    /// The offsets that keys of an inode can have in it.
    fn offsets(self) -> (u64, u64) {
        match self.chunk {
            Some(chunk) => (chunk * CHUNK_BLOCKS + 1, (chunk + 1) * CHUNK_BLOCKS),
            None => (0, u64::MAX),
        }
    }

    /// The blocks of an inode that it holds.
    pub(crate) fn blocks(self) -> (u64, u64) {
        self.chunk.map_or((0, 0), |chunk| (chunk * CHUNK_BLOCKS, (chunk + 1) * CHUNK_BLOCKS))
    }

    /// The first place in it that is not before `at`.
    fn seek(self, at: Position, shard_count: u16) -> Option<Position> {
        let (count, (first, last)) = (u64::from(shard_count), self.inodes(shard_count));
        let (from, to) = self.offsets();
        let inode = first + (at.inode.max(first) - first).next_multiple_of(count);
        if inode == at.inode {
            if at.offset < from {
                return Some(Position::new(inode, from, 0));
            }
            if at.offset <= to {
                return Some(at);
            }
        }
        let inode = if inode == at.inode { inode + count } else { inode };
        (inode <= last).then_some(Position::new(inode, from, 0))
    }
}

/// Areas that are known to be noted.
#[derive(Default)]
pub(crate) struct KnownAreas(RefCell<FastMap<Position, ()>>);

impl KnownAreas {
    fn has(&self, area: Position) -> bool {
        self.0.borrow().contains_key(&area)
    }

    fn add(&self, area: Position) {
        let mut known = self.0.borrow_mut();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(area, ());
    }

    fn forget(&self, area: Position) {
        self.0.borrow_mut().remove(&area);
    }
}

impl Transaction<'_> {
    /// The first key of a version in an area of a tree, from `at` on.
    ///
    /// # Errors
    /// When a node cannot be read, or `Restart`.
    pub(crate) async fn next_in_area(
        &mut self,
        tree: Tree,
        area: Area,
        version: SnapshotId,
        at: Position,
    ) -> Result<Option<(Position, Value)>> {
        let shard_count = self.engine.shard_count();
        let (_, last) = area.inodes(shard_count);
        let to = Position::new(last, u64::MAX, u32::MAX);
        let mut from = area.seek(at, shard_count);
        while let Some(start) = from {
            let keep = |position: Position, value: &Value| {
                (position.snapshot == version.0).then(|| value.clone())
            };
            let Some((found, value)) = self.next_as(tree, start, to, keep).await? else {
                return Ok(None);
            };
            if area.seek(found, shard_count) == Some(found)
                && let Some(value) = value
            {
                return Ok(Some((found, value)));
            }
            let next = if found.snapshot < version.0 {
                Position { snapshot: version.0, ..found }
            } else {
                Position { snapshot: u32::MAX, ..found }.successor()
            };
            from = area.seek(next, shard_count);
        }
        Ok(None)
    }

    /// Notes the areas of the keys that it puts, those that are not known to be noted.
    pub(crate) fn note_areas(&mut self) {
        let mut new = smallvec::SmallVec::<[Position; 4]>::new();
        let mut last = None;
        for update in self.updates.iter().filter(|update| update.value.is_some()) {
            let area = Area::of(update.tree, update.position, self.engine.shard_count());
            let Some(area) = area else { continue };
            let area = area.position(SnapshotId(update.position.snapshot));
            if last.replace(area) != Some(area)
                && !self.engine.known_areas.has(area)
                && !new.contains(&area)
            {
                new.push(area);
            }
        }
        for area in new {
            self.put(Tree::Areas, area, Value::new());
        }
    }
}

impl Engine {
    /// What a change that is committed says of areas.
    pub(crate) fn learn_area(&self, update: &Update) {
        match (update.tree, &update.value) {
            (Tree::Areas, Some(_)) => self.known_areas.add(update.position),
            (Tree::Areas, None) => self.known_areas.forget(update.position),
            _ => {}
        }
    }

    /// The areas of keys that are not noted, with their versions, `most` of them.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) async fn missing_areas(&self, most: usize) -> Result<Vec<Position>> {
        let mut missing = Vec::new();
        let mut last = None;
        for tree in Tree::ALL.into_iter().filter(|tree| tree.is_versioned()) {
            let (mut from, mut seen) = (Position::MIN, 0_u64);
            let at = |position: Position, _: &Value| position;
            while let Some((position, _)) =
                self.index_next(tree, from, Position::MAX, &mut None, at).await?
            {
                from = position.successor();
                seen += 1;
                if seen.is_multiple_of(1024) {
                    self.runtime().yield_now().await;
                }
                let Some(area) = Area::of(tree, position, self.shard_count()) else { continue };
                let area = area.position(SnapshotId(position.snapshot));
                if last.replace(area) == Some(area) {
                    continue;
                }
                let noted = self.index_next(Tree::Areas, area, area, &mut None, at).await?;
                // The key may have gone since, and its area with it.
                if noted.is_none()
                    && self.index_next(tree, position, position, &mut None, at).await?.is_some()
                    && !missing.contains(&area)
                {
                    missing.push(area);
                    if missing.len() >= most {
                        return Ok(missing);
                    }
                }
            }
        }
        Ok(missing)
    }

    /// Notes the areas of all keys that are not noted; how many there were.
    ///
    /// # Errors
    /// When the index cannot be read or changed.
    pub(crate) async fn note_missing_areas(&self) -> Result<u64> {
        let mut count = 0;
        loop {
            let missing = self.missing_areas(BULK_UPDATES_MAX).await?;
            if missing.is_empty() {
                return Ok(count);
            }
            count += missing.len() as u64;
            self.transact(async |transaction| {
                for area in &missing {
                    transaction.put(Tree::Areas, *area, Value::new());
                }
                Ok(())
            })
            .await?;
        }
    }

    /// The first chunk in `from .. to` in which a version has data of the group of `inode`.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) async fn next_chunk(
        &self,
        version: SnapshotId,
        inode: InodeNumber,
        from: u64,
        to: u64,
    ) -> Result<Option<u64>> {
        let mut from = from;
        while from < to {
            // Areas of one group are side by side as long as the high bits of their chunks are the same.
            let last = (from | u64::from(u32::MAX)).min(to - 1);
            let key = |chunk| Area::of_data(inode, chunk, self.shard_count()).position(version);
            let found =
                self.index_next(Tree::Areas, key(from), key(last), &mut None, |_, _| ()).await?;
            if let Some((position, ())) = found {
                return Ok(Area::at(position).1.chunk);
            }
            from = last + 1;
        }
        Ok(None)
    }

    /// The first area with inodes and names of a version, from one on.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) async fn next_names(&self, version: SnapshotId, from: Area) -> Result<Option<Area>> {
        let first = from.position(version);
        let last = Position::new(first.inode, u64::MAX, u32::MAX);
        let found = self.index_next(Tree::Areas, first, last, &mut None, |_, _| ()).await?;
        Ok(found.map(|(position, ())| Area::at(position).1))
    }

    /// The first area of a version after one.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub(crate) async fn next_area(
        &self,
        version: SnapshotId,
        after: Option<Area>,
    ) -> Result<Option<Area>> {
        let first = Position::new(u64::from(version.0) << 32, 0, 0);
        let last = Position::new(u64::from(version.0) << 32 | METADATA, u64::MAX, u32::MAX);
        let from = after.map_or(first, |area| area.position(version).successor());
        let found = self.index_next(Tree::Areas, from, last, &mut None, |_, _| ()).await?;
        Ok(found.map(|(position, ())| Area::at(position).1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_area_is_found_from_each_of_its_keys_and_back() {
        for shards in [1_u16, 4, 256] {
            let bits = shards.trailing_zeros();
            for number in [0_u64, 1, 63, 64, 12_345_678] {
                for shard in [0, u64::from(shards) - 1] {
                    let inode = number << bits | shard;
                    for (tree, offset) in [
                        (Tree::Extents, 1),
                        (Tree::Extents, CHUNK_BLOCKS),
                        (Tree::Extents, CHUNK_BLOCKS + 1),
                        (Tree::Extents, (1 << 48) - 1),
                        (Tree::Inodes, 0),
                        (Tree::Dirents, u64::MAX),
                    ] {
                        let position = Position::new(inode, offset, 77);
                        let area = Area::of(tree, position, shards).unwrap();
                        let key = area.position(SnapshotId(77));
                        assert_eq!(Area::at(key), (SnapshotId(77), area));
                        assert!(area.trees().contains(&tree));
                        assert_eq!(area.seek(position, shards), Some(position));
                        let first = area.seek(Position::MIN, shards).unwrap();
                        assert_eq!(Area::of(tree, first, shards), Some(area));
                        assert_eq!(area.is_data(), tree == Tree::Extents);
                    }
                }
            }
        }
        assert_eq!(Area::of(Tree::Buckets, Position::MIN, 4), None);
    }

    #[test]
    fn seeking_goes_from_inode_to_inode_and_ends() {
        let area = Area::of(Tree::Extents, Position::new(6, CHUNK_BLOCKS + 5, 9), 4).unwrap();
        let mut at = Position::MIN;
        let mut inodes = Vec::new();
        while let Some(found) = area.seek(at, 4) {
            assert_eq!(found.offset, CHUNK_BLOCKS + 1);
            inodes.push(found.inode);
            at = Position::new(found.inode, 2 * CHUNK_BLOCKS + 1, 0);
        }
        assert_eq!(inodes, (0..64).map(|number| number * 4 + 2).collect::<Vec<_>>());
        assert_eq!(area.blocks(), (CHUNK_BLOCKS, 2 * CHUNK_BLOCKS));
    }

    #[test]
    fn neighbours_share_an_area_and_strangers_do_not() {
        let of = |inode, end| Area::of(Tree::Extents, Position::new(inode, end, 9), 4).unwrap();
        assert_eq!(of(4, 1), of(8, CHUNK_BLOCKS), "files made one after the other");
        assert_ne!(of(4, 1), of(5, 1), "of other homes");
        assert_ne!(of(4, 1), of(4, CHUNK_BLOCKS + 1), "other chunks");
        assert_ne!(of(4, 1), of(4 * 64, 1), "of other groups");
    }
}
