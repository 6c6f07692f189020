//! VolumeService.

use engine_store::api::{Link, SIZE_BYTES_MAX, SubvolumeInfo, SubvolumeKind};
use proto::v1;
use proto::v1::volume_service_server::VolumeService;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::core::{Shared, check_name, kind, whole};
use crate::export::ExportControl;
use crate::status::{OnResource, Resource, bad_field, precondition};

/// Logical block size when the client does not say: what devices and file systems like best.
const BLOCK_SIZE_DEFAULT: u32 = 4096;

const SCOPE: &[u8] = b"volumes";

fn check_size(size_bytes: u64, block_size: u32) -> Result<(), Status> {
    if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX {
        let why = format!("must be {block_size} to 2^60 bytes, not {size_bytes}");
        return Err(bad_field("size_bytes", why));
    }
    if !size_bytes.is_multiple_of(u64::from(block_size)) {
        let why = format!("{size_bytes} is not a multiple of the block size, {block_size} bytes");
        return Err(bad_field("size_bytes", why));
    }
    Ok(())
}

impl<L, E> Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    /// Refuses when the volume is exported. The caller holds `exporting`.
    pub(crate) async fn refuse_exported(&self, name: &str, what: &str) -> Result<(), Status> {
        match self.exports.volume_in_use(name).await.on(kind::VOLUME, name)? {
            None => Ok(()),
            Some(nqn) => {
                let why = format!("is exported by {nqn}: delete that export before you {what}");
                Err(precondition("VOLUME_EXPORTED", Resource { kind: kind::VOLUME, name }, &why))
            }
        }
    }

    async fn resize(&self, request: &v1::ResizeVolumeRequest) -> Result<v1::Volume, Status> {
        let name = &request.name;
        let _exporting = self.exporting.lock().await;
        let before = self.volume("name", name).await?;
        whole(kind::VOLUME, &before)?;
        check_size(request.size_bytes, before.block_size)?;
        if request.size_bytes < before.size_bytes {
            if !request.allow_shrink {
                let why = format!(
                    "is less than the present {} bytes; set allow_shrink to drop the rest",
                    before.size_bytes
                );
                return Err(bad_field("size_bytes", why));
            }
            self.refuse_exported(name, "shrink the volume").await?;
        }
        let resized = self.client.volume_resize(name, request.size_bytes).await;
        let after = resized.on(kind::VOLUME, name)?;
        self.exports.volume_resized(&after).await.on(kind::VOLUME, name)?;
        Ok(convert::volume(&after, None))
    }
}

#[tonic::async_trait]
impl<L, E> VolumeService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::CreateVolumeResponse>, Status> {
        let call = self.admit("CreateVolume", &request)?;
        let request = request.into_inner();
        let work = async {
            check_name("name", &request.name)?;
            let block_size = match request.block_size_bytes {
                0 => BLOCK_SIZE_DEFAULT,
                size @ (512 | 4096) => size,
                other => {
                    let why = format!("must be 512 or 4096, not {other}");
                    return Err(bad_field("block_size_bytes", why));
                }
            };
            check_size(request.size_bytes, block_size)?;
            let options = convert::options_asked(request.options)?;
            let size = (request.size_bytes, block_size);
            let volume = SubvolumeKind::Volume;
            let create = self.client.subvolume_create(&request.name, volume, size, options);
            let info = create.await.on(kind::VOLUME, &request.name)?;
            Ok(v1::CreateVolumeResponse { volume: Some(convert::volume(&info, None)) })
        };
        call.change(&request.name, work).await
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::GetVolumeResponse>, Status> {
        let call = self.admit("GetVolume", &request)?;
        let request = request.into_inner();
        let work = async {
            let info = self.volume("name", &request.name).await?;
            let used = self.usage(&info, request.include_usage).await?;
            let mut volume = convert::volume(&info, used);
            let exported = self.exports.volume_in_use(&info.name).await;
            volume.exported_by = exported.on(kind::VOLUME, &info.name)?.unwrap_or_default();
            Ok(v1::GetVolumeResponse { volume: Some(volume) })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let call = self.admit("ListVolumes", &request)?;
        let request = request.into_inner();
        let work = async {
            let wanted =
                |info: &SubvolumeInfo| info.kind == SubvolumeKind::Volume && !info.read_only;
            let page = self.subvolume_page(SCOPE, wanted, request.page_size, &request.page_token);
            let (page, next_page_token) = page.await?;
            let mut volumes = Vec::with_capacity(page.len());
            for info in &page {
                let used = self.usage(info, request.include_usage).await?;
                volumes.push(convert::volume(info, used));
            }
            Ok(v1::ListVolumesResponse { volumes, next_page_token })
        };
        call.run(work).await.map(Response::new)
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::ResizeVolumeResponse>, Status> {
        let call = self.admit("ResizeVolume", &request)?;
        let request = request.into_inner();
        let name = request.name.clone();
        // A task of its own: a client that gives up between the resize and the word to the hosts
        // must not leave them with the old size.
        let shared = self.clone();
        let task = tokio::spawn(async move { shared.resize(&request).await });
        let work = async {
            let done = task.await.map_err(|error| Status::internal(error.to_string()))?;
            Ok(v1::ResizeVolumeResponse { volume: Some(done?) })
        };
        call.change(&name, work).await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        let call = self.admit("DeleteVolume", &request)?;
        let name = request.into_inner().name;
        let work = async {
            let _exporting = self.exporting.lock().await;
            self.volume("name", &name).await?;
            self.refuse_exported(&name, "delete the volume").await?;
            self.client.subvolume_delete(&name).await.on(kind::VOLUME, &name)?;
            Ok(v1::DeleteVolumeResponse {})
        };
        call.change(&name, work).await
    }
}
