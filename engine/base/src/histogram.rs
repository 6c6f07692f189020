//! A histogram of latencies that costs the data path a few nanoseconds.
//!
//! Buckets are log-linear: two in each power of two, from 1 µs to 33.5 s, and one for what is longer,
//! so a quantile read from it is off by half at most. Every core has its own and is its only
//! writer ([`Histogram::record`]); a scrape adds them up without stopping anyone. A scrape that runs
//! beside a writer may see a count and a sum that differ by the operation just being recorded.

use std::sync::atomic::{AtomicU64, Ordering};

/// Powers of two above one microsecond that have buckets: 2^25 µs is 33.5 s, longer than every
/// time-out of a host.
const OCTAVES: usize = 25;
/// Bounded buckets: up to 1 µs, up to 2 µs, then two in each octave.
const BOUNDED: usize = 2 + 2 * (OCTAVES - 1);
/// All buckets, with the one above all bounds.
const BUCKETS: usize = BOUNDED + 1;

/// Latencies of one kind of operation.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// What one or several histograms held at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    counts: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum_ns: 0 }
    }
}

impl Histogram {
    /// Counts one operation of `ns` nanoseconds. For the one thread that owns this histogram: of two
    /// threads that record at the same time, one could go uncounted.
    #[inline]
    pub fn record(&self, ns: u64) {
        add_alone(&self.counts[bucket(ns)], 1);
        add_alone(&self.sum_ns, ns);
    }

    /// Counts one operation of `ns` nanoseconds, from any thread.
    pub fn record_shared(&self, ns: u64) {
        self.counts[bucket(ns)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// Adds without a locked instruction: right only for the sole writer of `cell`.
fn add_alone(cell: &AtomicU64, delta: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(delta), Ordering::Relaxed);
}

/// The bucket of a latency.
fn bucket(ns: u64) -> usize {
    // A bucket's upper bound belongs to it (Prometheus: `le`), hence the rounding up.
    let us = ns.div_ceil(1000);
    if us <= 1 {
        return 0;
    }
    // 2^octave < us <= 2^(octave + 1); the cut is at 1.5 * 2^octave.
    match (us - 1).ilog2() as usize {
        0 => 1,
        octave if octave >= OCTAVES => BOUNDED,
        octave => 2 * octave + usize::from(us > 3 << (octave - 1)),
    }
}

/// Upper bounds of the bounded buckets in nanoseconds; what is longer falls into one more bucket.
pub fn bounds_ns() -> impl Iterator<Item = u64> {
    (0..BOUNDED).filter_map(bound_us).map(|us| us * 1000)
}

/// Upper bound of a bucket in microseconds; `None` for the last.
fn bound_us(bucket: usize) -> Option<u64> {
    match bucket {
        0 => Some(1),
        1 => Some(2),
        BOUNDED.. => None,
        even if even % 2 == 0 => Some(3 << (even / 2 - 1)),
        odd => Some(2 << (odd / 2)),
    }
}

impl Snapshot {
    /// Adds what `histogram` holds.
    pub fn add(&mut self, histogram: &Histogram) {
        for (total, count) in self.counts.iter_mut().zip(&histogram.counts) {
            *total = total.wrapping_add(count.load(Ordering::Relaxed));
        }
        self.sum_ns = self.sum_ns.wrapping_add(histogram.sum_ns.load(Ordering::Relaxed));
    }

    /// Operations by bucket as [`Snapshot::counts`] gives them, with the sum of their latencies; `None`
    /// when these are not so many buckets.
    #[must_use]
    pub fn from_counts(counts: &[u64], sum_ns: u64) -> Option<Self> {
        Some(Self { counts: counts.try_into().ok()?, sum_ns })
    }

    /// Operations by bucket: as many as [`bounds_ns`] gives, and one for what is longer.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Adds what another snapshot holds.
    pub fn merge(&mut self, other: &Self) {
        for (total, count) in self.counts.iter_mut().zip(&other.counts) {
            *total = total.wrapping_add(*count);
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
    }

    /// The latency in nanoseconds that a share `q` (0 to 1) of the operations did not exceed, taken to
    /// lie evenly within its bucket; 0 when there were none. Past the last bound, that bound.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> u64 {
        let count = self.count();
        let wanted = (q.clamp(0.0, 1.0) * count as f64).max(1.0);
        let (mut below, mut lower_us) = (0_u64, 0);
        for (index, inside) in self.counts.iter().enumerate() {
            let Some(upper_us) = bound_us(index) else { break };
            if (below + inside) as f64 >= wanted && *inside > 0 {
                let within = (wanted - below as f64) / *inside as f64;
                return ((lower_us as f64 + within * (upper_us - lower_us) as f64) * 1e3) as u64;
            }
            (below, lower_us) = (below + inside, upper_us);
        }
        if count == 0 { 0 } else { lower_us * 1000 }
    }

    /// Sum of all latencies in nanoseconds.
    #[must_use]
    pub fn sum_ns(&self) -> u64 {
        self.sum_ns
    }

    /// Operations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Sum of all latencies in seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// (upper bound in seconds, operations up to it), for every bounded bucket.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut below = 0_u64;
        self.counts.iter().enumerate().filter_map(move |(index, count)| {
            below = below.wrapping_add(*count);
            bound_us(index).map(|bound| (bound as f64 / 1e6, below))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bucket by search, for comparison.
    fn slow_bucket(ns: u64) -> usize {
        (0..BOUNDED)
            .find(|index| bound_us(*index).is_some_and(|bound| ns <= bound * 1000))
            .unwrap_or(BOUNDED)
    }

    #[test]
    fn bounds_grow_by_half_at_most() {
        let bounds: Vec<u64> = (0..BOUNDED).filter_map(bound_us).collect();
        assert_eq!(&bounds[..8], &[1, 2, 3, 4, 6, 8, 12, 16]);
        assert_eq!(bounds.last(), Some(&(1 << 25)));
        assert!(bounds.windows(2).all(|pair| pair[0] < pair[1] && pair[1] <= 2 * pair[0]));
    }

    #[test]
    fn every_latency_falls_where_search_says() {
        for octave in 0..45 {
            for offset in [-1001, -1, 0, 1, 999, 1000, 1001] {
                for base in [1000_u64 << octave, 1500 << octave] {
                    let ns = base.saturating_add_signed(offset);
                    assert_eq!(bucket(ns), slow_bucket(ns), "{ns} ns");
                }
            }
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BOUNDED);
    }

    #[test]
    fn snapshots_add_up() {
        let (a, b) = (Histogram::default(), Histogram::default());
        a.record(500);
        a.record(1_000_000);
        b.record_shared(2_000_000_000_000);
        let mut whole = Snapshot::default();
        whole.add(&a);
        whole.add(&b);
        assert_eq!(whole.count(), 3);
        assert_eq!(whole.sum_ns, 2_000_001_000_500);
        let cumulative: Vec<_> = whole.cumulative().collect();
        assert_eq!(cumulative[0], (1e-6, 1));
        assert_eq!(cumulative.last().unwrap().1, 2, "the third is above all bounds");
        let at_1024_us = cumulative.iter().find(|(bound, _)| *bound == 1024e-6).unwrap();
        assert_eq!(at_1024_us.1, 2);
    }

    #[test]
    fn quantiles_lie_in_their_buckets() {
        assert_eq!(Snapshot::default().quantile_ns(0.5), 0);
        let histogram = Histogram::default();
        for us in 1..=1000 {
            histogram.record(us * 1000);
        }
        let mut whole = Snapshot::default();
        whole.add(&histogram);
        for (q, us) in [(0.5, 500), (0.9, 900), (0.99, 990), (0.0, 1), (1.0, 1000)] {
            let got = whole.quantile_ns(q) / 1000;
            assert!(got.abs_diff(us) <= us / 4, "{q}: {got} us instead of {us}");
        }
        histogram.record(u64::MAX / 2);
        let mut whole = Snapshot::default();
        whole.add(&histogram);
        assert_eq!(whole.quantile_ns(1.0), (1 << 25) * 1000);
        let mut twice = whole.clone();
        twice.merge(&whole);
        assert_eq!((twice.count(), twice.quantile_ns(0.3)), (2002, whole.quantile_ns(0.3)));
    }

    #[test]
    fn several_threads_may_record_shared() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|ns| histogram.record_shared(ns)));
            }
        });
        let mut whole = Snapshot::default();
        whole.add(&histogram);
        assert_eq!(whole.count(), 4000);
    }
}
