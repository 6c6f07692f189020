//! Whatever was asked is answered within a bound of virtual time, once no disk fails any more. One that
//! is not is a failure, with a report of who waits on what.

use super::{Process, Simulation};
use crate::disk::FaultRates;

/// Longest time of an operation beside what slow devices explain: a full journal, a full pool, a
/// barrier, and the work of many clients before it.
const BOUND_NS: u64 = 120_000_000_000;

/// Device operations of the longest kind, one after the other, that one operation may meet.
const SLOW_OPERATIONS_MAX: u64 = 40;

/// Requests told of in a report.
const TOLD_MAX: usize = 12;

impl Simulation<'_> {
    /// Ends the faults, and lets everything end that was begun.
    pub(super) fn let_all_end(&mut self) -> Result<(), String> {
        for disk in &self.disks {
            disk.set_faults(FaultRates::default());
            disk.come_back();
        }
        self.world.borrow_mut().mark("all_ended");
        self.drive(u64::MAX, || self.world.borrow().clients_running == 0).map(drop)
    }

    /// The bound of this run in virtual nanoseconds.
    fn bound_ns(&self) -> u64 {
        BOUND_NS + SLOW_OPERATIONS_MAX * self.options.latency.longest_ns()
    }

    /// Looks whether anything has waited for too long.
    pub(super) fn check_liveness(&self) -> Result<(), String> {
        let now_ns = self.executor.now_ns();
        if self.disks.iter().any(|disk| disk.is_faulty()) {
            self.faulty_ns.set(now_ns);
            return Ok(());
        }
        let requests = self.process.as_ref().and_then(|process| process.mesh.oldest_since_ns());
        let operations = self.world.borrow().operations_since.values().copied().min();
        let Some(since_ns) = requests.into_iter().chain(operations).min() else { return Ok(()) };
        let waits_ns = now_ns.saturating_sub(since_ns.max(self.faulty_ns.get()));
        if waits_ns <= self.bound_ns() {
            return Ok(());
        }
        let (waits_s, bound_s) = (waits_ns / 1_000_000_000, self.bound_ns() / 1_000_000_000);
        Err(self.stuck(&format!("an operation waits {waits_s} virtual s, allowed are {bound_s}")))
    }

    /// Keeps the longest time of an answer of a process that ends.
    pub(super) fn note_slowest(&mut self, process: Option<&Process>) {
        let slowest_ns = process.map_or(0, |process| process.mesh.slowest_ns());
        self.slowest_ns = self.slowest_ns.max(slowest_ns);
    }

    /// Who waits on what.
    pub(super) fn stuck(&self, how: &str) -> String {
        let now_ns = self.executor.now_ns();
        let ms_since = |since_ns: u64| now_ns.saturating_sub(since_ns) / 1_000_000;
        let mut lines = vec![format!("hang: {how}")];
        for (client, since_ns) in &self.world.borrow().operations_since {
            lines
                .push(format!("client {client} is at an operation for {} ms", ms_since(*since_ns)));
        }
        if let Some(process) = &self.process {
            lines.extend(process.mesh.waiting(TOLD_MAX));
            for shard in process.mesh.shards() {
                let engine = shard.engine();
                let told = |name: &str| name.contains("journal") || name.contains("space");
                let counters: Vec<String> = engine
                    .counters()
                    .into_iter()
                    .filter(|(name, value)| told(name) && *value > 0)
                    .map(|(name, value)| format!("{name} {value}"))
                    .collect();
                lines.push(format!("shard {}: {}", engine.shard(), counters.join(", ")));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if let (Some(since_ns), count) = disk.in_flight() {
                let ms = ms_since(since_ns);
                lines.push(format!("disk {index} has {count} operations, one for {ms} ms"));
            }
        }
        for (name, core, count, ns) in self.executor.waiting_tasks() {
            let ms = ns / 1_000_000;
            lines.push(format!("{count} tasks {name:?} on core {core} wait, one for {ms} ms"));
        }
        lines.join("\n    ")
    }
}
