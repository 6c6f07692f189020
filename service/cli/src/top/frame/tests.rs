//! Frames of looks that are made up.

use std::time::Duration;

use engine_base::time_stats::TimeStats;

use super::*;

fn time(name: &str, events: &[u64]) -> v1::TimeStats {
    let stats = TimeStats::default();
    events.iter().for_each(|ns| stats.record(0, *ns));
    let stats = stats.snapshot(0);
    v1::TimeStats {
        name: name.to_owned(),
        count: stats.count,
        total_ns: stats.total_ns(),
        buckets: stats.histogram.counts().to_vec(),
        ..v1::TimeStats::default()
    }
}

fn look(at: Instant, counters: &[(&str, u64)], times: Vec<v1::TimeStats>, busy_ns: u64) -> Look {
    let counters = counters
        .iter()
        .map(|(name, value)| v1::Counter { name: (*name).to_owned(), value: *value });
    let shard = v1::ShardStats {
        capacity_bytes: 8 << 30,
        available_bytes: 5 << 30,
        counters: counters.collect(),
        ..v1::ShardStats::default()
    };
    let core =
        v1::CoreStats { busy_ns, sleeping_ns: 1_000_000_000 - busy_ns, ..Default::default() };
    let wait = v1::Waiting {
        name: "blocked_allocate".to_owned(),
        scope: "shard 4".to_owned(),
        waited_ns: 2_500_000_000,
    };
    Look {
        at,
        stats: v1::GetStatsResponse { shards: vec![shard.clone(), shard], cores: vec![core] },
        times,
        waits: v1::ListWaitsResponse { waits: vec![wait], count: 1 },
    }
}

#[test]
fn a_frame_tells_what_came_between() {
    let start = Instant::now();
    let before = [
        ("request_read_bytes", 1000),
        ("btree_cache_hits", 100),
        ("btree_cache_misses", 100),
        ("journal_ring_blocks", 1000),
        ("journal_ring_free_blocks", 900),
    ];
    let now = [
        ("request_read_bytes", 5000),
        ("btree_cache_hits", 190),
        ("btree_cache_misses", 110),
        ("journal_ring_blocks", 1000),
        ("journal_ring_free_blocks", 750),
        ("copygc_blocks_moved", 10),
    ];
    let old = vec![time("request_read", &[1_000_000_000; 50])];
    let mut reads = vec![1_000_000_000; 50];
    reads.extend([10_000; 99]);
    reads.push(8_000_000);
    let new = vec![
        time("request_read", &reads),
        time("blocked_node_lock", &[1_000_000]),
        time("blocked_allocate", &[500_000_000, 300_000_000]),
    ];
    let before = look(start, &before, old, 0);
    let now = look(start + Duration::from_secs(2), &now, new, 250_000_000);
    let frame = Frame::between(&before, &now);
    let value = frame.json();
    let read = &value["requests"]["read"];
    assert_eq!(read["per_second"], 50.0);
    let p50 = read["p50_ns"].as_u64().unwrap();
    assert!((8_000..=12_000).contains(&p50), "the old slow ones do not count: {p50}");
    assert!(read["p99_ns"].as_u64().unwrap() <= 12_000);
    assert_eq!(value["requests"]["write"]["per_second"], 0.0);
    assert_eq!(value["read_bytes_per_second"], 4000.0, "of two shards");
    assert_eq!(value["index_cache_hits"], 0.9);
    assert_eq!((&value["journal_used"], &value["journal_used_max"]), (&json!(0.25), &json!(0.25)));
    assert_eq!(value["copygc_bytes_per_second"], 40960.0);
    assert_eq!(value["available_bytes"], 10_u64 << 30);
    assert_eq!(value["blocked"][0]["name"], "blocked_allocate");
    assert_eq!(value["blocked"][0]["seconds_per_second"], 0.4);
    assert_eq!(value["blocked"][1]["mean_ns"], 1_000_000);
    assert_eq!(value["waiting"][0]["scope"], "shard 4");
    let text = frame.lines().join("\n");
    assert!(text.contains("free 10 GiB of 16 GiB") && text.contains("journal 25 % used"), "{text}");
    assert!(text.contains("blocked_allocate                      2.50 s  shard 4"), "{text}");
}

#[test]
fn a_daemon_that_was_started_again_counts_from_nothing() {
    let start = Instant::now();
    let before = look(
        start,
        &[("request_read_bytes", 1 << 40)],
        vec![time("request_read", &[1000; 50])],
        900_000_000,
    );
    let now = look(
        start + Duration::from_secs(1),
        &[("request_read_bytes", 10)],
        vec![time("request_read", &[1000; 3])],
        1000,
    );
    let value = Frame::between(&before, &now).json();
    assert_eq!(value["requests"]["read"]["per_second"], 3.0);
    assert_eq!(value["read_bytes_per_second"], 0.0);
    assert_eq!(value["index_cache_hits"], Value::Null);
}
