//! Metrics of an engine through the `metrics` facade. This is a separate test program, because a process has one recorder.

mod common;

use std::collections::BTreeMap;

use common::Cluster;
use consensus_core::{ProposeError, ReadConsistency, Role};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

#[tokio::test(flavor = "multi_thread")]
async fn all_stages_of_a_command_are_measured() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    recorder.install().unwrap();
    let cluster = Cluster::start(3, |config| config.command_bytes_max = 100).await;
    let leader = cluster.leader().await;
    for _ in 0..10 {
        cluster.engine(leader).propose("x".into()).await.unwrap();
    }
    let too_large = cluster.engine(leader).propose(vec![0; 101].into()).await;
    assert!(matches!(too_large, Err(ProposeError::TooLarge { .. })));
    // A read without a lease needs a round of heartbeats.
    for _ in 0..3 {
        cluster.engine(leader).read_barrier(ReadConsistency::Linearizable).await.unwrap();
    }
    let follower =
        cluster.nodes.iter().find(|node| node.engine.status().borrow().role != Role::Leader).unwrap();
    assert!(matches!(follower.engine.propose("x".into()).await, Err(ProposeError::NotLeader { .. })));

    let measured: BTreeMap<String, usize> = snapshotter
        .snapshot()
        .into_vec()
        .into_iter()
        .map(|(key, _, _, value)| {
            let labels: Vec<&str> = key.key().labels().map(metrics::Label::value).collect();
            let count = match value {
                DebugValue::Counter(count) => count as usize,
                DebugValue::Histogram(values) => {
                    assert!(values.iter().all(|value| value.into_inner() >= 0.0));
                    values.len()
                }
                DebugValue::Gauge(_) => 0,
            };
            ([&[key.key().name()][..], &labels].concat().join(" "), count)
        })
        .collect();
    for stage in ["queue", "commit", "apply"] {
        assert_eq!(measured[&format!("raft_proposal_seconds {stage}")], 10, "{measured:?}");
    }
    assert_eq!(measured["raft_proposals_total"], 10);
    assert_eq!(measured["raft_proposals_refused_total too_large"], 1);
    assert_eq!(measured["raft_proposals_refused_total not_leader"], 1);
    assert!(
        measured["raft_elections_total"] >= 1 && measured["raft_leader_changes_total"] >= 3,
        "{measured:?}"
    );
    let trips = measured.iter().filter(|(name, _)| name.starts_with("raft_peer_round_trip_seconds"));
    assert!(trips.map(|(_, count)| count).sum::<usize>() >= 2, "{measured:?}");
    assert!(measured["raft_log_write_seconds"] >= 3 && measured["raft_apply_entries"] >= 3, "{measured:?}");
}
