//! Fingerprints, which identify equal states.

use std::hash::{Hash, Hasher};

use consensus_core::NodeId;
use consensus_raft_protocol::{
    ControlMessage,
    model::{Fingerprint, hash_hard_state, hash_membership, hash_meta},
};

use super::{
    checks::Known,
    message::Packet,
    node::{Disk, Entry, Node},
    state::{State, World},
};

/// Fingerprint of a state.
#[derive(Clone, Debug)]
pub(crate) struct Print {
    pub(crate) whole: u64,
    /// Hash of everything except messages and allowances, which only make more events possible.
    pub(crate) core: u64,
    /// Hashes of the messages, sorted.
    pub(crate) network: Box<[u64]>,
    /// One bit for each message, so that most comparisons are fast.
    pub(crate) mask: u64,
    pub(crate) allowances: [u8; 8],
}

impl World {
    /// Returns the fingerprint, which is equal for states that differ only in names.
    pub(crate) fn fingerprint(&self, state: &State) -> Print {
        let rest = |at: usize| {
            // The acknowledged index matters only to later reads.
            let acknowledged = (state.budget.reads > 0).then_some(state.known.acknowledged);
            (state.known.fingerprints[at], acknowledged, state.budget.others(), state.time)
        };
        let core = |at: usize| {
            let mut hasher = Fingerprint::default();
            let mut nodes = 0u64;
            for (node, name) in state.nodes.iter().zip(&self.names[at]) {
                let mut one = Fingerprint::default();
                (name, node.fingerprints[at]).hash(&mut one);
                nodes = nodes.wrapping_add(one.finish());
            }
            (nodes, rest(at)).hash(&mut hasher);
            hasher.finish()
        };
        let network =
            |at: usize| state.network.iter().fold(0u64, |sum, one| sum.wrapping_add(one.fingerprints[at]));
        let keys = (0..self.names.len()).map(|at| (core(at), network(at), at));
        let (core, sum, at) = keys.min().unwrap_or_default();
        let mut network: Box<[u64]> = state.network.iter().map(|one| one.fingerprints[at]).collect();
        network.sort_unstable();
        let mask = network.iter().fold(0, |mask, one| mask | 1 << (one & 63));
        let (mut hasher, allowances) = (Fingerprint::default(), state.budget.allowances());
        (core, sum, allowances).hash(&mut hasher);
        Print { whole: hasher.finish(), core, network, mask, allowances }
    }
}

impl Print {
    /// Whether every successor of `other` is also a successor of this state: it is equal except for more messages in transit,
    /// each of which may be lost, and larger allowances.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let mut mine = self.network.iter();
        self.core == other.core
            && other.mask & !self.mask == 0
            && self.network.len() >= other.network.len()
            && self.allowances.iter().zip(other.allowances).all(|(mine, other)| *mine >= other)
            && other.network.iter().all(|message| mine.any(|one| one == message))
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
            // The entries of the write may differ from those of the log by now.
            let terms = |entries: &[Entry]| entries.iter().map(|(id, _)| id.term).collect::<Vec<_>>();
            let writing = self.writing.as_ref().map(|(persist, entries)| {
                (persist.hard_state.is_some(), persist.append, persist.truncate_after, terms(entries))
            });
            let from = self.installing_from.map(|id| names[id.0 as usize]);
            (writing, self.applied, self.flushed, from, &self.reads, self.incarnations).hash(&mut hasher);
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
        // Only the term of a refused vote matters, not its sender.
        let is_refusal =
            matches!(self, Self::ControlMessage(ControlMessage::VoteResponse(response)) if !response.granted);
        ((!is_refusal).then_some(names[from.0 as usize]), names[to.0 as usize]).hash(&mut hasher);
        match self {
            Self::ControlMessage(reply) => reply.hash(&mut hasher),
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
            self.committed.hash(&mut hasher);
            let mut leaders = 0u64;
            for (term, id) in &self.leaders {
                let mut one = Fingerprint::default();
                (term, names[id.0 as usize]).hash(&mut one);
                leaders = leaders.wrapping_add(one.finish());
            }
            // Votes follow from the disks and the messages; they are only kept for checks.
            leaders.hash(&mut hasher);
            hasher.finish()
        };
        self.fingerprints = names.iter().map(under).collect();
    }
}

/// Returns `names` with every permutation of a group's names.
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
