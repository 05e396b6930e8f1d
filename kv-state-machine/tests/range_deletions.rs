//! Deletions of ranges with many keys: no response, hash or event depends on when the deletions of the keys are written.

use std::time::Duration;

use crate::common::Replica;
use bytes::Bytes;
use consensus_core::{Entry, LogId, NodeId, StateMachine, codec};
use futures::TryStreamExt;
use kv_state_machine::{
    ConsensusKvDatabase, Delete, Deleted, Durability, Found, Keep, KeyRange, KvCommand, KvOperation,
    KvResult, KvStateMachine, Put, Range, Session, Txn, WatchNews, WatchRequest, WatchStream, Watches,
    fuzzing::{Sizes, has_deletions, hold_deletions, open_durable_with},
};
use proptest::prelude::*;
use tempfile::TempDir;

/// Deletes ranges of more than one key by one record first.
const BY_RECORD: Sizes = Sizes { recent_max: 64, segment_keys_max: 4, deletions_max: 1, deletion_part: 1 };
const ONE_BY_ONE: Sizes =
    Sizes { recent_max: 64, segment_keys_max: 64, deletions_max: 1000, deletion_part: 1 };

fn without_session(operations: &[KvOperation]) -> impl Iterator<Item = (Option<Session>, KvOperation)> {
    operations.iter().map(|operation| (None, operation.clone()))
}

#[derive(Clone, Debug)]
enum Step {
    /// Operations that are applied as one batch.
    Batch(Vec<KvOperation>),
    Flush,
    Restart,
    Snapshot,
    /// Deletions of ranges wait from now on, or continue.
    Hold(bool),
}

fn key() -> impl Strategy<Value = Bytes> {
    (b'a'..b'i').prop_map(|letter| Bytes::from(vec![letter]))
}

fn range() -> impl Strategy<Value = (Bytes, Option<Bytes>)> {
    (
        key(),
        prop_oneof![1 => Just(None), 6 => key().prop_map(Some), 1 => Just(Some(Bytes::from_static(b"\0")))],
    )
}

fn simple() -> impl Strategy<Value = KvOperation> {
    let put = (key(), 0i64..3, any::<bool>(), any::<(bool, bool)>()).prop_map(
        |(key, lease_id, return_previous, (value, lease))| {
            let keep = Keep { value: value && lease_id == 2, lease: lease && lease_id == 0 };
            let value = if keep.value { Bytes::new() } else { "v".into() };
            KvOperation::Put(Put { key, value, lease_id, return_previous, keep, ..Put::default() })
        },
    );
    let delete = (range(), any::<bool>(), prop_oneof![4 => Just(0), 1 => Just(2)]).prop_map(
        |((key, range_end), return_previous, limit)| {
            KvOperation::Delete(Delete { key, range_end, return_previous, limit })
        },
    );
    let read = (range(), 0u64..3, prop_oneof![2 => Just(0), 1 => 1u64..20], any::<bool>()).prop_map(
        |((key, range_end), limit, revision, descending)| {
            KvOperation::Range(Range { key, range_end, limit, revision, descending, ..Range::default() })
        },
    );
    prop_oneof![6 => put, 3 => delete, 2 => read]
}

fn operation() -> impl Strategy<Value = KvOperation> {
    let lease = || 1i64..3;
    let txn = proptest::collection::vec(simple(), 0..4)
        .prop_map(|success| KvOperation::Txn(Txn { success, ..Txn::default() }));
    prop_oneof![
        12 => simple(),
        2 => txn,
        2 => lease().prop_map(|id| KvOperation::GrantLease { id, ttl: 100 }),
        2 => lease().prop_map(|id| KvOperation::RevokeLease { id }),
        1 => (1u64..20).prop_map(|revision| KvOperation::Compact { revision }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => proptest::collection::vec(operation(), 1..6).prop_map(Step::Batch),
        1 => Just(Step::Flush),
        1 => Just(Step::Restart),
        1 => Just(Step::Snapshot),
        4 => any::<bool>().prop_map(Step::Hold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn deletions_by_record_and_one_by_one_have_the_same_effect(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let (mut tested, mut twin) = (Replica::new(BY_RECORD), Replica::new(ONE_BY_ONE));
        for step in steps {
            match step {
                Step::Flush => { tested.machine().flush().unwrap(); }
                Step::Restart => tested.restart(),
                Step::Snapshot => tested.move_by_snapshot(),
                Step::Hold(hold) => hold_deletions(tested.machine(), hold),
                Step::Batch(operations) => {
                    let answers = tested.apply(without_session(&operations));
                    prop_assert_eq!(&answers, &twin.apply(without_session(&operations)), "{:?}", operations);
                }
            }
            let seen = [&mut tested, &mut twin].map(|tested| {
                let executor = tested.machine().executor();
                let all = Range { key: "\0".into(), range_end: Some("\0".into()), ..Range::default() };
                let one = Range { key: "c".into(), ..Range::default() };
                let reads = [all, one].map(|range| executor.read(&KvOperation::Range(range)).unwrap());
                (executor.hash().unwrap(), reads)
            });
            prop_assert_eq!(&seen[0], &seen[1]);
        }
    }
}

#[test]
fn restart_continues_a_deletion() {
    let mut tested = Replica::new(BY_RECORD);
    hold_deletions(tested.machine(), true);
    let puts: Vec<_> = (b'a'..=b'y')
        .map(|letter| KvOperation::Put(Put { key: vec![letter].into(), value: "v".into(), ..Put::default() }))
        .collect();
    tested.apply(without_session(&puts));
    let delete = Delete { key: "b".into(), range_end: Some("y".into()), ..Delete::default() };
    tested.apply([(None, KvOperation::Delete(delete))]);
    tested.machine().flush().unwrap();
    assert!(has_deletions(tested.machine()));
    tested.restart();
    while has_deletions(tested.machine()) {
        std::thread::yield_now();
    }
    let all = Range { key: "\0".into(), range_end: Some("\0".into()), ..Range::default() };
    let answer = tested.machine().executor().read(&KvOperation::Range(all)).unwrap().unwrap();
    let KvResult::Range(Found { kvs, count, .. }) = answer.result else { panic!("{answer:?}") };
    let keys: Vec<_> = kvs.iter().map(|kv| &kv.key[..]).collect();
    assert_eq!((keys, count), (vec![&b"a"[..], b"y"], 2));
}

#[test]
fn crash_during_a_deletion_leaves_no_key_attached_to_a_lease_that_it_does_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("store"), dir.path().join("copy"));
    let mut machine = open_durable_with(&path, BY_RECORD, Durability::EachBatch).unwrap();
    let mut index = 0;
    let mut apply = |machine: &mut KvStateMachine, operation| {
        index += 1;
        let command = codec::encode(1, &KvCommand::new(None, operation));
        machine.apply(&[Entry::command(LogId::new(1, index), command)]).unwrap();
    };
    let put = |key: &'static str, lease_id| {
        KvOperation::Put(Put { key: key.into(), value: "v".into(), lease_id, ..Put::default() })
    };
    let delete = Delete { key: "a".into(), range_end: Some("z".into()), ..Delete::default() };
    apply(&mut machine, KvOperation::GrantLease { id: 7, ttl: 100 });
    apply(&mut machine, put("a", 7));
    apply(&mut machine, put("b", 7));
    apply(&mut machine, KvOperation::Delete(delete));
    while has_deletions(&machine) {
        std::thread::yield_now();
    }
    apply(&mut machine, put("a", 0));
    // The content of the disk after a crash: the put was synced, the deletions of the keys were not.
    let files = std::process::Command::new("cp").arg("-r").args([&path, &copy]).status().unwrap();
    assert!(files.success());
    let mut machine = open_durable_with(&copy, BY_RECORD, Durability::EachBatch).unwrap();
    assert_eq!(machine.applied().index.0, 5);
    while has_deletions(&machine) {
        std::thread::yield_now();
    }
    apply(&mut machine, KvOperation::RevokeLease { id: 7 });
    let all = Range { key: "\0".into(), range_end: Some("\0".into()), ..Range::default() };
    let answer = machine.executor().read(&KvOperation::Range(all)).unwrap().unwrap();
    let KvResult::Range(Found { kvs, .. }) = answer.result else { panic!("{answer:?}") };
    assert_eq!(kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"a"]);
}

#[test]
fn deletion_of_range_waits_while_disk_has_too_little_space() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = open_durable_with(dir.path(), BY_RECORD, Durability::FromLog).unwrap();
    machine = machine.with_reserve(u64::MAX);
    let put = |key: &'static str| KvOperation::Put(Put { key: key.into(), ..Put::default() });
    let delete = Delete { key: "a".into(), range_end: Some("z".into()), ..Delete::default() };
    for (index, operation) in (1..).zip([put("a"), put("b"), KvOperation::Delete(delete)]) {
        let command = codec::encode(1, &KvCommand::new(None, operation));
        machine.apply(&[Entry::command(LogId::new(1, index), command)]).unwrap();
    }
    // The thread has looked at the disk many times by then.
    std::thread::sleep(Duration::from_millis(200));
    assert!(has_deletions(&machine));
    let machine = machine.with_reserve(0);
    while has_deletions(&machine) {
        std::thread::yield_now();
    }
}

/// Many keys, written by transactions.
async fn database_with_keys(dir: &TempDir, keys: usize) -> ConsensusKvDatabase {
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
    database.start().await.unwrap();
    let names: Vec<_> = (0..keys).map(|number| Bytes::from(format!("k{number:05}"))).collect();
    for part in names.chunks(100) {
        let put =
            |key: &Bytes| KvOperation::Put(Put { key: key.clone(), value: "v".into(), ..Put::default() });
        let txn = Txn { success: part.iter().map(put).collect(), ..Txn::default() };
        database.execute_operation(KvOperation::Txn(txn)).await.unwrap();
    }
    database
}

#[tokio::test]
async fn watches_receive_all_deletions_of_a_range_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with_keys(&dir, KEYS).await;
    let keys = KeyRange { key: "k".into(), range_end: Some("m".into()) };
    let of = |start_revision| WatchRequest {
        keys: keys.clone(),
        start_revision,
        previous: true,
        ..WatchRequest::default()
    };
    let live = database.watch(of(0)).unwrap();
    let delete = Delete { key: "k".into(), range_end: Some("l".into()), ..Delete::default() };
    let deleted = database.execute_operation(KvOperation::Delete(delete)).await.unwrap();
    let all = Deleted { deleted: KEYS as u64, previous: None, next_key: None };
    assert_eq!(deleted.result, KvResult::Delete(all));
    // It may be written before the deletions are.
    let put = Put { key: "l".into(), value: "w".into(), ..Put::default() };
    let put = database.execute_operation(KvOperation::Put(put)).await.unwrap();
    assert_eq!(put.revision, deleted.revision + 1);
    let late = database.watch(of(deleted.revision)).unwrap();
    for events in [live, late] {
        expect_deletions_and_a_put(events, deleted.revision).await;
    }
}

/// More changes than are read at once: watches read them from disk. Other watches are not behind for that.
#[tokio::test]
async fn deletion_of_very_many_keys_reaches_watches_whole() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with_keys(&dir, VERY_MANY).await;
    let of = |key: &'static str, end: &'static str| {
        let keys = KeyRange { key: key.into(), range_end: Some(end.into()) };
        database.watch(WatchRequest { keys, ..WatchRequest::default() }).unwrap()
    };
    let (mut one, mut all, mut other) = (of("k59999", "k6"), of("a", "z"), of("x", "z"));
    let delete = Delete { key: "k".into(), range_end: Some("l".into()), ..Delete::default() };
    let deleted = database.execute_operation(KvOperation::Delete(delete)).await.unwrap();
    let put = Put { key: "x".into(), value: "w".into(), ..Put::default() };
    database.execute_operation(KvOperation::Put(put)).await.unwrap();
    let next = async |events: &mut WatchStream| {
        let event = tokio::time::timeout(Duration::from_secs(60), events.try_next()).await;
        event.expect("an event arrives in time").unwrap().expect("the watch does not end").kv
    };
    for number in 0..VERY_MANY {
        let kv = next(&mut all).await;
        assert_eq!((kv.mod_revision, kv.key), (deleted.revision, format!("k{number:05}").into()));
    }
    assert_eq!(next(&mut one).await.key, "k59999");
    for events in [&mut all, &mut other] {
        let kv = next(events).await;
        assert_eq!((kv.mod_revision, &kv.key[..]), (deleted.revision + 1, &b"x"[..]));
    }
}

/// A revision with more than 4 MiB of events comes in parts, and a client that starts a new watch for each part misses and
/// repeats nothing.
#[tokio::test]
async fn deletion_of_very_many_keys_comes_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with_keys(&dir, VERY_MANY).await;
    let mut watches = database.watches().unwrap();
    let all = KeyRange { key: "a".into(), range_end: Some("z".into()) };
    let (large, revision) =
        watches.add(WatchRequest { keys: all.clone(), previous: true, ..WatchRequest::default() });
    let x = KeyRange { key: "x".into(), range_end: None };
    let (small, _) = watches.add(WatchRequest { keys: x, ..WatchRequest::default() });
    let delete = Delete { key: "k".into(), range_end: Some("l".into()), ..Delete::default() };
    let deleted = database.execute_operation(KvOperation::Delete(delete)).await.unwrap();
    let put = Put { key: "x".into(), value: "w".into(), ..Put::default() };
    let put = database.execute_operation(KvOperation::Put(put)).await.unwrap();
    assert_eq!((deleted.revision, put.revision), (revision + 1, revision + 2));

    let (mut keys, mut parts, mut puts) = (Vec::new(), Vec::new(), 0);
    while keys.len() < VERY_MANY || puts < 2 {
        let WatchNews::Events { watch, events, more } = next_news(&mut watches).await else {
            panic!("compacted")
        };
        let (deletions, others): (Vec<_>, Vec<_>) = events.into_iter().partition(|event| event.deleted);
        assert!(others.iter().all(|event| event.kv.mod_revision == put.revision));
        puts += others.len();
        assert!(watch == large || deletions.is_empty() && watch == small);
        assert!(!deletions.is_empty() || keys.is_empty() || keys.len() == VERY_MANY, "between the parts");
        if deletions.is_empty() {
            continue;
        }
        assert!(deletions.iter().map(|event| event.response_bytes()).sum::<usize>() <= 4 << 20);
        parts.push(deletions.len());
        keys.extend(deletions.iter().map(|event| event.kv.key.clone()));
        assert_eq!(more, keys.len() < VERY_MANY, "{parts:?}");
        let at = watches.next_revision(large).unwrap();
        assert!(!more || watches.progress().is_none() && at == deleted.revision);
    }
    assert!(keys.iter().enumerate().all(|(number, key)| *key == format!("k{number:05}")), "each key once");
    assert!(parts.len() > 2, "{parts:?}");

    // One watch for each part, as long polls do.
    let (mut known, mut parts) = (0, Vec::new());
    while known < VERY_MANY {
        let stream = stream_from(&database, &all, deleted.revision, known);
        known += expect_part(stream, &keys[known..], deleted.revision, known).await;
        parts.push(known);
    }
    assert!(parts.len() > 1, "{parts:?}");
    // A place that is not known: the events are counted.
    expect_part(stream_from(&database, &all, deleted.revision, 7), &keys[7..], deleted.revision, 7).await;
}

fn stream_from(database: &ConsensusKvDatabase, keys: &KeyRange, revision: u64, event: usize) -> WatchStream {
    let (keys, start_event) = (keys.clone(), event as u64);
    let request = WatchRequest { keys, start_revision: revision, start_event, ..WatchRequest::default() };
    database.watch(request).unwrap()
}

/// Takes what a stream delivers at once, of which the client has `known` events. Returns the number of deletions.
async fn expect_part(mut stream: WatchStream, keys: &[Bytes], revision: u64, known: usize) -> usize {
    let mut taken = vec![stream.try_next().await.unwrap().unwrap().kv];
    taken.extend(stream.take_read().iter().map(|event| event.kv.clone()));
    let of_revision: Vec<_> = taken.iter().filter(|kv| kv.mod_revision == revision).collect();
    assert!(of_revision.iter().zip(keys).all(|(kv, key)| kv.key == *key), "after {known} events");
    let count = of_revision.len();
    let next = if count < keys.len() { (revision, (known + count) as u64) } else { (revision + 1, 0) };
    assert!(count == taken.len() && (stream.next_revision(), stream.next_event()) >= next);
    count
}

/// The rest of one revision and the beginning of the next one are not delivered together.
#[tokio::test]
async fn parts_of_two_revisions_are_apart() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with_keys(&dir, 1).await;
    let put = |key: String| {
        KvOperation::Put(Put { key: key.into(), value: vec![b'v'; 1 << 20].into(), ..Put::default() })
    };
    let mut revisions = Vec::new();
    for _ in 0..2 {
        let txn = Txn { success: (0..6).map(|n| put(format!("k{n}"))).collect(), ..Txn::default() };
        revisions.push(database.execute_operation(KvOperation::Txn(txn)).await.unwrap().revision);
    }
    let keys = KeyRange { key: "k".into(), range_end: Some("l".into()) };
    let mut watches = database.watches().unwrap();
    watches.add(WatchRequest { keys, start_revision: revisions[0], ..WatchRequest::default() });
    let mut parts = Vec::new();
    for _ in 0..4 {
        let WatchNews::Events { events, more, .. } = next_news(&mut watches).await else {
            panic!("compacted")
        };
        let of = |revision| events.iter().filter(|event| event.kv.mod_revision == revision).count();
        parts.push((of(revisions[0]), of(revisions[1]), more));
    }
    assert_eq!(parts, [(3, 0, true), (3, 0, false), (0, 3, true), (0, 3, false)]);
}

/// A node that has not reached the revision of a client, and finds nothing there that the client watches.
#[tokio::test]
async fn events_of_later_revisions_are_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with_keys(&dir, 1).await;
    let keys = KeyRange { key: "x".into(), range_end: None };
    let mut stream = stream_from(&database, &keys, 3, 2);
    let mut from_now = stream_from(&database, &keys, 0, 1);
    let put = |key: &'static str| KvOperation::Put(Put { key: key.into(), ..Put::default() });
    database.execute_operation(put("other")).await.unwrap();
    while stream.next_revision() == 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((stream.next_revision(), stream.next_event()), (4, 0));
    database.execute_operation(put("x")).await.unwrap();
    for stream in [&mut stream, &mut from_now] {
        let event = tokio::time::timeout(Duration::from_secs(30), stream.try_next()).await;
        assert_eq!(event.unwrap().unwrap().unwrap().kv.mod_revision, 4);
    }
}

/// The client knows a part of a revision that this node has yet to reach.
#[tokio::test]
async fn events_that_are_known_are_skipped_at_a_future_revision() {
    let dir = tempfile::tempdir().unwrap();
    let database = database_with_keys(&dir, 1).await;
    let keys = KeyRange { key: "a".into(), range_end: Some("z".into()) };
    let request = WatchRequest { keys, start_revision: 3, start_event: 2, ..WatchRequest::default() };
    let mut stream = database.watch(request).unwrap();
    assert_eq!((stream.next_revision(), stream.next_event()), (3, 2));
    let put = |key: &'static str| KvOperation::Put(Put { key: key.into(), ..Put::default() });
    let txn = Txn { success: ["b", "c", "d"].map(put).to_vec(), ..Txn::default() };
    assert_eq!(database.execute_operation(KvOperation::Txn(txn)).await.unwrap().revision, 3);
    database.execute_operation(put("e")).await.unwrap();
    for (revision, key) in [(3, "d"), (4, "e")] {
        let kv = stream.try_next().await.unwrap().unwrap().kv;
        assert_eq!((kv.mod_revision, &kv.key[..]), (revision, key.as_bytes()));
    }
    assert_eq!((stream.next_revision(), stream.next_event()), (5, 0));
}

async fn next_news(watches: &mut Watches) -> WatchNews {
    let news = tokio::time::timeout(Duration::from_secs(30), watches.next()).await;
    news.expect("a notification arrives in time").unwrap()
}

async fn expect_deletions_and_a_put(mut events: WatchStream, revision: u64) {
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(30), events.try_next()).await;
        event.expect("an event arrives in time").unwrap().expect("the watch does not end")
    };
    for number in 0..KEYS {
        let event = next().await;
        assert!(event.deleted && event.previous.is_some(), "{event:?}");
        assert_eq!((event.kv.mod_revision, event.kv.key), (revision, format!("k{number:05}").into()));
    }
    let event = next().await;
    assert_eq!((event.deleted, event.kv.mod_revision, &event.kv.key[..]), (false, revision + 1, &b"l"[..]));
}

/// More than are deleted one by one.
const KEYS: usize = 5000;
const VERY_MANY: usize = 60_000;
