//! Data to write, and the messages that wait until it is durable (I2).
//!
//! A message that depends on a write is stored with the write and released when the write is done.
//!
//! Entries that find no room on the disk are taken back ([`Event::NoRoom`]) and wait. Meanwhile writes carry no entries, and
//! release only the messages that do not depend on entries: votes, and the start of a snapshot's installation. If not even such
//! a write finds room, nothing is written until [`Event::RetryEntries`].

use std::hash::{Hash, Hasher};

use consensus_core::{AppendResponse, HardState, LogIndex, NodeId, SnapshotMeta};
use serde::{Deserialize, Serialize};

use crate::{
    ControlMessage, Event, Output, Raft,
    model::{Names, digest_deferred},
};

/// One write to the log storage; the fields are those of [`LogBatch`](consensus_core::LogBatch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persist {
    /// New hard state.
    pub hard_state: Option<HardState>,
    /// Snapshot position up to which entries are removed.
    pub purge: Option<SnapshotMeta>,
    /// Index after which entries are removed.
    pub truncate_after: Option<LogIndex>,
    /// Entries to append: those in `(after, last]`.
    pub append: (LogIndex, LogIndex),
}

/// Data that is not written yet, and the write in flight.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Writes {
    hard_state: bool,
    purge: Option<SnapshotMeta>,
    truncate_after: Option<LogIndex>,
    /// Last index passed to the storage, and not truncated since.
    issued: LogIndex,
    waiting: Vec<Deferred>,
    in_flight: Option<InFlight>,
    /// Whether writes leave out entries because the disk had no room for them.
    pub(crate) lacks_room: bool,
    /// Whether nothing is written, because not even a write without entries had room.
    pub(crate) is_blocked: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InFlight {
    /// Last index that this write makes durable; decreases when the log is truncated during the write.
    pub(crate) last: LogIndex,
    pub(crate) deferred: Vec<Deferred>,
    /// The write as requested from the driver.
    pub(crate) request: Persist,
}

/// An output that waits for a write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Deferred {
    Send(NodeId, ControlMessage),
    Output(Output),
}

impl Deferred {
    /// Whether the output depends only on the hard state. A vote refers to a log that need not be durable: a candidate that
    /// is elected with it holds its log in memory, and one that crashes before the log is durable is not leader any more.
    fn depends_only_on_hard_state(&self) -> bool {
        matches!(
            self,
            Self::Send(_, ControlMessage::VoteRequest(_) | ControlMessage::VoteResponse(_))
                | Self::Output(Output::Install(_))
        )
    }
}

impl Writes {
    pub(crate) fn new(issued: LogIndex) -> Self {
        Self { issued, ..Self::default() }
    }

    pub(crate) fn hard_state(&mut self) {
        self.hard_state = true;
    }

    pub(crate) fn purge(&mut self, meta: SnapshotMeta) {
        self.purge = Some(meta);
    }

    /// Truncates the log after `index`. Entries after it that were passed to the storage will be truncated on disk too, and
    /// do not become durable even if their write succeeds.
    pub(crate) fn truncate_after(&mut self, index: LogIndex) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.last = in_flight.last.min(index);
        }
        if self.issued > index {
            self.issued = index;
            self.truncate_after = Some(self.truncate_after.map_or(index, |at| at.min(index)));
        }
    }

    /// Restarts the log after `index`, whatever the disk holds beyond it.
    pub(crate) fn reset(&mut self, index: LogIndex) {
        self.truncate_after(index);
        self.issued = index;
        self.truncate_after = Some(index);
    }

    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        let Self { hard_state, purge, truncate_after, issued, waiting, in_flight, lacks_room, is_blocked } =
            self;
        (lacks_room, is_blocked).hash(hasher);
        (hard_state, purge.as_ref().map(|meta| meta.last), truncate_after, issued, waiting.len())
            .hash(hasher);
        digest_deferred(waiting, names, hasher);
        in_flight.is_some().hash(hasher);
        if let Some(in_flight) = in_flight {
            in_flight.digest(names, hasher);
        }
    }

    /// Takes back the write in flight, of which nothing was written; `purged` is the purged position of the log.
    pub(crate) fn take_back(&mut self, purged: LogIndex) {
        let Some(InFlight { mut deferred, request, .. }) = self.in_flight.take() else { return };
        let Persist { hard_state, purge, truncate_after, append: (after, last) } = request;
        self.lacks_room = true;
        self.is_blocked = after == last;
        self.hard_state |= hard_state.is_some();
        self.purge = self.purge.take().or(purge);
        // A truncation since then matters to the disk only if the entries had been written before.
        let cut_since = self.truncate_after.filter(|at| *at < after);
        let cut = truncate_after.into_iter().chain(cut_since).min();
        self.truncate_after = cut.filter(|at| *at >= purged);
        self.issued = self.issued.min(after).max(purged);
        deferred.append(&mut self.waiting);
        self.waiting = deferred;
    }

    /// Last index to write now; `last` is the end of the log.
    fn end(&self, last: LogIndex) -> LogIndex {
        if self.lacks_room { self.issued } else { last }
    }

    /// Takes the outputs that the next write releases; `last` is the end of the log.
    fn take_waiting(&mut self, last: LogIndex) -> Vec<Deferred> {
        if self.end(last) == last {
            return std::mem::take(&mut self.waiting);
        }
        self.waiting.extract_if(.., |deferred| deferred.depends_only_on_hard_state()).collect()
    }

    fn is_unwritten(&self, last: LogIndex) -> bool {
        self.hard_state || self.purge.is_some() || self.truncate_after.is_some() || self.issued < last
    }
}

impl Raft {
    /// Takes the next write; `None` if there is nothing to write or a write is in flight. The caller makes it durable and
    /// steps [`Event::Persisted`]. Meanwhile it continues to step events, which collect in the next write.
    pub fn take_persist(&mut self) -> Option<Persist> {
        let log_end = self.log.last().index;
        let last = self.writes.end(log_end);
        let must_wait = self.contradicted || self.writes.is_blocked || self.writes.in_flight.is_some();
        if must_wait || !self.writes.is_unwritten(last) {
            return None;
        }
        let after = std::mem::replace(&mut self.writes.issued, last);
        let deferred = self.writes.take_waiting(log_end);
        let hard_state = std::mem::take(&mut self.writes.hard_state).then(|| self.hard.clone());
        let (purge, truncate_after) = (self.writes.purge.take(), self.writes.truncate_after.take());
        let request = Persist { hard_state, purge, truncate_after, append: (after, last) };
        self.writes.in_flight = Some(InFlight { last, deferred, request: request.clone() });
        Some(request)
    }

    /// Releases `deferred` when everything that this node has decided so far is durable; at once if it already is.
    pub(crate) fn when_durable(&mut self, deferred: Deferred) {
        let log_end = self.log.last().index;
        let last = if deferred.depends_only_on_hard_state() { self.writes.end(log_end) } else { log_end };
        if self.writes.is_unwritten(last) {
            self.writes.waiting.push(deferred);
        } else if let Some(in_flight) = &mut self.writes.in_flight {
            in_flight.deferred.push(deferred);
        } else {
            self.release(deferred);
        }
    }

    pub(crate) fn on_persisted(&mut self) {
        let Some(mut in_flight) = self.writes.in_flight.take() else { return };
        self.durable = self.durable.max(in_flight.last);
        self.clear_loss();
        self.finish_joining();
        for deferred in in_flight.deferred.drain(..) {
            self.release(deferred);
        }
        if self.writes.waiting.is_empty() {
            self.writes.waiting = in_flight.deferred; // Reuses the allocation.
        }
        self.reached(self.durable);
    }

    /// Clears the record of lost entries once the durable log reaches as far as before the damage (I16).
    pub(crate) fn clear_loss(&mut self) {
        let durable = self.log.id_at(self.durable);
        if self.hard.lost_through.is_some_and(|lost| durable.is_some_and(|last| last >= lost)) {
            self.hard.lost_through = None;
            self.writes.hard_state();
        }
    }

    fn release(&mut self, deferred: Deferred) {
        match deferred {
            // The term has passed since: no node waits for the message, and it may refer to entries that were truncated.
            Deferred::Send(_, reply) if reply.term() < self.hard.term => {}
            // The completed write may have ended joining.
            Deferred::Send(to, ControlMessage::AppendResponse(response)) => {
                let response = AppendResponse { joining: self.is_joining(), ..response };
                self.outputs.push(Output::Send(to, ControlMessage::AppendResponse(response)));
            }
            // A candidate's vote for itself counts only once it is durable, like every vote (I1).
            Deferred::Send(to, ControlMessage::VoteResponse(response)) if to == self.config.id => {
                self.handle(Event::VoteResponse(to, response));
            }
            Deferred::Send(to, reply) => self.outputs.push(Output::Send(to, reply)),
            Deferred::Output(output) => self.outputs.push(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_issued_entries_are_truncated_on_disk() {
        let mut writes = Writes::new(LogIndex(5));
        writes.truncate_after(LogIndex(5));
        assert!(!writes.is_unwritten(LogIndex(5)), "there is nothing to truncate on the disk");
        writes.truncate_after(LogIndex(4));
        writes.truncate_after(LogIndex(3));
        assert_eq!((writes.issued, writes.truncate_after), (LogIndex(3), Some(LogIndex(3))));
        assert!(writes.is_unwritten(LogIndex(3)));
    }

    #[test]
    fn any_unwritten_data_needs_a_write() {
        let unwritten = |change: fn(&mut Writes)| {
            let mut writes = Writes::new(LogIndex(5));
            change(&mut writes);
            writes.is_unwritten(LogIndex(5))
        };
        assert!(!unwritten(|_| ()));
        assert!(unwritten(Writes::hard_state));
        assert!(unwritten(|writes| writes.purge(SnapshotMeta::default())));
        assert!(unwritten(|writes| writes.truncate_after(LogIndex(4))));
        assert!(unwritten(|writes| writes.issued = LogIndex(4)));
    }
}
