//! Section `[limits]`: how much of the machine's resources a node uses.

use clap::Args;

use super::values::{number, size};

/// Settings of `[limits]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[limits]")]
pub(crate) struct Limits {
    /// Greatest number of sessions. When there are more, the session that was idle longest is removed.
    #[arg(long, default_value_t = 10_000, value_name = "COUNT", value_parser = number(1_u64..))]
    pub(crate) sessions_max: u64,
    /// Free space on the disk that is kept in reserve. With less the node refuses writes, and a leader transfers its
    /// leadership if it can; the node takes writes again when there is more.
    ///
    /// 0: no reserve, and a full disk stops the node. The default is room for three write buffers of 64MiB, of the log
    /// or of the state, and some more.
    #[arg(long, alias = "disk-reserve-mib", default_value = "256MiB", value_name = "SIZE", value_parser = size(..))]
    pub(crate) disk_reserve: u64,
}
