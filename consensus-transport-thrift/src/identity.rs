//! Identities of nodes, and the rules by which a node refuses others.

use std::{
    collections::BTreeMap,
    fmt,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use consensus_core::{ClusterId, Endpoint, MemberKind, Membership, NodeId, StorageId};
use tokio::sync::watch;

use crate::{
    ThriftConfig,
    convert::{signed, unsigned},
    generated as wire,
};

/// Voters of a first configuration, with their kinds.
pub type Founders = BTreeMap<NodeId, MemberKind>;

/// The history of a cluster that a node has in its log, as it reports it to other nodes. See [`ThriftTransport::announce`].
///
/// [`ThriftTransport::announce`]: crate::ThriftTransport::announce
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterHistory {
    /// The log is empty.
    Empty {
        /// Voters with which the node will bootstrap a cluster; empty if it waits to be added to one.
        founders: Founders,
    },
    /// The log has the first configuration, but no identity of a cluster yet: as far as the node knows, nothing was committed.
    Founding {
        /// Voters of the first configuration.
        founders: Founders,
        /// Storages of the other founders when this node wrote the first configuration.
        storages: BTreeMap<NodeId, StorageId>,
    },
    /// The node belongs to a cluster with a history.
    Member {
        /// Members of the newest configuration in the log, with their storages if known.
        members: BTreeMap<NodeId, Option<StorageId>>,
        /// Endpoints of these members, as far as they have one.
        endpoints: BTreeMap<NodeId, Endpoint>,
    },
}

impl Default for ClusterHistory {
    fn default() -> Self {
        Self::Founding { founders: Founders::new(), storages: BTreeMap::new() }
    }
}

/// Answer of a node to a [`probe`](crate::probe).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Id of the node.
    pub node: NodeId,
    /// Identity of the node's log storage; 0 if it did not send one.
    pub storage: StorageId,
    /// Identity of the node's cluster.
    pub cluster: ClusterId,
    /// Name of the node's cluster.
    pub cluster_name: String,
    /// Versions of the message format that the node supports.
    pub formats: RangeInclusive<i32>,
    /// History of a cluster that the node has in its log.
    pub state: PeerState,
    /// The storage of the asking node, by its id, as the probed node knows it. The outer `None`: the node is unknown. The
    /// inner `None`: its storage is unknown.
    pub knows_asker: Option<Option<StorageId>>,
    /// The member at the endpoint that the asker named; `None` if the probed node knows of none, or was not asked.
    pub member_at_endpoint: Option<MemberAtEndpoint>,
}

/// The member of a probed node's cluster that has a certain endpoint; see [`find_member`](crate::find_member).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberAtEndpoint {
    /// Id of the member.
    pub node: NodeId,
    /// Identity of the member's log storage; `None` if no leader has learned it: the member has never been started.
    pub storage: Option<StorageId>,
}

/// History of a cluster that a probed node has in its log; see [`ClusterHistory`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// The log is empty.
    Empty {
        /// Voters with which the node will bootstrap a cluster; empty if it waits to be added to one.
        founders: Founders,
    },
    /// The log has the first configuration, and no further committed entry is known.
    Founding {
        /// Voters of the first configuration.
        founders: Founders,
    },
    /// The node belongs to a cluster with a history.
    Member,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            PeerState::Empty { .. } => "its log is empty",
            PeerState::Founding { .. } => "it has just bootstrapped",
            PeerState::Member => "it has a history",
        };
        write!(
            f,
            "node {} of cluster {:?} (identity {}, storage {}): {state}",
            self.node, self.cluster_name, self.cluster, self.storage
        )
    }
}

/// Identity and history of this node, as reported to others. They change while the node runs.
#[derive(Debug)]
pub(crate) struct LocalNode {
    pub(crate) config: Arc<ThriftConfig>,
    /// Drawn at the start.
    process: i64,
    cluster: watch::Sender<ClusterId>,
    history: Mutex<ClusterHistory>,
}

impl LocalNode {
    pub(crate) fn new(config: Arc<ThriftConfig>) -> Self {
        let process = rand::random();
        Self { config, process, cluster: watch::Sender::new(ClusterId::NONE), history: Mutex::default() }
    }

    pub(crate) fn cluster(&self) -> ClusterId {
        *self.cluster.borrow()
    }

    pub(crate) fn watch_cluster(&self) -> watch::Receiver<ClusterId> {
        self.cluster.subscribe()
    }

    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        self.cluster.send_if_modified(|own| std::mem::replace(own, cluster) != cluster);
    }

    fn history(&self) -> MutexGuard<'_, ClusterHistory> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn announce(&self, history: ClusterHistory) {
        *self.history() = history;
    }

    pub(crate) fn identity(&self) -> wire::Identity {
        wire::Identity {
            format_min: *FORMATS.start(),
            format_max: *FORMATS.end(),
            cluster_name: self.config.cluster.clone(),
            cluster: signed(self.cluster().0),
            node_id: signed(self.config.node.0),
            storage: signed(self.config.storage.0),
            process: Some(self.process),
        }
    }

    /// This node's answer to a probe of `asker`, which may ask for the member at an endpoint.
    pub(crate) fn describe(&self, asker: NodeId, endpoint: Option<&str>) -> wire::Description {
        let history = self.history();
        let (state, founders, known) = match &*history {
            // A node that knows the identity of its cluster has a history, even if another history was announced before.
            ClusterHistory::Member { members, .. } => {
                (wire::NodeState::MEMBER, None, members.get(&asker).copied())
            }
            _ if self.cluster() != ClusterId::NONE => (wire::NodeState::MEMBER, None, None),
            ClusterHistory::Empty { founders } => (wire::NodeState::EMPTY, Some(founders), None),
            ClusterHistory::Founding { founders, storages } => {
                let known = founders.contains_key(&asker).then(|| storages.get(&asker).copied());
                (wire::NodeState::FOUNDING, Some(founders), known)
            }
        };
        wire::Description {
            callee: self.identity(),
            state,
            founders: founders.into_iter().flatten().map(founder_to_wire).collect(),
            asker: known.map(|storage| wire::KnownNode { storage: storage.map(|storage| signed(storage.0)) }),
            member_at_endpoint: endpoint.and_then(|endpoint| history.member_at(endpoint)),
        }
    }

    /// Why this node refuses a peer with this identity; `None` if it accepts.
    pub(crate) fn refusal_reason(&self, peer: &wire::Identity) -> Option<String> {
        let node = self.config.node;
        let peer_node = NodeId(unsigned(peer.node_id));
        if peer.format_min > *FORMATS.end() || peer.format_max < *FORMATS.start() {
            return Some(format!(
                "node {peer_node} supports the message formats {} to {}, node {node} supports {} to {}: they have none in \
                 common; upgrade the node with the older formats, one version at a time",
                peer.format_min,
                peer.format_max,
                FORMATS.start(),
                FORMATS.end()
            ));
        }
        if peer.cluster_name != self.config.cluster {
            return Some(format!(
                "node {peer_node} belongs to the cluster named {:?}, node {node} to {:?}: check the endpoints and the cluster \
                 names in their settings",
                peer.cluster_name, self.config.cluster
            ));
        }
        self.cluster_refusal(peer_node, ClusterId(unsigned(peer.cluster)))
    }

    /// Waits until this node and a peer are known to belong to different clusters. Returns the reason for refusing the peer.
    pub(crate) async fn wait_until_clusters_differ(
        &self,
        peer: NodeId,
        mut theirs: watch::Receiver<ClusterId>,
    ) -> String {
        let mut own = self.cluster.subscribe();
        loop {
            let cluster = *theirs.borrow_and_update();
            own.mark_unchanged();
            if let Some(why) = self.cluster_refusal(peer, cluster) {
                return why;
            }
            let both_known = tokio::select! {
                changed = theirs.changed() => changed,
                changed = own.changed() => changed,
            };
            if both_known.is_err() {
                std::future::pending::<()>().await; // The connection or the transport is ending.
            }
        }
    }

    /// Like [`refusal_reason`](Self::refusal_reason), for the identity of the cluster, which a peer may learn while connected.
    pub(crate) fn cluster_refusal(&self, peer: NodeId, cluster: ClusterId) -> Option<String> {
        let own = self.cluster();
        (!own.is_compatible_with(cluster)).then(|| {
            format!(
                "node {peer} belongs to the cluster with the identity {cluster}, node {} to {own}: these are two clusters \
                 with different histories, and exchange no messages; stop the node that is in the wrong cluster, empty its \
                 data directory, and add it to the other cluster as a new member",
                self.config.node
            )
        })
    }
}

impl ClusterHistory {
    /// The history of a node whose log has `membership` as its newest configuration.
    #[must_use]
    pub fn of(membership: &Membership) -> Self {
        let members = || membership.all_members();
        if members().next().is_none() {
            return Self::Empty { founders: Founders::new() };
        }
        if membership.cluster() == ClusterId::NONE {
            let founders = members().filter(|(_, member)| member.kind.votes());
            let founders = founders.map(|(id, member)| (id, member.kind)).collect();
            return Self::Founding { founders, storages: BTreeMap::new() };
        }
        Self::Member {
            members: members().map(|(id, member)| (id, member.storage)).collect(),
            endpoints: members().filter_map(|(id, member)| Some((id, member.endpoint.clone()?))).collect(),
        }
    }

    /// The member at an endpoint, `host:port`.
    fn member_at(&self, endpoint: &str) -> Option<wire::MemberAtEndpoint> {
        let Self::Member { members, endpoints } = self else { return None };
        let endpoint: Endpoint = endpoint.parse().ok()?;
        let (node, _) = endpoints.iter().find(|(_, other)| **other == endpoint)?;
        let storage = members.get(node).copied().flatten().filter(|known| *known != StorageId::UNKNOWN);
        Some(wire::MemberAtEndpoint {
            node_id: signed(node.0),
            storage: storage.map(|storage| signed(storage.0)),
        })
    }
}

pub(crate) fn description_from_wire(description: wire::Description) -> Result<PeerIdentity, String> {
    let wire::Description { callee, state, founders, asker, member_at_endpoint } = description;
    let founders = || founders.into_iter().map(|founder| founder_from_wire(&founder)).collect();
    Ok(PeerIdentity {
        node: NodeId(unsigned(callee.node_id)),
        storage: StorageId(unsigned(callee.storage)),
        cluster: ClusterId(unsigned(callee.cluster)),
        cluster_name: callee.cluster_name,
        formats: callee.format_min..=callee.format_max,
        state: match state {
            wire::NodeState::EMPTY => PeerState::Empty { founders: founders() },
            wire::NodeState::FOUNDING => PeerState::Founding { founders: founders() },
            wire::NodeState::MEMBER => PeerState::Member,
            other => return Err(format!("{other:?} is no state of a node")),
        },
        knows_asker: asker.map(|known| known.storage.map(|storage| StorageId(unsigned(storage)))),
        member_at_endpoint: member_at_endpoint.map(|member| MemberAtEndpoint {
            node: NodeId(unsigned(member.node_id)),
            storage: member.storage.map(|storage| StorageId(unsigned(storage))),
        }),
    })
}

fn founder_to_wire((node, kind): (&NodeId, &MemberKind)) -> wire::Founder {
    wire::Founder { node_id: signed(node.0), witness: *kind == MemberKind::Witness }
}

fn founder_from_wire(founder: &wire::Founder) -> (NodeId, MemberKind) {
    let kind = if founder.witness { MemberKind::Witness } else { MemberKind::Voter };
    (NodeId(unsigned(founder.node_id)), kind)
}

/// Versions of the message format (`idl/consensus.thrift`) that this version supports. Two nodes use the newest version that
/// both support. The fields of `Identity` are the same in all versions.
pub(crate) const FORMATS: RangeInclusive<i32> = 1..=1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_names_both_nodes() {
        let config = ThriftConfig::new(NodeId(1), "h:1".parse().unwrap());
        let own = LocalNode::new(Arc::new(config));
        own.set_cluster(ClusterId(0xa));
        let peer = wire::Identity { node_id: 2, ..own.identity() };
        assert_eq!(own.refusal_reason(&peer), None);
        assert_eq!(own.refusal_reason(&wire::Identity { cluster: 0, ..peer.clone() }), None);
        let newer = wire::Identity { format_min: 2, format_max: 3, ..peer.clone() };
        let renamed = wire::Identity { cluster_name: "other".to_owned(), ..peer.clone() };
        let stranger = wire::Identity { cluster: 0xb, ..peer };
        let cases = [
            (newer, ["node 2 supports the message formats 2 to 3", "node 1 supports 1 to 1"]),
            (renamed, ["node 2 belongs to the cluster named \"other\"", "node 1 to \"default\""]),
            (stranger, ["000000000000000b, node 1 to 000000000000000a", "empty its data directory"]),
        ];
        for (peer, words) in cases {
            let why = own.refusal_reason(&peer).unwrap();
            assert!(words.iter().all(|words| why.contains(words)), "{why}");
        }
    }
}
