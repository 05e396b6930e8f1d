//! Calls of a node's log or state machine that hang or fail until the fault ends. The cluster goes on without the node.

use std::{sync::Arc, time::Duration};

use consensus_core::{ConsensusEngine, LogIndex, ReadConsistency};
use consensus_raft_simulator::Random;
use tokio::time::{Instant, sleep, timeout};

use super::{
    boundary::Failing,
    cluster::{Node, World},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Writes,
    Machine,
    Snapshots,
}

/// Injects one of these faults into one node, and waits for its end. At most one node is stalled at a time: with two there may
/// be no quorum.
pub(crate) async fn any(world: &Arc<World>, mut random: Random) {
    let Ok(_alone) = world.stalling.try_lock() else { return };
    let stalls = world.plan.stalls;
    let kinds =
        [(stalls.writes, Kind::Writes), (stalls.machine, Kind::Machine), (stalls.snapshots, Kind::Snapshots)];
    let kinds: Vec<Kind> = kinds.iter().filter(|(is_on, _)| *is_on).map(|(_, kind)| *kind).collect();
    if kinds.is_empty() {
        return;
    }
    let kind = random.of(&kinds);
    // Only leaders take snapshots.
    let leads = if kind == Kind::Snapshots { 100 } else { 50 };
    let leader = world.leader().filter(|_| random.percent(leads)).map(|node| node.id);
    let id = leader.unwrap_or_else(|| random.below(world.plan.nodes));
    let Some(node) = world.take(id) else { return };
    match kind {
        Kind::Snapshots => no_snapshots(world, &node, &mut random).await,
        Kind::Writes | Kind::Machine => hang(world, &node, kind, &mut random).await,
    }
    world.give_back(id);
}

async fn hang(world: &World, node: &Node, kind: Kind, random: &mut Random) {
    let is_write = kind == Kind::Writes;
    world.record().count(if is_write { "fault: write hangs" } else { "fault: machine hangs" });
    let switch = |hang| if is_write { node.hangs.hang_writes(hang) } else { node.hangs.hang_machine(hang) };
    let (led, began) = (node.leads(), Instant::now());
    switch(true);
    if must_go_on(world) {
        goes_on(world, Some(node.id)).await;
    }
    sleep(Duration::from_millis(1 + random.below(4_000))).await;
    let status = node.status();
    let stalled = if is_write { status.storage_stalled_since } else { status.apply_stalled_since };
    if stalled.is_some() {
        let mut record = world.record();
        record.count(if is_write { "write beyond its time limit" } else { "apply beyond its time limit" });
        if led && !node.leads() {
            record.count("leader replaced while it was stalled");
        }
    }
    switch(false);
    // Several calls, at most: one that hung, and those that waited behind it.
    sleep(RETURNED_BY).await;
    let status = node.status();
    if status.storage_stalled_since.or(status.apply_stalled_since).is_some() {
        let (id, stalled) = (node.id, began.elapsed());
        world
            .record()
            .fail(format!("node {id} does not notice that its calls return, {stalled:?} after the fault"));
    }
}

/// Lets a follower need a snapshot that its leader cannot take.
async fn no_snapshots(world: &World, leader: &Node, random: &mut Random) {
    world.record().count("fault: no snapshots");
    leader.boundary.fail_calls(Failing::Snapshots, true);
    let behind = random.below(world.plan.nodes);
    if let Some(behind) = world.take(behind) {
        world.lose_power(behind.id).await;
        sleep(Duration::from_millis(500 + random.below(1_500))).await;
        let _ = world.completes("a compaction", leader.engine.compact_log()).await;
        world.up_again(behind.id).await;
        world.give_back(behind.id);
    }
    if must_go_on(world) {
        goes_on(world, None).await;
    }
    sleep(Duration::from_millis(1 + random.below(3_000))).await;
    leader.boundary.fail_calls(Failing::Snapshots, false);
}

/// Makes flushes, restores and reads of the log fail without an effect until the fault ends. The node must go on by itself.
pub(crate) async fn failing_calls(world: &World, node: &Node, mut random: Random) {
    world.record().count("fault: calls fail");
    let kinds = [Failing::Flushes, Failing::Restores, Failing::Reads];
    let some = 1 + random.below(7);
    let switch = |fail| {
        let chosen = kinds.iter().enumerate().filter(|(number, _)| some >> number & 1 == 1);
        chosen.for_each(|(_, kind)| node.boundary.fail_calls(*kind, fail));
    };
    switch(true);
    // The call waits for entries that cannot be read.
    let compact =
        |node: Node| async move { timeout(Duration::from_secs(1), node.engine.compact_log()).await };
    if random.percent(60) {
        // The others purge what the node needs, so that it must restore a snapshot.
        world.cut_off(node.id);
        sleep(Duration::from_millis(random.below(2_500))).await;
        for other in world.nodes() {
            let _ = compact(other).await;
        }
        world.network.heal();
    } else {
        let _ = compact(node.clone()).await;
    }
    sleep(Duration::from_millis(1 + random.below(4_000))).await;
    switch(false);
}

/// Whether the nodes that are not stalled are a quorum, and can talk to each other.
fn must_go_on(world: &World) -> bool {
    world.plan.stalls.alone && world.plan.voters >= 3
}

/// Waits until another node than `without` leads, serves a linearizable read and has committed more than before; fails the run
/// if that takes too long.
async fn goes_on(world: &World, without: Option<u64>) {
    let began = Instant::now();
    // The default limit of an apply is the longest one.
    let by = world.plan.stalls.limit.unwrap_or(Duration::from_secs(10)) + SERVED_BY;
    let mut before: Option<LogIndex> = None;
    while began.elapsed() < by {
        sleep(Duration::from_millis(50)).await;
        let Some(leader) = world.leader().filter(|leader| Some(leader.id) != without) else { continue };
        let committed = leader.status().commit;
        if committed <= *before.get_or_insert(committed) {
            continue;
        }
        let read = leader.engine.read_barrier(ReadConsistency::Linearizable);
        if matches!(world.completes("a read", read).await, Some(Ok(_))) {
            return world.record().count("cluster went on without the stalled node");
        }
    }
    let told: Vec<_> = world.nodes().iter().map(Node::status).collect();
    world
        .record()
        .fail(format!("the cluster does not go on without node {without:?} within {by:?}\n{told:#?}"));
}

/// Time in which calls return after the fault.
const RETURNED_BY: Duration = Duration::from_secs(2);
/// Time for elections on a network that loses messages.
const SERVED_BY: Duration = Duration::from_secs(10);
