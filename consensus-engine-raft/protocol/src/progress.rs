//! A leader's view of one follower.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use consensus_core::{AppendResponse, LogIndex, Membership, NodeId, StorageId};
use serde::{Deserialize, Serialize};

use crate::{Config, Time};

/// What a leader knows of one follower, and how it sends to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Known to be durable there (I5); never guessed.
    pub(crate) matched: LogIndex,
    /// The next entry to send.
    pub(crate) next: LogIndex,
    pub(crate) state: State,
    /// Latest heartbeat round that it answered.
    pub(crate) round: u64,
    /// When it last answered.
    pub(crate) heard: Time,
    /// Storage from which it first answered.
    pub(crate) storage: StorageId,
    /// Storage of which all of this is known: what one storage has says nothing of another one.
    pub(crate) current: StorageId,
    /// Round of the first message since the member was added: earlier ones were answered by a former member (I19).
    pub(crate) first_round: u64,
    /// Whether its log still lacks what was committed when it joined (I18).
    pub(crate) joining: bool,
    /// Why its acknowledgements do not count, if they do not.
    pub(crate) discount: Option<Discount>,
}

/// Why a member's acknowledgements count towards no quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Discount {
    /// Its storage is not the one that the configuration knows, or not the one from which it first answered (I14, I19).
    OtherStorage,
    /// It is a founding member whose log began empty, and lacks what was committed when it joined (I18).
    EmptiedFounder,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum State {
    /// Where the logs agree is not known: one message at a time.
    Probe { sent: bool },
    /// They agree before `next`: messages are sent without waiting.
    Replicate(Inflight),
    /// The log it needs is gone: a snapshot is on its way.
    Snapshot,
}

/// Messages with entries that were sent and not acknowledged.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Inflight {
    messages: VecDeque<(LogIndex, u64)>,
    bytes: u64,
}

impl Inflight {
    pub(crate) fn push(&mut self, last: LogIndex, bytes: u64) {
        self.messages.push_back((last, bytes));
        self.bytes += bytes;
    }

    pub(crate) fn digest(&self, hasher: &mut impl Hasher) {
        (1, &self.messages, self.bytes).hash(hasher);
    }

    fn acknowledged(&mut self, matched: LogIndex) {
        while let Some((_, bytes)) = self.messages.front().filter(|(last, _)| *last <= matched) {
            self.bytes -= *bytes;
            self.messages.pop_front();
        }
    }

    pub(crate) fn has_room(&self, config: &Config) -> bool {
        self.messages.len() < config.inflight_messages_max && (self.bytes < config.inflight_bytes_max)
    }
}

impl Progress {
    pub(crate) fn new(next: LogIndex, now: Time, first_round: u64) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next,
            state: State::Probe { sent: false },
            round: 0,
            heard: now,
            storage: StorageId::default(),
            current: StorageId::default(),
            first_round,
            joining: false,
            discount: None,
        }
    }

    /// Whether its acknowledgements count towards a quorum.
    pub(crate) fn counts(&self) -> bool {
        self.discount.is_none()
    }

    /// How far its log counts towards a quorum.
    pub(crate) fn counted_match(&self) -> LogIndex {
        if self.counts() { self.matched } else { LogIndex::ZERO }
    }

    /// The round that it counts as having answered.
    pub(crate) fn counted_round(&self) -> u64 {
        if self.counts() { self.round } else { 0 }
    }

    /// Turns to the storage that a response came from, of which nothing is known if it is another than before. `false` if the
    /// response is a late one of a former storage. Otherwise this happens (I14):
    /// 1. the disk of a member is emptied, and the empty one acknowledges what it is sent, which does not count;
    /// 2. a late acknowledgement of the former disk, which counts, arrives;
    /// 3. what the empty disk acknowledged is taken for what the former one has.
    pub(crate) fn turn_to(&mut self, response: &AppendResponse) -> bool {
        if self.current == response.storage {
            return true;
        }
        if self.current != StorageId::UNKNOWN {
            if response.round < self.round {
                return false;
            }
            (self.matched, self.round) = (LogIndex::ZERO, 0);
            self.probe_from(self.next);
        }
        self.current = response.storage;
        true
    }

    /// Notes from which storage an acknowledgement came, and so whether it counts (I14, I18, I19). `membership` is the
    /// configuration in force, `from` the sender.
    pub(crate) fn note_sender(&mut self, membership: &Membership, from: NodeId, response: &AppendResponse) {
        let member = membership.get(from);
        let is_trusted = member.is_none_or(|member| member.trusts(response.storage));
        if is_trusted && self.storage == StorageId::UNKNOWN {
            self.storage = response.storage;
        }
        self.joining = response.joining;
        let is_founder = member.is_some_and(|member| member.storage.is_none());
        self.discount = if !is_trusted || self.storage != response.storage {
            Some(Discount::OtherStorage)
        } else {
            // What a former member promised ended when it was removed: one that a change added counts when it is a voter.
            (self.joining && is_founder).then_some(Discount::EmptiedFounder)
        };
    }

    /// Whether it answered within an election timeout.
    pub(crate) fn in_touch(&self, config: &Config, now: Time) -> bool {
        self.heard + config.election_timeout > now
    }

    /// The follower has everything up to `matched`, durably.
    pub(crate) fn accepted(&mut self, matched: LogIndex, purged: LogIndex) {
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        match &mut self.state {
            State::Replicate(inflight) => inflight.acknowledged(matched),
            State::Probe { .. } => self.state = State::Replicate(Inflight::default()),
            // An answer to a heartbeat; the log still cannot serve it.
            State::Snapshot if self.matched < purged => (),
            State::Snapshot => self.state = State::Replicate(Inflight::default()),
        }
    }

    /// Begins to look for the place where the logs agree, from `next` down.
    pub(crate) fn probe_from(&mut self, next: LogIndex) {
        self.next = next.max(self.matched.next());
        self.state = State::Probe { sent: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_free_what_is_in_flight() {
        // C24: the byte counter must come back to zero.
        let mut inflight = Inflight::default();
        inflight.push(LogIndex(3), 100);
        inflight.push(LogIndex(5), 50);
        inflight.acknowledged(LogIndex(4));
        assert_eq!((inflight.bytes, inflight.messages.len()), (50, 1));
        inflight.acknowledged(LogIndex(9));
        assert_eq!((inflight.bytes, inflight.messages.len()), (0, 0));
    }

    #[test]
    fn next_never_falls_to_matched() {
        let mut progress = Progress::new(LogIndex(9), Time::ZERO, 0);
        progress.accepted(LogIndex(5), LogIndex::ZERO);
        progress.probe_from(LogIndex(2));
        assert_eq!(progress.next, LogIndex(6));
    }
}
