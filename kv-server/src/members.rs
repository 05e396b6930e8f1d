//! Changes of the members as etcd's clients ask for them: the server chooses the ids, and says where clients go by itself.

use std::{sync::Arc, time::Duration};

use consensus_core::{
    ChangeError, Endpoint, EngineStatus, Member, MemberChange, MemberKind, Membership, NodeId,
};
use kv_state_machine::{Caller, ConsensusKvDatabase, KvError, KvOperation, KvResult};
use tokio::{
    sync::watch as channel,
    time::{Instant, sleep, timeout},
};

use crate::{
    answers::NodeBudget,
    between::{MemberFault, MemberRequest, NodeFault, NodeRequest, OwnMember},
    frontend::stopped,
    routing::RoutingManager,
};

type Outcome<T> = Result<T, NodeFault>;

/// Makes a change on the leader. Returns the member that was changed.
pub(crate) async fn execute(database: &ConsensusKvDatabase, request: &MemberRequest) -> Outcome<NodeId> {
    let status = database.status().borrow().clone();
    if status.leader != Some(status.node_id) {
        return Err(NodeFault::NotLeader(status.leader.map(|id| id.0)));
    }
    let (node, change) = match request {
        MemberRequest::Add { endpoint, is_learner } => add(database, &status, endpoint, *is_learner).await?,
        MemberRequest::Promote(node) => (*node, promoted(&status, *node)?),
        MemberRequest::Move { node, endpoint } => (*node, moved(&status.membership, *node, endpoint)?),
        MemberRequest::Remove(node) => (*node, removed(&status, *node)?),
        MemberRequest::Publish(own) => {
            let Some(changed) = own.change(member(&status.membership, own.node)?) else {
                return Ok(own.node);
            };
            check_free(&status.membership, own.node, &own.endpoint)?;
            (own.node, MemberChange::Set(own.node, changed))
        }
    };
    note_ids(database, &status.membership, std::slice::from_ref(&change)).await?;
    make(database, change).await?;
    if let MemberRequest::Promote(_) = request {
        // It votes within a few heartbeats, unless it falls behind meanwhile.
        let is_voter = |status: &Arc<EngineStatus>| {
            status.membership.get(node).is_none_or(|member| member.kind == MemberKind::Voter)
        };
        let _ = timeout(PROMOTION_MAX, database.status().wait_for(is_voter)).await;
    }
    Ok(node)
}

fn member(membership: &Membership, node: NodeId) -> Outcome<&Member> {
    membership.get(node).ok_or(NodeFault::Member(MemberFault::NotFound))
}

/// A new member with an id that no member had.
async fn add(
    database: &ConsensusKvDatabase,
    status: &EngineStatus,
    endpoint: &Endpoint,
    is_learner: bool,
) -> Outcome<(NodeId, MemberChange)> {
    let membership = &status.membership;
    if endpoints(membership, None).any(|other| other == endpoint) {
        return Err(NodeFault::Member(MemberFault::EndpointTaken));
    }
    // With another voter a quorum is larger: those that are there should answer.
    if !is_learner && membership.voters().any(|voter| !answers(status, voter)) {
        return Err(NodeFault::Member(MemberFault::Unhealthy));
    }
    let through = membership.all_members().map(|(id, _)| id.0).max().unwrap_or_default();
    let id = NodeId(reserve_ids(database, through, 1).await?);
    let kind = if is_learner { MemberKind::Learner } else { MemberKind::Joining };
    let member = Member { endpoint: Some(endpoint.clone()), ..Member::new(kind) };
    Ok((id, MemberChange::Add(id, member)))
}

/// A learner that becomes a voter, if it has almost all that the leader has.
fn promoted(status: &EngineStatus, node: NodeId) -> Outcome<MemberChange> {
    let member = member(&status.membership, node)?;
    if member.kind != MemberKind::Learner {
        return Err(NodeFault::Member(MemberFault::NotLearner));
    }
    let peer = status.peers.get(&node).filter(|peer| peer.active && !peer.other_storage && !peer.joining);
    let is_in_sync = peer
        .is_some_and(|peer| peer.matched.0.saturating_mul(10) >= status.last_log.index.0.saturating_mul(9));
    if !is_in_sync {
        return Err(NodeFault::Member(MemberFault::NotInSync));
    }
    Ok(MemberChange::Set(node, Member { kind: MemberKind::Joining, ..member.clone() }))
}

fn moved(membership: &Membership, node: NodeId, endpoint: &Endpoint) -> Outcome<MemberChange> {
    let member = member(membership, node)?;
    check_free(membership, node, endpoint)?;
    Ok(MemberChange::Set(node, Member { endpoint: Some(endpoint.clone()), ..member.clone() }))
}

/// A removal after which a quorum of the voters still answers. Removing one that does not answer costs no quorum.
fn removed(status: &EngineStatus, node: NodeId) -> Outcome<MemberChange> {
    member(&status.membership, node)?;
    let rest: Vec<NodeId> = status.membership.voters().filter(|voter| *voter != node).collect();
    let answering = rest.iter().filter(|voter| answers(status, **voter)).count();
    let takes_quorum =
        status.membership.is_voter(node) && answers(status, node) && answering * 2 <= rest.len();
    if takes_quorum && !rest.is_empty() {
        return Err(NodeFault::Member(MemberFault::Unhealthy));
    }
    Ok(MemberChange::Remove(node))
}

/// Whether a voter answers the leader, whose status this is.
fn answers(status: &EngineStatus, voter: NodeId) -> bool {
    let peer = status.peers.get(&voter);
    voter == status.node_id || peer.is_some_and(|peer| peer.active && !peer.other_storage)
}

/// Where members are, for nodes and for clients; without those of one member.
fn endpoints(membership: &Membership, without: Option<NodeId>) -> impl Iterator<Item = &Endpoint> {
    let others = membership.all_members().filter(move |(id, _)| Some(*id) != without);
    others.flat_map(|(_, member)| member.endpoint.iter().chain(&member.client_endpoint))
}

fn check_free(membership: &Membership, node: NodeId, endpoint: &Endpoint) -> Outcome<()> {
    let is_taken = endpoints(membership, Some(node)).any(|other| other == endpoint);
    if is_taken { Err(NodeFault::Member(MemberFault::EndpointTaken)) } else { Ok(()) }
}

/// Notes the ids of all members, and of those that are to be, so that none of them is given to another member.
pub(crate) async fn note_ids(
    database: &ConsensusKvDatabase,
    membership: &Membership,
    changes: &[MemberChange],
) -> Result<(), KvError> {
    let changed = changes.iter().map(|change| match change {
        MemberChange::Set(id, _) | MemberChange::Remove(id) | MemberChange::Add(id, _) => id.0,
    });
    let last = membership.all_members().map(|(id, _)| id.0).chain(changed).max().unwrap_or_default();
    if last > database.last_member_id() {
        reserve_ids(database, last, 0).await?;
    }
    Ok(())
}

async fn reserve_ids(database: &ConsensusKvDatabase, through: u64, more: u64) -> Result<u64, KvError> {
    let operation = KvOperation::ReserveMemberIds { through, more };
    match database.execute_operation(operation).await?.result {
        KvResult::MemberId(last) => Ok(last),
        other => {
            Err(KvError::Unavailable { why: format!("unexpected answer {other:?}"), maybe_applied: false })
        }
    }
}

/// Makes a change after the changes in progress.
async fn make(database: &ConsensusKvDatabase, change: MemberChange) -> Outcome<()> {
    let deadline = Instant::now() + CHANGE_MAX;
    loop {
        let changing = database.engine().change_membership(vec![change.clone()]);
        let unknown = |why: &str| NodeFault::Unavailable { why: why.to_owned(), maybe_applied: true };
        let left = deadline.saturating_duration_since(Instant::now());
        let changed = timeout(left, changing).await;
        return match changed.map_err(|_| unknown("no quorum has confirmed the change in time"))? {
            Ok(_) => Ok(()),
            Err(ChangeError::Busy) if Instant::now() < deadline => {
                sleep(BUSY_PAUSE).await;
                continue;
            }
            Err(ChangeError::NotLeader { leader }) => Err(NodeFault::NotLeader(leader.map(|id| id.0))),
            Err(ChangeError::Unknown { why }) => Err(unknown(why)),
            Err(ChangeError::Invalid(why)) => Err(NodeFault::Member(MemberFault::Invalid(why.to_string()))),
            Err(error) => Err(NodeFault::Unavailable { why: error.to_string(), maybe_applied: false }),
        };
    }
}

/// Has the leader note what this node tells of itself; ends when the configuration has it and there is a leader.
pub(crate) async fn publish(router: Arc<RoutingManager>, own: OwnMember, mut stop: channel::Receiver<bool>) {
    let node = own.node;
    let mut status = router.database().status();
    let budget = NodeBudget::new(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).connection();
    let request = NodeRequest::Member(MemberRequest::Publish(own.clone()));
    let tell = async {
        let (mut reported, mut pause) = (Instant::now(), REPORT_PAUSE);
        let mut conflict = None;
        loop {
            let is_member = |status: &Arc<EngineStatus>| status.membership.get(node).is_some();
            let Ok(member) =
                status.wait_for(is_member).await.map(|status| status.membership.get(node).cloned())
            else {
                return;
            };
            if member.is_some_and(|member| own.change(&member).is_none()) {
                let _ = status.wait_for(|status| status.leader.is_some()).await;
                return;
            }
            match router.lead(&Caller::Server, &request, &mut budget.room()).await {
                Ok(_) => {}
                Err(NodeFault::Member(MemberFault::EndpointTaken)) => {
                    let found = endpoint_conflict(&own, &status.borrow().membership);
                    if conflict.as_ref() != Some(&found) {
                        tracing::error!("{found}");
                        conflict = Some(found);
                    }
                    // An operator has to change something.
                    sleep(CONFLICT_PAUSE).await;
                }
                Err(fault) if reported.elapsed() > pause => {
                    (reported, pause) = (Instant::now(), (2 * pause).min(REPORT_PAUSE_MAX));
                    let why = fault.reason();
                    tracing::warn!(endpoint = %own.endpoint, "the cluster does not know yet where clients reach this node: {why}");
                }
                Err(_) => {}
            }
            sleep(TELL_PAUSE).await;
        }
    };
    tokio::select! {
        () = stopped(&mut stop) => {}
        () = tell => {}
    }
}

/// Message if the client endpoint of this node is that of another member.
fn endpoint_conflict(own: &OwnMember, membership: &Membership) -> String {
    let is_there = |member: &Member| {
        [&member.endpoint, &member.client_endpoint].into_iter().flatten().any(|other| *other == own.endpoint)
    };
    let other = membership.all_members().find(|(id, member)| *id != own.node && is_there(member));
    let endpoint = &own.endpoint;
    if own.replaces {
        let name = |(id, member): (NodeId, &Member)| match &member.name {
            Some(name) => format!("member {name}"),
            None => format!("the member with the id {id}"),
        };
        let other = other.map_or_else(|| "another member".to_owned(), name);
        return format!(
            "--advertise-client-urls http://{endpoint} is already that of {other}; give each member its own. This member is not ready \
             before that"
        );
    }
    let other = other.map_or_else(|| "another node".to_owned(), |(id, _)| format!("node {id}"));
    format!("client_endpoint {endpoint} is already that of {other}; give each node its own")
}

/// A change that no quorum confirms for so long is answered as unknown.
const CHANGE_MAX: Duration = Duration::from_secs(8);
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How long the answer to a promotion waits for it.
const PROMOTION_MAX: Duration = Duration::from_secs(3);
const TELL_PAUSE: Duration = Duration::from_millis(100);
/// Time between attempts to publish an endpoint that another member has.
const CONFLICT_PAUSE: Duration = Duration::from_secs(2);
/// A failure to publish is reported after this time, and then after twice as long each time.
const REPORT_PAUSE: Duration = Duration::from_secs(10);
const REPORT_PAUSE_MAX: Duration = Duration::from_secs(60 * 60);
/// Room for the answers of the leader.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use consensus_core::{Health, LogId, LogIndex, PeerStatus, Role, StorageId, Term};

    use super::*;

    fn at(port: u16) -> Endpoint {
        Endpoint::new("h", port).unwrap()
    }

    fn peer(matched: u64, active: bool) -> PeerStatus {
        PeerStatus {
            matched: LogIndex(matched),
            snapshot_bytes: None,
            active,
            other_storage: false,
            joining: false,
        }
    }

    /// Node 0 leads voters 0, 1 and 2, of which 2 does not answer, and the learner 3, which has `matched` of 100 entries.
    fn status(matched: u64) -> EngineStatus {
        let voter = |port| Member { endpoint: Some(at(port)), ..Member::new(MemberKind::Voter) };
        let learner = Member { endpoint: Some(at(3)), ..Member::new(MemberKind::Learner) };
        let members =
            [(NodeId(0), voter(10)), (NodeId(1), voter(1)), (NodeId(2), voter(2)), (NodeId(3), learner)];
        let peers =
            [(NodeId(1), peer(100, true)), (NodeId(2), peer(9, false)), (NodeId(3), peer(matched, true))];
        EngineStatus {
            node_id: NodeId(0),
            storage: StorageId::default(),
            health: Health::Running,
            no_room: None,
            storage_stalled_since: None,
            apply_stalled_since: None,
            snapshot_blocked: None,
            snapshot_errors: BTreeMap::new(),
            role: Role::Leader,
            term: Term(1),
            leader: Some(NodeId(0)),
            last_log: LogId { term: Term(1), index: LogIndex(100) },
            first_index: LogIndex(1),
            commit: LogIndex(100),
            applied: LogIndex(100),
            membership: Arc::new(Membership::new(members.into())),
            peers: peers.into(),
        }
    }

    fn refusal(outcome: Outcome<MemberChange>) -> Option<MemberFault> {
        match outcome {
            Ok(_) => None,
            Err(NodeFault::Member(fault)) => Some(fault),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn learner_is_promoted_when_it_is_in_sync() {
        assert_eq!(refusal(promoted(&status(89), NodeId(3))), Some(MemberFault::NotInSync));
        assert_eq!(refusal(promoted(&status(90), NodeId(3))), None);
        assert_eq!(refusal(promoted(&status(90), NodeId(1))), Some(MemberFault::NotLearner));
        assert_eq!(refusal(promoted(&status(90), NodeId(7))), Some(MemberFault::NotFound));
    }

    #[test]
    fn removal_that_takes_the_quorum_is_refused_and_of_a_failed_member_is_not() {
        assert_eq!(refusal(removed(&status(0), NodeId(1))), Some(MemberFault::Unhealthy));
        assert_eq!(refusal(removed(&status(0), NodeId(2))), None);
        assert_eq!(refusal(removed(&status(0), NodeId(3))), None);
        assert_eq!(refusal(removed(&status(0), NodeId(9))), Some(MemberFault::NotFound));
    }

    #[test]
    fn endpoint_of_another_member_is_named_with_that_member() {
        let mut members = status(0).membership.members().clone();
        members.get_mut(&NodeId(1)).unwrap().name = Some("b".to_owned());
        let membership = Membership::new(members);
        let own = |endpoint, replaces| OwnMember { node: NodeId(0), endpoint, name: None, replaces };
        let told = |own| endpoint_conflict(&own, &membership);
        let text = told(own(at(1), true));
        let expected = format!("--advertise-client-urls http://{} is already that of member b; give", at(1));
        assert!(text.starts_with(&expected), "{text}");
        assert!(told(own(at(2), true)).contains("the member with the id 2"));
        assert!(told(own(at(1), false)).contains("is already that of node 1"));
        assert!(told(own(at(10), true)).contains("another member"), "its own endpoint is no conflict");
    }

    #[test]
    fn member_is_not_moved_to_the_endpoint_of_another() {
        let membership = &status(0).membership;
        assert_eq!(refusal(moved(membership, NodeId(3), &at(1))), Some(MemberFault::EndpointTaken));
        assert_eq!(refusal(moved(membership, NodeId(3), &at(3))), None);
        assert_eq!(refusal(moved(membership, NodeId(3), &at(4))), None);
    }
}
