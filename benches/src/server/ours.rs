//! `kv-server`, as it lies beside this program, with the defaults.

use std::{sync::Arc, time::Duration};

use kv_client::{
    idl::{PutRequest, RangeRequest},
    protocol::{Call, Reply},
};

use super::processes::{Processes, free_ports};

pub(crate) struct Ours {
    processes: Processes,
    ports: Vec<u16>,
    /// Which of them.
    leader: usize,
}

impl super::System for Ours {
    type Connection = Arc<kv_client::Connection>;

    async fn start() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("kv-server");
        let mut processes = Processes::new()?;
        let (ports, consensus) = (free_ports(3)?, free_ports(3)?);
        let config = processes.dir().join("cluster.toml");
        let mut text = "[deployment]\nmode = \"replicated\"\n".to_owned();
        for (id, (port, consensus)) in ports.iter().zip(consensus).enumerate() {
            let (client, consensus) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{consensus}"));
            text += &format!(
                "[[nodes]]\nid = {id}\nclient_endpoint = \"{client}\"\nconsensus_endpoint = \"{consensus}\"\n"
            );
        }
        std::fs::write(&config, text).map_err(|error| error.to_string())?;
        for node in 0..3 {
            let dir = processes.dir().join(format!("node-{node}"));
            let arguments = [
                "--config",
                &config.display().to_string(),
                "--node-id",
                &node.to_string(),
                "--data-dir",
                &dir.display().to_string(),
            ];
            processes.start(&program, &arguments.map(str::to_owned))?;
        }
        let mut system = Self { processes, ports, leader: 0 };
        system.find_leader().await?;
        Ok(system)
    }

    async fn connect(&self) -> Result<Self::Connection, String> {
        open(self.ports[self.leader]).await.map(Arc::new)
    }

    async fn kill_leader(&mut self) -> Result<Vec<Self::Connection>, String> {
        let mut others = Vec::new();
        for (number, port) in self.ports.iter().enumerate() {
            if number != self.leader {
                others.push(open(*port).await.map(Arc::new)?);
            }
        }
        self.processes.kill(self.leader)?;
        Ok(others)
    }

    async fn restart_killed(&mut self) -> Result<(), String> {
        self.processes.restart(self.leader)?;
        tokio::time::sleep(SETTLING).await;
        self.find_leader().await
    }
}

impl Ours {
    async fn find_leader(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (number, port) in self.ports.iter().enumerate() {
                if leads(*port).await {
                    self.leader = number;
                    return Ok(());
                }
            }
        }
        Err("kv-server: no leader within 20 s".to_owned())
    }
}

async fn open(port: u16) -> Result<kv_client::Connection, String> {
    let endpoint = format!("127.0.0.1:{port}").parse().map_err(|error| format!("{error}"))?;
    kv_client::Connection::open(&endpoint, Duration::from_secs(2)).await.map_err(|error| error.to_string())
}

async fn leads(port: u16) -> bool {
    let Ok(connection) = open(port).await else { return false };
    let status = connection.call(Call::Status).await;
    matches!(status, Ok(Ok(Reply::Status(status))) if status.leader_id == Some(status.header.node_id))
}

impl super::Connection for Arc<kv_client::Connection> {
    async fn put(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), String> {
        let (lease_id, return_previous, session, versionstamp) = (None, None, None, None);
        let put = PutRequest { key, value, lease_id, return_previous, session, versionstamp };
        done(self.call(Call::Put(put)).await)
    }

    async fn get(&self, key: Vec<u8>) -> Result<(), String> {
        let range = RangeRequest::new(key, None, None, None, None, None, None, None);
        done(self.call(Call::Range(range)).await)
    }
}

fn done<T, F: std::fmt::Display, E: std::fmt::Display>(
    outcome: Result<Result<T, F>, E>,
) -> Result<(), String> {
    match outcome {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(fault)) => Err(fault.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// For a node that was started again to catch up.
const SETTLING: Duration = Duration::from_secs(1);
