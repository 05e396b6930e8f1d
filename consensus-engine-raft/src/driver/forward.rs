//! Commands that a follower has proposed by the leader.
//!
//! Each is sent once, to the leader of the term in which it is sent, and is taken only in that term; so what the network
//! delivers twice is taken once. The answer may be lost: then nobody knows, and the caller needs a session
//! ([`consensus_core::session`]) to propose again.

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use consensus_core::{Committed, LogId, Message, NodeId, ProposeError, Role, Term, codec};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Driver;
use crate::{inbox::Input, measure::Course, waiters::Waiter};

/// What travels as [`Message::Extension`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Forwarded {
    Command {
        term: Term,
        /// Which start of the sender; its numbers count up from there.
        life: u64,
        number: u64,
        command: Bytes,
    },
    Answer {
        life: u64,
        number: u64,
        answer: Answer,
    },
    /// A follower has no room for the entries that the leader sent; why.
    NoRoom(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Committed(LogId, Bytes),
    NotLeader(Option<NodeId>),
    HandingOver(NodeId),
    Overloaded(u64, u64),
    NoRoom(String),
    TooLarge(u64, u64),
    /// The leader is going down.
    ShutDown,
    Unknown,
    Stalled(String),
}

pub(super) struct Forwarding {
    numbers: u64,
    /// Those who wait here: until when, for whose answer. Dropped, they learn that nobody knows.
    waiting: BTreeMap<u64, (Duration, NodeId, Waiter)>,
    taken: Taken,
}

impl Forwarding {
    pub(super) fn new(term_at_start: Term) -> Self {
        Self { numbers: 0, waiting: BTreeMap::new(), taken: Taken::new(term_at_start) }
    }

    /// This node became the leader of `term`.
    pub(super) fn begin_term(&mut self, term: Term) {
        self.taken.begin_term(term);
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        // All wait equally long.
        self.waiting.first_key_value().map(|(_, (until, ..))| *until)
    }

    pub(super) fn expire(&mut self, now: Duration) {
        while self.next_deadline().is_some_and(|until| until <= now) {
            let Some((_, (_, _, waiter))) = self.waiting.pop_first() else { return };
            waiter.answer(Err(ProposeError::Unknown { why: "the leader did not answer" }));
        }
    }
}

/// The forwarded commands that this node took as the leader of one term, the last one in which it was a leader.
struct Taken {
    term: Term,
    /// Term in which this node was when it started: what it took in earlier ones it has forgotten.
    term_at_start: Term,
    /// Latest number of each life of each sender.
    numbers: BTreeMap<(NodeId, u64), u64>,
}

impl Taken {
    fn new(term_at_start: Term) -> Self {
        Self { term: Term::ZERO, term_at_start, numbers: BTreeMap::new() }
    }

    /// This node became the leader of `term`.
    fn begin_term(&mut self, term: Term) {
        if term > self.term {
            self.term = term;
            self.numbers.clear();
        }
    }

    /// Notes a command of the term that this node leads; whether it comes for the first time.
    fn is_new(&mut self, term: Term, from: NodeId, life: u64, number: u64) -> bool {
        self.begin_term(term);
        // Lives are few; more than this in one term only someone in error has.
        if self.numbers.len() >= LIVES_MAX && !self.numbers.contains_key(&(from, life)) {
            return false;
        }
        let last = self.numbers.entry((from, life)).or_default();
        number > std::mem::replace(last, number.max(*last))
    }

    /// Whether it is certain that no copy of this command was taken in `term`, which this node does not lead any more and so
    /// will not take it in. A copy that arrives late says nothing of the first one.
    fn is_certainly_not_taken(&self, term: Term, from: NodeId, life: u64, number: u64) -> bool {
        match term.cmp(&self.term) {
            Ordering::Equal => self.numbers.get(&(from, life)).is_none_or(|last| number > *last),
            // Terms in which it was a leader since its start are noted when they begin: this one was none of them.
            Ordering::Greater => term > self.term_at_start,
            Ordering::Less => false,
        }
    }
}

impl Driver {
    /// To whom a proposal goes from here.
    pub(super) fn forward_to(&self) -> Option<NodeId> {
        let leader = self.raft.leader().filter(|leader| *leader != self.raft.id());
        leader.filter(|_| self.config.forward_proposals)
    }

    pub(super) fn forward(&mut self, to: NodeId, command: Bytes, waiter: Waiter) {
        self.forwarding.numbers += 1;
        let (term, life, number) = (self.raft.term(), self.life, self.forwarding.numbers);
        if self.send_forwarded(to, &Forwarded::Command { term, life, number, command }) {
            let until = self.now + FORWARD_TIMEOUTS * self.config.protocol.election_timeout;
            self.forwarding.waiting.insert(number, (until, to, waiter));
        } else {
            waiter.answer(Err(ProposeError::NotLeader { leader: Some(to) }));
        }
    }

    pub(super) fn send_forwarded(&self, to: NodeId, forwarded: &Forwarded) -> bool {
        self.transport.send(to, Message::Extension(codec::encode(VERSION, forwarded).into())).is_ok()
    }

    pub(super) fn on_forwarded(&mut self, from: NodeId, bytes: &Bytes) {
        match codec::decode("forwarded command", VERSION, bytes) {
            Ok(Forwarded::Command { term, life, number, command }) => {
                self.on_forwarded_command(from, (term, life, number), command);
            }
            Ok(Forwarded::Answer { life, number, answer }) if life == self.life => {
                let waits = self.forwarding.waiting.get(&number).is_some_and(|(_, to, _)| *to == from);
                if let Some((_, _, waiter)) = waits.then(|| self.forwarding.waiting.remove(&number)).flatten()
                {
                    waiter.answer(answer.into());
                }
            }
            Ok(Forwarded::NoRoom(why)) => self.on_member_without_room(from, why),
            Ok(Forwarded::Answer { .. }) => {} // To who this node was before it was restarted.
            Err(error) => tracing::debug!(%from, %error, "ignored"),
        }
    }

    fn on_forwarded_command(&mut self, from: NodeId, id: (Term, u64, u64), command: Bytes) {
        let (term, life, number) = id;
        let refuse = |driver: &Self, error: ProposeError| {
            driver.send_forwarded(from, &Forwarded::Answer { life, number, answer: Err(error).into() });
        };
        if self.raft.role() != Role::Leader || self.raft.term() != term {
            let error = if self.forwarding.taken.is_certainly_not_taken(term, from, life, number) {
                ProposeError::NotLeader { leader: self.raft.leader() }
            } else {
                ProposeError::Unknown { why: "an earlier copy of the command may be in the log" }
            };
            return refuse(self, error);
        }
        if !self.forwarding.taken.is_new(term, from, life, number) {
            return;
        }
        let (bytes, limit) = (command.len() as u64, self.config.command_bytes_max);
        if bytes > limit {
            return refuse(self, ProposeError::TooLarge { bytes, limit });
        }
        let permit = match self.proposals.admit(bytes) {
            Ok(permit) => permit,
            Err((in_flight, in_flight_bytes)) => {
                return refuse(self, ProposeError::Overloaded { in_flight, in_flight_bytes });
            }
        };
        let (reply, result) = oneshot::channel();
        let transport = self.transport.clone();
        tokio::spawn(async move {
            let result = result.await.unwrap_or(Err(ProposeError::Unknown { why: "the engine stopped" }));
            let answer = Forwarded::Answer { life, number, answer: result.into() };
            let _ = transport.send(from, Message::Extension(codec::encode(VERSION, &answer).into()));
        });
        let course = Course::begin(self.stages.are_recorded());
        self.take(Input::Propose(command, Waiter { reply, permit, course }));
    }
}

impl From<Result<Committed, ProposeError>> for Answer {
    fn from(result: Result<Committed, ProposeError>) -> Self {
        match result {
            Ok(Committed { log_id, response }) => Self::Committed(log_id, response),
            Err(ProposeError::NotLeader { leader }) => Self::NotLeader(leader),
            Err(ProposeError::TransferringLeadership { to }) => Self::HandingOver(to),
            Err(ProposeError::Overloaded { in_flight, in_flight_bytes }) => {
                Self::Overloaded(in_flight, in_flight_bytes)
            }
            Err(ProposeError::NoRoom { why }) => Self::NoRoom(why),
            Err(ProposeError::Stalled { why }) => Self::Stalled(why),
            Err(ProposeError::TooLarge { bytes, limit }) => Self::TooLarge(bytes, limit),
            Err(ProposeError::ShutDown) => Self::ShutDown,
            Err(_) => Self::Unknown,
        }
    }
}

impl From<Answer> for Result<Committed, ProposeError> {
    fn from(answer: Answer) -> Self {
        Err(match answer {
            Answer::Committed(log_id, response) => return Ok(Committed { log_id, response }),
            // This node is not shut down; the next leader can be asked.
            Answer::ShutDown => ProposeError::NotLeader { leader: None },
            Answer::NotLeader(leader) => ProposeError::NotLeader { leader },
            Answer::HandingOver(to) => ProposeError::TransferringLeadership { to },
            Answer::Overloaded(in_flight, in_flight_bytes) => {
                ProposeError::Overloaded { in_flight, in_flight_bytes }
            }
            Answer::NoRoom(why) => ProposeError::NoRoom { why },
            Answer::Stalled(why) => ProposeError::Stalled { why },
            Answer::TooLarge(bytes, limit) => ProposeError::TooLarge { bytes, limit },
            Answer::Unknown => ProposeError::Unknown { why: "the leader does not know" },
        })
    }
}

/// Election timeouts after which an answer is not waited for any more.
const FORWARD_TIMEOUTS: u32 = 10;
const LIVES_MAX: usize = 1024;
const VERSION: u8 = 1;

/// For the crate `fuzz`: reads what travels between engines, and writes it again.
pub(crate) fn reread(bytes: &[u8]) -> Result<Vec<u8>, codec::CodecError> {
    let forwarded: Forwarded = codec::decode("forwarded command", VERSION, bytes)?;
    Ok(codec::encode(VERSION, &forwarded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_delivered_twice_is_taken_once() {
        let mut leader = Taken::new(Term::ZERO);
        let mut is_new = |term, from, life, number| leader.is_new(Term(term), NodeId(from), life, number);
        assert!(is_new(1, 2, 7, 1) && !is_new(1, 2, 7, 1) && is_new(1, 2, 7, 2));
        assert!(is_new(1, 3, 7, 1), "another sender");
        assert!(is_new(1, 2, 8, 1) && !is_new(1, 2, 7, 2), "restarted, and a message from before");
        assert!(is_new(2, 2, 7, 3), "another term");
    }

    #[test]
    fn late_copy_is_refused_as_not_done_only_where_that_is_certain() {
        // A node that came up in term 3 and was the leader of terms 5 and 7.
        let mut taken = Taken::new(Term(3));
        assert!(taken.is_new(Term(5), NodeId(2), 9, 1));
        assert!(taken.is_new(Term(7), NodeId(2), 9, 4));
        let certain = |term, number| taken.is_certainly_not_taken(Term(term), NodeId(2), 9, number);
        assert!(!certain(7, 4), "its first copy is in the log");
        assert!(certain(7, 5), "no copy came while the node was a leader");
        assert!(certain(8, 1), "the node was no leader in that term");
        assert!(!certain(5, 1) && !certain(6, 1), "what it took then is forgotten");
        let restarted = Taken::new(Term(7));
        assert!(
            !restarted.is_certainly_not_taken(Term(7), NodeId(2), 9, 4),
            "it may have led before it was restarted"
        );
        assert!(restarted.is_certainly_not_taken(Term(8), NodeId(2), 9, 4));
    }
}
