//! Commands and responses as plain Rust types.
//!
//! Implement [`Application`] for a type that serde can write, wrap it in [`InMemory`], and it is a [`StateMachine`].
//! [`propose`] takes a command and returns a response.
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

/// A state machine as a plain type: its state is what serde writes of it.
pub trait Application: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What clients propose.
    type Command: Serialize + DeserializeOwned;
    /// What they get back.
    type Response: Serialize + DeserializeOwned;

    /// Applies one command; deterministic, see [`StateMachine`].
    fn apply(&mut self, command: Self::Command) -> Self::Response;
}

/// An [`Application`] held in memory. After a restart the engine applies the log from its beginning, so the log is kept
/// whole; a service whose log outgrows that implements [`StateMachine`] on disk.
pub struct InMemory<A> {
    state: Arc<RwLock<A>>,
    applied: LogId,
}

/// Reads the state of an [`InMemory`] machine. Cheap to clone.
pub struct Reader<A>(Arc<RwLock<A>>);

impl<A: Application> InMemory<A> {
    /// Starts from `state`, which must be the same on every node.
    #[must_use]
    pub fn new(state: A) -> Self {
        Self { state: Arc::new(RwLock::new(state)), applied: LogId::ZERO }
    }

    /// A handle for reads.
    #[must_use]
    pub fn reader(&self) -> Reader<A> {
        Reader(self.state.clone())
    }
}

impl<A> Reader<A> {
    /// Calls `f` with the state as it is now. It holds up the application of commands meanwhile.
    pub fn read<T>(&self, f: impl FnOnce(&A) -> T) -> T {
        // A panic in `apply` stops the engine; what it left behind can still be looked at.
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
/// Those of the engine; a response that cannot be read is reported as [`ProposeError::Fatal`].
pub async fn propose<A: Application>(
    engine: &dyn ConsensusEngine,
    command: &A::Command,
) -> Result<A::Response, ProposeError> {
    let committed = engine.propose(codec::encode(VERSION, command).into()).await?;
    codec::decode("response", VERSION, &committed.response)
        .map_err(|error| ProposeError::Fatal { why: error.to_string() })
}

/// Format of commands, responses and snapshots.
const VERSION: u8 = 1;
