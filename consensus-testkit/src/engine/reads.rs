//! Read barriers.

use consensus_core::{Committed, LogIndex, ReadConsistency, ReadError};

use super::{Node, converged, leader, stop};

/// Whether the node has applied every command in `commands` up to `index`.
fn has(node: &Node, commands: &[Committed], index: LogIndex) -> bool {
    let journal = node.journal.commands();
    let applied = |committed: &&Committed| journal.iter().any(|(id, _)| *id == committed.log_id);
    commands.iter().filter(|committed| committed.log_id.index <= index).all(|committed| applied(&committed))
}

pub(super) async fn barriers(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let mut acknowledged = Vec::new();
    for n in 1..=20 {
        acknowledged.push(leading.engine.propose(n.to_string().into()).await.unwrap());
        let last = acknowledged[acknowledged.len() - 1].log_id.index;
        for node in &nodes {
            for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease] {
                let barrier = node.engine.read_barrier(consistency).await;
                let complete = has(node, &acknowledged, last);
                match barrier {
                    Ok(index) => {
                        assert!(complete, "{consistency:?}: the read misses an acknowledged command");
                        assert!(index >= last, "{consistency:?}: barrier at {index}, acknowledged at {last}");
                    }
                    // A follower either asks the leader or refuses.
                    Err(ReadError::NotLeader { .. }) => {
                        assert_ne!(node.id(), leading.id(), "the node is leader");
                    }
                    Err(error) => panic!("{consistency:?}: {error}"),
                }
            }
        }
    }
    stop(&nodes).await;
}

pub(super) async fn stale(nodes: Vec<Node>) {
    let leading = leader(&nodes).await;
    let mut acknowledged = Vec::new();
    for n in 1..=20 {
        acknowledged.push(leading.engine.propose(n.to_string().into()).await.unwrap());
        for node in &nodes {
            let known = node.status().applied;
            let index = node
                .engine
                .read_barrier(ReadConsistency::Stale)
                .await
                .expect("a stale read needs no other node");
            assert!(has(node, &acknowledged, index), "node {} has not applied up to {index}", node.id());
            assert!(index >= known, "read at {index}, after the status had applied index {known}");
        }
    }
    converged(&nodes, 20).await;
    stop(&nodes).await;
}
