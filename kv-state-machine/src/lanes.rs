//! How many long operations are under way at once, so that there is always room for short ones beside them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for long operations. A caller that finds none waits, first come first served; no thread is held meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    long_reads: Arc<Semaphore>,
    heavy_commands: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self {
            long_reads: Arc::new(Semaphore::new(LONG_READS_MAX)),
            heavy_commands: Arc::new(Semaphore::new(HEAVY_COMMANDS_MAX)),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
        }
    }

    /// A place for a read of more than a moment. `None` is never returned: the lanes are never closed.
    pub(crate) async fn long_read(&self) -> Option<OwnedSemaphorePermit> {
        self.long_reads.clone().acquire_owned().await.ok()
    }

    /// A place for a copy of the store.
    pub(crate) async fn snapshot(&self) -> Option<OwnedSemaphorePermit> {
        self.snapshots.clone().acquire_owned().await.ok()
    }

    /// A place for a command that is much work to apply.
    pub(crate) async fn heavy_command(&self) -> Option<OwnedSemaphorePermit> {
        self.heavy_commands.clone().acquire_owned().await.ok()
    }
}

/// Tells work on another thread, when it is dropped, that nobody waits for the outcome.
#[derive(Debug, Default)]
pub(crate) struct Abandon(Arc<AtomicBool>);

impl Abandon {
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each may take a processor for seconds.
const LONG_READS_MAX: usize = 2;
/// Between one heavy command and the next the commands of others are applied.
const HEAVY_COMMANDS_MAX: usize = 1;
/// Each takes room on the disk for as long as its client takes.
const SNAPSHOTS_MAX: usize = 2;
