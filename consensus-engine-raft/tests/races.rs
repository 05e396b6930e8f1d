//! Orders of events that a scheduler rarely produces.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    AppendEntries, ClusterId, ConsensusEngine, Endpoint, EngineStatus, Entry, Health, LeadershipId, LogBatch,
    LogId, LogIndex, LogState, LogStorage, Member, MemberChange, MemberKind, Membership, Message,
    MessageHandler, NetworkTransport, NodeId, Payload, ProposeError, Reachability, ReadConsistency,
    ReadError, Role, SendError, SnapshotAck, SnapshotChunk, StorageError, Term, TransportError,
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{Journal, MemLogStorage, eventually};
use consensus_transport_mem::{MemNetwork, MemTransport};
use tokio::sync::watch;

mod scenes;

use scenes::{Gated, Nothing, append};

#[tokio::test(flavor = "multi_thread")]
async fn entries_before_the_snapshot_are_not_applied_after_a_restore() {
    assert_eq!(scenes::restore_during_an_apply().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn entry_is_not_committed_during_its_write() {
    assert_eq!(scenes::commit_during_a_write().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn later_chunk_does_not_start_a_snapshot() {
    assert_eq!(scenes::later_chunk_without_stream().await, Ok(()));
}

/// 1. A restarted node is elected leader. Its commit index is lower than that of the leader before.
/// 2. A follower hears from it and has applied as much, which may be stale. It is fresh only once the leader has committed
///    an entry of its own term.
#[tokio::test]
async fn commit_index_of_leader_without_commit_in_its_term_is_not_fresh() {
    let network = MemNetwork::new(1);
    let leader = network.transport(NodeId(0));
    leader.start(Arc::new(Nothing)).await.unwrap();
    let engine = RaftEngine::builder(NodeId(1)).voters(0..3).without_threads();
    let engine = engine.start(network.transport(NodeId(1)), MemLogStorage::new(), Journal::new()).await;
    let engine = engine.unwrap();
    let mut status = engine.status();
    let send = |prev, entry: Entry, commit| {
        let entries = vec![entry];
        let message = AppendEntries {
            term: Term(2),
            prev,
            prev_leadership: LeadershipId::NONE,
            entries,
            commit: LogIndex(commit),
            round: 1,
        };
        leader.send(NodeId(1), Message::AppendEntries(message)).unwrap();
    };
    let within_a_minute = ReadConsistency::StaleWithin(Duration::from_secs(60));

    send(LogId::new(0, 1), Entry::command(LogId::new(1, 2), "acknowledged in term 1"), 1);
    status.wait_for(|status| status.last_log.index.0 == 2 && status.applied.0 == 1).await.unwrap();
    let stale = engine.read_barrier(within_a_minute).await;
    assert!(matches!(stale, Err(ReadError::TooStale { age_ms: None, .. })), "{stale:?}");

    send(LogId::new(1, 2), Entry { id: LogId::new(2, 3), payload: Payload::Blank }, 3);
    status.wait_for(|status| status.applied.0 == 3).await.unwrap();
    assert_eq!(engine.read_barrier(within_a_minute).await, Ok(LogIndex(3)));
    engine.shutdown().await.unwrap();
}

/// A storage that counts its reads and panics on request.
#[derive(Default)]
struct Watched {
    log: MemLogStorage,
    panics: AtomicBool,
    reads: AtomicU64,
}

impl LogStorage for Watched {
    fn load(&self) -> Result<LogState, StorageError> {
        self.log.load()
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        assert!(!self.panics.load(Ordering::SeqCst), "a bug in the storage");
        self.log.write(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.log.read(after, last, max_bytes)
    }
}

/// Entries that wait for a slow state machine are read from the disk and do not accumulate in memory.
#[tokio::test(flavor = "multi_thread")]
async fn durable_entries_waiting_for_apply_are_evicted_from_memory() {
    const COMMANDS: u64 = 500;
    let network = MemNetwork::new(1);
    let leader = network.transport(NodeId(0));
    leader.start(Arc::new(Nothing)).await.unwrap();
    let (open, gate) = mpsc::channel();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters(0..3));
    config.protocol.election_timeout = Duration::from_secs(60);
    config.cache_bytes_max = 1000;
    let storage = Arc::new(Watched::default());
    let machine = Box::new(Gated { calls: calls.clone(), gate });
    let engine =
        RaftEngine::start(config, network.transport(NodeId(1)), storage.clone(), machine).await.unwrap();
    append(&leader, LogId::new(0, 1), 2..=2);
    eventually("an apply is in progress", || calls.lock().unwrap().first().cloned().ok_or("none")).await;
    append(&leader, LogId::new(1, 2), 3..=COMMANDS);
    let mut status = engine.status();
    status.wait_for(|status| status.commit == LogIndex(COMMANDS)).await.unwrap();
    eventually("all entries are written", || {
        let written = storage.load().unwrap().last().index;
        if written == LogIndex(COMMANDS) { Ok(()) } else { Err(written) }
    })
    .await;
    // One more turn, in which the engine knows that the write is durable.
    append(&leader, LogId::new(1, COMMANDS), COMMANDS + 1..=COMMANDS + 1);
    status.wait_for(|status| status.commit == LogIndex(COMMANDS + 1)).await.unwrap();
    let before = storage.reads.load(Ordering::SeqCst);
    drop(open);
    status.wait_for(|status| status.applied == LogIndex(COMMANDS + 1)).await.unwrap();
    assert!(storage.reads.load(Ordering::SeqCst) > before, "the entries were still in memory");
    engine.shutdown().await.unwrap();
}

/// A transport that panics on request.
struct Faulty(Arc<MemTransport>, AtomicBool);

#[async_trait]
impl NetworkTransport for Faulty {
    fn local(&self) -> NodeId {
        self.0.local()
    }

    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError> {
        self.0.start(handler).await
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        assert!(!self.1.load(Ordering::SeqCst), "a bug in the transport");
        self.0.send(to, message)
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        self.0.send_snapshot_chunk(to, chunk).await
    }

    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint) {
        self.0.set_endpoint(node, endpoint);
    }

    fn remove_endpoint(&self, node: NodeId) {
        self.0.remove_endpoint(node);
    }

    fn set_cluster(&self, cluster: ClusterId) {
        self.0.set_cluster(cluster);
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        self.0.reachability()
    }

    async fn shutdown(&self) {
        self.0.shutdown().await;
    }
}

/// A broken invariant of the protocol would panic in the same task.
#[tokio::test(flavor = "multi_thread")]
async fn panic_of_engine_task_stops_the_engine_and_is_reported() {
    let network = MemNetwork::new(1);
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters([1]));
    let transport = Arc::new(Faulty(network.transport(NodeId(1)), AtomicBool::new(false)));
    let (storage, machine) = (Arc::new(MemLogStorage::new()), Box::new(Journal::new()));
    let engine = RaftEngine::start(config, transport.clone(), storage, machine).await.unwrap();
    let mut status = engine.status();
    status.wait_for(|status| status.role == Role::Leader).await.unwrap();
    transport.1.store(true, Ordering::SeqCst);
    let learner = MemberChange::Set(NodeId(2), Member::new(MemberKind::Learner));
    let change = engine.change_membership(vec![learner]).await;
    assert!(change.is_err(), "{change:?}");
    let said = |status: &Arc<EngineStatus>| match &status.health {
        Health::Fatal(why) => why.contains("a bug in the transport"),
        _ => false,
    };
    status.wait_for(said).await.unwrap();
    assert!(matches!(engine.propose("x".into()).await, Err(ProposeError::Fatal { .. })));
    assert!(engine.shutdown().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_of_storage_stops_the_engine_and_fails_waiting_calls() {
    let network = MemNetwork::new(1);
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters([1]));
    let storage = Arc::new(Watched::default());
    let machine = Box::new(Journal::new());
    let engine =
        RaftEngine::start(config, network.transport(NodeId(1)), storage.clone(), machine).await.unwrap();
    let mut status = engine.status();
    status.wait_for(|status| status.role == Role::Leader).await.unwrap();
    storage.panics.store(true, Ordering::SeqCst);
    let answer = engine.propose("x".into()).await;
    assert!(matches!(answer, Err(ProposeError::Fatal { .. })), "{answer:?}");
    assert!(matches!(&status.borrow().health, Health::Fatal(why) if why.contains("panicked")));
}
