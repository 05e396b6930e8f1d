//! Dispatches changes to watches.

use std::{
    collections::BTreeMap,
    ops::ControlFlow::{Break, Continue},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::{
    Watch,
    index::Index,
    session::{PART_BYTES_MAX, size_of},
    within::Places,
};
use crate::{
    changes::{self, WatchEvent},
    store::{Generation, Store},
    view::{Base, Failure},
};

/// State shared by the dispatcher thread, the watches, and the thread that applies batches.
#[derive(Debug, Default)]
pub(crate) struct Dispatcher {
    registry: Mutex<Registry>,
    /// Whether the thread runs. It is started with the first watch.
    running: AtomicBool,
    /// Locked briefly by the thread that wrote a batch, so that the dispatcher misses no batch.
    batch: Mutex<()>,
    written: Condvar,
    stopped: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub(super) counts: Counts,
    pub(super) places: Places,
}

/// Numbers of watches at a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WatchCounts {
    pub(crate) sessions: usize,
    pub(crate) watches: usize,
    /// Those that have caught up.
    pub(crate) current: usize,
}

/// Numbers of watches.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(super) sessions: AtomicUsize,
    pub(super) watches: AtomicUsize,
}

/// Watches that have caught up, and the progress of the dispatcher.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) index: Index,
    /// Last revision for which the matching watches were determined. The dispatcher delivers to a watch that starts
    /// later; a watch that starts earlier reads from disk.
    pub(super) decided: u64,
    /// Last revision whose changes are all in the queues.
    pub(super) delivered: u64,
    /// Generation from which the changes were read.
    generation: Weak<Generation>,
}

impl Registry {
    /// Skips all changes up to `newest` if there is no watch. Check and skip are atomic: a watch that is added
    /// concurrently either is in the index, or sees that its revision was skipped.
    fn skip_if_no_watches(&mut self, newest: u64) -> bool {
        let is_empty = self.index.is_empty();
        if is_empty {
            (self.decided, self.delivered) = (newest, newest);
        }
        is_empty
    }

    fn has_other_generation(&self, generation: &Arc<Generation>) -> bool {
        !std::ptr::eq(self.generation.as_ptr(), Arc::as_ptr(generation))
    }
}

impl Dispatcher {
    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of sessions, of their watches, and of those watches that have caught up.
    pub(crate) fn counts(&self) -> WatchCounts {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let current = self.registry().index.len();
        WatchCounts { sessions: of(&self.counts.sessions), watches: of(&self.counts.watches), current }
    }

    /// Notifies the dispatcher. Called when a batch is readable.
    pub(crate) fn batch_written(&self) {
        if self.running.load(Ordering::Acquire) {
            drop(self.batch.lock().unwrap_or_else(PoisonError::into_inner));
            self.written.notify_all();
        }
    }

    /// Stops the thread, which then releases the store.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        drop(self.batch.lock().unwrap_or_else(PoisonError::into_inner));
        self.written.notify_all();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }

    /// Waits until the changes up to `revision` are delivered, so that they can be removed.
    pub(crate) fn wait_for_delivery(&self, revision: u64, stop: &AtomicBool) {
        while self.running.load(Ordering::Acquire)
            && !self.stopped.load(Ordering::Acquire)
            && !stop.load(Ordering::Relaxed)
            && self.registry().delivered < revision
        {
            std::thread::sleep(DELIVERY_POLL_INTERVAL);
        }
    }

    /// Starts the thread if it is not running.
    pub(super) fn start(&self, store: &Arc<Store>) -> std::io::Result<()> {
        let mut registry = self.registry();
        if self.running.load(Ordering::Acquire) {
            return Ok(());
        }
        let generation = store.current();
        let now = generation.watchable_revision();
        (registry.decided, registry.delivered) = (now, now);
        registry.generation = Arc::downgrade(&generation);
        let store = Arc::downgrade(store);
        let thread = std::thread::Builder::new().name("kv-watch".to_owned()).spawn(move || run(&store))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        self.running.store(true, Ordering::Release);
        Ok(())
    }

    /// Waits for a revision after `delivered`, for at most [`WAIT_MAX`]. Returns the newest revision.
    fn wait(&self, store: &Store, delivered: u64) -> u64 {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let revision = store.current().watchable_revision();
            if revision != delivered || self.stopped.load(Ordering::Acquire) {
                return revision;
            }
            // The wait is bounded because a store that is dropped may not be able to notify this thread.
            let waited = self.written.wait_timeout(batch, WAIT_MAX).unwrap_or_else(PoisonError::into_inner);
            batch = waited.0;
            if waited.1.timed_out() {
                return store.current().watchable_revision();
            }
        }
    }
}

fn run(store: &Weak<Store>) {
    let mut failed = false;
    while let Some(store) = store.upgrade() {
        let dispatcher = store.dispatcher();
        if dispatcher.stopped.load(Ordering::Acquire) {
            return;
        }
        let delivered = dispatcher.registry().delivered;
        let newest = dispatcher.wait(&store, delivered);
        if newest == delivered {
            continue;
        }
        if let Err(error) = dispatch(&store, newest) {
            if !std::mem::replace(&mut failed, true) {
                tracing::warn!(%error, "cannot read changes from the store; watches are delayed until a retry succeeds");
            }
            std::thread::sleep(RETRY);
        } else if std::mem::take(&mut failed) {
            tracing::info!("changes can be read again; watches continue");
        }
    }
}

/// Delivers some of the changes up to `newest`.
fn dispatch(store: &Arc<Store>, newest: u64) -> Result<(), Failure> {
    let dispatcher = store.dispatcher();
    let generation = store.current();
    let from = dispatcher.registry().delivered + 1;
    if dispatcher.registry().has_other_generation(&generation) {
        switch_generation(dispatcher, &generation, from);
        return Ok(());
    }
    if dispatcher.registry().skip_if_no_watches(newest) {
        return Ok(());
    }
    let read = changes::read(generation.db(), from, newest, CHANGES_PER_DISPATCH)?;
    let large = deliver(&generation, dispatcher, &read)?;
    match large.or_else(|| read.is_large_next.then_some(read.through + 1)) {
        Some(revision) => leave_to_watches(&generation, dispatcher, revision),
        None => Ok(()),
    }
}

/// Adds events to the queues. Stops before a revision with too many bytes of events, and returns it.
fn deliver(
    generation: &Arc<Generation>,
    dispatcher: &Dispatcher,
    read: &changes::Read,
) -> Result<Option<u64>, Failure> {
    let matched: Vec<Vec<Arc<Watch>>> = {
        let mut registry = dispatcher.registry();
        registry.decided = registry.decided.max(read.through);
        read.changes.iter().map(|change| matching_watches(&registry.index, change)).collect()
    };
    let base = Base::new(generation);
    let mut delivery = Delivery::default();
    for (change, watches) in read.changes.iter().zip(matched) {
        // Deliveries end between revisions, so that each revision is delivered as a whole.
        if delivery.bytes > PART_BYTES_MAX && change.revision > delivery.through {
            std::mem::take(&mut delivery).deliver(dispatcher);
        }
        if delivery.bytes > LARGE_BYTES {
            delivery.before(change.revision).deliver(dispatcher);
            return Ok(Some(change.revision));
        }
        let previous = watches.iter().any(|watch| watch.request.previous);
        if watches.is_empty() {
            continue;
        }
        if let Some(event) = changes::event(&base, change, previous)? {
            delivery.add(Arc::new(event), watches);
        }
    }
    delivery.deliver(dispatcher);
    let mut registry = dispatcher.registry();
    registry.delivered = registry.delivered.max(read.through);
    Ok(None)
}

/// Makes the watches of a revision with many changes read it from disk, each at the speed of its client. This bounds the
/// memory, and the delay of the other watches.
fn leave_to_watches(
    generation: &Arc<Generation>,
    dispatcher: &Dispatcher,
    revision: u64,
) -> Result<(), Failure> {
    let all = {
        let mut registry = dispatcher.registry();
        registry.decided = registry.decided.max(revision);
        registry.index.all().len()
    };
    let mut matched = BTreeMap::new();
    changes::visit(generation.db(), revision, |change| {
        // If every watch is found, the other changes do not matter.
        if change.revision > revision || matched.len() >= all {
            return Break(());
        }
        for watch in matching_watches(&dispatcher.registry().index, &change) {
            matched.insert(Arc::as_ptr(&watch).addr(), watch);
        }
        Continue(())
    })?;
    let mut registry = dispatcher.registry();
    for watch in matched.into_values() {
        let is_indexed = watch.is_indexed.load(Ordering::Relaxed);
        if is_indexed && !watch.ended.load(Ordering::Relaxed) {
            registry.index.remove(&watch);
            watch.queue.fall_behind(watch.clone(), revision);
        }
    }
    registry.delivered = registry.delivered.max(revision);
    Ok(())
}

/// Events that are added to the queues together.
#[derive(Default)]
struct Delivery {
    /// Events by address of the watch, because ids of watches are unique only within a session.
    events: BTreeMap<usize, (Arc<Watch>, Vec<Arc<WatchEvent>>)>,
    bytes: usize,
    /// Revision of the last event.
    through: u64,
}

impl Delivery {
    fn add(&mut self, event: Arc<WatchEvent>, watches: Vec<Arc<Watch>>) {
        self.bytes += size_of(&event);
        self.through = event.kv.mod_revision;
        for watch in watches {
            let address = Arc::as_ptr(&watch).addr();
            self.events.entry(address).or_insert_with(|| (watch, Vec::new())).1.push(event.clone());
        }
    }

    /// The events before `revision`.
    fn before(mut self, revision: u64) -> Self {
        for (_, events) in self.events.values_mut() {
            events.retain(|event| event.kv.mod_revision < revision);
        }
        self.through = revision - 1;
        self
    }

    fn deliver(self, dispatcher: &Dispatcher) {
        let mut registry = dispatcher.registry();
        for (watch, mut events) in self.events.into_values() {
            // A watch that fell behind in an earlier delivery reads from disk, and may have caught up meanwhile.
            if watch.ended.load(Ordering::Relaxed) || !watch.is_indexed.load(Ordering::Relaxed) {
                continue;
            }
            let next = watch.next.load(Ordering::Relaxed);
            events.retain(|event| event.kv.mod_revision >= next);
            let Some(from) = events.first().map(|event| event.kv.mod_revision) else { continue };
            // Only a read from disk skips the events that a client has already.
            let skips = watch.within().events > 0;
            if skips || !watch.queue.push(&watch, events) {
                registry.index.remove(&watch);
                watch.queue.fall_behind(watch.clone(), from);
            }
        }
        registry.delivered = registry.delivered.max(self.through);
    }
}

/// Switches to a restored snapshot. It may miss revisions after the last delivered one, so each watch reads from disk
/// and checks that.
fn switch_generation(dispatcher: &Dispatcher, generation: &Arc<Generation>, from: u64) {
    let mut registry = dispatcher.registry();
    for watch in registry.index.all() {
        registry.index.remove(&watch);
        watch.queue.fall_behind(watch.clone(), from);
    }
    let now = generation.watchable_revision();
    (registry.decided, registry.delivered) = (now, now);
    registry.generation = Arc::downgrade(generation);
}

fn matching_watches(index: &Index, change: &crate::pending_writes::Change) -> Vec<Arc<Watch>> {
    let mut found = Vec::new();
    index.visit_matches(&change.key, |watch| {
        if watch.wants(change) && watch.next.load(Ordering::Relaxed) <= change.revision {
            found.push(watch.clone());
        }
    });
    found
}

/// Approximate number of changes in one dispatch.
const CHANGES_PER_DISPATCH: usize = 1000;
/// Bytes of events of one revision above which it is not delivered by the dispatcher.
const LARGE_BYTES: usize = 16 << 20;
const RETRY: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_millis(500);
const DELIVERY_POLL_INTERVAL: Duration = Duration::from_millis(5);
