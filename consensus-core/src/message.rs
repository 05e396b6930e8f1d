//! Messages between nodes, shared by all engines.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Entry, LeadershipId, LogId, LogIndex, SnapshotMeta, StorageId, Term};

/// A message from one node to another. The transport names the sender ([`MessageHandler`](crate::MessageHandler)).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A candidate requests a vote (RequestVote, §5.2).
    VoteRequest(VoteRequest),
    /// Response to a [`VoteRequest`].
    VoteResponse(VoteResponse),
    /// The leader sends entries, or a heartbeat if there are none (AppendEntries, §5.3).
    AppendEntries(AppendEntries),
    /// Response to [`AppendEntries`].
    AppendResponse(AppendResponse),
    /// The leader tells a follower to start an election at once (dissertation §3.10).
    TimeoutNow(TimeoutNow),
    /// A follower asks the leader for a read index (dissertation §6.4).
    ReadIndexRequest(ReadIndexRequest),
    /// Response to a [`ReadIndexRequest`].
    ReadIndexResponse(ReadIndexResponse),
    /// The leader's commit index, for engines that send it apart from the entries (`consensus-mock`).
    CommitNotification(CommitNotification),
    /// A message of an engine's own, opaque to transports. It starts with a format version that the engine defines.
    Extension(Bytes),
}

/// Kind of a vote request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum VoteKind {
    /// Asks whether the receiver would vote for the sender in `term`. Changes no term and no vote (dissertation §9.6).
    PreVote,
    /// Requests the vote for `term`.
    Vote,
    /// Requests the vote for `term`, even if the receiver is in contact with a leader: the leader itself started this
    /// election with [`TimeoutNow`].
    Transfer,
}

/// A candidate's request for a vote (RequestVote, §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoteRequest {
    /// Kind of the request: pre-vote, vote, or vote in a transfer of leadership.
    pub kind: VoteKind,
    /// Term in which the candidate would be leader: its current term for a vote, the next one for a pre-vote.
    pub term: Term,
    /// Last entry of the candidate's log (§5.4.1).
    pub last_log: LogId,
    /// Identity of the candidate's storage.
    pub storage: StorageId,
    /// Identity of the receiver's storage in the candidate's configuration ([`Member::storage`](crate::Member::storage)). A
    /// receiver with another storage lost its disk, and grants no vote.
    pub voter_storage: Option<StorageId>,
}

/// Response to a [`VoteRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VoteResponse {
    /// Kind of the request.
    pub kind: VoteKind,
    /// Term of the request if the vote is granted, else the voter's current term, from which an outdated candidate learns.
    pub term: Term,
    /// Whether the vote is granted.
    pub granted: bool,
    /// Identity of the voter's storage.
    pub storage: StorageId,
}

/// Entries of the leader's log for a follower (AppendEntries, §5.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendEntries {
    /// Leader's term.
    pub term: Term,
    /// The entry that precedes `entries`.
    pub prev: LogId,
    /// Leadership to which `prev` belongs; [`LeadershipId::NONE`] if the leader does not know it.
    pub prev_leadership: LeadershipId,
    /// Entries to append, contiguous from `prev.index + 1`.
    pub entries: Vec<Entry>,
    /// Leader's commit index.
    pub commit: LogIndex,
    /// Heartbeat round, counted by the leader within its term, 0 before the first; echoed in the response. A response to
    /// round r proves that the sender was still leader when it started round r (dissertation §6.4).
    pub round: u64,
}

/// Response to [`AppendEntries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AppendResponse {
    /// Follower's current term.
    pub term: Term,
    /// Round of the request.
    pub round: u64,
    /// Whether the follower accepted the entries.
    pub outcome: AppendOutcome,
    /// Identity of the follower's storage.
    pub storage: StorageId,
    /// Whether the follower's log still lacks entries that were committed when it joined
    /// ([`HardState::joining`](crate::HardState::joining)). The acknowledgement of a founding member then counts for no quorum.
    pub joining: bool,
}

/// Result of an [`AppendEntries`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AppendOutcome {
    /// The follower's log durably matches the leader's up to `matched`.
    Accepted {
        /// Index of `prev` plus the number of entries; never more, even if the follower's log is longer.
        matched: LogIndex,
    },
    /// The follower's log does not contain the entry `prev`.
    Rejected {
        /// `prev.index` of the request.
        prev: LogIndex,
        /// The follower's last entry that may match the leader's: index at most `prev.index`, term at most `prev.term`.
        hint: LogId,
    },
}

/// The leader's request that the receiver start an election at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimeoutNow {
    /// Term of the leader that transfers leadership.
    pub term: Term,
}

/// A follower's request for the index from which a read sees every write acknowledged so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadIndexRequest {
    /// Follower's current term.
    pub term: Term,
    /// Number of the request; echoed in the response.
    pub id: u64,
}

/// Response to a [`ReadIndexRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadIndexResponse {
    /// Sender's current term.
    pub term: Term,
    /// Number of the request.
    pub id: u64,
    /// The read index; `None` if the sender is not leader.
    pub index: Option<LogIndex>,
}

/// The leader's commit index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitNotification {
    /// Leader's term.
    pub term: Term,
    /// Index of the last committed entry.
    pub commit: LogIndex,
}

/// A part of a snapshot stream. Chunks are sent apart from the messages, so that a large snapshot never delays a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    /// Leader's term.
    pub term: Term,
    /// Number of the stream, which the sender uses only once. A receiver discards the chunks of any earlier stream.
    pub transfer: u64,
    /// Log position and configuration of the snapshot.
    pub meta: SnapshotMeta,
    /// Position of `data` in the stream, in bytes.
    pub offset: u64,
    /// Bytes of the stream.
    pub data: Bytes,
    /// CRC-32C of the whole stream, set in the last chunk only.
    pub last: Option<u32>,
}

/// Response to a [`SnapshotChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotAck {
    /// Receiver's current term.
    pub term: Term,
    /// Result of the chunk, which tells the sender how to continue.
    pub outcome: SnapshotOutcome,
}

/// Result of a [`SnapshotChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotOutcome {
    /// The sender continues from this offset: the end of the chunk, or an earlier one if bytes are missing.
    Continue {
        /// Position in the stream, in bytes.
        offset: u64,
    },
    /// The stream is complete, its checksum is correct, and the engine has installed the snapshot or does not need it.
    Installed,
    /// The stream cannot be used (old term, wrong checksum, no room): the sender starts again from offset 0, later.
    Refused,
}

impl Message {
    /// Size of the message in queues, in bytes: its payloads plus a fixed amount.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        64 + match self {
            Self::AppendEntries(append) => append.entries.iter().map(Entry::size_bytes).sum(),
            Self::Extension(bytes) => bytes.len() as u64,
            _ => 0,
        }
    }
}
