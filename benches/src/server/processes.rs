//! Processes that end with the value that holds them.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::place;

/// A directory and the processes whose data lie in it. Dropped, both are gone.
pub(crate) struct Processes {
    dir: tempfile::TempDir,
    commands: Vec<Command>,
    children: Vec<Option<Child>>,
}

impl Processes {
    pub(crate) fn new() -> Result<Self, String> {
        Ok(Self { dir: place::directory()?, commands: Vec::new(), children: Vec::new() })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One to be started; what it says goes to a file.
    pub(crate) fn add(&mut self, program: &Path, arguments: &[String]) -> Result<(), String> {
        let log = self.dir().join(format!("{}.log", self.children.len()));
        let log = File::create(log).map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        self.commands.push(command);
        self.children.push(None);
        Ok(())
    }

    /// Starts one, for the first time or after it was killed.
    pub(crate) fn start(&mut self, number: usize) -> Result<(), String> {
        let command = &mut self.commands[number];
        let child = command.spawn();
        self.children[number] = Some(child.map_err(|error| format!("{:?}: {error}", command.get_program()))?);
        Ok(())
    }

    /// Of those that were started.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.children.iter().flatten().map(Child::id).collect()
    }

    /// With SIGKILL.
    pub(crate) fn kill(&mut self, number: usize) -> Result<(), String> {
        let Some(mut child) = self.children[number].take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|error| error.to_string())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
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
