//! etcd, as the system has it, with the defaults (it syncs before it acknowledges).

use std::path::Path;

use prost::Message;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    Timeouts,
    processes::{Processes, free_ports},
};

pub(crate) struct Etcd;

impl super::System for Etcd {
    type Connection = Connection;

    const NAME: &str = "etcd";

    fn add_nodes(processes: &mut Processes, ports: &[u16], timeouts: Option<Timeouts>) -> Result<(), String> {
        let peers = free_ports(ports.len())?;
        let cluster: Vec<_> =
            peers.iter().enumerate().map(|(id, port)| format!("n{id}=http://127.0.0.1:{port}")).collect();
        for node in 0..ports.len() {
            let (client, peer) =
                (format!("http://127.0.0.1:{}", ports[node]), format!("http://127.0.0.1:{}", peers[node]));
            let dir = processes.dir().join(format!("node-{node}"));
            let mut arguments = vec![
                format!("--name=n{node}"),
                format!("--data-dir={}", dir.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
                "--log-level=error".to_owned(),
            ];
            if let Some(Timeouts { heartbeat_ms, election_ms }) = timeouts {
                arguments.push(format!("--heartbeat-interval={heartbeat_ms}"));
                arguments.push(format!("--election-timeout={election_ms}"));
            }
            processes.add(Path::new("etcd"), &arguments)?;
        }
        Ok(())
    }

    async fn connect(port: u16) -> Result<Connection, String> {
        let endpoint =
            Endpoint::from_shared(format!("http://127.0.0.1:{port}")).map_err(|error| error.to_string())?;
        let channel = endpoint.tcp_nodelay(true).connect().await.map_err(|error| error.to_string())?;
        Ok(Connection(channel))
    }

    async fn leads(port: u16) -> Result<bool, String> {
        let connection = Self::connect(port).await?;
        let status: Status = connection.call("/etcdserverpb.Maintenance/Status", Empty {}).await?;
        Ok(status.header.is_some_and(|header| header.member_id == status.leader))
    }
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
