//! Counters and histograms, through the facade of the `metrics` crate: whoever installs a recorder gets them.
//!
//! | name | |
//! |---|---|
//! | `raft_proposals_total` | commands appended by this node as leader |
//! | `raft_proposals_refused_total{reason}` | commands certainly not applied: `overloaded`, `not_leader`, `handing_over`, `no_room`, `too_large` |
//! | `raft_proposal_seconds{stage}` | time of a command in the stages `queue` (until appended), `commit` (until handed to the state machine), `apply` (until answered) |
//! | `raft_log_write_seconds`, `raft_log_write_entries` | log writes, with their syncs: time and entries of each |
//! | `raft_apply_entries` | entries applied in one call |
//! | `raft_elections_total` | times that this node stood for election |
//! | `raft_leader_changes_total` | times that it learned of another leader |
//! | `raft_snapshots_sent_total`, `raft_snapshot_bytes_sent_total`, `raft_snapshots_installed_total` | snapshots |
//!
//! What is logged goes through `tracing`, within these spans:
//!
//! | span | level | |
//! |---|---|---|
//! | `raft{node}` | error, so that it is always there | everything of one engine |
//! | `turn{inputs}` | debug | one turn of the driver's task: from inputs to what is sent, written and applied |
//! | `write{entries}` | debug | a log write, with its sync |
//! | `apply{after, last}`, `flush` | debug | the state machine |
//! | `snapshot{to, last}`, `install{last}` | info | a snapshot sent, a snapshot installed |

use std::time::{Duration, Instant};

use consensus_core::{EngineStatus, Role};
use metrics::{counter, histogram};

/// When a command got where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    proposed: Instant,
    appended: Instant,
}

impl Course {
    pub(crate) fn begin() -> Self {
        let now = Instant::now();
        Self { proposed: now, appended: now }
    }

    pub(crate) fn appended(&mut self) {
        self.appended = Instant::now();
        counter!("raft_proposals_total").increment(1);
        histogram!("raft_proposal_seconds", "stage" => "queue").record(self.appended - self.proposed);
    }

    /// Of a command that was handed to the state machine at `committed`.
    pub(crate) fn applied(self, committed: Instant) {
        histogram!("raft_proposal_seconds", "stage" => "commit")
            .record(committed.saturating_duration_since(self.appended));
        histogram!("raft_proposal_seconds", "stage" => "apply").record(committed.elapsed());
    }
}

pub(crate) fn refused(reason: &'static str) {
    counter!("raft_proposals_refused_total", "reason" => reason).increment(1);
}

pub(crate) fn log_written(entries: usize, time: Duration) {
    histogram!("raft_log_write_seconds").record(time);
    histogram!("raft_log_write_entries").record(entries as f64);
}

pub(crate) fn applying(entries: usize) {
    histogram!("raft_apply_entries").record(entries as f64);
}

pub(crate) fn status_changed(old: &EngineStatus, new: &EngineStatus) {
    if new.role == Role::Candidate && (old.role, old.term) != (new.role, new.term) {
        counter!("raft_elections_total").increment(1);
    }
    if new.leader.is_some() && (old.leader, old.term) != (new.leader, new.term) {
        counter!("raft_leader_changes_total").increment(1);
    }
}

pub(crate) fn snapshot_chunk_sent(bytes: usize) {
    counter!("raft_snapshot_bytes_sent_total").increment(bytes as u64);
}

pub(crate) fn snapshot_sent() {
    counter!("raft_snapshots_sent_total").increment(1);
}

pub(crate) fn snapshot_installed() {
    counter!("raft_snapshots_installed_total").increment(1);
}
