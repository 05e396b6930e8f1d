//! When the log is compacted, and what is left of it.

use consensus_core::{FlushWork, LogId, LogIndex, SnapshotError, StateMachineError};
use consensus_raft_protocol::Event;
use tokio::{sync::oneshot, task::JoinHandle};

use super::{APPLY_TIME_MAX, Driver, retry::Outage};
use crate::{
    apply_thread::{Job, guarded},
    inbox::{FlushedFor, Input},
};

#[derive(Default)]
pub(super) struct Compaction {
    flushing: bool,
    /// Flushes that are done beside the apply thread; at most one for the log and one for each peer.
    pub(super) aside: Vec<JoinHandle<()>>,
    /// What was applied when the last one began.
    last_at: LogIndex,
    /// What the last one left of the log.
    left_bytes: u64,
    /// Flushes that failed.
    pub(super) outage: Outage,
    asked: Vec<oneshot::Sender<Result<LogIndex, SnapshotError>>>,
}

impl Compaction {
    /// Of a log that begins after `purged`.
    pub(super) fn new(purged: LogIndex) -> Self {
        Self { last_at: purged, ..Self::default() }
    }
}

impl Driver {
    pub(super) fn on_compact(&mut self, reply: oneshot::Sender<Result<LogIndex, SnapshotError>>) {
        self.compaction.asked.push(reply);
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
        if (entries > 0 && self.has_turn(entries)) || (bytes > 0 && new_bytes >= bytes) {
            self.flush_machine();
        }
    }

    /// Each `entries` entries, but the members one after another, in turns that are spread over them: while one is slower for
    /// its flush there is a majority of others.
    fn has_turn(&self, entries: u64) -> bool {
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

    /// It can take as long as writing out all that is in memory; entries are applied meanwhile.
    pub(super) fn flush_in_background(&mut self, work: FlushWork, why: FlushedFor) {
        let (inbox, span) = (self.inbox.clone(), self.span.clone());
        let flush = move || {
            let _flush = tracing::debug_span!(parent: &span, "flush").entered();
            let _ = inbox.send(Input::Flushed(guarded(work), why)); // The engine is ending.
        };
        self.compaction.aside.retain(|flush| !flush.is_finished());
        let flushing = self.do_aside(flush);
        self.compaction.aside.extend(flushing);
    }

    /// The log is kept until a flush succeeds.
    pub(super) fn on_not_flushed(&mut self, error: &StateMachineError) {
        self.compaction.flushing = false;
        let why = error.to_string();
        for reply in std::mem::take(&mut self.compaction.asked) {
            let _ = reply.send(Err(SnapshotError::NotFlushed(why.clone())));
        }
        if self.compaction.outage.failed(why.clone(), self.now, self.config.snapshot_retry) {
            tracing::warn!(
                why,
                "the state machine could not be flushed; the log is kept, trying again until it is"
            );
        }
    }

    /// Removes the log up to what the machine answers for, less a tail; without one if somebody asked.
    pub(super) fn on_flushed(&mut self, durable: LogId) {
        self.compaction.flushing = false;
        self.compaction.outage = Outage::default();
        let asked = std::mem::take(&mut self.compaction.asked);
        let through = if asked.is_empty() { self.spared(durable.index) } else { durable.index };
        self.step(Event::Compact(through));
        self.compaction.left_bytes = self.raft.log_bytes();
        for reply in asked {
            let _ = reply.send(Ok(self.raft.purged().index));
        }
    }

    /// How far the log may go so that enough is left for the others.
    fn spared(&self, durable: LogIndex) -> LogIndex {
        let config = &self.config;
        let tail = LogIndex(durable.0.saturating_sub(config.compact_keep_entries))
            .max(self.raft.log_tail(config.compact_keep_bytes));
        // Otherwise a snapshot that takes long would be followed by the next, for ever.
        let lacking = self.transfers.values().map(|sending| sending.last);
        let behind =
            self.raft.peers().into_values().filter(|peer| peer.active && peer.snapshot_bytes.is_none());
        let needed = lacking.chain(behind.map(|peer| peer.matched)).min().unwrap_or(tail);
        tail.min(needed.max(self.raft.log_tail(config.compact_hold_bytes))).min(durable)
    }

    /// A snapshot has taken the place of the log up to `last`.
    pub(super) fn log_replaced(&mut self, last: LogIndex) {
        self.compaction.last_at = last;
        self.compaction.left_bytes = self.raft.log_bytes();
    }
}
