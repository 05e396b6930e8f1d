//! Orders of events that end with an error if the driver has one of the known bugs S3, S7 or D3 (`mutants`).

#![allow(dead_code, reason = "each test uses a part of the module")]

use std::{
    io::Read,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use consensus_core::{
    AppendEntries, ConsensusEngine, Entry, LeadershipId, LogBatch, LogId, LogIndex, LogState, LogStorage,
    Member, MemberKind, Membership, Message, MessageHandler, NetworkTransport, NodeId, ReadConsistency, Role,
    Snapshot, SnapshotAck, SnapshotChunk, SnapshotMeta, SnapshotOutcome, StateMachine, StateMachineError,
    StorageError, Term,
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{Journal, MemLogStorage, eventually};
use consensus_transport_mem::{MemNetwork, MemTransport};

/// A state machine that records its calls and blocks in each apply and restore until released.
pub(crate) struct Gated {
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    pub(crate) gate: mpsc::Receiver<()>,
}

impl StateMachine for Gated {
    fn applied(&self) -> LogId {
        LogId::ZERO
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let last = entries.last().map_or(LogId::ZERO, |entry| entry.id);
        self.calls.lock().unwrap().push(format!("apply up to {last}"));
        let _ = self.gate.recv();
        Ok(vec![Bytes::new(); entries.len()])
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        Ok(LogId::ZERO)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        Ok(Box::new(Vec::new()))
    }

    fn restore(&mut self, _: &mut dyn Read) -> Result<(), StateMachineError> {
        self.calls.lock().unwrap().push("restore".into());
        let _ = self.gate.recv();
        Ok(())
    }
}

/// A peer that does not respond.
pub(crate) struct Nothing;

#[async_trait]
impl MessageHandler for Nothing {
    fn on_message(&self, _: NodeId, _: Message) {}

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused }
    }
}

pub(crate) fn append(leader: &MemTransport, prev: LogId, indexes: std::ops::RangeInclusive<u64>) {
    let commit = LogIndex(*indexes.end());
    let entries = indexes.map(|index| Entry::command(LogId::new(1, index), "x")).collect();
    let message =
        AppendEntries { term: Term(1), prev, prev_leadership: LeadershipId::NONE, entries, commit, round: 1 };
    leader.send(NodeId(1), Message::AppendEntries(message)).unwrap();
}

/// 1. An apply is in progress; more entries are committed and wait for it.
/// 2. A snapshot that covers all of them arrives; its restore waits for the apply.
/// 3. The apply ends. The waiting entries must not be applied after the restore (known bug S3).
pub(crate) async fn restore_during_an_apply() -> Result<(), String> {
    let network = MemNetwork::new(1);
    let leader = network.transport(NodeId(0));
    leader.start(Arc::new(Nothing)).await.unwrap();
    let (open, gate) = mpsc::channel();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters(0..3));
    config.protocol.election_timeout = Duration::from_secs(60);
    let storage = MemLogStorage::new();
    let machine = Box::new(Gated { calls: calls.clone(), gate });
    let transport = network.transport(NodeId(1));
    let engine = RaftEngine::start(config, transport, Arc::new(storage.clone()), machine).await.unwrap();

    append(&leader, LogId::new(0, 1), 2..=2);
    eventually("an apply is in progress", || calls.lock().unwrap().first().cloned().ok_or("none")).await;
    append(&leader, LogId::new(1, 2), 3..=5);
    let mut status = engine.status();
    status.wait_for(|status| status.commit == LogIndex(5)).await.unwrap();
    let meta = SnapshotMeta { last: LogId::new(1, 100), membership: Membership::of_voters(0..3) };
    let (data, last) = (Bytes::new(), Some(0));
    let chunk = SnapshotChunk { term: Term(1), transfer: 1, meta, offset: 0, data, last };
    let sender = leader.clone();
    let sent = tokio::spawn(async move { sender.send_snapshot_chunk(NodeId(1), chunk).await });
    eventually("the snapshot is being installed", || {
        storage.load().unwrap().hard_state.installing.ok_or("not yet")
    })
    .await;
    // The first apply, of the bootstrap entry, ends; the restore ends only after the engine has seen that.
    open.send(()).unwrap();
    status.wait_for(|status| status.applied == LogIndex(1)).await.unwrap();
    drop(open);
    let ack = sent.await.unwrap().unwrap();
    assert_eq!(ack.outcome, SnapshotOutcome::Installed);
    status.wait_for(|status| status.applied == LogIndex(100)).await.unwrap();
    engine.shutdown().await.unwrap();
    let calls = calls.lock().unwrap().clone();
    if calls.last().unwrap() == "restore" { Ok(()) } else { Err(format!("{calls:?}")) }
}

/// A storage whose writes report their start and then block until released.
struct SlowStorage {
    log: MemLogStorage,
    is_slow: AtomicBool,
    has_begun: AtomicBool,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl LogStorage for SlowStorage {
    fn load(&self) -> Result<LogState, StorageError> {
        self.log.load()
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        if self.is_slow.load(Ordering::SeqCst) {
            self.has_begun.store(true, Ordering::SeqCst);
            let _ = self.gate.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
        self.log.write(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.log.read(after, last, max_bytes)
    }
}

/// 1. The only voter of a cluster with an unreachable learner accepts a command; its write starts and takes long.
/// 2. Nothing is committed during the write (known bug D3).
pub(crate) async fn commit_during_a_write() -> Result<(), String> {
    let mut config = RaftConfig::new(NodeId(1));
    let members = [(NodeId(1), MemberKind::Voter), (NodeId(2), MemberKind::Learner)];
    config.bootstrap = Some(Membership::new(members.map(|(id, kind)| (id, Member::new(kind))).into()));
    let (open, gate) = mpsc::channel();
    let storage = Arc::new(SlowStorage {
        log: MemLogStorage::new(),
        is_slow: AtomicBool::new(false),
        has_begun: AtomicBool::new(false),
        gate: Mutex::new(gate),
    });
    let transport = MemNetwork::new(1).transport(NodeId(1));
    let engine = RaftEngine::start(config, transport, storage.clone(), Box::new(Journal::new())).await;
    let engine = engine.unwrap();
    let mut status = engine.status();
    status.wait_for(|status| status.role == Role::Leader && status.commit.0 == 2).await.unwrap();
    storage.is_slow.store(true, Ordering::SeqCst);
    let proposing = engine.clone();
    let proposal = tokio::spawn(async move { proposing.propose("x".into()).await });
    eventually("the write starts", || {
        if storage.has_begun.load(Ordering::SeqCst) { Ok(()) } else { Err("not yet") }
    })
    .await;
    // The turn of the first read processes all earlier reports; the second read comes after the end of that turn.
    for _ in 0..2 {
        let _ = engine.read_barrier(ReadConsistency::StaleWithin(Duration::ZERO)).await;
    }
    let commit = status.borrow().commit;
    drop(open);
    proposal.await.unwrap().unwrap();
    engine.shutdown().await.unwrap();
    if commit == LogIndex(2) { Ok(()) } else { Err(format!("{commit} is committed before it is written")) }
}

/// A node that was restarted during a transfer is sent its next chunk, which must not start a stream (known bug S7).
pub(crate) async fn later_chunk_without_stream() -> Result<(), String> {
    let network = MemNetwork::new(1);
    let leader = network.transport(NodeId(0));
    leader.start(Arc::new(Nothing)).await.unwrap();
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters(0..3));
    let (transport, storage) = (network.transport(NodeId(1)), Arc::new(MemLogStorage::new()));
    let engine = RaftEngine::start(config, transport, storage, Box::new(Journal::new())).await.unwrap();
    let meta = SnapshotMeta { last: LogId::new(1, 100), membership: Membership::of_voters(0..3) };
    let chunk = SnapshotChunk { term: Term(1), transfer: 1, meta, offset: 5, data: "x".into(), last: None };
    let ack = leader.send_snapshot_chunk(NodeId(1), chunk).await.unwrap();
    engine.shutdown().await.unwrap();
    if ack.outcome == SnapshotOutcome::Refused { Ok(()) } else { Err(format!("{ack:?}")) }
}
