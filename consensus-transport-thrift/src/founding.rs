//! Whether a node with an empty log may begin a cluster.
//!
//! The first configuration of a cluster stands in a file that every node has. It is only true once: a node whose disk was
//! emptied later, or that was given a file with other nodes in it, would begin a second cluster, elect itself together with
//! others in the same state, and what the first cluster had acknowledged would be gone. So before a node writes the first
//! configuration it asks all others in the file who they are ([`await_founders`]), and answers them meanwhile:
//!
//! * All others have an empty log too, or have just written the same configuration: it begins.
//! * Another one has a history, and counts this node in with this disk, or never heard of a disk of it: it starts with its
//!   empty log, and the leader sends what there is.
//! * Another one has a history, and does not know this node, or knows it with another disk: it does not start.
//! * Another one does not answer: it waits, unless that one [may be missing](FoundingConfig::may_be_missing).
//!
//! What this is *not*: a proof. Whoever says that a node may be missing, says that it has no history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use consensus_core::{ClusterId, Endpoint, NodeId, StorageId};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use crate::{
    Founders, PeerIdentity, PeerState, Standing, ThriftTransport, identity::FORMATS, probe::probe_as,
};

/// What [`await_founders`] needs to know.
#[derive(Clone, Debug)]
pub struct FoundingConfig {
    /// The voters of the first configuration, this node included.
    pub founders: Founders,
    /// Where all of them listen. This node is asked there too: another node with its id may answer.
    pub endpoints: BTreeMap<NodeId, Endpoint>,
    /// Nodes that are not waited for, as they may have failed before the cluster ever was. A wrong one can cost data: it is
    /// the user's word that it has no history.
    pub may_be_missing: BTreeSet<NodeId>,
}

/// How a node with an empty log starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Founded {
    /// It writes the first configuration. [`await_founders`] has announced that.
    Bootstrap,
    /// It writes nothing and is sent the log by its leader: the cluster exists already, and counts on it.
    Follow {
        /// A member that said so.
        member: NodeId,
    },
}

/// A peer's answer makes it wrong to start; nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint}, where node {peer} should be: {conflict}")]
pub struct FoundingError {
    /// Who was asked.
    pub peer: NodeId,
    /// Where.
    pub endpoint: Endpoint,
    /// What is wrong.
    pub conflict: Conflict,
}

/// What is wrong with a peer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// Another node listens there.
    OtherNode(NodeId),
    /// A node with this node's id listens where this node should, with another disk.
    OwnIdElsewhere(StorageId),
    /// It is of a cluster with another name.
    OtherName(String),
    /// No message format is spoken by both.
    OtherFormats(std::ops::RangeInclusive<i32>),
    /// It begins, or has begun, a cluster with other voters.
    OtherFounders(Founders),
    /// It belongs to a cluster that has a history and does not know this node.
    NotAMember(ClusterId),
    /// It knows this node with another disk.
    OtherDisk {
        /// That disk.
        known: StorageId,
        /// The one that is there now.
        own: StorageId,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherNode(node) => write!(
                f,
                "node {node} answers there; the settings of the two nodes differ in their ids or endpoints"
            ),
            Self::OwnIdElsewhere(storage) => write!(
                f,
                "another process runs there under this node's id, with the storage {storage}; two nodes were started with \
                 one id"
            ),
            Self::OtherName(name) => write!(f, "that node is of the cluster named {name:?}"),
            Self::OtherFormats(formats) => write!(
                f,
                "that node speaks message formats {} to {}, this one {} to {}",
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
                "that node already belongs to a cluster with a history, of which this node is no member, and this node's \
                 log is empty"
            ),
            Self::OtherDisk { known, own } => write!(
                f,
                "that node's cluster knows this node with the storage {known}, and this node's log is empty and has the \
                 storage {own}: its disk was emptied or exchanged, or two nodes were started with one id"
            ),
        }
    }
}

/// What is to be done after some answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Wait for these.
    Wait(BTreeSet<NodeId>),
    /// Write the first configuration; these were its nodes' disks.
    Bootstrap(BTreeMap<NodeId, StorageId>),
    /// Start with the empty log: this member's cluster counts on it.
    Follow(NodeId),
    /// Do not start: this peer's answer forbids it.
    Stop(NodeId, Conflict),
}

/// Decides by the newest answers of the peers: `None` for one that was asked and did not answer, and nothing for one that was
/// not asked yet.
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
    // A node that may be missing was asked at least once, and so was this node's own endpoint.
    let is_settled = |peer: &NodeId| match answers.get(peer) {
        Some(Some(_)) => true,
        Some(None) => *peer == own || config.may_be_missing.contains(peer),
        None => false,
    };
    let waits_for: BTreeSet<NodeId> =
        config.founders.keys().copied().filter(|peer| !is_settled(peer)).collect();
    if waits_for.is_empty() { Decision::Bootstrap(storages) } else { Decision::Wait(waits_for) }
}

/// Whether a peer's answer lets this node start at all.
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

/// Asks all founders who they are until it is clear how this node, whose log is empty, starts. Answers the others meanwhile.
/// `waiting` is told whom it waits for, at once and every 10 s.
///
/// # Errors
/// The node must not start.
pub async fn await_founders(
    transport: &ThriftTransport,
    config: &FoundingConfig,
    mut waiting: impl FnMut(&BTreeSet<NodeId>),
) -> Result<Founded, FoundingError> {
    transport.announce(Standing::Empty { founders: config.founders.clone() });
    transport.answer_probes();
    let (own, storage) = (transport.config().node, transport.config().storage);
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
    let mut told: Option<(BTreeSet<NodeId>, Instant)> = None;
    while let Some((peer, answer)) = probes.next().await {
        answers.insert(peer, answer);
        match decide(own, storage, name, config, &answers) {
            Decision::Bootstrap(storages) => {
                let founders = config.founders.clone();
                transport.announce(Standing::Founding { founders, storages });
                return Ok(Founded::Bootstrap);
            }
            Decision::Follow(member) => return Ok(Founded::Follow { member }),
            Decision::Stop(peer, conflict) => {
                let endpoint = config.endpoints[&peer].clone();
                return Err(FoundingError { peer, endpoint, conflict });
            }
            Decision::Wait(whom) => {
                // Who was not asked yet does not keep it waiting.
                let whom: BTreeSet<NodeId> =
                    whom.into_iter().filter(|peer| answers.contains_key(peer)).collect();
                let is_due = |(before, at): &(_, Instant)| *before != whom || at.elapsed() >= TELL_EVERY;
                if !whom.is_empty() && told.as_ref().is_none_or(is_due) {
                    waiting(&whom);
                    told = Some((whom, Instant::now()));
                }
            }
        }
        probes.push(ask(peer, PROBE_PAUSE));
    }
    Ok(Founded::Bootstrap) // Without founders there is nobody to ask.
}

pub(crate) fn names<'a>(nodes: impl Iterator<Item = &'a NodeId>) -> String {
    nodes.map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

/// For one answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two questions to the same node.
const PROBE_PAUSE: Duration = Duration::from_millis(70);
/// How often it is said that a node waits for the same others.
const TELL_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
#[path = "founding_tests.rs"]
mod tests;
