//! Inputs and outputs of the protocol.

use std::sync::Arc;

use consensus_core::{
    AppendOutcome, AppendResponse, InvalidMembership, LeadershipId, LogId, LogIndex, MemberChange,
    Membership, NodeId, ReadIndexRequest, ReadIndexResponse, SnapshotMeta, Term, TimeoutNow, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};

/// An input of the protocol, see [`Raft::step`](crate::Raft::step).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The time has advanced, perhaps past a deadline.
    Tick,
    /// Request for a vote, from a peer.
    VoteRequest(NodeId, VoteRequest),
    /// Response to a vote request, from a peer.
    VoteResponse(NodeId, VoteResponse),
    /// AppendEntries, from a leader; a heartbeat if it has no entries.
    Append {
        /// Sender.
        from: NodeId,
        /// The message without its entries.
        append: Append,
        /// Term, size and configuration of each entry in `(append.prev.index, append.last]`, in order.
        entries: Vec<EntryInfo>,
    },
    /// Response to AppendEntries, from a follower.
    AppendResponse(NodeId, AppendResponse),
    /// A message to this node could not be sent.
    SendFailed(NodeId),
    /// A client of this node asks for a read index. The result is [`Output::ReadReady`] or [`Output::ReadRefused`].
    Read {
        /// Identifies the read in the result.
        token: u64,
        /// Whether the leader may serve the read by its lease, if it has one.
        lease: bool,
    },
    /// Request for a read index, from a follower.
    ReadIndexRequest(NodeId, ReadIndexRequest),
    /// Response to a read index request, from the leader.
    ReadIndexResponse(NodeId, ReadIndexResponse),
    /// Request to change the configuration. The result is [`Output::Changed`] or [`Output::ChangeRefused`].
    ChangeMembership {
        /// Identifies the request in the result.
        token: u64,
        /// Changes to make, all in one step.
        changes: Vec<MemberChange>,
    },
    /// Request to transfer leadership. The result is [`Output::TransferEnded`].
    Transfer {
        /// Identifies the request in the result.
        token: u64,
        /// The next leader; `None` chooses the voter of the highest priority that is most up to date.
        to: Option<NodeId>,
    },
    /// The leader asks this node to campaign at once (TimeoutNow).
    TimeoutNow(NodeId, TimeoutNow),
    /// The write last taken by [`take_persist`](crate::Raft::take_persist) is durable.
    Persisted,
    /// The log up to this index may be purged; the state machine no longer needs it.
    Compact(LogIndex),
    /// A complete snapshot has arrived. The result is [`Output::Install`] or [`Output::SnapshotSettled`].
    SnapshotArrived {
        /// Sender.
        from: NodeId,
        /// Sender's term.
        term: Term,
        /// Log position and configuration of the snapshot.
        meta: SnapshotMeta,
    },
    /// The state machine has restored the snapshot of [`Output::Install`].
    SnapshotInstalled,
    /// The state machine failed to restore the snapshot of [`Output::Install`] and is unchanged. The node continues with its
    /// current log.
    SnapshotNotInstalled,
    /// Sending the snapshot of [`Output::SendSnapshot`] to this node has ended: with the last index that the node accepted,
    /// or `None` if it failed.
    SnapshotSent(NodeId, Option<LogIndex>),
    /// The connection to this node broke and cannot be established again: most likely its process has ended. The protocol
    /// stays correct if this is untrue, or is never reported.
    Disconnected(NodeId),
    /// The write last taken by [`take_persist`](crate::Raft::take_persist) failed because there is no room on the disk, and
    /// nothing of it was written. Until [`RetryEntries`](Self::RetryEntries), writes carry no entries, only the data that
    /// does not depend on them. If the failed write had no entries, nothing is written until then.
    NoRoom,
    /// Writes may be made, and carry entries, again after [`NoRoom`](Self::NoRoom).
    RetryEntries,
    /// Whether a call of this node's disk or state machine has exceeded its time limit. While it has, the node does not
    /// campaign.
    Stalled(bool),
    /// The leader must step down, even if no successor is known. Followers ignore it.
    StepDown,
}

impl Event {
    /// Whether the terms and indexes in a peer's message are small enough to be incremented without overflow. Larger ones
    /// can only come from an error or an attacker; such a message is dropped.
    pub(crate) fn is_plausible(&self) -> bool {
        let term = |term: Term| term.0 <= NUMBER_MAX;
        let index = |index: LogIndex| index.0 <= NUMBER_MAX;
        let id = |id: LogId| term(id.term) && index(id.index);
        match self {
            Self::VoteRequest(_, request) => term(request.term) && id(request.last_log),
            Self::VoteResponse(_, response) => term(response.term),
            Self::Append { append, entries, .. } => {
                term(append.term)
                    && id(append.prev)
                    && index(append.last)
                    && entries.iter().all(|entry| term(entry.term))
            }
            Self::AppendResponse(_, response) => {
                term(response.term)
                    && match response.outcome {
                        AppendOutcome::Accepted { matched } => index(matched),
                        AppendOutcome::Rejected { prev, hint } => index(prev) && id(hint),
                    }
            }
            Self::SnapshotArrived { term: sent, meta, .. } => term(*sent) && id(meta.last),
            Self::ReadIndexResponse(_, response) => response.index.is_none_or(index),
            _ => true,
        }
    }
}

/// Reached after a hundred thousand years of a million elections or entries per second.
const NUMBER_MAX: u64 = 1 << 62;

/// AppendEntries without its entries, which are those in `(prev.index, last]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Append {
    /// Leader's term.
    pub term: Term,
    /// Entry before the first one sent.
    pub prev: LogId,
    /// Leadership to which `prev` belongs; [`LeadershipId::NONE`] if the leader's log does not name it.
    pub prev_leadership: LeadershipId,
    /// Index of the last entry sent; `prev.index` if there are none.
    pub last: LogIndex,
    /// Leader's commit index.
    pub commit: LogIndex,
    /// Number of the heartbeat round.
    pub round: u64,
}

/// Properties of an entry that the protocol needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// Term of the entry.
    pub term: Term,
    /// [`Entry::size_bytes`](consensus_core::Entry::size_bytes) of the entry.
    pub size_bytes: u64,
    /// Configuration that the entry carries, if any.
    pub membership: Option<Arc<Membership>>,
}

/// Tells an operator what happened, what it means and what to do.
impl std::fmt::Display for Contradiction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { own, theirs, leader } = self;
        let what =
            if own == theirs { "another one with the same id".to_owned() } else { format!("entry {theirs}") };
        write!(
            f,
            "the log of this node contradicts that of leader {leader}: entry {own}, which is committed here, is {what} \
             there. Either an old copy of a data directory was restored on one of the nodes, or the two belong to \
             different clusters. Nothing of the leader's log was accepted. Decide which of the two histories is right; on the \
             nodes with the other one, remove the node from its cluster, move its data directory away, and add it again"
        )
    }
}

/// An action for the driver. Outputs are carried out in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Send a message without entries.
    Send(NodeId, ControlMessage),
    /// Send the entries `(append.prev.index, append.last]`.
    SendAppend(NodeId, Append),
    /// Send a snapshot that reaches at least the purged position of the log; report the end by [`Event::SnapshotSent`].
    SendSnapshot(NodeId),
    /// This node became leader and appended a blank entry: it [draws no number](crate::Config::leadership) of its leaderships.
    AppendedBlank(LogId),
    /// The entries after this index were removed from the log, and the entries of the current [`Event::Append`] after this
    /// index were appended in their place.
    Replaced(LogIndex),
    /// The leader appended a configuration, which is in force from now on.
    AppendedMembership(LogId, Arc<Membership>),
    /// The requested configuration is committed; its entry is at this index or before.
    Changed(u64, LogIndex),
    /// The requested configuration was refused, or its outcome is unknown ([`Refusal::LostLeadership`]).
    ChangeRefused(u64, Refusal),
    /// A transfer ended: this node is not leader any more, or it is still leader, for the given reason.
    TransferEnded(u64, Result<(), Refusal>),
    /// A read may be served once the state machine has applied this index.
    ReadReady(u64, LogIndex),
    /// A read cannot be served, because this node is not leader or not leader any more, or the leader did not respond.
    ReadRefused(u64),
    /// All entries up to this index may be applied (I8).
    Apply(LogIndex),
    /// Restore the snapshot into the state machine, unless the machine has applied as much already (I16). Then step
    /// [`Event::SnapshotInstalled`], or [`Event::SnapshotNotInstalled`] if that failed.
    Install(SnapshotMeta),
    /// Outcome of the snapshot that arrived.
    SnapshotSettled(ArrivalOutcome),
    /// The leader's log differs from an entry that is committed on this node (I17). The node must stop: it must not apply or
    /// send anything more. Either one of the two has an old copy of its disk, or they belong to different clusters.
    Contradicted(Contradiction),
    /// Two nodes are leaders of one term (I17). This node must stop as well, for the same reasons.
    TwoLeaders(TwoLeaders),
}

/// Two leaders of one term (I17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TwoLeaders {
    /// Term of both leaders.
    pub term: Term,
    /// Leader that this node knew, perhaps itself.
    pub known: NodeId,
    /// Leader whose message arrived.
    pub other: NodeId,
}

impl std::fmt::Display for TwoLeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { term, known, other } = self;
        write!(
            f,
            "nodes {known} and {other} are both leaders of term {term}: either a voter voted twice, because an old copy of \
             its data directory was restored, or the two belong to different clusters. Entries that the two leaders appended \
             in this term have the same ids. Decide which of the two leaders is right; on the other one and on the nodes \
             that followed it, remove the node from its cluster, move its data directory away, and add it again"
        )
    }
}

/// Two different entries at one index; the one of this node is committed (I17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contradiction {
    /// Entry of this node.
    pub own: LogId,
    /// Entry of the leader.
    pub theirs: LogId,
    /// Id of the leader.
    pub leader: NodeId,
}

/// A message to a peer that carries no log entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ControlMessage {
    /// RequestVote.
    VoteRequest(VoteRequest),
    /// Response to RequestVote.
    VoteResponse(VoteResponse),
    /// Response to AppendEntries.
    AppendResponse(AppendResponse),
    /// TimeoutNow.
    TimeoutNow(TimeoutNow),
    /// ReadIndex request of a follower.
    ReadIndexRequest(ReadIndexRequest),
    /// Response to a ReadIndex request.
    ReadIndexResponse(ReadIndexResponse),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// This node is not leader.
    NotLeader,
    /// Another change or a transfer is in progress.
    Busy,
    /// The requested configuration is invalid.
    Invalid(InvalidMembership),
    /// This node lost leadership before the change was committed. The next leader may still commit it.
    LostLeadership,
    /// This node cannot become leader: it is no voter, a witness, or the leader already.
    CannotLead(NodeId),
    /// No other node can become leader.
    NoSuccessor,
    /// The successor did not become leader in time.
    TimedOut,
}

impl ControlMessage {
    /// Converts the message to the event of its arrival from `from`.
    #[must_use]
    pub fn into_event(self, from: NodeId) -> Event {
        match self {
            Self::VoteRequest(request) => Event::VoteRequest(from, request),
            Self::VoteResponse(response) => Event::VoteResponse(from, response),
            Self::AppendResponse(response) => Event::AppendResponse(from, response),
            Self::TimeoutNow(request) => Event::TimeoutNow(from, request),
            Self::ReadIndexRequest(request) => Event::ReadIndexRequest(from, request),
            Self::ReadIndexResponse(response) => Event::ReadIndexResponse(from, response),
        }
    }

    pub(crate) fn term(&self) -> Term {
        match self {
            Self::VoteRequest(request) => request.term,
            Self::VoteResponse(response) => response.term,
            Self::AppendResponse(response) => response.term,
            Self::TimeoutNow(request) => request.term,
            Self::ReadIndexRequest(request) => request.term,
            Self::ReadIndexResponse(response) => response.term,
        }
    }
}

/// Outcome of a snapshot that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ArrivalOutcome {
    /// The snapshot is installed, or the node already has everything that it covers.
    Accepted,
    /// The snapshot is not needed: its term is old, or another snapshot is being installed.
    Refused,
}
