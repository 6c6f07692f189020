//! RemoveFile.

use engine_base::InodeNumber;
use engine_store::api::{DirectoryEntry, FileKind, Link, TreeRef};
use engine_store::client::Client;
use engine_store::{Result as StoreResult, StoreError};
use proto::v1;
use tonic::Status;

use crate::core::{Core, kind};
use crate::limits::{PAGE_SIZE_MAX, REMOVE_DEPTH_MAX};
use crate::path::{Follow, Path};
use crate::status::OnResource;

/// Removes what the request names.
pub(super) async fn remove<L: Link, E>(
    core: &Core<L, E>,
    request: &v1::RemoveFileRequest,
) -> Result<v1::RemoveFileResponse, Status> {
    let path = Path::parse("file", request.file.as_ref())?;
    let (tree, walked) = core.walk(&path, Follow::Never).await?;
    let client = &core.client;
    let work = async {
        let (directory, name) = walked.entry()?;
        let found = walked.found.as_ref().ok_or_else(|| StoreError::not_found("file"))?;
        let is_directory = found.kind == FileKind::Directory;
        if is_directory && request.recursive {
            let below = remove_below(client, tree, found.inode).await?;
            client.remove(tree, directory, name, true).await?;
            return Ok(below + 1);
        }
        client.remove(tree, directory, name, is_directory).await?;
        Ok(1)
    };
    let removed_count = work.await.on(kind::FILE, &path.display())?;
    Ok(v1::RemoveFileResponse { removed_count })
}

/// A directory on the way down: its inode, its name above, and its entries still to remove.
struct Level {
    directory: InodeNumber,
    name: Vec<u8>,
    entries: Vec<DirectoryEntry>,
}

/// Removes everything in `root`, depth first, a page at a time, and counts names. Memory: one page
/// a level, at most [`REMOVE_DEPTH_MAX`] levels.
async fn remove_below<L: Link>(
    client: &Client<L>,
    tree: TreeRef,
    root: InodeNumber,
) -> StoreResult<u64> {
    let mut removed = 0;
    let mut levels = vec![Level { directory: root, name: Vec::new(), entries: Vec::new() }];
    // Ends: each turn removes a name, descends, or finds a directory empty; what others create
    // meanwhile is bounded by the call's deadline.
    while let Some(level) = levels.last_mut() {
        let directory = level.directory;
        let Some(entry) = level.entries.pop() else {
            // From the start again: what was listed is removed, what is there now is new.
            let mut page = client.read_directory(tree, directory, 0, PAGE_SIZE_MAX).await?;
            if !page.is_empty() {
                page.reverse();
                level.entries = page;
                continue;
            }
            let Some(done) = levels.pop() else { break };
            if let Some(parent) = levels.last() {
                gone_is_fine(client.remove(tree, parent.directory, &done.name, true).await)?;
                removed += 1;
            }
            continue;
        };
        if entry.attributes.kind != FileKind::Directory {
            gone_is_fine(client.remove(tree, directory, &entry.name, false).await)?;
            removed += 1;
            continue;
        }
        if levels.len() >= REMOVE_DEPTH_MAX {
            return Err(StoreError::invalid(format!(
                "directories are nested over {REMOVE_DEPTH_MAX} deep; remove inner ones first"
            )));
        }
        let (directory, name) = (entry.attributes.inode, entry.name);
        levels.push(Level { directory, name, entries: Vec::new() });
    }
    Ok(removed)
}

/// Somebody else removed it first: then it is as wanted.
fn gone_is_fine(result: StoreResult<()>) -> StoreResult<()> {
    match result {
        Err(StoreError::NotFound { .. }) => Ok(()),
        other => other,
    }
}
