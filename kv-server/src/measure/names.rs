//! Names and descriptions of metrics, and the names that etcd has for them.

/// Type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric that is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
    /// Labels; without labels the metric is there from the start.
    pub(super) labels: &'static [&'static str],
    /// etcd's name for it.
    pub(super) etcd: Option<EtcdName>,
}

/// Name of a metric in etcd.
#[derive(Clone, Copy, Debug)]
pub(super) struct EtcdName {
    pub(super) name: &'static str,
    /// etcd's label for the label `peer`, with a member id; `None`: without labels.
    pub(super) peer: Option<&'static str>,
}

const fn etcd(name: &'static str) -> Option<EtcdName> {
    Some(EtcdName { name, peer: None })
}

const fn etcd_peer(name: &'static str, label: &'static str) -> Option<EtcdName> {
    Some(EtcdName { name, peer: Some(label) })
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    etcd: Option<EtcdName>,
) -> Metric {
    Metric { name, kind, help, labels, etcd }
}

/// Metrics that are counted, by the libraries and by the server.
#[rustfmt::skip]
pub(super) const COUNTED: &[Metric] = &[
    metric("raft_proposals_total", Kind::Counter, &[], "Commands that this node appended as leader.", None),
    metric("raft_proposals_refused_total", Kind::Counter, &["reason"], "Commands that were refused and certainly not applied.", etcd("etcd_server_proposals_failed_total")),
    metric("raft_proposal_seconds", Kind::Histogram, &["stage"], "Duration of the stages of a command: queue, commit, apply. Level extensive.", None),
    metric("raft_log_write_seconds", Kind::Histogram, &[], "Duration of log writes, each with its sync.", etcd("etcd_disk_wal_fsync_duration_seconds")),
    metric("raft_log_write_entries", Kind::Histogram, &[], "Entries of each log write.", None),
    metric("raft_apply_entries", Kind::Histogram, &[], "Entries applied at once.", None),
    metric("raft_peer_round_trip_seconds", Kind::Histogram, &["peer"], "As leader: time between a heartbeat and its response.", etcd_peer("etcd_network_peer_round_trip_time_seconds", "To")),
    metric("raft_elections_total", Kind::Counter, &[], "Elections in which this node was a candidate.", None),
    metric("raft_leader_changes_total", Kind::Counter, &[], "Changes of the leader that this node observed.", etcd("etcd_server_leader_changes_seen_total")),
    metric("raft_snapshots_sent_total", Kind::Counter, &[], "Snapshots sent to other nodes.", None),
    metric("raft_snapshot_bytes_sent_total", Kind::Counter, &[], "Bytes of snapshots sent to other nodes.", None),
    metric("raft_snapshots_installed_total", Kind::Counter, &[], "Snapshots installed.", None),
    metric("kv_store_batch_seconds", Kind::Histogram, &[], "Duration of each write of a batch of commands to RocksDB.", etcd("etcd_disk_backend_commit_duration_seconds")),
    metric("kv_store_batch_commands", Kind::Histogram, &[], "Commands in each batch.", None),
    metric("kv_store_puts_total", Kind::Counter, &[], "Keys written.", etcd("etcd_mvcc_put_total")),
    metric("kv_store_deletes_total", Kind::Counter, &[], "Keys deleted one by one.", etcd("etcd_mvcc_delete_total")),
    metric("kv_store_range_deletions_total", Kind::Counter, &[], "Deletions of ranges with too many keys for one batch.", None),
    metric("kv_store_ranges_total", Kind::Counter, &[], "Ranges, and transactions that only read.", etcd("etcd_mvcc_range_total")),
    metric("kv_store_transactions_total", Kind::Counter, &[], "Transactions executed as commands.", etcd("etcd_mvcc_txn_total")),
    metric("kv_store_leases_granted_total", Kind::Counter, &[], "Leases granted.", etcd("etcd_debugging_lease_granted_total")),
    metric("kv_store_leases_ended_total", Kind::Counter, &[], "Leases revoked or expired.", etcd("etcd_debugging_lease_revoked_total")),
    metric("kv_store_leases_expired_total", Kind::Counter, &[], "Leases expired.", etcd("etcd_debugging_server_lease_expired_total")),
    metric("kv_store_leases_renewed_total", Kind::Counter, &[], "Leases renewed by this node as leader.", etcd("etcd_debugging_lease_renewed_total")),
    metric("thrift_peer_sent_bytes_total", Kind::Counter, &["peer"], "Bytes written to a node.", etcd_peer("etcd_network_peer_sent_bytes_total", "To")),
    metric("thrift_peer_received_bytes_total", Kind::Counter, &["peer"], "Bytes received from a node.", etcd_peer("etcd_network_peer_received_bytes_total", "From")),
    metric("thrift_peer_send_failures_total", Kind::Counter, &["peer"], "Messages that were not sent to a node.", etcd_peer("etcd_network_peer_sent_failures_total", "To")),
    metric("thrift_peer_connections_total", Kind::Counter, &["peer"], "Connections to a node that were established.", None),
    metric("kv_thrift_calls_total", Kind::Counter, &["method", "outcome"], "Calls over Thrift.", None),
    metric("kv_thrift_call_seconds", Kind::Histogram, &["method"], "Duration of calls over Thrift. Level extensive.", None),
    metric("kv_slow_requests_total", Kind::Counter, &[], "Requests that took longer than slow_request_limit.", None),
    metric("kv_audit_lines_total", Kind::Counter, &[], "Lines written to the audit log.", None),
    metric("kv_audit_dropped_total", Kind::Counter, &[], "Lines that the audit log lacks, because the file or the disk did not take them.", None),
    metric("kv_client_connections", Kind::Gauge, &[], "Open connections of clients.", None),
    metric("grpc_server_started_total", Kind::Counter, &["grpc_type", "grpc_service", "grpc_method"], "gRPC calls started.", None),
    metric("grpc_server_handled_total", Kind::Counter, &["grpc_type", "grpc_service", "grpc_method", "grpc_code"], "gRPC calls completed, by code.", None),
    metric("grpc_server_msg_received_total", Kind::Counter, &["grpc_type", "grpc_service", "grpc_method"], "Messages received, of calls with one request.", None),
    metric("grpc_server_msg_sent_total", Kind::Counter, &["grpc_type", "grpc_service", "grpc_method"], "Messages sent.", None),
    metric("grpc_server_handling_seconds", Kind::Histogram, &["grpc_type", "grpc_service", "grpc_method"], "Duration of gRPC calls. Level extensive.", None),
    metric("etcd_network_client_grpc_received_bytes_total", Kind::Counter, &[], "Bytes received from clients over HTTP.", None),
    metric("etcd_network_client_grpc_sent_bytes_total", Kind::Counter, &[], "Bytes sent to clients over HTTP.", None),
    metric("etcd_server_health_success", Kind::Counter, &[], "Checks of /health that succeeded.", None),
    metric("etcd_server_health_failures", Kind::Counter, &[], "Checks of /health that failed.", None),
];
