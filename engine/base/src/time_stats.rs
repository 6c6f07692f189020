//! How long something takes and how often it happens, as bcachefs's time stats tell it: count, least,
//! most, mean, standard deviation, quantiles, and what mean and rate have been lately.
//!
//! An event costs some thirty instructions, no allocation and no locked instruction: each
//! [`TimeStats`] has one writer, a core, and is read from any thread while it goes on. A reader beside the
//! writer may see the fields apart by the event just being recorded. Clocks are left to the caller.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::{self, Histogram};

/// Events that "lately" reaches back to: the weight of each halves after 0.7 times as many.
const RECENT_EVENTS: u64 = 64;

/// Statistics of one kind of event.
#[derive(Debug, Default)]
pub struct TimeStats {
    histogram: Histogram,
    count: AtomicU64,
    /// One more than the least, 0 before the first event.
    least_ns: AtomicU64,
    most_ns: AtomicU64,
    /// Sum of squares, in nanoseconds squared. This and the next three are bits of `f64`.
    squares: AtomicU64,
    recent_ns: AtomicU64,
    recent_interval_ns: AtomicU64,
    /// When the last event ended.
    last_ns: AtomicU64,
}

/// What one or several [`TimeStats`] held at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TimeSnapshot {
    /// Events by duration.
    pub histogram: histogram::Snapshot,
    /// Events.
    pub count: u64,
    /// Shortest and longest, in nanoseconds; 0 without events.
    pub min_ns: u64,
    /// Longest, in nanoseconds.
    pub max_ns: u64,
    /// Mean duration of late, in nanoseconds: the newest events weigh most.
    pub recent_mean_ns: f64,
    /// Events a second of late. Falls while none comes.
    pub recent_rate: f64,
    squares: f64,
}

impl TimeStats {
    /// Counts an event that ended at `now_ns` after `ns` nanoseconds. For the one writer.
    #[inline]
    pub fn record(&self, now_ns: u64, ns: u64) {
        self.histogram.record(ns);
        let count = get(&self.count) + 1;
        set(&self.count, count);
        if ns < get(&self.least_ns).wrapping_sub(1) {
            set(&self.least_ns, ns.saturating_add(1));
        }
        if ns > get(&self.most_ns) {
            set(&self.most_ns, ns);
        }
        let value = ns as f64;
        set_f64(&self.squares, get_f64(&self.squares) + value * value);
        // The first events weigh the same, so that few of them give their plain mean.
        let weight = 1.0 / count.min(RECENT_EVENTS) as f64;
        approach(&self.recent_ns, value, weight);
        let last_ns = get(&self.last_ns);
        set(&self.last_ns, now_ns);
        if count > 1 {
            let weight = 1.0 / (count - 1).min(RECENT_EVENTS) as f64;
            approach(&self.recent_interval_ns, now_ns.saturating_sub(last_ns) as f64, weight);
        }
    }

    /// What it holds, seen at `now_ns`.
    #[must_use]
    pub fn snapshot(&self, now_ns: u64) -> TimeSnapshot {
        let mut histogram = histogram::Snapshot::default();
        histogram.add(&self.histogram);
        let count = get(&self.count);
        let since_ns = now_ns.saturating_sub(get(&self.last_ns)) as f64;
        let interval_ns = get_f64(&self.recent_interval_ns).max(since_ns);
        TimeSnapshot {
            histogram,
            count,
            min_ns: get(&self.least_ns).saturating_sub(1),
            max_ns: get(&self.most_ns),
            recent_mean_ns: get_f64(&self.recent_ns),
            // One event has no interval.
            recent_rate: if count > 1 && interval_ns > 0.0 { 1e9 / interval_ns } else { 0.0 },
            squares: get_f64(&self.squares),
        }
    }
}

/// Moves an average towards `value`.
#[inline]
fn approach(average: &AtomicU64, value: f64, weight: f64) {
    let old = get_f64(average);
    set_f64(average, old + (value - old) * weight);
}

#[inline]
fn get(cell: &AtomicU64) -> u64 {
    cell.load(Ordering::Relaxed)
}

#[inline]
fn set(cell: &AtomicU64, value: u64) {
    cell.store(value, Ordering::Relaxed);
}

#[inline]
fn get_f64(cell: &AtomicU64) -> f64 {
    f64::from_bits(get(cell))
}

#[inline]
fn set_f64(cell: &AtomicU64, value: f64) {
    set(cell, value.to_bits());
}

impl TimeSnapshot {
    /// Adds what another one holds.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.min_ns = if self.count == 0 { other.min_ns } else { self.min_ns.min(other.min_ns) };
        self.max_ns = self.max_ns.max(other.max_ns);
        let rate = self.recent_rate + other.recent_rate;
        // By rate; by number where none has come twice.
        let share = match rate > 0.0 {
            true => other.recent_rate / rate,
            false => other.count as f64 / (self.count + other.count) as f64,
        };
        self.recent_mean_ns += (other.recent_mean_ns - self.recent_mean_ns) * share;
        self.recent_rate = rate;
        self.count += other.count;
        self.squares += other.squares;
        self.histogram.merge(&other.histogram);
    }

    /// Sum of all durations in nanoseconds.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.histogram.sum_ns()
    }

    /// Mean duration in nanoseconds; 0 without events.
    #[must_use]
    pub fn mean_ns(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.total_ns() as f64 / self.count as f64 }
    }

    /// Standard deviation of the durations in nanoseconds; 0 without events.
    #[must_use]
    pub fn stddev_ns(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let mean = self.mean_ns();
        (self.squares / self.count as f64 - mean * mean).max(0.0).sqrt()
    }

    /// The duration in nanoseconds that a share `q` (0 to 1) of the events did not exceed, roughly:
    /// off by a third at most up to 33.5 s.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> u64 {
        let rough = self.histogram.quantile_ns(q);
        // Fields may be apart by one event; then the later bound wins.
        rough.max(self.min_ns).min(self.max_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Against plain sums over all values.
    #[test]
    fn moments_are_those_of_all_values() {
        let mut random = Random::new(11);
        let stats = TimeStats::default();
        let mut values = Vec::new();
        for event in 0..5000_u64 {
            let bits = random.below(34);
            let ns = random.below(1 << bits);
            stats.record(event * 1000, ns);
            values.push(ns as f64);
        }
        let got = stats.snapshot(5_000_000);
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let close = |a: f64, b: f64| (a - b).abs() <= b.abs() * 1e-6;
        assert!(close(got.mean_ns(), mean) && close(got.stddev_ns(), variance.sqrt()), "{got:?}");
        values.sort_by(f64::total_cmp);
        assert_eq!((got.min_ns as f64, got.max_ns as f64), (values[0], values[4999]));
        for q in [0.5, 0.9, 0.99] {
            let exact = values[(q * 5000.0) as usize];
            let rough = got.quantile_ns(q) as f64;
            assert!(rough > exact / 1.5 && rough < exact * 1.5, "{q}: {rough}, exactly {exact}");
        }
    }

    #[test]
    fn lately_follows_what_changes() {
        let stats = TimeStats::default();
        assert_eq!(stats.snapshot(9), TimeSnapshot::default());
        for event in 1..=1000 {
            stats.record(event * 1_000_000, 500);
        }
        let before = stats.snapshot(1_000_000_000);
        assert!((before.recent_rate - 1000.0).abs() < 1.0, "{before:?}");
        assert!((before.recent_mean_ns - 500.0).abs() < 1.0);
        for event in 1..=1000 {
            stats.record(1_000_000_000 + event * 10_000_000, 90_000);
        }
        let after = stats.snapshot(11_000_000_000);
        assert!((after.recent_rate - 100.0).abs() < 1.0, "{after:?}");
        assert!((after.recent_mean_ns - 90_000.0).abs() < 100.0);
        assert!((after.mean_ns() - 45_250.0).abs() < 1.0);
        let idle = stats.snapshot(111_000_000_000);
        assert!(idle.recent_rate < 0.011, "a hundred seconds without an event: {idle:?}");
    }

    #[test]
    fn the_first_zero_is_the_least() {
        let stats = TimeStats::default();
        stats.record(5, 0);
        assert_eq!(stats.snapshot(6).recent_rate, 0.0, "once is no rate");
        stats.record(6, 7);
        let got = stats.snapshot(6);
        assert_eq!((got.min_ns, got.max_ns, got.count), (0, 7, 2));
    }

    #[test]
    fn merged_is_as_if_recorded_together() {
        let (a, b, both) = (TimeStats::default(), TimeStats::default(), TimeStats::default());
        for event in 1..=100_u64 {
            let one = if event % 3 == 0 { &a } else { &b };
            one.record(event * 1000, event * 37);
            both.record(event * 1000, event * 37);
        }
        let mut merged = TimeSnapshot::default();
        merged.merge(&TimeSnapshot::default());
        merged.merge(&a.snapshot(100_000));
        merged.merge(&b.snapshot(100_000));
        let whole = both.snapshot(100_000);
        assert_eq!(merged.histogram, whole.histogram);
        assert_eq!((merged.min_ns, merged.max_ns), (37, 3700));
        assert!((merged.stddev_ns() - whole.stddev_ns()).abs() < 1e-3);
        let (mut once, one) = (TimeSnapshot::default(), TimeStats::default());
        one.record(5, 70);
        once.merge(&one.snapshot(9));
        assert_eq!((once.count, once.recent_mean_ns), (1, 70.0));
        assert!((merged.recent_rate / whole.recent_rate - 1.0).abs() < 0.2);
    }
}
