//! A network within one process, for tests, simulations and examples.
//!
//! [`MemNetwork`] connects any number of [`MemTransport`]s. Each direction of each link can have latency, loss, duplication
//! and reordering, or be cut. A seed determines all random decisions. What this is *not*: a simulator. Messages are delivered
//! in tokio's time (real, or paused in tests), by tasks of the runtime.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use consensus_core::NodeId;
//! use consensus_transport_mem::{Link, MemNetwork};
//!
//! let network = MemNetwork::new(42);
//! let (a, b) = (network.transport(NodeId(1)), network.transport(NodeId(2)));
//! network.set_link(NodeId(1), NodeId(2), Link { loss: 0.1, ..Link::default() }); // one way
//! network.partition(&[&[NodeId(1)], &[NodeId(2)]]);
//! network.heal();
//! # let _ = (a, b); }
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use consensus_core::{
    ClusterId, Endpoint, Message, MessageHandler, NetworkTransport, NodeId, Reachability, SendError,
    SnapshotAck, SnapshotChunk, TransportError,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

/// Faults of one direction of a link. The default delivers every message at once, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Shortest and longest latency; the latency of each message is drawn at random between them.
    pub latency: (Duration, Duration),
    /// Fraction of the messages that are lost, 0 to 1.
    pub loss: f64,
    /// Fraction of the messages that arrive twice, 0 to 1.
    pub duplication: f64,
    /// Whether messages with a shorter latency overtake earlier ones.
    pub reordering: bool,
    /// Whether all messages are lost.
    pub cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        let latency = (Duration::ZERO, Duration::ZERO);
        Self { latency, loss: 0.0, duplication: 0.0, reordering: false, cut: false }
    }
}

/// A network that connects transports. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct MemNetwork(Arc<Mutex<Shared>>);

struct Shared {
    random: SmallRng,
    /// Whether messages that no link delays are delivered within the send.
    direct: bool,
    nodes: BTreeMap<NodeId, Node>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// Arrival time of the newest message of each link. Later ones do not overtake it, unless the link reorders.
    last_arrival: BTreeMap<(NodeId, NodeId), Instant>,
}

/// State of the newest transport of a node.
struct Node {
    /// Queue of the messages to the node.
    inbox: mpsc::UnboundedSender<Delivery>,
    /// Number of earlier transports of the node.
    generation: u64,
    handler: Option<Arc<dyn MessageHandler>>,
    queued_bytes: Arc<AtomicU64>,
    reachability: watch::Sender<BTreeMap<NodeId, Reachability>>,
    cluster: Arc<ClusterCell>,
}

/// The cluster of a node, shared with its delivery task.
#[derive(Default)]
struct ClusterCell(AtomicU64);

impl ClusterCell {
    fn get(&self) -> ClusterId {
        ClusterId(self.0.load(Ordering::Acquire))
    }

    fn set(&self, cluster: ClusterId) {
        self.0.store(cluster.0, Ordering::Release);
    }
}

struct Delivery {
    at: Instant,
    from: NodeId,
    /// Cluster of the sender.
    cluster: ClusterId,
    message: Message,
    bytes: u64,
}

impl MemNetwork {
    /// Creates a network without nodes. `seed` determines the random decisions of its links.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            random: SmallRng::seed_from_u64(seed),
            direct: false,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            last_arrival: BTreeMap::new(),
        })))
    }

    /// Delivers messages that no link delays or loses within the sender's [`send`](NetworkTransport::send), without a task in
    /// between. Only for handlers that queue messages, as the engines of this workspace do: a handler that sends from within
    /// [`on_message`](MessageHandler::on_message) could be called recursively.
    #[must_use]
    pub fn with_direct_delivery(self) -> Self {
        self.lock().direct = true;
        self
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the transport of `node`. Another call for the same node, after a restart, creates a new transport and
    /// disconnects the old one.
    #[must_use]
    pub fn transport(&self, node: NodeId) -> Arc<MemTransport> {
        let (inbox, deliveries) = mpsc::unbounded_channel();
        let mut shared = self.lock();
        let generation = shared.nodes.get(&node).map_or(0, |old| old.generation + 1);
        let (reachability, reachable) = watch::channel(BTreeMap::new());
        let new = Node {
            inbox,
            generation,
            handler: None,
            queued_bytes: Arc::new(AtomicU64::new(0)),
            reachability,
            cluster: Arc::default(),
        };
        if shared.nodes.insert(node, new).is_some() {
            shared.mark_unreachable_for_others(node);
        }
        let peers = Mutex::new(BTreeMap::new());
        let (deliveries, delivery_task) = (Mutex::new(Some(deliveries)), Mutex::new(None));
        let network = self.clone();
        Arc::new(MemTransport { network, node, generation, peers, deliveries, delivery_task, reachable })
    }

    /// Sets the faults of the link in one direction.
    pub fn set_link(&self, from: NodeId, to: NodeId, link: Link) {
        self.lock().links.insert((from, to), link);
    }

    /// Sets the faults of all links between the existing nodes, in both directions.
    pub fn set_all_links(&self, link: &Link) {
        let mut shared = self.lock();
        let nodes: Vec<NodeId> = shared.nodes.keys().copied().collect();
        for from in &nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                shared.links.insert((*from, *to), link.clone());
            }
        }
    }

    /// Cuts the link from `from` to `to`. The opposite direction is unchanged.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.lock().links.entry((from, to)).or_default().cut = true;
    }

    /// Cuts all links between nodes of different groups.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        for (i, group) in groups.iter().enumerate() {
            let others = groups.iter().enumerate().filter(|(j, _)| *j != i);
            for to in others.flat_map(|(_, other)| other.iter()) {
                group.iter().for_each(|from| self.cut(*from, *to));
            }
        }
    }

    /// Restores all links that were cut. Latency and loss are unchanged.
    pub fn heal(&self) {
        self.lock().links.values_mut().for_each(|link| link.cut = false);
    }
}

impl Shared {
    /// Draws the arrival time of each copy of a message. Empty if the message is lost.
    fn arrival_times(&mut self, from: NodeId, to: NodeId) -> Vec<Instant> {
        let link = self.links.get(&(from, to)).cloned().unwrap_or_default();
        if link.cut || self.random.random_bool(link.loss.clamp(0.0, 1.0)) {
            return Vec::new();
        }
        let link_keeps_order = !link.reordering;
        let copies = 1 + usize::from(self.random.random_bool(link.duplication.clamp(0.0, 1.0)));
        let (least, most) = link.latency;
        let now = Instant::now();
        let last = self.last_arrival.entry((from, to)).or_insert(now);
        let random = &mut self.random;
        let mut arrival = || {
            let at = now + random.random_range(least..=most.max(least));
            *last = if link_keeps_order { at.max(*last) } else { at };
            *last
        };
        (0..copies).map(|_| arrival()).collect()
    }

    /// The receiver's handler, if the message can be delivered at once without overtaking earlier ones.
    fn direct_handler(&self, from: NodeId, to: NodeId) -> Option<Arc<dyn MessageHandler>> {
        if !self.direct || self.links.get(&(from, to)).is_some_and(|link| *link != Link::default()) {
            return None;
        }
        let node = self.nodes.get(&to).filter(|node| !node.inbox.is_closed())?;
        let known = self.nodes.get(&from)?.reachability.borrow().get(&to) == Some(&Reachability::Reachable);
        let idle = node.queued_bytes.load(Ordering::Acquire) == 0;
        node.handler.clone().filter(|_| known && idle)
    }

    /// Disconnects the transport of `node`, if `generation` is its newest one.
    fn remove(&mut self, node: NodeId, generation: u64) {
        if self.nodes.get(&node).is_some_and(|own| own.generation == generation) {
            // A disconnected node stays in the map, so that the generation of its next transport is higher.
            let disconnected = Node {
                inbox: mpsc::unbounded_channel().0,
                generation: generation + 1,
                handler: None,
                queued_bytes: Arc::new(AtomicU64::new(0)),
                reachability: watch::channel(BTreeMap::new()).0,
                cluster: Arc::default(),
            };
            self.nodes.insert(node, disconnected);
            self.mark_unreachable_for_others(node);
        }
    }

    /// Makes the node unreachable for all others, as an operating system closes the connections of a process that ends.
    fn mark_unreachable_for_others(&self, node: NodeId) {
        for from in self.nodes.keys().filter(|from| **from != node) {
            self.set_reachability(*from, node, Reachability::Unreachable);
        }
    }

    /// Whether the two nodes are not known to belong to different clusters.
    fn may_communicate(&self, from: NodeId, to: NodeId) -> bool {
        let cluster = |node| self.nodes.get(&node).map_or(ClusterId::NONE, |node| node.cluster.get());
        cluster(from).is_compatible_with(cluster(to))
    }

    fn set_reachability(&self, from: NodeId, to: NodeId, state: Reachability) {
        if let Some(node) = self.nodes.get(&from) {
            node.reachability.send_if_modified(|all| all.insert(to, state) != Some(state));
        }
    }
}

/// The transport of one node in a [`MemNetwork`]. It knows every node of the network without an endpoint, until the node is
/// removed with [`remove_endpoint`](NetworkTransport::remove_endpoint); setting any endpoint makes it known again.
pub struct MemTransport {
    network: MemNetwork,
    node: NodeId,
    generation: u64,
    /// Nodes that were set (`true`) or removed (`false`).
    peers: Mutex<BTreeMap<NodeId, bool>>,
    deliveries: Mutex<Option<mpsc::UnboundedReceiver<Delivery>>>,
    /// Task that delivers the messages to this node.
    delivery_task: Mutex<Option<JoinHandle<()>>>,
    reachable: watch::Receiver<BTreeMap<NodeId, Reachability>>,
}

impl MemTransport {
    /// Checks that this transport is the newest of its node, and that it knows the peer.
    fn check(&self, shared: &Shared, to: NodeId) -> Result<(), SendError> {
        if shared.nodes.get(&self.node).is_none_or(|own| own.generation != self.generation) {
            return Err(SendError::Closed);
        }
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = peers.get(&to).copied().unwrap_or_else(|| shared.nodes.contains_key(&to));
        if known { Ok(()) } else { Err(SendError::UnknownNode(to)) }
    }
}

#[async_trait]
impl NetworkTransport for MemTransport {
    fn local(&self) -> NodeId {
        self.node
    }

    async fn start(&self, handler: Arc<dyn MessageHandler>) -> Result<(), TransportError> {
        let deliveries = self.deliveries.lock().unwrap_or_else(PoisonError::into_inner).take();
        let deliveries = deliveries.ok_or(TransportError::Misuse("it was started before"))?;
        let (queued, cluster) = {
            let mut shared = self.network.lock();
            let node = shared.nodes.get_mut(&self.node).filter(|own| own.generation == self.generation);
            let node = node.ok_or(SendError::Closed)?;
            node.handler = Some(handler.clone());
            (node.queued_bytes.clone(), node.cluster.clone())
        };
        let task = tokio::spawn(deliver_messages(deliveries, handler, queued, cluster));
        *self.delivery_task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(())
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        let mut shared = self.network.lock();
        self.check(&shared, to)?;
        if !shared.may_communicate(self.node, to) {
            shared.set_reachability(self.node, to, Reachability::Unreachable);
            return Err(SendError::Unreachable(to));
        }
        if let Some(handler) = shared.direct_handler(self.node, to) {
            drop(shared);
            handler.on_message(self.node, message);
            return Ok(());
        }
        let bytes = message.size_bytes();
        let arrivals = shared.arrival_times(self.node, to);
        let cluster = shared.nodes.get(&self.node).map_or(ClusterId::NONE, |own| own.cluster.get());
        let Some(node) = shared.nodes.get(&to) else { return Ok(()) };
        for at in arrivals {
            if node.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > QUEUE_BYTES_MAX {
                node.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                return Err(SendError::QueueFull(to));
            }
            let delivery = Delivery { at, from: self.node, cluster, message: message.clone(), bytes };
            let _ = node.inbox.send(delivery); // Lost if the node is disconnected.
        }
        let gone = node.inbox.is_closed();
        let cut = shared.links.get(&(self.node, to)).is_some_and(|link| link.cut);
        let state = if cut || gone { Reachability::Unreachable } else { Reachability::Reachable };
        shared.set_reachability(self.node, to, state);
        Ok(())
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        let lost = || TransportError::Io {
            context: format!("sending a snapshot chunk to node {to}"),
            source: std::io::ErrorKind::TimedOut.into(),
        };
        let (there, back, handler) = {
            let mut shared = self.network.lock();
            self.check(&shared, to)?;
            if !shared.may_communicate(self.node, to) {
                return Err(SendError::Unreachable(to).into());
            }
            let (there, back) = (shared.arrival_times(self.node, to), shared.arrival_times(to, self.node));
            (there, back, shared.nodes.get(&to).and_then(|node| node.handler.clone()))
        };
        let (Some(there), Some(handler)) = (there.first(), handler) else { return Err(lost()) };
        tokio::time::sleep_until(*there).await;
        if !self.network.lock().may_communicate(self.node, to) {
            return Err(SendError::Unreachable(to).into());
        }
        let ack = handler.on_snapshot_chunk(self.node, chunk).await;
        tokio::time::sleep_until(*back.first().ok_or_else(lost)?).await;
        Ok(ack)
    }

    fn set_endpoint(&self, node: NodeId, _endpoint: Endpoint) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(node, true);
    }

    fn remove_endpoint(&self, node: NodeId) {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(node, false);
    }

    fn set_cluster(&self, cluster: ClusterId) {
        let shared = self.network.lock();
        if let Some(own) = shared.nodes.get(&self.node).filter(|own| own.generation == self.generation) {
            own.cluster.set(cluster);
        }
    }

    fn reachability(&self) -> watch::Receiver<BTreeMap<NodeId, Reachability>> {
        self.reachable.clone()
    }

    async fn shutdown(&self) {
        self.network.lock().remove(self.node, self.generation);
        let delivery_task = self.delivery_task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = delivery_task {
            task.abort();
            let _ = task.await; // Always a cancellation; messages in flight are lost.
        }
    }
}

impl std::fmt::Debug for MemTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemTransport").field("node", &self.node).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for MemNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemNetwork")
            .field("nodes", &self.lock().nodes.keys().collect::<BTreeSet<_>>())
            .finish()
    }
}

/// Delivers each message at its arrival time.
async fn deliver_messages(
    mut deliveries: mpsc::UnboundedReceiver<Delivery>,
    handler: Arc<dyn MessageHandler>,
    queued: Arc<AtomicU64>,
    cluster: Arc<ClusterCell>,
) {
    let deliver = |delivery: Delivery| {
        if cluster.get().is_compatible_with(delivery.cluster) {
            handler.on_message(delivery.from, delivery.message);
        }
        // After the delivery: while the count is not 0, no message is delivered directly, which could overtake this one.
        queued.fetch_sub(delivery.bytes, Ordering::Release);
    };
    let mut waiting: BTreeMap<(Instant, u64), Delivery> = BTreeMap::new();
    let mut count = 0;
    loop {
        let next = waiting.keys().next().map(|(at, _)| *at);
        tokio::select! {
            biased; // Makes runs under a paused clock reproducible.
            delivery = deliveries.recv() => {
                let Some(delivery) = delivery else { return };
                if waiting.is_empty() && delivery.at <= Instant::now() {
                    deliver(delivery);
                    continue;
                }
                count += 1;
                waiting.insert((delivery.at, count), delivery);
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        let now = Instant::now();
        while let Some(due) = waiting.first_entry().filter(|first| first.key().0 <= now) {
            deliver(due.remove());
        }
    }
}

/// Bytes in flight to one node above which sends fail with [`SendError::QueueFull`].
const QUEUE_BYTES_MAX: u64 = 64 << 20;
