//! Calls of the protocol as values, and its state as bytes, for the flight recorder.

use consensus_core::{
    LogId,
    codec::{self, CodecError},
};
use serde::{Deserialize, Serialize};

use crate::{Event, Output, Persist, Raft, Time};

/// A call that changes a [`Raft`], with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// [`Raft::step`].
    Step(Time, Event),
    /// [`Raft::finish_turn`].
    FinishTurn(Time),
    /// [`Raft::take_persist`].
    TakePersist,
    /// [`Raft::propose`].
    Propose(Time, Vec<u64>),
}

impl Call {
    /// Time of the call; `None` if it does not depend on the time.
    #[must_use]
    pub fn time(&self) -> Option<Time> {
        match self {
            Self::Step(now, _) | Self::FinishTurn(now) | Self::Propose(now, _) => Some(*now),
            Self::TakePersist => None,
        }
    }
}

/// Result of a [`Call`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "returned by value once per call; a box would be an allocation per write"
)]
pub enum Returned {
    /// Result of [`Call::Step`] and [`Call::FinishTurn`].
    Outputs(Vec<Output>),
    /// Result of [`Call::TakePersist`].
    Persist(Option<Persist>),
    /// Result of [`Call::Propose`].
    Proposed(Option<LogId>),
}

impl Raft {
    /// Makes the call. The same calls after the same [checkpoint](Self::checkpoint) return the same results.
    pub fn call(&mut self, call: Call) -> Returned {
        match call {
            Call::Step(now, event) => Returned::Outputs(self.step(now, event)),
            Call::FinishTurn(now) => Returned::Outputs(self.finish_turn(now)),
            Call::TakePersist => Returned::Persist(self.take_persist()),
            Call::Propose(now, sizes_bytes) => Returned::Proposed(self.propose(now, &sizes_bytes)),
        }
    }

    /// Encodes the whole state. The size is a few bytes per entry of the log.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        codec::encode(CHECKPOINT_VERSION, self)
    }

    /// Decodes a [checkpoint](Self::checkpoint), for inspection and replay only. A node must never continue from one,
    /// because that would lose the votes and acknowledgements that it has sent since. A node starts with [`Raft::new`].
    ///
    /// # Errors
    /// `bytes` is not a checkpoint, or has another format version.
    pub fn from_checkpoint(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode("checkpoint of a node", CHECKPOINT_VERSION, bytes)
    }
}

/// A recording can be read only by the version that made it.
const CHECKPOINT_VERSION: u8 = 4;
