//! State machine of a witness, which has no state.

use std::io::{Read, Write};

use bytes::Bytes;
use consensus_core::{Entry, LogId, Snapshot, StateMachine, StateMachineError};

/// Position up to which entries were applied. It needs no disk: after a restart it begins where the log does.
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
        Ok(Box::new(NoCommands)) // Never called: a witness never becomes leader.
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let bytes = std::io::copy(stream, &mut std::io::sink());
        bytes.map(|_| ()).map_err(|error| StateMachineError::Other(error.to_string()))
    }
}

/// Empty snapshot that is sent to a witness.
#[derive(Debug)]
pub(crate) struct NoCommands;

impl Snapshot for NoCommands {
    fn write_to(&mut self, _out: &mut dyn Write) -> std::io::Result<()> {
        Ok(())
    }
}
