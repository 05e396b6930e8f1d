//! Data that operators' mistakes lost, and the remaining guarantees; `checks.rs` describes the rules.

use consensus_core::{
    Entry, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, Role, StorageId, Term,
};
use consensus_raft_protocol::Raft;

use crate::{checks::Checks, disk::SimDisk, operator::membership_of, world::World};

/// Content of a disk before it lost some of it.
#[derive(Debug)]
pub(crate) struct Lost {
    pub(crate) node: NodeId,
    pub(crate) disk: SimDisk,
    pub(crate) kind: LossKind,
}

/// How data was lost, which determines what of it still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LossKind {
    /// Records were damaged, or the disk was emptied when its identity was known everywhere: earlier acknowledgements of the
    /// node count.
    Known,
    /// The disk was emptied: earlier acknowledgements of the node count until it is added again.
    Wiped { identity_noted: bool },
    /// An old copy was restored, which cannot be distinguished from the disk before.
    RestoreCopy,
}

impl Lost {
    /// Whether acknowledgements from this disk count in `membership`.
    pub(crate) fn counts(&self, membership: &Membership) -> bool {
        let known = membership.get(self.node).and_then(|member| member.storage);
        let is_this = known.is_none_or(|storage| storage == self.disk.storage());
        match self.kind {
            LossKind::Known => is_this,
            LossKind::Wiped { identity_noted } => is_this && (known.is_some() || !identity_noted),
            LossKind::RestoreCopy => false,
        }
    }
}

/// The remaining guarantees.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guarantee {
    /// First reason why only contradictions must be reported.
    pub(crate) void: Option<String>,
    /// Last term in which a vote may be lost.
    forgotten: Term,
}

impl Checks {
    /// Whether all guarantees hold.
    pub(crate) fn holds(&self) -> bool {
        self.guarantee.void.is_none()
    }

    pub(crate) fn void_guarantee(&mut self, why: impl FnOnce() -> String) {
        if self.holds() {
            self.reach("guarantee void");
            self.guarantee.void = Some(why());
        }
    }

    /// Must be called before an operator replaces a disk.
    pub(crate) fn record_lost_disk(&mut self, node: NodeId, disk: &SimDisk, restored_copy: bool) {
        let noted = self.newest_membership().and_then(|membership| membership.get(node)?.storage);
        let kind = if restored_copy {
            LossKind::RestoreCopy
        } else {
            LossKind::Wiped { identity_noted: noted.is_some() }
        };
        self.lost.push(Lost { node, disk: disk.image(), kind });
    }

    fn was_put_back(&self) -> bool {
        self.lost.iter().any(|lost| lost.kind == LossKind::RestoreCopy)
    }

    /// Records a committed entry that is on no quorum of disks. Only acknowledgements of a disk that was replaced by an old copy
    pub(crate) fn record_unprotected(&mut self, entry: LogId) -> bool {
        if self.was_put_back() {
            self.void_guarantee(|| {
                format!("{entry} was acknowledged by a disk that was replaced by an old copy")
            });
        }
        !self.holds()
    }

    /// Records a second leader of a term, which only lost votes excuse.
    pub(crate) fn record_second_leader(&mut self, term: Term) {
        if term <= self.guarantee.forgotten {
            self.void_guarantee(|| {
                format!("a vote in term {term} was lost with a disk that was replaced by an old copy")
            });
        }
    }
}

impl World {
    /// Determines what was lost with the disk that an old copy replaced.
    pub(crate) fn record_restored_copy(&mut self, id: NodeId) {
        let disk = self.node(id).disk.clone();
        let now = disk.hard_state();
        let Checks { lost, guarantee, .. } = &mut self.checks;
        // Includes disks that were emptied meanwhile: the copy cannot be distinguished from them either.
        for lost in lost.iter_mut().filter(|lost| lost.node == id && lost.disk.storage() == disk.storage()) {
            lost.kind = LossKind::RestoreCopy;
            let before = lost.disk.hard_state();
            if (before.term, before.voted_for) != (now.term, now.voted_for) {
                guarantee.forgotten = guarantee.forgotten.max(before.term);
            }
        }
        let newest = self.newest_membership();
        let known = membership_of(&disk);
        if known.voters().ne(newest.voters()) {
            self.checks.void_guarantee(|| {
                format!("node {id} has the old configuration {known} again, not {newest}")
            });
        }
        let committed: Vec<LogId> = self.checks.committed.values().copied().collect();
        if let Some(lost) = committed.into_iter().find(|entry| !self.is_on_quorum(*entry, &newest)) {
            self.checks.void_guarantee(|| format!("{lost} remains on no quorum of disks"));
        }
    }

    /// Records members that a leader adds. For members with an emptied disk, only its content from now on counts.
    pub(crate) fn record_added(&mut self, leader: NodeId, at: LogId, membership: &Membership) {
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

    /// Checks that entries that a leader counts for a member added with an empty disk are on that disk (I19).
    pub(crate) fn check_added(&self, leader: NodeId) {
        let Some(raft) = self.node(leader).raft().filter(|raft| raft.role() == Role::Leader) else { return };
        let known =
            self.added.range((leader, raft.term(), NodeId(0))..=(leader, raft.term(), NodeId(u64::MAX)));
        for ((_, _, id), storage) in known {
            let matched = raft.peer_statuses().find(|(peer, _)| peer == id).map(|(_, status)| status.matched);
            let Some(entry) = matched.and_then(|matched| raft.id_at(matched)) else { continue };
            let is_same = self.node(*id).disk.storage() == *storage;
            assert!(
                !is_same || self.holds(*id, entry) || !self.checks.holds(),
                "I19: leader {leader} counts {entry} as durable on node {id}, which was added with an empty disk and lacks it"
            );
        }
    }

    /// Whether a member is sound: it is running, and its disk is the one that the others know and no old copy.
    pub(crate) fn is_sound(&self, id: NodeId, membership: &Membership) -> bool {
        let node = self.node(id);
        let noted = membership.get(id).and_then(|member| member.storage);
        let trusted = noted.map_or(!node.wiped, |storage| storage == node.disk.storage());
        trusted && node.ended.is_none() && node.waits.is_none() && !node.restored_copy
    }

    /// Whether a quorum of sound nodes is left in each configuration that a node has.
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

    /// Whether a quorum of sound nodes would vote for this one, or follows it. It must have the longest log, except that entries
    /// that only a witness and an emptied disk had are lost.
    fn can_be_elected(&self, id: NodeId, membership: &Membership) -> bool {
        let last = |id| self.node(id).raft().map(Raft::last_log);
        let votes = |voter| self.is_sound(voter, membership) && last(voter) <= last(id);
        membership.can_lead(id) && membership.quorum_value(votes) == Some(true)
    }

    /// Checks that no node silently follows a leader that contradicts its committed entries: if two nodes that exchange messages
    /// have different committed entries at one index, one of them has stopped.
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
        // No messages are exchanged between different clusters.
        if !one.cluster().is_compatible_with(other.cluster()) {
            return;
        }
        let ids = |raft: &Raft| (first..=last).map(|index| raft.id_at(LogIndex(index))).collect::<Vec<_>>();
        let why = if ids(one) != ids(other) {
            "other ids"
        } else if self.contents(one, first, last) != self.contents(other, first, last) {
            "other contents under the same ids"
        } else {
            return;
        };
        panic!(
            "silent contradiction: {} and its leader {} have committed entries with {why} in {first}..={last}, and neither has ended\n{}",
            other.id(),
            one.id(),
            self.overview()
        );
    }

    /// Entries after index `first` up to `last` on the disk of a node, without the commands if one of its cluster is a witness.
    fn contents(&self, raft: &Raft, first: u64, last: u64) -> Vec<Entry> {
        let disk = &self.node(raft.id()).disk;
        let read = LogStorage::read(disk, LogIndex(first), LogIndex(last), u64::MAX);
        let mut entries = read.unwrap_or_default();
        if self.ids().any(|id| self.is_witness(id)) {
            entries.retain(|entry| !matches!(entry.payload, Payload::Command(_) | Payload::Withheld));
        }
        entries
    }
}
