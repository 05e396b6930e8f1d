//! The suite of `NetworkTransport` rejects what is broken: the transport in memory with one defect at a time.

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
    SaysItIsAnother,
    AltersMessages,
    LosesOneKindOfMessage,
    TellsAnotherSender,
    SendsToEverybody,
    WaitsForRoom,
    QueuesWithoutBound,
    AltersChunks,
    AnswersChunksByItself,
    TellsAnotherSenderOfChunks,
    MixesUpAnswers,
    HoldsUpMessagesForChunks,
    AnswersWithWhatWasGivenUp,
    AnswersForWhoDoesNot,
    AwaitsTheDead,
    StartsTwice,
    KnowsEverybody,
    KeepsWhatIsRemoved,
    RemovesEverybody,
    RefusesWhoKnowsNoCluster,
    IgnoresClusters,
    ComparesClustersOnce,
    SendsChunksToOtherClusters,
    QueuesWhenShutDown,
    DeliversWhenShutDown,
    ReportsNothing,
    ReportsWhatOnceWas,
}

#[test]
fn without_a_defect_it_passes() {
    run(Defect::None);
}

#[test]
fn each_rule_rejects_what_breaks_it() {
    let unaltered = "every kind of message arrives as it was sent";
    let answered = "a snapshot chunk arrives as it was sent, and its answer comes back";
    let unanswered = "a snapshot chunk without an answer is an error";
    let removed = "a node whose endpoint was removed is unknown, and no other";
    let between_clusters = "no message passes between nodes of two clusters";
    let table = [
        (Defect::SaysItIsAnother, "a transport says whose end it is"),
        (Defect::AltersMessages, unaltered),
        (Defect::LosesOneKindOfMessage, unaltered),
        (Defect::TellsAnotherSender, "who sent a message is told truly"),
        (Defect::SendsToEverybody, "a message reaches nobody but the node that it is for"),
        (Defect::WaitsForRoom, "send returns at once, on any thread"),
        (Defect::QueuesWithoutBound, "what waits for a node is bounded, and a full queue says so"),
        (Defect::AltersChunks, answered),
        (Defect::AnswersChunksByItself, answered),
        (Defect::TellsAnotherSenderOfChunks, "who sent a snapshot chunk is told truly"),
        (Defect::MixesUpAnswers, "each snapshot chunk gets the answer to itself"),
        (Defect::HoldsUpMessagesForChunks, "a snapshot chunk that waits for its answer holds up no message"),
        (Defect::AnswersWithWhatWasGivenUp, "a snapshot chunk that was given up disturbs no later one"),
        (Defect::AnswersForWhoDoesNot, unanswered),
        (Defect::AwaitsTheDead, unanswered),
        (Defect::StartsTwice, "a second start is misuse"),
        (Defect::KnowsEverybody, "a node without an endpoint is unknown"),
        (Defect::KeepsWhatIsRemoved, removed),
        (Defect::RemovesEverybody, removed),
        (
            Defect::RefusesWhoKnowsNoCluster,
            "nodes of one cluster, and those that know none yet, talk to each other",
        ),
        (Defect::IgnoresClusters, between_clusters),
        (Defect::ComparesClustersOnce, between_clusters),
        (Defect::SendsChunksToOtherClusters, "no snapshot chunk passes between nodes of two clusters"),
        (Defect::QueuesWhenShutDown, "a transport that is shut down sends nothing, and says so"),
        (Defect::DeliversWhenShutDown, "a transport that is shut down delivers nothing more"),
        (Defect::ReportsNothing, "a node that was reached is reported as reachable"),
        (Defect::ReportsWhatOnceWas, "a node that is shut down does not stay reachable"),
    ];
    assert_rejected(&rules(), &table, run);
}

/// In paused time: what never happens is waited for in no time. Only a `send` that waits takes the patience in earnest.
fn run(defect: Defect) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(run_suite_within(Duration::from_secs(1), |size| async move {
        let (network, everybody) = (MemNetwork::new(7), Arc::default());
        let transport = |id| Broken::new(defect, network.transport(NodeId(id)), size, Arc::clone(&everybody));
        (0..size).map(|id| Arc::new(transport(id)) as Arc<dyn NetworkTransport>).collect()
    }));
}

/// What is known of all nodes.
#[derive(Default)]
struct Everybody {
    /// For who shuts down in name only.
    closed: Mutex<BTreeSet<NodeId>>,
    clusters: Mutex<BTreeMap<NodeId, ClusterId>>,
}

struct Broken {
    defect: Defect,
    inner: Arc<MemTransport>,
    nodes: u64,
    started: AtomicBool,
    /// Something was sent.
    has_sent: AtomicBool,
    everybody: Arc<Everybody>,
    chunks_under_way: AtomicU64,
    answers: Mutex<Vec<SnapshotAck>>,
    reported: watch::Sender<BTreeMap<NodeId, Reachability>>,
}

impl Broken {
    fn new(defect: Defect, inner: Arc<MemTransport>, nodes: u64, everybody: Arc<Everybody>) -> Self {
        let all = (0..nodes).map(|id| (NodeId(id), Reachability::Reachable)).collect();
        let reported = if defect == Defect::ReportsNothing { BTreeMap::new() } else { all };
        Self {
            defect,
            inner,
            nodes,
            started: AtomicBool::new(false),
            has_sent: AtomicBool::new(false),
            everybody,
            chunks_under_way: AtomicU64::new(0),
            answers: Mutex::default(),
            reported: watch::channel(reported).0,
        }
    }

    fn is_closed(&self, node: NodeId) -> bool {
        self.everybody.closed.lock().unwrap().contains(&node)
    }

    fn clusters(&self, to: NodeId) -> (ClusterId, ClusterId) {
        let clusters = self.everybody.clusters.lock().unwrap();
        let cluster = |node| clusters.get(&node).copied().unwrap_or_default();
        (cluster(self.inner.local()), cluster(to))
    }

    /// What is made of a message that was not queued.
    fn not_queued(&self, to: NodeId, message: &Message, error: SendError) -> Result<(), SendError> {
        match (self.defect, &error) {
            (Defect::WaitsForRoom, SendError::QueueFull(_)) => loop {
                std::thread::sleep(Duration::from_millis(1));
                match self.inner.send(to, message.clone()) {
                    Err(SendError::QueueFull(_)) => {}
                    result => return result,
                }
            },
            (Defect::QueuesWithoutBound, SendError::QueueFull(_))
            | (Defect::KnowsEverybody, SendError::UnknownNode(_))
            | (Defect::QueuesWhenShutDown, SendError::Closed) => Ok(()),
            _ => Err(error),
        }
    }

    async fn chunk(&self, to: NodeId, chunk: SnapshotChunk) -> Result<SnapshotAck, TransportError> {
        let refused = SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused };
        let unheard = || TransportError::Io {
            context: "a chunk".to_owned(),
            source: std::io::ErrorKind::TimedOut.into(),
        };
        if self.is_closed(self.inner.local()) {
            return Err(SendError::Closed.into());
        }
        if self.is_closed(to) {
            return Err(unheard());
        }
        let answer = self.inner.send_snapshot_chunk(to, chunk).await;
        match self.defect {
            Defect::AnswersForWhoDoesNot => Ok(answer.unwrap_or(refused)),
            Defect::AwaitsTheDead if matches!(answer, Err(TransportError::Io { .. })) => {
                std::future::pending().await
            }
            Defect::MixesUpAnswers => {
                self.answers.lock().unwrap().push(answer?);
                tokio::task::yield_now().await;
                // Tasks that yielded go on in reverse order, so the first to come takes the answer to the last.
                let answer = self.answers.lock().unwrap().drain(..1).next();
                answer.ok_or_else(unheard)
            }
            _ => answer,
        }
    }
}

/// Counts a chunk as under way, and remembers an answer to it if nobody waits for it any more.
struct UnderWay<'a> {
    transport: &'a Broken,
    answer: Option<SnapshotAck>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.transport.chunks_under_way.fetch_sub(1, Ordering::SeqCst);
        self.transport.answers.lock().unwrap().extend(self.answer.take());
    }
}

#[async_trait]
impl NetworkTransport for Broken {
    fn local(&self) -> NodeId {
        match self.defect {
            Defect::SaysItIsAnother => NodeId(self.inner.local().0 + 1),
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
            Defect::RefusesWhoKnowsNoCluster if own != theirs => return Err(SendError::Unreachable(to)),
            Defect::SendsChunksToOtherClusters if !own.is_compatible_with(theirs) => {
                return Err(SendError::Unreachable(to));
            }
            Defect::LosesOneKindOfMessage if matches!(message, Message::TimeoutNow(_)) => return Ok(()),
            Defect::HoldsUpMessagesForChunks if self.chunks_under_way.load(Ordering::SeqCst) > 0 => {
                return Err(SendError::QueueFull(to));
            }
            Defect::SendsToEverybody => {
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
            Defect::AnswersChunksByItself => return Ok(installed),
            Defect::AnswersWithWhatWasGivenUp => {
                if let Some(answer) = self.answers.lock().unwrap().pop() {
                    return Ok(answer);
                }
            }
            _ => {}
        }
        self.chunks_under_way.fetch_add(1, Ordering::SeqCst);
        let late = (self.defect == Defect::AnswersWithWhatWasGivenUp).then_some(installed);
        let mut under_way = UnderWay { transport: self, answer: late };
        let answer = self.chunk(to, chunk).await;
        under_way.answer = None;
        answer
    }

    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint) {
        self.inner.set_endpoint(node, endpoint);
    }

    fn remove_endpoint(&self, node: NodeId) {
        match self.defect {
            Defect::KeepsWhatIsRemoved => {}
            Defect::RemovesEverybody => {
                (0..self.nodes).for_each(|node| self.inner.remove_endpoint(NodeId(node)));
            }
            _ => self.inner.remove_endpoint(node),
        }
    }

    fn set_cluster(&self, cluster: ClusterId) {
        self.everybody.clusters.lock().unwrap().insert(self.inner.local(), cluster);
        match self.defect {
            Defect::IgnoresClusters
            | Defect::RefusesWhoKnowsNoCluster
            | Defect::SendsChunksToOtherClusters => {}
            Defect::ComparesClustersOnce if self.has_sent.load(Ordering::SeqCst) => {}
            _ => self.inner.set_cluster(cluster),
        }
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        match self.defect {
            Defect::ReportsNothing | Defect::ReportsWhatOnceWas => self.reported.subscribe(),
            _ => self.inner.reachability(),
        }
    }

    async fn shutdown(&self) {
        match self.defect {
            Defect::DeliversWhenShutDown => {
                self.everybody.closed.lock().unwrap().insert(self.inner.local());
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
        let from = if self.defect == Defect::TellsAnotherSender { NodeId(0) } else { from };
        if let (Defect::AltersMessages, Message::AppendEntries(append)) = (self.defect, &mut message) {
            append.commit = LogIndex::ZERO;
        }
        self.inner.on_message(from, message);
    }

    async fn on_snapshot_chunk(&self, from: NodeId, mut chunk: SnapshotChunk) -> SnapshotAck {
        match self.defect {
            Defect::TellsAnotherSenderOfChunks => {
                return self.inner.on_snapshot_chunk(NodeId(0), chunk).await;
            }
            Defect::AltersChunks => chunk.transfer += 1,
            _ => {}
        }
        self.inner.on_snapshot_chunk(from, chunk).await
    }
}
