//! Changes of members, transfers of leadership, and compaction.

use std::sync::Arc;

use consensus_core::{
    ChangeError, ConsensusEngine, InvalidMembership, Member, MemberChange, MemberKind, Membership, NodeId,
    SnapshotError, TransferError,
};

use super::{Node, a_moment, converged, leader, leader_and_followers, stop};
use crate::eventually;

const STRANGER: NodeId = NodeId(99);
const OTHER_STRANGER: NodeId = NodeId(98);

fn learns(node: NodeId) -> MemberChange {
    MemberChange::Set(node, Member::new(MemberKind::Learner))
}

/// Makes a change; repeats it while another change is in progress.
async fn change(
    engine: &dyn ConsensusEngine,
    changes: &[MemberChange],
) -> Result<Arc<Membership>, ChangeError> {
    loop {
        match engine.change_membership(changes.to_vec()).await {
            Err(ChangeError::Busy) => a_moment().await,
            result => return result,
        }
    }
}

/// Waits until the status of every node has this configuration.
async fn all_know(nodes: &[Node], membership: &Membership) {
    for node in nodes {
        eventually("the status has the configuration", || {
            let known = node.status().membership.clone();
            if *known == *membership { Ok(()) } else { Err(known) }
        })
        .await;
    }
}

pub(super) async fn members(nodes: Vec<Node>) {
    let engine = leader(&nodes).await.engine.clone();
    let before = engine.status().borrow().membership.clone();
    match change(&*engine, &[learns(STRANGER), learns(OTHER_STRANGER)]).await {
        Err(ChangeError::Unsupported) => return stop(&nodes).await,
        result => {
            let membership = result.expect("adding a learner succeeds");
            for node in [STRANGER, OTHER_STRANGER] {
                let kind = membership.get(node).map(|member| member.kind);
                assert_eq!(kind, Some(MemberKind::Learner), "node {node}");
            }
            assert!(membership.voters().eq(before.voters()), "a learner does not vote");
            all_know(&nodes, &membership).await;
        }
    }
    let gone = [MemberChange::Remove(STRANGER), MemberChange::Remove(OTHER_STRANGER)];
    let membership = change(&*engine, &gone).await.unwrap();
    assert!(
        membership.members().keys().eq(before.members().keys()),
        "the members are the same as before: {membership}"
    );
    assert!(!membership.is_joint());
    all_know(&nodes, &membership).await;
    engine.propose("after all changes".into()).await.unwrap();
    converged(&nodes, 1).await;
    stop(&nodes).await;
}

pub(super) async fn refused_members(nodes: Vec<Node>) {
    let (leading, followers) = leader_and_followers(&nodes).await;
    let before = match change(&*leading.engine, &[learns(STRANGER)]).await {
        Err(ChangeError::Unsupported) => return stop(&nodes).await,
        result => result.expect("adding a learner succeeds"),
    };
    let none: Vec<_> = before.voters().map(MemberChange::Remove).collect();
    let half_wrong = [MemberChange::Remove(STRANGER), MemberChange::Remove(OTHER_STRANGER)];
    let again = [MemberChange::Add(STRANGER, Member::new(MemberKind::Learner))];
    for (changes, why) in [
        (&none[..], InvalidMembership::NoVoter),
        (&again, InvalidMembership::AlreadyAMember(STRANGER)),
        (&half_wrong, InvalidMembership::NotAMember(OTHER_STRANGER)),
    ] {
        let refused = change(&*leading.engine, changes).await;
        assert_eq!(refused, Err(ChangeError::Invalid(why)));
        assert_eq!(leading.status().membership, before);
    }
    for follower in followers {
        let refused = change(&*follower.engine, &[learns(OTHER_STRANGER)]).await;
        assert_eq!(refused, Err(ChangeError::NotLeader { leader: Some(leading.id()) }));
    }
    leading.engine.propose("after all refusals".into()).await.unwrap();
    converged(&nodes, 1).await;
    all_know(&nodes, &before).await;
    stop(&nodes).await;
}

pub(super) async fn compaction(nodes: Vec<Node>) {
    let engine = leader(&nodes).await.engine.clone();
    for n in 0..50 {
        engine.propose(format!("{n}").into()).await.unwrap();
    }
    converged(&nodes, 50).await;
    for node in &nodes {
        let applied = node.status().applied;
        let purged = match node.engine.compact_log().await {
            Err(SnapshotError::NoLog) => return stop(&nodes).await,
            result => result.expect("a compaction without faults succeeds"),
        };
        assert!(
            purged >= applied,
            "entries up to the applied index {applied} are purged, not only up to {purged}"
        );
        eventually("the status has the first index of the log", || {
            let first = node.status().first_index;
            if first == purged.next() { Ok(()) } else { Err((first, purged)) }
        })
        .await;
    }
    for n in 50..100 {
        engine.propose(format!("{n}").into()).await.unwrap();
    }
    let order = converged(&nodes, 100).await;
    for (n, (_, command)) in order.iter().enumerate() {
        assert_eq!(*command, n.to_string(), "commands are in the order of their acknowledgements");
    }
    stop(&nodes).await;
}

pub(super) async fn transfer(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let own = leading.id();
    let successor = loop {
        match leading.engine.transfer_leadership(None).await {
            Err(TransferError::Unsupported) => return stop(&nodes).await,
            Err(TransferError::NoSuccessor) if nodes.len() == 1 => return stop(&nodes).await,
            // The leader may not have heard from the others yet, or the transfer took too long: try again.
            Err(TransferError::NoSuccessor | TransferError::TimedOut) => a_moment().await,
            result => break result.expect("another node becomes leader"),
        }
    };
    assert_ne!(successor, own, "a transfer without a target chooses another node");
    let successor = nodes.iter().find(|node| node.id() == successor).expect("one of the nodes");
    successor.engine.propose("in another term".into()).await.expect("the successor is leader");
    converged(&nodes, 1).await;
    stop(&nodes).await;
}

pub(super) async fn refused_transfer(nodes: Vec<Node>) {
    let (leading, followers) = leader_and_followers(&nodes).await;
    for to in [STRANGER, leading.id()] {
        match leading.engine.transfer_leadership(Some(to)).await {
            Err(TransferError::Unsupported) => return stop(&nodes).await,
            refused => assert_eq!(refused, Err(TransferError::CannotLead(to))),
        }
    }
    for follower in followers {
        let refused = follower.engine.transfer_leadership(None).await;
        assert_eq!(refused, Err(TransferError::NotLeader { leader: Some(leading.id()) }));
    }
    leading.engine.propose("as before".into()).await.expect("the node is still leader");
    converged(&nodes, 1).await;
    stop(&nodes).await;
}
