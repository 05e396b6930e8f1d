//! Some processes, of which one leads.

use std::{fs, io, marker::PhantomData, path::Path, time::Duration};

use super::{
    System, Timeouts,
    processes::{Processes, free_ports},
};

pub(crate) struct Cluster<S> {
    processes: Processes,
    ports: Vec<u16>,
    /// Which of them.
    leader: usize,
    system: PhantomData<S>,
}

impl<S: System> Cluster<S> {
    pub(crate) async fn start(nodes: usize) -> Result<Self, String> {
        Self::start_with(nodes, nodes, None).await
    }

    /// Only the first `running` of them.
    pub(crate) async fn start_with(
        nodes: usize,
        running: usize,
        timeouts: Option<Timeouts>,
    ) -> Result<Self, String> {
        let (mut processes, ports) = (Processes::new()?, free_ports(nodes)?);
        S::add_nodes(&mut processes, &ports, timeouts)?;
        (0..running).try_for_each(|number| processes.start(number))?;
        let mut cluster = Self { processes, ports, leader: 0, system: PhantomData };
        cluster.find_leader().await?;
        Ok(cluster)
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.processes.ids()
    }

    pub(crate) fn dir(&self) -> &Path {
        self.processes.dir()
    }

    /// Where the nodes serve clients.
    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Which of them.
    pub(crate) fn leader(&self) -> usize {
        self.leader
    }

    /// What the files of a node have.
    pub(crate) fn store_bytes(&self, node: usize) -> Result<u64, String> {
        bytes_below(&self.processes.dir().join(format!("node-{node}"))).map_err(|error| error.to_string())
    }

    pub(crate) fn start_node(&mut self, node: usize) -> Result<(), String> {
        self.processes.start(node)
    }

    /// With SIGKILL.
    pub(crate) fn kill_node(&mut self, node: usize) -> Result<(), String> {
        self.processes.kill(node)
    }

    /// Until a node answers a client.
    pub(crate) async fn answers(&self, node: usize) -> Result<(), String> {
        for _ in 0..10_000 {
            if S::leads(self.ports[node]).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Err(format!("{}: node {node} does not answer", S::NAME))
    }

    /// To the leader.
    pub(crate) async fn connect(&self) -> Result<S::Connection, String> {
        S::connect(self.ports[self.leader]).await
    }

    /// Kills the leader; connections to the others.
    pub(crate) async fn kill_leader(&mut self) -> Result<Vec<S::Connection>, String> {
        let mut others = Vec::new();
        for (number, port) in self.ports.iter().enumerate() {
            if number != self.leader {
                others.push(S::connect(*port).await?);
            }
        }
        self.processes.kill(self.leader)?;
        Ok(others)
    }

    /// Starts again what was killed, and waits until all is well.
    pub(crate) async fn restart_killed(&mut self) -> Result<(), String> {
        self.processes.start(self.leader)?;
        tokio::time::sleep(SETTLING).await;
        self.find_leader().await
    }

    async fn find_leader(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (number, port) in self.ports.iter().enumerate() {
                if S::leads(*port).await.unwrap_or(false) {
                    self.leader = number;
                    return Ok(());
                }
            }
        }
        Err(format!("{}: no leader within 20 s", S::NAME))
    }
}

fn bytes_below(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

/// As many as most clusters have.
pub(crate) const NODES: usize = 3;
/// For a node that was started again to catch up.
const SETTLING: Duration = Duration::from_secs(1);
