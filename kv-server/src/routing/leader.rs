//! Calls that a node has the leader execute, over one connection to the leader's endpoint for clients.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use consensus_core::{ClusterId, Endpoint, NodeId, Term};
use consensus_tls::Tls;
use kv_store_client::{
    CallError, Connection,
    admin::NodeIdentity,
    protocol::{Call, Fault, Reply},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout},
};

use crate::{
    between::{self, Challenge, Sealer},
    cluster::{ClusterManager, number},
    convert, identity,
};

/// The connection to the leader, made when it is first needed.
#[derive(Default)]
pub(super) struct LeaderConnection(Mutex<State>);

#[derive(Default)]
struct State {
    current: Option<Arc<Leader>>,
    /// The wrong server at the leader's endpoint that was logged last; `None` when the right one was there since.
    logged: Option<String>,
}

/// A connection to the node that leads.
struct Leader {
    node: NodeId,
    /// Term in which it was opened: in another term it may have lost something, and TCP would be silent for seconds.
    term: Term,
    connection: Connection,
    /// The identity that the node has confirmed.
    identity: NodeIdentity,
    sealer: Sealer,
    /// Number of answers.
    answers: AtomicU64,
    proven: Mutex<Proven>,
}

/// The last moment at which a connection was known to work.
struct Proven {
    at: Instant,
    answers: u64,
}

impl Leader {
    /// Whether the connection works although a call has had no answer for a while: others have, or a probe. The calls that wait
    /// probe it once together.
    async fn is_alive(&self) -> bool {
        let mut proven = self.proven.lock().await;
        if proven.at.elapsed() < PROBE_PAUSE {
            return true;
        }
        let answers = self.answers.load(Ordering::Relaxed);
        let is_alive = answers != proven.answers || {
            let probe = self.connection.call(Call::NoForwarding(self.identity.clone()));
            timeout(CONNECT_TIMEOUT, probe).await.is_ok()
        };
        if is_alive {
            *proven = Proven { at: Instant::now(), answers };
        }
        is_alive
    }
}

/// Why there is no connection to the leader.
enum NoConnection {
    Unreachable(String),
    /// Another server is at the leader's endpoint.
    OtherServer(String),
}

impl LeaderConnection {
    /// Has the leader execute the call, which transfers leadership to `transfer_to`, if that is not `None`; its answer is the
    /// answer. Never sent twice: whether it was executed is for the caller to find out, with its session.
    ///
    /// # Errors
    /// It was not executed, or it is not known whether.
    pub(super) async fn forward(
        &self,
        cluster: &ClusterManager,
        tls: Option<&Tls>,
        leader: NodeId,
        call: impl FnOnce(&Sealer) -> Result<Call, Fault>,
        transfer_to: Option<i64>,
    ) -> Result<Reply, Fault> {
        let current = self.connection_to(cluster, tls, leader).await?;
        let call = call(&current.sealer)?;
        let mut called = std::pin::pin!(timeout(FORWARD_TIMEOUT, current.connection.call(call)));
        let answer = tokio::select! {
            answer = &mut called => answer,
            () = self.until_lost(cluster, tls, &current) => {
                let why = format!("the connection to the leader, node {leader}, lost the call or its answer");
                return Err(convert::unavailable(why, true));
            }
            successor = cluster.superseded(leader) => match transfer_to {
                // A leader that transferred its leadership answers at once. One that hangs may execute the call much later.
                None => match timeout(REPLACED_GRACE, called).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.give_up(&current).await;
                        let why = format!("the leader, node {leader}, was replaced");
                        return Err(convert::unavailable(why, true));
                    }
                },
                // A transfer replaces the leader, which is about to say so.
                Some(to) => match timeout(TRANSFER_GRACE, called).await {
                    Ok(answer) => answer,
                    Err(_) if to == -1 || to == number(successor.0) => {
                        return Ok(convert::transferred(successor));
                    }
                    Err(_) => {
                        let why = format!("node {successor} leads now, and node {leader}, the leader before, is silent");
                        return Err(convert::unavailable(why, true));
                    }
                },
            },
        };
        current.answers.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
        match answer {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error @ CallError::NotSent { .. })) => Err(convert::unavailable(error.to_string(), false)),
            Ok(Err(error)) => Err(convert::unavailable(error.to_string(), true)),
            Err(_) => {
                self.give_up(&current).await;
                Err(convert::unavailable(format!("the leader, node {leader}, did not answer in time"), true))
            }
        }
    }

    /// Returns when the connection is silent and another one to the leader works. TCP may repeat what was lost seconds later.
    async fn until_lost(&self, cluster: &ClusterManager, tls: Option<&Tls>, leader: &Arc<Leader>) {
        loop {
            sleep(PROBE_PAUSE).await;
            if !leader.is_alive().await {
                break;
            }
        }
        self.give_up(leader).await;
        while self.connection_to(cluster, tls, leader.node).await.is_err() {
            sleep(CONNECT_PAUSE).await;
        }
    }

    /// Has the next call open another connection in place of this one.
    async fn give_up(&self, leader: &Arc<Leader>) {
        let mut state = self.0.lock().await;
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(current, leader)) {
            state.current = None;
        }
    }

    /// The connection to the leader, open, to the node that it should be.
    async fn connection_to(
        &self,
        cluster: &ClusterManager,
        tls: Option<&Tls>,
        leader: NodeId,
    ) -> Result<Arc<Leader>, Fault> {
        let (endpoint, term) = (cluster.client_endpoint(leader), cluster.term());
        let mut state = self.0.lock().await;
        if let Some(current) = &state.current
            && (current.node, current.term, current.connection.is_open()) == (leader, term, true)
            && Some(current.connection.endpoint()) == endpoint.as_ref()
            && !current.sealer.is_old()
        {
            return Ok(current.clone());
        }
        let opened = match endpoint {
            Some(endpoint) => open(cluster, tls, (leader, term), &endpoint).await,
            None => Err(NoConnection::Unreachable("its endpoint is unknown".to_owned())),
        };
        let why = match opened {
            Ok(opened) => {
                let current = Arc::new(opened);
                state.current = Some(current.clone());
                state.logged = None;
                return Ok(current);
            }
            Err(NoConnection::Unreachable(why)) => why,
            Err(NoConnection::OtherServer(why)) => {
                if state.logged.as_ref() != Some(&why) {
                    tracing::error!(node = %leader, "what only the leader can do fails on this node: {why}");
                    state.logged = Some(why.clone());
                }
                why
            }
        };
        // The leader that a node knew when it was removed may be long gone.
        let text = cluster
            .why_no_member()
            .into_iter()
            .fold(format!("the leader, node {leader}: {why}"), |text, why| format!("{text}; {why}"));
        Err(convert::unavailable(text, false))
    }
}

/// Connects to the leader, which must say that it is that node of this cluster.
async fn open(
    cluster: &ClusterManager,
    tls: Option<&Tls>,
    (leader, term): (NodeId, Term),
    endpoint: &Endpoint,
) -> Result<Leader, NoConnection> {
    let unreachable = |error: String| NoConnection::Unreachable(error);
    // A follower may hear of its first leader before it has the first entry of the log, which names the cluster.
    let Some(id) = cluster.identity_within(CONNECT_TIMEOUT).await else {
        return Err(unreachable("this node has not heard yet which cluster it is in".to_owned()));
    };
    let connection = Connection::open_with(endpoint, CONNECT_TIMEOUT, tls).await;
    let connection = connection.map_err(|error| unreachable(error.to_string()))?;
    let expected = identity::of(leader, Some(id));
    // A forwarded request is not forwarded again if the leader has changed.
    let asked = timeout(CONNECT_TIMEOUT, connection.call(Call::NoForwarding(expected.clone()))).await;
    let why = match asked {
        Ok(Ok(Ok(Reply::NoForwarding(found)))) if identity::is_same(&expected, &found) => {
            let challenge = challenge_of(&connection).await.map_err(unreachable)?;
            let sealer = Sealer::new(leader, challenge);
            let proven = Mutex::new(Proven { at: Instant::now(), answers: 0 });
            let answers = AtomicU64::new(0);
            return Ok(Leader {
                node: leader,
                term,
                connection,
                identity: expected,
                sealer,
                answers,
                proven,
            });
        }
        Ok(Ok(Ok(Reply::NoForwarding(found)))) => {
            return Err(other_server(leader, endpoint, &describe(&expected, &found)));
        }
        Ok(Ok(Err(Fault::Refused(refused)))) => return Err(other_server(leader, endpoint, &refused.message)),
        Ok(Ok(Ok(_))) => format!("{endpoint}: it answered something else"),
        Ok(Ok(Err(fault))) => format!("{endpoint}: {fault}"),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("{endpoint}: no answer within {CONNECT_TIMEOUT:?}"),
    };
    Err(unreachable(why))
}

/// Asks for the challenge to which the seals on a connection are bound.
async fn challenge_of(connection: &Connection) -> Result<Challenge, String> {
    let endpoint = connection.endpoint();
    let call = connection.call(Call::BetweenNodes(between::CHALLENGE_REQUEST.to_vec()));
    match timeout(CONNECT_TIMEOUT, call).await {
        Ok(Ok(Ok(Reply::BetweenNodes(challenge)))) => between::decode(&challenge),
        Ok(Ok(Ok(_))) => Err(format!("{endpoint}: it answered something else")),
        Ok(Ok(Err(fault))) => Err(format!("{endpoint}: {fault}")),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("{endpoint}: no answer within {CONNECT_TIMEOUT:?}")),
    }
}

/// Message if another server listens at the endpoint of the leader.
fn other_server(leader: NodeId, endpoint: &Endpoint, who: &str) -> NoConnection {
    NoConnection::OtherServer(format!(
        "its endpoint for clients is {endpoint}, and {who}; nothing was done; correct the endpoint of node {leader}: \
         `kvctl member update {leader} --client HOST:PORT`"
    ))
}

fn describe(expected: &NodeIdentity, found: &NodeIdentity) -> String {
    let unknown = || format!("node {} is there, which has not heard yet of its cluster", found.node_id);
    identity::mismatch(expected, found).unwrap_or_else(unknown)
}

/// Checks that a server is the node `expected` by a caller. Returns its identity.
///
/// # Errors
/// It is not that node.
pub(super) fn identify(own: NodeIdentity, expected: &NodeIdentity) -> Result<NodeIdentity, Fault> {
    if identity::is_same(expected, &own) {
        return Ok(own);
    }
    let reason = kv_store_client::admin::RefusedReason::REJECTED;
    Err(convert::refused(describe(expected, &own), reason))
}

impl ClusterManager {
    /// The identity of the cluster; `None` if this node has not heard of it within `wait`.
    async fn identity_within(&self, wait: Duration) -> Option<ClusterId> {
        let mut status = self.status();
        let known = status.wait_for(|status| status.membership.cluster() != ClusterId::NONE);
        Some(timeout(wait, known).await.ok()?.ok()?.membership.cluster())
    }
}

/// How long a leader that was replaced may take to answer.
const REPLACED_GRACE: Duration = Duration::from_millis(200);
/// How long a follower that sees a new leader waits for the word of the old one, which was to transfer leadership.
const TRANSFER_GRACE: Duration = Duration::from_secs(1);
/// How long a call has no answer before its connection is probed, and the pause between two probes.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Time between two attempts to connect to a leader that is silent.
const CONNECT_PAUSE: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than the leader itself takes to say that it does not know.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(10);
