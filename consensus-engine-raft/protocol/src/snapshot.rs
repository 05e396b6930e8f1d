//! Snapshots sent to a follower whose log is gone (§7).
//!
//! Installing is told as numbered steps, because a crash may come between any two (I11):
//! 1. The whole stream is here, checked. Nothing has changed yet.
//! 2. `installing` is set in the hard state, durably.
//! 3. The state machine restores, all or nothing.
//! 4. One write purges the log up to the snapshot and clears `installing`.
//! 5. Only then does the sender hear that it is installed.
//!
//! If the machine does not restore, `installing` is cleared again, and the node is what it was before 1.
//!
//! A restart between 2 and 4 asks the state machine which side of 3 it is on, and finishes or forgets.

use consensus_core::{
    HardState, LogBatch, LogIndex, LogState, MemberKind, Membership, NodeId, SnapshotMeta, Term,
};

use crate::{Output, Raft, SnapshotVerdict, progress::State, raft::Role};

impl Raft {
    pub(crate) fn on_snapshot_arrived(&mut self, from: NodeId, term: Term, meta: SnapshotMeta) {
        if term < self.hard.term || !self.follow(from, term) || self.hard.installing.is_some() {
            self.outputs.push(Output::SnapshotSettled(SnapshotVerdict::Refused));
            return;
        }
        if let Some(contradiction) = self.contradicts_snapshot(from, &meta) {
            self.outputs.push(Output::SnapshotSettled(SnapshotVerdict::Refused));
            return self.contradict(contradiction);
        }
        if meta.last.index <= self.commit || self.log.contains(meta.last) {
            // Everything it covers is in the log: what a snapshot covers is committed.
            self.commit = self.commit.max(meta.last.index);
            self.output_when_durable(Output::SnapshotSettled(SnapshotVerdict::Held));
            self.apply_committed();
            return;
        }
        self.hard.installing = Some(meta.clone());
        self.writes.hard_state();
        self.output_when_durable(Output::Install(meta));
    }

    pub(crate) fn on_snapshot_installed(&mut self) {
        let Some(meta) = self.hard.installing.take() else { return };
        // The log does not have the snapshot's last entry, so what it has beyond is of another history.
        self.log.reset(&meta);
        self.writes.reset(meta.last.index);
        self.writes.hard_state();
        self.applied_by_snapshot(meta.last.index);
        self.forget_loss();
        self.finish_joining();
        self.writes.purge(meta);
        self.output_when_durable(Output::SnapshotSettled(SnapshotVerdict::Held));
        self.reset_election_deadline();
    }

    pub(crate) fn on_snapshot_not_installed(&mut self) {
        if self.hard.installing.take().is_some() {
            self.writes.hard_state();
            self.reset_election_deadline();
            // What was committed meanwhile was not let out.
            self.apply_committed();
        }
    }

    pub(crate) fn on_snapshot_sent(&mut self, to: NodeId, last: Option<LogIndex>) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&to).filter(|peer| matches!(peer.state, State::Snapshot))
        else {
            return;
        };
        // Where the follower's log now ends is its own to say: it is asked, not assumed.
        peer.probe_from(last.map_or(peer.next, LogIndex::next));
    }

    /// Called by the driver at start, before the protocol exists, if the log is damaged: the write that cuts it, so that
    /// the rest is fetched again (I16). `None` if that cannot be, in a configuration of which the log tells: the others that
    /// keep commands must be a quorum by themselves. With fewer, this node may have had the only copy of one, or be needed to
    /// elect anybody; and a witness that heard of an entry from it votes for nobody who lacks that.
    #[must_use]
    pub fn repair(log: &LogState, own: NodeId) -> Option<LogBatch> {
        let damage = log.damage.as_ref()?;
        let known = log.memberships.last().map_or(&log.purged.membership, |(_, membership)| membership);
        let spares = |membership: &Membership| {
            let is_witness = |id| membership.get(id).is_some_and(|member| member.kind == MemberKind::Witness);
            membership.quorum_value(|id| id != own && !is_witness(id)) == Some(true)
        };
        let spared = std::iter::once(known).chain(&damage.memberships).all(spares);
        let lost_through = log.hard_state.lost_through.max(Some(damage.last)).max(Some(log.last()));
        spared.then(|| LogBatch {
            hard_state: Some(HardState { lost_through, ..log.hard_state.clone() }),
            truncate_after: Some(log.last().index),
            ..LogBatch::default()
        })
    }

    /// Called by the driver at start, before the protocol exists: what an interrupted installation needs to be
    /// finished, given what the state machine holds.
    #[must_use]
    pub fn interrupted_install(hard: &HardState, applied: LogIndex) -> Option<InterruptedInstall> {
        let meta = hard.installing.clone()?;
        Some(if applied >= meta.last.index {
            InterruptedInstall::Finish(meta)
        } else {
            InterruptedInstall::Forget
        })
    }
}

/// What to do about an installation that a crash interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterruptedInstall {
    /// The state machine has it: purge the log up to it.
    Finish(SnapshotMeta),
    /// It has not: clear the mark, nothing else was changed.
    Forget,
}
