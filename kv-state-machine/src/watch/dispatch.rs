//! Finds out who watches what was changed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    Watch,
    index::Index,
    session::{PART_BYTES_MAX, size_of},
};
use crate::{
    changes::{self, WatchEvent},
    store::{Generation, Store},
    view::{Base, Failure},
};

/// Where the thread that reads changes meets the watches and the batches.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    registry: Mutex<Registry>,
    /// Whether the thread runs; nobody watches anything before.
    running: AtomicBool,
    /// Held for a moment by the thread that has written a batch, so that no batch is missed.
    batch: Mutex<()>,
    written: Condvar,
    stopped: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Watches that have caught up.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) index: Index,
    /// Through this revision it is decided which watches are told of which changes. A watch that begins later is told by the
    /// thread; one that begins earlier reads by itself.
    pub(super) decided: u64,
    /// Through this revision all changes are in the queues.
    pub(super) delivered: u64,
    /// The database that they were read from.
    generation: Weak<Generation>,
}

impl Registry {
    /// In one step: who begins to watch meanwhile either is seen here, or sees what was passed.
    fn pass_if_nobody_watches(&mut self, newest: u64) -> bool {
        let is_empty = self.index.is_empty();
        if is_empty {
            (self.decided, self.delivered) = (newest, newest);
        }
        is_empty
    }

    fn is_of_other(&self, generation: &Arc<Generation>) -> bool {
        !std::ptr::eq(self.generation.as_ptr(), Arc::as_ptr(generation))
    }
}

impl Hub {
    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called when a batch can be read.
    pub(crate) fn batch_written(&self) {
        if self.running.load(Ordering::Acquire) {
            drop(self.batch.lock().unwrap_or_else(PoisonError::into_inner));
            self.written.notify_all();
        }
    }

    /// Ends the thread, which then holds the store no longer.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        drop(self.batch.lock().unwrap_or_else(PoisonError::into_inner));
        self.written.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }

    /// Waits until the changes up to `revision` are delivered, so that they may be forgotten.
    pub(crate) fn wait_for_delivery(&self, revision: u64, stop: &AtomicBool) {
        while self.running.load(Ordering::Acquire)
            && !self.stopped.load(Ordering::Acquire)
            && !stop.load(Ordering::Relaxed)
            && self.registry().delivered < revision
        {
            std::thread::sleep(DELIVERY_LOOK);
        }
    }

    /// Starts the thread, unless it runs.
    pub(super) fn start(&self, store: &Arc<Store>) -> std::io::Result<()> {
        let mut registry = self.registry();
        if self.running.load(Ordering::Acquire) {
            return Ok(());
        }
        let generation = store.current();
        let now = generation.meta().revision;
        (registry.decided, registry.delivered) = (now, now);
        registry.generation = Arc::downgrade(&generation);
        let store = Arc::downgrade(store);
        let thread = std::thread::Builder::new().name("kv-watch".to_owned()).spawn(move || run(&store))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits for a revision after `delivered`; the newest then.
    fn wait(&self, store: &Store, delivered: u64) -> u64 {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let revision = store.current().meta().revision;
            if revision != delivered || self.stopped.load(Ordering::Acquire) {
                return revision;
            }
            // Only for a moment: a store that is dropped may not be able to say so.
            let waited = self.written.wait_timeout(batch, WAIT_MAX).unwrap_or_else(PoisonError::into_inner);
            batch = waited.0;
            if waited.1.timed_out() {
                return store.current().meta().revision;
            }
        }
    }
}

fn run(store: &Weak<Store>) {
    let mut failed = false;
    while let Some(store) = store.upgrade() {
        let hub = store.hub();
        if hub.stopped.load(Ordering::Acquire) {
            return;
        }
        let delivered = hub.registry().delivered;
        let newest = hub.wait(&store, delivered);
        if newest == delivered {
            continue;
        }
        if let Err(error) = dispatch(&store, newest) {
            if !std::mem::replace(&mut failed, true) {
                tracing::warn!(%error, "cannot read what was changed; watches wait");
            }
            std::thread::sleep(RETRY);
        } else if std::mem::take(&mut failed) {
            tracing::info!("watches go on");
        }
    }
}

/// Delivers a part of the changes up to `newest`.
fn dispatch(store: &Arc<Store>, newest: u64) -> Result<(), Failure> {
    let hub = store.hub();
    let generation = store.current();
    let from = hub.registry().delivered + 1;
    if hub.registry().is_of_other(&generation) {
        take_over(hub, &generation, from);
        return Ok(());
    }
    if hub.registry().pass_if_nobody_watches(newest) {
        return Ok(());
    }
    let read = changes::read(generation.db(), from, newest, AT_ONCE, |_| true)?;
    let matched: Vec<Vec<Arc<Watch>>> = {
        let mut registry = hub.registry();
        registry.decided = read.through;
        read.changes.iter().map(|change| watches_of(&registry.index, change)).collect()
    };
    let base = Base::new(&generation);
    let mut part = Part::default();
    for (change, watches) in read.changes.iter().zip(matched) {
        // Between revisions, so that each comes whole.
        if part.bytes > PART_BYTES_MAX && change.revision > part.through {
            std::mem::take(&mut part).deliver(hub);
        }
        let previous = watches.iter().any(|watch| watch.request.previous);
        if watches.is_empty() {
            continue;
        }
        if let Some(event) = changes::event(&base, change, previous)? {
            part.add(Arc::new(event), watches);
        }
    }
    part.deliver(hub);
    hub.registry().delivered = read.through;
    Ok(())
}

/// Events that are put into the queues together.
#[derive(Default)]
struct Part {
    /// By the address of the watch: sessions number their watches by themselves.
    events: BTreeMap<usize, (Arc<Watch>, Vec<Arc<WatchEvent>>)>,
    bytes: usize,
    /// Revision of the last event.
    through: u64,
}

impl Part {
    fn add(&mut self, event: Arc<WatchEvent>, watches: Vec<Arc<Watch>>) {
        self.bytes += size_of(&event);
        self.through = event.kv.mod_revision;
        for watch in watches {
            let address = Arc::as_ptr(&watch).addr();
            self.events.entry(address).or_insert_with(|| (watch, Vec::new())).1.push(event.clone());
        }
    }

    fn deliver(self, hub: &Hub) {
        let mut registry = hub.registry();
        for (watch, mut events) in self.events.into_values() {
            // Who fell behind with an earlier part reads by itself, and may have caught up meanwhile.
            if watch.ended.load(Ordering::Relaxed) || !watch.is_indexed.load(Ordering::Relaxed) {
                continue;
            }
            let next = watch.next.load(Ordering::Relaxed);
            events.retain(|event| event.kv.mod_revision >= next);
            let Some(from) = events.first().map(|event| event.kv.mod_revision) else { continue };
            if !watch.queue.push(&watch, events) {
                registry.index.remove(&watch);
                watch.queue.fall_behind(watch.clone(), from);
            }
        }
        registry.delivered = registry.delivered.max(self.through);
    }
}

/// Goes on with a restored snapshot, which may have a gap after what was delivered: each watch finds out by itself.
fn take_over(hub: &Hub, generation: &Arc<Generation>, from: u64) {
    let mut registry = hub.registry();
    for watch in registry.index.all() {
        registry.index.remove(&watch);
        watch.queue.fall_behind(watch.clone(), from);
    }
    let now = generation.meta().revision;
    (registry.decided, registry.delivered) = (now, now);
    registry.generation = Arc::downgrade(generation);
}

fn watches_of(index: &Index, change: &crate::written::Change) -> Vec<Arc<Watch>> {
    let mut found = Vec::new();
    index.of(&change.key, |watch| {
        if watch.wants(change) && watch.next.load(Ordering::Relaxed) <= change.revision {
            found.push(watch.clone());
        }
    });
    found
}

/// Changes that are delivered at once, about.
const AT_ONCE: usize = 1000;
const RETRY: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_millis(500);
const DELIVERY_LOOK: Duration = Duration::from_millis(5);
