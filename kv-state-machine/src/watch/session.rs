//! Sessions: the watches of one client.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow::{self, Break, Continue},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{sync::Notify, task::JoinHandle};

use super::{Watch, WatchId, WatchRequest, within::Within};
use crate::{
    KeyValue, KvError,
    changes::{self, Position, WatchEvent},
    concurrency::ConcurrencyLimits,
    pending_writes::Change,
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
    /// Watch of which a part of a revision was delivered: no other is served before the rest.
    unfinished: Option<Arc<Watch>>,
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
    /// Changes in the order of revisions.
    Events {
        /// Id of the watch.
        watch: WatchId,
        /// Changes; not empty. The changes of one revision are split only if they have more than 4 MiB
        /// ([`WatchEvent::response_bytes`]).
        events: Vec<Arc<WatchEvent>>,
        /// Whether there are more changes of the last revision. Then they are in the next notification of the session, unless the
        /// revision is compacted meanwhile.
        more: bool,
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
        if watch.next.fetch_max(from, Ordering::Relaxed) < from {
            *watch.within() = Within::default();
        }
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
            unfinished: None,
        })
    }

    /// Starts a watch. Returns its id and the revision of the store. Without a start revision, the watch starts at the
    /// revision after that one.
    pub fn add(&mut self, request: WatchRequest) -> (WatchId, u64) {
        let (watch, revision) = self.begin(request, false);
        (watch.id, revision)
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// `is_resumable`: where it stops within a revision is remembered for the next watch of the client.
    pub(super) fn begin(&mut self, request: WatchRequest, is_resumable: bool) -> (Arc<Watch>, u64) {
        let mut registry = self.store.dispatcher().registry();
        let revision = self.store.current().meta().revision;
        let next = if request.start_revision == 0 { revision + 1 } else { request.start_revision };
        self.last_id += 1;
        let within = self.store.dispatcher().places.find(&request);
        let watch = Arc::new(Watch {
            id: self.last_id,
            request,
            start: next,
            next: AtomicU64::new(next),
            within: within.into(),
            is_resumable,
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
        self.queue.waiting().behind.retain(|other| !Arc::ptr_eq(other, &watch));
        self.reading.take_if(|reading| Arc::ptr_eq(&reading.watch, &watch));
        self.unfinished.take_if(|other| Arc::ptr_eq(other, &watch));
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
                    return Ok(WatchNews::Events { watch: watch.id, events, more: false });
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
        if self.unfinished.is_some() {
            return None;
        }
        let mut waiting = self.queue.waiting();
        self.behind.extend(waiting.behind.drain(..));
        let (watch, events) = waiting.news.pop_front()?;
        waiting.bytes -= events.iter().map(|event| size_of(event)).sum::<usize>();
        Some((watch, events))
    }

    /// Takes the changes that were read for a watch that is behind.
    fn catch_up(&mut self, part: Result<CatchUp, KvError>) -> Result<Option<WatchNews>, KvError> {
        let Some(watch) = self.reading.take().map(|reading| reading.watch.clone()) else { return Ok(None) };
        let CatchUp { events, through, rest, compacted } = match part {
            Ok(part) => part,
            Err(error) => {
                self.behind.push_front(watch);
                return Err(error);
            }
        };
        if let Some(compacted) = compacted {
            self.unfinished = None;
            self.forget(watch.id);
            return Ok(Some(WatchNews::Compacted { watch: watch.id, compacted }));
        }
        let has_advanced = watch.next.swap(through + 1, Ordering::Relaxed) <= through;
        if let Some(rest) = rest {
            if watch.is_resumable {
                self.store.dispatcher().places.remember(&watch.request, through + 1, &rest);
            }
            *watch.within() = rest;
            self.unfinished = Some(watch.clone());
            self.behind.push_front(watch.clone());
            return Ok(Some(WatchNews::Events { watch: watch.id, events, more: true }));
        }
        if has_advanced {
            *watch.within() = Within::default();
        } else if self.unfinished.is_some() {
            self.behind.push_front(watch);
            return Err(unavailable(
                "a snapshot was restored that does not have all of the revision that is being read",
            ));
        }
        self.unfinished = None;
        let mut registry = self.store.dispatcher().registry();
        if through >= registry.decided {
            registry.index.insert(watch.clone());
        } else {
            drop(registry);
            self.behind.push_back(watch.clone());
        }
        Ok((!events.is_empty()).then_some(WatchNews::Events { watch: watch.id, events, more: false }))
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
        drop(registry);
        // The queue and its watches refer to each other.
        drop(std::mem::take(&mut *self.queue.waiting()));
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
    /// Last revision that was read completely.
    through: u64,
    /// The part of the revision after `through` that is in `events`, if more events of it follow.
    rest: Option<Within>,
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
    let part = read_part(store, &generation, watch, from)?;
    // The versions may have been compacted and removed during the read.
    let compacted = generation.meta().compacted;
    Ok(if from < compacted { gone(compacted) } else { part })
}

/// Reads changes from revision `from` on: whole revisions, or a part of one with very many changes.
fn read_part(
    store: &Store,
    generation: &Arc<Generation>,
    watch: &Watch,
    from: u64,
) -> Result<CatchUp, Failure> {
    let (base, to) = (Base::new(generation), generation.watchable_revision());
    let mut part = Part::new(watch, from, to);
    let start = if to < from { Position::of_revision(from) } else { start(store, generation, watch, from)? };
    let mut failed = None;
    let stopped = changes::visit_from(generation.db(), from, &start, |change| {
        if part.ends_before(&change) {
            return Break(());
        }
        if !watch.wants(&change) {
            return Continue(());
        }
        match changes::event(&base, &change, watch.request.previous) {
            Ok(event) => event.map_or(Continue(()), |event| part.add(event)),
            Err(failure) => {
                failed = Some(failure);
                Break(())
            }
        }
    })?;
    match failed {
        Some(failure) => Err(failure),
        None => Ok(part.end(generation, stopped)),
    }
}

/// Where to read on: after the events of revision `from` that the client has.
fn start(store: &Store, generation: &Arc<Generation>, watch: &Watch, from: u64) -> Result<Position, Failure> {
    let within = watch.within().clone();
    if let Some(position) = within.position(generation) {
        return Ok(position.clone());
    }
    let begin = Position::of_revision(from);
    if within.events == 0 {
        return Ok(begin);
    }
    let mut skip = within.events;
    let found = changes::visit_from(generation.db(), from, &begin, |change| {
        let is_after = change.revision > from || (skip == 0 && watch.wants(&change));
        if !is_after {
            skip -= u64::from(watch.wants(&change));
        }
        if is_after { Break(()) } else { Continue(()) }
    })?;
    let Some(position) = found else { return Ok(Position::of_revision(from + 1)) };
    // A client whose time is up before the count ends continues there with its next watch.
    let within = Within::at(within.events, generation, position.clone());
    if watch.is_resumable {
        store.dispatcher().places.remember(&watch.request, from, &within);
    }
    Ok(position)
}

/// A part that is being read.
struct Part {
    found: CatchUp,
    /// First and last revision that may be read.
    from: u64,
    to: u64,
    /// Whether the client has a part of revision `from`.
    is_resumed: bool,
    /// Revision of the last change that was examined.
    revision: u64,
    /// Number of events of `revision`, with those that the client has.
    events: u64,
    /// Bytes of the events of `revision` in this part.
    revision_bytes: usize,
    bytes: usize,
    examined: usize,
    ends_within: bool,
}

impl Part {
    fn new(watch: &Watch, from: u64, to: u64) -> Self {
        let found = CatchUp { through: to.max(from - 1), ..CatchUp::default() };
        let events = watch.within().events;
        let (revision, is_resumed) = (from, events > 0);
        let (revision_bytes, bytes, examined, ends_within) = (0, 0, 0, false);
        Self { found, from, to, is_resumed, revision, events, revision_bytes, bytes, examined, ends_within }
    }

    /// Whether the part ends before a change.
    fn ends_before(&mut self, change: &Change) -> bool {
        if change.revision > self.to {
            return true;
        }
        if change.revision > self.revision {
            // The rest of a revision comes without later ones.
            let ends_resumed = self.is_resumed && self.revision == self.from;
            if ends_resumed || self.examined >= CHANGES_PER_CATCH_UP || self.bytes > PART_BYTES_MAX {
                self.found.through = change.revision - 1;
                return true;
            }
            (self.revision, self.events, self.revision_bytes) = (change.revision, 0, 0);
        }
        self.examined += 1;
        false
    }

    /// Adds an event, or ends the part before it.
    fn add(&mut self, event: WatchEvent) -> ControlFlow<()> {
        let bytes = event.response_bytes();
        if self.revision_bytes > 0 && self.revision_bytes + bytes > REVISION_BYTES_MAX {
            (self.found.through, self.ends_within) = (self.revision - 1, true);
            return Break(());
        }
        self.revision_bytes += bytes;
        self.bytes += size_of(&event);
        self.events += 1;
        self.found.events.push(Arc::new(event));
        Continue(())
    }

    fn end(mut self, generation: &Arc<Generation>, stopped: Option<Position>) -> CatchUp {
        if let Some(position) = stopped.filter(|_| self.ends_within) {
            self.found.rest = Some(Within::at(self.events, generation, position));
        }
        self.found
    }
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
/// Most bytes of the events of one revision in a part, as they are in a response; one event may have more. A response over Thrift
/// may have as many.
const REVISION_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
