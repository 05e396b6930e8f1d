//! A disk that a test can fill completely.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A small disk in memory, mounted for one test. Mounting requires root. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a disk of `mib` MiB at `dir`, an empty directory.
    ///
    /// # Errors
    /// The disk cannot be mounted here, for this reason. A test prints the reason and ends.
    ///
    /// # Panics
    /// The disk cannot be mounted, and the variable `TEST_DISKS` is set: it says that disks can be mounted here.
    pub fn mount(dir: &Path, mib: u64) -> Result<Self, String> {
        Self::try_mount(dir, mib)
            .inspect_err(|why| assert!(std::env::var_os("TEST_DISKS").is_none(), "{}: {why}", dir.display()))
    }

    fn try_mount(dir: &Path, mib: u64) -> Result<Self, String> {
        let size = format!("size={mib}m");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir).output();
        match output {
            Ok(output) if output.status.success() => Ok(Self(dir.to_owned())),
            Ok(output) => {
                Err(format!("cannot mount a disk: {}", String::from_utf8_lossy(&output.stderr).trim()))
            }
            Err(error) => Err(format!("cannot mount a disk: {error}")),
        }
    }

    /// Path of the disk.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Fills the disk completely.
    ///
    /// # Errors
    /// The file that fills the disk cannot be created.
    pub fn fill(&self) -> io::Result<()> {
        let mut ballast = fs::File::create(self.0.join(BALLAST))?;
        while io::Write::write_all(&mut ballast, &[0; 4096]).is_ok() {}
        Ok(())
    }

    /// Frees the room that [`fill`](Self::fill) took.
    ///
    /// # Errors
    /// The disk was not filled.
    pub fn make_room(&self) -> io::Result<()> {
        fs::remove_file(self.0.join(BALLAST))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, because a child process may still hold a file of the disk open for a moment.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

const BALLAST: &str = "ballast";
