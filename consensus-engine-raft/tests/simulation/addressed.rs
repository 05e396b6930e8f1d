//! A network in which a message goes to an address, and reaches only the node at that address.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use async_trait::async_trait;
use consensus_core::{
    ClusterId, ConsensusEngine, Endpoint, Member, Membership, Message, MessageHandler, NetworkTransport,
    NodeId, Reachability, Role, SendError, SnapshotAck, SnapshotChunk, TransportError,
};
use consensus_engine_raft::RaftEngine;
use consensus_transport_mem::MemTransport;
use tokio::sync::watch;

use super::{Record, boundary::Addresses};

/// Transport of a node that knows the others by address: from its engine, or from the file that its operator wrote before its
/// start, whichever is newer. (A follower whose log ends before a move of the leader does not learn the leader's address from
/// the leader, because its responses go to the old address.)
pub(crate) struct Addressed {
    inner: Arc<MemTransport>,
    addresses: Arc<Addresses>,
    /// Known addresses; newer ones are greater.
    file: BTreeMap<NodeId, u16>,
    /// `None` for nodes whose address was removed.
    told: Mutex<BTreeMap<NodeId, Option<u16>>>,
    /// The engine of the node, once it has started.
    pub(crate) engine: OnceLock<Weak<RaftEngine>>,
    record: Arc<Mutex<Record>>,
}

impl Addressed {
    pub(crate) fn new(
        inner: Arc<MemTransport>,
        addresses: Arc<Addresses>,
        nodes: u64,
        record: Arc<Mutex<Record>>,
    ) -> Self {
        let file = (0..nodes).map(|id| (NodeId(id), addresses.of(id))).collect();
        Self { inner, addresses, file, told: Mutex::default(), engine: OnceLock::new(), record }
    }

    /// Whether a message to the node goes to its present address.
    fn finds(&self, to: NodeId) -> Result<bool, SendError> {
        let written = self.file.get(&to).copied();
        let port = match self.told.lock().unwrap().get(&to) {
            Some(told) => told.map(|port| port.max(written.unwrap_or(0))),
            None => written,
        };
        port.map(|port| port == self.addresses.of(to.0)).ok_or(SendError::UnknownNode(to))
    }

    /// Checks that a part of a snapshot is sent by the leader of its term, which has not stepped down meanwhile.
    fn check_leads(&self, chunk: &SnapshotChunk) {
        let Some(engine) = self.engine.get().and_then(Weak::upgrade) else { return };
        let status = engine.status().borrow().clone();
        if (status.role, status.term) != (Role::Leader, chunk.term) {
            self.record.lock().unwrap().fail(format!(
                "node {} sends a snapshot of term {}, but is {} in term {}",
                self.local(),
                chunk.term,
                status.role,
                status.term
            ));
        }
    }

    /// Whether the addresses of all other nodes in the configuration are present.
    pub(crate) fn finds_all(&self, membership: &Membership) -> bool {
        let own = self.local();
        let others = membership.all_members().filter(|(id, _)| *id != own);
        others.into_iter().all(|(id, _)| self.finds(id).unwrap_or(false))
    }

    /// The first member whose endpoint the engine should have passed on, but has not.
    pub(crate) fn untold(&self, membership: &Membership) -> Option<NodeId> {
        let (told, own) = (self.told.lock().unwrap(), self.local());
        if told.is_empty() {
            return None; // The engine has not started.
        }
        let others = membership.all_members().filter(|(id, _)| *id != own);
        let differs = |(id, member): &(NodeId, &Member)| {
            let port = member.endpoint.as_ref().map(Endpoint::port);
            told.get(id).copied().flatten() != port
        };
        others.into_iter().find(differs).map(|(id, _)| id)
    }
}

#[async_trait]
impl NetworkTransport for Addressed {
    fn local(&self) -> NodeId {
        self.inner.local()
    }

    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError> {
        self.inner.start(handler).await
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        if self.finds(to)? { self.inner.send(to, message) } else { Ok(()) }
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        self.check_leads(&chunk);
        if !self.finds(to)? {
            let context = format!("snapshot chunk to node {to}");
            return Err(TransportError::Io { context, source: io::ErrorKind::TimedOut.into() });
        }
        self.inner.send_snapshot_chunk(to, chunk).await
    }

    fn set_cluster(&self, cluster: ClusterId) {
        self.inner.set_cluster(cluster);
    }

    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint) {
        self.told.lock().unwrap().insert(node, Some(endpoint.port()));
    }

    fn remove_endpoint(&self, node: NodeId) {
        self.told.lock().unwrap().insert(node, None);
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        self.inner.reachability()
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}
