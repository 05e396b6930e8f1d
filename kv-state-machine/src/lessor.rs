//! Counts the time of leases, on the leader.
//!
//! Only the set of leases is replicated. Their expiry times are in the memory of the leader, so that a renewal needs no
//! log entry. A new leader gives each lease its remaining time of the last checkpoint, so no lease expires too early.
//! The remaining time of leases that are not renewed is checkpointed regularly, so no lease lives forever.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use consensus_core::{ConsensusEngine, EngineStatus, Health, ReadConsistency, Role};
use tokio::{sync::watch, time::sleep};

use crate::{KvOperation, Lease, database::propose, store::Store};

/// Expiry times of leases, on a clock that continues while the machine is suspended.
#[derive(Debug)]
pub(crate) struct Clock {
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
}

impl Clock {
    fn new(term: u64, leases: impl Iterator<Item = (i64, Lease)>) -> Self {
        let (timers, expiries, checkpoints) = (HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut clock = Self { term, timers, expiries, checkpoints };
        leases.for_each(|(id, lease)| clock.start(id, lease));
        clock
    }

    /// Starts to count the remaining time of a lease.
    pub(crate) fn start(&mut self, id: i64, lease: Lease) {
        self.set(id, lease.remaining.unwrap_or(lease.ttl), lease.ttl);
    }

    /// Sets the remaining time of a lease to its whole time to live.
    pub(crate) fn renew(&mut self, id: i64, ttl: u64) {
        self.set(id, ttl, ttl);
    }

    fn set(&mut self, id: i64, left: u64, ttl: u64) {
        self.remove(id);
        let now = now();
        let timer = Timer {
            end: now.saturating_add(Duration::from_secs(left)),
            checkpoint: now.saturating_add(checkpoint_interval(ttl)),
            is_expiring: false,
        };
        self.timers.insert(id, timer);
        self.expiries.insert((timer.end, id));
        self.checkpoints.insert((timer.checkpoint, id));
    }

    pub(crate) fn remove(&mut self, id: i64) {
        if let Some(timer) = self.timers.remove(&id) {
            self.expiries.remove(&(timer.end, id));
            self.checkpoints.remove(&(timer.checkpoint, id));
        }
    }

    /// Remaining time of a lease; `None` if its expiry was proposed, or if it is unknown.
    pub(crate) fn left(&self, id: i64) -> Option<Duration> {
        self.timers.get(&id).filter(|timer| !timer.is_expiring).map(|timer| timer.end.saturating_sub(now()))
    }

    /// Takes leases that have expired.
    fn take_expired(&mut self) -> Vec<i64> {
        let now = now();
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
        let now = now();
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
                checkpoints.push((id, Some(left.as_secs_f64().ceil() as u64)));
            }
        }
        checkpoints
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
pub(crate) async fn run(engine: Arc<dyn ConsensusEngine>, store: Arc<Store>) {
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
            run_as_leader(&engine, &store, &status, term).await;
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
    status: &watch::Receiver<Arc<EngineStatus>>,
    term: u64,
) {
    {
        let generation = store.current();
        let mut leases = generation.leases().lock();
        leases.clock = Some(Clock::new(term, leases.all.iter().map(|(id, lease)| (*id, *lease))));
    }
    let mut ticked = now();
    while is_leader_of_term(status, term) {
        sleep(TICK).await;
        let now = now();
        // After a pause of the process, renewals that arrived during the pause must be processed first.
        if now.saturating_sub(ticked) > PAUSE_MIN {
            sleep(PAUSE_MIN).await;
        }
        ticked = self::now();
        if !is_leader_of_term(status, term) {
            break;
        }
        while tick(engine, store, term).await {}
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
    if !expired.is_empty() {
        let operation = KvOperation::ExpireLeases { ids: expired.clone(), term };
        if let Err(error) = propose(engine, None, operation).await {
            tracing::debug!(%error, "cannot propose the end of expired leases; it will be retried");
            if let Some(clock) = &mut generation.leases().lock().clock {
                clock.retry_expiry(&expired);
            }
            return false;
        }
    }
    if !checkpoints.is_empty() {
        let operation = KvOperation::CheckpointLeases { remaining: checkpoints, term };
        if let Err(error) = propose(engine, None, operation).await {
            tracing::debug!(%error, "cannot checkpoint the remaining time of leases; it will be retried");
            return false;
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
    use super::*;

    fn lease(ttl: u64, remaining: Option<u64>) -> Lease {
        Lease { ttl, remaining }
    }

    #[test]
    fn clock_starts_with_checkpointed_time_and_renewal_restores_whole_time() {
        let mut clock = Clock::new(1, [(7, lease(100, Some(10))), (8, lease(50, None))].into_iter());
        assert!(clock.left(7).unwrap() <= Duration::from_secs(10));
        assert!(clock.left(8).unwrap() > Duration::from_secs(49));
        clock.renew(7, 100);
        assert!(clock.left(7).unwrap() > Duration::from_secs(99));
        assert_eq!(clock.left(9), None);
    }

    #[test]
    fn expired_lease_is_taken_once_and_again_after_retry() {
        let mut clock = Clock::new(1, [(7, lease(100, Some(0))), (8, lease(50, None))].into_iter());
        assert_eq!(clock.take_expired(), [7]);
        assert_eq!(clock.left(7), None, "its end was proposed");
        assert!(clock.take_expired().is_empty());
        clock.retry_expiry(&[7]);
        assert_eq!(clock.take_expired(), [7]);
        clock.remove(7);
        clock.retry_expiry(&[7]);
        assert!(clock.take_expired().is_empty());
    }
}
