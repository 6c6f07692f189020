//! `timestats` and `waits`: how long things take, and what waits now.

use proto::v1;
use serde_json::{Value, json};

use crate::args::{TimestatsArguments, WaitsArguments};
use crate::connect::Session;
use crate::failure::Result;
use crate::output::Output;

/// `timestats`.
pub(crate) async fn timestats(
    session: &Session,
    arguments: TimestatsArguments,
    output: &Output,
) -> Result<()> {
    let TimestatsArguments { filter, shard, each, all } = arguments;
    let request = v1::GetTimeStatsRequest {
        filter,
        shard,
        summed: !each && shard.is_none(),
        include_idle: all,
        include_buckets: false,
    };
    let stats = session.stats().get_time_stats(request).await?.into_inner().stats;
    let header = [
        "NAME",
        "PLACE",
        "COUNT",
        "MIN",
        "MEAN",
        "STDDEV",
        "P50",
        "P99",
        "MAX",
        "RECENT",
        "PER SECOND",
    ];
    let rows = stats.iter().map(|one| {
        let mut row = vec![one.name.clone(), place(&one.scope), one.count.to_string()];
        let columns = [
            one.min_ns,
            one.mean_ns,
            one.stddev_ns,
            one.p50_ns,
            one.p99_ns,
            one.max_ns,
            one.recent_mean_ns,
        ];
        row.extend(columns.map(duration));
        row.push(format!("{:.1}", one.recent_rate));
        row
    });
    output.table(&header, rows, stats.iter().map(json_of).collect())
}

fn json_of(one: &v1::TimeStats) -> Value {
    json!({
        "name": one.name,
        "scope": one.scope,
        "count": one.count,
        "total_ns": one.total_ns,
        "min_ns": one.min_ns,
        "max_ns": one.max_ns,
        "mean_ns": one.mean_ns,
        "stddev_ns": one.stddev_ns,
        "recent_mean_ns": one.recent_mean_ns,
        "recent_rate": one.recent_rate,
        "p50_ns": one.p50_ns,
        "p90_ns": one.p90_ns,
        "p99_ns": one.p99_ns,
        "p999_ns": one.p999_ns,
    })
}

/// `waits`.
pub(crate) async fn waits(
    session: &Session,
    arguments: WaitsArguments,
    output: &Output,
) -> Result<()> {
    let request = v1::ListWaitsRequest {
        filter: arguments.filter,
        waited_ns_min: u64::from(arguments.longer_than_ms) * 1_000_000,
        count_max: arguments.count,
    };
    let reply = session.stats().list_waits(request).await?.into_inner();
    let rows = reply
        .waits
        .iter()
        .map(|one| vec![one.name.clone(), place(&one.scope), duration(one.waited_ns)]);
    let values = reply
        .waits
        .iter()
        .map(|one| json!({ "name": one.name, "scope": one.scope, "waited_ns": one.waited_ns }));
    output.table(&["NAME", "PLACE", "FOR"], rows, values.collect())?;
    let shown = reply.waits.len() as u64;
    if reply.count > shown {
        output.warning(&format!("{} wait, the longest {shown} are shown", reply.count));
    }
    Ok(())
}

fn place(scope: &str) -> String {
    if scope.is_empty() { "all".to_owned() } else { scope.to_owned() }
}

/// A duration for people: three digits and a unit.
pub(crate) fn duration(ns: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us"), (1, "ns")];
    // Rounded to three digits it may belong to the next unit: 999.7 us is 1.00 ms.
    let (unit, name) =
        UNITS.into_iter().find(|(unit, _)| ns as f64 >= *unit as f64 * 0.9995).unwrap_or((1, "ns"));
    let value = ns as f64 / unit as f64;
    match value {
        _ if unit == 1 => format!("{ns} ns"),
        ..9.995 => format!("{value:.2} {name}"),
        ..99.95 => format!("{value:.1} {name}"),
        _ => format!("{value:.0} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (9_994, "9.99 us"),
            (9_996, "10.0 us"),
            (123_456, "123 us"),
            (999_700, "1.00 ms"),
            (33_500_000_000, "33.5 s"),
            (7_200_000_000_000, "7200 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }
}
