//! Copies of a store that is being written.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use consensus_core::{NodeId, StateMachine};
use kv_state_machine::{
    ConsensusKvDatabase, Durability, KvOperation, KvResult, KvStateMachine, Put, Range, StoreSnapshot, Txn,
};

async fn open(dir: &Path) -> ConsensusKvDatabase {
    let database = ConsensusKvDatabase::new_with_mock(NodeId(0), dir).unwrap();
    database.start().await.unwrap();
    database
}

fn put(key: &str, value: &str) -> KvOperation {
    KvOperation::Put(Put { key: key.to_owned().into(), value: value.to_owned().into(), ..Put::default() })
}

/// Restores a copy to a new store.
fn restored(copy: &StoreSnapshot, dir: &Path) -> KvStateMachine {
    let mut stream = Vec::new();
    copy.write_to(&mut stream).unwrap();
    assert_eq!(stream.len() as u64, copy.size_bytes());
    let mut machine = KvStateMachine::open(dir, NodeId(1), Durability::FromLog).unwrap();
    machine.restore(&mut &stream[..]).unwrap();
    machine
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_of_store_under_load_restores_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(&dir.path().join("database")).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (database, stop) = (database.clone(), stop.clone());
        tokio::spawn(async move {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // Both keys are written at one revision.
                let value = n.to_string();
                let success = vec![put("a", &value), put("b", &value)];
                let txn = KvOperation::Txn(Txn { success, ..Txn::default() });
                database.execute_operation(txn).await.unwrap();
            }
        })
    };
    for round in 0..5 {
        let before = database.revision().unwrap();
        let copy = database.snapshot().await.unwrap();
        // A copy may hold a command that is written and not yet visible to reads; never one that is proposed later.
        let later = database.execute_operation(put("later", "")).await.unwrap().revision;
        let machine = restored(&copy, &dir.path().join(format!("copy-{round}")));
        let range = Range { key: "a".into(), range_end: Some("c".into()), ..Range::default() };
        let answer = machine.executor().read(&KvOperation::Range(range)).unwrap().unwrap();
        assert!((before..later).contains(&answer.revision), "{before} to {later}: {}", answer.revision);
        let KvResult::Range(found) = answer.result else { panic!() };
        let values: Vec<_> = found.kvs.iter().map(|kv| (&kv.value, kv.mod_revision)).collect();
        assert!(values.is_empty() || values.len() == 2 && values[0] == values[1], "{values:?}");
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
}

#[tokio::test]
async fn third_copy_waits_until_one_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path()).await;
    let (first, _second) = (database.snapshot().await.unwrap(), database.snapshot().await.unwrap());
    let mut third = std::pin::pin!(database.snapshot());
    assert!(tokio::time::timeout(Duration::from_millis(200), third.as_mut()).await.is_err());
    let copies = || {
        std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("checkpoint-"))
            })
            .count()
    };
    assert_eq!(copies(), 2);
    drop(first);
    third.await.unwrap();
    assert_eq!(copies(), 1, "dropped copies are removed from disk");
}
