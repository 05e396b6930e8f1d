//! A flush that fails.

mod common;

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::Replica;
use consensus_core::{LogIndex, StateMachine, StateMachineError};
use kv_state_machine::{AuthOperation, KvOperation, Put, fuzzing::Sizes};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn put(value: &'static str) -> KvOperation {
    KvOperation::Put(Put { key: Bytes::from("key"), value: Bytes::from(value), ..Put::default() })
}

fn replica() -> Replica {
    let mut replica =
        Replica::new(Sizes { recent_max: 10, segment_keys_max: 100, deletions_max: 100, deletion_part: 10 });
    replica.apply([(None, put("1"))]);
    assert_eq!(replica.machine().flush().unwrap().index, LogIndex(1));
    replica.apply([(None, put("2"))]);
    replica
}

/// The cause is found before RocksDB is asked, which would accept no writes afterwards.
/// The tests change a limit of the process.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn flush_without_file_descriptors_is_repeated() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut replica = replica();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let (flushed, copied) = (replica.machine().flush(), replica.machine().snapshot().map(drop));
    setrlimit(Resource::Nofile, limit).unwrap();
    for failed in [flushed.map(drop), copied] {
        let Err(StateMachineError::Io(why)) = failed else { panic!("{failed:?}") };
        assert!(why.to_string().contains("Too many open files"), "{why}");
    }
    replica.apply([(None, put("3"))]);
    replica.machine().snapshot().unwrap();
    assert_eq!(replica.machine().flush().unwrap().index, LogIndex(3));
}

/// Directories have the names of RocksDB's next files.
#[test]
fn store_that_cannot_be_flushed_says_that_the_node_must_start_again_and_loses_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut replica = replica();
    let in_the_way = replica.block_next_files();
    let failed = replica.machine().flush();
    in_the_way.iter().for_each(|dir| std::fs::remove_dir(dir).unwrap());
    let Err(StateMachineError::Broken(why)) = failed else { panic!("{failed:?}") };
    for words in ["flushing", "Is a directory", "start this node again"] {
        assert!(why.contains(words), "{why}");
    }
    // RocksDB refuses writes although files can be made again.
    assert!(replica.machine().flush().is_err());
    replica.restart();
    replica.apply([(None, put("3"))]);
    assert_eq!(replica.machine().flush().unwrap().index, LogIndex(3));
}

/// It is flushed before it is acknowledged, and the node goes on when that is possible again.
#[test]
fn change_of_users_waits_until_it_can_be_flushed() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut replica = replica();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    let outage = Duration::from_millis(700);
    let end = std::thread::spawn(move || {
        std::thread::sleep(outage);
        setrlimit(Resource::Nofile, limit).unwrap();
    });
    let began = Instant::now();
    let role = KvOperation::Auth(AuthOperation::AddRole { role: "reader".into() });
    replica.apply([(None, role)]);
    assert!(began.elapsed() >= outage, "{:?}", began.elapsed());
    end.join().unwrap();
    replica.apply([(None, put("3"))]);
    assert_eq!(replica.machine().flush().unwrap().index, LogIndex(4));
}
