//! The members of the cluster, its leader, and the health of each.

pub(crate) mod endpoints;
mod health;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use consensus_core::{Endpoint, EngineStatus, Member, Membership, NodeId, Term};
use kv_store_client::idl;
use tokio::{sync::watch, task::JoinHandle};

use self::health::{Check, Checker, Seen};
use crate::{
    config::{NodeEndpoints, Settings, Topology},
    tls::Security,
};

/// Knows the members, tracks the leader, and asks the others regularly how they are.
#[derive(Debug)]
pub(crate) struct ClusterManager {
    node: NodeId,
    name: String,
    /// Endpoints of the configuration file, for nodes whose endpoints are not in the membership.
    configured: BTreeMap<NodeId, NodeEndpoints>,
    status: watch::Receiver<Arc<EngineStatus>>,
    seen: Arc<Seen>,
    watching: JoinHandle<()>,
}

/// This node's part, as far as its own log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Member,
    /// It has heard of no configuration yet.
    Waiting,
    /// The configuration is without it.
    Removed,
}

impl ClusterManager {
    /// Begins to watch the cluster.
    pub(crate) fn start(
        settings: &Settings,
        topology: &Topology,
        status: watch::Receiver<Arc<EngineStatus>>,
        security: &Security,
    ) -> Arc<Self> {
        let node = settings.node;
        let seen = Seen::new(settings.cluster.node_timeout);
        let (name, configured) = (settings.deployment.cluster_name.clone(), topology.nodes.clone());
        let checker = Checker {
            status: status.clone(),
            cluster_name: name.clone(),
            interval: settings.cluster.health_check_interval,
            seen: seen.clone(),
            tls: security.forwarding().cloned(),
        };
        let watching = tokio::spawn(watch_members(node, configured.clone(), status.clone(), checker));
        Arc::new(Self { node, name, configured, status, seen, watching })
    }

    /// Name of the cluster, as the file has it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where the clients of `node` go.
    pub(crate) fn client_endpoint(&self, node: NodeId) -> Option<Endpoint> {
        client_endpoints(&self.membership(), &self.configured).remove(&node)
    }

    /// Status of the engine.
    pub(crate) fn status(&self) -> watch::Receiver<Arc<EngineStatus>> {
        self.status.clone()
    }

    /// Current term, as far as this node knows.
    pub(crate) fn term(&self) -> Term {
        self.status.borrow().term
    }

    pub(crate) fn membership(&self) -> Arc<Membership> {
        self.status.borrow().membership.clone()
    }

    fn part(&self, membership: &Membership) -> Part {
        match membership.get(self.node) {
            Some(_) => Part::Member,
            None if membership.members().is_empty() => Part::Waiting,
            None => Part::Removed,
        }
    }

    /// Awaits until a leader other than this node is known, or this node leads, at most `wait`. A node that is no member
    /// hears of none.
    pub(crate) async fn leader_within(&self, wait: Duration) -> Option<NodeId> {
        if self.part(&self.membership()) != Part::Member {
            return self.status.borrow().leader;
        }
        let mut status = self.status.clone();
        let known = status.wait_for(|status| status.leader.is_some());
        match tokio::time::timeout(wait, known).await {
            Ok(Ok(status)) => status.leader,
            _ => None,
        }
    }

    /// Awaits that another node leads than `leader`; returns it. The node that leads now does not count: `leader` may be about
    /// to succeed it.
    pub(crate) async fn superseded(&self, leader: NodeId) -> NodeId {
        let mut status = self.status.clone();
        let before = status.borrow().leader;
        let is_other = |now| now != leader && Some(now) != before;
        let superseded = status.wait_for(|status| status.leader.is_some_and(is_other)).await;
        let successor = superseded.ok().and_then(|status| status.leader);
        match successor {
            Some(successor) => successor,
            None => std::future::pending().await, // The engine is gone, and will not say.
        }
    }

    /// Message to the operator of a node that is not a member; `None` for a member.
    pub(crate) fn why_no_member(&self) -> Option<String> {
        match self.part(&self.membership()) {
            Part::Member => None,
            Part::Waiting => Some(waiting(self.node)),
            Part::Removed => Some(removed(self.node)),
        }
    }

    /// Why this node knows no leader, and what to do.
    pub(crate) fn why_no_leader(&self) -> String {
        if let Some(why) = self.why_no_member() {
            return why;
        }
        let status = self.status.borrow().clone();
        let own = self.problems(&status).into_iter().map(|problem| format!("this node: {problem}"));
        let voters = status.membership.voters().filter(|id| *id != self.node);
        let problem = |id| Some(format!("node {id}: {}", self.seen.problem(id)?));
        let unwell: Vec<String> = own.chain(voters.filter_map(problem)).collect();
        let detail = if unwell.is_empty() { String::new() } else { format!(" ({})", unwell.join("; ")) };
        format!("there is no leader: a majority of the nodes is needed{detail}")
    }

    /// This node's role in the words of the IDL.
    pub(crate) fn role(&self, status: &EngineStatus) -> String {
        match self.part(&status.membership) {
            Part::Member => status.role.to_string(),
            Part::Waiting => role::WAITING.to_owned(),
            Part::Removed => role::REMOVED.to_owned(),
        }
    }

    /// Problems of this node, and what to do about them.
    pub(crate) fn problems(&self, status: &EngineStatus) -> Vec<String> {
        let no_room = status.no_room.as_ref().map(|why| {
            format!(
                "low on disk ({why}): it takes no commands until there is room, and goes on by itself then"
            )
        });
        let unfit = self.other_disk(status).into_iter().chain(no_room).chain(stalls(status));
        self.why_no_member().into_iter().chain(unfit).collect()
    }

    /// The first problem that keeps this node from taking part in the cluster: a disk that is not the member's, or that stalls.
    pub(crate) fn storage_problem(&self, status: &EngineStatus) -> Option<String> {
        self.other_disk(status).or_else(|| hanging_calls(status).next())
    }

    fn other_disk(&self, status: &EngineStatus) -> Option<String> {
        let is_other = !status.membership.trusts(self.node, status.storage);
        is_other.then(|| other_disk(self.node))
    }

    /// The members, as the IDL shows them; before this node has heard of any, those of its file.
    pub(crate) fn members(&self, status: &EngineStatus) -> Vec<idl::MemberStatus> {
        let membership = &status.membership;
        let mut clients = client_endpoints(membership, &self.configured);
        let mut ids: Vec<NodeId> = membership.all_members().map(|(id, _)| id).collect();
        if ids.is_empty() {
            ids = self.configured.keys().copied().collect();
        }
        let member = |id: NodeId| {
            let consensus = membership.get(id).and_then(|member| member.endpoint.as_ref());
            let consensus =
                consensus.or_else(|| self.configured.get(&id).map(|endpoints| &endpoints.consensus));
            let problem = self.problem_of(id, status);
            let peer = status.peers.get(&id);
            idl::MemberStatus {
                node_id: number(id.0),
                consensus_endpoint: consensus.map_or_else(String::new, Endpoint::to_string),
                client_endpoint: clients
                    .remove(&id)
                    .map_or_else(String::new, |endpoint| endpoint.to_string()),
                kind: kind(id, membership),
                healthy: problem.is_none(),
                problem,
                matched_index: peer.map(|peer| number(peer.matched.0)),
                lag_entries: peer.map(|peer| number(status.last_log.index.since(peer.matched))),
                snapshot_bytes: peer.and_then(|peer| peer.snapshot_bytes).map(number),
                storage_mismatch: peer.map(|peer| peer.other_storage),
                storage_known: membership.get(id).map(Member::storage_is_known),
            }
        };
        ids.into_iter().map(member).collect()
    }

    /// Problem of a member, as far as this node knows.
    pub(crate) fn problem_of(&self, id: NodeId, status: &EngineStatus) -> Option<String> {
        if id == self.node {
            return Some(self.problems(status).join("; ")).filter(|problems| !problems.is_empty());
        }
        let peer = status.peers.get(&id);
        if peer.is_some_and(|peer| peer.other_storage) {
            return Some(other_disk(id));
        }
        let not_sent = status.snapshot_errors.get(&id);
        let not_sent = not_sent.map(|why| format!("it needs a snapshot, and the last attempt failed: {why}"));
        let silent = || "it does not answer the leader at its consensus endpoint".to_owned();
        let unseen = self.seen.problem(id).or_else(|| peer.is_some_and(|peer| !peer.active).then(silent));
        Some(unseen.into_iter().chain(not_sent).collect::<Vec<_>>().join("; ")).filter(|why| !why.is_empty())
    }
}

impl Drop for ClusterManager {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// Calls of this node that hang or fail, and what that means.
fn stalls(status: &EngineStatus) -> impl Iterator<Item = String> {
    let snapshot = status.snapshot_blocked.as_ref();
    let snapshot = snapshot.map(|why| {
        format!(
            "it needs the leader's snapshot and does not take it ({why}); the leader sends it again later"
        )
    });
    hanging_calls(status).chain(snapshot)
}

/// The call of a standalone server's store that takes longer than its limit. It has no log of its own.
pub(crate) fn standalone_stall(status: &EngineStatus) -> Option<String> {
    let seconds = status.apply_stalled_since?.elapsed().as_secs();
    Some(format!(
        "its store has not completed a write for {seconds} s: no key is read or written meanwhile, and it goes on by itself when the \
         disk does; check the disk and the load of the processor"
    ))
}

/// Calls of the log or the state machine that take longer than their limits.
fn hanging_calls(status: &EngineStatus) -> impl Iterator<Item = String> {
    let seconds = |since: Instant| since.elapsed().as_secs();
    let disk = status.storage_stalled_since.map(|since| {
        format!(
            "its disk has not completed a write of the log for {} s (storage_stall_limit): it leads and acknowledges \
             nothing meanwhile, and goes on by itself when the disk does; check the disk",
            seconds(since)
        )
    });
    let apply = status.apply_stalled_since.map(|since| {
        format!(
            "its state machine has been applying for {} s (apply_stall_limit): it does not lead meanwhile, and its reads \
             wait; check the disk and the load of the processor",
            seconds(since)
        )
    });
    disk.into_iter().chain(apply)
}

fn client_endpoints(
    membership: &Membership,
    configured: &BTreeMap<NodeId, NodeEndpoints>,
) -> BTreeMap<NodeId, Endpoint> {
    let configured = configured.iter().filter_map(|(id, endpoints)| Some((*id, endpoints.client.clone()?)));
    let known =
        membership.all_members().filter_map(|(id, member)| Some((id, member.client_endpoint.clone()?)));
    configured.chain(known).collect()
}

/// Runs one health check for each other node of the current membership.
async fn watch_members(
    node: NodeId,
    configured: BTreeMap<NodeId, NodeEndpoints>,
    mut status: watch::Receiver<Arc<EngineStatus>>,
    checker: Checker,
) {
    let mut checks: BTreeMap<NodeId, (Endpoint, Check)> = BTreeMap::new();
    loop {
        let membership = status.borrow_and_update().membership.clone();
        let mut others = client_endpoints(&membership, &configured);
        others.retain(|id, _| {
            *id != node && (membership.get(*id).is_some() || membership.members().is_empty())
        });
        checks.retain(|id, (endpoint, _)| others.get(id) == Some(endpoint));
        for (id, endpoint) in others {
            checks.entry(id).or_insert_with(|| (endpoint.clone(), checker.check(id, endpoint)));
        }
        if status.wait_for(|status| !Arc::ptr_eq(&status.membership, &membership)).await.is_err() {
            return;
        }
    }
}

/// Message about a node that waits to be added.
fn waiting(node: NodeId) -> String {
    format!(
        "node {node} waits to be added to a cluster: `kvctl member add {node} --consensus HOST:PORT --client HOST:PORT`, at \
         the cluster's endpoints"
    )
}

/// Message about a node that is not a member any more.
fn removed(node: NodeId) -> String {
    format!(
        "node {node} was removed from the cluster: stop its server; to add it again, empty its data directory, start it \
         with --join, and `kvctl member add {node}`"
    )
}

/// Message about a member whose disk was emptied or replaced.
fn other_disk(node: NodeId) -> String {
    format!(
        "the disk of node {node} is not the one that the cluster knows (it was emptied or replaced): the node is sent the \
         log, and neither its votes nor its acknowledgements count; `kvctl member remove {node}`, then empty its data \
         directory, start it with --join, and `kvctl member add {node}`"
    )
}

/// A member's kind in the words of the IDL; `configured` if only the file names it.
fn kind(id: NodeId, membership: &Membership) -> String {
    membership.get(id).map_or_else(|| "configured".to_owned(), |member| member.kind.to_string())
}

/// Numbers of the protocol stay far below 2^63; one that does not is shown as the greatest.
pub(crate) fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Roles in the words of the IDL that are no roles of the engine.
pub(crate) mod role {
    pub(crate) const WAITING: &str = "waiting";
    pub(crate) const REMOVED: &str = "removed";
}
