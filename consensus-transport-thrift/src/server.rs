//! The connections that other nodes make to this one.

use std::{
    io,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::{MessageHandler, NodeId};
use futures::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Mutex, Semaphore},
    task::JoinSet,
};
use tokio_util::codec::FramedRead;

use crate::{
    ThriftConfig,
    calls::{self, Call},
    connection,
    convert::{ack_to_wire, chunk_from_wire, message_from_wire, unsigned},
    framing,
    generated::Hello,
    peer::FORMAT,
    progress::{Counted, Counter, INTERVAL_MAX, INTERVAL_MIN, acknowledge, next_frame},
    repeats::{OVER_AFTER, Repeats, Times},
    transport::Peers,
};

/// Accepts connections until it is cancelled; they end with it.
pub(crate) async fn accept(
    listener: Arc<TcpListener>,
    config: Arc<ThriftConfig>,
    peers: Arc<Peers>,
    handler: Arc<dyn MessageHandler>,
) {
    let refusals = Arc::new(Refusals::default());
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut failures = Repeats::new(1);
    let mut connections = JoinSet::new();
    let mut sweeps = tokio::time::interval(OVER_AFTER / 2);
    loop {
        while connections.try_join_next().is_some() {}
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
                let (config, peers, handler) = (config.clone(), peers.clone(), handler.clone());
                let refusals = refusals.clone();
                connections.spawn(async move {
                    if let Err(error) = serve(stream, &config, &peers, &refusals, &*handler).await {
                        tracing::debug!(%from, %error, "a node's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps.
                failures.end(Instant::now(), |_| false);
                if let Some(so_far) = failures.note(error.kind(), Instant::now()) {
                    tracing::warn!(%error, %so_far, "cannot accept a node's connection; it is tried again");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    config: &ThriftConfig,
    peers: &Peers,
    refusals: &Refusals,
    handler: &dyn MessageHandler,
) -> io::Result<()> {
    connection::configure(&stream)?;
    let (reader, mut writer) = stream.into_split();
    let received = Arc::new(Counter::default());
    // A stranger gets little room.
    let mut frames = framing::reader(Counted::new(reader, received.clone()), HELLO_BYTES_MAX);
    let frame = tokio::time::timeout(config.connect_timeout, next_frame(&mut frames)).await??;
    let (sequence, Call::Hello(hello)) = calls::read_call(&frame).map_err(invalid)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first call is not hello"));
    };
    let from = NodeId(unsigned(hello.node_id));
    let objection = objection(&hello, config);
    let answer = calls::answer_hello(sequence, objection.clone()).map_err(invalid)?;
    writer.write_all(&answer).await?;
    if let Some(why) = objection {
        refusals.refused(from, &why);
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    refusals.accepted(from);
    frames.decoder_mut().set_frame_bytes_max(config.frame_bytes_max);
    peers.called_by(from, hello.endpoint.and_then(|text| text.parse().ok()));
    let interval = Duration::from_millis(u64::try_from(hello.receipt_interval_ms).unwrap_or(0));
    let writer = Mutex::new(writer);
    // Receipts go out even while a handler takes its time with a snapshot.
    tokio::select! {
        ended = deliver(from, frames, &writer, handler) => ended,
        ended = acknowledge(&received, &writer, interval.clamp(INTERVAL_MIN, INTERVAL_MAX)) => ended,
    }
}

/// Nodes that this one does not want to talk to. They call again and again.
#[derive(Default)]
struct Refusals(std::sync::Mutex<Repeats<(NodeId, String)>>);

impl Refusals {
    fn lock(&self) -> std::sync::MutexGuard<'_, Repeats<(NodeId, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, node: NodeId, why: &str) {
        if let Some(so_far) = self.lock().note((node, why.to_owned()), Instant::now()) {
            tracing::warn!(%node, why, %so_far, "refused a node");
        }
    }

    /// The node is refused no more.
    fn accepted(&self, accepted: NodeId) {
        let over = self.lock().end(Instant::now(), |(node, _)| *node == accepted);
        self.tell(over);
    }

    fn sweep(&self) {
        let over = self.lock().end(Instant::now(), |_| false);
        self.tell(over);
    }

    fn tell(&self, over: Vec<((NodeId, String), Times)>) {
        for ((node, why), times) in over {
            tracing::info!(%node, why, %times, "a node that was refused does not call any more, or is accepted now");
        }
    }
}

/// Hands over what the caller sends, until it ends.
async fn deliver(
    from: NodeId,
    mut frames: FramedRead<Counted<OwnedReadHalf>, framing::FrameDecoder>,
    writer: &Mutex<OwnedWriteHalf>,
    handler: &dyn MessageHandler,
) -> io::Result<()> {
    while let Some(frame) = frames.next().await {
        let (sequence, call) = calls::read_call(&frame?).map_err(invalid)?;
        match call {
            Call::Deliver(message) => {
                handler.on_message(from, message_from_wire(message).map_err(invalid_text)?);
            }
            Call::SnapshotChunk(chunk) => {
                let chunk = chunk_from_wire(chunk).map_err(invalid_text)?;
                let ack = handler.on_snapshot_chunk(from, chunk).await;
                reply(writer, calls::answer_chunk(sequence, ack_to_wire(ack))).await?;
            }
            Call::Hello(_) => return Err(invalid_text("a second hello".to_owned())),
            Call::Unknown(name) => {
                let kind = thrift::ApplicationErrorKind::UnknownMethod;
                let message = format!("there is no method {name:?}");
                reply(writer, framing::encode_application_error(&name, sequence, kind, &message)).await?;
            }
        }
    }
    Ok(())
}

/// Why this node does not want to talk to that one.
fn objection(hello: &Hello, config: &ThriftConfig) -> Option<String> {
    if hello.format != FORMAT {
        return Some(format!(
            "message format {} is not {FORMAT}, which node {} speaks",
            hello.format, config.node
        ));
    }
    if hello.cluster != config.cluster {
        return Some(format!(
            "node {} is of cluster {:?}, not {:?}",
            config.node, config.cluster, hello.cluster
        ));
    }
    if unsigned(hello.callee) != config.node.0 {
        return Some(format!("this is node {}, not node {}: check the endpoints", config.node, hello.callee));
    }
    (unsigned(hello.node_id) == config.node.0).then(|| format!("this is node {} itself", config.node))
}

async fn reply(writer: &Mutex<OwnedWriteHalf>, frame: thrift::Result<Bytes>) -> io::Result<()> {
    writer.lock().await.write_all(&frame.map_err(invalid)?).await
}

fn invalid(error: thrift::Error) -> io::Error {
    invalid_text(framing::describe(&error))
}

fn invalid_text(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Connections at once; a cluster needs two per node.
const CONNECTIONS_MAX: usize = 256;
/// Room for a greeting.
const HELLO_BYTES_MAX: usize = 4096;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
