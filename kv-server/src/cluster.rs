//! Who is in the cluster, who leads it, and who is well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::{EngineStatus, MemberKind, NodeId, Role};
use kv_client::{
    Connection, idl,
    protocol::{Call, Reply},
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::config::{ClusterSettings, NodeEndpoints};

/// Knows the members, tracks the leader, and asks the others regularly how they are.
#[derive(Debug)]
pub(crate) struct ClusterManager {
    node: NodeId,
    nodes: BTreeMap<NodeId, NodeEndpoints>,
    status: watch::Receiver<Arc<EngineStatus>>,
    node_timeout: Duration,
    /// When each other node last answered.
    seen: Mutex<BTreeMap<NodeId, Instant>>,
    _checks: JoinSet<()>,
}

impl ClusterManager {
    /// Begins to watch the cluster.
    pub(crate) fn start(
        node: NodeId,
        settings: &ClusterSettings,
        status: watch::Receiver<Arc<EngineStatus>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|manager| {
            let mut checks = JoinSet::new();
            for (id, endpoints) in settings.nodes.iter().filter(|(id, _)| **id != node) {
                let (manager, id, endpoints) = (manager.clone(), *id, endpoints.clone());
                let interval = settings.health_check_interval;
                checks.spawn(async move {
                    let mut health = Health { id, endpoints, connection: None, well: None };
                    let mut ticks = tokio::time::interval(interval);
                    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                    loop {
                        ticks.tick().await;
                        let answered = health.answers(interval).await;
                        let Some(manager) = manager.upgrade() else { return };
                        health.note(&manager, answered);
                    }
                });
            }
            Self {
                node,
                nodes: settings.nodes.clone(),
                status,
                node_timeout: settings.node_timeout,
                // Everybody gets the benefit of the doubt for one node_timeout.
                seen: Mutex::new(settings.nodes.keys().map(|id| (*id, Instant::now())).collect()),
                _checks: checks,
            }
        })
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `node` was seen within the failure-detection time.
    pub(crate) fn is_healthy(&self, node: NodeId) -> bool {
        node == self.node || self.seen().get(&node).is_some_and(|seen| seen.elapsed() < self.node_timeout)
    }

    /// Where the clients of `node` go.
    pub(crate) fn client_endpoint(&self, node: NodeId) -> Option<&consensus_core::Endpoint> {
        self.nodes.get(&node).map(|endpoints| &endpoints.client)
    }

    /// Awaits until a leader other than this node is known, or this node leads, at most `wait`.
    pub(crate) async fn leader_within(&self, wait: Duration) -> Option<NodeId> {
        let mut status = self.status.clone();
        let known = status.wait_for(|status| status.leader.is_some());
        match tokio::time::timeout(wait, known).await {
            Ok(Ok(status)) => status.leader,
            _ => None,
        }
    }

    /// The members, as the IDL shows them.
    pub(crate) fn members(&self) -> Vec<idl::MemberStatus> {
        let membership = self.status.borrow().membership.clone();
        let kind = |id| match membership.members().get(&id).map(|member| member.kind) {
            Some(MemberKind::Voter) => "voter",
            Some(_) => "learner",
            None => "configured",
        };
        let member = |(id, endpoints): (&NodeId, &NodeEndpoints)| idl::MemberStatus {
            node_id: i64::try_from(id.0).unwrap_or(i64::MAX),
            consensus_endpoint: endpoints.consensus.to_string(),
            client_endpoint: endpoints.client.to_string(),
            kind: kind(*id).to_owned(),
            healthy: self.is_healthy(*id),
        };
        self.nodes.iter().map(member).collect()
    }
}

/// The health check of one other node: asks for its status over a connection of its own.
struct Health {
    id: NodeId,
    endpoints: NodeEndpoints,
    connection: Option<Connection>,
    well: Option<bool>,
}

impl Health {
    async fn answers(&mut self, within: Duration) -> bool {
        let ask = async {
            if self.connection.as_ref().is_none_or(|connection| !connection.is_open()) {
                self.connection = Connection::open(&self.endpoints.client, within).await.ok();
            }
            let connection = self.connection.as_ref()?;
            connection.call(Call::Status).await.ok()?.ok().filter(|reply| matches!(reply, Reply::Status(_)))
        };
        let answered = tokio::time::timeout(within, ask).await.ok().flatten().is_some();
        if !answered {
            self.connection = None;
        }
        answered
    }

    fn note(&mut self, manager: &ClusterManager, answered: bool) {
        if answered {
            manager.seen().insert(self.id, Instant::now());
        }
        let well = manager.is_healthy(self.id);
        if self.well.replace(well) != Some(well) {
            match well {
                true => tracing::info!(node = %self.id, "seen"),
                false => {
                    tracing::warn!(node = %self.id, endpoint = %self.endpoints.client, "not seen within node_timeout_ms");
                }
            }
        }
    }
}

/// A role in the words of the IDL.
pub(crate) fn role_name(role: Role) -> String {
    role.to_string()
}
