//! The client that programs use.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::Endpoint;
use rand::Rng;
use tokio::time::Instant;

use crate::{
    CallError, Connection,
    admin::MemberChange,
    idl::{
        DeleteRequest, DeleteResponse, HashResponse, KeyValue, PutRequest, PutResponse, RangeRequest,
        RangeResponse, ResponseHeader, Session, StatusResponse, TxnRequest, TxnResponse,
    },
    protocol::{Call, Fault, Reply},
};

/// Settings of a [`KvClient`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Some of the servers; at least one. The leader is found through any of them.
    pub endpoints: Vec<Endpoint>,
    /// How long an operation is tried in all. Default 15 s.
    pub timeout: Duration,
    /// How long one server is waited for before another one is tried. Default 3 s.
    pub attempt_timeout: Duration,
    /// For a connection. Default 1 s.
    pub connect_timeout: Duration,
}

impl ClientConfig {
    /// The defaults with these servers.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        Self {
            endpoints,
            timeout: Duration::from_secs(15),
            attempt_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// Why an operation has no result.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The store did not do it: the request is wrong, its revision compacted, a key changed. Nothing was done.
    #[error(transparent)]
    Rejected(Fault),
    /// No server did it in time. Nothing was done.
    #[error("unavailable, nothing was done: {0}")]
    Unavailable(String),
    /// A write was sent, and no answer came in time: it may have been done, or may be yet.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The client was made without endpoints.
    #[error("no endpoints were given")]
    NoEndpoints,
}

/// A client of a cluster (or of a standalone server). Cheap to clone; clones share connection and sessions.
///
/// Each write goes in a session of the store, so that it can be repeated at another server when an answer stays out:
/// whatever arrives, it is applied once.
#[derive(Clone, Debug)]
pub struct KvClient {
    config: Arc<ClientConfig>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    connection: Option<Arc<Connection>>,
    /// Sessions not in use by a write.
    sessions: Vec<Session>,
    /// Which endpoint is tried next.
    next: usize,
}

/// How a call that was given up went.
enum Ending {
    /// By the server's word.
    Fault(Fault),
    NotSent(String),
    NoAnswer(String),
}

impl KvClient {
    /// A client; it connects when it is first used.
    ///
    /// # Errors
    /// There are no endpoints.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        if config.endpoints.is_empty() {
            return Err(ClientError::NoEndpoints);
        }
        Ok(Self { config: Arc::new(config), shared: Arc::default() })
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
        self.put_with(PutRequest::new(key.into(), value.into(), None, None, None, None)).await
    }

    /// Writes a key, with all that the IDL offers; `request.session` is set by the client.
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

    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, key: impl Into<Vec<u8>>) -> Result<Option<KeyValue>, ClientError> {
        let request = RangeRequest::new(key.into(), None, None, None, None, None, None, None);
        Ok(self.range(request).await?.kvs.pop())
    }

    /// Reads a range.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn range(&self, request: RangeRequest) -> Result<RangeResponse, ClientError> {
        let reply = self.read(Call::Range(request)).await?;
        expect(reply, |reply| if let Reply::Range(response) = reply { Some(response) } else { None })
    }

    /// Removes a key.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(&self, key: impl Into<Vec<u8>>) -> Result<DeleteResponse, ClientError> {
        self.delete_range(DeleteRequest::new(key.into(), None, None, None)).await
    }

    /// Removes a range; `request.session` is set by the client.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_range(&self, request: DeleteRequest) -> Result<DeleteResponse, ClientError> {
        let call = |session| Call::DeleteRange(DeleteRequest { session: Some(session), ..request.clone() });
        let reply = self.write(call).await?;
        expect(reply, |reply| if let Reply::DeleteRange(response) = reply { Some(response) } else { None })
    }

    /// Executes a transaction; `request.session` is set by the client.
    ///
    /// # Errors
    /// See [`ClientError`]; a conflict is [`ClientError::Rejected`].
    pub async fn txn(&self, request: TxnRequest) -> Result<TxnResponse, ClientError> {
        let call = |session| Call::Txn(TxnRequest { session: Some(session), ..request.clone() });
        expect(
            self.write(call).await?,
            |reply| if let Reply::Txn(response) = reply { Some(response) } else { None },
        )
    }

    /// Forgets history older than `revision`. Repeating it does no harm, but answers `Compacted`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn compact(&self, revision: i64) -> Result<ResponseHeader, ClientError> {
        let reply = self.read(Call::Compact(revision)).await?;
        expect(reply, |reply| if let Reply::Compact(header) = reply { Some(header) } else { None })
    }

    /// What one server says of itself.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status_of(&self, endpoint: &Endpoint) -> Result<StatusResponse, ClientError> {
        let reply = self.ask(endpoint, Call::Status).await?;
        expect(reply, |reply| if let Reply::Status(response) = reply { Some(response) } else { None })
    }

    /// The checksum of one server's own state.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn hash_of(&self, endpoint: &Endpoint) -> Result<HashResponse, ClientError> {
        let reply = self.ask(endpoint, Call::Hash).await?;
        expect(reply, |reply| if let Reply::Hash(response) = reply { Some(response) } else { None })
    }

    /// Changes who takes part in the cluster, all in one step; retried while that cannot have happened.
    ///
    /// # Errors
    /// It was refused, or it is unknown whether it was done.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), ClientError> {
        self.administer(Call::ChangeMembers(changes)).await.map(|_| ())
    }

    /// Gives the lead to a node, or to whichever is fit; returns who leads.
    ///
    /// # Errors
    /// It was refused, or it is unknown whether it was done.
    pub async fn transfer_leader(&self, to: Option<i64>) -> Result<i64, ClientError> {
        let reply = self.administer(Call::TransferLeader(to.unwrap_or(-1))).await?;
        expect(reply, |reply| if let Reply::TransferLeader(leader) = reply { Some(leader) } else { None })
    }

    /// What an operator asks for is not for a program to repeat, unless nobody can have heard it.
    async fn administer(&self, call: Call) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            let not_sent = match self.connection().await {
                Ok(connection) => match self.administer_over(&connection, call.clone(), deadline).await {
                    Err(ClientError::Unavailable(why)) => {
                        self.give_up(&connection);
                        why
                    }
                    outcome => return outcome,
                },
                Err(why) => why,
            };
            if Instant::now() + PAUSE_MAX >= deadline {
                return Err(ClientError::Unavailable(not_sent));
            }
            tokio::time::sleep(PAUSE_MAX).await;
        }
    }

    async fn administer_over(
        &self,
        connection: &Connection,
        call: Call,
        deadline: Instant,
    ) -> Result<Reply, ClientError> {
        match tokio::time::timeout_at(deadline, connection.call(call)).await {
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(Fault::Refused(refused)))) if refused.maybe_done => {
                Err(ClientError::Unknown(refused.message))
            }
            Ok(Ok(Err(fault))) => Err(ClientError::Rejected(fault)),
            Ok(Err(CallError::NotSent { why, .. })) => Err(ClientError::Unavailable(why)),
            Ok(Err(error)) => Err(ClientError::Unknown(error.to_string())),
            Err(_) => Err(ClientError::Unknown(format!("{}: no answer in time", connection.endpoint()))),
        }
    }

    async fn ask(&self, endpoint: &Endpoint, call: Call) -> Result<Reply, ClientError> {
        let connection = Connection::open(endpoint, self.config.connect_timeout).await;
        let connection = connection.map_err(|error| ClientError::Unavailable(error.to_string()))?;
        let late =
            |_| ClientError::Unavailable(format!("{endpoint}: no answer in {:?}", self.config.timeout));
        let outcome = tokio::time::timeout(self.config.timeout, connection.call(call)).await.map_err(late)?;
        let outcome = outcome.map_err(|error| ClientError::Unavailable(error.to_string()))?;
        outcome.map_err(ClientError::Rejected)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that may be repeated as it is.
    async fn read(&self, call: Call) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.config.timeout;
        let read = self.repeat(&call, deadline, &mut false).await;
        // Whether the server came to it makes no difference.
        read.map_err(|error| match error {
            ClientError::Unknown(why) => ClientError::Unavailable(why),
            error => error,
        })
    }

    /// A write in a session: one write at a time in each, with the next number, which is never used for another.
    async fn write(&self, call: impl Fn(Session) -> Call) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            let mut session = self.take_session(deadline).await?;
            session.sequence += 1;
            let mut maybe_applied = false;
            let result = self.repeat(&call(session.clone()), deadline, &mut maybe_applied).await;
            match &result {
                // Refused unseen, as it was idle for too long: the write is as good as not sent.
                Err(ClientError::Rejected(Fault::Invalid(why)))
                    if why.message.starts_with(NO_SESSION) && !maybe_applied => {}
                Err(ClientError::Rejected(Fault::Invalid(why))) if why.message.starts_with(NO_SESSION) => {
                    return Err(ClientError::Unknown("the session was forgotten meanwhile".to_owned()));
                }
                _ => {
                    self.lock().sessions.push(session);
                    return result;
                }
            }
        }
    }

    async fn take_session(&self, deadline: Instant) -> Result<Session, ClientError> {
        if let Some(session) = self.lock().sessions.pop() {
            return Ok(session);
        }
        match self.repeat(&Call::OpenSession, deadline, &mut false).await {
            Ok(Reply::OpenSession(client_id)) => Ok(Session { client_id, sequence: 0 }),
            // A session perhaps opened and never used is forgotten by the store in time.
            Err(ClientError::Unknown(why)) => Err(ClientError::Unavailable(why)),
            Err(error) => Err(error),
            Ok(reply) => Err(ClientError::Unavailable(format!("a session was asked for, {reply:?} came"))),
        }
    }

    /// Calls until there is an outcome, or the time is over; at another server when one fails. `maybe_applied` is set as
    /// soon as an attempt may have been executed.
    async fn repeat(
        &self,
        call: &Call,
        deadline: Instant,
        maybe_applied: &mut bool,
    ) -> Result<Reply, ClientError> {
        let mut pause = PAUSE_MIN;
        loop {
            let why = match self.attempt(call, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(Ending::Fault(Fault::Unavailable(why))) => {
                    *maybe_applied |= why.maybe_applied;
                    why.message
                }
                Err(Ending::Fault(Fault::NotLeader(why))) => {
                    self.follow(why.leader_endpoint.as_deref()).await;
                    "no node leads, or it is not known which".to_owned()
                }
                Err(Ending::Fault(fault)) => return Err(ClientError::Rejected(fault)),
                Err(Ending::NotSent(why)) => why,
                Err(Ending::NoAnswer(why)) => {
                    *maybe_applied = true;
                    why
                }
            };
            tracing::debug!(why, "trying again");
            if Instant::now() + pause >= deadline {
                let error = if *maybe_applied { ClientError::Unknown } else { ClientError::Unavailable };
                return Err(error(why));
            }
            // With jitter, so that the clients of a failed server do not come back in step.
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<Reply, Ending> {
        let connection = self.connection().await.map_err(Ending::NotSent)?;
        let until = deadline.min(Instant::now() + self.config.attempt_timeout);
        let ending = match tokio::time::timeout_at(until, connection.call(call.clone())).await {
            Ok(Ok(Ok(reply))) => return Ok(reply),
            Ok(Ok(Err(fault))) => Ending::Fault(fault),
            Ok(Err(CallError::NotSent { why, .. })) => Ending::NotSent(why),
            Ok(Err(error @ CallError::NoAnswer { .. })) => Ending::NoAnswer(error.to_string()),
            Err(_) => Ending::NoAnswer(format!("{}: no answer in time", connection.endpoint())),
        };
        let is_the_stores_word = matches!(&ending, Ending::Fault(fault) if !matches!(fault, Fault::Unavailable(_) | Fault::NotLeader(_)));
        if !is_the_stores_word {
            self.give_up(&connection);
        }
        Err(ending)
    }

    /// The next attempt goes to another server.
    fn give_up(&self, connection: &Arc<Connection>) {
        let mut shared = self.lock();
        if shared.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            shared.connection = None;
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, String> {
        if let Some(connection) = self.lock().connection.clone().filter(|connection| connection.is_open()) {
            return Ok(connection);
        }
        let endpoint = {
            let mut shared = self.lock();
            let endpoint = self.config.endpoints[shared.next % self.config.endpoints.len()].clone();
            shared.next += 1;
            endpoint
        };
        let connection =
            Connection::open(&endpoint, self.config.connect_timeout).await.map_err(|e| e.to_string())?;
        let connection = self.to_leader(connection).await;
        self.lock().connection = Some(connection.clone());
        Ok(connection)
    }

    /// A server forwards, but the way is shorter without: goes on to the leader, if the server knows one that answers.
    async fn to_leader(&self, connection: Connection) -> Arc<Connection> {
        let status = tokio::time::timeout(self.config.connect_timeout, connection.call(Call::Status)).await;
        let Ok(Ok(Ok(Reply::Status(status)))) = status else { return Arc::new(connection) };
        let leader = status.members.iter().find(|member| Some(member.node_id) == status.leader_id);
        let elsewhere = leader.filter(|leader| leader.node_id != status.header.node_id);
        let Some(Ok(endpoint)) = elsewhere.map(|leader| leader.client_endpoint.parse()) else {
            return Arc::new(connection);
        };
        match Connection::open(&endpoint, self.config.connect_timeout).await {
            Ok(to_leader) => Arc::new(to_leader),
            Err(_) => Arc::new(connection),
        }
    }

    /// Goes where a server that does not forward said the leader is.
    async fn follow(&self, leader: Option<&str>) {
        let Some(Ok(endpoint)) = leader.map(str::parse::<Endpoint>) else { return };
        if let Ok(connection) = Connection::open(&endpoint, self.config.connect_timeout).await {
            self.lock().connection = Some(Arc::new(connection));
        }
    }
}

fn expect<T>(reply: Reply, take: impl FnOnce(Reply) -> Option<T>) -> Result<T, ClientError> {
    take(reply).ok_or_else(|| ClientError::Unknown("the server answered another call".to_owned()))
}

/// How the store begins to say that it does not know a session (`kv_state_machine`; kv-server/tests/processes.rs holds
/// them together).
const NO_SESSION: &str = "there is no session";
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
