//! Retries of failed work: snapshots for other members and flushes of the state machine. The pause before a retry grows with
//! each failure. Only the first failure of an outage is logged as a warning.

use std::{collections::BTreeMap, time::Duration};

use consensus_core::NodeId;
use consensus_raft_protocol::Event;

use super::Driver;
use crate::snapshot_send::SendFailure;

/// Failures since the last success.
#[derive(Default)]
pub(super) struct Outage {
    failures: u32,
    pub(super) why: String,
    /// When the work is retried; `None` while it runs.
    retry_at: Option<Duration>,
}

impl Outage {
    /// Records a failure. Returns whether it is the first.
    pub(super) fn failed(&mut self, why: String, now: Duration, pause: Duration) -> bool {
        let doublings = self.failures.min(DOUBLINGS_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause * (1 << doublings));
        self.why = why;
        self.failures == 1
    }

    /// Whether the work is to be retried now.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        self.retry_at.take_if(|at| *at <= now).is_some()
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.retry_at
    }
}

/// Snapshots that could not be sent, by member.
pub(super) type SnapshotOutages = BTreeMap<NodeId, Outage>;

impl Driver {
    /// Records that a snapshot for `to` could not be taken, read or sent, or was refused. The member waits for the next one.
    pub(super) fn on_snapshot_failed(&mut self, to: NodeId, failure: SendFailure) {
        let outage = self.snapshot_outages.entry(to).or_default();
        let (why, is_network) = match failure {
            SendFailure::Local(why) | SendFailure::Refused(why) => (why, false),
            SendFailure::Network(why) => (why, true),
        };
        if outage.failed(why.clone(), self.now, self.config.snapshot_retry) {
            tracing::warn!(%to, why, "sending a snapshot failed; retrying until it succeeds");
        } else {
            tracing::debug!(%to, why, failures = outage.failures, "sending a snapshot failed");
        }
        // A network may recover at any moment, and a retry is cheap.
        if is_network {
            outage.retry_at = Some(self.now + self.config.snapshot_retry);
        }
    }

    pub(super) fn on_snapshot_sent(&mut self, to: NodeId) {
        if let Some(outage) = self.snapshot_outages.remove(&to) {
            tracing::info!(%to, failures = outage.failures, "the snapshot was sent after failures");
        }
    }

    pub(super) fn next_retry(&self) -> Option<Duration> {
        let snapshots = self.snapshot_outages.values().filter_map(Outage::deadline);
        snapshots.chain(self.compaction.outage.deadline()).min()
    }

    /// Retries the work whose pause is over.
    pub(super) fn retry_work(&mut self) {
        let now = self.now;
        // A node whose commit index has advanced since has the snapshot, or does not need it any more.
        let commit = self.raft.commit();
        self.snapshot_blocked.take_if(|(_, before)| *before < commit);
        if self.compaction.outage.is_due(now) {
            self.flush_machine();
        }
        if self.snapshot_outages.is_empty() {
            return;
        }
        let due: Vec<NodeId> = self
            .snapshot_outages
            .iter_mut()
            .filter_map(|(to, outage)| outage.is_due(now).then_some(*to))
            .collect();
        for to in due {
            self.step(Event::SnapshotSent(to, None));
        }
        // A follower that the log can serve again needs no snapshot, and neither does a removed node.
        let (purged, peers) = (self.raft.purged().index, self.raft.peers());
        self.snapshot_outages.retain(|to, _| peers.get(to).is_some_and(|peer| peer.matched < purged));
    }
}

/// Maximum number of times that the pause doubles.
const DOUBLINGS_MAX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_sixteen_times_and_only_first_failure_is_reported() {
        let (mut outage, mut now, second) = (Outage::default(), Duration::ZERO, Duration::from_secs(1));
        let mut pauses = Vec::new();
        for n in 0..7 {
            assert_eq!(outage.failed("it is full".to_owned(), now, second), n == 0);
            let at = outage.deadline().unwrap();
            assert!(!outage.is_due(at - Duration::from_millis(1)) && outage.is_due(at));
            pauses.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 16, 16]);
    }
}
