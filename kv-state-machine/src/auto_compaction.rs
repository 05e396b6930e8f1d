//! Compacts history by itself, on the node that leads.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use consensus_core::{ConsensusEngine, Health, Role, codec};
use tokio::time::sleep;

use crate::{
    KvAnswer, KvOperation, KvRejection, database::propose, lessor::now, machine::ANSWER_VERSION, store::Store,
};

/// How much history is kept when the leader compacts by itself; the meaning is that of etcd's `auto-compaction-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// At least the history of this time, at least 1 ms. It is compacted once an hour, or as often as this time passes if it is
    /// shorter than an hour; the first time when this time has passed since the node was started.
    Periodic(Duration),
    /// At least so many revisions, at least 1. Every five minutes older ones are compacted.
    Revisions(u64),
}

/// Decides when to compact, and to which revision. Its owner reads the clock and the store.
#[derive(Debug)]
struct Schedule {
    mode: AutoCompaction,
    /// When which revision was the newest, oldest first. The first one is old enough as soon as one is.
    seen: VecDeque<(Duration, u64)>,
    /// When the next compaction may be, at the earliest.
    due: Duration,
}

impl Schedule {
    fn new(mode: AutoCompaction, now: Duration) -> Self {
        let first = match mode {
            AutoCompaction::Periodic(period) => period,
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        };
        Self { mode, seen: VecDeque::new(), due: now.saturating_add(first) }
    }

    /// Time between two looks.
    fn interval(&self) -> Duration {
        match self.mode {
            AutoCompaction::Periodic(period) => {
                (period.min(HOUR) / LOOKS).max(period / LOOKS_MAX).max(Duration::from_millis(1))
            }
            AutoCompaction::Revisions(_) => REVISIONS_INTERVAL,
        }
    }

    /// Notes the newest revision. Returns the revision to compact to, if it is time.
    fn look(&mut self, now: Duration, revision: u64, compacted: u64) -> Option<u64> {
        let to = match self.mode {
            AutoCompaction::Periodic(period) => self.revision_before(now, revision, period)?,
            AutoCompaction::Revisions(kept) => revision.saturating_sub(kept),
        };
        (now >= self.due && to > compacted).then_some(to)
    }

    /// The newest revision that is at least `period` old.
    fn revision_before(&mut self, now: Duration, revision: u64, period: Duration) -> Option<u64> {
        self.seen.push_back((now, revision));
        let is_old =
            |seen: Option<&(Duration, u64)>| seen.is_some_and(|(at, _)| at.saturating_add(period) <= now);
        while is_old(self.seen.get(1)) {
            self.seen.pop_front();
        }
        self.seen.front().filter(|first| is_old(Some(first))).map(|(_, revision)| *revision)
    }

    /// Notes that a compaction was done.
    fn compacted(&mut self, now: Duration) {
        if let AutoCompaction::Periodic(period) = self.mode {
            self.due = now.saturating_add(period.min(HOUR));
        }
    }
}

/// Compacts whenever it is time and this node leads, until the engine ends. What was the newest revision when is noted on all
/// nodes, so that a new leader goes on where the last one was.
pub(crate) async fn run(engine: Arc<dyn ConsensusEngine>, store: Arc<Store>, mode: AutoCompaction) {
    let mut schedule = Schedule::new(mode, now());
    let status = engine.status();
    loop {
        let leads = {
            let status = status.borrow();
            if status.health != Health::Running {
                return;
            }
            matches!(status.role, Role::Leader | Role::Standalone)
        };
        let meta = store.current().meta();
        if let Some(revision) = schedule.look(now(), meta.revision, meta.compacted).filter(|_| leads) {
            match compact(&engine, revision).await {
                Ok(()) => schedule.compacted(now()),
                Err(error) => {
                    tracing::warn!(revision, error, "history is not compacted yet; it is tried again");
                }
            }
        }
        sleep(schedule.interval()).await;
    }
}

async fn compact(engine: &Arc<dyn ConsensusEngine>, revision: u64) -> Result<(), String> {
    let proposed = propose(engine, None, KvOperation::Compact { revision }).await;
    let committed = proposed.map_err(|error| error.to_string())?;
    let answer: Result<KvAnswer, KvRejection> =
        codec::decode("answer", ANSWER_VERSION, &committed.response).map_err(|error| error.to_string())?;
    match answer {
        Ok(_) => {
            tracing::info!(revision, "compacted history (auto_compaction_retention)");
            Ok(())
        }
        // Somebody else has compacted as far.
        Err(KvRejection::Compacted { .. }) => Ok(()),
        Err(rejection) => Err(rejection.to_string()),
    }
}

/// As in etcd.
const HOUR: Duration = Duration::from_secs(3600);
const LOOKS: u32 = 10;
const REVISIONS_INTERVAL: Duration = Duration::from_secs(300);
/// Looks in the time that is kept: bounds what is remembered.
const LOOKS_MAX: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Looks for `total`, while each minute brings ten revisions; when it was compacted to which revision, in minutes.
    fn compactions(mode: AutoCompaction, total: Duration) -> Vec<(u64, u64)> {
        let (mut schedule, mut now) = (Schedule::new(mode, Duration::ZERO), Duration::ZERO);
        let (mut compacted, mut all) = (0, Vec::new());
        while now <= total {
            let revision = 1 + now.as_secs() / 6;
            if let Some(to) = schedule.look(now, revision, compacted) {
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
    fn periodic_keeps_the_time_and_compacts_each_hour_or_each_period() {
        // As in etcd, first after the whole time.
        let short = compactions(AutoCompaction::Periodic(10 * MINUTE), 40 * MINUTE);
        assert_eq!(short, [(10, 1), (20, 101), (30, 201), (40, 301)]);
        let long = compactions(AutoCompaction::Periodic(5 * HOUR), 8 * HOUR);
        // At the first one the revision of the start is all that is old enough.
        assert_eq!(long, [(300, 1), (360, 601), (420, 1201), (480, 1801)]);
    }

    #[test]
    fn revisions_keeps_their_number() {
        let all = compactions(AutoCompaction::Revisions(100), 21 * MINUTE);
        assert_eq!(all, [(10, 1), (15, 51), (20, 101)]);
    }

    #[test]
    fn nothing_is_compacted_twice_nor_while_nothing_changes() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10 * MINUTE), Duration::ZERO);
        let mut looks = |from: u32, to: u32, compacted| {
            (from..=to).filter_map(|minute| schedule.look(MINUTE * minute, 7, compacted)).count()
        };
        assert_eq!(looks(0, 9, 0), 0);
        assert_eq!(looks(10, 10, 0), 1);
        assert_eq!(looks(11, 100, 7), 0);
    }

    #[test]
    fn late_looks_compact_only_what_is_old_enough() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10 * MINUTE), Duration::ZERO);
        assert_eq!(schedule.look(Duration::ZERO, 5, 0), None);
        assert_eq!(schedule.look(MINUTE, 9, 0), None);
        // Nobody looked for half an hour.
        assert_eq!(schedule.look(30 * MINUTE, 90, 0), Some(9));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut schedule = Schedule::new(AutoCompaction::Periodic(10_000 * HOUR), Duration::ZERO);
        let mut now = Duration::ZERO;
        for revision in 0..30_000 {
            schedule.look(now, revision, 0);
            now += schedule.interval();
        }
        assert!(schedule.seen.len() <= LOOKS_MAX as usize + 2, "{}", schedule.seen.len());
    }
}
