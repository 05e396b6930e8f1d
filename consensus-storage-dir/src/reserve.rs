//! Room on the disk that is not given away.

use std::path::{Path, PathBuf};

/// Refuses what would leave less room than this on the disk of a directory.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// At least `bytes` are to stay free on the disk of the directory `path`; 0: it is never asked.
    #[must_use]
    pub fn new(path: &Path, bytes: u64) -> Self {
        Self { path: path.to_owned(), bytes }
    }

    /// Whether there is room for `more` bytes.
    ///
    /// # Errors
    /// There is not; says how much there is, where, and how much it should be. A disk that cannot be asked has room: its
    /// own errors tell.
    pub fn check(&self, more: u64) -> Result<(), String> {
        if self.bytes == 0 {
            return Ok(());
        }
        let Ok(disk) = rustix::fs::statvfs(&self.path) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= self.bytes.saturating_add(more) {
            return Ok(());
        }
        let (path, mib) = (self.path.display(), |bytes: u64| bytes >> 20);
        Err(format!(
            "the disk of {path} has {} MiB free, of which {} MiB are a reserve; make room",
            mib(free),
            mib(self.bytes)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_not_given_away() {
        let dir = tempfile::tempdir().unwrap();
        Reserve::new(dir.path(), 1).check(1).unwrap();
        Reserve::new(dir.path(), 0).check(u64::MAX).unwrap();
        for (reserve, more) in [(1 << 60, 0), (1, u64::MAX)] {
            let why = Reserve::new(dir.path(), reserve).check(more).unwrap_err();
            assert!(why.contains(dir.path().to_str().unwrap()) && why.contains("MiB free"), "{why}");
        }
    }
}
