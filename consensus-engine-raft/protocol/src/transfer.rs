//! Leadership transfer (D §3.10), and the lead going to whom it is due.
//!
//! 1. The leader takes no more proposals.
//! 2. When the target's log is as long as its own it is asked to stand at once.
//! 3. Its candidacy is heard although a leader is at work, as that leader asked for it.
//! 4. If there is no new leader within an election timeout, the old one takes proposals again: it always ends (T1).

use consensus_core::{NodeId, TimeoutNow, VoteKind};
use serde::{Deserialize, Serialize};

use crate::{
    Output, Raft, Refusal, Reply, Time,
    progress::{Progress, State},
    raft::Role,
};

/// A transfer under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    /// Of whom asked; the leader's own idea if `None`.
    token: Option<u64>,
    pub(crate) to: NodeId,
    pub(crate) deadline: Time,
}

impl Raft {
    pub(crate) fn on_transfer(&mut self, token: u64, to: Option<NodeId>) {
        let refusal = match &self.role {
            Role::Leader(leader) if leader.transfer.is_some() => Refusal::Busy,
            Role::Leader(_) => match to.or_else(|| self.heir(0)) {
                Some(to) if to != self.config.id && self.log.membership().can_lead(to) => {
                    return self.begin_transfer(Some(token), to);
                }
                Some(to) => Refusal::CannotLead(to),
                None => Refusal::NoSuccessor,
            },
            _ => Refusal::NotLeader,
        };
        self.outputs.push(Output::TransferEnded(token, Err(refusal)));
    }

    fn begin_transfer(&mut self, token: Option<u64>, to: NodeId) {
        let Role::Leader(leader) = &mut self.role else { return };
        leader.transfer = Some(Transfer { token, to, deadline: self.now + self.config.election_timeout });
        leader.lease_void = true; // The next leader does not wait for it to end (R5).
        self.drive_transfer();
    }

    /// Asks the target to stand when it has everything; gives up when the time is over.
    pub(crate) fn drive_transfer(&mut self) {
        let last = self.log.last().index;
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &leader.transfer else { return };
        if self.now >= transfer.deadline {
            leader.next_transfer = self.now + TRANSFER_PAUSE * self.config.election_timeout;
            if let Some(token) = leader.transfer.take().and_then(|transfer| transfer.token) {
                self.outputs.push(Output::TransferEnded(token, Err(Refusal::TimedOut)));
            }
            if !self.log.membership().can_lead(self.config.id) {
                self.become_follower(self.hard.term, None);
            }
            return;
        }
        // Asked again at every acknowledgement: a repeated request finds the target in a later term and is ignored.
        if leader.peers.get(&transfer.to).is_some_and(|peer| peer.counted_match() == last) {
            let request = Reply::TimeoutNow(TimeoutNow { term: self.hard.term });
            self.outputs.push(Output::Send(transfer.to, request));
        }
    }

    pub(crate) fn on_timeout_now(&mut self, from: NodeId, request: TimeoutNow) {
        let asked_by_leader = request.term == self.hard.term && self.leader == Some(from);
        if asked_by_leader && matches!(self.role, Role::Follower) && self.may_campaign() {
            self.stand(VoteKind::Transfer);
        }
    }

    /// Who could lead next: in touch, with at least this priority, and the longest log.
    fn heir(&self, priority_min: u32) -> Option<NodeId> {
        let Role::Leader(leader) = &self.role else { return None };
        let membership = self.log.membership();
        let priority = |id| membership.get(id).map_or(0, |member| member.priority);
        let fit = |(id, peer): &(&NodeId, &Progress)| {
            let follows = matches!(peer.state, State::Replicate(_));
            membership.can_lead(**id)
                && peer.in_touch(&self.config, self.now)
                && follows
                && peer.counts()
                && priority(**id) >= priority_min
        };
        let heir = leader.peers.iter().filter(fit).max_by_key(|(id, peer)| (priority(**id), peer.matched));
        heir.map(|(id, _)| *id)
    }

    /// Gives the lead up, to somebody if there is somebody.
    pub(crate) fn hand_over(&mut self) {
        let Some(heir) = self.heir(0) else { return self.become_follower(self.hard.term, None) };
        if matches!(&self.role, Role::Leader(leader) if leader.transfer.is_none()) {
            self.begin_transfer(None, heir);
        }
    }

    /// At every heartbeat: the lead goes to whom it is due, when that node has caught up.
    pub(crate) fn prefer_heir(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let own = self.log.membership().get(self.config.id).map_or(0, |member| member.priority);
        let idle = leader.transfer.is_none() && leader.change.is_none() && self.now >= leader.next_transfer;
        if !idle || !leader.reads.has_committed() {
            return;
        }
        if let Some(heir) = own.checked_add(1).and_then(|above| self.heir(above)) {
            self.begin_transfer(None, heir);
        }
    }

    /// The leader's own end answers whoever asked for it.
    pub(crate) fn end_transfer(&mut self, transfer: Option<Transfer>) {
        if let Some(token) = transfer.and_then(|transfer| transfer.token) {
            self.outputs.push(Output::TransferEnded(token, Ok(())));
        }
    }
}

/// After a transfer that failed the leader waits so many election timeouts before it has one of its own accord.
const TRANSFER_PAUSE: u32 = 10;
