//! Small files in the data directory that record something about the node.

use std::{fs, io, path::Path};

use consensus_core::StorageError;
use consensus_storage_dir::{replace_with_checksum, sync_parent_dirs};

/// Writes the file `name` durably, in a directory that is created if it does not exist. `doing` says what is done, for the error, for
/// example `recording the mode in`.
pub(crate) fn record(dir: &Path, name: &str, text: &str, doing: &str) -> Result<(), StorageError> {
    let path = dir.join(name);
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        sync_parent_dirs(dir)?;
        replace_with_checksum(&path, text)
    };
    write().map_err(|source| StorageError::Io { context: format!("{doing} {}", path.display()), source })
}
