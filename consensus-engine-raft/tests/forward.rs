//! Commands proposed on followers.

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::Cluster;
use consensus_core::{ConsensusEngine, Message, NetworkTransport, NodeId, ProposeError, codec};
use consensus_testkit::engine::converged;
use consensus_transport_mem::{Link, MemTransport};

async fn forwarding(size: u64) -> Cluster {
    Cluster::start(size, |config| {
        config.forward_proposals = true;
        config.command_bytes_max = 1000;
    })
    .await
}

/// Each node's command, until it is known to be applied or may have been.
async fn insist(engine: Arc<dyn ConsensusEngine>, command: Bytes) -> bool {
    loop {
        match engine.propose(command.clone()).await {
            Ok(_) => return true,
            Err(error) if error.maybe_applied() => return false,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

#[tokio::test]
async fn a_follower_has_commands_proposed_by_the_leader() {
    let cluster = forwarding(3).await;
    let leading = cluster.leader().await;
    for n in 0..30u64 {
        let node = &cluster.nodes[(leading + n as usize) % 3];
        let committed = node.engine.propose(format!("{n}").into()).await.unwrap();
        assert_eq!(committed.response, (n + 1).to_string());
    }
    let log = converged(&cluster.nodes, 30).await;
    assert!(log.iter().enumerate().all(|(n, (_, command))| *command == format!("{n}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn passes_the_suite() {
    let cluster =
        |size| async move { Cluster::start(size, |config| config.forward_proposals = true).await.nodes };
    consensus_testkit::engine::run_suite(&[1, 3], cluster).await;
}

#[tokio::test]
async fn without_the_setting_it_says_who_leads() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = cluster.leader().await;
    let follower = &cluster.nodes[(leading + 1) % 3].engine;
    let error = follower.propose("x".into()).await.unwrap_err();
    assert_eq!(error, ProposeError::NotLeader { leader: Some(NodeId(leading as u64)) });
}

#[tokio::test]
async fn what_the_leader_refuses_is_refused_and_what_it_does_not_answer_is_unknown() {
    let cluster = forwarding(3).await;
    let leading = cluster.leader().await;
    let follower = (leading + 1) % 3;
    let engine = cluster.engine(follower);
    engine.propose("known".into()).await.unwrap();
    // Only the way back is cut: the command arrives.
    cluster.network.cut(NodeId(leading as u64), NodeId(follower as u64));
    let error = engine.propose("unknown".into()).await.unwrap_err();
    assert!(error.maybe_applied(), "{error}");
    cluster.network.heal();
    converged(&cluster.nodes, 2).await;
}

/// The network delivers twice and loses, leaders change: nothing is applied twice.
#[tokio::test(flavor = "multi_thread")]
async fn no_command_is_applied_twice_whatever_the_network_does() {
    let cluster = forwarding(3).await;
    cluster.leader().await;
    let latency = (Duration::ZERO, Duration::from_millis(4));
    cluster.network.set_all_links(&Link {
        latency,
        loss: 0.05,
        duplication: 0.3,
        reordering: true,
        cut: false,
    });
    let mut clients = Vec::new();
    for client in 0..6u64 {
        let engine = cluster.engine(client as usize % 3).clone();
        clients.push(tokio::spawn(async move {
            let mut known = Vec::new();
            for n in 0..40 {
                let command = Bytes::from(format!("{client} {n}"));
                if insist(engine.clone(), command.clone()).await {
                    known.push(command);
                }
            }
            known
        }));
    }
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let leading = cluster.leader().await;
        let _ = cluster.engine(leading).transfer_leadership(None).await;
    }
    let mut known = Vec::new();
    for client in clients {
        known.extend(client.await.unwrap());
    }
    cluster.network.set_all_links(&Link::default());
    let count = || cluster.nodes.iter().map(|node| node.journal.commands().len()).max().unwrap();
    let leading = cluster.leader().await;
    while cluster.engine(leading).propose("last".into()).await.is_err() {}
    let log = converged(&cluster.nodes, count()).await;
    let mut applied: Vec<Bytes> =
        log.into_iter().map(|(_, command)| command).filter(|c| *c != "last").collect();
    assert!(known.iter().all(|command| applied.contains(command)), "what was acknowledged is there");
    assert!(known.len() > 50, "{} were acknowledged", known.len());
    applied.sort();
    let twice: Vec<_> = applied.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// Only in the term for which it was sent, once: what comes later may be a copy of what was taken before.
#[tokio::test]
async fn a_command_is_taken_in_its_term_once() {
    let (cluster, leading, peer) = with_a_peer_by_hand().await;
    let engine = cluster.engine(leading);
    let term = engine.status().borrow().term;
    for (term, number, command) in
        [(term.0 - 1, 1, "old"), (term.0, 2, "taken"), (term.0, 2, "taken"), (term.0 + 1, 3, "new")]
    {
        let (kind, life) = (0u32, 7u64);
        let forwarded = codec::encode(1, &(kind, term, life, number, Bytes::from(command)));
        peer.send(NodeId(leading as u64), Message::Extension(forwarded.into())).unwrap();
    }
    while cluster.nodes[leading].journal.commands().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    engine.propose("last".into()).await.unwrap();
    let applied = cluster.nodes[leading].journal.commands().into_iter().map(|(_, command)| command);
    assert_eq!(applied.collect::<Vec<_>>(), ["taken", "last"]);
}

#[tokio::test]
async fn nonsense_from_a_peer_is_ignored() {
    let (cluster, leading, peer) = with_a_peer_by_hand().await;
    for bytes in [vec![], vec![1], vec![1, 0, 255, 255], vec![9; 100]] {
        peer.send(NodeId(leading as u64), Message::Extension(bytes.into())).unwrap();
    }
    cluster.nodes[leading].engine.propose("alive".into()).await.unwrap();
}

/// A cluster, who leads it, and a node beside it that says what it is told to.
async fn with_a_peer_by_hand() -> (Cluster, usize, Arc<MemTransport>) {
    let cluster = forwarding(3).await;
    let leading = cluster.leader().await;
    let peer = cluster.network.transport(NodeId(3));
    (cluster, leading, peer)
}
