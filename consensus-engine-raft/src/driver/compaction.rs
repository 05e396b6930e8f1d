//! When the log is compacted, and how much of it is kept.

use consensus_core::{FlushWork, LogId, LogIndex, SnapshotError, StateMachineError};
use consensus_raft_protocol::Event;
use tokio::sync::oneshot;

use super::{APPLY_TIME_MAX, Driver, retry::Outage};
use crate::{
    apply_thread::{Job, guarded},
    inbox::{FlushedFor, Input},
};

#[derive(Default)]
pub(super) struct Compaction {
    flushing: bool,
    /// Applied index at the start of the last compaction.
    last_at: LogIndex,
    /// Size of the log after the last compaction.
    left_bytes: u64,
    /// Failures of flushes since the last success.
    pub(super) outage: Outage,
    requests: Vec<oneshot::Sender<Result<LogIndex, SnapshotError>>>,
}

impl Compaction {
    /// State for a log that starts after `purged`.
    pub(super) fn new(purged: LogIndex) -> Self {
        Self { last_at: purged, ..Self::default() }
    }
}

impl Driver {
    pub(super) fn on_compact(&mut self, reply: oneshot::Sender<Result<LogIndex, SnapshotError>>) {
        self.compaction.requests.push(reply);
        self.flush_machine();
    }

    pub(super) fn on_applied(&mut self, index: LogIndex) {
        let took = self.apply_returned();
        let batch_max = self.apply.batch_max;
        if took > APPLY_TIME_MAX {
            self.apply.batch_max = (batch_max / 2).max(1);
        } else if took < APPLY_TIME_MAX / 4 {
            self.apply.batch_max = (batch_max.saturating_mul(2)).min(self.config.apply_entries_max);
        }
        self.apply.done = self.apply.done.max(index);
        let (entries, bytes) = (self.config.compact_after_entries, self.config.compact_after_bytes);
        let new_bytes = self.raft.log_bytes().saturating_sub(self.compaction.left_bytes);
        if (entries > 0 && self.is_own_turn(entries)) || (bytes > 0 && new_bytes >= bytes) {
            self.flush_machine();
        }
    }

    /// Whether this member should compact now. Members compact every `entries` entries, but at different positions, so that
    /// a majority is not slowed down by its flushes at the same time.
    fn is_own_turn(&self, entries: u64) -> bool {
        let members = self.raft.membership().members();
        let before = members.keys().take_while(|id| **id < self.raft.id()).count();
        let turn = entries / members.len().max(1) as u64 * before as u64;
        let round = |index: LogIndex| (index.0 + turn) / entries;
        round(self.apply.done) > round(self.compaction.last_at)
    }

    pub(super) fn flush_machine(&mut self) {
        if !self.compaction.flushing && self.compaction.outage.deadline().is_none() {
            self.compaction.flushing = true;
            self.compaction.last_at = self.apply.done;
            self.give(Job::Flush(FlushedFor::Compaction));
        }
    }

    /// Flushes in the background, which can take as long as writing all data in memory. Entries are applied meanwhile.
    pub(super) fn flush_in_background(&mut self, work: FlushWork, why: FlushedFor) {
        let (inbox, span) = (self.inbox.clone(), self.span.clone());
        let flush = move || {
            let _flush = tracing::debug_span!(parent: &span, "flush").entered();
            let _ = inbox.send(Input::Flushed(guarded(work), why)); // The engine is ending.
        };
        self.run_in_background(flush);
    }

    /// Keeps the log, and retries the flush later.
    pub(super) fn on_not_flushed(&mut self, error: &StateMachineError) {
        self.compaction.flushing = false;
        let why = error.to_string();
        for reply in std::mem::take(&mut self.compaction.requests) {
            let _ = reply.send(Err(SnapshotError::NotFlushed(why.clone())));
        }
        if self.compaction.outage.failed(why.clone(), self.now, self.config.snapshot_retry) {
            tracing::warn!(
                why,
                "the state machine could not be flushed; the log is kept, trying again until it is"
            );
        }
    }

    /// Purges the log up to the durable state, but keeps some entries for followers, unless an operator requested the
    /// compaction.
    pub(super) fn on_flushed(&mut self, durable: LogId) {
        self.compaction.flushing = false;
        self.compaction.outage = Outage::default();
        let requests = std::mem::take(&mut self.compaction.requests);
        let through = if requests.is_empty() { self.purgeable_through(durable.index) } else { durable.index };
        self.step(Event::Compact(through));
        self.compaction.left_bytes = self.raft.log_bytes();
        for reply in requests {
            let _ = reply.send(Ok(self.raft.purged().index));
        }
    }

    /// Index up to which the log can be purged so that followers have enough entries left.
    fn purgeable_through(&self, durable: LogIndex) -> LogIndex {
        let config = &self.config;
        let tail = LogIndex(durable.0.saturating_sub(config.compact_keep_entries))
            .max(self.raft.log_tail(config.compact_keep_bytes));
        // Without this, a snapshot that takes long to send would be followed by another one, for ever.
        let lacking = self.snapshot_transfers.values().map(|sending| sending.last);
        let behind =
            self.raft.peers().into_values().filter(|peer| peer.active && peer.snapshot_bytes.is_none());
        let needed = lacking.chain(behind.map(|peer| peer.matched)).min().unwrap_or(tail);
        tail.min(needed.max(self.raft.log_tail(config.compact_hold_bytes))).min(durable)
    }

    /// Must be called after a snapshot replaced the log up to `last`.
    pub(super) fn log_replaced(&mut self, last: LogIndex) {
        self.compaction.last_at = last;
        self.compaction.left_bytes = self.raft.log_bytes();
    }
}
