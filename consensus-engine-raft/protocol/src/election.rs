//! Leader election (§5.2, §5.4.1) with pre-vote (D §9.6), leader stickiness (D §4.2.3) and check-quorum (D §6.2).

use std::collections::BTreeSet;

use consensus_core::{LogId, NodeId, Term, VoteKind, VoteRequest, VoteResponse};
use serde::{Deserialize, Serialize};

use crate::{
    ControlMessage, EntryInfo, Output, Raft, Time,
    model::{Names, name},
    persist::Deferred,
    progress::Progress,
    raft::{Leader, Role},
    reads::Reads,
};

/// Voters that granted a vote; a set, so that a duplicated response counts once.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Ballots(BTreeSet<NodeId>);

impl Ballots {
    /// Encodes the voters as a set of bits.
    pub(crate) fn digest(&self, names: Names<'_>) -> u64 {
        self.0.iter().map(|id| 1 << name(*id, names)).sum()
    }
}

impl Raft {
    pub(crate) fn reset_election_deadline(&mut self) {
        let timeout = self.config.election_timeout;
        self.election_deadline = self.now + timeout + self.random.below(timeout);
    }

    /// Campaigns soon, because the leader's process has ended. With leases the node waits until an election timeout after it
    /// last heard the leader, whatever it sees since (I15). Without leases it only waits so as not to disturb a leader that
    /// a majority still hears, and a majority that does refuses the pre-vote.
    pub(crate) fn on_disconnected(&mut self, node: NodeId) {
        if self.leader != Some(node) {
            return;
        }
        self.set_leader(None);
        let timeout = self.config.election_timeout;
        let mut no_votes_until = self.now;
        if self.config.lease_drift_percent > 0 {
            no_votes_until = self.leader_heard.map_or(self.now, |heard| self.now.max(heard + timeout));
        } else {
            self.leader_heard = None;
        }
        // The other nodes notice at the same time or a little later. A node that campaigns before them is refused; nodes
        // that campaign at the same time may split the votes.
        let deadline = no_votes_until + timeout / 16 + self.random.below(timeout / 4);
        self.election_deadline = self.election_deadline.min(deadline);
    }

    /// Whether this node may campaign. Learners and witnesses may not, nor a node that is stalled, whose log and state are
    /// being replaced, or whose disk is not the one that the configuration names. A member that is being removed may until
    /// its removal is committed, because it may be the only one that has all committed entries (D §4.2.2).
    pub(crate) fn may_campaign(&self) -> bool {
        if self.stalled {
            return false;
        }
        let own = self.config.id;
        let membership = self.log.membership();
        // The removal may be followed by the same configuration again, the first entry of a leader.
        let may = self.log.memberships_from(self.commit).any(|membership| membership.can_lead(own));
        // Other nodes would not count its vote for itself (I14).
        let is_known = membership.trusts(own, self.storage);
        may && is_known
            && !self.config.witness
            && self.hard.installing.is_none()
            && self.hard.lost_through.is_none()
            && !self.is_joining()
    }

    /// Last entry that this node may have acknowledged: the end of its log, or of its log before damage (I16).
    fn acknowledged(&self) -> LogId {
        let lost = self.hard.lost_through.unwrap_or(LogId::ZERO);
        lost.max(self.log.last())
    }

    pub(crate) fn campaign(&mut self) {
        self.reset_election_deadline();
        self.set_leader(None);
        if self.membership().is_only_voter(self.config.id) {
            self.start_election(VoteKind::Vote);
        } else {
            self.role = Role::PreCandidate(Ballots(BTreeSet::from([self.config.id])));
            self.ask_for_votes(VoteKind::PreVote);
        }
    }

    /// Starts an election: a new term and a vote for itself, which is durable before it counts or is sent (I1).
    pub(crate) fn start_election(&mut self, kind: VoteKind) {
        self.set_leader(None);
        self.hard.term = self.hard.term.next();
        self.hard.voted_for = Some(self.config.id);
        self.writes.hard_state();
        self.role = Role::Candidate(Ballots::default());
        self.reset_election_deadline();
        let own = self.vote(VoteKind::Vote, self.hard.term, true);
        self.when_durable(Deferred::Send(self.config.id, own));
        self.ask_for_votes(kind);
    }

    fn vote(&self, kind: VoteKind, term: Term, granted: bool) -> ControlMessage {
        ControlMessage::VoteResponse(VoteResponse { kind, term, granted, storage: self.storage })
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
            let request = ControlMessage::VoteRequest(request);
            match kind {
                VoteKind::PreVote => self.outputs.push(Output::Send(voter, request)),
                VoteKind::Vote | VoteKind::Transfer => self.when_durable(Deferred::Send(voter, request)),
            }
        }
    }

    /// Whether this node knows that a leader is active; it then grants no votes (I12).
    fn has_live_leader(&self) -> bool {
        let heard = self.leader_heard.is_some_and(|heard| self.now < heard + self.config.election_timeout);
        // Leases rely on this even if the node has lost contact with the leader (I15).
        let counts_on_leader = self.leader.is_some() || self.config.lease_drift_percent > 0;
        matches!(self.role, Role::Leader(_)) || (counts_on_leader && heard)
    }

    pub(crate) fn on_vote_request(&mut self, from: NodeId, request: VoteRequest) {
        let refuse = |raft: &mut Self| {
            let response = raft.vote(request.kind, raft.hard.term, false);
            raft.outputs.push(Output::Send(from, response));
        };
        // A candidate of a leadership transfer is allowed by the leader itself (D §4.2.3).
        let leader_protected = self.has_live_leader() || self.now < self.no_votes_until;
        if request.term < self.hard.term || (leader_protected && request.kind != VoteKind::Transfer) {
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
                self.when_durable(Deferred::Send(from, response));
            }
        }
    }

    pub(crate) fn on_vote_response(&mut self, from: NodeId, response: VoteResponse) {
        if !self.log.membership().trusts(from, response.storage) {
            return; // I14
        }
        if !response.granted {
            // A higher term counts in responses to pre-votes too, or two nodes could refuse each other for ever.
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
                    self.start_election(VoteKind::Vote);
                }
            }
            Role::Candidate(ballots) if response.kind == VoteKind::Vote && response.term == term => {
                ballots.0.insert(from);
                if membership.has_quorum(&ballots.0) {
                    self.become_leader();
                }
            }
            _ => {} // A response to an earlier request.
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
        if let Some(membership) = self.first_membership() {
            return self.append_membership(membership);
        }
        let id = self.log.push(EntryInfo { term: self.hard.term, size_bytes: BLANK_BYTES, membership: None });
        self.outputs.push(Output::AppendedBlank(id));
    }

    /// Whether a quorum responded within an election timeout. A leader without one steps down (D §6.2): otherwise its
    /// clients would wait, and its heartbeats would keep a new leader from being elected.
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
