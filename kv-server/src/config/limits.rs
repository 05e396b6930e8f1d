//! Section `[limits]`: how much of the machine's resources a node uses.

use std::time::Duration;

use clap::{Args, ValueEnum};
use kv_state_machine::{AutoCompaction, OPERATIONS_MAX};

use super::values::{DAY, MILLISECOND, Retention, duration, number, retention, size};
use crate::descriptors::CLIENTS_MIN;

/// Settings of `[limits]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[limits]")]
pub(crate) struct Limits {
    /// Greatest number of sessions. When there are more, the session that was idle longest is removed.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = number(1_u64..))]
    pub(crate) sessions_max: u64,
    /// Greatest number of connections of clients. A client beyond is told so at its first call.
    ///
    /// The limit of open files (`ulimit -n`) may allow fewer: the node's files and the connections of other nodes come
    /// first. The node logs the number when it starts.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = number(CLIENTS_MIN..))]
    pub(crate) clients_max: usize,
    /// Memory for responses that are not yet sent, on all connections together. Calls whose responses may not fit wait.
    #[arg(long, default_value = "256MiB", value_name = "SIZE", value_parser = size((1 << 20)..))]
    pub(crate) responses_size: u64,
    /// Memory for responses that are not yet sent, on one connection.
    #[arg(long, default_value = "16MiB", value_name = "SIZE", value_parser = size((1 << 20)..))]
    pub(crate) connection_responses_size: u64,
    /// Greatest number of operations in either branch of a transaction, of its compares, and of its read ranges.
    #[arg(long, default_value_t = 128, value_name = "COUNT", value_parser = number(1..=OPERATIONS_MAX))]
    pub(crate) transaction_operations_max: usize,
    /// Greatest size of a request of etcd's API.
    #[arg(long, default_value = "1536KiB", value_name = "SIZE", value_parser = size(1024..=32 << 20))]
    pub(crate) request_size: u64,
    /// Greatest number of calls and streams at once on one connection of etcd's API.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = number(1_u32..))]
    pub(crate) streams_max: u32,
    /// Time without a change after which a watch of etcd's API that asks for it is told of progress.
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = duration(MILLISECOND..=DAY))]
    pub(crate) watch_progress_interval: Duration,
    /// Size of the node's store from which on the cluster takes no more data: the alarm NOSPACE is raised, and puts and grants of
    /// leases are refused until it is disarmed. Deletions and compactions are executed.
    ///
    /// 0: no quota. The size is that of the store's files, and of the data in memory that is not written to them yet.
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = size(..))]
    pub(crate) quota_size: u64,
    /// Unit of `auto_compaction_retention`: the time for which history is kept, or the number of revisions that are kept.
    #[arg(long, default_value = "periodic")]
    pub(crate) auto_compaction_mode: CompactionMode,
    /// History that is kept when the leader compacts by itself: with `periodic` a time, for example `30m`, or a number of hours;
    /// with `revision` a number of revisions.
    ///
    /// With `periodic` it compacts once an hour, or as often as the time passes if it is shorter than an hour; with `revision`
    /// every five minutes. 0: it does not compact by itself.
    #[arg(long, default_value = "0", value_name = "RETENTION", value_parser = retention)]
    pub(crate) auto_compaction_retention: Retention,
    /// Memory for parts of the store's files that were read. Reads of keys beyond it come from the disk.
    ///
    /// Default: an eighth of the machine's memory, or of the control group's (cgroup) if that has a limit; at least 64MiB.
    #[arg(long, value_name = "SIZE", value_parser = size((8 << 20)..))]
    pub(crate) store_cache_size: Option<u64>,
    /// Free space on the disk that is kept in reserve. With less the node refuses writes, and a leader transfers its
    /// leadership if it can; the node takes writes again when there is more.
    ///
    /// 0: no reserve, and a full disk stops the node. The default is room for three write buffers of 64MiB, of the log
    /// or of the state, and some more.
    #[arg(long, alias = "disk-reserve-mib", default_value = "256MiB", value_name = "SIZE", value_parser = size(..))]
    pub(crate) disk_reserve: u64,
}

/// Unit of the retention of automatic compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompactionMode {
    /// Time.
    Periodic,
    /// Revisions.
    Revision,
}

impl Limits {
    /// How much history is kept; `None`: all. The error says what the retention must be.
    pub(crate) fn auto_compaction(&self) -> Result<Option<AutoCompaction>, String> {
        let hours = |hours: u64| Duration::from_secs(hours.saturating_mul(3600));
        Ok(match (self.auto_compaction_mode, self.auto_compaction_retention) {
            (_, Retention::Number(0) | Retention::Time(Duration::ZERO)) => None,
            (CompactionMode::Periodic, Retention::Number(number)) => {
                Some(AutoCompaction::Periodic(hours(number)))
            }
            (CompactionMode::Periodic, Retention::Time(time)) => Some(AutoCompaction::Periodic(time)),
            (CompactionMode::Revision, Retention::Number(number)) => Some(AutoCompaction::Revisions(number)),
            (CompactionMode::Revision, Retention::Time(_)) => {
                return Err(
                    "it must be a number of revisions, as auto_compaction_mode is revision".to_owned()
                );
            }
        })
    }
}
