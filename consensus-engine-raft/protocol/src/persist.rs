//! What must reach the disk, and what waits for it (I2).
//!
//! Order is data here: a message that depends on a write is inside the write, and comes out when the write is done.
//!
//! Entries that find no room on the disk are taken back ([`Event::NoRoom`]) and wait. Meanwhile writes have no entries, and carry
//! only the messages that do not depend on entries: votes, and the start of the installation of a snapshot.

use std::hash::{Hash, Hasher};

use consensus_core::{AppendResponse, HardState, LogIndex, NodeId, SnapshotMeta};
use serde::{Deserialize, Serialize};

use crate::{
    Event, Output, Raft, Reply,
    model::{Names, digest_all},
};

/// One write to the log storage; the fields are those of [`LogBatch`](consensus_core::LogBatch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Persist {
    /// New hard state.
    pub hard_state: Option<HardState>,
    /// Entries up to here go.
    pub purge: Option<SnapshotMeta>,
    /// Entries after here go.
    pub truncate_after: Option<LogIndex>,
    /// Entries `(after, last]` come.
    pub append: (LogIndex, LogIndex),
}

/// What is not yet written, and what is being written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Writes {
    hard_state: bool,
    purge: Option<SnapshotMeta>,
    truncate_after: Option<LogIndex>,
    /// Last index handed to the storage (or removed from what was).
    issued: LogIndex,
    waiting: Vec<Held>,
    in_flight: Option<InFlight>,
    /// Entries found no room; writes leave them out.
    pub(crate) lacks_room: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InFlight {
    /// Last index that this write makes durable; goes down when the log is truncated meanwhile.
    pub(crate) last: LogIndex,
    pub(crate) held: Vec<Held>,
    /// What was asked to be written.
    pub(crate) asked: Persist,
}

/// What waits for a write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Held {
    Send(NodeId, Reply),
    Output(Output),
}

impl Held {
    /// Whether it depends on the hard state alone. A vote speaks of a log that need not be durable: who is elected with it holds
    /// it in memory, and who dies before it is durable leads no longer.
    fn needs_no_entries(&self) -> bool {
        matches!(
            self,
            Self::Send(_, Reply::VoteRequest(_) | Reply::VoteResponse(_)) | Self::Output(Output::Install(_))
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

    /// The log was cut after `index`: what was issued beyond will be cut on disk too, and is not durable any more even
    /// if its write succeeds.
    pub(crate) fn truncate_after(&mut self, index: LogIndex) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.last = in_flight.last.min(index);
        }
        if self.issued > index {
            self.issued = index;
            self.truncate_after = Some(self.truncate_after.map_or(index, |at| at.min(index)));
        }
    }

    /// The log begins anew after `index`, whatever the disk holds beyond.
    pub(crate) fn reset(&mut self, index: LogIndex) {
        self.truncate_after(index);
        self.issued = index;
        self.truncate_after = Some(index);
    }

    pub(crate) fn digest(&self, names: Names<'_>, hasher: &mut impl Hasher) {
        let Self { hard_state, purge, truncate_after, issued, waiting, in_flight, lacks_room } = self;
        lacks_room.hash(hasher);
        (hard_state, purge.as_ref().map(|meta| meta.last), truncate_after, issued, waiting.len())
            .hash(hasher);
        digest_all(waiting, names, hasher);
        in_flight.is_some().hash(hasher);
        if let Some(in_flight) = in_flight {
            in_flight.digest(names, hasher);
        }
    }

    /// Takes back the write in flight, of which nothing was written; the log is purged up to `purged`.
    pub(crate) fn take_back(&mut self, purged: LogIndex) {
        let Some(InFlight { mut held, asked, .. }) = self.in_flight.take() else { return };
        let Persist { hard_state, purge, truncate_after, append: (after, _) } = asked;
        self.lacks_room = true;
        self.hard_state |= hard_state.is_some();
        self.purge = self.purge.take().or(purge);
        // What was cut since is on the disk only if it had been written before.
        let cut_since = self.truncate_after.filter(|at| *at < after);
        let cut = truncate_after.into_iter().chain(cut_since).min();
        self.truncate_after = cut.filter(|at| *at >= purged);
        self.issued = self.issued.min(after).max(purged);
        held.append(&mut self.waiting);
        self.waiting = held;
    }

    /// The end of the log as far as it is to be written now, `last` being the end of the whole.
    fn end(&self, last: LogIndex) -> LogIndex {
        if self.lacks_room { self.issued } else { last }
    }

    /// The messages that the next write carries, `last` being the end of the log.
    fn take_waiting(&mut self, last: LogIndex) -> Vec<Held> {
        if self.end(last) == last {
            return std::mem::take(&mut self.waiting);
        }
        self.waiting.extract_if(.., |held| held.needs_no_entries()).collect()
    }

    fn is_unwritten(&self, last: LogIndex) -> bool {
        self.hard_state || self.purge.is_some() || self.truncate_after.is_some() || self.issued < last
    }
}

impl Raft {
    /// The next write, `None` if there is nothing to write or a write is in flight. The caller makes it durable and
    /// steps [`Event::Persisted`]; meanwhile it goes on stepping, so that the next write gathers.
    pub fn take_persist(&mut self) -> Option<Persist> {
        let log_end = self.log.last().index;
        let last = self.writes.end(log_end);
        if self.contradicted || self.writes.in_flight.is_some() || !self.writes.is_unwritten(last) {
            return None;
        }
        let after = std::mem::replace(&mut self.writes.issued, last);
        let held = self.writes.take_waiting(log_end);
        let hard_state = std::mem::take(&mut self.writes.hard_state).then(|| self.hard.clone());
        let (purge, truncate_after) = (self.writes.purge.take(), self.writes.truncate_after.take());
        let asked = Persist { hard_state, purge, truncate_after, append: (after, last) };
        self.writes.in_flight = Some(InFlight { last, held, asked: asked.clone() });
        Some(asked)
    }

    /// Lets `held` out when all that this node has decided so far is durable; at once if it is.
    pub(crate) fn when_durable(&mut self, held: Held) {
        let log_end = self.log.last().index;
        let last = if held.needs_no_entries() { self.writes.end(log_end) } else { log_end };
        if self.writes.is_unwritten(last) {
            self.writes.waiting.push(held);
        } else if let Some(in_flight) = &mut self.writes.in_flight {
            in_flight.held.push(held);
        } else {
            self.release(held);
        }
    }

    pub(crate) fn on_persisted(&mut self) {
        let Some(mut in_flight) = self.writes.in_flight.take() else { return };
        self.durable = self.durable.max(in_flight.last);
        self.forget_loss();
        self.finish_joining();
        for held in in_flight.held.drain(..) {
            self.release(held);
        }
        if self.writes.waiting.is_empty() {
            self.writes.waiting = in_flight.held; // For its room.
        }
        self.reached(self.durable);
    }

    /// A log that is as far again as it was before it was damaged is one like any other (I16).
    pub(crate) fn forget_loss(&mut self) {
        let durable = self.log.id_at(self.durable);
        if self.hard.lost_through.is_some_and(|lost| durable.is_some_and(|last| last >= lost)) {
            self.hard.lost_through = None;
            self.writes.hard_state();
        }
    }

    fn release(&mut self, held: Held) {
        match held {
            // Said in a term that has passed meanwhile; nobody waits for it, and it might speak of entries that are gone.
            Held::Send(_, reply) if reply.term() < self.hard.term => {}
            // What was written may have ended the joining.
            Held::Send(to, Reply::AppendResponse(response)) => {
                let response = AppendResponse { joining: self.is_joining(), ..response };
                self.outputs.push(Output::Send(to, Reply::AppendResponse(response)));
            }
            // A candidate's vote for itself counts when it is durable, like anybody's (I1).
            Held::Send(to, Reply::VoteResponse(response)) if to == self.config.id => {
                self.handle(Event::VoteResponse(to, response));
            }
            Held::Send(to, reply) => self.outputs.push(Output::Send(to, reply)),
            Held::Output(output) => self.outputs.push(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_issued_is_cut() {
        let mut writes = Writes::new(LogIndex(5));
        writes.truncate_after(LogIndex(5));
        assert!(!writes.is_unwritten(LogIndex(5)), "there is nothing on the disk to cut");
        writes.truncate_after(LogIndex(4));
        writes.truncate_after(LogIndex(3));
        assert_eq!((writes.issued, writes.truncate_after), (LogIndex(3), Some(LogIndex(3))));
        assert!(writes.is_unwritten(LogIndex(3)));
    }

    #[test]
    fn each_thing_to_write_is_reason_enough() {
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
