//! Nodes with TLS: who is a node, and the change from plain connections.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use consensus_core::{
    Message, MessageHandler, NetworkTransport, NodeId, SnapshotAck, SnapshotChunk, SnapshotMeta,
    SnapshotOutcome, Term,
};
use consensus_testkit::eventually;
use consensus_tls::{
    AllowedNames, ClientCertificates, Identity, PlainConnections, Tls, TlsSettings,
    issue::{Authority, Days},
};
use consensus_transport_thrift::{ThriftConfig, ThriftTransport, probe};
use tempfile::TempDir;
use tokio::sync::mpsc;

const TIME_LIMIT: Duration = Duration::from_secs(5);
const VALID: Days = Days(1);

struct Forward(mpsc::UnboundedSender<usize>);

#[async_trait]
impl MessageHandler for Forward {
    fn on_message(&self, _: NodeId, message: Message) {
        if let Message::Extension(bytes) = message {
            let _ = self.0.send(bytes.len());
        }
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Installed }
    }
}

/// TLS of a node whose certificate `authority` signs.
fn node_tls(authority: &Authority, folder: &Path, is_node: bool, plain: PlainConnections) -> Tls {
    let hosts = vec!["127.0.0.1".to_owned()];
    let issued = match is_node {
        true => authority.issue_node("node", &hosts, VALID),
        false => authority.issue_client("alice", VALID),
    };
    let file = |name: &str| folder.join(format!("{is_node}.{name}"));
    issued.unwrap().write(&file("crt"), &file("key")).unwrap();
    std::fs::write(file("ca"), authority.certificate_pem()).unwrap();
    let mut settings = TlsSettings::new("nodes");
    settings.identity = Some(Identity::new(file("crt"), file("key")));
    settings.ca_file = Some(file("ca"));
    settings.client_certificates = ClientCertificates::Required;
    settings.allowed = AllowedNames { node_usage: is_node, ..AllowedNames::default() };
    settings.plain = plain;
    Tls::load(settings).unwrap()
}

async fn start(id: u64, tls: Option<Tls>) -> (ThriftTransport, mpsc::UnboundedReceiver<usize>) {
    let config = ThriftConfig::new(NodeId(id), "127.0.0.1:0".parse().unwrap());
    let transport = ThriftTransport::bind(ThriftConfig { tls, ..config }).await.unwrap();
    let (sender, arrived) = mpsc::unbounded_channel();
    transport.start(Arc::new(Forward(sender))).await.unwrap();
    (transport, arrived)
}

fn chunk(bytes: usize) -> SnapshotChunk {
    let (term, meta, data) = (Term(1), SnapshotMeta::default(), vec![7; bytes].into());
    SnapshotChunk { term, transfer: 1, meta, offset: 0, data, last: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_snapshots_of_any_size_arrive_over_tls() {
    let (folder, ca) = (TempDir::new().unwrap(), Authority::create("ca", VALID).unwrap().0);
    let tls = node_tls(&ca, folder.path(), true, PlainConnections::Refused);
    let (one, _) = start(1, Some(tls.clone())).await;
    let (two, mut arrived) = start(2, Some(tls.clone())).await;
    one.set_endpoint(NodeId(2), two.local_endpoint().clone());
    for bytes in [1, 100, 1 << 20, 20 << 20] {
        let message = Message::Extension(vec![1; bytes].into());
        eventually("it is sent", || one.send(NodeId(2), message.clone())).await;
        let length = tokio::time::timeout(TIME_LIMIT * 4, arrived.recv()).await.unwrap().unwrap();
        assert_eq!(length, bytes);
        one.send_snapshot_chunk(NodeId(2), chunk(bytes)).await.unwrap();
    }
    assert!(probe(two.local_endpoint(), Some(&tls), TIME_LIMIT).await.is_ok());
    let error = probe(two.local_endpoint(), None, TIME_LIMIT).await.unwrap_err();
    assert!(error.to_string().contains("probing"), "{error}");
}

#[tokio::test]
async fn certificate_of_a_client_or_of_another_authority_is_no_node() {
    let (folder, other_folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (ca, other) =
        (Authority::create("ca", VALID).unwrap().0, Authority::create("other", VALID).unwrap().0);
    let node = start(1, Some(node_tls(&ca, folder.path(), true, PlainConnections::Refused))).await.0;
    let client = node_tls(&ca, folder.path(), false, PlainConnections::Refused);
    let stranger = node_tls(&other, other_folder.path(), true, PlainConnections::Refused);
    for tls in [client, stranger] {
        let (caller, _) = start(2, Some(tls)).await;
        caller.set_endpoint(NodeId(1), node.local_endpoint().clone());
        assert!(caller.send_snapshot_chunk(NodeId(1), chunk(1)).await.is_err());
    }
}

#[tokio::test]
async fn node_that_accepts_both_exchanges_messages_with_plain_nodes_and_with_tls() {
    let (folder, ca) = (TempDir::new().unwrap(), Authority::create("ca", VALID).unwrap().0);
    let both = node_tls(&ca, folder.path(), true, PlainConnections::Accepted);
    let only_tls = node_tls(&ca, folder.path(), true, PlainConnections::Refused);
    let (changing, _) = start(1, Some(both)).await;
    for tls in [None, Some(only_tls)] {
        let (other, _) = start(2, tls).await;
        other.set_endpoint(NodeId(1), changing.local_endpoint().clone());
        changing.set_endpoint(NodeId(2), other.local_endpoint().clone());
        other.send_snapshot_chunk(NodeId(1), chunk(1)).await.unwrap();
        changing.send_snapshot_chunk(NodeId(2), chunk(1)).await.unwrap();
        changing.remove_endpoint(NodeId(2));
    }
}
