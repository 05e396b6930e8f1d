//! Another cluster with the same ids, of which nodes are taken for those of this one, as a wrong address makes them.
//!
//! It is a world of its own, with its own checks, whose clock goes with this one's. What is sent in one arrives in the other,
//! too, while the two meet; the transports compare the identities of the clusters. A node that has no identity yet talks to
//! anybody, so nothing is promised of it, and it takes nothing in here.

use consensus_core::{ClusterId, NodeId, StorageId};

use crate::{
    disk::SimDisk,
    random::Random,
    world::{Due, MS, Packet, World},
};

/// A message that also goes to the other cluster.
#[derive(Debug)]
pub(crate) struct Escaped {
    from: NodeId,
    to: NodeId,
    packet: Packet,
    cluster: ClusterId,
}

impl World {
    /// The cluster that this one is to meet.
    pub(crate) fn with_other_cluster(mut self) -> Self {
        let mut other = Self::new(self.seed ^ OTHER, self.plan.other_cluster());
        for node in &mut other.nodes {
            node.disk = SimDisk::new(StorageId(OTHER + node.id.0));
        }
        (other.tokens, other.attempts) = (OTHER, OTHER);
        self.other = Some(Box::new(other));
        self
    }

    pub(crate) fn meet(&mut self, random: &mut Random) -> Option<String> {
        let until = self.now + (200 + random.below(3_000)) * MS;
        self.meets_until = until;
        self.other.as_mut()?.meets_until = until;
        self.checks.reach("two clusters meet");
        Some(format!("until {} ms messages of another cluster arrive, and messages to it", until / MS))
    }

    /// A message is sent while two clusters meet.
    pub(crate) fn let_escape(&mut self, from: NodeId, to: NodeId, packet: &Packet) {
        if self.meets_until > self.now && self.random.percent(50) {
            let cluster = self.cluster_of(from);
            self.escaped.push(Escaped { from, to, packet: packet.clone(), cluster });
        }
    }

    /// Identity of the cluster as a node knows it.
    pub(crate) fn cluster_of(&self, id: NodeId) -> ClusterId {
        self.node(id).raft().map_or(ClusterId::NONE, consensus_raft_protocol::Raft::cluster)
    }

    /// Whether a node knows that the identity of its cluster is committed.
    fn is_founded(&self, id: NodeId) -> bool {
        self.node(id).raft().is_some_and(|raft| raft.hard_state().cluster != ClusterId::NONE)
    }

    /// The other cluster comes to the same time, and messages are exchanged.
    pub(crate) fn go_along(&mut self) {
        let Some(mut other) = self.other.take() else { return };
        other.run_for(self.now - other.now);
        for escaped in std::mem::take(&mut self.escaped) {
            other.take_in(escaped);
        }
        for escaped in std::mem::take(&mut other.escaped) {
            self.take_in(escaped);
        }
        self.other = Some(other);
    }

    fn take_in(&mut self, Escaped { from, to, packet, cluster }: Escaped) {
        if to.0 >= self.nodes.len() as u64 || from.0 >= self.nodes.len() as u64 || !self.is_founded(to) {
            return;
        }
        let (delay, sent, lives) =
            (50 + self.random.below(5 * MS), self.now, (self.node(from).life, self.node(to).life));
        self.schedule(delay, Due::Deliver { from, to, packet, sent, lives, cluster });
    }

    /// The other cluster is left alone at the end, and has served all the while.
    pub(crate) fn check_other_cluster(&mut self) {
        let Some(other) = &self.other else { return };
        assert!(other.checks.answered > 0, "the other cluster answered nothing:\n{}", other.overview());
        for id in other.ids() {
            assert!(other.node(id).ended.is_none(), "node {id} of the other cluster ended");
        }
    }
}

/// Tells numbers of the other cluster from those of this one.
const OTHER: u64 = 1_000_000_000;
