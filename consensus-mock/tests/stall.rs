//! A state machine that hangs: the status says so, commands are refused, reads go on.

use std::{
    io::Read,
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{
    ConsensusEngine, EngineStatus, Entry, LogId, NodeId, ProposeError, ReadConsistency, Snapshot,
    StateMachine, StateMachineError,
};

use consensus_mock::MockConsensusEngine;
use consensus_testkit::Journal;

/// A machine whose `apply` waits while the gate is closed.
struct Machine(Journal, Arc<Gate>);

#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn set_closed(&self, is_closed: bool) {
        *self.0.lock().unwrap() = is_closed;
        self.1.notify_all();
    }
}

impl StateMachine for Machine {
    fn applied(&self) -> LogId {
        self.0.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        drop(self.1.1.wait_while(self.1.0.lock().unwrap(), |is_closed| *is_closed).unwrap());
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

async fn status_when(engine: &MockConsensusEngine, is: impl FnMut(&Arc<EngineStatus>) -> bool) {
    engine.status().wait_for(is).await.unwrap();
}

async fn hang(inline_apply: bool) {
    let (journal, gate) = (Journal::new(), Arc::new(Gate::default()));
    let machine = Box::new(Machine(journal, gate.clone()));
    let limit = Duration::from_secs(1);
    let engine = MockConsensusEngine::new(NodeId(0), machine).unwrap().with_apply_stall_limit(limit);
    let engine = Arc::new(if inline_apply { engine.with_inline_apply() } else { engine });
    for round in 0..2 {
        engine.propose("before".into()).await.unwrap();
        gate.set_closed(true);
        let there = engine.clone();
        let waiting = tokio::spawn(async move { there.propose("waiting".into()).await });
        status_when(&engine, |status| status.apply_stalled_since.is_some()).await;
        let refused = engine.propose("refused".into()).await;
        assert!(matches!(&refused, Err(ProposeError::Stalled { why }) if why.contains("state machine")));
        let read = engine.read_barrier(ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(read.0, 2 * round + 1, "what is applied can be read");
        gate.set_closed(false);
        waiting.await.unwrap().unwrap();
        status_when(&engine, |status| status.apply_stalled_since.is_none()).await;
    }
    engine.propose("after".into()).await.unwrap();
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn hanging_machine_is_shown_and_refuses_commands() {
    hang(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machine_that_hangs_on_the_callers_task_is_shown_and_refuses_commands() {
    hang(true).await;
}
