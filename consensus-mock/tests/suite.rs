//! The conformance suite for a single node, over the in-memory transport and over Thrift.

use std::sync::{Arc, atomic::Ordering};

use consensus_core::{NetworkTransport, NodeId, ProposeError};
use consensus_mock::MockConsensusEngine;
use consensus_testkit::{
    Journal,
    engine::{Node, converged, run_suite},
};
use consensus_transport_mem::{Link, MemNetwork};

fn single_node(inline_apply: bool) -> Node {
    let journal = Journal::new();
    let reader = journal.reader();
    let engine = MockConsensusEngine::new(NodeId(0), Box::new(journal)).unwrap();
    let engine = Arc::new(if inline_apply { engine.with_inline_apply() } else { engine });
    Node { engine, journal: reader }
}

async fn cluster_over(transports: Vec<Arc<dyn NetworkTransport>>) -> Vec<Node> {
    let members: Vec<NodeId> = transports.iter().map(|transport| transport.local()).collect();
    let mut nodes = Vec::new();
    for transport in transports {
        let journal = Journal::new();
        let reader = journal.reader();
        let (node, leader) = (transport.local(), members[0]);
        let machine = Box::new(journal);
        let engine =
            MockConsensusEngine::new_with_transport(node, machine, transport, leader, members.clone())
                .await
                .unwrap();
        nodes.push(Node { engine: Arc::new(engine), journal: reader });
    }
    nodes
}

fn mem(network: &MemNetwork, size: u64) -> Vec<Arc<dyn NetworkTransport>> {
    (0..size).map(|id| network.transport(NodeId(id)) as Arc<dyn NetworkTransport>).collect()
}

#[tokio::test]
async fn single_node_passes_the_suite() {
    run_suite(&[1], |_| async { vec![single_node(false)] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_node_with_inline_apply_passes_the_suite() {
    run_suite(&[1], |_| async { vec![single_node(true)] }).await;
}

#[tokio::test]
async fn cluster_over_memory_passes_the_suite() {
    run_suite(&[1, 2, 3], |size| cluster_over(mem(&MemNetwork::new(1), size))).await;
}

#[tokio::test]
async fn cluster_over_thrift_passes_the_suite() {
    run_suite(&[3], |size| async move {
        cluster_over(consensus_transport_thrift::testing::loopback_cluster(size).await).await
    })
    .await;
}

#[tokio::test]
async fn lost_messages_are_sent_again() {
    let network = MemNetwork::new(3);
    let nodes = cluster_over(mem(&network, 3)).await;
    network.set_all_links(&Link { loss: 0.4, duplication: 0.2, ..Link::default() });
    for n in 0..50 {
        nodes[0].engine.propose(format!("{n}").into()).await.unwrap();
    }
    converged(&nodes, 50).await;
}

#[tokio::test]
async fn command_without_a_majority_is_not_applied() {
    let network = MemNetwork::new(3);
    let nodes = cluster_over(mem(&network, 3)).await;
    network.partition(&[&[NodeId(0)], &[NodeId(1), NodeId(2)]]);
    let engine = nodes[0].engine.clone();
    let waiting = tokio::spawn(async move { engine.propose("x".into()).await });
    let unanswered = tokio::time::timeout(std::time::Duration::from_millis(300), async {
        nodes[0].engine.status().wait_for(|status| status.applied.0 > 0).await.unwrap();
    });
    assert!(unanswered.await.is_err());
    network.heal();
    waiting.await.unwrap().unwrap();
    converged(&nodes, 1).await;
}

#[tokio::test]
async fn panic_of_the_machine_is_reported_as_fatal() {
    let node = single_node(false);
    let answer = node.engine.propose("panic!".into()).await;
    assert!(matches!(answer, Err(ProposeError::Fatal { .. })), "{answer:?}");
}

#[tokio::test]
async fn engine_dropped_without_shutdown_has_dropped_its_machine() {
    let (machine, dropped) = Journal::slow_to_drop();
    drop(MockConsensusEngine::new(NodeId(0), Box::new(machine)).unwrap());
    assert!(dropped.load(Ordering::SeqCst), "a thread still holds the machine");
}
