//! ListDirectory.

use std::sync::Arc;

use engine_store::StoreError;
use engine_store::api::{FileKind, Link};
use proto::v1;
use tonic::Status;

use crate::core::{Core, kind};
use crate::limits::PAGE_SIZE_MAX;
use crate::outgoing::Sender;
use crate::path::{Follow, Path};
use crate::status::{OnResource, bad_field};
use crate::{convert, token};

/// Produces the messages of a listing.
pub(super) async fn produce<L, E>(
    core: Arc<Core<L, E>>,
    request: v1::ListDirectoryRequest,
    sender: Sender<v1::ListDirectoryResponse>,
) -> Result<(), Status>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
{
    let path = Path::parse("directory", request.directory.as_ref())?;
    let name = path.display();
    let (tree, walked) = core.walk(&path, Follow::Always).await?;
    let directory = walked.existing().on(kind::FILE, &name)?;
    if directory.kind != FileKind::Directory {
        return Err(StoreError::NotDirectory { what: name.clone() }).on(kind::FILE, &name);
    }
    // A token holds for the directory, whatever path led there.
    let scope = [b"directory:".as_slice(), &directory.inode.0.to_le_bytes()].concat();
    let mut cookie = match token::decode(&scope, &request.page_token)? {
        None => 0,
        Some(position) => u64::from_le_bytes(position.try_into().map_err(|_| {
            bad_field("page_token", "is not a token of this listing; start again without one")
        })?),
    };
    let mut left = if request.page_size == 0 { u64::MAX } else { u64::from(request.page_size) };
    // Ends: cookies only grow, and what is created meanwhile is bounded by the call's deadline.
    while left > 0 {
        let limit = left.min(u64::from(PAGE_SIZE_MAX)) as u32;
        let batch = core.client.read_directory(tree, directory.inode, cookie, limit).await;
        let batch = batch.on(kind::FILE, &name)?;
        let exhausted = batch.len() < limit as usize;
        if let Some(last) = batch.last() {
            cookie = last.cookie;
        }
        left -= batch.len() as u64;
        let next_page_token =
            if exhausted { String::new() } else { token::encode(&scope, &cookie.to_le_bytes()) };
        let entries = batch
            .into_iter()
            .map(|entry| v1::DirectoryEntry {
                attributes: Some(convert::attributes(&entry.attributes)),
                name: entry.name,
            })
            .collect();
        sender.send(v1::ListDirectoryResponse { entries, next_page_token }).await?;
        if exhausted {
            break;
        }
    }
    Ok(())
}
