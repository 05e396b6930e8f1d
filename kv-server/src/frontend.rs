//! Thrift for clients: framed transport, binary protocol, many calls in flight per connection.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use consensus_core::Endpoint;
use consensus_transport_thrift::framing;
use futures::{StreamExt, stream::FuturesUnordered};
use kv_store_client::protocol::{self, Call, Fault, Incoming, Reply};
use thrift::ApplicationErrorKind;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::codec::FramedRead;

use crate::routing::RoutingManager;

/// Listens for clients.
pub(crate) struct Frontend {
    listener: TcpListener,
    router: Arc<RoutingManager>,
}

impl Frontend {
    pub(crate) async fn bind(listen: &Endpoint, router: Arc<RoutingManager>) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("listening for clients at {listen}: {error}"))
        };
        let listener = TcpListener::bind((listen.host(), listen.port())).await.map_err(named)?;
        Ok(Self { listener, router })
    }

    /// Serves until `stop` says so; then no call is taken any more, and those in hand are finished.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let mut stopping = stop.clone();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = stopped(&mut stopping) => break,
                place = places.clone().acquire_owned() => match place {
                    Ok(place) => tokio::select! {
                        () = stopped(&mut stop) => break,
                        accepted = self.listener.accept() => accepted.map(|(stream, from)| (stream, from, place)),
                    },
                    Err(_) => break,
                },
            };
            match accepted {
                Ok((stream, from, place)) => {
                    let (router, stop) = (self.router.clone(), stop.clone());
                    connections.spawn(async move {
                        if let Err(error) = serve(stream, router, stop).await {
                            tracing::debug!(%from, %error, "a client's connection ended");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await; // Without a sender it is time to stop, too.
}

async fn serve(
    stream: TcpStream,
    router: Arc<RoutingManager>,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let mut connection = Connection {
        frames: framing::reader(reader, FRAME_BYTES_MAX),
        writer,
        written: BytesMut::new(),
        received: None,
    };
    let may_forward = AtomicBool::new(true);
    let answer = |incoming: Incoming| {
        if matches!(incoming.call, Ok(Call::NoForwarding)) {
            may_forward.store(false, Ordering::Relaxed);
        }
        answer(router.clone(), may_forward.load(Ordering::Relaxed), incoming)
    };
    let mut calls = FuturesUnordered::new();
    let mut stopped = pin!(stopped(&mut stop));
    poll_fn(|context| {
        if connection.received.is_none() && stopped.as_mut().poll(context).is_ready() {
            connection.received = Some(Ok(()));
        }
        connection.poll(context, &mut calls, answer)
    })
    .await?;
    connection.writer.shutdown().await?;
    connection.received.unwrap_or(Ok(()))
}

/// One task does everything for a connection: what comes together is taken together, and what is answered together goes out
/// in one write.
struct Connection {
    frames: FramedRead<OwnedReadHalf, framing::FrameDecoder>,
    writer: OwnedWriteHalf,
    /// Answers on their way out.
    written: BytesMut,
    /// Set when no call is taken any more, with the reason.
    received: Option<io::Result<()>>,
}

impl Connection {
    /// Ready when nothing is to be done any more, or nothing can be.
    fn poll<F: Future<Output = Option<Bytes>>>(
        &mut self,
        context: &mut Context<'_>,
        calls: &mut FuturesUnordered<F>,
        answer: impl Fn(Incoming) -> F,
    ) -> Poll<io::Result<()>> {
        let mut left = AT_ONCE;
        loop {
            let mut moved = false;
            // Calls in hand go on whether or not the client takes its answers: they may hold what others wait for.
            while left > 0
                && let Poll::Ready(Some(reply)) = calls.poll_next_unpin(context)
            {
                self.written.extend_from_slice(&reply.unwrap_or_default());
                (left, moved) = (left - 1, true);
            }
            // But no more is taken from one that does not.
            while left > 0
                && self.received.is_none()
                && calls.len() < CALLS_MAX
                && self.written.len() < WRITTEN_BYTES_MAX
                && let Poll::Ready(frame) = self.frames.poll_next_unpin(context)
            {
                match frame.map(|frame| read_call(&frame?)) {
                    Some(Ok(incoming)) => calls.push(answer(incoming)),
                    Some(Err(error)) => self.received = Some(Err(error)),
                    None => self.received = Some(Ok(())),
                }
                (left, moved) = (left - 1, true);
            }
            if moved && left > 0 {
                continue;
            }
            let wrote = self.poll_write(context)?;
            if left == 0 {
                context.waker().wake_by_ref(); // Others have their turn.
                return Poll::Pending;
            }
            if !wrote {
                let done = self.received.is_some() && calls.is_empty() && self.written.is_empty();
                return if done { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
    }

    /// Whether something was written.
    fn poll_write(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        if self.written.is_empty() {
            return Ok(false);
        }
        match pin!(self.writer.write_buf(&mut self.written)).poll(context)? {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(_) => {}
            Poll::Pending => return Ok(false),
        }
        if self.written.is_empty() && self.written.capacity() > 2 * WRITTEN_BYTES_MAX {
            self.written = BytesMut::new(); // What one large answer took is not kept.
        }
        Ok(true)
    }
}

fn read_call(frame: &[u8]) -> io::Result<Incoming> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, framing::describe(&error));
    protocol::read_call(frame).map_err(invalid)
}

/// The answer to a call, as a frame.
async fn answer(router: Arc<RoutingManager>, may_forward: bool, incoming: Incoming) -> Option<Bytes> {
    let Incoming { sequence, name, call } = incoming;
    let outcome = match call {
        Ok(Call::NoForwarding) => Ok(Reply::NoForwarding),
        Ok(call) => router.execute(call, may_forward).await,
        Err(fault) => Err(fault),
    };
    let frame = protocol::encode_reply(&name, sequence, outcome).or_else(|error| {
        let message = framing::describe(&error);
        let fault = Fault::Application { kind: ApplicationErrorKind::InternalError, message };
        protocol::encode_reply(&name, sequence, Err(fault))
    });
    frame.ok()
}

/// Longest request and reply.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Connections at once.
const CONNECTIONS_MAX: usize = 10_000;
/// Calls in hand per connection.
const CALLS_MAX: usize = 1024;
/// Answers that wait for the client to read. With more, no call is taken; those in hand may come on top.
const WRITTEN_BYTES_MAX: usize = 256 << 10;
/// Calls and answers that a connection may move before others have their turn.
const AT_ONCE: usize = 256;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
