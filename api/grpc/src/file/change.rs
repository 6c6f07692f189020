//! The calls that change names and attributes, one function each.

use engine_store::StoreError;
use engine_store::api::{
    FileKind, Link, PutMode, RenameMode, SIZE_BYTES_MAX, SYMLINK_BYTES_MAX, SetAttributes,
    XATTR_VALUE_BYTES_MAX,
};
use proto::v1;
use tonic::{Code, Status};

use super::read::regular;
use crate::convert;
use crate::core::{Core, kind};
use crate::path::{Follow, Path};
use crate::status::{OnResource, bad_field};

/// Checks the name of an extended attribute.
pub(super) fn check_xattr_name(name: &[u8]) -> Result<(), Status> {
    let why = if name.is_empty() {
        "must not be empty"
    } else if name.len() > engine_store::api::NAME_BYTES_MAX {
        "is over 255 bytes"
    } else if name.contains(&0) {
        "must not have NUL bytes"
    } else {
        return Ok(());
    };
    Err(bad_field("name", why))
}

impl<L: Link, E> Core<L, E> {
    /// CreateDirectory, one.
    pub(super) async fn create_directory_once(
        &self,
        request: &v1::CreateDirectoryRequest,
    ) -> Result<v1::CreateDirectoryResponse, Status> {
        let create = convert::create_attributes("attributes", request.attributes.as_ref())?;
        let path = Path::parse("directory", request.directory.as_ref())?;
        let follow = if request.parents { Follow::Always } else { Follow::Never };
        let (tree, walked) = self.walk(&path, follow).await?;
        let work = async {
            if let Some(found) = walked.found.clone() {
                return match found.kind {
                    FileKind::Directory if request.parents => Ok(found),
                    _ => Err(StoreError::AlreadyExists { what: "the path".to_owned() }),
                };
            }
            let (directory, name) = walked.entry()?;
            let made = self.client.create(tree, directory, name, FileKind::Directory, create).await;
            match made {
                // Somebody else made it in between: with `parents` that is as good.
                Err(StoreError::AlreadyExists { what }) if request.parents => {
                    let found = self.client.lookup(tree, directory, name).await?;
                    match found.kind {
                        FileKind::Directory => Ok(found),
                        _ => Err(StoreError::AlreadyExists { what }),
                    }
                }
                other => other,
            }
        };
        let attributes = work.await.on(kind::FILE, &path.display())?;
        Ok(v1::CreateDirectoryResponse { attributes: Some(convert::attributes(&attributes)) })
    }

    /// CreateDirectory, with missing parents if asked for.
    pub(super) async fn create_directories(
        &self,
        request: &v1::CreateDirectoryRequest,
    ) -> Result<v1::CreateDirectoryResponse, Status> {
        let first = self.create_directory_once(request).await;
        let parent_missing = first.as_ref().is_err_and(|error| error.code() == Code::NotFound);
        if !request.parents || !parent_missing {
            return first;
        }
        let whole = Path::parse("directory", request.directory.as_ref())?.whole().to_vec();
        let mut step = request.clone();
        let slashes = whole.iter().enumerate().filter(|(at, byte)| *at > 0 && **byte == b'/');
        for (end, _) in slashes {
            if let Some(directory) = &mut step.directory {
                directory.path = whole[..end].to_vec();
            }
            self.create_directory_once(&step).await?;
        }
        self.create_directory_once(request).await
    }

    /// RenameFile.
    pub(super) async fn rename(
        &self,
        request: &v1::RenameFileRequest,
    ) -> Result<v1::RenameFileResponse, Status> {
        let source = Path::parse("source", request.source.as_ref())?;
        let destination = Path::parse("destination", request.destination.as_ref())?;
        let mode = match v1::RenameMode::try_from(request.mode) {
            Ok(v1::RenameMode::Unspecified | v1::RenameMode::Replace) => RenameMode::Replace,
            Ok(v1::RenameMode::NoReplace) => RenameMode::NoReplace,
            Ok(v1::RenameMode::Exchange) => RenameMode::Exchange,
            Err(_) => return Err(bad_field("mode", format!("{} is no mode", request.mode))),
        };
        let (tree, from) = self.walk(&source, Follow::Never).await?;
        let (to_tree, to) = self.walk(&destination, Follow::Never).await?;
        let name = source.display();
        let work = async {
            if tree != to_tree {
                return Err(StoreError::CrossSubvolume);
            }
            let (from_entry, to_entry) = (from.entry()?, to.entry()?);
            let moved = from.found.as_ref().ok_or_else(|| StoreError::not_found("source"))?;
            if to.slash && to.found.is_none() && moved.kind != FileKind::Directory {
                let what = "the destination ends in '/', the source".to_owned();
                return Err(StoreError::NotDirectory { what });
            }
            self.client.rename(tree, from_entry, to_entry, mode).await
        };
        work.await.on(kind::FILE, &name)?;
        Ok(v1::RenameFileResponse {})
    }

    /// CreateLink.
    pub(super) async fn create_hard_link(
        &self,
        request: &v1::CreateLinkRequest,
    ) -> Result<v1::CreateLinkResponse, Status> {
        let source = Path::parse("source", request.source.as_ref())?;
        let destination = Path::parse("destination", request.destination.as_ref())?;
        let (tree, from) = self.walk(&source, Follow::WithSlash).await?;
        let (to_tree, to) = self.walk(&destination, Follow::Never).await?;
        let from = from.existing().on(kind::FILE, &source.display())?;
        let work = async {
            if tree != to_tree {
                return Err(StoreError::CrossSubvolume);
            }
            if from.kind == FileKind::Directory {
                return Err(StoreError::IsDirectory { what: "the source".to_owned() });
            }
            let (directory, name) = to.entry()?;
            if to.found.is_some() {
                return Err(StoreError::AlreadyExists { what: "destination".to_owned() });
            }
            if to.slash {
                return Err(StoreError::not_found("the directory that the path ends in"));
            }
            self.client.link_inode(tree, from.inode, directory, name).await
        };
        let attributes = work.await.on(kind::FILE, &destination.display())?;
        Ok(v1::CreateLinkResponse { attributes: Some(convert::attributes(&attributes)) })
    }

    /// CreateSymlink.
    pub(super) async fn create_symlink(
        &self,
        request: &v1::CreateSymlinkRequest,
    ) -> Result<v1::CreateSymlinkResponse, Status> {
        let path = Path::parse("link", request.link.as_ref())?;
        let target = &request.target;
        if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) {
            let why = format!("must be 1 to {SYMLINK_BYTES_MAX} bytes without NUL");
            return Err(bad_field("target", why));
        }
        let (tree, walked) = self.walk(&path, Follow::Never).await?;
        let create =
            engine_store::api::CreateAttributes { mode: 0o777, uid: request.uid, gid: request.gid };
        let work = async {
            if walked.found.is_some() {
                return Err(StoreError::AlreadyExists { what: "the path".to_owned() });
            }
            if walked.slash {
                return Err(StoreError::not_found("the directory that the path ends in"));
            }
            let (directory, name) = walked.entry()?;
            self.client.symlink(tree, directory, name, target, create).await
        };
        let attributes = work.await.on(kind::FILE, &path.display())?;
        Ok(v1::CreateSymlinkResponse { attributes: Some(convert::attributes(&attributes)) })
    }

    /// SetFileAttributes.
    pub(super) async fn set_attributes(
        &self,
        request: &v1::SetFileAttributesRequest,
    ) -> Result<v1::SetFileAttributesResponse, Status> {
        let set = SetAttributes {
            mode: request.mode,
            uid: request.uid,
            gid: request.gid,
            size: None,
            atime_ns: request.atime_ns,
            mtime_ns: request.mtime_ns,
        };
        if set == SetAttributes::default() {
            return Err(bad_field("request", "gives no attribute to change"));
        }
        if let Some(mode) = set.mode {
            convert::check_mode("mode", mode)?;
        }
        let path = Path::parse("file", request.file.as_ref())?;
        let follow = if request.follow_symlink { Follow::Always } else { Follow::WithSlash };
        let attributes = self.set(&path, follow, set, false).await?;
        Ok(v1::SetFileAttributesResponse { attributes: Some(attributes) })
    }

    /// TruncateFile.
    pub(super) async fn truncate(
        &self,
        request: &v1::TruncateFileRequest,
    ) -> Result<v1::TruncateFileResponse, Status> {
        if request.size_bytes > SIZE_BYTES_MAX {
            return Err(bad_field("size_bytes", "is over 2^60"));
        }
        let path = Path::parse("file", request.file.as_ref())?;
        let set = SetAttributes { size: Some(request.size_bytes), ..SetAttributes::default() };
        let attributes = self.set(&path, Follow::Always, set, true).await?;
        Ok(v1::TruncateFileResponse { attributes: Some(attributes) })
    }

    async fn set(
        &self,
        path: &Path<'_>,
        follow: Follow,
        set: SetAttributes,
        only_regular: bool,
    ) -> Result<v1::FileAttributes, Status> {
        let (tree, walked) = self.walk(path, follow).await?;
        let work = async {
            let file = walked.existing()?;
            if only_regular {
                regular(&file)?;
            }
            self.client.set_attributes(tree, file.inode, set).await
        };
        let attributes = work.await.on(kind::FILE, &path.display())?;
        Ok(convert::attributes(&attributes))
    }

    /// PunchHole.
    pub(super) async fn punch(
        &self,
        request: &v1::PunchHoleRequest,
    ) -> Result<v1::PunchHoleResponse, Status> {
        let (offset, len) = (request.offset_bytes, request.length_bytes);
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > SIZE_BYTES_MAX) {
            let why = "must be at least 1, and reach to 2^60 at most";
            return Err(bad_field("length_bytes", why));
        }
        let path = Path::parse("file", request.file.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::Always).await?;
        let work = async {
            let file = walked.existing()?;
            regular(&file)?;
            self.client.file_punch(tree, file.inode, offset, len).await
        };
        work.await.on(kind::FILE, &path.display())?;
        Ok(v1::PunchHoleResponse {})
    }

    /// SetXattr.
    pub(super) async fn set_xattr(
        &self,
        request: &v1::SetXattrRequest,
    ) -> Result<v1::SetXattrResponse, Status> {
        check_xattr_name(&request.name)?;
        if request.value.len() > XATTR_VALUE_BYTES_MAX {
            let len = request.value.len();
            let why = format!("is {len} bytes long, {XATTR_VALUE_BYTES_MAX} are allowed");
            return Err(bad_field("value", why));
        }
        let mode = match v1::XattrMode::try_from(request.mode) {
            Ok(v1::XattrMode::Unspecified) => PutMode::Any,
            Ok(v1::XattrMode::Create) => PutMode::Create,
            Ok(v1::XattrMode::Replace) => PutMode::Replace,
            Err(_) => return Err(bad_field("mode", format!("{} is no mode", request.mode))),
        };
        let path = Path::parse("file", request.file.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::WithSlash).await?;
        let file = walked.existing().on(kind::FILE, &path.display())?;
        let (name, value) = (&request.name, &request.value);
        let done = self.client.xattr_set(tree, file.inode, name, value, mode).await;
        done.on(kind::XATTR, &xattr_of(&path, name))?;
        Ok(v1::SetXattrResponse {})
    }

    /// RemoveXattr.
    pub(super) async fn remove_xattr(
        &self,
        request: &v1::RemoveXattrRequest,
    ) -> Result<v1::RemoveXattrResponse, Status> {
        check_xattr_name(&request.name)?;
        let path = Path::parse("file", request.file.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::WithSlash).await?;
        let file = walked.existing().on(kind::FILE, &path.display())?;
        let done = self.client.xattr_remove(tree, file.inode, &request.name).await;
        done.on(kind::XATTR, &xattr_of(&path, &request.name))?;
        Ok(v1::RemoveXattrResponse {})
    }

    /// SyncFile.
    pub(super) async fn sync(
        &self,
        request: &v1::SyncFileRequest,
    ) -> Result<v1::SyncFileResponse, Status> {
        let path = Path::parse("file", request.file.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::Always).await?;
        let work = async { self.client.file_sync(tree, walked.existing()?.inode).await };
        work.await.on(kind::FILE, &path.display())?;
        Ok(v1::SyncFileResponse {})
    }
}

/// "subvolume:/path xattr", for people.
pub(super) fn xattr_of(path: &Path<'_>, name: &[u8]) -> String {
    format!("{} {}", path.display(), String::from_utf8_lossy(name))
}
