//! Removes history that was compacted away, beside the work of the store.
//!
//! The compaction itself is a number in the replicated state. What it makes unreadable is garbage: invisible to reads and
//! to the state hash at once, and removed from disk whenever this comes to it. So nodes may collect at their own pace.

use std::{
    ops::ControlFlow::{Break, Continue},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use rocksdb::{WriteBatch, WriteOptions};

use crate::{
    changes,
    keys::{self, Record},
    store::Generation,
    view::{Failure, Overlay, Version, View, disk},
    watch::Hub,
};

/// Tells garbage from history, over versions in the order of their places.
#[derive(Debug)]
pub(crate) struct Sieve {
    compacted: u64,
    key: Option<Bytes>,
    /// The version of `key` in force at `compacted` was met.
    met: bool,
}

impl Sieve {
    pub(crate) fn new(compacted: u64) -> Self {
        Self { compacted, key: None, met: false }
    }

    pub(crate) fn is_garbage(&mut self, version: &Version) -> bool {
        if self.key.as_ref() != Some(&version.key) {
            (self.key, self.met) = (Some(version.key.clone()), false);
        }
        if version.revision > self.compacted {
            return false;
        }
        // Newest first: the first old one is in force at the compaction; a deletion in force is nothing.
        let first = !std::mem::replace(&mut self.met, true);
        !first || version.record == Record::Deleted
    }
}

/// Collects on a thread; one at a time.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    running: Option<(JoinHandle<()>, Arc<Goal>)>,
}

/// What the thread is to collect.
#[derive(Debug, Default)]
struct Goal {
    stop: AtomicBool,
    /// The newest compaction; `None` when the thread has ended or is about to.
    compacted: Mutex<Option<u64>>,
}

impl Goal {
    fn compacted(&self) -> MutexGuard<'_, Option<u64>> {
        self.compacted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    /// Begins to collect what `compacted` left. A thread that is still at an earlier compaction does this one next: if it
    /// began anew each time, a store that is compacted more often than it can be walked through would never be collected.
    pub(crate) fn start(&mut self, generation: Arc<Generation>, hub: Arc<Hub>, compacted: u64) {
        if let Some((_, goal)) = &self.running
            && let Some(next) = &mut *goal.compacted()
        {
            *next = compacted;
            return;
        }
        self.stop();
        let goal = Arc::new(Goal { compacted: Mutex::new(Some(compacted)), ..Goal::default() });
        let shared = goal.clone();
        let work = move || {
            if let Err(error) = collect_all(&generation, &hub, &shared) {
                tracing::warn!(%error, "compacted history stays on disk for now");
            }
        };
        match std::thread::Builder::new().name("kv-collect".to_owned()).spawn(work) {
            Ok(thread) => self.running = Some((thread, goal)),
            Err(error) => tracing::warn!(%error, "compacted history stays on disk for now"),
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some((thread, goal)) = self.running.take() {
            goal.stop.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}

/// Collects until there was no newer compaction meanwhile.
fn collect_all(generation: &Generation, hub: &Hub, goal: &Goal) -> Result<(), Failure> {
    let mut done = None;
    loop {
        let compacted = {
            let mut next = goal.compacted();
            if *next == done || goal.stop.load(Ordering::Relaxed) {
                *next = None;
                return Ok(());
            }
            next.unwrap_or_default()
        };
        // Who watches is told of what is compacted before it is gone.
        hub.wait_for_delivery(compacted, &goal.stop);
        if let Err(failure) = collect(generation, compacted, &goal.stop) {
            *goal.compacted() = None;
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

fn collect(generation: &Generation, compacted: u64, stop: &AtomicBool) -> Result<(), Failure> {
    let db = generation.db();
    let (snapshot, overlay) = (db.snapshot(), Overlay::new());
    let view = View { source: &snapshot, overlay: &overlay };
    let mut sieve = Sieve::new(compacted);
    let (mut write, mut key, mut failed) = (WriteBatch::default(), Bytes::new(), None);
    view.versions(keys::all(), false, |version| {
        // All garbage of a key goes in one write: a deletion must not go before what it hides.
        if version.key != key && write.len() >= WRITE_LEN {
            failed = flush(db, std::mem::take(&mut write)).err();
        }
        if failed.is_some() || stop.load(Ordering::Relaxed) {
            return Break(());
        }
        if sieve.is_garbage(&version) {
            write.delete(keys::version(&version.key, version.revision));
        }
        key = version.key;
        Continue(())
    })?;
    if stop.load(Ordering::Relaxed) {
        return Ok(()); // The last key may be incomplete.
    }
    failed.map_or(Ok(()), Err)?;
    changes::forget(compacted, &mut write);
    write.put(keys::COLLECTED, compacted.to_be_bytes());
    flush(db, write)
}

fn flush(db: &rocksdb::DB, write: WriteBatch) -> Result<(), Failure> {
    // Losing it costs doing it again.
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    db.write_opt(write, &options).map_err(disk)
}

/// The compaction whose garbage is gone.
pub(crate) fn collected(db: &rocksdb::DB) -> Result<u64, Failure> {
    let bytes = db.get(keys::COLLECTED).map_err(disk)?;
    Ok(bytes.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes))
}

/// Deletions gathered into one write.
const WRITE_LEN: usize = 1000;
