//! StatsService.

use engine_store::api::{Link, ShardStatus};
use proto::v1;
use proto::v1::stats_service_server::StatsService;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::core::Shared;
use crate::export::ExportControl;
use crate::status::OnResource;

fn shard(from: ShardStatus) -> v1::ShardStats {
    let counters = from.counters.into_iter();
    v1::ShardStats {
        shard: u32::from(from.shard.0),
        capacity_bytes: from.capacity_bytes,
        data_bytes: from.data_bytes,
        index_bytes: from.index_bytes,
        journal_bytes: from.journal_bytes,
        fragmented_bytes: from.fragmented_bytes,
        available_bytes: from.available_bytes,
        unassigned_bytes: from.unassigned_bytes,
        inodes: from.inodes,
        counters: counters
            .map(|(name, value)| v1::Counter { name: name.to_owned(), value })
            .collect(),
    }
}

#[tonic::async_trait]
impl<L, E> StatsService for Shared<L, E>
where
    L: Link + Send + Sync + 'static,
    L::Call: Send,
    E: ExportControl,
{
    async fn get_stats(
        &self,
        request: Request<v1::GetStatsRequest>,
    ) -> Result<Response<v1::GetStatsResponse>, Status> {
        let call = self.admit("GetStats", &request)?;
        let work = async {
            let shards = self.client.status().await.plain()?.into_iter().map(shard).collect();
            Ok(v1::GetStatsResponse { shards })
        };
        call.run(work).await.map(Response::new)
    }

    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let call = self.admit("GetServerInfo", &request)?;
        let work = async {
            Ok(v1::GetServerInfoResponse {
                version: self.info.version.clone(),
                pool_uuid: convert::uuid(&self.info.pool_uuid),
                started_ns: self.info.started_ns,
                message_bytes_max: proto::MESSAGE_BYTES_MAX as u32,
                chunk_bytes_max: proto::CHUNK_BYTES_MAX as u32,
            })
        };
        call.run(work).await.map(Response::new)
    }
}
