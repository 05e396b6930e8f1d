//! What a witness has for a state machine: nothing.

use std::io::{Read, Write};

use bytes::Bytes;
use consensus_core::{Entry, LogId, Snapshot, StateMachine, StateMachineError};

/// Knows how far it would be, and needs no disk to know it again: it begins where its log does.
#[derive(Debug)]
pub(crate) struct WitnessMachine(pub(crate) LogId);

impl StateMachine for WitnessMachine {
    fn applied(&self) -> LogId {
        self.0
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.0 = entries.last().map_or(self.0, |entry| entry.id);
        Ok(vec![Bytes::new(); entries.len()])
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        Ok(Box::new(NoCommands)) // Not asked for: a witness never leads.
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let bytes = std::io::copy(stream, &mut std::io::sink());
        bytes.map(|_| ()).map_err(|error| StateMachineError::Other(error.to_string()))
    }
}

/// The snapshot that a witness is sent.
#[derive(Debug)]
pub(crate) struct NoCommands;

impl Snapshot for NoCommands {
    fn write_to(&mut self, _out: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}
