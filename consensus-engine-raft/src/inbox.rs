//! Everything that the engine's task hears, through one queue.

use std::sync::Arc;

use consensus_core::{
    ChangeError, Entry, FlushWork, LogId, LogIndex, MemberChange, Membership, Message, NodeId,
    ReadConsistency, ReadError, Snapshot, SnapshotAck, SnapshotError, SnapshotMeta, StateMachineError,
    StorageError, Term, TransferError,
};
use consensus_raft_protocol::Append;
use tokio::sync::{mpsc, oneshot};

use crate::{admission::Permit, snapshot_send::SendFailure, waiters::Waiter};

/// The queue's writing end. It has no bound of its own: each kind of input is bounded where it comes from - proposals,
/// reads and messages by permits, the rest by there being one in flight (per peer).
pub(crate) type Inbox = mpsc::UnboundedSender<Input>;

pub(crate) type ChangeReply = oneshot::Sender<Result<Arc<Membership>, ChangeError>>;
pub(crate) type TransferReply = oneshot::Sender<Result<NodeId, TransferError>>;

/// Something for the engine's task.
pub(crate) enum Input {
    Message(NodeId, Message, Permit),
    /// The transport lost its connection to the node, and does not get another.
    Disconnected(NodeId),
    Propose(bytes::Bytes, Waiter),
    Read(ReadConsistency, oneshot::Sender<Result<LogIndex, ReadError>>, Permit),
    ChangeMembership(Vec<MemberChange>, ChangeReply),
    Transfer(Option<NodeId>, TransferReply),
    /// From the storage thread.
    Persisted(Result<(), StorageError>),
    /// From the storage thread: nothing of the write was written, as its entries have no room on the disk.
    NoRoom(String),
    /// From the apply thread: everything up to here is applied.
    Applied(Result<LogIndex, StateMachineError>),
    /// From the apply thread: the state machine can be flushed beside it.
    FlushAside(FlushWork, FlushedFor),
    /// From the apply thread, or beside it: durable in the state machine up to here.
    Flushed(Result<LogId, StateMachineError>, FlushedFor),
    Installed(Result<(), StateMachineError>),
    SnapshotTaken(NodeId, Result<(LogId, Box<dyn Snapshot>), StateMachineError>),
    /// The last index of the snapshot that the member has, or why it has not.
    SnapshotSent(NodeId, Result<LogIndex, SendFailure>),
    /// A snapshot that was arriving is not taken; why.
    SnapshotBlocked(String),
    SnapshotArrived(Arrival),
    /// Entries that were no longer in memory, for an append that waits for them.
    Loaded(NodeId, Append, Result<Vec<Entry>, StorageError>),
    Compact(oneshot::Sender<Result<LogIndex, SnapshotError>>),
    /// Stop; with whom to tell.
    Shutdown(Option<oneshot::Sender<()>>),
}

/// Why the state machine is flushed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FlushedFor {
    /// The log is to be compacted.
    Compaction,
    /// A snapshot is to be taken for the node, which holds up `apply` the less, the less there is to be flushed then.
    Snapshot(NodeId),
}

/// A whole snapshot, in a file.
pub(crate) struct Arrival {
    pub(crate) from: NodeId,
    pub(crate) term: Term,
    pub(crate) meta: SnapshotMeta,
    pub(crate) file: std::fs::File,
    pub(crate) reply: oneshot::Sender<SnapshotAck>,
}
