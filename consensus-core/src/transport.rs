//! Between the nodes.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{ClusterId, Endpoint, Message, NodeId, SnapshotAck, SnapshotChunk};

/// Moves messages between nodes.
///
/// # What it promises
/// Best effort: a message may be lost, duplicated, delayed or overtaken, but never altered, never given to another node,
/// and its sender is told truly (as truly as the network is trusted). Engines live with the rest.
///
/// # Who calls
/// An engine calls [`start`](Self::start) once with its handler, then [`send`](Self::send) from any thread, and
/// [`set_cluster`](Self::set_cluster) when it knows its cluster. Whoever manages the cluster sets endpoints, at any time.
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
/// Wrong: awaiting the network in `send`; a queue without bound; retrying on one's own a message that an engine has
/// since replaced by a newer one.
#[async_trait]
pub trait NetworkTransport: Send + Sync + 'static {
    /// The node that this end belongs to.
    fn local(&self) -> NodeId;

    /// Begins to deliver what arrives to `handler`. What arrived before is dropped.
    ///
    /// # Errors
    /// [`TransportError::Misuse`] if it was started before.
    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError>;

    /// Queues `message` for `to` and returns at once. `Ok` says that it was queued, no more.
    ///
    /// # Errors
    /// It was not queued, see [`SendError`].
    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError>;

    /// Hands one piece of a snapshot to `to` and returns its answer. It travels beside the messages, not before them.
    /// May be cancelled by dropping; the chunk may then have arrived or not.
    ///
    /// # Errors
    /// There is no answer. The chunk may have arrived; send it again, with the same offset.
    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError>;

    /// Adds a node or changes where it listens. Messages queued for the old place may be lost.
    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint);

    /// Forgets a node; sends to it then fail with [`SendError::UnknownNode`].
    fn remove_endpoint(&self, node: NodeId);

    /// Tells to which cluster this node belongs. Engines do so after every start, as soon as they know.
    ///
    /// Once this has returned no message passes between this node and one that is known to belong to another cluster, in
    /// either direction: what such a node sends is not delivered, what is sent to it is lost or refused, and connections to it
    /// are closed. Nodes whose cluster is not known are not affected ([`ClusterId::is_compatible_with`]). Both ends log a
    /// node that they refuse, once.
    ///
    /// Right: each message and each receipt says to which cluster its sender belongs. Wrong: comparing when a connection is
    /// made and never again; both ends may learn their clusters later.
    fn set_cluster(&self, cluster: ClusterId);

    /// What is known of each peer, as a value that can be watched.
    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>>;

    /// Stops delivering and sending and closes all connections; further sends fail with [`SendError::Closed`].
    async fn shutdown(&self);
}

/// Takes what a transport delivers; an engine's side of [`NetworkTransport`].
#[async_trait]
pub trait MessageHandler: Send + Sync + 'static {
    /// A message arrived. Must not block and must bound what it queues; what it cannot take it may drop.
    fn on_message(&self, from: NodeId, message: Message);

    /// A piece of a snapshot arrived. The sender waits for the answer, which paces it.
    async fn on_snapshot_chunk(&self, from: NodeId, chunk: SnapshotChunk) -> SnapshotAck;
}

/// Whether a peer was within reach when last tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Not tried yet.
    Unknown,
    /// A connection stands.
    Reachable,
    /// The last attempt failed; further ones are being made. After [`Reachable`](Self::Reachable) it says that the node's
    /// process has ended, most likely: engines may then look for another leader at once.
    Unreachable,
}

/// Why a message was not queued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No endpoint is set for the node.
    #[error("no endpoint is known for node {0}")]
    UnknownNode(NodeId),
    /// No connection stands; attempts are being made.
    #[error("node {0} is not connected")]
    Unreachable(NodeId),
    /// The queue to the node is full; older messages are still on their way.
    #[error("the send queue to node {0} is full")]
    QueueFull(NodeId),
    /// Larger than what the transport carries.
    #[error("a message of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Of the message.
        bytes: u64,
        /// Of the transport.
        limit: u64,
    },
    /// The transport was shut down.
    #[error("the transport is shut down")]
    Closed,
}

/// Why a transport cannot do as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The message was not queued.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The network.
    #[error("transport: {context}: {source}")]
    Io {
        /// What was being done, with whom.
        context: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The peer does not speak as it should, or refuses to speak.
    #[error("transport: node {node}: {why}")]
    Protocol {
        /// The peer.
        node: NodeId,
        /// What is wrong.
        why: String,
    },
    /// The caller broke the contract.
    #[error("transport: misuse: {0}")]
    Misuse(&'static str),
}
