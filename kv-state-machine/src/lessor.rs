//! Counts the time of leases, on the leader.
//!
//! Only the set of leases is replicated. Their expiry times are in the memory of the leader, so that a renewal needs no
//! log entry. A new leader gives each lease its remaining time of the last checkpoint, so no lease expires too early.
//! The remaining time of leases that are not renewed is checkpointed regularly, so no lease lives forever.
//!
//! A checkpoint must not outlive a renewal, or the lease would expire too early after a change of leaders:
//!
//! 1. The leader proposes a checkpoint of 2 s of a lease.
//! 2. Before the checkpoint is applied, the lease is renewed for 4 s.
//! 3. The checkpoint is committed. The leader crashes, and the next one starts to count 2 s.
//!
//! So a renewal waits for a pending checkpoint, then replaces it by one of the whole time, and only then succeeds.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use consensus_core::{ConsensusEngine, EngineStatus, Health, ReadConsistency, Role};
use tokio::{sync::watch, time::sleep};

use crate::{KvOperation, Lease, database::propose, lease::Leases, store::Store};

/// Source of the time by which leases are counted. Default: the time since the machine was started, including time in which it
/// was suspended.
///
/// It returns the time since an arbitrary moment and never goes back. For every second of it, the clocks of the owners of
/// leases must not go further than the owners allow for: it is replaced only in simulations, whose time is not that of the
/// machine.
#[derive(Clone)]
pub struct TimeSource(Arc<dyn Fn() -> Duration + Send + Sync>);

impl TimeSource {
    /// Creates a source that calls `now`, on any thread.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> Duration {
        self.0()
    }
}

impl Default for TimeSource {
    fn default() -> Self {
        Self::new(now)
    }
}

impl fmt::Debug for TimeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TimeSource").field(&self.now()).finish()
    }
}

/// Expiry times of leases.
#[derive(Debug)]
pub(crate) struct Clock {
    time: TimeSource,
    /// Term in which this node is leader.
    pub(crate) term: u64,
    timers: HashMap<i64, Timer>,
    expiries: BTreeSet<(Duration, i64)>,
    checkpoints: BTreeSet<(Duration, i64)>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    end: Duration,
    /// Time at which the remaining time is checkpointed, if the lease is not renewed before.
    checkpoint: Duration,
    /// Whether its expiry was proposed.
    is_expiring: bool,
    /// Whether a checkpoint was proposed and is neither applied nor refused.
    is_checkpointing: bool,
    /// Number of checkpoints of less than the whole time that this leader proposed.
    checkpoints: u64,
    /// Number of those that a checkpoint of the whole time follows in the log.
    replaced: u64,
}

/// Outcome of an attempt to renew a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// The lease has its whole time to live again.
    Renewed,
    /// The lease has expired, or is unknown.
    Expired,
    /// A checkpoint is pending: try again when it is applied.
    CheckpointPending,
    /// So many checkpoints must be replaced by one of the whole time before the renewal is tried again.
    ReplaceCheckpoints(u64),
}

impl Clock {
    fn new(time: TimeSource, term: u64, leases: impl Iterator<Item = (i64, Lease)>) -> Self {
        let (timers, expiries, checkpoints) = (HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut clock = Self { time, term, timers, expiries, checkpoints };
        leases.for_each(|(id, lease)| clock.start(id, lease));
        clock
    }

    /// Starts to count the remaining time of a lease.
    pub(crate) fn start(&mut self, id: i64, lease: Lease) {
        let left = if lease.is_ending { 0 } else { lease.remaining.unwrap_or(lease.ttl) };
        self.set(id, left, lease.ttl);
    }

    /// Sets the remaining time of a lease to its whole time to live, unless a checkpoint says otherwise. `replaced` is the
    /// number of checkpoints that the caller has replaced.
    pub(crate) fn renew(&mut self, id: i64, lease: Lease, replaced: Option<u64>) -> Renewal {
        let Some(timer) = self.timers.get_mut(&id).filter(|timer| !timer.is_expiring) else {
            return Renewal::Expired;
        };
        if timer.is_checkpointing {
            return Renewal::CheckpointPending;
        }
        timer.replaced = timer.replaced.max(replaced.unwrap_or(0));
        if lease.remaining.is_some() || timer.checkpoints > timer.replaced {
            return Renewal::ReplaceCheckpoints(timer.checkpoints);
        }
        self.set(id, lease.ttl, lease.ttl);
        Renewal::Renewed
    }

    fn set(&mut self, id: i64, left: u64, ttl: u64) {
        let before = self.remove(id);
        let now = self.time.now();
        let timer = Timer {
            end: now.saturating_add(Duration::from_secs(left)),
            checkpoint: now.saturating_add(checkpoint_interval(ttl)),
            is_expiring: false,
            is_checkpointing: false,
            checkpoints: before.map_or(0, |timer| timer.checkpoints),
            replaced: before.map_or(0, |timer| timer.replaced),
        };
        self.timers.insert(id, timer);
        self.expiries.insert((timer.end, id));
        self.checkpoints.insert((timer.checkpoint, id));
    }

    fn remove(&mut self, id: i64) -> Option<Timer> {
        let timer = self.timers.remove(&id)?;
        self.expiries.remove(&(timer.end, id));
        self.checkpoints.remove(&(timer.checkpoint, id));
        Some(timer)
    }

    /// Stops to count the time of a lease that has ended.
    pub(crate) fn stop(&mut self, id: i64) {
        self.remove(id);
    }

    /// Remaining time of a lease; `None` if its expiry was proposed, or if it is unknown.
    pub(crate) fn left(&self, id: i64) -> Option<Duration> {
        self.timers
            .get(&id)
            .filter(|timer| !timer.is_expiring)
            .map(|timer| timer.end.saturating_sub(self.time.now()))
    }

    /// Takes leases that have expired.
    fn take_expired(&mut self) -> Vec<i64> {
        let now = self.time.now();
        let expired: Vec<_> = self
            .expiries
            .iter()
            .take_while(|(end, _)| *end <= now)
            .take(LEASES_PER_COMMAND)
            .copied()
            .collect();
        for (end, id) in &expired {
            self.expiries.remove(&(*end, *id));
            if let Some(timer) = self.timers.get_mut(id) {
                timer.is_expiring = true;
            }
        }
        expired.into_iter().map(|(_, id)| id).collect()
    }

    /// Schedules leases to be taken again, because it is unknown whether their expiry was committed.
    fn retry_expiry(&mut self, ids: &[i64]) {
        for id in ids {
            if let Some(timer) = self.timers.get(id) {
                self.expiries.insert((timer.end, *id));
            }
        }
    }

    /// Takes leases whose remaining time must be checkpointed, with that time.
    fn take_checkpoints(&mut self, ttl: impl Fn(i64) -> u64) -> Vec<(i64, Option<u64>)> {
        let now = self.time.now();
        let due: Vec<_> = self
            .checkpoints
            .iter()
            .take_while(|(checkpoint, _)| *checkpoint <= now)
            .take(LEASES_PER_COMMAND)
            .copied()
            .collect();
        let mut checkpoints = Vec::with_capacity(due.len());
        for (checkpoint, id) in due {
            self.checkpoints.remove(&(checkpoint, id));
            let Some(timer) = self.timers.get_mut(&id) else { continue };
            timer.checkpoint = now.saturating_add(checkpoint_interval(ttl(id)));
            self.checkpoints.insert((timer.checkpoint, id));
            let left = timer.end.saturating_sub(now);
            if !timer.is_expiring && left > Duration::ZERO {
                timer.is_checkpointing = true;
                timer.checkpoints += 1;
                checkpoints.push((id, Some(left.as_secs_f64().ceil() as u64)));
            }
        }
        checkpoints
    }

    /// Lets renewals of these leases go on: their checkpoints are applied, were refused, or precede in the log whatever is
    /// proposed from now on.
    fn checkpoints_done(&mut self, checkpoints: &[(i64, Option<u64>)]) {
        for (id, _) in checkpoints {
            if let Some(timer) = self.timers.get_mut(id) {
                timer.is_checkpointing = false;
            }
        }
    }
}

/// Interval of checkpoints. Clients renew a lease after a third of its time to live, so one that is not renewed after
/// half of it may be abandoned.
fn checkpoint_interval(ttl: u64) -> Duration {
    Duration::from_secs((ttl / 2).max(1)).min(CHECKPOINT_INTERVAL_MAX)
}

/// Time since the machine was started, including time in which it was suspended.
pub(crate) fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Counts the time of leases whenever this node is leader, until the engine stops.
pub(crate) async fn run(engine: Arc<dyn ConsensusEngine>, store: Arc<Store>, time: TimeSource) {
    let mut status = engine.status();
    loop {
        let changed = status.wait_for(|status| is_leader(status) || status.health != Health::Running).await;
        let Ok(term) = changed.map(|status| (status.health == Health::Running).then_some(status.term.0))
        else {
            return;
        };
        let Some(term) = term else { return };
        // After the first read barrier of the term, this node has applied all entries that were acknowledged before.
        if engine.read_barrier(ReadConsistency::Linearizable).await.is_ok()
            && is_leader_of_term(&status, term)
        {
            run_as_leader(&engine, &store, &time, &status, term).await;
        } else {
            sleep(TICK).await;
        }
    }
}

fn is_leader(status: &EngineStatus) -> bool {
    matches!(status.role, Role::Leader | Role::Standalone)
}

pub(crate) fn is_leader_of_term(status: &watch::Receiver<Arc<EngineStatus>>, term: u64) -> bool {
    let status = status.borrow();
    is_leader(&status) && status.term.0 == term && status.health == Health::Running
}

async fn run_as_leader(
    engine: &Arc<dyn ConsensusEngine>,
    store: &Store,
    time: &TimeSource,
    status: &watch::Receiver<Arc<EngineStatus>>,
    term: u64,
) {
    {
        let generation = store.current();
        let mut leases = generation.leases().lock();
        let all = leases.all.iter().map(|(id, lease)| (*id, *lease));
        leases.clock = Some(Clock::new(time.clone(), term, all));
    }
    let (mut ticked, mut is_more) = (time.now(), false);
    while is_leader_of_term(status, term) {
        if !is_more {
            sleep(TICK).await;
        }
        // After a pause of the process, renewals that arrived during the pause must be processed first.
        if time.now().saturating_sub(ticked) > PAUSE_MIN {
            sleep(PAUSE_MIN).await;
        }
        ticked = time.now();
        if !is_leader_of_term(status, term) {
            break;
        }
        is_more = tick(engine, store, term).await;
    }
    store.current().leases().lock().clock = None;
}

/// Proposes expired leases and due checkpoints. Returns whether there is more to propose.
async fn tick(engine: &Arc<dyn ConsensusEngine>, store: &Store, term: u64) -> bool {
    let generation = store.current();
    let (expired, checkpoints) = {
        let mut leases = generation.leases().lock();
        let leases = &mut *leases;
        let Some(clock) = &mut leases.clock else { return false };
        let all = &leases.all;
        (clock.take_expired(), clock.take_checkpoints(|id| all.get(&id).map_or(1, |lease| lease.ttl)))
    };
    let is_more = expired.len() == LEASES_PER_COMMAND || checkpoints.len() == LEASES_PER_COMMAND;
    // Renewals wait for the checkpoints, which are therefore proposed first.
    if !checkpoints.is_empty() {
        let operation = KvOperation::CheckpointLeases { remaining: checkpoints.clone(), term };
        let checkpointed = propose(engine, None, operation).await;
        if let Some(clock) = &mut generation.leases().lock().clock {
            clock.checkpoints_done(&checkpoints);
        }
        if let Err(error) = checkpointed {
            tracing::debug!(%error, "cannot checkpoint the remaining time of leases; it will be retried");
        }
    }
    if !expired.is_empty() {
        let operation = KvOperation::ExpireLeases { ids: expired.clone(), term };
        if let Err(error) = propose(engine, None, operation).await {
            tracing::debug!(%error, "cannot propose the end of expired leases; it will be retried");
            if let Some(clock) = &mut generation.leases().lock().clock {
                clock.retry_expiry(&expired);
            }
            return false;
        }
        // Leases that are left have too many keys for one command.
        let mut leases = generation.leases().lock();
        let Leases { all, clock } = &mut *leases;
        let left: Vec<_> = expired.into_iter().filter(|id| all.contains_key(id)).collect();
        if let Some(clock) = clock.as_mut().filter(|_| !left.is_empty()) {
            clock.retry_expiry(&left);
            return true;
        }
    }
    is_more
}

/// Accuracy of expiry times.
const TICK: Duration = Duration::from_millis(200);
/// A tick with a longer delay means that the process was paused.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// Maximum interval of checkpoints.
const CHECKPOINT_INTERVAL_MAX: Duration = Duration::from_secs(300);
/// Maximum number of leases that one command expires or checkpoints.
const LEASES_PER_COMMAND: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn lease(ttl: u64, remaining: Option<u64>) -> Lease {
        Lease { ttl, remaining, is_ending: false }
    }

    #[test]
    fn clock_starts_with_checkpointed_time_and_renewal_restores_whole_time() {
        let time = TimeSource::default();
        let mut clock = Clock::new(time, 1, [(7, lease(100, Some(10))), (8, lease(50, None))].into_iter());
        assert!(clock.left(7).unwrap() <= Duration::from_secs(10));
        assert!(clock.left(8).unwrap() > Duration::from_secs(49));
        assert_eq!(clock.renew(7, lease(100, None), None), Renewal::Renewed);
        assert!(clock.left(7).unwrap() > Duration::from_secs(99));
        assert_eq!(clock.left(9), None);
    }

    #[test]
    fn expired_lease_is_taken_once_and_again_after_retry() {
        let time = TimeSource::default();
        let mut clock = Clock::new(time, 1, [(7, lease(100, Some(0))), (8, lease(50, None))].into_iter());
        assert_eq!(clock.take_expired(), [7]);
        assert_eq!(clock.left(7), None, "its end was proposed");
        assert!(clock.take_expired().is_empty());
        clock.retry_expiry(&[7]);
        assert_eq!(clock.take_expired(), [7]);
        clock.stop(7);
        clock.retry_expiry(&[7]);
        assert!(clock.take_expired().is_empty());
    }

    /// A clock whose time is set by the returned number of seconds.
    fn clock_at_zero(leases: &[(i64, Lease)]) -> (Clock, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(0));
        let source = seconds.clone();
        let time = TimeSource::new(move || Duration::from_secs(source.load(Ordering::Relaxed)));
        (Clock::new(time, 1, leases.iter().copied()), seconds)
    }

    #[test]
    fn renewal_waits_for_pending_checkpoint_and_replaces_it() {
        let (mut clock, seconds) = clock_at_zero(&[(7, lease(4, None))]);
        seconds.store(2, Ordering::Relaxed);
        let checkpoints = clock.take_checkpoints(|_| 4);
        assert_eq!(checkpoints, [(7, Some(2))]);
        // 1. The checkpoint is not applied yet: a leader that crashes now may leave it to its successor.
        assert_eq!(clock.renew(7, lease(4, None), None), Renewal::CheckpointPending);
        // 2. Whether or not it was applied, it may be in the log.
        clock.checkpoints_done(&checkpoints);
        for remaining in [None, Some(2)] {
            assert_eq!(clock.renew(7, lease(4, remaining), None), Renewal::ReplaceCheckpoints(1));
        }
        assert_eq!(clock.left(7), Some(Duration::from_secs(2)), "it was not renewed");
        // 3. A checkpoint of the whole time follows it in the log.
        assert_eq!(clock.renew(7, lease(4, None), Some(1)), Renewal::Renewed);
        assert_eq!(clock.renew(7, lease(4, None), None), Renewal::Renewed, "nothing is left to replace");
    }

    #[test]
    fn renewal_replaces_checkpoint_that_was_proposed_meanwhile() {
        let (mut clock, seconds) = clock_at_zero(&[(7, lease(10, Some(9)))]);
        assert_eq!(clock.renew(7, lease(10, Some(9)), None), Renewal::ReplaceCheckpoints(0));
        seconds.store(5, Ordering::Relaxed);
        let checkpoints = clock.take_checkpoints(|_| 10);
        clock.checkpoints_done(&checkpoints);
        assert_eq!(clock.renew(7, lease(10, None), Some(0)), Renewal::ReplaceCheckpoints(1));
        assert_eq!(clock.renew(7, lease(10, None), Some(1)), Renewal::Renewed);
    }
}
