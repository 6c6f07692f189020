//! What the server shows of the daemon around it, and how long its own methods take.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use engine_base::time_stats::{TimeSnapshot, TimeStats};
use tokio::time::Instant;

use crate::log_filter::LogFilter;

/// Where something was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// On a shard.
    Shard(u16),
    /// At one core's queue to a member.
    Device {
        /// Index of the core.
        core: u16,
        /// Index of the member.
        member: u8,
    },
    /// In the gRPC server.
    Server,
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shard(shard) => write!(f, "shard {shard}"),
            Self::Device { core, member } => write!(f, "core {core} member {member}"),
            Self::Server => f.write_str("server"),
        }
    }
}

/// Time statistics of one thing at one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// What.
    pub name: String,
    /// Where.
    pub scope: Scope,
    /// How long and how often.
    pub times: TimeSnapshot,
}

/// Something that goes on or waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingNow {
    /// What.
    pub name: &'static str,
    /// Where.
    pub scope: Scope,
    /// For how long already, in nanoseconds.
    pub waited_ns: u64,
}

/// What a core does with its time, in nanoseconds since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreTime {
    /// Turns that found work.
    pub busy_ns: u64,
    /// Turns that found none.
    pub polling_ns: u64,
    /// Asleep.
    pub sleeping_ns: u64,
    /// Tasks alive now.
    pub tasks: u64,
}

/// The daemon as the server sees it. Answers at once, from memory, whatever state the cores are in.
pub trait Observe: Send + Sync + 'static {
    /// Time statistics, all kinds at all places.
    fn timings(&self) -> Vec<Timing>;
    /// What goes on or waits now, in no order.
    fn waiting(&self) -> Vec<WaitingNow>;
    /// The cores, by index.
    fn cores(&self) -> Vec<CoreTime>;
}

/// What `GetTimeStats` and others tell of.
#[derive(Clone, Default)]
pub(crate) struct Shown {
    /// The daemon around the server, if it is shown.
    pub(crate) daemon: Option<Arc<dyn Observe>>,
    /// What the program logs, if that can be changed.
    pub(crate) log: Option<LogFilter>,
    /// The server's own methods.
    pub(crate) methods: MethodTimes,
}

/// How long calls take, by method. Bounded: methods are named by the code alone.
#[derive(Clone, Debug)]
pub struct MethodTimes {
    started: Instant,
    methods: Arc<Mutex<BTreeMap<&'static str, Box<TimeStats>>>>,
}

impl Default for MethodTimes {
    fn default() -> Self {
        Self { started: Instant::now(), methods: Arc::default() }
    }
}

impl MethodTimes {
    /// A call begins; it ends when what is returned is dropped.
    pub(crate) fn begin(&self, method: &'static str) -> Timer {
        Timer { times: self.clone(), method, begun: Instant::now() }
    }

    /// What each method took, by name.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(&'static str, TimeSnapshot)> {
        let now_ns = self.now_ns();
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.iter().map(|(method, times)| (*method, times.snapshot(now_ns))).collect()
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.started)
    }
}

/// Times one call.
#[derive(Debug)]
pub(crate) struct Timer {
    times: MethodTimes,
    method: &'static str,
    begun: Instant,
}

impl Drop for Timer {
    fn drop(&mut self) {
        let now_ns = self.times.now_ns();
        // One thread at a time writes, as `TimeStats` wants it: control threads can afford the lock.
        let mut methods = self.times.methods.lock().unwrap_or_else(PoisonError::into_inner);
        methods.entry(self.method).or_default().record(now_ns, nanoseconds(self.begun));
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_when_they_end() {
        let times = MethodTimes::default();
        let call = times.begin("GetStats");
        assert!(times.snapshot().is_empty());
        drop(call);
        drop(times.begin("GetStats"));
        drop(times.begin("ListWaits"));
        let counts: Vec<_> =
            times.snapshot().into_iter().map(|(name, times)| (name, times.count)).collect();
        assert_eq!(counts, [("GetStats", 2), ("ListWaits", 1)]);
    }
}
