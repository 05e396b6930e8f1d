//! The conformance suite, and tests of reconnection, changed endpoints and unknown peers.

use std::{io::Write, sync::Arc, time::Duration};

use async_trait::async_trait;
use consensus_core::{
    Endpoint, Message, MessageHandler, NetworkTransport, NodeId, Reachability, SnapshotAck, SnapshotChunk,
    SnapshotMeta, SnapshotOutcome, Term, TransportError,
};
use consensus_testkit::{eventually, transport::run_suite};
use consensus_transport_thrift::{ThriftConfig, ThriftTransport, testing::loopback_cluster};
use tokio::sync::mpsc;

#[tokio::test]
async fn transport_passes_the_suite() {
    run_suite(loopback_cluster).await;
}

struct Forward(mpsc::UnboundedSender<(NodeId, Message)>);

#[async_trait]
impl MessageHandler for Forward {
    fn on_message(&self, from: NodeId, message: Message) {
        let _ = self.0.send((from, message));
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused }
    }
}

async fn node(id: u64, listen: &Endpoint) -> (ThriftTransport, mpsc::UnboundedReceiver<(NodeId, Message)>) {
    let mut config = ThriftConfig::new(NodeId(id), listen.clone());
    config.advertise = Some(listen.clone()).filter(|listen| listen.port() > 0);
    let transport = ThriftTransport::bind(config).await.unwrap();
    let (sender, arrived) = mpsc::unbounded_channel();
    transport.start(Arc::new(Forward(sender))).await.unwrap();
    (transport, arrived)
}

fn anywhere() -> Endpoint {
    "127.0.0.1:0".parse().unwrap()
}

fn message(n: u8) -> Message {
    Message::Extension(vec![n].into())
}

fn chunk() -> SnapshotChunk {
    let (meta, term) = (SnapshotMeta::default(), Term(1));
    SnapshotChunk { term, transfer: 1, meta, offset: 0, data: "x".into(), last: None }
}

async fn arrives(
    from: &ThriftTransport,
    to: u64,
    arrived: &mut mpsc::UnboundedReceiver<(NodeId, Message)>,
    n: u8,
) {
    eventually("a message arrives", || {
        let sent = from.send(NodeId(to), message(n));
        match arrived.try_recv() {
            Ok((_, got)) if got == message(n) => Ok(()),
            _ => Err(sent),
        }
    })
    .await;
}

#[tokio::test]
async fn restarted_node_is_connected_again_and_reported_reachable() {
    let (a, _at_a) = node(1, &anywhere()).await;
    let (b, mut at_b) = node(2, &anywhere()).await;
    let place = b.local_endpoint().clone();
    a.set_endpoint(NodeId(2), place.clone());
    arrives(&a, 2, &mut at_b, 1).await;
    let mut reachability = a.reachability();
    reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Reachable).await.unwrap();

    b.shutdown().await;
    drop(b);
    reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Unreachable).await.unwrap();
    let (b, mut at_b) = node(2, &place).await;
    arrives(&a, 2, &mut at_b, 2).await;

    // Also at another endpoint.
    b.shutdown().await;
    let (b, mut at_b) = node(2, &anywhere()).await;
    a.set_endpoint(NodeId(2), b.local_endpoint().clone());
    arrives(&a, 2, &mut at_b, 3).await;
}

#[tokio::test]
async fn node_that_connects_is_connected_back_at_once() {
    let place = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let forever = Duration::from_secs(3600);
    let config = ThriftConfig {
        reconnect_min: forever,
        reconnect_max: forever,
        ..ThriftConfig::new(NodeId(1), anywhere())
    };
    let a = ThriftTransport::bind(config).await.unwrap();
    let (sender, _at_a) = mpsc::unbounded_channel();
    a.start(Arc::new(Forward(sender))).await.unwrap();
    a.set_endpoint(NodeId(2), place.parse().unwrap());
    let mut reachability = a.reachability();
    reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Unreachable).await.unwrap();
    let (b, mut at_b) = node(2, &place.parse().unwrap()).await;
    b.set_endpoint(NodeId(1), a.local_endpoint().clone());
    arrives(&a, 2, &mut at_b, 1).await;
}

/// Forwards all bytes to `place`. Aborting the task closes its connections.
fn forward_to(listener: Arc<tokio::net::TcpListener>, place: Endpoint) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let (mut from, _) = listener.accept().await.unwrap();
        let mut to = tokio::net::TcpStream::connect(place.to_string()).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
    })
}

#[tokio::test]
async fn broken_connection_is_replaced_before_the_node_is_reported_unreachable() {
    let reconnect_max = Duration::from_millis(20);
    let config = ThriftConfig { reconnect_max, ..ThriftConfig::new(NodeId(1), anywhere()) };
    let a = ThriftTransport::bind(config).await.unwrap();
    let (b, mut at_b) = node(2, &anywhere()).await;
    let between = Arc::new(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let passing = forward_to(between.clone(), b.local_endpoint().clone());
    a.set_endpoint(NodeId(2), between.local_addr().unwrap().to_string().parse().unwrap());
    let mut reachability = a.reachability();
    reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Reachable).await.unwrap();
    // A connection that lasted only briefly is replaced after a pause.
    tokio::time::sleep(2 * reconnect_max).await;

    let again = forward_to(between.clone(), b.local_endpoint().clone());
    passing.abort();
    arrives(&a, 2, &mut at_b, 1).await;
    assert!(!reachability.has_changed().unwrap(), "{:?}", *reachability.borrow());

    drop(between);
    tokio::time::sleep(2 * reconnect_max).await;
    again.abort();
    reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Unreachable).await.unwrap();
}

#[tokio::test]
async fn advertised_endpoint_is_used_unless_another_was_set() {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let place: Endpoint = free().parse().unwrap();
    let (a, mut at_a) = node(1, &place).await;
    let (b, mut at_b) = node(2, &anywhere()).await;
    a.set_endpoint(NodeId(2), b.local_endpoint().clone());
    arrives(&a, 2, &mut at_b, 1).await;
    arrives(&b, 1, &mut at_a, 2).await;
    // Another node with id 1 and another endpoint does not replace it.
    let (other, _at_other) = node(1, &free().parse().unwrap()).await;
    other.set_endpoint(NodeId(2), b.local_endpoint().clone());
    let refused = other.send_snapshot_chunk(NodeId(2), chunk()).await.unwrap_err().to_string();
    assert!(refused.contains("another process with its id"), "{refused}");
    arrives(&b, 1, &mut at_a, 4).await;
}

#[tokio::test]
async fn wrong_nodes_are_refused_with_the_reason() {
    let (b, _at_b) = node(2, &anywhere()).await;
    let place = b.local_endpoint().clone();
    let cases = [
        (NodeId(3), "default", "this is node 2, not node 3"),
        (NodeId(2), "another", "to the cluster named \"another\""),
    ];
    for (callee, cluster, why) in cases {
        let mut config = ThriftConfig::new(NodeId(1), anywhere());
        config.cluster = cluster.to_owned();
        let a = ThriftTransport::bind(config).await.unwrap();
        a.set_endpoint(callee, place.clone());
        let error = a.send_snapshot_chunk(callee, chunk()).await.unwrap_err();
        assert!(
            matches!(error, TransportError::Protocol { .. }) && error.to_string().contains(why),
            "{error}"
        );
    }
}

#[tokio::test]
async fn invalid_bytes_of_unknown_peers_are_ignored() {
    let (b, mut at_b) = node(2, &anywhere()).await;
    let place = b.local_endpoint().to_string();
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        &[0x7f, 0xff, 0xff, 0xff, 0x80, 1, 0, 1],
        &[0, 0, 0, 4, 0x80, 1, 0, 1],
        &[0, 0, 0, 0],
        &[0; 4096],
    ];
    for bytes in garbage {
        let mut stream = std::net::TcpStream::connect(&place).unwrap();
        stream.write_all(bytes).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let end = tokio::task::spawn_blocking(move || std::io::Read::read(&mut stream, &mut [0; 10]))
            .await
            .unwrap();
        assert!(!matches!(end, Ok(1..)), "no response to {bytes:?}");
    }
    let (a, _at_a) = node(1, &anywhere()).await;
    a.set_endpoint(NodeId(2), b.local_endpoint().clone());
    arrives(&a, 2, &mut at_b, 9).await;
}

#[test]
fn generated_code_matches_the_idl() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    match std::process::Command::new("thrift").arg("--version").output() {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("0.17") => {}
        // Another version of the compiler generates different code; CI has the right version.
        other if std::env::var_os("CI").is_none() => {
            return eprintln!("skipped: needs thrift 0.17, found {other:?}");
        }
        other => panic!("CI needs the Thrift compiler 0.17 (Debian: thrift-compiler): {other:?}"),
    }
    let check = std::process::Command::new("scripts/generate-thrift")
        .arg("--check")
        .current_dir(root)
        .output()
        .unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
