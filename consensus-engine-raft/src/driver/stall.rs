//! A disk or a state machine that does not respond: when leadership is transferred, and what clients are told.
//!
//! The task that owns the protocol does not wait for a call of either, so it can measure how long the call takes. (It waits for
//! short calls of the only member; if one of them hangs, another task takes over, see the module `inline`.) A leader
//! whose call exceeds the limit ([`RaftConfig::storage_stall_limit`](crate::RaftConfig::storage_stall_limit),
//! [`RaftConfig::apply_stall_limit`](crate::RaftConfig::apply_stall_limit)) transfers leadership to a voter that has the
//! whole log. If there is none within an election timeout, it steps down, provided that the other members can elect a
//! leader. It does not campaign until the call has returned.

use std::{collections::BTreeSet, time::Duration};

use consensus_core::{ProposeError, ReadError, Role};
use consensus_raft_protocol::Event;

use super::Driver;
use crate::apply_thread::take_all;

/// Calls of storage and state machine that have not returned.
#[derive(Default)]
pub(super) struct Calls {
    /// The write of the log in flight.
    writing: Option<Call>,
    /// The apply call in progress.
    applying: Option<Call>,
    yield_state: LeadershipYield,
}

struct Call {
    began: std::time::Instant,
    /// Start on the clock of the driver; later than `began` if the driver itself did not run for a while.
    since: Duration,
    has_entries: bool,
    is_stalled: bool,
}

/// State of a leader that tries to transfer leadership away.
#[derive(Default)]
struct LeadershipYield {
    /// Nodes to which it tried to transfer leadership.
    tried: BTreeSet<consensus_core::NodeId>,
    /// When it may start the next transfer.
    next_transfer: Duration,
    /// When it steps down if there is no successor.
    step_down_at: Option<Duration>,
}

impl Call {
    /// When the call must be checked next.
    fn deadline(&self, limit: Duration) -> Option<Duration> {
        (!self.is_stalled).then(|| self.since.saturating_add(limit))
    }

    /// Whether the call exceeds the limit for the first time.
    fn stalls(&mut self, now: Duration, limit: Duration) -> bool {
        let Some(deadline) = self.deadline(limit).filter(|deadline| *deadline <= now) else { return false };
        // The driver did not run either, so a paused machine is not mistaken for a stalled disk.
        if now - deadline > limit / 2 {
            self.since = now - limit / 2;
            return false;
        }
        self.is_stalled = true;
        true
    }
}

impl Calls {
    fn stalled(call: &Option<Call>) -> Option<&Call> {
        call.as_ref().filter(|call| call.is_stalled)
    }

    pub(super) fn storage_stalled_since(&self) -> Option<std::time::Instant> {
        Self::stalled(&self.writing).map(|call| call.began)
    }

    pub(super) fn apply_stalled_since(&self) -> Option<std::time::Instant> {
        Self::stalled(&self.applying).map(|call| call.began)
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    fn are_stalled(&self) -> bool {
        Self::stalled(&self.writing).or(Self::stalled(&self.applying)).is_some()
    }
}

impl Driver {
    fn call(&self, has_entries: bool) -> Option<Call> {
        Some(Call { began: self.turn_began, since: self.now, has_entries, is_stalled: false })
    }

    /// Must be called before a write is passed to the storage.
    pub(super) fn write_starts(&mut self, has_entries: bool) {
        self.calls.writing = self.call(has_entries);
    }

    /// Must be called when the write in flight returned. Returns whether it had entries.
    pub(super) fn write_returned(&mut self) -> bool {
        let Some(call) = self.calls.writing.take() else { return false };
        if call.is_stalled {
            tracing::info!(after = ?call.began.elapsed(), "the disk of the log responds again");
            self.end_stall();
        }
        call.has_entries
    }

    /// Must be called before entries are passed to the state machine.
    pub(super) fn apply_starts(&mut self) {
        self.calls.applying = self.call(true);
    }

    /// Must be called when the entries were applied. Returns how long that took.
    pub(super) fn apply_returned(&mut self) -> Duration {
        let Some(call) = self.calls.applying.take() else { return Duration::ZERO };
        if call.is_stalled {
            tracing::info!(after = ?call.began.elapsed(), "the state machine responds again");
            self.end_stall();
        }
        self.now.saturating_sub(call.since)
    }

    fn end_stall(&mut self) {
        if !self.calls.are_stalled() {
            self.step(Event::Stalled(false));
        }
    }

    pub(super) fn next_stall_deadline(&self) -> Option<Duration> {
        let writing = self.calls.writing.as_ref().and_then(|call| call.deadline(self.config.storage_limit()));
        let applying = self.calls.applying.as_ref().and_then(|call| call.deadline(self.config.apply_limit()));
        writing.into_iter().chain(applying).min()
    }

    /// Checks whether a call exceeds its limit.
    pub(super) fn watch_calls(&mut self) {
        let now = self.now;
        let (storage_limit, apply_limit) = (self.config.storage_limit(), self.config.apply_limit());
        let were_stalled = self.calls.are_stalled();
        if self.calls.writing.as_mut().is_some_and(|call| call.stalls(now, storage_limit)) {
            tracing::warn!(limit = ?storage_limit, "the disk of the log is stalled: a write exceeds its time limit; this node does not act as leader until it returns");
            self.waiters.fail_all(&ProposeError::Unknown { why: DISK_STALLED });
        }
        if self.calls.applying.as_mut().is_some_and(|call| call.stalls(now, apply_limit)) {
            tracing::warn!(limit = ?apply_limit, last = %self.apply.handed, "the state machine is stalled: applying entries exceeds its time limit; this node does not act as leader until it returns");
            self.waiters.fail_all(&ProposeError::Unknown { why: MACHINE_STALLED });
            self.fail_applying(&ProposeError::Unknown { why: MACHINE_STALLED });
        }
        if self.calls.are_stalled() && !were_stalled {
            self.step(Event::Stalled(true));
        }
    }

    /// Fails the clients whose commands were passed to the state machine.
    pub(super) fn fail_applying(&mut self, error: &ProposeError) {
        for (_, waiter) in take_all(&self.apply.waiters) {
            waiter.answer(Err(error.clone()));
        }
    }

    /// Why a leader that cannot write or apply refuses proposals, unless it is transferring leadership.
    pub(super) fn proposal_refusal(&self) -> Option<(&'static str, ProposeError)> {
        if self.raft.role() != Role::Leader {
            return None;
        }
        if let Some(why) = self.why_no_room() {
            return Some(("no_room", ProposeError::NoRoom { why }));
        }
        let (call, what) = match (Calls::stalled(&self.calls.writing), Calls::stalled(&self.calls.applying)) {
            (Some(call), _) => (call, DISK_STALLED),
            (None, Some(call)) => (call, MACHINE_STALLED),
            (None, None) => return None,
        };
        let why = format!("{what}, for {:.1} s now", call.began.elapsed().as_secs_f64());
        let waits = self.raft.transferring_to().is_none();
        waits.then_some(("stalled", ProposeError::Stalled { why }))
    }

    /// Refuses reads that wait for entries that this node cannot apply for now, so that another node can serve them.
    pub(super) fn refuse_stuck_reads(&mut self) {
        let is_apply_stalled = Calls::stalled(&self.calls.applying).is_some();
        let is_storage_stuck = Calls::stalled(&self.calls.writing).is_some() || self.no_room.is_some();
        if !is_apply_stalled && !is_storage_stuck {
            return;
        }
        let leader = self.raft.leader().filter(|leader| *leader != self.raft.id());
        let durable = self.raft.durable();
        let is_stuck = |index| is_apply_stalled || index > durable;
        for (_, reply, _) in self.reads.ready.extract_if(.., |(index, ..)| is_stuck(*index)) {
            let _ = reply.send(Err(ReadError::NotLeader { leader }));
        }
    }

    /// On a leader that cannot write or apply: transfers leadership, or steps down, as soon as another node can be leader.
    pub(super) fn yield_leadership(&mut self) {
        let is_stalled = self.calls.are_stalled();
        if self.raft.role() != Role::Leader || !(is_stalled || self.no_room.is_some()) {
            self.calls.yield_state = LeadershipYield::default();
            return;
        }
        if self.raft.transferring_to().is_some() || self.leaving.is_some() {
            return;
        }
        let (now, timeout) = (self.now, self.config.protocol.election_timeout);
        let yield_state = &mut self.calls.yield_state;
        if now >= yield_state.next_transfer
            && let Some(to) = self.raft.successor(&yield_state.tried)
        {
            if !yield_state.tried.insert(to) {
                yield_state.tried = BTreeSet::from([to]);
            }
            yield_state.next_transfer = now + 2 * timeout;
            tracing::info!(%to, "transferring leadership, because this node cannot write or apply entries");
            let token = self.requests.token();
            return self.step(Event::Transfer { token, to: Some(to) });
        }
        if is_stalled && self.raft.can_be_replaced() {
            let at = *yield_state.step_down_at.get_or_insert(now + timeout);
            if now >= at {
                tracing::warn!(
                    "stepping down, because this node cannot write or apply entries and no voter has the whole log"
                );
                self.step(Event::StepDown);
            }
        }
    }
}

const DISK_STALLED: &str = "the disk of the leader does not respond";
const MACHINE_STALLED: &str = "the state machine of the leader does not respond";
