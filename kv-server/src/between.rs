//! Requests between nodes, beside those of clients: requests that only the leader can execute.

use consensus_core::{Endpoint, Member, NodeId, codec};
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
    /// Every node has the keys of a lease itself: there may be so many that they do not fit into an answer between nodes.
    TimeToLive {
        id: i64,
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
    /// Of a member itself: what it tells of itself when it starts.
    Publish(OwnMember),
}

/// A member's description of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnMember {
    pub(crate) node: NodeId,
    /// Where clients reach it.
    pub(crate) endpoint: Endpoint,
    /// Its name; `None`: the name stays as it is.
    pub(crate) name: Option<String>,
    /// Whether this counts even if the cluster knows where clients reach the member.
    pub(crate) replaces: bool,
}

impl OwnMember {
    /// The member as it should be in the configuration; `None` if it is so.
    pub(crate) fn change(&self, member: &Member) -> Option<Member> {
        if member.client_endpoint.is_some() && !self.replaces {
            return None;
        }
        let client_endpoint = Some(self.endpoint.clone());
        let name = self.name.clone().or_else(|| member.name.clone());
        let changed = Member { client_endpoint, name, ..member.clone() };
        (changed != *member).then_some(changed)
    }
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

impl NodeFault {
    /// The reason in words, for the log.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Rejected(rejection) => format!("{rejection:?}"),
            Self::NotLeader(Some(leader)) => format!("the leader is node {leader}"),
            Self::NotLeader(None) => "there is no leader".to_owned(),
            Self::Unavailable { why, .. } => why.clone(),
            Self::Member(MemberFault::NotFound) => "the leader knows no such member".to_owned(),
            Self::Member(MemberFault::EndpointTaken) => "another member is there".to_owned(),
            Self::Member(MemberFault::Invalid(why)) => why.clone(),
            Self::Member(fault) => format!("the members cannot be changed ({fault:?})"),
        }
    }
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
        NodeRequest::TimeToLive { id } => NodeAnswer::TimeToLive(database.time_to_live(*id, false).await?),
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

#[cfg(test)]
mod tests {
    use consensus_core::MemberKind;

    use super::*;

    fn own(name: Option<&str>, replaces: bool) -> OwnMember {
        let endpoint = Endpoint::new("h", 1).unwrap();
        OwnMember { node: NodeId(1), endpoint, name: name.map(str::to_owned), replaces }
    }

    #[test]
    fn member_publishes_what_is_unknown_and_replaces_it_only_on_request() {
        let new = Member::new(MemberKind::Joining);
        let published = own(Some("a"), false).change(&new).unwrap();
        let (place, name) = (published.client_endpoint.clone(), published.name.as_deref());
        assert_eq!((place, name), (Some(own(None, false).endpoint), Some("a")));
        assert_eq!(own(Some("b"), false).change(&published), None);
        assert_eq!(own(Some("a"), true).change(&published), None);
        assert_eq!(own(None, true).change(&published), None);
        assert_eq!(own(Some("b"), true).change(&published).unwrap().name.as_deref(), Some("b"));
    }
}
