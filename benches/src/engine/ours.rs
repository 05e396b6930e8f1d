//! `consensus-engine-raft` as its users start it: in-memory log and network of the workspace, a machine that only counts.

use std::{io::Read, sync::Arc};

use bytes::Bytes;
use consensus_core::{ConsensusEngine, Entry, LogId, NodeId, Snapshot, StateMachine, StateMachineError};
use consensus_engine_raft::RaftEngine;
use consensus_testkit::MemLogStorage;
use consensus_transport_mem::MemNetwork;

use super::Cluster;

#[derive(Clone)]
pub(crate) struct Ours {
    leader: Arc<dyn ConsensusEngine>,
    nodes: Arc<Vec<Arc<RaftEngine>>>,
}

impl Cluster for Ours {
    async fn start() -> Self {
        let network = MemNetwork::new(1).with_direct_delivery();
        let mut nodes = Vec::new();
        for id in 1..=3 {
            let builder = RaftEngine::builder(NodeId(id)).voters(1..=3).without_threads();
            let (transport, storage) = (network.transport(NodeId(id)), MemLogStorage::new());
            nodes.push(builder.start(transport, storage, Last::default()).await.expect("an engine"));
        }
        let mut status = nodes[0].status();
        let status = status.wait_for(|status| status.leader.is_some()).await.expect("a running engine");
        let leader = status.leader.expect("it was waited for").0 as usize - 1;
        let leader: Arc<dyn ConsensusEngine> = nodes[leader].clone();
        Self { leader, nodes: Arc::new(nodes) }
    }

    async fn propose(&self) {
        let command = Bytes::from_static(&[7; 8]);
        self.leader.propose(command).await.expect("it is committed");
    }

    async fn stop(self) {
        for node in &*self.nodes {
            node.shutdown().await.expect("an orderly end");
        }
    }
}

/// Knows only what it applied last.
#[derive(Default)]
struct Last(LogId);

impl StateMachine for Last {
    fn applied(&self) -> LogId {
        self.0
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.0 = entries.last().map_or(self.0, |entry| entry.id);
        Ok(vec![Bytes::new(); entries.len()])
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        Ok(Box::new(Vec::new()))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut nothing = Vec::new();
        stream.read_to_end(&mut nothing)?;
        Ok(())
    }
}
