//! Latencies in buckets that grow by an eighth: quantiles within 12.5 %, in fixed memory.

use std::time::Duration;

const STEPS_LOG2: u32 = 3;
const BUCKETS: usize = 64 << STEPS_LOG2;

/// How often each latency was seen.
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(nanoseconds)] += 1;
        self.total += 1;
    }

    /// Takes in what another one has seen.
    pub(crate) fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
    }

    /// The lower bound, in nanoseconds, of the bucket with the given part (per mille) of all.
    pub(crate) fn quantile_ns(&self, per_mille: u64) -> u64 {
        let wanted = (self.total * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return lower_bound(bucket);
            }
        }
        0
    }
}

fn bucket_of(value: u64) -> usize {
    let steps = 1_u64 << STEPS_LOG2;
    if value < steps {
        return value as usize;
    }
    let exponent = value.ilog2() - STEPS_LOG2;
    let step = (value >> exponent) - steps;
    ((u64::from(exponent) + 1) * steps + step) as usize
}

fn lower_bound(bucket: usize) -> u64 {
    let steps = 1_u64 << STEPS_LOG2;
    let bucket = bucket as u64;
    if bucket < steps {
        return bucket;
    }
    let exponent = bucket / steps - 1;
    (steps + bucket % steps) << exponent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_within_an_eighth() {
        for value in (0..200_000).chain([u64::MAX / 3, u64::MAX]) {
            let low = lower_bound(bucket_of(value));
            assert!(low <= value && value - low <= value / 8, "{value} {low}");
        }
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ns(500), 0);
        for nanoseconds in 1..=1000 {
            histogram.record(Duration::from_nanos(nanoseconds));
        }
        assert!((440..=500).contains(&histogram.quantile_ns(500)));
        assert!((870..=990).contains(&histogram.quantile_ns(990)));
    }
}
