//! Engines on the in-memory transport: conformance, failover, restart, snapshots, faults.

mod common;

use std::time::{Duration, Instant};

use common::Cluster;
use consensus_core::{
    Entry, Health, LogId, LogIndex, NodeId, Payload, ProposeError, ReadConsistency, ReadError, Role,
    StateMachine, Term,
};
use consensus_engine_raft::StartError;
use consensus_testkit::{
    Journal,
    engine::{self, converged},
    eventually,
};
use consensus_transport_mem::Link;

#[tokio::test(flavor = "multi_thread")]
async fn passes_the_suite() {
    engine::run_suite(&[1, 2, 3, 5], |size| async move { Cluster::start(size, |_| {}).await.nodes }).await;
}

#[tokio::test]
async fn passes_the_suite_on_one_thread() {
    engine::run_suite(&[3], |size| async move { Cluster::start(size, |_| {}).await.nodes }).await;
}

#[tokio::test]
async fn single_voter_commits_at_once_and_survives_restarts() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    for round in 1..=3 {
        cluster.leader().await;
        cluster.nodes[0].engine.propose(format!("{round}").into()).await.unwrap();
        assert_eq!(cluster.nodes[0].journal.commands().len(), round);
        cluster.restart(0).await;
    }
    converged(&cluster.nodes, 3).await;
}

#[tokio::test]
async fn cluster_survives_loss_of_its_leader_and_readmits_it() {
    let cluster = Cluster::start(3, |_| {}).await;
    let old = cluster.leader().await;
    cluster.nodes[old].engine.propose("before".into()).await.unwrap();
    cluster.isolate(old);
    let new = cluster.leader_other_than(old).await;
    cluster.nodes[new].engine.propose("after".into()).await.unwrap();
    // Isolated from its quorum, the old leader neither commits nor serves reads, and its callers get errors.
    let stale = cluster.nodes[old].engine.clone();
    let (write, read) =
        tokio::join!(stale.propose("lost".into()), stale.read_barrier(ReadConsistency::Linearizable));
    assert!(matches!(write, Err(ProposeError::Unknown { .. } | ProposeError::NotLeader { .. })), "{write:?}");
    assert!(matches!(read, Err(ReadError::NotLeader { .. })), "{read:?}");
    cluster.network.heal();
    let commands = converged(&cluster.nodes, 2).await;
    assert_eq!(commands.iter().map(|(_, c)| c.clone()).collect::<Vec<_>>(), ["before", "after"]);
}

#[tokio::test]
async fn rejoining_node_does_not_depose_the_leader() {
    let cluster = Cluster::start(3, |_| {}).await;
    let leading = cluster.leader().await;
    let term = cluster.nodes[leading].engine.status().borrow().term;
    let away = (leading + 1) % 3;
    cluster.isolate(away);
    let mut status = cluster.nodes[away].engine.status();
    status.wait_for(|status| status.role == Role::PreCandidate).await.unwrap();
    cluster.network.heal();
    status.wait_for(|status| status.leader == Some(NodeId(leading as u64))).await.unwrap();
    assert_eq!(cluster.nodes[leading].engine.status().borrow().term, term);
}

#[tokio::test]
async fn restart_of_all_nodes_loses_nothing() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    for round in 0..3 {
        let leading = cluster.leader().await;
        for n in 0..20 {
            cluster.nodes[leading].engine.propose(format!("{round}/{n}").into()).await.unwrap();
        }
        for id in 0..3 {
            cluster.restart(id).await;
        }
    }
    cluster.leader().await;
    converged(&cluster.nodes, 60).await;
}

#[tokio::test]
async fn follower_behind_the_purged_log_gets_a_snapshot() {
    let mut cluster = Cluster::start(3, |config| {
        config.compact_after_entries = 50;
        config.compact_keep_entries = 10;
        config.snapshot_chunk_bytes = 100;
    })
    .await;
    let leading = cluster.leader().await;
    let away = (leading + 1) % 3;
    cluster.lose(leading, away).await;
    for n in 0..300 {
        cluster.nodes[leading].engine.propose(format!("{n}").into()).await.unwrap();
    }
    let first = cluster.nodes[leading].engine.status().borrow().first_index;
    assert!(first > LogIndex(200), "the log is compacted and starts at {first}");
    cluster.network.heal();
    converged(&cluster.nodes, 300).await;
    assert!(
        cluster.nodes[away].engine.status().borrow().first_index > LogIndex(100),
        "the follower got a snapshot"
    );
    // After a restart the installed state is present, and later entries apply to it.
    cluster.restart(away).await;
    let leading = cluster.leader().await;
    cluster.nodes[leading].engine.propose("more".into()).await.unwrap();
    converged(&cluster.nodes, 301).await;
}

/// Much longer than the pause before a chunk is sent again.
const OUTAGE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_transfer_resumes_after_an_outage() {
    let cluster = Cluster::start(3, |config| {
        config.compact_after_entries = 50;
        config.compact_keep_entries = 10;
        config.snapshot_chunk_bytes = 100;
        config.snapshot_bytes_per_second = 5000;
    })
    .await;
    let leading = cluster.leader().await;
    let away = (leading + 1) % 3;
    cluster.lose(leading, away).await;
    for n in 0..300 {
        cluster.nodes[leading].engine.propose(format!("{n}").into()).await.unwrap();
    }
    let status = cluster.engine(leading).status();
    let sent = || status.borrow().peers.get(&NodeId(away as u64)).and_then(|peer| peer.snapshot_bytes);
    let more_than = |bytes| move |sent: Option<u64>| sent.filter(|sent| *sent > bytes).ok_or(sent);
    cluster.network.heal();
    let before = eventually("a part of the snapshot is sent", || more_than(1000)(sent())).await;
    cluster.isolate(away);
    tokio::time::sleep(OUTAGE).await;
    assert!(sent() >= Some(before), "{before} bytes were sent, now {:?}", sent());
    cluster.network.heal();
    while let Some(now) = sent() {
        assert!(now >= before, "the transfer restarted: {before} bytes were sent, now {now}");
        tokio::task::yield_now().await;
    }
    converged(&cluster.nodes, 300).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_transfer_is_rate_limited_and_reports_progress() {
    const RATE: u64 = 10_000;
    let cluster = Cluster::start(3, |config| {
        config.compact_after_entries = 50;
        config.compact_keep_entries = 10;
        config.snapshot_chunk_bytes = 500;
        config.snapshot_bytes_per_second = RATE;
    })
    .await;
    let leading = cluster.leader().await;
    let away = (leading + 1) % 3;
    cluster.lose(leading, away).await;
    for n in 0..300 {
        cluster.nodes[leading].engine.propose(format!("{n}").into()).await.unwrap();
    }
    let mut status = cluster.engine(leading).status();
    let away_id = NodeId(away as u64);
    let progress = tokio::spawn(async move {
        let mut seen = Vec::new();
        while status.changed().await.is_ok() {
            let bytes = status.borrow().peers.get(&away_id).and_then(|peer| peer.snapshot_bytes);
            match bytes {
                Some(bytes) => seen.push(bytes),
                None if seen.last().is_some_and(|last| *last > 0) => break,
                None => {}
            }
        }
        seen
    });
    // A snapshot that started when the node went away would be followed by a second one.
    let status = cluster.engine(leading).status();
    eventually("no snapshot is being sent", || {
        status.borrow().peers[&away_id].snapshot_bytes.map_or(Ok(()), Err)
    })
    .await;
    let began = Instant::now();
    cluster.network.heal();
    let seen = progress.await.unwrap();
    let took = began.elapsed();
    converged(&cluster.nodes, 300).await;
    let most = *seen.last().unwrap();
    assert!(most > 0 && seen.is_sorted(), "{seen:?}");
    assert!(took >= Duration::from_secs_f64(most as f64 / RATE as f64), "{most} bytes took {took:?}");
}

#[tokio::test]
async fn follower_far_behind_is_served_from_disk() {
    let cluster = Cluster::start(3, |config| config.cache_bytes_max = 1000).await;
    let leading = cluster.leader().await;
    cluster.isolate((leading + 1) % 3);
    for n in 0..500 {
        cluster.nodes[leading].engine.propose(format!("{n}").into()).await.unwrap();
    }
    cluster.network.heal();
    converged(&cluster.nodes, 500).await;
}

#[tokio::test]
async fn cluster_works_on_lossy_network() {
    let cluster = Cluster::start(3, |_| {}).await;
    let latency = (Duration::ZERO, Duration::from_millis(8));
    cluster.network.set_all_links(&Link {
        latency,
        loss: 0.1,
        duplication: 0.1,
        reordering: true,
        cut: false,
    });
    let mut acknowledged = 0;
    while acknowledged < 100 {
        let leading = cluster.leader().await;
        acknowledged += usize::from(cluster.nodes[leading].engine.propose("x".into()).await.is_ok());
    }
    cluster.network.set_all_links(&Link::default());
    let commands = eventually("all nodes converge", || {
        let all: Vec<_> = cluster.nodes.iter().map(|node| node.journal.commands()).collect();
        if all.iter().all(|c| *c == all[0] && c.len() >= 100) { Ok(all[0].clone()) } else { Err("differ") }
    })
    .await;
    assert!(commands.len() >= acknowledged);
}

#[tokio::test]
async fn writes_are_batched_under_load() {
    let cluster = Cluster::start(1, |_| {}).await;
    let engine = cluster.nodes[cluster.leader().await].engine.clone();
    let (before, _) = cluster.storages[0].written();
    let load: Vec<_> = (0..1000)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.propose(format!("{n}").into()).await })
        })
        .collect();
    for proposal in load {
        proposal.await.unwrap().unwrap();
    }
    let (after, _) = cluster.storages[0].written();
    assert!(after - before < 200, "{} writes for 1000 proposals", after - before);
}

#[tokio::test]
async fn failed_log_write_stops_the_node_and_acknowledges_nothing() {
    let cluster = Cluster::start(1, |_| {}).await;
    cluster.leader().await;
    cluster.storages[0].fail_writes(true);
    let engine = &cluster.nodes[0].engine;
    let answer = engine.propose("x".into()).await;
    assert!(
        matches!(&answer, Err(ProposeError::Fatal { why }) if why.contains("makes the disk fail")),
        "{answer:?}"
    );
    assert!(cluster.nodes[0].journal.commands().is_empty());
    assert!(matches!(engine.status().borrow().health, Health::Fatal(_)));
    assert!(engine.shutdown().await.is_err());
}

#[tokio::test]
async fn panic_of_state_machine_stops_only_its_engine() {
    let cluster = Cluster::start(1, |_| {}).await;
    cluster.leader().await;
    let engine = &cluster.nodes[0].engine;
    let answer = engine.propose("panic!".into()).await;
    assert!(
        matches!(&answer, Err(ProposeError::Fatal { why }) if why.contains("the command requests this panic")),
        "{answer:?}"
    );
    let again = engine.propose("x".into()).await;
    assert!(matches!(again, Err(ProposeError::Fatal { .. })), "{again:?}");
}

#[tokio::test]
async fn overload_is_refused_at_once() {
    let cluster = Cluster::start(2, |config| config.proposals_max = 10).await;
    let leading = cluster.leader().await;
    cluster.isolate(leading);
    let engine = cluster.nodes[leading].engine.clone();
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.propose("x".into()).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(matches!(engine.propose("x".into()).await, Err(ProposeError::Overloaded { in_flight: 10, .. })));
    for proposal in waiting {
        assert!(proposal.await.unwrap().unwrap_err().maybe_applied());
    }
    let too_large = engine.propose(vec![0; 5 << 20].into()).await;
    assert!(
        matches!(too_large, Err(ProposeError::TooLarge { limit, .. }) if limit == 4 << 20),
        "{too_large:?}"
    );
}

#[tokio::test]
async fn log_without_its_state_machine_is_refused() {
    let mut cluster = Cluster::start(1, |_| {}).await;
    cluster.leader().await;
    for n in 0..5 {
        cluster.nodes[0].engine.propose(format!("{n}").into()).await.unwrap();
    }
    let purged = cluster.nodes[0].engine.compact_log().await.unwrap();
    assert!(purged >= LogIndex(5), "{purged}");
    cluster.nodes[0].engine.shutdown().await.unwrap();
    let refused = cluster.open(0, Journal::new()).await;
    assert!(matches!(refused, Err(StartError::Mismatch { .. })));
    cluster.restart(0).await;
    converged(&cluster.nodes, 5).await;
}

/// The state of another cluster, in which the node had the same id, is put beside the log.
#[tokio::test]
async fn state_of_another_history_is_refused() {
    let cluster = Cluster::start(1, |_| {}).await;
    cluster.leader().await;
    for n in 0..5 {
        cluster.nodes[0].engine.propose(format!("{n}").into()).await.unwrap();
    }
    let status = cluster.nodes[0].engine.status().borrow().clone();
    cluster.nodes[0].engine.shutdown().await.unwrap();
    // As many entries, and the last of them of another term.
    let index = status.last_log.index;
    let mut foreign = Journal::new();
    let entry = |index, term| Entry {
        id: LogId { index: LogIndex(index), term: Term(term) },
        payload: Payload::Command("foreign".into()),
    };
    let last_term = status.term.0 + 1;
    let entries: Vec<Entry> =
        (1..=index.0).map(|at| entry(at, if at == index.0 { last_term } else { 1 })).collect();
    foreign.apply(&entries).unwrap();
    let Err(StartError::OtherHistory { applied, logged }) = cluster.open(0, foreign).await else {
        panic!("it has started")
    };
    assert_eq!((applied, logged), (entries.last().unwrap().id, status.last_log));
}

#[tokio::test(start_paused = true)]
async fn leader_whose_process_ended_is_replaced_within_an_election_timeout() {
    let cluster = Cluster::start(3, |config| {
        config.threads = false;
        config.protocol.election_timeout = Duration::from_secs(10);
    })
    .await;
    let first = cluster.leader().await;
    let killed = tokio::time::Instant::now();
    // The restarted node needs a new transport, because the old one is closed.
    drop(cluster.network.transport(NodeId(first as u64)));
    cluster.leader_other_than(first).await;
    assert!(killed.elapsed() < Duration::from_secs(4), "{:?}", killed.elapsed());
}
