//! Who is in the cluster, who leads it, and who is well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::{Endpoint, EngineStatus, MemberKind, NodeId, Role};
use kv_client::{
    Connection, idl,
    protocol::{Call, Reply},
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::config::{ClusterSettings, NodeEndpoints};

/// Knows the members, tracks the leader, and asks the others regularly how they are.
#[derive(Debug)]
pub(crate) struct ClusterManager {
    nodes: BTreeMap<NodeId, NodeEndpoints>,
    status: watch::Receiver<Arc<EngineStatus>>,
    seen: Arc<Seen>,
    _checks: JoinSet<()>,
}

impl ClusterManager {
    /// Begins to watch the cluster.
    pub(crate) fn start(
        node: NodeId,
        settings: &ClusterSettings,
        status: watch::Receiver<Arc<EngineStatus>>,
    ) -> Arc<Self> {
        let others = settings.nodes.iter().filter(|(id, _)| **id != node);
        let seen = Arc::new(Seen {
            timeout: settings.node_timeout,
            last: Mutex::new(others.clone().map(|(id, _)| (*id, Instant::now())).collect()),
        });
        let mut checks = JoinSet::new();
        for (id, endpoints) in others {
            let endpoint = endpoints.client.clone();
            let health = HealthCheck { id: *id, endpoint, connection: None, well: None, seen: seen.clone() };
            checks.spawn(health.run(settings.health_check_interval));
        }
        Arc::new(Self { nodes: settings.nodes.clone(), status, seen, _checks: checks })
    }

    /// Where the clients of `node` go.
    pub(crate) fn client_endpoint(&self, node: NodeId) -> Option<&Endpoint> {
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

    /// Awaits that another node leads than `leader`.
    pub(crate) async fn superseded(&self, leader: NodeId) {
        let mut status = self.status.clone();
        let superseded =
            status.wait_for(|status| status.leader.is_some_and(|now| now != leader)).await.is_ok();
        if !superseded {
            std::future::pending::<()>().await; // The engine is gone, and will not say.
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
            healthy: self.seen.is_healthy(*id),
        };
        self.nodes.iter().map(member).collect()
    }
}

/// When each other node last answered; everybody gets the benefit of the doubt at first.
#[derive(Debug)]
struct Seen {
    timeout: Duration,
    last: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `node` was seen within the failure-detection time; this node, which is not among them, always is.
    fn is_healthy(&self, node: NodeId) -> bool {
        self.lock().get(&node).is_none_or(|seen| seen.elapsed() < self.timeout)
    }
}

/// The health check of one other node: asks for its status over a connection of its own.
struct HealthCheck {
    id: NodeId,
    endpoint: Endpoint,
    connection: Option<Connection>,
    well: Option<bool>,
    seen: Arc<Seen>,
}

impl HealthCheck {
    async fn run(mut self, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.answers(interval).await {
                self.seen.lock().insert(self.id, Instant::now());
            }
            self.tell();
        }
    }

    async fn answers(&mut self, within: Duration) -> bool {
        let ask = async {
            if self.connection.as_ref().is_none_or(|connection| !connection.is_open()) {
                self.connection = Connection::open(&self.endpoint, within).await.ok();
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

    fn tell(&mut self) {
        let well = self.seen.is_healthy(self.id);
        if self.well.replace(well) == Some(well) {
            return;
        }
        match well {
            true => tracing::info!(node = %self.id, "seen"),
            false => {
                tracing::warn!(node = %self.id, endpoint = %self.endpoint, "not seen within node_timeout_ms");
            }
        }
    }
}

/// A role in the words of the IDL.
pub(crate) fn role_name(role: Role) -> String {
    role.to_string()
}
