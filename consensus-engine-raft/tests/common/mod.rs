//! Clusters of engines on a network in memory.

#![allow(dead_code, reason = "each test uses a part of the module")]

use std::{sync::Arc, time::Duration};

use consensus_core::{ConsensusEngine, Membership, NodeId, Role};
use consensus_engine_raft::{RaftConfig, RaftEngine, StartError};
use consensus_testkit::{
    Journal, JournalReader, MemLogStorage,
    engine::{Node, leader},
    eventually,
};
use consensus_transport_mem::MemNetwork;

/// A cluster whose nodes can be stopped without a shutdown and started again on their disks.
pub(crate) struct Cluster {
    pub(crate) network: MemNetwork,
    pub(crate) size: u64,
    pub(crate) storages: Vec<MemLogStorage>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) configure: fn(&mut RaftConfig),
}

impl Cluster {
    pub(crate) async fn start(size: u64, configure: fn(&mut RaftConfig)) -> Self {
        let network = MemNetwork::new(size);
        let storages = (0..size).map(|_| MemLogStorage::new()).collect();
        let mut cluster = Self { network, size, storages, nodes: Vec::new(), configure };
        for id in 0..size {
            let node = cluster.open(id, Journal::new()).await.unwrap();
            cluster.nodes.push(node);
        }
        cluster
    }

    pub(crate) async fn open(&self, id: u64, journal: Journal) -> Result<Node, StartError> {
        let mut config = RaftConfig::new(NodeId(id));
        // A node that is added later gets the configuration from the leader.
        config.bootstrap = (id < self.size).then(|| Membership::of_voters(0..self.size));
        config.protocol.heartbeat_interval = Duration::from_millis(20);
        config.protocol.election_timeout = Duration::from_millis(150);
        config.snapshot_retry = Duration::from_millis(50);
        (self.configure)(&mut config);
        let reader = journal.reader();
        let transport = self.network.transport(NodeId(id));
        let storage = Arc::new(self.storages[id as usize].clone());
        let engine = RaftEngine::start(config, transport, storage, Box::new(journal)).await?;
        Ok(Node { engine, journal: reader })
    }

    /// Starts another node, which is no member.
    pub(crate) async fn add(&mut self) -> NodeId {
        let id = self.nodes.len() as u64;
        self.storages.push(MemLogStorage::new());
        let node = self.open(id, Journal::new()).await.unwrap();
        self.nodes.push(node);
        NodeId(id)
    }

    pub(crate) fn engine(&self, id: usize) -> &Arc<dyn ConsensusEngine> {
        &self.nodes[id].engine
    }

    /// Loses the memory of a node, but not its disk.
    pub(crate) async fn restart(&mut self, id: usize) {
        let reader: JournalReader = self.nodes[id].journal.clone();
        self.nodes[id].engine.shutdown().await.ok();
        self.nodes[id] = self.open(id as u64, Journal::reopen(&reader)).await.unwrap();
    }

    pub(crate) fn index_of(&self, node: &Node) -> usize {
        node.engine.status().borrow().node_id.0 as usize
    }

    pub(crate) async fn leader(&self) -> usize {
        self.index_of(leader(&self.nodes).await)
    }

    pub(crate) fn isolate(&self, id: usize) {
        let others: Vec<NodeId> = (0..self.size).filter(|n| *n != id as u64).map(NodeId).collect();
        self.network.partition(&[&[NodeId(id as u64)], &others]);
    }

    /// Isolates a follower until its leader notices and keeps no log for it.
    pub(crate) async fn lose(&self, leader: usize, follower: usize) {
        self.isolate(follower);
        let status = self.engine(leader).status();
        let follower = NodeId(follower as u64);
        eventually("the leader notices the loss of the follower", || {
            if status.borrow().peers[&follower].active { Err("active") } else { Ok(()) }
        })
        .await;
    }

    pub(crate) async fn leader_other_than(&self, id: usize) -> usize {
        eventually("another leader", || {
            let leads = |n: &Node| n.engine.status().borrow().role == Role::Leader;
            self.nodes.iter().position(|n| leads(n) && self.index_of(n) != id).ok_or("none")
        })
        .await
    }
}
