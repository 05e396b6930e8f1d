//! Where files go.

use std::path::PathBuf;

/// A new directory. Not in memory, as far as can be helped: disks are measured, too. `BENCH_DIR` says where.
pub(crate) fn directory() -> Result<tempfile::TempDir, String> {
    let place = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::Builder::new().prefix("bench-").tempdir_in(place).map_err(|error| error.to_string())
}
