//! Sessions: the watches of one client.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow::{Break, Continue},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::Notify, task::JoinHandle};

use super::{Watch, WatchId, WatchRequest};
use crate::{
    KeyValue, KvError,
    changes::{self, WatchEvent},
    concurrency::ConcurrencyLimits,
    store::{Generation, Store},
    view::{Base, Failure},
};

/// Watches of one client, with a common queue. Dropping the session ends them.
#[derive(Debug)]
pub struct Watches {
    store: Arc<Store>,
    concurrency: ConcurrencyLimits,
    queue: Arc<Queue>,
    watches: BTreeMap<WatchId, Arc<Watch>>,
    /// Number of watches by the first revision that they receive.
    starts: BTreeMap<u64, usize>,
    last_id: WatchId,
    /// Watches that have to read changes from disk to catch up, except that of `reading`.
    behind: VecDeque<Arc<Watch>>,
    /// Read of the watch that catches up. It outlives a call of `next` that is cancelled.
    reading: Option<Reading>,
}

/// A read from disk for a watch that is behind, including the wait for a permit. Dropping it cancels the wait.
#[derive(Debug)]
struct Reading {
    watch: Arc<Watch>,
    task: JoinHandle<Result<CatchUp, KvError>>,
}

impl Reading {
    fn start(store: &Arc<Store>, concurrency: &ConcurrencyLimits, watch: Arc<Watch>) -> Self {
        let (store, concurrency, reader) = (store.clone(), concurrency.clone(), watch.clone());
        let task = tokio::spawn(async move {
            let permit = concurrency.long_read().await;
            let read = move || {
                // The read cannot be cancelled, so it keeps its permit until it ends.
                let _permit = permit;
                read(&store, &reader)
            };
            let part = tokio::task::spawn_blocking(read).await.map_err(unavailable)?;
            part.map_err(unavailable)
        });
        Self { watch, task }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn unavailable(why: impl ToString) -> KvError {
    KvError::Unavailable { why: why.to_string(), maybe_applied: false }
}

/// A notification for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchNews {
    /// Changes in the order of revisions. The changes of one revision are never split.
    Events {
        /// Id of the watch.
        watch: WatchId,
        /// Changes; not empty.
        events: Vec<Arc<WatchEvent>>,
    },
    /// A watch has ended because the revision that it has to read next was compacted.
    Compacted {
        /// Id of the watch.
        watch: WatchId,
        /// Oldest revision from which a watch can start.
        compacted: u64,
    },
}

/// Queue of a session: notifications that the client has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    news: VecDeque<(Arc<Watch>, Vec<Arc<WatchEvent>>)>,
    bytes: usize,
    behind: Vec<Arc<Watch>>,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds events to the queue. Returns `false` if the queue is full.
    pub(super) fn push(&self, watch: &Arc<Watch>, events: Vec<Arc<WatchEvent>>) -> bool {
        let mut waiting = self.waiting();
        if waiting.bytes > QUEUE_BYTES_MAX {
            return false;
        }
        waiting.bytes += events.iter().map(|event| size_of(event)).sum::<usize>();
        if let Some(last) = events.last() {
            watch.next.store(last.kv.mod_revision + 1, Ordering::Relaxed);
        }
        waiting.news.push_back((watch.clone(), events));
        self.filled.notify_one();
        true
    }

    /// Makes a watch read from disk, from this revision or from its start.
    pub(super) fn fall_behind(&self, watch: Arc<Watch>, from: u64) {
        watch.next.fetch_max(from, Ordering::Relaxed);
        self.waiting().behind.push(watch);
        self.filled.notify_one();
    }
}

impl Watches {
    pub(crate) fn new(store: Arc<Store>, concurrency: ConcurrencyLimits) -> Result<Self, KvError> {
        let error = |error: std::io::Error| KvError::Unavailable {
            why: format!("cannot start the thread that dispatches changes to watches: {error}"),
            maybe_applied: false,
        };
        store.dispatcher().start(&store).map_err(error)?;
        store.dispatcher().counts.sessions.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            store,
            concurrency,
            queue: Arc::default(),
            watches: BTreeMap::new(),
            starts: BTreeMap::new(),
            last_id: 0,
            behind: VecDeque::new(),
            reading: None,
        })
    }

    /// Starts a watch. Returns its id and the revision of the store. Without a start revision, the watch starts at the
    /// revision after that one.
    pub fn add(&mut self, request: WatchRequest) -> (WatchId, u64) {
        let (watch, revision) = self.begin(request);
        (watch.id, revision)
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(super) fn begin(&mut self, request: WatchRequest) -> (Arc<Watch>, u64) {
        let mut registry = self.store.dispatcher().registry();
        let revision = self.store.current().meta().revision;
        let next = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
        self.last_id += 1;
        let watch = Arc::new(Watch {
            id: self.last_id,
            request,
            start: next,
            next: AtomicU64::new(next),
            ended: false.into(),
            is_indexed: false.into(),
            queue: self.queue.clone(),
        });
        self.watches.insert(watch.id, watch.clone());
        self.store.dispatcher().counts.watches.fetch_add(1, Ordering::Relaxed);
        *self.starts.entry(next).or_default() += 1;
        if next > registry.decided {
            registry.index.insert(watch.clone());
        } else {
            self.behind.push_back(watch.clone());
        }
        (watch, revision)
    }

    /// Ends a watch. Returns whether it existed.
    pub fn remove(&mut self, id: WatchId) -> bool {
        let Some(watch) = self.forget(id) else { return false };
        self.store.dispatcher().registry().index.remove(&watch);
        self.behind.retain(|other| !Arc::ptr_eq(other, &watch));
        self.reading.take_if(|reading| Arc::ptr_eq(&reading.watch, &watch));
        true
    }

    /// Takes a watch that ends out of the maps of this session.
    fn forget(&mut self, id: WatchId) -> Option<Arc<Watch>> {
        let watch = self.watches.remove(&id)?;
        self.store.dispatcher().counts.watches.fetch_sub(1, Ordering::Relaxed);
        watch.ended.store(true, Ordering::Relaxed);
        if let Some(count) = self.starts.get_mut(&watch.start) {
            *count -= 1;
            if *count == 0 {
                self.starts.remove(&watch.start);
            }
        }
        Some(watch)
    }

    /// Number of watches.
    #[must_use]
    pub fn len(&self) -> usize {
        self.watches.len()
    }

    /// Whether there are no watches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    /// Revision up to which every watch of this session has received all events, at most the revision of the store.
    /// `None` while a watch is behind, while the store has not reached the revision before the start of a watch, or while
    /// a notification waits to be taken by [`next`](Self::next).
    #[must_use]
    pub fn progress(&self) -> Option<u64> {
        let registry = self.store.dispatcher().registry();
        let revision = self.revision();
        let waiting = self.queue.waiting();
        let is_behind = self.reading.is_some() || !self.behind.is_empty() || !waiting.behind.is_empty();
        let starts_later = self.starts.last_key_value().is_some_and(|(start, _)| *start > revision + 1);
        if is_behind || starts_later || !waiting.news.is_empty() {
            return None;
        }
        // A watch has nothing to receive before its first revision, even if the deletion of a range before that revision is
        // still being carried out.
        let first = self.starts.first_key_value().map_or(0, |(start, _)| start.saturating_sub(1));
        Some(registry.delivered.max(first))
    }

    /// First revision that a watch has not received completely; `None` if there is no such watch. A new watch that
    /// starts there continues this one.
    #[must_use]
    pub fn next_revision(&self, id: WatchId) -> Option<u64> {
        self.watches.get(&id).map(|watch| next_revision(&self.store, watch))
    }

    /// Revision of the store.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.store.current().meta().revision
    }

    /// Waits for the next notification. Cancellation-safe: nothing is lost, and a read of the disk that was started goes on
    /// for the next call.
    ///
    /// # Errors
    /// The disk failed. The method may be called again.
    pub async fn next(&mut self) -> Result<WatchNews, KvError> {
        let queue = self.queue.clone();
        loop {
            // Queued events precede those that a watch has to read from disk.
            while let Some((watch, events)) = self.take() {
                if !watch.ended.load(Ordering::Relaxed) {
                    return Ok(WatchNews::Events { watch: watch.id, events });
                }
            }
            let Some(reading) = self.start_reading() else {
                queue.filled.notified().await;
                continue;
            };
            // Nothing is lost if this is cancelled: the task and its result stay in `reading`.
            let part = tokio::select! {
                part = &mut reading.task => part,
                () = queue.filled.notified() => continue,
            };
            if let Some(news) = self.catch_up(part.map_err(unavailable).flatten())? {
                return Ok(news);
            }
        }
    }

    /// Starts a read for a watch that is behind, unless one is in progress. Returns the read, if there is one.
    fn start_reading(&mut self) -> Option<&mut Reading> {
        if self.reading.is_none() {
            let watch = self.behind.pop_front()?;
            self.reading = Some(Reading::start(&self.store, &self.concurrency, watch));
        }
        self.reading.as_mut()
    }

    fn take(&mut self) -> Option<(Arc<Watch>, Vec<Arc<WatchEvent>>)> {
        let mut waiting = self.queue.waiting();
        self.behind.extend(waiting.behind.drain(..));
        let (watch, events) = waiting.news.pop_front()?;
        waiting.bytes -= events.iter().map(|event| size_of(event)).sum::<usize>();
        Some((watch, events))
    }

    /// Takes the changes that were read for a watch that is behind.
    fn catch_up(&mut self, part: Result<CatchUp, KvError>) -> Result<Option<WatchNews>, KvError> {
        let Some(watch) = self.reading.take().map(|reading| reading.watch.clone()) else { return Ok(None) };
        let CatchUp { events, through, compacted } = match part {
            Ok(part) => part,
            Err(error) => {
                self.behind.push_front(watch);
                return Err(error);
            }
        };
        if let Some(compacted) = compacted {
            self.forget(watch.id);
            return Ok(Some(WatchNews::Compacted { watch: watch.id, compacted }));
        }
        watch.next.store(through + 1, Ordering::Relaxed);
        let mut registry = self.store.dispatcher().registry();
        if through >= registry.decided {
            registry.index.insert(watch.clone());
        } else {
            drop(registry);
            self.behind.push_back(watch.clone());
        }
        Ok((!events.is_empty()).then_some(WatchNews::Events { watch: watch.id, events }))
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        let counts = &self.store.dispatcher().counts;
        counts.sessions.fetch_sub(1, Ordering::Relaxed);
        counts.watches.fetch_sub(self.watches.len(), Ordering::Relaxed);
        let mut registry = self.store.dispatcher().registry();
        for watch in self.watches.values() {
            watch.ended.store(true, Ordering::Relaxed);
            registry.index.remove(watch);
        }
    }
}

pub(super) fn next_revision(store: &Store, watch: &Arc<Watch>) -> u64 {
    let registry = store.dispatcher().registry();
    let waiting = watch.queue.waiting();
    let mut queued = waiting.news.iter().filter(|(of, _)| Arc::ptr_eq(of, watch));
    if let Some(event) = queued.find_map(|(_, events)| events.first()) {
        return event.kv.mod_revision;
    }
    let next = watch.next.load(Ordering::Relaxed);
    if watch.is_indexed.load(Ordering::Relaxed) { next.max(registry.delivered + 1) } else { next }
}

/// Changes read from disk for a watch that is behind.
#[derive(Debug, Default)]
struct CatchUp {
    events: Vec<Arc<WatchEvent>>,
    through: u64,
    /// Oldest readable revision if the next revision of the watch was compacted; `None` otherwise.
    compacted: Option<u64>,
}

fn read(store: &Arc<Store>, watch: &Watch) -> Result<CatchUp, Failure> {
    let generation = store.current();
    let from = watch.next.load(Ordering::Relaxed);
    let meta = generation.meta();
    let gone = |compacted: u64| CatchUp { compacted: Some(compacted), ..CatchUp::default() };
    if from < meta.compacted {
        return Ok(gone(meta.compacted));
    }
    let part = read_part(&generation, watch, from)?;
    // The versions may have been compacted and removed during the read.
    let compacted = generation.meta().compacted;
    Ok(if from < compacted { gone(compacted) } else { part })
}

/// Reads changes from revision `from` on, whole revisions.
fn read_part(generation: &Arc<Generation>, watch: &Watch, from: u64) -> Result<CatchUp, Failure> {
    let (base, to) = (Base::new(generation), generation.watchable_revision());
    let mut part = CatchUp { through: to.max(from - 1), ..CatchUp::default() };
    let (mut revision, mut examined, mut bytes, mut failed) = (0, 0, 0, None);
    changes::visit(generation.db(), from, |change| {
        if change.revision > to {
            return Break(());
        }
        if change.revision > revision && (examined >= CHANGES_PER_CATCH_UP || bytes > PART_BYTES_MAX) {
            part.through = change.revision - 1;
            return Break(());
        }
        (revision, examined) = (change.revision, examined + 1);
        if !watch.wants(&change) {
            return Continue(());
        }
        match changes::event(&base, &change, watch.request.previous) {
            Ok(None) => {}
            Ok(Some(event)) => {
                bytes += size_of(&event);
                part.events.push(Arc::new(event));
            }
            Err(failure) => {
                failed = Some(failure);
                return Break(());
            }
        }
        Continue(())
    })?;
    failed.map_or(Ok(part), Err)
}

pub(super) fn size_of(event: &WatchEvent) -> usize {
    let size = |kv: &KeyValue| kv.key.len() + kv.value.len() + EVENT_BYTES;
    size(&event.kv) + event.previous.as_ref().map_or(0, size)
}

/// Bytes of an event in addition to keys and values.
const EVENT_BYTES: usize = 160;
/// Maximum bytes in a queue. One more delivery may exceed it.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Number of changes that a watch reads from disk before other watches get a turn.
const CHANGES_PER_CATCH_UP: usize = 10_000;
/// Maximum bytes of events in one delivery; the last revision may exceed it. Some clients accept no messages of 4 MiB.
pub(super) const PART_BYTES_MAX: usize = 1 << 20;
