//! When the log is compacted, and how much is kept for followers.

mod common;

use std::{
    io::Read,
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use bytes::Bytes;
use common::Cluster;
use consensus_core::{
    ConsensusEngine, Entry, FlushWork, LogId, LogIndex, Member, MemberChange, MemberKind, Membership, NodeId,
    Role, Snapshot, StateMachine, StateMachineError,
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{
    Journal, MemLogStorage,
    engine::{Node, converged},
    eventually,
};
use consensus_transport_mem::{Link, MemNetwork};

fn bytes(count: usize) -> Bytes {
    vec![b'x'; count].into()
}

#[tokio::test]
async fn log_of_large_entries_is_compacted_by_size() {
    let cluster = Cluster::start(1, |config| {
        config.compact_after_bytes = 50_000;
        config.compact_keep_bytes = 20_000;
    })
    .await;
    let engine = cluster.engine(cluster.leader().await);
    let mut first = Vec::new();
    for _ in 0..300 {
        engine.propose(bytes(1000)).await.unwrap();
        let status = engine.status().borrow().clone();
        let (length, newest) = (status.last_log.index.since(status.first_index), status.first_index);
        assert!(length < 90, "a flush takes a moment, but {length} entries are not compacted yet");
        if first.last() != Some(&newest) {
            assert!(first.is_empty() || length >= 10, "only {length} entries were kept");
            first.push(newest);
        }
    }
    assert!((3..8).contains(&first.len()), "compacted at {first:?}");
}

/// A leader that compacts its log many times while a snapshot is sent.
async fn while_a_snapshot_is_sent(configure: fn(&mut RaftConfig)) -> (Cluster, usize, usize) {
    let cluster = Cluster::start(3, configure).await;
    let leading = cluster.leader().await;
    let away = (leading + 1) % 3;
    cluster.lose(leading, away).await;
    for _ in 0..300 {
        cluster.engine(leading).propose(bytes(10)).await.unwrap();
    }
    let mut status = cluster.engine(leading).status();
    status.wait_for(|status| status.first_index > LogIndex(200)).await.unwrap();
    cluster.network.heal();
    (cluster, leading, away)
}

fn small(config: &mut RaftConfig) {
    config.compact_after_entries = 50;
    config.compact_keep_entries = 10;
    config.snapshot_chunk_bytes = 1000;
    config.snapshot_bytes_per_second = 30_000;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_after_snapshot_in_transfer_are_kept_so_that_one_snapshot_suffices() {
    let (cluster, leading, away) = while_a_snapshot_is_sent(small).await;
    let engine = cluster.engine(leading);
    let follower = NodeId(away as u64);
    let (mut written, mut begun, mut sending) = (300, 0, false);
    let caught_up = || {
        let status = engine.status().borrow().clone();
        status.peers[&follower].matched.0 + 20 > status.last_log.index.0
    };
    while begun == 0 || !caught_up() {
        engine.propose(bytes(10)).await.unwrap();
        written += 1;
        let now = engine.status().borrow().peers[&follower].snapshot_bytes.is_some();
        begun += usize::from(now && !sending);
        sending = now;
        assert!(begun < 2 && written < 20_000, "snapshot {begun} after {written} commands");
    }
    assert!(written > 500, "too few commands for a compaction: {written}");
    converged(&cluster.nodes, written).await;
    // No more than necessary is kept once the follower has caught up.
    for _ in 0..200 {
        engine.propose(bytes(10)).await.unwrap();
    }
    eventually("the log is compacted", || {
        let status = engine.status().borrow().clone();
        let length = status.last_log.index.since(status.first_index);
        if length < 150 { Ok(()) } else { Err(length) }
    })
    .await;
}

#[tokio::test]
async fn slow_follower_needs_no_snapshot() {
    let cluster = Cluster::start(3, small).await;
    let leading = cluster.leader().await;
    let follower = NodeId((leading as u64 + 1) % 3);
    let latency = (Duration::from_millis(60), Duration::from_millis(60));
    cluster.network.set_link(NodeId(leading as u64), follower, Link { latency, ..Link::default() });
    let engine = cluster.engine(leading);
    let mut lag_max = 0;
    for _ in 0..1000 {
        engine.propose(bytes(10)).await.unwrap();
        let status = engine.status().borrow().clone();
        let peer = &status.peers[&follower];
        lag_max = status.last_log.index.since(peer.matched).max(lag_max);
        assert_eq!(peer.snapshot_bytes, None, "a snapshot was sent to a follower {lag_max} entries behind");
    }
    assert!(lag_max > 100, "the follower was at most {lag_max} entries behind");
    converged(&cluster.nodes, 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_kept_for_a_follower_are_limited() {
    let (cluster, leading, away) = while_a_snapshot_is_sent(|config| {
        small(config);
        config.compact_hold_bytes = 10_000;
    })
    .await;
    let engine = cluster.engine(leading);
    let status = engine.status();
    let sent =
        || status.borrow().peers[&NodeId(away as u64)].snapshot_bytes.filter(|bytes| *bytes > 0).ok_or(());
    eventually("a part of the snapshot is sent", sent).await;
    cluster.isolate(away); // The transfer is retried for a minute.
    for _ in 0..600 {
        engine.propose(bytes(10)).await.unwrap();
        // Borrowed once, because a second borrow behind a waiting writer would wait for ever.
        let now = status.borrow().clone();
        let length = now.last_log.index.since(now.first_index);
        assert!(length < 400, "{length} entries are kept");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    cluster.network.heal();
    converged(&cluster.nodes, 900).await;
}

/// A state machine whose flushes end when the test allows it.
struct SlowToFlush {
    journal: Journal,
    gate: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl StateMachine for SlowToFlush {
    fn applied(&self) -> LogId {
        self.journal.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.journal.apply(entries)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.journal.flush()
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (work, gate) = (self.journal.flush_in_background()?, self.gate.clone());
        Some(Box::new(move || {
            let _ = gate.lock().unwrap().recv();
            work()
        }))
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        self.journal.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        self.journal.restore(stream)
    }
}

/// The only voter, and a handle that ends its flushes one by one, or all of them when dropped.
async fn slow_to_flush(
    network: &MemNetwork,
    configure: fn(&mut RaftConfig),
) -> (Arc<RaftEngine>, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    let machine = SlowToFlush { journal: Journal::new(), gate: Arc::new(Mutex::new(gate)) };
    let mut config = RaftConfig::new(NodeId(0));
    config.bootstrap = Some(Membership::of_voters([0]));
    configure(&mut config);
    let (transport, storage) = (network.transport(NodeId(0)), Arc::new(MemLogStorage::new()));
    let engine = RaftEngine::start(config, transport, storage, Box::new(machine)).await.unwrap();
    engine.status().wait_for(|status| status.role == Role::Leader).await.unwrap();
    (engine, open)
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_applied_during_a_flush() {
    let (engine, open) = slow_to_flush(&MemNetwork::new(1), |config| {
        (config.compact_after_entries, config.compact_keep_entries) = (10, 0);
    })
    .await;
    for n in 0..30 {
        engine.propose(n.to_string().into()).await.unwrap();
    }
    assert_eq!(engine.status().borrow().first_index, LogIndex(1), "the state machine is not durable yet");
    open.send(()).unwrap();
    engine.status().wait_for(|status| status.first_index > LogIndex(10)).await.unwrap();
    drop(open);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_applied_during_a_flush_for_a_snapshot() {
    let mut cluster = Cluster::start(0, |_| {}).await;
    cluster.storages = vec![MemLogStorage::new(); 2];
    let (engine, open) = slow_to_flush(&cluster.network, |_| {}).await;
    for n in 0..10 {
        engine.propose(n.to_string().into()).await.unwrap();
    }
    open.send(()).unwrap();
    assert!(engine.compact_log().await.unwrap() > LogIndex(10));
    // A member that is added now needs a snapshot.
    let added = cluster.open(1, Journal::new()).await.unwrap();
    let learner = MemberChange::Set(NodeId(1), Member::new(MemberKind::Learner));
    engine.change_membership(vec![learner]).await.unwrap();
    for n in 10..30 {
        engine.propose(n.to_string().into()).await.unwrap();
    }
    assert_eq!(added.journal.commands().len(), 0, "nothing is flushed yet");
    drop(open);
    eventually("the added member has caught up", || match added.journal.commands().len() {
        30 => Ok(()),
        few => Err(few),
    })
    .await;
    engine.shutdown().await.unwrap();
}

#[tokio::test]
async fn members_compact_their_logs_in_turn() {
    let cluster = Cluster::start(3, |config| {
        (config.compact_after_entries, config.compact_keep_entries) = (90, 0);
    })
    .await;
    let engine = cluster.engine(cluster.leader().await);
    for (node, until) in [(2, 45), (1, 75), (0, 105)] {
        while engine.status().borrow().last_log.index < LogIndex(until) {
            engine.propose(bytes(10)).await.unwrap();
            // A leader keeps entries that a follower lacks, and nothing is compacted again before the next turn.
            let last = engine.status().borrow().last_log.index;
            eventually("all members have applied the log", || {
                let lags = |node: &Node| node.engine.status().borrow().applied < last;
                cluster.nodes.iter().position(lags).map_or(Ok(()), Err)
            })
            .await;
        }
        let status = cluster.engine(node).status();
        eventually("the member has compacted its log", || {
            let first = status.borrow().first_index;
            if first > LogIndex(until - 20) { Ok(()) } else { Err(first) }
        })
        .await;
        for other in 0..node {
            assert_eq!(cluster.engine(other).status().borrow().first_index, LogIndex(1), "node {other}");
        }
    }
}
