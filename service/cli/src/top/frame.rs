//! What happened between two looks at the daemon's counters.

use engine_base::histogram::Snapshot;
use proto::v1;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::size::show;
use crate::times::duration;

/// Kinds of requests, as time statistics name them after "request_".
const KINDS: [&str; 5] = ["read", "write", "discard", "flush", "metadata"];
/// Waits of which the time is shown, at most.
const BLOCKED_MAX: usize = 6;

/// The daemon's counters at one time.
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) stats: v1::GetStatsResponse,
    /// Summed by name, with buckets.
    pub(super) times: Vec<v1::TimeStats>,
    pub(super) waits: v1::ListWaitsResponse,
}

/// Requests of one kind.
struct Kind {
    name: &'static str,
    per_second: f64,
    p50_ns: u64,
    p99_ns: u64,
}

/// Time that things were blocked for one reason, in seconds a second.
struct Blocked {
    name: String,
    share: f64,
    mean_ns: u64,
}

/// What happened between two looks.
pub(super) struct Frame {
    seconds: f64,
    kinds: Vec<Kind>,
    read_per_second: f64,
    written_per_second: f64,
    /// Share of its time that each core had work.
    cores: Vec<f64>,
    /// Share of the journal rings that is in use: of all, and of the fullest.
    journal: (f64, f64),
    capacity_bytes: u64,
    available_bytes: u64,
    unassigned_bytes: u64,
    /// Share of looks for index nodes that the cache answered; `None` when there was none.
    cache_hits: Option<f64>,
    data_cache_hits: Option<f64>,
    copygc_per_second: f64,
    restarts_per_second: f64,
    blocked: Vec<Blocked>,
    waits: v1::ListWaitsResponse,
}

/// The share `part` has of `part + rest`; `None` of nothing.
fn share(part: u64, rest: u64) -> Option<f64> {
    let whole = part.saturating_add(rest);
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Look {
    /// Sum of a counter over all shards.
    fn counter(&self, name: &str) -> u64 {
        let of_shard = |shard: &v1::ShardStats| counter(shard, name);
        self.stats.shards.iter().map(of_shard).fold(0, u64::saturating_add)
    }

    fn time(&self, name: &str) -> Option<&v1::TimeStats> {
        self.times.iter().find(|one| one.name == name)
    }
}

fn counter(shard: &v1::ShardStats, name: &str) -> u64 {
    shard.counters.iter().find(|one| one.name == name).map_or(0, |one| one.value)
}

/// What came to a statistic between two looks: events, their total time, and events by duration.
fn events(before: Option<&v1::TimeStats>, now: &v1::TimeStats) -> (u64, u64, Option<Snapshot>) {
    let Some(before) = before else {
        return (now.count, now.total_ns, Snapshot::from_counts(&now.buckets, now.total_ns));
    };
    // A daemon that was started again counts from 0: then all of it is new.
    if before.count > now.count {
        return events(None, now);
    }
    let pairs = now.buckets.iter().zip(&before.buckets);
    let buckets: Vec<u64> = pairs.map(|(now, before)| now.saturating_sub(*before)).collect();
    let total_ns = now.total_ns.saturating_sub(before.total_ns);
    (now.count - before.count, total_ns, Snapshot::from_counts(&buckets, total_ns))
}

impl Frame {
    /// Compares two looks.
    pub(super) fn between(before: &Look, now: &Look) -> Self {
        let seconds = (now.at - before.at).as_secs_f64().max(1e-3);
        let grown =
            |name: &str| now.counter(name).saturating_sub(before.counter(name)) as f64 / seconds;
        let more = |name: &str| now.counter(name).saturating_sub(before.counter(name));
        let sum = |field: fn(&v1::ShardStats) -> u64| {
            now.stats.shards.iter().map(field).fold(0, u64::saturating_add)
        };
        Self {
            seconds,
            kinds: KINDS.map(|name| Kind::between(name, before, now, seconds)).into(),
            read_per_second: grown("request_read_bytes"),
            written_per_second: grown("request_written_bytes"),
            cores: cores(before, now),
            journal: journal(now),
            capacity_bytes: sum(|shard| shard.capacity_bytes),
            available_bytes: sum(|shard| shard.available_bytes),
            unassigned_bytes: sum(|shard| shard.unassigned_bytes),
            cache_hits: share(more("btree_cache_hits"), more("btree_cache_misses")),
            data_cache_hits: share(more("data_cache_hits"), more("data_cache_misses")),
            copygc_per_second: grown("copygc_blocks_moved") * 4096.0,
            restarts_per_second: grown("transaction_restarts"),
            blocked: blocked(before, now, seconds),
            waits: now.waits.clone(),
        }
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let kinds = self.kinds.iter().map(|kind| {
            let value = json!({
                "per_second": kind.per_second,
                "p50_ns": kind.p50_ns,
                "p99_ns": kind.p99_ns,
            });
            (kind.name.to_owned(), value)
        });
        let blocked = self.blocked.iter().map(|one| {
            json!({ "name": one.name, "seconds_per_second": one.share, "mean_ns": one.mean_ns })
        });
        let waits =
            self.waits.waits.iter().map(
                |one| json!({ "name": one.name, "scope": one.scope, "waited_ns": one.waited_ns }),
            );
        json!({
            "seconds": self.seconds,
            "requests": Value::Object(kinds.collect()),
            "read_bytes_per_second": self.read_per_second,
            "written_bytes_per_second": self.written_per_second,
            "cores_busy": self.cores,
            "journal_used": self.journal.0,
            "journal_used_max": self.journal.1,
            "capacity_bytes": self.capacity_bytes,
            "available_bytes": self.available_bytes,
            "unassigned_bytes": self.unassigned_bytes,
            "index_cache_hits": self.cache_hits,
            "data_cache_hits": self.data_cache_hits,
            "copygc_bytes_per_second": self.copygc_per_second,
            "transaction_restarts_per_second": self.restarts_per_second,
            "blocked": blocked.collect::<Vec<_>>(),
            "waiting": waits.collect::<Vec<_>>(),
            "waiting_count": self.waits.count,
        })
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let rate = |bytes: f64| format!("{}/s", show(bytes as u64));
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let mut lines = vec![
            format!(
                "read {}   written {}   copygc {}   restarts {:.0}/s",
                rate(self.read_per_second),
                rate(self.written_per_second),
                rate(self.copygc_per_second),
                self.restarts_per_second
            ),
            format!(
                "free {} of {}   journal {} used, fullest {}   cache hits: index {}, data {}",
                show(self.available_bytes),
                show(self.capacity_bytes.saturating_add(self.unassigned_bytes)),
                percent(self.journal.0),
                percent(self.journal.1),
                self.cache_hits.map_or_else(|| "-".to_owned(), percent),
                self.data_cache_hits.map_or_else(|| "-".to_owned(), percent)
            ),
        ];
        let cores: Vec<String> = self.cores.iter().map(|busy| percent(*busy)).collect();
        lines.push(format!("cores busy  {}", cores.join("  ")));
        lines.push(String::new());
        lines.push(format!("{:<32}{:>12}{:>12}{:>12}", "REQUESTS", "PER SECOND", "P50", "P99"));
        for kind in &self.kinds {
            let time = |ns| if kind.per_second > 0.0 { duration(ns) } else { "-".to_owned() };
            let (p50, p99) = (time(kind.p50_ns), time(kind.p99_ns));
            lines.push(format!("{:<32}{:>12.1}{p50:>12}{p99:>12}", kind.name, kind.per_second));
        }
        lines.push(String::new());
        lines.push(format!("{:<32}{:>12}{:>12}", "BLOCKED BY", "AT A TIME", "MEAN"));
        for one in &self.blocked {
            let mean = duration(one.mean_ns);
            lines.push(format!("{:<32}{:>12.3}{mean:>12}", one.name, one.share));
        }
        lines.push(String::new());
        lines.push(format!("{:<32}{:>12}  {}", "WAITING NOW", "FOR", "PLACE"));
        for one in &self.waits.waits {
            lines.push(format!("{:<32}{:>12}  {}", one.name, duration(one.waited_ns), one.scope));
        }
        lines
    }
}

impl Kind {
    fn between(name: &'static str, before: &Look, now: &Look, seconds: f64) -> Self {
        let full = format!("request_{name}");
        let came = now.time(&full).map(|one| events(before.time(&full), one));
        let (count, _, durations) = came.unwrap_or((0, 0, None));
        let durations = durations.unwrap_or_default();
        Self {
            name,
            per_second: count as f64 / seconds,
            p50_ns: durations.quantile_ns(0.5),
            p99_ns: durations.quantile_ns(0.99),
        }
    }
}

fn cores(before: &Look, now: &Look) -> Vec<f64> {
    let none = v1::CoreStats::default();
    let pairs = now.stats.cores.iter().enumerate();
    pairs
        .map(|(index, now)| {
            let before = before.stats.cores.get(index).unwrap_or(&none);
            let rest = (now.polling_ns + now.sleeping_ns)
                .saturating_sub(before.polling_ns + before.sleeping_ns);
            share(now.busy_ns.saturating_sub(before.busy_ns), rest).unwrap_or(0.0)
        })
        .collect()
}

/// Share of the rings that is in use: of all, and of the fullest.
fn journal(now: &Look) -> (f64, f64) {
    let rings = now.stats.shards.iter().map(|shard| {
        let free = counter(shard, "journal_ring_free_blocks");
        (counter(shard, "journal_ring_blocks").saturating_sub(free), free)
    });
    let (mut used, mut free, mut fullest) = (0_u64, 0_u64, 0.0_f64);
    for (one_used, one_free) in rings {
        used = used.saturating_add(one_used);
        free = free.saturating_add(one_free);
        fullest = fullest.max(share(one_used, one_free).unwrap_or(0.0));
    }
    (share(used, free).unwrap_or(0.0), fullest)
}

/// What most time was lost to, the most first.
fn blocked(before: &Look, now: &Look, seconds: f64) -> Vec<Blocked> {
    let of = |one: &v1::TimeStats| {
        let (count, total_ns, _) = events(before.time(&one.name), one);
        (count > 0).then(|| Blocked {
            name: one.name.clone(),
            share: total_ns as f64 / 1e9 / seconds,
            mean_ns: total_ns / count,
        })
    };
    let waits = now.times.iter().filter(|one| one.name.starts_with("blocked_"));
    let mut all: Vec<Blocked> = waits.filter_map(of).collect();
    all.sort_by(|a, b| b.share.total_cmp(&a.share).then_with(|| a.name.cmp(&b.name)));
    all.truncate(BLOCKED_MAX);
    all
}

#[cfg(test)]
mod tests;
