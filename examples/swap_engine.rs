//! One application, three engines: the code that uses them is the same.

use std::{error::Error, sync::Arc};

use consensus_core::{
    ConsensusEngine, Membership, NodeId,
    typed::{Application, InMemory, propose},
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_mock::MockConsensusEngine;
use consensus_testkit::MemLogStorage;
use consensus_transport_mem::MemNetwork;
use serde::{Deserialize, Serialize};

/// The longest word so far.
#[derive(Default, Serialize, Deserialize)]
struct Longest(String);

impl Application for Longest {
    type Command = String;
    type Response = String;

    fn apply(&mut self, word: String) -> String {
        if word.len() > self.0.len() {
            self.0 = word;
        }
        self.0.clone()
    }
}

fn machine() -> Box<InMemory<Longest>> {
    Box::new(InMemory::new(Longest::default()))
}

/// Knows nothing of the engine but its contract.
async fn use_it(name: &str, engine: &dyn ConsensusEngine) -> Result<(), Box<dyn Error>> {
    engine.status().wait_for(|status| status.leader == Some(status.node_id)).await?;
    let mut longest = String::new();
    for word in ["raft", "consensus", "log"] {
        longest = propose::<Longest>(engine, &word.to_owned()).await?;
    }
    println!("{name}: the longest word is {longest:?}, after entry {}", engine.status().borrow().applied);
    assert_eq!(longest, "consensus");
    engine.shutdown().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    use_it("mock, one node", &MockConsensusEngine::new(NodeId(0), machine())?).await?;

    let network = MemNetwork::new(1);
    let members: Vec<NodeId> = (0..3).map(NodeId).collect();
    let mut nodes = Vec::new();
    for id in &members {
        let transport = network.transport(*id);
        let engine =
            MockConsensusEngine::new_with_transport(*id, machine(), transport, NodeId(0), members.clone());
        nodes.push(engine.await?);
    }
    use_it("mock, a majority of three", &nodes[0]).await?;

    let mut config = RaftConfig::new(NodeId(0));
    config.bootstrap = Some(Membership::of_voters([0]));
    let transport = MemNetwork::new(2).transport(NodeId(0));
    let raft = RaftEngine::start(config, transport, Arc::new(MemLogStorage::new()), machine()).await?;
    use_it("raft, one voter", &*raft).await
}
