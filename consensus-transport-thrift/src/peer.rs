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
use consensus_core::{Endpoint, NodeId, Reachability, SendError, TransportError};
use futures::StreamExt;
use rand::Rng;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, Notify, mpsc},
    time::Instant,
};
use tokio_util::codec::FramedRead;

use crate::{
    ThriftConfig, calls,
    connection::connect,
    convert::{ack_from_wire, chunk_to_wire, signed},
    framing,
    generated::{Hello, SnapshotAck},
};

/// One other node.
#[derive(Debug)]
pub(crate) struct Peer {
    link: Arc<Link>,
    task: tokio::task::JoinHandle<()>,
    /// For snapshots; made when one is sent.
    bulk: Mutex<Option<Bulk>>,
}

/// What the sending side and the connection's task share.
#[derive(Debug)]
struct Link {
    node: NodeId,
    endpoint: Endpoint,
    config: Arc<ThriftConfig>,
    /// The queue of the connection that stands, if one does.
    queue: std::sync::Mutex<Option<mpsc::Sender<Bytes>>>,
    queued_bytes: AtomicU64,
    /// Ends the wait for the next attempt to connect.
    connect_now: Notify,
}

#[derive(Debug)]
struct Bulk {
    reader: FramedRead<OwnedReadHalf, framing::FrameDecoder>,
    writer: OwnedWriteHalf,
    sequence: i32,
}

impl Peer {
    /// Begins to keep a connection to `node`; `report` hears how it goes.
    pub(crate) fn start(
        node: NodeId,
        endpoint: Endpoint,
        config: Arc<ThriftConfig>,
        report: impl Fn(Reachability) + Send + 'static,
    ) -> Self {
        let (queue, queued_bytes) = (std::sync::Mutex::new(None), AtomicU64::new(0));
        let link = Arc::new(Link { node, endpoint, config, queue, queued_bytes, connect_now: Notify::new() });
        let task = tokio::spawn(link.clone().keep_connected(report));
        Self { link, task, bulk: Mutex::new(None) }
    }

    /// Where it is.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.link.endpoint
    }

    /// The node is there: if no connection stands there shall be one at once.
    pub(crate) fn connect_now(&self) {
        self.link.connect_now.notify_one();
    }

    /// Queues a frame.
    pub(crate) fn send(&self, frame: Bytes) -> Result<(), SendError> {
        let (node, bytes) = (self.link.node, frame.len() as u64);
        let queue = self.link.lock_queue();
        let queue = queue.as_ref().ok_or(SendError::Unreachable(node))?;
        let held = self.link.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let has_room = held == 0 || held + bytes <= self.link.config.queue_bytes_max;
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
        let mut bulk = self.bulk.lock().await;
        // Taken out while in use: if this call is cancelled or fails, the connection, with an answer perhaps still to
        // come, is not used again.
        let mut connection = match bulk.take() {
            Some(connection) => connection,
            None => {
                let stream =
                    self.link.connect().await.map_err(|source| self.link.io("connecting", source))?;
                let (reader, writer) = self.link.greet(stream).await?;
                Bulk { reader, writer, sequence: 0 }
            }
        };
        let wait = if chunk.last.is_some() {
            self.link.config.install_timeout
        } else {
            self.link.config.chunk_timeout
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
        let frame = calls::snapshot_chunk(self.sequence, chunk_to_wire(chunk))
            .map_err(|error| link.thrift(&error))?;
        self.writer.write_all(&frame).await.map_err(|source| link.io("sending a snapshot chunk", source))?;
        let answer =
            next_frame(&mut self.reader).await.map_err(|source| link.io("reading an answer", source))?;
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
        self.queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn keep_connected(self: Arc<Self>, report: impl Fn(Reachability)) {
        let mut wait = self.config.reconnect_min;
        let mut complained = false;
        loop {
            let mut stood = Duration::ZERO;
            match self.connect_for_messages().await {
                Ok((reader, writer, frames)) => {
                    (wait, complained) = (self.config.reconnect_min, false);
                    tracing::info!(node = %self.node, endpoint = %self.endpoint, "connected");
                    report(Reachability::Reachable);
                    let since = Instant::now();
                    let error = self.run(reader, writer, frames).await;
                    tracing::info!(node = %self.node, %error, "disconnected");
                    stood = since.elapsed();
                }
                // Said once per outage, not once per attempt.
                Err(error) if !complained => {
                    complained = true;
                    tracing::warn!(node = %self.node, %error, "cannot connect; trying on");
                }
                Err(error) => tracing::debug!(node = %self.node, %error, "cannot connect"),
            }
            *self.lock_queue() = None;
            self.queued_bytes.store(0, Ordering::Relaxed);
            // What ends a connection may leave the node as it is: whether it is gone the next attempt tells. What ends one
            // after another is not met with attempts at network speed.
            if stood > self.config.reconnect_max {
                continue;
            }
            report(Reachability::Unreachable);
            // With jitter, so that a cluster does not come back in step.
            let jitter = rand::rng().random_range(0.5..1.0);
            let _ = tokio::time::timeout(wait.mul_f64(jitter), self.connect_now.notified()).await;
            wait = (wait * 2).min(self.config.reconnect_max);
        }
    }

    async fn connect_for_messages(
        &self,
    ) -> Result<
        (FramedRead<OwnedReadHalf, framing::FrameDecoder>, OwnedWriteHalf, mpsc::Receiver<Bytes>),
        TransportError,
    > {
        let stream = self.connect().await.map_err(|source| self.io("connecting", source))?;
        let (reader, writer) = self.greet(stream).await?;
        let (queue, frames) = mpsc::channel(QUEUE_FRAMES_MAX);
        *self.lock_queue() = Some(queue);
        Ok((reader, writer, frames))
    }

    /// Writes what is queued until the connection ends; says why it did.
    async fn run(
        &self,
        mut reader: FramedRead<OwnedReadHalf, framing::FrameDecoder>,
        writer: OwnedWriteHalf,
        frames: mpsc::Receiver<Bytes>,
    ) -> io::Error {
        let written = |bytes| {
            self.queued_bytes.fetch_sub(bytes as u64, Ordering::Relaxed);
        };
        tokio::select! {
            result = framing::write_all(writer, frames, written, || false) => {
                result.err().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into())
            }
            // Nothing is ever answered here; what comes is the end.
            end = next_frame(&mut reader) => end.err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()),
        }
    }

    async fn connect(&self) -> io::Result<TcpStream> {
        connect(&self.endpoint, self.config.connect_timeout).await
    }

    /// Says who calls; the callee may refuse.
    async fn greet(
        &self,
        stream: TcpStream,
    ) -> Result<(FramedRead<OwnedReadHalf, framing::FrameDecoder>, OwnedWriteHalf), TransportError> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = framing::reader(reader, self.config.frame_bytes_max);
        let hello = Hello {
            format: FORMAT,
            cluster: self.config.cluster.clone(),
            node_id: signed(self.config.node.0),
            callee: signed(self.node.0),
            endpoint: self.config.advertise.as_ref().map(Endpoint::to_string),
        };
        let exchange = async {
            let frame = calls::hello(hello).map_err(|error| self.thrift(&error))?;
            writer.write_all(&frame).await.map_err(|source| self.io("greeting", source))?;
            let answer = next_frame(&mut reader).await.map_err(|source| self.io("greeting", source))?;
            calls::read_hello_answer(&answer).map_err(|error| self.thrift(&error))
        };
        let timed_out = |_| self.io("greeting", io::ErrorKind::TimedOut.into());
        tokio::time::timeout(self.config.connect_timeout, exchange).await.map_err(timed_out)??;
        Ok((reader, writer))
    }

    fn io(&self, doing: &str, source: io::Error) -> TransportError {
        TransportError::Io { context: format!("node {} at {}: {doing}", self.node, self.endpoint), source }
    }

    fn thrift(&self, error: &thrift::Error) -> TransportError {
        TransportError::Protocol { node: self.node, why: framing::describe(error) }
    }
}

pub(crate) async fn next_frame(
    reader: &mut FramedRead<OwnedReadHalf, framing::FrameDecoder>,
) -> io::Result<bytes::BytesMut> {
    reader.next().await.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}

/// Version of the vocabulary in `idl/consensus.thrift`.
pub(crate) const FORMAT: i32 = 1;
/// Frames queued to one node, besides the bound in bytes.
const QUEUE_FRAMES_MAX: usize = 16_384;
/// The least that a reconnection may wait.
pub(crate) const RECONNECT_FLOOR: Duration = Duration::from_millis(1);
