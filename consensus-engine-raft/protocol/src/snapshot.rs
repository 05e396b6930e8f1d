//! Snapshots for followers that need purged entries (§7).
//!
//! A snapshot is installed in numbered steps, because the node may crash between any two of them (I11):
//! 1. The complete stream has arrived and is verified. Nothing has changed yet.
//! 2. `installing` is set in the hard state, durably.
//! 3. The state machine restores the snapshot, completely or not at all.
//! 4. One write purges the log up to the snapshot and clears `installing`.
//! 5. Only then is the sender told that the snapshot is installed.
//!
//! If the state machine fails to restore it, `installing` is cleared, and the node is in the state before step 1.
//!
//! A restart between 2 and 4 asks the state machine whether step 3 was completed, and either completes the rest or clears
//! the mark.

use consensus_core::{
    HardState, LogBatch, LogIndex, LogState, MemberKind, Membership, NodeId, SnapshotMeta, Term,
};

use crate::{ArrivalOutcome, Output, Raft, progress::State, raft::Role};

impl Raft {
    pub(crate) fn on_snapshot_arrived(&mut self, from: NodeId, term: Term, meta: SnapshotMeta) {
        if term < self.hard.term || !self.follow(from, term) || self.hard.installing.is_some() {
            self.outputs.push(Output::SnapshotSettled(ArrivalOutcome::Refused));
            return;
        }
        if let Some(contradiction) = self.contradicts_snapshot(from, &meta) {
            self.outputs.push(Output::SnapshotSettled(ArrivalOutcome::Refused));
            return self.stop_contradicted(contradiction);
        }
        let leadership = meta.membership.leaderships().last().map(|last| last.id).unwrap_or_default();
        if meta.last.index <= self.commit || self.log.contains_from(leadership, meta.last) {
            // The log has everything that the snapshot covers. A snapshot covers only committed entries.
            self.commit = self.commit.max(meta.last.index);
            self.output_when_durable(Output::SnapshotSettled(ArrivalOutcome::Accepted));
            self.apply_committed();
            return;
        }
        self.hard.installing = Some(meta.clone());
        self.writes.hard_state();
        self.output_when_durable(Output::Install(meta));
    }

    pub(crate) fn on_snapshot_installed(&mut self) {
        let Some(meta) = self.hard.installing.take() else { return };
        // The log lacks the snapshot's last entry, so its later entries belong to another history.
        self.log.reset(&meta);
        self.writes.reset(meta.last.index);
        self.writes.hard_state();
        self.applied_by_snapshot(meta.last.index);
        self.clear_loss();
        self.finish_joining();
        self.writes.purge(meta);
        self.output_when_durable(Output::SnapshotSettled(ArrivalOutcome::Accepted));
        self.reset_election_deadline();
    }

    pub(crate) fn on_snapshot_not_installed(&mut self) {
        if self.hard.installing.take().is_some() {
            self.writes.hard_state();
            self.reset_election_deadline();
            // Entries that were committed in the meantime were not applied.
            self.apply_committed();
        }
    }

    pub(crate) fn on_snapshot_sent(&mut self, to: NodeId, last: Option<LogIndex>) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(peer) = leader.peers.get_mut(&to).filter(|peer| matches!(peer.state, State::Snapshot))
        else {
            return;
        };
        // The leader asks where the follower's log ends now; it does not assume it.
        peer.probe_from(last.map_or(peer.next, LogIndex::next));
    }

    /// Returns the write that truncates a damaged log, so that the node can fetch the missing entries again (I16). The
    /// driver calls this at start, before it creates a [`Raft`]. Returns `None` if truncation would be unsafe in a
    /// configuration that the log contains: without this node, the members that keep commands must be a quorum. With fewer,
    /// this node may have had the only copy of a committed entry, or may be needed to elect a leader; and a witness that has
    /// heard of an entry from this node votes for no node that lacks it.
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

    /// Returns how to complete an interrupted installation, given the last index that the state machine has applied. The
    /// driver calls this at start, before it creates a [`Raft`]. `None` if no installation was interrupted.
    #[must_use]
    pub fn interrupted_install(hard: &HardState, applied: LogIndex) -> Option<InterruptedInstall> {
        let meta = hard.installing.clone()?;
        Some(if applied >= meta.last.index {
            InterruptedInstall::Finish(meta)
        } else {
            InterruptedInstall::Discard
        })
    }
}

/// How to proceed with an installation that a crash interrupted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterruptedInstall {
    /// The state machine has restored the snapshot: purge the log up to it.
    Finish(SnapshotMeta),
    /// The state machine has not restored the snapshot: clear the mark. Nothing else has changed.
    Discard,
}
