//! Conformance of a [`ConsensusEngine`].

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use consensus_core::{
    ChangeError, ConsensusEngine, Health, InvalidMembership, LogId, Member, MemberChange, MemberKind,
    Membership, NodeId, ProposeError, ReadConsistency, ReadError, SnapshotError, TransferError,
};

use crate::{JournalReader, eventually};

/// One node: its engine and a look into its state machine, a [`Journal`](crate::Journal).
pub struct Node {
    /// The engine.
    pub engine: Arc<dyn ConsensusEngine>,
    /// What it applied.
    pub journal: JournalReader,
}

/// Checks an implementation: `cluster(n)` starts n nodes over a network that is whole.
///
/// # Panics
/// A rule is broken; the output names it.
pub async fn run_suite<F: Future<Output = Vec<Node>>>(sizes: &[u64], cluster: impl Fn(u64) -> F) {
    for size in sizes {
        println!("engine: {size} nodes agree on one order, and answer with the machine's response");
        agreement(cluster(*size).await).await;
        println!("engine: {size} nodes, a read barrier lets a read see what was acknowledged");
        reads(cluster(*size).await).await;
        println!("engine: {size} nodes, who does not lead says so or hands on; who is shut down says so");
        refusals(cluster(*size).await).await;
        println!("engine: {size} nodes, members change in one step, or the engine says that they cannot");
        members(cluster(*size).await).await;
        println!("engine: {size} nodes, the log is compacted and nothing is lost, or the engine has none");
        compaction(cluster(*size).await).await;
        println!("engine: {size} nodes, the lead is handed over, or the engine says that it cannot be");
        transfer(cluster(*size).await).await;
    }
}

/// The node that leads, once there is one.
pub async fn leader(nodes: &[Node]) -> &Node {
    let leads = |node: &&Node| {
        let status = node.engine.status().borrow().clone();
        status.health == Health::Running && status.leader == Some(status.node_id)
    };
    eventually("a leader is elected", || nodes.iter().find(leads).ok_or("no node leads")).await
}

/// Waits until all journals are equal and `count` commands long, and returns them.
pub async fn converged(nodes: &[Node], count: usize) -> Vec<(LogId, Bytes)> {
    eventually("all nodes converge", || {
        let journals: Vec<_> = nodes.iter().map(|node| node.journal.commands()).collect();
        let same = journals.iter().all(|journal| *journal == journals[0] && journal.len() == count);
        if same { Ok(journals[0].clone()) } else { Err(journals.iter().map(Vec::len).collect::<Vec<_>>()) }
    })
    .await
}

async fn stop(nodes: &[Node]) {
    for node in nodes {
        node.engine.shutdown().await.unwrap();
    }
}

async fn agreement(nodes: Vec<Node>) {
    let engine = leader(&nodes).await.engine.clone();
    let proposals: Vec<_> = (0..200u32)
        .map(|n| {
            let engine = engine.clone();
            tokio::spawn(async move { (n, engine.propose(n.to_string().into()).await) })
        })
        .collect();
    let mut acknowledged = Vec::new();
    for proposal in proposals {
        let (n, result) = proposal.await.unwrap();
        acknowledged.push((n, result.expect("nothing stands in the way of a proposal")));
    }
    let order = converged(&nodes, 200).await;
    for (n, committed) in acknowledged {
        let place =
            order.iter().position(|(id, _)| *id == committed.log_id).expect("acknowledged is applied");
        assert_eq!(order[place].1, n.to_string(), "the position is that of the command");
        assert_eq!(committed.response, (place + 1).to_string(), "the response is that of the command");
    }
    stop(&nodes).await;
}

async fn reads(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    for n in 1..=20 {
        let committed = leading.engine.propose(format!("{n}").into()).await.unwrap();
        let applied = leading.engine.read_barrier(ReadConsistency::Linearizable).await.unwrap();
        assert!(
            applied >= committed.log_id.index,
            "barrier at {applied}, acknowledged at {}",
            committed.log_id
        );
        assert!(leading.journal.commands().len() >= n);
        for node in &nodes {
            // Who does not lead asks, or says so.
            match node.engine.read_barrier(ReadConsistency::Linearizable).await {
                Ok(_) => {
                    assert!(node.journal.commands().len() >= n, "a read that misses what was acknowledged");
                }
                Err(ReadError::NotLeader { .. }) => assert!(!Arc::ptr_eq(&node.engine, &leading.engine)),
                Err(error) => panic!("{error}"),
            }
        }
        leading.engine.read_barrier(ReadConsistency::Lease).await.unwrap();
    }
    leading.engine.read_barrier(ReadConsistency::Stale).await.unwrap();
    stop(&nodes).await;
}

/// Again while another change is under way.
async fn change(
    engine: &dyn ConsensusEngine,
    changes: &[MemberChange],
) -> Result<Arc<Membership>, ChangeError> {
    loop {
        match engine.change_membership(changes.to_vec()).await {
            Err(ChangeError::Busy) => tokio::task::yield_now().await,
            result => return result,
        }
    }
}

async fn members(nodes: Vec<Node>) {
    let engine = leader(&nodes).await.engine.clone();
    let before = engine.status().borrow().membership.clone();
    let stranger = NodeId(99);
    let learns = MemberChange::Set(stranger, Member::new(MemberKind::Learner));
    match change(&*engine, std::slice::from_ref(&learns)).await {
        Err(ChangeError::Unsupported) => return stop(&nodes).await,
        result => {
            let membership = result.expect("a learner needs nobody's vote");
            assert_eq!(membership.get(stranger).map(|member| member.kind), Some(MemberKind::Learner));
            assert!(membership.voters().eq(before.voters()), "a learner does not vote");
        }
    }
    let none: Vec<_> = before.voters().map(MemberChange::Remove).collect();
    let refused = change(&*engine, &none).await;
    assert_eq!(refused, Err(ChangeError::Invalid(InvalidMembership::NoVoter)));
    assert!(engine.status().borrow().membership.get(stranger).is_some(), "what is refused changes nothing");
    let membership = change(&*engine, &[MemberChange::Remove(stranger)]).await.unwrap();
    assert!(membership.get(stranger).is_none() && !membership.is_joint());
    let refused = change(&*engine, &[MemberChange::Remove(stranger)]).await;
    assert_eq!(refused, Err(ChangeError::Invalid(InvalidMembership::NotAMember(stranger))));
    engine.propose("after all changes".into()).await.unwrap();
    converged(&nodes, 1).await;
    stop(&nodes).await;
}

async fn compaction(nodes: Vec<Node>) {
    let engine = leader(&nodes).await.engine.clone();
    for n in 0..50 {
        engine.propose(format!("{n}").into()).await.unwrap();
    }
    converged(&nodes, 50).await;
    for node in &nodes {
        let applied = node.engine.status().borrow().applied;
        let purged = match node.engine.compact_log().await {
            Err(SnapshotError::NoLog) => return stop(&nodes).await,
            result => result.expect("nothing stands in the way of a compaction"),
        };
        assert!(purged >= applied, "what was applied, {applied}, is flushed and not needed: {purged}");
        let mut status = node.engine.status();
        let compacted = status.wait_for(|status| status.first_index == purged.next());
        tokio::time::timeout(PATIENCE, compacted)
            .await
            .expect("the status tells where the log begins")
            .unwrap();
    }
    for n in 50..100 {
        engine.propose(format!("{n}").into()).await.unwrap();
    }
    let order = converged(&nodes, 100).await;
    for (n, (_, command)) in order.iter().enumerate() {
        assert_eq!(*command, n.to_string(), "in the order in which they were acknowledged");
    }
    stop(&nodes).await;
}

async fn transfer(nodes: Vec<Node>) {
    let engine = leader(&nodes).await.engine.clone();
    let own = engine.status().borrow().node_id;
    let heir = loop {
        match engine.transfer_leadership(None).await {
            Err(TransferError::Unsupported) => return stop(&nodes).await,
            Err(TransferError::NoSuccessor) if nodes.len() == 1 => return stop(&nodes).await,
            // The others may not have been heard of yet; or it took too long, and may be tried again.
            Err(TransferError::NoSuccessor | TransferError::TimedOut) => tokio::task::yield_now().await,
            result => break result.expect("somebody takes over"),
        }
    };
    assert_ne!(heir, own, "a transfer to whoever is fit is one to somebody else");
    let leads = |node: &&Node| node.engine.status().borrow().node_id == heir;
    let heir = nodes.iter().find(leads).expect("one of the nodes");
    heir.engine.propose("in another term".into()).await.expect("who was handed the lead leads");
    converged(&nodes, 1).await;
    stop(&nodes).await;
}

async fn refusals(nodes: Vec<Node>) {
    let leader = leader(&nodes).await;
    let leading = leader.engine.clone();
    let own = leading.status().borrow().node_id;
    for node in nodes.iter().filter(|node| node.engine.status().borrow().node_id != own) {
        let engine = &node.engine;
        let mut status = engine.status();
        let known = status.wait_for(|status| status.leader == Some(own));
        tokio::time::timeout(PATIENCE, known).await.expect("followers learn who leads").unwrap();
        match engine.propose("x".into()).await {
            Ok(committed) => {
                let applied = (committed.log_id, Bytes::from("x"));
                assert!(leader.journal.commands().contains(&applied), "it had the leader propose it");
            }
            Err(error) => assert_eq!(error, ProposeError::NotLeader { leader: Some(own) }),
        }
    }
    leading.shutdown().await.unwrap();
    assert_eq!(leading.propose("x".into()).await, Err(ProposeError::ShutDown));
    assert_eq!(leading.read_barrier(ReadConsistency::Linearizable).await, Err(ReadError::ShutDown));
    assert_eq!(leading.status().borrow().health, Health::ShutDown);
    leading.shutdown().await.unwrap();
    stop(&nodes).await;
}

/// How long to wait for what comes by itself.
const PATIENCE: Duration = Duration::from_secs(30);
