//! Linearizable reads without log entries: ReadIndex (D §6.4), batched; by lease (D §6.4.1); on followers.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use consensus_core::{LogIndex, NodeId, ReadIndexRequest, ReadIndexResponse, Term};
use serde::{Deserialize, Serialize};

use crate::{
    Output, Raft, Reply, Time,
    model::{Names, name},
    raft::{Leader, Role},
    replication::Send,
};

/// Reads that wait on a leader.
///
/// 1. A read arrives and waits for the leader to have committed in its term ("new").
/// 2. The commit index is noted, and at the end of the turn one heartbeat round begins for all that came ("noted").
/// 3. A quorum answers that round or a later one: the leader still led when it noted the index (I9).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Reads {
    /// The first entry of the leader's term; only when it is committed is the commit index up to date.
    term_start: LogIndex,
    committed: Option<LogIndex>,
    new: Vec<Reader>,
    noted: VecDeque<Noted>,
    /// When the rounds began that no quorum has answered yet.
    rounds: VecDeque<(u64, Time)>,
    /// When the latest round began that a quorum has answered: the lease counts from there.
    confirmed: Option<Time>,
}

/// Who wants to read.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Reader {
    /// A client of this node, by token.
    Here(u64),
    /// A follower, by its question's id.
    At(NodeId, u64),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Noted {
    reader: Reader,
    index: LogIndex,
    round: u64,
}

impl Reader {
    fn ready(self, term: Term, index: LogIndex) -> Output {
        match self {
            Self::Here(token) => Output::ReadReady(token, index),
            Self::At(node, id) => answer(node, term, id, Some(index)),
        }
    }

    fn refused(self, term: Term) -> Output {
        match self {
            Self::Here(token) => Output::ReadRefused(token),
            Self::At(node, id) => answer(node, term, id, None),
        }
    }
}

fn answer(to: NodeId, term: Term, id: u64, index: Option<LogIndex>) -> Output {
    Output::Send(to, Reply::ReadIndexResponse(ReadIndexResponse { term, id, index }))
}

impl Reader {
    fn digest(self, names: Names<'_>, hasher: &mut impl Hasher) {
        match self {
            Self::Here(token) => (0, token).hash(hasher),
            Self::At(node, id) => (1, name(node, names), id).hash(hasher),
        }
    }
}

impl Reads {
    pub(crate) fn move_times(&mut self, moved: impl Fn(Time) -> Time) {
        self.rounds.iter_mut().for_each(|(_, began)| *began = moved(*began));
        self.confirmed = self.confirmed.map(moved);
    }

    /// When rounds began matters to leases alone.
    pub(crate) fn forget_lease(&mut self) {
        self.rounds.clear();
        self.confirmed = None;
    }

    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        let Self { term_start, committed, new, noted, rounds, confirmed } = self;
        (term_start, committed, rounds, confirmed, new.len()).hash(hasher);
        new.iter().for_each(|reader| reader.digest(names, hasher));
        for Noted { reader, index, round } in noted {
            reader.digest(names, hasher);
            (index, round).hash(hasher);
        }
    }

    pub(crate) fn new(term_start: LogIndex) -> Self {
        let (new, noted, rounds) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { term_start, committed: None, new, noted, rounds, confirmed: None }
    }

    pub(crate) fn committed(&mut self, index: LogIndex) {
        if index >= self.term_start {
            self.committed = Some(index);
        }
    }

    /// Whether the leader has committed in its term.
    pub(crate) fn has_committed(&self) -> bool {
        self.committed.is_some()
    }

    pub(crate) fn into_refusals(self, term: Term) -> impl Iterator<Item = Output> {
        self.noted.into_iter().map(|read| read.reader).chain(self.new).map(move |reader| reader.refused(term))
    }
}

impl Leader {
    /// Begins a heartbeat round; its answers prove that this node led at `now`.
    pub(crate) fn begin_round(&mut self, now: Time) {
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
            Role::Leader(leader) => leader.reads.new.push(Reader::Here(token)),
            _ if self.leader.is_some() => self.asking.new.push(token),
            _ => self.outputs.push(Output::ReadRefused(token)),
        }
    }

    /// On a leader: when the latest round began that a quorum has answered; it led then.
    #[must_use]
    pub fn confirmed_at(&self) -> Option<Time> {
        match &self.role {
            Role::Leader(leader) => leader.reads.confirmed,
            _ => None,
        }
    }

    /// Whether no other node can lead yet: a quorum has been patient with this leader since less than an election
    /// timeout, as the fastest clock that is allowed for counts it (I15).
    fn has_lease(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let drift = self.config.lease_drift_percent;
        let lease = self.config.election_timeout * (100 - drift) / (100 + drift);
        let holds = leader.reads.confirmed.is_some_and(|began| self.now < began + lease);
        drift > 0 && holds && !leader.lease_void && leader.reads.has_committed()
    }

    pub(crate) fn on_read_index_request(&mut self, from: NodeId, request: ReadIndexRequest) {
        match &mut self.role {
            Role::Leader(leader) => leader.reads.new.push(Reader::At(from, request.id)),
            _ => self.outputs.push(answer(from, self.hard.term, request.id, None)),
        }
    }

    /// At the end of a turn: one round, or one question, for all reads that came in it.
    pub(crate) fn begin_read_round(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return self.ask_leader() };
        let Some(index) = leader.reads.committed.filter(|_| !leader.reads.new.is_empty()) else { return };
        leader.begin_round(self.now);
        let round = leader.round;
        let reads = &mut leader.reads;
        reads.noted.extend(reads.new.drain(..).map(|reader| Noted { reader, index, round }));
        self.broadcast(Send::Round);
        self.confirm_reads();
    }

    pub(crate) fn confirm_reads(&mut self) {
        let term = self.hard.term;
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.reads.rounds.is_empty() && leader.reads.noted.is_empty() {
            return;
        }
        let Some(round) = leader.quorum_round(self.config.id, self.log.membership()) else { return };
        while let Some((_, began)) = pop_front_if(&mut leader.reads.rounds, |(begun, _)| *begun <= round) {
            leader.reads.confirmed = Some(began);
        }
        while let Some(read) = pop_front_if(&mut leader.reads.noted, |read| read.round <= round) {
            self.outputs.push(read.reader.ready(term, read.index));
        }
    }
}

/// What a follower asks the leader, on behalf of its clients.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Asking {
    new: Vec<u64>,
    asked: VecDeque<Question>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Question {
    id: u64,
    tokens: Vec<u64>,
    deadline: Time,
}

impl Asking {
    pub(crate) fn move_times(&mut self, moved: impl Fn(Time) -> Time) {
        self.asked.iter_mut().for_each(|question| question.deadline = moved(question.deadline));
    }

    pub(crate) fn digest(&self, hasher: &mut impl Hasher) {
        let Self { new, asked } = self;
        new.hash(hasher);
        asked.iter().for_each(|Question { id, tokens, deadline }| (id, tokens, deadline).hash(hasher));
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.asked.front().map(|question| question.deadline)
    }
}

// The follower's side.
impl Raft {
    fn ask_leader(&mut self) {
        let Some(leader) = self.leader.filter(|_| !self.asking.new.is_empty()) else { return };
        // Drawn, not counted: the late answer to a question of this node's last life must not fit one of this life.
        let (id, tokens) = (self.random.next(), std::mem::take(&mut self.asking.new));
        self.asking.asked.push_back(Question {
            id,
            tokens,
            deadline: self.now + self.config.election_timeout,
        });
        let request = Reply::ReadIndexRequest(ReadIndexRequest { term: self.hard.term, id });
        self.outputs.push(Output::Send(leader, request));
    }

    pub(crate) fn on_read_index_response(&mut self, from: NodeId, response: ReadIndexResponse) {
        let asked = self.asking.asked.iter().position(|question| question.id == response.id);
        let Some(at) = asked.filter(|_| self.leader == Some(from)) else { return };
        let Some(question) = self.asking.asked.remove(at) else { return };
        self.outputs.extend(question.tokens.into_iter().map(|token| match response.index {
            Some(index) => Output::ReadReady(token, index),
            None => Output::ReadRefused(token),
        }));
    }

    /// Questions that were not answered, or whose answer was lost, end.
    pub(crate) fn expire_questions(&mut self) {
        while let Some(question) =
            pop_front_if(&mut self.asking.asked, |question| question.deadline <= self.now)
        {
            self.outputs.extend(question.tokens.into_iter().map(Output::ReadRefused));
        }
    }

    pub(crate) fn drop_questions(&mut self) {
        let asked = std::mem::take(&mut self.asking.asked).into_iter().flat_map(|question| question.tokens);
        let new = std::mem::take(&mut self.asking.new);
        self.outputs.extend(asked.chain(new).map(Output::ReadRefused));
    }
}

fn pop_front_if<T>(queue: &mut VecDeque<T>, is_due: impl Fn(&T) -> bool) -> Option<T> {
    if queue.front().is_some_and(is_due) { queue.pop_front() } else { None }
}
