//! Agreement on the order of commands.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{LogId, LogIndex, Membership, NodeId, Term};

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
    /// Has `command` committed and applied, and returns the state machine's response.
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

    /// Has the state machine flush and removes the log that is no longer needed; returns the last index removed.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    async fn compact_log(&self) -> Result<LogIndex, SnapshotError>;

    /// Stops the engine in order: no new proposals, what waits is answered, threads end, the state machine is flushed.
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
    /// Sees every write acknowledged before the read began (ReadIndex, dissertation §6.4).
    Linearizable,
    /// What this node has applied, at once.
    Stale,
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
    /// *Certainly not applied.* Too much is in flight; ask again a little later.
    #[error("overloaded: {in_flight} proposals of {in_flight_bytes} bytes are in flight")]
    Overloaded {
        /// Proposals in flight.
        in_flight: u64,
        /// Their bytes.
        in_flight_bytes: u64,
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

/// Why the log was not compacted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The engine has no log that could be compacted.
    #[error("this engine keeps no log")]
    NoLog,
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
    /// Whether the engine works.
    pub health: Health,
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
    /// A snapshot is on its way to it.
    pub snapshot: bool,
    /// It answered within the last election timeout.
    pub active: bool,
}

fn hint(leader: &Option<NodeId>) -> String {
    leader.map_or_else(|| "; no leader is known".to_owned(), |id| format!("; node {id} is"))
}
