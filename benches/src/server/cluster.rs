//! Three processes, of which one leads.

use std::{marker::PhantomData, time::Duration};

use super::{
    System,
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
    pub(crate) async fn start() -> Result<Self, String> {
        let (mut processes, ports) = (Processes::new()?, free_ports(NODES)?);
        S::start_nodes(&mut processes, &ports)?;
        let mut cluster = Self { processes, ports, leader: 0, system: PhantomData };
        cluster.find_leader().await?;
        Ok(cluster)
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
        self.processes.restart(self.leader)?;
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

pub(crate) const NODES: usize = 3;
/// For a node that was started again to catch up.
const SETTLING: Duration = Duration::from_secs(1);
