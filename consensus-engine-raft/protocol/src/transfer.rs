//! Leadership transfer (D §3.10), on request or to a voter of higher priority.
//!
//! 1. The leader refuses proposals.
//! 2. When the target's log is as long as the leader's, the leader asks it to campaign at once.
//! 3. Voters respond to its vote request although there is an active leader, because that leader asked for it.
//! 4. If there is no new leader within an election timeout, the old one accepts proposals again: a transfer always ends
//!    (T1).

use consensus_core::{NodeId, TimeoutNow, VoteKind};
use serde::{Deserialize, Serialize};

use crate::{
    ControlMessage, Output, Raft, Refusal, Time,
    progress::{Progress, State},
    raft::Role,
};

/// A transfer in progress.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    /// Identifies the request in the result; `None` if the leader started the transfer by itself.
    token: Option<u64>,
    pub(crate) to: NodeId,
    pub(crate) deadline: Time,
}

impl Raft {
    pub(crate) fn on_transfer(&mut self, token: u64, to: Option<NodeId>) {
        let refusal = match &self.role {
            Role::Leader(leader) if leader.transfer.is_some() => Refusal::Busy,
            Role::Leader(_) => match to.or_else(|| self.transfer_candidate(0)) {
                Some(to) if to != self.config.id && self.log.membership().can_lead(to) => {
                    return self.start_transfer(Some(token), to);
                }
                Some(to) => Refusal::CannotLead(to),
                None => Refusal::NoSuccessor,
            },
            _ => Refusal::NotLeader,
        };
        self.outputs.push(Output::TransferEnded(token, Err(refusal)));
    }

    fn start_transfer(&mut self, token: Option<u64>, to: NodeId) {
        let Role::Leader(leader) = &mut self.role else { return };
        leader.transfer = Some(Transfer { token, to, deadline: self.now + self.config.election_timeout });
        leader.lease_void = true; // The next leader does not wait for the lease to end (R5).
        self.drive_transfer();
    }

    /// Asks the target to campaign once it has the whole log; ends the transfer at its deadline.
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
        // Sent again at every acknowledgement: a target that has campaigned is in a later term and ignores the repetition.
        if leader.peers.get(&transfer.to).is_some_and(|peer| peer.counted_match() == last) {
            let request = ControlMessage::TimeoutNow(TimeoutNow { term: self.hard.term });
            self.outputs.push(Output::Send(transfer.to, request));
        }
    }

    pub(crate) fn on_timeout_now(&mut self, from: NodeId, request: TimeoutNow) {
        let asked_by_leader = request.term == self.hard.term && self.leader == Some(from);
        if asked_by_leader && matches!(self.role, Role::Follower) && self.may_campaign() {
            self.start_election(VoteKind::Transfer);
        }
    }

    /// Best candidate for a transfer: in touch, of at least this priority, and with the longest log.
    fn transfer_candidate(&self, priority_min: u32) -> Option<NodeId> {
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
        let transfer_candidate =
            leader.peers.iter().filter(fit).max_by_key(|(id, peer)| (priority(**id), peer.matched));
        transfer_candidate.map(|(id, _)| *id)
    }

    /// Transfers leadership, or steps down at once if there is no candidate.
    pub(crate) fn transfer_or_step_down(&mut self) {
        let Some(transfer_candidate) = self.transfer_candidate(0) else {
            return self.become_follower(self.hard.term, None);
        };
        if matches!(&self.role, Role::Leader(leader) if leader.transfer.is_none()) {
            self.start_transfer(None, transfer_candidate);
        }
    }

    /// At every heartbeat: transfers leadership to a voter of higher priority that has caught up.
    pub(crate) fn transfer_to_preferred(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        let own = self.log.membership().get(self.config.id).map_or(0, |member| member.priority);
        let idle = leader.transfer.is_none() && leader.change.is_none() && self.now >= leader.next_transfer;
        if !idle || !leader.reads.has_committed() {
            return;
        }
        if let Some(transfer_candidate) = own.checked_add(1).and_then(|above| self.transfer_candidate(above))
        {
            self.start_transfer(None, transfer_candidate);
        }
    }

    /// Reports success to the requester of the transfer, because this node is not leader any more.
    pub(crate) fn end_transfer(&mut self, transfer: Option<Transfer>) {
        if let Some(token) = transfer.and_then(|transfer| transfer.token) {
            self.outputs.push(Output::TransferEnded(token, Ok(())));
        }
    }
}

/// Election timeouts that the leader waits after a failed transfer before it starts another one by itself.
const TRANSFER_PAUSE: u32 = 10;
