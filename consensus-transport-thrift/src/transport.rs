//! The transport and its settings.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    ClusterId, Endpoint, Message, MessageHandler, NetworkTransport, NodeId, Reachability, SendError,
    SnapshotAck, SnapshotChunk, StorageId, TransportError,
};
use consensus_tls::Tls;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    calls,
    convert::{message_to_wire, unsigned},
    framing, generated as wire,
    identity::{ClusterHistory, LocalNode},
    peer::{DialState, Peer, RECONNECT_FLOOR, STALL_TIMEOUT_FLOOR},
    server,
};

/// Settings of a [`ThriftTransport`].
#[derive(Clone, Debug)]
pub struct ThriftConfig {
    /// Id of this node.
    pub node: NodeId,
    /// Endpoint at which the node listens; port 0 takes a free port.
    pub listen: Endpoint,
    /// Endpoint at which other nodes reach this one, sent to nodes that do not know it. `None`, the default: not sent; the
    /// other nodes must know it.
    pub advertise: Option<Endpoint>,
    /// Name of the cluster; nodes with another name are refused. Default "default".
    pub cluster: String,
    /// Identity of the node's log storage, sent to the other nodes. 0, the default: not sent.
    pub storage: StorageId,
    /// TLS of the connections from and to other nodes. `None`, the default: they are plain, and anybody who reaches the port can
    /// claim to be a node.
    pub tls: Option<Tls>,
    /// Longest frame that is sent or accepted, in bytes. Must hold an `AppendEntries` and a snapshot chunk. Default 64 MiB.
    pub frame_bytes_max: usize,
    /// Most bytes queued to one node. Default 64 MiB.
    pub queue_bytes_max: u64,
    /// Most connections from other nodes at the same time; each of them needs two. Default 256.
    pub connections_max: usize,
    /// Time limit for connecting and the hello together. Default 2 s.
    pub connect_timeout: Duration,
    /// Time without any receipt after which a connection with unacknowledged bytes is replaced. Set it to the election
    /// timeout of the engine, as [`with_election_timeout`](Self::with_election_timeout) does. If it is shorter, messages are
    /// lost whenever a peer pauses. If it is longer, the cluster has no leader for longer than necessary after a failure of
    /// the network. At least 20 ms; shorter values are raised. Default 500 ms, as in `consensus-engine-raft`.
    pub stall_timeout: Duration,
    /// First pause before connecting again; doubled after each failure, up to `reconnect_max`. Default 20 ms.
    pub reconnect_min: Duration,
    /// Longest pause before connecting again: a restarted node is found within this time. Default 500 ms.
    pub reconnect_max: Duration,
    /// Time limit for the response to a snapshot chunk. Default 30 s.
    pub chunk_timeout: Duration,
    /// Time limit for the response to the last chunk, which is sent when the snapshot is installed. Default 30 min.
    pub install_timeout: Duration,
}

impl ThriftConfig {
    /// Creates the default settings for `node`, which listens at `listen`.
    #[must_use]
    pub fn new(node: NodeId, listen: Endpoint) -> Self {
        Self {
            node,
            listen,
            advertise: None,
            cluster: "default".to_owned(),
            storage: StorageId(0),
            tls: None,
            frame_bytes_max: 64 << 20,
            queue_bytes_max: 64 << 20,
            connections_max: 256,
            connect_timeout: Duration::from_secs(2),
            stall_timeout: Duration::from_millis(500),
            reconnect_min: Duration::from_millis(20),
            reconnect_max: Duration::from_millis(500),
            chunk_timeout: Duration::from_secs(30),
            install_timeout: Duration::from_secs(30 * 60),
        }
    }

    /// Sets [`stall_timeout`](Self::stall_timeout) to the engine's election timeout, and limits
    /// [`reconnect_max`](Self::reconnect_max) to half of it, so that after a failure of the network the nodes are connected
    /// again within one election timeout.
    #[must_use]
    pub fn with_election_timeout(self, election_timeout: Duration) -> Self {
        let reconnect_max = self.reconnect_max.min(election_timeout / 2);
        Self { stall_timeout: election_timeout, reconnect_max, ..self }
    }
}

/// A [`NetworkTransport`] over TCP.
pub struct ThriftTransport {
    own: Arc<LocalNode>,
    local: Endpoint,
    listener: Mutex<Option<Arc<TcpListener>>>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    /// Set by [`start`](NetworkTransport::start); connections for messages wait for it.
    handler: watch::Sender<Option<Arc<dyn MessageHandler>>>,
    peers: Arc<PeerTable>,
}

/// Connections to the nodes whose endpoints are known.
#[derive(Debug)]
pub(crate) struct PeerTable {
    own: Arc<LocalNode>,
    /// `None` after shutdown.
    peers: Mutex<Option<BTreeMap<NodeId, Arc<Peer>>>>,
    reachability: Arc<watch::Sender<BTreeMap<NodeId, Reachability>>>,
}

impl PeerTable {
    fn set(&self, node: NodeId, endpoint: Endpoint) {
        if let Some(peers) = lock(&self.peers).as_mut() {
            // Keep an existing connection if the endpoint is unchanged.
            if peers.get(&node).is_none_or(|peer| *peer.endpoint() != endpoint || !peer.mark_configured()) {
                self.insert_peer(peers, node, endpoint, DialState::Configured);
            }
        }
    }

    /// Handles that `node` connected to this one, with the endpoint that it advertises: connects to it at once. A known
    /// endpoint is not changed, and the number of nodes that are learned like this is limited.
    pub(crate) fn add_caller(&self, node: NodeId, endpoint: Option<Endpoint>) {
        let mut peers = lock(&self.peers);
        let Some(peers) = peers.as_mut() else { return };
        match (peers.get(&node), endpoint) {
            (Some(peer), _) if !peer.is_given_up() => peer.connect_now(),
            (known, Some(endpoint)) if known.is_some() || peers.len() < PEERS_LEARNED_MAX => {
                self.insert_peer(peers, node, endpoint, DialState::Learned);
            }
            _ => {}
        }
    }

    fn insert_peer(
        &self,
        peers: &mut BTreeMap<NodeId, Arc<Peer>>,
        node: NodeId,
        endpoint: Endpoint,
        dial_state: DialState,
    ) {
        let reachability = self.reachability.clone();
        let report = move |state| {
            reachability.send_if_modified(|all| all.insert(node, state) != Some(state));
        };
        report(Reachability::Unknown);
        let new = Arc::new(Peer::start(node, endpoint, dial_state, self.own.clone(), report));
        if let Some(old) = peers.insert(node, new) {
            old.disconnect(SendError::Unreachable(node));
        }
    }

    /// Why a caller is not the node of its id to which this node is connected: that one has another storage, or is another process
    /// on a copy of it. A process that has ended loses its connections at once, or after the stall timeout.
    pub(crate) fn other_with_id(&self, caller: &wire::Identity) -> Option<String> {
        let node = NodeId(unsigned(caller.node_id));
        let peers = lock(&self.peers);
        let peer = peers.as_ref()?.get(&node)?;
        let (known, endpoint) = (peer.identity()?, peer.endpoint());
        let differ = known.storage != 0 && caller.storage != 0 && known.storage != caller.storage;
        if differ {
            let storages = [known.storage, caller.storage].map(|storage| StorageId(unsigned(storage)));
            let [other, storage] = storages;
            return Some(format!(
                "node {node} runs at {endpoint} with the storage {other}, but this caller with the storage {storage} claims to \
                 be node {node} as well: two nodes were started with one id; stop the one that does not belong to the cluster"
            ));
        }
        let is_other =
            matches!((known.process, caller.process), (Some(known), Some(caller)) if known != caller);
        is_other.then(|| {
            format!(
                "node {node} runs at {endpoint}, but this caller is another process with its id: two nodes were started with \
                 one id, or one of them on a copy of the other's data; stop the one that does not belong to the cluster"
            )
        })
    }

    fn remove(&self, node: NodeId) {
        if let Some(peers) = lock(&self.peers).as_mut()
            && let Some(peer) = peers.remove(&node)
        {
            peer.disconnect(SendError::UnknownNode(node));
        }
        self.reachability.send_if_modified(|all| all.remove(&node).is_some());
    }

    fn get(&self, node: NodeId) -> Result<Arc<Peer>, SendError> {
        let peers = lock(&self.peers);
        let peers = peers.as_ref().ok_or(SendError::Closed)?;
        peers.get(&node).cloned().ok_or(SendError::UnknownNode(node))
    }
}

impl ThriftTransport {
    /// Starts to listen at [`ThriftConfig::listen`]. Connections are accepted after [`start`](NetworkTransport::start) or
    /// [`answer_probes`](Self::answer_probes).
    ///
    /// # Errors
    /// The node cannot listen at the endpoint, which the error names.
    pub async fn bind(config: ThriftConfig) -> Result<Self, TransportError> {
        let listen = &config.listen;
        let error = |source| TransportError::Io { context: format!("listening at {listen}"), source };
        let listener = TcpListener::bind((listen.host(), listen.port())).await.map_err(error)?;
        let port = listener.local_addr().map_err(error)?.port();
        let local = Endpoint::new(listen.host(), port).map_err(|bad| error(io::Error::other(bad)))?;
        let config = ThriftConfig {
            reconnect_min: config.reconnect_min.max(RECONNECT_FLOOR),
            stall_timeout: config.stall_timeout.max(STALL_TIMEOUT_FLOOR),
            ..config
        };
        let own = Arc::new(LocalNode::new(Arc::new(config)));
        let peers = PeerTable {
            own: own.clone(),
            peers: Mutex::new(Some(BTreeMap::new())),
            reachability: Arc::new(watch::channel(BTreeMap::new()).0),
        };
        Ok(Self {
            own,
            local,
            listener: Mutex::new(Some(Arc::new(listener))),
            accepting: Mutex::new(None),
            handler: watch::Sender::new(None),
            peers: Arc::new(peers),
        })
    }

    /// Starts to answer [probes](crate::probe) before an engine starts the transport. Connections for messages wait for the
    /// start. [`start`](NetworkTransport::start) calls this as well.
    pub fn answer_probes(&self) {
        let mut accepting = lock(&self.accepting);
        let Some(listener) = lock(&self.listener).clone().filter(|_| accepting.is_none()) else { return };
        let (own, peers, handler) = (self.own.clone(), self.peers.clone(), self.handler.subscribe());
        *accepting = Some(tokio::spawn(server::accept(listener, own, peers, handler)));
    }

    /// Sets the history that this node reports in answers to probes. Until this is called, and while the cluster has no
    /// identity, the node reports a first configuration without members.
    pub fn announce(&self, history: ClusterHistory) {
        self.own.announce(history);
    }

    /// The settings of the transport, after adjusting values that were out of range.
    #[must_use]
    pub fn config(&self) -> &ThriftConfig {
        &self.own.config
    }

    pub(crate) fn own(&self) -> &LocalNode {
        &self.own
    }

    /// Endpoint at which the node listens, with the actual port.
    #[must_use]
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.local
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl NetworkTransport for ThriftTransport {
    fn local(&self) -> NodeId {
        self.own.config.node
    }

    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError> {
        if lock(&self.listener).is_none() {
            return Err(SendError::Closed.into());
        }
        let mut is_first = false;
        self.handler.send_if_modified(|started| {
            is_first = started.is_none();
            started.get_or_insert(handler);
            is_first
        });
        if !is_first {
            return Err(TransportError::Misuse("the transport was started before"));
        }
        self.answer_probes();
        Ok(())
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        let peer = self.peers.get(to)?;
        let bytes = message.size_bytes();
        let limit = self.own.config.frame_bytes_max as u64;
        let too_large = SendError::TooLarge { bytes, limit };
        if bytes > limit {
            return Err(too_large);
        }
        let message = message_to_wire(message).map_err(|why| {
            tracing::error!(why, "cannot send a message of an unknown kind; it is dropped");
            too_large.clone()
        })?;
        let frame = calls::encode_deliver(message, self.own.cluster()).map_err(|_| too_large.clone())?;
        // The limit is on the frame's body.
        if frame.len() - 4 > self.own.config.frame_bytes_max {
            return Err(too_large);
        }
        peer.send(frame)
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        self.peers.get(to)?.send_chunk(chunk).await
    }

    fn set_endpoint(&self, node: NodeId, endpoint: Endpoint) {
        self.peers.set(node, endpoint);
    }

    fn remove_endpoint(&self, node: NodeId) {
        self.peers.remove(node);
    }

    fn set_cluster(&self, cluster: ClusterId) {
        self.own.set_cluster(cluster);
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        self.peers.reachability.subscribe()
    }

    async fn shutdown(&self) {
        let peers = lock(&self.peers.peers).take();
        peers.iter().flat_map(BTreeMap::values).for_each(|peer| peer.disconnect(SendError::Closed));
        lock(&self.listener).take();
        let accepting = lock(&self.accepting).take();
        if let Some(task) = accepting {
            task.abort();
            let _ = task.await; // Always a cancellation, which also closes the accepted connections.
        }
    }
}

impl fmt::Debug for ThriftTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThriftTransport").field("config", self.config()).finish_non_exhaustive()
    }
}

impl Drop for ThriftTransport {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.accepting).take() {
            task.abort();
        }
    }
}

/// With this many known nodes, no further node is learned from its own connections.
const PEERS_LEARNED_MAX: usize = 64;

/// Checked here, because a limit that is too low would only be noticed with a long message.
const _: () = assert!(framing::CONTAINER_MAX >= 4096, "an AppendEntries has up to 4096 entries");
