//! The engine: agreement on the order of commands.

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
/// Dropping the future of [`propose`](Self::propose) does not withdraw the command: it may still be applied. Dropping
/// the future of [`read_barrier`](Self::read_barrier) only cancels the wait.
///
/// # Example
/// ```
/// # use consensus_core::*;
/// # async fn incremented(engine: &dyn ConsensusEngine) -> Result<bytes::Bytes, ProposeError> {
/// match engine.propose("increment".into()).await {
///     Ok(committed) => Ok(committed.response),
///     // The command may have been applied: propose it again only if it carries a session, or may be applied twice.
///     Err(error) if error.maybe_applied() => Err(error),
///     // The command was certainly not applied: propose it again, with `NotLeader` at the leader that it names.
///     Err(error) => Err(error),
/// }
/// # }
/// ```
#[async_trait]
pub trait ConsensusEngine: Send + Sync + 'static {
    /// Commits and applies `command`, and returns the state machine's response. A node that is not leader refuses the
    /// command, or forwards it to the leader.
    ///
    /// # Errors
    /// See [`ProposeError`]; each error says whether the command may have been applied.
    async fn propose(&self, command: Bytes) -> Result<Committed, ProposeError>;

    /// Waits until this node's state machine reflects every command that any node acknowledged before the call (returns at
    /// once for [`ReadConsistency::Stale`]). Returns an index up to which the state machine then has applied the log.
    ///
    /// # Errors
    /// See [`ReadError`]. The state may then be of any age; ask again, at the leader if the error names one.
    async fn read_barrier(&self, consistency: ReadConsistency) -> Result<LogIndex, ReadError>;

    /// Status of this node's engine, as a value that can be watched for changes.
    fn status(&self) -> watch::Receiver<Arc<EngineStatus>>;

    /// Changes the configuration by all of `changes` in one step. Returns the new configuration once it is committed.
    /// Engines accept one change at a time. A [`Joining`](crate::MemberKind::Joining) member becomes a voter later, without
    /// a further call.
    ///
    /// # Errors
    /// See [`ChangeError`].
    async fn change_membership(&self, changes: Vec<MemberChange>) -> Result<Arc<Membership>, ChangeError>;

    /// Transfers leadership to `to`, or to the most up-to-date voter if `None`. Returns the new leader, within about one
    /// election timeout. Proposals are refused in the meantime.
    ///
    /// # Errors
    /// See [`TransferError`].
    async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferError>;

    /// Flushes the state machine and purges the log entries that are no longer needed. Returns the last purged index.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    async fn compact_log(&self) -> Result<LogIndex, SnapshotError>;

    /// Stops the engine gracefully: refuses new proposals, transfers leadership, completes or fails all pending requests,
    /// flushes the state machine and ends the engine's threads. The storage is no longer used when this returns.
    ///
    /// # Errors
    /// The engine had stopped before because of an error.
    async fn shutdown(&self) -> Result<(), ShutdownError>;
}

/// A command that was committed and applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Position of the command in the log.
    pub log_id: LogId,
    /// Response of the state machine.
    pub response: Bytes,
}

/// How current a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReadConsistency {
    /// Sees every write acknowledged before the read started (ReadIndex, dissertation §6.4). Works on every node; a
    /// follower asks the leader.
    Linearizable,
    /// Like [`Linearizable`](Self::Linearizable), but sends no message while the leader has a lease (dissertation §6.4.1).
    /// Correct as long as clocks differ by no more than the bound configured for the engine. Without a lease or a bound it
    /// is [`Linearizable`](Self::Linearizable).
    Lease,
    /// Sees the state that this node has applied, of any age. Does not wait.
    Stale,
    /// Sees the state that this node has applied, if it included every entry that was committed at some moment within this
    /// time before the read. The time that the leader's message took to arrive is not counted. A leader that was replaced
    /// may not know it yet: a node that receives only its messages can trust it wrongly for up to one election timeout.
    StaleWithin(Duration),
}

/// Why a proposal failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// *Certainly not applied.* This node is not leader; propose to `leader`, or again when there is one.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Current leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// *Certainly not applied.* This node is leader and is transferring leadership; propose to node `to`, or again later.
    #[error("this node is transferring leadership to node {to}")]
    TransferringLeadership {
        /// Node that is to become leader.
        to: NodeId,
    },
    /// *Certainly not applied.* Too many proposals are pending; try again a little later.
    #[error("overloaded: {in_flight} proposals of {in_flight_bytes} bytes are in flight")]
    Overloaded {
        /// Number of pending proposals.
        in_flight: u64,
        /// Size of the pending proposals, in bytes.
        in_flight_bytes: u64,
    },
    /// *Certainly not applied.* The disk of this node is too full, and no other node can become leader; try again when
    /// there is room.
    #[error("no room for new commands: {why}")]
    NoRoom {
        /// Free and required disk space.
        why: String,
    },
    /// *Certainly not applied.* The disk or the state machine of this leader does not respond, and no other node can become
    /// leader yet; try again a little later.
    #[error("this leader is stalled: {why}")]
    Stalled {
        /// Call that has not returned, and for how long.
        why: String,
    },
    /// *Certainly not applied.* The command is larger than the engine accepts.
    #[error("a command of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Size of the command.
        bytes: u64,
        /// Largest command that the engine accepts, in bytes.
        limit: u64,
    },
    /// *Certainly not applied.* The engine is shut down or shutting down.
    #[error("the engine is shut down")]
    ShutDown,
    /// *Unknown.* The command was accepted, but this node can no longer learn whether it was applied. Propose it again only
    /// in a [session](crate::session).
    #[error("it is unknown whether the command was applied: {why}")]
    Unknown {
        /// Event after which the outcome is unknown.
        why: &'static str,
    },
    /// *Unknown.* The engine of this node stopped because of an error, and will not continue.
    #[error("the engine stopped: {why}")]
    Fatal {
        /// Error that stopped the engine.
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

/// Why a read barrier failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// This node is not leader, or stopped being leader during the call.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Current leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The state of this node may be older than the read accepts: its last contact with a leader was too long ago.
    #[error(
        "the state of this node may be {} old, but the read accepts at most {} ms",
        age_text(age_ms),
        max_ms
    )]
    TooStale {
        /// Upper bound of the state's age, in ms; `None` if the node never heard from a leader.
        age_ms: Option<u64>,
        /// Largest age that the read accepts, in ms.
        max_ms: u64,
    },
    /// Too many reads are pending; try again a little later.
    #[error("overloaded: {waiting} reads are waiting")]
    Overloaded {
        /// Number of pending reads.
        waiting: u64,
    },
    /// This node leads, but could not commit an entry of its term in time, so it may not know all that was committed
    /// (dissertation, section 6.4). Try again a little later.
    #[error("the read was not confirmed in time")]
    TimedOut,
    /// The engine is shut down or shutting down.
    #[error("the engine is shut down")]
    ShutDown,
    /// The engine stopped because of an error.
    #[error("the engine stopped: {why}")]
    Fatal {
        /// Error that stopped the engine.
        why: String,
    },
}

/// Why a change of the configuration failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// *Not changed.* This node is not leader; ask `leader`.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Current leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// *Not changed.* Another change or a transfer of leadership is in progress; try again when it has ended.
    #[error("another change of the membership, or a transfer of leadership, is in progress; try again later")]
    Busy,
    /// *Not changed.* The new configuration would be invalid.
    #[error("invalid change of the membership: {0}")]
    Invalid(#[from] InvalidMembership),
    /// *Unknown.* This node lost leadership during the change; the status of the next leader shows the configuration.
    #[error("it is unknown whether the membership was changed: {why}")]
    Unknown {
        /// Event after which the outcome is unknown.
        why: &'static str,
    },
    /// The engine does not support changes of its membership.
    #[error("this engine cannot change its membership")]
    Unsupported,
    /// The engine is not running.
    #[error("the engine is not running: {why}")]
    NotRunning {
        /// Why the engine does not run.
        why: String,
    },
}

/// Why a transfer of leadership failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// This node is not leader; ask `leader`.
    #[error("this node is not the leader{}", hint(leader))]
    NotLeader {
        /// Current leader, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Another transfer is in progress.
    #[error("another transfer of leadership is in progress")]
    Busy,
    /// The node is not a voter, is a witness, or is leader already.
    #[error("node {0} cannot become leader: it is not a voter, is a witness, or is leader already")]
    CannotLead(NodeId),
    /// No other voter is reachable and up to date.
    #[error("no other node can become leader now: none is reachable and up to date")]
    NoSuccessor,
    /// The chosen node was not elected within an election timeout; this node is still leader.
    #[error("the new leader was not elected in time; this node is still leader")]
    TimedOut,
    /// This node is not leader any more, and does not know the new leader yet.
    #[error("this node is not leader any more, and does not know the new leader yet")]
    Unknown,
    /// The engine does not support a change of its leader.
    #[error("this engine cannot change its leader")]
    Unsupported,
    /// The engine is not running.
    #[error("the engine is not running: {why}")]
    NotRunning {
        /// Why the engine does not run.
        why: String,
    },
}

/// Why the log was not compacted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The engine keeps no log.
    #[error("this engine keeps no log")]
    NoLog,
    /// The state machine could not be flushed, so the log is still needed. The engine tries again without a further call.
    #[error("the log was not compacted, because the state machine could not be flushed: {0}")]
    NotFlushed(String),
    /// The engine is shut down, or stopped because of an error.
    #[error("the engine is not running: {0}")]
    NotRunning(String),
}

/// The error because of which the engine had stopped before it was shut down.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine had stopped before: {0}")]
pub struct ShutdownError(pub String);

/// Role of a node in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Requests pre-votes, before it starts an election.
    PreCandidate,
    /// Requests votes.
    Candidate,
    /// Determines the order of commands.
    Leader,
    /// Receives the log without a vote.
    Learner,
    /// The only node of an engine without consensus.
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

/// Whether the engine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// The engine runs.
    Running,
    /// The engine was shut down.
    ShutDown,
    /// The engine stopped because of this error, and will not continue.
    Fatal(String),
}

/// Status of an engine at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStatus {
    /// Id of this node.
    pub node_id: NodeId,
    /// Identity of this node's log storage; the default for an engine without one. If the [`membership`](Self::membership)
    /// does not [trust](Membership::trusts) it, the disk was emptied or replaced, and the node does not count for quorums.
    pub storage: StorageId,
    /// Whether the engine runs.
    pub health: Health,
    /// Free and required disk space, while the disk is too full for more log. The node accepts no commands then, and
    /// continues when there is room.
    pub no_room: Option<String>,
    /// Start of the log write that has not returned, once it takes longer than the engine's limit. `None` again when it has
    /// returned. A leader transfers leadership in the meantime.
    pub storage_stalled_since: Option<Instant>,
    /// Start of the state machine's call that has not returned, once it takes longer than the engine's limit. `None` again
    /// when it has returned. A leader transfers leadership in the meantime.
    pub apply_stalled_since: Option<Instant>,
    /// Why this node refuses the snapshot that its leader sends. `None` again when the node has caught up.
    pub snapshot_blocked: Option<String>,
    /// On a leader: why the last attempt to send a snapshot failed, for each member that still needs one.
    pub snapshot_errors: BTreeMap<NodeId, String>,
    /// Role of this node.
    pub role: Role,
    /// Current term of this node.
    pub term: Term,
    /// Leader of that term, if known.
    pub leader: Option<NodeId>,
    /// Last entry of the log.
    pub last_log: LogId,
    /// Index of the first entry of the log; if the log is empty, of the next entry.
    pub first_index: LogIndex,
    /// Last index known to be committed.
    pub commit: LogIndex,
    /// Last index that the state machine reflects.
    pub applied: LogIndex,
    /// Configuration in force.
    pub membership: Arc<Membership>,
    /// On a leader: progress of every other member.
    pub peers: BTreeMap<NodeId, PeerStatus>,
}

/// A leader's knowledge of another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Last index known to be on the member's disk.
    pub matched: LogIndex,
    /// Bytes that the member has received of a snapshot, while one is being sent to it.
    pub snapshot_bytes: Option<u64>,
    /// Whether the member responded within the last election timeout.
    pub active: bool,
    /// Whether the member's log storage differs from the one in the configuration: its disk was emptied or replaced. The
    /// member is sent the log, but its votes and acknowledgements do not count until it is removed and added again.
    pub other_storage: bool,
    /// Whether the member started with an empty log and still lacks entries that were committed when it joined.
    pub joining: bool,
}

fn age_text(age_ms: &Option<u64>) -> String {
    age_ms.map_or_else(|| "arbitrarily".to_owned(), |age| format!("{age} ms"))
}

fn hint(leader: &Option<NodeId>) -> String {
    leader.map_or_else(|| "; no leader is known".to_owned(), |id| format!("; node {id} is"))
}
