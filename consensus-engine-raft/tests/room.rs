//! A disk without room: commands are refused, and accepted again when there is room.

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::Cluster;
use consensus_core::{ConsensusEngine, NodeId, ProposeError, ReadConsistency, Role};
use consensus_testkit::eventually;

fn commands(cluster: &Cluster, id: usize) -> Vec<Bytes> {
    cluster.nodes[id].journal.commands().into_iter().map(|(_, command)| command).collect()
}

#[tokio::test]
async fn commands_are_refused_without_room_and_accepted_with_room() {
    let cluster = Cluster::start(1, |_| {}).await;
    let engine = cluster.engine(cluster.leader().await).clone();
    engine.propose("before".into()).await.unwrap();
    cluster.storages[0].fill(true);
    // The first command finds no room. It stays in the log and is written when there is room.
    let first = engine.propose("first".into()).await;
    assert!(matches!(first, Err(ProposeError::Unknown { .. })), "{first:?}");
    let second = engine.propose("second".into()).await.unwrap_err();
    assert!(matches!(&second, ProposeError::NoRoom { why } if why.contains("filled")), "{second:?}");
    assert!(!second.maybe_applied());
    let status = engine.status();
    assert!(status.borrow().no_room.is_some());

    cluster.storages[0].fill(false);
    let mut watching = engine.status();
    watching.wait_for(|status| status.no_room.is_none()).await.unwrap();
    engine.propose("after".into()).await.unwrap();
    assert_eq!(commands(&cluster, 0), ["before", "first", "after"]);
}

#[tokio::test]
async fn leader_without_room_transfers_leadership_and_catches_up() {
    let cluster = Cluster::start(3, |_| {}).await;
    let full = cluster.leader().await;
    cluster.engine(full).propose("before".into()).await.unwrap();
    cluster.storages[full].fill(true);
    let _ = cluster.engine(full).propose("first".into()).await;
    let other = cluster.leader_other_than(full).await;
    cluster.engine(other).propose("meanwhile".into()).await.unwrap();
    cluster.storages[full].fill(false);
    eventually("the full node has caught up", || {
        let commands = commands(&cluster, full);
        commands.contains(&"meanwhile".into()).then_some(()).ok_or(commands)
    })
    .await;
}

#[tokio::test]
async fn engine_without_room_can_be_shut_down() {
    let cluster = Cluster::start(1, |_| {}).await;
    let engine = cluster.engine(cluster.leader().await).clone();
    cluster.storages[0].fill(true);
    let _ = engine.propose("first".into()).await;
    engine.shutdown().await.unwrap();
}

/// Starts a cluster of three whose leader has found no room, like `others`. Returns the leader.
async fn without_room(cluster: &Cluster, others: &[usize]) -> usize {
    let leading = cluster.leader().await;
    cluster.engine(leading).propose("before".into()).await.unwrap();
    for node in std::iter::once(&0).chain(others) {
        cluster.storages[(leading + node) % 3].fill(true);
    }
    let first = cluster.engine(leading).propose("first".into()).await;
    assert!(matches!(first, Err(ProposeError::Unknown { .. })), "{first:?}");
    leading
}

#[tokio::test]
async fn leader_without_room_transfers_leadership_once_others_have_room() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = without_room(&cluster, &[1, 2]).await;
    // Longer than the time limit of a leadership transfer.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let status = cluster.engine(leading).status().borrow().clone();
    assert!(status.role == Role::Leader && status.no_room.is_some(), "{status:?}");
    for other in [1, 2] {
        cluster.storages[(leading + other) % 3].fill(false);
    }
    let other = cluster.leader_other_than(leading).await;
    cluster.engine(other).propose("after".into()).await.unwrap();
    assert!(cluster.engine(leading).status().borrow().no_room.is_some(), "it still has no room");
}

#[tokio::test]
async fn leader_stays_while_a_quorum_has_no_room() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = without_room(&cluster, &[1]).await;
    let engine = cluster.engine(leading);
    let term = engine.status().borrow().term;
    let until = tokio::time::Instant::now() + Duration::from_secs(2);
    while tokio::time::Instant::now() < until {
        let refused = engine.propose("refused".into()).await;
        assert!(
            matches!(&refused, Err(ProposeError::NoRoom { why }) if why.contains("filled")),
            "{refused:?}"
        );
        engine.read_barrier(ReadConsistency::Linearizable).await.expect("reads are still served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = engine.status().borrow().clone();
    assert_eq!((status.role, status.term), (Role::Leader, term), "there was no election");
}

#[tokio::test]
async fn leader_is_elected_by_a_voter_without_room() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = without_room(&cluster, &[1]).await;
    cluster.isolate(leading);
    let other = cluster.leader_other_than(leading).await;
    assert!(cluster.engine(other).status().borrow().leader == Some(NodeId(other as u64)));
    cluster.storages[(leading + 1) % 3].fill(false);
    proposal_succeeds_with_room(cluster.engine(other)).await;
}

#[tokio::test]
async fn leader_elected_while_no_disk_has_room_serves_reads_and_refuses_commands() {
    let cluster = Cluster::start(3, |_| {}).await;
    let before = cluster.leader().await;
    cluster.engine(before).propose("before".into()).await.unwrap();
    // A node that lacks the command has no room for it later, and the next leader needs both others.
    for id in 0..3 {
        eventually("the command is on every disk", || {
            let commands = commands(&cluster, id);
            (commands.len() == 1).then_some(()).ok_or(commands)
        })
        .await;
    }
    cluster.storages.iter().for_each(|storage| storage.fill(true));
    cluster.isolate(before);
    let engine = cluster.engine(cluster.leader_other_than(before).await);
    let read = engine.read_barrier(ReadConsistency::Linearizable);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .expect("the read returns in time")
        .expect("reads are still served");
    let first = engine.propose("first".into()).await;
    assert!(matches!(first, Err(ProposeError::Unknown { .. })), "{first:?}");
    engine.read_barrier(ReadConsistency::Linearizable).await.expect("reads are still served");
    cluster.storages.iter().for_each(|storage| storage.fill(false));
    proposal_succeeds_with_room(engine).await;
}

#[tokio::test]
async fn leader_refuses_commands_while_a_quorum_has_no_room() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = cluster.leader().await;
    let engine = cluster.engine(leading);
    engine.propose("before".into()).await.unwrap();
    let others = [(leading + 1) % 3, (leading + 2) % 3];
    others.iter().for_each(|other| cluster.storages[*other].fill(true));
    let first = engine.propose("first".into()).await;
    assert!(matches!(first, Err(ProposeError::Unknown { .. })), "{first:?}");
    let refused = engine.propose("refused".into()).await;
    assert!(matches!(&refused, Err(ProposeError::NoRoom { why }) if why.contains("node")), "{refused:?}");
    engine.read_barrier(ReadConsistency::Linearizable).await.expect("reads are still served");
    others.iter().for_each(|other| cluster.storages[*other].fill(false));
    eventually("the first command is written", || {
        let commands = commands(&cluster, leading);
        commands.contains(&"first".into()).then_some(()).ok_or(commands)
    })
    .await;
    proposal_succeeds_with_room(engine).await;
}

async fn proposal_succeeds_with_room(engine: &Arc<dyn ConsensusEngine>) {
    let mut taken = engine.propose("after".into()).await;
    while matches!(taken, Err(ProposeError::NoRoom { .. })) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        taken = engine.propose("after".into()).await;
    }
    taken.unwrap();
}
