//! A long run of a little load: a day of virtual time in which what is kept in memory must not grow.
//!
//! Once in a while everything that can grow is looked at. The second quarter of the run, when caches are
//! full and the trees have their size, is compared with the last.

use std::collections::BTreeMap;

use super::{SeedReport, Simulation, run_with};
use crate::options::Options;

/// Times at which a run is looked at.
pub const LOOKS: u64 = 48;

/// What may grow by so much without being a leak: allocations that come and go.
const SLACK: u64 = 64;
const SLACK_BYTES: u64 = 2 << 20;

/// What was seen at each look, by name.
pub type Gauges = BTreeMap<String, Vec<u64>>;

/// Runs `options` in [`LOOKS`] parts. `live_bytes` tells what the whole program holds in memory, or 0
/// where that is not known.
#[must_use]
pub fn run(options: &Options, live_bytes: impl Fn() -> u64) -> (SeedReport, Gauges) {
    let mut gauges = Gauges::new();
    let report = run_with(options, |simulation| simulation.run_long(&live_bytes, &mut gauges));
    (report, gauges)
}

impl Simulation<'_> {
    fn run_long(&mut self, live_bytes: &dyn Fn() -> u64, seen: &mut Gauges) -> Result<(), String> {
        self.format()?;
        self.start_process();
        self.until_open()?;
        self.set_up()?;
        for _ in 0..LOOKS {
            self.work(self.options.operations / LOOKS, false)?;
            if self.failure().is_some() {
                return Ok(());
            }
            self.look(live_bytes, seen);
        }
        for (name, values) in &*seen {
            check_flat(name, values)?;
        }
        self.finish()
    }

    fn look(&self, live_bytes: &dyn Fn() -> u64, seen: &mut Gauges) {
        let mut note = |name: String, value: u64| seen.entry(name).or_default().push(value);
        let (tasks, timers) = self.executor.sizes();
        note("tasks".to_owned(), tasks as u64);
        note("timers".to_owned(), timers as u64);
        // What the simulated disks hold is in memory, too, and grows until every place was written once.
        let on_disks = self.disks.iter().map(|disk| disk.written_pages().len() as u64 * 4096).sum();
        note("process_bytes".to_owned(), live_bytes().saturating_sub(on_disks));
        let Some(process) = &self.process else { return };
        for shard in process.mesh.shards() {
            let engine = shard.engine();
            for (name, value) in engine.counters() {
                if GAUGES.contains(&name) {
                    note(format!("shard_{}_{name}", engine.shard()), value);
                }
            }
        }
    }
}

/// Counters of the engine that say how much there is, not how often something happened.
const GAUGES: [&str; 6] = [
    "btree_cache_nodes",
    "btree_cache_bytes",
    "journal_pins",
    "space_buckets_draining",
    "space_buckets_index",
    "space_reserved_blocks",
];

/// The last quarter is not above the second one, but for half as much again and a slack.
fn check_flat(name: &str, values: &[u64]) -> Result<(), String> {
    let quarter = values.len() / 4;
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
    let (before, after) = (most(&values[quarter..quarter * 2]), most(&values[quarter * 3..]));
    let slack = if name.ends_with("bytes") { SLACK_BYTES } else { SLACK };
    if after <= before + before / 2 + slack {
        return Ok(());
    }
    Err(format!(
        "{name} grows: up to {before} in the second quarter, {after} in the last: {values:?}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_told() {
        let flat: Vec<u64> = (0..48).map(|at| 1000 + at % 7 * 50).collect();
        assert_eq!(check_flat("tasks", &flat), Ok(()));
        let growing: Vec<u64> = (0..48).map(|at| at * 100).collect();
        assert!(check_flat("tasks", &growing).is_err());
        // Some megabytes are noise, more are not.
        assert_eq!(check_flat("process_bytes", &growing), Ok(()));
        let leaking: Vec<u64> = (0..48).map(|at| at << 20).collect();
        assert!(check_flat("process_bytes", &leaking).is_err());
    }

    #[test]
    fn memory_is_flat_over_hours() {
        let hours = 6 * 3_600_000_000_000;
        let (report, gauges) = run(&Options::long(1, 2_000, hours), || 0);
        assert_eq!(report.failure, None);
        assert!(report.virtual_ns > hours / 2, "{} ns", report.virtual_ns);
        assert!(gauges.len() > 8, "{gauges:?}");
    }
}
