//! Identities of nodes, refusals, and the bootstrap of a cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    ClusterId, Endpoint, Member, MemberKind, Membership, Message, MessageHandler, NetworkTransport, NodeId,
    Reachability, SnapshotAck, SnapshotChunk, SnapshotMeta, SnapshotOutcome, StorageId, Term,
};
use consensus_testkit::eventually;
use consensus_transport_thrift::{
    ClusterHistory, Founders, PeerState, ThriftConfig, ThriftTransport, find_member,
    founding::{Conflict, FoundingConfig, FoundingOutcome, await_founders},
    probe,
};
use tokio::sync::mpsc;

const TIME_LIMIT: Duration = Duration::from_secs(10);

struct Forward(mpsc::UnboundedSender<Message>);

#[async_trait]
impl MessageHandler for Forward {
    fn on_message(&self, _: NodeId, message: Message) {
        let _ = self.0.send(message);
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused }
    }
}

async fn bind(id: u64, storage: u64) -> ThriftTransport {
    let config = ThriftConfig::new(NodeId(id), "127.0.0.1:0".parse().unwrap());
    ThriftTransport::bind(ThriftConfig { storage: StorageId(storage), ..config }).await.unwrap()
}

async fn start(transport: &ThriftTransport) -> mpsc::UnboundedReceiver<Message> {
    let (sender, arrived) = mpsc::unbounded_channel();
    transport.start(Arc::new(Forward(sender))).await.unwrap();
    arrived
}

fn message() -> Message {
    Message::Extension("x".into())
}

async fn arrives(from: &ThriftTransport, to: u64, arrived: &mut mpsc::UnboundedReceiver<Message>) {
    eventually("a message arrives", || {
        let sent = from.send(NodeId(to), message());
        arrived.try_recv().map(drop).map_err(|_| sent)
    })
    .await;
}

/// The error of a snapshot chunk, which contains the reason of a refusal.
async fn refusal(from: &ThriftTransport, to: u64) -> String {
    let (term, meta) = (Term(1), SnapshotMeta::default());
    let chunk = SnapshotChunk { term, transfer: 1, meta, offset: 0, data: "x".into(), last: None };
    from.send_snapshot_chunk(NodeId(to), chunk).await.unwrap_err().to_string()
}

fn founders(ids: impl IntoIterator<Item = u64>) -> Founders {
    ids.into_iter().map(|id| (NodeId(id), MemberKind::Voter)).collect()
}

#[tokio::test]
async fn probe_is_answered_before_the_start_with_what_was_announced() {
    let transport = bind(2, 20).await;
    let place = transport.local_endpoint().clone();
    transport.announce(ClusterHistory::Empty { founders: founders(1..4) });
    transport.answer_probes();
    let answer = probe(&place, None, TIME_LIMIT).await.unwrap();
    assert_eq!((answer.node, answer.storage, answer.cluster), (NodeId(2), StorageId(20), ClusterId::NONE));
    assert_eq!(answer.cluster_name, "default");
    assert_eq!((answer.state, answer.knows_asker), (PeerState::Empty { founders: founders(1..4) }, None));

    let _arrived = start(&transport).await;
    let storages = BTreeMap::new();
    transport.announce(ClusterHistory::Founding { founders: founders(1..3), storages });
    assert_eq!(
        probe(&place, None, TIME_LIMIT).await.unwrap().state,
        PeerState::Founding { founders: founders(1..3) }
    );
    // A node that knows its cluster has a history, even if another history was announced.
    transport.set_cluster(ClusterId(7));
    let answer = probe(&place, None, TIME_LIMIT).await.unwrap();
    assert_eq!((answer.state, answer.cluster), (PeerState::Member, ClusterId(7)));
    transport.shutdown().await;
    assert!(probe(&place, None, TIME_LIMIT).await.unwrap_err().to_string().contains(&place.to_string()));
}

#[tokio::test]
async fn probe_finds_the_member_at_an_endpoint() {
    let transport = bind(2, 20).await;
    transport.answer_probes();
    let place = transport.local_endpoint().clone();
    let members =
        [(NodeId(2), Some(StorageId(20))), (NodeId(5), None), (NodeId(6), Some(StorageId::UNKNOWN))];
    let at = |text: &str| text.parse::<Endpoint>().unwrap();
    let endpoints = [(NodeId(2), place.clone()), (NodeId(5), at("h:5")), (NodeId(6), at("[::1]:6"))];
    transport.announce(ClusterHistory::Member { members: members.into(), endpoints: endpoints.into() });
    for (endpoint, expected) in [
        (place.clone(), Some((NodeId(2), Some(StorageId(20))))),
        (at("h:5"), Some((NodeId(5), None))),
        (at("[::1]:6"), Some((NodeId(6), None))),
        (at("h:6"), None),
    ] {
        let answer = find_member(&place, &endpoint, None, TIME_LIMIT).await.unwrap();
        let found = answer.member_at_endpoint.map(|member| (member.node, member.storage));
        assert_eq!(found, expected, "{endpoint}");
    }
    assert_eq!(probe(&place, None, TIME_LIMIT).await.unwrap().member_at_endpoint, None);
}

#[test]
fn history_follows_from_the_configuration() {
    assert_eq!(
        ClusterHistory::of(&Membership::default()),
        ClusterHistory::Empty { founders: Founders::new() }
    );
    let mut members = Membership::of_voters([1, 2]).members().clone();
    members.get_mut(&NodeId(2)).unwrap().storage = Some(StorageId(7));
    let endpoint = "h:3".parse().ok();
    members.insert(NodeId(3), Member { endpoint, ..Member::new(MemberKind::Learner) });
    let storages = BTreeMap::new();
    let membership = Membership::new(members);
    assert_eq!(
        ClusterHistory::of(&membership),
        ClusterHistory::Founding { founders: founders([1, 2]), storages }
    );
    let members = [(NodeId(1), None), (NodeId(2), Some(StorageId(7))), (NodeId(3), None)].into();
    assert_eq!(
        ClusterHistory::of(&membership.with_cluster(ClusterId(1))),
        ClusterHistory::Member { members, endpoints: [(NodeId(3), "h:3".parse().unwrap())].into() }
    );
}

#[tokio::test]
async fn caller_waits_until_the_callee_is_started() {
    let (a, b) = (bind(1, 10).await, bind(2, 20).await);
    let _at_a = start(&a).await;
    b.answer_probes();
    a.set_endpoint(NodeId(2), b.local_endpoint().clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_ne!(a.reachability().borrow()[&NodeId(2)], Reachability::Reachable);
    let mut at_b = start(&b).await;
    arrives(&a, 2, &mut at_b).await;
}

#[tokio::test]
async fn node_of_another_cluster_is_refused_with_both_identities() {
    let (a, b) = (bind(1, 10).await, bind(2, 20).await);
    let (_at_a, mut at_b) = (start(&a).await, start(&b).await);
    a.set_endpoint(NodeId(2), b.local_endpoint().clone());
    arrives(&a, 2, &mut at_b).await;
    // An existing connection ends when both nodes know their clusters.
    b.set_cluster(ClusterId(0xb));
    arrives(&a, 2, &mut at_b).await;
    a.set_cluster(ClusterId(0xa));
    let mut reachability = a.reachability();
    reachability.wait_for(|all| all[&NodeId(2)] == Reachability::Unreachable).await.unwrap();
    let why = refusal(&a, 2).await;
    for words in ["node 1 belongs to the cluster with the identity 000000000000000a", "000000000000000b"] {
        assert!(why.contains(words), "{why}");
    }
}

#[tokio::test]
async fn second_node_with_one_id_is_refused_with_both_storages() {
    let (twin, other, c) = (bind(1, 11).await, bind(1, 12).await, bind(2, 20).await);
    let (_at_twin, _at_other) = (start(&twin).await, start(&other).await);
    let mut at_c = start(&c).await;
    c.set_endpoint(NodeId(1), twin.local_endpoint().clone());
    let mut reachability = c.reachability();
    reachability.wait_for(|all| all[&NodeId(1)] == Reachability::Reachable).await.unwrap();
    other.set_endpoint(NodeId(2), c.local_endpoint().clone());
    let why = refusal(&other, 2).await;
    for words in ["storage 11", "storage 12", "two nodes were started with one id"] {
        assert!(why.contains(words), "{why}");
    }
    twin.set_endpoint(NodeId(2), c.local_endpoint().clone());
    arrives(&twin, 2, &mut at_c).await;
    // When the first node is gone, the second is accepted: it may be the same node with an emptied disk.
    twin.shutdown().await;
    arrives(&other, 2, &mut at_c).await;
}

#[tokio::test]
async fn second_process_on_a_copy_of_a_storage_is_refused() {
    let (node, copy, peer) = (bind(1, 11).await, bind(1, 11).await, bind(2, 20).await);
    let (_at_node, _at_copy, mut at_peer) = (start(&node).await, start(&copy).await, start(&peer).await);
    peer.set_endpoint(NodeId(1), node.local_endpoint().clone());
    let mut reachability = peer.reachability();
    reachability.wait_for(|all| all[&NodeId(1)] == Reachability::Reachable).await.unwrap();
    copy.set_endpoint(NodeId(2), peer.local_endpoint().clone());
    let why = refusal(&copy, 2).await;
    assert!(why.contains("another process with its id"), "{why}");
    node.set_endpoint(NodeId(2), peer.local_endpoint().clone());
    arrives(&node, 2, &mut at_peer).await;
    node.shutdown().await;
    arrives(&copy, 2, &mut at_peer).await;
}

/// Transports of three founders that know each other's endpoints.
async fn three_founders() -> (Vec<ThriftTransport>, FoundingConfig) {
    let transports = [bind(0, 100).await, bind(1, 101).await, bind(2, 102).await];
    let endpoints = transports.iter().map(|own| (own.local(), own.local_endpoint().clone())).collect();
    let config = FoundingConfig { founders: founders(0..3), endpoints, may_be_missing: BTreeSet::new() };
    (transports.into(), config)
}

async fn found(transport: &ThriftTransport, config: &FoundingConfig) -> Result<FoundingOutcome, Conflict> {
    await_founders(transport, config, |_| ()).await.map_err(|error| error.conflict)
}

#[tokio::test]
async fn three_empty_nodes_bootstrap_together() {
    let (nodes, config) = three_founders().await;
    let (mut told, last) = (Vec::new(), Duration::from_millis(200));
    let first = await_founders(&nodes[0], &config, |whom| told.push(whom.clone()));
    let rest = async {
        tokio::time::sleep(last).await;
        tokio::join!(found(&nodes[1], &config), found(&nodes[2], &config))
    };
    let since = std::time::Instant::now();
    let (first, (second, third)) = tokio::join!(first, rest);
    let bootstrap = Ok(FoundingOutcome::Bootstrap);
    assert_eq!(
        (first.map_err(|error| error.conflict), second, third),
        (bootstrap.clone(), bootstrap.clone(), bootstrap)
    );
    assert!(since.elapsed() < last + Duration::from_secs(2), "{:?}", since.elapsed());
    assert!(told.iter().all(|whom| whom.is_subset(&BTreeSet::from([NodeId(1), NodeId(2)]))), "{told:?}");
}

#[tokio::test]
async fn node_with_a_disk_emptied_during_the_bootstrap_does_not_bootstrap_again() {
    let (nodes, config) = three_founders().await;
    let (first, second, third) =
        tokio::join!(found(&nodes[0], &config), found(&nodes[1], &config), found(&nodes[2], &config));
    assert_eq!(
        (first, second, third.is_ok()),
        (Ok(FoundingOutcome::Bootstrap), Ok(FoundingOutcome::Bootstrap), true)
    );
    let place: Endpoint = nodes[2].local_endpoint().clone();
    nodes[2].shutdown().await;
    let thrift = ThriftConfig::new(NodeId(2), place);
    let emptied = ThriftConfig { storage: StorageId(999), ..thrift };
    let emptied = ThriftTransport::bind(emptied).await.unwrap();
    let stopped = Conflict::OtherDisk { known: StorageId(102), own: StorageId(999) };
    assert_eq!(found(&emptied, &config).await, Err(stopped));
}

#[tokio::test]
async fn node_follows_a_cluster_that_includes_it() {
    let (nodes, config) = three_founders().await;
    nodes[0].answer_probes();
    for (known, outcome) in [
        (Some(None), Ok(FoundingOutcome::Follow { member: NodeId(0) })),
        (Some(Some(StorageId(101))), Ok(FoundingOutcome::Follow { member: NodeId(0) })),
        (Some(Some(StorageId(7))), Err(Conflict::OtherDisk { known: StorageId(7), own: StorageId(101) })),
        (None, Err(Conflict::NotAMember(ClusterId::NONE))),
    ] {
        let members = known.map(|storage| (NodeId(1), storage)).into_iter().collect();
        nodes[0].announce(ClusterHistory::Member { members, endpoints: BTreeMap::new() });
        assert_eq!(found(&nodes[1], &config).await, outcome);
    }
}
