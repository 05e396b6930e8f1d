//! etcd with its defaults (it syncs before it acknowledges), and connections to whatever serves its API.

use std::{path::PathBuf, process::Command};

use bytes::Bytes;
use kv_etcd_api::etcdserverpb::{
    self, DeleteRangeRequest, DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse,
    LeaseKeepAliveRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseHeader, StatusRequest,
    StatusResponse, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    lease_client::LeaseClient,
    request_op::Request,
};
use prost::Message;
use tonic::{
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    Timeouts,
    load::{What, key},
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
            processes.add(&program(), &arguments)?;
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
        let status: StatusResponse =
            connection.call("/etcdserverpb.Maintenance/Status", StatusRequest {}).await?;
        Ok(status.header.is_some_and(|header| header.member_id == status.leader))
    }
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub(crate) struct Connection(Channel);

impl Connection {
    pub(crate) fn channel(&self) -> Channel {
        self.0.clone()
    }

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

    pub(crate) async fn range(&self, request: RangeRequest) -> Result<RangeResponse, String> {
        self.call("/etcdserverpb.KV/Range", request).await
    }

    pub(crate) async fn delete(&self, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, String> {
        self.call("/etcdserverpb.KV/DeleteRange", request).await
    }

    pub(crate) async fn grant(&self, id: i64) -> Result<(), String> {
        let request = LeaseGrantRequest { ttl: LEASE_SECONDS, id };
        self.call::<_, LeaseGrantResponse>("/etcdserverpb.Lease/LeaseGrant", request).await.map(drop)
    }

    async fn keep_alive(&self, id: i64) -> Result<(), String> {
        let asked = futures::stream::iter([LeaseKeepAliveRequest { id }]);
        let answers = LeaseClient::new(self.0.clone()).lease_keep_alive(asked).await;
        let mut answers = answers.map_err(|error| error.to_string())?.into_inner();
        match answers.message().await.map_err(|error| error.to_string())? {
            Some(answer) if answer.ttl > 0 => Ok(()),
            other => Err(format!("a lease was not renewed: {other:?}")),
        }
    }
}

impl super::Connection for Connection {
    async fn ask(&self, what: What, at: u64, value: Vec<u8>) -> Result<(), String> {
        let (name, value) = (Bytes::from(key(at)), Bytes::from(value));
        match what {
            What::Put => {
                let put = PutRequest { key: name, value, ..PutRequest::default() };
                self.call::<_, Answer>("/etcdserverpb.KV/Put", put).await.map(drop)
            }
            What::Get | What::SerializableGet => {
                let serializable = what == What::SerializableGet;
                let range = RangeRequest { key: name, serializable, ..RangeRequest::default() };
                self.call::<_, Answer>("/etcdserverpb.KV/Range", range).await.map(drop)
            }
            What::Range => {
                let range_end = key(at + RANGE_KEYS).into();
                let range = RangeRequest { key: name, range_end, ..RangeRequest::default() };
                self.call::<_, Answer>("/etcdserverpb.KV/Range", range).await.map(drop)
            }
            What::Txn => self.call::<_, Answer>("/etcdserverpb.KV/Txn", txn(name, value)).await.map(drop),
            What::LeaseGrant => self.grant(0).await,
            What::LeaseKeepAlive => self.keep_alive(1 + (at % LEASES) as i64).await,
        }
    }
}

/// A put that depends on a comparison.
fn txn(key: Bytes, value: Bytes) -> TxnRequest {
    let exists = etcdserverpb::Compare {
        result: CompareResult::Greater as i32,
        target: CompareTarget::Version as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::Version(0)),
        ..etcdserverpb::Compare::default()
    };
    let put = PutRequest { key, value, ..PutRequest::default() };
    let put = RequestOp { request: Some(Request::RequestPut(put)) };
    TxnRequest { compare: vec![exists], success: vec![put.clone()], failure: vec![put] }
}

/// The rest of an answer is skipped.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

/// The version of etcd, for the page.
pub(crate) fn version() -> Result<String, String> {
    let output = Command::new(program()).arg("--version").output();
    let output = output.map_err(|error| format!("{}: {error}", program().display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    Ok(format!("etcd {}", version.unwrap_or("of an unknown version")))
}

/// `$ETCD`, or the one in PATH.
fn program() -> PathBuf {
    std::env::var_os("ETCD").map_or_else(|| "etcd".into(), PathBuf::from)
}

const RANGE_KEYS: u64 = 100;
const LEASE_SECONDS: i64 = 3600;
/// Leases that are renewed, with the ids from 1.
pub(crate) const LEASES: u64 = 1000;
