//! Members that are started with etcd's flags, and used by etcd's API.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use kv_etcd_api::etcdserverpb::{
    Member, MemberListRequest, PutRequest, RangeRequest, cluster_client::ClusterClient, kv_client::KvClient,
};
use tokio::time::{Instant, sleep};
use tonic::{Status, transport::Channel};

use super::{Server, free_port};

/// A member and its directory, as `name` at a port for clients and another one for members.
pub struct Place {
    pub name: String,
    pub client: u16,
}

impl Place {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), client: free_port() }
    }

    pub fn client_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client + 1000)
    }

    /// The flags of etcd's documentation for static bootstrapping.
    pub fn flags(&self, dir: &Path, cluster: &[&Self], state: &str) -> Vec<String> {
        let cluster: Vec<String> =
            cluster.iter().map(|place| format!("{}={}", place.name, place.peer_url())).collect();
        let data = dir.join(format!("{}.etcd", self.name)).display().to_string();
        let flags = [
            ("--name", self.name.clone()),
            ("--data-dir", data),
            ("--initial-advertise-peer-urls", self.peer_url()),
            ("--listen-peer-urls", self.peer_url()),
            ("--listen-client-urls", self.client_url()),
            ("--advertise-client-urls", self.client_url()),
            ("--initial-cluster-token", "etcd-cluster-1".to_owned()),
            ("--initial-cluster", cluster.join(",")),
            ("--initial-cluster-state", state.to_owned()),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    pub fn start(&self, dir: &Path, cluster: &[&Self], state: &str) -> Server {
        Server::in_place_of_etcd(dir, &self.name, self.client, self.flags(dir, cluster, state))
    }
}

pub const READY: &str = "ready to serve client requests";
pub const PATIENCE: Duration = Duration::from_secs(60);

pub async fn channel(port: u16) -> Channel {
    let endpoint = Channel::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    endpoint.connect().await.expect("the member takes connections")
}

/// Writes, at the member that listens there; repeated while there is no leader.
pub async fn put(port: u16, key: &str) {
    let begun = Instant::now();
    loop {
        let request = PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
        match KvClient::new(channel(port).await).put(request).await {
            Ok(_) => return,
            Err(status) => assert!(begun.elapsed() < PATIENCE, "{status}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Number of keys that a linearizable read at the member finds.
pub async fn count(port: u16) -> Result<i64, Status> {
    let request = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    Ok(KvClient::new(channel(port).await).range(request).await?.into_inner().count)
}

pub async fn members(port: u16) -> Vec<Member> {
    let list = MemberListRequest { linearizable: true };
    let answer = ClusterClient::new(channel(port).await).member_list(list).await;
    let mut members = answer.map(|answer| answer.into_inner().members).unwrap_or_default();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    members
}

pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Runs the program until it ends.
pub fn run(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kv-server")).arg("etcd").args(flags).output().unwrap()
}
