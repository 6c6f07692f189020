//! StatsService.

use std::collections::BTreeMap;

use engine_base::histogram;
use engine_base::time_stats::TimeSnapshot;
use engine_memory::profile::{report, set_mode};
use engine_store::api::{Link, ShardStatus};
use proto::v1;
use proto::v1::stats_service_server::StatsService;
use tonic::{Request, Response, Status};

use crate::allocations;
use crate::convert;
use crate::core::{Shared, kind};
use crate::export::ExportControl;
use crate::limits::{
    FILTER_BYTES_MAX, LOG_FILTER_BYTES_MAX, TIME_STATS_MAX, WAITS_DEFAULT, WAITS_MAX,
};
use crate::log_filter;
use crate::observe::{CoreTime, Scope, Timing, WaitingNow};
use crate::status::{OnResource, Resource, bad_field, precondition};

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

fn core((core, from): (u32, CoreTime)) -> v1::CoreStats {
    v1::CoreStats {
        core,
        busy_ns: from.busy_ns,
        polling_ns: from.polling_ns,
        sleeping_ns: from.sleeping_ns,
        tasks: from.tasks,
    }
}

fn time_stats(name: String, scope: String, times: &TimeSnapshot, buckets: bool) -> v1::TimeStats {
    v1::TimeStats {
        name,
        scope,
        count: times.count,
        total_ns: times.total_ns(),
        min_ns: times.min_ns,
        max_ns: times.max_ns,
        mean_ns: times.mean_ns() as u64,
        stddev_ns: times.stddev_ns() as u64,
        recent_mean_ns: times.recent_mean_ns as u64,
        recent_rate: times.recent_rate,
        p50_ns: times.quantile_ns(0.5),
        p90_ns: times.quantile_ns(0.9),
        p99_ns: times.quantile_ns(0.99),
        p999_ns: times.quantile_ns(0.999),
        buckets: if buckets { times.histogram.counts().to_vec() } else { Vec::new() },
    }
}

fn check_filter(filter: &str) -> Result<(), Status> {
    if filter.len() > FILTER_BYTES_MAX {
        let why = format!("is {} bytes long, {FILTER_BYTES_MAX} are allowed", filter.len());
        return Err(bad_field("filter", why));
    }
    Ok(())
}

impl<L, E> Shared<L, E> {
    fn time_stats(&self, asked: &v1::GetTimeStatsRequest) -> Result<Vec<v1::TimeStats>, Status> {
        check_filter(&asked.filter)?;
        let mut all: Vec<Timing> = self.shown.daemon.iter().flat_map(|one| one.timings()).collect();
        all.extend(self.shown.methods.snapshot().into_iter().map(|(method, times)| Timing {
            name: format!("grpc_{method}"),
            scope: Scope::Server,
            times,
        }));
        let of_shard = |scope: Scope| match asked.shard {
            Some(shard) => matches!(scope, Scope::Shard(one) if u32::from(one) == shard),
            None => true,
        };
        all.retain(|one| one.name.contains(&asked.filter) && of_shard(one.scope));
        let mut rows: BTreeMap<(String, Option<Scope>), TimeSnapshot> = BTreeMap::new();
        for Timing { name, scope, times } in all {
            rows.entry((name, (!asked.summed).then_some(scope))).or_default().merge(&times);
        }
        rows.retain(|_, times| asked.include_idle || times.count > 0);
        if rows.len() > TIME_STATS_MAX {
            let count = rows.len();
            return Err(bad_field(
                "filter",
                format!(
                    "matches {count} statistics, {TIME_STATS_MAX} are given at a time; sum them up, \
                     or ask for one shard"
                ),
            ));
        }
        let scope =
            |scope: Option<Scope>| scope.map_or_else(String::new, |scope| scope.to_string());
        Ok(rows
            .into_iter()
            .map(|((name, place), times)| {
                time_stats(name, scope(place), &times, asked.include_buckets)
            })
            .collect())
    }

    fn waits(&self, asked: &v1::ListWaitsRequest) -> Result<v1::ListWaitsResponse, Status> {
        check_filter(&asked.filter)?;
        let most = match asked.count_max {
            0 => WAITS_DEFAULT,
            count => count.min(WAITS_MAX),
        };
        let mut all: Vec<WaitingNow> =
            self.shown.daemon.iter().flat_map(|one| one.waiting()).collect();
        all.retain(|one| one.name.contains(&asked.filter) && one.waited_ns > asked.waited_ns_min);
        all.sort_by_key(|one| (std::cmp::Reverse(one.waited_ns), one.name, one.scope));
        let count = all.len() as u64;
        let waits = all.into_iter().take(most as usize).map(|one| v1::Waiting {
            name: one.name.to_owned(),
            scope: one.scope.to_string(),
            waited_ns: one.waited_ns,
        });
        Ok(v1::ListWaitsResponse { waits: waits.collect(), count })
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
            let cores = self.shown.daemon.iter().flat_map(|observed| observed.cores());
            let cores = (0..).zip(cores).map(core).collect();
            Ok(v1::GetStatsResponse { shards, cores })
        };
        call.run(work).await.map(Response::new)
    }

    async fn get_time_stats(
        &self,
        request: Request<v1::GetTimeStatsRequest>,
    ) -> Result<Response<v1::GetTimeStatsResponse>, Status> {
        let call = self.admit("GetTimeStats", &request)?;
        let asked = request.into_inner();
        let work = async {
            let stats = self.time_stats(&asked)?;
            let bucket_bounds_ns =
                if asked.include_buckets { histogram::bounds_ns().collect() } else { Vec::new() };
            Ok(v1::GetTimeStatsResponse { stats, bucket_bounds_ns })
        };
        call.run(work).await.map(Response::new)
    }

    async fn list_waits(
        &self,
        request: Request<v1::ListWaitsRequest>,
    ) -> Result<Response<v1::ListWaitsResponse>, Status> {
        let call = self.admit("ListWaits", &request)?;
        let asked = request.into_inner();
        let work = async { self.waits(&asked) };
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

    async fn get_allocations(
        &self,
        request: Request<v1::GetAllocationsRequest>,
    ) -> Result<Response<v1::GetAllocationsResponse>, Status> {
        let call = self.admit("GetAllocations", &request)?;
        let work = async {
            let all = report();
            let report = match request.get_ref().largest {
                0 => all,
                count => all.largest(count as usize),
            };
            let profiling = allocations::profiling(report.mode).into();
            let sites = report.holdings.into_iter().map(allocations::site).collect();
            Ok(v1::GetAllocationsResponse { profiling, sites })
        };
        call.run(work).await.map(Response::new)
    }

    async fn set_allocation_profiling(
        &self,
        request: Request<v1::SetAllocationProfilingRequest>,
    ) -> Result<Response<v1::SetAllocationProfilingResponse>, Status> {
        let call = self.admit("SetAllocationProfiling", &request)?;
        let wanted = allocations::mode(request.get_ref().profiling)?;
        let name = format!("{wanted:?}");
        let work = async {
            set_mode(wanted).map_err(|error| {
                let resource = Resource { kind: kind::SERVER, name: "allocation profiling" };
                precondition("PROFILING_NEVER", resource, &error.to_string())
            })?;
            Ok(v1::SetAllocationProfilingResponse {})
        };
        call.change(&name, work).await
    }

    async fn get_log_filter(
        &self,
        request: Request<v1::GetLogFilterRequest>,
    ) -> Result<Response<v1::GetLogFilterResponse>, Status> {
        let call = self.admit("GetLogFilter", &request)?;
        let work = async { Ok(self.shown.log.as_ref().ok_or_else(log_filter::fixed)?.show()) };
        call.run(work).await.map(Response::new)
    }

    async fn set_log_filter(
        &self,
        request: Request<v1::SetLogFilterRequest>,
    ) -> Result<Response<v1::SetLogFilterResponse>, Status> {
        let call = self.admit("SetLogFilter", &request)?;
        let asked = request.get_ref();
        let work = async {
            self.shown.log.as_ref().ok_or_else(log_filter::fixed)?.set(asked)?;
            Ok(v1::SetLogFilterResponse {})
        };
        let target = match &asked.filter {
            Some(filter) if filter.len() > LOG_FILTER_BYTES_MAX => "a filter that is too long",
            Some(filter) => filter,
            None => "as configured",
        };
        call.change(target, work).await
    }
}
