//! Forwarding of commands that are proposed on followers.

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

/// Proposes until the command is applied or its outcome is unknown. Returns whether it is known to be applied.
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
async fn follower_forwards_commands_to_the_leader() {
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
async fn without_forwarding_follower_names_the_leader() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = cluster.leader().await;
    let follower = &cluster.nodes[(leading + 1) % 3].engine;
    let error = follower.propose("x".into()).await.unwrap_err();
    assert_eq!(error, ProposeError::NotLeader { leader: Some(NodeId(leading as u64)) });
}

#[tokio::test]
async fn forwarded_proposal_returns_refusal_or_unknown_without_response() {
    let cluster = forwarding(3).await;
    let leading = cluster.leader().await;
    let follower = (leading + 1) % 3;
    let engine = cluster.engine(follower);
    engine.propose("known".into()).await.unwrap();
    // Only the link for the response is cut: the command arrives.
    cluster.network.cut(NodeId(leading as u64), NodeId(follower as u64));
    let error = engine.propose("unknown".into()).await.unwrap_err();
    assert!(error.maybe_applied(), "{error}");
    cluster.network.heal();
    converged(&cluster.nodes, 2).await;
}

/// Messages are duplicated and lost, and leaders change; no command may be applied twice.
#[tokio::test(flavor = "multi_thread")]
async fn forwarded_command_is_applied_at_most_once_on_faulty_network() {
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
    assert!(known.iter().all(|command| applied.contains(command)), "acknowledged commands are applied");
    assert!(known.len() > 50, "{} were acknowledged", known.len());
    applied.sort();
    let twice: Vec<_> = applied.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

/// A command is accepted only in the term for which it was sent, and once: a later copy may have been accepted before.
#[tokio::test]
async fn forwarded_command_is_accepted_once_in_its_term() {
    let (cluster, leading, peer) = with_manual_peer().await;
    let engine = cluster.engine(leading);
    let term = engine.status().borrow().term;
    for (term, number, command) in
        [(term.0 - 1, 1, "old"), (term.0, 2, "accepted"), (term.0, 2, "accepted"), (term.0 + 1, 3, "new")]
    {
        let (kind, incarnation) = (0u32, 7u64);
        let forwarded = codec::encode(1, &(kind, term, incarnation, number, Bytes::from(command)));
        peer.send(NodeId(leading as u64), Message::Extension(forwarded.into())).unwrap();
    }
    while cluster.nodes[leading].journal.commands().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    engine.propose("last".into()).await.unwrap();
    let applied = cluster.nodes[leading].journal.commands().into_iter().map(|(_, command)| command);
    assert_eq!(applied.collect::<Vec<_>>(), ["accepted", "last"]);
}

#[tokio::test]
async fn malformed_message_of_a_peer_is_ignored() {
    let (cluster, leading, peer) = with_manual_peer().await;
    for bytes in [vec![], vec![1], vec![1, 0, 255, 255], vec![9; 100]] {
        peer.send(NodeId(leading as u64), Message::Extension(bytes.into())).unwrap();
    }
    cluster.nodes[leading].engine.propose("alive".into()).await.unwrap();
}

/// A cluster, its leader, and an additional node whose messages the test sends.
async fn with_manual_peer() -> (Cluster, usize, Arc<MemTransport>) {
    let cluster = forwarding(3).await;
    let leading = cluster.leader().await;
    let peer = cluster.network.transport(NodeId(3));
    (cluster, leading, peer)
}
