//! Shutdown, and fatal errors.

use bytes::Bytes;
use consensus_core::{
    ChangeError, Health, MemberChange, ProposeError, ReadConsistency, ReadError, SnapshotError, StateMachine,
    TransferError,
};

use super::{Node, can_transfer, leader, leader_and_followers, stop};
use crate::{Journal, JournalReader, eventually};

pub(super) async fn is_reported(nodes: Vec<Node>) {
    let engine = &leader(&nodes).await.engine;
    let member = *engine.status().borrow().membership.members().keys().next().expect("a member");
    engine.shutdown().await.unwrap();
    assert_eq!(engine.propose("x".into()).await, Err(ProposeError::ShutDown));
    for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease, ReadConsistency::Stale] {
        assert_eq!(engine.read_barrier(consistency).await, Err(ReadError::ShutDown), "{consistency:?}");
    }
    assert_eq!(engine.status().borrow().health, Health::ShutDown);
    let change = engine.change_membership(vec![MemberChange::Remove(member)]).await;
    let is_reported = matches!(change, Err(ChangeError::NotRunning { .. } | ChangeError::Unsupported));
    assert!(is_reported, "a change of members: {change:?}");
    let transfer = engine.transfer_leadership(None).await;
    let is_reported = matches!(transfer, Err(TransferError::NotRunning { .. } | TransferError::Unsupported));
    assert!(is_reported, "a transfer: {transfer:?}");
    let compaction = engine.compact_log().await;
    let is_reported = matches!(compaction, Err(SnapshotError::NotRunning(_) | SnapshotError::NoLog));
    assert!(is_reported, "a compaction: {compaction:?}");
    engine.shutdown().await.expect("a second shutdown succeeds");
    stop(&nodes).await;
}

/// Proposes commands while the leader shuts down, so that it responds to only some of them.
pub(super) async fn results_are_true(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let propose = |n: usize| {
        let (engine, command) = (leading.engine.clone(), Bytes::from(n.to_string()));
        tokio::spawn(async move {
            let result = engine.propose(command.clone()).await;
            (command, result)
        })
    };
    let proposals: Vec<_> = (0..100).map(propose).collect();
    tokio::task::yield_now().await; // Lets some proposals start.
    leading.engine.shutdown().await.unwrap();
    let mut results = Vec::new();
    for proposal in proposals {
        results.push(proposal.await.expect("no panic"));
    }
    stop(&nodes).await;
    let applied = |command: &Bytes| {
        nodes.iter().any(|node| node.journal.commands().iter().any(|(_, applied)| applied == command))
    };
    for (command, result) in results {
        match result {
            Ok(committed) => {
                let acknowledged = (committed.log_id, command);
                assert!(
                    leading.journal.commands().contains(&acknowledged),
                    "{acknowledged:?} was acknowledged but not applied"
                );
            }
            Err(error) if error.maybe_applied() => {}
            Err(error) => {
                assert!(!applied(&command), "{command:?} was applied in spite of the error: {error}");
            }
        }
    }
}

/// Commands of the journal after it is opened again.
fn flushed(journal: &JournalReader) -> Vec<(consensus_core::LogId, Bytes)> {
    Journal::reopen(journal).reader().commands()
}

pub(super) async fn flushes(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    for n in 0..10 {
        leading.engine.propose(n.to_string().into()).await.unwrap();
    }
    stop(&nodes).await;
    for node in &nodes {
        assert_eq!(
            flushed(&node.journal),
            node.journal.commands(),
            "the flushed commands are the applied ones"
        );
    }
    assert_eq!(Journal::reopen(&leading.journal).applied().index, leading.status().applied);
}

pub(super) async fn transfers_leadership(nodes: Vec<Node>) {
    let (leading, followers) = leader_and_followers(&nodes).await;
    if nodes.len() < 3 || !can_transfer(leading).await {
        return stop(&nodes).await;
    }
    leading.engine.propose("1".into()).await.unwrap();
    leading.engine.shutdown().await.unwrap();
    let successor = eventually("another node is leader", || {
        let is_leader = |node: &&&Node| node.status().leader == Some(node.id());
        followers.iter().find(is_leader).ok_or("no leader")
    })
    .await;
    let second = successor.engine.propose("2".into()).await.expect("the successor is leader");
    assert_eq!(second.response, "2", "the first command was acknowledged and is kept");
    stop(&nodes).await;
}

pub(super) async fn machine_panics(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let engine = &leading.engine;
    engine.propose("1".into()).await.unwrap();
    let result = engine.propose("panic!".into()).await;
    assert!(result.as_ref().is_err_and(ProposeError::maybe_applied), "{result:?}");
    eventually("the status has the reason", || match &leading.status().health {
        Health::Fatal(why) if !why.is_empty() => Ok(()),
        other => Err(other.clone()),
    })
    .await;
    let result = engine.propose("2".into()).await;
    assert!(matches!(result, Err(ProposeError::Fatal { .. })), "a proposal: {result:?}");
    let result = engine.read_barrier(ReadConsistency::Linearizable).await;
    assert!(matches!(result, Err(ReadError::Fatal { .. })), "a read: {result:?}");
    assert!(engine.shutdown().await.is_err(), "the engine had stopped before");
    for node in &nodes {
        // Another node may have applied the same command, and stopped as well.
        let _ = node.engine.shutdown().await;
    }
    let applied = leading.journal.commands();
    assert!(applied.len() == 1 && applied[0].1 == "1", "nothing is applied after the panic: {applied:?}");
}
