//! A network within one process, for tests, simulations and examples.
//!
//! [`MemNetwork`] joins any number of [`MemTransport`]s. Each direction of each link can be given latency, loss,
//! duplication and reordering, and be cut; what happens follows from a seed. What this is *not*: a simulator - messages
//! travel in tokio's time (real, or paused in tests), on the tasks of the runtime.
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

/// What one direction of a link does to what goes over it. The default does nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Least and greatest time on the way; drawn anew for each message.
    pub latency: (Duration, Duration),
    /// Part of the messages that are lost, 0 to 1.
    pub loss: f64,
    /// Part of the messages that arrive twice, 0 to 1.
    pub duplication: f64,
    /// Messages may overtake each other, as far as their latencies differ.
    pub reordering: bool,
    /// Nothing goes through.
    pub cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        let latency = (Duration::ZERO, Duration::ZERO);
        Self { latency, loss: 0.0, duplication: 0.0, reordering: false, cut: false }
    }
}

/// Joins transports. Cheap to clone; all clones are the same network.
#[derive(Clone)]
pub struct MemNetwork(Arc<Mutex<Shared>>);

struct Shared {
    random: SmallRng,
    /// What nothing delays is handed over within the send.
    direct: bool,
    nodes: BTreeMap<NodeId, Node>,
    links: BTreeMap<(NodeId, NodeId), Link>,
    /// When the newest message of a link arrives: those after it do not overtake it, unless the link reorders.
    last_arrival: BTreeMap<(NodeId, NodeId), Instant>,
}

struct Node {
    /// Where its deliveries queue; of the newest transport of that id.
    inbox: mpsc::UnboundedSender<Delivery>,
    generation: u64,
    handler: Option<Arc<dyn MessageHandler>>,
    queued_bytes: Arc<AtomicU64>,
    reachability: watch::Sender<BTreeMap<NodeId, Reachability>>,
    cluster: Arc<OwnCluster>,
}

/// The cluster to which a node belongs.
#[derive(Default)]
struct OwnCluster(AtomicU64);

impl OwnCluster {
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
    /// The sender's.
    cluster: ClusterId,
    message: Message,
    bytes: u64,
}

impl MemNetwork {
    /// A network without nodes; what its links do follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        let (nodes, links, last_arrival) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Shared { random, direct: false, nodes, links, last_arrival })))
    }

    /// From now on a message that no link delays or loses is handed over within the sender's
    /// [`send`](NetworkTransport::send), without a task in between: as fast as a function call. Only for handlers that queue
    /// what they are given, as the engines of this workspace do; one that sends from within
    /// [`on_message`](MessageHandler::on_message) would be called from within itself.
    #[must_use]
    pub fn direct(self) -> Self {
        self.lock().direct = true;
        self
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The transport of `node`. Asked again for the same node - after a restart - it makes a new one, and the old one is
    /// cut off.
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
            shared.tell_others_of_end(node);
        }
        let peers = Mutex::new(BTreeMap::new());
        let (deliveries, delivering) = (Mutex::new(Some(deliveries)), Mutex::new(None));
        let network = self.clone();
        Arc::new(MemTransport { network, node, generation, peers, deliveries, delivering, reachable })
    }

    /// Sets what the link does one way.
    pub fn set_link(&self, from: NodeId, to: NodeId, link: Link) {
        self.lock().links.insert((from, to), link);
    }

    /// Sets what every link between the present nodes does, both ways.
    pub fn set_all_links(&self, link: &Link) {
        let mut shared = self.lock();
        let nodes: Vec<NodeId> = shared.nodes.keys().copied().collect();
        for from in &nodes {
            for to in nodes.iter().filter(|to| *to != from) {
                shared.links.insert((*from, *to), link.clone());
            }
        }
    }

    /// Lets nothing more through from `from` to `to`; the other way stays as it is.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.lock().links.entry((from, to)).or_default().cut = true;
    }

    /// Cuts all links between nodes that are not in one group.
    pub fn partition(&self, groups: &[&[NodeId]]) {
        for (i, group) in groups.iter().enumerate() {
            let others = groups.iter().enumerate().filter(|(j, _)| *j != i);
            for to in others.flat_map(|(_, other)| other.iter()) {
                group.iter().for_each(|from| self.cut(*from, *to));
            }
        }
    }

    /// Joins what was cut; latency and loss stay.
    pub fn heal(&self) {
        self.lock().links.values_mut().for_each(|link| link.cut = false);
    }
}

impl Shared {
    /// What becomes of one message: when its copies arrive. Empty if it is lost.
    fn fate(&mut self, from: NodeId, to: NodeId) -> Vec<Instant> {
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

    /// To whom a message can be handed over at once, if nothing is under way that it would overtake.
    fn direct_way(&self, from: NodeId, to: NodeId) -> Option<Arc<dyn MessageHandler>> {
        if !self.direct || self.links.get(&(from, to)).is_some_and(|link| *link != Link::default()) {
            return None;
        }
        let node = self.nodes.get(&to).filter(|node| !node.inbox.is_closed())?;
        let known = self.nodes.get(&from)?.reachability.borrow().get(&to) == Some(&Reachability::Reachable);
        let idle = node.queued_bytes.load(Ordering::Acquire) == 0;
        node.handler.clone().filter(|_| known && idle)
    }

    /// Cuts off the transport of `node` of that generation.
    fn remove(&mut self, node: NodeId, generation: u64) {
        if self.nodes.get(&node).is_some_and(|own| own.generation == generation) {
            // The place stays, with a higher generation, so that a restarted node is another one.
            let (inbox, _) = mpsc::unbounded_channel();
            let (reachability, _) = watch::channel(BTreeMap::new());
            let (generation, queued_bytes) = (generation + 1, Arc::new(AtomicU64::new(0)));
            let (handler, cluster) = (None, Arc::default());
            self.nodes.insert(node, Node { inbox, generation, handler, queued_bytes, reachability, cluster });
            self.tell_others_of_end(node);
        }
    }

    /// As a system closes the connections of a process that ends.
    fn tell_others_of_end(&self, node: NodeId) {
        for from in self.nodes.keys().filter(|from| **from != node) {
            self.note(*from, node, Reachability::Unreachable);
        }
    }

    /// Whether nothing is known of the two that says that they are of different clusters.
    fn may_talk(&self, from: NodeId, to: NodeId) -> bool {
        let cluster = |node| self.nodes.get(&node).map_or(ClusterId::NONE, |node| node.cluster.get());
        cluster(from).is_compatible_with(cluster(to))
    }

    fn note(&self, from: NodeId, to: NodeId, state: Reachability) {
        if let Some(node) = self.nodes.get(&from) {
            node.reachability.send_if_modified(|all| all.insert(to, state) != Some(state));
        }
    }
}

/// One node's end of a [`MemNetwork`]. Every node of the network is known without an endpoint; setting one after
/// [`remove_endpoint`](NetworkTransport::remove_endpoint) makes a node known again.
pub struct MemTransport {
    network: MemNetwork,
    node: NodeId,
    generation: u64,
    /// Explicitly set (`true`) or removed (`false`).
    peers: Mutex<BTreeMap<NodeId, bool>>,
    deliveries: Mutex<Option<mpsc::UnboundedReceiver<Delivery>>>,
    /// Hands over what arrives.
    delivering: Mutex<Option<JoinHandle<()>>>,
    reachable: watch::Receiver<BTreeMap<NodeId, Reachability>>,
}

impl MemTransport {
    /// The peer's side, if this end is still the node's own and the peer is known and there.
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
        let task = tokio::spawn(deliver_in_time(deliveries, handler, queued, cluster));
        *self.delivering.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(())
    }

    fn send(&self, to: NodeId, message: Message) -> Result<(), SendError> {
        let mut shared = self.network.lock();
        self.check(&shared, to)?;
        if !shared.may_talk(self.node, to) {
            shared.note(self.node, to, Reachability::Unreachable);
            return Err(SendError::Unreachable(to));
        }
        if let Some(handler) = shared.direct_way(self.node, to) {
            drop(shared);
            handler.on_message(self.node, message);
            return Ok(());
        }
        let bytes = message.size_bytes();
        let fate = shared.fate(self.node, to);
        let cluster = shared.nodes.get(&self.node).map_or(ClusterId::NONE, |own| own.cluster.get());
        let Some(node) = shared.nodes.get(&to) else { return Ok(()) };
        for at in fate {
            if node.queued_bytes.fetch_add(bytes, Ordering::Relaxed) > QUEUE_BYTES_MAX {
                node.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                return Err(SendError::QueueFull(to));
            }
            let delivery = Delivery { at, from: self.node, cluster, message: message.clone(), bytes };
            let _ = node.inbox.send(delivery); // To a node that is gone: lost.
        }
        let gone = node.inbox.is_closed();
        let cut = shared.links.get(&(self.node, to)).is_some_and(|link| link.cut);
        let state = if cut || gone { Reachability::Unreachable } else { Reachability::Reachable };
        shared.note(self.node, to, state);
        Ok(())
    }

    async fn send_snapshot_chunk(
        &self,
        to: NodeId,
        chunk: SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        let lost = || TransportError::Io {
            context: format!("snapshot chunk to node {to}"),
            source: std::io::ErrorKind::TimedOut.into(),
        };
        let (there, back, handler) = {
            let mut shared = self.network.lock();
            self.check(&shared, to)?;
            if !shared.may_talk(self.node, to) {
                return Err(SendError::Unreachable(to).into());
            }
            let (there, back) = (shared.fate(self.node, to), shared.fate(to, self.node));
            (there, back, shared.nodes.get(&to).and_then(|node| node.handler.clone()))
        };
        let (Some(there), Some(handler)) = (there.first(), handler) else { return Err(lost()) };
        tokio::time::sleep_until(*there).await;
        if !self.network.lock().may_talk(self.node, to) {
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
        let delivering = self.delivering.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = delivering {
            task.abort();
            let _ = task.await; // Cancelled, as asked: what was under way is lost.
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

/// Hands over each message when its time has come, whatever came in between.
async fn deliver_in_time(
    mut deliveries: mpsc::UnboundedReceiver<Delivery>,
    handler: Arc<dyn MessageHandler>,
    queued: Arc<AtomicU64>,
    cluster: Arc<OwnCluster>,
) {
    let hand_over = |delivery: Delivery| {
        if cluster.get().is_compatible_with(delivery.cluster) {
            handler.on_message(delivery.from, delivery.message);
        }
        // Only now: until then nothing may overtake it.
        queued.fetch_sub(delivery.bytes, Ordering::Release);
    };
    let mut waiting: BTreeMap<(Instant, u64), Delivery> = BTreeMap::new();
    let mut count = 0;
    loop {
        let next = waiting.keys().next().map(|(at, _)| *at);
        tokio::select! {
            biased; // So that a run under a paused clock can be repeated.
            delivery = deliveries.recv() => {
                let Some(delivery) = delivery else { return };
                if waiting.is_empty() && delivery.at <= Instant::now() {
                    hand_over(delivery);
                    continue;
                }
                count += 1;
                waiting.insert((delivery.at, count), delivery);
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
        let now = Instant::now();
        while let Some(due) = waiting.first_entry().filter(|first| first.key().0 <= now) {
            hand_over(due.remove());
        }
    }
}

/// Most bytes on their way to one node; a sender beyond them is told that the queue is full.
const QUEUE_BYTES_MAX: u64 = 64 << 20;
