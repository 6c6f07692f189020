//! FileService: files and directories by path.
//!
//! Every call walks its path anew; there are no open handles, so nothing has to be given back when
//! a client goes away. A call that names two paths resolves both before it changes anything.

mod calls;
mod change;
mod copy;
mod list;
mod read;
mod remove;
mod write;

use engine_store::api::{Link, TreeRef};
use tonic::Status;

use crate::core::{Core, kind};
use crate::path::{Follow, Path, Walked, walk};
use crate::status::OnResource;

impl<L: Link, E> Core<L, E> {
    /// The tree of `path`, and where the path leads in it.
    async fn walk(&self, path: &Path<'_>, follow: Follow) -> Result<(TreeRef, Walked), Status> {
        let field = format!("{}.subvolume", path.field);
        let tree = self.tree(&field, path.subvolume).await?;
        let walked = walk(&self.client, tree, path, follow).await;
        Ok((tree, walked.on(kind::FILE, &path.display())?))
    }
}
