//! Attempts to make a call at one server after the other, until a server responds. If no server does, the
//! caller gets an error that names the failures.

use std::{
    io,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::Endpoint;
use rand::Rng;
use tokio::time::{Instant, timeout_at};

use super::{
    ClientError, Credentials, KvClient, Shared,
    failures::{Failure, Failures, Told},
};
use crate::{
    CallError, Connection,
    admin::{Refused, RefusedReason},
    idl::{DeniedReason, LoginRequest, Session},
    protocol::{Call, Fault, Reply},
};

/// Reason that an attempt has no reply.
enum Ending {
    /// The server responded with a fault.
    Fault(Endpoint, Fault),
    /// The server did not receive the call.
    NotSent(Failure),
    /// The server may have executed the call.
    NoAnswer(Failure),
}

/// Reason that a single attempt at a call has no reply.
#[derive(Debug)]
pub(super) enum Attempted {
    /// The store refused the call.
    Refused(Fault),
    /// No server executed the call.
    Failed(Failure),
}

/// Condition under which a call is sent to a server that was just connected to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// The server has responded to a status call, unless the client knows no other server.
    IfOthers,
    /// The server has responded to a status call, because the call cannot be repeated once it was sent.
    Always,
}

impl KvClient {
    /// Makes a call that may be repeated unchanged.
    pub(super) async fn read(&self, call: Call) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.config.timeout;
        let read = self.repeat(&call, deadline, &mut false).await;
        // For such a call it does not matter whether a server executed it.
        read.map_err(|error| match error {
            ClientError::Unknown(why) => ClientError::Unavailable(why),
            error => error,
        })
    }

    /// Makes a write in a session. A session has one write in flight at a time. The write has the next number
    /// of the session, which no other write uses.
    pub(super) async fn write(&self, call: impl Fn(Session) -> Call) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.config.timeout;
        loop {
            let mut session = self.take_session(deadline).await?;
            session.sequence += 1;
            let mut maybe_applied = false;
            let result = self.repeat(&call(session.clone()), deadline, &mut maybe_applied).await;
            match &result {
                // The session was idle for too long. No attempt was executed, so a new session can take the
                // write.
                Err(ClientError::Rejected(Fault::NoSession(_))) if !maybe_applied => {}
                Err(ClientError::Rejected(Fault::NoSession(_))) => {
                    return Err(ClientError::Unknown("the session was forgotten meanwhile".to_owned()));
                }
                _ => {
                    self.shared().sessions.push(session);
                    return result;
                }
            }
        }
    }

    async fn take_session(&self, deadline: Instant) -> Result<Session, ClientError> {
        if let Some(session) = self.shared().sessions.pop() {
            return Ok(session);
        }
        match self.repeat(&Call::OpenSession, deadline, &mut false).await {
            Ok(Reply::OpenSession(client_id)) => Ok(Session { client_id, sequence: 0 }),
            // If the store opened a session, it removes it again after some time, because it is never used.
            Err(ClientError::Unknown(why)) => Err(ClientError::Unavailable(why)),
            Err(error) => Err(error),
            Ok(reply) => Err(ClientError::Unavailable(format!("a session was asked for, {reply:?} came"))),
        }
    }

    /// Repeats a call until it has an outcome or the deadline has passed, at another server when one fails.
    /// Sets `maybe_applied` as soon as an attempt may have been executed.
    async fn repeat(
        &self,
        call: &Call,
        deadline: Instant,
        maybe_applied: &mut bool,
    ) -> Result<Reply, ClientError> {
        let mut failures = Failures::default();
        let mut pause = PAUSE_MIN;
        loop {
            match self.attempt(call, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(Ending::Fault(server, Fault::Unavailable(why))) => {
                    *maybe_applied |= why.maybe_applied;
                    failures.note(Failure::said(server, why.message));
                }
                Err(Ending::Fault(server, Fault::NotLeader(why))) => {
                    self.follow(why.leader_endpoint.as_deref(), deadline).await;
                    failures.note(Failure::said(server, Fault::NotLeader(why).to_string()));
                }
                Err(Ending::Fault(_, fault)) => return Err(ClientError::Rejected(fault)),
                Err(Ending::NotSent(failure)) => failures.note(failure),
                Err(Ending::NoAnswer(failure)) => {
                    *maybe_applied = true;
                    match Instant::now() < deadline {
                        true => failures.note(failure),
                        false => failures.note_end_of_time(failure),
                    }
                }
            }
            tracing::debug!(%failures, "trying again");
            if self.is_over(&failures, pause, deadline) {
                let error = if *maybe_applied { ClientError::Unknown } else { ClientError::Unavailable };
                return Err(error(failures.to_string()));
            }
            wait(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Makes one attempt at a call that may be repeated unchanged. Its reply may take longer than that of
    /// other calls by `later`. If there is no reply, the caller may make the call again immediately, which
    /// then uses another server.
    pub(super) async fn try_once(
        &self,
        call: &Call,
        deadline: Instant,
        later: Duration,
    ) -> Result<Reply, Attempted> {
        match self.attempt_with(call, deadline, later).await {
            Ok(reply) => Ok(reply),
            Err(Ending::Fault(server, Fault::NotLeader(why))) => {
                self.follow(why.leader_endpoint.as_deref(), deadline).await;
                Err(Attempted::Failed(Failure::said(server, Fault::NotLeader(why).to_string())))
            }
            Err(Ending::Fault(server, fault @ (Fault::Unavailable(_) | Fault::NoData(_)))) => {
                Err(Attempted::Failed(Failure::said(server, fault.to_string())))
            }
            Err(Ending::Fault(_, fault)) => Err(Attempted::Refused(fault)),
            Err(Ending::NotSent(failure) | Ending::NoAnswer(failure)) => Err(Attempted::Failed(failure)),
        }
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<Reply, Ending> {
        self.attempt_with(call, deadline, Duration::ZERO).await
    }

    async fn attempt_with(&self, call: &Call, deadline: Instant, later: Duration) -> Result<Reply, Ending> {
        let until = deadline.min(Instant::now() + self.server_timeout());
        let connection = self.connection(until, Proof::IfOthers).await.map_err(Ending::NotSent)?;
        let until = deadline.min(until + later);
        let ending = match self.call(&connection, call.clone(), until).await {
            Err(ending) => ending,
            reply => return reply,
        };
        let is_the_stores_word = matches!(
            &ending,
            Ending::Fault(_, fault)
                if !matches!(fault, Fault::Unavailable(_) | Fault::NotLeader(_) | Fault::NoData(_)) && !is_over(fault)
        );
        if let Ending::Fault(server, Fault::Unavailable(_)) = &ending {
            self.shared().unavailable = Some((server.clone(), Instant::now() + UNAVAILABLE_FOR));
        }
        if !is_the_stores_word {
            self.give_up(&connection);
        }
        Err(ending)
    }

    /// Makes a call of an operator. It is repeated only while no server can have accepted it.
    pub(super) async fn administer(&self, call: Call) -> Result<Reply, ClientError> {
        let deadline = Instant::now() + self.config.timeout;
        let mut failures = Failures::default();
        loop {
            match self.administer_once(&call, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(Ending::Fault(server, Fault::Refused(why))) => match refused(server, why) {
                    Ok((failure, leader)) => {
                        self.follow(leader.as_deref(), deadline).await;
                        failures.note(failure);
                    }
                    Err(error) => return Err(error),
                },
                Err(Ending::Fault(_, fault)) => return Err(ClientError::Rejected(fault)),
                Err(Ending::NotSent(failure)) => failures.note(failure),
                Err(Ending::NoAnswer(failure)) => return Err(ClientError::Unknown(failure.to_string())),
            }
            if self.is_over(&failures, ADMIN_PAUSE, deadline) {
                return Err(ClientError::Unavailable(failures.to_string()));
            }
            wait(ADMIN_PAUSE).await;
        }
    }

    async fn administer_once(&self, call: &Call, deadline: Instant) -> Result<Reply, Ending> {
        let until = deadline.min(Instant::now() + self.server_timeout());
        let connection = self.connection(until, Proof::Always).await.map_err(Ending::NotSent)?;
        let outcome = self.call(&connection, call.clone(), deadline).await;
        if outcome.is_err() {
            self.give_up(&connection);
        }
        outcome
    }

    /// Makes a call at one server only, within the time limit for one server.
    pub(super) async fn ask(&self, endpoint: &Endpoint, call: Call) -> Result<Reply, ClientError> {
        let until = Instant::now() + self.server_timeout();
        let connection = self.open(endpoint, until).await.map_err(unavailable)?;
        self.call(&connection, call, until).await.map_err(only_servers_word)
    }

    /// Makes a call at one server only, where the call may take long. The server must respond to a status
    /// call within the time limit for one server; the call itself may take the whole timeout.
    pub(super) async fn ask_patiently(&self, endpoint: &Endpoint, call: Call) -> Result<Reply, ClientError> {
        let start = Instant::now();
        let connection = self.open(endpoint, start + self.server_timeout()).await.map_err(unavailable)?;
        let alive = self.call(&connection, Call::Status, start + self.server_timeout()).await;
        alive.map_err(only_servers_word)?;
        self.call(&connection, call, start + self.config.timeout).await.map_err(only_servers_word)
    }

    async fn call(&self, connection: &Connection, call: Call, until: Instant) -> Result<Reply, Ending> {
        let server = connection.endpoint().clone();
        let start = Instant::now();
        match timeout_at(until, connection.call(call)).await {
            Ok(Ok(Ok(reply))) => Ok(reply),
            Ok(Ok(Err(fault))) => {
                // Without a user because the login failed: that is the reason to tell.
                let has_no_user =
                    matches!(&fault, Fault::Denied(denied) if denied.reason == DeniedReason::NO_USER);
                let of_login = connection.login_fault().filter(|_| has_no_user);
                Err(Ending::Fault(server, of_login.cloned().unwrap_or(fault)))
            }
            Ok(Err(CallError::NotSent { why, .. })) => {
                Err(Ending::NotSent(Failure { server, told: Told::Nothing, why }))
            }
            Ok(Err(CallError::NoAnswer { why, .. })) => Err(Ending::NoAnswer(Failure {
                server,
                told: Told::Nothing,
                why: format!("no answer: {why}"),
            })),
            Err(_) => Err(Ending::NoAnswer(Failure::late(server, start.elapsed()))),
        }
    }

    /// Returns whether no further attempt is made.
    fn is_over(&self, failures: &Failures, pause: Duration, deadline: Instant) -> bool {
        let nobody_listens = !self.config.wait_for_servers && failures.all_refuse(&self.config.endpoints);
        nobody_listens || Instant::now() + pause >= deadline
    }

    /// Time limit for one server. Each server gets an equal share of the timeout, so that all can be tried.
    fn server_timeout(&self) -> Duration {
        let share = self.config.timeout / u32::try_from(self.config.endpoints.len()).unwrap_or(u32::MAX);
        self.config.attempt_timeout.min(share)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops using a connection, so that the next attempt goes to another server.
    fn give_up(&self, connection: &Arc<Connection>) {
        let mut shared = self.shared();
        if shared.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            shared.connection = None;
        }
    }

    /// Returns the current connection, or opens one to the next server, or to the leader that this server
    /// names.
    async fn connection(&self, until: Instant, proof: Proof) -> Result<Arc<Connection>, Failure> {
        if let Some(connection) = self.shared().connection.clone().filter(|connection| connection.is_open()) {
            return Ok(connection);
        }
        let endpoint = {
            let mut shared = self.shared();
            let endpoint = self.config.endpoints[shared.next % self.config.endpoints.len()].clone();
            shared.next += 1;
            endpoint
        };
        let connection = self.open(&endpoint, until).await?;
        let connection = Arc::new(self.to_leader(connection, until, proof).await?);
        self.shared().connection = Some(connection.clone());
        Ok(connection)
    }

    async fn open(&self, endpoint: &Endpoint, until: Instant) -> Result<Connection, Failure> {
        let left = until.saturating_duration_since(Instant::now());
        let tls = self.config.tls.as_ref();
        let opened = Connection::open_with(endpoint, self.config.connect_timeout.min(left), tls).await;
        let connection = opened.map_err(|error| Failure {
            server: endpoint.clone(),
            told: if error.kind() == io::ErrorKind::TimedOut { Told::Nothing } else { Told::Refused },
            why: without_prefix(&error.to_string(), endpoint),
        })?;
        match &self.config.credentials {
            Some(credentials) => self.log_in(connection, credentials, until).await,
            None => Ok(connection),
        }
    }

    /// Gives a connection its user: by the token of the last login, else by password. A login that the server refuses leaves
    /// the connection without a user.
    async fn log_in(
        &self,
        connection: Connection,
        credentials: &Credentials,
        until: Instant,
    ) -> Result<Connection, Failure> {
        let token = self.shared().token.clone();
        let by_token = token.map(|token| LoginRequest { user: None, password: None, token: Some(token) });
        let Credentials { user, password } = credentials.clone();
        let by_password = LoginRequest { user: Some(user), password: Some(password), token: None };
        let mut refused = None;
        for request in by_token.into_iter().chain([by_password]) {
            let (server, start) = (connection.endpoint().clone(), Instant::now());
            match timeout_at(until, connection.call(Call::Login(request))).await {
                Ok(Ok(Ok(Reply::Login(response)))) => {
                    self.shared().token = Some(response.token);
                    return Ok(connection);
                }
                Ok(Ok(Err(Fault::Denied(denied)))) if denied.reason == DeniedReason::NOT_ENABLED => {
                    return Ok(connection);
                }
                Ok(Ok(Err(fault @ Fault::Unavailable(_)))) => {
                    return Err(Failure::said(server, fault.to_string()));
                }
                Ok(Ok(Err(fault))) => refused = Some(fault),
                Ok(Ok(Ok(_))) => return Err(Failure::said(server, "it answered another call".to_owned())),
                Ok(Err(error)) => {
                    return Err(Failure { server, told: Told::Nothing, why: error.to_string() });
                }
                Err(_) => return Err(Failure::late(server, start.elapsed())),
            }
        }
        self.shared().token = None;
        Ok(connection.with_login_fault(refused))
    }

    /// Connects to the leader, if the server at `connection` knows a leader that can be reached; otherwise
    /// returns `connection`. Servers forward calls to the leader, but the direct way is shorter.
    async fn to_leader(
        &self,
        connection: Connection,
        until: Instant,
        proof: Proof,
    ) -> Result<Connection, Failure> {
        let start = Instant::now();
        // The status may take half of the remaining time, so that a server that does not return its status
        // has time to respond to the call.
        let half = start + until.saturating_duration_since(start) / 2;
        let patience = half.min(start + self.config.connect_timeout);
        let Ok(status) = timeout_at(patience, connection.call(Call::Status)).await else {
            let is_needed = proof == Proof::Always || self.config.endpoints.len() > 1;
            let late = Failure::late(connection.endpoint().clone(), start.elapsed());
            return if is_needed { Err(late) } else { Ok(connection) };
        };
        let Ok(Ok(Reply::Status(status))) = status else { return Ok(connection) };
        let leader = status.members.iter().find(|member| Some(member.node_id) == status.leader_id);
        let elsewhere = leader.filter(|leader| leader.node_id != status.header.node_id);
        let Some(Ok(endpoint)) = elsewhere.map(|leader| leader.client_endpoint.parse()) else {
            return Ok(connection);
        };
        // A leader that has reached its limit of clients still serves calls that another server forwards.
        if self.is_unavailable(&endpoint) {
            return Ok(connection);
        }
        Ok(self.open(&endpoint, until).await.unwrap_or(connection))
    }

    /// Returns whether the server at `endpoint` responded within [`UNAVAILABLE_FOR`] that it cannot serve.
    fn is_unavailable(&self, endpoint: &Endpoint) -> bool {
        let shared = self.shared();
        shared
            .unavailable
            .as_ref()
            .is_some_and(|(server, until)| server == endpoint && Instant::now() < *until)
    }

    /// Connects to the leader at the endpoint that a server returned instead of forwarding a call.
    async fn follow(&self, leader: Option<&str>, deadline: Instant) {
        let Some(Ok(endpoint)) = leader.map(str::parse::<Endpoint>) else { return };
        if let Ok(connection) = self.open(&endpoint, deadline).await {
            self.shared().connection = Some(Arc::new(connection));
        }
    }
}

/// Whether the login of a connection has become void, so that a new connection is needed.
fn is_over(fault: &Fault) -> bool {
    matches!(fault, Fault::Denied(denied) if denied.reason == DeniedReason::LOGIN_AGAIN)
}

/// Decides how a call continues after a refusal. `Ok`: another server is tried, with the leader's endpoint if
/// it is known. `Err`: the call ends.
fn refused(server: Endpoint, why: Refused) -> Result<(Failure, Option<String>), ClientError> {
    if why.maybe_done {
        return Err(ClientError::Unknown(why.message));
    }
    match why.reason {
        Some(RefusedReason::NOT_LEADER) => Ok((Failure::said(server, why.message), why.leader_endpoint)),
        Some(RefusedReason::UNAVAILABLE) => Ok((Failure::said(server, why.message), None)),
        Some(RefusedReason::BUSY) => Err(ClientError::Unavailable(why.message)),
        _ => Err(ClientError::Rejected(Fault::Refused(why))),
    }
}

/// Returns the error of a call at a single server. The call changes nothing, so it cannot have an unknown
/// outcome.
fn only_servers_word(ending: Ending) -> ClientError {
    match ending {
        // Another server may be able to.
        Ending::Fault(server, Fault::Unavailable(why)) => unavailable(Failure::said(server, why.message)),
        Ending::Fault(_, fault) => ClientError::Rejected(fault),
        Ending::NotSent(failure) | Ending::NoAnswer(failure) => unavailable(failure),
    }
}

fn unavailable(failure: Failure) -> ClientError {
    ClientError::Unavailable(failure.to_string())
}

/// Removes the endpoint from the error of a connection, because a [`Failure`] names it, too.
fn without_prefix(error: &str, endpoint: &Endpoint) -> String {
    error.strip_prefix(&format!("{endpoint}: ")).unwrap_or(error).to_owned()
}

/// Waits with jitter, so that the clients of a failed server do not all return at the same time.
pub(super) async fn wait(pause: Duration) {
    let jitter = rand::rng().random_range(0.5..1.0);
    tokio::time::sleep(pause.mul_f64(jitter)).await;
}

pub(super) const PAUSE_MIN: Duration = Duration::from_millis(20);
pub(super) const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Time for which the client does not prefer a server that cannot serve over one that forwards.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(2);
/// Time between the attempts at an operator's call.
const ADMIN_PAUSE: Duration = Duration::from_millis(200);
