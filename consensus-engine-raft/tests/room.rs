//! A disk without room: refused cleanly, and over when there is room again.

mod common;

use bytes::Bytes;
use common::Cluster;
use consensus_core::ProposeError;
use consensus_testkit::eventually;

fn commands(cluster: &Cluster, id: usize) -> Vec<Bytes> {
    cluster.nodes[id].journal.commands().into_iter().map(|(_, command)| command).collect()
}

#[tokio::test]
async fn commands_are_refused_while_there_is_no_room_and_taken_again_afterwards() {
    let cluster = Cluster::start(1, |_| {}).await;
    let engine = cluster.engine(cluster.leader().await).clone();
    engine.propose("before".into()).await.unwrap();
    cluster.storages[0].fill(true);
    // The first finds out; it is in the log, and written when there is room.
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
async fn a_leader_without_room_hands_over_and_catches_up_later() {
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
async fn an_engine_without_room_can_be_shut_down() {
    let cluster = Cluster::start(1, |_| {}).await;
    let engine = cluster.engine(cluster.leader().await).clone();
    cluster.storages[0].fill(true);
    let _ = engine.propose("first".into()).await;
    engine.shutdown().await.unwrap();
}
