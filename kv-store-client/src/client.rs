//! The client that programs use.

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
use tokio::time::Instant;

use crate::{
    Connection,
    admin::{Alarm, MemberChange},
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
    /// Some of the servers; at least one. The leader is found through any of them.
    pub endpoints: Vec<Endpoint>,
    /// How long an operation is tried in all. Default 15 s.
    pub timeout: Duration,
    /// How long one server is waited for before another one is tried; at most the server's share of
    /// [`timeout`](Self::timeout). Default 3 s.
    pub attempt_timeout: Duration,
    /// How long a connection may take. Default 1 s.
    pub connect_timeout: Duration,
    /// Whether an operation is tried until the time is over although nobody listens at any of the endpoints, as while
    /// servers restart. `false`: it fails at once. Default `true`.
    pub wait_for_servers: bool,
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
            wait_for_servers: true,
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
    /// A server that said it cannot serve now, and until when others are asked to forward to it instead.
    unavailable: Option<(Endpoint, Instant)>,
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
        self.put_with(PutRequest::of(key, value)).await
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
        Ok(self.range(RangeRequest::of(key, None)).await?.kvs.pop())
    }

    /// Reads a range, at the leader if one is known; see [`range_of`](Self::range_of) for the state of one server.
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
        self.delete_range(DeleteRequest::of(key, None)).await
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

    /// Reads a range of one server's own state, which may be old: `request.consistency` is set to `STALE`.
    ///
    /// # Errors
    /// The server does not answer within [`ClientConfig::attempt_timeout`], or rejects the request.
    pub async fn range_of(
        &self,
        endpoint: &Endpoint,
        request: RangeRequest,
    ) -> Result<RangeResponse, ClientError> {
        let request = RangeRequest { consistency: Some(Consistency::STALE), ..request };
        self.range_through(endpoint, request).await
    }

    /// Reads a range through one server, with the consistency that the request asks for. The server asks the leader where it
    /// has to.
    ///
    /// # Errors
    /// The server does not answer within [`ClientConfig::attempt_timeout`], or rejects the request.
    pub async fn range_through(
        &self,
        endpoint: &Endpoint,
        request: RangeRequest,
    ) -> Result<RangeResponse, ClientError> {
        let reply = self.ask(endpoint, Call::Range(request)).await?;
        expect(reply, |reply| if let Reply::Range(response) = reply { Some(response) } else { None })
    }

    /// What one server says of itself.
    ///
    /// # Errors
    /// The server does not answer within [`ClientConfig::attempt_timeout`].
    pub async fn status_of(&self, endpoint: &Endpoint) -> Result<StatusResponse, ClientError> {
        let reply = self.ask(endpoint, Call::Status).await?;
        expect(reply, |reply| if let Reply::Status(response) = reply { Some(response) } else { None })
    }

    /// The checksum of one server's own state. Computing it takes the server long if the state is large.
    ///
    /// # Errors
    /// The server shows no life within [`ClientConfig::attempt_timeout`], has no answer within [`ClientConfig::timeout`], or
    /// has no data ([`Fault::NoData`]).
    pub async fn hash_of(&self, endpoint: &Endpoint) -> Result<HashResponse, ClientError> {
        let reply = self.ask_patiently(endpoint, Call::Hash).await?;
        expect(reply, |reply| if let Reply::Hash(response) = reply { Some(response) } else { None })
    }

    /// Changes the members of the cluster, all in one step. Repeated at other servers while no server can have taken it on.
    ///
    /// # Errors
    /// [`ClientError::Rejected`] with [`Fault::Refused`]: the change makes no sense; the message says what was meant.
    /// [`ClientError::Unavailable`]: no server could do it now, or another change is under way. [`ClientError::Unknown`]:
    /// it may have been done.
    pub async fn change_members(&self, changes: Vec<MemberChange>) -> Result<(), ClientError> {
        self.administer(Call::ChangeMembers(changes)).await.map(|_| ())
    }

    /// Transfers leadership to a node, or to the most up-to-date voter if `None`; returns the new leader.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn transfer_leader(&self, to: Option<i64>) -> Result<i64, ClientError> {
        let reply = self.administer(Call::TransferLeader(to.unwrap_or(-1))).await?;
        expect(reply, |reply| if let Reply::TransferLeader(leader) = reply { Some(leader) } else { None })
    }

    /// The alarms that are raised.
    ///
    /// # Errors
    /// As for [`change_members`](Self::change_members).
    pub async fn alarms(&self) -> Result<Vec<Alarm>, ClientError> {
        let reply = self.administer(Call::Alarms).await?;
        expect(reply, |reply| if let Reply::Alarms(alarms) = reply { Some(alarms) } else { None })
    }

    /// Disarms an alarm; returns whether it was raised. An alarm whose cause lasts is raised again.
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
