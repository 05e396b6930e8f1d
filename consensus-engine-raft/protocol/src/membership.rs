//! Changes of the configuration (§6, D §4), by joint consensus.
//!
//! 1. A change is asked for. It waits until the leader has committed an entry of its own term: an older configuration
//!    that it does not know of could otherwise be in force elsewhere (known bug M1).
//! 2. If voters differ, the joint configuration is appended and counts at once (I10); it is committed by a quorum of the
//!    old voters and a quorum of the new ones.
//! 3. When the joint configuration is committed, whoever leads then appends the new one (I13).
//! 4. When that is committed the change is done. A leader that is no longer a voter goes, not earlier (D §4.2.2).
//!
//! A configuration that changes no voter - learners, endpoints - is step 3 alone. There is one change at a time (I13).

use std::collections::BTreeMap;

use consensus_core::{LogIndex, Member, MemberChange, MemberKind, Membership, NodeId, Payload, StorageId};
use serde::{Deserialize, Serialize};

use crate::{
    EntryInfo, Output, Raft, Refusal,
    progress::{Progress, State},
    raft::{Leader, Role},
    replication::Send,
};

/// A change that somebody asked this leader for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) token: u64,
    /// `None` once it is under way.
    asked: Option<Vec<MemberChange>>,
}

impl Change {
    pub(crate) fn is_under_way(&self) -> bool {
        self.asked.is_none()
    }
}

impl Raft {
    pub(crate) fn on_change(&mut self, token: u64, changes: Vec<MemberChange>) {
        let joint = self.log.membership().is_joint();
        let refusal = match &mut self.role {
            Role::Leader(leader) if leader.change.is_none() && leader.transfer.is_none() && !joint => {
                leader.change = Some(Change { token, asked: Some(changes) });
                return self.drive_change();
            }
            Role::Leader(_) => Refusal::Busy,
            _ => Refusal::NotLeader,
        };
        self.outputs.push(Output::ChangeRefused(token, refusal));
    }

    /// On a leader: takes the next step of a change, if the last one is committed.
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
            Some(Change { token, asked: Some(changes) }) => {
                self.begin_change(token, &changes, at, &membership);
            }
            Some(Change { token, asked: None }) => {
                self.outputs.push(Output::Changed(token, at));
                self.settle_change(&membership);
            }
            None => self.settle_change(&membership),
        }
    }

    fn begin_change(&mut self, token: u64, changes: &[MemberChange], at: LogIndex, membership: &Membership) {
        let output = match membership.with_changes(changes) {
            Err(why) => Output::ChangeRefused(token, Refusal::Invalid(why)),
            Ok(target) if target == *membership => Output::Changed(token, at),
            Ok(target) => {
                if let Role::Leader(leader) = &mut self.role {
                    leader.change = Some(Change { token, asked: None });
                }
                return self.append_membership(membership.step_towards(&target));
            }
        };
        self.outputs.push(output);
        // It was asked while the configuration in force was not committed: that has its consequences now.
        self.settle_change(membership);
    }

    /// Appends a configuration; it counts from now on (I10).
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
            // What a former member of that id still answers is of an earlier round (I19).
            leader.begin_round(self.now);
        }
        let progress = Progress::new(id.index, self.now, leader.round);
        leader.peers.extend(added.into_iter().map(|peer| (peer, progress.clone())));
        self.advance_commit(); // A lone voter has what is durable already.
    }

    /// After the configuration in force is committed: those who are no longer in it are told so, once, and forgotten;
    /// the leader itself goes if it is one of them.
    fn settle_change(&mut self, membership: &Membership) {
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.peers.keys().any(|peer| membership.get(*peer).is_none()) {
            self.broadcast(Send::Round);
            if let Role::Leader(leader) = &mut self.role {
                leader.peers.retain(|peer, _| membership.get(*peer).is_some());
            }
        }
        if !membership.can_lead(self.config.id) {
            self.hand_over();
        }
    }

    /// On a leader, at every heartbeat: what it changes of its own accord.
    pub(crate) fn improve_membership(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let (at, membership) = self.log.newest_membership();
        let busy = leader.transfer.is_some() || membership.is_joint();
        // One change at a time (I13): what somebody asked for is in a configuration that is not committed.
        if busy || at > self.commit || !leader.reads.has_committed() {
            return;
        }
        let mut members = membership.members().clone();
        for (id, member) in &mut members {
            self.note_storage(leader, *id, member);
        }
        // Storages first: a member without one votes on nothing.
        if members == *membership.members() {
            self.promote(leader, &mut members);
        }
        let improved = membership.with_members(members);
        if improved != **membership {
            let next = membership.step_towards(&improved);
            self.append_membership(next);
        }
    }

    /// Remembers whose storage is which, so that an emptied disk is not taken for the one that it was (I14).
    fn note_storage(&self, leader: &Leader, id: NodeId, member: &mut Member) {
        let peer = leader.peers.get(&id);
        let own = (id == self.config.id).then_some(self.storage);
        let heard = own.or(peer.map(|peer| peer.storage)).unwrap_or_default();
        if member.storage_is_known() {
            return;
        }
        if heard != StorageId::default() {
            member.storage = Some(heard);
        } else if peer.is_some_and(|peer| peer.matched > LogIndex::ZERO) {
            // Its storage has no identity: what I18 says of founding members is all that there is.
            member.storage = None;
        }
    }

    /// Makes voters of those who join and have caught up (D §4.2.1).
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
