//! The commit index of an append whose entries are read from a slow disk.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    AppendEntries, AppendOutcome, AppendResponse, ConsensusEngine, Entry, LogBatch, LogId, LogIndex,
    LogState, LogStorage, Member, MemberChange, MemberKind, Membership, Message, MessageHandler,
    NetworkTransport, NodeId, Role, SnapshotAck, SnapshotChunk, SnapshotOutcome, StorageError, StorageId,
    Term,
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{Journal, MemLogStorage, eventually};
use consensus_transport_mem::MemNetwork;

/// A storage whose reads of the first entries can be blocked.
#[derive(Default)]
struct SlowReads {
    log: MemLogStorage,
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Default)]
struct Gate {
    is_shut: bool,
    waiting: u64,
}

impl SlowReads {
    fn shut(&self, is_shut: bool) {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).is_shut = is_shut;
        self.changed.notify_all();
    }

    fn waiting(&self) -> u64 {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner).waiting
    }
}

impl LogStorage for SlowReads {
    fn load(&self) -> Result<LogState, StorageError> {
        self.log.load()
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        self.log.write(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        if after == LogIndex::ZERO {
            let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            gate.waiting += 1;
            drop(self.changed.wait_while(gate, |gate| gate.is_shut).unwrap_or_else(PoisonError::into_inner));
        }
        self.log.read(after, last, max_bytes)
    }
}

/// A learner with an empty log that records the appends it receives.
#[derive(Default)]
struct Learner(Mutex<Vec<AppendEntries>>);

impl Learner {
    fn appends(&self) -> Vec<AppendEntries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl MessageHandler for Learner {
    fn on_message(&self, _: NodeId, message: Message) {
        if let Message::AppendEntries(append) = message {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(append);
        }
    }

    async fn on_snapshot_chunk(&self, _: NodeId, chunk: SnapshotChunk) -> SnapshotAck {
        SnapshotAck { term: chunk.term, outcome: SnapshotOutcome::Refused }
    }
}

/// 1. A learner lacks the whole log. The first entries are not cached, and the leader's disk is slow to read them.
/// 2. Meanwhile more entries are committed.
/// 3. The delayed append has the commit index of the time when it is sent, not of the time when it was created.
#[tokio::test(flavor = "multi_thread")]
async fn append_that_waited_for_the_disk_has_the_commit_index_at_send_time() {
    let network = MemNetwork::new(1);
    let learner = Arc::new(Learner::default());
    let its_transport = network.transport(NodeId(2));
    its_transport.start(learner.clone()).await.unwrap();
    let storage = Arc::new(SlowReads::default());
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters([1]));
    config.cache_bytes_max = 1_000;
    let (transport, machine) = (network.transport(NodeId(1)), Box::new(Journal::new()));
    let engine = RaftEngine::start(config, transport, storage.clone(), machine).await.unwrap();
    let mut status = engine.status();
    status.wait_for(|status| status.role == Role::Leader).await.unwrap();
    for _ in 0..20 {
        engine.propose(vec![7; 200].into()).await.unwrap();
    }

    storage.shut(true);
    let learns = MemberChange::Add(NodeId(2), Member::new(MemberKind::Learner));
    engine.change_membership(vec![learns]).await.unwrap();
    let first =
        eventually("the learner receives an append", || learner.appends().first().cloned().ok_or("nothing"));
    let AppendEntries { term, prev, round, .. } = first.await;
    let outcome = AppendOutcome::Rejected { prev: prev.index, hint: LogId::ZERO };
    let lacks_all = AppendResponse { term, round, outcome, storage: StorageId(2), joining: true };
    its_transport.send(NodeId(1), Message::AppendResponse(lacks_all)).unwrap();
    eventually("the first entries are read", || if storage.waiting() > 0 { Ok(()) } else { Err("not yet") })
        .await;

    let before = engine.status().borrow().commit;
    engine.propose("meanwhile".into()).await.unwrap();
    let after = status.wait_for(|status| status.commit > before).await.unwrap().commit;
    storage.shut(false);
    let whole = eventually("the first entries are sent", || {
        let is_first = |append: &AppendEntries| append.prev == LogId::ZERO && !append.entries.is_empty();
        learner.appends().into_iter().find(is_first).ok_or("not yet")
    });
    let sent = tokio::time::timeout(Duration::from_secs(60), whole).await.unwrap();
    assert!(sent.term >= Term(1) && sent.commit >= after, "{} instead of {after}", sent.commit);
    engine.shutdown().await.unwrap();
}
