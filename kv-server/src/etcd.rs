//! etcd's v3 API: gRPC, and its JSON gateway.
//!
//! A thin translation between etcd's messages and the operations of the store. Comments describe etcd's behaviour where
//! ours differs; docs/etcd-compatibility.md lists the differences.

mod auth;
mod calls;
mod checks;
mod cluster;
mod convert;
mod documents;
mod download;
mod election;
mod error;
mod first_bytes;
pub(crate) mod fuzzing;
mod gateway;
mod health;
mod held;
mod http;
mod kv;
mod lease;
mod lock;
mod maintenance;
#[cfg(test)]
mod page;
mod peer_certificate;
mod permissions;
mod queue;
mod range_stream;
mod required_leader;
mod serve;
mod snapshot;
mod txn;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use consensus_core::{EngineStatus, MemberKind, NodeId};
use kv_etcd_api::etcdserverpb::ResponseHeader;
use kv_state_machine::{
    AlarmKind, Caller, ConsensusKvDatabase, Consistency, KeyRange, KvAnswer, KvError, KvOperation, Range,
    RangePages, SHORT_READ_BYTES_MAX,
};
use tokio::{sync::watch as channel, time::Instant};
use tonic::Status;

use self::held::Answered;
pub(crate) use self::{
    download::KeptCopy,
    maintenance::ETCD_VERSION,
    serve::{Scope, descriptors, serve},
};
use crate::{
    answers::{ConnectionBudget, Room},
    auth::Origin,
    between::{NodeAnswer, NodeRequest},
    call_log::{self, CallOrigin, CallRecord, Protocol, Stage, timed},
    cluster::standalone_stall,
    routing::{LEADER_WAIT, RoutingManager},
};

/// Context of the services of one connection, or of one call. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Etcd {
    router: Arc<RoutingManager>,
    budget: ConnectionBudget,
    limits: ApiLimits,
    stop: channel::Receiver<bool>,
    /// Address of the client.
    peer: SocketAddr,
    /// Where the client connects from.
    origin: Origin,
    /// The caller.
    caller: Caller,
    /// Whether the call has a token that is not valid. Only calls of `Watch` get so far.
    has_invalid_token: bool,
}

/// Limits of the API, and the interval of progress notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApiLimits {
    /// Maximum bytes of a request.
    pub(crate) request_bytes: usize,
    /// Maximum number of concurrent calls and streams of a connection.
    pub(crate) streams_max: u32,
    /// Time without events after which a watch with `progress_notify` receives a progress notification.
    pub(crate) watch_progress_interval: Duration,
}

impl ApiLimits {
    /// Maximum bytes of a message: a request, and the overhead that etcd allows.
    fn message_bytes(&self) -> usize {
        self.request_bytes + (512 << 10)
    }
}

impl Etcd {
    pub(crate) fn new(
        router: Arc<RoutingManager>,
        budget: ConnectionBudget,
        limits: ApiLimits,
        stop: channel::Receiver<bool>,
        peer: SocketAddr,
    ) -> Self {
        let origin = peer.ip().into();
        Self {
            router,
            budget,
            limits,
            stop,
            peer,
            origin,
            caller: Caller::Anonymous,
            has_invalid_token: false,
        }
    }

    /// Refuses a request by an alarm that is raised. It is called before a request is refused that is not executed, as etcd looks at
    /// the alarms first. `adds_data`: whether NOSPACE refuses it.
    fn check_alarms(&self, adds_data: bool) -> Result<(), Status> {
        match self.database().alarms().iter().map(|alarm| alarm.kind).max() {
            Some(AlarmKind::Corrupt) => Err(error::corrupt()),
            Some(AlarmKind::NoSpace) if adds_data => Err(error::no_space()),
            _ => Ok(()),
        }
    }

    fn router(&self) -> &RoutingManager {
        &self.router
    }

    fn database(&self) -> &ConsensusKvDatabase {
        self.router.database()
    }

    /// The database of a node that has data.
    ///
    /// # Errors
    /// This node is a witness. The code has clients try another endpoint.
    fn data(&self) -> Result<&ConsensusKvDatabase, Status> {
        let database = self.database();
        if database.is_witness() { Err(error::witness()) } else { Ok(database) }
    }

    /// Whether this node is a member of a cluster and knows no leader.
    fn has_no_leader(&self) -> bool {
        self.status().leader.is_none() && self.router.cluster().is_some()
    }

    /// Whether this node is a learner.
    fn is_learner(&self) -> bool {
        let kind = self.status().membership.get(self.router.node()).map(|member| member.kind);
        kind == Some(MemberKind::Learner)
    }

    /// Why this node does not count in its cluster, or answers late: its disk is not the one of the member, or a write or an apply
    /// does not return.
    fn storage_problem(&self) -> Option<String> {
        let status = self.status();
        match self.router.cluster() {
            Some(cluster) => cluster.storage_problem(&status),
            None => standalone_stall(&status),
        }
    }

    fn status(&self) -> Arc<EngineStatus> {
        self.database().status().borrow().clone()
    }

    /// Starts the record of a call.
    fn record(&self, protocol: Protocol, method: &str) -> Option<Box<CallRecord>> {
        self.router.call_log().start(CallOrigin { peer: self.peer, protocol }, method)
    }

    /// Header of a response at a revision.
    fn header(&self, revision: u64) -> ResponseHeader {
        call_log::note_revision(revision);
        let status = self.status();
        ResponseHeader {
            cluster_id: cluster_id(&status),
            member_id: member_id(self.router.node()),
            revision: signed(revision),
            raft_term: status.term.0,
        }
    }

    /// Header of a response at this node's newest revision.
    fn header_now(&self) -> Result<ResponseHeader, Status> {
        Ok(self.header(self.database().revision().map_err(error::of_read)?))
    }

    /// Header of a response that does not depend on the store.
    fn header_without_revision(&self) -> ResponseHeader {
        self.header(0)
    }

    /// Executes a write on the leader.
    async fn write(&self, operation: KvOperation) -> Result<KvAnswer, Status> {
        Ok(self.write_held(operation).await?.answer)
    }

    /// Same as [`write`](Self::write), with the room for the response.
    async fn write_held(&self, operation: KvOperation) -> Result<Answered, Status> {
        let mut room = self.budget.room();
        let request = NodeRequest::Execute(operation);
        let led = self.router.lead(&self.caller, &request, &mut room).await;
        match led.map_err(error::of_node)? {
            NodeAnswer::Executed(answer) => Ok(Answered { answer, room }),
            other => Err(unexpected(&other)),
        }
    }

    async fn lead(&self, request: &NodeRequest) -> Result<NodeAnswer, Status> {
        let mut room = self.budget.room();
        self.router.lead(&self.caller, request, &mut room).await.map_err(error::of_node)
    }

    /// Reads on this node.
    async fn read(&self, operation: KvOperation, serializable: bool) -> Result<KvAnswer, Status> {
        Ok(self.read_held(operation, serializable).await?.answer)
    }

    /// Same as [`read`](Self::read), with the room for the answer.
    async fn read_held(&self, operation: KvOperation, serializable: bool) -> Result<Answered, Status> {
        call_log::note_operation(&operation);
        let bytes_max = operation.answer_bytes_max(false);
        let consistency = consistency(serializable);
        let database = self.data()?;
        let started = self.when_led(|| database.begin_read_as(&self.caller, operation.clone(), consistency));
        let read = timed(Stage::ReadBarrier, started).await?;
        let mut room = self.budget.room();
        if let Some(answer) = read.in_memory() {
            return Ok(Answered { answer: answer.map_err(error::of_read)?, room });
        }
        // Most responses are small. They do not wait for room for the largest one.
        reserve(&mut room, bytes_max.min(SHORT_READ_BYTES_MAX)).await?;
        if let Some(answer) = timed(Stage::Read, read.finish_if_short()).await {
            return Ok(Answered { answer: answer.map_err(error::of_read)?, room });
        }
        drop(room);
        let mut room = self.budget.room();
        reserve(&mut room, bytes_max).await?;
        let answer = timed(Stage::Read, read.finish_long()).await.map_err(error::of_read)?;
        Ok(Answered { answer, room })
    }

    /// Starts to read a range on this node, page by page.
    async fn range_pages(&self, range: Range, serializable: bool) -> Result<RangePages, Status> {
        call_log::note_keys(&KeyRange { key: range.key.clone(), range_end: range.range_end.clone() });
        let consistency = consistency(serializable);
        let database = self.data()?;
        self.when_led(|| database.range_pages_as(&self.caller, range.clone(), consistency)).await
    }

    /// Starts a read. Retries while this node knows no leader, so that a read during an election succeeds, like a write.
    async fn when_led<T, R>(&self, start: impl Fn() -> R) -> Result<T, Status>
    where
        R: Future<Output = Result<T, KvError>>,
    {
        let deadline = Instant::now() + LEADER_WAIT;
        loop {
            let error = match start().await {
                Ok(started) => return Ok(started),
                Err(error) => error,
            };
            let member = self.router.cluster().filter(|cluster| cluster.why_no_member().is_none());
            let (KvError::NotLeader { .. }, Some(cluster), false) =
                (&error, member, self.database().is_witness())
            else {
                return Err(error::of_read(error));
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || cluster.leader_within(left).await.is_none() {
                return Err(error::timed_out());
            }
            // The leader that this node knows may have failed.
            tokio::time::sleep(LEADER_RETRY).await;
        }
    }
}

/// Waits for room, but not for ever: its own client may hold it, for responses that it does not read.
async fn reserve(room: &mut Room, bytes: usize) -> Result<(), Status> {
    let reserved = tokio::time::timeout(ROOM_WAIT, room.reserve(bytes)).await;
    reserved.map_err(|_| error::no_room())
}

fn consistency(serializable: bool) -> Consistency {
    if serializable { Consistency::Stale } else { Consistency::Linearizable }
}

fn unexpected(answer: &impl std::fmt::Debug) -> Status {
    Status::internal(format!("etcdserver: unexpected answer {answer:?}"))
}

/// Cluster id for clients. A standalone server has a fixed one.
fn cluster_id(status: &EngineStatus) -> u64 {
    match status.membership.cluster().0 {
        0 => MEMBER_TAG,
        id => id,
    }
}

/// Member id for etcd's clients: never 0, which means no member, with the node's number in the lowest bytes.
pub(crate) fn member_id(node: NodeId) -> u64 {
    if node.0 < 1 << TAG_SHIFT { MEMBER_TAG | node.0 } else { node.0 }
}

fn node_of(member_id: u64) -> NodeId {
    if member_id >> TAG_SHIFT == MEMBER_TAG >> TAG_SHIFT {
        NodeId(member_id & ((1 << TAG_SHIFT) - 1))
    } else {
        NodeId(member_id)
    }
}

/// Numbers of the store stay far below 2^63.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Maximum time that a read waits for room for its response.
const ROOM_WAIT: Duration = Duration::from_secs(10);
/// Time between two attempts of a read whose leader may have failed.
const LEADER_RETRY: Duration = Duration::from_millis(20);
/// "kv" in the highest bytes of a member's id.
const MEMBER_TAG: u64 = 0x6b76 << TAG_SHIFT;
const TAG_SHIFT: u32 = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_ids_are_never_0_and_come_back() {
        for node in [0, 1, 77, (1 << TAG_SHIFT) - 1, 1 << TAG_SHIFT, u64::MAX] {
            assert_ne!(member_id(NodeId(node)), 0);
            assert_eq!(node_of(member_id(NodeId(node))), NodeId(node));
        }
    }
}
