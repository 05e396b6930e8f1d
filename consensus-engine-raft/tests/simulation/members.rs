//! Members that are added, removed, moved and altered.

use std::{sync::Arc, time::Duration};

use consensus_core::{ChangeError, ConsensusEngine, Member, MemberChange, MemberKind, Membership, NodeId};
use consensus_raft_simulator::Random;
use tokio::time::{Instant, sleep};

use super::{Plan, cluster::World};

/// Makes one change completely.
pub(crate) async fn change(world: &Arc<World>, mut random: Random) {
    let _alone = world.changing.lock().await;
    if !world.restart_lost().await {
        return;
    }
    let Some(membership) = world.membership() else { return };
    let ids: Vec<NodeId> = membership.members().keys().copied().collect();
    let some = random.of(&ids);
    let others = (0..world.plan.nodes).map(NodeId).find(|id| membership.get(*id).is_none());
    match random.below(8) {
        // The other members must agree on its address.
        0 | 1 if membership.quorum_value(|id| id != some) == Some(true) => {
            move_member(world, some, random).await;
        }
        0 | 1 => {}
        2 | 3 => {
            let altered = |member: Member, random: &mut Random| Member {
                priority: random.below(3) as u32,
                client_endpoint: Some(Plan::endpoint(random.below(9), 0)),
                ..member
            };
            let member = altered(membership.members()[&some].clone(), &mut random);
            if apply(world, vec![MemberChange::Set(some, member)]).await {
                world.record().count("member altered that stays");
            }
        }
        4 => demote(world, &membership, some, random).await,
        5 => {
            let gone = some.0 >= world.plan.voters;
            if gone && apply(world, vec![MemberChange::Remove(some)]).await {
                world.record().count("member removed");
            }
        }
        _ => {
            let Some(new) = others.filter(|id| world.is_new(id.0)) else { return };
            world.up_again(new.0).await;
            let kind = random.of(&[MemberKind::Joining, MemberKind::Learner]);
            let endpoint = Some(Plan::endpoint(new.0, 0));
            if apply(world, vec![MemberChange::Set(new, Member { endpoint, ..Member::new(kind) })]).await {
                world.record().count("member added");
            }
        }
    }
}

/// Moves a member to another address, and then changes the configuration.
async fn move_member(world: &Arc<World>, id: NodeId, mut random: Random) {
    let Some(node) = world.take(id.0) else { return };
    if random.percent(50) {
        world.shut_down_one(node.id).await;
    } else {
        world.lose_power(node.id).await;
    }
    let moves = world.move_node(id.0);
    world.up_again(id.0).await;
    world.give_back(id.0);
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        if let Some(member) = world.membership().and_then(|members| members.members().get(&id).cloned()) {
            let member = Member { endpoint: Some(Plan::endpoint(id.0, moves)), ..member };
            if apply(world, vec![MemberChange::Set(id, member)]).await {
                return world.record().count("member moved that stays");
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    world.record().fail(format!("the members do not know the address of node {id} after {LONGEST:?}"));
}

/// Makes a voter a learner, and a voter again.
async fn demote(world: &Arc<World>, membership: &Membership, id: NodeId, mut random: Random) {
    if membership.voters().count() < 3 || !membership.is_voter(id) {
        return;
    }
    let member = membership.members()[&id].clone();
    if !apply(world, vec![MemberChange::Set(id, Member { kind: MemberKind::Learner, ..member })]).await {
        return;
    }
    world.record().count("voter demoted");
    sleep(Duration::from_millis(random.below(2_000))).await;
    let Some(member) = world.membership().and_then(|members| members.members().get(&id).cloned()) else {
        return;
    };
    apply(world, vec![MemberChange::Set(id, Member { kind: MemberKind::Joining, ..member })]).await;
}

/// Requests a change from the leader. Returns `true` if it succeeded or may have succeeded.
pub(super) async fn apply(world: &World, changes: Vec<MemberChange>) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let Some(leader) = world.leader() else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        match world.completes("a change of members", leader.engine.change_membership(changes.clone())).await {
            Some(Ok(_)) => return true,
            Some(Err(ChangeError::Invalid(_))) => return false,
            _ => sleep(Duration::from_millis(100)).await,
        }
    }
    false
}

/// Time limit of a change.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time limit for the change of a member's address under faults.
pub(super) const LONGEST: Duration = Duration::from_secs(60);
