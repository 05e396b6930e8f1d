//! The connections that other nodes make to this one.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use consensus_core::{MessageHandler, NodeId};
use futures::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::Semaphore,
    task::JoinSet,
};

use crate::{
    ThriftConfig,
    calls::{self, Call},
    connection,
    convert::{ack_to_wire, chunk_from_wire, message_from_wire, unsigned},
    framing,
    generated::Hello,
    peer::{FORMAT, next_frame},
    transport::Peers,
};

/// Accepts connections until it is cancelled; they end with it.
pub(crate) async fn accept(
    listener: Arc<TcpListener>,
    config: Arc<ThriftConfig>,
    peers: Arc<Peers>,
    handler: Arc<dyn MessageHandler>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let (config, peers, handler) = (config.clone(), peers.clone(), handler.clone());
                connections.spawn(async move {
                    if let Err(error) = serve(stream, &config, &peers, &*handler).await {
                        tracing::debug!(%from, %error, "a node's connection ended");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    config: &ThriftConfig,
    peers: &Peers,
    handler: &dyn MessageHandler,
) -> io::Result<()> {
    connection::configure(&stream)?;
    let (reader, mut writer) = stream.into_split();
    // A stranger gets little room.
    let mut reader = framing::reader(reader, HELLO_BYTES_MAX);
    let frame = tokio::time::timeout(config.connect_timeout, next_frame(&mut reader)).await??;
    let (sequence, Call::Hello(hello)) = calls::read_call(&frame).map_err(invalid)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first call is not hello"));
    };
    let objection = objection(&hello, config);
    reply(&mut writer, calls::answer_hello(sequence, objection.clone())).await?;
    if let Some(why) = objection {
        tracing::warn!(node = hello.node_id, why, "refused a node");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    reader.decoder_mut().set_frame_bytes_max(config.frame_bytes_max);
    let from = NodeId(unsigned(hello.node_id));
    peers.called_by(from, hello.endpoint.and_then(|text| text.parse().ok()));
    while let Some(frame) = reader.next().await {
        let (sequence, call) = calls::read_call(&frame?).map_err(invalid)?;
        match call {
            Call::Deliver(message) => {
                handler.on_message(from, message_from_wire(message).map_err(invalid_text)?);
            }
            Call::SnapshotChunk(chunk) => {
                let chunk = chunk_from_wire(chunk).map_err(invalid_text)?;
                let ack = handler.on_snapshot_chunk(from, chunk).await;
                reply(&mut writer, calls::answer_chunk(sequence, ack_to_wire(ack))).await?;
            }
            Call::Hello(_) => return Err(invalid_text("a second hello".to_owned())),
            Call::Unknown(name) => {
                let kind = thrift::ApplicationErrorKind::UnknownMethod;
                let message = format!("there is no method {name:?}");
                reply(&mut writer, framing::encode_application_error(&name, sequence, kind, &message))
                    .await?;
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

async fn reply(writer: &mut OwnedWriteHalf, frame: thrift::Result<Bytes>) -> io::Result<()> {
    writer.write_all(&frame.map_err(invalid)?).await
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
