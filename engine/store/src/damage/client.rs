//! The damage list of a whole pool, with names.

use std::collections::BTreeMap;

use engine_base::{InodeNumber, ShardId, SnapshotId};

use super::DamageEntry;
use crate::api::{Link, Reply, Request, SubvolumeKind};
use crate::client::Client;
use crate::error::Result;
use crate::limits::{FSCK_BATCH, LIST_ENTRIES_MAX};

/// Something that is lost, with the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamageLine {
    /// On whose list it is.
    pub shard: ShardId,
    /// Subvolume concerned; `None`: none has this version any more, or it is metadata of the pool.
    pub subvolume: Option<(String, SubvolumeKind)>,
    /// Path in a file tree; `None`: a volume, or no name leads there.
    pub path: Option<Vec<u8>>,
    /// What is lost.
    pub entry: DamageEntry,
}

type Key = (InodeNumber, SnapshotId);

impl<L: Link> Client<L> {
    /// What is on the damage lists of all shards, `limit` entries at most, with names.
    ///
    /// # Errors
    /// When a shard does not answer.
    pub async fn damage_list(&self, limit: u32) -> Result<Vec<DamageLine>> {
        let mut found = Vec::new();
        let mut left = limit;
        for shard in (0..self.link().shard_count()).map(ShardId) {
            if left == 0 {
                break;
            }
            match self.link().call(shard, Request::DamageList { limit: left }).await? {
                Reply::Damage(entries) => {
                    left -= left.min(entries.len() as u32);
                    found.extend(entries.into_iter().map(|entry| (shard, entry)));
                }
                other => return Err(other.mismatch("Damage")),
            }
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let versions = self.versions().await?;
        let paths = self.inode_paths(found.iter().map(|(_, it)| (it.inode, it.snapshot))).await?;
        let lines = found.into_iter().map(|(shard, entry)| {
            let subvolume = versions.get(&entry.snapshot).cloned();
            let volume = matches!(subvolume, Some((_, SubvolumeKind::Volume)));
            let path = paths.get(&(entry.inode, entry.snapshot)).cloned().flatten();
            DamageLine { shard, subvolume, path: path.filter(|_| !volume), entry }
        });
        Ok(lines.collect())
    }

    /// Takes everything off the damage lists, or what concerns one inode. Gives how many entries.
    ///
    /// # Errors
    /// When a shard does not answer or cannot write.
    pub async fn damage_clear(&self, inode: Option<InodeNumber>) -> Result<u64> {
        let mut count = 0;
        for shard in (0..self.link().shard_count()).map(ShardId) {
            match self.link().call(shard, Request::DamageClear { inode }).await? {
                Reply::Count(cleared) => count += cleared,
                other => return Err(other.mismatch("Count")),
            }
        }
        Ok(count)
    }

    /// Names and kinds of all subvolumes, by version.
    async fn versions(&self) -> Result<BTreeMap<SnapshotId, (String, SubvolumeKind)>> {
        let mut versions = BTreeMap::new();
        let mut after = String::new();
        loop {
            let page = self.subvolume_list(&after, LIST_ENTRIES_MAX).await?;
            let Some(last) = page.last() else { return Ok(versions) };
            after = last.name.clone();
            versions.extend(page.into_iter().map(|info| (info.snapshot, (info.name, info.kind))));
        }
    }

    async fn inode_paths(
        &self,
        inodes: impl Iterator<Item = Key>,
    ) -> Result<BTreeMap<Key, Option<Vec<u8>>>> {
        let mut by_home: BTreeMap<ShardId, Vec<Key>> = BTreeMap::new();
        for key in inodes {
            let list = by_home.entry(key.0.home(self.link().shard_count())).or_default();
            if !list.contains(&key) {
                list.push(key);
            }
        }
        let mut paths = BTreeMap::new();
        for (home, keys) in by_home {
            for batch in keys.chunks(FSCK_BATCH) {
                let request = Request::InodePaths { inodes: batch.to_vec() };
                match self.link().call(home, request).await? {
                    Reply::Paths(found) => paths.extend(batch.iter().copied().zip(found)),
                    other => return Err(other.mismatch("Paths")),
                }
            }
        }
        Ok(paths)
    }
}
