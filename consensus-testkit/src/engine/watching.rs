//! The status after every change.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use consensus_core::{EngineStatus, NodeId, TransferError};
use tokio::{sync::watch, task::JoinHandle};

use super::{Node, a_moment, converged, leader, stop};
use crate::eventually;

/// Collects all statuses of a node.
struct Watch {
    node: NodeId,
    status: watch::Receiver<Arc<EngineStatus>>,
    seen: Arc<Mutex<Vec<Arc<EngineStatus>>>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(node: &Node) -> Self {
        let mut status = node.engine.status();
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let (all, last) = (status.clone(), seen.clone());
        let task = tokio::spawn(async move {
            loop {
                let now = status.borrow_and_update().clone();
                lock(&last).push(now);
                if status.changed().await.is_err() {
                    return;
                }
            }
        });
        Self { node: node.id(), status: all, seen, task }
    }

    /// Returns all statuses, with the current one in case the task has not received it.
    fn end(self) -> Vec<Arc<EngineStatus>> {
        self.task.abort();
        let mut seen = lock(&self.seen).clone();
        seen.push(self.status.borrow().clone());
        seen
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) async fn progress(nodes: Vec<Node>) {
    let watched: Vec<_> = nodes.iter().map(Watch::start).collect();
    let leading = leader(&nodes).await;
    let mut last = None;
    for n in 0..50 {
        last = Some(leading.engine.propose(n.to_string().into()).await.unwrap().log_id.index);
    }
    converged(&nodes, 50).await;
    for node in &nodes {
        eventually("the status has the applied index", || {
            let applied = node.status().applied;
            if Some(applied) >= last { Ok(()) } else { Err(applied) }
        })
        .await;
    }
    stop(&nodes).await;
    for watch in watched {
        let (node, seen) = (watch.node, watch.end());
        assert!(seen.iter().all(|status| status.node_id == node), "every status of node {node} has its id");
        for status in &seen {
            let ordered = status.applied <= status.commit && status.commit <= status.last_log.index;
            assert!(ordered, "applied, committed, last: {status:?}");
        }
        let progress = |status: &EngineStatus| (status.term, status.commit, status.applied);
        for (before, after) in seen.iter().zip(seen.iter().skip(1)) {
            let (b, a) = (progress(before), progress(after));
            assert!(b.0 <= a.0 && b.1 <= a.1 && b.2 <= a.2, "term, commit, applied: {b:?}, then {a:?}");
        }
    }
}

pub(super) async fn one_leader(nodes: Vec<Node>) {
    let watched: Vec<_> = nodes.iter().map(Watch::start).collect();
    for _ in 0..3 {
        // Creates terms with other leaders, if the engine supports transfers and there are other nodes.
        match leader(&nodes).await.engine.transfer_leadership(None).await {
            Err(TransferError::Unsupported) => break,
            _ => a_moment().await,
        }
    }
    leader(&nodes).await;
    stop(&nodes).await;
    let mut leaders: BTreeMap<_, NodeId> = BTreeMap::new();
    for watch in watched {
        for status in watch.end() {
            let Some(leader) = status.leader else { continue };
            let known = *leaders.entry(status.term).or_insert(leader);
            assert_eq!(
                leader, known,
                "leaders of term {}, one according to node {}",
                status.term, status.node_id
            );
        }
    }
    assert!(!leaders.is_empty(), "no status ever named a leader");
}
