//! The suite of `NetworkTransport` rejects the transport in memory with one defect at a time.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use common::assert_rejected;
use consensus_core::{
    ClusterId, Endpoint, LogIndex, Message, MessageHandler, NetworkTransport, NodeId, Reachability,
    SendError, SnapshotAck, SnapshotChunk, SnapshotOutcome, TransportError,
};
use consensus_testkit::transport::{rules, run_suite_within};
use consensus_transport_mem::{MemNetwork, MemTransport};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    ReportsWrongId,
    AltersMessages,
    LosesOneKindOfMessage,
    ReportsWrongSender,
    SendsToAllNodes,
    WaitsForRoom,
    QueuesWithoutLimit,
    AltersChunks,
    RespondsToChunksItself,
    ReportsWrongSenderOfChunks,
    SwapsResponses,
    DelaysMessagesForChunks,
    ReturnsResponseOfCancelledChunk,
    RespondsForSilentNode,
    WaitsForStoppedNode,
    StartsTwice,
    KnowsAllNodes,
    KeepsRemovedEndpoint,
    RemovesAllEndpoints,
    RefusesNodesWithoutCluster,
    IgnoresClusters,
    ComparesClustersOnce,
    SendsChunksToOtherClusters,
    QueuesAfterShutdown,
    DeliversAfterShutdown,
    ReportsNothing,
    NeverUpdatesReachability,
}

#[test]
fn transport_without_defect_passes() {
    run(Defect::None);
}

#[test]
fn each_rule_rejects_its_defects() {
    let unaltered = "every kind of message arrives as it was sent";
    let gets_response = "a snapshot chunk arrives as it was sent, and its response is returned";
    let without_response = "a snapshot chunk without a response is an error";
    let removed = "a node whose endpoint was removed is unknown, and no other node is";
    let between_clusters = "no message passes between nodes of two clusters";
    let table = [
        (Defect::ReportsWrongId, "a transport reports the id of its node"),
        (Defect::AltersMessages, unaltered),
        (Defect::LosesOneKindOfMessage, unaltered),
        (Defect::ReportsWrongSender, "a message arrives with the id of its sender"),
        (Defect::SendsToAllNodes, "a message reaches only its receiver"),
        (Defect::WaitsForRoom, "send returns at once, on any thread"),
        (Defect::QueuesWithoutLimit, "the queue for a node is limited, and a full queue is reported"),
        (Defect::AltersChunks, gets_response),
        (Defect::RespondsToChunksItself, gets_response),
        (Defect::ReportsWrongSenderOfChunks, "a snapshot chunk arrives with the id of its sender"),
        (Defect::SwapsResponses, "each snapshot chunk gets its own response"),
        (Defect::DelaysMessagesForChunks, "a snapshot chunk that waits for its response delays no message"),
        (Defect::ReturnsResponseOfCancelledChunk, "a cancelled snapshot chunk affects no later one"),
        (Defect::RespondsForSilentNode, without_response),
        (Defect::WaitsForStoppedNode, without_response),
        (Defect::StartsTwice, "a second start is misuse"),
        (Defect::KnowsAllNodes, "a node without an endpoint is unknown"),
        (Defect::KeepsRemovedEndpoint, removed),
        (Defect::RemovesAllEndpoints, removed),
        (
            Defect::RefusesNodesWithoutCluster,
            "nodes of one cluster, and nodes that know no cluster yet, exchange messages",
        ),
        (Defect::IgnoresClusters, between_clusters),
        (Defect::ComparesClustersOnce, between_clusters),
        (Defect::SendsChunksToOtherClusters, "no snapshot chunk passes between nodes of two clusters"),
        (Defect::QueuesAfterShutdown, "a transport that is shut down sends nothing, and reports it"),
        (Defect::DeliversAfterShutdown, "a transport that is shut down delivers no further message"),
        (Defect::ReportsNothing, "a node that was reached is reported as reachable"),
        (Defect::NeverUpdatesReachability, "a node that is shut down is not reported as reachable for long"),
    ];
    assert_rejected(&rules(), &table, run);
}

/// Under a paused clock, so that waiting for an event that never happens takes no time. Only a `send` that blocks takes real time.
fn run(defect: Defect) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(run_suite_within(Duration::from_secs(1), |size| async move {
        let (network, shared) = (MemNetwork::new(7), Arc::default());
        let transport = |id| Broken::new(defect, network.transport(NodeId(id)), size, Arc::clone(&shared));
        (0..size).map(|id| Arc::new(transport(id)) as Arc<dyn NetworkTransport>).collect()
    }));
}

/// State shared by all nodes.
#[derive(Default)]
struct SharedState {
    /// Nodes that only pretend to be shut down.
    closed: Mutex<BTreeSet<NodeId>>,
    clusters: Mutex<BTreeMap<NodeId, ClusterId>>,
}

struct Broken {
    defect: Defect,
    inner: Arc<MemTransport>,
    nodes: u64,
    started: AtomicBool,
    /// Whether a message was sent.
    has_sent: AtomicBool,
    shared: Arc<SharedState>,
    chunks_in_progress: AtomicU64,
    responses: Mutex<Vec<SnapshotAck>>,
    reported: watch::Sender<BTreeMap<NodeId, Reachability>>,
}

impl Broken {
    fn new(defect: Defect, inner: Arc<MemTransport>, nodes: u64, shared: Arc<SharedState>) -> Self {
        let all = (0..nodes).map(|id| (NodeId(id), Reachability::Reachable)).collect();
        let reported = if defect == Defect::ReportsNothing { BTreeMap::new() } else { all };
        Self {
            defect,
            inner,
            nodes,
            started: AtomicBool::new(false),
            has_sent: AtomicBool::new(false),
            shared,
            chunks_in_progress: AtomicU64::new(0),
            responses: Mutex::default(),
            reported: watch::channel(reported).0,
        }
    }

    fn is_closed(&self, node: NodeId) -> bool {
        self.shared.closed.lock().unwrap().contains(&node)
    }

    fn clusters(&self, to: NodeId) -> (ClusterId, ClusterId) {
        let clusters = self.shared.clusters.lock().unwrap();
        let cluster = |node| clusters.get(&node).copied().unwrap_or_default();
        (cluster(self.inner.local()), cluster(to))
    }

    /// Handles a message that was not queued, according to the defect.
    fn not_queued(&self, to: NodeId, message: &Message, error: SendError) -> Result<(), SendError> {
        match (self.defect, &error) {
            (Defect::WaitsForRoom, SendError::QueueFull(_)) => loop {
                std::thread::sleep(Duration::from_millis(1));
                match self.inner.send(to, message.clone()) {
                    Err(SendError::QueueFull(_)) => {}
                    result => return result,
                }
            },
            (Defect::QueuesWithoutLimit, SendError::QueueFull(_))
            | (Defect::KnowsAllNodes, SendError::UnknownNode(_))
            | (Defect::QueuesAfterShutdown, SendError::Closed) => Ok(()),
            _ => Err(error),
        }
    }

    async fn chunk(&self, to: NodeId, chunk: SnapshotChunk) -> Result<SnapshotAck, TransportError> {
        let refused = SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused };
        let timed_out = || TransportError::Io {
            context: "a chunk".to_owned(),
            source: std::io::ErrorKind::TimedOut.into(),
        };
        if self.is_closed(self.inner.local()) {
            return Err(SendError::Closed.into());
        }
        if self.is_closed(to) {
            return Err(timed_out());
        }
        let response = self.inner.send_snapshot_chunk(to, chunk).await;
        match self.defect {
            Defect::RespondsForSilentNode => Ok(response.unwrap_or(refused)),
            Defect::WaitsForStoppedNode if matches!(response, Err(TransportError::Io { .. })) => {
                std::future::pending().await
            }
            Defect::SwapsResponses => {
                self.responses.lock().unwrap().push(response?);
                tokio::task::yield_now().await;
                // Tasks that yielded continue in reverse order, so the first caller gets the response for the last one.
                let response = self.responses.lock().unwrap().drain(..1).next();
                response.ok_or_else(timed_out)
            }
            _ => response,
        }
    }
}

/// Counts a chunk as in progress, and keeps a response to it if its caller has gone.
struct ChunkInProgress<'a> {
    transport: &'a Broken,
    response: Option<SnapshotAck>,
}

impl Drop for ChunkInProgress<'_> {
    fn drop(&mut self) {
        self.transport.chunks_in_progress.fetch_sub(1, Ordering::SeqCst);
        self.transport.responses.lock().unwrap().extend(self.response.take());
    }
}

#[async_trait]
impl NetworkTransport for Broken {
    fn local(&self) -> NodeId {
        match self.defect {
            Defect::ReportsWrongId => NodeId(self.inner.local().0 + 1),
            _ => self.inner.local(),
        }
    }

    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError> {
        if self.started.swap(true, Ordering::SeqCst) && self.defect == Defect::StartsTwice {
            return Ok(());
        }
        self.inner.start(Arc::new(BrokenHandler { defect: self.defect, inner: handler })).await
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        self.has_sent.store(true, Ordering::SeqCst);
        let (own, theirs) = self.clusters(to);
        match self.defect {
            Defect::RefusesNodesWithoutCluster if own != theirs => return Err(SendError::Unreachable(to)),
            Defect::SendsChunksToOtherClusters if !own.is_compatible_with(theirs) => {
                return Err(SendError::Unreachable(to));
            }
            Defect::LosesOneKindOfMessage if matches!(message, Message::TimeoutNow(_)) => return Ok(()),
            Defect::DelaysMessagesForChunks if self.chunks_in_progress.load(Ordering::SeqCst) > 0 => {
                return Err(SendError::QueueFull(to));
            }
            Defect::SendsToAllNodes => {
                for other in (0..self.nodes).map(NodeId).filter(|node| *node != to) {
                    let _ = self.inner.send(other, message.clone());
                }
            }
            _ if self.is_closed(self.inner.local()) => return Err(SendError::Closed),
            _ => {}
        }
        self.inner.send(to, message.clone()).or_else(|error| self.not_queued(to, &message, error))
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        let installed = SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Installed };
        match self.defect {
            Defect::RespondsToChunksItself => return Ok(installed),
            Defect::ReturnsResponseOfCancelledChunk => {
                if let Some(response) = self.responses.lock().unwrap().pop() {
                    return Ok(response);
                }
            }
            _ => {}
        }
        self.chunks_in_progress.fetch_add(1, Ordering::SeqCst);
        let late = (self.defect == Defect::ReturnsResponseOfCancelledChunk).then_some(installed);
        let mut in_progress = ChunkInProgress { transport: self, response: late };
        let response = self.chunk(to, chunk).await;
        in_progress.response = None;
        response
    }

    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint) {
        self.inner.set_endpoint(node, endpoint);
    }

    fn remove_endpoint(&self, node: NodeId) {
        match self.defect {
            Defect::KeepsRemovedEndpoint => {}
            Defect::RemovesAllEndpoints => {
                (0..self.nodes).for_each(|node| self.inner.remove_endpoint(NodeId(node)));
            }
            _ => self.inner.remove_endpoint(node),
        }
    }

    fn set_cluster(&self, cluster: ClusterId) {
        self.shared.clusters.lock().unwrap().insert(self.inner.local(), cluster);
        match self.defect {
            Defect::IgnoresClusters
            | Defect::RefusesNodesWithoutCluster
            | Defect::SendsChunksToOtherClusters => {}
            Defect::ComparesClustersOnce if self.has_sent.load(Ordering::SeqCst) => {}
            _ => self.inner.set_cluster(cluster),
        }
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        match self.defect {
            Defect::ReportsNothing | Defect::NeverUpdatesReachability => self.reported.subscribe(),
            _ => self.inner.reachability(),
        }
    }

    async fn shutdown(&self) {
        match self.defect {
            Defect::DeliversAfterShutdown => {
                self.shared.closed.lock().unwrap().insert(self.inner.local());
            }
            _ => self.inner.shutdown().await,
        }
    }
}

struct BrokenHandler {
    defect: Defect,
    inner: Arc<dyn MessageHandler>,
}

#[async_trait]
impl MessageHandler for BrokenHandler {
    fn on_message(&self, from: NodeId, mut message: Message) {
        let from = if self.defect == Defect::ReportsWrongSender { NodeId(0) } else { from };
        if let (Defect::AltersMessages, Message::AppendEntries(append)) = (self.defect, &mut message) {
            append.commit = LogIndex::ZERO;
        }
        self.inner.on_message(from, message);
    }

    async fn on_snapshot_chunk(&self, from: NodeId, mut chunk: SnapshotChunk) -> SnapshotAck {
        match self.defect {
            Defect::ReportsWrongSenderOfChunks => {
                return self.inner.on_snapshot_chunk(NodeId(0), chunk).await;
            }
            Defect::AltersChunks => chunk.transfer += 1,
            _ => {}
        }
        self.inner.on_snapshot_chunk(from, chunk).await
    }
}
