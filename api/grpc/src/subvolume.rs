//! SubvolumeService.

use engine_store::api::{Link, SubvolumeInfo, SubvolumeKind};
use proto::v1;
use proto::v1::subvolume_service_server::SubvolumeService;
use tonic::{Request, Response, Status};

use crate::core::{Core, Shared, check_name, kind, page_size};
use crate::export::ExportControl;
use crate::limits::PAGE_SIZE_MAX;
use crate::status::{OnResource, Resource, bad_field, precondition};
use crate::{convert, token};

impl<L: Link, E> Core<L, E> {
    /// A page of the subvolumes of one kind, or of all, and the token of the next.
    pub(crate) async fn subvolume_page(
        &self,
        scope: &[u8],
        wanted: impl Fn(&SubvolumeInfo) -> bool,
        asked: u32,
        page_token: &str,
    ) -> Result<(Vec<SubvolumeInfo>, String), Status> {
        let damaged = |_| bad_field("page_token", "is not a token of this listing");
        let after = token::decode(scope, page_token)?.unwrap_or_default();
        let mut after = String::from_utf8(after).map_err(damaged)?;
        let page_size = page_size(asked);
        let mut page: Vec<SubvolumeInfo> = Vec::new();
        // Ends: each turn moves `after` on through the pool's names, or is the last.
        loop {
            let batch = self.client.subvolume_list(&after, PAGE_SIZE_MAX).await.plain()?;
            let exhausted = batch.len() < PAGE_SIZE_MAX as usize;
            if let Some(last) = batch.last() {
                after.clone_from(&last.name);
            }
            for info in batch.into_iter().filter(&wanted) {
                if page.len() == page_size {
                    let last = page.last().map_or("", |info| info.name.as_str());
                    let next = token::encode(scope, last.as_bytes());
                    return Ok((page, next));
                }
                page.push(info);
            }
            if exhausted {
                return Ok((page, String::new()));
            }
        }
    }
}

fn kind_filter(kind: i32) -> Result<(Option<SubvolumeKind>, &'static [u8]), Status> {
    match v1::SubvolumeKind::try_from(kind) {
        Ok(v1::SubvolumeKind::Unspecified) => Ok((None, b"subvolumes")),
        Ok(v1::SubvolumeKind::Volume) => Ok((Some(SubvolumeKind::Volume), b"subvolumes:volume")),
        Ok(v1::SubvolumeKind::FileTree) => Ok((Some(SubvolumeKind::FileTree), b"subvolumes:tree")),
        Err(_) => Err(bad_field("kind", format!("{kind} is no kind of subvolume"))),
    }
}

#[tonic::async_trait]
impl<L, E> SubvolumeService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn create_subvolume(
        &self,
        request: Request<v1::CreateSubvolumeRequest>,
    ) -> Result<Response<v1::CreateSubvolumeResponse>, Status> {
        let call = self.admit("CreateSubvolume", &request)?;
        let v1::CreateSubvolumeRequest { name, options } = request.into_inner();
        let work = async {
            check_name("name", &name)?;
            let (tree, options) = (SubvolumeKind::FileTree, convert::options_asked(options)?);
            let create = self.client.subvolume_create(&name, tree, (0, 0), options);
            let info = create.await.on(kind::SUBVOLUME, &name)?;
            let subvolume = Some(convert::subvolume(&info, None));
            Ok(v1::CreateSubvolumeResponse { subvolume })
        };
        call.change(&name, work).await
    }

    async fn get_subvolume(
        &self,
        request: Request<v1::GetSubvolumeRequest>,
    ) -> Result<Response<v1::GetSubvolumeResponse>, Status> {
        let call = self.admit("GetSubvolume", &request)?;
        let request = request.into_inner();
        let work = async {
            check_name("name", &request.name)?;
            let found = self.client.subvolume_get(&request.name).await;
            let info = found.on(kind::SUBVOLUME, &request.name)?;
            let used = self.usage(&info, request.include_usage).await?;
            let subvolume = Some(convert::subvolume(&info, used));
            Ok(v1::GetSubvolumeResponse { subvolume })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_subvolumes(
        &self,
        request: Request<v1::ListSubvolumesRequest>,
    ) -> Result<Response<v1::ListSubvolumesResponse>, Status> {
        let call = self.admit("ListSubvolumes", &request)?;
        let request = request.into_inner();
        let work = async {
            let (only, scope) = kind_filter(request.kind)?;
            let wanted = |info: &SubvolumeInfo| only.is_none_or(|kind| info.kind == kind);
            let page = self.subvolume_page(scope, wanted, request.page_size, &request.page_token);
            let (page, next_page_token) = page.await?;
            let mut subvolumes = Vec::with_capacity(page.len());
            for info in &page {
                let used = self.usage(info, request.include_usage).await?;
                subvolumes.push(convert::subvolume(info, used));
            }
            Ok(v1::ListSubvolumesResponse { subvolumes, next_page_token })
        };
        call.run(work).await.map(Response::new)
    }

    async fn set_subvolume_options(
        &self,
        request: Request<v1::SetSubvolumeOptionsRequest>,
    ) -> Result<Response<v1::SetSubvolumeOptionsResponse>, Status> {
        let call = self.admit("SetSubvolumeOptions", &request)?;
        let request = request.into_inner();
        let name = &request.name;
        let work = async {
            check_name("name", name)?;
            let (compression, frame) = (&request.compression, request.compression_frame_bytes);
            let set = convert::set_options(compression.as_deref(), frame, "")?;
            let info = self.client.subvolume_set(name, set).await.on(kind::SUBVOLUME, name)?;
            let subvolume = Some(convert::subvolume(&info, None));
            Ok(v1::SetSubvolumeOptionsResponse { subvolume })
        };
        call.change(name, work).await
    }

    async fn delete_subvolume(
        &self,
        request: Request<v1::DeleteSubvolumeRequest>,
    ) -> Result<Response<v1::DeleteSubvolumeResponse>, Status> {
        let call = self.admit("DeleteSubvolume", &request)?;
        let name = request.into_inner().name;
        let work = async {
            let info = self.subvolume("name", &name, SubvolumeKind::FileTree).await?;
            if info.read_only {
                let resource = Resource { kind: kind::SUBVOLUME, name: &name };
                let why = "is a snapshot; delete it as one";
                return Err(precondition("WRONG_KIND", resource, why));
            }
            self.client.subvolume_delete(&name).await.on(kind::SUBVOLUME, &name)?;
            Ok(v1::DeleteSubvolumeResponse {})
        };
        call.change(&name, work).await
    }
}
