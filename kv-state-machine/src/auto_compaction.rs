//! Automatic compaction of history, on the leader.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use consensus_core::{ConsensusEngine, Health, Role, codec};
use tokio::time::sleep;

use crate::{
    KvAnswer, KvOperation, KvRejection, database::propose, lessor::now, machine::ANSWER_VERSION, store::Store,
};

/// How much history automatic compaction keeps. The modes are those of etcd's `auto-compaction-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Keeps at least the history of this duration, which is at least 1 ms. History is compacted once an hour, or once
    /// per this duration if that is shorter. The first compaction is this duration after the start of the node.
    Periodic(Duration),
    /// Keeps at least this number of revisions, at least 1. Older revisions are compacted every five minutes.
    Revisions(u64),
}

/// Decides when to compact, and to which revision. The caller passes the time and the revisions.
#[derive(Debug)]
struct Schedule {
    mode: AutoCompaction,
    /// Newest revision at each sampled time, oldest first. If samples are older than the period, only the newest of those
    /// is kept.
    samples: VecDeque<(Duration, u64)>,
    /// Earliest time of the next compaction.
    due: Duration,
}

impl Schedule {
    fn new(mode: AutoCompaction, now: Duration) -> Self {
        let first = match mode {
            AutoCompaction::Periodic(period) => period,
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        };
        Self { mode, samples: VecDeque::new(), due: now.saturating_add(first) }
    }

    /// Time between two samples.
    fn interval(&self) -> Duration {
        match self.mode {
            AutoCompaction::Periodic(period) => (period.min(HOUR) / SAMPLES_PER_PERIOD)
                .max(period / SAMPLES_MAX)
                .max(Duration::from_millis(1)),
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        }
    }

    /// Records the newest revision. Returns the revision to compact to if a compaction is due.
    fn sample(&mut self, now: Duration, revision: u64, compacted: u64) -> Option<u64> {
        let to = match self.mode {
            AutoCompaction::Periodic(period) => self.revision_before(now, revision, period)?,
            AutoCompaction::Revisions(kept) => revision.saturating_sub(kept),
        };
        (now >= self.due && to > compacted).then_some(to)
    }

    /// The newest revision that is at least `period` old.
    fn revision_before(&mut self, now: Duration, revision: u64, period: Duration) -> Option<u64> {
        self.samples.push_back((now, revision));
        let is_old = |samples: Option<&(Duration, u64)>| {
            samples.is_some_and(|(at, _)| at.saturating_add(period) <= now)
        };
        while is_old(self.samples.get(1)) {
            self.samples.pop_front();
        }
        self.samples.front().filter(|first| is_old(Some(first))).map(|(_, revision)| *revision)
    }

    /// Records that a compaction was executed.
    fn compacted(&mut self, now: Duration) {
        if let AutoCompaction::Periodic(period) = self.mode {
            self.due = now.saturating_add(period.min(HOUR));
        }
    }
}

/// Compacts whenever a compaction is due and this node is leader, until the engine stops. All nodes sample revisions,
/// so that a new leader continues the schedule of the previous one.
pub(crate) async fn run(engine: Arc<dyn ConsensusEngine>, store: Arc<Store>, mode: AutoCompaction) {
    let mut schedule = Schedule::new(mode, now());
    let status = engine.status();
    loop {
        let is_leader = {
            let status = status.borrow();
            if status.health != Health::Running {
                return;
            }
            matches!(status.role, Role::Leader | Role::Standalone)
        };
        let meta = store.current().meta();
        if let Some(revision) = schedule.sample(now(), meta.revision, meta.compacted).filter(|_| is_leader) {
            match compact(&engine, revision).await {
                Ok(()) => schedule.compacted(now()),
                Err(error) => {
                    tracing::warn!(
                        revision,
                        error,
                        "automatic compaction of history failed; it will be retried"
                    );
                }
            }
        }
        sleep(schedule.interval()).await;
    }
}

async fn compact(engine: &Arc<dyn ConsensusEngine>, revision: u64) -> Result<(), String> {
    let proposed = propose(engine, None, KvOperation::Compact { revision }).await;
    let committed = proposed.map_err(|error| error.to_string())?;
    let response: Result<KvAnswer, KvRejection> =
        codec::decode("response", ANSWER_VERSION, &committed.response).map_err(|error| error.to_string())?;
    match response {
        Ok(_) => {
            tracing::info!(revision, "compacted history (auto_compaction_retention)");
            Ok(())
        }
        // Another client has compacted to this revision or beyond.
        Err(KvRejection::Compacted { .. }) => Ok(()),
        Err(rejection) => Err(rejection.to_string()),
    }
}

/// Longest interval of periodic compaction, as in etcd.
const HOUR: Duration = Duration::from_secs(3600);
const SAMPLES_PER_PERIOD: u32 = 10;
const REVISIONS_INTERVAL: Duration = Duration::from_secs(300);
/// Maximum number of samples in the period; it bounds the memory for samples.
const SAMPLES_MAX: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Runs a schedule for `total` while ten revisions are written per minute. Returns the minute and the revision of
    /// each compaction.
    fn compactions(mode: AutoCompaction, total: Duration) -> Vec<(u64, u64)> {
        let (mut schedule, mut now) = (Schedule::new(mode, Duration::ZERO), Duration::ZERO);
        let (mut compacted, mut all) = (0, Vec::new());
        while now <= total {
            let revision = 1 + now.as_secs() / 6;
            if let Some(to) = schedule.sample(now, revision, compacted) {
                assert!(to > compacted && to <= revision);
                compacted = to;
                all.push((now.as_secs() / 60, to));
                schedule.compacted(now);
            }
            now += schedule.interval();
        }
        all
    }

    #[test]
    fn periodic_mode_compacts_once_per_hour_or_shorter_period() {
        // As in etcd, the first compaction is after the whole period.
        let short = compactions(AutoCompaction::Periodic(10 * MINUTE), 40 * MINUTE);
        assert_eq!(short, [(10, 1), (20, 101), (30, 201), (40, 301)]);
        let long = compactions(AutoCompaction::Periodic(5 * HOUR), 8 * HOUR);
        // At the first compaction only the first revision is old enough.
        assert_eq!(long, [(300, 1), (360, 601), (420, 1201), (480, 1801)]);
    }

    #[test]
    fn revisions_mode_keeps_configured_number() {
        let all = compactions(AutoCompaction::Revisions(100), 21 * MINUTE);
        assert_eq!(all, [(10, 1), (15, 51), (20, 101)]);
    }

    #[test]
    fn unchanged_store_is_compacted_once() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10 * MINUTE), Duration::ZERO);
        let mut looks = |from: u32, to: u32, compacted| {
            (from..=to).filter_map(|minute| schedule.sample(MINUTE * minute, 7, compacted)).count()
        };
        assert_eq!(looks(0, 9, 0), 0);
        assert_eq!(looks(10, 10, 0), 1);
        assert_eq!(looks(11, 100, 7), 0);
    }

    #[test]
    fn delayed_sample_compacts_only_revisions_older_than_period() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10 * MINUTE), Duration::ZERO);
        assert_eq!(schedule.sample(Duration::ZERO, 5, 0), None);
        assert_eq!(schedule.sample(MINUTE, 9, 0), None);
        // There was no sample for half an hour.
        assert_eq!(schedule.sample(30 * MINUTE, 90, 0), Some(9));
    }

    #[test]
    fn long_period_keeps_bounded_number_of_samples() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10_000 * HOUR), Duration::ZERO);
        let mut now = Duration::ZERO;
        for revision in 0..30_000 {
            schedule.sample(now, revision, 0);
            now += schedule.interval();
        }
        assert!(schedule.samples.len() <= SAMPLES_MAX as usize + 2, "{}", schedule.samples.len());
    }
}
