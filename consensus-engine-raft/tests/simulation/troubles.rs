//! What befalls the cluster.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use consensus_core::{ConsensusEngine, Health, NodeId};
use consensus_raft_simulator::{Harm, Random};
use tokio::time::sleep;

use super::cluster::{Node, World};

/// One of them, to its end.
pub(crate) async fn any(world: Arc<World>, mut random: Random) {
    let kind = random.below(13);
    if kind < 2 {
        return partition(&world, random).await;
    }
    let by_chance = random.below(world.plan.nodes);
    let leader = world.leader().filter(|_| random.percent(40)).map(|node| node.id);
    let Some(node) = world.take(leader.unwrap_or(by_chance)) else { return };
    match kind {
        2 | 3 => power(&world, &node, random).await,
        4 => failing_disk(&world, &node, random).await,
        5 => full_disk(&world, &node, random).await,
        6 => restart(&world, &node, random).await,
        7 => {
            world.record().count("trouble: transfer");
            let to = random.percent(50).then(|| NodeId(random.below(world.plan.nodes)));
            let _ = world.answered("a transfer", node.engine.transfer_leadership(to)).await;
        }
        8 => {
            world.record().count("trouble: compaction");
            let _ = world.answered("a compaction", node.engine.compact_log()).await;
        }
        9 | 10 => left_behind(&world, &node, random).await,
        11 => panicking_machine(&world, &node, random).await,
        _ => damage(&world, &node, random).await,
    }
    world.give_back(node.id);
}

async fn a_while(random: &mut Random, most_ms: u64) {
    sleep(Duration::from_millis(1 + random.below(most_ms))).await;
}

async fn partition(world: &World, mut random: Random) {
    world.record().count("trouble: partition");
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
    world.record().count("trouble: power lost");
    world.lose_power(node.id).await;
    a_while(&mut random, 2_000).await;
    world.up_again(node.id).await;
}

/// The engine has to end; it starts again on what lies on the disk.
async fn failing_disk(world: &World, node: &Node, mut random: Random) {
    world.record().count("trouble: disk failed");
    node.disk.sim.fail(true);
    a_while(&mut random, 1_000).await;
    must_be_fatal(world, node, node.disk.failed.load(Ordering::Relaxed)).await;
    world.lose_power(node.id).await;
    world.up_again(node.id).await;
}

async fn must_be_fatal(world: &World, node: &Node, reason: bool) {
    // It hears of it as an input, so in its next turn.
    sleep(Duration::from_millis(2)).await;
    if reason && !matches!(node.health(), Health::Fatal(_)) {
        let (id, status) = (node.id, node.engine.status().borrow().clone());
        world.record().fail(format!("node {id} goes on after what has to end it: {status:?}"));
    }
}

async fn full_disk(world: &World, node: &Node, mut random: Random) {
    world.record().count("trouble: disk full");
    node.disk.sim.fill(true);
    a_while(&mut random, 3_000).await;
    if random.percent(30) {
        world.shut_down_one(node.id).await;
        node.disk.sim.fill(false);
        return world.up_again(node.id).await;
    }
    node.disk.sim.fill(false);
    // It looks again by itself.
    sleep(Duration::from_millis(500)).await;
    let no_room = node.engine.status().borrow().no_room.clone();
    if let Some(why) = no_room {
        world.record().fail(format!("node {} does not see that there is room: {why}", node.id));
    }
}

async fn restart(world: &World, node: &Node, mut random: Random) {
    world.record().count("trouble: restart");
    world.shut_down_one(node.id).await;
    a_while(&mut random, 1_000).await;
    world.up_again(node.id).await;
}

/// Away until the others have no log for it.
async fn left_behind(world: &World, node: &Node, mut random: Random) {
    world.record().count("trouble: left behind");
    world.lose_power(node.id).await;
    a_while(&mut random, 2_500).await;
    for other in world.nodes() {
        let _ = world.answered("a compaction", other.engine.compact_log()).await;
    }
    world.up_again(node.id).await;
}

async fn panicking_machine(world: &World, node: &Node, mut random: Random) {
    world.record().count("trouble: machine panicked");
    node.panics.call_for();
    a_while(&mut random, 1_000).await;
    must_be_fatal(world, node, node.panics.happened()).await;
    world.lose_power(node.id).await;
    world.up_again(node.id).await;
}

/// A record of the log is damaged while the node is down. It has to do without, while the others hold it (I16).
async fn damage(world: &World, node: &Node, mut random: Random) {
    let id = node.id;
    if random.percent(50) {
        world.shut_down_one(id).await; // Its machine reflects all of the log, and what is cut off it too.
    } else {
        world.lose_power(id).await;
    }
    a_while(&mut random, 500).await;
    let disk = world.disk_of(id);
    // The configuration that it began with must be readable, or it refuses to start.
    let indices: Vec<u64> = disk.indices().into_iter().filter(|index| *index > 1).collect();
    // Nobody promises anything where two nodes have lost the same.
    let spared = world.plan.nodes > 1
        && (0..world.plan.nodes).all(|other| world.disk_of(other).hard_state().lost_through.is_none());
    if !spared || indices.is_empty() {
        return world.up_again(id).await;
    }
    world.record().count("trouble: record damaged");
    let index = random.of(&indices);
    let harm = random.of(&[Harm::Flip, Harm::Lost, Harm::Misdirected]);
    // That the last record was never written nobody can know.
    let harm = if indices.last() == Some(&index) { Harm::Flip } else { harm };
    disk.harm(index, harm, random.next());
    world.up_again(id).await;
    if disk.hard_state().lost_through.is_some() {
        world.record().count("damaged log cut");
    }
}
