//! Time statistics and waits as clients see them, over a daemon made up for it.

use std::sync::Arc;

use crate::common::exports::Exports;
use crate::common::fake::Fake;
use api_grpc::{CoreTime, Observe, Scope, Server, ServerConfig, Timing, UnixConfig, WaitingNow};
use engine_base::time_stats::TimeStats;
use engine_store::client::Client;
use proto::v1;
use proto::v1::stats_service_client::StatsServiceClient;
use tonic::Code;
use tonic::transport::Channel;

/// Two shards with a statistic each, one device, one core, and waits of 1 to 2000 µs.
struct Daemon;

impl Observe for Daemon {
    fn timings(&self) -> Vec<Timing> {
        let timing = |name: &str, scope, events: &[u64]| {
            let stats = TimeStats::default();
            for (at, ns) in (1..).zip(events) {
                stats.record(at * 1_000_000, *ns);
            }
            Timing { name: name.to_owned(), scope, times: stats.snapshot(10_000_000) }
        };
        vec![
            timing("node_read", Scope::Shard(0), &[1000, 3000]),
            timing("node_read", Scope::Shard(1), &[5000]),
            timing("node_write", Scope::Shard(1), &[]),
            timing("device_read", Scope::Device { core: 0, member: 2 }, &[7000]),
        ]
    }

    fn waiting(&self) -> Vec<WaitingNow> {
        (1..=2000)
            .map(|us| WaitingNow {
                name: if us % 2 == 0 { "node_read" } else { "blocked_allocate" },
                scope: Scope::Shard(3),
                waited_ns: us * 1000,
            })
            .collect()
    }

    fn cores(&self) -> Vec<CoreTime> {
        vec![CoreTime { busy_ns: 1, polling_ns: 2, sleeping_ns: 3, tasks: 4 }]
    }
}

async fn client() -> (StatsServiceClient<Channel>, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cairn.sock");
    let config = ServerConfig { unix: Some(UnixConfig::new(&socket)), ..ServerConfig::default() };
    let server = Server::bind(&config).await.unwrap().showing(Arc::new(Daemon));
    let (store, info) = (Client::new(Fake::new()), crate::common::server_info());
    tokio::spawn(server.serve(store, Exports::default(), info, std::future::pending()));
    (StatsServiceClient::new(crate::common::connect(&socket).await), directory)
}

async fn rows(
    client: &mut StatsServiceClient<Channel>,
    request: v1::GetTimeStatsRequest,
) -> Vec<v1::TimeStats> {
    client.get_time_stats(request).await.unwrap().into_inner().stats
}

fn places(rows: &[v1::TimeStats]) -> Vec<(&str, &str, u64)> {
    rows.iter().map(|row| (row.name.as_str(), row.scope.as_str(), row.count)).collect()
}

#[tokio::test]
async fn statistics_are_chosen_by_name_and_place_and_summed() {
    let (mut client, _directory) = client().await;
    let asked = v1::GetTimeStatsRequest { filter: "read".to_owned(), ..Default::default() };
    let all = rows(&mut client, asked.clone()).await;
    assert_eq!(
        places(&all),
        [
            ("device_read", "core 0 member 2", 1),
            ("node_read", "shard 0", 2),
            ("node_read", "shard 1", 1)
        ]
    );
    assert!(all.iter().all(|row| row.buckets.is_empty()));
    let one = v1::GetTimeStatsRequest { shard: Some(1), include_idle: true, ..Default::default() };
    let one = rows(&mut client, one).await;
    assert_eq!(places(&one), [("node_read", "shard 1", 1), ("node_write", "shard 1", 0)]);
    let summed = v1::GetTimeStatsRequest { summed: true, include_buckets: true, ..asked };
    let answer = client.get_time_stats(summed).await.unwrap().into_inner();
    assert_eq!(places(&answer.stats), [("device_read", "", 1), ("node_read", "", 3)]);
    let row = &answer.stats[1];
    assert_eq!((row.min_ns, row.max_ns, row.mean_ns, row.total_ns), (1000, 5000, 3000, 9000));
    assert_eq!(row.stddev_ns, 1632);
    assert!(row.p50_ns >= 1000 && row.p50_ns <= row.p99_ns && row.p99_ns <= 5000, "{row:?}");
    assert_eq!(row.buckets.len(), answer.bucket_bounds_ns.len() + 1);
    assert_eq!(row.buckets.iter().sum::<u64>(), 3);
    assert!(answer.bucket_bounds_ns.is_sorted());
}

#[tokio::test]
async fn methods_of_the_server_are_timed() {
    let (mut client, _directory) = client().await;
    client.list_waits(v1::ListWaitsRequest::default()).await.unwrap();
    client.list_waits(v1::ListWaitsRequest::default()).await.unwrap();
    let asked = v1::GetTimeStatsRequest { filter: "grpc_".to_owned(), ..Default::default() };
    let rows = rows(&mut client, asked).await;
    assert_eq!(places(&rows), [("grpc_ListWaits", "server", 2)]);
    assert!(rows[0].max_ns > 0);
}

#[tokio::test]
async fn the_longest_waits_come_first_and_no_more_than_asked_for() {
    let (mut client, _directory) = client().await;
    let asked = v1::ListWaitsRequest { count_max: 2, ..Default::default() };
    let answer = client.list_waits(asked).await.unwrap().into_inner();
    assert_eq!(answer.count, 2000);
    let seen: Vec<_> = answer.waits.iter().map(|one| (one.name.as_str(), one.waited_ns)).collect();
    assert_eq!(seen, [("node_read", 2_000_000), ("blocked_allocate", 1_999_000)]);
    assert_eq!(answer.waits[0].scope, "shard 3");
    let asked = v1::ListWaitsRequest {
        filter: "blocked".to_owned(),
        waited_ns_min: 1_997_000,
        count_max: u32::MAX,
    };
    let answer = client.list_waits(asked).await.unwrap().into_inner();
    assert_eq!((answer.count, answer.waits.len()), (1, 1));
    let all = v1::ListWaitsRequest { count_max: u32::MAX, ..Default::default() };
    let answer = client.list_waits(all).await.unwrap().into_inner();
    assert_eq!((answer.count, answer.waits.len()), (2000, 1000));
}

#[tokio::test]
async fn a_filter_that_is_no_name_is_refused() {
    let (mut client, _directory) = client().await;
    let filter = "x".repeat(101);
    let asked = v1::GetTimeStatsRequest { filter: filter.clone(), ..Default::default() };
    assert_eq!(client.get_time_stats(asked).await.unwrap_err().code(), Code::InvalidArgument);
    let asked = v1::ListWaitsRequest { filter, ..Default::default() };
    assert_eq!(client.list_waits(asked).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn cores_stand_beside_the_shards() {
    let (mut client, _directory) = client().await;
    let stats = client.get_stats(v1::GetStatsRequest {}).await.unwrap().into_inner();
    let core = v1::CoreStats { core: 0, busy_ns: 1, polling_ns: 2, sleeping_ns: 3, tasks: 4 };
    assert_eq!(stats.cores, [core]);
}
