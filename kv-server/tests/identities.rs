//! Endpoints for clients at which another server listens than the node that should be there.

use std::time::Duration;

use crate::common::{Cluster, Server, kvctl::Kvctl};
use kv_store_client::{
    Connection,
    admin::{MemberChange, MemberKind, NodeIdentity},
    idl::{PutRequest, Unavailable},
    protocol::{Call, Fault, Reply},
};

/// Three nodes of which node 0 leads.
async fn cluster_led_by_node_0() -> Cluster {
    let cluster = Cluster::start(3, "", "");
    cluster.leader().await;
    cluster
        .eventually("node 0 leads", async |cluster| {
            let _ = cluster.client().transfer_leader(Some(0)).await;
            (cluster.status(0).await?.role == "leader").then_some(())
        })
        .await;
    cluster
        .eventually("the others follow node 0", async |cluster| {
            for id in [1, 2] {
                (cluster.status(id).await?.leader_id == Some(0)).then_some(())?;
            }
            Some(())
        })
        .await;
    cluster
}

/// Tells the cluster that clients reach node 0 at this port, and waits until node 1 has heard of it.
async fn move_clients_of_node_0(cluster: &Cluster, port: u16) {
    let endpoint = format!("127.0.0.1:{port}");
    let change = MemberChange::new(0, MemberKind::AS_IS, None, endpoint.clone(), None, true);
    cluster.servers[0].client().change_members(vec![change]).await.unwrap();
    cluster
        .eventually("node 1 has heard of the endpoint", async |cluster| {
            let members = cluster.status(1).await?.members;
            members.iter().any(|member| member.client_endpoint == endpoint).then_some(())
        })
        .await;
}

async fn connection_to(server: &Server) -> Connection {
    Connection::open(&server.endpoint().parse().unwrap(), Duration::from_secs(1)).await.unwrap()
}

/// A put through node 1, which does not lead.
async fn put_through_node_1(cluster: &Cluster, key: &str) -> Result<Reply, Fault> {
    let connection = connection_to(&cluster.servers[1]).await;
    connection.call(Call::Put(PutRequest::of(key, "v"))).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_is_not_forwarded_to_a_server_that_is_not_the_leader() {
    let cluster = cluster_led_by_node_0().await;
    let other = Cluster::start(1, "", "");
    other.leader().await;
    let dir = tempfile::tempdir().unwrap();
    let standalone = Server::standalone(dir.path());
    put_through_node_1(&cluster, "before").await.unwrap();
    let own_port = cluster.servers[0].port;
    standalone.endpoint();
    for (server, words) in
        [(&other.servers[0], "node 0 of another cluster ("), (&standalone, "a standalone server is there")]
    {
        move_clients_of_node_0(&cluster, server.port).await;
        let fault = put_through_node_1(&cluster, "k").await.unwrap_err();
        let Fault::Unavailable(Unavailable { message, maybe_applied: false, .. }) = &fault else {
            panic!("{fault:?}")
        };
        for words in [words, "nothing was done", "kvctl member update 0 --client HOST:PORT"] {
            assert!(message.contains(words), "{message}");
        }
        assert_eq!(server.client().get("k").await.unwrap(), None, "it is not in the other store");
        cluster.servers[1].says(words);
        cluster
            .eventually("node 1 does not take the other server for node 0", async |cluster| {
                let members = cluster.status(1).await?.members;
                let problem = members.into_iter().find(|member| member.node_id == 0)?.problem?;
                problem.contains(words).then_some(())
            })
            .await;
    }
    move_clients_of_node_0(&cluster, own_port).await;
    put_through_node_1(&cluster, "after").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshake_for_another_node_or_cluster_is_refused() {
    let cluster = Cluster::start(1, "", "");
    cluster.leader().await;
    let connection = connection_to(&cluster.servers[0]).await;
    let own = cluster.status(0).await.unwrap().cluster_id;
    assert!(own.as_ref().is_some_and(|id| id.len() == 16), "{own:?}");
    for (node, id) in [(1, own.clone()), (0, Some("00000000000000ff".to_owned())), (0, None)] {
        let expected = NodeIdentity::new(node, id);
        let answer = connection.call(Call::NoForwarding(expected.clone())).await.unwrap();
        assert!(matches!(answer, Err(Fault::Refused(_))), "{expected:?}: {answer:?}");
    }
    let expected = NodeIdentity::new(0, own);
    let answer = connection.call(Call::NoForwarding(expected.clone())).await.unwrap();
    assert_eq!(answer, Ok(Reply::NoForwarding(expected)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kvctl_says_that_endpoints_are_of_different_clusters() {
    let (one, other) = (Cluster::start(1, "", ""), Cluster::start(1, "", ""));
    one.leader().await;
    other.leader().await;
    let endpoints = [&one, &other].map(|cluster| cluster.servers[0].endpoint());
    let run = |endpoints: String, command: &str| {
        tokio::task::block_in_place(|| Kvctl::new(endpoints).run(&[command], ""))
    };
    for command in ["status", "hash"] {
        let (code, out, error) = run(endpoints.join(","), command);
        assert!(
            code == 6 && error.contains("the endpoints are of different clusters"),
            "{code} {out} {error}"
        );
        for endpoint in &endpoints {
            assert!(error.contains(&format!("{endpoint} of cluster ")), "{error}");
        }
        let (code, out, error) = run(endpoints[0].clone(), command);
        assert_eq!(code, 0, "{out} {error}");
    }
}
