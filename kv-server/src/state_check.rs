//! Compares the states of the nodes regularly. The leader puts the command `CheckState` into the log; each node reports the
//! checksum of its state as of that entry to the leader, which raises the alarm CORRUPT for a node that differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use consensus_core::{MemberKind, Membership, NodeId};
use kv_state_machine::{Alarm, AlarmKind, Caller, CheckedState, ConsensusKvDatabase, KvOperation};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

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
    let mut due = Instant::now() + interval;
    loop {
        tokio::select! {
            () = stopped(&mut stop) => return,
            changed = checked.changed() => {
                if changed.is_err() {
                    return;
                }
                due = Instant::now() + interval;
                tokio::select! {
                    () = stopped(&mut stop) => return,
                    () = report(&router, &mut checked) => {}
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

/// Reports the newest checksum to the leader, again and again until the leader has it.
async fn report(router: &RoutingManager, checked: &mut watch::Receiver<CheckedState>) {
    let budget = NodeBudget::new(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).connection();
    for _ in 0..ATTEMPTS {
        // An unreadable state is a problem of this node, and is shown as one.
        let Some(Ok(hash)) = checked.borrow_and_update().clone() else { return };
        let report = StateReport { node: router.node(), index: hash.applied_index, hash: hash.hash };
        let request = NodeRequest::ReportState(report);
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
pub(crate) struct StateReports(Mutex<BTreeMap<u64, BTreeMap<NodeId, u32>>>);

impl StateReports {
    /// Takes the report of a node, and raises the alarm CORRUPT if states differ.
    pub(crate) async fn take(
        &self,
        database: &ConsensusKvDatabase,
        report: StateReport,
    ) -> Result<(), NodeFault> {
        let membership = database.status().borrow().membership.clone();
        let data_nodes = data_nodes(&membership);
        let reports = self.add(report);
        match compare(&reports, &data_nodes) {
            Comparison::Incomplete => {}
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
        Ok(())
    }

    /// Adds a report. Returns all reports of the same check.
    fn add(&self, StateReport { node, index, hash }: StateReport) -> BTreeMap<NodeId, u32> {
        let mut checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checks.entry(index).or_default().insert(node, hash);
        let reports = checks[&index].clone();
        while checks.len() > CHECKS_KEPT {
            checks.pop_first();
        }
        reports
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

/// Checks whose reports the leader keeps.
const CHECKS_KEPT: usize = 4;
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
    fn reports_of_old_checks_are_forgotten() {
        let reports = StateReports::default();
        for index in 1..100 {
            assert_eq!(reports.add(StateReport { node: NodeId(1), index, hash: 5 }).len(), 1);
        }
        assert_eq!(reports.0.lock().unwrap().len(), CHECKS_KEPT);
        assert_eq!(reports.add(StateReport { node: NodeId(2), index: 99, hash: 5 }).len(), 2);
        // The checks that are kept are newer.
        assert_eq!(reports.add(StateReport { node: NodeId(2), index: 1, hash: 5 }).len(), 1);
        assert!(!reports.0.lock().unwrap().contains_key(&1));
    }
}
