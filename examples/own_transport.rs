//! A transport of one's own: tokio channels within a process. It passes the conformance suite, and Raft runs on it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use consensus_core::{
    ClusterId, ConsensusEngine, Endpoint, Message, MessageHandler, NetworkTransport, NodeId, Reachability,
    SendError, SnapshotAck, SnapshotChunk, TransportError,
};
use consensus_engine_raft::RaftEngine;
use consensus_testkit::{Journal, MemLogStorage, transport::run_suite};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

type Inbox = mpsc::Sender<(NodeId, Message)>;

/// Who is there: a queue for messages, and a handler to ask directly about snapshots. And to which cluster each belongs.
#[derive(Default)]
struct Hub(
    Mutex<BTreeMap<NodeId, (Inbox, Option<Arc<dyn MessageHandler>>)>>,
    Mutex<BTreeMap<NodeId, ClusterId>>,
);

impl Hub {
    /// Nodes of two clusters never exchange a message.
    fn may_talk(&self, from: NodeId, to: NodeId) -> bool {
        let clusters = lock(&self.1);
        let cluster = |node| clusters.get(&node).copied().unwrap_or_default();
        cluster(from).is_compatible_with(cluster(to))
    }
}

struct ChannelTransport {
    node: NodeId,
    hub: Arc<Hub>,
    queue: Mutex<Option<mpsc::Receiver<(NodeId, Message)>>>,
    delivering: Mutex<Option<JoinHandle<()>>>,
    removed: Mutex<Vec<NodeId>>,
    reachability: watch::Sender<BTreeMap<NodeId, Reachability>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChannelTransport {
    fn new(node: NodeId, hub: Arc<Hub>) -> Arc<Self> {
        let (inbox, queue) = mpsc::channel(1024); // Bounded, as the contract asks.
        lock(&hub.0).insert(node, (inbox, None));
        let queue = Mutex::new(Some(queue));
        let (delivering, removed) = (Mutex::default(), Mutex::default());
        let reachability = watch::channel(BTreeMap::new()).0;
        Arc::new(Self { node, hub, queue, delivering, removed, reachability })
    }

    fn peer(&self, to: NodeId) -> Result<(Inbox, Option<Arc<dyn MessageHandler>>), SendError> {
        let hub = lock(&self.hub.0);
        if !hub.contains_key(&self.node) {
            return Err(SendError::Closed);
        }
        let known = hub.get(&to).filter(|_| !lock(&self.removed).contains(&to));
        known.cloned().ok_or(SendError::UnknownNode(to))
    }
}

#[async_trait]
impl NetworkTransport for ChannelTransport {
    fn local(&self) -> NodeId {
        self.node
    }

    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError> {
        let mut queue = lock(&self.queue).take().ok_or(TransportError::Misuse("it was started before"))?;
        if let Some(own) = lock(&self.hub.0).get_mut(&self.node) {
            own.1 = Some(handler.clone());
        }
        let (hub, node) = (self.hub.clone(), self.node);
        let task = tokio::spawn(async move {
            while let Some((from, message)) = queue.recv().await {
                if hub.may_talk(from, node) {
                    handler.on_message(from, message);
                }
            }
        });
        *lock(&self.delivering) = Some(task);
        Ok(())
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        let peer = self.peer(to);
        let state = if peer.is_ok() { Reachability::Reachable } else { Reachability::Unreachable };
        self.reachability.send_if_modified(|all| all.insert(to, state) != Some(state));
        match peer?.0.try_send((self.node, message)) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(SendError::QueueFull(to)),
            _ => Ok(()), // Sent, or the other node is gone: best effort.
        }
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        let handler = self.peer(to)?.1.filter(|_| self.hub.may_talk(self.node, to));
        let handler = handler.ok_or(SendError::Unreachable(to))?;
        Ok(handler.on_snapshot_chunk(self.node, chunk).await)
    }

    fn set_endpoint(&self, node: NodeId, _: Endpoint) {
        lock(&self.removed).retain(|removed| *removed != node);
    }

    fn remove_endpoint(&self, node: NodeId) {
        lock(&self.removed).push(node);
    }

    fn set_cluster(&self, cluster: ClusterId) {
        lock(&self.hub.1).insert(self.node, cluster);
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        self.reachability.subscribe()
    }

    async fn shutdown(&self) {
        lock(&self.hub.0).remove(&self.node);
        let delivering = lock(&self.delivering).take();
        if let Some(task) = delivering {
            task.abort();
            let _ = task.await; // Cancelled, as asked: what was under way is lost.
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    run_suite(|size| async move {
        let hub = Arc::new(Hub::default());
        (0..size)
            .map(|id| ChannelTransport::new(NodeId(id), hub.clone()) as Arc<dyn NetworkTransport>)
            .collect()
    })
    .await;
    println!("the transport passes the conformance suite");

    let hub = Arc::new(Hub::default());
    let mut engines = Vec::new();
    for id in 0..3 {
        let transport = ChannelTransport::new(NodeId(id), hub.clone());
        let builder = RaftEngine::builder(NodeId(id)).voters(0..3);
        engines.push(builder.start(transport, MemLogStorage::new(), Journal::new()).await?);
    }
    let mut status = engines[0].status();
    let leader = status.wait_for(|status| status.leader.is_some()).await?.leader.ok_or("no leader")?;
    let committed = engines[leader.0 as usize].propose("hello".into()).await?;
    println!("Raft runs on it: node {leader} committed {}", committed.log_id);
    for engine in &engines {
        engine.shutdown().await?;
    }
    Ok(())
}
