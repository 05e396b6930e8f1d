//! Requests between nodes, beside those of clients: requests that only the leader can execute.

mod seals;

use bytes::Bytes;
use consensus_core::{Endpoint, Member, NodeId, codec};
use kv_state_machine::{
    AuthState, Caller, ConsensusKvDatabase, Consistency, KvAnswer, KvError, KvOperation, KvRejection,
    LeaseState,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    call_log::{Stage, timed},
    cluster::ClusterManager,
    members,
    state_check::StateReport,
};

use self::seals::SealError;
pub(crate) use self::seals::{Challenge, Channel, Sealer};

/// A request, and who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FromNode {
    /// The client, or the node itself. A node that has the key of the cluster's tokens is believed.
    pub(crate) caller: Caller,
    pub(crate) request: NodeRequest,
}

impl FromNode {
    /// Encodes the request, with a seal if authentication is enabled as far as this node knows.
    pub(crate) fn encode(&self, auth: &AuthState, sealer: &Sealer) -> Vec<u8> {
        let mut bytes = encode(self);
        let seal = if auth.is_enabled() { sealer.seal(auth.secret(), &bytes) } else { None };
        if let Some((number, seal)) = seal {
            bytes.extend_from_slice(&number.to_be_bytes());
            bytes.extend_from_slice(&seal);
        }
        bytes.push(if seal.is_some() { SEALED } else { UNSEALED });
        bytes
    }

    /// Decodes a request to the node `own`. The caller of a request without a valid seal is [`Caller::Anonymous`], whatever the
    /// request says: authentication may be enabled between now and the time at which the request is executed.
    ///
    /// # Errors
    /// It is no request, it was received before, or authentication is enabled and no node of this cluster has sealed it.
    pub(crate) fn decode(
        bytes: &[u8],
        auth: &AuthState,
        own: NodeId,
        channel: &Channel,
    ) -> Result<Self, String> {
        let (request, sealed) = match bytes.split_last() {
            Some((&UNSEALED, request)) => (request, Err(SealError::Wrong)),
            Some((&SEALED, rest)) => {
                let parts = rest.split_last_chunk().and_then(|(rest, seal)| {
                    let (request, number) = rest.split_last_chunk()?;
                    Some((request, u64::from_be_bytes(*number), seal))
                });
                let (request, number, seal) = parts.ok_or("the request between nodes is too short")?;
                (request, channel.receive(own, auth.secret(), request, (number, seal)))
            }
            _ => return Err("it is no request between nodes".to_owned()),
        };
        match sealed {
            Ok(()) => decode(request),
            Err(SealError::Wrong) if !auth.is_enabled() => {
                Ok(Self { caller: Caller::Anonymous, ..decode(request)? })
            }
            Err(why) => Err(format!(
                "the request was not made by a node of this cluster that knows that authentication is enabled ({why}); \
                 clients cannot call between_nodes"
            )),
        }
    }

    /// Whether a request claims to have a seal.
    pub(crate) fn claims_seal(bytes: &[u8]) -> bool {
        bytes.last() == Some(&SEALED)
    }
}

/// The message by which a node asks another one for the challenge of their connection.
pub(crate) const CHALLENGE_REQUEST: &[u8] = &[ASKS_FOR_CHALLENGE];
const ASKS_FOR_CHALLENGE: u8 = 2;
const UNSEALED: u8 = 0;
const SEALED: u8 = 1;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NodeRequest {
    Execute(KvOperation),
    /// A call of a client, as the client sent it.
    Call(Bytes),
    KeepAlive {
        id: i64,
    },
    /// Every node has the keys of a lease itself: there may be so many that they do not fit into an answer between nodes.
    TimeToLive {
        id: i64,
    },
    /// A change of the members.
    Member(MemberRequest),
    /// The checksum of a node's state.
    ReportState(StateReport),
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
    /// Reply to a call, as the client gets it.
    Reply(Bytes),
    /// Seconds that the lease lives from now; `None`: there is no such lease.
    KeptAlive(Option<u64>),
    TimeToLive(Option<LeaseState>),
    /// The member that was changed.
    Member(NodeId),
    /// The report was taken.
    Reported,
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
    FromNode { caller, request }: &FromNode,
) -> Result<NodeAnswer, NodeFault> {
    Ok(match request {
        NodeRequest::Execute(operation) => {
            let consistency = Consistency::Linearizable;
            let executed = database.execute_as(caller, operation.clone(), None, consistency);
            NodeAnswer::Executed(timed(Stage::Commit, executed).await?)
        }
        NodeRequest::Call(_) | NodeRequest::ReportState(_) => {
            let why = "the router executes this".to_owned();
            return Err(NodeFault::Unavailable { why, maybe_applied: false });
        }
        NodeRequest::KeepAlive { id } => NodeAnswer::KeptAlive(database.keep_alive_as(caller, *id).await?),
        NodeRequest::TimeToLive { id } => {
            NodeAnswer::TimeToLive(database.time_to_live_as(caller, *id, false).await?)
        }
        NodeRequest::Member(request) => {
            // Nothing in the log says whether the caller may do this, so that this node's state must be current.
            if *caller != Caller::Server {
                database.read_barrier().await?;
            }
            let checked = database.check_root(caller).map_err(KvRejection::from);
            checked.map_err(NodeFault::Rejected)?;
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

/// Format of messages between nodes. It may change without another number until the first release.
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use consensus_core::MemberKind;
    use kv_state_machine::{AuthOperation, AuthSecret, Password};

    use super::*;

    fn own(name: Option<&str>, replaces: bool) -> OwnMember {
        let endpoint = Endpoint::new("h", 1).unwrap();
        OwnMember { node: NodeId(1), endpoint, name: name.map(str::to_owned), replaces }
    }

    fn auth(is_enabled: bool, secret: u8) -> AuthState {
        let (mut auth, root) = (AuthState::default(), || "root".to_owned());
        let secret = AuthSecret(vec![secret; 32].into());
        if is_enabled {
            for change in [
                AuthOperation::AddUser { user: root(), password: Password::None },
                AuthOperation::GrantRole { user: root(), role: root() },
                AuthOperation::Enable { secret },
            ] {
                auth.execute(&change).unwrap();
            }
        }
        auth
    }

    const NODE: NodeId = NodeId(1);

    fn connection() -> (Sealer, Channel) {
        let channel = Channel::default();
        (Sealer::new(NODE, channel.challenge().unwrap()), channel)
    }

    #[test]
    fn request_is_taken_from_nodes_with_the_same_key_only() {
        let (sealer, channel) = connection();
        let request = NodeRequest::KeepAlive { id: 7 };
        let request = FromNode { caller: Caller::Server, request };
        let decode = |bytes: &[u8], auth: &AuthState| FromNode::decode(bytes, auth, NODE, &channel);
        let sealed = request.encode(&auth(true, 1), &sealer);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 4;
            assert!(decode(&changed, &auth(true, 1)).is_err(), "byte {at}");
        }
        assert!(decode(&sealed, &auth(true, 2)).is_err(), "the key of another cluster");
        assert_eq!(decode(&sealed, &auth(true, 1)), Ok(request.clone()));
        let mut unsealed = request.encode(&auth(false, 0), &sealer);
        assert!(decode(&unsealed, &auth(true, 1)).is_err(), "a client made it");
        let anonymous = FromNode { caller: Caller::Anonymous, ..request };
        assert_eq!(decode(&unsealed, &auth(false, 0)), Ok(anonymous.clone()), "anybody may say so");
        assert_eq!(decode(&sealed, &auth(false, 0)), Ok(anonymous), "the key is not known yet");
        unsealed.pop();
        unsealed.extend_from_slice(&[0; 40]);
        unsealed.push(SEALED);
        assert!(decode(&unsealed, &auth(true, 1)).is_err());
        assert!(decode(&[SEALED], &auth(true, 1)).is_err());
    }

    #[test]
    fn recorded_request_is_refused_when_it_is_sent_again() {
        let (sealer, channel) = connection();
        let request = FromNode { caller: Caller::Server, request: NodeRequest::KeepAlive { id: 7 } };
        let sealed = request.encode(&auth(true, 1), &sealer);
        let decode = |own: NodeId, channel: &Channel| FromNode::decode(&sealed, &auth(true, 1), own, channel);
        assert!(decode(NODE, &connection().1).is_err(), "on another connection");
        assert!(decode(NodeId(2), &channel).is_err(), "to another node");
        assert_eq!(decode(NODE, &channel), Ok(request));
        let again = decode(NODE, &channel).unwrap_err();
        assert!(again.contains("received before"), "{again}");
    }

    #[test]
    fn message_of_another_version_is_refused_with_both_versions() {
        let request = FromNode { caller: Caller::Server, request: NodeRequest::KeepAlive { id: 7 } };
        let mut bytes = encode(&request);
        bytes[0] = VERSION + 1;
        let why = decode::<FromNode>(&bytes).unwrap_err();
        assert_eq!(why, "message between nodes has format version 2, this program reads version 1");
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
