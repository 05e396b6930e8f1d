//! Changes of members and transfers of leadership.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use common::Cluster;
use consensus_core::{
    ChangeError, ConsensusEngine, Entry, Health, InvalidMembership, LogBatch, LogId, LogStorage, Member,
    MemberChange, MemberKind, Membership, Message, NetworkTransport, NodeId, Payload, ProposeError,
    ReadConsistency, ReadError, Role, SendError, TransferError,
};
use consensus_engine_raft::{RaftConfig, RaftEngine};
use consensus_testkit::{
    Journal, MemLogStorage,
    engine::{Node, converged},
    eventually,
};
use consensus_transport_mem::{Link, MemNetwork, MemTransport};

fn set(id: NodeId, kind: MemberKind) -> MemberChange {
    MemberChange::Set(id, Member::new(kind))
}

/// Requests the change from the current leader until it succeeds.
async fn change(cluster: &Cluster, changes: Vec<MemberChange>) -> Arc<Membership> {
    loop {
        let leader = cluster.leader().await;
        match cluster.engine(leader).change_membership(changes.clone()).await {
            Ok(membership) => return membership,
            Err(ChangeError::Busy | ChangeError::NotLeader { .. } | ChangeError::Unknown { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Writes through the current leader until stopped. Returns the number of acknowledged writes.
fn writer(engines: Vec<Arc<dyn ConsensusEngine>>, stop: Arc<AtomicBool>) -> tokio::task::JoinHandle<u64> {
    tokio::spawn(async move {
        let (mut acknowledged, mut at) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            match engines[at % engines.len()].propose(format!("{acknowledged}").into()).await {
                Ok(_) => acknowledged += 1,
                Err(_) => {
                    at += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        acknowledged
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_replaced_under_load_without_loss() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let first_leader = cluster.leader().await;
    let new = [cluster.add().await, cluster.add().await];
    let stop = Arc::new(AtomicBool::new(false));
    let engines = cluster.nodes.iter().map(|node| node.engine.clone()).collect();
    let writer = writer(engines, stop.clone());
    change(&cluster, new.map(|id| set(id, MemberKind::Joining)).to_vec()).await;
    eventually("both are voters", || {
        let status = cluster.engine(3).status().borrow().clone();
        let voters = status.membership.voters().count();
        if voters == 5 && !status.membership.is_joint() { Ok(()) } else { Err(voters) }
    })
    .await;
    // The first leader is one of the removed members.
    let leaving = [NodeId(first_leader as u64), NodeId((first_leader as u64 + 1) % 3)];
    let membership = change(&cluster, leaving.map(MemberChange::Remove).to_vec()).await;
    assert_eq!(membership.voters().count(), 3);
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await.unwrap();
    assert!(acknowledged > 0);
    eventually("a remaining member is leader", || {
        let leads = |id: &NodeId| cluster.engine(id.0 as usize).status().borrow().role == Role::Leader;
        membership.voters().find(leads).ok_or("nobody")
    })
    .await;
    let staying: Vec<_> = cluster.nodes.into_iter().enumerate().collect();
    let (staying, gone): (Vec<_>, Vec<_>) =
        staying.into_iter().partition(|(id, _)| membership.is_voter(NodeId(*id as u64)));
    let staying: Vec<_> = staying.into_iter().map(|(_, node)| node).collect();
    let journal = eventually("the remaining members have the same journal", || {
        let journals: Vec<_> = staying.iter().map(|node| node.journal.commands()).collect();
        // For a moment all may lack the last command, which only the removed leader has applied.
        if journals.iter().all(|other| *other == journals[0]) && journals[0].len() as u64 >= acknowledged {
            Ok(journals[0].clone())
        } else {
            Err("not yet")
        }
    })
    .await;
    assert!(journal.len() as u64 >= acknowledged, "{} of {acknowledged} acknowledged", journal.len());
    eventually("removed members are not leader", || {
        let leads = |(_, node): &&(usize, Node)| node.engine.status().borrow().role == Role::Leader;
        gone.iter().find(leads).map_or(Ok(()), |(id, _)| Err(*id))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_change_is_refused_and_changes_nothing() {
    let cluster = Cluster::start(1, |_| {}).await;
    let leader = cluster.engine(cluster.leader().await).clone();
    let none_left = leader.change_membership(vec![MemberChange::Remove(NodeId(0))]).await;
    assert_eq!(none_left, Err(ChangeError::Invalid(InvalidMembership::NoVoter)));
    let same = leader.change_membership(vec![set(NodeId(0), MemberKind::Voter)]).await.unwrap();
    assert_eq!(*same.members(), *Membership::of_voters([0]).members());
    assert_eq!(leader.transfer_leadership(None).await, Err(TransferError::NoSuccessor));
    assert_eq!(leader.transfer_leadership(Some(NodeId(7))).await, Err(TransferError::CannotLead(NodeId(7))));
    leader.shutdown().await.unwrap();
    assert!(matches!(leader.transfer_leadership(None).await, Err(TransferError::NotRunning { .. })));
    assert!(matches!(leader.change_membership(vec![]).await, Err(ChangeError::NotRunning { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_transferred_to_the_requested_node() {
    let cluster = Cluster::start(3, |config| config.protocol.election_timeout = Duration::from_secs(2)).await;
    let first = cluster.leader().await;
    let target = NodeId((first as u64 + 1) % 3);
    let follower = cluster.engine(target.0 as usize);
    let refused = follower.transfer_leadership(None).await;
    assert!(matches!(refused, Err(TransferError::NotLeader { .. })), "{refused:?}");
    let began = Instant::now();
    assert_eq!(cluster.engine(first).transfer_leadership(Some(target)).await, Ok(target));
    assert!(began.elapsed() < Duration::from_secs(1), "without an election timeout: {:?}", began.elapsed());
    follower.propose("x".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_of_leader_transfers_leadership_first() {
    let mut cluster =
        Cluster::start(3, |config| config.protocol.election_timeout = Duration::from_secs(5)).await;
    for _ in 0..3 {
        let first = cluster.leader().await;
        let began = Instant::now();
        cluster.engine(first).shutdown().await.unwrap();
        cluster.leader_other_than(first).await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "without an election timeout: {:?}",
            began.elapsed()
        );
        cluster.restart(first).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_of_new_leader_transfers_leadership_first() {
    let cluster = Cluster::start(3, |config| config.protocol.election_timeout = Duration::from_secs(5)).await;
    let first = cluster.leader().await;
    let latency = Duration::from_millis(300);
    cluster.network.set_all_links(&Link { latency: (latency, latency), ..Link::default() });
    cluster.engine(first).transfer_leadership(None).await.unwrap();
    // It hears from no follower for twice the latency.
    let second = cluster.leader_other_than(first).await;
    let began = Instant::now();
    cluster.engine(second).shutdown().await.unwrap();
    cluster.leader_other_than(second).await;
    assert!(began.elapsed() < Duration::from_secs(5), "without an election timeout: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_with_witness_survives_loss_of_one_node() {
    let mut cluster = Cluster::start(2, |_| {}).await;
    let witness_id = NodeId(2);
    let mut config = RaftConfig::new(witness_id);
    config.protocol.heartbeat_interval = Duration::from_millis(20);
    config.protocol.election_timeout = Duration::from_millis(150);
    let storage = Arc::new(MemLogStorage::new());
    let transport = cluster.network.transport(witness_id);
    let witness = RaftEngine::start_witness(config, transport, storage.clone()).await.unwrap();
    change(&cluster, vec![set(witness_id, MemberKind::Witness)]).await;
    let secret = "a command that a witness must not get";
    cluster.engine(cluster.leader().await).propose(secret.into()).await.unwrap();
    converged(&cluster.nodes, 1).await;
    let lost = cluster.leader().await;
    cluster.engine(lost).shutdown().await.unwrap();
    let other = cluster.leader_other_than(lost).await;
    cluster.engine(other).propose("b".into()).await.unwrap();
    assert_eq!(witness.status().borrow().role, Role::Follower);
    let log = LogStorage::read(
        &*storage,
        consensus_core::LogIndex(0),
        witness.status().borrow().last_log.index,
        u64::MAX,
    );
    let has_commands = |entry: &Entry| matches!(entry.payload, Payload::Command(_));
    assert!(!log.unwrap().iter().any(has_commands), "a witness stores no commands");
    cluster.restart(lost).await;
    converged(&cluster.nodes, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_of_witness_is_not_applied_by_node_with_data() {
    let storage = Arc::new(MemLogStorage::new());
    let entry = |index, payload| Entry { id: LogId::new(0, index), payload };
    let entries =
        vec![entry(1, Payload::Membership(Membership::of_voters([0]))), entry(2, Payload::Withheld)];
    storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
    let cluster = Cluster::start(1, |_| {}).await;
    let transport = cluster.network.transport(NodeId(9));
    let mut config = RaftConfig::new(NodeId(0));
    config.protocol.seed = 1;
    let journal = Box::new(Journal::new());
    let engine = RaftEngine::start(config, transport, storage, journal).await.unwrap();
    let why = eventually("the engine stops", || match &engine.status().borrow().health {
        Health::Fatal(why) => Ok(why.clone()),
        other => Err(other.clone()),
    })
    .await;
    assert!(why.contains("start this node as a witness"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_every_kind_on_every_node() {
    let cluster = Cluster::start(3, |config| config.protocol.lease_drift_percent = 10).await;
    let leader = cluster.leader().await;
    cluster.engine(leader).propose("x".into()).await.unwrap();
    for id in 0..3 {
        for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease] {
            // A follower may not know the leader yet.
            let applied = loop {
                match cluster.engine(id).read_barrier(consistency).await {
                    Ok(applied) => break applied,
                    Err(ReadError::NotLeader { .. }) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(error) => panic!("{error}"),
                }
            };
            assert!(applied.0 >= 3 && cluster.nodes[id].journal.commands().len() == 1);
        }
    }
    let within = |ms| ReadConsistency::StaleWithin(Duration::from_millis(ms));
    let follower = (leader + 1) % 3;
    cluster.engine(follower).read_barrier(within(60_000)).await.unwrap();
    cluster.isolate(follower);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stale = cluster.engine(follower).read_barrier(within(10)).await;
    assert!(matches!(stale, Err(ReadError::TooStale { age_ms: Some(10..), max_ms: 10 })), "{stale:?}");
    cluster.engine(follower).read_barrier(within(60_000)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn proposals_during_transfer_are_refused_and_not_applied() {
    let cluster = Cluster::start(3, |_| {}).await;
    let first = cluster.leader().await;
    let engine = cluster.engine(first).clone();
    let mut acknowledged = 0;
    let transfer = tokio::spawn({
        let engine = engine.clone();
        async move { engine.transfer_leadership(None).await }
    });
    loop {
        match engine.propose("x".into()).await {
            Ok(_) => acknowledged += 1,
            Err(ProposeError::TransferringLeadership { .. }) => {}
            Err(ProposeError::NotLeader { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    transfer.await.unwrap().unwrap();
    converged(&cluster.nodes, acknowledged).await;
}

/// The only voter of a cluster, and its transport.
async fn alone(network: &MemNetwork) -> (Arc<RaftEngine>, Arc<MemTransport>) {
    let mut config = RaftConfig::new(NodeId(1));
    config.bootstrap = Some(Membership::of_voters([1]));
    config.protocol.election_timeout = Duration::from_millis(100);
    config.protocol.heartbeat_interval = Duration::from_millis(20);
    let transport = network.transport(NodeId(1));
    let (storage, machine) = (Arc::new(MemLogStorage::new()), Box::new(Journal::new()));
    let engine = RaftEngine::start(config, transport.clone(), storage, machine).await.unwrap();
    engine.status().wait_for(|status| status.role == Role::Leader).await.unwrap();
    (engine, transport)
}

#[tokio::test]
async fn removed_member_is_not_dialled_after_its_retirement() {
    let network = MemNetwork::new(1);
    let (engine, transport) = alone(&network).await;
    let other = network.transport(NodeId(2));
    let endpoint = "127.0.0.1:1".parse().ok();
    let learner = Member { endpoint, ..Member::new(MemberKind::Learner) };
    engine.change_membership(vec![MemberChange::Set(other.local(), learner)]).await.unwrap();
    let send = || transport.send(other.local(), Message::Extension("x".into()));
    send().unwrap();
    engine.change_membership(vec![MemberChange::Remove(other.local())]).await.unwrap();
    eventually("the endpoint is removed", || match send() {
        Err(SendError::UnknownNode(_)) => Ok(()),
        other => Err(other),
    })
    .await;
    engine.shutdown().await.unwrap();
}

/// The member's endpoint is not in the configuration, so the configuration cannot restore it.
#[tokio::test]
async fn removed_member_without_endpoint_can_be_added_again() {
    let network = MemNetwork::new(1);
    let (engine, transport) = alone(&network).await;
    let (id, learner) = (network.transport(NodeId(2)).local(), Member::new(MemberKind::Learner));
    for _ in 0..2 {
        engine.change_membership(vec![MemberChange::Set(id, learner.clone())]).await.unwrap();
        engine.change_membership(vec![MemberChange::Remove(id)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    engine.change_membership(vec![MemberChange::Set(id, learner)]).await.unwrap();
    transport.send(id, Message::Extension("x".into())).unwrap();
    engine.shutdown().await.unwrap();
}
