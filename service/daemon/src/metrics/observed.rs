//! What the cores count of time, read from memory: for gRPC and metrics.
//!
//! Nobody is asked, so this tells of a core that hangs as well. A shard that is not open yet has
//! nothing to tell.

use std::sync::Arc;

use api_grpc::{CoreTime, Observe, Scope, Timing, WaitingNow};
use engine_shard::ReactorStats;
use engine_shard::clock::Clock;
use engine_store::times::{Timed, Times};

use super::device::OPERATIONS;
use crate::serve::core::Plan;

/// Time statistics of shards, devices and cores.
pub(crate) struct Observed {
    /// What the cores were made from.
    pub(crate) plan: Arc<Plan>,
    /// By core.
    pub(crate) reactors: Vec<Arc<ReactorStats>>,
    /// The clock of the cores.
    pub(crate) clock: Clock,
}

impl Observed {
    /// The shards that are open, by number.
    pub(crate) fn shards(&self) -> impl Iterator<Item = (u16, &Times)> {
        (0..).zip(&self.plan.times).filter_map(|(shard, times)| Some((shard, &**times.get()?)))
    }
}

impl Observe for Observed {
    fn timings(&self) -> Vec<Timing> {
        let now_ns = self.clock.now_ns();
        let mut all = Vec::new();
        for (shard, times) in self.shards() {
            all.extend(Timed::ALL.iter().map(|(kind, name)| Timing {
                name: (*name).to_owned(),
                scope: Scope::Shard(shard),
                times: times.snapshot(*kind, now_ns),
            }));
        }
        for (core, members) in (0..).zip(&self.plan.device_stats) {
            for (member, stats) in (0..).zip(members) {
                let kinds = OPERATIONS.iter().zip(&stats.times);
                all.extend(kinds.map(|(operation, times)| Timing {
                    name: format!("device_{operation}"),
                    scope: Scope::Device { core, member },
                    times: times.snapshot(now_ns),
                }));
            }
        }
        all
    }

    fn waiting(&self) -> Vec<WaitingNow> {
        let now_ns = self.clock.now_ns();
        let of_shard = |(shard, times): (u16, &Times)| {
            let waiting = times.waiting().map(move |(kind, since_ns)| WaitingNow {
                name: kind.name(),
                scope: Scope::Shard(shard),
                waited_ns: now_ns.saturating_sub(since_ns),
            });
            waiting.collect::<Vec<_>>()
        };
        self.shards().flat_map(of_shard).collect()
    }

    fn cores(&self) -> Vec<CoreTime> {
        let core = |stats: &Arc<ReactorStats>| {
            let stats = stats.snapshot();
            CoreTime {
                busy_ns: stats.busy_ns,
                polling_ns: stats.polling_ns,
                sleeping_ns: stats.sleeping_ns,
                tasks: stats.tasks_live,
            }
        };
        self.reactors.iter().map(core).collect()
    }
}
