//! Shows in the status that the state machine does not respond.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use consensus_core::EngineStatus;
use tokio::sync::watch;

type Status = watch::Sender<Arc<EngineStatus>>;

/// The batch in progress, and the thread that watches it. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct StallWatch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    batch: Mutex<Batch>,
    /// Wakes the thread when batches begin again, and at the end.
    wake: Condvar,
}

#[derive(Debug)]
struct Batch {
    /// Time limit of one batch.
    limit: Duration,
    began: Option<Instant>,
    /// Whether the status shows that it stalls.
    is_stalled: bool,
    /// Whether the thread waits for the next batch without a time limit.
    is_watcher_asleep: bool,
    has_ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StallWatch {
    pub(crate) fn spawn(status: Status) -> std::io::Result<Self> {
        let batch = Batch {
            limit: LIMIT_DEFAULT,
            began: None,
            is_stalled: false,
            is_watcher_asleep: false,
            has_ended: false,
        };
        let shared = Arc::new(Shared { batch: Mutex::new(batch), wake: Condvar::new() });
        let there = shared.clone();
        let thread = std::thread::Builder::new()
            .name("mock-stall".to_owned())
            .spawn(move || watch(&there, &status))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn set_limit(&self, limit: Duration) {
        self.shared.lock().limit = limit;
        self.shared.wake.notify_one();
    }

    /// Must be called before a batch is applied.
    pub(crate) fn begin(&self, now: Instant) {
        let mut batch = self.shared.lock();
        batch.began = Some(now);
        if std::mem::take(&mut batch.is_watcher_asleep) {
            self.shared.wake.notify_one();
        }
    }

    /// Must be called when the batch was applied.
    pub(crate) fn end(&self, status: &Status) {
        let mut batch = self.shared.lock();
        let began = batch.began.take();
        if std::mem::take(&mut batch.is_stalled) {
            tracing::info!(after = ?began.map(|began| began.elapsed()), "the state machine responds again");
            status.send_modify(|status| Arc::make_mut(status).apply_stalled_since = None);
        }
    }
}

impl Drop for StallWatch {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // It does not panic.
        }
    }
}

fn watch(shared: &Shared, status: &Status) {
    let mut seen = None;
    let mut batch = shared.lock();
    while !batch.has_ended {
        let limit = batch.limit;
        if let Some(began) = batch.began.filter(|began| !batch.is_stalled && began.elapsed() >= limit) {
            tracing::warn!(?limit, "the state machine is stalled: applying commands exceeds its time limit");
            batch.is_stalled = true;
            status.send_modify(|status| Arc::make_mut(status).apply_stalled_since = Some(began));
        }
        // Without a batch since the last look, or after the status was set, the next event wakes this thread.
        let is_idle = batch.is_stalled || (batch.began.is_none() && seen.is_none());
        seen = batch.began;
        batch = if is_idle {
            batch.is_watcher_asleep = true;
            shared.wake.wait(batch).unwrap_or_else(PoisonError::into_inner)
        } else {
            let left = batch.began.map_or(limit, |began| limit.saturating_sub(began.elapsed()));
            let waited = shared.wake.wait_timeout(batch, left);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
    }
}

/// As that of a Raft engine with default settings.
const LIMIT_DEFAULT: Duration = Duration::from_secs(10);
