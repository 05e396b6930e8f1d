//! What one node asks of another, beside what clients ask: requests that only the leader can execute.

use consensus_core::{Endpoint, NodeId, codec};
use kv_state_machine::{
    ConsensusKvDatabase, Consistency, KvAnswer, KvError, KvOperation, KvRejection, LeaseState,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{cluster::ClusterManager, members};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeRequest {
    Execute(KvOperation),
    KeepAlive {
        id: i64,
    },
    TimeToLive {
        id: i64,
        with_keys: bool,
    },
    /// A change of the members.
    Member(MemberRequest),
}

/// A change of the members that only the leader can make, as it knows how they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberRequest {
    /// Adds a member with a new id. It votes when it has caught up, unless it is a learner.
    Add {
        endpoint: Endpoint,
        is_learner: bool,
    },
    /// Makes a learner that has caught up a voter.
    Promote(NodeId),
    /// Moves a member.
    Move {
        node: NodeId,
        endpoint: Endpoint,
    },
    Remove(NodeId),
    /// Of a member itself: where it serves clients, for one that was added without that.
    TellClients {
        node: NodeId,
        endpoint: Endpoint,
    },
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeAnswer {
    Executed(KvAnswer),
    /// Seconds that the lease lives from now; `None`: there is no such lease.
    KeptAlive(Option<u64>),
    TimeToLive(Option<LeaseState>),
    /// The member that was changed.
    Member(NodeId),
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeFault {
    /// The store did not do it.
    Rejected(KvRejection),
    NotLeader(Option<u64>),
    Unavailable {
        why: String,
        maybe_applied: bool,
    },
    /// The members were not changed.
    Member(MemberFault),
}

/// Why the members were not changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum MemberFault {
    /// The server stands alone.
    Standalone,
    NotFound,
    NotLearner,
    NotInSync,
    /// Another member is at the endpoint.
    EndpointTaken,
    /// Too few voters answer for another one to be added, or for one to be removed.
    Unhealthy,
    /// The configuration would make no sense.
    Invalid(String),
}

impl From<KvError> for NodeFault {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Rejected(rejection) => Self::Rejected(rejection),
            KvError::NotLeader { leader } => Self::NotLeader(leader.map(|id| id.0)),
            KvError::Unavailable { why, maybe_applied } => Self::Unavailable { why, maybe_applied },
            other => Self::Unavailable { why: other.to_string(), maybe_applied: true },
        }
    }
}

/// Executes a request on this node, if it leads.
pub(crate) async fn execute(
    database: &ConsensusKvDatabase,
    cluster: Option<&ClusterManager>,
    request: &NodeRequest,
) -> Result<NodeAnswer, NodeFault> {
    Ok(match request {
        NodeRequest::Execute(operation) => {
            NodeAnswer::Executed(database.execute(operation.clone(), None, Consistency::Linearizable).await?)
        }
        NodeRequest::KeepAlive { id } => NodeAnswer::KeptAlive(database.keep_alive(*id).await?),
        NodeRequest::TimeToLive { id, with_keys } => {
            NodeAnswer::TimeToLive(database.time_to_live(*id, *with_keys).await?)
        }
        NodeRequest::Member(request) => {
            if cluster.is_none() {
                return Err(NodeFault::Member(standalone(database, request)));
            }
            NodeAnswer::Member(members::execute(database, request).await?)
        }
    })
}

/// Why a standalone server refuses a change of the members: it is the only one there is.
fn standalone(database: &ConsensusKvDatabase, request: &MemberRequest) -> MemberFault {
    let this = database.status().borrow().node_id;
    match request {
        MemberRequest::Promote(node) | MemberRequest::Move { node, .. } | MemberRequest::Remove(node)
            if *node != this =>
        {
            MemberFault::NotFound
        }
        _ => MemberFault::Standalone,
    }
}

pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    codec::encode(VERSION, value)
}

/// # Errors
/// It is of another version, or not such a value.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    codec::decode("message between nodes", VERSION, bytes).map_err(|error| error.to_string())
}

const VERSION: u8 = 1;
