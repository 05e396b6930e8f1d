//! Linearizable reads without log entries: batched ReadIndex (D §6.4), lease reads (D §6.4.1), and both from followers.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use consensus_core::{LogIndex, NodeId, ReadIndexRequest, ReadIndexResponse, Term};
use serde::{Deserialize, Serialize};

use crate::{
    ControlMessage, Output, Raft, Time,
    model::{Names, name},
    raft::{Leader, Role},
    replication::SendReason,
};

/// Reads that wait on a leader.
///
/// 1. A read arrives and waits until the leader has committed an entry of its term (`new`).
/// 2. The commit index is recorded, and at the end of the turn one heartbeat round starts for all new reads (`pending`).
/// 3. A quorum responds to that round or a later one: the node was still leader when it recorded the index (I9).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reads {
    /// First entry of the leader's term. The commit index is up to date once this entry is committed.
    term_start: LogIndex,
    committed: Option<LogIndex>,
    new: Vec<ReadOrigin>,
    pending: VecDeque<PendingRead>,
    /// Rounds that no quorum has responded to yet, with their start times.
    rounds: VecDeque<(u64, Time)>,
    /// Start of the latest round that a quorum has responded to; the lease counts from then.
    confirmed: Option<Time>,
}

/// Origin of a read.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum ReadOrigin {
    /// A client of this node, by token.
    Local(u64),
    /// A follower, and the id of its request.
    Follower(NodeId, u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PendingRead {
    origin: ReadOrigin,
    index: LogIndex,
    round: u64,
}

impl ReadOrigin {
    fn ready(self, term: Term, index: LogIndex) -> Output {
        match self {
            Self::Local(token) => Output::ReadReady(token, index),
            Self::Follower(node, id) => read_index_response(node, term, id, Some(index)),
        }
    }

    fn refused(self, term: Term) -> Output {
        match self {
            Self::Local(token) => Output::ReadRefused(token),
            Self::Follower(node, id) => read_index_response(node, term, id, None),
        }
    }
}

fn read_index_response(to: NodeId, term: Term, id: u64, index: Option<LogIndex>) -> Output {
    Output::Send(to, ControlMessage::ReadIndexResponse(ReadIndexResponse { term, id, index }))
}

impl ReadOrigin {
    fn digest(self, names: Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Local(token) => (0, token).hash(hasher),
            Self::Follower(node, id) => (1, name(node, names), id).hash(hasher),
        }
    }
}

impl Reads {
    pub(crate) fn move_times(&mut self, moved: impl Fn(Time) -> Time) {
        self.rounds.iter_mut().for_each(|(_, began)| *began = moved(*began));
        self.confirmed = self.confirmed.map(moved);
    }

    /// Clears the start times of rounds, which matter only to leases.
    pub(crate) fn clear_lease(&mut self) {
        self.rounds.clear();
        self.confirmed = None;
    }

    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        let Self { term_start, committed, new, pending, rounds, confirmed } = self;
        (term_start, committed, rounds, confirmed, new.len()).hash(hasher);
        new.iter().for_each(|origin| origin.digest(names, hasher));
        for PendingRead { origin, index, round } in pending {
            origin.digest(names, hasher);
            (index, round).hash(hasher);
        }
    }

    pub(crate) fn new(term_start: LogIndex) -> Self {
        let (new, pending, rounds) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { term_start, committed: None, new, pending, rounds, confirmed: None }
    }

    pub(crate) fn committed(&mut self, index: LogIndex) {
        if index >= self.term_start {
            self.committed = Some(index);
        }
    }

    /// Whether the leader has committed an entry of its term.
    pub(crate) fn has_committed(&self) -> bool {
        self.committed.is_some()
    }

    pub(crate) fn into_refusals(self, term: Term) -> impl Iterator<Item = Output> {
        self.pending
            .into_iter()
            .map(|read| read.origin)
            .chain(self.new)
            .map(move |origin| origin.refused(term))
    }
}

impl Leader {
    /// Starts a heartbeat round. Responses to it prove that this node was leader at `now`.
    pub(crate) fn start_round(&mut self, now: Time) {
        self.round += 1;
        self.reads.rounds.push_back((self.round, now));
    }
}

// The leader's side.
impl Raft {
    pub(crate) fn on_read(&mut self, token: u64, lease: bool) {
        if lease && self.has_lease() {
            return self.outputs.push(Output::ReadReady(token, self.commit));
        }
        match &mut self.role {
            Role::Leader(leader) => leader.reads.new.push(ReadOrigin::Local(token)),
            _ if self.leader.is_some() => self.forwarded.new.push(token),
            _ => self.outputs.push(Output::ReadRefused(token)),
        }
    }

    /// On a leader: start of the latest round that a quorum has responded to. The node was leader at that time.
    #[must_use]
    pub fn confirmed_at(&self) -> Option<Time> {
        match &self.role {
            Role::Leader(leader) => leader.reads.confirmed,
            _ => None,
        }
    }

    /// Whether a quorum acknowledged this leader so recently that no other node can be elected yet, even by the fastest
    /// clock that the configured drift allows (I15).
    fn has_lease(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let drift = self.config.lease_drift_percent;
        let lease = self.config.election_timeout * (100 - drift) / (100 + drift);
        let holds = leader.reads.confirmed.is_some_and(|began| self.now < began + lease);
        drift > 0 && holds && !leader.lease_void && leader.reads.has_committed()
    }

    pub(crate) fn on_read_index_request(&mut self, from: NodeId, request: ReadIndexRequest) {
        match &mut self.role {
            Role::Leader(leader) => leader.reads.new.push(ReadOrigin::Follower(from, request.id)),
            _ => self.outputs.push(read_index_response(from, self.hard.term, request.id, None)),
        }
    }

    /// At the end of a turn: starts one round, or sends one read index request, for all reads that arrived in the turn.
    pub(crate) fn start_read_round(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return self.request_read_index() };
        let Some(index) = leader.reads.committed.filter(|_| !leader.reads.new.is_empty()) else { return };
        leader.start_round(self.now);
        let round = leader.round;
        let reads = &mut leader.reads;
        reads.pending.extend(reads.new.drain(..).map(|origin| PendingRead { origin, index, round }));
        self.broadcast(SendReason::ReadRound);
        self.confirm_reads();
    }

    pub(crate) fn confirm_reads(&mut self) {
        let term = self.hard.term;
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.reads.rounds.is_empty() && leader.reads.pending.is_empty() {
            return;
        }
        let Some(round) = leader.quorum_round(self.config.id, self.log.membership()) else { return };
        while let Some((_, began)) = pop_front_if(&mut leader.reads.rounds, |(begun, _)| *begun <= round) {
            leader.reads.confirmed = Some(began);
        }
        while let Some(read) = pop_front_if(&mut leader.reads.pending, |read| read.round <= round) {
            self.outputs.push(read.origin.ready(term, read.index));
        }
    }
}

/// Reads of a follower's clients that need a read index from the leader.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ForwardedReads {
    new: Vec<u64>,
    requested: VecDeque<ReadRequest>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ReadRequest {
    id: u64,
    tokens: Vec<u64>,
    deadline: Time,
}

impl ForwardedReads {
    pub(crate) fn move_times(&mut self, moved: impl Fn(Time) -> Time) {
        self.requested.iter_mut().for_each(|request| request.deadline = moved(request.deadline));
    }

    pub(crate) fn digest(&self, hasher: &mut impl Hasher) {
        let Self { new, requested } = self;
        new.hash(hasher);
        requested.iter().for_each(|ReadRequest { id, tokens, deadline }| (id, tokens, deadline).hash(hasher));
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.requested.front().map(|request| request.deadline)
    }
}

// The follower's side.
impl Raft {
    fn request_read_index(&mut self) {
        let Some(leader) = self.leader.filter(|_| !self.forwarded.new.is_empty()) else { return };
        // The id is random: a late response to a request of this node's earlier incarnation must not match a new request.
        let (id, tokens) = (self.random.next(), std::mem::take(&mut self.forwarded.new));
        self.forwarded.requested.push_back(ReadRequest {
            id,
            tokens,
            deadline: self.now + self.config.election_timeout,
        });
        let request = ControlMessage::ReadIndexRequest(ReadIndexRequest { term: self.hard.term, id });
        self.outputs.push(Output::Send(leader, request));
    }

    pub(crate) fn on_read_index_response(&mut self, from: NodeId, response: ReadIndexResponse) {
        let requested = self.forwarded.requested.iter().position(|request| request.id == response.id);
        let Some(at) = requested.filter(|_| self.leader == Some(from)) else { return };
        let Some(request) = self.forwarded.requested.remove(at) else { return };
        self.outputs.extend(request.tokens.into_iter().map(|token| match response.index {
            Some(index) => Output::ReadReady(token, index),
            None => Output::ReadRefused(token),
        }));
    }

    /// Refuses reads whose request or response was lost.
    pub(crate) fn expire_read_requests(&mut self) {
        while let Some(request) =
            pop_front_if(&mut self.forwarded.requested, |request| request.deadline <= self.now)
        {
            self.outputs.extend(request.tokens.into_iter().map(Output::ReadRefused));
        }
    }

    pub(crate) fn refuse_forwarded_reads(&mut self) {
        let requested =
            std::mem::take(&mut self.forwarded.requested).into_iter().flat_map(|request| request.tokens);
        let new = std::mem::take(&mut self.forwarded.new);
        self.outputs.extend(requested.chain(new).map(Output::ReadRefused));
    }
}

fn pop_front_if<T>(queue: &mut VecDeque<T>, is_due: impl Fn(&T) -> bool) -> Option<T> {
    if queue.front().is_some_and(is_due) { queue.pop_front() } else { None }
}
