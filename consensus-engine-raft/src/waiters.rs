//! Clients that wait for the result of their command. A result is matched by index *and* term (known bug K1).

use std::{collections::VecDeque, time::Duration};

use consensus_core::{Committed, LogId, LogIndex, NodeId, ProposeError, Term};
use tokio::sync::oneshot;

use crate::{admission::Permit, measure::ProposalTiming};

/// A client that waits for one command.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) reply: oneshot::Sender<Result<Committed, ProposeError>>,
    /// Released when the client gets its result; limits the proposals in flight.
    pub(crate) permit: Permit,
    pub(crate) timing: ProposalTiming,
}

impl Waiter {
    pub(crate) fn answer(self, result: Result<Committed, ProposeError>) {
        drop(self.permit);
        let _ = self.reply.send(result); // The client may have gone away.
    }
}

/// All waiting clients of this node.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    /// Clients whose entries are of the term in which this node is leader, in log order, with the time at which they stop
    /// waiting.
    leading: VecDeque<(LogId, Duration, Waiter)>,
    /// Clients whose entries are of an earlier term of this node as leader, with the time at which they stop waiting.
    /// Another leader may still commit such an entry, or replace it.
    orphaned: Vec<(LogId, Duration, Waiter)>,
}

impl Waiters {
    pub(crate) fn push(&mut self, id: LogId, until: Duration, waiter: Waiter) {
        self.leading.push_back((id, until, waiter));
    }

    /// Must be called when the node is not leader any more.
    pub(crate) fn orphan(&mut self, until: Duration) {
        self.orphaned.extend(self.leading.drain(..).map(|(id, _, waiter)| (id, until, waiter)));
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let oldest = self.leading.front();
        self.orphaned.iter().chain(oldest).map(|(_, until, _)| *until).min()
    }

    /// Reports an unknown outcome to clients whose time is over.
    pub(crate) fn expire(&mut self, now: Duration) {
        for (_, _, waiter) in self.orphaned.extract_if(.., |(_, until, _)| *until <= now) {
            waiter.answer(Err(ProposeError::Unknown {
                why: "this node lost leadership before it was committed",
            }));
        }
        while self.leading.front().is_some_and(|(_, until, _)| *until <= now)
            && let Some((_, _, waiter)) = self.leading.pop_front()
        {
            waiter.answer(Err(ProposeError::Unknown { why: "it was not committed in time" }));
        }
    }

    /// Removes and returns the clients of entries up to `last`, which are about to be applied, in log order.
    /// `committed_term` is the term of each entry. A client whose entry was replaced by one of another term is told that its
    /// command was not applied.
    pub(crate) fn take(
        &mut self,
        last: LogIndex,
        leader: Option<NodeId>,
        committed_term: impl Fn(LogIndex) -> Option<Term>,
    ) -> Vec<(LogIndex, Waiter)> {
        let mut due: Vec<(LogId, Waiter)> = self
            .orphaned
            .extract_if(.., |(id, ..)| id.index <= last)
            .map(|(id, _, waiter)| (id, waiter))
            .collect();
        due.sort_by_key(|(id, _)| id.index);
        while self.leading.front().is_some_and(|(id, ..)| id.index <= last)
            && let Some((id, _, waiter)) = self.leading.pop_front()
        {
            due.push((id, waiter));
        }
        let mut matching = Vec::with_capacity(due.len());
        for (id, waiter) in due {
            match committed_term(id.index) {
                Some(term) if term == id.term => matching.push((id.index, waiter)),
                Some(_) => waiter.answer(Err(ProposeError::NotLeader { leader })),
                None => {
                    waiter.answer(Err(ProposeError::Unknown { why: "the log was replaced by a snapshot" }));
                }
            }
        }
        matching.sort_by_key(|(index, _)| *index);
        matching
    }

    pub(crate) fn fail_all(&mut self, error: &ProposeError) {
        let orphaned = self.orphaned.drain(..).map(|(_, _, waiter)| waiter);
        for waiter in self.leading.drain(..).map(|(_, _, waiter)| waiter).chain(orphaned) {
            waiter.answer(Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;

    #[test]
    fn waiter_of_replaced_entry_learns_that_it_was_not_applied() {
        let admission = Admission::new(9, 99);
        let mut waiters = Waiters::default();
        let wait = |waiters: &mut Waiters, id| {
            let (reply, answer) = oneshot::channel();
            let (permit, timing) = (admission.admit(1).unwrap(), ProposalTiming::start(true));
            waiters.push(id, Duration::from_secs(9), Waiter { reply, permit, timing });
            answer
        };
        let mut kept = wait(&mut waiters, LogId::new(1, 5));
        let mut replaced = wait(&mut waiters, LogId::new(1, 6));
        let mut late = wait(&mut waiters, LogId::new(1, 7));
        waiters.orphan(Duration::from_secs(1));
        let mut again = wait(&mut waiters, LogId::new(3, 6));

        let due = waiters.take(LogIndex(6), Some(NodeId(2)), |i| Some(Term(if i.0 == 5 { 1 } else { 3 })));
        assert_eq!(due.iter().map(|(index, _)| index.0).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(replaced.try_recv().unwrap(), Err(ProposeError::NotLeader { leader: Some(NodeId(2)) }));
        assert!(kept.try_recv().is_err() && again.try_recv().is_err(), "answered by the apply thread");

        waiters.expire(Duration::from_millis(999));
        assert!(late.try_recv().is_err());
        waiters.expire(Duration::from_secs(1));
        assert!(late.try_recv().unwrap().unwrap_err().maybe_applied());

        let mut slow = wait(&mut waiters, LogId::new(3, 8));
        assert_eq!(waiters.next_deadline(), Some(Duration::from_secs(9)));
        waiters.expire(Duration::from_millis(8999));
        assert!(slow.try_recv().is_err());
        waiters.expire(Duration::from_secs(9));
        assert!(slow.try_recv().unwrap().unwrap_err().maybe_applied());
    }
}
