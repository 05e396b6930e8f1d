//! Section `[audit]`: a record of every call.

use std::path::PathBuf;

use clap::Args;

use super::values::{number, size};

/// Settings of `[audit]`.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "[audit]")]
pub(crate) struct Audit {
    /// File of the audit log: one line of JSON for each call, with user, keys and result, without values (docs/logging.md). Default:
    /// no audit log.
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Size of the file from which on it is renamed to FILE.1, and a new one is made.
    #[arg(long, default_value = "100MiB", value_name = "SIZE", value_parser = size(4096..))]
    pub(crate) audit_log_size: u64,
    /// Number of renamed files that are kept: FILE.1 is the newest one.
    #[arg(long, default_value_t = 10, value_name = "COUNT", value_parser = number(1_u32..=1000))]
    pub(crate) audit_log_files: u32,
    /// Whether calls that only read are in the audit log. Reads that are refused or fail are in it always.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) audit_log_reads: bool,
}
