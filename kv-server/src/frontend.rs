//! The port of the clients: Thrift (framed, binary protocol, many calls in flight per connection), and etcd's API over HTTP.

mod caller;
mod connection;
pub(crate) mod refusal;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use consensus_core::Endpoint;
use consensus_tls::{Stream, Tls};
use consensus_transport_thrift::{configure, framing::FrameMemory};
use futures::future::select_all;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};

use crate::{
    answers::NodeBudget,
    etcd::{self, ApiLimits, Etcd, Scope},
    measure::OpenConnection,
    polls::NodePolls,
    routing::RoutingManager,
};

/// Limits of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Connections of clients at once.
    pub(crate) clients_max: usize,
    /// Bytes of answers that are computed and not yet written, of all clients together.
    pub(crate) responses_bytes: u64,
    /// The same for one connection.
    pub(crate) connection_responses_bytes: u64,
    /// Of etcd's API.
    pub(crate) api: ApiLimits,
}

/// Listens for clients.
pub(crate) struct Frontend {
    listeners: Vec<Listener>,
    router: Arc<RoutingManager>,
    limits: Limits,
}

impl Frontend {
    pub(crate) async fn bind(
        places: Vec<Place>,
        router: Arc<RoutingManager>,
        limits: Limits,
    ) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for Place { endpoint, tls, is_for_health } in places {
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("listening for clients at {endpoint}: {error}"))
            };
            let socket = TcpListener::bind((endpoint.host(), endpoint.port())).await.map_err(named)?;
            listeners.push(Listener { socket, tls, is_for_health });
        }
        Ok(Self { listeners, router, limits })
    }

    /// Serves until `stop` says so; then no call is taken any more, and those in hand are finished.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let clients = Arc::new(Semaphore::new(self.limits.clients_max));
        let beyond = Arc::new(Semaphore::new(BEYOND_MAX));
        let probes = Arc::new(Semaphore::new(PROBES_MAX));
        let budget = NodeBudget::new(self.limits.responses_bytes, self.limits.connection_responses_bytes);
        let memory = FrameMemory::new(self.limits.responses_bytes.max(REQUESTS_BYTES_MIN));
        let polls = NodePolls::default();
        let mut refusals = refusal::Refusals::new(self.limits.clients_max);
        let mut failures = AcceptFailures::default();
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = accept(&self.listeners) => accepted,
            };
            let (stream, from, listener) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    failures.failed(&error);
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            failures.accepted();
            let client = Client {
                router: self.router.clone(),
                budget: budget.clone(),
                memory: memory.clone(),
                polls: polls.clone(),
                limits: self.limits,
                stop: stop.clone(),
                peer: from,
            };
            let (tls, is_for_health) = (listener.tls.clone(), listener.is_for_health);
            let probe = if is_for_health { probes.clone().try_acquire_owned().ok() } else { None };
            let place = probe.or_else(|| clients.clone().try_acquire_owned().ok());
            refusals.note(place.is_none(), clients.available_permits());
            let beyond = if place.is_none() { beyond.clone().try_acquire_owned().ok() } else { None };
            if place.is_none() && beyond.is_none() {
                // Here, and not in a task: until tasks run, a burst of connections would take all descriptors.
                drop(stream);
                continue;
            }
            connections.spawn(async move {
                let (_open, _beyond) = (OpenConnection::new(), beyond);
                let served = async {
                    configure(&stream)?;
                    let Some(stream) = client.secure(stream, from, tls, place.is_some()).await? else {
                        return Ok(());
                    };
                    match is_for_health {
                        true => client.serve_health(stream, place).await,
                        false => client.serve(stream, place).await,
                    }
                };
                if let Err(error) = served.await {
                    tracing::debug!(%from, %error, "a client's connection ended");
                }
            });
        }
        while connections.join_next().await.is_some() {}
    }
}

/// Place where the server listens for clients.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) endpoint: Endpoint,
    /// TLS of its connections; `None` if they are plain.
    pub(crate) tls: Option<Tls>,
    /// Whether it tells of the node's health alone.
    pub(crate) is_for_health: bool,
}

struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
    is_for_health: bool,
}

impl Listener {
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, &Self)> {
        self.socket.accept().await.map(|(stream, from)| (stream, from, self))
    }
}

/// Accepts a connection at any of the listeners.
async fn accept(listeners: &[Listener]) -> io::Result<(TcpStream, SocketAddr, &Listener)> {
    select_all(listeners.iter().map(|listener| Box::pin(listener.accept()))).await.0
}

/// Context of a client's connection.
struct Client {
    router: Arc<RoutingManager>,
    budget: NodeBudget,
    /// For requests of more than 64 KiB over Thrift.
    memory: FrameMemory,
    polls: NodePolls,
    limits: Limits,
    stop: watch::Receiver<bool>,
    peer: SocketAddr,
}

impl Client {
    /// Performs the handshake, if there is TLS. `None`: the client has gone without a word, or the server stops.
    async fn secure(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        tls: Option<Tls>,
        has_place: bool,
    ) -> io::Result<Option<Stream>> {
        let Some(tls) = tls else { return Ok(Some(Stream::Plain(stream))) };
        let mut stop = self.stop.clone();
        tokio::select! {
            () = stopped(&mut stop) => Ok(None),
            // A client without a place is given little time.
            () = tokio::time::sleep(BEYOND_WAIT), if !has_place => Ok(None),
            accepted = tls.accept(stream, from) => accepted,
        }
    }

    fn etcd(&self) -> Etcd {
        let Self { router, budget, limits, stop, peer, .. } = self;
        Etcd::new(router.clone(), budget.connection(), limits.api, stop.clone(), *peer)
    }

    /// Tells a connection that has a `place` of the node's health.
    async fn serve_health(self, stream: Stream, place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
        if place.is_none() {
            return Ok(());
        }
        let etcd = self.etcd();
        etcd::serve(stream, etcd, Scope::Health, self.stop).await
    }

    /// Serves a connection that has a `place`; one beyond the limit is told so at its first call.
    async fn serve(self, mut stream: Stream, place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
        // A client without a place is given little time.
        let wait = if place.is_some() { Duration::MAX } else { BEYOND_WAIT };
        match tokio::time::timeout(wait, protocol_of(&mut stream, &self.stop)).await?? {
            Protocol::Thrift => {}
            Protocol::Http if place.is_none() => {
                let refused = Scope::Refused { clients_max: self.limits.clients_max };
                let served = etcd::serve(stream, self.etcd(), refused, self.stop);
                return tokio::time::timeout(refusal::HTTP_TIMEOUT, served).await?;
            }
            Protocol::Http => {
                let etcd = self.etcd();
                return etcd::serve(stream, etcd, Scope::Api, self.stop).await;
            }
            Protocol::None => return Ok(()),
        }
        let certificate = stream.peer_certificate();
        let caller = caller::ConnectionCaller::new(self.peer, certificate.and_then(|of| of.common_name));
        let (reader, mut writer) = stream.into_split();
        let mut frames = connection::frames(reader, self.memory.clone());
        let is_client = place.is_some();
        if !is_client && !refusal::is_node(&mut frames, &mut writer, &self, &caller).await? {
            return Ok(());
        }
        // Of a node it is known already what to do with what only the leader can do.
        let (budget, polls) = (self.budget.connection(), self.polls.connection());
        let halves = connection::Halves { frames, writer };
        connection::serve(halves, self.router, budget, polls, caller, is_client, self.stop).await
    }
}

/// Protocol of a client.
enum Protocol {
    /// Framed: a length comes first, and no length begins with a letter.
    Thrift,
    /// HTTP/1.1 or HTTP/2.
    Http,
    /// Neither. It has gone without a word, or the server stops.
    None,
}

/// Finds out from the first byte, which stays to be read.
async fn protocol_of(stream: &mut Stream, stop: &watch::Receiver<bool>) -> io::Result<Protocol> {
    let mut stop = stop.clone();
    let first = tokio::select! {
        () = stopped(&mut stop) => return Ok(Protocol::None),
        first = stream.peek() => first?,
    };
    Ok(match first {
        None => Protocol::None,
        Some(byte) if byte.is_ascii_uppercase() => Protocol::Http,
        Some(_) => Protocol::Thrift,
    })
}

/// Says once per outage that connections cannot be accepted, and how often that was when it is over.
#[derive(Default)]
struct AcceptFailures(u64);

impl AcceptFailures {
    fn failed(&mut self, error: &io::Error) {
        if self.0 == 0 {
            tracing::warn!(%error, "cannot accept connections of clients; they wait");
        }
        self.0 += 1;
    }

    fn accepted(&mut self) {
        let failures = std::mem::take(&mut self.0);
        if failures > 0 {
            tracing::info!(failures, "connections of clients are accepted again");
        }
    }
}

/// Returns when the server stops.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await; // Without a sender it is time to stop, too.
}

/// Connections at once that are told that there is no place for them, or come from operators and other nodes.
pub(crate) const BEYOND_MAX: usize = 16;
/// Places of the ports for health alone, besides those of clients.
pub(crate) const PROBES_MAX: usize = 16;
/// How long a connection beyond the limit may say nothing.
const BEYOND_WAIT: Duration = Duration::from_secs(2);
/// Least memory for large requests: a few of the largest.
const REQUESTS_BYTES_MIN: u64 = 64 << 20;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
