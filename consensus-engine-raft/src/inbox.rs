//! Inputs of the engine's task, which arrive through one queue.

use std::sync::Arc;

use consensus_core::{
    ChangeError, Entry, FlushWork, LogId, LogIndex, MemberChange, Membership, Message, NodeId,
    ReadConsistency, ReadError, Snapshot, SnapshotAck, SnapshotError, SnapshotMeta, StateMachineError,
    StorageError, Term, TransferError,
};
use consensus_raft_protocol::Append;
use tokio::sync::{mpsc, oneshot};

use crate::{admission::Permit, snapshot_send::SendFailure, waiters::Waiter};

/// Sending end of the queue. The queue has no limit. Proposals, reads and messages are limited by permits, results of work by the
/// number of jobs in flight. Calls of operators (membership, transfer, compaction, shutdown) are not limited.
pub(crate) type Inbox = mpsc::UnboundedSender<Input>;

pub(crate) type ChangeReply = oneshot::Sender<Result<Arc<Membership>, ChangeError>>;
pub(crate) type TransferReply = oneshot::Sender<Result<NodeId, TransferError>>;

/// An input of the engine's task.
pub(crate) enum Input {
    Message(NodeId, Message, Permit),
    /// The transport lost its connection to the node and cannot establish another.
    Disconnected(NodeId),
    Propose(bytes::Bytes, Waiter),
    Read(ReadConsistency, oneshot::Sender<Result<LogIndex, ReadError>>, Permit),
    ChangeMembership(Vec<MemberChange>, ChangeReply),
    Transfer(Option<NodeId>, TransferReply),
    /// From the storage thread: the result of the write.
    Persisted(Result<(), StorageError>),
    /// From the storage thread: nothing of the write was written, because it has no room on the disk.
    NoRoom(String),
    /// From the apply thread: all entries up to this index are applied.
    Applied(Result<LogIndex, StateMachineError>),
    /// From the apply thread: a flush of the state machine that can run in the background.
    FlushInBackground(FlushWork, FlushedFor),
    /// From the apply thread or a background flush: the state machine is durable up to this entry.
    Flushed(Result<LogId, StateMachineError>, FlushedFor),
    Installed(Result<(), StateMachineError>),
    SnapshotTaken(NodeId, Result<(LogId, Box<dyn Snapshot>), StateMachineError>),
    /// The last index of the snapshot that the member has received, or why sending it failed.
    SnapshotSent(NodeId, Result<LogIndex, SendFailure>),
    /// An arriving snapshot was refused, for this reason.
    SnapshotBlocked(String),
    SnapshotArrived(Arrival),
    /// Entries read from disk, for an append that needs them.
    Loaded(NodeId, Append, Result<Vec<Entry>, StorageError>),
    Compact(oneshot::Sender<Result<LogIndex, SnapshotError>>),
    /// Stop the engine; the sender is notified at the end.
    Shutdown(Option<oneshot::Sender<()>>),
}

/// Reason for flushing the state machine.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FlushedFor {
    /// The log is to be compacted.
    Compaction,
    /// A snapshot is to be taken for this node. Flushing first shortens the time for which taking it delays `apply`.
    Snapshot(NodeId),
}

/// A complete snapshot that has arrived, in a file.
pub(crate) struct Arrival {
    pub(crate) from: NodeId,
    pub(crate) term: Term,
    pub(crate) meta: SnapshotMeta,
    pub(crate) file: std::fs::File,
    pub(crate) reply: oneshot::Sender<SnapshotAck>,
}
