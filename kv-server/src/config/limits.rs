//! Section `[limits]`: how much of the machine's resources a node uses.

use clap::Args;
use kv_state_machine::OPERATIONS_MAX;

use super::values::{number, size};

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
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = number(1_usize..))]
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
    /// Size of the node's store from which on the cluster takes no more data: the alarm NOSPACE is raised, and puts and grants of
    /// leases are refused until it is disarmed. Deletions and compactions are executed.
    ///
    /// 0: no quota. What counts is the size of the store's files and of what is in memory before it is written to them.
    #[arg(long, default_value = "0", value_name = "SIZE", value_parser = size(..))]
    pub(crate) quota_size: u64,
    /// Free space on the disk that is kept in reserve. With less the node refuses writes, and a leader transfers its
    /// leadership if it can; the node takes writes again when there is more.
    ///
    /// 0: no reserve, and a full disk stops the node. The default is room for three write buffers of 64MiB, of the log
    /// or of the state, and some more.
    #[arg(long, alias = "disk-reserve-mib", default_value = "256MiB", value_name = "SIZE", value_parser = size(..))]
    pub(crate) disk_reserve: u64,
}
