//! Counters of operations: written by one core, read by any thread.

use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of operations that are counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(usize)]
pub enum OperationKind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Dataset Management.
    Deallocate,
    /// Write Zeroes.
    WriteZeroes,
    /// Copy.
    Copy,
    /// Admin and Fabrics commands.
    Admin,
}

impl OperationKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Deallocate,
        Self::WriteZeroes,
        Self::Copy,
        Self::Admin,
    ];

    /// The name used in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Deallocate => "deallocate",
            Self::WriteZeroes => "write_zeroes",
            Self::Copy => "copy",
            Self::Admin => "admin",
        }
    }
}

/// Buckets of the latency histogram: bucket `i` counts latencies below `2^i` microseconds (and not
/// below `2^(i-1)`), the last one all that are longer.
pub const LATENCY_BUCKETS: usize = 26;

#[derive(Default, Debug)]
struct KindCounters {
    operations: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    latency_ns: AtomicU64,
    buckets: [AtomicU64; LATENCY_BUCKETS],
}

/// Counters with one writer: additions are a plain load and store.
#[derive(Default, Debug)]
pub struct OperationStats {
    kinds: [KindCounters; OperationKind::ALL.len()],
}

/// The counters of one kind of operation.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OperationSnapshot {
    /// Operations completed, failed ones too.
    pub operations: u64,
    /// Bytes of the operations that succeeded.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Sum of latencies in nanoseconds, from the arrival of the command to its answer being queued.
    pub latency_ns: u64,
    /// Histogram of latencies; see [`LATENCY_BUCKETS`].
    pub latency_buckets: [u64; LATENCY_BUCKETS],
}

/// The counters of all kinds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StatsSnapshot {
    /// In the order of [`OperationKind::ALL`].
    pub kinds: [OperationSnapshot; OperationKind::ALL.len()],
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

impl OperationStats {
    /// Counts one operation. Only the core that owns these counters may call this.
    pub fn record(&self, kind: OperationKind, bytes: u64, failed: bool, latency_ns: u64) {
        let counters = &self.kinds[kind as usize];
        add(&counters.operations, 1);
        if failed {
            add(&counters.errors, 1);
        } else {
            add(&counters.bytes, bytes);
        }
        add(&counters.latency_ns, latency_ns);
        let bucket = (u64::BITS - (latency_ns / 1000).leading_zeros()) as usize;
        add(&counters.buckets[bucket.min(LATENCY_BUCKETS - 1)], 1);
    }

    /// The present values. Any thread may call this.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let mut snapshot = StatsSnapshot::default();
        snapshot.add(self);
        snapshot
    }
}

impl StatsSnapshot {
    /// Adds the present values of `stats`.
    pub fn add(&mut self, stats: &OperationStats) {
        for (sum, counters) in self.kinds.iter_mut().zip(&stats.kinds) {
            let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            sum.operations += load(&counters.operations);
            sum.bytes += load(&counters.bytes);
            sum.errors += load(&counters.errors);
            sum.latency_ns += load(&counters.latency_ns);
            for (bucket, counter) in sum.latency_buckets.iter_mut().zip(&counters.buckets) {
                *bucket += load(counter);
            }
        }
    }

    /// Adds another snapshot.
    pub fn merge(&mut self, other: &Self) {
        for (sum, part) in self.kinds.iter_mut().zip(&other.kinds) {
            sum.operations += part.operations;
            sum.bytes += part.bytes;
            sum.errors += part.errors;
            sum.latency_ns += part.latency_ns;
            for (bucket, add) in sum.latency_buckets.iter_mut().zip(&part.latency_buckets) {
                *bucket += add;
            }
        }
    }

    /// The counters of one kind.
    #[must_use]
    pub fn of(&self, kind: OperationKind) -> &OperationSnapshot {
        &self.kinds[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_buckets() {
        let stats = OperationStats::default();
        stats.record(OperationKind::Read, 4096, false, 999);
        stats.record(OperationKind::Read, 4096, true, 1_000);
        stats.record(OperationKind::Read, 4096, false, u64::MAX / 2);
        let read = *stats.snapshot().of(OperationKind::Read);
        assert_eq!((read.operations, read.bytes, read.errors), (3, 8192, 1));
        assert_eq!(read.latency_buckets[0], 1);
        assert_eq!(read.latency_buckets[1], 1);
        assert_eq!(read.latency_buckets[LATENCY_BUCKETS - 1], 1);
    }
}
