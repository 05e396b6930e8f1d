//! Metrics that describe a node at the moment at which they are asked for.

use std::path::Path;

use consensus_core::{EngineStatus, Health, MemberKind, Role};
use kv_state_machine::{Alarm, AlarmKind, StoreStatistics};
use metrics::{counter, gauge, with_local_recorder};

use super::{names::Kind, recorder::builder};
use crate::{
    etcd::{ETCD_VERSION, member_id},
    routing::RoutingManager,
};

/// A metric of the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeMetric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

const fn gauge_of(name: &'static str, help: &'static str) -> NodeMetric {
    NodeMetric { name, kind: Kind::Gauge, help }
}

const fn counter_of(name: &'static str, help: &'static str) -> NodeMetric {
    NodeMetric { name, kind: Kind::Counter, help }
}

/// All metrics of a node.
#[rustfmt::skip]
pub(super) const NODE: &[NodeMetric] = &[
    gauge_of("kv_server_info", "1; the label tells the version of the server."),
    gauge_of("etcd_server_id", "1; the label tells the member id."),
    gauge_of("etcd_server_version", "1; the label tells the version of etcd whose API is served."),
    gauge_of("etcd_cluster_version", "1; the label tells the version of etcd whose API the cluster serves."),
    gauge_of("etcd_server_has_leader", "Whether the node knows a leader."),
    gauge_of("etcd_server_is_leader", "Whether the node is leader."),
    gauge_of("etcd_server_is_learner", "Whether the node is a learner."),
    gauge_of("etcd_server_proposals_committed_total", "Commit index."),
    gauge_of("etcd_server_proposals_applied_total", "Last applied index."),
    gauge_of("etcd_server_proposals_pending", "Entries of the log that are not committed."),
    gauge_of("raft_term", "Current term."),
    gauge_of("raft_log_last_index", "Last index of the log."),
    gauge_of("raft_log_first_index", "First index of the log: earlier entries were purged."),
    gauge_of("raft_healthy", "Whether the engine runs."),
    gauge_of("raft_disk_low", "Whether the disk is too full for more log."),
    gauge_of("raft_storage_stalled_seconds", "How long a log write has not returned; 0 if none takes longer than the limit."),
    gauge_of("raft_apply_stalled_seconds", "How long a call of the state machine has not returned; 0 if none takes longer than the limit."),
    gauge_of("raft_members", "Members in the configuration in force, by kind."),
    gauge_of("raft_peer_active", "As leader: whether a member responded within the last election timeout."),
    gauge_of("raft_peer_lag_entries", "As leader: entries that a member lacks on its disk."),
    gauge_of("raft_peer_snapshot_bytes", "As leader: bytes that a member has received of a snapshot that is being sent; 0 without one."),
    gauge_of("etcd_mvcc_db_total_size_in_bytes", "Bytes of the store on disk."),
    gauge_of("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of the store on disk; nothing is defragmented."),
    gauge_of("etcd_server_quota_backend_bytes", "Quota of the store; without one, the size of the store and the free space of its disk."),
    gauge_of("etcd_debugging_mvcc_keys_total", "Keys of the store."),
    gauge_of("etcd_debugging_mvcc_current_revision", "Revision of the store."),
    gauge_of("etcd_debugging_mvcc_compact_revision", "Oldest revision that can be read; 0 if nothing was compacted."),
    gauge_of("etcd_debugging_mvcc_watch_stream_total", "Sessions of watches."),
    gauge_of("etcd_debugging_mvcc_watcher_total", "Watches."),
    gauge_of("etcd_debugging_mvcc_slow_watcher_total", "Watches that read changes from disk to catch up."),
    gauge_of("etcd_debugging_server_alarms", "1 for each alarm that is raised, by member and type."),
    gauge_of("kv_leases", "Leases."),
    gauge_of("kv_range_deletions", "Deletions of large ranges that are being carried out."),
    gauge_of("kv_rocksdb_table_bytes", "Bytes of tables on disk."),
    gauge_of("kv_rocksdb_memtable_bytes", "Bytes of memtables."),
    gauge_of("kv_rocksdb_cache_bytes", "Bytes of the block cache."),
    gauge_of("kv_rocksdb_reader_bytes", "Bytes of indexes and filters outside the block cache."),
    gauge_of("kv_rocksdb_pending_compaction_bytes", "Estimated bytes that compaction has to rewrite."),
    gauge_of("kv_rocksdb_running_compactions", "Compactions that run."),
    gauge_of("kv_rocksdb_running_flushes", "Flushes of memtables that run."),
    gauge_of("kv_rocksdb_level0_tables", "Tables of level 0."),
    gauge_of("kv_rocksdb_write_stopped", "Whether RocksDB has stopped writes."),
    counter_of("kv_rocksdb_background_errors_total", "Errors of flushes and compactions."),
    gauge_of("kv_disk_free_bytes", "Free space of the disk of the data directory."),
    gauge_of("os_fd_used", "File descriptors that are open."),
    gauge_of("os_fd_limit", "Limit of open file descriptors."),
];

/// The metrics of a node as text. A recorder of their own holds them, so that a member that was removed leaves nothing behind.
pub(super) fn text(router: &RoutingManager, data_dir: &Path) -> String {
    let recorder = builder().build_recorder();
    with_local_recorder(&recorder, || {
        for NodeMetric { name, kind, help } in NODE {
            match kind {
                Kind::Counter => metrics::describe_counter!(*name, *help),
                Kind::Gauge | Kind::Histogram => metrics::describe_gauge!(*name, *help),
            }
        }
        let status = router.database().status().borrow().clone();
        set_identity(router);
        set_engine(router, &status);
        set_store(router, data_dir);
        set_process();
    });
    recorder.handle().render()
}

fn set(name: &'static str, value: impl IntoValue) {
    gauge!(name).set(value.into_value());
}

fn set_identity(router: &RoutingManager) {
    gauge!("kv_server_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let id = format!("{:x}", member_id(router.node()));
    gauge!("etcd_server_id", "server_id" => id).set(1.0);
    gauge!("etcd_server_version", "server_version" => ETCD_VERSION).set(1.0);
    gauge!("etcd_cluster_version", "cluster_version" => ETCD_VERSION).set(1.0);
}

fn set_engine(router: &RoutingManager, status: &EngineStatus) {
    // A standalone server is its own leader.
    let is_leader = matches!(status.role, Role::Leader | Role::Standalone);
    set("etcd_server_has_leader", is_leader || status.leader.is_some());
    set("etcd_server_is_leader", is_leader);
    let own = status.membership.get(router.node());
    set("etcd_server_is_learner", own.is_some_and(|own| own.kind == MemberKind::Learner));
    set("etcd_server_proposals_committed_total", status.commit.0);
    set("etcd_server_proposals_applied_total", status.applied.0);
    set("etcd_server_proposals_pending", status.last_log.index.0.saturating_sub(status.commit.0));
    set("raft_term", status.term.0);
    set("raft_log_last_index", status.last_log.index.0);
    set("raft_log_first_index", status.first_index.0);
    set("raft_healthy", status.health == Health::Running);
    set("raft_disk_low", status.no_room.is_some());
    let stalled =
        |since: Option<std::time::Instant>| since.map_or(0.0, |since| since.elapsed().as_secs_f64());
    set("raft_storage_stalled_seconds", stalled(status.storage_stalled_since));
    set("raft_apply_stalled_seconds", stalled(status.apply_stalled_since));
    for (kind, name) in
        [(MemberKind::Voter, "voter"), (MemberKind::Learner, "learner"), (MemberKind::Witness, "witness")]
    {
        let members = status.membership.members().values().filter(|member| member.kind == kind).count();
        gauge!("raft_members", "kind" => name).set(members as f64);
    }
    for (peer, progress) in &status.peers {
        let label = || peer.to_string();
        let lag = status.last_log.index.0.saturating_sub(progress.matched.0);
        gauge!("raft_peer_active", "peer" => label()).set(progress.active.into_value());
        gauge!("raft_peer_lag_entries", "peer" => label()).set(lag.into_value());
        let snapshot = progress.snapshot_bytes.unwrap_or(0);
        gauge!("raft_peer_snapshot_bytes", "peer" => label()).set(snapshot.into_value());
    }
}

fn set_store(router: &RoutingManager, data_dir: &Path) {
    let database = router.database();
    // A scrape goes on without what the disk does not tell.
    let StoreStatistics { revision, compacted, keys, leases, watches, rocksdb, .. } =
        match database.statistics() {
            Ok(statistics) => {
                set("etcd_debugging_mvcc_watch_stream_total", statistics.watch_sessions);
                set("etcd_debugging_mvcc_slow_watcher_total", statistics.watches_behind);
                set("kv_range_deletions", statistics.range_deletions);
                statistics
            }
            Err(error) => {
                tracing::warn!(%error, "the store has no metrics");
                return;
            }
        };
    let (size, free) = (rocksdb.table_bytes + rocksdb.memtable_bytes, free_bytes(data_dir));
    set("etcd_mvcc_db_total_size_in_bytes", size);
    set("etcd_mvcc_db_total_size_in_use_in_bytes", size);
    let quota = match database.limits().quota_bytes {
        0 => size.saturating_add(free),
        quota => quota,
    };
    set("etcd_server_quota_backend_bytes", quota);
    set("kv_disk_free_bytes", free);
    set("etcd_debugging_mvcc_keys_total", keys);
    set("etcd_debugging_mvcc_current_revision", revision);
    set("etcd_debugging_mvcc_compact_revision", compacted);
    set("etcd_debugging_mvcc_watcher_total", watches);
    set("kv_leases", leases);
    set("kv_rocksdb_table_bytes", rocksdb.table_bytes);
    set("kv_rocksdb_memtable_bytes", rocksdb.memtable_bytes);
    set("kv_rocksdb_cache_bytes", rocksdb.cache_bytes);
    set("kv_rocksdb_reader_bytes", rocksdb.reader_bytes);
    set("kv_rocksdb_pending_compaction_bytes", rocksdb.pending_compaction_bytes);
    set("kv_rocksdb_running_compactions", rocksdb.running_compactions);
    set("kv_rocksdb_running_flushes", rocksdb.running_flushes);
    set("kv_rocksdb_level0_tables", rocksdb.level0_tables);
    set("kv_rocksdb_write_stopped", rocksdb.is_write_stopped);
    counter!("kv_rocksdb_background_errors_total").absolute(rocksdb.background_errors);
    for Alarm { kind, node } in database.alarms() {
        let name = match kind {
            AlarmKind::NoSpace => "NOSPACE",
            AlarmKind::Corrupt => "CORRUPT",
        };
        let server = format!("{:x}", node.map_or(0, member_id));
        gauge!("etcd_debugging_server_alarms", "server_id" => server, "alarm_type" => name).set(1.0);
    }
}

/// Free space of the disk of a directory; 0 if it is not known.
fn free_bytes(data_dir: &Path) -> u64 {
    rustix::fs::statvfs(data_dir).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn set_process() {
    let collector = metrics_process::Collector::default();
    collector.describe();
    collector.collect();
    let metrics = metrics_process::collector::collect();
    if let Some(used) = metrics.open_fds {
        set("os_fd_used", used);
    }
    if let Some(limit) = metrics.max_fds {
        set("os_fd_limit", limit);
    }
}

/// A value of a metric. Numbers above 2^53 lose their last digits.
trait IntoValue {
    fn into_value(self) -> f64;
}

impl IntoValue for f64 {
    fn into_value(self) -> f64 {
        self
    }
}

impl IntoValue for u64 {
    fn into_value(self) -> f64 {
        self as f64
    }
}

impl IntoValue for bool {
    fn into_value(self) -> f64 {
        f64::from(u8::from(self))
    }
}
