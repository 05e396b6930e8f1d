//! This node's connections to one other.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use consensus_core::{ClusterId, Endpoint, NodeId, Reachability, SendError, StorageId, TransportError};
use futures::{StreamExt, stream::FuturesUnordered};
use rand::Rng;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{Mutex, Notify, mpsc, watch},
    time::Instant,
};

use crate::{
    calls,
    chronicle::Chronicle,
    connection::connect,
    convert::{ack_from_wire, chunk_to_wire, signed, unsigned},
    framing,
    generated::{Hello, SnapshotAck},
    identity::Own,
    progress::{Answers, Counted, Counter, RECEIPTS_PER_STALL_TIMEOUT, next_frame},
    transport::lock,
};

/// One other node.
#[derive(Debug)]
pub(crate) struct Peer {
    link: Arc<Link>,
    /// Keeps the connection for messages.
    task: tokio::task::JoinHandle<()>,
    /// For snapshots; made when one is sent.
    bulk: Mutex<Option<Bulk>>,
    /// Set when the node is dialled no more: what a chunk that is under way ends with.
    forgotten: watch::Sender<Option<SendError>>,
}

/// What the sending side and the connection's task share.
#[derive(Debug)]
struct Link {
    node: NodeId,
    endpoint: Endpoint,
    dialled: std::sync::Mutex<Dialled>,
    own: Arc<Own>,
    /// The storage that answered on the connection that stands.
    storage: std::sync::Mutex<Option<StorageId>>,
    /// The queue of the connection that stands, if one does.
    queue: std::sync::Mutex<Option<mpsc::Sender<Bytes>>>,
    queued_bytes: AtomicU64,
    /// Ends the wait for the next attempt to connect.
    connect_now: Notify,
}

/// Whether a node is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    /// Until it is forgotten.
    Kept,
    /// Nobody but the node itself has said where it is: as long as it answers now and then.
    Learned,
    /// It is dialled no more.
    GivenUp,
}

/// A connection that stands: both have said who they are.
#[derive(Debug)]
struct Established {
    answers: Answers,
    writer: Counted<OwnedWriteHalf>,
    /// The callee's.
    storage: StorageId,
}

#[derive(Debug)]
struct Bulk {
    connection: Established,
    sequence: i32,
}

impl Peer {
    /// Begins to keep a connection to `node`; `report` hears how it goes.
    pub(crate) fn start(
        node: NodeId,
        endpoint: Endpoint,
        dialled: Dialled,
        own: Arc<Own>,
        report: impl Fn(Reachability) + Send + 'static,
    ) -> Self {
        let (storage, queue) = Default::default();
        let (queued_bytes, connect_now) = (AtomicU64::new(0), Notify::new());
        let dialled = std::sync::Mutex::new(dialled);
        let link = Arc::new(Link { node, endpoint, dialled, own, storage, queue, queued_bytes, connect_now });
        let task = tokio::spawn(link.clone().keep_connected(report));
        Self { link, task, bulk: Mutex::new(None), forgotten: watch::Sender::new(None) }
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.link.endpoint
    }

    /// Dials it until it is forgotten; `false` if it was given up before.
    pub(crate) fn keep(&self) -> bool {
        let mut dialled = lock(&self.link.dialled);
        if *dialled == Dialled::Learned {
            *dialled = Dialled::Kept;
        }
        *dialled == Dialled::Kept
    }

    /// It is dialled no more, as it did not answer for long.
    pub(crate) fn is_given_up(&self) -> bool {
        *lock(&self.link.dialled) == Dialled::GivenUp
    }

    /// The storage of the node that answers at the endpoint just now.
    pub(crate) fn storage(&self) -> Option<StorageId> {
        *self.link.lock_storage()
    }

    /// The node is there: if no connection stands there shall be one at once.
    pub(crate) fn connect_now(&self) {
        self.link.connect_now.notify_one();
    }

    /// Closes the connections and makes no new ones. Chunks that are under way end with the error.
    pub(crate) fn forget(&self, error: SendError) {
        self.task.abort();
        *self.link.lock_queue() = None;
        self.forgotten.send_replace(Some(error));
    }

    /// Queues a frame.
    pub(crate) fn send(&self, frame: Bytes) -> Result<(), SendError> {
        let (node, bytes) = (self.link.node, frame.len() as u64);
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

    /// Sends a chunk over the connection for snapshots and awaits its answer.
    pub(crate) async fn send_chunk(
        &self,
        chunk: consensus_core::SnapshotChunk,
    ) -> Result<consensus_core::SnapshotAck, TransportError> {
        let mut forgotten = self.forgotten.subscribe();
        let forgotten = async {
            let why = forgotten.wait_for(Option::is_some).await;
            why.ok().and_then(|why| why.clone()).unwrap_or(SendError::Unreachable(self.link.node))
        };
        tokio::select! {
            answer = self.exchange_chunk(chunk) => answer,
            why = forgotten => Err(why.into()),
        }
    }

    async fn exchange_chunk(
        &self,
        chunk: consensus_core::SnapshotChunk,
    ) -> Result<consensus_core::SnapshotAck, TransportError> {
        let mut bulk = self.bulk.lock().await;
        // Taken out while in use: if this call is cancelled or fails, the connection, with an answer perhaps still to
        // come, is not used again.
        // One to a node that turned out to be of another cluster is closed; the next one is refused with the reason.
        let is_friend = |bulk: &Bulk| {
            let cluster = *bulk.connection.answers.callee_cluster().borrow();
            self.link.own.cluster().is_compatible_with(cluster)
        };
        let mut connection = match bulk.take().filter(is_friend) {
            Some(connection) => connection,
            None => Bulk { connection: self.link.establish().await?, sequence: 0 },
        };
        let wait = if chunk.last.is_some() {
            self.link.own.config.install_timeout
        } else {
            self.link.own.config.chunk_timeout
        };
        let timed_out =
            |_| self.link.io("waiting for the answer to a snapshot chunk", io::ErrorKind::TimedOut.into());
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

impl Bulk {
    async fn call(
        &mut self,
        link: &Link,
        chunk: consensus_core::SnapshotChunk,
    ) -> Result<SnapshotAck, TransportError> {
        self.sequence = self.sequence.wrapping_add(1);
        let frame = calls::snapshot_chunk(self.sequence, chunk_to_wire(chunk), link.own.cluster())
            .map_err(|error| link.thrift(&error))?;
        let Established { answers, writer, .. } = &mut self.connection;
        let write = async {
            writer.write_all(&frame).await.map_err(|source| link.io("sending a snapshot chunk", source))
        };
        let read = async { answers.next().await.map_err(|source| link.io("reading an answer", source)) };
        let ((), answer) = tokio::try_join!(write, read)?;
        let (sequence, ack) = calls::read_chunk_answer(&answer).map_err(|error| link.thrift(&error))?;
        if sequence != self.sequence {
            let why = format!("answer {sequence} to call {}", self.sequence);
            return Err(TransportError::Protocol { node: link.node, why });
        }
        Ok(ack)
    }
}

impl Link {
    fn lock_queue(&self) -> std::sync::MutexGuard<'_, Option<mpsc::Sender<Bytes>>> {
        lock(&self.queue)
    }

    fn lock_storage(&self) -> std::sync::MutexGuard<'_, Option<StorageId>> {
        lock(&self.storage)
    }

    /// Gives up a node that was only learned.
    fn gives_up(&self) -> bool {
        let mut dialled = lock(&self.dialled);
        if *dialled == Dialled::Learned {
            *dialled = Dialled::GivenUp;
        }
        *dialled == Dialled::GivenUp
    }

    async fn keep_connected(self: Arc<Self>, report: impl Fn(Reachability)) {
        let mut wait = self.own.config.reconnect_min;
        let mut chronicle = Chronicle::new(self.node, self.endpoint.clone());
        let mut last_contact = Instant::now();
        loop {
            let begun = Instant::now();
            let mut stood = Duration::ZERO;
            match self.establish().await {
                Ok(connection) => {
                    wait = self.own.config.reconnect_min;
                    *self.lock_storage() = Some(connection.storage);
                    let (queue, frames) = mpsc::channel(QUEUE_FRAMES_MAX);
                    *self.lock_queue() = Some(queue);
                    report(Reachability::Reachable);
                    let since = Instant::now();
                    chronicle.connected_until(self.run(connection, frames)).await;
                    stood = since.elapsed();
                    last_contact = Instant::now();
                }
                Err(error) => chronicle.cannot_connect(&error),
            }
            *self.lock_storage() = None;
            *self.lock_queue() = None;
            self.queued_bytes.store(0, Ordering::Relaxed);
            // What ends a connection may leave the node as it is: whether it is gone the next attempt tells. What ends one
            // after another is not met with attempts at network speed.
            if stood > self.own.config.reconnect_max {
                continue;
            }
            report(Reachability::Unreachable);
            if last_contact.elapsed() > LEARNED_FOR && self.gives_up() {
                return;
            }
            // With jitter, so that a cluster does not come back in step. An attempt that took as long as the wait is followed
            // by the next one at once: it has left the network in peace meanwhile.
            let jitter = rand::rng().random_range(0.5..1.0);
            let pause = wait.mul_f64(jitter).saturating_sub(begun.elapsed());
            let _ = tokio::time::timeout(pause, self.connect_now.notified()).await;
            wait = (wait * 2).min(self.own.config.reconnect_max);
        }
    }

    /// Connects and says who calls.
    ///
    /// While an attempt has no outcome another one is made beside it, every half of the stall timeout. A packet that asks
    /// for a connection and is lost is sent again by TCP after 1 s, 3 s, and so on: when the network is back, only a new
    /// attempt finds out at once. The first outcome counts, so that a peer that is slow to answer has the whole
    /// [`connect_timeout`](crate::ThriftConfig::connect_timeout), too.
    async fn establish(&self) -> Result<Established, TransportError> {
        let every = (self.own.config.stall_timeout / 2).max(self.own.config.connect_timeout / ATTEMPTS_MAX);
        let mut attempts = FuturesUnordered::new();
        loop {
            attempts.push(self.attempt());
            if let Ok(Some(outcome)) = tokio::time::timeout(every, attempts.next()).await {
                return outcome;
            }
        }
    }

    async fn attempt(&self) -> Result<Established, TransportError> {
        let begun = Instant::now();
        let stream = connect(&self.endpoint, self.own.config.connect_timeout).await;
        let stream = stream.map_err(|source| self.io("connecting", source))?;
        let left = self.own.config.connect_timeout.saturating_sub(begun.elapsed());
        let timed_out = |_| self.io("greeting", io::ErrorKind::TimedOut.into());
        tokio::time::timeout(left, self.greet(stream)).await.map_err(timed_out)?
    }

    /// Says who calls; the callee may refuse.
    async fn greet(&self, stream: TcpStream) -> Result<Established, TransportError> {
        let (reader, writer) = stream.into_split();
        let mut reader = framing::reader(reader, self.own.config.frame_bytes_max);
        let sent = Arc::new(Counter::default());
        let mut writer = Counted::new(writer, sent.clone());
        let receipt_interval = self.own.config.stall_timeout / RECEIPTS_PER_STALL_TIMEOUT;
        let hello = Hello {
            caller: self.own.identity(),
            callee: signed(self.node.0),
            endpoint: self.own.config.advertise.as_ref().map(Endpoint::to_string),
            receipt_interval_ms: i32::try_from(receipt_interval.as_millis()).unwrap_or(i32::MAX),
        };
        let frame = calls::hello(hello).map_err(|error| self.thrift(&error))?;
        writer.write_all(&frame).await.map_err(|source| self.io("greeting", source))?;
        let answer = next_frame(&mut reader).await.map_err(|source| self.io("greeting", source))?;
        let callee = calls::read_hello_answer(&answer).map_err(|error| self.thrift(&error))?;
        if let Some(why) = self.own.objection(&callee) {
            return Err(TransportError::Protocol { node: self.node, why });
        }
        let (cluster, storage) = (ClusterId(unsigned(callee.cluster)), StorageId(unsigned(callee.storage)));
        let answers = Answers::new(reader, sent, self.own.config.stall_timeout, cluster);
        Ok(Established { answers, writer, storage })
    }

    /// Writes what is queued until the connection ends; says why it did.
    async fn run(&self, connection: Established, frames: mpsc::Receiver<Bytes>) -> io::Error {
        let Established { mut answers, writer, .. } = connection;
        let callee_cluster = answers.callee_cluster();
        let written = |bytes| {
            self.queued_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        };
        tokio::select! {
            result = framing::write_all(writer, frames, written, || false) => {
                result.err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into())
            }
            // Messages have no answers; what comes is the end.
            end = answers.next() => end.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()),
            why = self.own.parted(self.node, callee_cluster) => {
                io::Error::new(io::ErrorKind::PermissionDenied, why)
            }
        }
    }

    fn io(&self, doing: &str, source: io::Error) -> TransportError {
        TransportError::Io { context: format!("node {} at {}: {doing}", self.node, self.endpoint), source }
    }

    fn thrift(&self, error: &thrift::Error) -> TransportError {
        TransportError::Protocol { node: self.node, why: framing::describe(error) }
    }
}

/// Frames queued to one node, besides the bound in bytes.
const QUEUE_FRAMES_MAX: usize = 16_384;
/// The least that a reconnection may wait.
pub(crate) const RECONNECT_FLOOR: Duration = Duration::from_millis(1);
/// A node that is known from its own calls only is dialled so long without success.
const LEARNED_FOR: Duration = Duration::from_secs(60);
/// The shortest stall timeout.
pub(crate) const STALL_TIMEOUT_FLOOR: Duration = Duration::from_millis(20);
/// Attempts to connect that are made at once.
const ATTEMPTS_MAX: u32 = 8;
