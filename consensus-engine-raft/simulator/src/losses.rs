//! What operators took away, and what can still be promised: the rule is told in `checks.rs`.

use consensus_core::{LogId, Membership, NodeId, Role, StorageId, Term};
use consensus_raft_protocol::Raft;

use crate::{checks::Checks, disk::SimDisk, operator::membership_of, world::World};

/// What a disk held before it lost some of it.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) node: NodeId,
    pub(crate) disk: SimDisk,
    pub(crate) kind: LossKind,
}

/// How it was lost, and so what of it still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LossKind {
    /// Records were damaged, or the disk was emptied when its identity was known everywhere: what the node acknowledged
    /// before counts.
    Known,
    /// The disk was emptied. What the node acknowledged before counts until it is added again.
    Wiped { identity_noted: bool },
    /// An old copy was put back: nothing tells the node from what it was.
    PutBack,
}

impl Lost {
    /// Whether what was acknowledged from this disk counts in `membership`.
    pub(crate) fn counts(&self, membership: &Membership) -> bool {
        let known = membership.get(self.node).and_then(|member| member.storage);
        let is_this = known.is_none_or(|storage| storage == self.disk.storage());
        match self.kind {
            LossKind::Known => is_this,
            LossKind::Wiped { identity_noted } => is_this && (known.is_some() || !identity_noted),
            LossKind::PutBack => false,
        }
    }
}

/// Why nothing more is promised than that contradictions are said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promise {
    /// The first reason.
    pub(crate) void: Option<String>,
    /// Votes in terms up to here may have been forgotten.
    forgotten: Term,
    /// Two nodes led one term, so that one log id may name two entries.
    pub(crate) split_term: bool,
}

impl Checks {
    /// Whether everything is promised.
    pub(crate) fn is_promised(&self) -> bool {
        self.promise.void.is_none()
    }

    pub(crate) fn void_promise(&mut self, why: impl FnOnce() -> String) {
        if self.is_promised() {
            self.reach("promise void");
            self.promise.void = Some(why());
        }
    }

    /// Operators are about to take a disk away.
    pub(crate) fn note_lost(&mut self, node: NodeId, disk: &SimDisk, put_back: bool) {
        let noted = self.newest_membership().and_then(|membership| membership.get(node)?.storage);
        let kind =
            if put_back { LossKind::PutBack } else { LossKind::Wiped { identity_noted: noted.is_some() } };
        self.lost.push(Lost { node, disk: disk.image(), kind });
    }

    fn was_put_back(&self) -> bool {
        self.lost.iter().any(|lost| lost.kind == LossKind::PutBack)
    }

    /// An entry is committed and on no quorum of disks. Only acknowledgements from before a copy was put back excuse it.
    pub(crate) fn note_unprotected(&mut self, entry: LogId) -> bool {
        if self.was_put_back() {
            self.void_promise(|| format!("{entry} was acknowledged by a disk that is an older copy now"));
        }
        !self.is_promised()
    }

    /// Two nodes lead one term, or one leads it twice. Only forgotten votes excuse it.
    pub(crate) fn note_second_leader(&mut self, term: Term) {
        if term <= self.promise.forgotten {
            self.void_promise(|| {
                format!("a vote in term {term} was forgotten with a disk that is an older copy now")
            });
        }
        self.promise.split_term |= !self.is_promised();
    }
}

impl World {
    /// A copy was put back: finds out what is forgotten with the disk that it replaced.
    pub(crate) fn note_put_back(&mut self, id: NodeId) {
        let disk = self.node(id).disk.clone();
        let now = disk.hard_state();
        let Checks { lost, promise, .. } = &mut self.checks;
        // Also what was emptied meanwhile: nothing tells the copy from that disk, either.
        for lost in lost.iter_mut().filter(|lost| lost.node == id && lost.disk.storage() == disk.storage()) {
            lost.kind = LossKind::PutBack;
            let before = lost.disk.hard_state();
            if (before.term, before.voted_for) != (now.term, now.voted_for) {
                promise.forgotten = promise.forgotten.max(before.term);
            }
        }
        let newest = self.newest_membership();
        let known = membership_of(&disk);
        if known.voters().ne(newest.voters()) {
            self.checks.void_promise(|| {
                format!("node {id} stands by the configuration {known} again, not {newest}")
            });
        }
        let committed: Vec<LogId> = self.checks.committed.values().copied().collect();
        if let Some(lost) = committed.into_iter().find(|entry| !self.is_on_quorum(*entry, &newest)) {
            self.checks.void_promise(|| format!("{lost} is left on no quorum of disks"));
        }
    }

    /// A leader adds members: of those whose disk was emptied before, nothing counts but what that disk holds from now on.
    pub(crate) fn note_added(&mut self, leader: NodeId, at: LogId, membership: &Membership) {
        let Some(raft) = self.node(leader).raft() else { return };
        let before = raft.membership_at(at.index.prev());
        let is_added = |id: &NodeId| {
            let is_unheard = |membership: &Membership| {
                membership.get(*id).is_some_and(|member| member.storage == Some(StorageId::UNKNOWN))
            };
            is_unheard(membership) && !is_unheard(&before)
        };
        let added = membership.all_members().map(|(id, _)| id).filter(is_added);
        let added = added.filter(|id| self.node(*id).wiped).map(|id| (id, self.node(id).disk.storage()));
        let added: Vec<_> = added.collect();
        let term = raft.term();
        if !added.is_empty() {
            self.checks.reach("member added again with an empty disk");
        }
        self.added.extend(added.into_iter().map(|(id, storage)| ((leader, term, id), storage)));
    }

    /// What a leader counts of a member that it added with an empty disk is on that disk (I19).
    pub(crate) fn check_added(&self, leader: NodeId) {
        let Some(raft) = self.node(leader).raft().filter(|raft| raft.role() == Role::Leader) else { return };
        let known =
            self.added.range((leader, raft.term(), NodeId(0))..=(leader, raft.term(), NodeId(u64::MAX)));
        for ((_, _, id), storage) in known {
            let matched = raft.peer_statuses().find(|(peer, _)| peer == id).map(|(_, status)| status.matched);
            let Some(entry) = matched.and_then(|matched| raft.id_at(matched)) else { continue };
            let is_same = self.node(*id).disk.storage() == *storage;
            assert!(
                !is_same || self.holds(*id, entry) || !self.checks.is_promised(),
                "I19: leader {leader} counts {entry} as durable on node {id}, which was added with an empty disk and lacks it"
            );
        }
    }

    /// Whether a member can be counted on: it is up, its disk is the one that the others know, and no old copy.
    pub(crate) fn is_sound(&self, id: NodeId, membership: &Membership) -> bool {
        let node = self.node(id);
        let noted = membership.get(id).and_then(|member| member.storage);
        let trusted = noted.map_or(!node.wiped, |storage| storage == node.disk.storage());
        trusted && node.ended.is_none() && node.waits.is_none() && !node.put_back
    }

    /// Whether a quorum of sound nodes is left in each configuration that anybody goes by.
    pub(crate) fn has_sound_quorum(&self) -> bool {
        let newest = self.newest_membership();
        let rafts =
            self.nodes.iter().filter(|node| self.is_sound(node.id, &newest)).filter_map(|node| node.raft());
        let known = rafts.map(Raft::membership).filter(|membership| membership.voters().count() > 0);
        std::iter::once(&newest).chain(known).all(|membership| {
            let mut members = membership.members().keys().copied();
            members.any(|id| self.is_sound(id, membership) && self.can_be_elected(id, membership))
        })
    }

    /// Whether a quorum of sound nodes would vote for this one, or follows it. It is the one with the longest log, unless that is
    /// a witness: what only a witness has heard of, and a disk that was emptied, is lost.
    fn can_be_elected(&self, id: NodeId, membership: &Membership) -> bool {
        let last = |id| self.node(id).raft().map(Raft::last_log);
        let votes = |voter| self.is_sound(voter, membership) && last(voter) <= last(id);
        membership.can_lead(id) && membership.quorum_value(votes) == Some(true)
    }

    /// Nobody follows a leader in silence that contradicts what is committed here: where two nodes that exchange messages
    /// have different committed entries at one index, one has ended.
    pub(crate) fn check_contradictions(&self) {
        let leaders =
            self.nodes.iter().filter_map(|node| node.raft()).filter(|raft| raft.role() == Role::Leader);
        for leader in leaders {
            for member in leader.membership().members().keys().filter(|id| **id != leader.id()) {
                let Some(raft) = self.node(*member).raft() else { continue };
                self.check_same_history(leader, raft);
            }
        }
    }

    fn check_same_history(&self, one: &Raft, other: &Raft) {
        let first = one.purged().index.max(other.purged().index).0;
        let last = one.commit().min(other.commit()).0;
        // No message passes between two clusters, which the transports of both ends say.
        if !one.cluster().is_compatible_with(other.cluster()) {
            return;
        }
        for index in first..=last {
            let ids =
                (one.id_at(consensus_core::LogIndex(index)), other.id_at(consensus_core::LogIndex(index)));
            assert!(
                ids.0 == ids.1,
                "silent contradiction: {} has committed {:?} and its leader {} has {:?}, and neither has ended\n{}",
                other.id(),
                ids.1,
                one.id(),
                ids.0,
                self.overview()
            );
        }
    }
}
