//! The service itself: admits each call and hands it to its function.

use std::sync::Arc;

use engine_store::StoreError;
use engine_store::api::{FileKind, Link};
use proto::v1;
use proto::v1::file_service_server::FileService;
use tonic::{Request, Response, Status, Streaming};

use super::change::{check_xattr_name, xattr_of};
use super::{list, read, remove, write};
use crate::convert;
use crate::core::{Core, Shared, kind};
use crate::export::ExportControl;
use crate::outgoing::{self, Outgoing};
use crate::path::{Follow, Path, describe};
use crate::status::OnResource;

impl<L: Link, E> Core<L, E> {
    async fn stat(&self, request: &v1::StatFileRequest) -> Result<v1::StatFileResponse, Status> {
        let path = Path::parse("file", request.file.as_ref())?;
        let follow = if request.follow_symlink { Follow::Always } else { Follow::WithSlash };
        let (_, walked) = self.walk(&path, follow).await?;
        let attributes = walked.existing().on(kind::FILE, &path.display())?;
        Ok(v1::StatFileResponse { attributes: Some(convert::attributes(&attributes)) })
    }

    async fn read_symlink(
        &self,
        request: &v1::ReadSymlinkRequest,
    ) -> Result<v1::ReadSymlinkResponse, Status> {
        let path = Path::parse("link", request.link.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::WithSlash).await?;
        let work = async {
            let link = walked.existing()?;
            if link.kind != FileKind::Symlink {
                return Err(StoreError::invalid("is not a symbolic link"));
            }
            self.client.read_link(tree, link.inode).await
        };
        let target = work.await.on(kind::FILE, &path.display())?;
        Ok(v1::ReadSymlinkResponse { target })
    }

    async fn xattr(&self, request: &v1::GetXattrRequest) -> Result<v1::GetXattrResponse, Status> {
        check_xattr_name(&request.name)?;
        let path = Path::parse("file", request.file.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::WithSlash).await?;
        let file = walked.existing().on(kind::FILE, &path.display())?;
        let value = self.client.xattr_get(tree, file.inode, &request.name).await;
        let value = value.on(kind::XATTR, &xattr_of(&path, &request.name))?;
        Ok(v1::GetXattrResponse { value })
    }

    async fn xattrs(
        &self,
        request: &v1::ListXattrsRequest,
    ) -> Result<v1::ListXattrsResponse, Status> {
        let path = Path::parse("file", request.file.as_ref())?;
        let (tree, walked) = self.walk(&path, Follow::WithSlash).await?;
        let work = async { self.client.xattr_list(tree, walked.existing()?.inode).await };
        let names = work.await.on(kind::FILE, &path.display())?;
        Ok(v1::ListXattrsResponse { names })
    }
}

/// Declares a unary call: `kind name(Request -> Response) as "Method" = function`.
macro_rules! unary {
    (read $this:ident, $request:ident, $method:literal, $function:expr) => {{
        let call = $this.admit($method, &$request)?;
        let message = $request.into_inner();
        call.run($function(&$this.0, &message)).await.map(Response::new)
    }};
    (change $this:ident, $request:ident, $method:literal, $field:ident, $function:expr) => {{
        let call = $this.admit($method, &$request)?;
        let message = $request.into_inner();
        let target = describe(message.$field.as_ref());
        call.change(&target, $function(&$this.0, &message)).await
    }};
}

#[tonic::async_trait]
impl<L, E> FileService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    type ListDirectoryStream = Outgoing<v1::ListDirectoryResponse>;
    type ReadFileStream = Outgoing<v1::ReadFileResponse>;

    async fn stat_file(
        &self,
        request: Request<v1::StatFileRequest>,
    ) -> Result<Response<v1::StatFileResponse>, Status> {
        unary!(read self, request, "StatFile", Core::stat)
    }

    async fn list_directory(
        &self,
        request: Request<v1::ListDirectoryRequest>,
    ) -> Result<Response<Self::ListDirectoryStream>, Status> {
        let call = self.admit("ListDirectory", &request)?;
        let (core, message) = (Arc::clone(&self.0), request.into_inner());
        let stream =
            outgoing::start(call, self.idle_timeout, |sender| list::produce(core, message, sender));
        Ok(Response::new(stream))
    }

    async fn read_file(
        &self,
        request: Request<v1::ReadFileRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let call = self.admit("ReadFile", &request)?;
        let (core, message) = (Arc::clone(&self.0), request.into_inner());
        let stream =
            outgoing::start(call, self.idle_timeout, |sender| read::produce(core, message, sender));
        Ok(Response::new(stream))
    }

    async fn write_file(
        &self,
        request: Request<Streaming<v1::WriteFileRequest>>,
    ) -> Result<Response<v1::WriteFileResponse>, Status> {
        let call = self.admit("WriteFile", &request)?;
        let mut stream = request.into_inner();
        let target = std::sync::OnceLock::new();
        let work = async {
            let header = write::header(&mut stream, self.idle_timeout).await?;
            let _ = target.set(describe(header.file.as_ref()));
            write::write(&self.0, header, stream).await
        };
        let name = || target.get().map_or("", String::as_str);
        call.change_of(name, work).await
    }

    async fn create_directory(
        &self,
        request: Request<v1::CreateDirectoryRequest>,
    ) -> Result<Response<v1::CreateDirectoryResponse>, Status> {
        unary!(change self, request, "CreateDirectory", directory, Core::create_directories)
    }

    async fn remove_file(
        &self,
        request: Request<v1::RemoveFileRequest>,
    ) -> Result<Response<v1::RemoveFileResponse>, Status> {
        unary!(change self, request, "RemoveFile", file, remove::remove)
    }

    async fn rename_file(
        &self,
        request: Request<v1::RenameFileRequest>,
    ) -> Result<Response<v1::RenameFileResponse>, Status> {
        unary!(change self, request, "RenameFile", source, Core::rename)
    }

    async fn create_link(
        &self,
        request: Request<v1::CreateLinkRequest>,
    ) -> Result<Response<v1::CreateLinkResponse>, Status> {
        unary!(change self, request, "CreateLink", destination, Core::create_hard_link)
    }

    async fn create_symlink(
        &self,
        request: Request<v1::CreateSymlinkRequest>,
    ) -> Result<Response<v1::CreateSymlinkResponse>, Status> {
        unary!(change self, request, "CreateSymlink", link, Core::create_symlink)
    }

    async fn read_symlink(
        &self,
        request: Request<v1::ReadSymlinkRequest>,
    ) -> Result<Response<v1::ReadSymlinkResponse>, Status> {
        unary!(read self, request, "ReadSymlink", Core::read_symlink)
    }

    async fn set_file_attributes(
        &self,
        request: Request<v1::SetFileAttributesRequest>,
    ) -> Result<Response<v1::SetFileAttributesResponse>, Status> {
        unary!(change self, request, "SetFileAttributes", file, Core::set_attributes)
    }

    async fn get_xattr(
        &self,
        request: Request<v1::GetXattrRequest>,
    ) -> Result<Response<v1::GetXattrResponse>, Status> {
        unary!(read self, request, "GetXattr", Core::xattr)
    }

    async fn set_xattr(
        &self,
        request: Request<v1::SetXattrRequest>,
    ) -> Result<Response<v1::SetXattrResponse>, Status> {
        unary!(change self, request, "SetXattr", file, Core::set_xattr)
    }

    async fn list_xattrs(
        &self,
        request: Request<v1::ListXattrsRequest>,
    ) -> Result<Response<v1::ListXattrsResponse>, Status> {
        unary!(read self, request, "ListXattrs", Core::xattrs)
    }

    async fn remove_xattr(
        &self,
        request: Request<v1::RemoveXattrRequest>,
    ) -> Result<Response<v1::RemoveXattrResponse>, Status> {
        unary!(change self, request, "RemoveXattr", file, Core::remove_xattr)
    }

    async fn truncate_file(
        &self,
        request: Request<v1::TruncateFileRequest>,
    ) -> Result<Response<v1::TruncateFileResponse>, Status> {
        unary!(change self, request, "TruncateFile", file, Core::truncate)
    }

    async fn copy_file(
        &self,
        request: Request<v1::CopyFileRequest>,
    ) -> Result<Response<v1::CopyFileResponse>, Status> {
        unary!(change self, request, "CopyFile", destination, Core::copy)
    }

    async fn punch_hole(
        &self,
        request: Request<v1::PunchHoleRequest>,
    ) -> Result<Response<v1::PunchHoleResponse>, Status> {
        unary!(change self, request, "PunchHole", file, Core::punch)
    }

    async fn sync_file(
        &self,
        request: Request<v1::SyncFileRequest>,
    ) -> Result<Response<v1::SyncFileResponse>, Status> {
        unary!(read self, request, "SyncFile", Core::sync)
    }
}
