//! Section `[log]`: storage of the log, compaction, snapshots, flight recorder.

use clap::{Args, ValueEnum};

use super::values::size;

/// Settings of `[log]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[log]")]
pub(crate) struct Log {
    /// Number of entries after which the log is compacted. 0: their number does not matter.
    ///
    /// The nodes of a cluster compact one after another.
    #[arg(long, default_value_t = 100_000, value_name = "ENTRIES")]
    pub(crate) compact_after_entries: u64,
    /// Growth of the log after which it is compacted. 0: its size does not matter.
    #[arg(long, alias = "compact-after-mib", default_value = "256MiB", value_name = "SIZE", value_parser = size(..))]
    pub(crate) compact_after_size: u64,
    /// Greatest number of entries that a compaction keeps for followers that are away for a moment.
    #[arg(long, default_value_t = 10_000, value_name = "ENTRIES")]
    pub(crate) compact_keep_entries: u64,
    /// Greatest size of the log that a compaction keeps for followers that are away for a moment.
    #[arg(long, alias = "compact-keep-mib", default_value = "64MiB", value_name = "SIZE", value_parser = size(..))]
    pub(crate) compact_keep_size: u64,
    /// Greatest size of the log that a compaction keeps for a follower that responds and is further behind, or is
    /// receiving a snapshot.
    ///
    /// Such a follower needs the entries that follow the snapshot; without them it would need another snapshot.
    #[arg(long, alias = "compact-hold-mib", default_value = "512MiB", value_name = "SIZE", value_parser = size(..))]
    pub(crate) compact_hold_size: u64,
    /// Greatest rate per second at which this node sends snapshots, which leaves bandwidth for other messages. 0: no
    /// limit.
    #[arg(long, alias = "snapshot-mib-per-second", default_value = "0", value_name = "SIZE", value_parser = size(..))]
    pub(crate) snapshot_rate: u64,
    /// Storage of the log: `wal`, which has its own files, or `rocksdb`, which is slower (docs/measurements.md, "Log
    /// storages").
    ///
    /// The data of one is not converted to the other: a node does not start with the other's data. Default: the storage
    /// that the data directory has; `wal` in an empty one.
    #[arg(long, visible_alias = "storage", value_name = "STORAGE")]
    pub(crate) log_storage: Option<LogKind>,
    /// Greatest size of the flight recorder's files, in `flight` below the data directory. 0: nothing is recorded.
    ///
    /// It records the inputs of the consensus protocol, without keys and values. `cargo run -p raft-replay --
    /// data/node-0/flight` prints how role, term, log and commit index of the node changed, and why.
    #[arg(long, alias = "flight-recorder-mib", default_value = "0", value_name = "SIZE", value_parser = size(..))]
    pub(crate) flight_recorder_size: u64,
}

/// Storage of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogKind {
    /// Files of its own: `consensus-storage-wal`.
    Wal,
    /// A RocksDB: `consensus-storage-rocksdb`.
    Rocksdb,
}
