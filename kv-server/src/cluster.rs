//! Who is in the cluster, who leads it, and who is well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::{Endpoint, EngineStatus, Membership, NodeId, Role};
use kv_store_client::{
    Connection, idl,
    protocol::{Call, Reply},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::config::{ClusterSettings, NodeEndpoints};

/// Knows the members, tracks the leader, and asks the others regularly how they are.
#[derive(Debug)]
pub(crate) struct ClusterManager {
    node: NodeId,
    /// As the file has them; counts for those of whom the membership says nothing.
    configured: BTreeMap<NodeId, NodeEndpoints>,
    status: watch::Receiver<Arc<EngineStatus>>,
    seen: Arc<Seen>,
    watching: JoinHandle<()>,
}

impl ClusterManager {
    /// Begins to watch the cluster.
    pub(crate) fn start(
        node: NodeId,
        settings: &ClusterSettings,
        status: watch::Receiver<Arc<EngineStatus>>,
    ) -> Arc<Self> {
        let seen = Arc::new(Seen { timeout: settings.node_timeout, last: Mutex::default() });
        let configured = settings.nodes.clone();
        let watching = watch_members(
            node,
            configured.clone(),
            status.clone(),
            seen.clone(),
            settings.health_check_interval,
        );
        Arc::new(Self { node, configured, status, seen, watching: tokio::spawn(watching) })
    }

    /// Where the clients of `node` go.
    pub(crate) fn client_endpoint(&self, node: NodeId) -> Option<Endpoint> {
        client_endpoints(&self.membership(), &self.configured).remove(&node)
    }

    pub(crate) fn membership(&self) -> Arc<Membership> {
        self.status.borrow().membership.clone()
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

    /// The members, as the IDL shows them; before this node has heard of any, those of its file.
    pub(crate) fn members(&self) -> Vec<idl::MemberStatus> {
        let membership = self.membership();
        let mut clients = client_endpoints(&membership, &self.configured);
        let kind = |id| membership.get(id).map_or("configured".to_owned(), |member| member.kind.to_string());
        let consensus = |id| {
            let known = membership.get(id).and_then(|member| member.endpoint.as_ref());
            known
                .or_else(|| self.configured.get(&id).map(|endpoints| &endpoints.consensus))
                .map(Endpoint::to_string)
        };
        let mut ids: Vec<NodeId> = membership.everybody().map(|(id, _)| id).collect();
        if ids.is_empty() {
            ids = self.configured.keys().copied().collect();
        }
        let member = |id: NodeId| idl::MemberStatus {
            node_id: i64::try_from(id.0).unwrap_or(i64::MAX),
            consensus_endpoint: consensus(id).unwrap_or_default(),
            client_endpoint: clients.remove(&id).map_or_else(String::new, |endpoint| endpoint.to_string()),
            kind: kind(id),
            healthy: id == self.node || self.seen.is_healthy(id),
        };
        ids.into_iter().map(member).collect()
    }
}

impl Drop for ClusterManager {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

fn client_endpoints(
    membership: &Membership,
    configured: &BTreeMap<NodeId, NodeEndpoints>,
) -> BTreeMap<NodeId, Endpoint> {
    let configured = configured.iter().map(|(id, endpoints)| (*id, endpoints.client.clone()));
    let known = membership.everybody().filter_map(|(id, member)| Some((id, member.client_endpoint.clone()?)));
    configured.chain(known).collect()
}

/// Has one health check for each other node, whoever they are just now.
async fn watch_members(
    node: NodeId,
    configured: BTreeMap<NodeId, NodeEndpoints>,
    mut status: watch::Receiver<Arc<EngineStatus>>,
    seen: Arc<Seen>,
    interval: Duration,
) {
    let mut checks: BTreeMap<NodeId, (Endpoint, Check)> = BTreeMap::new();
    loop {
        let membership = status.borrow_and_update().membership.clone();
        let mut others = client_endpoints(&membership, &configured);
        others.retain(|id, _| {
            *id != node && (membership.get(*id).is_some() || *membership == Membership::default())
        });
        checks.retain(|id, (endpoint, _)| others.get(id) == Some(endpoint));
        for (id, endpoint) in others {
            checks.entry(id).or_insert_with(|| {
                // Everybody gets the benefit of the doubt at first.
                seen.lock().entry(id).or_insert_with(Instant::now);
                let check = HealthCheck {
                    id,
                    endpoint: endpoint.clone(),
                    connection: None,
                    well: None,
                    seen: seen.clone(),
                };
                (endpoint, Check(tokio::spawn(check.run(interval))))
            });
        }
        if status.wait_for(|status| !Arc::ptr_eq(&status.membership, &membership)).await.is_err() {
            return;
        }
    }
}

/// A task that ends with its owner.
struct Check(JoinHandle<()>);

impl Drop for Check {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// When each other node last answered.
#[derive(Debug)]
struct Seen {
    timeout: Duration,
    last: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `node` was seen within the failure-detection time, or is not asked yet.
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
