//! The transport: messages between nodes.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{ClusterId, Endpoint, Message, NodeId, SnapshotAck, SnapshotChunk};

/// Moves messages between nodes.
///
/// # Guarantees
/// Best effort: a message may be lost, duplicated, delayed or reordered. It is never altered, never delivered to another
/// node, and reported with its true sender (as far as the network can be trusted). Engines tolerate the rest.
///
/// # Who calls
/// An engine calls [`start`](Self::start) once with its handler, then [`send`](Self::send) from any thread, and
/// [`set_cluster`](Self::set_cluster) when it knows its cluster. The program that manages the cluster sets endpoints, at
/// any time.
///
/// # Example
/// ```
/// # use consensus_core::*;
/// # fn heartbeat(transport: &dyn NetworkTransport, peers: &[NodeId], message: Message) {
/// for peer in peers {
///     // A full queue or an unreachable peer is no reason to wait: the next heartbeat will do.
///     let _ = transport.send(*peer, message.clone());
/// }
/// # }
/// ```
/// Wrong: awaiting the network in `send`; a queue without bound; retrying a message that the engine has replaced by a
/// newer one since.
#[async_trait]
pub trait NetworkTransport: Send + Sync + 'static {
    /// Id of the node that uses this transport.
    fn local(&self) -> NodeId;

    /// Starts to deliver arriving messages to `handler`. Messages that arrived earlier are dropped.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] if the transport was started before.
    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError>;

    /// Queues `message` for `to` and returns at once. `Ok` means that the message was queued, not that it arrived.
    ///
    /// # Errors
    /// The message was not queued, see [`SendError`].
    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError>;

    /// Sends one chunk of a snapshot to `to` and returns its acknowledgement. Chunks must not delay messages.
    /// Dropping the future cancels the call; the chunk may have arrived all the same.
    ///
    /// # Errors
    /// No acknowledgement was received. The chunk may have arrived; send it again with the same offset.
    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError>;

    /// Adds a node or changes its endpoint. Messages queued for the old endpoint may be lost.
    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint);

    /// Removes a node. Further sends to it fail with [`SendError::UnknownNode`].
    fn remove_endpoint(&self, node: NodeId);

    /// Sets the cluster that this node belongs to. Engines call it after every start, as soon as they know.
    ///
    /// Once this has returned, no message passes between this node and one that is known to belong to another cluster, in
    /// either direction: messages from such a node are not delivered, messages to it are lost or refused, and connections
    /// to it are closed. Nodes whose cluster is not known are not affected ([`ClusterId::is_compatible_with`]). Both ends
    /// log a node that they refuse, once.
    ///
    /// Right: each message and each receipt names the cluster of its sender. Wrong: comparing the clusters only when a
    /// connection is made; both ends may learn their clusters later.
    fn set_cluster(&self, cluster: ClusterId);

    /// Reachability of each peer, as a value that can be watched.
    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>>;

    /// Stops delivering and sending, and closes all connections. Further sends fail with [`SendError::Closed`].
    async fn shutdown(&self);
}

/// Receives what a transport delivers; implemented by engines.
#[async_trait]
pub trait MessageHandler: Send + Sync + 'static {
    /// Handles a message. Must not block and must bound its queues; it may drop messages that do not fit.
    fn on_message(&self, from: NodeId, message: Message);

    /// Handles a chunk of a snapshot. The sender waits for the acknowledgement, which so limits its rate.
    async fn on_snapshot_chunk(&self, from: NodeId, chunk: SnapshotChunk) -> SnapshotAck;
}

/// Whether the last attempt to reach a peer succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Not tried yet.
    Unknown,
    /// A connection is established.
    Reachable,
    /// The last attempt failed; the transport keeps trying. A change from [`Reachable`](Self::Reachable) to this most likely
    /// means that the node's process has ended: engines may then elect another leader at once.
    Unreachable,
}

/// Why a message was not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No endpoint is set for the node.
    #[error("no endpoint is known for node {0}")]
    UnknownNode(NodeId),
    /// No connection is established; the transport keeps trying.
    #[error("node {0} is not connected")]
    Unreachable(NodeId),
    /// The queue to the node is full of older messages.
    #[error("the send queue to node {0} is full")]
    QueueFull(NodeId),
    /// The message is larger than the transport carries.
    #[error("a message of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Size of the message.
        bytes: u64,
        /// Largest message that the transport carries.
        limit: u64,
    },
    /// The transport was shut down.
    #[error("the transport is shut down")]
    Closed,
}

/// Why an operation of a transport failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The message was not queued.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The network failed.
    #[error("transport: {context}: {source}")]
    Io {
        /// Operation that failed, with its peer.
        context: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The peer violated the transport's protocol, or refuses to communicate.
    #[error("transport: node {node}: {why}")]
    Protocol {
        /// The peer.
        node: NodeId,
        /// Violation by the peer, or its reason for the refusal.
        why: String,
    },
    /// The caller broke the contract of [`NetworkTransport`].
    #[error("transport: misuse: {0}")]
    Misuse(&'static str),
}
