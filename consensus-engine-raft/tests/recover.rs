//! Recovery after the loss of a majority.

mod common;

use std::{sync::Arc, time::Duration};

use common::Cluster;
use consensus_core::{
    ClusterId, ConsensusEngine, HardState, LogIndex, LogStorage, Member, MemberChange, MemberKind,
    Membership, NodeId, StorageId,
};
use consensus_engine_raft::{
    RaftConfig, RaftEngine,
    recover::{RecoverError, force_new_cluster},
};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{Journal, MemLogStorage, engine::converged};
use consensus_transport_mem::MemNetwork;

#[tokio::test(flavor = "multi_thread")]
async fn survivor_continues_alone_and_others_join_again() {
    let mut cluster = Cluster::start(3, |_| {}).await;
    let leader = cluster.leader().await;
    for n in 0..5 {
        cluster.engine(leader).propose(n.to_string().into()).await.unwrap();
    }
    converged(&cluster.nodes, 5).await;
    for node in &cluster.nodes {
        node.engine.shutdown().await.unwrap();
    }
    // Nodes 1 and 2 are permanently lost.
    let recovered = force_new_cluster(&cluster.storages[0], NodeId(0)).unwrap();
    assert_eq!(recovered.before.voters().count(), 3);
    assert_eq!(recovered.by.index, recovered.last.index.next());
    assert!(matches!(
        force_new_cluster(&cluster.storages[0], NodeId(0)),
        Err(RecoverError::Alone(NodeId(0)))
    ));
    cluster.nodes.truncate(1);
    cluster.storages.truncate(1);
    cluster.restart(0).await;
    assert_eq!(cluster.leader().await, 0);
    assert_eq!(cluster.nodes[0].journal.commands().len(), 5, "the survivor still has its commands");
    cluster.engine(0).propose("alone".into()).await.unwrap();
    cluster.size = 0; // A joining node does not bootstrap a cluster.
    let second = cluster.add().await;
    let joining = MemberChange::Set(second, Member::new(MemberKind::Joining));
    cluster.engine(0).change_membership(vec![joining]).await.unwrap();
    converged(&cluster.nodes, 6).await;
}

/// A log on disk with the voters 0 to 2, of which node 0 has the disk `known`, and with `hard_state`.
fn log_on_disk(known: Option<StorageId>, hard_state: HardState) -> (tempfile::TempDir, WalLogStorage) {
    let dir = tempfile::tempdir().unwrap();
    let storage = WalLogStorage::open(dir.path(), NodeId(0)).unwrap();
    let mut members = Membership::of_voters(0..3).members().clone();
    members.get_mut(&NodeId(0)).unwrap().storage = known;
    let payload = consensus_core::Payload::Membership(Membership::new(members).with_cluster(ClusterId(7)));
    let entries = vec![consensus_core::Entry { id: consensus_core::LogId::new(0, 1), payload }];
    let batch = consensus_core::LogBatch { entries, hard_state: Some(hard_state), ..Default::default() };
    storage.write(batch).unwrap();
    (dir, storage)
}

/// Its disk was emptied and has caught up, or no leader has recorded it yet.
#[tokio::test(flavor = "multi_thread")]
async fn recovered_node_leads_whichever_disk_the_configuration_named() {
    for known in [None, Some(StorageId(7)), Some(StorageId::UNKNOWN)] {
        let (_dir, storage) = log_on_disk(known, HardState::default());
        let (own, recovered) = (storage.load().unwrap().storage, force_new_cluster(&storage, NodeId(0)));
        recovered.unwrap();
        let (_, alone) = storage.load().unwrap().memberships.last().cloned().unwrap();
        assert_eq!(alone.get(NodeId(0)).unwrap().storage, Some(own), "{known:?}");
        let transport = MemNetwork::new(1).transport(NodeId(0));
        let config = RaftConfig::new(NodeId(0));
        let journal = Box::new(Journal::new());
        let engine = RaftEngine::start(config, transport, Arc::new(storage), journal).await.unwrap();
        tokio::time::timeout(Duration::from_secs(20), engine.propose("alone".into())).await.unwrap().unwrap();
        engine.shutdown().await.unwrap();
    }
}

#[test]
fn recovery_of_a_node_that_has_not_caught_up_is_refused() {
    for (joining, words) in [
        (LogIndex(0), "no leader has told it how far the others were"),
        (LogIndex(9), "entries up to 9 were committed when it joined"),
    ] {
        let hard_state = HardState { joining: Some(joining), ..HardState::default() };
        let (_dir, storage) = log_on_disk(Some(StorageId(7)), hard_state);
        let before = storage.load().unwrap();
        let error = force_new_cluster(&storage, NodeId(0)).unwrap_err();
        assert!(matches!(error, RecoverError::Joining { required, .. } if required == joining), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(storage.load().unwrap(), before, "nothing was changed");
    }
}

#[test]
fn two_recovered_survivors_are_separate_clusters() {
    let recovered = |node| {
        let storage = MemLogStorage::new();
        let founded = Membership::of_voters(0..3).with_cluster(ClusterId(7));
        let payload = consensus_core::Payload::Membership(founded);
        let entries = vec![consensus_core::Entry { id: consensus_core::LogId::new(0, 1), payload }];
        storage.write(consensus_core::LogBatch { entries, ..Default::default() }).unwrap();
        force_new_cluster(&storage, NodeId(node)).unwrap();
        let state = storage.load().unwrap();
        let (_, alone) = state.memberships.last().cloned().unwrap();
        assert_eq!(alone.cluster(), state.hard_state.cluster, "the node does not report its former identity");
        state.hard_state.cluster
    };
    let clusters = [recovered(0), recovered(1)];
    assert!(!clusters[0].is_compatible_with(clusters[1]), "{clusters:?}");
    assert!(clusters.iter().all(|cluster| !cluster.is_compatible_with(ClusterId(7))));
}

#[test]
fn recovery_of_node_without_vote_or_data_is_refused() {
    let refused = |kind| {
        let storage = Arc::new(MemLogStorage::new());
        let mut members = Membership::of_voters([0, 1]).members().clone();
        members.insert(NodeId(2), Member::new(kind));
        let payload = consensus_core::Payload::Membership(Membership::new(members));
        let entries = vec![consensus_core::Entry { id: consensus_core::LogId::new(0, 1), payload }];
        storage.write(consensus_core::LogBatch { entries, ..Default::default() }).unwrap();
        let before = storage.load().unwrap();
        let error = force_new_cluster(&*storage, NodeId(2)).unwrap_err();
        assert_eq!(storage.load().unwrap(), before, "nothing was changed");
        matches!(error, RecoverError::NotAVoter(NodeId(2), _))
    };
    assert!(refused(MemberKind::Learner) && refused(MemberKind::Witness) && refused(MemberKind::Joining));
    let empty = force_new_cluster(&MemLogStorage::new(), NodeId(2));
    assert!(matches!(empty, Err(RecoverError::NotAVoter(..))), "{empty:?}");
}
