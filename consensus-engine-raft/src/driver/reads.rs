//! Reads of each consistency.

use std::{collections::BTreeMap, time::Duration};

use consensus_core::{LogIndex, ReadConsistency, ReadError, Term};
use consensus_raft_protocol::Event;
use tokio::sync::oneshot;

use super::Driver;
use crate::admission::Permit;

pub(super) type ReadReply = oneshot::Sender<Result<LogIndex, ReadError>>;

/// Reads on their way: at the protocol by token, then waiting for an index to be applied.
#[derive(Default)]
pub(super) struct Reads {
    pub(super) next_token: u64,
    pub(super) asked: BTreeMap<u64, (ReadReply, Permit)>,
    pub(super) ready: Vec<(LogIndex, ReadReply, Permit)>,
}

/// How old what is applied here may be.
#[derive(Default)]
pub(super) struct Freshness {
    /// What was committed by a leader of which term, and when that was heard.
    pub(super) heard: Option<(LogIndex, Term, Duration)>,
    /// The latest such moment that is applied.
    pub(super) at: Option<Duration>,
}

impl Driver {
    pub(super) fn read(&mut self, consistency: ReadConsistency, reply: ReadReply, permit: Permit) {
        if let ReadConsistency::StaleWithin(max) = consistency {
            let _ = reply.send(self.stale_read(max));
            return;
        }
        let token = self.reads.next_token;
        self.reads.next_token += 1;
        self.reads.asked.insert(token, (reply, permit));
        self.step(Event::Read { token, lease: consistency == ReadConsistency::Lease });
    }

    pub(super) fn stale_read(&mut self, max: Duration) -> Result<LogIndex, ReadError> {
        self.note_freshness();
        let age = self.freshness.at.map(|at| self.now.saturating_sub(at));
        if age.is_some_and(|age| age <= max) {
            return Ok(self.apply.done);
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Err(ReadError::TooStale { age_ms: age.map(ms), max_ms: ms(max) })
    }

    /// A leader knows what is committed from when a quorum last confirmed that it leads, a follower from when it last
    /// heard from it.
    pub(super) fn note_freshness(&mut self) {
        self.settle_freshness();
        if let Some(at) = self.raft.confirmed_at() {
            self.freshness.heard.get_or_insert((self.raft.commit(), self.raft.term(), at));
            self.settle_freshness();
        }
    }

    /// What was heard counts when it is applied; and only if the leader had committed an entry of its term, before which
    /// it need not know all that others committed (as for ReadIndex, dissertation §6.4).
    fn settle_freshness(&mut self) {
        let heard = self.freshness.heard.take_if(|(commit, ..)| *commit <= self.apply.done);
        let knew = |(commit, term, _): &_| self.raft.id_at(*commit).is_some_and(|id| id.term == *term);
        if let Some((.., at)) = heard.filter(knew) {
            self.freshness.at = Some(at);
        }
    }

    pub(super) fn answer_reads(&mut self) {
        let done = self.apply.done;
        for (index, reply, _) in self.reads.ready.extract_if(.., |(index, ..)| *index <= done) {
            let _ = reply.send(Ok(index));
        }
    }
}
