//! Support for the model checker: makes states equal that differ only in ways that have no effect.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use consensus_core::{HardState, LogIndex, Member, Membership, NodeId, SnapshotMeta};

use crate::{
    Output, Raft, Time,
    persist::{Deferred, InFlight},
    progress::{Progress, State},
    raft::{Leader, Random, Role},
};

/// Renaming of the nodes: element `n` is the new name of node `n`.
pub type Names<'a> = &'a [u8];

impl Raft {
    /// Moves the node's clock to `to`, and all times that the node stores with it. Times so long ago that they have no
    /// effect any more become zero. Later random numbers of the node follow from `seed`.
    pub fn normalize(&mut self, to: Time, seed: u64) {
        let (now, oldest) = (self.now, self.now.saturating_sub(self.config.election_timeout));
        let moved = |at: Time| (at + to).saturating_sub(now);
        let past = |at: Time| if at <= now { Time::ZERO } else { moved(at) };
        let recent = |at: Time| if at <= oldest { Time::ZERO } else { moved(at) };
        self.random = Random::from_seed(seed);
        self.leader_heard = self.leader_heard.filter(|heard| *heard > oldest).map(moved);
        self.no_votes_until = past(self.no_votes_until);
        self.election_deadline = moved(self.election_deadline);
        self.forwarded.move_times(moved);
        if let Role::Leader(leader) = &mut self.role {
            leader.heartbeat_deadline = moved(leader.heartbeat_deadline);
            leader.next_transfer = past(leader.next_transfer);
            leader.reads.move_times(recent);
            if let Some(transfer) = &mut leader.transfer {
                transfer.deadline = moved(transfer.deadline);
            }
            for peer in leader.peers.values_mut() {
                peer.heard = recent(peer.heard);
            }
        }
        self.now = to;
    }

    /// Makes durations equal that do not change the order of a node's deadlines; nothing else matters where each clock runs
    /// at its own speed and there are no leases. `is_last` says that no deadline will pass any more.
    pub fn normalize_durations(&mut self, is_last: bool) {
        let (now, timeout) = (self.now, self.config.election_timeout);
        let refuses_until = self.leader_heard.map_or(now, |heard| heard + timeout);
        if self.forwarded.deadline().is_none() && refuses_until <= self.election_deadline {
            // The node refuses votes until the election deadline at the latest.
            self.election_deadline = now + timeout;
            self.leader_heard = self.leader_heard.map(|_| now);
        }
        let Role::Leader(leader) = &mut self.role else { return };
        leader.reads.clear_lease();
        if is_last {
            leader.heartbeat_deadline = now;
            for peer in leader.peers.values_mut() {
                // From now on it only matters whether the peer is in touch.
                peer.heard = if peer.in_touch(&self.config, now) { now } else { Time::ZERO };
            }
        }
    }

    /// Moves the node's clock to its next deadline, or to `at` if that comes first.
    pub fn wait(&mut self, at: Time) {
        self.now = self.now.max(at.min(self.next_deadline().unwrap_or(at)));
    }

    /// Configuration that the entry at `index` carries, if it carries one.
    #[must_use]
    pub fn membership_entry(&self, index: LogIndex) -> Option<Arc<Membership>> {
        self.log.membership_entry(index)
    }

    /// Until when this node refuses votes because it heard a leader; `None` if it does not.
    #[must_use]
    pub fn undisturbed_until(&self) -> Option<Time> {
        let until = self.leader_heard.map(|heard| heard + self.config.election_timeout);
        until.filter(|until| *until > self.now && matches!(self.role, Role::Follower))
    }

    /// Hashes everything that determines the node's future behaviour, with other names for nodes.
    pub fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        // The pattern names every field, so that a new field cannot be missed.
        let Self {
            config: _,
            now,
            random: _,
            hard,
            storage,
            log,
            writes,
            durable,
            commit,
            applying,
            role,
            leader,
            followed,
            leader_heard,
            no_votes_until,
            forwarded,
            election_deadline,
            acknowledged_round,
            contradicted,
            stalled,
            outputs,
        } = self;
        assert!(outputs.is_empty(), "outputs are left over between calls");
        (now, storage, durable, commit, applying, leader_heard, no_votes_until, election_deadline)
            .hash(hasher);
        (acknowledged_round, contradicted, stalled).hash(hasher);
        hash_hard_state(hard, names, hasher);
        leader.map(|id| name(id, names)).hash(hasher);
        // The leader of an earlier term has no effect.
        let followed = followed.filter(|(term, _)| *term == hard.term);
        followed.map(|(_, id)| name(id, names)).hash(hasher);
        log.digest(names, hasher);
        writes.digest(names, hasher);
        forwarded.digest(hasher);
        match role {
            Role::Follower => 0.hash(hasher),
            Role::PreCandidate(ballots) => (1, ballots.digest(names)).hash(hasher),
            Role::Candidate(ballots) => (2, ballots.digest(names)).hash(hasher),
            Role::Leader(leader) => {
                3.hash(hasher);
                leader.digest(names, hasher);
            }
        }
    }
}

impl Leader {
    fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        let Self { peers, heartbeat_deadline, round, reads, change, transfer, next_transfer, lease_void } =
            self;
        (heartbeat_deadline, round, next_transfer, lease_void).hash(hasher);
        unordered(peers.iter(), hasher, |(id, peer), hasher| {
            name(*id, names).hash(hasher);
            peer.digest(hasher);
        });
        reads.digest(names, hasher);
        change.as_ref().map(|change| (change.token, change.is_under_way())).hash(hasher);
        transfer.as_ref().map(|transfer| (name(transfer.to, names), transfer.deadline)).hash(hasher);
    }
}

impl Progress {
    fn digest(&self, hasher: &mut impl Hasher) {
        let Self { matched, next, state, round, heard, storage, current, first_round, joining, exclusion } =
            self;
        (matched, next, round, heard, storage, current, first_round, joining, exclusion).hash(hasher);
        match state {
            State::Probe { sent } => (0, sent).hash(hasher),
            State::Replicate(inflight) => inflight.digest(hasher),
            State::Snapshot => 2.hash(hasher),
        }
    }
}

impl Deferred {
    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Send(to, reply) => (0, name(*to, names), reply).hash(hasher),
            Self::Output(Output::SnapshotSettled(outcome)) => (1, *outcome as u8).hash(hasher),
            Self::Output(Output::Install(meta)) => {
                2.hash(hasher);
                hash_meta(meta, names, hasher);
            }
            Self::Output(other) => unreachable!("{other:?} waits for no disk"),
        }
    }
}

/// Hashes outputs that wait for the same write as a set: they are released together, and the network has no order.
pub(crate) fn digest_deferred(deferred: &[Deferred], names: Names<'_>, hasher: &mut impl Hasher) {
    unordered(deferred.iter(), hasher, |deferred, hasher| deferred.digest(names, hasher));
}

impl InFlight {
    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        // The request matters only when it is taken back, which the disks of the model checker never do.
        let Self { last, deferred, request: _ } = self;
        last.hash(hasher);
        digest_deferred(deferred, names, hasher);
    }
}

pub(crate) fn name(id: NodeId, names: Names<'_>) -> u8 {
    names[id.0 as usize]
}

/// Hashes a hard state, with other names for nodes.
pub fn hash_hard_state(hard: &HardState, names: Names<'_>, hasher: &mut impl Hasher) {
    let HardState { term, voted_for, installing, lost_through, joining, cluster } = hard;
    (term, voted_for.map(|id| name(id, names)), lost_through, joining, cluster).hash(hasher);
    installing.is_some().hash(hasher);
    if let Some(meta) = installing {
        hash_meta(meta, names, hasher);
    }
}

/// Hashes the position and configuration of a snapshot, with other names for nodes.
pub fn hash_meta(meta: &SnapshotMeta, names: Names<'_>, hasher: &mut impl Hasher) {
    meta.last.hash(hasher);
    hash_membership(&meta.membership, names, hasher);
}

/// Hashes a configuration, with other names for nodes.
pub fn hash_membership(membership: &Membership, names: Names<'_>, hasher: &mut impl Hasher) {
    (membership.cluster(), membership.leaderships()).hash(hasher);
    for members in [membership.members(), membership.outgoing()] {
        unordered(members.iter(), hasher, |(id, member), hasher| {
            let Member { kind, endpoint: _, priority, client_endpoint: _, name: _, storage } = member;
            (name(*id, names), *kind as u8, priority, storage).hash(hasher);
        });
    }
}

/// Hashes a set, independently of its order, which changes with the names of its elements.
pub(crate) fn unordered<T>(
    items: impl Iterator<Item = T>,
    hasher: &mut impl Hasher,
    hash: impl Fn(T, &mut Fingerprint),
) {
    let mut sum = 0u64;
    for item in items {
        let mut one = Fingerprint::default();
        hash(item, &mut one);
        sum = sum.wrapping_add(one.finish());
    }
    sum.hash(hasher);
}

/// A 64-bit hash that is fast for small numbers and the same on every machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fingerprint(u64);

impl Hasher for Fingerprint {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_i32(&mut self, number: i32) {
        self.write_u64(number as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = (mixed ^ (mixed >> 29)).wrapping_add(0xD1B5_4A32_D192_ED03);
    }

    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 31)
    }
}
