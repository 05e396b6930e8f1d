//! Two servers with data and a witness.

use std::{path::Path, process::Command};

use crate::common::{Cluster, client, kvctl::Kvctl};
use kv_etcd_api::etcdserverpb::{
    self as etcd, LeaseTimeToLiveRequest, MemberListRequest, cluster_client::ClusterClient,
    kv_client::KvClient as EtcdKvClient, lease_client::LeaseClient,
};
use kv_store_client::{
    admin::{MemberChange, MemberKind},
    idl::{Consistency, RangeRequest},
};
use tonic::{Code, transport::Channel};

const WITNESS: usize = 2;
const VALUE: &str = "nobody tells a witness";

/// Whether a file below `dir` has the value.
fn is_stored(dir: &Path) -> bool {
    std::fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_stored(&path);
        }
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(VALUE.len()).any(|window| window == VALUE.as_bytes())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_and_a_witness_survive_the_loss_of_one() {
    let mut cluster = Cluster::start(3, &format!("witnesses = [{WITNESS}]"), "");
    let first = cluster.leader().await;
    assert_ne!(first, WITNESS);
    cluster.client().put("k", VALUE).await.unwrap();
    let kinds: Vec<_> = cluster.status(first).await.unwrap().members.into_iter().map(|m| m.kind).collect();
    assert_eq!(kinds, ["voter", "voter", "witness"]);

    // A client that knows only the witness is served by it, through the leader.
    let through_witness = client(&[cluster.servers[WITNESS].port]);
    assert_eq!(through_witness.get("k").await.unwrap().unwrap().value, VALUE.as_bytes());
    let stale = RangeRequest { consistency: Some(Consistency::STALE), ..RangeRequest::of("k", None) };
    assert_eq!(through_witness.range(stale).await.unwrap().kvs.len(), 1);

    let other = 1 - first;
    cluster
        .eventually("the other server has it", async |cluster| {
            let last = cluster.status(first).await?.header.applied_index;
            (cluster.status(other).await?.header.applied_index == last).then_some(())
        })
        .await;
    cluster.servers[first].kill();
    through_witness.put("after", VALUE).await.unwrap();
    assert_eq!(cluster.leader().await, other);
    assert_eq!(through_witness.get("k").await.unwrap().unwrap().value, VALUE.as_bytes());

    let dir = |id: usize| cluster.dir.path().join(format!("node-{id}"));
    assert!(is_stored(&dir(other)), "where there is data it is found");
    assert!(!is_stored(&dir(WITNESS)));

    cluster.servers[first].start();
    cluster
        .eventually("the first is back", async |cluster| {
            let last = cluster.status(other).await?.header.applied_index;
            (cluster.status(first).await?.header.applied_index == last).then_some(())
        })
        .await;
    cluster.servers[other].kill();
    assert_eq!(through_witness.get("after").await.unwrap().unwrap().value, VALUE.as_bytes());
}

/// Clients of etcd that ask for the members do not come to it; others are told where to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn witness_is_listed_without_client_urls_and_refuses_reads_of_etcds_clients() {
    let cluster = Cluster::start(3, &format!("witnesses = [{WITNESS}]"), "");
    cluster.leader().await;
    cluster.client().put("k", VALUE).await.unwrap();
    let endpoint = format!("http://{}", cluster.servers[WITNESS].endpoint());
    let channel = Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    let mut kv = EtcdKvClient::new(channel.clone());
    let range = etcd::RangeRequest { key: "k".into(), ..Default::default() };
    let refused = kv.range(range.clone()).await.unwrap_err();
    let stale = kv.range(etcd::RangeRequest { serializable: true, ..range }).await.unwrap_err();
    for refused in [refused, stale] {
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("this member is a witness, which has no data"), "{refused}");
    }
    let put = etcd::PutRequest { key: "k".into(), value: "w".into(), ..Default::default() };
    kv.put(put).await.expect("a write is passed on to the leader");
    let lease = LeaseTimeToLiveRequest { id: 7, keys: true };
    let told = LeaseClient::new(channel.clone()).lease_time_to_live(lease).await.unwrap().into_inner();
    assert_eq!(told.ttl, -1);
    let list = MemberListRequest { linearizable: true };
    let members = ClusterClient::new(channel).member_list(list).await.unwrap().into_inner().members;
    let urls: Vec<usize> = members.iter().map(|member| member.client_ur_ls.len()).collect();
    assert_eq!((members.len(), urls), (3, vec![1, 1, 0]), "{members:?}");
    let health = cluster.servers[WITNESS].http("/health");
    assert!(health.contains(r#""health":"true""#), "{health}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_joins_and_is_not_taken_for_more() {
    let mut cluster = Cluster::start(2, "", "");
    cluster.client().put("k", VALUE).await.unwrap();
    let id = cluster.join_with(&["--witnesses", "2"]);
    let port = cluster.servers[id].port;
    let (consensus, clients) = (format!("127.0.0.1:{}", port + 1000), format!("127.0.0.1:{port}"));
    let add = MemberChange::new(id as i64, MemberKind::WITNESS, consensus, clients, None, false);
    cluster.client().change_members(vec![add]).await.unwrap();
    cluster
        .eventually("the witness knows that it counts as one", async |cluster| {
            let members = cluster.status(id).await?.members;
            let own = members.iter().find(|member| member.node_id == id as i64)?;
            (own.kind == "witness" && own.storage_known == Some(true)).then_some(())
        })
        .await;
    // The entry that names its disk is committed, too.
    cluster.client().put("k", VALUE).await.unwrap();
    let endpoints: Vec<String> = cluster.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let operator = Kvctl::new(endpoints.join(","));
    let (code, hashes, error) = tokio::task::block_in_place(|| operator.run(&["hash"], ""));
    assert!(code == 0 && hashes.contains("a witness: it votes, and has no state"), "{code} {hashes} {error}");
    let leader = cluster.leader().await;
    cluster.servers[1 - leader].kill();
    cluster.client().put("k", "with the witness's vote").await.unwrap();

    cluster.servers[id].kill();
    let (config, data) = (format!("node-{id}.toml"), format!("node-{id}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_kv-server"));
    command.current_dir(cluster.dir.path()).args([
        "--join",
        "--config",
        &config,
        "--node-id",
        "2",
        "--data-dir",
        &data,
    ]);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("node 2 is a witness in its cluster"), "{error}");
}
