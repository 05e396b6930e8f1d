//! Processes that end with the value that holds them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A directory and the processes whose data lie in it. Dropped, both are gone.
pub(crate) struct Processes {
    dir: tempfile::TempDir,
    children: Vec<Child>,
}

impl Processes {
    pub(crate) fn new() -> Result<Self, String> {
        // Not in memory: disks are measured, too.
        let place = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(place);
        Ok(Self { dir: dir.map_err(|error| error.to_string())?, children: Vec::new() })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts one; what it says goes to a file.
    pub(crate) fn start(&mut self, program: &Path, arguments: &[String]) -> Result<(), String> {
        let log = self.dir().join(format!("{}.log", self.children.len()));
        let log = File::create(log).map_err(|error| error.to_string())?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn();
        self.children.push(child.map_err(|error| format!("{}: {error}", program.display()))?);
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ports that are free now, and were all free at once.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>, String> {
    let listen = |_| std::net::TcpListener::bind("127.0.0.1:0");
    let listeners: Result<Vec<_>, _> = (0..count).map(listen).collect();
    let listeners = listeners.map_err(|error| error.to_string())?;
    listeners.iter().map(|l| l.local_addr().map(|a| a.port()).map_err(|error| error.to_string())).collect()
}
