//! Counters and histograms, through the facade of the `metrics` crate: whoever installs a recorder before the engine starts
//! gets them.
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

use consensus_core::{EngineStatus, NodeId, Role, Term};
use metrics::{Counter, Histogram, counter, histogram};

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

    /// In the turn that began at `turn`; a command may have come in since.
    pub(crate) fn appended(&mut self, turn: Instant, stages: &Stages) {
        self.appended = turn.max(self.proposed);
        stages.proposals.increment(1);
        stages.queue.record(self.appended - self.proposed);
    }

    /// Of a command that was handed to the state machine at `committed`, and was applied at `applied`.
    pub(crate) fn applied(self, committed: Instant, applied: Instant, stages: &Stages) {
        stages.commit.record(committed.saturating_duration_since(self.appended));
        stages.apply.record(applied - committed);
    }
}

/// What is recorded for every command; looked up once.
pub(crate) struct Stages {
    proposals: Counter,
    queue: Histogram,
    commit: Histogram,
    apply: Histogram,
}

impl Stages {
    pub(crate) fn new() -> Self {
        Self {
            proposals: counter!("raft_proposals_total"),
            queue: histogram!("raft_proposal_seconds", "stage" => "queue"),
            commit: histogram!("raft_proposal_seconds", "stage" => "commit"),
            apply: histogram!("raft_proposal_seconds", "stage" => "apply"),
        }
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

/// `before` it was another role, term or leader.
pub(crate) fn lead_changed((role, term, leader): (Role, Term, Option<NodeId>), now: &EngineStatus) {
    if now.role == Role::Candidate && (role, term) != (now.role, now.term) {
        counter!("raft_elections_total").increment(1);
    }
    if now.leader.is_some() && (leader, term) != (now.leader, now.term) {
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
