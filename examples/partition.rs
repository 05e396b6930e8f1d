//! Three nodes in memory, and a network partition: the majority goes on, the old leader cannot, and nothing is lost.

use std::{error::Error, sync::Arc};

use consensus_core::{ConsensusEngine, EngineStatus, NodeId, Role};
use consensus_engine_raft::RaftEngine;
use consensus_testkit::{Journal, JournalReader, MemLogStorage};
use consensus_transport_mem::MemNetwork;

struct Node {
    engine: Arc<RaftEngine>,
    journal: JournalReader,
}

/// Waits until one of `nodes` leads.
async fn leader_among(nodes: &[Node], among: &[NodeId]) -> Result<usize, Box<dyn Error>> {
    let leads = |status: &Arc<EngineStatus>| status.role == Role::Leader;
    let waits =
        nodes.iter().enumerate().filter(|(id, _)| among.contains(&NodeId(*id as u64))).map(|(id, node)| {
            let mut status = node.engine.status();
            Box::pin(async move { status.wait_for(leads).await.map(|_| id) })
        });
    // Whoever is first.
    let mut waits: Vec<_> = waits.collect();
    std::future::poll_fn(|context| {
        for wait in &mut waits {
            if let std::task::Poll::Ready(id) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready(id.map_err(Into::into));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = MemNetwork::new(7);
    let mut nodes = Vec::new();
    for id in 0..3 {
        let machine = Journal::new();
        let journal = machine.reader();
        let (transport, storage) = (network.transport(NodeId(id)), MemLogStorage::new());
        let engine = RaftEngine::builder(NodeId(id)).voters(0..3).start(transport, storage, machine).await?;
        nodes.push(Node { engine, journal });
    }
    let everybody = [NodeId(0), NodeId(1), NodeId(2)];
    let old = leader_among(&nodes, &everybody).await?;
    println!("node {old} leads; it commits \"first\"");
    nodes[old].engine.propose("first".into()).await?;

    let others: Vec<NodeId> = everybody.into_iter().filter(|id| id.0 != old as u64).collect();
    network.partition(&[&[NodeId(old as u64)], &others]);
    println!("-- node {old} is cut off --");
    let lost = nodes[old].engine.propose("second, on the wrong side".into()).await;
    println!("node {old} cannot commit: {}", lost.expect_err("without a majority nothing is committed"));
    let new = leader_among(&nodes, &others).await?;
    println!("node {new} was elected by the others; it commits \"third\"");
    let third = nodes[new].engine.propose("third".into()).await?;

    network.heal();
    println!("-- the network is whole again --");
    for (id, node) in nodes.iter().enumerate() {
        node.engine.status().wait_for(|status| status.applied >= third.log_id.index).await?;
        let commands: Vec<String> = node
            .journal
            .commands()
            .iter()
            .map(|(_, command)| String::from_utf8_lossy(command).into_owned())
            .collect();
        println!("node {id} has {commands:?}");
        assert_eq!(commands, ["first", "third"]);
    }
    for node in &nodes {
        node.engine.shutdown().await?;
    }
    Ok(())
}
