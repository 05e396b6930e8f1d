//! The transport as its users hold it.

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
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    calls,
    convert::message_to_wire,
    framing,
    identity::{Own, Standing},
    peer::{Dialled, Peer, RECONNECT_FLOOR, STALL_TIMEOUT_FLOOR},
    server,
};

/// Settings of a [`ThriftTransport`].
#[derive(Clone, Debug)]
pub struct ThriftConfig {
    /// This node.
    pub node: NodeId,
    /// Where it listens; port 0 takes a free one.
    pub listen: Endpoint,
    /// Where other nodes reach this one, told to those who do not know; `None`, the default: they must know.
    pub advertise: Option<Endpoint>,
    /// Name of the cluster; nodes with another one are refused. Default "default".
    pub cluster: String,
    /// Identity of the node's log storage, told to the others; 0, the default: not told.
    pub storage: StorageId,
    /// Longest frame sent or taken. Default 64 MiB; must hold an `AppendEntries` or a snapshot chunk.
    pub frame_bytes_max: usize,
    /// Most bytes queued to one node. Default 64 MiB.
    pub queue_bytes_max: u64,
    /// Most connections taken at once; a cluster needs two for each other node. Default 256.
    pub connections_max: usize,
    /// For connecting and greeting together. Default 2 s.
    pub connect_timeout: Duration,
    /// A connection with bytes under way on which the peer says nothing for so long is replaced by a new one. Set it to the
    /// election timeout of the engine, as [`with_election_timeout`](Self::with_election_timeout) does: shorter, and a peer
    /// that pauses costs messages for nothing; longer, and after a failure of the network the cluster is without a leader
    /// for longer than it must be. At least 20 ms. Default 500 ms, the default of `consensus-engine-raft`.
    pub stall_timeout: Duration,
    /// First wait before connecting again; it doubles up to `reconnect_max`. Default 20 ms.
    pub reconnect_min: Duration,
    /// Longest such wait. Default 500 ms: a restarted node is found again within that
    /// time.
    pub reconnect_max: Duration,
    /// For the answer to a snapshot chunk. Default 30 s.
    pub chunk_timeout: Duration,
    /// For the answer to the last chunk, which comes when the snapshot is installed. Default 30 min.
    pub install_timeout: Duration,
}

impl ThriftConfig {
    /// The defaults for `node`, listening at `listen`.
    #[must_use]
    pub fn new(node: NodeId, listen: Endpoint) -> Self {
        Self {
            node,
            listen,
            advertise: None,
            cluster: "default".to_owned(),
            storage: StorageId(0),
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

    /// Derives from the engine's election timeout what depends on it: [`stall_timeout`](Self::stall_timeout) is as long, and
    /// [`reconnect_max`](Self::reconnect_max) at most half as long, so that nodes find each other within an election timeout
    /// once the network lets them.
    #[must_use]
    pub fn with_election_timeout(self, election_timeout: Duration) -> Self {
        let reconnect_max = self.reconnect_max.min(election_timeout / 2);
        Self { stall_timeout: election_timeout, reconnect_max, ..self }
    }
}

/// A node's end of a network of Thrift over TCP.
pub struct ThriftTransport {
    own: Arc<Own>,
    local: Endpoint,
    listener: Mutex<Option<Arc<TcpListener>>>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    /// Set by [`start`](NetworkTransport::start); connections for messages wait for it.
    handler: watch::Sender<Option<Arc<dyn MessageHandler>>>,
    peers: Arc<Peers>,
}

/// The nodes whose endpoints are known.
#[derive(Debug)]
pub(crate) struct Peers {
    own: Arc<Own>,
    /// `None` after shutdown.
    peers: Mutex<Option<BTreeMap<NodeId, Arc<Peer>>>>,
    reachability: Arc<watch::Sender<BTreeMap<NodeId, Reachability>>>,
}

impl Peers {
    fn set(&self, node: NodeId, endpoint: Endpoint) {
        if let Some(peers) = lock(&self.peers).as_mut() {
            // A connection that stands is not broken.
            if peers.get(&node).is_none_or(|peer| *peer.endpoint() != endpoint || !peer.keep()) {
                self.put(peers, node, endpoint, Dialled::Kept);
            }
        }
    }

    /// A node that called is there, and said where it is called back, perhaps. What is known already is not changed by that;
    /// and callers cannot make this node remember ever more.
    pub(crate) fn called_by(&self, node: NodeId, endpoint: Option<Endpoint>) {
        let mut peers = lock(&self.peers);
        let Some(peers) = peers.as_mut() else { return };
        match (peers.get(&node), endpoint) {
            (Some(peer), _) if !peer.is_given_up() => peer.connect_now(),
            (known, Some(endpoint)) if known.is_some() || peers.len() < PEERS_LEARNED_MAX => {
                self.put(peers, node, endpoint, Dialled::Learned);
            }
            _ => {}
        }
    }

    fn put(
        &self,
        peers: &mut BTreeMap<NodeId, Arc<Peer>>,
        node: NodeId,
        endpoint: Endpoint,
        dialled: Dialled,
    ) {
        let reachability = self.reachability.clone();
        let report = move |state| {
            reachability.send_if_modified(|all| all.insert(node, state) != Some(state));
        };
        report(Reachability::Unknown);
        let new = Arc::new(Peer::start(node, endpoint, dialled, self.own.clone(), report));
        if let Some(old) = peers.insert(node, new) {
            old.forget(SendError::Unreachable(node));
        }
    }

    /// Another storage than `storage` that answers at the endpoint of `node`, just now.
    pub(crate) fn other_storage(&self, node: NodeId, storage: StorageId) -> Option<(StorageId, Endpoint)> {
        let peers = lock(&self.peers);
        let peer = peers.as_ref()?.get(&node)?;
        let answers = peer.storage().filter(|known| *known != StorageId(0) && storage != StorageId(0))?;
        (answers != storage).then(|| (answers, peer.endpoint().clone()))
    }

    fn remove(&self, node: NodeId) {
        if let Some(peers) = lock(&self.peers).as_mut()
            && let Some(peer) = peers.remove(&node)
        {
            peer.forget(SendError::UnknownNode(node));
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
    /// Listens at the configured place. Connections are accepted from [`start`](NetworkTransport::start) on, or from
    /// [`answer_probes`](Self::answer_probes) on.
    ///
    /// # Errors
    /// The place cannot be listened at; the error names it.
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
        let own = Arc::new(Own::new(Arc::new(config)));
        let peers = Peers {
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

    /// Answers those who ask this node who it is ([`probe`](crate::probe)), before an engine starts it. Callers with messages
    /// wait until then. [`start`](NetworkTransport::start) does so too.
    pub fn answer_probes(&self) {
        let mut accepting = lock(&self.accepting);
        let Some(listener) = lock(&self.listener).clone().filter(|_| accepting.is_none()) else { return };
        let (own, peers, handler) = (self.own.clone(), self.peers.clone(), self.handler.subscribe());
        *accepting = Some(tokio::spawn(server::accept(listener, own, peers, handler)));
    }

    /// Sets what this node answers to those who ask what it has of the history of a cluster. Before it is called, and without
    /// an identity of the cluster, that is a first configuration with nobody in it.
    pub fn announce(&self, standing: Standing) {
        self.own.announce(standing);
    }

    /// The settings that it was bound with, with those that were out of range put right.
    #[must_use]
    pub fn config(&self) -> &ThriftConfig {
        &self.own.config
    }

    pub(crate) fn own(&self) -> &Own {
        &self.own
    }

    /// Where it listens, the port as taken.
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
            return Err(TransportError::Misuse("it was started before"));
        }
        self.answer_probes();
        Ok(())
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        let peer = self.peers.get(to)?;
        let (bytes, limit) = (message.size_bytes(), self.own.config.frame_bytes_max as u64);
        let too_large = SendError::TooLarge { bytes, limit };
        if bytes > limit {
            return Err(too_large);
        }
        let message = message_to_wire(message).map_err(|why| {
            tracing::error!(why, "a message that cannot be sent");
            too_large.clone()
        })?;
        let frame = calls::deliver(message, self.own.cluster()).map_err(|_| too_large.clone())?;
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
        peers.iter().flat_map(BTreeMap::values).for_each(|peer| peer.forget(SendError::Closed));
        lock(&self.listener).take();
        let accepting = lock(&self.accepting).take();
        if let Some(task) = accepting {
            task.abort();
            let _ = task.await; // Cancelled, as asked; its connections went with it.
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

/// Nodes beyond this number are not remembered for having called.
const PEERS_LEARNED_MAX: usize = 64;

/// A bad frame limit would be noticed only by a message that does not fit.
const _: () = assert!(framing::CONTAINER_MAX >= 4096, "an AppendEntries has up to 4096 entries");
