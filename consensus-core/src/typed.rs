//! State machines with commands and responses as plain Rust types.
//!
//! Implement [`Application`] for a type that serde can serialize, and wrap it in [`InMemory`], which is a
//! [`StateMachine`]. [`propose`] proposes a command and returns its response.
//!
//! ```
//! use consensus_core::typed::{Application, InMemory};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter(i64);
//!
//! #[derive(Serialize, Deserialize)]
//! enum Command { Add(i64) }
//!
//! impl Application for Counter {
//!     type Command = Command;
//!     type Response = i64;
//!     fn apply(&mut self, Command::Add(n): Command) -> i64 { self.0 += n; self.0 }
//! }
//!
//! let machine = InMemory::new(Counter::default());
//! let state = machine.reader(); // for reads, after a read barrier
//! assert_eq!(state.read(|counter| counter.0), 0);
//! # fn takes(_: impl consensus_core::StateMachine) {}
//! takes(machine);
//! ```

use std::{
    io::Read,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    ConsensusEngine, Entry, LogId, Payload, ProposeError, Snapshot, StateMachine, StateMachineError,
    codec::{self, CodecError},
};

/// A state machine whose whole state is one serializable type.
pub trait Application: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Command that clients propose.
    type Command: Serialize + DeserializeOwned;
    /// Result of a command.
    type Response: Serialize + DeserializeOwned;

    /// Applies one command. Must be deterministic, see [`StateMachine`].
    fn apply(&mut self, command: Self::Command) -> Self::Response;
}

/// An [`Application`] held in memory. After a restart the engine applies the whole log again, so the log is never
/// compacted. A service whose log grows too large for that implements [`StateMachine`] with its state on disk.
pub struct InMemory<A> {
    state: Arc<RwLock<A>>,
    applied: LogId,
}

/// Reads the state of an [`InMemory`] machine. Cheap to clone.
pub struct Reader<A>(Arc<RwLock<A>>);

impl<A: Application> InMemory<A> {
    /// Creates a machine with the initial state `state`, which must be the same on every node.
    #[must_use]
    pub fn new(state: A) -> Self {
        Self { state: Arc::new(RwLock::new(state)), applied: LogId::ZERO }
    }

    /// Returns a handle that reads the state.
    #[must_use]
    pub fn reader(&self) -> Reader<A> {
        Reader(self.state.clone())
    }
}

impl<A> Reader<A> {
    /// Calls `f` with the current state. No command is applied while `f` runs.
    pub fn read<T>(&self, f: impl FnOnce(&A) -> T) -> T {
        // A panic in `apply` stops the engine, but the state can still be read.
        f(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<A> Clone for Reader<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Application> StateMachine for InMemory<A> {
    fn applied(&self) -> LogId {
        self.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut responses = Vec::with_capacity(entries.len());
        for entry in entries {
            responses.push(match &entry.payload {
                Payload::Command(command) => {
                    let command = codec::decode("command", VERSION, command)?;
                    codec::encode(VERSION, &state.apply(command)).into()
                }
                _ => Bytes::new(),
            });
            self.applied = entry.id;
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        Ok(LogId::ZERO)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(codec::encode(VERSION, &(self.applied, &*state))))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let (applied, state) = codec::decode("snapshot", VERSION, &bytes)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        self.applied = applied;
        Ok(())
    }
}

impl From<CodecError> for StateMachineError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Malformed { what, why } => Self::Unreadable { what, why },
            CodecError::Version { what, .. } => Self::Unreadable { what, why: error.to_string() },
        }
    }
}

/// [Proposes](ConsensusEngine::propose) a command of `A` and returns its response.
///
/// # Errors
/// Those of [`ConsensusEngine::propose`]. A response that cannot be decoded is reported as [`ProposeError::Fatal`].
pub async fn propose<A: Application>(
    engine: &dyn ConsensusEngine,
    command: &A::Command,
) -> Result<A::Response, ProposeError> {
    let committed = engine.propose(codec::encode(VERSION, command).into()).await?;
    codec::decode("response", VERSION, &committed.response)
        .map_err(|error| ProposeError::Fatal { why: error.to_string() })
}

/// Format version of commands, responses and snapshots.
const VERSION: u8 = 1;
