//! Counts the time of leases, on the node that leads.
//!
//! What is replicated is which leases there are. Their time is in the memory of the leader alone, so that renewing one costs
//! no log entry. A new leader gives each lease the whole time that it was last noted to have: none ends before its time, and
//! because the remaining time of those that nobody renews is noted now and then, none lives on for ever.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use consensus_core::{ConsensusEngine, EngineStatus, Health, ReadConsistency, Role};
use tokio::{sync::watch, time::sleep};

use crate::{KvOperation, Lease, database::propose, store::Store};

/// When leases end, by a clock that goes on while the machine is suspended.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Term in which this node leads.
    pub(crate) term: u64,
    timers: HashMap<i64, Timer>,
    ends: BTreeSet<(Duration, i64)>,
    notes: BTreeSet<(Duration, i64)>,
}

#[derive(Clone, Copy, Debug)]
struct Timer {
    end: Duration,
    /// When its remaining time is noted, if it is not renewed before.
    note: Duration,
    /// It was proposed to end it.
    ending: bool,
}

impl Clock {
    fn new(term: u64, leases: impl Iterator<Item = (i64, Lease)>) -> Self {
        let (timers, ends, notes) = (HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut clock = Self { term, timers, ends, notes };
        leases.for_each(|(id, lease)| clock.start(id, lease));
        clock
    }

    /// Begins to count what a lease has left.
    pub(crate) fn start(&mut self, id: i64, lease: Lease) {
        self.set(id, lease.remaining.unwrap_or(lease.ttl), lease.ttl);
    }

    /// Gives a lease its whole time.
    pub(crate) fn renew(&mut self, id: i64, ttl: u64) {
        self.set(id, ttl, ttl);
    }

    fn set(&mut self, id: i64, left: u64, ttl: u64) {
        self.forget(id);
        let now = now();
        let timer = Timer {
            end: now.saturating_add(Duration::from_secs(left)),
            note: now.saturating_add(note_after(ttl)),
            ending: false,
        };
        self.timers.insert(id, timer);
        self.ends.insert((timer.end, id));
        self.notes.insert((timer.note, id));
    }

    pub(crate) fn forget(&mut self, id: i64) {
        if let Some(timer) = self.timers.remove(&id) {
            self.ends.remove(&(timer.end, id));
            self.notes.remove(&(timer.note, id));
        }
    }

    /// What a lease has left; `None`: its end was proposed, or it is not known.
    pub(crate) fn left(&self, id: i64) -> Option<Duration> {
        self.timers.get(&id).filter(|timer| !timer.ending).map(|timer| timer.end.saturating_sub(now()))
    }

    /// Takes leases whose time is over.
    fn take_ended(&mut self) -> Vec<i64> {
        let now = now();
        let ended: Vec<_> =
            self.ends.iter().take_while(|(end, _)| *end <= now).take(AT_ONCE).copied().collect();
        for (end, id) in &ended {
            self.ends.remove(&(*end, *id));
            if let Some(timer) = self.timers.get_mut(id) {
                timer.ending = true;
            }
        }
        ended.into_iter().map(|(_, id)| id).collect()
    }

    /// It is not known whether they have ended: they are taken again.
    fn give_back(&mut self, ids: &[i64]) {
        for id in ids {
            if let Some(timer) = self.timers.get(id) {
                self.ends.insert((timer.end, *id));
            }
        }
    }

    /// Takes leases whose remaining time is to be noted, with that time.
    fn take_noted(&mut self, ttl: impl Fn(i64) -> u64) -> Vec<(i64, Option<u64>)> {
        let now = now();
        let due: Vec<_> =
            self.notes.iter().take_while(|(note, _)| *note <= now).take(AT_ONCE).copied().collect();
        let mut noted = Vec::with_capacity(due.len());
        for (note, id) in due {
            self.notes.remove(&(note, id));
            let Some(timer) = self.timers.get_mut(&id) else { continue };
            timer.note = now.saturating_add(note_after(ttl(id)));
            self.notes.insert((timer.note, id));
            let left = timer.end.saturating_sub(now);
            if !timer.ending && left > Duration::ZERO {
                noted.push((id, Some(left.as_secs_f64().ceil() as u64)));
            }
        }
        noted
    }
}

/// Who renews a lease does so after a third of its time: what is not renewed after half of it may be abandoned.
fn note_after(ttl: u64) -> Duration {
    Duration::from_secs((ttl / 2).max(1)).min(NOTE_MAX)
}

/// Time since the machine was started, time in which it was suspended included.
pub(crate) fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// Counts the time of the leases whenever this node leads, until the engine ends.
pub(crate) async fn run(engine: Arc<dyn ConsensusEngine>, store: Arc<Store>) {
    let mut status = engine.status();
    loop {
        let changed = status.wait_for(|status| leads(status) || status.health != Health::Running).await;
        let Ok(term) = changed.map(|status| (status.health == Health::Running).then_some(status.term.0))
        else {
            return;
        };
        let Some(term) = term else { return };
        // All that was acknowledged before is known when the first read of the term is.
        if engine.read_barrier(ReadConsistency::Linearizable).await.is_ok() && leads_in(&status, term) {
            lead(&engine, &store, &status, term).await;
        } else {
            sleep(TICK).await;
        }
    }
}

fn leads(status: &EngineStatus) -> bool {
    matches!(status.role, Role::Leader | Role::Standalone)
}

pub(crate) fn leads_in(status: &watch::Receiver<Arc<EngineStatus>>, term: u64) -> bool {
    let status = status.borrow();
    leads(&status) && status.term.0 == term && status.health == Health::Running
}

async fn lead(
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
    while leads_in(status, term) {
        sleep(TICK).await;
        let now = now();
        // Who was stopped for a while first hears the renewals that came meanwhile.
        if now.saturating_sub(ticked) > LATE {
            sleep(LATE).await;
        }
        ticked = self::now();
        if !leads_in(status, term) {
            break;
        }
        while tick(engine, store, term).await {}
    }
    store.current().leases().lock().clock = None;
}

/// Whether there is more to do at once.
async fn tick(engine: &Arc<dyn ConsensusEngine>, store: &Store, term: u64) -> bool {
    let generation = store.current();
    let (ended, noted) = {
        let mut leases = generation.leases().lock();
        let leases = &mut *leases;
        let Some(clock) = &mut leases.clock else { return false };
        let all = &leases.all;
        (clock.take_ended(), clock.take_noted(|id| all.get(&id).map_or(1, |lease| lease.ttl)))
    };
    let is_more = ended.len() == AT_ONCE || noted.len() == AT_ONCE;
    if !ended.is_empty() {
        let operation = KvOperation::ExpireLeases { ids: ended.clone(), term };
        if let Err(error) = propose(engine, None, operation).await {
            tracing::debug!(%error, "leases whose time is over stay for now");
            if let Some(clock) = &mut generation.leases().lock().clock {
                clock.give_back(&ended);
            }
            return false;
        }
    }
    if !noted.is_empty() {
        let operation = KvOperation::CheckpointLeases { remaining: noted, term };
        if let Err(error) = propose(engine, None, operation).await {
            tracing::debug!(%error, "the remaining time of leases is not noted for now");
            return false;
        }
    }
    is_more
}

/// How exact ends are.
const TICK: Duration = Duration::from_millis(200);
/// A tick that comes so much later was held up.
const LATE: Duration = Duration::from_secs(2);
/// Remaining times are noted at least so often.
const NOTE_MAX: Duration = Duration::from_secs(300);
/// Leases that one command ends or notes.
const AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(ttl: u64, remaining: Option<u64>) -> Lease {
        Lease { ttl, remaining }
    }

    #[test]
    fn lease_gets_what_was_noted_and_its_whole_time_when_it_is_renewed() {
        let mut clock = Clock::new(1, [(7, lease(100, Some(10))), (8, lease(50, None))].into_iter());
        assert!(clock.left(7).unwrap() <= Duration::from_secs(10));
        assert!(clock.left(8).unwrap() > Duration::from_secs(49));
        clock.renew(7, 100);
        assert!(clock.left(7).unwrap() > Duration::from_secs(99));
        assert_eq!(clock.left(9), None);
    }

    #[test]
    fn ended_lease_is_taken_once_and_again_when_it_is_given_back() {
        let mut clock = Clock::new(1, [(7, lease(100, Some(0))), (8, lease(50, None))].into_iter());
        assert_eq!(clock.take_ended(), [7]);
        assert_eq!(clock.left(7), None, "its end was proposed");
        assert!(clock.take_ended().is_empty());
        clock.give_back(&[7]);
        assert_eq!(clock.take_ended(), [7]);
        clock.forget(7);
        clock.give_back(&[7]);
        assert!(clock.take_ended().is_empty());
    }
}
