//! The port of the clients: Thrift (framed, binary protocol, many calls in flight per connection), and etcd's API over HTTP.

mod connection;
mod refusal;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use consensus_core::Endpoint;
use consensus_transport_thrift::configure;
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
    listeners: Vec<TcpListener>,
    /// Listeners that tell of the node's health alone.
    health_listeners: Vec<TcpListener>,
    router: Arc<RoutingManager>,
    limits: Limits,
}

impl Frontend {
    pub(crate) async fn bind(
        endpoints: impl IntoIterator<Item = &Endpoint>,
        router: Arc<RoutingManager>,
        limits: Limits,
    ) -> io::Result<Self> {
        Ok(Self { listeners: listen(endpoints).await?, health_listeners: Vec::new(), router, limits })
    }

    /// Tells of the node's health at other endpoints, too.
    pub(crate) async fn with_health_at(self, endpoints: &[Endpoint]) -> io::Result<Self> {
        Ok(Self { health_listeners: listen(endpoints).await?, ..self })
    }

    /// Serves until `stop` says so; then no call is taken any more, and those in hand are finished.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let clients = Arc::new(Semaphore::new(self.limits.clients_max));
        let beyond = Arc::new(Semaphore::new(BEYOND_MAX));
        let budget = NodeBudget::new(self.limits.responses_bytes, self.limits.connection_responses_bytes);
        let polls = NodePolls::default();
        let mut refusals = refusal::Refusals::new(self.limits.clients_max);
        let mut failures = AcceptFailures::default();
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = accept(&self.listeners) => accepted.map(|accepted| (accepted, false)),
                accepted = accept(&self.health_listeners) => accepted.map(|accepted| (accepted, true)),
            };
            let ((stream, from), is_for_health) = match accepted {
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
                polls: polls.clone(),
                limits: self.limits,
                stop: stop.clone(),
            };
            let place = clients.clone().try_acquire_owned().ok();
            refusals.note(place.is_none(), clients.available_permits());
            let beyond = if place.is_none() { beyond.clone().try_acquire_owned().ok() } else { None };
            connections.spawn(async move {
                let _open = OpenConnection::new();
                let served = async {
                    match is_for_health {
                        true => client.serve_health(stream, place).await,
                        false => client.serve(stream, place, beyond).await,
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

async fn listen(endpoints: impl IntoIterator<Item = &Endpoint>) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for endpoint in endpoints {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("listening for clients at {endpoint}: {error}"))
        };
        listeners.push(TcpListener::bind((endpoint.host(), endpoint.port())).await.map_err(named)?);
    }
    Ok(listeners)
}

/// Accepts a connection at any of the listeners.
async fn accept(listeners: &[TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    if listeners.is_empty() {
        return std::future::pending().await;
    }
    select_all(listeners.iter().map(|listener| Box::pin(listener.accept()))).await.0
}

/// Context of a client's connection.
struct Client {
    router: Arc<RoutingManager>,
    budget: NodeBudget,
    polls: NodePolls,
    limits: Limits,
    stop: watch::Receiver<bool>,
}

impl Client {
    /// Tells a connection that has a `place` of the node's health.
    async fn serve_health(self, stream: TcpStream, place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
        if place.is_none() {
            return Ok(());
        }
        configure(&stream)?;
        let etcd = Etcd::new(self.router, self.budget.connection(), self.limits.api, self.stop.clone());
        etcd::serve(stream, etcd, Scope::Health, self.stop).await
    }

    /// Serves a connection that has a `place`; one `beyond` the limit is told so at its first call. With neither it is closed.
    async fn serve(
        self,
        stream: TcpStream,
        place: Option<OwnedSemaphorePermit>,
        beyond: Option<OwnedSemaphorePermit>,
    ) -> io::Result<()> {
        if place.is_none() && beyond.is_none() {
            return Ok(());
        }
        configure(&stream)?;
        // A client without a place is given little time.
        let wait = if place.is_some() { Duration::MAX } else { BEYOND_WAIT };
        match tokio::time::timeout(wait, protocol_of(&stream, &self.stop)).await?? {
            Protocol::Thrift => {}
            // An HTTP client without a place is closed without a reason.
            Protocol::Http if place.is_none() => return Ok(()),
            Protocol::Http => {
                let etcd =
                    Etcd::new(self.router, self.budget.connection(), self.limits.api, self.stop.clone());
                return etcd::serve(stream, etcd, Scope::Api, self.stop).await;
            }
            Protocol::None => return Ok(()),
        }
        let (reader, mut writer) = stream.into_split();
        let mut frames = connection::frames(reader);
        let is_client = place.is_some();
        if !is_client && !refusal::is_node(&mut frames, &mut writer, &self).await? {
            return Ok(());
        }
        // Of a node it is known already what to do with what only the leader can do.
        let (budget, polls) = (self.budget.connection(), self.polls.connection());
        connection::serve(frames, writer, self.router, budget, polls, is_client, self.stop).await
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
async fn protocol_of(stream: &TcpStream, stop: &watch::Receiver<bool>) -> io::Result<Protocol> {
    let (mut first, mut stop) = ([0], stop.clone());
    let peeked = tokio::select! {
        () = stopped(&mut stop) => return Ok(Protocol::None),
        peeked = stream.peek(&mut first) => peeked?,
    };
    Ok(match first {
        _ if peeked == 0 => Protocol::None,
        [byte] if byte.is_ascii_uppercase() => Protocol::Http,
        _ => Protocol::Thrift,
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
/// How long a connection beyond the limit may say nothing.
const BEYOND_WAIT: Duration = Duration::from_secs(2);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
