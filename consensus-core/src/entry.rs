//! Entries of the log.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{LogId, Membership};

/// One position of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its identity.
    pub id: LogId,
    /// What it says.
    pub payload: Payload,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// Nothing: a new leader appends it to commit what its predecessors left (§8).
    Blank,
    /// A command for the state machine.
    Command(Bytes),
    /// A new configuration of the cluster.
    Membership(Membership),
    /// A command that is not told: what a witness's log has in the place of commands. State machines do not see it.
    Withheld,
}

impl Entry {
    /// A command at `id`.
    #[must_use]
    pub fn command(id: LogId, command: impl Into<Bytes>) -> Self {
        Self { id, payload: Payload::Command(command.into()) }
    }

    /// Bytes that the entry counts for in batches and queues: its payload and a fixed share for its header.
    #[must_use]
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        self.payload.size_bytes()
    }
}

impl Payload {
    /// [`Entry::size_bytes`] of an entry with it.
    #[must_use]
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Blank | Self::Withheld => HEADER_BYTES,
            Self::Command(command) => Self::command_bytes(command),
            Self::Membership(membership) => HEADER_BYTES + 64 * membership.everybody().count() as u64,
        }
    }

    /// The same of a command.
    #[must_use]
    #[inline]
    pub fn command_bytes(command: &[u8]) -> u64 {
        HEADER_BYTES + command.len() as u64
    }
}

/// Roughly what an entry costs beyond its payload, in memory and in a record; it only has to be more than nothing, so
/// that a million empty commands are not free.
const HEADER_BYTES: u64 = 32;
