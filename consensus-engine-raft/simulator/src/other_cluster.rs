//! Another cluster with the same ids that exchanges messages with this one, as with a wrong address.
//!
//! The other cluster is a separate world with its own checks, whose clock advances with this one's. While the two are
//! connected, messages also arrive in the other cluster; the transports compare the identities of the clusters. A node without an
//! identity accepts all messages, so there are no guarantees for it, and it gets no messages here.

use consensus_core::{ClusterId, NodeId, StorageId};

use crate::{
    disk::SimDisk,
    random::Random,
    world::{Due, MS, Packet, World},
};

/// A message that also goes to the other cluster.
#[derive(Debug)]
pub(crate) struct CrossMessage {
    from: NodeId,
    to: NodeId,
    packet: Packet,
    cluster: ClusterId,
}

impl World {
    /// Adds the other cluster.
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
        self.connected_until = until;
        self.other.as_mut()?.connected_until = until;
        self.checks.reach("two clusters meet");
        Some(format!("until {} ms messages of another cluster arrive, and messages to it", until / MS))
    }

    /// Sends a message to the other cluster, too, while the two are connected.
    pub(crate) fn send_to_other_cluster(&mut self, from: NodeId, to: NodeId, packet: &Packet) {
        if self.connected_until > self.now && self.random.percent(50) {
            let cluster = self.cluster_of(from);
            self.cross_messages.push(CrossMessage { from, to, packet: packet.clone(), cluster });
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

    /// Advances the other cluster to the same time, and exchanges messages.
    pub(crate) fn advance_other_cluster(&mut self) {
        let Some(mut other) = self.other.take() else { return };
        other.run_for(self.now - other.now);
        for cross_messages in std::mem::take(&mut self.cross_messages) {
            other.take_in(cross_messages);
        }
        for cross_messages in std::mem::take(&mut other.cross_messages) {
            self.take_in(cross_messages);
        }
        self.other = Some(other);
    }

    fn take_in(&mut self, CrossMessage { from, to, packet, cluster }: CrossMessage) {
        if to.0 >= self.nodes.len() as u64 || from.0 >= self.nodes.len() as u64 || !self.is_founded(to) {
            return;
        }
        let (delay, sent, incarnations) = (
            50 + self.random.below(5 * MS),
            self.now,
            (self.node(from).incarnation, self.node(to).incarnation),
        );
        self.schedule(delay, Due::Deliver { from, to, packet, sent, incarnations, cluster });
    }

    /// Checks that the other cluster has served requests all the time.
    pub(crate) fn check_other_cluster(&mut self) {
        let Some(other) = &self.other else { return };
        assert!(other.checks.answered > 0, "the other cluster answered no request:\n{}", other.overview());
        for id in other.ids() {
            assert!(other.node(id).ended.is_none(), "node {id} of the other cluster stopped");
        }
    }
}

/// Distinguishes numbers of the other cluster from those of this one.
const OTHER: u64 = 1_000_000_000;
