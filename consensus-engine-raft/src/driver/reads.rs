//! Reads of every consistency.

use std::{collections::BTreeMap, time::Duration};

use consensus_core::{LogIndex, ReadConsistency, ReadError, Term};
use consensus_raft_protocol::Event;
use tokio::sync::oneshot;

use super::Driver;
use crate::admission::Permit;

pub(super) type ReadReply = oneshot::Sender<Result<LogIndex, ReadError>>;

/// Reads in progress: first by token in the protocol, then waiting for an index to be applied.
#[derive(Default)]
pub(super) struct Reads {
    pub(super) next_token: u64,
    /// With the time until which each waits. A read that does not wait any more keeps its permit, because the protocol
    /// still has its token.
    pub(super) pending: BTreeMap<u64, (Duration, Option<ReadReply>, Permit)>,
    pub(super) ready: Vec<(LogIndex, ReadReply, Permit)>,
    /// First token of a read that may still wait.
    waiting_from: u64,
}

impl Reads {
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.pending.range(self.waiting_from..).next().map(|(_, (until, ..))| *until)
    }

    /// Fails the reads whose time is over.
    pub(super) fn expire(&mut self, now: Duration) {
        for (token, (_, reply, _)) in
            self.pending.range_mut(self.waiting_from..).take_while(|(_, (until, ..))| *until <= now)
        {
            self.waiting_from = token + 1;
            if let Some(reply) = reply.take() {
                let _ = reply.send(Err(ReadError::TimedOut));
            }
        }
    }
}

/// How old the applied state of this node may be.
#[derive(Default)]
pub(super) struct Freshness {
    /// Commit index and term of a leader, and when this node learned of them.
    pub(super) heard: Option<(LogIndex, Term, Duration)>,
    /// Latest such time whose commit index is applied.
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
        let until = self.now + self.config.wait_limit();
        self.reads.pending.insert(token, (until, Some(reply), permit));
        self.step(Event::Read { token, lease: consistency == ReadConsistency::Lease });
    }

    pub(super) fn stale_read(&mut self, max: Duration) -> Result<LogIndex, ReadError> {
        self.update_freshness();
        let age = self.freshness.at.map(|at| self.now.saturating_sub(at));
        if age.is_some_and(|age| age <= max) {
            return Ok(self.apply.done);
        }
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Err(ReadError::TooStale { age_ms: age.map(ms), max_ms: ms(max) })
    }

    /// Updates the freshness. A leader knows the commit index as of the last round that a quorum confirmed, a follower as of
    /// its leader's last message.
    pub(super) fn update_freshness(&mut self) {
        self.advance_freshness();
        if let Some(at) = self.raft.confirmed_at() {
            self.freshness.heard.get_or_insert((self.raft.commit(), self.raft.term(), at));
            self.advance_freshness();
        }
    }

    /// Advances the freshness once the commit index is applied, and only if the leader had committed an entry of its term:
    /// before that it may not know all committed entries (as for ReadIndex, dissertation §6.4).
    fn advance_freshness(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;

    #[test]
    fn read_that_is_not_confirmed_in_time_fails_and_keeps_its_permit() {
        let admission = Admission::new(2, 0);
        let mut reads = Reads::default();
        let mut answers = Vec::new();
        for token in 0..2 {
            let (reply, answer) = oneshot::channel();
            let until = Duration::from_secs(1 + token);
            reads.pending.insert(token, (until, Some(reply), admission.admit(0).unwrap()));
            answers.push(answer);
        }
        assert_eq!(reads.next_deadline(), Some(Duration::from_secs(1)));
        reads.expire(Duration::from_secs(1));
        assert_eq!(answers[0].try_recv(), Ok(Err(ReadError::TimedOut)));
        assert!(answers[1].try_recv().is_err());
        assert_eq!(reads.next_deadline(), Some(Duration::from_secs(2)));
        assert!(admission.admit(0).is_err(), "the protocol still has both tokens");
        reads.pending.remove(&0);
        assert!(admission.admit(0).is_ok());
    }
}
