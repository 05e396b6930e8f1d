//! A node whose disk or state machine cannot do its part for a while.
//!
//! * *Stalled*: a write or an apply does not return. The node cannot say what it stores, so that it does not campaign, and a
//!   leader gives leadership away: to a voter that has the whole log, or, after it has stepped down, to the node that is elected.
//! * *Without room*: entries cannot be written, all else can. What does not depend on the entries, such as a vote, is written
//!   ahead of them (see `persist.rs`), so that leaders are elected as ever. A leader transfers leadership only to a voter that
//!   has written the whole log, with a quorum of such voters beside this node: with fewer, no other leader could commit
//!   anything either, and reads would stop as well.

use std::collections::BTreeSet;

use consensus_core::{LogIndex, MemberKind, NodeId};

use crate::{
    Raft,
    progress::{Progress, State},
    raft::{Leader, Role},
};

impl Raft {
    pub(crate) fn on_stalled(&mut self, is_stalled: bool) {
        self.stalled = is_stalled;
        if !matches!(self.role, Role::Leader(_)) {
            // It was silent for long, which is not the fault of the current leader.
            self.reset_election_deadline();
        }
    }

    pub(crate) fn on_step_down(&mut self) {
        if matches!(self.role, Role::Leader(_)) {
            self.become_follower(self.hard.term, None);
        }
    }

    /// On a leader: the voter that is to lead in its place, if this node cannot write. It answers, can lead and has written the
    /// whole log, and so have enough voters for a quorum without this node. Prefers others to those in `tried`, then those of
    /// the highest priority.
    #[must_use]
    pub fn successor(&self, tried: &BTreeSet<NodeId>) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let membership = self.log.membership();
        let is_up_to_date =
            |id: NodeId| leader.peers.get(&id).is_some_and(|peer| self.is_up_to_date(id, peer));
        if membership.quorum_value(|id| id != self.config.id && is_up_to_date(id)) != Some(true) {
            return None;
        }
        let fit = leader.peers.iter().filter(|(id, peer)| {
            membership.can_lead(**id) && matches!(peer.state, State::Replicate(_)) && is_up_to_date(**id)
        });
        let priority = |id: NodeId| membership.get(id).map_or(0, |member| member.priority);
        fit.map(|(id, _)| *id).max_by_key(|id| (!tried.contains(id), priority(*id)))
    }

    /// On a leader: whether the voters that answer, without this node, are a quorum of which one can lead.
    #[must_use]
    pub fn can_be_replaced(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let (membership, own) = (self.log.membership(), self.config.id);
        let answers = |id: NodeId| self.answers(leader, id);
        membership.quorum_value(|id| id != own && answers(id)) == Some(true)
            && membership.voters().any(|id| id != own && membership.can_lead(id) && answers(id))
    }

    fn answers(&self, leader: &Leader, id: NodeId) -> bool {
        leader.peers.get(&id).is_some_and(|peer| peer.in_touch(&self.config, self.now))
    }

    /// A witness is sent only what this node has on its own disk.
    fn is_up_to_date(&self, id: NodeId, peer: &Progress) -> bool {
        let is_witness =
            self.log.membership().get(id).is_some_and(|member| member.kind == MemberKind::Witness);
        let needed: LogIndex = if is_witness { self.durable } else { self.log.last().index };
        peer.in_touch(&self.config, self.now) && peer.matched >= needed
    }

    /// The write in flight was given back: nothing of it was written.
    pub(crate) fn on_no_room(&mut self) {
        self.writes.take_back(self.log.purged().index);
    }

    pub(crate) fn on_try_entries(&mut self) {
        self.writes.lacks_room = false;
    }

    /// Whether writes leave out entries that found no room ([`Event::NoRoom`](crate::Event::NoRoom)).
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.writes.lacks_room
    }
}
