//! A disk or a state machine that hangs: another node becomes leader, and all clients get a result in time.

mod faulty;

use std::time::{Duration, Instant};

use consensus_core::{
    ConsensusEngine, Health, LogStorage, NodeId, ProposeError, ReadConsistency, ReadError, Role,
    TransferError,
};
use faulty::FaultyCluster;

#[tokio::test(flavor = "multi_thread")]
async fn leader_with_hanging_disk_transfers_leadership_and_recovers() {
    let cluster = FaultyCluster::start(3, |_| {}).await;
    let stalled = cluster.leader().await;
    let node = &cluster.nodes[stalled];
    node.engine.propose("before".into()).await.unwrap();
    node.faults.writes.close();
    let began = Instant::now();
    let pending = node.engine.propose("pending".into()).await;
    assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
    let leading = cluster.leader_other_than(Some(stalled)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    cluster.nodes[leading].engine.propose("after".into()).await.unwrap();

    // The node reports the stall, sends clients to the leader, and disturbs no other node.
    let status = node.status_when("it follows", |status| status.leader == Some(NodeId(leading as u64))).await;
    assert_eq!(status.health, Health::Running);
    assert!(status.storage_stalled_since.is_some_and(|since| since.elapsed() < Duration::from_secs(20)));
    let refused = node.engine.propose("refused".into()).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(_) })), "{refused:?}");
    let read = node.engine.read_barrier(ReadConsistency::Linearizable).await;
    assert!(matches!(read, Err(ReadError::NotLeader { leader: Some(_) })), "{read:?}");
    let term = cluster.nodes[leading].status().term;
    let transfer = cluster.nodes[leading].engine.transfer_leadership(Some(NodeId(stalled as u64))).await;
    assert!(matches!(transfer, Err(TransferError::TimedOut)), "{transfer:?}");
    assert_eq!(cluster.nodes[leading].status().term, term, "no node campaigned");

    node.faults.writes.open();
    node.status_when("the disk responds again", |status| status.storage_stalled_since.is_none()).await;
    node.applied("after").await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_with_hanging_state_machine_transfers_leadership_and_recovers() {
    let cluster = FaultyCluster::start(3, |_| {}).await;
    let stalled = cluster.leader().await;
    let node = &cluster.nodes[stalled];
    node.engine.propose("before".into()).await.unwrap();
    node.faults.applies.close();
    // The first command is being applied, the second one waits.
    let (first, second) =
        tokio::join!(node.engine.propose("first".into()), node.engine.propose("second".into()));
    for pending in [first, second] {
        assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
    }
    let leading = cluster.leader_other_than(Some(stalled)).await;
    cluster.nodes[leading].engine.propose("after".into()).await.unwrap();
    let status = node.status_when("it follows", |status| status.leader == Some(NodeId(leading as u64))).await;
    assert!(status.apply_stalled_since.is_some() && status.storage_stalled_since.is_none());
    let read = node.engine.read_barrier(ReadConsistency::Linearizable).await;
    assert!(matches!(read, Err(ReadError::NotLeader { leader: Some(_) })), "{read:?}");

    node.faults.applies.open();
    node.status_when("the state machine responds again", |status| status.apply_stalled_since.is_none()).await;
    node.applied("after").await;
    assert_eq!(
        node.commands().len(),
        cluster.nodes[leading].commands().len(),
        "each command was applied once"
    );
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_with_hanging_disk_steps_down_without_up_to_date_voter() {
    let cluster = FaultyCluster::start(3, |_| {}).await;
    let stalled = cluster.leader().await;
    for node in &cluster.nodes {
        node.log.fill(true); // No node can write commands that are proposed now.
    }
    cluster.nodes[stalled].faults.writes.close();
    let pending = cluster.nodes[stalled].engine.propose("pending".into()).await;
    assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
    let leading = cluster.leader_other_than(Some(stalled)).await;
    for node in &cluster.nodes {
        node.log.fill(false);
    }
    cluster.nodes[leading].status_when("there is room", |status| status.no_room.is_none()).await;
    let leading = cluster.leader_other_than(Some(stalled)).await;
    cluster.nodes[leading].engine.propose("after".into()).await.unwrap();
    cluster.end().await;
}

/// The followers acknowledge heartbeats during a write, so the leader keeps its quorum, but it can commit nothing.
#[tokio::test(flavor = "multi_thread")]
async fn proposal_ends_in_time_if_the_disks_of_all_followers_hang() {
    const LIMIT: Duration = Duration::from_secs(1);
    let cluster = FaultyCluster::start(3, |config| {
        config.wait_limit = Some(LIMIT);
        config.storage_stall_limit = Some(Duration::from_secs(60));
    })
    .await;
    let leading = cluster.leader().await;
    let leader = &cluster.nodes[leading];
    leader.engine.propose("before".into()).await.unwrap();
    let others: Vec<_> = (0..3).filter(|id| *id != leading).collect();
    others.iter().for_each(|id| cluster.nodes[*id].faults.writes.close());
    let began = Instant::now();
    let pending = leader.engine.propose("pending".into()).await;
    assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
    assert!((LIMIT..20 * LIMIT).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(leader.status().role, Role::Leader, "it has a quorum");
    others.iter().for_each(|id| cluster.nodes[*id].faults.writes.open());
    leader.engine.propose("after".into()).await.unwrap();
    cluster.end().await;
}

/// On one thread the worker's thread makes the write.
#[tokio::test]
async fn only_voter_with_hanging_disk_stays_leader_and_refuses_commands() {
    hang_disk_of_only_voter().await;
}

/// On several threads the engine's task makes the write inline, as the one before was quick.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_voter_whose_inline_write_hangs_stays_leader_and_refuses_commands() {
    hang_disk_of_only_voter().await;
}

async fn hang_disk_of_only_voter() {
    let cluster = FaultyCluster::start(1, |_| {}).await;
    let node = &cluster.nodes[cluster.leader().await];
    for round in 0..3 {
        let (before, pending) = (format!("before {round}"), format!("pending {round}"));
        node.engine.propose(before.into()).await.unwrap();
        node.faults.writes.close();
        let began = Instant::now();
        let pending = node.engine.propose(pending.into()).await;
        assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
        let refused = node.engine.propose("refused".into()).await.unwrap_err();
        assert!(matches!(&refused, ProposeError::Stalled { why } if why.contains("disk")), "{refused:?}");
        assert!(!refused.maybe_applied());
        let status = node.status();
        let since = status.storage_stalled_since.unwrap();
        assert!(since.elapsed() <= began.elapsed() && status.role == Role::Leader, "{status:?}");
        // Durable entries can be read.
        node.engine.read_barrier(ReadConsistency::Linearizable).await.unwrap();
        node.faults.writes.open();
        node.status_when("the disk responds again", |status| status.storage_stalled_since.is_none()).await;
    }
    node.engine.propose("after".into()).await.unwrap();
    let commands = node.commands();
    let expected = (0..3).flat_map(|round| [format!("before {round}"), format!("pending {round}")]);
    assert_eq!(commands, expected.chain(["after".to_owned()]).collect::<Vec<_>>());
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_voter_whose_inline_apply_hangs_refuses_commands_and_reads() {
    let cluster = FaultyCluster::start(1, |_| {}).await;
    let node = &cluster.nodes[cluster.leader().await];
    node.engine.propose("before".into()).await.unwrap();
    node.faults.applies.close();
    let pending = node.engine.propose("pending".into()).await;
    assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
    let refused = node.engine.propose("refused".into()).await.unwrap_err();
    assert!(
        matches!(&refused, ProposeError::Stalled { why } if why.contains("state machine")),
        "{refused:?}"
    );
    let read = node.engine.read_barrier(ReadConsistency::Linearizable).await;
    assert!(matches!(read, Err(ReadError::NotLeader { leader: None })), "{read:?}");
    let status = node.status();
    assert!(status.apply_stalled_since.is_some() && status.storage_stalled_since.is_none(), "{status:?}");
    node.faults.applies.open();
    node.status_when("the state machine responds again", |status| status.apply_stalled_since.is_none()).await;
    node.engine.propose("after".into()).await.unwrap();
    assert_eq!(node.commands(), ["before", "pending", "after"]);
    cluster.end().await;
}

/// The call that hangs is part of no task that a shutdown ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_the_inline_write_that_hangs() {
    let cluster = FaultyCluster::start(1, |_| {}).await;
    let node = &cluster.nodes[cluster.leader().await];
    node.engine.propose("before".into()).await.unwrap();
    node.faults.writes.close();
    let pending = node.engine.propose("pending".into()).await;
    assert!(matches!(pending, Err(ProposeError::Unknown { .. })), "{pending:?}");
    let engine = node.engine.clone();
    let shutdown = tokio::spawn(async move { engine.shutdown().await });
    node.status_when("it is shut down", |status| status.health == Health::ShutDown).await;
    assert!(!shutdown.is_finished(), "the call still uses the files of the log");
    node.faults.writes.open();
    shutdown.await.unwrap().unwrap();
    assert_eq!(node.log.load().unwrap().last().index, node.status().last_log.index);
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_pause_below_the_limit_has_no_effect() {
    let cluster = FaultyCluster::start(3, |config| config.storage_stall_limit = None).await;
    let leading = cluster.leader().await;
    let node = &cluster.nodes[leading];
    node.engine.propose("before".into()).await.unwrap();
    let term = node.status().term;
    node.faults.writes.close();
    let faults = node.faults.clone();
    let open = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        faults.writes.open();
    });
    node.engine.propose("during".into()).await.unwrap();
    open.await.unwrap();
    let status = node.status();
    assert_eq!((status.role, status.term, status.storage_stalled_since), (Role::Leader, term, None));
    cluster.end().await;
}
