//! Log entries.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{LogId, Membership};

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Term and index of the entry.
    pub id: LogId,
    /// Content of the entry.
    pub payload: Payload,
}

/// Content of a log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// No content. A leader appends such an entry at the start of its term, to commit the entries of earlier terms (§8), unless it
    /// begins with a configuration.
    Blank,
    /// A command for the state machine.
    Command(Bytes),
    /// A new configuration of the cluster.
    Membership(Membership),
    /// Placeholder for a command in the log of a witness, which is not sent commands. State machines never see it.
    Withheld,
}

impl Entry {
    /// Creates an entry with a command.
    #[must_use]
    pub fn command(id: LogId, command: impl Into<Bytes>) -> Self {
        Self { id, payload: Payload::Command(command.into()) }
    }

    /// Size of the entry in batches and queues, in bytes: its payload plus a fixed amount for its header.
    #[must_use]
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        self.payload.size_bytes()
    }
}

impl Payload {
    /// [`Entry::size_bytes`] of an entry with this payload.
    #[must_use]
    #[inline]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Blank | Self::Withheld => HEADER_BYTES,
            Self::Command(command) => Self::command_bytes(command),
            Self::Membership(membership) => {
                let leaderships = 20 * membership.leaderships().len() as u64;
                HEADER_BYTES + 64 * membership.all_members().count() as u64 + leaderships
            }
        }
    }

    /// [`Entry::size_bytes`] of an entry with this command.
    #[must_use]
    #[inline]
    pub fn command_bytes(command: &[u8]) -> u64 {
        HEADER_BYTES + command.len() as u64
    }
}

/// Approximate cost of an entry beyond its payload, in memory and in a record. It only has to be above zero, so that a
/// million empty commands do not count as nothing.
const HEADER_BYTES: u64 = 32;
