//! Log replication and commitment (§5.3, §5.4.2).

use consensus_core::{AppendOutcome, AppendResponse, LogId, LogIndex, MemberKind, Membership, NodeId, Term};

use crate::{
    Append, ControlMessage, EntryInfo, Output, Raft,
    persist::Deferred,
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
            leader.start_round(self.now);
        }
        self.broadcast(SendReason::Heartbeat);
        self.confirm_reads();
        self.drive_transfer();
        self.update_membership();
        self.transfer_to_preferred();
    }

    /// Sends new entries to each peer that can accept them now.
    pub(crate) fn replicate(&mut self) {
        self.broadcast(SendReason::NewEntries);
    }

    pub(crate) fn broadcast(&mut self, send: SendReason) {
        let Role::Leader(leader) = &mut self.role else { return };
        // Moved out temporarily, so that each peer's progress can change while the rest of the state is borrowed.
        let mut peers = std::mem::take(&mut leader.peers);
        let round = leader.round;
        for (id, peer) in &mut peers {
            self.send_to(*id, peer, round, send);
        }
        if let Role::Leader(leader) = &mut self.role {
            leader.peers = peers;
        }
    }

    fn send_to(&mut self, id: NodeId, peer: &mut Progress, round: u64, send: SendReason) {
        let purged = self.log.purged();
        let log_is_gone = peer.next <= purged.index;
        // A snapshot is not sent to a silent peer: it would be outdated when the peer returns.
        let in_touch = peer.in_touch(&self.config, self.now);
        if log_is_gone && in_touch && !matches!(peer.state, State::Snapshot) {
            peer.state = State::Snapshot;
            self.outputs.push(Output::SendSnapshot(id));
        }
        // A witness is sent only entries that are durable here. If this node crashed and lost an entry that the witness has,
        // the witness would refuse its vote to all nodes that lack the entry, and no leader could be elected with it.
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
                if !*waiting || send == SendReason::Heartbeat {
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
        if !sent && send != SendReason::NewEntries {
            // A peer that needs a snapshot is sent only the heartbeat.
            let prev = if log_is_gone || matches!(peer.state, State::Snapshot) {
                purged.index
            } else {
                peer.next.prev()
            };
            self.push_append(id, prev, prev, round);
        }
    }

    /// Returns the end and the size of the entries after `after` that fit into one message, at most up to `end`.
    fn run_after(&self, after: LogIndex, end: LogIndex) -> (LogIndex, u64) {
        let entries_max = self.config.append_entries_max.min(end.since(after) as usize);
        self.log.run_after(after, entries_max, self.config.append_bytes_max)
    }

    fn push_append(&mut self, to: NodeId, prev: LogIndex, last: LogIndex, round: u64) {
        let prev = self.log.id_at(prev).expect("a peer whose entries are purged is sent a snapshot instead");
        let prev_leadership = self.log.leadership_at(prev.index).map(|own| own.id).unwrap_or_default();
        let (term, commit) = (self.hard.term, self.commit);
        let append = Append { term, prev, prev_leadership, last, commit, round };
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
            return; // Responds to a message from before the member was added (I19).
        }
        if response.term < self.hard.term || response.round > leader.round {
            return; // From an earlier term, where acknowledgements refer to other entries, or to a round that was never sent.
        }
        if !peer.switch_storage(&response) {
            return;
        }
        peer.heard = self.now;
        peer.record_sender(self.log.membership(), from, &response);
        let newest = response.round > peer.round;
        peer.round = peer.round.max(response.round);
        match response.outcome {
            AppendOutcome::Accepted { matched } if matched <= self.log.last().index => {
                peer.accepted(matched, self.log.purged().index);
            }
            AppendOutcome::Accepted { .. } => {}
            AppendOutcome::Rejected { prev, hint } => match peer.state {
                // A message was lost or reordered: probe again from the last acknowledged entry.
                State::Replicate(_) if prev > peer.matched => peer.probe_from(peer.matched.next()),
                State::Probe { .. } if prev == peer.next.prev() && prev > peer.matched => {
                    let purged = self.log.purged().index;
                    // If the logs differ even at the start of this log, only a snapshot helps (§7). Otherwise each round
                    // trip skips a whole term in which the logs differ (§5.3).
                    peer.probe_from(if prev <= purged {
                        purged
                    } else {
                        self.log.last_not_after(hint.index.min(prev.prev()), hint.term).index.next()
                    });
                }
                // The follower had to truncate its log: earlier acknowledgements do not count any more; probe again (I16).
                State::Replicate(_) | State::Probe { .. }
                    if newest && prev <= peer.matched && hint.index < prev =>
                {
                    peer.matched = LogIndex::ZERO;
                    peer.probe_from(hint.index.next());
                }
                _ => {} // A late response to an earlier state.
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
            // The next heartbeat probes, not this turn.
            peer.state = State::Probe { sent: true };
        }
    }

    /// Records that the log up to `index` is durable on one more node, a peer or this one.
    pub(crate) fn reached(&mut self, index: LogIndex) {
        if index > self.commit {
            self.advance_commit();
        }
        self.apply_committed();
    }

    /// Commits entries that are durable on a quorum, counting this node's disk like any other, if the last one is of this
    /// term (I4).
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

/// Reason for sending messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendReason {
    /// There are new entries.
    NewEntries,
    /// A read round starts: every peer gets at least an empty message.
    ReadRound,
    /// The heartbeat is due: every peer gets at least an empty message, and a probe that may be lost is repeated.
    Heartbeat,
}

// The follower's side.
impl Raft {
    pub(crate) fn on_append(&mut self, from: NodeId, append: Append, entries: Vec<EntryInfo>) {
        let is_stale = append.term < self.hard.term;
        // The rejection reports a later term. By the time it arrives the sender may be leader of that term, and the
        // rejection must not count as a response to a round of that term (I9).
        let acknowledged_round = if is_stale { 0 } else { append.round };
        let respond = |raft: &Self, outcome| {
            let (term, round, storage) = (raft.hard.term, acknowledged_round, raft.storage);
            let joining = raft.is_joining();
            ControlMessage::AppendResponse(AppendResponse { term, round, outcome, storage, joining })
        };
        let rejected = |hint| AppendOutcome::Rejected { prev: append.prev.index, hint };
        if is_stale {
            let response = respond(self, rejected(self.log.last()));
            self.outputs.push(Output::Send(from, response));
            return;
        }
        let Some(has_membership) = validate_entries(&append, &entries) else { return };
        if !self.follow(from, append.term) {
            return;
        }
        // For a heartbeat or the first message of a round the leader waits for confirmation of its leadership, not for the
        // disk.
        let round = (append.term, append.round);
        let at_once = entries.is_empty() || (append.round > 0 && round > self.acknowledged_round);
        self.acknowledged_round = self.acknowledged_round.max(round);
        if let Some(contradiction) = self.find_contradiction(from, &append, &entries, has_membership) {
            return self.stop_contradicted(contradiction);
        }
        let fitted = self.take_entries(&append, entries);
        self.record_leader_commit(&append);
        match fitted {
            Ok(matched) if matched <= self.durable || at_once => {
                let durable = AppendOutcome::Accepted { matched: matched.min(self.durable) };
                let response = respond(self, durable);
                self.outputs.push(Output::Send(from, response));
                if matched > self.durable && append.last > append.prev.index {
                    self.when_durable(Deferred::Send(
                        from,
                        respond(self, AppendOutcome::Accepted { matched }),
                    ));
                }
            }
            Ok(matched) => {
                self.when_durable(Deferred::Send(from, respond(self, AppendOutcome::Accepted { matched })));
            }
            Err(hint) => self.outputs.push(Output::Send(from, respond(self, rejected(hint)))),
        }
        self.apply_committed();
    }

    /// Accepts `from` as the leader of `term`, which is at least this node's term. Returns `false` if this node knows
    /// another leader of that term, or is that leader; then the node stops.
    pub(crate) fn follow(&mut self, from: NodeId, term: Term) -> bool {
        if term == self.hard.term && (from == self.config.id || !self.is_only_leader(from, term)) {
            return false;
        }
        self.become_follower(term, Some(from));
        self.followed = Some((term, from));
        self.vote_while_joining(from);
        self.leader_heard = Some(self.now);
        self.reset_election_deadline();
        true
    }

    /// Inserts the entries into the log. Returns the index up to which the log now agrees with the leader's, or a hint where
    /// the two may agree.
    fn take_entries(&mut self, append: &Append, mut entries: Vec<EntryInfo>) -> Result<LogIndex, LogId> {
        if self.hard.installing.is_some() {
            return Err(self.log.purged()); // The log is about to be replaced.
        }
        let mut prev = append.prev;
        if self.log.contains(prev) && !self.log.contains_from(append.prev_leadership, prev) {
            return Err(self.log.before_leadership(prev.index)); // Of another leader of the same term.
        }
        if prev.index < self.commit {
            // Entries committed here are the same on every node (I6); the message may have no entries beyond them.
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
        // Only a conflict removes entries (§5.3): an old message that ends earlier says nothing about the entries after it.
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

/// Validates the entries of a message in one pass, because most are new and need no individual check. Returns whether one of
/// them has a configuration. Returns `None` if no correct leader can have sent the message: the number of entries must
/// match, terms must not decrease, and no term may be later than the leader's.
fn validate_entries(append: &Append, entries: &[EntryInfo]) -> Option<bool> {
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
    /// Latest round that a quorum has responded to, counting the leader itself.
    pub(crate) fn quorum_round(&self, own: NodeId, membership: &Membership) -> Option<u64> {
        membership.quorum_value(|id| {
            if id == own { self.round } else { self.peers.get(&id).map_or(0, Progress::counted_round) }
        })
    }
}
