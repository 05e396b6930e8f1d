//! Keys that go with leases.

use std::time::{Duration, Instant};

use consensus_core::NodeId;
use kv_state_machine::{
    ConsensusKvDatabase, Delete, Keep, KvError, KvOperation, KvRejection, KvResult, Put, Range, Txn,
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
    let state = database.time_to_live(id, true).await.unwrap().expect("there is the lease");
    state.keys.iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect()
}

#[tokio::test]
async fn revoked_lease_takes_its_keys_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    grant(&database, 7, 100).await;
    for key in ["a", "b", "c", "d"] {
        run(&database, KvOperation::Put(put(key, 7))).await;
    }
    // Written again without it, deleted, or put to another: these do not go with it any more.
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

#[tokio::test]
async fn put_with_a_lease_that_is_not_there_is_refused_and_leaves_nothing() {
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
async fn put_can_keep_value_or_lease_of_a_key_that_exists() {
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
async fn lease_ends_after_its_time_and_not_before_and_lives_while_it_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir).await;
    let begun = Instant::now();
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
        assert!(begun.elapsed() < Duration::from_secs(20), "it does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "it ended after {:?}", begun.elapsed());
    assert_eq!(database.leases().await.unwrap(), [2]);
}

#[tokio::test]
async fn lease_has_after_a_restart_what_was_noted_and_its_whole_time_once_renewed() {
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
    assert!(left(1).await <= Duration::from_secs(100), "what was noted counts, of the right term only");
    assert!(left(1).await > Duration::from_secs(90));
    assert!(left(2).await > Duration::from_secs(990), "it was renewed after that");
    assert_eq!(attached(&database, 1).await, ["k"]);
}
