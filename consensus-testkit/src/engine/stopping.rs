//! Shutdown, and what is fatal.

use bytes::Bytes;
use consensus_core::{
    ChangeError, Health, MemberChange, ProposeError, ReadConsistency, ReadError, SnapshotError, StateMachine,
    TransferError,
};

use super::{Node, can_transfer, leader, leader_and_followers, stop};
use crate::{Journal, JournalReader, eventually};

pub(super) async fn says_so(nodes: Vec<Node>) {
    let engine = &leader(&nodes).await.engine;
    let member = *engine.status().borrow().membership.members().keys().next().expect("a member");
    engine.shutdown().await.unwrap();
    assert_eq!(engine.propose("x".into()).await, Err(ProposeError::ShutDown));
    for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease, ReadConsistency::Stale] {
        assert_eq!(engine.read_barrier(consistency).await, Err(ReadError::ShutDown), "{consistency:?}");
    }
    assert_eq!(engine.status().borrow().health, Health::ShutDown);
    let change = engine.change_membership(vec![MemberChange::Remove(member)]).await;
    let told = matches!(change, Err(ChangeError::NotRunning { .. } | ChangeError::Unsupported));
    assert!(told, "a change of members: {change:?}");
    let transfer = engine.transfer_leadership(None).await;
    let told = matches!(transfer, Err(TransferError::NotRunning { .. } | TransferError::Unsupported));
    assert!(told, "a transfer: {transfer:?}");
    let compaction = engine.compact_log().await;
    let told = matches!(compaction, Err(SnapshotError::NotRunning(_) | SnapshotError::NoLog));
    assert!(told, "a compaction: {compaction:?}");
    engine.shutdown().await.expect("once more");
    stop(&nodes).await;
}

/// Proposals go on while the leader is shut down; some are answered by it, some are not.
pub(super) async fn answers(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let propose = |n: usize| {
        let (engine, command) = (leading.engine.clone(), Bytes::from(n.to_string()));
        tokio::spawn(async move {
            let result = engine.propose(command.clone()).await;
            (command, result)
        })
    };
    let proposals: Vec<_> = (0..100).map(propose).collect();
    tokio::task::yield_now().await; // So that some are under way.
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
                let told = (committed.log_id, command);
                assert!(leading.journal.commands().contains(&told), "{told:?} was answered and not applied");
            }
            Err(error) if error.maybe_applied() => {}
            Err(error) => assert!(!applied(&command), "{command:?} was applied, in spite of: {error}"),
        }
    }
}

/// What the journal has when it comes up again.
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
        assert_eq!(flushed(&node.journal), node.journal.commands(), "flushed, and applied");
    }
    assert_eq!(Journal::reopen(&leading.journal).applied().index, leading.status().applied);
}

pub(super) async fn leaves_the_lead(nodes: Vec<Node>) {
    let (leading, followers) = leader_and_followers(&nodes).await;
    if nodes.len() < 3 || !can_transfer(leading).await {
        return stop(&nodes).await;
    }
    leading.engine.propose("1".into()).await.unwrap();
    leading.engine.shutdown().await.unwrap();
    let heir = eventually("somebody else leads", || {
        let leads = |node: &&&Node| node.status().leader == Some(node.id());
        followers.iter().find(leads).ok_or("nobody")
    })
    .await;
    let second = heir.engine.propose("2".into()).await.expect("it leads");
    assert_eq!(second.response, "2", "after the first, which was acknowledged");
    stop(&nodes).await;
}

pub(super) async fn machine_panics(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let engine = &leading.engine;
    engine.propose("1".into()).await.unwrap();
    let answer = engine.propose("panic!".into()).await;
    assert!(answer.as_ref().is_err_and(ProposeError::maybe_applied), "{answer:?}");
    eventually("the status says why", || match &leading.status().health {
        Health::Fatal(why) if !why.is_empty() => Ok(()),
        other => Err(other.clone()),
    })
    .await;
    let answer = engine.propose("2".into()).await;
    assert!(matches!(answer, Err(ProposeError::Fatal { .. })), "a proposal: {answer:?}");
    let answer = engine.read_barrier(ReadConsistency::Linearizable).await;
    assert!(matches!(answer, Err(ReadError::Fatal { .. })), "a read: {answer:?}");
    assert!(engine.shutdown().await.is_err(), "the engine had stopped before");
    for node in &nodes {
        // The others met with the same command, or not.
        let _ = node.engine.shutdown().await;
    }
    let applied = leading.journal.commands();
    assert!(applied.len() == 1 && applied[0].1 == "1", "nothing after the panic: {applied:?}");
}
