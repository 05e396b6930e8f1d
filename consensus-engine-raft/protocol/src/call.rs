//! Calls as values, and the state as bytes: what a flight recorder needs.

use consensus_core::{
    LogId,
    codec::{self, CodecError},
};
use serde::{Deserialize, Serialize};

use crate::{Event, Output, Persist, Raft, Time};

/// One of the calls that change a [`Raft`].
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
    /// When it was made, if that matters.
    #[must_use]
    pub fn time(&self) -> Option<Time> {
        match self {
            Self::Step(now, _) | Self::FinishTurn(now) | Self::Propose(now, _) => Some(*now),
            Self::TakePersist => None,
        }
    }
}

/// What it returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "returned by value once per call; a box would be an allocation per write"
)]
pub enum Returned {
    /// From [`Call::Step`] and [`Call::FinishTurn`].
    Outputs(Vec<Output>),
    /// From [`Call::TakePersist`].
    Persist(Option<Persist>),
    /// From [`Call::Propose`].
    Proposed(Option<LogId>),
}

impl Raft {
    /// Makes the call. From the same [checkpoint](Self::checkpoint) the same calls return the same.
    pub fn call(&mut self, call: Call) -> Returned {
        match call {
            Call::Step(now, event) => Returned::Outputs(self.step(now, event)),
            Call::FinishTurn(now) => Returned::Outputs(self.finish_turn(now)),
            Call::TakePersist => Returned::Persist(self.take_persist()),
            Call::Propose(now, sizes_bytes) => Returned::Proposed(self.propose(now, &sizes_bytes)),
        }
    }

    /// The whole state, as bytes; a few per entry of the log.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<u8> {
        codec::encode(CHECKPOINT_VERSION, self)
    }

    /// The node whose [checkpoint](Self::checkpoint) this is, for looking at. To go on with it in earnest would be to
    /// forget what it said since: a node comes up by [`Raft::new`].
    ///
    /// # Errors
    /// It is none, or one of another version.
    pub fn from_checkpoint(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode("checkpoint of a node", CHECKPOINT_VERSION, bytes)
    }
}

/// A recording is read by the version that made it.
const CHECKPOINT_VERSION: u8 = 4;
