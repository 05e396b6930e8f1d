//! Limits on concurrent long operations, so that there are always threads and time for short ones.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits for long operations. A caller waits for a permit in order of arrival, without a thread.
#[derive(Clone, Debug)]
pub(crate) struct ConcurrencyLimits {
    long_reads: Arc<Semaphore>,
    heavy_commands: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
    hashes: Arc<Semaphore>,
}

impl ConcurrencyLimits {
    pub(crate) fn new() -> Self {
        Self {
            long_reads: Arc::new(Semaphore::new(LONG_READS_MAX)),
            heavy_commands: Arc::new(Semaphore::new(HEAVY_COMMANDS_MAX)),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            hashes: Arc::new(Semaphore::new(HASHES_MAX)),
        }
    }

    /// Waits for a permit for a long read. Never returns `None`: the semaphores are never closed.
    pub(crate) async fn long_read(&self) -> Option<OwnedSemaphorePermit> {
        self.long_reads.clone().acquire_owned().await.ok()
    }

    /// Waits for a permit for a copy of the store.
    pub(crate) async fn snapshot(&self) -> Option<OwnedSemaphorePermit> {
        self.snapshots.clone().acquire_owned().await.ok()
    }

    /// Waits for a permit for a hash of the store.
    pub(crate) async fn hash(&self) -> Option<OwnedSemaphorePermit> {
        self.hashes.clone().acquire_owned().await.ok()
    }

    /// Waits for a permit for a command that is much work to apply.
    pub(crate) async fn heavy_command(&self) -> Option<OwnedSemaphorePermit> {
        self.heavy_commands.clone().acquire_owned().await.ok()
    }
}

/// Cancels work on another thread when it is dropped, because the caller no longer waits for the result.
#[derive(Debug, Default)]
pub(crate) struct CancelOnDrop(Arc<AtomicBool>);

impl CancelOnDrop {
    pub(crate) fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Each long read may use a processor for seconds.
const LONG_READS_MAX: usize = 2;
/// Heavy commands are proposed one at a time, so that other commands are applied between them.
const HEAVY_COMMANDS_MAX: usize = 1;
/// Each copy takes disk space for as long as its client takes to read it.
const SNAPSHOTS_MAX: usize = 2;
/// A hash of a large store takes minutes, during which other long reads must go on.
const HASHES_MAX: usize = 1;
