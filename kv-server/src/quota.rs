//! Raises the alarm NOSPACE for a node whose store exceeds the quota. The leader does so by itself before a command would exceed
//! its own; this task does so for all nodes, on whichever node is leader.

use std::{sync::Arc, time::Duration};

use kv_state_machine::{Alarm, AlarmKind, Caller, KvOperation};
use tokio::sync::watch as channel;

use crate::{
    answers::NodeBudget,
    between::{NodeFault, NodeRequest},
    routing::RoutingManager,
};

/// Looks at the size of this node's store until the node stops.
pub(crate) async fn watch(router: Arc<RoutingManager>, mut stop: channel::Receiver<bool>) {
    let budget = NodeBudget::new(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).connection();
    let alarm = Alarm { kind: AlarmKind::NoSpace, node: Some(router.node()) };
    let mut outage = Outage::default();
    loop {
        tokio::select! {
            () = crate::frontend::stopped(&mut stop) => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        match router.database().exceeds_quota() {
            Ok(true) if !router.database().alarms().contains(&alarm) => {
                let request = NodeRequest::Execute(KvOperation::RaiseAlarm(alarm));
                match router.lead(&Caller::Server, &request, &mut budget.room()).await {
                    Ok(_) => {
                        let failed_attempts = outage.end();
                        tracing::warn!(
                            failed_attempts,
                            "the store exceeds its quota (quota_size): the alarm NOSPACE is raised"
                        );
                    }
                    Err(fault) if outage.is_new(Cause::of(&fault)) => tracing::warn!(
                        why = fault.reason(),
                        "the store exceeds its quota (quota_size), and the alarm cannot be raised yet; it is tried again"
                    ),
                    Err(_) => {}
                }
            }
            Ok(_) => _ = outage.end(),
            Err(error) if outage.is_new(Cause::SizeUnknown) => {
                tracing::warn!(%error, "the size of the store is not known; it is looked at again");
            }
            Err(_) => {}
        }
    }
}

/// Why the alarm is not raised, although the store exceeds its quota or may do so. The words beside it may differ from attempt to
/// attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    SizeUnknown,
    NoLeader,
    Rejected,
    Unavailable,
}

impl Cause {
    fn of(fault: &NodeFault) -> Self {
        match fault {
            NodeFault::NotLeader(_) => Self::NoLeader,
            NodeFault::Unavailable { .. } => Self::Unavailable,
            NodeFault::Rejected(_) | NodeFault::Member(_) => Self::Rejected,
        }
    }
}

/// Attempts that have failed since the last one that did not. Each cause is logged once.
#[derive(Debug, Default)]
struct Outage {
    logged: Vec<Cause>,
    attempts: u64,
}

impl Outage {
    /// Records a failed attempt. Whether it is the first one of the outage with this cause.
    fn is_new(&mut self, cause: Cause) -> bool {
        self.attempts += 1;
        let is_new = !self.logged.contains(&cause);
        if is_new {
            self.logged.push(cause);
        }
        is_new
    }

    /// Ends the outage; returns the number of failed attempts.
    fn end(&mut self) -> u64 {
        std::mem::take(self).attempts
    }
}

/// Room for the answers of the leader.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const INTERVAL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_logged_once_in_an_outage() {
        let mut outage = Outage::default();
        let unavailable =
            |why: &str| Cause::of(&NodeFault::Unavailable { why: why.to_owned(), maybe_applied: false });
        assert!(outage.is_new(unavailable("no leader for 1 s")));
        assert!(!outage.is_new(unavailable("no leader for 2 s")), "the cause is the same");
        assert!(outage.is_new(Cause::SizeUnknown));
        assert!(!outage.is_new(unavailable("no leader for 4 s")) && !outage.is_new(Cause::SizeUnknown));
        assert_eq!(outage.end(), 5);
        assert!(outage.is_new(Cause::SizeUnknown), "a new outage");
    }
}
