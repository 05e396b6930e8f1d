//! The connections of other nodes to this one.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::{ClusterId, MessageHandler, NodeId};
use consensus_tls::{ReadHalf, Stream, WriteHalf};
use futures::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{Mutex, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};
use tokio_util::codec::FramedRead;

use crate::{
    calls::{self, Call},
    connection,
    convert::{ack_to_wire, chunk_from_wire, message_from_wire, unsigned},
    framing,
    generated::Hello,
    identity::LocalNode,
    measure,
    receipts::{ByteCounter, CountingHalf, INTERVAL_MAX, INTERVAL_MIN, acknowledge, next_frame},
    repeated_events::{OVER_AFTER, Occurrences, RepeatedEvents},
    transport::PeerTable,
};

/// Accepts connections until it is cancelled, which closes all of them.
pub(crate) async fn accept(
    listener: Arc<TcpListener>,
    own: Arc<LocalNode>,
    peers: Arc<PeerTable>,
    handler: watch::Receiver<Option<Arc<dyn MessageHandler>>>,
) {
    let refusals = Arc::new(Refusals::default());
    let places = Arc::new(Semaphore::new(own.config.connections_max));
    let (mut failures, mut crowded) = (RepeatedEvents::new(1), RepeatedEvents::new(1));
    let mut connections = JoinSet::new();
    let mut sweeps = tokio::time::interval(OVER_AFTER / 2);
    loop {
        while connections.try_join_next().is_some() {}
        if places.available_permits() == 0 {
            crowded.end_causes(Instant::now(), |()| false);
            if let Some(so_far) = crowded.record((), Instant::now()) {
                let connections_max = own.config.connections_max;
                tracing::warn!(connections_max, %so_far, "there are as many connections of other nodes as may be; further ones wait");
            }
        }
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = sweeps.tick() => {
                refusals.sweep();
                continue;
            }
        };
        match accepted {
            Ok((stream, from)) => {
                let (own, peers, refusals) = (own.clone(), peers.clone(), refusals.clone());
                let callee = IncomingConnection { own, peers, refusals, handler: handler.clone() };
                connections.spawn(async move {
                    if let Err(error) = callee.serve(stream, from).await {
                        tracing::debug!(%from, %error, "a node's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Usually the process is out of file descriptors, and only time helps.
                failures.end_causes(Instant::now(), |_| false);
                if let Some(so_far) = failures.record(error.kind(), Instant::now()) {
                    tracing::warn!(%error, %so_far, "cannot accept connections of other nodes; trying again");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// A connection that another node opened.
struct IncomingConnection {
    own: Arc<LocalNode>,
    peers: Arc<PeerTable>,
    refusals: Arc<Refusals>,
    /// `None` until the transport is started.
    handler: watch::Receiver<Option<Arc<dyn MessageHandler>>>,
}

impl IncomingConnection {
    async fn serve(mut self, stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        connection::configure(&stream)?;
        let stream = match &self.own.config.tls {
            None => Stream::from(stream),
            Some(tls) => match tls.accept_soon(stream, from, self.own.config.connect_timeout).await? {
                Some(stream) => stream,
                None => return Ok(()),
            },
        };
        let (reader, mut writer) = stream.into_split();
        let received = Arc::new(ByteCounter::default());
        // Little memory for a peer that has not identified itself.
        let mut frames = framing::reader(CountingHalf::new(reader, received.clone()), HELLO_BYTES_MAX);
        let time_limit = self.own.config.connect_timeout;
        let frame = timeout(time_limit, next_frame(&mut frames)).await??;
        let (sequence, hello) = match calls::read_call(&frame).map_err(invalid)? {
            (sequence, Call::Hello(hello)) => (sequence, hello),
            (sequence, Call::Describe(asker, endpoint)) => {
                let description = self.own.describe(NodeId(unsigned(asker.node_id)), endpoint.as_deref());
                let answer = calls::encode_describe_reply(sequence, description).map_err(invalid)?;
                writer.write_all(&answer).await?;
                return writer.shutdown().await;
            }
            _ => return Err(invalid_text("the first call is neither hello nor describe".to_owned())),
        };
        let started = timeout(time_limit, self.handler.wait_for(Option::is_some)).await?;
        let handler = started.ok().and_then(|handler| handler.clone()).ok_or(io::ErrorKind::NotConnected)?;
        let from = NodeId(unsigned(hello.caller.node_id));
        if let Some(why) = self.refusal_reason(from, &hello) {
            let answer = calls::encode_hello_reply(sequence, Err(why.clone())).map_err(invalid)?;
            writer.write_all(&answer).await?;
            writer.flush().await?;
            return Err(self.refuse(from, why));
        }
        let answer = calls::encode_hello_reply(sequence, Ok(self.own.identity())).map_err(invalid)?;
        writer.write_all(&answer).await?;
        writer.flush().await?;
        self.refusals.accepted(from);
        frames.decoder_mut().set_frame_bytes_max(self.own.config.frame_bytes_max);
        self.peers.add_caller(from, hello.endpoint.and_then(|text| text.parse().ok()));
        let interval = Duration::from_millis(u64::try_from(hello.receipt_interval_ms).unwrap_or(0));
        let interval = interval.clamp(INTERVAL_MIN, INTERVAL_MAX);
        let writer = Mutex::new(writer);
        let cluster = watch::Sender::new(ClusterId(unsigned(hello.caller.cluster)));
        // Receipts go out even while a handler takes its time with a snapshot.
        tokio::select! {
            ended = self.deliver(from, frames, &writer, &*handler, &cluster) => ended,
            ended = acknowledge(&received, &writer, interval, self.own.watch_cluster()) => ended,
            why = self.own.wait_until_clusters_differ(from, cluster.subscribe()) => Err(self.refuse(from, why)),
        }
    }

    /// Why this node refuses the connection; `None` if it accepts.
    fn refusal_reason(&self, from: NodeId, hello: &Hello) -> Option<String> {
        let own = self.own.config.node;
        if let Some(why) = self.own.refusal_reason(&hello.caller) {
            return Some(why);
        }
        let callee = NodeId(unsigned(hello.callee));
        if callee != own {
            return Some(format!("this is node {own}, not node {callee}: check the endpoints"));
        }
        if from == own {
            return Some(format!(
                "the caller has the id of this node, {own}: the node connected to itself, or two nodes were started with one id; check the endpoints and ids"
            ));
        }
        self.peers.other_with_id(&hello.caller)
    }

    fn refuse(&self, from: NodeId, why: String) -> io::Error {
        self.refusals.refused(from, &why);
        io::Error::new(io::ErrorKind::PermissionDenied, why)
    }

    /// Delivers the caller's messages and chunks to the handler, until the connection ends.
    async fn deliver(
        &self,
        from: NodeId,
        mut frames: FramedRead<CountingHalf<ReadHalf>, framing::FrameDecoder>,
        writer: &Mutex<WriteHalf>,
        handler: &dyn MessageHandler,
        caller_cluster: &watch::Sender<ClusterId>,
    ) -> io::Result<()> {
        // Checked for each message, because the sender may have learned its cluster after the last one.
        let check = |cluster| {
            caller_cluster.send_if_modified(|known| std::mem::replace(known, cluster) != cluster);
            self.own.cluster_refusal(from, cluster).map_or(Ok(()), |why| Err(self.refuse(from, why)))
        };
        let received_bytes = measure::received_bytes(from);
        while let Some(frame) = frames.next().await {
            let frame = frame?;
            received_bytes.increment(frame.len() as u64);
            let (sequence, call) = calls::read_call(&frame).map_err(invalid)?;
            match call {
                Call::Deliver(message, cluster) => {
                    check(cluster)?;
                    handler.on_message(from, message_from_wire(message).map_err(invalid_text)?);
                }
                Call::SnapshotChunk(chunk, cluster) => {
                    check(cluster)?;
                    let chunk = chunk_from_wire(chunk).map_err(invalid_text)?;
                    let ack = handler.on_snapshot_chunk(from, chunk).await;
                    reply(writer, calls::encode_chunk_reply(sequence, ack_to_wire(ack))).await?;
                }
                Call::Hello(_) | Call::Describe(..) => {
                    return Err(invalid_text("a second hello".to_owned()));
                }
                Call::Unknown(name) => {
                    let kind = thrift::ApplicationErrorKind::UnknownMethod;
                    let message = format!("there is no method {name:?}");
                    reply(writer, framing::encode_application_error(&name, sequence, kind, &message)).await?;
                }
            }
        }
        Ok(())
    }
}

/// Log of refused nodes, which connect again and again.
#[derive(Default)]
struct Refusals(std::sync::Mutex<RepeatedEvents<(NodeId, String)>>);

impl Refusals {
    fn lock(&self) -> std::sync::MutexGuard<'_, RepeatedEvents<(NodeId, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, node: NodeId, why: &str) {
        if let Some(so_far) = self.lock().record((node, why.to_owned()), Instant::now()) {
            tracing::warn!(%node, why, %so_far, "refused the connection of a node");
        }
    }

    /// Ends the refusals of a node that was accepted.
    fn accepted(&self, accepted: NodeId) {
        let over = self.lock().end_causes(Instant::now(), |(node, _)| *node == accepted);
        self.tell(over);
    }

    fn sweep(&self) {
        let over = self.lock().end_causes(Instant::now(), |_| false);
        self.tell(over);
    }

    fn tell(&self, over: Vec<((NodeId, String), Occurrences)>) {
        for ((node, why), times) in over {
            tracing::info!(%node, why, %times, "a refused node was accepted, or does not connect any more");
        }
    }
}

async fn reply(writer: &Mutex<WriteHalf>, frame: thrift::Result<Bytes>) -> io::Result<()> {
    let mut writer = writer.lock().await;
    writer.write_all(&frame.map_err(invalid)?).await?;
    writer.flush().await
}

fn invalid(error: thrift::Error) -> io::Error {
    invalid_text(framing::error_text(&error))
}

fn invalid_text(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Longest frame before the hello is accepted.
const HELLO_BYTES_MAX: usize = 4096;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
