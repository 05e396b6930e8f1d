//! Compares the states of the nodes regularly. The leader puts the command `CheckState` into the log; each node reports the
//! checksum of its state as of that entry to the leader, which raises the alarm CORRUPT for a node that differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::{MemberKind, Membership, NodeId};
use kv_state_machine::{Alarm, AlarmKind, Caller, ConsensusKvDatabase, KvOperation, StateHash};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    answers::NodeBudget,
    between::{NodeFault, NodeRequest},
    frontend::stopped,
    routing::RoutingManager,
};

/// Checksum that a node reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StateReport {
    pub(crate) node: NodeId,
    /// Index of the entry as of which the checksum is.
    pub(crate) index: u64,
    pub(crate) hash: u32,
}

/// Has the nodes check their states when this node leads, and reports each checksum of this node, until the node stops.
/// `interval` zero: this node starts no checks.
pub(crate) async fn run(router: Arc<RoutingManager>, interval: Duration, mut stop: watch::Receiver<bool>) {
    let Some(mut checked) = router.database().checked_states() else { return };
    let (mut due, mut reports) = (Instant::now() + interval, JoinSet::new());
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            changed = checked.changed() => {
                if changed.is_err() {
                    return;
                }
                due = Instant::now() + interval;
                reports.shutdown().await;
                let outcome = checked.borrow_and_update().clone();
                // An unreadable state is a problem of this node, and is shown as one.
                if let Some(Ok(StateHash { applied_index: index, hash, .. })) = outcome {
                    let report = StateReport { node: router.node(), index, hash };
                    reports.spawn(send(router.clone(), report));
                }
            }
            () = tokio::time::sleep_until(due), if !interval.is_zero() => {
                due = Instant::now() + interval;
                start_check(&router).await;
            }
        }
    }
}

/// Starts a check on all nodes, if this node leads.
async fn start_check(router: &RoutingManager) {
    let database = router.database();
    if database.status().borrow().leader != Some(router.node()) {
        return;
    }
    let started = database.execute_operation(KvOperation::CheckState).await;
    if let Err(error) = started {
        tracing::warn!(%error, "the nodes could not be asked to check their states; they are asked again");
    }
}

/// Sends a report to the leader, again and again until the leader has it.
async fn send(router: Arc<RoutingManager>, report: StateReport) {
    let budget = NodeBudget::new(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).connection();
    let request = NodeRequest::ReportState(report);
    for _ in 0..ATTEMPTS {
        match router.lead(&Caller::Server, &request, &mut budget.room()).await {
            Ok(_) => return,
            Err(fault) => tracing::debug!(why = fault.reason(), "the leader does not have the checksum yet"),
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    tracing::warn!("no leader has taken the checksum of this node's state; the next check repeats it");
}

/// Reports of the last checks, on the leader.
#[derive(Debug, Default)]
pub(crate) struct StateReports(Mutex<Checks>);

#[derive(Debug, Default)]
struct Checks {
    /// By the index of the entry, and the node.
    open: BTreeMap<u64, BTreeMap<NodeId, u32>>,
    /// Index of the last check that was decided. A node may apply its entry again after a restart, and report it again.
    decided: u64,
}

impl StateReports {
    /// Takes the report of a node, and raises the alarm CORRUPT if states differ.
    pub(crate) async fn take(
        &self,
        database: &ConsensusKvDatabase,
        report: StateReport,
    ) -> Result<(), NodeFault> {
        let membership = database.status().borrow().membership.clone();
        let data_nodes = data_nodes(&membership);
        let Some(reports) = self.add(report, &data_nodes) else { return Ok(()) };
        match compare(&reports, &data_nodes) {
            Comparison::Incomplete => return Ok(()),
            Comparison::Equal => {
                tracing::info!(
                    index = report.index,
                    nodes = reports.len(),
                    "the states of the nodes are equal"
                );
            }
            Comparison::Differ(nodes) => {
                for node in nodes {
                    raise_alarm(database, Some(node), report.index, &reports).await?;
                }
            }
            Comparison::Undecided => raise_alarm(database, None, report.index, &reports).await?,
        }
        self.decide(report.index);
        Ok(())
    }

    /// Adds a report. Returns all reports of the same check; `None` if that is decided, or too old.
    fn add(&self, report: StateReport, data_nodes: &BTreeSet<NodeId>) -> Option<BTreeMap<NodeId, u32>> {
        let StateReport { node, index, hash } = report;
        let Checks { open, decided } = &mut *self.lock();
        if index <= *decided {
            return None;
        }
        open.entry(index).or_default().insert(node, hash);
        while open.len() > CHECKS_KEPT {
            let Some((old, reports)) = open.pop_first() else { break };
            let silent: Vec<String> =
                data_nodes.iter().filter(|id| !reports.contains_key(id)).map(NodeId::to_string).collect();
            let hashes: BTreeSet<u32> = reports.into_values().collect();
            let (silent, differ) = (silent.join(", "), hashes.len() > 1);
            tracing::warn!(
                index = old,
                silent,
                differ,
                "a check of the states had no report from some nodes"
            );
            *decided = old;
        }
        open.get(&index).cloned()
    }

    /// Removes a check, and older ones.
    fn decide(&self, index: u64) {
        let mut checks = self.lock();
        checks.decided = checks.decided.max(index);
        let decided = checks.decided;
        checks.open.retain(|open, _| *open > decided);
    }

    fn lock(&self) -> MutexGuard<'_, Checks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn raise_alarm(
    database: &ConsensusKvDatabase,
    node: Option<NodeId>,
    index: u64,
    reports: &BTreeMap<NodeId, u32>,
) -> Result<(), NodeFault> {
    let alarm = Alarm { kind: AlarmKind::Corrupt, node };
    if database.alarms().contains(&alarm) {
        return Ok(());
    }
    let checksums: Vec<String> =
        reports.iter().map(|(node, hash)| format!("node {node}: {hash:08x}")).collect();
    tracing::error!(
        index,
        checksums = checksums.join(", "),
        "the states of the nodes differ: the alarm CORRUPT is raised, and commands are refused"
    );
    database.execute_operation(KvOperation::RaiseAlarm(alarm)).await?;
    Ok(())
}

/// Members that keep data.
fn data_nodes(membership: &Membership) -> BTreeSet<NodeId> {
    let members = membership.all_members();
    members.filter(|(_, member)| member.kind != MemberKind::Witness).map(|(id, _)| id).collect()
}

/// Outcome of a check so far.
#[derive(Debug, PartialEq, Eq)]
enum Comparison {
    /// Reports are missing, and those that are there do not tell which node is wrong.
    Incomplete,
    Equal,
    /// These nodes differ from more than half of the nodes.
    Differ(Vec<NodeId>),
    /// There are all reports, and no checksum is that of more than half of the nodes.
    Undecided,
}

fn compare(reports: &BTreeMap<NodeId, u32>, data_nodes: &BTreeSet<NodeId>) -> Comparison {
    let reports: Vec<_> = reports.iter().filter(|(node, _)| data_nodes.contains(node)).collect();
    let mut counts = BTreeMap::new();
    reports.iter().for_each(|(_, hash)| *counts.entry(**hash).or_insert(0) += 1);
    let is_complete = reports.len() == data_nodes.len();
    if counts.len() <= 1 {
        return if is_complete { Comparison::Equal } else { Comparison::Incomplete };
    }
    let of_most = counts.iter().find(|(_, count)| **count * 2 > data_nodes.len()).map(|(hash, _)| *hash);
    match of_most {
        Some(right) => {
            let wrong = reports.iter().filter(|(_, hash)| **hash != right).map(|(node, _)| **node);
            Comparison::Differ(wrong.collect())
        }
        None if is_complete => Comparison::Undecided,
        None => Comparison::Incomplete,
    }
}

/// Checks for whose reports the leader waits at a time.
const CHECKS_KEPT: usize = 2;
/// Room for the answers of the leader.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const ATTEMPTS: u32 = 60;
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(reports: &[(u64, u32)], nodes: u64) -> Comparison {
        let reports = reports.iter().map(|(node, hash)| (NodeId(*node), *hash)).collect();
        compare(&reports, &(0..nodes).map(NodeId).collect())
    }

    #[test]
    fn node_that_differs_from_most_is_named_as_soon_as_most_are_known() {
        assert_eq!(compared(&[(0, 1)], 1), Comparison::Equal);
        assert_eq!(compared(&[(0, 1), (1, 1)], 3), Comparison::Incomplete);
        assert_eq!(compared(&[(0, 1), (1, 1), (2, 1)], 3), Comparison::Equal);
        assert_eq!(compared(&[(0, 1), (1, 2)], 3), Comparison::Incomplete);
        assert_eq!(compared(&[(0, 1), (1, 2), (2, 1)], 3), Comparison::Differ(vec![NodeId(1)]));
        assert_eq!(compared(&[(0, 1), (1, 2), (2, 1), (3, 1)], 5), Comparison::Differ(vec![NodeId(1)]));
        assert_eq!(compared(&[(0, 1), (1, 2), (2, 3)], 3), Comparison::Undecided);
        assert_eq!(compared(&[(0, 1), (1, 2)], 2), Comparison::Undecided);
        assert_eq!(compared(&[(0, 1), (7, 2)], 1), Comparison::Equal, "7 is no member with data");
    }

    #[test]
    fn report_of_a_check_that_is_decided_or_old_is_ignored() {
        let (reports, nodes) = (StateReports::default(), BTreeSet::from([NodeId(1), NodeId(2)]));
        let add = |node, index| {
            let report = StateReport { node: NodeId(node), index, hash: 5 };
            reports.add(report, &nodes).map(|reports| reports.len())
        };
        assert_eq!((add(1, 10), add(2, 10)), (Some(1), Some(2)));
        reports.decide(10);
        assert_eq!(add(2, 10), None, "it was applied again after a restart");
        for index in 11..100 {
            assert_eq!(add(1, index), Some(1));
        }
        assert_eq!(reports.lock().open.len(), CHECKS_KEPT);
        assert_eq!((add(2, 99), add(2, 11)), (Some(2), None));
    }
}
