//! Sending and receiving messages.

use std::{collections::VecDeque, sync::Arc};

use consensus_core::{AppendEntries, Entry, MemberKind, Membership, Message, NodeId, Payload, StorageError};
use consensus_raft_protocol::{Append, ControlMessage, EntryInfo, Event, Output};

use super::Driver;
use crate::inbox::Input;

impl Driver {
    pub(super) fn on_message(&mut self, from: NodeId, message: Message) {
        match message {
            Message::VoteRequest(request) => self.step(Event::VoteRequest(from, request)),
            Message::VoteResponse(response) => self.step(Event::VoteResponse(from, response)),
            Message::AppendResponse(response) => {
                self.round_trips.response_received(from, response.round, self.turn_began);
                self.step(Event::AppendResponse(from, response));
            }
            Message::AppendEntries(append) => self.on_append(from, append),
            Message::TimeoutNow(request) => self.step(Event::TimeoutNow(from, request)),
            Message::ReadIndexRequest(request) => self.step(Event::ReadIndexRequest(from, request)),
            Message::ReadIndexResponse(response) => self.step(Event::ReadIndexResponse(from, response)),
            Message::Extension(bytes) => self.on_forwarded(from, &bytes),
            other => tracing::debug!(%from, ?other, "ignored: not a message of Raft"),
        }
    }

    pub(super) fn on_append(&mut self, from: NodeId, message: AppendEntries) {
        let AppendEntries { term, prev, prev_leadership, entries, commit, round } = message;
        let contiguous =
            (1..).zip(&entries).all(|(n, entry)| Some(entry.id.index.0) == prev.index.0.checked_add(n));
        if !contiguous {
            tracing::warn!(%from, %prev, "ignored a message with a gap between its entries");
            return;
        }
        let last = entries.last().map_or(prev.index, |entry| entry.id.index);
        let infos = entries.iter().map(info_of).collect();
        self.incoming = entries;
        self.step(Event::Append {
            from,
            append: Append { term, prev, prev_leadership, last, commit, round },
            entries: infos,
        });
        self.incoming = Vec::new();
        if self.raft.leader() == Some(from) && self.raft.term() == term {
            self.update_freshness(); // An earlier commit index may be applied by now.
            let now = self.now;
            self.freshness.heard.get_or_insert((commit, term, now));
        }
    }

    /// Sends a message. Returns the peer if the transport refused it.
    pub(super) fn send(&mut self, to: NodeId, message: Message) -> Option<NodeId> {
        match self.transport.send(to, message) {
            Ok(()) => None,
            Err(error) => {
                tracing::debug!(%to, %error, "message not sent");
                Some(to)
            }
        }
    }

    pub(super) fn send_append(&mut self, to: NodeId, append: Append) -> Option<NodeId> {
        if let Some(queue) = self.loading.get_mut(&to) {
            enqueue(queue, append);
            return None;
        }
        let (after, last) = (append.prev.index, append.last);
        if after == last {
            self.round_trips.heartbeat_sent(to, append.round, self.turn_began);
            return self.send(to, Message::AppendEntries(with_entries(append, Vec::new())));
        }
        if let Some(entries) = self.cache.get(after, last) {
            return self.send_entries(to, append, entries);
        }
        self.loading.insert(to, VecDeque::new());
        self.load(to, append);
        None
    }

    /// Sends entries; a witness gets them without their commands.
    pub(super) fn send_entries(
        &mut self,
        to: NodeId,
        append: Append,
        mut entries: Vec<Entry>,
    ) -> Option<NodeId> {
        if is_witness(self.raft.membership(), to) {
            for entry in &mut entries {
                if matches!(entry.payload, Payload::Command(_)) {
                    entry.payload = Payload::Withheld;
                }
            }
        }
        self.send(to, Message::AppendEntries(with_entries(append, entries)))
    }

    pub(super) fn load(&mut self, to: NodeId, append: Append) {
        let (storage, inbox) = (self.storage.clone(), self.inbox.clone());
        let (after, last) = (append.prev.index, append.last);
        let read = move || {
            let entries = storage.read(after, last, u64::MAX);
            let _ = inbox.send(Input::Loaded(to, append, entries));
        };
        self.run_in_background(read);
    }

    pub(super) fn on_loaded(
        &mut self,
        to: NodeId,
        append: Append,
        entries: Result<Vec<Entry>, StorageError>,
    ) {
        let Some(queue) = self.loading.remove(&to) else { return };
        let failed = match entries {
            _ if append.term != self.raft.term() => None,
            Ok(entries) => {
                if std::mem::take(&mut self.is_loading_failing) {
                    tracing::info!("entries for followers can be read from the log again");
                }
                self.send_entries(to, self.with_current_commit(append), entries)
            }
            Err(StorageError::Missing { .. }) => Some(to),
            // The next heartbeat asks for them again.
            Err(error @ StorageError::Io { .. }) => {
                if !std::mem::replace(&mut self.is_loading_failing, true) {
                    tracing::warn!(%to, %error, "cannot read entries for a follower from the log; retrying");
                }
                Some(to)
            }
            Err(error) => return self.fail(error.to_string()),
        };
        if let Some(to) = failed {
            self.step(Event::SendFailed(to));
        }
        // In the protocol's order; if one of them needs the disk again, the rest wait behind it.
        let outputs = queue
            .into_iter()
            .map(|append| Output::SendAppend(to, self.with_current_commit(append)))
            .collect();
        self.carry_out(outputs);
    }

    /// Replaces the commit index by the current one, which may have advanced while the entries were read from disk. The
    /// receiver treats it as current at the time of arrival ([`StaleWithin`](consensus_core::ReadConsistency::StaleWithin)).
    fn with_current_commit(&self, append: Append) -> Append {
        let commit = if append.term == self.raft.term() { self.raft.commit() } else { append.commit };
        Append { commit, ..append }
    }
}

pub(super) fn message_of(reply: ControlMessage) -> Message {
    match reply {
        ControlMessage::VoteRequest(request) => Message::VoteRequest(request),
        ControlMessage::VoteResponse(response) => Message::VoteResponse(response),
        ControlMessage::AppendResponse(response) => Message::AppendResponse(response),
        ControlMessage::TimeoutNow(request) => Message::TimeoutNow(request),
        ControlMessage::ReadIndexRequest(request) => Message::ReadIndexRequest(request),
        ControlMessage::ReadIndexResponse(response) => Message::ReadIndexResponse(response),
    }
}

/// Adds a message to those for one peer that wait for a read of the log. If it repeats entries that wait already, it replaces all
/// that wait. Without this rule, lost messages and a slow disk delay a peer for long:
/// 1. Messages with entries wait for the disk one after the other. Some that were sent are lost, or arrive in another order.
/// 2. The leader starts again after the last acknowledged entry, while the first messages still wait.
/// 3. Each restart adds all the entries to the queue once more, and a new entry waits until all repetitions are read and sent.
fn enqueue(waiting: &mut VecDeque<Append>, append: Append) {
    if waiting.back().is_some_and(|newest| append.prev.index < newest.last) {
        waiting.clear();
    }
    waiting.push_back(append);
}

fn with_entries(append: Append, entries: Vec<Entry>) -> AppendEntries {
    let Append { term, prev, prev_leadership, commit, round, .. } = append;
    AppendEntries { term, prev, prev_leadership, entries, commit, round }
}

pub(super) fn is_witness(membership: &Membership, node: NodeId) -> bool {
    membership.get(node).is_some_and(|member| member.kind == MemberKind::Witness)
}

fn info_of(entry: &Entry) -> EntryInfo {
    let membership = match &entry.payload {
        Payload::Membership(membership) => Some(Arc::new(membership.clone())),
        _ => None,
    };
    EntryInfo { term: entry.id.term, size_bytes: entry.size_bytes(), membership }
}

#[cfg(test)]
mod tests {
    use consensus_core::{LeadershipId, LogId, LogIndex, Term};

    use super::*;

    fn append(prev: u64, last: u64, round: u64) -> Append {
        let prev = LogId { term: Term(1), index: LogIndex(prev) };
        Append {
            term: Term(1),
            prev,
            prev_leadership: LeadershipId::NONE,
            last: LogIndex(last),
            commit: LogIndex(0),
            round,
        }
    }

    #[test]
    fn message_that_repeats_entries_replaces_those_that_wait() {
        let mut waiting = VecDeque::new();
        // Entries in sequence, a heartbeat, and the next entry.
        let in_sequence = [append(0, 2, 1), append(2, 3, 1), append(3, 3, 2), append(3, 4, 2)];
        in_sequence.into_iter().for_each(|append| enqueue(&mut waiting, append));
        assert!(waiting.iter().eq(&in_sequence));
        let again = append(1, 2, 3);
        enqueue(&mut waiting, again);
        assert!(waiting.iter().eq(&[again]));
        enqueue(&mut waiting, append(2, 4, 3));
        assert_eq!(waiting.len(), 2);
    }
}
