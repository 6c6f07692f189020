//! Listing directories.

use engine_base::InodeNumber;

use super::format::Entry;
use super::{InodeRef, Namespace, TreeAt};
use crate::api::{DirectoryEntry, TreeRef};
use crate::error::{Result, StoreError};
use crate::key::Tree;
use crate::limits::LIST_ENTRIES_MAX;

impl Namespace {
    /// Entries after `cookie`. Each is of one instant; the listing as a whole is not.
    pub(super) async fn read_directory(
        &self,
        tree: TreeRef,
        directory: InodeNumber,
        cookie: u64,
        limit: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        if !(1..=LIST_ENTRIES_MAX).contains(&limit) {
            return Err(StoreError::invalid(format!("limit {limit}: 1 to {LIST_ENTRIES_MAX}")));
        }
        self.reading(tree, async |tree| self.list(tree, directory, cookie, limit).await).await
    }

    async fn list(
        &self,
        tree: TreeAt,
        directory: InodeNumber,
        mut cookie: u64,
        limit: u32,
    ) -> Result<Vec<DirectoryEntry>> {
        let directory = InodeRef::of(tree, directory);
        let engine = &self.context.engine;
        let parent = directory.load_directory(&mut engine.read()).await?;
        let table = directory.table(Tree::Dirents, &parent);
        let mut entries = Vec::new();
        while entries.len() < limit as usize {
            let next = engine
                .transact(async |transaction| {
                    let found = table.next::<Entry>(transaction, cookie).await?;
                    let Some((place, entry)) = found else { return Ok(None) };
                    let inode = InodeRef::of(tree, entry.inode).load(transaction).await?;
                    let attributes = inode.attributes(entry.inode);
                    Ok(Some(DirectoryEntry { name: entry.name, attributes, cookie: place }))
                })
                .await?;
            let Some(entry) = next else { break };
            cookie = entry.cookie;
            entries.push(entry);
        }
        Ok(entries)
    }
}
