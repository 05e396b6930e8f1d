//! Counters and histograms, through the facade of the `metrics` crate: whoever installs a recorder before the engine starts
//! gets them.
//!
//! | name | |
//! |---|---|
//! | `raft_proposals_total` | commands appended by this node as leader |
//! | `raft_proposals_refused_total{reason}` | commands certainly not applied: `overloaded`, `not_leader`, `handing_over`, `no_room`, `stalled`, `too_large` |
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

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use consensus_core::{EngineStatus, NodeId, Role, Term};
use metrics::{Counter, Histogram, IntoF64, counter, histogram};

/// When a command got where; nothing if nobody records it: a look at the clock takes as long as much else here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course(Option<Times>);

#[derive(Clone, Copy, Debug)]
struct Times {
    proposed: Instant,
    appended: Instant,
}

impl Course {
    pub(crate) fn begin(is_recorded: bool) -> Self {
        Self(is_recorded.then(Instant::now).map(|now| Times { proposed: now, appended: now }))
    }

    /// In the turn that began at `turn`; a command may have come in since.
    pub(crate) fn appended(&mut self, turn: Instant, stages: &Stages) {
        stages.proposals.increment(1);
        if let Some(times) = &mut self.0 {
            times.appended = turn.max(times.proposed);
            stages.queue.record(times.appended - times.proposed);
        }
    }

    /// Of a command that was handed to the state machine at `committed`, and was applied at `applied`.
    pub(crate) fn applied(self, committed: Instant, applied: Instant, stages: &Stages) {
        if let Some(times) = self.0 {
            stages.commit.record(committed.saturating_duration_since(times.appended));
            stages.apply.record(applied - committed);
        }
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

    /// Whether somebody installed a recorder: only then is a value asked for what it is.
    pub(crate) fn are_recorded(&self) -> bool {
        struct Asked<'a>(&'a Cell<bool>);
        impl IntoF64 for Asked<'_> {
            fn into_f64(self) -> f64 {
                self.0.set(true);
                0.0
            }
        }
        let asked = Cell::new(false);
        self.queue.record_many(Asked(&asked), 0);
        asked.get()
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
