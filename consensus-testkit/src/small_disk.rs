//! A disk that can be filled to the last byte.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// A small disk in memory, mounted for a test, which takes root; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many MiB at `dir`, an empty directory.
    ///
    /// # Errors
    /// Nothing can be mounted here; says why. A test prints that and ends.
    pub fn mount(dir: &Path, mib: u64) -> Result<Self, String> {
        let size = format!("size={mib}m");
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir).output();
        match output {
            Ok(output) if output.status.success() => Ok(Self(dir.to_owned())),
            Ok(output) => {
                Err(format!("no disk can be mounted: {}", String::from_utf8_lossy(&output.stderr).trim()))
            }
            Err(error) => Err(format!("no disk can be mounted: {error}")),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes all the room that is left, to the last byte.
    ///
    /// # Errors
    /// Not even that can be begun.
    pub fn fill(&self) -> io::Result<()> {
        let mut ballast = fs::File::create(self.0.join(BALLAST))?;
        while io::Write::write_all(&mut ballast, &[0; 4096]).is_ok() {}
        Ok(())
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// It was not taken.
    pub fn make_room(&self) -> io::Result<()> {
        fs::remove_file(self.0.join(BALLAST))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that was started meanwhile may hold a file of it for a moment.
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

const BALLAST: &str = "ballast";
