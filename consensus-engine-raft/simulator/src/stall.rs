//! The driver's handling of calls that do not return, and of disks without room, in simulated time.
//!
//! As in the driver (`consensus-engine-raft/src/driver/stall.rs`): a leader whose write or apply takes too long transfers
//! leadership to a voter that has the whole log. If there is none within an election timeout it steps down, provided that the
//! others can elect a leader. It does not campaign until the call has returned.

use std::collections::BTreeSet;

use consensus_core::{LogIndex, NodeId, Role};
use consensus_raft_protocol::Event;

use crate::{
    clients::Answer,
    world::{MS, World},
};

/// Calls of storage and state machine that take long.
#[derive(Debug, Default)]
pub(crate) struct Stall {
    /// When a write was first observed not to return.
    writing_since: Option<u64>,
    /// When an apply was first observed not to return.
    applying_since: Option<u64>,
    /// Whether the protocol knows of the stall.
    is_told: bool,
    /// Node to which the leader tried to transfer leadership.
    tried: BTreeSet<NodeId>,
    /// When the leader may start the next transfer.
    next_transfer: u64,
    /// When the leader steps down.
    step_down_at: Option<u64>,
}

/// A call that may take long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stalling {
    Write,
    Apply,
}

impl Stall {
    fn since(&mut self, call: Stalling) -> &mut Option<u64> {
        match call {
            Stalling::Write => &mut self.writing_since,
            Stalling::Apply => &mut self.applying_since,
        }
    }

    /// Whether a call takes too long.
    pub(crate) fn is_stalled(&self, now: u64) -> bool {
        let since = self.writing_since.into_iter().chain(self.applying_since).min();
        since.is_some_and(|since| now - since >= STALL_MAX_MS * MS)
    }
}

impl World {
    /// Records that a call has not returned yet.
    pub(crate) fn note_stall(&mut self, id: NodeId, call: Stalling) {
        let now = self.now;
        let Some(up) = &mut self.node_mut(id).up else { return };
        up.stall.since(call).get_or_insert(now);
        if !up.stall.is_stalled(now) {
            return;
        }
        if !std::mem::replace(&mut up.stall.is_told, true) {
            self.step(id, Event::Stalled(true));
        }
        self.refuse_stuck_reads(id, call);
        self.yield_stalled_leadership(id);
    }

    /// Refuses reads that wait for entries that this node cannot apply for now, so that another node can serve them.
    fn refuse_stuck_reads(&mut self, id: NodeId, call: Stalling) {
        let Some(up) = &mut self.node_mut(id).up else { return };
        let durable = up.raft.durable();
        let is_stuck = |index: LogIndex| call == Stalling::Apply || index > durable;
        let stuck: Vec<_> = up.ready.extract_if(.., |(index, _)| is_stuck(*index)).collect();
        for (_, asked) in stuck {
            self.answer(asked, Answer::NotApplied);
        }
    }

    /// Records that a call has returned.
    pub(crate) fn end_stall(&mut self, id: NodeId, call: Stalling) {
        let now = self.now;
        let Some(up) = &mut self.node_mut(id).up else { return };
        *up.stall.since(call) = None;
        if up.stall.is_told && !up.stall.is_stalled(now) {
            up.stall.is_told = false;
            self.step(id, Event::Stalled(false));
        }
    }

    fn yield_stalled_leadership(&mut self, id: NodeId) {
        let (now, timeout) = (self.now, self.plan.election_ms * MS);
        let Some(up) = &mut self.node_mut(id).up else { return };
        let stall = &mut up.stall;
        if up.raft.role() != Role::Leader {
            (stall.tried, stall.next_transfer, stall.step_down_at) = (BTreeSet::new(), 0, None);
            return;
        }
        if up.raft.transferring_to().is_some() {
            return;
        }
        if now >= stall.next_transfer
            && let Some(to) = up.raft.successor(&stall.tried)
        {
            if !stall.tried.insert(to) {
                stall.tried = BTreeSet::from([to]);
            }
            stall.next_transfer = now + 2 * timeout;
            self.tokens += 1;
            self.checks.reach("stalled leader transfers leadership");
            return self.step(id, Event::Transfer { token: self.tokens, to: Some(to) });
        }
        if up.raft.can_be_replaced() && now >= *stall.step_down_at.get_or_insert(now + timeout) {
            self.checks.reach("stalled leader steps down");
            self.step(id, Event::StepDown);
        }
    }

    /// A leader without room transfers leadership to a voter that has the whole log, if there is one.
    pub(crate) fn yield_leadership_without_room(&mut self, id: NodeId) {
        let Some(up) = &self.node(id).up else { return };
        let successor = up.raft.successor(&BTreeSet::new()).filter(|_| up.raft.transferring_to().is_none());
        if let Some(to) = successor {
            self.tokens += 1;
            self.step(id, Event::Transfer { token: self.tokens, to: Some(to) });
        }
    }
}

/// Interval in milliseconds at which hanging calls are checked.
pub(crate) const STALL_STEP_MS: u64 = 100;
/// Time limit of a call, like the driver's default.
const STALL_MAX_MS: u64 = 2_000;
