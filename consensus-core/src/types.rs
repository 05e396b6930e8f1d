//! Newtypes for the numbers of the protocol, so that the compiler keeps them apart.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

number! {
    /// Identity of a node, unique within its cluster.
    NodeId
}
number! {
    /// A Raft term (§5.1). Every election starts a higher one, and a term has at most one leader. 0: before any election.
    Term
}
number! {
    /// Position in the log. The first entry has index 1; 0 is the position before it.
    LogIndex
}

number! {
    /// Identity of a log storage, drawn at random when the storage is created. It tells an emptied or replaced disk from
    /// the disk that the node had before.
    StorageId
}

impl StorageId {
    /// A storage whose identity is not known yet. Also the identity of storages in memory, which are never lost
    /// separately from their nodes.
    pub const UNKNOWN: Self = Self(0);
}

/// Identity of a cluster. Its first leader draws it at random and writes it into the first entry that it commits. From
/// then on it is part of every configuration, snapshot and handshake, so that nodes of different clusters never exchange
/// messages. Two clusters created from the same configuration file have different identities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

impl ClusterId {
    /// The identity of a cluster whose first leader has not committed anything yet.
    pub const NONE: Self = Self(0);

    /// Whether nodes with these two identities may exchange messages: the identities are equal, or one is not known yet.
    #[must_use]
    pub fn is_compatible_with(self, other: Self) -> bool {
        self == other || self == Self::NONE || other == Self::NONE
    }
}

/// Sixteen hexadecimal digits, or `none`.
impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE { f.write_str("none") } else { write!(f, "{:016x}", self.0) }
    }
}

/// Random number that tells a leadership from every other one. In one term two nodes can lead only if an old copy of a disk was
/// restored, or a disk was emptied; their entries have equal log ids and different content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeadershipId(pub u64);

impl LeadershipId {
    /// The number of a leader that draws none.
    pub const NONE: Self = Self(0);

    /// Whether two leaderships may be the same: the numbers are equal, or one is not known.
    #[must_use]
    pub fn is_compatible_with(self, other: Self) -> bool {
        self == other || self == Self::NONE || other == Self::NONE
    }
}

impl From<u64> for ClusterId {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl Term {
    /// Before any election.
    pub const ZERO: Self = Self(0);

    /// The following term.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: Self = Self(0);

    /// The following position.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The preceding position; 0 for position 0.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// Number of entries in `(earlier, self]`; 0 if `earlier` is not before `self`.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Identity of a log entry: two entries with the same term and index are the same entry (Log Matching, §5.3).
///
/// Ordered by term, then by index: the "at least as up-to-date" order of elections (§5.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogId {
    /// Term in which a leader created the entry.
    pub term: Term,
    /// Position of the entry.
    pub index: LogIndex,
}

impl LogId {
    /// Before the first entry.
    pub const ZERO: Self = Self { term: Term::ZERO, index: LogIndex::ZERO };

    /// The entry of `term` at `index`.
    #[must_use]
    pub fn new(term: u64, index: u64) -> Self {
        Self { term: Term(term), index: LogIndex(index) }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ids_are_ordered_by_term_then_index() {
        // §5.4.1: the later term wins; with equal terms the longer log wins.
        assert!(LogId::new(2, 1) > LogId::new(1, 9));
        assert!(LogId::new(2, 3) > LogId::new(2, 2));
    }
}
