//! Failed work that can be repeated is retried and does not stop the node.

mod faulty;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use consensus_core::{
    ConsensusEngine, EngineStatus, Health, LogIndex, Member, MemberChange, MemberKind, NodeId, SnapshotError,
};
use consensus_testkit::{SmallDisk, eventually};
use faulty::{Faults, FaultyCluster, set};

/// The only voter with a compacted log, and a learner that needs a snapshot from it.
async fn with_a_learner_that_needs_a_snapshot(
    configure: fn(&mut consensus_engine_raft::RaftConfig),
    prepare: impl FnOnce(&mut FaultyCluster),
) -> FaultyCluster {
    let mut cluster = FaultyCluster::start(1, configure).await;
    let leader = cluster.leader().await;
    for _ in 0..20 {
        cluster.nodes[leader].engine.propose(vec![b'x'; 50_000].into()).await.unwrap();
    }
    cluster.nodes[leader].engine.propose("last".into()).await.unwrap();
    assert!(cluster.nodes[leader].engine.compact_log().await.unwrap() > LogIndex(20));
    prepare(&mut cluster);
    cluster.add(None).await;
    cluster
}

async fn add_the_learner(cluster: &FaultyCluster) {
    let learner = MemberChange::Set(NodeId(1), Member::new(MemberKind::Learner));
    cluster.nodes[0].engine.change_membership(vec![learner]).await.unwrap();
}

/// Checks that while `fault` is on, the leader reports an error that contains `why`, sends no snapshot, and keeps serving.
async fn check_snapshot_is_sent_after_fault(fault: fn(&Faults) -> &AtomicBool, why: &str) {
    let cluster = with_a_learner_that_needs_a_snapshot(|_| {}, |_| {}).await;
    let (leader, learner) = (&cluster.nodes[0], &cluster.nodes[1]);
    set(fault(&leader.faults), true);
    add_the_learner(&cluster).await;
    let reports =
        |status: &EngineStatus| status.snapshot_errors.get(&NodeId(1)).is_some_and(|said| said.contains(why));
    leader.status_when("the leader reports the reason", reports).await;
    leader.engine.propose("meanwhile".into()).await.unwrap();
    assert_eq!(leader.status().health, Health::Running);
    set(fault(&leader.faults), false);
    learner.applied("meanwhile").await;
    leader.status_when("the error is cleared", |status| status.snapshot_errors.is_empty()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_snapshot_is_retried() {
    check_snapshot_is_sent_after_fault(|faults| &faults.snapshots_fail, "makes snapshots fail").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_with_failing_stream_is_retried() {
    check_snapshot_is_sent_after_fault(|faults| &faults.streams_fail, "reads of the snapshot fail").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_is_retried_after_failed_flush() {
    check_snapshot_is_sent_after_fault(|faults| &faults.flushes_fail, "makes flushes fail").await;
}

/// Checks that the follower reports why it refuses the snapshot, and accepts one after `repair`.
async fn check_snapshot_is_accepted_after_repair(
    cluster: FaultyCluster,
    why: &str,
    repair: impl FnOnce(&FaultyCluster),
) {
    add_the_learner(&cluster).await;
    let (leader, learner) = (&cluster.nodes[0], &cluster.nodes[1]);
    let reports =
        |status: &EngineStatus| status.snapshot_blocked.as_ref().is_some_and(|said| said.contains(why));
    learner.status_when("the follower reports the reason", reports).await;
    let is_refused = |status: &EngineStatus| {
        status.snapshot_errors.get(&NodeId(1)).is_some_and(|said| said.contains("refused"))
    };
    leader.status_when("the leader reports the refusal", is_refused).await;
    leader.engine.propose("meanwhile".into()).await.unwrap();
    assert_eq!(
        (leader.status().health.clone(), learner.status().health.clone()),
        (Health::Running, Health::Running)
    );
    repair(&cluster);
    learner.applied("meanwhile").await;
    learner.status_when("the error is cleared", |status| status.snapshot_blocked.is_none()).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_restore_is_retried_with_another_snapshot() {
    let cluster = with_a_learner_that_needs_a_snapshot(|_| {}, |_| {}).await;
    set(&cluster.nodes[1].faults.restores_fail, true);
    check_snapshot_is_accepted_after_repair(cluster, "makes restores fail", |cluster| {
        set(&cluster.nodes[1].faults.restores_fail, false);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_without_writable_directory_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("not there yet");
    let cluster =
        with_a_learner_that_needs_a_snapshot(|_| {}, |cluster| cluster.snapshot_dir = Some(place.clone()))
            .await;
    check_snapshot_is_accepted_after_repair(cluster, "not there yet", |_| {
        std::fs::create_dir(&place).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_leaves_the_reserve_free_and_arrives_once_there_is_room() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let disk = match SmallDisk::mount(dir.path(), 16) {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED, {why}"),
    };
    // The snapshot has 1 MB; only half of that is free beyond the reserve.
    let ballast = dir.path().join("some files");
    std::fs::write(&ballast, vec![0; (16 - 4) * MIB as usize - MIB as usize / 2]).unwrap();
    let configure = |config: &mut consensus_engine_raft::RaftConfig| config.snapshot_reserve_bytes = 4 * MIB;
    let path = disk.path().to_owned();
    let cluster =
        with_a_learner_that_needs_a_snapshot(configure, |cluster| cluster.snapshot_dir = Some(path)).await;
    check_snapshot_is_accepted_after_repair(cluster, "MiB free", |_| std::fs::remove_file(&ballast).unwrap())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_is_kept_while_flushes_fail_and_compacted_afterwards() {
    let cluster = FaultyCluster::start(1, |config| {
        (config.compact_after_entries, config.compact_keep_entries) = (10, 0);
    })
    .await;
    let node = &cluster.nodes[cluster.leader().await];
    set(&node.faults.flushes_fail, true);
    for n in 0..30 {
        node.engine.propose(n.to_string().into()).await.unwrap();
    }
    let refused = node.engine.compact_log().await;
    assert!(
        matches!(&refused, Err(SnapshotError::NotFlushed(why)) if why.contains("flushes")),
        "{refused:?}"
    );
    assert_eq!((node.status().health.clone(), node.status().first_index), (Health::Running, LogIndex(1)));
    set(&node.faults.flushes_fail, false);
    node.status_when("the log is compacted automatically", |status| status.first_index > LogIndex(10)).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_state_machine_stops_the_node() {
    let cluster = FaultyCluster::start(1, |_| {}).await;
    let node = &cluster.nodes[cluster.leader().await];
    set(&node.faults.flushes_break, true);
    let refused = node.engine.compact_log().await;
    assert!(refused.is_err(), "{refused:?}");
    let is_over = |status: &EngineStatus| matches!(&status.health, Health::Fatal(why) if why.contains("broke the state"));
    node.status_when("it ends", is_over).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_read_of_entries_for_a_follower_is_retried() {
    let mut cluster = FaultyCluster::start(1, |config| config.cache_bytes_max = 1000).await;
    let leader = cluster.leader().await;
    for _ in 0..20 {
        cluster.nodes[leader].engine.propose(vec![b'x'; 500].into()).await.unwrap();
    }
    cluster.add(None).await;
    let (leader, learner) = (&cluster.nodes[0], &cluster.nodes[1]);
    set(&leader.faults.reads_fail, true);
    add_the_learner(&cluster).await;
    leader.engine.propose("meanwhile".into()).await.unwrap();
    leader.status_when("it answers", |status| status.peers.values().any(|peer| peer.active)).await;
    tokio::time::sleep(Duration::from_millis(200)).await; // Time for some heartbeats, each of which retries.
    assert_eq!((leader.status().health.clone(), learner.commands().len()), (Health::Running, 0));
    set(&leader.faults.reads_fail, false);
    learner.applied("meanwhile").await;
    cluster.end().await;
}

/// A log that cannot be read for a while delays the entries that are not in memory any more.
#[tokio::test(flavor = "multi_thread")]
async fn committed_entries_are_applied_after_failed_reads() {
    let cluster = FaultyCluster::start(1, |config| {
        config.cache_bytes_max = 0;
        config.apply_stall_limit = Some(Duration::from_secs(600));
    })
    .await;
    let node = &cluster.nodes[cluster.leader().await];
    node.faults.applies.close();
    let propose = |command: &'static str| {
        let engine = node.engine.clone();
        tokio::spawn(async move { engine.propose(command.into()).await })
    };
    let first = propose("first");
    let before = node.status_when("it is committed", |status| status.commit > status.applied).await.commit;
    let second = propose("second");
    node.status_when("the next one, too", |status| status.commit > before).await;
    set(&node.faults.reads_fail, true);
    node.faults.applies.open();
    first.await.unwrap().unwrap();
    eventually("the read is repeated", || {
        let failed = node.faults.failed_reads.load(Ordering::SeqCst);
        if failed >= 2 { Ok(()) } else { Err((failed, node.status())) }
    })
    .await;
    assert_eq!((node.status().health.clone(), node.commands().len()), (Health::Running, 1));
    set(&node.faults.reads_fail, false);
    second.await.unwrap().unwrap();
    assert_eq!(node.commands(), ["first", "second"]);
    cluster.end().await;
}

/// A disk so full that not even a term can be noted: the node takes part again once it can.
#[tokio::test(flavor = "multi_thread")]
async fn follower_without_room_for_a_vote_goes_on_once_there_is_room() {
    let cluster = FaultyCluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    let (full, next) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[leader].engine.propose("before".into()).await.unwrap();
    cluster.nodes[full].applied("before").await;
    cluster.nodes[next].applied("before").await;
    set(&cluster.nodes[full].faults.has_no_room, true);
    cluster.nodes[leader].engine.transfer_leadership(Some(NodeId(next as u64))).await.unwrap();
    let status = cluster.nodes[full].status_when("it lacks room", |status| status.no_room.is_some()).await;
    assert_eq!(status.health, Health::Running);
    set(&cluster.nodes[full].faults.has_no_room, false);
    cluster.nodes[full].status_when("it has room", |status| status.no_room.is_none()).await;
    let leader = cluster.leader().await;
    cluster.nodes[leader].engine.propose("after".into()).await.unwrap();
    cluster.nodes[full].applied("after").await;
    cluster.end().await;
}
