//! A replicated counter: three nodes in one process, each with its own log, agreeing on every increment.

use consensus_core::{
    NodeId, ReadConsistency,
    typed::{Application, InMemory, TypedEngine},
};
use consensus_engine_raft::RaftEngine;
use consensus_testkit::MemLogStorage;
use consensus_transport_mem::MemNetwork;
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Counter(i64);

#[derive(Serialize, Deserialize)]
enum Command {
    Add(i64),
}

impl Application for Counter {
    type Command = Command;
    type Response = i64;

    fn apply(&mut self, Command::Add(n): Command) -> i64 {
        self.0 += n;
        self.0
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let network = MemNetwork::new(1);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let machine = InMemory::new(Counter::default());
        let reader = machine.reader();
        let (transport, storage) = (network.transport(NodeId(id)), MemLogStorage::new());
        let engine = RaftEngine::builder(NodeId(id)).voters(1..=3).start(transport, storage, machine).await?;
        nodes.push(TypedEngine::new(engine, reader));
    }
    let mut status = nodes[0].engine().status();
    let leader = status.wait_for(|status| status.leader.is_some()).await?.leader.ok_or("no leader")?;
    println!("node {leader} leads");

    let node = &nodes[leader.0 as usize - 1];
    for n in [1, 10, 100] {
        println!("add {n}: the counter is {}", node.propose(&Command::Add(n)).await?);
    }
    let counter = node.read(ReadConsistency::Linearizable, |counter| counter.0).await?;
    println!("a linearizable read: {counter}");
    assert_eq!(counter, 111);
    for node in &nodes {
        node.engine().shutdown().await?;
    }
    Ok(())
}
