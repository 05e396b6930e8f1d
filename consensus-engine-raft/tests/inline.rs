//! The only member of a cluster runs small work inline on the engine's task as long as it is quick; other members never do.

use std::{
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{
    ConsensusEngine, Entry, LogBatch, LogId, LogIndex, LogState, LogStorage, NodeId, Snapshot, StateMachine,
    StateMachineError, StorageError,
};
use consensus_engine_raft::RaftEngine;
use consensus_testkit::{Journal, MemLogStorage};
use consensus_transport_mem::MemNetwork;
use tokio::runtime::Handle;

/// Records the thread of its last call.
#[derive(Clone, Default)]
struct Seen {
    threads: Arc<Mutex<Vec<String>>>,
    is_slow: Arc<AtomicBool>,
}

impl Seen {
    fn called(&self) {
        let name = thread::current().name().unwrap_or("without a name").to_owned();
        self.threads.lock().unwrap().push(name);
        // Like code that may block.
        if let Ok(runtime) = Handle::try_current() {
            runtime.block_on(std::future::ready(()));
        }
        if self.is_slow.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the last call came from `thread`.
    fn last_is(&self, thread: &str) -> bool {
        self.threads.lock().unwrap().last().is_some_and(|name| name == thread)
    }
}

struct Log(MemLogStorage, Seen);

impl LogStorage for Log {
    fn load(&self) -> Result<LogState, StorageError> {
        self.0.load()
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        self.1.called();
        self.0.write(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.0.read(after, last, max_bytes)
    }
}

struct Machine(Journal, Seen);

impl StateMachine for Machine {
    fn applied(&self) -> LogId {
        self.0.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.1.called();
        self.0.apply(entries)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.0.flush()
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        self.0.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        self.0.restore(stream)
    }
}

async fn start(network: &MemNetwork, id: u64, size: u64, log: &Seen, machine: &Seen) -> Arc<RaftEngine> {
    let builder = RaftEngine::builder(NodeId(id)).voters(1..=size);
    let (log, machine) = (Log(MemLogStorage::new(), log.clone()), Machine(Journal::new(), machine.clone()));
    builder.start(network.transport(NodeId(id)), log, machine).await.unwrap()
}

/// Waits for the leader, and clears the recorded calls.
async fn leader(engine: &RaftEngine, seen: [&Seen; 2]) -> NodeId {
    let mut status = engine.status();
    let leader = status.wait_for(|status| status.leader.is_some()).await.unwrap().leader;
    for seen in seen {
        seen.threads.lock().unwrap().clear();
    }
    leader.unwrap()
}

/// Proposes commands until the last calls satisfy `are`, because a busy machine makes some of them slow.
async fn propose_until(engine: &RaftEngine, what: &str, are: impl Fn() -> bool) {
    for _ in 0..1000 {
        engine.propose("command".into()).await.unwrap();
        if are() {
            return;
        }
    }
    panic!("never {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_member_runs_quick_work_inline() {
    let (log, machine) = (Seen::default(), Seen::default());
    let engine = start(&MemNetwork::new(1), 1, 1, &log, &machine).await;
    leader(&engine, [&log, &machine]).await;
    let (on_log, on_apply) = (|| log.last_is("raft-log"), || machine.last_is("raft-apply"));
    for round in 0..2 {
        propose_until(&engine, "at once", || !on_log() && !on_apply()).await;
        log.is_slow.store(true, Ordering::SeqCst);
        propose_until(&engine, "a slow log's thread", on_log).await;
        for _ in 0..20 {
            engine.propose("command".into()).await.unwrap();
            assert!(on_log(), "round {round}: a slow log blocked a task");
        }
        log.is_slow.store(false, Ordering::SeqCst);
        machine.is_slow.store(true, Ordering::SeqCst);
        propose_until(&engine, "a slow machine's thread", || on_apply() && !on_log()).await;
        machine.is_slow.store(false, Ordering::SeqCst);
    }
    engine.shutdown().await.unwrap();
}

/// No other thread could run the other tasks.
#[tokio::test]
async fn runtime_with_one_thread_runs_no_work_inline() {
    let (log, machine) = (Seen::default(), Seen::default());
    let engine = start(&MemNetwork::new(1), 1, 1, &log, &machine).await;
    leader(&engine, [&log, &machine]).await;
    for _ in 0..50 {
        engine.propose("command".into()).await.unwrap();
        assert!(log.last_is("raft-log") && machine.last_is("raft-apply"));
    }
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_of_several_members_runs_no_work_inline() {
    let (log, machine, network) = (Seen::default(), Seen::default(), MemNetwork::new(1));
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(&network, id, 3, &log, &machine).await);
    }
    let leader = leader(&nodes[0], [&log, &machine]).await;
    for _ in 0..50 {
        nodes[leader.0 as usize - 1].propose("command".into()).await.unwrap();
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    let is_thread =
        |seen: &Seen, thread: &str| seen.threads.lock().unwrap().iter().all(|name| name == thread);
    assert!(is_thread(&log, "raft-log") && is_thread(&machine, "raft-apply"));
}

#[test]
fn dropped_runtime_drops_the_state_machine() {
    let (machine, dropped) = Journal::slow_to_drop();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let engine = runtime.block_on(async {
        let (storage, transport) = (Arc::new(MemLogStorage::new()), MemNetwork::new(1).transport(NodeId(0)));
        let mut config = consensus_engine_raft::RaftConfig::new(NodeId(0));
        config.bootstrap = Some(consensus_core::Membership::of_voters([0]));
        let engine = RaftEngine::start(config, transport, storage, Box::new(machine)).await.unwrap();
        engine.propose("once".into()).await.unwrap();
        engine
    });
    drop(runtime);
    assert!(dropped.load(Ordering::SeqCst), "a thread still holds the state machine");
    drop(engine);
}
