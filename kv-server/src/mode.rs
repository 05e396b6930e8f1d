//! The mode of a data directory, written down at the first start and checked at each start.
//!
//! Data written with consensus is not served without it, nor the other way round: the two would diverge. The content of the
//! directory does not tell the mode: a node of a cluster whose log was removed looks like a standalone server.

use std::path::Path;

use consensus_core::StorageError;
use consensus_storage_dir::read_with_checksum;

use crate::{config::Mode, record::record};

/// Why a data directory is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModeError {
    /// The mode cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The directory is in use in the other mode.
    #[error("{path} holds the data of {found}, and this is the start of {wanted}; {advice}")]
    Other { path: String, found: &'static str, wanted: &'static str, advice: &'static str },
    /// There is a state, no log and no mode.
    #[error(
        "{path} holds data ({data}), but its file MODE is missing, so it is not known whether the data is that of a \
         standalone server or of a node of a cluster; restore the file or the directory, or choose another --data-dir"
    )]
    Missing { path: String, data: &'static str },
    /// The file has no mode.
    #[error("{path}: `{found}` is no mode of this version; restore the file or choose another --data-dir")]
    Unknown { path: String, found: String },
}

/// Checks that the data directory is used in this mode; records the mode in a new one. `log` and `state` are the names of
/// the directories in it.
pub(crate) fn claim(dir: &Path, wanted: Mode, log: &str, state: &'static str) -> Result<(), ModeError> {
    if verify(dir, wanted, log, state)? {
        return Ok(());
    }
    Ok(record(dir, MODE, &format!("mode = {}\n", word(wanted)), "recording the mode in")?)
}

/// Checks that the data directory can be used in this mode, and returns whether that is recorded. Changes nothing.
pub(crate) fn verify(dir: &Path, wanted: Mode, log: &str, state: &'static str) -> Result<bool, ModeError> {
    let recorded = recorded(dir)?;
    // Only a node of a cluster has a log.
    let known = recorded.or_else(|| dir.join(log).exists().then_some(Mode::Replicated));
    match known {
        Some(known) if known != wanted => Err(other(dir, known, wanted)),
        None if dir.join(state).exists() => {
            Err(ModeError::Missing { path: dir.display().to_string(), data: state })
        }
        _ => Ok(recorded.is_some()),
    }
}

/// Checks that the data directory is one of a node of a cluster. Changes nothing.
pub(crate) fn require_replicated(dir: &Path) -> Result<(), ModeError> {
    match recorded(dir)? {
        Some(Mode::Replicated) | None => Ok(()),
        Some(found) => Err(other(dir, found, Mode::Replicated)),
    }
}

/// The recorded mode; `None` if none is recorded.
fn recorded(dir: &Path) -> Result<Option<Mode>, ModeError> {
    let path = dir.join(MODE);
    let Some(text) = read_with_checksum(&path)? else { return Ok(None) };
    let found = text.trim().strip_prefix("mode = ").unwrap_or(&text);
    match [Mode::Standalone, Mode::Replicated].into_iter().find(|mode| word(*mode) == found) {
        Some(mode) => Ok(Some(mode)),
        None => Err(ModeError::Unknown { path: path.display().to_string(), found: found.to_owned() }),
    }
}

fn other(dir: &Path, found: Mode, wanted: Mode) -> ModeError {
    let words = |mode| match mode {
        Mode::Standalone => "a standalone server",
        Mode::Replicated => "a node of a cluster",
    };
    let advice = match found {
        Mode::Standalone => "start it without a list of nodes, or choose another --data-dir",
        Mode::Replicated => "start it with the cluster's --config, or choose another --data-dir",
    };
    ModeError::Other { path: dir.display().to_string(), found: words(found), wanted: words(wanted), advice }
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Standalone => "standalone",
        Mode::Replicated => "replicated",
    }
}

/// File in the data directory.
const MODE: &str = "MODE";

#[cfg(test)]
mod tests {
    use std::fs;

    use consensus_storage_dir::replace_with_checksum;

    use super::*;

    #[test]
    fn new_directory_is_claimed_once_for_one_mode() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("new/data");
        claim(&data, Mode::Replicated, "log", "state").unwrap();
        claim(&data, Mode::Replicated, "log", "state").unwrap();
        let error = claim(&data, Mode::Standalone, "log", "state").unwrap_err().to_string();
        for words in ["a node of a cluster", "a standalone server", "--config", "--data-dir"] {
            assert!(error.contains(words), "{error}");
        }
        require_replicated(&data).unwrap();
    }

    #[test]
    fn directory_without_its_log_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), Mode::Replicated, "log", "state").unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        assert!(matches!(claim(dir.path(), Mode::Standalone, "log", "state"), Err(ModeError::Other { .. })));
    }

    #[test]
    fn directory_with_a_log_and_without_mode_is_that_of_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let error = claim(dir.path(), Mode::Standalone, "log", "state").unwrap_err();
        assert!(matches!(error, ModeError::Other { .. }), "{error}");
        assert!(!dir.path().join(MODE).exists());
        claim(dir.path(), Mode::Replicated, "log", "state").unwrap();
        assert!(dir.path().join(MODE).exists());
    }

    #[test]
    fn directory_with_a_state_and_without_mode_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        for mode in [Mode::Standalone, Mode::Replicated] {
            let error = claim(dir.path(), mode, "log", "state").unwrap_err();
            assert!(matches!(error, ModeError::Missing { data: "state", .. }), "{error}");
        }
        assert!(!dir.path().join(MODE).exists());
    }

    #[test]
    fn standalone_directory_is_no_directory_of_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        require_replicated(dir.path()).unwrap();
        claim(dir.path(), Mode::Standalone, "log", "state").unwrap();
        assert!(matches!(require_replicated(dir.path()), Err(ModeError::Other { .. })));
    }

    #[test]
    fn damaged_mode_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        claim(dir.path(), Mode::Standalone, "log", "state").unwrap();
        let path = dir.path().join(MODE);
        let text = fs::read_to_string(&path).unwrap().replace("standalone", "replicated");
        fs::write(&path, text).unwrap();
        let error = claim(dir.path(), Mode::Replicated, "log", "state").unwrap_err();
        assert!(matches!(error, ModeError::Storage(StorageError::Corrupt { .. })), "{error}");
        replace_with_checksum(&path, "mode = both\n").unwrap();
        assert!(matches!(
            claim(dir.path(), Mode::Replicated, "log", "state"),
            Err(ModeError::Unknown { .. })
        ));
    }
}
