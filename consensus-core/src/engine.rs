//! Agreement on the order of commands.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{InvalidMembership, LogId, LogIndex, MemberChange, Membership, NodeId, StorageId, Term};

/// Agrees with the engines of other nodes on one order of commands, and applies them to the node's
/// [`StateMachine`](crate::StateMachine) in that order.
///
/// # Cancellation
/// Dropping the future of [`propose`](Self::propose) does not take the command back: it may still be applied. Dropping
/// that of [`read_barrier`](Self::read_barrier) has no effect on anything.
///
/// # Example
/// ```
/// # use consensus_core::*;
/// # async fn incremented(engine: &dyn ConsensusEngine) -> Result<bytes::Bytes, ProposeError> {
/// match engine.propose("increment".into()).await {
///     Ok(committed) => Ok(committed.response),
///     // Certainly not applied: the same command may be given to `leader`.
///     Err(error @ ProposeError::NotLeader { .. }) => Err(error),
///     // Perhaps applied: a command that must not be applied twice has to carry a session.
///     Err(error) => Err(error),
/// }
/// # }
/// ```
#[async_trait]
pub trait ConsensusEngine: Send + Sync + 'static {
    /// Has `command` committed and applied, and returns the state machine's response. A node that does not lead refuses, or
    /// has the leader propose it.
    ///
    /// # Errors
    /// See [`ProposeError`]: each says whether the command may have been applied.
    async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError>;

    /// Returns when this node's state machine reflects every command that was acknowledged anywhere before the call
    /// (or, for [`ReadConsistency::Stale`], at once), with the index it then reflects at least.
    ///
    /// # Errors
    /// Nothing is promised of the state; ask again, at the leader if one is named.
    async fn read_barrier(&self, consistency: ReadConsistency) -> Result<LogIndex, ReadError>;

    /// The node's state, now and at every change.
    fn status(&self) -> watch::Receiver<Arc<EngineStatus>>;

    /// Changes who takes part, all of `changes` in one step; returns the new configuration once it is committed. Engines
    /// take one change at a time. A [`Joining`](crate::MemberKind::Joining) member becomes a voter later, by itself.
    ///
    /// # Errors
    /// See [`ChangeError`].
    async fn change_membership(&self, changes: Vec<MemberChange>) -> Result<Arc<Membership>, ChangeError>;

    /// Gives the lead to `to`, or to whoever is fit; returns who leads afterwards. Proposals made meanwhile are refused,
    /// and it ends within about an election timeout.
    ///
    /// # Errors
    /// See [`TransferError`]; this node leads still, unless it did not.
    async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError>;

    /// Has the state machine flush and removes the log that is no longer needed; returns the last index removed.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    async fn compact_log(&self) -> Result<LogIndex, SnapshotError>;

    /// Stops the engine in order: the lead goes to somebody else, no new proposals, what waits is answered, threads end,
    /// the state machine is flushed.
    /// When it returns the storage is no longer used.
    ///
    /// # Errors
    /// The engine had stopped before of an error of its own.
    async fn shutdown(&self) -> Result<(), ShutdownError>;
}

/// A command that was committed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its position.
    pub log_id: LogId,
    /// What the state machine said.
    pub response: Bytes,
}

/// How current a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadConsistency {
    /// Sees every write acknowledged before the read began (ReadIndex, dissertation §6.4). On any node: who does not
    /// lead asks the leader.
    Linearizable,
    /// The same without a message, while the leader has a lease (dissertation §6.4.1): it is true as long as clocks keep
    /// to the bound that the engine was told. Without lease or bound it is [`Linearizable`](Self::Linearizable).
    Lease,
    /// What this node has applied, at once.
    Stale,
    /// What this node has applied, if that was all that was committed at some moment within this time, not counting how
    /// long the leader's message about it was under way. A leader that was replaced may not have noticed yet: for as long
    /// as an election timeout, who hears only from it takes its word.
    StaleWithin(Duration),
}

/// Why a proposal was not answered by the state machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// *Certainly not applied.* This node does not lead; give the command to `leader`, or ask again when there is one.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// *Certainly not applied.* This node leads, and is handing over; ask again there, or a little later.
    #[error("this node is handing over to node {to}")]
    HandingOver {
        /// Who is to lead.
        to: NodeId,
    },
    /// *Certainly not applied.* Too much is in flight; ask again a little later.
    #[error("overloaded: {in_flight} proposals of {in_flight_bytes} bytes are in flight")]
    Overloaded {
        /// Proposals in flight.
        in_flight: u64,
        /// Their bytes.
        in_flight_bytes: u64,
    },
    /// *Certainly not applied.* The disk of this node is too full, and nobody else could take the lead; ask again when
    /// there is room.
    #[error("no room for new commands: {why}")]
    NoRoom {
        /// How much there is, and how much it should be.
        why: String,
    },
    /// *Certainly not applied.* The disk or the state machine of this leader does not answer, and nobody else can take over
    /// leadership yet; ask again a little later.
    #[error("this leader is stalled: {why}")]
    Stalled {
        /// What does not answer, and for how long.
        why: String,
    },
    /// *Certainly not applied.* The command is larger than the engine takes.
    #[error("a command of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Of the command.
        bytes: u64,
        /// Of the engine.
        limit: u64,
    },
    /// *Certainly not applied.* The engine is shut down or shutting down.
    #[error("the engine is shut down")]
    ShutDown,
    /// *Unknown.* The command was accepted, but the node lost the means to see what became of it. Repeat it only under
    /// a session that de-duplicates.
    #[error("it is unknown whether the command was applied: {why}")]
    Unknown {
        /// What happened.
        why: &'static str,
    },
    /// *Unknown*, and this node can do nothing more: its engine stopped of an error.
    #[error("the engine stopped: {why}")]
    Fatal {
        /// The error.
        why: String,
    },
}

impl ProposeError {
    /// Whether the command may have been applied.
    #[must_use]
    pub fn maybe_applied(&self) -> bool {
        matches!(self, Self::Unknown { .. } | Self::Fatal { .. })
    }
}

/// Why a read barrier was not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This node does not lead, or stopped leading meanwhile.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// This node has not heard from a leader lately enough.
    #[error("what this node has may be {} old, more than {} ms", age_text(age_ms), max_ms)]
    TooStale {
        /// How old it may be, in ms; `None` if it never heard from a leader.
        age_ms: Option<u64>,
        /// What was asked for, in ms.
        max_ms: u64,
    },
    /// Too many reads are waiting; ask again a little later.
    #[error("overloaded: {waiting} reads are waiting")]
    Overloaded {
        /// Reads waiting.
        waiting: u64,
    },
    /// The engine is shut down or shutting down.
    #[error("the engine is shut down")]
    ShutDown,
    /// The engine stopped of an error.
    #[error("the engine stopped: {why}")]
    Fatal {
        /// The error.
        why: String,
    },
}

/// Why a configuration was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// *Not changed.* This node does not lead; ask `leader`.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// *Not changed.* Another change, or a transfer of leadership, is under way; ask again when it has ended.
    #[error("another change of the membership, or a transfer of leadership, is under way")]
    Busy,
    /// *Not changed.* The configuration would make no sense.
    #[error("the membership cannot be changed so: {0}")]
    Invalid(#[from] InvalidMembership),
    /// *Unknown.* The lead was lost meanwhile; the status of the next leader tells.
    #[error("it is unknown whether the membership was changed: {why}")]
    Unknown {
        /// What happened.
        why: &'static str,
    },
    /// This engine's membership is for ever.
    #[error("this engine cannot change its membership")]
    Unsupported,
    /// The engine is not running.
    #[error("the engine is not running: {why}")]
    NotRunning {
        /// Why not.
        why: String,
    },
}

/// Why another node does not lead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// This node does not lead; ask `leader`.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Another transfer is under way.
    #[error("another transfer of leadership is under way")]
    Busy,
    /// It is no voter, a witness, or leads already.
    #[error("node {0} cannot take over: it is no voter, a witness, or leads already")]
    CannotLead(NodeId),
    /// No other voter is in touch and up to date.
    #[error("no other node is fit to lead now")]
    NoSuccessor,
    /// It did not take over within an election timeout; this node leads on.
    #[error("the successor did not take over in time; this node leads on")]
    TimedOut,
    /// This node leads no longer, and nobody else is known to lead yet.
    #[error("this node leads no longer, and it is not known yet who does")]
    Unknown,
    /// This engine's leader is for ever.
    #[error("this engine cannot change its leader")]
    Unsupported,
    /// The engine is not running.
    #[error("the engine is not running: {why}")]
    NotRunning {
        /// Why not.
        why: String,
    },
}

/// Why the log was not compacted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The engine has no log that could be compacted.
    #[error("this engine keeps no log")]
    NoLog,
    /// The state machine could not be flushed, so that the log is still needed. The engine tries again by itself.
    #[error("the log was not compacted, as the state machine could not be flushed: {0}")]
    NotFlushed(String),
    /// The engine is shut down or stopped of an error.
    #[error("the engine is not running: {0}")]
    NotRunning(String),
}

/// The engine had stopped before of an error of its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine had stopped before: {0}")]
pub struct ShutdownError(pub String);

/// A node's part in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Orders the commands.
    Leader,
    /// Follows without a vote.
    Learner,
    /// The one node of a system without consensus.
    Standalone,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
            Self::Standalone => "standalone",
        })
    }
}

/// Whether the engine works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Running,
    /// It was shut down.
    ShutDown,
    /// It stopped of this error and will not come back by itself.
    Fatal(String),
}

/// The state of an engine at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// This node.
    pub node_id: NodeId,
    /// Identity of this node's log storage; the default where an engine has none. If the [`membership`](Self::membership)
    /// does not [trust](Membership::trusts) it, the disk was emptied or replaced, and the node does not count.
    pub storage: StorageId,
    /// Whether the engine works.
    pub health: Health,
    /// While the disk is too full for more log: how full. The node takes no commands then, and goes on by itself when
    /// there is room.
    pub no_room: Option<String>,
    /// Start of the log write that has not returned, once it takes longer than the engine's limit. `None` again when it has
    /// returned. A leader gives leadership away meanwhile.
    pub storage_stalled_since: Option<Instant>,
    /// Start of the call of the state machine that has not returned, once it takes longer than the engine's limit. `None`
    /// again when it has returned. A leader gives leadership away meanwhile.
    pub apply_stalled_since: Option<Instant>,
    /// Why this node does not take the snapshot that its leader sends. `None` again when the node has caught up.
    pub snapshot_blocked: Option<String>,
    /// On a leader: why the last attempt to send a snapshot failed, by the member that still needs one.
    pub snapshot_errors: BTreeMap<NodeId, String>,
    /// What the node does.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Who leads in that term, as far as is known.
    pub leader: Option<NodeId>,
    /// Last entry of the log.
    pub last_log: LogId,
    /// First index that the log still holds, or would hold.
    pub first_index: LogIndex,
    /// Last index known to be committed.
    pub commit: LogIndex,
    /// Last index that the state machine reflects.
    pub applied: LogIndex,
    /// The configuration in force.
    pub membership: Arc<Membership>,
    /// On a leader: what it knows of each other member.
    pub peers: BTreeMap<NodeId, PeerStatus>,
}

/// What a leader knows of another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Last index known to be on its disk.
    pub matched: LogIndex,
    /// While a snapshot is on its way to it: how many of its bytes it has.
    pub snapshot_bytes: Option<u64>,
    /// It answered within the last election timeout.
    pub active: bool,
    /// Its log storage is not the one that the configuration knows for it: its disk was emptied or exchanged. It is sent the
    /// log, but its votes and acknowledgements do not count until it is removed from the cluster and added again.
    pub other_storage: bool,
    /// Its log began empty and still lacks what was committed when it joined.
    pub joining: bool,
}

fn age_text(age_ms: &Option<u64>) -> String {
    age_ms.map_or_else(|| "of any age".to_owned(), |age| format!("{age} ms"))
}

fn hint(leader: &Option<NodeId>) -> String {
    leader.map_or_else(|| "; no leader is known".to_owned(), |id| format!("; node {id} is"))
}
