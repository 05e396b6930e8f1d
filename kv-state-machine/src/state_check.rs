//! Checks that nodes have equal states. A command in the log ([`CheckState`](crate::KvOperation::CheckState)) has every node
//! compute the checksum of its state exactly as of that entry, in a thread of its own, from a RocksDB snapshot. The server
//! compares the checksums.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use tokio::sync::watch;

use crate::{KvStoreExecutor, hash::StateHash, store::Store, view::Failure};

/// Checksum of the last check of a state, or why the state could not be read; `None` before the first check.
pub type CheckedState = Option<Result<StateHash, String>>;

/// Result of the last check on this node.
#[derive(Debug)]
pub(crate) struct Checked(watch::Sender<CheckedState>);

impl Default for Checked {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Checked {
    pub(crate) fn subscribe(&self) -> watch::Receiver<CheckedState> {
        self.0.subscribe()
    }

    fn publish(&self, outcome: Result<StateHash, Failure>) {
        if let Err(error) = &outcome {
            tracing::error!(%error, "the state of this node cannot be read: replace the node");
        }
        self.0.send_replace(Some(outcome.map_err(|error| error.to_string())));
    }
}

/// Runs at most one check.
#[derive(Debug, Default)]
pub(crate) struct StateChecker {
    running: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
}

impl StateChecker {
    /// Starts to compute the checksum of the state as it is now; returns when the state is fixed, after microseconds. Does
    /// nothing while a check runs.
    pub(crate) fn start(&mut self, store: &Arc<Store>) {
        if self.running.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) {
            tracing::warn!("the previous check of the state has not ended; this node leaves out one check");
            return;
        }
        let cancelled = Arc::new(AtomicBool::new(false));
        let (fixed, is_fixed) = mpsc::channel();
        let (store, shared) = (store.clone(), cancelled.clone());
        let work = move || {
            let outcome = KvStoreExecutor::new(store.clone()).hash_from(|| _ = fixed.send(()), &shared);
            if !shared.load(Ordering::Relaxed) {
                store.checked().publish(outcome);
            }
        };
        match std::thread::Builder::new().name("kv-check".to_owned()).spawn(work) {
            Ok(thread) => {
                let _ = is_fixed.recv(); // An error means that the thread has failed, and has said so.
                self.running = Some((thread, cancelled));
            }
            Err(error) => tracing::warn!(%error, "the state of this node is not checked this time"),
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some((thread, cancelled)) = self.running.take() {
            cancelled.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};

    use super::*;
    use crate::{Durability, KvCommand, KvOperation, KvStateMachine, Put, machine::COMMAND_VERSION};

    fn entry(index: u64, operation: KvOperation) -> Entry {
        Entry::command(LogId::new(1, index), codec::encode(COMMAND_VERSION, &KvCommand::new(None, operation)))
    }

    fn put(index: u64) -> Entry {
        let (key, value) = (format!("k{}", index % 7).into(), index.to_string().into());
        entry(index, KvOperation::Put(Put { key, value, ..Put::default() }))
    }

    /// Applies a log, in batches of a size, whose entry 100 checks the state. Returns the outcome.
    fn checked_at_entry_100(log: &[Entry], batch: usize) -> StateHash {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = KvStateMachine::open(dir.path(), NodeId(0), Durability::FromLog).unwrap();
        let checked = machine.executor().store().checked().subscribe();
        let mut applied = 0;
        while applied < log.len() {
            let end = log.len().min(applied + batch);
            applied += machine.apply(&log[applied..end]).unwrap().len();
        }
        while checked.borrow().is_none() {
            std::thread::yield_now();
        }
        let outcome = checked.borrow().clone();
        outcome.unwrap().unwrap()
    }

    #[test]
    fn checksum_is_that_of_the_entry_whatever_the_batches_are_and_what_follows() {
        let mut log: Vec<Entry> = (1..200).map(put).collect();
        log[49] = entry(50, KvOperation::Compact { revision: 20 });
        log[99] = entry(100, KvOperation::CheckState);
        let one_by_one = checked_at_entry_100(&log, 1);
        assert_eq!((one_by_one.applied_index, one_by_one.term), (100, 1));
        for batch in [3, 64, 199] {
            assert_eq!(checked_at_entry_100(&log, batch), one_by_one, "{batch}");
        }
        assert_eq!(checked_at_entry_100(&log[..100], 100), one_by_one);
        log[98] =
            entry(99, KvOperation::Put(Put { key: "k1".into(), value: "other".into(), ..Put::default() }));
        assert_ne!(checked_at_entry_100(&log, 199).hash, one_by_one.hash);
    }
}
