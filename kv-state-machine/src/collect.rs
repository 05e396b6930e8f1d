//! Garbage collection: removes compacted history in the background.
//!
//! A compaction only sets a revision in the replicated state. The versions that become unreadable are garbage: reads
//! and the state hash ignore them at once, and the collector removes them from disk later. So nodes may collect at
//! different times.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use rocksdb::WriteBatch;

use crate::{
    changes,
    keys::{self, Record},
    range_deletions::RangeDeletions,
    segments::Recount,
    store::Generation,
    view::{Failure, Overlay, Version, View, disk, write_unlogged},
    watch::Dispatcher,
};

/// Distinguishes garbage from history, in a walk over versions in the order of their places.
#[derive(Debug)]
pub(crate) struct GarbageFilter {
    compacted: u64,
    key: Option<Bytes>,
    /// Whether the version of `key` in force at `compacted` was passed.
    passed_in_force: bool,
}

impl GarbageFilter {
    pub(crate) fn new(compacted: u64) -> Self {
        Self { compacted, key: None, passed_in_force: false }
    }

    pub(crate) fn is_garbage(&mut self, version: &Version) -> bool {
        if self.key.as_ref() != Some(&version.key) {
            (self.key, self.passed_in_force) = (Some(version.key.clone()), false);
        }
        if version.revision > self.compacted {
            return false;
        }
        // Versions come newest first: the first one at or before `compacted` is in force there. A deletion in force is
        // garbage too.
        let first = !std::mem::replace(&mut self.passed_in_force, true);
        !first || version.record == Record::Deleted
    }
}

/// Runs at most one thread that collects garbage.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    running: Option<(JoinHandle<()>, Arc<CollectorControl>)>,
}

/// Instructions for the thread.
#[derive(Debug, Default)]
struct CollectorControl {
    stop: AtomicBool,
    /// Revision of the newest compaction; `None` if the thread has ended or is about to.
    compacted: Mutex<Option<u64>>,
}

impl CollectorControl {
    fn compacted(&self) -> MutexGuard<'_, Option<u64>> {
        self.compacted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    /// Starts to collect the garbage of a compaction. A running thread finishes the earlier compaction first and then
    /// continues with this one. If it restarted each time, a store that is compacted more often than it can be scanned
    /// would never be collected.
    pub(crate) fn start(&mut self, generation: Arc<Generation>, dispatcher: Arc<Dispatcher>, compacted: u64) {
        if let Some((_, control)) = &self.running
            && let Some(next) = &mut *control.compacted()
        {
            *next = compacted;
            return;
        }
        self.stop();
        let control = Arc::new(CollectorControl {
            compacted: Mutex::new(Some(compacted)),
            ..CollectorControl::default()
        });
        let shared = control.clone();
        let work = move || {
            if let Err(error) = collect_all(&generation, &dispatcher, &shared) {
                warn_not_collected(&error);
            }
        };
        match std::thread::Builder::new().name("kv-collect".to_owned()).spawn(work) {
            Ok(thread) => self.running = Some((thread, control)),
            Err(error) => warn_not_collected(&error),
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some((thread, control)) = self.running.take() {
            control.stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

fn warn_not_collected(error: &dyn std::fmt::Display) {
    tracing::warn!(
        %error,
        "garbage collection failed: compacted history stays on disk until the next compaction or restart"
    );
}

/// Collects until there is no newer compaction.
fn collect_all(
    generation: &Generation,
    dispatcher: &Dispatcher,
    control: &CollectorControl,
) -> Result<(), Failure> {
    let mut done = None;
    loop {
        let compacted = {
            let mut next = control.compacted();
            if *next == done || control.stop.load(Ordering::Relaxed) {
                *next = None;
                return Ok(());
            }
            next.unwrap_or_default()
        };
        // The deletions of a range are written, and watches receive the changes, before versions and changes are removed.
        while generation.watchable_revision() < compacted && !control.stop.load(Ordering::Relaxed) {
            std::thread::sleep(POLL_INTERVAL);
        }
        dispatcher.wait_for_delivery(compacted, &control.stop);
        // Reads of several pages keep what they need for a bounded time.
        while generation.pins().is_pinned_before(compacted) && !control.stop.load(Ordering::Relaxed) {
            std::thread::sleep(POLL_INTERVAL);
        }
        if let Err(failure) = collect(generation, compacted, &control.stop) {
            *control.compacted() = None;
            return Err(failure);
        }
        done = Some(compacted);
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Collects the garbage of a compaction. If a crash loses writes, they are repeated.
fn collect(generation: &Generation, compacted: u64, stop: &AtomicBool) -> Result<(), Failure> {
    let db = generation.db();
    let mut recount = Recount::new(&generation.published().segments);
    let (snapshot, overlay, none) = (db.snapshot(), Overlay::new(), RangeDeletions::default());
    let view = View { source: &snapshot, overlay: &overlay, deletions: &none };
    let mut filter = GarbageFilter::new(compacted);
    let (mut write, mut key, mut failed) = (WriteBatch::default(), Bytes::new(), None);
    let mut counted = None;
    view.versions(keys::all(), |version| {
        // All garbage of a key is removed in one write: a deletion must not be removed before the versions that it
        // hides.
        if version.key != key && write.len() >= WRITE_LEN {
            failed = write_unlogged(db, std::mem::take(&mut write)).err();
        }
        if failed.is_some() || stop.load(Ordering::Relaxed) {
            return Break(());
        }
        if filter.is_garbage(&version) {
            write.delete(keys::version(&version.key, version.revision));
        } else if counted.as_ref() != Some(&version.key) {
            recount.count(&keys::prefix(&version.key));
            counted = Some(version.key.clone());
        }
        key = version.key;
        Continue(())
    })?;
    if stop.load(Ordering::Relaxed) {
        return Ok(()); // The last key may be incomplete.
    }
    failed.map_or(Ok(()), Err)?;
    changes::remove_compacted(compacted, &mut write);
    write.put(keys::COLLECTED, compacted.to_be_bytes());
    write_unlogged(db, write)?;
    generation.set_recount(recount);
    Ok(())
}

/// Revision up to which garbage was collected.
pub(crate) fn collected(db: &rocksdb::DB) -> Result<u64, Failure> {
    let bytes = db.get(keys::COLLECTED).map_err(disk)?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes))
}

/// Time between two looks at whether a deletion of a range is done.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Number of deletions after which a write is flushed.
const WRITE_LEN: usize = 1000;
