//! What a search through all states needs: states that differ in nothing that matters are made equal.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use consensus_core::{HardState, LogIndex, Member, Membership, NodeId, SnapshotMeta};

use crate::{
    Output, Raft, Time,
    persist::{Held, InFlight},
    progress::{Progress, State},
    raft::{Leader, Random, Role},
};

/// Other names for nodes: the name of node `n` stands at position `n`.
pub type Names<'a> = &'a [u8];

impl Raft {
    /// Moves the node's clock to `to`, and all that it remembers or plans with it; what is so long ago that it has no
    /// effect any more becomes "long ago". What the node draws from now on follows from `seed`.
    pub fn normalize(&mut self, to: Time, seed: u64) {
        let (now, oldest) = (self.now, self.now.saturating_sub(self.config.election_timeout));
        let moved = |at: Time| (at + to).saturating_sub(now);
        let past = |at: Time| if at <= now { Time::ZERO } else { moved(at) };
        let recent = |at: Time| if at <= oldest { Time::ZERO } else { moved(at) };
        self.random = Random::from_seed(seed);
        self.leader_heard = self.leader_heard.filter(|heard| *heard > oldest).map(moved);
        self.patient_until = past(self.patient_until);
        self.election_deadline = moved(self.election_deadline);
        self.asking.move_times(moved);
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

    /// Where each clock goes as it likes, without leases, only the order of a node's deadlines matters: makes those lengths of
    /// time alike that change nothing in it. `is_last`: no deadline will pass any more.
    pub fn forget_durations(&mut self, is_last: bool) {
        let (now, timeout) = (self.now, self.config.election_timeout);
        let patience = self.leader_heard.map_or(now, |heard| heard + timeout);
        if self.asking.deadline().is_none() && patience <= self.election_deadline {
            // Patience ends at the election deadline at the latest.
            self.election_deadline = now + timeout;
            self.leader_heard = self.leader_heard.map(|_| now);
        }
        let Role::Leader(leader) = &mut self.role else { return };
        leader.reads.forget_lease();
        if is_last {
            leader.heartbeat_deadline = now;
            for peer in leader.peers.values_mut() {
                // All that is asked from now on is whether the peer is in touch.
                peer.heard = if peer.in_touch(&self.config, now) { now } else { Time::ZERO };
            }
        }
    }

    /// Moves the node's clock to its next deadline, or to `at` if that comes first.
    pub fn wait(&mut self, at: Time) {
        self.now = self.now.max(at.min(self.next_deadline().unwrap_or(at)));
    }

    /// The configuration that the entry at `index` carries, if it carries one.
    #[must_use]
    pub fn membership_entry(&self, index: LogIndex) -> Option<Arc<Membership>> {
        self.log.membership_entry(index)
    }

    /// Until when this node lets nobody disturb the leader that it heard; `None` if it does not.
    #[must_use]
    pub fn undisturbed_until(&self) -> Option<Time> {
        let until = self.leader_heard.map(|heard| heard + self.config.election_timeout);
        until.filter(|until| *until > self.now && matches!(self.role, Role::Follower))
    }

    /// Feeds all that decides what the node will do to `hasher`, with other names for nodes.
    pub fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        // Every field is named here, so that a new one is not forgotten.
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
            patient_until,
            asking,
            election_deadline,
            answered_round,
            contradicted,
            stalled,
            outputs,
        } = self;
        assert!(outputs.is_empty(), "between calls nothing is left to be said");
        (now, storage, durable, commit, applying, leader_heard, patient_until, election_deadline)
            .hash(hasher);
        (answered_round, contradicted, stalled).hash(hasher);
        hash_hard_state(hard, names, hasher);
        leader.map(|id| name(id, names)).hash(hasher);
        // Who led an earlier term decides nothing.
        let followed = followed.filter(|(term, _)| *term == hard.term);
        followed.map(|(_, id)| name(id, names)).hash(hasher);
        log.digest(names, hasher);
        writes.digest(names, hasher);
        asking.digest(hasher);
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
        let Self { matched, next, state, round, heard, storage, current, first_round, joining, discount } =
            self;
        (matched, next, round, heard, storage, current, first_round, joining, discount).hash(hasher);
        match state {
            State::Probe { sent } => (0, sent).hash(hasher),
            State::Replicate(inflight) => inflight.digest(hasher),
            State::Snapshot => 2.hash(hasher),
        }
    }
}

impl Held {
    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Send(to, reply) => (0, name(*to, names), reply).hash(hasher),
            Self::Output(Output::SnapshotSettled(verdict)) => (1, *verdict as u8).hash(hasher),
            Self::Output(Output::Install(meta)) => {
                2.hash(hasher);
                hash_meta(meta, names, hasher);
            }
            Self::Output(other) => unreachable!("{other:?} waits for no disk"),
        }
    }
}

/// What waits for one write comes out at once, and the network has no order: neither has this.
pub(crate) fn digest_all(held: &[Held], names: Names<'_>, hasher: &mut impl Hasher) {
    unordered(held.iter(), hasher, |held, hasher| held.digest(names, hasher));
}

impl InFlight {
    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        // What was asked for counts only when it is given back, which the disks of a model do not.
        let Self { last, held, asked: _ } = self;
        last.hash(hasher);
        digest_all(held, names, hasher);
    }
}

pub(crate) fn name(id: NodeId, names: Names<'_>) -> u8 {
    names[id.0 as usize]
}

/// What a hard state says, with other names.
pub fn hash_hard_state(hard: &HardState, names: Names<'_>, hasher: &mut impl Hasher) {
    let HardState { term, voted_for, installing, lost_through, joining, cluster } = hard;
    (term, voted_for.map(|id| name(id, names)), lost_through, joining, cluster).hash(hasher);
    installing.is_some().hash(hasher);
    if let Some(meta) = installing {
        hash_meta(meta, names, hasher);
    }
}

/// What a snapshot covers, with other names.
pub fn hash_meta(meta: &SnapshotMeta, names: Names<'_>, hasher: &mut impl Hasher) {
    meta.last.hash(hasher);
    hash_membership(&meta.membership, names, hasher);
}

/// A configuration, with other names.
pub fn hash_membership(membership: &Membership, names: Names<'_>, hasher: &mut impl Hasher) {
    membership.cluster().hash(hasher);
    for members in [membership.members(), membership.outgoing()] {
        unordered(members.iter(), hasher, |(id, member), hasher| {
            let Member { kind, endpoint: _, priority, client_endpoint: _, storage } = member;
            (name(*id, names), *kind as u8, priority, storage).hash(hasher);
        });
    }
}

/// Of a set whose order changes with the names of its elements.
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

/// A 64-bit hash that is quick for small numbers and the same on every machine.
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
