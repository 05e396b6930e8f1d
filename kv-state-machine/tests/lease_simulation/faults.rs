//! Faults, one at a time.

use std::{sync::Arc, time::Duration};

use consensus_core::NodeId;
use consensus_raft_simulator::Random;
use kv_state_machine::{KvOperation, Put};
use tokio::time::{Instant, sleep, timeout};

use crate::{plan::NODES, world::World};

/// Injects one fault after the other, until their time is over.
pub(crate) async fn run(world: Arc<World>) {
    let (mut random, began) = (Random::new(world.plan.seed, 3), Instant::now());
    while began.elapsed() < world.plan.fault_period && world.failure().is_none() {
        let pause = Duration::from_millis(100 + random.below(world.plan.fault_pause_max.as_millis() as u64));
        let is_wanted = timeout(pause, world.crash_wanted.notified()).await.is_ok();
        // Not the node itself: it is not to be in use when it crashes and starts again.
        let Some(leader) = world.leader().map(|leader| leader.id) else { continue };
        let disturbed = world.now();
        if is_wanted && random.percent(60) {
            sleep(Duration::from_millis(random.below(100))).await;
            crash(&world, &[leader], &mut random).await;
        } else {
            any(&world, leader, &mut random).await;
        }
        world.network.heal();
        serve_again(&world, &mut random).await;
        world.disturbed_since(disturbed);
    }
}

async fn any(world: &World, leader: u64, random: &mut Random) {
    let follower = (leader + 1 + random.below(NODES - 1)) % NODES;
    let others = || (0..NODES).filter(|id| *id != leader).map(NodeId);
    let (id, lasts) = (NodeId(leader), Duration::from_millis(50 + random.below(3_000)));
    match random.below(10) {
        0 | 1 => return crash(world, &[leader], random).await,
        2 => return crash(world, &[follower], random).await,
        3 => return crash(world, &[0, 1, 2], random).await,
        4 => {
            world.count("fault: leader isolated");
            world.network.partition(&[&[id], &others().collect::<Vec<_>>()]);
        }
        5 => {
            world.count("fault: leader deaf");
            others().for_each(|other| world.network.cut(other, id));
        }
        6 => {
            world.count("fault: follower isolated");
            let rest: Vec<NodeId> = (0..NODES).filter(|id| *id != follower).map(NodeId).collect();
            world.network.partition(&[&[NodeId(follower)], &rest]);
        }
        7 => {
            world.count("fault: all disks full");
            let logs: Vec<_> = (0..NODES).map(|id| world.log(id)).collect();
            logs.iter().for_each(|log| log.fill(true));
            sleep(lasts).await;
            logs.iter().for_each(|log| log.fill(false));
            return;
        }
        8 => {
            world.count("fault: leader stopped");
            let Some(leader) = world.leader().filter(|node| node.id == leader) else { return };
            leader.clock.freeze();
            world.network.partition(&[&[id], &others().collect::<Vec<_>>()]);
            sleep(lasts).await;
            leader.clock.thaw();
            return;
        }
        _ => {
            world.count("fault: leadership transferred");
            let Some(leader) = world.leader().filter(|node| node.id == leader) else { return };
            let _ = timeout(lasts, leader.database.engine().transfer_leadership(None)).await;
            return;
        }
    }
    sleep(lasts).await;
}

async fn crash(world: &World, ids: &[u64], random: &mut Random) {
    world.count("fault: nodes crashed");
    for id in ids {
        world.crash(*id).await;
    }
    sleep(Duration::from_millis(random.below(2_500))).await;
    for id in ids {
        world.up(*id).await;
    }
}

/// Waits until one leader executes a write.
pub(crate) async fn serve_again(world: &World, random: &mut Random) {
    let began = Instant::now();
    loop {
        let put = Put { key: "probe".into(), value: "".into(), ..Put::default() };
        if world.execute(KvOperation::Put(put), random).await.is_ok() {
            return;
        }
        if began.elapsed() > Duration::from_secs(30) {
            return world.fail("no write is executed for 30 s after a fault".to_owned());
        }
        sleep(Duration::from_millis(20)).await;
    }
}
