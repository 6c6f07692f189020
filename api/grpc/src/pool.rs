//! PoolService.

use engine_base::InodeNumber;
use engine_store::api::{FsckReport, Link, ResizePhase, ResizeStatus, Verify};
use engine_store::damage::DamageLine;
use proto::v1;
use proto::v1::pool_service_server::PoolService;
use tonic::{Request, Response, Status};

use crate::core::{Shared, page_size};
use crate::export::ExportControl;
use crate::limits::{PAGE_SIZE_MAX, PROBLEMS_MAX};
use crate::status::{OnResource, bad_field, cut};
use crate::{convert, token};

const SCOPE: &[u8] = b"members";

impl<L, E> Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn pool_status(&self) -> Result<v1::PoolStatus, Status> {
        let shards = self.client.status().await.plain()?;
        let mut sum = v1::PoolStatus {
            uuid: convert::uuid(&self.info.pool_uuid),
            shard_count: u32::from(self.client.link().shard_count()),
            member_count: self.info.members.len() as u32,
            ..v1::PoolStatus::default()
        };
        for shard in &shards {
            sum.capacity_bytes += shard.capacity_bytes + shard.unassigned_bytes;
            sum.data_bytes += shard.data_bytes;
            sum.index_bytes += shard.index_bytes;
            sum.journal_bytes += shard.journal_bytes;
            sum.fragmented_bytes += shard.fragmented_bytes;
            sum.available_bytes += shard.available_bytes;
            sum.inodes += shard.inodes;
        }
        Ok(sum)
    }

    async fn members(
        &self,
        request: &v1::ListMembersRequest,
    ) -> Result<v1::ListMembersResponse, Status> {
        let sizes = self.client.resize_status().await.plain()?.members;
        let after = match token::decode(SCOPE, &request.page_token)?.as_deref() {
            None => None,
            Some(&[index]) => Some(index),
            Some(_) => return Err(bad_field("page_token", "is not a token of this listing")),
        };
        let page_size = page_size(request.page_size);
        let rest: Vec<_> = self
            .info
            .members
            .iter()
            .filter(|member| after.is_none_or(|after| member.index > after))
            .collect();
        let next_page_token = match rest.get(page_size - 1) {
            Some(last) if rest.len() > page_size => token::encode(SCOPE, &[last.index]),
            _ => String::new(),
        };
        let members = rest
            .into_iter()
            .take(page_size)
            .map(|member| v1::Member {
                index: u32::from(member.index),
                uuid: convert::uuid(&member.uuid),
                path: member.path.clone(),
                size_bytes: sizes
                    .get(usize::from(member.index))
                    .map_or(member.size_bytes, |size| size.size_bytes),
                block_size_bytes: member.block_size,
            })
            .collect();
        Ok(v1::ListMembersResponse { members, next_page_token })
    }
}

fn report(from: FsckReport) -> v1::CheckPoolResponse {
    let problem_count = from.problems.len() as u64;
    let checked = from.checked.into_iter();
    v1::CheckPoolResponse {
        problems: from.problems.iter().take(PROBLEMS_MAX).map(|problem| cut(problem)).collect(),
        problem_count,
        notes: from.notes.iter().take(PROBLEMS_MAX).map(|note| cut(note)).collect(),
        checked: checked
            .map(|(name, count)| v1::CheckedCount { name: name.to_owned(), count })
            .collect(),
    }
}

fn resize(status: ResizeStatus) -> Option<v1::MemberResize> {
    let job = status.job?;
    let phase = match job.phase {
        ResizePhase::Running => v1::ResizePhase::Running,
        ResizePhase::Blocked => v1::ResizePhase::Blocked,
        ResizePhase::Done => v1::ResizePhase::Done,
        ResizePhase::Cancelled => v1::ResizePhase::Cancelled,
        ResizePhase::Failed => v1::ResizePhase::Failed,
    };
    Some(v1::MemberResize {
        member_index: u32::from(job.member),
        from_bytes: job.from_bytes,
        to_bytes: job.to_bytes,
        phase: phase.into(),
        left_bytes: job.left_bytes,
        reason: cut(&job.why),
    })
}

fn damage(line: DamageLine) -> v1::DamageEntry {
    let entry = line.entry;
    v1::DamageEntry {
        subvolume: line.subvolume.map(|(name, _)| name).unwrap_or_default(),
        path: line.path.unwrap_or_default(),
        offset_bytes: entry.offset,
        length_bytes: entry.len,
        inode: entry.inode.0,
        version: entry.snapshot.0,
        found_ns: entry.found_ns,
        what: cut(&entry.what),
        shard: u32::from(line.shard.0),
    }
}

#[tonic::async_trait]
impl<L, E> PoolService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn get_pool_status(
        &self,
        request: Request<v1::GetPoolStatusRequest>,
    ) -> Result<Response<v1::GetPoolStatusResponse>, Status> {
        let call = self.admit("GetPoolStatus", &request)?;
        let work = async {
            let status = Some(self.pool_status().await?);
            Ok(v1::GetPoolStatusResponse { status })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_members(
        &self,
        request: Request<v1::ListMembersRequest>,
    ) -> Result<Response<v1::ListMembersResponse>, Status> {
        let call = self.admit("ListMembers", &request)?;
        call.run(self.members(request.get_ref())).await.map(Response::new)
    }

    async fn check_pool(
        &self,
        request: Request<v1::CheckPoolRequest>,
    ) -> Result<Response<v1::CheckPoolResponse>, Status> {
        let call = self.admit("CheckPool", &request)?;
        let request = request.into_inner();
        let work = async {
            let verify = match (request.verify_data, request.resume) {
                (false, false) => Verify::Nothing,
                (true, false) => Verify::All,
                (true, true) => Verify::Resume,
                (false, true) => {
                    return Err(bad_field(
                        "resume",
                        "needs verify_data: only that is gone on with",
                    ));
                }
            };
            self.client.fsck(verify).await.plain().map(report)
        };
        call.run(work).await.map(Response::new)
    }

    async fn repair_pool(
        &self,
        request: Request<v1::RepairPoolRequest>,
    ) -> Result<Response<v1::RepairPoolResponse>, Status> {
        let call = self.admit("RepairPool", &request)?;
        let work = async {
            let done = self.client.repair().await.plain()?;
            let counted = done.checked.iter().find(|(name, _)| *name == "repairs");
            Ok(v1::RepairPoolResponse {
                repairs: done.notes.iter().take(PROBLEMS_MAX).map(|line| cut(line)).collect(),
                repair_count: counted.map_or(0, |(_, count)| *count),
            })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_damage(
        &self,
        request: Request<v1::ListDamageRequest>,
    ) -> Result<Response<v1::ListDamageResponse>, Status> {
        let call = self.admit("ListDamage", &request)?;
        let limit = match request.into_inner().limit {
            0 => PAGE_SIZE_MAX,
            limit => limit.min(PAGE_SIZE_MAX),
        };
        let work = async {
            let lines = self.client.damage_list(limit).await.plain()?;
            let entries = lines.into_iter().map(damage).collect();
            Ok(v1::ListDamageResponse { entries })
        };
        call.run(work).await.map(Response::new)
    }

    async fn clear_damage(
        &self,
        request: Request<v1::ClearDamageRequest>,
    ) -> Result<Response<v1::ClearDamageResponse>, Status> {
        let call = self.admit("ClearDamage", &request)?;
        let inode = Some(request.into_inner().inode).filter(|inode| *inode != 0);
        let work = async {
            let cleared = self.client.damage_clear(inode.map(InodeNumber)).await.plain()?;
            Ok(v1::ClearDamageResponse { cleared })
        };
        call.run(work).await.map(Response::new)
    }

    async fn resize_member(
        &self,
        request: Request<v1::ResizeMemberRequest>,
    ) -> Result<Response<v1::ResizeMemberResponse>, Status> {
        let call = self.admit("ResizeMember", &request)?;
        let request = request.into_inner();
        let work = async {
            let member = u8::try_from(request.member_index)
                .map_err(|_| bad_field("member_index", "is 0 to 255"))?;
            let status = self.client.resize_member(member, request.size_bytes).await.plain()?;
            Ok(v1::ResizeMemberResponse { resize: resize(status) })
        };
        call.run(work).await.map(Response::new)
    }

    async fn get_member_resize(
        &self,
        request: Request<v1::GetMemberResizeRequest>,
    ) -> Result<Response<v1::GetMemberResizeResponse>, Status> {
        let call = self.admit("GetMemberResize", &request)?;
        let work = async {
            let status = self.client.resize_status().await.plain()?;
            Ok(v1::GetMemberResizeResponse { resize: resize(status) })
        };
        call.run(work).await.map(Response::new)
    }

    async fn cancel_member_resize(
        &self,
        request: Request<v1::CancelMemberResizeRequest>,
    ) -> Result<Response<v1::CancelMemberResizeResponse>, Status> {
        let call = self.admit("CancelMemberResize", &request)?;
        let work = async {
            let status = self.client.resize_cancel().await.plain()?;
            Ok(v1::CancelMemberResizeResponse { resize: resize(status) })
        };
        call.run(work).await.map(Response::new)
    }
}
