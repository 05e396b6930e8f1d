//! Counters and histograms, through the facade of the `metrics` crate. They reach the recorder that the program installs
//! before the engine starts.
//!
//! | name | |
//! |---|---|
//! | `raft_proposals_total` | commands appended by this node as leader |
//! | `raft_proposals_refused_total{reason}` | commands certainly not applied: `overloaded`, `not_leader`, `transferring_leadership`, `no_room`, `stalled`, `too_large` |
//! | `raft_proposal_seconds{stage}` | duration of a command's stages `queue` (until appended), `commit` (until passed to the state machine), `apply` (until the client has the response) |
//! | `raft_log_write_seconds`, `raft_log_write_entries` | duration of each log write with its sync, and its number of entries |
//! | `raft_apply_entries` | entries applied in one call |
//! | `raft_peer_round_trip_seconds{peer}` | as leader: time between a heartbeat and its response |
//! | `raft_elections_total` | elections in which this node was a candidate |
//! | `raft_leader_changes_total` | changes of the leader that this node observed |
//! | `raft_snapshots_sent_total`, `raft_snapshot_bytes_sent_total`, `raft_snapshots_installed_total` | snapshots |
//!
//! Log messages use `tracing`, within these spans:
//!
//! | span | level | |
//! |---|---|---|
//! | `raft{node}` | error, so that it is always enabled | everything of one engine |
//! | `turn{inputs}` | debug | one turn of the driver's task: from its inputs to its messages, writes and applied entries |
//! | `write{entries}` | debug | a log write with its sync |
//! | `apply{after, last}`, `flush` | debug | a call of the state machine |
//! | `snapshot{to, last}`, `install{last}` | info | sending a snapshot, installing a snapshot |

use std::{
    cell::Cell,
    collections::BTreeMap,
    time::{Duration, Instant},
};

use consensus_core::{EngineStatus, NodeId, Role, Term};
use metrics::{Counter, Histogram, IntoF64, counter, histogram};

/// Times at which a command reached each stage. `None` without a recorder, because reading the clock is expensive here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProposalTiming(Option<Times>);

#[derive(Clone, Copy, Debug)]
struct Times {
    proposed: Instant,
    appended: Instant,
}

impl ProposalTiming {
    pub(crate) fn start(is_recorded: bool) -> Self {
        Self(is_recorded.then(Instant::now).map(|now| Times { proposed: now, appended: now }))
    }

    /// Records that the command was appended in the turn that started at `turn`; it may have arrived later than that.
    pub(crate) fn appended(&mut self, turn: Instant, stages: &Stages) {
        stages.proposals.increment(1);
        if let Some(times) = &mut self.0 {
            times.appended = turn.max(times.proposed);
            stages.queue.record(times.appended - times.proposed);
        }
    }

    /// Records that the command was passed to the state machine at `committed`, and applied at `applied`.
    pub(crate) fn applied(self, committed: Instant, applied: Instant, stages: &Stages) {
        if let Some(times) = self.0 {
            stages.commit.record(committed.saturating_duration_since(times.appended));
            stages.apply.record(applied - committed);
        }
    }
}

/// Metrics of every command, looked up once.
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

    /// Whether a metrics recorder is installed: only a recorder reads the value.
    pub(crate) fn are_recorded(&self) -> bool {
        struct Probe<'a>(&'a Cell<bool>);
        impl IntoF64 for Probe<'_> {
            fn into_f64(self) -> f64 {
                self.0.set(true);
                0.0
            }
        }
        let is_read = Cell::new(false);
        self.queue.record_many(Probe(&is_read), 0);
        is_read.get()
    }
}

/// Times of the heartbeats that wait for a response, by node.
#[derive(Default)]
pub(crate) struct RoundTrips(BTreeMap<NodeId, RoundTrip>);

struct RoundTrip {
    histogram: Histogram,
    /// Round of the heartbeat, and the time at which it was sent.
    pending: Option<(u64, Instant)>,
}

impl RoundTrips {
    /// Records that a heartbeat was sent. A later one does not replace one that waits for its response.
    pub(crate) fn heartbeat_sent(&mut self, to: NodeId, round: u64, now: Instant) {
        let trip = self.0.entry(to).or_insert_with(|| RoundTrip {
            histogram: histogram!("raft_peer_round_trip_seconds", "peer" => to.to_string()),
            pending: None,
        });
        let is_lost =
            trip.pending.is_some_and(|(_, sent)| now.saturating_duration_since(sent) > RESPONSE_MAX);
        if trip.pending.is_none() || is_lost {
            trip.pending = Some((round, now));
        }
    }

    pub(crate) fn response_received(&mut self, from: NodeId, round: u64, now: Instant) {
        if let Some(trip) = self.0.get_mut(&from)
            && let Some((_, sent)) = trip.pending.take_if(|(pending, _)| *pending <= round)
        {
            trip.histogram.record(now.saturating_duration_since(sent));
        }
    }
}

/// Time after which the response to a heartbeat counts as lost.
const RESPONSE_MAX: Duration = Duration::from_secs(2);

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

/// Counts elections and changes of the leader. The first argument is the previous role, term and leader.
pub(crate) fn role_changed((role, term, leader): (Role, Term, Option<NodeId>), now: &EngineStatus) {
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
