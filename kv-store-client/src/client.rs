//! The client for programs.

mod calls;
mod clock;
mod failures;
mod leases;
mod locks;
mod queue;
mod watches;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use consensus_core::Endpoint;
use consensus_tls::Tls;
use tokio::{sync::watch, time::Instant};

use crate::{
    Connection,
    admin::{Alarm, AuthChange, AuthStatus, MemberChange},
    idl::{
        Consistency, DeleteRequest, DeleteResponse, HashResponse, KeyValue, PutRequest, PutResponse,
        RangeRequest, RangeResponse, ResponseHeader, Session, StatusResponse, TxnRequest, TxnResponse,
    },
    protocol::{Call, Fault, Reply},
};

pub use self::{
    leases::Lease,
    locks::{Leadership, Lock, LockError},
    watches::{Watch, WatchError},
};

/// Settings of a [`KvClient`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Endpoints of some or all servers; at least one. The client finds the leader through any of them.
    pub endpoints: Vec<Endpoint>,
    /// Time limit of an operation, with all its attempts. Default 15 s.
    pub timeout: Duration,
    /// Time limit of an attempt at one server, before the client tries another one; at most the server's
    /// share of [`timeout`](Self::timeout). Default 3 s.
    pub attempt_timeout: Duration,
    /// Time limit to open a connection. Default 1 s.
    pub connect_timeout: Duration,
    /// Whether an operation is repeated until its time limit if all endpoints refuse connections, for example
    /// while servers restart. `false`: it fails immediately. Default `true`.
    pub wait_for_servers: bool,
    /// User and password with which the client logs in on each connection. Default `None`: it does not log in.
    pub credentials: Option<Credentials>,
    /// TLS of the connections. `None`, the default: they are plain.
    pub tls: Option<Tls>,
}

/// A user and its password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the user.
    pub user: String,
    /// Its password. It is sent as it is: use it with TLS, or on networks that nobody else reads.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl std::str::FromStr for Credentials {
    type Err = &'static str;

    /// Parses `NAME:PASSWORD`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (user, password) = text.split_once(':').ok_or("expected NAME:PASSWORD")?;
        Ok(Self { user: user.to_owned(), password: password.to_owned() })
    }
}

impl ClientConfig {
    /// The default settings, with these endpoints.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            timeout: Duration::from_secs(15),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
            wait_for_servers: true,
            credentials: None,
            tls: None,
        }
    }
}

/// Reason that an operation has no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The store rejected the request, for example because it is invalid, its revision was compacted away, or
    /// a key has changed. Nothing was done.
    #[error(transparent)]
    Rejected(Fault),
    /// No server executed the request in time. Nothing was done.
    #[error("unavailable, nothing was done: {0}")]
    Unavailable(String),
    /// A write was sent, and no response arrived in time. The write may have been done, or may still be done.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The configuration has no endpoints.
    #[error("no endpoints were given")]
    NoEndpoints,
}

/// A client of a cluster or of a standalone server. It is cheap to clone; clones share the connection and the
/// sessions.
///
/// Each write belongs to a session of the store. If no response arrives, the client can therefore repeat the
/// write at another server: the store applies it once, even if it receives it several times.
#[derive(Clone, Debug)]
pub struct KvClient {
    config: Arc<ClientConfig>,
    shared: Arc<Mutex<Shared>>,
    /// Why no server answers the polls of watches.
    outage: Arc<watch::Sender<Option<String>>>,
}

#[derive(Debug, Default)]
struct Shared {
    connection: Option<Arc<Connection>>,
    /// Sessions that no write uses now.
    sessions: Vec<Session>,
    /// Index of the endpoint that is tried next, modulo their number.
    next: usize,
    /// Server that responded that it cannot serve now, and the time until which the client does not prefer it
    /// over a server that forwards.
    unavailable: Option<(Endpoint, Instant)>,
    /// Token of the last login.
    token: Option<String>,
}

impl KvClient {
    /// Creates a client. It connects when it is first used.
    ///
    /// # Errors
    /// [`ClientError::NoEndpoints`]: the configuration has no endpoints.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        if config.endpoints.is_empty() {
            return Err(ClientError::NoEndpoints);
        }
        Ok(Self { config: Arc::new(config), shared: Arc::default(), outage: Arc::default() })
    }

    /// Returns why no server answers what waits without a time limit: watches, and with them locks and elections. `None` if a server
    /// answers, or nothing waits.
    #[must_use]
    pub fn outages(&self) -> watch::Receiver<Option<String>> {
        self.outage.subscribe()
    }

    /// Records that no server answers what waits without a time limit.
    fn note_outage(&self, why: impl FnOnce() -> String) {
        self.outage.send_if_modified(|outage| {
            let is_new = outage.is_none();
            outage.get_or_insert_with(why);
            is_new
        });
    }

    /// Records that a server answers it.
    fn note_answer(&self) {
        self.outage.send_if_modified(|outage| outage.take().is_some());
    }

    /// Writes a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(
        &self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
    ) -> Result<PutResponse, ClientError> {
        self.put_with(PutRequest::of(key, value)).await
    }

    /// Writes a key, with all options of the IDL. The client sets `request.session`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put_with(&self, request: PutRequest) -> Result<PutResponse, ClientError> {
        let call = |session| Call::Put(PutRequest { session: Some(session), ..request.clone() });
        expect(
            self.write(call).await?,
            |reply| if let Reply::Put(response) = reply { Some(response) } else { None },
        )
    }

    /// Reads a key with linearizable consistency.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, key: impl Into<Vec<u8>>) -> Result<Option<KeyValue>, ClientError> {
        Ok(self.range(RangeRequest::of(key, None)).await?.kvs.pop())
    }

    /// Reads a range, at the leader if one is known. See [`range_of`](Self::range_of) for the state of a
    /// single server.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ClientError> {
        let reply = self.read(Call::Range(request)).await?;
        expect(reply, |reply| if let Reply::Range(response) = reply { Some(response) } else { None })
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: impl Into<Vec<u8>>) -> Result<DeleteResponse, ClientError> {
        self.delete_range(DeleteRequest::of(key, None)).await
    }

    /// Deletes a range. The client sets `request.session`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_range(&self, request: DeleteRequest) -> Result<DeleteResponse, ClientError> {
        let call = |session| Call::DeleteRange(DeleteRequest { session: Some(session), ..request.clone() });
        let reply = self.write(call).await?;
        expect(reply, |reply| if let Reply::DeleteRange(response) = reply { Some(response) } else { None })
    }

    /// Executes a transaction. The client sets `request.session`.
    ///
    /// # Errors
    /// See [`ClientError`]. A conflict is a [`ClientError::Rejected`].
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ClientError> {
        let call = |session| Call::Txn(TxnRequest { session: Some(session), ..request.clone() });
        expect(
            self.write(call).await?,
            |reply| if let Reply::Txn(response) = reply { Some(response) } else { None },
        )
    }

    /// Compacts history older than `revision`. It is safe to repeat the call, but the repetition returns
    /// `Compacted`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn compact(&self, revision: i64) -> Result<ResponseHeader, ClientError> {
        let reply = self.read(Call::Compact(revision)).await?;
        expect(reply, |reply| if let Reply::Compact(header) = reply { Some(header) } else { None })
    }

    /// Reads a range of one server's own state, which may be old. The client sets `request.consistency` to
    /// `STALE`.
    ///
    /// # Errors
    /// The server does not respond within [`ClientConfig::attempt_timeout`], or it rejects the request.
    pub async fn range_of(
        &self,
        endpoint: &Endpoint,
        request: RangeRequest,
    ) -> Result<RangeResponse, ClientError> {
        let request = RangeRequest { consistency: Some(Consistency::STALE), ..request };
        self.range_through(endpoint, request).await
    }

    /// Reads a range through one server, with the consistency of the request. The server contacts the leader
    /// if that is necessary.
    ///
    /// # Errors
    /// The server does not respond within [`ClientConfig::attempt_timeout`], or it rejects the request.
    pub async fn range_through(
        &self,
        endpoint: &Endpoint,
        request: RangeRequest,
    ) -> Result<RangeResponse, ClientError> {
        let reply = self.ask(endpoint, Call::Range(request)).await?;
        expect(reply, |reply| if let Reply::Range(response) = reply { Some(response) } else { None })
    }

    /// Returns the status of one server.
    ///
    /// # Errors
    /// The server does not respond within [`ClientConfig::attempt_timeout`].
    pub async fn status_of(&self, endpoint: &Endpoint) -> Result<StatusResponse, ClientError> {
        let reply = self.ask(endpoint, Call::Status).await?;
        expect(reply, |reply| if let Reply::Status(response) = reply { Some(response) } else { None })
    }

    /// Returns the checksum of one server's own state. The computation takes long if the state is large.
    ///
    /// # Errors
    /// The server does not return its status within [`ClientConfig::attempt_timeout`], or the checksum within
    /// [`ClientConfig::timeout`], or it has no data ([`Fault::NoData`]).
    pub async fn hash_of(&self, endpoint: &Endpoint) -> Result<HashResponse, ClientError> {
        let reply = self.ask_patiently(endpoint, Call::Hash).await?;
        expect(reply, |reply| if let Reply::Hash(response) = reply { Some(response) } else { None })
    }

    /// Changes what one server logs, until it restarts: to `directives`, or to its setting if they are empty.
    /// Returns the directives that are in effect.
    ///
    /// # Errors
    /// The server does not respond within [`ClientConfig::attempt_timeout`], or it refuses: a directive is
    /// wrong, or the user may not do this.
    pub async fn set_log_level_of(
        &self,
        endpoint: &Endpoint,
        directives: impl Into<String>,
    ) -> Result<String, ClientError> {
        let reply = self.ask(endpoint, Call::SetLogLevel(directives.into())).await?;
        expect(
            reply,
            |reply| if let Reply::SetLogLevel(directives) = reply { Some(directives) } else { None },
        )
    }

    /// Applies changes of the members of the cluster, all in one step. The client repeats the call at other
    /// servers only while no server can have accepted it.
    ///
    /// # Errors
    /// * [`ClientError::Rejected`] with [`Fault::Refused`]: the change is invalid or impossible; the message
    ///   says what to do.
    /// * [`ClientError::Unavailable`]: no server could do it now, or another change is in progress.
    /// * [`ClientError::Unknown`]: it may have been done.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), ClientError> {
        self.administer(Call::ChangeMembers(changes)).await.map(|_| ())
    }

    /// Transfers leadership to a node, or to the most up-to-date voter if `None`. Returns the new leader's
    /// id.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn transfer_leader(&self, to: Option<i64>) -> Result<i64, ClientError> {
        let reply = self.administer(Call::TransferLeader(to.unwrap_or(-1))).await?;
        expect(reply, |reply| if let Reply::TransferLeader(leader) = reply { Some(leader) } else { None })
    }

    /// Returns the alarms that are raised.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn alarms(&self) -> Result<Vec<Alarm>, ClientError> {
        let reply = self.administer(Call::Alarms).await?;
        expect(reply, |reply| if let Reply::Alarms(alarms) = reply { Some(alarms) } else { None })
    }

    /// Changes users and roles.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn change_auth(&self, change: AuthChange) -> Result<(), ClientError> {
        self.administer(Call::ChangeAuth(change)).await.map(|_| ())
    }

    /// Returns users and roles.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn auth(&self) -> Result<AuthStatus, ClientError> {
        let reply = self.administer(Call::Auth).await?;
        expect(reply, |reply| if let Reply::Auth(status) = reply { Some(status) } else { None })
    }

    /// Disarms an alarm. Returns whether it was raised. An alarm whose cause persists is raised again.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn disarm_alarm(&self, alarm: Alarm) -> Result<bool, ClientError> {
        let reply = self.administer(Call::DisarmAlarm(alarm)).await?;
        expect(
            reply,
            |reply| if let Reply::DisarmAlarm(was_raised) = reply { Some(was_raised) } else { None },
        )
    }
}

fn expect<T>(reply: Reply, take: impl FnOnce(Reply) -> Option<T>) -> Result<T, ClientError> {
    take(reply).ok_or_else(|| ClientError::Unknown("the server answered another call".to_owned()))
}
