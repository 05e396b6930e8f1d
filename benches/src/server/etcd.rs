//! etcd, as the system has it, with the defaults (it syncs before it acknowledges).

use std::{path::Path, time::Duration};

use prost::Message;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::processes::{Processes, free_ports};

pub(crate) struct Etcd {
    processes: Processes,
    ports: Vec<u16>,
    /// Which of them.
    leader: usize,
}

impl super::System for Etcd {
    type Connection = Connection;

    async fn start() -> Result<Self, String> {
        let mut processes = Processes::new()?;
        let (ports, peers) = (free_ports(3)?, free_ports(3)?);
        let cluster: Vec<_> =
            peers.iter().enumerate().map(|(id, port)| format!("n{id}=http://127.0.0.1:{port}")).collect();
        for node in 0..3 {
            let (client, peer) =
                (format!("http://127.0.0.1:{}", ports[node]), format!("http://127.0.0.1:{}", peers[node]));
            let dir = processes.dir().join(format!("node-{node}"));
            let arguments = [
                format!("--name=n{node}"),
                format!("--data-dir={}", dir.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
                "--log-level=error".to_owned(),
            ];
            processes.start(Path::new("etcd"), &arguments)?;
        }
        let mut system = Self { processes, ports, leader: 0 };
        system.find_leader().await?;
        Ok(system)
    }

    async fn connect(&self) -> Result<Connection, String> {
        connect(self.ports[self.leader]).await
    }

    async fn kill_leader(&mut self) -> Result<Vec<Connection>, String> {
        let mut others = Vec::new();
        for (number, port) in self.ports.iter().enumerate() {
            if number != self.leader {
                others.push(connect(*port).await?);
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

impl Etcd {
    async fn find_leader(&mut self) -> Result<(), String> {
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            for (number, port) in self.ports.iter().enumerate() {
                if leads(*port).await.unwrap_or(false) {
                    self.leader = number;
                    return Ok(());
                }
            }
        }
        Err("etcd: no leader within 20 s".to_owned())
    }
}

async fn connect(port: u16) -> Result<Connection, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://127.0.0.1:{port}")).map_err(|error| error.to_string())?;
    let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| error.to_string())?;
    Ok(Connection(channel))
}

async fn leads(port: u16) -> Result<bool, String> {
    let status: Status = connect(port).await?.call("/etcdserverpb.Maintenance/Status", Empty {}).await?;
    Ok(status.header.is_some_and(|header| header.member_id == status.leader))
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Connection(Channel);

impl Connection {
    async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, String>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| error.to_string())?;
        let request = tonic::Request::new(request);
        let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await;
        Ok(answer.map_err(|error| error.to_string())?.into_inner())
    }
}

impl super::Connection for Connection {
    async fn put(&self, key: Vec<u8>, value: Vec<u8>) -> Result<(), String> {
        self.call::<_, Answer>("/etcdserverpb.KV/Put", Put { key, value }).await.map(drop)
    }

    async fn get(&self, key: Vec<u8>) -> Result<(), String> {
        self.call::<_, Answer>("/etcdserverpb.KV/Range", Range { key }).await.map(drop)
    }
}

// What is needed of etcd's rpc.proto.

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(bytes, tag = "1")]
    key: Vec<u8>,
    #[prost(bytes, tag = "2")]
    value: Vec<u8>,
}

/// Linearizable, by default.
#[derive(Clone, PartialEq, Message)]
struct Range {
    #[prost(bytes, tag = "1")]
    key: Vec<u8>,
}

/// The rest is skipped.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// For a node that was started again to catch up.
const SETTLING: Duration = Duration::from_secs(1);
