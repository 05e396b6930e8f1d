//! Clusters with TLS on every port, and how they change while they serve: certificates, authorities, and from plain to TLS.

use crate::common;

use std::{path::Path, time::Duration};

use crate::common::{
    Cluster,
    certificates::{self, Certificates, says_again},
};
use consensus_tls::Tls;
use kv_store_client::KvClient;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

const TIME: Duration = Duration::from_secs(60);
const RELOADED: &str = "were read again; new connections use them";

/// Repeats a write until it is done.
async fn put(client: &KvClient, key: &str) {
    let start = Instant::now();
    while let Err(error) = client.put(key, "v").await {
        assert!(start.elapsed() < TIME, "{key}: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Writes through each node alone, so that followers forward.
async fn put_through_each(cluster: &Cluster, tls: Option<&Tls>, key: &str) {
    for port in cluster.ports() {
        put(&certificates::client(&[port], tls.cloned()), &format!("{key}/{port}")).await;
    }
}

/// The leader, as the nodes say over TLS.
async fn leader(cluster: &Cluster, tls: &Tls) -> usize {
    let start = Instant::now();
    loop {
        for (id, port) in cluster.ports().into_iter().enumerate() {
            let endpoint = format!("127.0.0.1:{port}").parse().unwrap();
            let status = certificates::client(&[port], Some(tls.clone())).status_of(&endpoint).await;
            if status.is_ok_and(|status| status.role == "leader") {
                return id;
            }
        }
        assert!(start.elapsed() < TIME, "there is no leader");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn count(client: &KvClient) -> i64 {
    use kv_store_client::idl::RangeRequest;
    let all = RangeRequest { count_only: Some(true), ..RangeRequest::of(vec![0], Some(vec![0])) };
    client.range(all).await.unwrap().count
}

/// A cluster whose nodes have these flags, running.
fn start(flags: &[String]) -> Cluster {
    let mut cluster = Cluster::prepare(3);
    for server in &mut cluster.servers {
        flags.iter().for_each(|flag| server.argue(flag));
        server.start();
    }
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_with_tls_on_every_port_survives_the_loss_of_its_leader() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let mut cluster = start(&certificates.flags());
    let tls = certificates.tls(Some("alice"));
    put_through_each(&cluster, Some(&tls), "before").await;
    let lost = leader(&cluster, &tls).await;
    cluster.servers[lost].kill();
    let client = certificates::client(&cluster.ports(), Some(tls.clone()));
    put(&client, "after").await;
    assert_ne!(leader(&cluster, &tls).await, lost);
    cluster.servers[lost].start();
    put_through_each(&cluster, Some(&tls), "again").await;
    assert_eq!(count(&client).await, 7);

    // The certificate of a client, and no certificate, are no node.
    let port = cluster.ports()[lost] + 1000;
    for (tls, words) in [(&tls, "for clients alone"), (&certificates.tls(None), "shows no certificate")] {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // With TLS 1.3 a client is done before the server has verified it.
        if let Ok(mut stream) = tls.connect(stream, "127.0.0.1", TIME).await {
            assert!(matches!(stream.read(&mut [0]).await, Ok(0) | Err(_)));
        }
        cluster.servers[lost].says(words);
    }
    let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    plain.write_all(&[0, 0, 0, 1, 0]).await.unwrap();
    assert!(matches!(plain.read(&mut [0]).await, Ok(0) | Err(_)), "it is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_changes_from_plain_to_tls_while_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(dir.path().join("certificates"));
    let tls = certificates.tls(Some("alice"));
    let optional = ["--tls-mode=optional", "--peer-tls-mode=optional"];
    let mut cluster = start(&[]);
    put_through_each(&cluster, None, "plain").await;
    for id in 0..3 {
        assert_eq!(cluster.servers[id].terminate().0, Some(0));
        certificates.flags().iter().for_each(|flag| cluster.servers[id].argue(flag));
        optional.iter().for_each(|flag| cluster.servers[id].argue(flag));
        cluster.servers[id].start();
        put_through_each(&cluster, None, &format!("changing/{id}")).await;
        put(&certificates::client(&[cluster.ports()[id]], Some(tls.clone())), &format!("tls/{id}")).await;
    }
    // All nodes and clients can use TLS now.
    for id in 0..3 {
        assert_eq!(cluster.servers[id].terminate().0, Some(0));
        optional.iter().for_each(|flag| cluster.servers[id].argue_no_more(flag));
        cluster.servers[id].start();
        put_through_each(&cluster, Some(&tls), &format!("required/{id}")).await;
    }
    assert!(common::client(&cluster.ports()).get("plain").await.is_err());
    let client = certificates::client(&cluster.ports(), Some(tls));
    assert_eq!(count(&client).await, 3 + 3 * 4 + 3 * 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authority_is_replaced_without_a_restart_and_connections_stay_open() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Certificates::make(dir.path().join("old")), Certificates::make(dir.path().join("new")));
    let used = Certificates { dir: dir.path().join("used") };
    std::fs::create_dir(&used.dir).unwrap();
    old.copy_to(&["ca.crt", "node.crt", "node.key"], &used.dir);
    let flags = [used.flags(), vec!["--tls-reload-interval=100ms".to_owned()]].concat();
    let cluster = start(&flags);
    let (of_old, of_new) = (old.tls(Some("alice")), new.tls(Some("alice")));
    put_through_each(&cluster, Some(&of_old), "old").await;
    // A connection of a client that is idle while everything is replaced.
    let port = cluster.ports()[0];
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut open = of_old.connect(stream, "127.0.0.1", TIME).await.unwrap();
    assert!(certificates::client(&[port], Some(of_new.clone())).get("k").await.is_err());

    // First both authorities are trusted, then the nodes have certificates of the new one, then the old one is trusted no longer.
    let ca = |names: &[&Certificates]| -> String {
        names.iter().map(|of| std::fs::read_to_string(of.path("ca.crt")).unwrap()).collect()
    };
    replace(&cluster, || replace_file(&used.dir, "ca.crt", &ca(&[&old, &new])));
    // Servers still have certificates of the old authority: a client that changes trusts both, too.
    put_through_each(&cluster, Some(&of_old), "both").await;
    replace(&cluster, || new.copy_to(&["node.key", "node.crt"], &used.dir));
    put_through_each(&cluster, Some(&of_new), "new").await;
    replace(&cluster, || replace_file(&used.dir, "ca.crt", &ca(&[&new])));
    put_through_each(&cluster, Some(&of_new), "last").await;
    assert!(certificates::client(&[port], Some(of_old)).get("k").await.is_err());
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    open.write_all(request).await.unwrap();
    open.flush().await.unwrap();
    let mut response = String::new();
    open.read_to_string(&mut response).await.unwrap();
    assert!(response.contains(r#""health":"true""#), "{response}");

    // Bad files are named, and those from before stay in use; a request by a signal says it again.
    let server = &cluster.servers[0];
    replace_file(&used.dir, "node.key", "nonsense");
    server.says("those from before stay in use");
    let before = server.log().matches("those from before stay in use").count();
    server.signal("-HUP");
    says_again(server, "those from before stay in use", before);
    assert!(server.log().contains("node.key"));
    put_through_each(&cluster, Some(&of_new), "still").await;
}

/// Replaces files, and waits until the nodes use them for clients and for nodes.
fn replace(cluster: &Cluster, change: impl FnOnce()) {
    let said = |id: usize| cluster.servers[id].log().matches(RELOADED).count();
    let before = [0, 1, 2].map(said);
    change();
    for (server, before) in cluster.servers.iter().zip(before) {
        says_again(server, RELOADED, before + 1);
    }
}

fn replace_file(folder: &Path, name: &str, content: &str) {
    std::fs::write(folder.join("written"), content).unwrap();
    std::fs::rename(folder.join("written"), folder.join(name)).unwrap();
}
