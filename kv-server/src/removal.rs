//! Finds out whether a member that is started again was removed from its cluster.
//!
//! Nobody sends such a member anything, so it would wait for a leader for ever. Its log alone is no proof: the removal may not be
//! committed, or the member may have been added again. So the other members are asked too, and a member that may still be added goes on.

use std::time::Duration;

use consensus_core::{ClusterId, Endpoint, LogState, NodeId};
use consensus_transport_thrift::{PeerIdentity, PeerState, find_member};
use futures::future::join_all;

use crate::{
    config::{Settings, Topology},
    founding::newest_membership,
    tls::Security,
};

/// Whether the member was removed, by its own log and by the answers of the others.
pub(crate) async fn was_removed(
    settings: &Settings,
    topology: &Topology,
    log: &LogState,
    security: &Security,
) -> bool {
    let node = settings.node;
    let Some(own) = topology.nodes.get(&node).filter(|_| log_has_removal(log, node)) else { return false };
    let members = newest_membership(log).all_members();
    let others: Vec<&Endpoint> = members.filter_map(|(_, member)| member.endpoint.as_ref()).collect();
    let ask = |other| find_member(other, &own.consensus, security.peers.as_ref(), ANSWER_MAX);
    let answers = join_all(others.into_iter().map(ask)).await;
    let answers: Vec<PeerIdentity> = answers.into_iter().flatten().collect();
    let cluster = newest_membership(log).cluster();
    is_confirmed(&answers, node, &settings.deployment.cluster_name, cluster)
}

/// Whether the newest configuration in the log is without the node, and an older one had it. A node whose log began empty and is not
/// complete may have read of a former member with its id.
fn log_has_removal(log: &LogState, node: NodeId) -> bool {
    let state = &log.hard_state;
    let is_complete = state.joining.is_none() && state.installing.is_none() && state.lost_through.is_none();
    let newest = newest_membership(log);
    let is_without = !newest.members().is_empty() && newest.get(node).is_none();
    let mut all = log.memberships.iter().map(|(_, membership)| membership).chain([&log.purged.membership]);
    is_complete && log.damage.is_none() && is_without && all.any(|membership| membership.get(node).is_some())
}

/// Whether members of the cluster answered, and none of them knows the node.
fn is_confirmed(answers: &[PeerIdentity], node: NodeId, cluster_name: &str, cluster: ClusterId) -> bool {
    let is_of_cluster = |answer: &&PeerIdentity| {
        answer.state == PeerState::Member && answer.cluster_name == cluster_name && answer.cluster == cluster
    };
    let mut knows = answers
        .iter()
        .filter(is_of_cluster)
        .map(|answer| answer.member_at_endpoint.is_some_and(|member| member.node == node))
        .peekable();
    knows.peek().is_some() && !knows.any(|knows| knows)
}

/// Time within which the other members answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use consensus_core::{
        Entry, HardState, LogId, LogIndex, Member, MemberKind, Membership, Payload, SnapshotMeta, StorageId,
        Term,
    };
    use consensus_transport_thrift::{Founders, MemberAtEndpoint};

    use super::*;

    const OWN: NodeId = NodeId(2);

    fn members(ids: &[u64]) -> Membership {
        let voter = |id: &u64| (NodeId(*id), Member::new(MemberKind::Voter));
        Membership::new(ids.iter().map(voter).collect())
    }

    /// A log with these configurations, after a purged part with the first of them.
    fn log(configurations: &[&[u64]]) -> LogState {
        let (first, rest) = configurations.split_first().unwrap();
        let mut log = LogState {
            purged: SnapshotMeta { last: LogId::ZERO, membership: members(first) },
            ..LogState::default()
        };
        for (index, ids) in (1..).zip(rest) {
            let id = LogId { term: Term(1), index: LogIndex(index) };
            log.push(&Entry { id, payload: Payload::Membership(members(ids)) }).unwrap();
        }
        log
    }

    #[test]
    fn log_has_the_removal_of_a_former_member_only() {
        assert!(log_has_removal(&log(&[&[0, 1, 2], &[0, 1]]), OWN));
        assert!(log_has_removal(&log(&[&[0], &[0, 2], &[0], &[0, 1]]), OWN));
        assert!(!log_has_removal(&log(&[&[0, 1], &[0]]), OWN), "it waits to be added");
        assert!(!log_has_removal(&log(&[&[0, 1, 2], &[0, 1], &[0, 1, 2]]), OWN), "it was added again");
        assert!(!log_has_removal(&log(&[&[]]), OWN), "it has heard of no configuration");
        let mut joining = log(&[&[0, 1, 2], &[0, 1]]);
        joining.hard_state = HardState { joining: Some(LogIndex(9)), ..HardState::default() };
        assert!(!log_has_removal(&joining, OWN), "its log is not complete");
    }

    fn answer(state: PeerState, cluster_name: &str, member: Option<u64>) -> PeerIdentity {
        PeerIdentity {
            node: NodeId(0),
            storage: StorageId(1),
            cluster: ClusterId(1),
            cluster_name: cluster_name.to_owned(),
            formats: 1..=1,
            state,
            knows_asker: None,
            member_at_endpoint: member.map(|id| MemberAtEndpoint { node: NodeId(id), storage: None }),
        }
    }

    #[test]
    fn removal_is_confirmed_by_members_that_do_not_know_the_node() {
        let of_member = |member| answer(PeerState::Member, "c", member);
        let is_confirmed =
            |answers: &[PeerIdentity], node, name| is_confirmed(answers, node, name, ClusterId(1));
        assert!(is_confirmed(&[of_member(None), of_member(Some(7))], OWN, "c"));
        assert!(!is_confirmed(&[of_member(None), of_member(Some(2))], OWN, "c"), "one knows it");
        let empty = answer(PeerState::Empty { founders: Founders::new() }, "c", None);
        let elsewhere = answer(PeerState::Member, "d", None);
        assert!(!is_confirmed(&[empty, elsewhere], OWN, "c"), "nobody of the cluster answered");
        let foreign = PeerIdentity { cluster: ClusterId(2), ..of_member(None) };
        assert!(!is_confirmed(&[foreign], OWN, "c"), "another cluster of the same name answered");
        assert!(!is_confirmed(&[], OWN, "c"));
    }
}
