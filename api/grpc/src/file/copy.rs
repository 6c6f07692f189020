//! CopyFile: by reference, where blocks can be shared.

use engine_store::StoreError;
use engine_store::api::{CopyMode, FilePlace, Link, SIZE_BYTES_MAX};
use proto::v1;
use tonic::Status;

use super::read::regular;
use super::write::{Opening, open};
use crate::convert;
use crate::core::{Core, kind};
use crate::path::{Follow, Path};
use crate::status::{OnResource, Resource, bad_field, precondition};

impl<L: Link, E> Core<L, E> {
    /// CopyFile.
    pub(super) async fn copy(
        &self,
        request: &v1::CopyFileRequest,
    ) -> Result<v1::CopyFileResponse, Status> {
        let mode = mode(request)?;
        let (from, to) = (request.source_offset_bytes, request.destination_offset_bytes);
        let source = Path::parse("source", request.source.as_ref())?;
        let destination = Path::parse("destination", request.destination.as_ref())?;
        let (source_tree, walked) = self.walk(&source, Follow::Always).await?;
        let file = walked.existing().on(kind::FILE, &source.display())?;
        regular(&file).on(kind::FILE, &source.display())?;
        let rest = file.size.saturating_sub(from);
        let len = request.length_bytes.map_or(rest, |len| len.min(rest));
        if to.checked_add(len).is_none_or(|end| end > SIZE_BYTES_MAX) {
            return Err(bad_field("length_bytes", "the copy would reach past 2^60"));
        }
        let opening = Opening {
            create: request.create.as_ref(),
            exclusive: request.exclusive,
            truncate: request.truncate,
            fields: "",
        };
        // Nothing is created and nothing cut for a copy that cannot be made.
        let _attributes = opening.check()?;
        let (tree, walked) = self.walk(&destination, opening.follow()).await?;
        let same = walked.found.as_ref().is_some_and(|it| it.inode == file.inode)
            && tree.subvolume == source_tree.subvolume;
        if same && request.truncate {
            let why = "names the source, which would be cut before it is copied";
            return Err(bad_field("destination", why));
        }
        let place = |tree, inode, offset| FilePlace { tree, inode, offset };
        let from = place(source_tree, file.inode, from);
        if mode == CopyMode::Always && !self.client.can_share(from, place(tree, file.inode, to)) {
            let name = destination.display();
            let resource = Resource { kind: kind::FILE, name: &name };
            let why = "cannot have these blocks by reference; see ReferenceMode";
            return Err(precondition("NOT_SHAREABLE", resource, why));
        }
        let (tree, target) = open(self, &opening, &destination).await?;
        let copy = async {
            let to = place(tree, target.inode, to);
            let stats = self.client.file_copy(from, to, len, mode).await?;
            if request.sync {
                self.client.file_sync(tree, target.inode).await?;
            }
            let attributes = self.client.get_attributes(tree, target.inode).await?;
            Ok::<_, StoreError>((stats, attributes))
        };
        let (stats, attributes) = copy.await.on(kind::FILE, &destination.display())?;
        Ok(v1::CopyFileResponse {
            attributes: Some(convert::attributes(&attributes)),
            shared_bytes: stats.shared_bytes,
            copied_bytes: stats.copied_bytes,
        })
    }
}

/// How to copy; and whether the request has offsets that can be.
fn mode(request: &v1::CopyFileRequest) -> Result<CopyMode, Status> {
    let (from, to) = (request.source_offset_bytes, request.destination_offset_bytes);
    for (field, offset) in [("source_offset_bytes", from), ("destination_offset_bytes", to)] {
        if offset > SIZE_BYTES_MAX {
            return Err(bad_field(field, "is over 2^60"));
        }
    }
    match v1::ReferenceMode::try_from(request.mode) {
        Ok(v1::ReferenceMode::Unspecified | v1::ReferenceMode::Auto) => Ok(CopyMode::Auto),
        Ok(v1::ReferenceMode::Always) => Ok(CopyMode::Always),
        Ok(v1::ReferenceMode::Never) => Ok(CopyMode::Never),
        Err(_) => Err(bad_field("mode", format!("{} is no mode", request.mode))),
    }
}
