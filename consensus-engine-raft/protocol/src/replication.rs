//! Log replication and commitment (§5.3, §5.4.2).

use consensus_core::{AppendOutcome, AppendResponse, LogId, LogIndex, MemberKind, Membership, NodeId, Term};

use crate::{
    Append, EntryInfo, Output, Raft, Reply,
    persist::Held,
    progress::{Progress, State},
    raft::{Leader, Role},
};

// The leader's side.
impl Raft {
    pub(crate) fn append_proposals(&mut self, sizes_bytes: &[u64]) -> Option<LogId> {
        let leads = matches!(&self.role, Role::Leader(leader) if leader.transfer.is_none());
        if !leads {
            return None;
        }
        let first = self.log.last().index.next();
        let term = self.hard.term;
        self.log.extend(sizes_bytes.iter().map(|size_bytes| EntryInfo {
            term,
            size_bytes: *size_bytes,
            membership: None,
        }));
        Some(LogId { term, index: first })
    }

    pub(crate) fn tick_leader(&mut self) {
        let Role::Leader(leader) = &self.role else { return };
        if self.now < leader.heartbeat_deadline {
            return;
        }
        if !self.has_active_quorum(leader) {
            self.become_follower(self.hard.term, None);
            return;
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.heartbeat_deadline = self.now + self.config.heartbeat_interval;
            leader.begin_round(self.now);
        }
        self.broadcast(Send::Heartbeat);
        self.confirm_reads();
        self.drive_transfer();
        self.improve_membership();
        self.prefer_heir();
    }

    /// Sends what is new to those who are ready for it.
    pub(crate) fn replicate(&mut self) {
        self.broadcast(Send::IfNew);
    }

    pub(crate) fn broadcast(&mut self, send: Send) {
        let Role::Leader(leader) = &mut self.role else { return };
        // Taken out for the while, so that each peer's progress can change beside the rest.
        let mut peers = std::mem::take(&mut leader.peers);
        let round = leader.round;
        for (id, peer) in &mut peers {
            self.send_to(*id, peer, round, send);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.peers = peers;
        }
    }

    fn send_to(&mut self, id: NodeId, peer: &mut Progress, round: u64, send: Send) {
        let purged = self.log.purged();
        let log_is_gone = peer.next <= purged.index;
        // Who is silent is sent none: by the time it is back, that would be an old one.
        let in_touch = peer.in_touch(&self.config, self.now);
        if log_is_gone && in_touch && !matches!(peer.state, State::Snapshot) {
            peer.state = State::Snapshot;
            self.outputs.push(Output::SendSnapshot(id));
        }
        // A witness that had an entry which this node's crash takes back would refuse its vote to all who lack it, and
        // nobody could ever lead with it.
        let mut end = self.log.last().index;
        if end > self.durable
            && self.log.membership().get(id).is_some_and(|member| member.kind == MemberKind::Witness)
        {
            end = self.durable;
        }
        let mut sent = false;
        match &mut peer.state {
            State::Snapshot => {}
            _ if log_is_gone => {}
            State::Probe { sent: waiting } => {
                if !*waiting || send == Send::Heartbeat {
                    *waiting = true;
                    let (last, _) = self.run_after(peer.next.prev(), end);
                    self.push_append(id, peer.next.prev(), last, round);
                    sent = true;
                }
            }
            State::Replicate(inflight) => {
                while peer.next <= end && inflight.has_room(&self.config) {
                    let (last, bytes) = self.run_after(peer.next.prev(), end);
                    inflight.push(last, bytes);
                    self.push_append(id, peer.next.prev(), last, round);
                    peer.next = last.next();
                    sent = true;
                }
            }
        }
        if !sent && send != Send::IfNew {
            // Whom only a snapshot helps is told that the leader is there, no more.
            let prev = if log_is_gone || matches!(peer.state, State::Snapshot) {
                purged.index
            } else {
                peer.next.prev()
            };
            self.push_append(id, prev, prev, round);
        }
    }

    /// The entries after `after` that go into one message, up to `end` at most.
    fn run_after(&self, after: LogIndex, end: LogIndex) -> (LogIndex, u64) {
        let entries_max = self.config.append_entries_max.min(end.since(after) as usize);
        self.log.run_after(after, entries_max, self.config.append_bytes_max)
    }

    fn push_append(&mut self, to: NodeId, prev: LogIndex, last: LogIndex, round: u64) {
        let prev = self.log.id_at(prev).expect("a peer whose entries are purged is sent a snapshot instead");
        let append = Append { term: self.hard.term, prev, last, commit: self.commit, round };
        self.outputs.push(Output::SendAppend(to, append));
    }

    pub(crate) fn on_append_response(&mut self, from: NodeId, response: AppendResponse) {
        if response.term > self.hard.term {
            if self.log.membership().trusts(from, response.storage) {
                self.become_follower(response.term, None);
            }
            return;
        }
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&from) else { return };
        if response.round < peer.first_round {
            return; // To a message from before it was added (I19).
        }
        if response.term < self.hard.term || response.round > leader.round {
            return; // Of an earlier term, whose acknowledgements mean other entries; or of nobody's.
        }
        if !peer.turn_to(&response) {
            return;
        }
        peer.heard = self.now;
        peer.note_sender(self.log.membership(), from, &response);
        let newest = response.round > peer.round;
        peer.round = peer.round.max(response.round);
        match response.outcome {
            AppendOutcome::Accepted { matched } if matched <= self.log.last().index => {
                peer.accepted(matched, self.log.purged().index);
            }
            AppendOutcome::Accepted { .. } => {}
            AppendOutcome::Rejected { prev, hint } => match peer.state {
                // A message was lost or overtaken: look again from what is known.
                State::Replicate(_) if prev > peer.matched => peer.probe_from(peer.matched.next()),
                State::Probe { .. } if prev == peer.next.prev() && prev > peer.matched => {
                    let purged = self.log.purged().index;
                    // Not even where this log begins do the two agree: only a snapshot helps (§7). Otherwise they skip
                    // over each other's terms, so that each round trip passes a whole term (§5.3).
                    peer.probe_from(if prev <= purged {
                        purged
                    } else {
                        self.log.last_not_after(hint.index.min(prev.prev()), hint.term).index.next()
                    });
                }
                // It had to cut its log: what it acknowledged counts no more, and it is asked again (I16).
                State::Replicate(_) | State::Probe { .. }
                    if newest && prev <= peer.matched && hint.index < prev =>
                {
                    peer.matched = LogIndex::ZERO;
                    peer.probe_from(hint.index.next());
                }
                _ => {} // Late: of a state that has passed.
            },
        }
        let matched = peer.matched;
        self.reached(matched);
        self.confirm_reads();
        self.drive_transfer();
    }

    pub(crate) fn on_send_failed(&mut self, to: NodeId) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&to) else { return };
        if matches!(peer.state, State::Replicate(_)) {
            peer.probe_from(peer.matched.next());
            // Not at once again: the next heartbeat asks.
            peer.state = State::Probe { sent: true };
        }
    }

    /// One more disk, a peer's or this node's, holds the log up to `index`.
    pub(crate) fn reached(&mut self, index: LogIndex) {
        if index > self.commit {
            self.advance_commit();
        }
        self.apply_committed();
    }

    /// Commits what is durable on a quorum, counting this node's own disk like any other, if it is of this term (I4).
    pub(crate) fn advance_commit(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        let (own, durable) = (self.config.id, self.durable);
        let reached = |id| {
            if id == own {
                durable
            } else {
                leader.peers.get(&id).map_or(LogIndex::ZERO, Progress::counted_match)
            }
        };
        let Some(index) = self.log.membership().quorum_value(reached) else { return };
        if index > self.commit && self.log.id_at(index).is_some_and(|id| id.term == self.hard.term) {
            self.commit = index;
            leader.reads.committed(index);
            self.drive_change();
        }
    }
}

/// Why one sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Send {
    /// Entries are new.
    IfNew,
    /// A read round begins: at least an empty message.
    Round,
    /// The heartbeat is due: at least an empty message, and a probe that was perhaps lost is repeated.
    Heartbeat,
}

// The follower's side.
impl Raft {
    pub(crate) fn on_append(&mut self, from: NodeId, append: Append, entries: Vec<EntryInfo>) {
        let is_stale = append.term < self.hard.term;
        // Its refusal tells of a later term, which the sender may lead again by the time it comes: it must answer no round
        // of that one (I9).
        let answered_round = if is_stale { 0 } else { append.round };
        let answer = |raft: &Self, outcome| {
            let (term, round, storage) = (raft.hard.term, answered_round, raft.storage);
            let joining = raft.is_joining();
            Reply::AppendResponse(AppendResponse { term, round, outcome, storage, joining })
        };
        let rejected = |hint| AppendOutcome::Rejected { prev: append.prev.index, hint };
        if is_stale {
            let response = answer(self, rejected(self.log.last()));
            self.outputs.push(Output::Send(from, response));
            return;
        }
        let Some(has_membership) = survey(&append, &entries) else { return };
        if !self.follow(from, append.term) {
            return;
        }
        // A heartbeat, or the first message of a round: the leader waits to hear that it leads still, not for a disk.
        let round = (append.term, append.round);
        let at_once = entries.is_empty() || (append.round > 0 && round > self.answered_round);
        self.answered_round = self.answered_round.max(round);
        if let Some(contradiction) = self.find_contradiction(from, &append, &entries, has_membership) {
            return self.contradict(contradiction);
        }
        let fitted = self.take_entries(&append, entries);
        self.note_commit_of_leader(&append);
        match fitted {
            Ok(matched) if matched <= self.durable || at_once => {
                let durable = AppendOutcome::Accepted { matched: matched.min(self.durable) };
                let response = answer(self, durable);
                self.outputs.push(Output::Send(from, response));
                if matched > self.durable && append.last > append.prev.index {
                    self.when_durable(Held::Send(from, answer(self, AppendOutcome::Accepted { matched })));
                }
            }
            Ok(matched) => {
                self.when_durable(Held::Send(from, answer(self, AppendOutcome::Accepted { matched })));
            }
            Err(hint) => self.outputs.push(Output::Send(from, answer(self, rejected(hint)))),
        }
        self.apply_committed();
    }

    /// Acknowledges `from` as the leader of `term`, at least this node's. `false` if this node has heard of another leader of
    /// that term, or is it: with that it ends.
    pub(crate) fn follow(&mut self, from: NodeId, term: Term) -> bool {
        if term == self.hard.term && (from == self.config.id || !self.is_only_leader(from, term)) {
            return false;
        }
        self.become_follower(term, Some(from));
        self.followed = Some((term, from));
        self.note_vote_while_joining(from);
        self.leader_heard = Some(self.now);
        self.reset_election_deadline();
        true
    }

    /// Fits the entries into the log; returns up to where it now agrees with the leader's, or the hint of where it may.
    fn take_entries(&mut self, append: &Append, mut entries: Vec<EntryInfo>) -> Result<LogIndex, LogId> {
        if self.hard.installing.is_some() {
            return Err(self.log.purged()); // The log is about to be replaced.
        }
        let mut prev = append.prev;
        if prev.index < self.commit {
            // What is committed here is the same everywhere (I6); there may be no entries left to compare it with.
            let known = self.commit.since(prev.index) as usize;
            if entries.len() <= known {
                return Ok(self.commit);
            }
            entries.drain(..known);
            prev = self.log.id_at(self.commit).unwrap_or(prev);
        }
        if !self.log.contains(prev) {
            return Err(self.log.last_not_after(prev.index, prev.term));
        }
        let matched = LogIndex(prev.index.0 + entries.len() as u64);
        let mut agreed = prev.index;
        let mut rest = entries.into_iter().peekable();
        while rest.peek().is_some_and(|entry| self.holds(agreed.next(), entry)) {
            agreed = agreed.next();
            rest.next();
        }
        // Only a conflict removes anything (§5.3): an old message that ends earlier says nothing of what follows.
        if rest.peek().is_some() {
            assert!(agreed >= self.commit, "I6: entry {} is committed and contradicted", agreed.next());
            self.log.truncate_after(agreed);
            self.durable = self.durable.min(agreed);
            self.writes.truncate_after(agreed);
            self.log.extend(rest);
            self.outputs.push(Output::Replaced(agreed));
        }
        self.commit = self.commit.max(append.commit.min(matched));
        Ok(matched)
    }
}

/// Goes once through the entries of a message, most of which are new and of no interest one by one. Returns whether one of
/// them has a configuration; `None` if the message is not what any leader's obeys: as many entries as it says, terms that do
/// not decrease, none after its own.
fn survey(append: &Append, entries: &[EntryInfo]) -> Option<bool> {
    if append.last.0.checked_sub(append.prev.index.0) != Some(entries.len() as u64) {
        return None;
    }
    let (mut term, mut has_membership) = (append.prev.term, false);
    for entry in entries {
        if entry.term < term {
            return None;
        }
        term = entry.term;
        has_membership |= entry.membership.is_some();
    }
    (term <= append.term).then_some(has_membership)
}

impl Leader {
    /// The round that a quorum has answered, counting the leader itself.
    pub(crate) fn quorum_round(&self, own: NodeId, membership: &Membership) -> Option<u64> {
        membership.quorum_value(|id| {
            if id == own { self.round } else { self.peers.get(&id).map_or(0, Progress::counted_round) }
        })
    }
}
