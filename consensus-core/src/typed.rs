//! State machines with commands and responses as plain Rust types.
//!
//! Implement [`Application`] for a type that serde can serialize, and wrap it in [`InMemory`], which is a
//! [`StateMachine`]. A [`TypedEngine`] proposes its commands and reads its state; a [`TypedSession`] has each command applied
//! once, however often it is proposed.
//!
//! ```
//! use std::sync::Arc;
//!
//! use consensus_core::{
//!     ConsensusEngine, ReadConsistency,
//!     typed::{Application, InMemory, TypedEngine},
//! };
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
//! # async fn run(start: impl FnOnce(InMemory<Counter>) -> Arc<dyn ConsensusEngine>) -> Result<(), Box<dyn std::error::Error>> {
//! let machine = InMemory::new(Counter::default());
//! let reader = machine.reader();
//! let counter = TypedEngine::new(start(machine), reader);
//! assert_eq!(counter.propose(&Command::Add(5)).await?, 5);
//! let read = counter.read(ReadConsistency::Linearizable, |counter| counter.0).await?;
//! assert_eq!(read, 5);
//! # Ok(())
//! # }
//! ```

use std::{
    fmt,
    io::Read,
    marker::PhantomData,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    ConsensusEngine, Entry, LogId, Payload, ProposeError, ReadConsistency, ReadError, Snapshot, StateMachine,
    StateMachineError,
    codec::{self, CodecError},
    session::{Call, Client, SessionError},
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

/// An engine and the state of its machine on this node, with commands and responses as Rust types. Cheap to clone.
pub struct TypedEngine<A> {
    engine: Arc<dyn ConsensusEngine>,
    reader: Reader<A>,
}

impl<A: Application> TypedEngine<A> {
    /// Creates a handle. `reader` is that of the [`InMemory`] machine that the engine was started with, alone or in
    /// [`ExactlyOnce`](crate::session::ExactlyOnce).
    #[must_use]
    pub fn new(engine: Arc<dyn ConsensusEngine>, reader: Reader<A>) -> Self {
        Self { engine, reader }
    }

    /// The engine, for its status and for changes of the membership.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn ConsensusEngine> {
        &self.engine
    }

    /// Same as [`propose`]. For a machine without sessions.
    ///
    /// # Errors
    /// See [`propose`].
    pub async fn propose(&self, command: &A::Command) -> Result<A::Response, ProposeError> {
        propose::<A>(&*self.engine, command).await
    }

    /// Calls `f` with a state that is as new as `consistency` asks for. No command is applied while `f` runs.
    ///
    /// # Errors
    /// See [`ConsensusEngine::read_barrier`].
    pub async fn read<T>(
        &self,
        consistency: ReadConsistency,
        f: impl FnOnce(&A) -> T,
    ) -> Result<T, ReadError> {
        self.engine.read_barrier(consistency).await?;
        Ok(self.reader.read(f))
    }

    /// Opens a session of a machine in [`ExactlyOnce`](crate::session::ExactlyOnce). See [`Client::open`].
    ///
    /// # Errors
    /// See [`Client::open`].
    pub async fn open_session(&self, sessions_max: u64) -> Result<TypedSession<A>, SessionError> {
        Ok(TypedSession { client: Client::open(&*self.engine, sessions_max).await?, of: PhantomData })
    }
}

impl<A> Clone for TypedEngine<A> {
    fn clone(&self) -> Self {
        Self { engine: self.engine.clone(), reader: self.reader.clone() }
    }
}

impl<A> fmt::Debug for TypedEngine<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedEngine").finish_non_exhaustive()
    }
}

/// Creates the calls of one session, one after the other, from commands of `A`.
pub struct TypedSession<A> {
    client: Client,
    of: PhantomData<fn(A)>,
}

impl<A: Application> TypedSession<A> {
    /// Id of the session.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.client.id()
    }

    /// Creates the next call of the session. Once it is proposed, earlier calls are refused.
    pub fn next(&mut self, command: &A::Command) -> TypedCall<A> {
        TypedCall { call: self.client.next(codec::encode(VERSION, command).into()), of: PhantomData }
    }
}

impl<A> fmt::Debug for TypedSession<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedSession").field("client", &self.client).finish()
    }
}

/// A command of a session. May be proposed any number of times, at any node, until the next call of its session is proposed.
pub struct TypedCall<A> {
    call: Call,
    of: PhantomData<fn(A)>,
}

impl<A: Application> TypedCall<A> {
    /// Proposes the command. Returns the response of the one time that the command was applied.
    ///
    /// # Errors
    /// See [`SessionError`].
    pub async fn propose(&self, engine: &TypedEngine<A>) -> Result<A::Response, SessionError> {
        let response = self.call.propose(&*engine.engine).await?;
        Ok(codec::decode("response", VERSION, &response)?)
    }
}

impl<A> fmt::Debug for TypedCall<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TypedCall").field("call", &self.call).finish()
    }
}

/// Format version of commands, responses and snapshots.
const VERSION: u8 = 1;
