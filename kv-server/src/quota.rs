//! Raises the alarm NOSPACE for a node whose store exceeds the quota. The leader does so by itself before a command would exceed
//! its own; this task does so for all nodes, whoever leads.

use std::{sync::Arc, time::Duration};

use kv_state_machine::{Alarm, AlarmKind, KvOperation};
use tokio::sync::watch as channel;

use crate::{answers::NodeBudget, between::NodeRequest, routing::RoutingManager};

/// Looks at the size of this node's store until the node stops.
pub(crate) async fn watch(router: Arc<RoutingManager>, mut stop: channel::Receiver<bool>) {
    let budget = NodeBudget::new(ANSWER_BYTES_MAX, ANSWER_BYTES_MAX).connection();
    let alarm = Alarm { kind: AlarmKind::NoSpace, node: Some(router.node()) };
    loop {
        tokio::select! {
            () = crate::frontend::stopped(&mut stop) => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        match router.database().exceeds_quota() {
            Ok(true) if !router.database().alarms().contains(&alarm) => {
                let request = NodeRequest::Execute(KvOperation::RaiseAlarm(alarm));
                match router.lead(&request, &mut budget.room()).await {
                    Ok(_) => tracing::warn!(
                        "the store exceeds its quota (quota_size): the alarm NOSPACE is raised"
                    ),
                    Err(fault) => tracing::warn!(
                        ?fault,
                        "the store exceeds its quota (quota_size), and the alarm cannot be raised yet; it is tried again"
                    ),
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the size of the store is not known"),
        }
    }
}

/// Room for the answers of the leader.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
const INTERVAL: Duration = Duration::from_millis(500);
