//! Leader election (§5.2, §5.4.1) with pre-vote (D §9.6), leader stickiness (D §4.2.3) and check-quorum (D §6.2).

use std::collections::BTreeSet;

use consensus_core::{LogId, NodeId, Term, VoteKind, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use crate::{
    EntryInfo, Output, Raft, Reply, Time,
    model::{Names, name},
    persist::Held,
    progress::Progress,
    raft::{Leader, Role},
    reads::Reads,
};

/// Who is for a candidate; a set, so that a duplicated answer counts once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ballots(BTreeSet<NodeId>);

impl Ballots {
    /// As a set of bits.
    pub(crate) fn digest(&self, names: Names<'_>) -> u64 {
        self.0.iter().map(|id| 1 << name(*id, names)).sum()
    }
}

impl Raft {
    pub(crate) fn reset_election_deadline(&mut self) {
        let timeout = self.config.election_timeout;
        self.election_deadline = self.now + timeout + self.random.below(timeout);
    }

    /// A leader whose process has ended need not be waited for. Leases hold while its voters are patient, whatever they see
    /// (I15); without them a follower is patient only to leave a leader undisturbed that a majority hears, and a majority
    /// that is still in touch with it refuses the pre-vote.
    pub(crate) fn on_disconnected(&mut self, node: NodeId) {
        if self.leader != Some(node) {
            return;
        }
        self.set_leader(None);
        let timeout = self.config.election_timeout;
        let mut patient_until = self.now;
        if self.config.lease_drift_percent > 0 {
            patient_until = self.leader_heard.map_or(self.now, |heard| self.now.max(heard + timeout));
        } else {
            self.leader_heard = None;
        }
        // The others notice at the same time, or a little later: who asks before them is refused, and who asks with them may
        // split the votes.
        let deadline = patient_until + timeout / 16 + self.random.below(timeout / 4);
        self.election_deadline = self.election_deadline.min(deadline);
    }

    /// Learners and witnesses do not stand, nor does a node that is stalled, whose log and state are being replaced, or whose disk
    /// is not the one that its configuration knows. Who is
    /// to leave does while that is not committed: it may be the only one that has all that is (D §4.2.2).
    pub(crate) fn may_campaign(&self) -> bool {
        if self.stalled {
            return false;
        }
        let own = self.config.id;
        let (at, membership) = self.log.newest_membership();
        let may =
            membership.can_lead(own) || (at > self.commit && self.log.membership_at(at.prev()).can_lead(own));
        // Nobody would count its vote for itself (I14).
        let is_known = membership.trusts(own, self.storage);
        may && is_known
            && !self.config.witness
            && self.hard.installing.is_none()
            && self.hard.lost_through.is_none()
            && !self.is_joining()
    }

    /// How far this node's log goes, or went before damage: what it has acknowledged ends there (I16).
    fn acknowledged(&self) -> LogId {
        let lost = self.hard.lost_through.unwrap_or(LogId::ZERO);
        lost.max(self.log.last())
    }

    pub(crate) fn campaign(&mut self) {
        self.reset_election_deadline();
        self.set_leader(None);
        if self.membership().is_only_voter(self.config.id) {
            self.stand(VoteKind::Vote);
        } else {
            self.role = Role::PreCandidate(Ballots(BTreeSet::from([self.config.id])));
            self.ask_for_votes(VoteKind::PreVote);
        }
    }

    /// Becomes a candidate: a new term and a vote for itself, which nobody hears of before it is durable (I1).
    pub(crate) fn stand(&mut self, kind: VoteKind) {
        self.set_leader(None);
        self.hard.term = self.hard.term.next();
        self.hard.voted_for = Some(self.config.id);
        self.writes.hard_state();
        self.role = Role::Candidate(Ballots::default());
        self.reset_election_deadline();
        let own = self.vote(VoteKind::Vote, self.hard.term, true);
        self.when_durable(Held::Send(self.config.id, own));
        self.ask_for_votes(kind);
    }

    fn vote(&self, kind: VoteKind, term: Term, granted: bool) -> Reply {
        Reply::VoteResponse(VoteResponse { kind, term, granted, storage: self.storage })
    }

    fn ask_for_votes(&mut self, kind: VoteKind) {
        let term = match kind {
            VoteKind::PreVote => self.hard.term.next(),
            VoteKind::Vote | VoteKind::Transfer => self.hard.term,
        };
        let (last_log, storage) = (self.log.last(), self.storage);
        let membership = self.membership().clone();
        let own = self.config.id;
        for voter in membership.voters().filter(|id| *id != own) {
            let voter_storage = membership.get(voter).and_then(|member| member.storage);
            let request = VoteRequest { kind, term, last_log, storage, voter_storage };
            let request = Reply::VoteRequest(request);
            match kind {
                VoteKind::PreVote => self.outputs.push(Output::Send(voter, request)),
                VoteKind::Vote | VoteKind::Transfer => self.when_durable(Held::Send(voter, request)),
            }
        }
    }

    /// Whether a leader is at work as far as this node can tell; then it lets nobody disturb it (I12).
    fn has_live_leader(&self) -> bool {
        let heard = self.leader_heard.is_some_and(|heard| self.now < heard + self.config.election_timeout);
        // Leases count on this patience even if the leader was lost sight of (I15).
        let patient = self.leader.is_some() || self.config.lease_drift_percent > 0;
        matches!(self.role, Role::Leader(_)) || (patient && heard)
    }

    pub(crate) fn on_vote_request(&mut self, from: NodeId, request: VoteRequest) {
        let refuse = |raft: &mut Self| {
            let response = raft.vote(request.kind, raft.hard.term, false);
            raft.outputs.push(Output::Send(from, response));
        };
        // The leader itself wants a candidate of a transfer to be heard (D §4.2.3).
        let undisturbed = self.has_live_leader() || self.now < self.patient_until;
        if request.term < self.hard.term || (undisturbed && request.kind != VoteKind::Transfer) {
            return refuse(self);
        }
        if !self.log.membership().trusts(from, request.storage) || !self.may_vote(request.voter_storage) {
            return refuse(self); // I14, I18
        }
        let up_to_date = request.last_log >= self.acknowledged(); // §5.4.1
        match request.kind {
            VoteKind::PreVote if request.term > self.hard.term && up_to_date => {
                let response = self.vote(VoteKind::PreVote, request.term, true);
                self.outputs.push(Output::Send(from, response));
            }
            VoteKind::PreVote => refuse(self),
            VoteKind::Vote | VoteKind::Transfer => {
                if request.term > self.hard.term {
                    self.become_follower(request.term, None);
                }
                let free = self.hard.voted_for.is_none_or(|id| id == from) && self.leader.is_none();
                if !(free && up_to_date && matches!(self.role, Role::Follower)) {
                    return refuse(self);
                }
                if self.hard.voted_for.is_none() {
                    self.hard.voted_for = Some(from);
                    self.writes.hard_state();
                }
                self.reset_election_deadline();
                let response = self.vote(VoteKind::Vote, request.term, true);
                self.when_durable(Held::Send(from, response));
            }
        }
    }

    pub(crate) fn on_vote_response(&mut self, from: NodeId, response: VoteResponse) {
        if !self.log.membership().trusts(from, response.storage) {
            return; // I14
        }
        if !response.granted {
            // A voter that is ahead is heard in a pre-vote too, or two nodes could refuse each other for ever.
            if response.term > self.hard.term {
                self.become_follower(response.term, None);
            }
            return;
        }
        let (term, next) = (self.hard.term, self.hard.term.next());
        let membership = self.log.membership().clone();
        match &mut self.role {
            Role::PreCandidate(ballots) if response.kind == VoteKind::PreVote && response.term == next => {
                ballots.0.insert(from);
                if membership.has_quorum(&ballots.0) {
                    self.stand(VoteKind::Vote);
                }
            }
            Role::Candidate(ballots) if response.kind == VoteKind::Vote && response.term == term => {
                ballots.0.insert(from);
                if membership.has_quorum(&ballots.0) {
                    self.become_leader();
                }
            }
            _ => {} // An answer to an earlier question.
        }
    }

    fn become_leader(&mut self) {
        let next = self.log.last().index.next();
        let peers = self.membership().all_members().filter(|(id, _)| *id != self.config.id);
        let peers = peers.map(|(id, _)| (id, Progress::new(next, self.now, 0))).collect();
        self.role = Role::Leader(Box::new(Leader {
            peers,
            heartbeat_deadline: self.now + self.config.heartbeat_interval,
            round: 0,
            reads: Reads::new(next),
            change: None,
            transfer: None,
            next_transfer: self.now,
            lease_void: false,
        }));
        self.set_leader(Some(self.config.id));
        if let Some(membership) = self.founding_membership() {
            return self.append_membership(membership);
        }
        let id = self.log.push(EntryInfo { term: self.hard.term, size_bytes: BLANK_BYTES, membership: None });
        self.outputs.push(Output::AppendedBlank(id));
    }

    /// A leader that a quorum does not answer is none (D §6.2): it would keep its clients waiting, and what it says of
    /// itself would keep a new one from being elected.
    pub(crate) fn has_active_quorum(&self, leader: &Leader) -> bool {
        let own = self.config.id;
        let heard_from = |peer: &Progress| if peer.counts() { peer.heard } else { Time::ZERO };
        let heard =
            |id| if id == own { self.now } else { leader.peers.get(&id).map_or(Time::ZERO, heard_from) };
        let quorum = self.membership().quorum_value(heard);
        quorum.is_some_and(|heard| heard + self.config.election_timeout > self.now)
    }
}

/// [`Entry::size_bytes`](consensus_core::Entry::size_bytes) of a blank entry.
const BLANK_BYTES: u64 = 32;
