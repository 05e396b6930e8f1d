//! Settings of the program, which the file cannot have.

use std::path::PathBuf;

use clap::Args;

use super::values::log_filter;
use crate::logging::Format;

/// Flags and environment variables that are not keys of the file.
#[derive(Clone, Debug, Args)]
pub(crate) struct Program {
    /// Port for clients. A node of a cluster has its port from the file, and this must be the same.
    /// Default: 9090 for a standalone server.
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// TOML file with settings. Default: no file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Messages to log: a level, or directives of tracing's `EnvFilter`, for example `info,consensus_engine_raft=debug`.
    /// `kvctl log-level` changes it without a restart (docs/logging.md).
    #[arg(long, default_value = "info", value_name = "FILTER", value_parser = log_filter)]
    pub(crate) log: String,
    /// Format of the log: `text`; `json`, one object in each line with the keys of etcd's logger; or `journald`, entries of the
    /// systemd journal with fields. `text` and `json` go to standard error.
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    pub(crate) log_format: Format,
}
