//! Disks of servers: file systems of their own, which can stall and fill up.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::Cluster;

/// A mounted file system. Drop it before the servers that use it: a server that waits for a frozen disk cannot be ended.
pub struct Disk {
    dir: TempDir,
    is_frozen: bool,
}

impl Disk {
    /// A file system in a file, which can be frozen. `None`, with a message, where this process may not mount one.
    pub fn freezable() -> Option<Self> {
        let disk = Self::unmounted();
        let image = disk.dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
        let is_mounted = done(Command::new("mkfs.ext4").arg("-q").arg(&image))
            && done(mount().args(["-o", "loop"]).arg(&image).arg(disk.path()));
        disk.if_mounted(is_mounted, "root, loop devices, mkfs.ext4 and fsfreeze")
    }

    /// A file system of `mib` MiB in memory. `None`, with a message, where this process may not mount one.
    pub fn small(mib: u64) -> Option<Self> {
        let disk = Self::unmounted();
        let options = format!("size={mib}m");
        let mut mount = mount();
        let is_mounted = done(mount.args(["-t", "tmpfs", "-o", &options, "none"]).arg(disk.path()));
        disk.if_mounted(is_mounted, "root and tmpfs")
    }

    fn unmounted() -> Self {
        let disk = Self { dir: tempfile::tempdir().unwrap(), is_frozen: false };
        std::fs::create_dir(disk.path()).unwrap();
        disk
    }

    fn if_mounted(self, is_mounted: bool, needs: &str) -> Option<Self> {
        if !is_mounted {
            assert!(std::env::var_os("TEST_DISKS").is_none(), "this test needs {needs}");
            eprintln!("skipped: this test needs {needs}");
        }
        is_mounted.then_some(self)
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Makes node `id`, which does not run, keep its data on this disk.
    pub fn place(&self, cluster: &Cluster, id: usize) {
        let data = self.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(data, cluster.data(id)).unwrap();
    }

    /// Makes writes to the disk wait from now on.
    pub fn freeze(&mut self) {
        self.is_frozen = true;
        assert!(done(Command::new("fsfreeze").arg("--freeze").arg(self.path())));
    }

    pub fn thaw(&mut self) {
        if std::mem::take(&mut self.is_frozen) {
            assert!(done(Command::new("fsfreeze").arg("--unfreeze").arg(self.path())));
        }
    }

    pub fn free_mib(&self) -> u64 {
        free_mib(&self.path())
    }

    /// Fills the disk with a file until `mib` MiB are free.
    pub fn leave_mib(&self, mib: u64) {
        take_mib(&self.path(), self.free_mib().checked_sub(mib).expect("as much is free"));
    }

    /// Removes the file again.
    pub fn make_room(&self) {
        give_back(&self.path());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        // This includes a disk that was not mounted, without an effect.
        unmount(&self.path());
    }
}

/// The command `mount`.
pub fn mount() -> Command {
    Command::new("mount")
}

/// Unmounts a file system, also while it is in use.
pub fn unmount(path: &Path) {
    done(Command::new("umount").arg("--lazy").arg(path));
}

/// MiB that a normal user may still write on the disk of `dir`.
pub fn free_mib(dir: &Path) -> u64 {
    let output = Command::new("df").args(["--output=avail", "-BM"]).arg(dir).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().unwrap().trim().trim_end_matches('M').parse().unwrap()
}

/// Takes this much of the disk of `dir`, with a file.
pub fn take_mib(dir: &Path, mib: u64) {
    let size = format!("{mib}MiB");
    assert!(done(Command::new("fallocate").args(["-l", &size]).arg(dir.join(BALLAST))));
}

/// Gives back what [`take_mib`] took.
pub fn give_back(dir: &Path) {
    std::fs::remove_file(dir.join(BALLAST)).unwrap();
}

/// Runs a command; whether it succeeded.
pub fn done(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

const BALLAST: &str = "ballast";
