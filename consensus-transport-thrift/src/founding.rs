//! Decides whether a node with an empty log may bootstrap a cluster.
//!
//! Every node has a file with the first configuration of its cluster. The file is valid only once. A node whose disk was
//! emptied later, or whose file lists other nodes, would bootstrap a second cluster together with nodes in the same state,
//! and everything that the first cluster acknowledged would be lost. So before a node writes the first configuration, it
//! asks all other nodes in the file for their state ([`await_founders`]), and answers their questions in the meantime:
//!
//! * All others have an empty log as well, or have just written the same configuration: the node bootstraps.
//! * Another node has a history, and its configuration includes this node with this disk or with an unknown disk: the node
//!   starts with its empty log, and the leader sends it the entries.
//! * Another node has a history, and does not know this node, or knows it with another disk: the node does not start.
//! * Another node does not respond: the node waits, unless the other one [may be missing](FoundingConfig::may_be_missing).
//!
//! What this is *not*: a proof. An operator who declares that a node may be missing asserts that it has no history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use consensus_core::{ClusterId, Endpoint, NodeId, StorageId};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    ClusterHistory, Founders, PeerIdentity, PeerState, ThriftTransport, identity::FORMATS, probe::probe_as,
};

/// Settings of [`await_founders`].
#[derive(Clone, Debug)]
pub struct FoundingConfig {
    /// Voters of the first configuration, including this node.
    pub founders: Founders,
    /// Endpoints of all founders. This node also probes its own endpoint, where another node with its id may listen.
    pub endpoints: BTreeMap<NodeId, Endpoint>,
    /// Nodes for which this node does not wait, because they may have failed before the cluster was bootstrapped. A wrong
    /// entry can lose data: the operator asserts that the node has no history.
    pub may_be_missing: BTreeSet<NodeId>,
}

/// How a node with an empty log starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundingOutcome {
    /// The node writes the first configuration, which [`await_founders`] has announced to the others.
    Bootstrap,
    /// The node starts with its empty log: the cluster exists, and its leader sends the entries.
    Follow {
        /// A member of the cluster that knows this node.
        member: NodeId,
    },
}

/// Why a node must not start, according to the answer of a peer. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint}, where node {peer} should be: {conflict}")]
pub struct FoundingError {
    /// Peer that was asked.
    pub peer: NodeId,
    /// Endpoint of the peer.
    pub endpoint: Endpoint,
    /// Why this node must not start.
    pub conflict: Conflict,
}

/// Conflict between this node's settings and a peer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// Another node listens at the peer's endpoint.
    OtherNode(NodeId),
    /// Another process with this node's id, but another disk, listens at this node's endpoint.
    OwnIdElsewhere(StorageId),
    /// The peer belongs to a cluster with another name.
    OtherName(String),
    /// The peer supports none of this node's message formats.
    OtherFormats(std::ops::RangeInclusive<i32>),
    /// The peer bootstraps, or has bootstrapped, a cluster with other voters.
    OtherFounders(Founders),
    /// The peer belongs to a cluster with a history that does not include this node.
    NotAMember(ClusterId),
    /// The peer knows this node with another disk.
    OtherDisk {
        /// Disk that the peer knows.
        known: StorageId,
        /// Disk that this node has now.
        own: StorageId,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNode(node) => write!(
                f,
                "node {node} listens there; correct the ids or endpoints in the settings of the two nodes"
            ),
            Self::OwnIdElsewhere(storage) => write!(
                f,
                "another process runs there with this node's id and the storage {storage}: two nodes were started with one \
                 id; stop one of them"
            ),
            Self::OtherName(name) => write!(f, "that node belongs to the cluster named {name:?}"),
            Self::OtherFormats(formats) => write!(
                f,
                "that node supports the message formats {} to {}, this one {} to {}",
                formats.start(),
                formats.end(),
                FORMATS.start(),
                FORMATS.end()
            ),
            Self::OtherFounders(founders) => write!(
                f,
                "that node's first configuration has other voters than this node's: {}",
                names(founders.keys())
            ),
            Self::NotAMember(_) => write!(
                f,
                "that node already belongs to a cluster with a history, this node is not a member of it, and this node's log \
                 is empty"
            ),
            Self::OtherDisk { known, own } => write!(
                f,
                "that node's cluster knows this node with the storage {known}, but this node's log is empty and has the \
                 storage {own}: its disk was emptied or replaced, or two nodes were started with one id"
            ),
        }
    }
}

/// Decision that follows from the answers so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait for these nodes.
    Wait(BTreeSet<NodeId>),
    /// Write the first configuration. Contains the storage of each founder that answered.
    Bootstrap(BTreeMap<NodeId, StorageId>),
    /// Start with the empty log, because the cluster of this member includes the node.
    Follow(NodeId),
    /// Do not start, because of a conflict with this peer.
    Stop(NodeId, Conflict),
}

/// Decides by the newest answers of the peers. `answers` has `None` for a peer that was asked and did not answer, and no value
/// for one that was not asked yet.
#[must_use]
pub fn decide(
    own: NodeId,
    storage: StorageId,
    cluster_name: &str,
    config: &FoundingConfig,
    answers: &BTreeMap<NodeId, Option<PeerIdentity>>,
) -> Decision {
    let mut follow = None;
    let mut storages = BTreeMap::new();
    for (peer, answer) in answers.iter().filter_map(|(peer, answer)| Some((*peer, answer.as_ref()?))) {
        if let Err(conflict) = check(own, storage, cluster_name, config, peer, answer) {
            return Decision::Stop(peer, conflict);
        }
        if peer != own && answer.state == PeerState::Member {
            follow.get_or_insert(peer);
        }
        storages.insert(peer, answer.storage);
    }
    if let Some(member) = follow {
        return Decision::Follow(member);
    }
    // Nodes that may be missing, and this node's own endpoint, must have been asked at least once.
    let is_settled = |peer: &NodeId| match answers.get(peer) {
        Some(Some(_)) => true,
        Some(None) => *peer == own || config.may_be_missing.contains(peer),
        None => false,
    };
    let waits_for: BTreeSet<NodeId> =
        config.founders.keys().copied().filter(|peer| !is_settled(peer)).collect();
    if waits_for.is_empty() { Decision::Bootstrap(storages) } else { Decision::Wait(waits_for) }
}

/// Checks whether a peer's answer allows this node to start.
fn check(
    own: NodeId,
    storage: StorageId,
    cluster_name: &str,
    config: &FoundingConfig,
    peer: NodeId,
    answer: &PeerIdentity,
) -> Result<(), Conflict> {
    if answer.formats.start() > FORMATS.end() || answer.formats.end() < FORMATS.start() {
        return Err(Conflict::OtherFormats(answer.formats.clone()));
    }
    if answer.cluster_name != cluster_name {
        return Err(Conflict::OtherName(answer.cluster_name.clone()));
    }
    if answer.node != peer {
        return Err(Conflict::OtherNode(answer.node));
    }
    if peer == own {
        let is_this_node = answer.storage == storage;
        return if is_this_node { Ok(()) } else { Err(Conflict::OwnIdElsewhere(answer.storage)) };
    }
    match (&answer.state, answer.knows_asker) {
        (PeerState::Empty { founders }, _) if founders.is_empty() || *founders == config.founders => Ok(()),
        (PeerState::Empty { founders }, _) => Err(Conflict::OtherFounders(founders.clone())),
        (PeerState::Founding { founders }, _) if *founders != config.founders => {
            Err(Conflict::OtherFounders(founders.clone()))
        }
        (_, Some(Some(known))) if known != storage => Err(Conflict::OtherDisk { known, own: storage }),
        (PeerState::Member, None) => Err(Conflict::NotAMember(answer.cluster)),
        _ => Ok(()),
    }
}

/// Asks all founders for their state, until it is clear how this node, whose log is empty, starts. Answers their questions in
/// the meantime. `waiting` is called with the nodes for which this one waits: at once, when they change, and every 10 s.
///
/// # Errors
/// The node must not start.
pub async fn await_founders(
    transport: &ThriftTransport,
    config: &FoundingConfig,
    mut waiting: impl FnMut(&BTreeSet<NodeId>),
) -> Result<FoundingOutcome, FoundingError> {
    transport.announce(ClusterHistory::Empty { founders: config.founders.clone() });
    transport.answer_probes();
    let own = transport.config().node;
    let storage = transport.config().storage;
    let name = &transport.config().cluster;
    let ask = move |peer: NodeId, pause: Duration| async move {
        tokio::time::sleep(pause).await;
        let answer = match config.endpoints.get(&peer) {
            Some(endpoint) => probe_as(transport.own(), endpoint, PROBE_TIMEOUT).await.ok(),
            None => None,
        };
        (peer, answer)
    };
    let mut probes: FuturesUnordered<_> =
        config.founders.keys().map(|peer| ask(*peer, Duration::ZERO)).collect();
    let mut answers = BTreeMap::new();
    let mut report = WaitReport::default();
    while let Some((peer, answer)) = probes.next().await {
        answers.insert(peer, answer);
        match decide(own, storage, name, config, &answers) {
            Decision::Bootstrap(storages) => {
                let founders = config.founders.clone();
                transport.announce(ClusterHistory::Founding { founders, storages });
                return Ok(FoundingOutcome::Bootstrap);
            }
            Decision::Follow(member) => return Ok(FoundingOutcome::Follow { member }),
            Decision::Stop(peer, conflict) => {
                let endpoint = config.endpoints[&peer].clone();
                return Err(FoundingError { peer, endpoint, conflict });
            }
            Decision::Wait(nodes) => {
                // Reports only nodes that were asked already.
                let nodes: BTreeSet<NodeId> =
                    nodes.into_iter().filter(|peer| answers.contains_key(peer)).collect();
                if !nodes.is_empty() && report.is_due(&nodes, Instant::now()) {
                    waiting(&nodes);
                }
            }
        }
        probes.push(ask(peer, PROBE_PAUSE));
    }
    Ok(FoundingOutcome::Bootstrap) // There are no founders to ask.
}

pub(crate) fn names<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

/// The sets of nodes that were reported as awaited: the time of the next report of each, and the pause after it.
#[derive(Default)]
struct WaitReport(BTreeMap<BTreeSet<NodeId>, (Instant, Duration)>);

impl WaitReport {
    /// Whether to report these nodes: for the first time, or again after a pause that grows.
    fn is_due(&mut self, nodes: &BTreeSet<NodeId>, now: Instant) -> bool {
        let (next, pause) = self.0.entry(nodes.clone()).or_insert((now, REPORT_PAUSE));
        let is_due = now >= *next;
        if is_due {
            (*next, *pause) = (now + *pause, (2 * *pause).min(REPORT_PAUSE_MAX));
        }
        is_due
    }
}

/// Time limit of one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two probes of the same node.
const PROBE_PAUSE: Duration = Duration::from_millis(70);
/// An unchanged set of awaited nodes is reported again after this time, and then after twice as long each time.
const REPORT_PAUSE: Duration = Duration::from_secs(10);
const REPORT_PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
#[path = "founding_tests.rs"]
mod tests;
