//! Replication state that a leader keeps for each follower.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
};

use consensus_core::{AppendResponse, LogIndex, Membership, NodeId, StorageId};
use serde::{Deserialize, Serialize};

use crate::{Config, Time};

/// Replication state of one follower.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Last index known to be durable on the follower (I5).
    pub(crate) matched: LogIndex,
    /// Next entry to send.
    pub(crate) next: LogIndex,
    pub(crate) state: State,
    /// Latest heartbeat round that the follower responded to.
    pub(crate) round: u64,
    /// Time of the follower's last response.
    pub(crate) heard: Time,
    /// Storage of the follower's first response.
    pub(crate) storage: StorageId,
    /// Storage that the fields above describe: the entries of one storage say nothing about another one.
    pub(crate) current: StorageId,
    /// Round of the first message since the member was added. Responses to earlier rounds come from a former member (I19).
    pub(crate) first_round: u64,
    /// Whether the follower's log still lacks entries that were committed when it joined (I18).
    pub(crate) joining: bool,
    /// Why the follower's acknowledgements do not count; `None` if they do.
    pub(crate) exclusion: Option<Exclusion>,
}

/// Why the acknowledgements of a member count towards no quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Exclusion {
    /// The member's storage is not the one that the configuration names, or not the one of its first response (I14, I19).
    OtherStorage,
    /// The member is a founding member whose log started empty and lacks entries that were committed when it joined (I18).
    EmptiedFounder,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum State {
    /// It is unknown where the two logs agree: one message at a time.
    Probe { sent: bool },
    /// The logs agree before `next`: messages are sent without waiting for responses.
    Replicate(Inflight),
    /// The entries that the follower needs are purged: a snapshot is being sent.
    Snapshot,
}

/// Unacknowledged messages with entries.
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
            exclusion: None,
        }
    }

    /// Whether the follower's acknowledgements count towards a quorum.
    pub(crate) fn counts(&self) -> bool {
        self.exclusion.is_none()
    }

    /// Last index of the follower that counts towards a quorum.
    pub(crate) fn counted_match(&self) -> LogIndex {
        if self.counts() { self.matched } else { LogIndex::ZERO }
    }

    /// Latest heartbeat round of the follower that counts towards a quorum.
    pub(crate) fn counted_round(&self) -> u64 {
        if self.counts() { self.round } else { 0 }
    }

    /// Switches to the storage that sent the response. If it is another storage than before, nothing is known about its log.
    /// Returns `false` if the response is a late one of a former storage. Without this check (I14):
    /// 1. The disk of a member is emptied. The empty disk acknowledges entries, which does not count.
    /// 2. A late acknowledgement of the former disk, which counts, arrives.
    /// 3. The acknowledgements of the empty disk are attributed to the former one.
    pub(crate) fn switch_storage(&mut self, response: &AppendResponse) -> bool {
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

    /// Records the storage that sent an acknowledgement, and whether it counts (I14, I18, I19). `membership` is the
    /// configuration in force, `from` the sender.
    pub(crate) fn record_sender(&mut self, membership: &Membership, from: NodeId, response: &AppendResponse) {
        let member = membership.get(from);
        let is_trusted = member.is_none_or(|member| member.trusts(response.storage));
        if is_trusted && self.storage == StorageId::UNKNOWN {
            self.storage = response.storage;
        }
        self.joining = response.joining;
        let is_founder = member.is_some_and(|member| member.storage.is_none());
        self.exclusion = if !is_trusted || self.storage != response.storage {
            Some(Exclusion::OtherStorage)
        } else {
            // The removal of a former member ended its promises: a member that a change added counts as soon as it is a
            // voter.
            (self.joining && is_founder).then_some(Exclusion::EmptiedFounder)
        };
    }

    /// Whether the follower responded within an election timeout.
    pub(crate) fn in_touch(&self, config: &Config, now: Time) -> bool {
        self.heard + config.election_timeout > now
    }

    /// Records that the follower's disk holds the log up to `matched`.
    pub(crate) fn accepted(&mut self, matched: LogIndex, purged: LogIndex) {
        self.matched = self.matched.max(matched);
        self.next = self.next.max(self.matched.next());
        match &mut self.state {
            State::Replicate(inflight) => inflight.acknowledged(matched),
            State::Probe { .. } => self.state = State::Replicate(Inflight::default()),
            // A response to a heartbeat; the follower still needs entries that are purged.
            State::Snapshot if self.matched < purged => (),
            State::Snapshot => self.state = State::Replicate(Inflight::default()),
        }
    }

    /// Starts to search for the position where the logs agree, from `next` downwards.
    pub(crate) fn probe_from(&mut self, next: LogIndex) {
        self.next = next.max(self.matched.next());
        self.state = State::Probe { sent: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_release_entries_in_flight() {
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
    fn next_stays_above_matched() {
        let mut progress = Progress::new(LogIndex(9), Time::ZERO, 0);
        progress.accepted(LogIndex(5), LogIndex::ZERO);
        progress.probe_from(LogIndex(2));
        assert_eq!(progress.next, LogIndex(6));
    }
}
