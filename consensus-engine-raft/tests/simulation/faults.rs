//! Faults that are injected into the cluster.

use std::{sync::Arc, time::Duration};

use consensus_core::{ConsensusEngine, Health, NodeId};
use consensus_engine_raft::StartError;
use consensus_raft_simulator::Random;
use tokio::time::{Instant, sleep};

use super::{
    boundary::Crash,
    cluster::{Node, World},
    disks,
    log_disk::{self, LEFT},
    members, stalls,
};

/// Injects one fault, and waits for its end.
pub(crate) async fn any(world: Arc<World>, mut random: Random) {
    if world.plan.stalls.alone || random.percent(15) {
        return stalls::any(&world, random).await;
    }
    let kind = random.below(26);
    match kind {
        0 | 1 => return partition(&world, random).await,
        2..=4 => return members::change(&world, random).await,
        20 | 21 => return disks::wipe(&world, random).await,
        22 | 23 => return disks::restore(&world, random).await,
        _ => {}
    }
    let by_chance = random.below(world.plan.nodes);
    let leader = world.leader().filter(|_| random.percent(40)).map(|node| node.id);
    let Some(node) = world.take(leader.unwrap_or(by_chance)) else { return };
    match kind {
        5 => power(&world, &node, random).await,
        6..=8 => power_between_writes(&world, &node, random).await,
        9 => failing_disk(&world, &node, random).await,
        10 => full_disk(&world, &node, random).await,
        11 => restart(&world, &node, random).await,
        12 => {
            world.record().count("fault: transfer");
            let to = random.percent(50).then(|| NodeId(random.below(world.plan.nodes)));
            let _ = world.completes("a transfer", node.engine.transfer_leadership(to)).await;
        }
        13 => {
            world.record().count("fault: compaction");
            let _ = world.completes("a compaction", node.engine.compact_log()).await;
        }
        14 => left_behind(&world, &node, random).await,
        15 | 16 => power_in_install(&world, &node, random).await,
        17 => panicking_machine(&world, &node, random).await,
        24 | 25 => stalls::failing_calls(&world, &node, random).await,
        _ => damage(&world, &node, random).await,
    }
    world.give_back(node.id);
}

async fn a_while(random: &mut Random, most_ms: u64) {
    sleep(Duration::from_millis(1 + random.below(most_ms))).await;
}

async fn partition(world: &World, mut random: Random) {
    world.record().count("fault: partition");
    let first = random.below(world.plan.nodes);
    let first = world.leader().filter(|_| random.percent(60)).map_or(first, |node| node.id);
    let minority = 1 + random.below(world.plan.nodes / 2);
    let is_apart = |id: &NodeId| (id.0 + world.plan.nodes - first) % world.plan.nodes < minority;
    let (apart, others): (Vec<NodeId>, Vec<NodeId>) = (0..world.plan.nodes).map(NodeId).partition(is_apart);
    if random.percent(70) {
        world.network.partition(&[&apart, &others]);
    } else {
        let ways = apart.iter().flat_map(|from| others.iter().map(move |to| (*from, *to)));
        ways.for_each(|(from, to)| world.network.cut(from, to)); // One way.
    }
    a_while(&mut random, 3_000).await;
    world.network.heal();
}

async fn power(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: power lost");
    world.lose_power(node.id).await;
    a_while(&mut random, 2_000).await;
    world.up_again(node.id).await;
}

/// Loses the power between two writes to the log or to the state, or within one.
async fn power_between_writes(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: power lost between two writes");
    if random.percent(60) {
        node.boundary.set_crash(Some(Crash::Write(random.below(6), random.of(&LEFT))));
    } else {
        node.boundary.dir.lose_power_after(random.below(9));
    }
    if world.power_lost_within(node, Duration::from_secs(2)).await {
        world.record().count("power lost between two writes");
    }
    world.lose_power(node.id).await;
    a_while(&mut random, 1_000).await;
    world.up_again(node.id).await;
}

/// Makes the disk fail: the engine must stop, and restarts on the content of the disk.
async fn failing_disk(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: disk failed");
    node.boundary.log.fail(random.of(&LEFT));
    a_while(&mut random, 1_000).await;
    must_be_fatal(world, node, node.boundary.log.has_failed()).await;
    world.lose_power(node.id).await;
    world.up_again(node.id).await;
}

async fn must_be_fatal(world: &World, node: &Node, reason: bool) {
    // The engine learns of the failure in its next turn.
    sleep(Duration::from_millis(2)).await;
    if reason && !matches!(node.health(), Health::Fatal(_)) {
        let (id, status) = (node.id, node.status());
        world.record().fail(format!("node {id} continues after a fatal fault: {status:?}"));
    }
}

async fn full_disk(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: disk full");
    node.boundary.log.fill(true);
    a_while(&mut random, 3_000).await;
    if random.percent(30) {
        world.shut_down_one(node.id).await;
        return world.up_again(node.id).await;
    }
    node.boundary.log.fill(false);
    // The engine retries by itself.
    sleep(Duration::from_millis(500)).await;
    let no_room = node.status().no_room.clone();
    if let Some(why) = no_room {
        world.record().fail(format!("node {} does not notice that there is room again: {why}", node.id));
    }
}

async fn restart(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: restart");
    world.shut_down_one(node.id).await;
    a_while(&mut random, 1_000).await;
    world.up_again(node.id).await;
}

/// Stops a node until the others have purged the entries that it needs.
async fn left_behind(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: left behind");
    world.lose_power(node.id).await;
    a_while(&mut random, 2_500).await;
    for other in world.nodes() {
        let _ = world.completes("a compaction", other.engine.compact_log()).await;
    }
    world.up_again(node.id).await;
}

/// Loses the power at a step of the installation of a snapshot.
async fn power_in_install(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: power lost in an install");
    world.lose_power(node.id).await;
    a_while(&mut random, 1_500).await;
    for other in world.nodes() {
        let _ = world.completes("a compaction", other.engine.compact_log()).await;
    }
    let step = match random.below(5) {
        0 => Crash::InstallMarked,
        1 | 2 => Crash::InstallRestored(random.below(5)),
        _ => Crash::InstallPurged(random.of(&LEFT)),
    };
    if let Err(error) = world.up_until(node.id, Some(step)).await {
        return world.record().fail(format!("node {} does not start again: {error}", node.id));
    }
    let Some(node) = world.nodes().into_iter().find(|up| up.id == node.id) else { return };
    if world.power_lost_within(&node, Duration::from_secs(3)).await {
        world.record().count("power lost in an install");
        world.lose_power(node.id).await;
        a_while(&mut random, 500).await;
        world.up_again(node.id).await;
    }
}

async fn panicking_machine(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: machine panicked");
    node.panics.call_for();
    a_while(&mut random, 1_000).await;
    must_be_fatal(world, node, node.panics.happened()).await;
    world.lose_power(node.id).await;
    world.up_again(node.id).await;
}

/// Damages a record of the log while the node is down. The node must do without its entry, which the others have (I16); and again,
/// while it fetches the rest.
async fn damage(world: &World, node: &Node, mut random: Random) {
    // There is no guarantee if two nodes have lost the same entries.
    let Ok(_alone) = world.damaging.try_lock() else { return };
    // There is none either if the others are no quorum for another reason.
    let Ok(_unchanged) = world.changing.try_lock() else { return };
    // Nor if a node does not find another one that has moved.
    if !world.restart_lost().await {
        return;
    }
    for _ in 0..1 + random.below(3) {
        if random.percent(50) {
            world.shut_down_one(node.id).await; // The state machine has applied the whole log, including the part that is truncated.
        } else {
            // A power loss removes the mark: with additional damage the last record can disappear unnoticed.
            world.kill(node.id).await;
        }
        a_while(&mut random, 100).await;
        if !start_damaged(world, node.id, &mut random).await {
            break; // Earlier damage may have cost entries all the same.
        }
        a_while(&mut random, 60).await;
    }
    // A member must get all lost entries again.
    let began = Instant::now();
    while world.nodes().iter().any(|up| up.id == node.id && up.boundary.is_damaged()) {
        if began.elapsed() > REPAIRED_BY && world.members().iter().any(|member| member.id == node.id) {
            let told: Vec<_> = world.nodes().iter().map(Node::status).collect();
            return world
                .record()
                .fail(format!("node {} does not get its lost entries again\n{told:#?}", node.id));
        }
        if began.elapsed() > 2 * REPAIRED_BY {
            return; // The node was removed.
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// Returns `false` if the node refused the damaged log and was started with the undamaged one.
async fn start_damaged(world: &World, id: u64, random: &mut Random) -> bool {
    let sound = world.log_files(id);
    let commands = log_disk::commands_in(NodeId(id), &sound);
    let mut files = sound.clone();
    let is_damaged = !commands.is_empty() && {
        let entry = &commands[random.below(commands.len() as u64) as usize];
        log_disk::damage(&mut files, entry, random)
    };
    if !is_damaged {
        world.up_again(id).await;
        return true;
    }
    world.record().count("fault: record damaged");
    world.set_log_files(id, files);
    match world.up(id).await {
        Ok(()) => {
            world.record().count("damaged log truncated");
            true
        }
        // The other nodes need this node's entries.
        Err(StartError::Storage(_)) => {
            world.record().count("damaged log refused");
            world.set_log_files(id, sound);
            world.up_again(id).await;
            false
        }
        Err(error) => {
            world.record().fail(format!("node {id} does not start with a damaged log: {error}"));
            false
        }
    }
}

/// Long enough to last while other faults occur.
const REPAIRED_BY: Duration = Duration::from_secs(30);
