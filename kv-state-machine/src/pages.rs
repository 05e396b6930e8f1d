//! Ranges that are read page by page, all pages at one revision.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    Caller, KeyRange, KeyValue, KvAnswer, KvError, KvOperation, KvRejection, KvResult, Range, RevisionBounds,
    SortBy,
    concurrency::{CancelOnDrop, ConcurrencyLimits},
    database::{blocking, failure},
    execute::{ExecuteError, Execution, History},
    executor::{Read, ReadState, read_result},
    limits::Amount,
    operation::Found,
    pending_writes::PendingWrites,
    pins::Pin,
    store::{Generation, Store},
    view::Base,
};

/// Reads a range page by page. All pages are read at one revision: later writes and compactions do not change them.
///
/// The revision stays on disk for five minutes, even if it is compacted meanwhile. After that a compaction ends the read
/// with [`KvRejection::Compacted`].
#[derive(Debug)]
pub struct RangePages {
    store: Arc<Store>,
    caller: Caller,
    generation: Arc<Generation>,
    concurrency: ConcurrencyLimits,
    /// State of the store when the read started.
    state: ReadState,
    pin: Pin,
    /// The part of the range that was not read yet.
    rest: Range,
    /// Number of pairs that were read.
    read: u64,
    is_done: bool,
}

/// One page of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangePage {
    /// Pairs, in ascending order of keys.
    pub kvs: Vec<KeyValue>,
    /// Summary of the range, in the last page.
    pub end: Option<RangeEnd>,
}

/// Summary of a range that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeEnd {
    /// Number of keys in the range, without regard to its limit.
    pub count: u64,
    /// Whether the range has more keys than its limit.
    pub more: bool,
}

impl RangePages {
    /// Starts a read of the current state. `range` is in ascending order of keys, without bounds of revisions.
    pub(crate) fn start(
        store: Arc<Store>,
        caller: Caller,
        range: Range,
        concurrency: ConcurrencyLimits,
        pin_duration: Duration,
    ) -> Result<Self, KvRejection> {
        if range.descending || range.sort.by != SortBy::Key || range.bounds != RevisionBounds::default() {
            return Err(KvRejection::invalid(
                "a range in pages has no other order than that of keys and no bounds",
            ));
        }
        let generation = store.current();
        // The revision is pinned before the state is read: what is not compacted then is protected.
        let revision = if range.revision == 0 { generation.meta().revision } else { range.revision };
        let pin = generation.pins().pin(revision, pin_duration);
        let rest = Range { whole: false, ..range };
        let state = ReadState::of(&generation, &KvOperation::Range(rest.clone()));
        let (current, compacted) = (state.revision(), state.compacted());
        if rest.revision > current {
            return Err(KvRejection::FutureRevision { revision, current });
        }
        if rest.revision != 0 && rest.revision < compacted {
            return Err(KvRejection::Compacted { compacted });
        }
        Ok(Self { store, caller, generation, concurrency, state, pin, rest, read: 0, is_done: false })
    }

    /// Revision of the store when the read started.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.state.revision()
    }

    /// Maximum number of bytes of pairs in a page.
    pub const PAGE_BYTES_MAX: usize = 3 << 20;

    /// Reads the next page; `None` after the last one. Cancellation-safe: a page whose read was cancelled is read again.
    ///
    /// # Errors
    /// The revision is no longer available ([`KvRejection::Compacted`]), or the disk failed.
    pub async fn next(&mut self) -> Result<Option<RangePage>, KvError> {
        if self.is_done {
            return Ok(None);
        }
        if let Some(auth) = self.store.auth().enabled() {
            let keys = KeyRange { key: self.rest.key.clone(), range_end: self.rest.range_end.clone() };
            auth.check_read(&self.caller, &keys).map_err(KvRejection::from)?;
        }
        let limit = Some(self.rest.limit).filter(|limit| *limit > 0);
        let left = limit.map_or(u64::MAX, |limit| limit - self.read);
        let found = self.find(Range { limit: left.min(PAGE_KEYS_MAX), ..self.rest.clone() }).await?;
        let read = self.read + found.kvs.len() as u64;
        let after = found.kvs.last().map(|kv| Bytes::from([&kv.key[..], &[0]].concat()));
        let end = match after.clone() {
            // The limit of the page ends it, not that of the range.
            Some(_) if found.more && limit != Some(read) => None,
            Some(after) if found.more => {
                let uncounted = Range { key: after, limit: 0, count_only: true, ..self.rest.clone() };
                Some(RangeEnd { count: read + self.find(uncounted).await?.count, more: true })
            }
            _ if self.rest.count_only => Some(RangeEnd { count: found.count, more: false }),
            _ => Some(RangeEnd { count: read, more: false }),
        };
        self.rest.key = after.unwrap_or_else(|| self.rest.key.clone());
        (self.read, self.is_done) = (read, end.is_some());
        Ok(Some(RangePage { kvs: found.kvs, end }))
    }

    /// Reads a part of the range. A part that takes long waits for a permit.
    async fn find(&self, part: Range) -> Result<Found, KvError> {
        let operation = Arc::new(KvOperation::Range(part));
        let read = match self.attempt(&operation, Amount::OF_SHORT_READS).await? {
            Err(ExecuteError::TooMuchWork) => {
                let _permit = self.concurrency.long_read().await;
                self.attempt(&operation, Amount::of_read(&operation)).await?
            }
            read => read,
        };
        let answer = read_result(read, &operation).map_err(failure)??;
        // The pin was valid until now, or nothing was compacted.
        let compacted = self.generation.meta().compacted;
        if self.pin.is_expired() && compacted > self.revision_read() {
            return Err(KvRejection::Compacted { compacted }.into());
        }
        match answer.result {
            KvResult::Range(found) => Ok(found),
            other => Err(KvRejection::invalid(format!("a range was answered by {other:?}")).into()),
        }
    }

    /// Revision at which the range is read.
    fn revision_read(&self) -> u64 {
        if self.rest.revision == 0 { self.revision() } else { self.rest.revision }
    }

    async fn attempt(&self, operation: &Arc<KvOperation>, bound: Amount) -> Result<Read, KvError> {
        let (generation, state, operation) = (self.generation.clone(), self.state.clone(), operation.clone());
        let cancel = CancelOnDrop::default();
        let cancelled = cancel.flag();
        blocking(move || Ok(read_part(&generation, state, &operation, bound, &cancelled))).await
    }
}

fn read_part(
    generation: &Generation,
    state: ReadState,
    operation: &KvOperation,
    bound: Amount,
    cancelled: &AtomicBool,
) -> Read {
    let base = Base::new(generation);
    let mut nothing = PendingWrites::default();
    let ReadState { meta, segments, deletions } = state;
    let history = History { revision: meta.revision, compacted: meta.compacted };
    let execution = Execution::new(&base, &mut nothing, history, RangePages::PAGE_BYTES_MAX, bound)
        .with_segments(segments)
        .with_deletions(deletions)
        .hide_newer_versions()
        .without_counting_rest()
        .cancelled_by(cancelled);
    let (result, _) = execution.run(operation)?;
    let (applied_index, term) = (meta.applied.index.0, meta.applied.term.0);
    Ok(KvAnswer { revision: meta.revision, applied_index, term, result })
}

/// Number of keys in a page. A page of living keys is a short read.
const PAGE_KEYS_MAX: u64 = 1000;
/// How long a read of several pages keeps its revision on disk. A client that takes pages more slowly delays garbage
/// collection for no longer.
pub(crate) const PIN_DURATION: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use consensus_core::NodeId;

    use super::*;
    use crate::{ConsensusKvDatabase, Durability, KvStateMachine, KvStoreExecutor, Put, collect};

    struct Database {
        database: ConsensusKvDatabase,
        executor: KvStoreExecutor,
        _dir: tempfile::TempDir,
    }

    impl Database {
        /// A database with the keys k00000 to k02499.
        async fn with_keys() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let machine = KvStateMachine::open(dir.path(), NodeId(0), Durability::EachBatch).unwrap();
            let executor = machine.executor();
            let database = ConsensusKvDatabase::new_with_mock_on(NodeId(0), machine).unwrap();
            database.start().await.unwrap();
            let database = Self { database, executor, _dir: dir };
            database.put_all("before").await;
            database
        }

        async fn put_all(&self, value: &'static str) {
            for n in 0..KEYS {
                let put = Put { key: format!("k{n:05}").into(), value: value.into(), ..Put::default() };
                self.database.execute_operation(KvOperation::Put(put)).await.unwrap();
            }
        }

        /// Compacts everything before the newest revision.
        async fn compact(&self) -> u64 {
            let revision = self.database.revision().unwrap();
            self.database.execute_operation(KvOperation::Compact { revision }).await.unwrap();
            revision
        }

        fn pages(&self, range: Range, pin_duration: Duration) -> RangePages {
            RangePages::start(
                self.executor.store().clone(),
                Caller::Server,
                range,
                ConcurrencyLimits::new(),
                pin_duration,
            )
            .unwrap()
        }

        fn collected(&self) -> u64 {
            collect::collected(self.executor.store().current().db()).unwrap()
        }

        async fn wait_for_collection(&self, compacted: u64) {
            let start = Instant::now();
            while self.collected() < compacted {
                assert!(start.elapsed() < Duration::from_secs(20), "the garbage is not collected");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    fn all() -> Range {
        Range { key: "k".into(), range_end: Some("l".into()), ..Range::default() }
    }

    /// Keys and values of the pages that are left, and the end.
    async fn rest_of(pages: &mut RangePages) -> (Vec<(Bytes, Bytes)>, RangeEnd) {
        let mut pairs = Vec::new();
        loop {
            let page = pages.next().await.unwrap().expect("the last page has the end");
            pairs.extend(page.kvs.into_iter().map(|kv| (kv.key, kv.value)));
            if let Some(end) = page.end {
                assert_eq!(pages.next().await, Ok(None));
                return (pairs, end);
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pages_are_of_one_revision_although_it_is_overwritten_and_compacted() {
        let database = Database::with_keys().await;
        for is_named in [false, true] {
            database.put_all("before").await;
            let revision = if is_named { database.database.revision().unwrap() } else { 0 };
            let range = Range { revision, ..all() };
            let mut pages = database.pages(range, PIN_DURATION);
            let told = pages.revision();
            let first = pages.next().await.unwrap().unwrap();
            assert!(!first.kvs.is_empty() && first.end.is_none());
            database.put_all("after").await;
            let compacted = database.compact().await;
            for _ in 0..50 {
                assert!(database.collected() < compacted, "the collector removed what the pages need");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let mut seen: Vec<_> = first.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
            let (rest, end) = rest_of(&mut pages).await;
            seen.extend(rest);
            let expected: Vec<_> =
                (0..KEYS).map(|n| (Bytes::from(format!("k{n:05}")), Bytes::from("before"))).collect();
            assert!(seen == expected, "revision {told}");
            assert_eq!(end, RangeEnd { count: KEYS, more: false });
            drop(pages);
            database.wait_for_collection(compacted).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pages_after_their_pin_expired_end_as_compacted() {
        let database = Database::with_keys().await;
        let mut pages = database.pages(all(), Duration::ZERO);
        assert!(pages.next().await.unwrap().unwrap().end.is_none());
        database.put_all("after").await;
        let compacted = database.compact().await;
        database.wait_for_collection(compacted).await;
        assert_eq!(pages.next().await, Err(KvRejection::Compacted { compacted }.into()));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn limited_pages_count_the_whole_range_at_new_and_old_revisions() {
        let database = Database::with_keys().await;
        let before = database.database.revision().unwrap();
        let more = Put { key: "kz".into(), ..Put::default() };
        database.database.execute_operation(KvOperation::Put(more)).await.unwrap();
        for (revision, count) in [(0, KEYS + 1), (before, KEYS)] {
            for limit in [1, 999, 1000, 1001, KEYS - 1, KEYS, KEYS + 1, KEYS + 2] {
                let range = Range { revision, limit, ..all() };
                let (pairs, end) = rest_of(&mut database.pages(range, PIN_DURATION)).await;
                assert_eq!(pairs.len() as u64, limit.min(count), "limit {limit} at {revision}");
                assert_eq!(end, RangeEnd { count, more: limit < count }, "limit {limit} at {revision}");
            }
            let counted = Range { revision, count_only: true, ..all() };
            let (pairs, end) = rest_of(&mut database.pages(counted, PIN_DURATION)).await;
            assert_eq!((pairs.len(), end.count), (0, count));
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pages_of_large_values_have_a_bounded_size() {
        let database = Database::with_keys().await;
        let value = Bytes::from(vec![0; 1 << 20]);
        for n in 0..10 {
            let put = Put { key: format!("large{n}").into(), value: value.clone(), ..Put::default() };
            database.database.execute_operation(KvOperation::Put(put)).await.unwrap();
        }
        let range =
            Range { key: "large".into(), range_end: Some("larger".into()), whole: true, ..Range::default() };
        let (mut pages, mut pairs) = (database.pages(range, PIN_DURATION), 0);
        while let Some(page) = pages.next().await.unwrap() {
            let bytes: usize = page.kvs.iter().map(|kv| kv.value.len()).sum();
            assert!(bytes <= RangePages::PAGE_BYTES_MAX, "a page has {bytes} bytes");
            pairs += page.kvs.len();
        }
        assert_eq!(pairs, 10);
    }

    const KEYS: u64 = 2500;
}
