//! The vocabulary between nodes, shared by all engines.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Entry, LogId, LogIndex, SnapshotMeta, StorageId, Term};

/// A message from one node to another. Whom it comes from is told by the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// RequestVote (§5.2).
    VoteRequest(VoteRequest),
    /// Its answer.
    VoteResponse(VoteResponse),
    /// AppendEntries (§5.3); without entries it is the heartbeat.
    AppendEntries(AppendEntries),
    /// Its answer.
    AppendResponse(AppendResponse),
    /// The leader asks a follower to stand for election at once (dissertation §3.10).
    TimeoutNow(TimeoutNow),
    /// A follower asks the leader for a read index (dissertation §6.4).
    ReadIndexRequest(ReadIndexRequest),
    /// Its answer.
    ReadIndexResponse(ReadIndexResponse),
    /// What may be applied, for engines that tell it apart from the entries (`consensus-mock`).
    CommitNotification(CommitNotification),
    /// A message of an engine's own, opaque to the transports; it starts with a format version of the engine's.
    Extension(Bytes),
}

/// Whether a vote is asked in earnest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VoteKind {
    /// Would you vote for me in `term`? Changes nobody's term (dissertation §9.6).
    PreVote,
    /// Vote for me in `term`.
    Vote,
    /// Vote for me in `term`, though you may be in touch with a leader: it is the leader who asked me to stand.
    Transfer,
}

/// RequestVote (§5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoteRequest {
    /// In earnest, or a pre-vote.
    pub kind: VoteKind,
    /// The term in which the candidate would lead: its own for a vote, the one after its own for a pre-vote.
    pub term: Term,
    /// The candidate's last entry (§5.4.1).
    pub last_log: LogId,
    /// The candidate's storage.
    pub storage: StorageId,
    /// What the candidate's configuration knows of the receiver's storage ([`Member::storage`](crate::Member::storage)). A
    /// receiver with another one was emptied, and votes for nobody.
    pub voter_storage: Option<StorageId>,
}

/// Answer to a [`VoteRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoteResponse {
    /// Of the request.
    pub kind: VoteKind,
    /// The request's term if granted, else the voter's own, from which a candidate that is behind learns.
    pub term: Term,
    /// The voter is for the candidate.
    pub granted: bool,
    /// The voter's storage.
    pub storage: StorageId,
}

/// AppendEntries (§5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendEntries {
    /// The leader's term.
    pub term: Term,
    /// The entry before the first of `entries`.
    pub prev: LogId,
    /// Entries to append, contiguous from `prev.index + 1`.
    pub entries: Vec<Entry>,
    /// The leader's commit index.
    pub commit: LogIndex,
    /// Heartbeat round, counted by the leader within its term and echoed in the answer. An answer to round r proves that
    /// the leader still led when it began round r (dissertation §6.4); 0 before the first.
    pub round: u64,
}

/// Answer to [`AppendEntries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AppendResponse {
    /// The follower's term.
    pub term: Term,
    /// Round of the request.
    pub round: u64,
    /// What became of it.
    pub outcome: AppendOutcome,
    /// The follower's storage.
    pub storage: StorageId,
    /// Whether the follower's log still lacks what was committed when it joined
    /// ([`HardState::joining`](crate::HardState::joining)); a founding member's acknowledgement then counts towards no quorum.
    pub joining: bool,
}

/// What became of an [`AppendEntries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AppendOutcome {
    /// The follower's log agrees with the leader's up to here, durably.
    Accepted {
        /// Index of `prev` plus the number of entries; never more, whatever else the follower has.
        matched: LogIndex,
    },
    /// The follower has no entry `prev`.
    Rejected {
        /// `prev.index` of the request.
        prev: LogIndex,
        /// The follower's last entry that may still agree: index at most `prev.index`, term at most `prev.term`.
        hint: LogId,
    },
}

/// Stand for election at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimeoutNow {
    /// Of the leader that gives up the lead.
    pub term: Term,
}

/// From which index on do linearizable reads see everything acknowledged by now?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadIndexRequest {
    /// The follower's term.
    pub term: Term,
    /// Echoed in the answer.
    pub id: u64,
}

/// Answer to a [`ReadIndexRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadIndexResponse {
    /// Of the sender.
    pub term: Term,
    /// Of the request.
    pub id: u64,
    /// The index; `None` from a node that does not lead, or no longer.
    pub index: Option<LogIndex>,
}

/// What may be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitNotification {
    /// Of the leader.
    pub term: Term,
    /// Everything up to here is committed.
    pub commit: LogIndex,
}

/// A piece of a snapshot stream. Chunks go beside the messages, so that a large snapshot never delays a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// The leader's term.
    pub term: Term,
    /// Which stream: a number that the sender does not use again. A receiver forgets what it has of another stream.
    pub transfer: u64,
    /// What the snapshot covers.
    pub meta: SnapshotMeta,
    /// Position of `data` in the stream, in bytes.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
    /// CRC-32C over the whole stream, in the last chunk.
    pub last: Option<u32>,
}

/// Answer to a [`SnapshotChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAck {
    /// The receiver's term.
    pub term: Term,
    /// What became of the chunk.
    pub outcome: SnapshotOutcome,
}

/// What became of a [`SnapshotChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// Go on from this offset, be it the one after the chunk or an earlier one.
    Continue {
        /// In bytes.
        offset: u64,
    },
    /// The whole stream is here, its checksum is right, and the engine has installed it or has no need of it.
    Installed,
    /// The stream is of no use (old term, wrong checksum, no room): start anew, later.
    Refused,
}

impl Message {
    /// Bytes that the message counts for in queues: its payloads and a fixed share for the rest.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        64 + match self {
            Self::AppendEntries(append) => append.entries.iter().map(Entry::size_bytes).sum(),
            Self::Extension(bytes) => bytes.len() as u64,
            _ => 0,
        }
    }
}
