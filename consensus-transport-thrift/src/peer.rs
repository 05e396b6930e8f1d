//! The connections of this node to one other node.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{ClusterId, Endpoint, NodeId, Reachability, SendError, TransportError};
use consensus_tls::{Stream, WriteHalf};
use futures::{StreamExt, stream::FuturesUnordered};
use rand::Rng;
use tokio::{
    io::AsyncWriteExt,
    sync::{Mutex, Notify, mpsc, watch},
    time::Instant,
};

use crate::{
    calls,
    connection::connect_with,
    connection_log::ConnectionLog,
    convert::{ack_from_wire, chunk_to_wire, signed, unsigned},
    framing,
    generated::{self as wire, Hello, SnapshotAck},
    identity::LocalNode,
    measure::PeerMeasures,
    receipts::{ByteCounter, CountingHalf, RECEIPTS_PER_STALL_TIMEOUT, ResponseReader, next_frame},
    transport::lock,
};

/// Connections to one other node.
#[derive(Debug)]
pub(crate) struct Peer {
    link: Arc<PeerLink>,
    /// Task that maintains the connection for messages.
    task: tokio::task::JoinHandle<()>,
    /// Connection for snapshots, created when one is sent.
    snapshot_connection: Mutex<Option<SnapshotConnection>>,
    /// Set when the node is removed: the error for snapshot chunks in flight.
    disconnected: watch::Sender<Option<SendError>>,
}

/// State shared by the sending side and the task of the connection.
#[derive(Debug)]
struct PeerLink {
    node: NodeId,
    endpoint: Endpoint,
    dial_state: std::sync::Mutex<DialState>,
    own: Arc<LocalNode>,
    /// Identity of the node that answered on the current connection.
    callee: std::sync::Mutex<Option<wire::Identity>>,
    /// Queue of the current connection; `None` without a connection.
    queue: std::sync::Mutex<Option<mpsc::Sender<Bytes>>>,
    queued_bytes: AtomicU64,
    /// Ends the pause before the next attempt to connect.
    connect_now: Notify,
    measures: PeerMeasures,
}

/// Whether this node connects to the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DialState {
    /// The endpoint was set: connects until the node is removed.
    Configured,
    /// The endpoint was advertised by the node itself: connects until attempts have failed for [`LEARNED_FOR`].
    Learned,
    /// Does not connect any more.
    GivenUp,
}

/// A connection after a successful hello.
#[derive(Debug)]
struct Connection {
    answers: ResponseReader,
    writer: CountingHalf<WriteHalf>,
    callee: wire::Identity,
}

#[derive(Debug)]
struct SnapshotConnection {
    connection: Connection,
    sequence: i32,
}

impl Peer {
    /// Starts to maintain a connection to `node`. `report` is called with its reachability.
    pub(crate) fn start(
        node: NodeId,
        endpoint: Endpoint,
        dial_state: DialState,
        own: Arc<LocalNode>,
        report: impl Fn(Reachability) + Send + 'static,
    ) -> Self {
        let (callee, queue) = Default::default();
        let (queued_bytes, connect_now) = (AtomicU64::new(0), Notify::new());
        let dial_state = std::sync::Mutex::new(dial_state);
        let measures = PeerMeasures::new(node);
        let link = Arc::new(PeerLink {
            node,
            endpoint,
            dial_state,
            own,
            callee,
            queue,
            queued_bytes,
            connect_now,
            measures,
        });
        let task = tokio::spawn(link.clone().keep_connected(report));
        Self { link, task, snapshot_connection: Mutex::new(None), disconnected: watch::Sender::new(None) }
    }

    /// Endpoint of the node.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.link.endpoint
    }

    /// Marks the endpoint as configured. Returns `false` if the node was given up before.
    pub(crate) fn mark_configured(&self) -> bool {
        let mut dial_state = lock(&self.link.dial_state);
        if *dial_state == DialState::Learned {
            *dial_state = DialState::Configured;
        }
        *dial_state == DialState::Configured
    }

    /// Whether this node does not connect to the other one any more.
    pub(crate) fn is_given_up(&self) -> bool {
        *lock(&self.link.dial_state) == DialState::GivenUp
    }

    /// Identity of the node on the current connection; `None` without a connection.
    pub(crate) fn identity(&self) -> Option<wire::Identity> {
        lock(&self.link.callee).clone()
    }

    /// Connects at once, if there is no connection.
    pub(crate) fn connect_now(&self) {
        self.link.connect_now.notify_one();
    }

    /// Closes the connections and creates no new ones. Snapshot chunks in flight fail with `error`.
    pub(crate) fn disconnect(&self, error: SendError) {
        self.task.abort();
        *self.link.lock_queue() = None;
        self.disconnected.send_replace(Some(error));
    }

    /// Queues a frame.
    pub(crate) fn send(&self, frame: Bytes) -> Result<(), SendError> {
        self.enqueue(frame).inspect_err(|_| self.link.measures.send_failures.increment(1))
    }

    fn enqueue(&self, frame: Bytes) -> Result<(), SendError> {
        let node = self.link.node;
        let bytes = frame.len() as u64;
        let queue = self.link.lock_queue();
        let queue = queue.as_ref().ok_or(SendError::Unreachable(node))?;
        let held = self.link.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = held == 0 || held + bytes <= self.link.own.config.queue_bytes_max;
        if !has_room || queue.try_send(frame).is_err() {
            self.link.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(SendError::QueueFull(node));
        }
        Ok(())
    }

    /// Sends a chunk over the connection for snapshots and waits for the response.
    pub(crate) async fn send_chunk(
        &self,
        chunk: consensus_core::SnapshotChunk,
    ) -> Result<consensus_core::SnapshotAck, TransportError> {
        let mut disconnected = self.disconnected.subscribe();
        let disconnected = async {
            let why = disconnected.wait_for(Option::is_some).await;
            why.ok().and_then(|why| why.clone()).unwrap_or(SendError::Unreachable(self.link.node))
        };
        tokio::select! {
            answer = self.exchange_chunk(chunk) => answer,
            why = disconnected => Err(why.into()),
        }
    }

    async fn exchange_chunk(
        &self,
        chunk: consensus_core::SnapshotChunk,
    ) -> Result<consensus_core::SnapshotAck, TransportError> {
        let mut bulk = self.snapshot_connection.lock().await;
        // The connection is taken out while it is in use. If this call fails or is cancelled, the connection may still
        // deliver the old response, so it is not used again.
        // A connection to a node that now belongs to another cluster is closed; a new one is refused with the reason.
        let is_friend = |bulk: &SnapshotConnection| {
            let cluster = *bulk.connection.answers.callee_cluster().borrow();
            self.link.own.cluster().is_compatible_with(cluster)
        };
        let mut connection = match bulk.take().filter(is_friend) {
            Some(connection) => connection,
            None => SnapshotConnection { connection: self.link.establish().await?, sequence: 0 },
        };
        let wait = if chunk.last.is_some() {
            self.link.own.config.install_timeout
        } else {
            self.link.own.config.chunk_timeout
        };
        let timed_out =
            |_| self.link.io("waiting for the response to a snapshot chunk", io::ErrorKind::TimedOut.into());
        let ack =
            tokio::time::timeout(wait, connection.call(&self.link, chunk)).await.map_err(timed_out)??;
        *bulk = Some(connection);
        ack_from_wire(ack).map_err(|why| TransportError::Protocol { node: self.link.node, why })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SnapshotConnection {
    async fn call(
        &mut self,
        link: &PeerLink,
        chunk: consensus_core::SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        self.sequence = self.sequence.wrapping_add(1);
        let frame = calls::encode_snapshot_chunk(self.sequence, chunk_to_wire(chunk), link.own.cluster())
            .map_err(|error| link.thrift(&error))?;
        link.measures.sent_bytes.increment(frame.len() as u64);
        let Connection { answers, writer, .. } = &mut self.connection;
        let write = async {
            let written = async {
                writer.write_all(&frame).await?;
                writer.flush().await
            };
            written.await.map_err(|source| link.io("sending a snapshot chunk", source))
        };
        let read = async { answers.next().await.map_err(|source| link.io("reading a response", source)) };
        let ((), answer) = tokio::try_join!(write, read)?;
        let (sequence, ack) = calls::read_chunk_reply(&answer).map_err(|error| link.thrift(&error))?;
        if sequence != self.sequence {
            let why = format!("it sent response {sequence} to call {}", self.sequence);
            return Err(TransportError::Protocol { node: link.node, why });
        }
        Ok(ack)
    }
}

impl PeerLink {
    fn lock_queue(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Bytes>>> {
        lock(&self.queue)
    }

    /// Gives the node up if its endpoint was only learned. Returns whether the node is given up.
    fn give_up_if_learned(&self) -> bool {
        let mut dial_state = lock(&self.dial_state);
        if *dial_state == DialState::Learned {
            *dial_state = DialState::GivenUp;
        }
        *dial_state == DialState::GivenUp
    }

    async fn keep_connected(self: Arc<Self>, report: impl Fn(Reachability)) {
        let mut wait = self.own.config.reconnect_min;
        let mut connection_log = ConnectionLog::new(self.node, self.endpoint.clone());
        let mut last_contact = Instant::now();
        loop {
            let begun = Instant::now();
            let mut stood = Duration::ZERO;
            match self.establish().await {
                Ok(connection) => {
                    wait = self.own.config.reconnect_min;
                    *lock(&self.callee) = Some(connection.callee.clone());
                    let (queue, frames) = mpsc::channel(QUEUE_FRAMES_MAX);
                    *self.lock_queue() = Some(queue);
                    report(Reachability::Reachable);
                    let since = Instant::now();
                    connection_log.log_until_disconnected(self.run(connection, frames)).await;
                    stood = since.elapsed();
                    last_contact = Instant::now();
                }
                Err(error) => connection_log.log_failure(&error),
            }
            *lock(&self.callee) = None;
            *self.lock_queue() = None;
            self.queued_bytes.store(0, Ordering::Relaxed);
            // A connection can end while the node runs on; the next attempt shows whether it is reachable. But if a connection
            // lasted only briefly, pause first, so that attempts do not follow each other without limit.
            if stood > self.own.config.reconnect_max {
                continue;
            }
            report(Reachability::Unreachable);
            if last_contact.elapsed() > LEARNED_FOR && self.give_up_if_learned() {
                return;
            }
            // The jitter keeps the nodes of a cluster from connecting at the same time. The duration of the attempt counts
            // as part of the pause.
            let jitter = rand::rng().random_range(0.5..1.0);
            let pause = wait.mul_f64(jitter).saturating_sub(begun.elapsed());
            let _ = tokio::time::timeout(pause, self.connect_now.notified()).await;
            wait = (wait * 2).min(self.own.config.reconnect_max);
        }
    }

    /// Connects and exchanges hellos.
    ///
    /// While an attempt has no result, a further one is started every half of the stall timeout. TCP repeats a lost connection
    /// request after 1 s, 3 s, and so on, so when the network works again only a new attempt notices it at once. The first
    /// result counts, so a slow peer also has the whole [`connect_timeout`](crate::ThriftConfig::connect_timeout).
    async fn establish(&self) -> Result<Connection, TransportError> {
        let every = (self.own.config.stall_timeout / 2).max(self.own.config.connect_timeout / ATTEMPTS_MAX);
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(self.attempt());
            if let Ok(Some(outcome)) = tokio::time::timeout(every, attempts.next()).await {
                return outcome;
            }
        }
    }

    async fn attempt(&self) -> Result<Connection, TransportError> {
        let start = Instant::now();
        let config = &self.own.config;
        let stream = connect_with(&self.endpoint, config.connect_timeout, config.tls.as_ref()).await;
        let stream = stream.map_err(|source| self.io("connecting", source))?;
        let left = self.own.config.connect_timeout.saturating_sub(start.elapsed());
        let timed_out = |_| self.io("exchanging hellos", io::ErrorKind::TimedOut.into());
        tokio::time::timeout(left, self.exchange_hellos(stream)).await.map_err(timed_out)?
    }

    /// Sends this node's hello and checks the identity of the other one, which may refuse the connection.
    async fn exchange_hellos(&self, stream: Stream) -> Result<Connection, TransportError> {
        let (reader, writer) = stream.into_split();
        let mut reader = framing::reader(reader, self.own.config.frame_bytes_max);
        let sent = Arc::new(ByteCounter::default());
        let mut writer = CountingHalf::new(writer, sent.clone());
        let receipt_interval = self.own.config.stall_timeout / RECEIPTS_PER_STALL_TIMEOUT;
        let hello = Hello {
            caller: self.own.identity(),
            callee: signed(self.node.0),
            endpoint: self.own.config.advertise.as_ref().map(Endpoint::to_string),
            receipt_interval_ms: i32::try_from(receipt_interval.as_millis()).unwrap_or(i32::MAX),
        };
        let frame = calls::encode_hello(hello).map_err(|error| self.thrift(&error))?;
        writer.write_all(&frame).await.map_err(|source| self.io("sending the hello", source))?;
        writer.flush().await.map_err(|source| self.io("sending the hello", source))?;
        let answer = next_frame(&mut reader)
            .await
            .map_err(|source| self.io("reading the response to the hello", source))?;
        let callee = calls::read_hello_reply(&answer).map_err(|error| self.thrift(&error))?;
        if let Some(why) = self.own.refusal_reason(&callee) {
            return Err(TransportError::Protocol { node: self.node, why });
        }
        let cluster = ClusterId(unsigned(callee.cluster));
        self.measures.connections.increment(1);
        let answers = ResponseReader::new(reader, sent, self.own.config.stall_timeout, cluster);
        Ok(Connection { answers, writer, callee })
    }

    /// Writes the queued frames until the connection ends. Returns why it ended.
    async fn run(&self, connection: Connection, frames: mpsc::Receiver<Bytes>) -> io::Error {
        let Connection { mut answers, writer, .. } = connection;
        let callee_cluster = answers.callee_cluster();
        let written = |bytes| {
            self.queued_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
            self.measures.sent_bytes.increment(bytes as u64);
        };
        tokio::select! {
            result = framing::write_all(writer, frames, written, || false) => {
                result.err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into())
            }
            // Messages have no responses, so this only returns when the connection ends.
            end = answers.next() => end.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()),
            why = self.own.wait_until_clusters_differ(self.node, callee_cluster) => {
                io::Error::new(io::ErrorKind::PermissionDenied, why)
            }
        }
    }

    fn io(&self, doing: &str, source: io::Error) -> TransportError {
        TransportError::Io { context: format!("node {} at {}: {doing}", self.node, self.endpoint), source }
    }

    fn thrift(&self, error: &thrift::Error) -> TransportError {
        TransportError::Protocol { node: self.node, why: framing::error_text(error) }
    }
}

/// Most frames queued to one node, in addition to the limit in bytes.
const QUEUE_FRAMES_MAX: usize = 16_384;
/// Shortest pause before connecting again.
pub(crate) const RECONNECT_FLOOR: Duration = Duration::from_millis(1);
/// Time without success after which a node with a learned endpoint is given up.
const LEARNED_FOR: Duration = Duration::from_secs(60);
/// Shortest stall timeout.
pub(crate) const STALL_TIMEOUT_FLOOR: Duration = Duration::from_millis(20);
/// Most attempts to connect at the same time.
const ATTEMPTS_MAX: u32 = 8;
