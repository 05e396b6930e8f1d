//! The recorder of the process: Prometheus' histograms and counters, some of them under a second name.

use std::{collections::HashMap, sync::Arc};

use consensus_core::NodeId;
use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder, SharedString,
    Unit,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::{
    Level,
    names::{COUNTED, EtcdName, Kind},
};
use crate::etcd::member_id;

/// Installs the recorder. A second one has no effect.
pub(super) fn install(level: Level) -> PrometheusHandle {
    let recorder = Named { prometheus: builder().build_recorder(), level, etcd: etcd_names() };
    recorder.describe();
    let handle = recorder.prometheus.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("another recorder of metrics was installed before: there are no metrics");
    }
    for metric in COUNTED.iter().filter(|metric| metric.labels.is_empty()) {
        match metric.kind {
            Kind::Counter => metrics::counter!(metric.name).absolute(0),
            Kind::Gauge => metrics::gauge!(metric.name).set(0.0),
            Kind::Histogram => {}
        }
    }
    // etcd's name has no label for the reason.
    metrics::counter!("raft_proposals_refused_total", "reason" => "overloaded").absolute(0);
    handle
}

/// A builder with the buckets of all histograms.
pub(super) fn builder() -> PrometheusBuilder {
    let suffix = |suffix: &str| Matcher::Suffix(suffix.to_owned());
    let full = |name: &str| Matcher::Full(name.to_owned());
    let buckets = [
        (suffix("_seconds"), doubling(0.0001, 17)),
        (suffix("_duration_seconds"), doubling(0.001, 14)),
        (full("grpc_server_handling_seconds"), HANDLING_SECONDS.to_vec()),
        (full("etcd_network_peer_round_trip_time_seconds"), doubling(0.0001, 16)),
        (suffix("_entries"), doubling(1.0, 13)),
        (suffix("_commands"), doubling(1.0, 13)),
    ];
    buckets.into_iter().fold(PrometheusBuilder::new(), |builder, (matcher, buckets)| {
        builder.set_buckets_for_metric(matcher, &buckets).expect("there is a bucket")
    })
}

fn doubling(first: f64, buckets: i32) -> Vec<f64> {
    (0..buckets).map(|power| first * 2f64.powi(power)).collect()
}

fn etcd_names() -> HashMap<&'static str, EtcdName> {
    COUNTED.iter().filter_map(|metric| Some((metric.name, metric.etcd?))).collect()
}

/// Registers metrics with Prometheus' recorder, those that etcd has as well under both names.
struct Named {
    prometheus: PrometheusRecorder,
    level: Level,
    etcd: HashMap<&'static str, EtcdName>,
}

impl Named {
    fn describe(&self) {
        for metric in COUNTED {
            for name in [Some(metric.name), metric.etcd.map(|etcd| etcd.name)].into_iter().flatten() {
                let (name, help) = (KeyName::from_const_str(name), SharedString::const_str(metric.help));
                match metric.kind {
                    Kind::Counter => self.prometheus.describe_counter(name, None, help),
                    Kind::Gauge => self.prometheus.describe_gauge(name, None, help),
                    Kind::Histogram => self.prometheus.describe_histogram(name, None, help),
                }
            }
        }
    }

    /// etcd's name for a metric, with etcd's labels.
    fn etcd_key(&self, key: &Key) -> Option<Key> {
        let etcd = self.etcd.get(key.name())?;
        let Some(label) = etcd.peer else { return Some(Key::from_static_name(etcd.name)) };
        let peer = key.labels().find(|label| label.key() == "peer")?;
        let member = format!("{:x}", member_id(NodeId(peer.value().parse().ok()?)));
        Some(Key::from_parts(etcd.name, vec![Label::new(label, member)]))
    }

    /// Whether a histogram is recorded for every command, which costs time.
    fn is_costly(key: &Key) -> bool {
        matches!(key.name(), "raft_proposal_seconds" | "raft_apply_entries")
    }
}

impl Recorder for Named {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.prometheus.describe_counter(key, unit, help);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.prometheus.describe_gauge(key, unit, help);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, help: SharedString) {
        self.prometheus.describe_histogram(key, unit, help);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let own = self.prometheus.register_counter(key, metadata);
        match self.etcd_key(key) {
            Some(key) => {
                Counter::from_arc(Arc::new(Both(own, self.prometheus.register_counter(&key, metadata))))
            }
            None => own,
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.prometheus.register_gauge(key, metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        if self.level != Level::Extensive && Self::is_costly(key) {
            return Histogram::noop();
        }
        let own = self.prometheus.register_histogram(key, metadata);
        match self.etcd_key(key) {
            Some(key) => {
                Histogram::from_arc(Arc::new(Both(own, self.prometheus.register_histogram(&key, metadata))))
            }
            None => own,
        }
    }
}

/// A metric under two names.
struct Both<T>(T, T);

impl CounterFn for Both<Counter> {
    fn increment(&self, value: u64) {
        self.0.increment(value);
        self.1.increment(value);
    }

    fn absolute(&self, value: u64) {
        self.0.absolute(value);
        self.1.absolute(value);
    }
}

impl HistogramFn for Both<Histogram> {
    fn record(&self, value: f64) {
        self.0.record(value);
        self.1.record(value);
    }
}

/// Buckets that Prometheus' libraries have by default.
const HANDLING_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    fn named(level: Level) -> Named {
        Named { prometheus: builder().build_recorder(), level, etcd: etcd_names() }
    }

    #[test]
    fn metric_that_etcd_has_is_counted_under_both_names() {
        let recorder = named(Level::Basic);
        recorder.describe();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("raft_leader_changes_total").increment(3);
            metrics::counter!("raft_proposals_refused_total", "reason" => "no_room").increment(1);
            metrics::counter!("raft_proposals_refused_total", "reason" => "stalled").increment(1);
            metrics::counter!("thrift_peer_sent_bytes_total", "peer" => "2").increment(7);
            metrics::histogram!("raft_log_write_seconds").record(0.003);
        });
        let text = recorder.prometheus.handle().render();
        for line in [
            "# HELP etcd_server_leader_changes_seen_total Changes of the leader that this node observed.",
            "# TYPE etcd_server_leader_changes_seen_total counter",
            "etcd_server_leader_changes_seen_total 3",
            "raft_leader_changes_total 3",
            "etcd_server_proposals_failed_total 2",
            r#"raft_proposals_refused_total{reason="stalled"} 1"#,
            r#"etcd_network_peer_sent_bytes_total{To="6b76000000000002"} 7"#,
            r#"etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 0"#,
            r#"etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} 1"#,
            "etcd_disk_wal_fsync_duration_seconds_count 1",
            "raft_log_write_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn durations_of_stages_are_recorded_at_level_extensive_only() {
        for (level, is_recorded) in [(Level::Basic, false), (Level::Extensive, true)] {
            let recorder = named(level);
            metrics::with_local_recorder(&recorder, || {
                metrics::histogram!("raft_proposal_seconds", "stage" => "queue").record(0.1);
            });
            let text = recorder.prometheus.handle().render();
            assert_eq!(text.contains("raft_proposal_seconds"), is_recorded, "{text}");
        }
    }
}
