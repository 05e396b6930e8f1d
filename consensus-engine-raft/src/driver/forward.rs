//! Forwarding of proposals from followers to the leader.
//!
//! A follower sends each command once, with its current term, and the leader accepts it only in that term, so a message that
//! the network duplicates is accepted once. If the response is lost, the outcome is unknown, and the caller needs a session
//! ([`consensus_core::session`]) to propose again.

use std::{cmp::Ordering, collections::BTreeMap, time::Duration};

use bytes::Bytes;
use consensus_core::{Committed, LogId, Message, NodeId, ProposeError, Role, Term, codec};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::Driver;
use crate::{inbox::Input, measure::ProposalTiming, waiters::Waiter};

/// Messages between engines, sent as [`Message::Extension`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Forwarded {
    Command {
        term: Term,
        /// Incarnation of the sender; `number` counts its commands.
        incarnation: u64,
        number: u64,
        command: Bytes,
    },
    Response {
        incarnation: u64,
        number: u64,
        response: ForwardedResponse,
    },
    /// A follower has no room for entries that the leader sent, for this reason.
    NoRoom(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ForwardedResponse {
    Committed(LogId, Bytes),
    NotLeader(Option<NodeId>),
    TransferringLeadership(NodeId),
    Overloaded(u64, u64),
    NoRoom(String),
    TooLarge(u64, u64),
    /// The leader is shutting down.
    ShutDown,
    Unknown,
    Stalled(String),
}

pub(super) struct Forwarding {
    numbers: u64,
    /// Waiting clients by number, with their deadline and the leader that must respond. Dropped, a client gets an unknown
    /// outcome.
    waiting: BTreeMap<u64, (Duration, NodeId, Waiter)>,
    accepted: AcceptedCommands,
}

impl Forwarding {
    pub(super) fn new(term_at_start: Term) -> Self {
        Self { numbers: 0, waiting: BTreeMap::new(), accepted: AcceptedCommands::new(term_at_start) }
    }

    /// Must be called when this node became leader of `term`.
    pub(super) fn begin_term(&mut self, term: Term) {
        self.accepted.begin_term(term);
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        // All clients wait equally long.
        self.waiting.first_key_value().map(|(_, (until, ..))| *until)
    }

    pub(super) fn expire(&mut self, now: Duration) {
        while self.next_deadline().is_some_and(|until| until <= now) {
            let Some((_, (_, _, waiter))) = self.waiting.pop_first() else { return };
            waiter.answer(Err(ProposeError::Unknown { why: "the leader did not respond" }));
        }
    }
}

/// Forwarded commands that this node accepted as leader of `term`, the last term in which it was leader.
struct AcceptedCommands {
    term: Term,
    /// Term of this node at its start. It does not know which commands it accepted in earlier terms.
    term_at_start: Term,
    /// Latest number of each sender and incarnation.
    numbers: BTreeMap<(NodeId, u64), u64>,
}

impl AcceptedCommands {
    fn new(term_at_start: Term) -> Self {
        Self { term: Term::ZERO, term_at_start, numbers: BTreeMap::new() }
    }

    /// Must be called when this node became leader of `term`.
    fn begin_term(&mut self, term: Term) {
        if term > self.term {
            self.term = term;
            self.numbers.clear();
        }
    }

    /// Records a command of the term in which this node is leader. Returns whether it was received for the first time.
    fn is_new(&mut self, term: Term, from: NodeId, incarnation: u64, number: u64) -> bool {
        self.begin_term(term);
        // A sender has few incarnations in one term; a larger number can only be an error.
        if self.numbers.len() >= INCARNATIONS_MAX && !self.numbers.contains_key(&(from, incarnation)) {
            return false;
        }
        let last = self.numbers.entry((from, incarnation)).or_default();
        number > std::mem::replace(last, number.max(*last))
    }

    /// Whether no copy of this command was accepted in `term`, in which this node is not leader any more. The arrival of a
    /// late copy says nothing about the first one.
    fn is_certainly_not_accepted(&self, term: Term, from: NodeId, incarnation: u64, number: u64) -> bool {
        match term.cmp(&self.term) {
            Ordering::Equal => self.numbers.get(&(from, incarnation)).is_none_or(|last| number > *last),
            // Every term in which this node became leader since its start was recorded in `term`; this one is later.
            Ordering::Greater => term > self.term_at_start,
            Ordering::Less => false,
        }
    }
}

impl Driver {
    /// Node to which proposals are forwarded, if any.
    pub(super) fn forward_to(&self) -> Option<NodeId> {
        let leader = self.raft.leader().filter(|leader| *leader != self.raft.id());
        leader.filter(|_| self.config.forward_proposals)
    }

    pub(super) fn forward(&mut self, to: NodeId, command: Bytes, waiter: Waiter) {
        self.forwarding.numbers += 1;
        let (term, incarnation, number) = (self.raft.term(), self.incarnation, self.forwarding.numbers);
        if self.send_forwarded(to, &Forwarded::Command { term, incarnation, number, command }) {
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
            Ok(Forwarded::Command { term, incarnation, number, command }) => {
                self.on_forwarded_command(from, (term, incarnation, number), command);
            }
            Ok(Forwarded::Response { incarnation, number, response }) if incarnation == self.incarnation => {
                let is_waiting = self.forwarding.waiting.get(&number).is_some_and(|(_, to, _)| *to == from);
                if let Some((_, _, waiter)) =
                    is_waiting.then(|| self.forwarding.waiting.remove(&number)).flatten()
                {
                    waiter.answer(response.into());
                }
            }
            Ok(Forwarded::NoRoom(why)) => self.on_member_without_room(from, why),
            Ok(Forwarded::Response { .. }) => {} // Responds to an earlier incarnation of this node.
            Err(error) => tracing::debug!(%from, %error, "ignored a malformed message"),
        }
    }

    fn on_forwarded_command(&mut self, from: NodeId, id: (Term, u64, u64), command: Bytes) {
        let (term, incarnation, number) = id;
        let refuse = |driver: &Self, error: ProposeError| {
            driver.send_forwarded(
                from,
                &Forwarded::Response { incarnation, number, response: Err(error).into() },
            );
        };
        if self.raft.role() != Role::Leader || self.raft.term() != term {
            let error = if self.forwarding.accepted.is_certainly_not_accepted(term, from, incarnation, number)
            {
                ProposeError::NotLeader { leader: self.raft.leader() }
            } else {
                ProposeError::Unknown { why: "an earlier copy of the command may be in the log" }
            };
            return refuse(self, error);
        }
        if !self.forwarding.accepted.is_new(term, from, incarnation, number) {
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
            let response = Forwarded::Response { incarnation, number, response: result.into() };
            let _ = transport.send(from, Message::Extension(codec::encode(VERSION, &response).into()));
        });
        let timing = ProposalTiming::start(self.stages.are_recorded());
        self.take(Input::Propose(command, Waiter { reply, permit, timing }));
    }
}

impl From<Result<Committed, ProposeError>> for ForwardedResponse {
    fn from(result: Result<Committed, ProposeError>) -> Self {
        match result {
            Ok(Committed { log_id, response }) => Self::Committed(log_id, response),
            Err(ProposeError::NotLeader { leader }) => Self::NotLeader(leader),
            Err(ProposeError::TransferringLeadership { to }) => Self::TransferringLeadership(to),
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

impl From<ForwardedResponse> for Result<Committed, ProposeError> {
    fn from(response: ForwardedResponse) -> Self {
        Err(match response {
            ForwardedResponse::Committed(log_id, response) => return Ok(Committed { log_id, response }),
            // The leader shut down, but this node did not; the next leader can accept the command.
            ForwardedResponse::ShutDown => ProposeError::NotLeader { leader: None },
            ForwardedResponse::NotLeader(leader) => ProposeError::NotLeader { leader },
            ForwardedResponse::TransferringLeadership(to) => ProposeError::TransferringLeadership { to },
            ForwardedResponse::Overloaded(in_flight, in_flight_bytes) => {
                ProposeError::Overloaded { in_flight, in_flight_bytes }
            }
            ForwardedResponse::NoRoom(why) => ProposeError::NoRoom { why },
            ForwardedResponse::Stalled(why) => ProposeError::Stalled { why },
            ForwardedResponse::TooLarge(bytes, limit) => ProposeError::TooLarge { bytes, limit },
            ForwardedResponse::Unknown => {
                ProposeError::Unknown { why: "the leader does not know the outcome" }
            }
        })
    }
}

/// Election timeouts for which a client waits for the leader's response.
const FORWARD_TIMEOUTS: u32 = 10;
const INCARNATIONS_MAX: usize = 1024;
const VERSION: u8 = 1;

/// For the crate `fuzz`: decodes a message between engines and encodes it again.
pub(crate) fn reencode(bytes: &[u8]) -> Result<Vec<u8>, codec::CodecError> {
    let forwarded: Forwarded = codec::decode("forwarded command", VERSION, bytes)?;
    Ok(codec::encode(VERSION, &forwarded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_delivered_twice_is_accepted_once() {
        let mut leader = AcceptedCommands::new(Term::ZERO);
        let mut is_new =
            |term, from, incarnation, number| leader.is_new(Term(term), NodeId(from), incarnation, number);
        assert!(is_new(1, 2, 7, 1) && !is_new(1, 2, 7, 1) && is_new(1, 2, 7, 2));
        assert!(is_new(1, 3, 7, 1), "another sender");
        assert!(is_new(1, 2, 8, 1) && !is_new(1, 2, 7, 2), "restarted, and a message from before");
        assert!(is_new(2, 2, 7, 3), "another term");
    }

    #[test]
    fn late_copy_is_refused_as_not_applied_only_if_certain() {
        // A node that started in term 3 and was leader of terms 5 and 7.
        let mut accepted = AcceptedCommands::new(Term(3));
        assert!(accepted.is_new(Term(5), NodeId(2), 9, 1));
        assert!(accepted.is_new(Term(7), NodeId(2), 9, 4));
        let certain = |term, number| accepted.is_certainly_not_accepted(Term(term), NodeId(2), 9, number);
        assert!(!certain(7, 4), "its first copy is in the log");
        assert!(certain(7, 5), "no copy came while the node was a leader");
        assert!(certain(8, 1), "the node was no leader in that term");
        assert!(!certain(5, 1) && !certain(6, 1), "it does not know what it accepted in those terms");
        let restarted = AcceptedCommands::new(Term(7));
        assert!(
            !restarted.is_certainly_not_accepted(Term(7), NodeId(2), 9, 4),
            "it may have been leader before its restart"
        );
        assert!(restarted.is_certainly_not_accepted(Term(8), NodeId(2), 9, 4));
    }
}
