//! Where each operation is executed: here, or at the leader.

mod leader;
mod request;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use consensus_core::{ChangeError, Endpoint, EngineStatus, NodeId, TransferError};
use consensus_transport_thrift::framing;
use kv_state_machine::{
    Alarm, AlarmKind, Caller, ConsensusKvDatabase, Consistency, KvAnswer, KvError, KvOperation,
};
use kv_store_client::{
    admin::{AuthChange, MemberChange, NodeIdentity, RefusedReason},
    idl,
    protocol::{self, Call, Fault, Incoming, Reply},
};
use tokio::time::Instant;

use crate::{
    answers::Room,
    auth::{self, LoginError, Origin, Passwords},
    between::{self, Channel, FromNode, NodeAnswer, NodeFault, NodeRequest, Sealer},
    call_log::{self, CallLog, Stage, timed},
    cluster::{ClusterManager, number, standalone_stall},
    config::Routing,
    convert,
    etcd::KeptCopy,
    identity, logging, members,
    state_check::{StateReport, StateReports},
    tls::Security,
};

use self::leader::LeaderConnection;
pub(crate) use self::request::{Request, request};

/// Executes calls on the database; what only the leader can do goes there, or the caller is told where.
pub(crate) struct RoutingManager {
    node: NodeId,
    database: ConsensusKvDatabase,
    /// `None` standing alone.
    cluster: Option<Arc<ClusterManager>>,
    routing: Routing,
    sessions_max: u64,
    listen: Option<Endpoint>,
    security: Security,
    /// Settings of the node, for operators.
    settings: String,
    to_leader: LeaderConnection,
    kept_copy: KeptCopy,
    passwords: Passwords,
    state_reports: StateReports,
    call_log: CallLog,
}

/// Why it was not done here.
enum Refusal {
    NotLeader(Option<NodeId>),
    Fault(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl RoutingManager {
    pub(crate) fn new(
        node: NodeId,
        database: ConsensusKvDatabase,
        cluster: Option<Arc<ClusterManager>>,
        routing: Routing,
        sessions_max: u64,
    ) -> Self {
        Self {
            node,
            database,
            cluster,
            routing,
            sessions_max,
            listen: None,
            security: Security::default(),
            settings: String::new(),
            to_leader: LeaderConnection::default(),
            kept_copy: KeptCopy::default(),
            passwords: Passwords::default(),
            state_reports: StateReports::default(),
            call_log: CallLog::default(),
        }
    }

    /// Copy of the store that was downloaded last.
    pub(crate) fn kept_copy(&self) -> &KeptCopy {
        &self.kept_copy
    }

    /// Says where clients come to.
    #[must_use]
    pub(crate) fn listening_at(mut self, listen: Endpoint) -> Self {
        self.listen = Some(listen);
        self
    }

    /// Sets TLS of the node's ports, with which it also connects to the leader.
    #[must_use]
    pub(crate) fn secured_by(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// Sets the text about the settings of the node.
    #[must_use]
    pub(crate) fn configured_as(mut self, settings: String) -> Self {
        self.settings = settings;
        self
    }

    /// Settings of the node, for operators.
    pub(crate) fn settings(&self) -> &str {
        &self.settings
    }

    /// Sets where calls are recorded.
    #[must_use]
    pub(crate) fn recording_to(mut self, call_log: CallLog) -> Self {
        self.call_log = call_log;
        self
    }

    /// Records of calls.
    pub(crate) fn call_log(&self) -> &CallLog {
        &self.call_log
    }

    /// TLS of the node's ports.
    pub(crate) fn security(&self) -> &Security {
        &self.security
    }

    /// Executes one call of a client. `may_forward`: the caller did not ask to be told who leads instead. The answer is made
    /// when `room` has as much as it may take.
    pub(crate) async fn execute(
        &self,
        caller: &Caller,
        call: Call,
        may_forward: bool,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        let is_admins = is_admins_call(&call);
        let outcome = self.execute_anywhere(caller, call, may_forward, room).await;
        if is_admins { outcome.map_err(convert::admins_fault) } else { outcome }
    }

    /// Executes a request of another node, which was received on a connection.
    pub(crate) async fn execute_for_node(
        &self,
        channel: &Channel,
        bytes: &[u8],
        may_forward: bool,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        let executed = async {
            let unavailable = |why: String| convert::unavailable(why, false);
            if bytes == between::CHALLENGE_REQUEST {
                let challenge = channel.challenge().map_err(|error| unavailable(error.to_string()))?;
                return Ok(Reply::BetweenNodes(between::encode(&challenge)));
            }
            let mut auth = self.database.auth();
            if FromNode::claims_seal(bytes) && !auth.is_enabled() {
                // The node that sealed it has applied more than this one.
                auth = self.database.current_auth().await.map_err(convert::fault)?;
            }
            let request = FromNode::decode(bytes, &auth, self.node, channel).map_err(unavailable)?;
            let (caller, request) = (Caller::Anonymous, Request::OfNode(request)); // The request names its caller.
            call_log::note_request(&request);
            self.route(&caller, &request, None, may_forward, room).await
        };
        executed.await.map_err(convert::admins_fault)
    }

    async fn execute_anywhere(
        &self,
        caller: &Caller,
        call: Call,
        may_forward: bool,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        let request = match &call {
            Call::Status => return self.status(),
            Call::Hash => return self.hash(caller).await,
            Call::Auth => return self.auth(caller).await,
            Call::SetLogLevel(directives) => return self.set_log_level(caller, directives),
            call => request(call.clone(), self.sessions_max)?,
        };
        call_log::note_request(&request);
        let reply = self.route(caller, &request, Some(call), may_forward, room).await?;
        match (&request, reply) {
            // The leader has executed the call for a caller of this node.
            (request, Reply::BetweenNodes(bytes)) if !matches!(request, Request::OfNode(_)) => {
                reply_of(&bytes)
            }
            (_, reply) => Ok(reply),
        }
    }

    /// Executes a request here or on the leader. `call` is the request as it was received; `None` if this node made it.
    async fn route(
        &self,
        caller: &Caller,
        request: &Request,
        call: Option<Call>,
        may_forward: bool,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        let deadline = Instant::now() + LEADER_WAIT;
        // A request of this server itself has no client that could be redirected.
        let may_forward =
            may_forward && (self.routing == Routing::Forward || matches!(request, Request::OfNode(_)));
        loop {
            let leader = match self.execute_here(caller, request, may_forward, room).await {
                Ok(reply) => return Ok(reply),
                Err(Refusal::NotLeader(leader)) => leader,
                Err(Refusal::Fault(fault)) => return Err(fault),
            };
            let Some(cluster) = &self.cluster else { return Err(self.not_leader(None)) };
            // During an election it is kinder to wait a moment than to have every client ask again.
            let leader = match leader {
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    timed(Stage::Election, cluster.leader_within(left)).await
                }
                known => known,
            };
            match leader {
                Some(leader) if leader == self.node && Instant::now() < deadline => {
                    // It is this node now; or it is this node still, and it cannot serve at the moment.
                    timed(Stage::Election, tokio::time::sleep(AGAIN_PAUSE)).await;
                }
                Some(leader) if may_forward && leader != self.node => {
                    room.reserve(request.answer_bytes_max()).await;
                    let transfer_to =
                        if let Some(Call::TransferLeader(to)) = &call { Some(*to) } else { None };
                    let call = |sealer: &Sealer| self.forwarded(caller, request, call.clone(), sealer);
                    let tls = self.security.forwarding();
                    let forwarded = self.to_leader.forward(cluster, tls, leader, call, transfer_to);
                    let outcome = timed(Stage::Forward, forwarded).await;
                    if !outcome.as_ref().is_err_and(was_not_leader) || Instant::now() >= deadline {
                        return outcome;
                    }
                    // It was not executed, and this node is about to hear who leads.
                    timed(Stage::Election, tokio::time::sleep(AGAIN_PAUSE)).await;
                }
                Some(leader) if leader != self.node => return Err(self.not_leader(Some(leader))),
                _ => return Err(convert::unavailable(cluster.why_no_leader(), false)),
            }
        }
    }

    /// The call by which the leader executes a request. While authentication is enabled, it names the caller.
    fn forwarded(
        &self,
        caller: &Caller,
        request: &Request,
        call: Option<Call>,
        sealer: &Sealer,
    ) -> Result<Call, Fault> {
        let auth = self.database.auth();
        match (request, call) {
            (Request::OfNode(request), _) => Ok(Call::BetweenNodes(request.encode(&auth, sealer))),
            (_, Some(call)) if auth.is_enabled() => {
                let frame = call.encode(0).map_err(|error| convert::invalid(framing::error_text(&error)))?;
                let request = FromNode { caller: caller.clone(), request: NodeRequest::Call(frame) };
                Ok(Call::BetweenNodes(request.encode(&auth, sealer)))
            }
            (_, Some(call)) => Ok(call),
            (_, None) => {
                Err(convert::unavailable("this node made a request that cannot be forwarded", false))
            }
        }
    }

    /// Executes a call that another node received.
    async fn execute_frame(
        &self,
        caller: &Caller,
        frame: &[u8],
        room: &mut Room,
    ) -> Result<NodeAnswer, NodeFault> {
        let unreadable = |why: String| NodeFault::Unavailable { why, maybe_applied: false };
        let text = |error| unreadable(framing::error_text(&error));
        let frame = frame.get(framing::LENGTH_BYTES..).unwrap_or_default();
        let Incoming { name, call, .. } = protocol::read_call(frame).map_err(text)?;
        call_log::note_forwarded_method(&name);
        let is_admins = call.as_ref().is_ok_and(is_admins_call);
        let request = match call {
            Ok(call) => request(call, self.sessions_max).inspect(call_log::note_request),
            Err(fault) => Err(fault),
        };
        let outcome = match request {
            Ok(Request::OfNode(_)) => return Err(unreadable("the call is not that of a client".to_owned())),
            Ok(request) => match Box::pin(self.execute_here(caller, &request, true, room)).await {
                Err(Refusal::NotLeader(leader)) => {
                    return Err(NodeFault::NotLeader(leader.map(|node| node.0)));
                }
                Err(Refusal::Fault(fault)) => Err(fault),
                Ok(reply) => Ok(reply),
            },
            Err(fault) => Err(fault),
        };
        let outcome = if is_admins { outcome.map_err(convert::admins_fault) } else { outcome };
        Ok(NodeAnswer::Reply(protocol::encode_reply(&name, 0, outcome).map_err(text)?))
    }

    /// Verifies a login. Returns the caller that the connection has from then on, and the reply.
    pub(crate) async fn log_in(
        &self,
        request: idl::LoginRequest,
        origin: Origin,
    ) -> Result<(Caller, Reply), Fault> {
        let auth = self.database.current_auth().await.map_err(convert::fault)?;
        let caller = match &request.token {
            Some(_) if !auth.is_enabled() => Err(LoginError::NotEnabled),
            Some(token) => auth::caller_of(&auth, token.as_bytes()).ok_or(LoginError::Failed),
            None => {
                let (user, password) =
                    (request.user.unwrap_or_default(), request.password.unwrap_or_default());
                call_log::note_login(&user);
                auth::login(&self.passwords, &auth, origin, &user, password).await
            }
        };
        let caller = caller.map_err(convert::login_fault)?;
        call_log::note_caller(&caller);
        let token = request.token.or_else(|| auth::token_for(&auth, &caller)).unwrap_or_default();
        Ok((caller, Reply::Login(idl::LoginResponse { header: self.header()?, token })))
    }

    async fn auth(&self, caller: &Caller) -> Result<Reply, Fault> {
        let auth = self.database.current_auth().await.map_err(convert::fault)?;
        self.check_root(caller)?;
        Ok(Reply::Auth(convert::auth_status(&auth)))
    }

    /// Changes what this node logs. The users that it knows decide, so that this works without a leader.
    fn set_log_level(&self, caller: &Caller, directives: &str) -> Result<Reply, Fault> {
        self.check_root(caller)?;
        let level = logging::set_level(directives);
        level.map(Reply::SetLogLevel).map_err(|why| convert::refused(why, RefusedReason::REJECTED))
    }

    /// Changes users and roles. A password is hashed here: the leader gets the hash.
    pub(crate) async fn change_auth(
        &self,
        caller: &Caller,
        origin: Origin,
        change: AuthChange,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        let changed = self.change_users(caller, origin, change, room).await;
        changed.map_err(convert::admins_fault)
    }

    async fn change_users(
        &self,
        caller: &Caller,
        origin: Origin,
        change: AuthChange,
        room: &mut Room,
    ) -> Result<Reply, Fault> {
        self.check_root(caller)?;
        let unavailable = |why: String| convert::refused(why, RefusedReason::UNAVAILABLE);
        let secret = auth::new_secret().map_err(|error| unavailable(error.to_string()))?;
        let hash = match change.password.clone() {
            Some(password) => {
                let hashed = self.passwords.hash(origin, password).await;
                let hashed = hashed.ok_or_else(|| unavailable(LoginError::TooMany.to_string()))?;
                Some(hashed.map_err(unavailable)?)
            }
            None => None,
        };
        let request = NodeRequest::Execute(KvOperation::Auth(convert::auth_change(change, secret, hash)?));
        match self.lead(caller, &request, room).await {
            Ok(_) => Ok(Reply::ChangeAuth),
            Err(NodeFault::Rejected(rejection)) => {
                Err(convert::refused(rejection.to_string(), RefusedReason::REJECTED))
            }
            Err(NodeFault::Unavailable { why, maybe_applied: true }) => {
                Err(convert::refused(why, RefusedReason::UNKNOWN))
            }
            Err(fault) => Err(unavailable(fault.reason())),
        }
    }

    fn check_root(&self, caller: &Caller) -> Result<(), Fault> {
        self.database.check_root(caller).map_err(convert::denied)
    }

    /// Checks, before a change that is no command, that a caller has the role `root` in the current state.
    async fn check_root_on_leader(&self, caller: &Caller) -> Result<(), Refusal> {
        let leader = self.database.status().borrow().leader;
        if self.cluster.is_some() && leader != Some(self.node) {
            return Err(Refusal::NotLeader(leader));
        }
        if *caller != Caller::Server {
            self.database.read_barrier().await.map_err(refusal)?;
        }
        Ok(self.check_root(caller)?)
    }

    fn check_user(&self, caller: &Caller) -> Result<(), Fault> {
        self.database.check_user(caller).map_err(convert::denied)
    }

    async fn hash(&self, caller: &Caller) -> Result<Reply, Fault> {
        self.check_root(caller)?;
        if self.database.is_witness() {
            let message = format!("node {} is a witness: it votes, and has no data", self.node);
            return Err(Fault::NoData(idl::NoData { message }));
        }
        let hash = self.database.hash().await.map_err(convert::fault)?;
        // Authentication may have been enabled while this call waited for its turn.
        self.check_root(caller)?;
        Ok(convert::hash(&self.identity(), &hash))
    }

    async fn execute_here(
        &self,
        caller: &Caller,
        request: &Request,
        may_forward: bool,
        room: &mut Room,
    ) -> Result<Reply, Refusal> {
        match request {
            Request::Operation { operation, session, consistency } => {
                let leader = self.database.status().borrow().leader;
                // A client that wants to know the leader is told so for reads too, although a follower could serve them.
                if !may_forward && *consistency != Consistency::Stale && leader != Some(self.node) {
                    return Err(Refusal::NotLeader(leader));
                }
                let outcome = if operation.is_read_only() && session.is_none() {
                    self.read(caller, operation.clone(), *consistency, room).await
                } else {
                    room.reserve(request.answer_bytes_max()).await;
                    let executed =
                        self.database.execute_as(caller, operation.clone(), *session, *consistency);
                    timed(Stage::Commit, executed).await
                };
                let answer = outcome.map_err(refusal)?;
                Ok(match operation {
                    KvOperation::GrantLease { id, ttl } => convert::granted(self.node, &answer, *id, *ttl),
                    _ => convert::reply(self.node, answer),
                })
            }
            Request::KeepAlive { id } => {
                let ttl = self.database.keep_alive_as(caller, *id).await.map_err(refusal)?;
                let ttl = ttl.ok_or_else(|| convert::no_lease(*id))?;
                Ok(convert::kept_alive(self.header()?, ttl))
            }
            Request::TimeToLive { id, with_keys } => {
                room.reserve(request.answer_bytes_max()).await;
                let state = self.database.time_to_live_as(caller, *id, *with_keys).await.map_err(refusal)?;
                let state = state.ok_or_else(|| convert::no_lease(*id))?;
                Ok(convert::time_to_live(self.header()?, state, *with_keys))
            }
            Request::ListLeases { after, limit } => {
                let leader = self.database.status().borrow().leader;
                if !may_forward && leader != Some(self.node) {
                    return Err(Refusal::NotLeader(leader));
                }
                room.reserve(request.answer_bytes_max()).await;
                let leases = self.database.leases_as(caller).await.map_err(refusal)?;
                Ok(convert::leases(self.header()?, leases, *after, *limit))
            }
            Request::ChangeMembers(changes) => {
                self.check_root_on_leader(caller).await?;
                self.change_members(changes).await
            }
            Request::TransferLeader(to) => {
                self.check_root_on_leader(caller).await?;
                self.transfer_leader(*to).await
            }
            Request::Alarms => {
                let leader = self.database.status().borrow().leader;
                if !may_forward && leader != Some(self.node) {
                    return Err(Refusal::NotLeader(leader));
                }
                self.check_user(caller)?;
                room.reserve(request.answer_bytes_max()).await;
                Ok(convert::alarms(self.database.current_alarms().await.map_err(refusal)?))
            }
            Request::DisarmAlarm(alarm) => {
                let disarm = KvOperation::DisarmAlarm(*alarm);
                let executed = self.database.execute_as(caller, disarm, None, Consistency::Linearizable);
                let answer = timed(Stage::Commit, executed).await;
                convert::disarmed(&answer.map_err(refusal)?).map_err(Refusal::Fault)
            }
            Request::OfNode(of_node) => {
                room.reserve(request.answer_bytes_max()).await;
                let outcome = match &of_node.request {
                    NodeRequest::Call(frame) => self.execute_frame(&of_node.caller, frame, room).await,
                    NodeRequest::ReportState(report) => self.take_report(&of_node.caller, *report).await,
                    _ => between::execute(&self.database, self.cluster.as_deref(), of_node).await,
                };
                match outcome {
                    Err(NodeFault::NotLeader(leader)) => Err(Refusal::NotLeader(leader.map(NodeId))),
                    outcome => Ok(Reply::BetweenNodes(between::encode(&outcome))),
                }
            }
        }
    }

    /// Has a request executed by the leader, which may be this node.
    ///
    /// # Errors
    /// It was not done, or it is not known whether.
    pub(crate) async fn lead(
        &self,
        caller: &Caller,
        request: &NodeRequest,
        room: &mut Room,
    ) -> Result<NodeAnswer, NodeFault> {
        call_log::note_node_request(request);
        let request = FromNode { caller: caller.clone(), request: request.clone() };
        let routed = self.route(caller, &Request::OfNode(request), None, true, room).await;
        match routed.map_err(convert::admins_fault) {
            Ok(Reply::BetweenNodes(bytes)) => between::decode::<Result<NodeAnswer, NodeFault>>(&bytes)
                .unwrap_or_else(|why| Err(NodeFault::Unavailable { why, maybe_applied: true })),
            Err(Fault::Refused(refused)) => {
                Err(NodeFault::Unavailable { why: refused.message, maybe_applied: refused.maybe_done })
            }
            other => Err(NodeFault::Unavailable { why: format!("{other:?}"), maybe_applied: true }),
        }
    }

    /// Where this node serves clients, if that is known.
    pub(crate) fn client_endpoint(&self) -> Option<&Endpoint> {
        self.listen.as_ref()
    }

    pub(crate) fn node(&self) -> NodeId {
        self.node
    }

    /// Identity of this server.
    fn identity(&self) -> NodeIdentity {
        let cluster = self.cluster.as_ref().map(|cluster| cluster.membership().cluster());
        identity::of(self.node, cluster)
    }

    /// Checks that this server is the node `expected` by a caller. Returns its identity.
    ///
    /// # Errors
    /// It is another one.
    pub(crate) fn identify(&self, expected: &NodeIdentity) -> Result<NodeIdentity, Fault> {
        leader::identify(self.identity(), expected)
    }

    /// Where passwords are hashed and verified.
    pub(crate) fn passwords(&self) -> &Passwords {
        &self.passwords
    }

    pub(crate) fn database(&self) -> &ConsensusKvDatabase {
        &self.database
    }

    /// `None` standing alone.
    pub(crate) fn cluster(&self) -> Option<&Arc<ClusterManager>> {
        self.cluster.as_ref()
    }

    /// Waits for room when the read is about to be done, not while it waits for a quorum.
    async fn read(
        &self,
        caller: &Caller,
        operation: KvOperation,
        consistency: Consistency,
        room: &mut Room,
    ) -> Result<KvAnswer, KvError> {
        let bytes_max = operation.answer_bytes_max(false);
        let started = self.database.begin_read_as(caller, operation, consistency);
        let read = timed(Stage::ReadBarrier, started).await?;
        room.reserve(bytes_max).await;
        timed(Stage::Read, read.finish()).await
    }

    async fn change_members(&self, changes: &[MemberChange]) -> Result<Reply, Refusal> {
        let Some(cluster) = &self.cluster else {
            return Err(convert::refused(STANDALONE, RefusedReason::REJECTED).into());
        };
        // Only the leader's configuration is sure to be the newest.
        let status = self.database.status().borrow().clone();
        if status.leader != Some(self.node) {
            return Err(Refusal::NotLeader(status.leader));
        }
        let changes =
            convert::member_changes(changes, &status.membership, |id| cluster.problem_of(id, &status))?;
        members::note_ids(&self.database, &status.membership, &changes).await.map_err(convert::fault)?;
        let change = self.database.engine().change_membership(changes);
        let late = || convert::refused("no quorum has confirmed it in time", RefusedReason::UNKNOWN);
        match tokio::time::timeout(ADMIN_TIMEOUT, change).await.map_err(|_| late())? {
            Ok(_) => Ok(Reply::ChangeMembers),
            Err(ChangeError::NotLeader { leader }) => Err(Refusal::NotLeader(leader)),
            Err(error) => {
                let reason = match error {
                    ChangeError::Unknown { .. } => RefusedReason::UNKNOWN,
                    ChangeError::Busy => RefusedReason::BUSY,
                    ChangeError::NotRunning { .. } => RefusedReason::UNAVAILABLE,
                    _ => RefusedReason::REJECTED,
                };
                Err(convert::refused(error.to_string(), reason).into())
            }
        }
    }

    async fn transfer_leader(&self, to: Option<NodeId>) -> Result<Reply, Refusal> {
        if self.cluster.is_none() {
            return Err(convert::refused(STANDALONE, RefusedReason::REJECTED).into());
        }
        match self.database.engine().transfer_leadership(to).await {
            Ok(leader) => Ok(convert::transferred(leader)),
            Err(TransferError::NotLeader { leader }) => Err(Refusal::NotLeader(leader)),
            Err(error) => {
                let reason = match error {
                    TransferError::Unknown => RefusedReason::UNKNOWN,
                    TransferError::Busy => RefusedReason::BUSY,
                    TransferError::NotRunning { .. } => RefusedReason::UNAVAILABLE,
                    _ => RefusedReason::REJECTED,
                };
                Err(convert::refused(error.to_string(), reason).into())
            }
        }
    }

    /// Compares the checksum of a node's state with those of the others.
    async fn take_report(&self, caller: &Caller, report: StateReport) -> Result<NodeAnswer, NodeFault> {
        let leader = self.database.status().borrow().leader;
        if leader != Some(self.node) {
            return Err(NodeFault::NotLeader(leader.map(|node| node.0)));
        }
        self.database.check_root(caller).map_err(|error| NodeFault::Rejected(error.into()))?;
        self.state_reports.take(&self.database, report).await?;
        Ok(NodeAnswer::Reported)
    }

    fn endpoint_of(&self, leader: NodeId) -> Option<Endpoint> {
        self.cluster.as_ref()?.client_endpoint(leader)
    }

    fn not_leader(&self, leader: Option<NodeId>) -> Fault {
        Fault::NotLeader(idl::NotLeader {
            leader_id: leader.and_then(|id| i64::try_from(id.0).ok()),
            leader_endpoint: leader.and_then(|id| self.endpoint_of(id)).map(|endpoint| endpoint.to_string()),
        })
    }

    /// Problems of this node, and what to do about them.
    fn problems(&self, engine: &EngineStatus) -> Vec<String> {
        let of_engine = match &self.cluster {
            Some(cluster) => cluster.problems(engine),
            None => standalone_stall(engine).into_iter().collect(),
        };
        let checked = self.database.checked_states().and_then(|checked| checked.borrow().clone());
        let unreadable = checked.and_then(Result::err).map(|why| {
            format!("its state cannot be read ({why}): remove the node from the cluster, empty its data directory, and add it again")
        });
        let alarms = self.database.alarms().into_iter().map(alarm_problem);
        of_engine.into_iter().chain(unreadable).chain(alarms).collect()
    }

    /// The header of an answer at what this node has applied.
    pub(crate) fn header(&self) -> Result<idl::ResponseHeader, Fault> {
        let engine = self.database.status().borrow().clone();
        Ok(idl::ResponseHeader {
            revision: number(self.database.revision().map_err(convert::fault)?),
            node_id: number(self.node.0),
            term: number(engine.term.0),
            applied_index: number(engine.applied.0),
        })
    }

    fn status(&self) -> Result<Reply, Fault> {
        let engine = self.database.status().borrow().clone();
        let cluster = self.cluster.as_deref();
        Ok(Reply::Status(idl::StatusResponse {
            header: self.header()?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: cluster.map_or_else(|| engine.role.to_string(), |cluster| cluster.role(&engine)),
            leader_id: engine.leader.map(|id| number(id.0)),
            commit_index: number(engine.commit.0),
            last_log_index: number(engine.last_log.index.0),
            first_log_index: number(engine.first_index.0),
            members: cluster.map_or_else(Vec::new, |cluster| cluster.members(&engine)),
            cluster_name: cluster.map(|cluster| cluster.name().to_owned()),
            problems: Some(self.problems(&engine)),
            cluster_id: self.identity().cluster_id,
        }))
    }
}

/// Whether a call is one of operators, whose faults are all of the kind `Refused`.
fn is_admins_call(call: &Call) -> bool {
    matches!(
        call,
        Call::ChangeMembers(_)
            | Call::TransferLeader(_)
            | Call::Alarms
            | Call::DisarmAlarm(_)
            | Call::Auth
            | Call::SetLogLevel(_)
    )
}

/// The reply to a call that the leader has executed for a caller of this node.
fn reply_of(answer: &[u8]) -> Result<Reply, Fault> {
    let strange = |why: String| convert::unavailable(format!("the leader's answer: {why}"), true);
    match between::decode::<Result<NodeAnswer, NodeFault>>(answer).map_err(strange)? {
        Ok(NodeAnswer::Reply(frame)) => {
            let frame = frame.get(framing::LENGTH_BYTES..).unwrap_or_default();
            protocol::read_reply(frame).map_err(|error| strange(framing::error_text(&error)))?.1
        }
        Ok(other) => Err(strange(format!("{other:?}"))),
        Err(fault) => Err(convert::unavailable(
            fault.reason(),
            matches!(fault, NodeFault::Unavailable { maybe_applied: true, .. }),
        )),
    }
}

/// Whether a server has not executed a call because it does not lead.
fn was_not_leader(fault: &Fault) -> bool {
    match fault {
        Fault::NotLeader(_) => true,
        Fault::Refused(refused) => refused.reason == Some(RefusedReason::NOT_LEADER) && !refused.maybe_done,
        _ => false,
    }
}

fn refusal(error: KvError) -> Refusal {
    match error {
        KvError::NotLeader { leader } => Refusal::NotLeader(leader),
        error => convert::fault(error).into(),
    }
}

/// Meaning of a raised alarm, and what to do.
fn alarm_problem(Alarm { kind, node }: Alarm) -> String {
    let of = node.map_or_else(|| "for no node in particular".to_owned(), |node| format!("of node {node}"));
    match kind {
        AlarmKind::NoSpace => format!(
            "alarm {kind} {of}: a store exceeds its quota_size, and puts and grants of leases are refused; delete what is \
             not needed, compact, then disarm the alarm (`kvctl alarm disarm`)"
        ),
        AlarmKind::Corrupt => format!(
            "alarm {kind} {of}: the state of a node is not that of the others, and commands are refused; compare the \
             nodes (`kvctl hash`), replace the one that differs, then disarm the alarm (`kvctl alarm disarm`)"
        ),
    }
}

const STANDALONE: &str = "this server stands alone; it has no members";
/// A change of members that no quorum confirms for so long is answered as unknown.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Pause before a call that the leader could not execute is tried again, here or at its successor.
const AGAIN_PAUSE: Duration = Duration::from_millis(10);
/// How long a call waits for an election to end.
pub(crate) const LEADER_WAIT: Duration = Duration::from_secs(2);
