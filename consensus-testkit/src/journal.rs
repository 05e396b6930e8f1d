//! A state machine that records the commands that it applied.

use std::{
    io::Read,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{Entry, FlushWork, LogId, Payload, Snapshot, StateMachine, StateMachineError, codec};

use crate::state_machine::Fixture;

/// State machine that records every command with its log id. A response is the number of commands so far. Flushed content
/// outlives it as on a disk, see [`Journal::reopen`]. The command `panic!` makes it panic.
#[derive(Debug, Default)]
pub struct Journal {
    state: Arc<Mutex<State>>,
    disk: Arc<Mutex<State>>,
    /// Delays the drop of this journal.
    _slow_drop: Option<SlowDrop>,
}

/// Takes 200 ms to drop, then sets its flag.
#[derive(Debug)]
struct SlowDrop(Arc<AtomicBool>);

impl Drop for SlowDrop {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(200));
        self.0.store(true, Ordering::SeqCst);
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    applied: LogId,
    commands: Vec<(LogId, Bytes)>,
}

/// Reads a [`Journal`] while and after an engine owns it.
#[derive(Clone, Debug)]
pub struct JournalReader {
    state: Arc<Mutex<State>>,
    disk: Arc<Mutex<State>>,
}

impl Journal {
    /// Creates an empty journal.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates an empty journal that takes 200 ms to drop, like a state machine that closes files, and a flag that is set
    /// afterwards. Tests whether a dropped engine waits for its threads.
    #[must_use]
    pub fn slow_to_drop() -> (Self, Arc<AtomicBool>) {
        let dropped = Arc::<AtomicBool>::default();
        (Self { _slow_drop: Some(SlowDrop(dropped.clone())), ..Self::default() }, dropped)
    }

    /// Returns a handle that reads the journal.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader { state: self.state.clone(), disk: self.disk.clone() }
    }

    /// Opens the journal as after a crash: with the flushed content only.
    #[must_use]
    pub fn reopen(reader: &JournalReader) -> Self {
        let state = Arc::new(Mutex::new(lock(&reader.disk).clone()));
        Self { state, disk: reader.disk.clone(), _slow_drop: None }
    }
}

impl JournalReader {
    /// Applied commands, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<(LogId, Bytes)> {
        lock(&self.state).commands.clone()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StateMachine for Journal {
    fn applied(&self) -> LogId {
        lock(&self.state).applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut state = lock(&self.state);
        let mut responses = Vec::with_capacity(entries.len());
        for entry in entries {
            assert_eq!(entry.id.index, state.applied.index.next(), "entries come in order, each once");
            state.applied = entry.id;
            let Payload::Command(command) = &entry.payload else {
                responses.push(Bytes::new());
                continue;
            };
            assert_ne!(command, "panic!", "the command requests this panic");
            state.commands.push((entry.id, command.clone()));
            responses.push(state.commands.len().to_string().into());
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        let state = lock(&self.state).clone();
        let applied = state.applied;
        *lock(&self.disk) = state;
        Ok(applied)
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (state, disk) = (lock(&self.state).clone(), self.disk.clone());
        Some(Box::new(move || {
            let (applied, mut disk) = (state.applied, lock(&disk));
            if disk.applied < applied {
                *disk = state;
            }
            Ok(applied)
        }))
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let state = lock(&self.state);
        Ok(Box::new(codec::encode(1, &(state.applied, &state.commands))))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let (applied, commands) = codec::decode("journal", 1, &bytes)?;
        *lock(&self.state) = State { applied, commands };
        self.flush().map(|_| ())
    }
}

/// Opens journals with the flushed content.
impl Fixture for JournalReader {
    type Machine = Journal;

    fn open(&mut self) -> Journal {
        Journal::reopen(self)
    }

    fn command(&self, n: u64) -> Bytes {
        n.to_string().into()
    }

    fn digest(&self, machine: &mut Journal) -> Vec<u8> {
        format!("{:?}", lock(&machine.state)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_the_suite() {
        crate::state_machine::run_suite(|| Journal::new().reader());
    }
}
