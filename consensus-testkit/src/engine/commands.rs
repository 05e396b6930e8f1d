//! Proposals without faults.

use std::{future::ready, sync::Arc};

use bytes::Bytes;
use consensus_core::{Committed, ConsensusEngine, ReadConsistency};

use super::{Node, converged, leader, stop};
use crate::eventually;

/// Proposes `0` to `count - 1` concurrently. Returns the results in that order.
async fn propose_all(engine: &Arc<dyn ConsensusEngine>, count: usize) -> Vec<Committed> {
    let propose = |n: usize| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.propose(n.to_string().into()).await })
    };
    let proposals: Vec<_> = (0..count).map(propose).collect();
    let mut results = Vec::new();
    for proposal in proposals {
        results.push(proposal.await.unwrap().expect("a proposal without faults succeeds"));
    }
    results
}

pub(super) async fn agreement(nodes: Vec<Node>) {
    propose_all(&leader(&nodes).await.engine, 200).await;
    let order = converged(&nodes, 200).await;
    let mut numbers: Vec<_> = order.iter().map(|(_, command)| command.clone()).collect();
    numbers.sort_by_key(|command| (command.len(), command.clone()));
    let proposed: Vec<Bytes> = (0..200).map(|n| n.to_string().into()).collect();
    assert_eq!(numbers, proposed, "each command is applied once");
    assert!(order.is_sorted_by(|(a, _), (b, _)| a < b), "positions increase: {order:?}");
    stop(&nodes).await;
}

pub(super) async fn results(nodes: Vec<Node>) {
    let results = propose_all(&leader(&nodes).await.engine, 100).await;
    let order = converged(&nodes, 100).await;
    for (n, committed) in results.into_iter().enumerate() {
        let place = order.iter().position(|(id, _)| *id == committed.log_id);
        let place = place.expect("an acknowledged command is applied at its position");
        assert_eq!(order[place].1, n.to_string(), "the position belongs to the command");
        assert_eq!(committed.response, (place + 1).to_string(), "the response belongs to the command");
    }
    stop(&nodes).await;
}

pub(super) async fn any_bytes(nodes: Vec<Node>) {
    let engine = &leader(&nodes).await.engine;
    let commands: [Vec<u8>; 4] = [vec![], vec![0], (0..=255).collect(), vec![0xff; 100_000]];
    for command in &commands {
        engine.propose(command.clone().into()).await.unwrap();
    }
    let applied: Vec<_> = converged(&nodes, commands.len()).await.into_iter().map(|(_, c)| c).collect();
    assert!(
        applied == commands,
        "of {} bytes",
        applied.iter().map(|c| c.len().to_string() + ", ").collect::<String>()
    );
    stop(&nodes).await;
}

/// Drops each future after polling it once, so that its request may be in progress.
pub(super) async fn dropped(nodes: Vec<Node>) {
    let engine = &leader(&nodes).await.engine;
    for n in 0..20 {
        tokio::select! {
            biased;
            _ = engine.propose(n.to_string().into()) => {}
            () = ready(()) => {}
        }
        tokio::select! {
            biased;
            _ = engine.read_barrier(ReadConsistency::Linearizable) => {}
            () = ready(()) => {}
        }
    }
    engine.propose("after".into()).await.expect("other requests are not affected");
    engine.read_barrier(ReadConsistency::Linearizable).await.expect("other requests are not affected");
    let mut applied = eventually("all nodes apply the same", || {
        let journals: Vec<_> = nodes.iter().map(|node| node.journal.commands()).collect();
        let same = journals.iter().all(|journal| *journal == journals[0]);
        if same && journals[0].iter().any(|(_, command)| command == "after") {
            Ok(journals[0].iter().map(|(_, command)| command.clone()).collect::<Vec<_>>())
        } else {
            Err(journals.iter().map(Vec::len).collect::<Vec<_>>())
        }
    })
    .await;
    applied.sort();
    assert!(applied.is_sorted_by(|a, b| a < b), "applied twice: {applied:?}");
    stop(&nodes).await;
}
