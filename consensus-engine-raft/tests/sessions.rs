//! Exactly-once execution despite the loss of a leader and restarts.

use std::{sync::Arc, time::Duration};

use consensus_core::{
    ConsensusEngine, Membership, NodeId, ProposeError, Role,
    session::{Call, Client, ExactlyOnce, SessionError},
    typed::{Application, InMemory, Reader},
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{MemLogStorage, eventually};
use consensus_transport_mem::{Link, MemNetwork};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Sum(u64);

impl Application for Sum {
    type Command = u64;
    type Response = u64;

    fn apply(&mut self, n: u64) -> u64 {
        self.0 += n;
        self.0
    }
}

struct Node {
    engine: Arc<RaftEngine>,
    sum: Reader<Sum>,
}

async fn start(network: &MemNetwork, id: u64, storage: &MemLogStorage) -> Node {
    let mut config = RaftConfig::new(NodeId(id));
    config.bootstrap = Some(Membership::of_voters(0..3));
    config.forward_proposals = true;
    config.protocol.heartbeat_interval = Duration::from_millis(20);
    config.protocol.election_timeout = Duration::from_millis(150);
    let machine = InMemory::new(Sum::default());
    let sum = machine.reader();
    let (transport, storage) = (network.transport(NodeId(id)), Arc::new(storage.clone()));
    let engine = RaftEngine::start(config, transport, storage, Box::new(ExactlyOnce::new(machine)));
    Node { engine: engine.await.unwrap(), sum }
}

async fn leader(nodes: &[Node]) -> usize {
    let leads = |node: &Node| node.engine.status().borrow().role == Role::Leader;
    eventually("a leader is elected", || nodes.iter().position(leads).ok_or("none")).await
}

/// Proposes to all nodes in turn until one responds, like a client that does not know the outcome of its command.
async fn insist(nodes: &[Node], call: &Call) -> u64 {
    for node in nodes.iter().cycle() {
        match tokio::time::timeout(Duration::from_secs(5), call.propose(&*node.engine)).await {
            Ok(Ok(response)) => return u64::from(response[1]),
            Ok(Err(SessionError::Propose(_))) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Ok(Err(error)) => panic!("{error}"),
        }
    }
    unreachable!("the loop does not end")
}

/// Followers forward the calls, and commands and responses get lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeatedly_forwarded_call_is_applied_once() {
    let network = MemNetwork::new(8);
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(start(&network, id, &MemLogStorage::new()).await);
    }
    let leading = leader(&nodes).await;
    let mut client = Client::open(&*nodes[leading].engine, 10).await.unwrap();
    let follower = &nodes[(leading + 1) % 3..][..1];
    network.set_all_links(&Link { loss: 0.1, duplication: 0.3, ..Link::default() });
    for n in 1..=15 {
        assert_eq!(insist(follower, &client.next(vec![1, 1].into())).await, n);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_repeated_through_failover_and_restarts_is_applied_once() {
    let network = MemNetwork::new(7);
    let storages: Vec<_> = (0..3).map(|_| MemLogStorage::new()).collect();
    let mut nodes = Vec::new();
    for id in 0..3 {
        nodes.push(start(&network, id, &storages[id as usize]).await);
    }
    let first = leader(&nodes).await;
    let mut client = Client::open(&*nodes[first].engine, 10).await.unwrap();
    let add = |n: u8| bytes::Bytes::from(vec![1, n]);

    let call = client.next(add(5));
    assert_eq!(insist(&nodes, &call).await, 5);

    // The leader is isolated with a call in progress, whose outcome is unknown.
    let call = client.next(add(10));
    network.partition(&[&[NodeId(first as u64)], &others(first)]);
    let unknown = call.propose(&*nodes[first].engine).await.unwrap_err();
    assert!(matches!(unknown, SessionError::Propose(ProposeError::Unknown { .. })), "{unknown}");
    let sum = insist(&nodes, &call).await;
    network.heal();
    for _ in 0..3 {
        assert_eq!((insist(&nodes, &call).await, sum), (15, 15));
    }

    // All nodes restart and apply their logs again.
    for node in nodes.drain(..) {
        node.engine.shutdown().await.unwrap();
    }
    for id in 0..3 {
        nodes.push(start(&network, id, &storages[id as usize]).await);
    }
    leader(&nodes).await;
    assert_eq!(insist(&nodes, &call).await, 15);
    assert_eq!(insist(&nodes, &client.next(add(1))).await, 16);
    eventually("all nodes have the sum", || {
        let sums: Vec<u64> = nodes.iter().map(|node| node.sum.read(|sum| sum.0)).collect();
        if sums == [16, 16, 16] { Ok(()) } else { Err(sums) }
    })
    .await;
}

fn others(id: usize) -> Vec<NodeId> {
    (0..3).filter(|other| *other != id as u64).map(NodeId).collect()
}
