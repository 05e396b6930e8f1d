//! Who a node is: what it says of itself, and to whom it talks.

use std::{
    collections::BTreeMap,
    fmt,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use consensus_core::{ClusterId, MemberKind, Membership, NodeId, StorageId};
use tokio::sync::watch;

use crate::{
    ThriftConfig,
    convert::{signed, unsigned},
    generated as wire,
};

/// The voters of a first configuration, with their kinds.
pub type Founders = BTreeMap<NodeId, MemberKind>;

/// What a node has of the history of a cluster, as it tells those who ask. See [`ThriftTransport::announce`].
///
/// [`ThriftTransport::announce`]: crate::ThriftTransport::announce
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its log is empty.
    Empty {
        /// With whom it will begin a cluster; nobody if it waits to be added to one.
        founders: Founders,
    },
    /// Its log has the first configuration and knows no cluster identity yet: nothing was committed, as far as it knows.
    Founding {
        /// The voters of that configuration.
        founders: Founders,
        /// The storages that the other founders had when this node wrote the first configuration.
        storages: BTreeMap<NodeId, StorageId>,
    },
    /// It belongs to a cluster with a history.
    Member {
        /// The members of its newest configuration, with their storages where these are known.
        members: BTreeMap<NodeId, Option<StorageId>>,
    },
}

impl Default for Standing {
    fn default() -> Self {
        Self::Founding { founders: Founders::new(), storages: BTreeMap::new() }
    }
}

/// What a node answered when it was asked who it is; see [`probe`](crate::probe).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its id.
    pub node: NodeId,
    /// Its log storage; 0 if it did not say.
    pub storage: StorageId,
    /// Identity of its cluster.
    pub cluster: ClusterId,
    /// Name of its cluster.
    pub cluster_name: String,
    /// Versions of the message format that it speaks.
    pub formats: RangeInclusive<i32>,
    /// What it has of the cluster's history.
    pub state: PeerState,
    /// What it knows of the node that asked, by that node's id: `None` if nothing. The storage is `None` if it never heard
    /// of one.
    pub knows_asker: Option<Option<StorageId>>,
}

/// What a node that was asked has of the history of a cluster; see [`Standing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Its log is empty.
    Empty {
        /// With whom it will begin a cluster; nobody if it waits to be added to one.
        founders: Founders,
    },
    /// Its log has the first configuration and nothing more that was committed.
    Founding {
        /// The voters of that configuration.
        founders: Founders,
    },
    /// It belongs to a cluster with a history.
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

/// What this node says of itself. It changes while the node runs.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) config: Arc<ThriftConfig>,
    cluster: watch::Sender<ClusterId>,
    standing: Mutex<Standing>,
}

impl Own {
    pub(crate) fn new(config: Arc<ThriftConfig>) -> Self {
        Self { config, cluster: watch::Sender::new(ClusterId::NONE), standing: Mutex::default() }
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

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn announce(&self, standing: Standing) {
        *self.standing() = standing;
    }

    pub(crate) fn identity(&self) -> wire::Identity {
        wire::Identity {
            format_min: *FORMATS.start(),
            format_max: *FORMATS.end(),
            cluster_name: self.config.cluster.clone(),
            cluster: signed(self.cluster().0),
            node_id: signed(self.config.node.0),
            storage: signed(self.config.storage.0),
        }
    }

    /// What this node tells `asker` of itself.
    pub(crate) fn describe(&self, asker: NodeId) -> wire::Description {
        let standing = self.standing();
        let (state, founders, known) = match &*standing {
            // A cluster identity is a history, whatever was announced before.
            Standing::Member { members } => (wire::NodeState::MEMBER, None, members.get(&asker).copied()),
            _ if self.cluster() != ClusterId::NONE => (wire::NodeState::MEMBER, None, None),
            Standing::Empty { founders } => (wire::NodeState::EMPTY, Some(founders), None),
            Standing::Founding { founders, storages } => {
                let known = founders.contains_key(&asker).then(|| storages.get(&asker).copied());
                (wire::NodeState::FOUNDING, Some(founders), known)
            }
        };
        wire::Description {
            callee: self.identity(),
            state,
            founders: founders.into_iter().flatten().map(founder_to_wire).collect(),
            asker: known.map(|storage| wire::KnownNode { storage: storage.map(|storage| signed(storage.0)) }),
        }
    }

    /// Why this node does not talk to a peer that says this of itself; `None` if it does.
    pub(crate) fn objection(&self, peer: &wire::Identity) -> Option<String> {
        let (node, peer_node) = (self.config.node, NodeId(unsigned(peer.node_id)));
        if peer.format_min > *FORMATS.end() || peer.format_max < *FORMATS.start() {
            return Some(format!(
                "node {peer_node} speaks message formats {} to {}, node {node} speaks {} to {}: there is none that both speak; \
                 upgrade the node with the older ones, one version at a time",
                peer.format_min,
                peer.format_max,
                FORMATS.start(),
                FORMATS.end()
            ));
        }
        if peer.cluster_name != self.config.cluster {
            return Some(format!(
                "node {peer_node} is of the cluster named {:?}, node {node} of {:?}: check the endpoints and the names in \
                 their settings",
                peer.cluster_name, self.config.cluster
            ));
        }
        self.cluster_objection(peer_node, ClusterId(unsigned(peer.cluster)))
    }

    /// Awaits that this node and a peer turn out to be of two clusters; how that is said.
    pub(crate) async fn parted(&self, peer: NodeId, mut theirs: watch::Receiver<ClusterId>) -> String {
        let mut own = self.cluster.subscribe();
        loop {
            let cluster = *theirs.borrow_and_update();
            own.mark_unchanged();
            if let Some(why) = self.cluster_objection(peer, cluster) {
                return why;
            }
            let both_known = tokio::select! {
                changed = theirs.changed() => changed,
                changed = own.changed() => changed,
            };
            if both_known.is_err() {
                std::future::pending::<()>().await; // The connection or this transport ends by itself.
            }
        }
    }

    /// The same for the identity of the cluster alone, which a peer may learn while it is connected.
    pub(crate) fn cluster_objection(&self, peer: NodeId, cluster: ClusterId) -> Option<String> {
        let own = self.cluster();
        (!own.is_compatible_with(cluster)).then(|| {
            format!(
                "node {peer} belongs to the cluster with the identity {cluster}, node {} to {own}: these are two clusters \
                 with different histories, and no message passes between them; stop whichever node is in the wrong one, \
                 empty its data directory, and add it to the other cluster as a new member",
                self.config.node
            )
        })
    }
}

impl Standing {
    /// What follows from the newest configuration in the log.
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
        Self::Member { members: members().map(|(id, member)| (id, member.storage)).collect() }
    }
}

pub(crate) fn description_from_wire(description: wire::Description) -> Result<PeerIdentity, String> {
    let wire::Description { callee, state, founders, asker } = description;
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
    })
}

fn founder_to_wire((node, kind): (&NodeId, &MemberKind)) -> wire::Founder {
    wire::Founder { node_id: signed(node.0), witness: *kind == MemberKind::Witness }
}

fn founder_from_wire(founder: &wire::Founder) -> (NodeId, MemberKind) {
    let kind = if founder.witness { MemberKind::Witness } else { MemberKind::Voter };
    (NodeId(unsigned(founder.node_id)), kind)
}

/// Versions of the vocabulary in `idl/consensus.thrift` that this version speaks. Two nodes use the newest that both
/// speak. The fields of `Identity` stay as they are in all versions.
pub(crate) const FORMATS: RangeInclusive<i32> = 1..=1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objection_names_both_sides() {
        let config = ThriftConfig::new(NodeId(1), "h:1".parse().unwrap());
        let own = Own::new(Arc::new(config));
        own.set_cluster(ClusterId(0xa));
        let peer = wire::Identity { node_id: 2, ..own.identity() };
        assert_eq!(own.objection(&peer), None);
        assert_eq!(own.objection(&wire::Identity { cluster: 0, ..peer.clone() }), None);
        let newer = wire::Identity { format_min: 2, format_max: 3, ..peer.clone() };
        let renamed = wire::Identity { cluster_name: "other".to_owned(), ..peer.clone() };
        let stranger = wire::Identity { cluster: 0xb, ..peer };
        let cases = [
            (newer, ["node 2 speaks message formats 2 to 3", "node 1 speaks 1 to 1"]),
            (renamed, ["node 2 is of the cluster named \"other\"", "node 1 of \"default\""]),
            (stranger, ["000000000000000b, node 1 to 000000000000000a", "empty its data directory"]),
        ];
        for (peer, words) in cases {
            let why = own.objection(&peer).unwrap();
            assert!(words.iter().all(|words| why.contains(words)), "{why}");
        }
    }
}
