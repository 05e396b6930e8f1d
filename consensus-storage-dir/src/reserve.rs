//! Disk space that must stay free.

use std::path::{Path, PathBuf};

/// Disk space that must stay free on the disk of a directory.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Creates a reserve of `bytes` on the disk of the directory `path`. 0: no reserve; the disk is never checked.
    #[must_use]
    pub fn new(path: &Path, bytes: u64) -> Self {
        Self { path: path.to_owned(), bytes }
    }

    /// Checks that `more` bytes can be written without using the reserve.
    ///
    /// # Errors
    /// They cannot. The text names the directory, the free space and the reserve. A disk whose free space cannot be read
    /// passes the check: writes to it report their own errors.
    pub fn check(&self, more: u64) -> Result<(), String> {
        if self.bytes == 0 {
            return Ok(());
        }
        let Ok(disk) = rustix::fs::statvfs(&self.path) else { return Ok(()) };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free >= self.bytes.saturating_add(more) {
            return Ok(());
        }
        Err(format!(
            "the disk of {} has {} MiB free, of which {} MiB are reserved; delete other files or enlarge the disk",
            self.path.display(),
            free >> 20,
            self.bytes >> 20
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_beyond_the_reserve_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Reserve::new(dir.path(), 1).check(1).unwrap();
        Reserve::new(dir.path(), 0).check(u64::MAX).unwrap();
        for (reserve, more) in [(1 << 60, 0), (1, u64::MAX)] {
            let why = Reserve::new(dir.path(), reserve).check(more).unwrap_err();
            assert!(why.contains(dir.path().to_str().unwrap()) && why.contains("MiB free"), "{why}");
        }
    }
}
