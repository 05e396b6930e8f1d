//! Keys attached to leases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use consensus_core::NodeId;
use futures::TryStreamExt;
use kv_state_machine::{
    ConsensusKvDatabase, Delete, Keep, KeyRange, KvError, KvOperation, KvRejection, KvResult, Put, Range,
    TimeSource, Txn, WORK_KEYS_MAX, WatchRequest,
};
use tempfile::TempDir;

async fn open(dir: &TempDir) -> ConsensusKvDatabase {
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap();
    database.start().await.unwrap();
    database
}

async fn run(database: &ConsensusKvDatabase, operation: KvOperation) -> u64 {
    database.execute_operation(operation).await.unwrap().revision
}

async fn grant(database: &ConsensusKvDatabase, id: i64, ttl: u64) {
    run(database, KvOperation::GrantLease { id, ttl }).await;
}

fn put(key: &str, lease_id: i64) -> Put {
    Put { key: key.to_owned().into(), value: "v".into(), lease_id, ..Put::default() }
}

async fn keys(database: &ConsensusKvDatabase) -> Vec<String> {
    let range = Range { key: "\0".into(), range_end: Some("\0".into()), ..Range::default() };
    let answer = database.execute_operation(KvOperation::Range(range)).await.unwrap();
    let KvResult::Range(found) = answer.result else { panic!() };
    found.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

async fn attached(database: &ConsensusKvDatabase, id: i64) -> Vec<String> {
    let state = database.time_to_live(id, true).await.unwrap().expect("the lease exists");
    state.keys.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn revoked_lease_deletes_its_keys_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    grant(&database, 7, 100).await;
    for key in ["a", "b", "c", "d"] {
        run(&database, KvOperation::Put(put(key, 7))).await;
    }
    // Keys that were written without the lease, deleted, or attached to another lease are not attached any more.
    run(&database, KvOperation::Put(put("a", 0))).await;
    run(&database, KvOperation::Delete(Delete { key: "b".into(), ..Delete::default() })).await;
    assert_eq!(attached(&database, 7).await, ["c", "d"]);
    let before = database.revision().unwrap();
    assert_eq!(run(&database, KvOperation::RevokeLease { id: 7 }).await, before + 1);
    assert_eq!(keys(&database).await, ["a"]);
    assert_eq!(database.time_to_live(7, false).await.unwrap(), None);
    assert_eq!(database.keep_alive(7).await.unwrap(), None);
    let again = database.execute_operation(KvOperation::RevokeLease { id: 7 }).await;
    assert_eq!(again, Err(KvError::Rejected(KvRejection::NoLease { id: 7 })));
}

/// Attaches keys to a lease, by transactions.
async fn attach(database: &ConsensusKvDatabase, id: i64, keys: u64) {
    let puts: Vec<_> = (0..keys).map(|n| KvOperation::Put(put(&format!("k{id}-{n:06}"), id))).collect();
    for part in puts.chunks(100) {
        run(database, KvOperation::Txn(Txn { success: part.to_vec(), ..Txn::default() })).await;
    }
}

/// Numbers of keys that were deleted at the revisions after `revision`.
async fn deletions_after(database: &ConsensusKvDatabase, revision: u64) -> Vec<u64> {
    let keys = KeyRange { key: "k".into(), range_end: Some("l".into()) };
    let request = WatchRequest { keys, start_revision: revision + 1, ..WatchRequest::default() };
    let mut events = database.watch(request).unwrap();
    let mut counts = vec![0; usize::try_from(database.revision().unwrap() - revision).unwrap()];
    let last = counts.len() - 1;
    loop {
        let event = tokio::time::timeout(Duration::from_millis(500), events.try_next()).await;
        let Ok(Ok(Some(event))) = event else { break };
        assert!(event.deleted);
        counts[(event.kv.mod_revision - revision - 1) as usize] += 1;
    }
    assert!(counts[last] > 0, "{counts:?}");
    counts
}

#[tokio::test]
async fn revoked_lease_with_very_many_keys_deletes_as_many_at_a_time_as_a_command_may() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    grant(&database, 7, 100).await;
    attach(&database, 7, 2 * WORK_KEYS_MAX + 500).await;
    let before = database.revision().unwrap();
    let revoked = run(&database, KvOperation::RevokeLease { id: 7 }).await;
    assert!(keys(&database).await.is_empty());
    assert_eq!(revoked, before + 3);
    assert_eq!(deletions_after(&database, before).await, [WORK_KEYS_MAX, WORK_KEYS_MAX, 500]);
    assert_eq!(database.leases().await.unwrap(), [0; 0]);
}

#[tokio::test]
async fn expired_leases_with_very_many_keys_delete_as_many_at_a_time_as_a_command_may() {
    let dir = tempfile::tempdir().unwrap();
    let seconds = Arc::new(AtomicU64::new(0));
    let source = seconds.clone();
    let time = TimeSource::new(move || Duration::from_secs(source.load(Ordering::Relaxed)));
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir.path()).unwrap().with_time_source(time);
    database.start().await.unwrap();
    let each = WORK_KEYS_MAX / 2 + 100;
    for id in 1..=3 {
        grant(&database, id, 1000).await;
        attach(&database, id, each).await;
    }
    let before = database.revision().unwrap();
    seconds.store(1000, Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !database.leases().await.unwrap().is_empty() || !keys(&database).await.is_empty() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let deleted = deletions_after(&database, before).await;
    assert_eq!(deleted.iter().sum::<u64>(), 3 * each);
    // The first and most of the second with one command; the rest of the second and the third with another.
    assert_eq!(deleted, [each, WORK_KEYS_MAX - each, 2 * each - WORK_KEYS_MAX, each]);
}

#[tokio::test]
async fn put_with_missing_lease_is_refused_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    grant(&database, 1, 100).await;
    let no_lease = Err(KvError::Rejected(KvRejection::NoLease { id: 2 }));
    assert_eq!(database.execute_operation(KvOperation::Put(put("a", 2))).await, no_lease);
    let success = vec![KvOperation::Put(put("b", 1)), KvOperation::Put(put("c", 2))];
    assert_eq!(
        database.execute_operation(KvOperation::Txn(Txn { success, ..Txn::default() })).await,
        no_lease
    );
    assert!(keys(&database).await.is_empty());
    assert!(attached(&database, 1).await.is_empty());
    let taken = database.execute_operation(KvOperation::GrantLease { id: 1, ttl: 5 }).await;
    assert_eq!(taken, Err(KvError::Rejected(KvRejection::LeaseExists { id: 1 })));
}

#[tokio::test]
async fn put_with_keep_retains_value_or_lease_of_existing_key() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    grant(&database, 1, 100).await;
    let keep = |value, lease| Keep { value, lease };
    let absent = Put { keep: keep(false, true), ..put("a", 0) };
    let refused = database.execute_operation(KvOperation::Put(absent)).await;
    assert_eq!(refused, Err(KvError::Rejected(KvRejection::NoKey { key: "a".into() })));
    run(&database, KvOperation::Put(put("a", 1))).await;
    run(&database, KvOperation::Put(Put { value: "w".into(), keep: keep(false, true), ..put("a", 0) })).await;
    assert_eq!(attached(&database, 1).await, ["a"]);
    run(&database, KvOperation::Put(Put { value: "".into(), keep: keep(true, false), ..put("a", 0) })).await;
    assert!(attached(&database, 1).await.is_empty());
    let range = KvOperation::Range(Range { key: "a".into(), ..Range::default() });
    let KvResult::Range(found) = database.execute_operation(range).await.unwrap().result else { panic!() };
    assert_eq!((&found.kvs[0].value[..], found.kvs[0].version), (&b"w"[..], 3));
}

#[tokio::test]
async fn lease_expires_at_its_time_unless_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    let start = Instant::now();
    grant(&database, 1, 2).await;
    grant(&database, 2, 2).await;
    run(&database, KvOperation::Put(put("ends", 1))).await;
    run(&database, KvOperation::Put(put("lives", 2))).await;
    loop {
        assert_eq!(database.keep_alive(2).await.unwrap(), Some(2));
        let there = keys(&database).await;
        assert!(there.contains(&"lives".to_owned()));
        if !there.contains(&"ends".to_owned()) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the lease does not expire in time");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(2), "the lease expired after {:?}", start.elapsed());
    assert_eq!(database.leases().await.unwrap(), [2]);
}

#[tokio::test]
async fn restart_restores_checkpointed_time_and_renewal_restores_whole_time() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    grant(&database, 1, 1000).await;
    grant(&database, 2, 1000).await;
    run(&database, KvOperation::Put(put("k", 1))).await;
    let remaining = vec![(1, Some(100)), (2, Some(100))];
    let term = database.status().borrow().term.0;
    run(&database, KvOperation::CheckpointLeases { remaining: remaining.clone(), term }).await;
    run(&database, KvOperation::CheckpointLeases { remaining: vec![(1, Some(1))], term: term + 1 }).await;
    assert_eq!(database.keep_alive(2).await.unwrap(), Some(1000));
    database.shutdown().await.unwrap();
    drop(database);
    let database = open(&dir).await;
    let left = |id| {
        let database = database.clone();
        async move { database.time_to_live(id, false).await.unwrap().unwrap().left }
    };
    assert!(left(1).await <= Duration::from_secs(100), "only the checkpoint of the current term counts");
    assert!(left(1).await > Duration::from_secs(90));
    assert!(left(2).await > Duration::from_secs(990), "the lease was renewed after its checkpoint");
    assert_eq!(attached(&database, 1).await, ["k"]);
}
