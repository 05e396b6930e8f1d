//! `kv-server`, as it lies beside this program, with the defaults.

use std::{sync::Arc, time::Duration};

use kv_store_client::{
    idl::{PutRequest, RangeRequest},
    protocol::{Call, Reply},
};

use super::{
    System, Timeouts, etcd,
    load::{What, key},
    processes::{Processes, free_ports},
};

pub(crate) struct Ours;

impl System for Ours {
    type Connection = Arc<kv_store_client::Connection>;

    const NAME: &str = "kv-server";

    fn add_nodes(processes: &mut Processes, ports: &[u16], timeouts: Option<Timeouts>) -> Result<(), String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("kv-server");
        let consensus = free_ports(ports.len())?;
        let config = processes.dir().join("cluster.toml");
        let mut text = "[deployment]\nmode = \"replicated\"\n".to_owned();
        if let Some(Timeouts { heartbeat_ms, election_ms }) = timeouts {
            text += &format!(
                "[cluster]\nheartbeat_interval_ms = {heartbeat_ms}\nelection_timeout_ms = {election_ms}\n"
            );
        }
        for (id, (port, consensus)) in ports.iter().zip(consensus).enumerate() {
            let (client, consensus) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{consensus}"));
            text += &format!(
                "[[nodes]]\nid = {id}\nclient_endpoint = \"{client}\"\nconsensus_endpoint = \"{consensus}\"\n"
            );
        }
        std::fs::write(&config, text).map_err(|error| error.to_string())?;
        for node in 0..ports.len() {
            let dir = processes.dir().join(format!("node-{node}"));
            let arguments = [
                "--config",
                &config.display().to_string(),
                "--node-id",
                &node.to_string(),
                "--data-dir",
                &dir.display().to_string(),
            ];
            processes.add(&program, &arguments.map(str::to_owned))?;
        }
        Ok(())
    }

    async fn connect(port: u16) -> Result<Self::Connection, String> {
        let endpoint = format!("127.0.0.1:{port}").parse().map_err(|error| format!("{error}"))?;
        let connection = kv_store_client::Connection::open(&endpoint, Duration::from_secs(2)).await;
        connection.map(Arc::new).map_err(|error| error.to_string())
    }

    async fn leads(port: u16) -> Result<bool, String> {
        let status = Self::connect(port).await?.call(Call::Status).await;
        Ok(matches!(status, Ok(Ok(Reply::Status(status))) if status.leader_id == Some(status.header.node_id)))
    }
}

/// The same, over gRPC.
pub(crate) struct OverGrpc;

impl System for OverGrpc {
    type Connection = etcd::Connection;

    const NAME: &str = "kv-server";

    fn add_nodes(processes: &mut Processes, ports: &[u16], timeouts: Option<Timeouts>) -> Result<(), String> {
        Ours::add_nodes(processes, ports, timeouts)
    }

    async fn connect(port: u16) -> Result<Self::Connection, String> {
        etcd::Etcd::connect(port).await
    }

    async fn leads(port: u16) -> Result<bool, String> {
        Ours::leads(port).await
    }
}

/// Up to where the node at `port` has applied the log.
pub(crate) async fn revision(port: u16) -> Result<i64, String> {
    match Ours::connect(port).await?.call(Call::Status).await {
        Ok(Ok(Reply::Status(status))) => Ok(status.header.revision),
        other => Err(format!("{other:?}")),
    }
}

impl super::Connection for Arc<kv_store_client::Connection> {
    async fn ask(&self, what: What, at: u64, value: Vec<u8>) -> Result<(), String> {
        match what {
            What::Put => done(self.call(Call::Put(PutRequest::of(key(at), value))).await),
            What::Get => done(self.call(Call::Range(RangeRequest::of(key(at), None))).await),
            other => Err(format!("{other:?} is measured over gRPC only")),
        }
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
