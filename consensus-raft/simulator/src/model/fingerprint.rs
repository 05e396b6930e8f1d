//! Which states are the same.

use std::hash::{Hash, Hasher};

use consensus_core::NodeId;
use consensus_raft_protocol::model::{Fingerprint, hash_hard_state, hash_membership, hash_meta};

use super::{
    checks::Known,
    message::Packet,
    node::{Disk, Node},
    state::{State, World},
};

impl World {
    /// The same for states that differ in names only.
    pub(crate) fn fingerprint(&self, state: &State) -> u64 {
        let under = |(at, names): (usize, &Vec<u8>)| {
            let mut hasher = Fingerprint::default();
            let mut nodes = 0u64;
            for (node, name) in state.nodes.iter().zip(names) {
                let mut one = Fingerprint::default();
                (name, node.fingerprints[at]).hash(&mut one);
                nodes = nodes.wrapping_add(one.finish());
            }
            let network =
                state.network.iter().fold(0u64, |sum, message| sum.wrapping_add(message.fingerprints[at]));
            (nodes, network, state.budget, state.known.fingerprints[at], state.time).hash(&mut hasher);
            hasher.finish()
        };
        self.names.iter().enumerate().map(under).min().unwrap_or_default()
    }
}

impl Node {
    pub(super) fn print(&mut self, names: &[Vec<u8>]) {
        let under = |names: &Vec<u8>| {
            let mut hasher = Fingerprint::default();
            self.raft.digest(names, &mut hasher);
            let Disk { hard, purged, entries } = &self.disk;
            hash_hard_state(hard, names, &mut hasher);
            hash_meta(purged, names, &mut hasher);
            for (id, membership) in entries {
                id.hash(&mut hasher);
                if let Some(membership) = membership {
                    hash_membership(membership, names, &mut hasher);
                }
            }
            let writing = self
                .writing
                .as_ref()
                .map(|(persist, _)| (persist.hard_state.is_some(), persist.append, persist.truncate_after));
            let from = self.installing_from.map(|id| names[id.0 as usize]);
            (writing, self.applied, self.flushed, from, &self.reads, self.lives).hash(&mut hasher);
            if let Some(hard) = self.writing.as_ref().and_then(|(persist, _)| persist.hard_state.as_ref()) {
                hash_hard_state(hard, names, &mut hasher);
            }
            hasher.finish()
        };
        self.fingerprints = names.iter().map(under).collect();
    }
}

impl Packet {
    pub(super) fn print(&self, from: NodeId, to: NodeId, names: &[u8]) -> u64 {
        let mut hasher = Fingerprint::default();
        (names[from.0 as usize], names[to.0 as usize]).hash(&mut hasher);
        match self {
            Self::Reply(reply) => reply.hash(&mut hasher),
            Self::Append(append, entries) => {
                append.hash(&mut hasher);
                for entry in entries {
                    entry.term.hash(&mut hasher);
                    if let Some(membership) = &entry.membership {
                        hash_membership(membership, names, &mut hasher);
                    }
                }
            }
            Self::Snapshot(term, meta) => {
                term.hash(&mut hasher);
                hash_meta(meta, names, &mut hasher);
            }
            Self::SnapshotAck(last) => (7, last).hash(&mut hasher),
        }
        hasher.finish()
    }
}

impl Known {
    pub(super) fn print(&mut self, names: &[Vec<u8>]) {
        let under = |names: &Vec<u8>| {
            let mut hasher = Fingerprint::default();
            (&self.committed, self.acknowledged).hash(&mut hasher);
            let mut leaders = 0u64;
            for (term, id) in &self.leaders {
                let mut one = Fingerprint::default();
                (term, names[id.0 as usize]).hash(&mut one);
                leaders = leaders.wrapping_add(one.finish());
            }
            // Votes follow from the disks and the messages; they are there to be checked.
            leaders.hash(&mut hasher);
            hasher.finish()
        };
        self.fingerprints = names.iter().map(under).collect();
    }
}

/// `names` with those of a group exchanged in every way.
pub(super) fn permuted(names: &[u8], group: &[u8]) -> Vec<Vec<u8>> {
    let Some((first, rest)) = group.split_first() else { return vec![names.to_vec()] };
    let mut all = Vec::new();
    for other in group {
        let mut swapped = names.to_vec();
        swapped.swap(*first as usize, *other as usize);
        all.extend(permuted(&swapped, rest));
    }
    all
}
