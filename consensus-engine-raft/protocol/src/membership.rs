//! Changes of the configuration (§6, D §4), by joint consensus.
//!
//! 1. A change is requested. It waits until the leader has committed an entry of its own term: before that, an older
//!    configuration unknown to this leader could be in force on other nodes (known bug M1).
//! 2. If the voters change, the leader appends the joint configuration, which is in force at once (I10). It is committed by
//!    a quorum of the old voters and a quorum of the new ones.
//! 3. When the joint configuration is committed, the leader of that time appends the new configuration (I13).
//! 4. When that is committed, the change is complete. A leader that is not a voter any more leaves now, not earlier (D
//!    §4.2.2).
//!
//! A change without effect on voters (learners, endpoints) consists of step 3 alone. There is one change at a time (I13).

use std::collections::BTreeMap;

use consensus_core::{LogIndex, Member, MemberChange, MemberKind, Membership, NodeId, Payload, StorageId};
use serde::{Deserialize, Serialize};

use crate::{
    EntryInfo, Output, Raft, Refusal,
    progress::{Progress, State},
    raft::{Leader, Role},
    replication::SendReason,
};

/// A requested change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) token: u64,
    /// Requested changes; `None` once the first configuration is appended.
    requested: Option<Vec<MemberChange>>,
}

impl Change {
    pub(crate) fn is_under_way(&self) -> bool {
        self.requested.is_none()
    }
}

impl Raft {
    pub(crate) fn on_change(&mut self, token: u64, changes: Vec<MemberChange>) {
        let joint = self.log.membership().is_joint();
        let refusal = match &mut self.role {
            Role::Leader(leader) if leader.change.is_none() && leader.transfer.is_none() && !joint => {
                leader.change = Some(Change { token, requested: Some(changes) });
                return self.drive_change();
            }
            Role::Leader(_) => Refusal::Busy,
            _ => Refusal::NotLeader,
        };
        self.outputs.push(Output::ChangeRefused(token, refusal));
    }

    /// On a leader: takes the next step of a change once the last one is committed.
    pub(crate) fn drive_change(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let (at, membership) = self.log.newest_membership();
        if !leader.reads.has_committed() || at > self.commit {
            return;
        }
        if membership.is_joint() {
            return self.append_membership(membership.without_outgoing());
        }
        let membership = membership.clone();
        match leader.change.take() {
            Some(Change { token, requested: Some(changes) }) => {
                self.start_change(token, &changes, at, &membership);
            }
            Some(Change { token, requested: None }) => {
                self.outputs.push(Output::Changed(token, at));
                self.complete_change(&membership);
            }
            None => self.complete_change(&membership),
        }
    }

    fn start_change(&mut self, token: u64, changes: &[MemberChange], at: LogIndex, membership: &Membership) {
        let output = match membership.with_changes(changes) {
            Err(why) => Output::ChangeRefused(token, Refusal::Invalid(why)),
            Ok(target) if target == *membership => Output::Changed(token, at),
            Ok(target) => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.change = Some(Change { token, requested: None });
                }
                return self.append_membership(membership.step_towards(&target));
            }
        };
        self.outputs.push(output);
        // An earlier configuration may have been committed while the request waited: complete that change.
        self.complete_change(membership);
    }

    /// Appends a configuration, which is in force from now on (I10).
    pub(crate) fn append_membership(&mut self, membership: Membership) {
        let term = self.hard.term;
        let membership = std::sync::Arc::new(membership);
        let size_bytes = Payload::Membership((*membership).clone()).size_bytes();
        let id = self.log.push(EntryInfo { term, size_bytes, membership: Some(membership.clone()) });
        self.outputs.push(Output::AppendedMembership(id, membership.clone()));
        let Role::Leader(leader) = &mut self.role else { return };
        let others = membership.all_members().map(|(peer, _)| peer).filter(|peer| *peer != self.config.id);
        let added: Vec<NodeId> = others.filter(|peer| !leader.peers.contains_key(peer)).collect();
        if !added.is_empty() {
            // Responses to rounds before this one come from a former member of that id (I19).
            leader.start_round(self.now);
        }
        let progress = Progress::new(id.index, self.now, leader.round);
        leader.peers.extend(added.into_iter().map(|peer| (peer, progress.clone())));
        self.advance_commit(); // Entries that are durable here are committed at once if this node is the only voter.
    }

    /// Completes a change after its configuration is committed: sends one last message to removed members, so that they
    /// learn of their removal, and removes their progress. The leader itself leaves if it was removed.
    fn complete_change(&mut self, membership: &Membership) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.peers.keys().any(|peer| membership.get(*peer).is_none()) {
            self.broadcast(SendReason::ReadRound);
            if let Role::Leader(leader) = &mut self.role {
                leader.peers.retain(|peer, _| membership.get(*peer).is_some());
            }
        }
        if !membership.can_lead(self.config.id) {
            self.transfer_or_step_down();
        }
    }

    /// On a leader, at every heartbeat: makes the changes of the configuration that need no request.
    pub(crate) fn update_membership(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let (at, membership) = self.log.newest_membership();
        let busy = leader.transfer.is_some() || membership.is_joint();
        // One change at a time (I13): an uncommitted configuration is a change in progress.
        if busy || at > self.commit || !leader.reads.has_committed() {
            return;
        }
        let mut members = membership.members().clone();
        for (id, member) in &mut members {
            self.record_storage(leader, *id, member);
        }
        // Storages are recorded before promotion: a member without a known storage does not vote.
        if members == *membership.members() {
            self.promote(leader, &mut members);
        }
        let improved = membership.with_members(members);
        if improved != **membership {
            let next = membership.step_towards(&improved);
            self.append_membership(next);
        }
    }

    /// Records the storage of a member, so that an emptied disk is not mistaken for the disk before (I14).
    fn record_storage(&self, leader: &Leader, id: NodeId, member: &mut Member) {
        let peer = leader.peers.get(&id);
        let own = (id == self.config.id).then_some(self.storage);
        let heard = own.or(peer.map(|peer| peer.storage)).unwrap_or_default();
        if member.storage_is_known() {
            return;
        }
        if heard != StorageId::default() {
            member.storage = Some(heard);
        } else if peer.is_some_and(|peer| peer.matched > LogIndex::ZERO) {
            // The storage has no identity, so the member is treated as a founding member (I18).
            member.storage = None;
        }
    }

    /// Makes joining members voters once they have caught up (D §4.2.1).
    fn promote(&self, leader: &Leader, members: &mut BTreeMap<NodeId, Member>) {
        let joins = |member: &Member| {
            member.kind == MemberKind::Joining && member.storage != Some(StorageId::UNKNOWN)
        };
        for (id, member) in members.iter_mut().filter(|(_, member)| joins(member)) {
            let caught_up = leader.peers.get(id).is_some_and(|peer| {
                matches!(peer.state, State::Replicate(_))
                    && peer.counts()
                    && !peer.joining
                    && self.log.last().index.since(peer.matched) <= self.config.promote_lag_entries
            });
            if caught_up {
                member.kind = MemberKind::Voter;
            }
        }
    }
}
