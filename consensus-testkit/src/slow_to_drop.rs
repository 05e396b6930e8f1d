//! A state machine that takes a moment to be dropped.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{Entry, LogId, Snapshot, StateMachine, StateMachineError};

use crate::Journal;

/// A [`Journal`] that takes 200 ms to be dropped, as a machine does that closes files, and then sets a flag: shows whether an
/// engine that is dropped waits for its threads.
#[derive(Debug)]
pub struct SlowToDrop {
    journal: Journal,
    dropped: Arc<AtomicBool>,
}

impl SlowToDrop {
    /// The machine, and the flag.
    #[must_use]
    pub fn new() -> (Self, Arc<AtomicBool>) {
        let dropped = Arc::<AtomicBool>::default();
        (Self { journal: Journal::new(), dropped: dropped.clone() }, dropped)
    }
}

impl Drop for SlowToDrop {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(200));
        self.dropped.store(true, Ordering::SeqCst);
    }
}

impl StateMachine for SlowToDrop {
    fn applied(&self) -> LogId {
        self.journal.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.journal.apply(entries)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.journal.flush()
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        self.journal.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        self.journal.restore(stream)
    }
}
