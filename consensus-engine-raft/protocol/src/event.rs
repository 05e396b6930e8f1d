//! What goes in and what comes out.

use std::sync::Arc;

use consensus_core::{
    AppendOutcome, AppendResponse, InvalidMembership, LogId, LogIndex, MemberChange, Membership, NodeId,
    ReadIndexRequest, ReadIndexResponse, SnapshotMeta, Term, TimeoutNow, VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Time went by.
    Tick,
    /// A peer asks for a vote.
    VoteRequest(NodeId, VoteRequest),
    /// A peer answers.
    VoteResponse(NodeId, VoteResponse),
    /// A leader sends entries, or none.
    Append {
        /// Who.
        from: NodeId,
        /// Its message.
        append: Append,
        /// What it says of `(append.prev.index, append.last]`, in order.
        entries: Vec<EntryInfo>,
    },
    /// A follower answers.
    AppendResponse(NodeId, AppendResponse),
    /// A message to this node could not be sent.
    SendFailed(NodeId),
    /// A client wants to read; answered by [`Output::ReadReady`] or [`Output::ReadRefused`].
    Read {
        /// Comes back with the answer.
        token: u64,
        /// The leader's lease is enough, while it has one.
        lease: bool,
    },
    /// A follower asks for a read index.
    ReadIndexRequest(NodeId, ReadIndexRequest),
    /// A leader answers.
    ReadIndexResponse(NodeId, ReadIndexResponse),
    /// Somebody wants another configuration; answered by [`Output::Changed`] or [`Output::ChangeRefused`].
    ChangeMembership {
        /// Comes back with the answer.
        token: u64,
        /// All in one step.
        changes: Vec<MemberChange>,
    },
    /// Somebody wants another leader; answered by [`Output::TransferEnded`].
    Transfer {
        /// Comes back with the answer.
        token: u64,
        /// Whom; `None` for whoever is fit.
        to: Option<NodeId>,
    },
    /// The leader asks this node to stand for election.
    TimeoutNow(NodeId, TimeoutNow),
    /// The write last taken by [`take_persist`](crate::Raft::take_persist) is durable.
    Persisted,
    /// The log up to here may go: the state machine answers for it.
    Compact(LogIndex),
    /// A whole snapshot arrived; answered by [`Output::Install`] or [`Output::SnapshotSettled`].
    SnapshotArrived {
        /// Who sent it.
        from: NodeId,
        /// The sender's term.
        term: Term,
        /// What it covers.
        meta: SnapshotMeta,
    },
    /// The state machine now holds the snapshot of [`Output::Install`].
    SnapshotInstalled,
    /// The state machine did not restore the snapshot of [`Output::Install`] and is as it was before: the node goes on with the
    /// log that it has.
    SnapshotNotInstalled,
    /// A snapshot asked for by [`Output::SendSnapshot`] was taken by the peer (with its last index), or was not.
    SnapshotSent(NodeId, Option<LogIndex>),
    /// The connection to this node broke and cannot be made again: its process has ended, most likely. It may be untrue, and
    /// need not be said.
    Disconnected(NodeId),
    /// The write last taken by [`take_persist`](crate::Raft::take_persist) found no room for its entries, and nothing of it was
    /// written. Until [`TryEntries`](Self::TryEntries) writes come without entries, with what does not depend on them.
    NoRoom,
    /// Entries are to be written again.
    TryEntries,
    /// Whether the disk or the state machine of this node does not answer. Meanwhile the node does not campaign.
    Stalled(bool),
    /// The node no longer wants to lead, even if no successor is known. A follower ignores it.
    StepDown,
}

impl Event {
    /// Whether the numbers that a peer tells are such as can be counted on from. Beyond them only an error, or malice,
    /// can be; such a message is taken for lost.
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

/// A million elections or entries per second for a hundred thousand years.
const NUMBER_MAX: u64 = 1 << 62;

/// AppendEntries without its entries: `(prev.index, last]` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Append {
    /// The leader's term.
    pub term: Term,
    /// The entry before.
    pub prev: LogId,
    /// Index of the last entry sent; `prev.index` for none.
    pub last: LogIndex,
    /// The leader's commit index.
    pub commit: LogIndex,
    /// Heartbeat round.
    pub round: u64,
}

/// What the protocol knows of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryInfo {
    /// Its term.
    pub term: Term,
    /// [`Entry::size_bytes`](consensus_core::Entry::size_bytes).
    pub size_bytes: u64,
    /// The configuration, if it carries one.
    pub membership: Option<Arc<Membership>>,
}

/// What happened, what it means and what to do, for an operator.
impl std::fmt::Display for Contradiction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { own, theirs, leader } = self;
        write!(
            f,
            "the log of this node contradicts that of leader {leader}: entry {own}, which is committed here, is entry \
             {theirs} there. An old copy of a data directory was put back on one of the nodes, or the two belong to \
             different clusters. Nothing of the leader was taken over. Decide which of the two histories counts; on the \
             nodes of the other one, remove the node from its cluster, move its data directory away, and add it again"
        )
    }
}

/// Something to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Send a message without entries.
    Send(NodeId, Reply),
    /// Send the entries `(append.prev.index, append.last]`.
    SendAppend(NodeId, Append),
    /// Send a snapshot, newer than what the log has lost; report by [`Event::SnapshotSent`].
    SendSnapshot(NodeId),
    /// This node became leader and appended a blank entry.
    AppendedBlank(LogId),
    /// The entries after this index are gone from the log, and those of the [`Event::Append`] in hand that lie after it
    /// are in their place.
    Replaced(LogIndex),
    /// The leader appended a configuration, which counts from now on.
    AppendedMembership(LogId, Arc<Membership>),
    /// The configuration asked for is committed, by the entry at this index at the latest.
    Changed(u64, LogIndex),
    /// It is not to be, or not known ([`Refusal::LostLead`]).
    ChangeRefused(u64, Refusal),
    /// A transfer ended: this node leads no longer, or (with the reason) it leads still.
    TransferEnded(u64, Result<(), Refusal>),
    /// A read may be served once the index is applied.
    ReadReady(u64, LogIndex),
    /// A read cannot be served: this node does not lead, or no longer.
    ReadRefused(u64),
    /// Everything up to here may be applied (I8).
    Apply(LogIndex),
    /// Have the state machine restore the snapshot, unless it reflects as much already (I16); then step
    /// [`Event::SnapshotInstalled`], or [`Event::SnapshotNotInstalled`] if that failed.
    Install(SnapshotMeta),
    /// What became of the snapshot that arrived.
    SnapshotSettled(SnapshotVerdict),
    /// The leader's log differs from what is committed on this node, which ends with that (I17): nothing more may be applied
    /// or said. One of the two has an old copy of its disk, or they belong to two clusters.
    Contradicted(Contradiction),
    /// Two nodes lead one term: this node ends as well, for the same reasons.
    TwoLeaders(TwoLeaders),
}

/// Two nodes that lead one term (I17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TwoLeaders {
    /// The term.
    pub term: Term,
    /// The leader that this node knew, perhaps itself.
    pub known: NodeId,
    /// The leader that it heard.
    pub other: NodeId,
}

impl std::fmt::Display for TwoLeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { term, known, other } = self;
        write!(
            f,
            "nodes {known} and {other} both lead term {term}: a voter has voted twice, because an old copy of its data \
             directory was put back, or the two belong to different clusters. Entries that the two leaders appended in this \
             term cannot be told apart. Decide which of the two leaders counts; on the other one and on the nodes that \
             followed it, remove the node from its cluster, move its data directory away, and add it again"
        )
    }
}

/// Two different entries at one index, of which this node's is committed (I17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Contradiction {
    /// This node's entry.
    pub own: LogId,
    /// The leader's entry.
    pub theirs: LogId,
    /// The leader.
    pub leader: NodeId,
}

/// A message without entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reply {
    /// RequestVote.
    VoteRequest(VoteRequest),
    /// Its answer.
    VoteResponse(VoteResponse),
    /// The answer to AppendEntries.
    AppendResponse(AppendResponse),
    /// TimeoutNow.
    TimeoutNow(TimeoutNow),
    /// A follower's question for a read index.
    ReadIndexRequest(ReadIndexRequest),
    /// Its answer.
    ReadIndexResponse(ReadIndexResponse),
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// This node does not lead.
    NotLeader,
    /// Another change, or a transfer, is under way.
    Busy,
    /// The configuration makes no sense.
    Invalid(InvalidMembership),
    /// The lead was lost before the change was committed: the next leader may yet commit it.
    LostLead,
    /// This node cannot lead: it is no voter, a witness, or leads already.
    CannotLead(NodeId),
    /// Nobody else can lead.
    NoSuccessor,
    /// The successor did not take over in time.
    TimedOut,
}

impl Reply {
    /// The event of its arrival from a peer.
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

/// What became of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotVerdict {
    /// It is in place, or the node has all that it covers.
    Held,
    /// It is of no use: an old term, or another one is being installed.
    Refused,
}
