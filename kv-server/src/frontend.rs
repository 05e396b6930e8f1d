//! Thrift for clients: framed transport, binary protocol, many calls in flight per connection.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_core::Endpoint;
use consensus_transport_thrift::framing;
use futures::StreamExt;
use kv_client::protocol::{self, Call, Fault, Incoming, Reply};
use thrift::ApplicationErrorKind;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
};

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
    let mut frames = framing::reader(reader, FRAME_BYTES_MAX);
    let (replies, queue) = mpsc::channel(CALLS_MAX);
    let writing = tokio::spawn(framing::write_all(writer, queue, |_| ()));
    let may_forward = Arc::new(AtomicBool::new(true));
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    let received = loop {
        // A client that does not take its answers is not read from.
        let Ok(place) = places.clone().acquire_owned().await else { break Ok(()) };
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = stopped(&mut stop) => break Ok(()),
        };
        let incoming = match frame {
            Some(Ok(frame)) => protocol::read_call(&frame),
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        };
        let incoming = match incoming {
            Ok(incoming) => incoming,
            Err(error) => break Err(io::Error::new(io::ErrorKind::InvalidData, framing::describe(&error))),
        };
        let (router, replies, may_forward) = (router.clone(), replies.clone(), may_forward.clone());
        tokio::spawn(async move {
            let Incoming { sequence, name, call } = incoming;
            let outcome = match call {
                Ok(Call::NoForwarding) => {
                    may_forward.store(false, Ordering::Relaxed);
                    Ok(Reply::NoForwarding)
                }
                Ok(call) => router.execute(call, may_forward.load(Ordering::Relaxed)).await,
                Err(fault) => Err(fault),
            };
            let frame = protocol::encode_reply(&name, sequence, outcome).or_else(|error| {
                let message = framing::describe(&error);
                let fault = Fault::Application { kind: ApplicationErrorKind::InternalError, message };
                protocol::encode_reply(&name, sequence, Err(fault))
            });
            if let Ok(frame) = frame {
                let _ = replies.send(frame).await; // A client that went away needs no answer.
            }
            drop(place);
        });
    };
    // The calls in hand hold senders: the writer ends after the last answer.
    drop(replies);
    let written = writing.await.map_err(io::Error::other)?;
    received.and(written)
}

/// Longest request and reply.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Connections at once.
const CONNECTIONS_MAX: usize = 10_000;
/// Calls in hand per connection.
const CALLS_MAX: usize = 1024;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
