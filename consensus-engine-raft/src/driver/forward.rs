//! Commands that a follower has proposed by the leader.
//!
//! Each is sent once, to the leader of the term in which it is sent, and is taken only in that term; so what the network
//! delivers twice is taken once. The answer may be lost: then nobody knows, and the caller needs a session
//! ([`consensus_core::session`]) to propose again.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use consensus_core::{Committed, LogId, Message, NodeId, ProposeError, Role, Term, codec};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Driver;
use crate::{inbox::Input, measure::Course, waiters::Waiter};

/// What travels as [`Message::Extension`].
#[derive(Debug, Serialize, Deserialize)]
enum Forwarded {
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
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Committed(LogId, Bytes),
    NotLeader(Option<NodeId>),
    HandingOver(NodeId),
    Overloaded(u64, u64),
    NoRoom(String),
    TooLarge(u64, u64),
    /// The leader is going down.
    ShutDown,
    Unknown,
}

#[derive(Default)]
pub(super) struct Forwarding {
    numbers: u64,
    /// Those who wait here: until when, for whose answer. Dropped, they learn that nobody knows.
    waiting: BTreeMap<u64, (Duration, NodeId, Waiter)>,
    /// On a leader: in which term the latest number was taken, of each life of each sender.
    taken: (Term, BTreeMap<(NodeId, u64), u64>),
}

impl Forwarding {
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

    /// Whether a command comes for the first time.
    fn is_new(&mut self, term: Term, from: NodeId, life: u64, number: u64) -> bool {
        if self.taken.0 != term {
            self.taken = (term, BTreeMap::new());
        }
        let taken = &mut self.taken.1;
        // Lives are few; more than this in one term only someone in error has.
        if taken.len() >= LIVES_MAX && !taken.contains_key(&(from, life)) {
            return false;
        }
        let last = taken.entry((from, life)).or_default();
        number > std::mem::replace(last, number.max(*last))
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

    fn send_forwarded(&self, to: NodeId, forwarded: &Forwarded) -> bool {
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
            Ok(Forwarded::Answer { .. }) => {} // To who this node was before it was restarted.
            Err(error) => tracing::debug!(%from, %error, "ignored"),
        }
    }

    fn on_forwarded_command(&mut self, from: NodeId, id: (Term, u64, u64), command: Bytes) {
        let (term, life, number) = id;
        let refuse = |driver: &Self, error: ProposeError| {
            driver.send_forwarded(from, &Forwarded::Answer { life, number, answer: Err(error).into() });
        };
        // In that term it will not lead again, so this is the truth for every copy of the command.
        if self.raft.role() != Role::Leader || self.raft.term() != term {
            return refuse(self, ProposeError::NotLeader { leader: self.raft.leader() });
        }
        if !self.forwarding.is_new(term, from, life, number) {
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
            Err(ProposeError::HandingOver { to }) => Self::HandingOver(to),
            Err(ProposeError::Overloaded { in_flight, in_flight_bytes }) => {
                Self::Overloaded(in_flight, in_flight_bytes)
            }
            Err(ProposeError::NoRoom { why }) => Self::NoRoom(why),
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
            Answer::HandingOver(to) => ProposeError::HandingOver { to },
            Answer::Overloaded(in_flight, in_flight_bytes) => {
                ProposeError::Overloaded { in_flight, in_flight_bytes }
            }
            Answer::NoRoom(why) => ProposeError::NoRoom { why },
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
    fn a_command_delivered_twice_is_taken_once() {
        let mut leader = Forwarding::default();
        let mut is_new = |term, from, life, number| leader.is_new(Term(term), NodeId(from), life, number);
        assert!(is_new(1, 2, 7, 1) && !is_new(1, 2, 7, 1) && is_new(1, 2, 7, 2));
        assert!(is_new(1, 3, 7, 1), "another sender");
        assert!(is_new(1, 2, 8, 1) && !is_new(1, 2, 7, 2), "restarted, and a message from before");
        assert!(is_new(2, 2, 7, 3), "another term");
    }
}
