//! Building the metric families of one scrape and writing them as Prometheus text.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramValue, LabelPair, Metric, MetricFamily,
    MetricType,
};
use prometheus::{Encoder, TextEncoder};

use engine_base::histogram::Snapshot;

/// Labels of one sample.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

/// All families of one scrape.
#[derive(Default)]
pub(crate) struct Families {
    families: Vec<MetricFamily>,
}

impl Families {
    /// Adds a sample of something that only grows. By convention the name ends in `_total`.
    pub(crate) fn counter(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_counter(counter);
        self.add(name, help, MetricType::COUNTER, metric);
    }

    /// Adds a sample of something that goes up and down.
    pub(crate) fn gauge(&mut self, name: &str, help: &str, labels: Labels<'_>, value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_gauge(gauge);
        self.add(name, help, MetricType::GAUGE, metric);
    }

    /// Adds a histogram of seconds.
    pub(crate) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        labels: Labels<'_>,
        snapshot: &Snapshot,
    ) {
        let (count, sum) = (snapshot.count(), snapshot.sum_seconds());
        self.cumulative(name, help, labels, snapshot.cumulative(), count, sum);
    }

    /// Adds a histogram of seconds from (upper bound, operations up to it) and the count and sum of
    /// all operations.
    pub(crate) fn cumulative(
        &mut self,
        name: &str,
        help: &str,
        labels: Labels<'_>,
        buckets: impl Iterator<Item = (f64, u64)>,
        count: u64,
        sum_seconds: f64,
    ) {
        let buckets = buckets
            .map(|(bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(count);
                bucket
            })
            .collect();
        let mut value = HistogramValue::default();
        value.set_bucket(buckets);
        value.set_sample_count(count);
        value.set_sample_sum(sum_seconds);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(value);
        self.add(name, help, MetricType::HISTOGRAM, metric);
    }

    fn add(&mut self, name: &str, help: &str, kind: MetricType, metric: Metric) {
        if let Some(family) = self.families.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(vec![metric]);
        self.families.push(family);
    }

    /// The text format, version 0.0.4.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::with_capacity(64 * 1024);
        TextEncoder::new().encode(&self.families, &mut text)?;
        Ok(text)
    }
}

fn pairs(labels: Labels<'_>) -> Vec<LabelPair> {
    labels
        .iter()
        .map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_base::histogram::Histogram;

    #[test]
    fn samples_of_a_family_stand_together() {
        let mut families = Families::default();
        families.gauge("a_bytes", "A.", &[("core", "0")], 1.0);
        families.counter("b_total", "B.", &[("path", "a\"b\\c\n")], 2.0);
        families.gauge("a_bytes", "A.", &[("core", "1")], 3.0);
        let text = String::from_utf8(families.encode().unwrap()).unwrap();
        assert_eq!(
            text,
            "# HELP a_bytes A.\n# TYPE a_bytes gauge\na_bytes{core=\"0\"} 1\na_bytes{core=\"1\"} 3\n\
             # HELP b_total B.\n# TYPE b_total counter\nb_total{path=\"a\\\"b\\\\c\\n\"} 2\n"
        );
    }

    #[test]
    fn histograms_end_in_infinity() {
        let histogram = Histogram::default();
        histogram.record(900);
        histogram.record(u64::MAX / 4);
        let mut snapshot = Snapshot::default();
        snapshot.add(&histogram);
        let mut families = Families::default();
        families.histogram("x_seconds", "X.", &[("op", "read")], &snapshot);
        let text = String::from_utf8(families.encode().unwrap()).unwrap();
        assert!(text.contains("x_seconds_bucket{op=\"read\",le=\"0.000001\"} 1\n"), "{text}");
        assert!(text.contains("x_seconds_bucket{op=\"read\",le=\"+Inf\"} 2\n"), "{text}");
        assert!(text.contains("x_seconds_count{op=\"read\"} 2\n"), "{text}");
    }
}
