//! A watch receives every change exactly once, in the order of revisions.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use consensus_core::NodeId;
use futures::TryStreamExt;
use kv_state_machine::{
    ConsensusKvDatabase, Delete, KeyRange, KvOperation, Put, Txn, WatchId, WatchNews, WatchRequest, Watches,
};
use tempfile::TempDir;
use tokio::time::timeout;

struct Store {
    database: ConsensusKvDatabase,
    _dir: TempDir,
}

impl Store {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
        database.start().await.unwrap();
        Self { database, _dir: dir }
    }

    async fn run(&self, operation: KvOperation) -> u64 {
        self.database.execute_operation(operation).await.unwrap().revision
    }

    async fn put(&self, key: &str, value: impl Into<Bytes>) -> u64 {
        self.run(put(key, value)).await
    }

    async fn compact(&self, revision: u64) {
        self.run(KvOperation::Compact { revision }).await;
    }

    fn watches(&self) -> Watches {
        self.database.watches().unwrap()
    }
}

fn put(key: &str, value: impl Into<Bytes>) -> KvOperation {
    KvOperation::Put(Put { key: key.to_owned().into(), value: value.into(), ..Put::default() })
}

fn delete(key: &str, end: Option<&str>) -> KvOperation {
    let range_end = end.map(|end| end.to_owned().into());
    KvOperation::Delete(Delete { key: key.to_owned().into(), range_end, ..Delete::default() })
}

fn of(key: &str, end: Option<&str>, start_revision: u64) -> WatchRequest {
    let keys = KeyRange { key: key.to_owned().into(), range_end: end.map(|end| end.to_owned().into()) };
    WatchRequest { keys, start_revision, ..WatchRequest::default() }
}

async fn next(watches: &mut Watches) -> WatchNews {
    timeout(Duration::from_secs(20), watches.next()).await.expect("a notification arrives in time").unwrap()
}

/// Events of a watch up to revision `last`: revision, key and value; `None` for a deletion.
async fn events(watches: &mut Watches, watch: WatchId, last: u64) -> Vec<(u64, String, Option<String>)> {
    let mut all: Vec<(u64, String, Option<String>)> = Vec::new();
    while all.last().is_none_or(|(revision, ..)| *revision < last) {
        let WatchNews::Events { watch: of, events, .. } = next(watches).await else { panic!("compacted") };
        assert_eq!(of, watch);
        for event in events {
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let value = (!event.deleted).then(|| text(&event.kv.value));
            all.push((event.kv.mod_revision, text(&event.kv.key), value));
        }
    }
    all
}

fn event(revision: u64, key: &str, value: Option<&str>) -> (u64, String, Option<String>) {
    (revision, key.to_owned(), value.map(ToOwned::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_watch_receives_later_changes_in_order() {
    let store = Store::new().await;
    store.put("a", "before").await;
    let mut watches = store.watches();
    let (watch, revision) = watches.add(of("a", Some("c"), 0));
    assert_eq!(revision, 2);
    store.put("a", "1").await;
    store.put("c", "outside").await;
    store.run(delete("a", None)).await;
    let last = store.put("b", "2").await;
    assert_eq!(
        events(&mut watches, watch, last).await,
        [event(3, "a", Some("1")), event(5, "a", None), event(6, "b", Some("2"))]
    );
    assert_eq!(watches.progress(), Some(6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_from_past_revision_reads_history_then_new_changes() {
    let store = Store::new().await;
    for n in 0..3000 {
        store.put("k", format!("{n}")).await;
    }
    let mut watches = store.watches();
    let (watch, _) = watches.add(of("k", None, 2));
    let writing = async {
        let mut last = 0;
        for n in 3000..4000 {
            last = store.put("k", format!("{n}")).await;
        }
        last
    };
    let reading = events(&mut watches, watch, 4001);
    let (last, seen) = tokio::join!(writing, reading);
    assert_eq!(last, 4001);
    let expected: Vec<_> = (0..4000).map(|n| event(n + 2, "k", Some(&n.to_string()))).collect();
    assert!(seen == expected, "each revision once, in order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_is_delivered_as_one_revision_with_every_write() {
    let store = Store::new().await;
    let mut watches = store.watches();
    let (watch, _) = watches.add(of("\0", Some("\0"), 0));
    let success = vec![put("b", "1"), put("a", "1"), delete("b", None), put("c", "1")];
    let revision = store.run(KvOperation::Txn(Txn { success, ..Txn::default() })).await;
    let WatchNews::Events { events, .. } = next(&mut watches).await else { panic!("compacted") };
    let seen: Vec<_> = events.iter().map(|event| (&event.kv.key[..], event.deleted)).collect();
    assert_eq!(seen, [(&b"b"[..], false), (b"a", false), (b"b", true), (b"c", false)]);
    assert_eq!(events[0].kv.value, "1", "the value is delivered although the key was deleted since");
    assert!(events.iter().all(|event| event.kv.mod_revision == revision));
    // A watch that is added later receives the same events.
    let (later, _) = watches.add(of("\0", Some("\0"), revision));
    let news = next(&mut watches).await;
    assert_eq!(news, WatchNews::Events { watch: later, events, more: false });
    assert!(watch != later);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_options_select_previous_values_and_kinds_of_events() {
    let store = Store::new().await;
    store.put("k", "old").await;
    let mut watches = store.watches();
    let (with_previous, _) = watches.add(WatchRequest { previous: true, ..of("k", None, 0) });
    let (deletes, _) = watches.add(WatchRequest { without_puts: true, ..of("k", None, 0) });
    let (puts, _) = watches.add(WatchRequest { without_deletes: true, ..of("k", None, 0) });
    store.put("k", "new").await;
    store.run(delete("k", None)).await;
    let mut seen: BTreeMap<WatchId, Vec<(u64, Option<Bytes>)>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < 4 {
        let WatchNews::Events { watch, events, .. } = next(&mut watches).await else { panic!("compacted") };
        let of = |event: &std::sync::Arc<kv_state_machine::WatchEvent>| {
            (event.kv.mod_revision, event.previous.as_ref().map(|kv| kv.value.clone()))
        };
        seen.entry(watch).or_default().extend(events.iter().map(of));
    }
    assert_eq!(seen[&with_previous], [(3, Some("old".into())), (4, Some("new".into()))]);
    assert_eq!(seen[&puts].iter().map(|(revision, _)| *revision).collect::<Vec<_>>(), [3]);
    assert_eq!(seen[&deletes].iter().map(|(revision, _)| *revision).collect::<Vec<_>>(), [4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_from_compacted_revision_ends_with_oldest_revision() {
    let store = Store::new().await;
    for n in 0..5 {
        store.put("k", format!("{n}")).await;
    }
    store.compact(4).await;
    let mut watches = store.watches();
    let (gone, _) = watches.add(of("k", None, 3));
    assert_eq!(next(&mut watches).await, WatchNews::Compacted { watch: gone, compacted: 4 });
    assert!(watches.is_empty());
    let (watch, _) = watches.add(of("k", None, 4));
    assert_eq!(events(&mut watches, watch, 6).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_right_after_writes_loses_no_event_of_current_watch() {
    let store = Store::new().await;
    let mut watches = store.watches();
    let (watch, _) = watches.add(of("k", None, 0));
    let mut revision = 0;
    for n in 0..200 {
        revision = store.put("k", format!("{n}")).await;
        store.compact(revision).await;
    }
    assert_eq!(events(&mut watches, watch, revision).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_watch_uses_bounded_memory_and_misses_nothing() {
    let store = Store::new().await;
    let mut watches = store.watches();
    let (watch, _) = watches.add(of("k", None, 0));
    let value = vec![b'x'; 1 << 20];
    let mut last = 0;
    for _ in 0..20 {
        last = store.put("k", value.clone()).await;
    }
    // Several times the capacity of the queue.
    let mut seen = Vec::new();
    while seen.last() != Some(&last) {
        let WatchNews::Events { watch: of, events, .. } = next(&mut watches).await else {
            panic!("compacted")
        };
        assert_eq!(of, watch);
        assert!(events.len() <= 8, "one delivery has {} MiB", events.len());
        seen.extend(events.iter().map(|event| event.kv.mod_revision));
    }
    assert_eq!(seen, (2..=last).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_watch_receives_nothing() {
    let store = Store::new().await;
    let mut watches = store.watches();
    let (first, _) = watches.add(of("k", None, 0));
    let (second, _) = watches.add(of("k", None, 0));
    store.put("k", "1").await;
    assert!(watches.remove(first) && !watches.remove(first));
    let revision = store.put("k", "2").await;
    assert_eq!(events(&mut watches, second, revision).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_from_future_revision_starts_at_that_revision() {
    let store = Store::new().await;
    let mut watches = store.watches();
    let (watch, _) = watches.add(of("k", None, 4));
    for n in 1..=4 {
        store.put("k", format!("{n}")).await;
    }
    assert_eq!(events(&mut watches, watch, 5).await, [event(4, "k", Some("3")), event(5, "k", Some("4"))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_added_while_revisions_are_skipped_misses_nothing() {
    let store = Store::new().await;
    for n in 0..500 {
        let revision = store.put("k", format!("{n}")).await;
        // The dispatcher may be skipping this revision at this moment, because there is no watch.
        let mut watches = store.watches();
        let (watch, _) = watches.add(of("k", None, revision));
        assert_eq!(events(&mut watches, watch, revision).await.len(), 1, "revision {revision}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_of_unchanged_keys_resumes_after_compaction() {
    let store = Store::new().await;
    let mut events = store.database.watch(of("k", None, 2)).unwrap();
    let told = store.put("k", "1").await;
    let first = timeout(Duration::from_secs(20), events.try_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.kv.mod_revision, told);
    let mut last = told;
    for n in 0..100 {
        last = store.put(&format!("other/{n}"), "x").await;
    }
    let start = Instant::now();
    while events.next_revision() <= last {
        assert!(start.elapsed() < Duration::from_secs(20), "{events:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let resume = events.next_revision();
    drop(events);
    store.compact(last).await;
    let mut resumed = store.database.watch(of("k", None, resume)).unwrap();
    let again = store.put("k", "2").await;
    let next = timeout(Duration::from_secs(20), resumed.try_next()).await.unwrap().unwrap().unwrap();
    assert_eq!((next.kv.mod_revision, &next.kv.value[..]), (again, &b"2"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_stream_misses_nothing_at_any_position() {
    let store = Store::new().await;
    let of_two = |n: u32| {
        let success = vec![put("k/a", format!("{n}")), put("k/b", format!("{n}"))];
        KvOperation::Txn(Txn { success, ..Txn::default() })
    };
    for n in 0..20 {
        store.run(of_two(n)).await;
    }
    let all: Vec<(u64, Bytes)> =
        (2..22).flat_map(|revision| ["k/a", "k/b"].map(|key| (revision, key.into()))).collect();
    for taken in 0..all.len() {
        let mut events = store.database.watch(of("k/", Some("k0"), 2)).unwrap();
        for _ in 0..taken {
            timeout(Duration::from_secs(20), events.try_next()).await.unwrap().unwrap().unwrap();
        }
        // A revision that was taken partly is repeated completely.
        let expected = all[taken - taken % 2].0;
        assert_eq!(events.next_revision(), expected, "{taken} events were taken");
    }
}

/// A server waits for other things beside the next notification, and gives up waiting whenever one of them happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_that_is_cancelled_each_millisecond_delivers_the_backlog() {
    let store = Store::new().await;
    for n in 0..200 {
        let success = (0..100).map(|key| put(&format!("k/{key}"), format!("{n}"))).collect();
        store.run(KvOperation::Txn(Txn { success, ..Txn::default() })).await;
    }
    let mut watches = store.watches();
    watches.add(of("k/", Some("k0"), 2));
    let (start, mut seen) = (Instant::now(), 0);
    while seen < 20_000 {
        assert!(start.elapsed() < Duration::from_secs(20), "{seen} events were delivered");
        if let Ok(news) = timeout(Duration::from_millis(1), watches.next()).await {
            let WatchNews::Events { events, .. } = news.unwrap() else { panic!("compacted") };
            seen += events.len();
        }
    }
    assert_eq!(watches.progress(), Some(201));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_removed_while_it_catches_up_delivers_nothing_and_others_go_on() {
    let store = Store::new().await;
    for n in 0..2000 {
        store.put("k", format!("{n}")).await;
    }
    let mut watches = store.watches();
    let (removed, _) = watches.add(of("k", None, 2));
    let (watch, _) = watches.add(of("k", None, 2));
    // The read of the first watch is in progress.
    let _ = timeout(Duration::ZERO, watches.next()).await;
    assert!(watches.remove(removed));
    assert_eq!(events(&mut watches, watch, 2001).await.len(), 2000);
    assert_eq!(watches.progress(), Some(2001));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_from_future_revision_has_no_progress_before_that_revision() {
    let store = Store::new().await;
    store.put("k", "1").await;
    let mut watches = store.watches();
    // The next revision is 3.
    let (next_one, _) = watches.add(of("k", None, 3));
    assert_eq!(watches.progress(), Some(2));
    let (future, _) = watches.add(of("k", None, 5));
    assert_eq!(watches.progress(), None);
    store.put("k", "2").await;
    events(&mut watches, next_one, 3).await;
    assert_eq!(watches.progress(), None);
    store.put("other", "3").await;
    let start = Instant::now();
    while watches.progress() != Some(4) {
        assert!(start.elapsed() < Duration::from_secs(20), "progress is {:?}", watches.progress());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(watches.remove(future));
}
