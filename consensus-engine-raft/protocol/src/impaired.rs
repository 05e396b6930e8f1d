//! A node whose disk or state machine temporarily cannot write or apply entries.
//!
//! * *Stalled*: a write or an apply does not return in time. The node cannot tell what its disk holds, so it does not
//!   campaign, and a leader transfers leadership to a voter that has the whole log. If there is none, it steps down so that
//!   another node can be elected.
//! * *No room*: entries cannot be written, but everything else can. Data that does not depend on the entries, such as a
//!   vote, is written ahead of them (see `persist.rs`), so leaders can still be elected. (If even that has no room, it waits as
//!   well, and the node neither votes nor campaigns until it is written.) A leader transfers leadership only
//!   to a voter that has written the whole log, and only if a quorum without this node has written it too: with fewer, no
//!   other leader could commit anything either, and reads would stop as well.

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
            // The node may have processed no messages for a while; the silence is not the fault of the current leader.
            self.reset_election_deadline();
        }
    }

    pub(crate) fn on_step_down(&mut self) {
        if matches!(self.role, Role::Leader(_)) {
            self.become_follower(self.hard.term, None);
        }
    }

    /// On a leader that cannot write: the voter to which it should transfer leadership. The voter is in touch, can lead and
    /// has written the whole log, and so have enough voters for a quorum without this node. Prefers voters that are not in
    /// `tried`, then those of the highest priority.
    #[must_use]
    pub fn successor(&self, tried: &BTreeSet<NodeId>) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let membership = self.log.membership();
        let is_up_to_date =
            |id: NodeId| leader.peers.get(&id).is_some_and(|peer| self.is_up_to_date(id, peer));
        if membership.quorum_value(|id| id != self.config.id && is_up_to_date(id)) != Some(true) {
            return None;
        }
        let candidates = leader.peers.iter().filter(|(id, peer)| {
            membership.can_lead(**id) && matches!(peer.state, State::Replicate(_)) && is_up_to_date(**id)
        });
        let priority = |id: NodeId| membership.get(id).map_or(0, |member| member.priority);
        candidates.map(|(id, _)| *id).max_by_key(|id| (!tried.contains(id), priority(*id)))
    }

    /// On a leader: whether the voters in touch, without this node, are a quorum and one of them can lead.
    #[must_use]
    pub fn can_be_replaced(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let (membership, own) = (self.log.membership(), self.config.id);
        let in_touch = |id: NodeId| self.is_in_touch(leader, id);
        membership.quorum_value(|id| id != own && in_touch(id)) == Some(true)
            && membership.voters().any(|id| id != own && membership.can_lead(id) && in_touch(id))
    }

    fn is_in_touch(&self, leader: &Leader, id: NodeId) -> bool {
        leader.peers.get(&id).is_some_and(|peer| peer.in_touch(&self.config, self.now))
    }

    /// Whether the peer is in touch and has the whole log; a witness is sent only entries that are on this node's own disk.
    fn is_up_to_date(&self, id: NodeId, peer: &Progress) -> bool {
        let is_witness =
            self.log.membership().get(id).is_some_and(|member| member.kind == MemberKind::Witness);
        let needed: LogIndex = if is_witness { self.durable } else { self.log.last().index };
        peer.in_touch(&self.config, self.now) && peer.matched >= needed
    }

    /// The write in flight failed for lack of room: nothing of it was written.
    pub(crate) fn on_no_room(&mut self) {
        self.writes.take_back(self.log.purged().index);
    }

    pub(crate) fn on_retry_entries(&mut self) {
        self.writes.lacks_room = false;
        self.writes.is_blocked = false;
    }

    /// Whether writes carry no entries, or nothing is written, because the disk had no room ([`Event::NoRoom`](crate::Event::NoRoom)).
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.writes.lacks_room
    }
}
