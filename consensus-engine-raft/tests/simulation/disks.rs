//! Disks that are emptied, and old copies that are restored, in ways that lose nothing.

use std::{sync::Arc, time::Duration};

use consensus_core::{LogIndex, Member, MemberChange, MemberKind, NodeId, Term};
use consensus_raft_simulator::Random;
use tokio::time::{Instant, sleep};

use super::{
    cluster::World,
    members::{self, LONGEST},
};

/// Empties the disks of a voter, and replaces the member under its id (I14, I18, I19).
pub(crate) async fn wipe(world: &Arc<World>, mut random: Random) {
    // Entries that only two disks have are lost if both are emptied.
    let Ok(_alone) = world.damaging.try_lock() else { return };
    let _unchanged = world.changing.lock().await;
    let Some(id) = a_voter(world, &mut random).await else { return };
    if world.take(id).is_none() {
        return;
    }
    world.record().count("fault: disk wiped");
    let was = world.storage_of(id);
    world.lose_power(id).await;
    sleep(Duration::from_millis(random.below(1_000))).await;
    world.wipe(id);
    world.up_again(id).await;
    sleep(Duration::from_millis(random.below(1_000))).await;
    let began = Instant::now();
    while began.elapsed() < LONGEST {
        let member = world.membership().map(|members| members.members().get(&NodeId(id)).cloned());
        let change = match member {
            None => None, // There is no leader.
            Some(Some(member)) if member.storage.is_none_or(|storage| storage == was) => {
                Some(MemberChange::Remove(NodeId(id)))
            }
            Some(Some(_)) if is_committed(world).await => {
                world.record().count("member replaced after its disk was wiped");
                return world.give_back(id);
            }
            Some(Some(_)) => None,
            Some(None) => {
                let endpoint = Some(world.endpoint(id));
                let member = Member { endpoint, ..Member::new(MemberKind::Joining) };
                Some(MemberChange::Add(NodeId(id), member))
            }
        };
        if let Some(change) = change {
            members::apply(world, vec![change]).await;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let told: Vec<_> = world.nodes().iter().map(super::cluster::Node::status).collect();
    world
        .record()
        .fail(format!("member {id} whose disk was wiped is not replaced after {LONGEST:?}\n{told:#?}"));
}

/// Waits until the newest leader has committed what its log has now. Returns `false` if that takes too long.
async fn is_committed(world: &World) -> bool {
    let Some(leader) = world.leader() else { return false };
    let (seen, began) = (leader.status(), Instant::now());
    while began.elapsed() < AGREED_BY && leader.leads() && leader.status().term == seen.term {
        if leader.status().commit >= seen.last_log.index {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Restores an old copy of a voter's disks when the other voters have everything that this one had acknowledged, and its votes do
/// not matter any more. The node must catch up.
pub(crate) async fn restore(world: &Arc<World>, mut random: Random) {
    let Ok(_alone) = world.damaging.try_lock() else { return };
    let _unchanged = world.changing.lock().await;
    let Some(id) = a_voter(world, &mut random).await else { return };
    let Some(node) = world.take(id) else { return };
    world.shut_down_one(id).await;
    let copy = world.copy_disks(id);
    let moment = world.storage_of(id);
    world.up_again(id).await;
    sleep(Duration::from_millis(random.below(4_000))).await;
    drop(node);
    world.lose_power(id).await;
    // Acknowledgements and votes in transit arrive, or are lost.
    sleep(DRAINED_BY).await;
    let is_safe = world.storage_of(id) == moment && others_have_everything(world, id).await;
    if is_safe {
        world.restore_disks(id, copy);
    }
    world.up_again(id).await;
    if is_safe {
        world.record().count("old copy restored");
    }
    world.give_back(id);
}

/// Chooses a voter of a cluster that has a quorum without it, in a configuration that is committed.
async fn a_voter(world: &Arc<World>, random: &mut Random) -> Option<u64> {
    if !world.restart_lost().await {
        return None;
    }
    let membership = world.membership()?;
    // The others may need the voter to leave an earlier configuration.
    if !is_committed(world).await || world.membership()? != membership {
        return None;
    }
    let voters: Vec<NodeId> = membership.voters().collect();
    let chosen = voters.get(random.below(voters.len().max(1) as u64) as usize)?;
    let can_do_without = voters.len() >= 3 && !membership.is_joint();
    can_do_without.then_some(chosen.0)
}

/// Waits until all voters but `without` follow one leader in one term, and have all entries that its log had then.
async fn others_have_everything(world: &World, without: u64) -> bool {
    let (began, mut sought) = (Instant::now(), None::<(u64, Term, LogIndex)>);
    while began.elapsed() < AGREED_BY {
        sleep(Duration::from_millis(20)).await;
        let Some(leader) = world.leader() else { continue };
        let status = leader.status();
        if sought.is_none_or(|(id, term, _)| (id, term) != (leader.id, status.term)) {
            sought = Some((leader.id, status.term, status.last_log.index));
        }
        let target = sought.map_or(LogIndex::ZERO, |(.., target)| target);
        let nodes = world.nodes();
        let agrees = |voter: NodeId| {
            let is_in_term = |node: &&super::cluster::Node| {
                node.id == voter.0 && node.status().term == status.term && !node.boundary.power_is_lost()
            };
            let has_all = voter.0 == leader.id
                || status.peers.get(&voter).is_some_and(|peer| peer.matched >= target && !peer.other_storage);
            nodes.iter().any(|node| is_in_term(&node)) && has_all
        };
        let mut others = status.membership.voters().filter(|voter| voter.0 != without);
        if status.commit >= target && others.all(agrees) {
            return true;
        }
    }
    false
}

/// Longer than a message takes.
const DRAINED_BY: Duration = Duration::from_secs(1);
/// Time for elections and for nodes that are down.
const AGREED_BY: Duration = Duration::from_secs(5);
