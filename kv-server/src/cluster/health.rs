//! Health checks: each other node is asked for its status over and over, and must be the node that it should be.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use consensus_core::{Endpoint, EngineStatus, NodeId};
use consensus_tls::Tls;
use kv_store_client::{
    Connection,
    admin::NodeIdentity,
    idl::StatusResponse,
    protocol::{Call, Reply},
};
use tokio::{sync::watch, task::JoinHandle, time::Instant};

use crate::identity;

/// Health of the other nodes, as far as it is known.
#[derive(Debug)]
pub(super) struct Seen {
    timeout: Duration,
    nodes: Mutex<BTreeMap<NodeId, Sight>>,
}

/// Health of one node.
#[derive(Debug)]
struct Sight {
    /// When it last answered as the node that it should be.
    answered: Instant,
    /// Result of the last check, if it was no response.
    silence: Option<String>,
    /// Whether another server than the expected one responds.
    is_other: bool,
    /// Problems that the node reports of itself.
    complaints: Vec<String>,
}

impl Seen {
    pub(super) fn new(timeout: Duration) -> Arc<Self> {
        Arc::new(Self { timeout, nodes: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Sight>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a node the benefit of the doubt until it was asked.
    fn expect(&self, node: NodeId) {
        let fresh =
            || Sight { answered: Instant::now(), silence: None, is_other: false, complaints: Vec::new() };
        self.lock().entry(node).or_insert_with(fresh);
    }

    /// Problem of `node`; `None` if it answered within the failure-detection time, as the node that it should be,
    /// and had no complaint, or if it is not asked yet.
    pub(super) fn problem(&self, node: NodeId) -> Option<String> {
        let nodes = self.lock();
        let sight = nodes.get(&node)?;
        let is_late = sight.answered.elapsed() >= self.timeout;
        if let Some(silence) = sight.silence.as_ref().filter(|_| is_late || sight.is_other) {
            return Some(if sight.is_other { silence.clone() } else { format!("not seen: {silence}") });
        }
        Some(sight.complaints.join("; ")).filter(|complaints| !complaints.is_empty())
    }

    fn note(&self, node: NodeId, found: Found) {
        let mut nodes = self.lock();
        let Some(sight) = nodes.get_mut(&node) else { return };
        match found {
            Found::Node(complaints) => {
                *sight = Sight { answered: Instant::now(), silence: None, is_other: false, complaints };
            }
            Found::Other(who) => (sight.silence, sight.is_other) = (Some(who), true),
            Found::Nobody(why) => (sight.silence, sight.is_other) = (Some(why), false),
        }
    }
}

/// Result of a health check.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// The node, with its complaints.
    Node(Vec<String>),
    /// Another server than the expected one.
    Other(String),
    /// No answer.
    Nobody(String),
}

/// The task that checks one node; it ends with this value.
pub(super) struct Check(JoinHandle<()>);

impl Drop for Check {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Parameters of health checks: the expected nodes, and the interval.
#[derive(Clone)]
pub(super) struct Checker {
    /// Of this node, which knows the identity of the cluster.
    pub(super) status: watch::Receiver<Arc<EngineStatus>>,
    pub(super) cluster_name: String,
    pub(super) interval: Duration,
    pub(super) seen: Arc<Seen>,
    /// TLS of the connections to the ports for clients.
    pub(super) tls: Option<Tls>,
}

impl Checker {
    /// Begins to check `node` at `endpoint`.
    pub(super) fn check(&self, node: NodeId, endpoint: Endpoint) -> Check {
        self.seen.expect(node);
        let check = HealthCheck { node, endpoint, checker: self.clone(), connection: None, told: None };
        Check(tokio::spawn(check.run()))
    }
}

/// The health check of one other node: asks for its status over a connection of its own.
struct HealthCheck {
    node: NodeId,
    endpoint: Endpoint,
    checker: Checker,
    connection: Option<Connection>,
    /// The problem that was logged last, [without numbers](without_numbers); the outer `None`: nothing yet.
    told: Option<Option<String>>,
}

impl HealthCheck {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.checker.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let found = self.ask().await;
            self.checker.seen.note(self.node, found);
            self.tell();
        }
    }

    async fn ask(&mut self) -> Found {
        let within = self.checker.interval;
        let asked = tokio::time::timeout(within, self.status()).await;
        let found = match asked {
            Ok(Ok(status)) => {
                let cluster = self.checker.status.borrow().membership.cluster();
                let expected = identity::of(self.node, Some(cluster));
                identify(&expected, &self.checker.cluster_name, &self.endpoint, &status)
            }
            Ok(Err(why)) => Found::Nobody(why),
            Err(_) => Found::Nobody(format!("{}: no answer within {within:?}", self.endpoint)),
        };
        if matches!(found, Found::Nobody(_)) {
            self.connection = None;
        }
        found
    }

    async fn status(&mut self) -> Result<StatusResponse, String> {
        if self.connection.as_ref().is_none_or(|connection| !connection.is_open()) {
            let opened =
                Connection::open_with(&self.endpoint, self.checker.interval, self.checker.tls.as_ref()).await;
            self.connection = Some(opened.map_err(|error| error.to_string())?);
        }
        let connection = self.connection.as_ref().ok_or("no connection")?;
        match connection.call(Call::Status).await {
            Ok(Ok(Reply::Status(status))) => Ok(status),
            Ok(Ok(other)) => Err(format!("{}: answered something else: {other:?}", self.endpoint)),
            Ok(Err(fault)) => Err(format!("{}: {fault}", self.endpoint)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Logs a change; not the same problem again.
    fn tell(&mut self) {
        let problem = self.checker.seen.problem(self.node);
        let kind = problem.as_deref().map(without_numbers);
        if self.told.as_ref() == Some(&kind) {
            return;
        }
        match &problem {
            None => tracing::info!(node = %self.node, "seen"),
            Some(problem) => {
                tracing::warn!(node = %self.node, endpoint = %self.endpoint, problem, "a node is not well");
            }
        }
        self.told = Some(kind);
    }
}

/// A problem without what changes while it lasts: seconds, and free space.
fn without_numbers(problem: &str) -> String {
    problem.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect()
}

/// Whether the server that answered is the node that should be there. `name` is the name of this cluster.
fn identify(expected: &NodeIdentity, name: &str, endpoint: &Endpoint, status: &StatusResponse) -> Found {
    let node = expected.node_id;
    let found = NodeIdentity::new(status.header.node_id, status.cluster_id.clone());
    let other_name = status.cluster_name.as_deref().filter(|other| *other != name);
    let who = if let (Some(other), Some(_)) = (other_name, &found.cluster_id) {
        let found = found.node_id;
        Some(format!(
            "node {found} of another cluster, \"{other}\", is there; this one is \"{name}\": correct cluster_name"
        ))
    } else {
        identity::mismatch(expected, &found)
    };
    match who {
        None => Found::Node(status.problems.clone().unwrap_or_default()),
        Some(who) => Found::Other(format!(
            "its endpoint for clients is {endpoint}, and {who}; correct the node's number or its endpoint (`kvctl member \
             update {node} --client HOST:PORT`)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use consensus_core::ClusterId;
    use kv_store_client::idl::ResponseHeader;

    use super::*;

    /// Status of a node. One without a cluster identity is standalone.
    fn status(node: i64, cluster_name: &str, cluster: Option<u64>) -> StatusResponse {
        let (header, cluster) = (ResponseHeader::new(1, node, 1, 1), cluster.map(ClusterId));
        let (version, role, id) = ("1".to_owned(), "follower".to_owned(), cluster.map(|id| id.to_string()));
        StatusResponse::new(header, version, role, None, 1, 1, 1, vec![], cluster_name.to_owned(), None, id)
    }

    #[test]
    fn another_node_or_cluster_is_told_from_the_one_expected() {
        let endpoint = "h:1".parse().unwrap();
        let expected = identity::of(NodeId(2), Some(ClusterId(7)));
        let found = |status: &StatusResponse| identify(&expected, "mine", &endpoint, status);
        assert_eq!(found(&status(2, "mine", Some(7))), Found::Node(vec![]));
        assert_eq!(found(&status(2, "mine", Some(0))), Found::Node(vec![]), "it has just begun");
        for (status, words) in [
            (status(3, "mine", Some(7)), "node 3 is there, not node 2"),
            (status(2, "other", Some(7)), "another cluster, \"other\""),
            (status(2, "mine", Some(8)), "node 2 of another cluster (0000000000000008) is there"),
            (status(2, "mine", None), "a standalone server is there"),
        ] {
            let Found::Other(who) = found(&status) else { panic!("{status:?}") };
            assert!(who.contains(words), "{who}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn node_is_well_until_it_is_late_or_somebody_else() {
        let (seen, node) = (Seen::new(Duration::from_secs(10)), NodeId(1));
        seen.expect(node);
        seen.note(node, Found::Nobody("refused".to_owned()));
        assert_eq!(seen.problem(node), None, "within the failure-detection time");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(seen.problem(node).as_deref(), Some("not seen: refused"));
        seen.note(node, Found::Node(vec!["low on disk".to_owned()]));
        assert_eq!(seen.problem(node).as_deref(), Some("low on disk"));
        seen.note(node, Found::Node(vec![]));
        seen.note(node, Found::Other("another server".to_owned()));
        assert_eq!(seen.problem(node).as_deref(), Some("another server"), "at once");
    }
}
