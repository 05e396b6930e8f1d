//! A disk that is full to the last byte: a small one in memory, mounted for the test, which takes root.

use std::path::Path;

use consensus_core::{
    Entry, LogBatch, LogId, LogIndex, LogStorage, NodeId, Payload, SnapshotMeta, StorageError,
};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_testkit::SmallDisk;

/// `None` where nothing can be mounted.
fn small_disk(dir: &tempfile::TempDir) -> Option<SmallDisk> {
    SmallDisk::mount(dir.path(), DISK_MIB).map_err(|why| println!("SKIPPED, {why}")).ok()
}

fn open(dir: &Path) -> Result<RocksLogStorage, StorageError> {
    RocksLogStorage::open(dir, NodeId(1))
}

fn append(storage: &RocksLogStorage, index: u64) -> Result<(), StorageError> {
    let entries = vec![Entry::command(LogId::new(1, index), vec![index as u8; 10_000])];
    storage.write(LogBatch { entries, ..LogBatch::default() })
}

/// Appends until an error comes; how many were acknowledged, and the error.
fn append_until_full(storage: &RocksLogStorage) -> (u64, StorageError) {
    for index in 1.. {
        if let Err(error) = append(storage, index) {
            return (index - 1, error);
        }
    }
    unreachable!("no disk is endless");
}

#[test]
fn what_was_acknowledged_before_the_disk_was_full_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let storage = open(&log).unwrap();
    append(&storage, 1).unwrap();
    disk.fill().unwrap();
    // Whatever room is still RocksDB's own is used up first.
    let mut acknowledged = 1;
    let error = loop {
        match append(&storage, acknowledged + 1) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Io { .. }), "{error:?}");
    // Final, also when there is room again: what the failed write left is not known here.
    disk.make_room().unwrap();
    let error = append(&storage, acknowledged + 1).unwrap_err();
    assert!(matches!(error, StorageError::Failed(_)), "{error:?}");
    drop(storage);

    // Opened while it is full, it is refused or whole; and whole once there is room.
    disk.fill().unwrap();
    for full in [true, true, false] {
        if !full {
            disk.make_room().unwrap();
        }
        let found = match open(&log) {
            Ok(storage) => storage.load().unwrap().last().index.0,
            Err(error) if full => {
                println!("refused while the disk is full: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        // The write that failed may be there, whole.
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "{acknowledged} acknowledged, {found} there"
        );
    }
    let storage = open(&log).unwrap();
    let last = storage.load().unwrap().last().index;
    let entries = storage.read(LogIndex(0), last, u64::MAX).unwrap();
    assert_eq!(entries.len() as u64, last.0);
    append(&storage, last.0 + 1).unwrap();
}

#[test]
fn a_reserve_keeps_the_disk_from_filling_up() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let storage = open(&log).unwrap().with_reserve(RESERVE_MIB << 20);
    let (acknowledged, error) = append_until_full(&storage);
    assert!(matches!(error, StorageError::NoRoom { .. }), "{error:?}");
    assert!(acknowledged > 10, "{acknowledged}");
    // Not final: what is small and makes room is taken, and the log opens as it is.
    let purge = SnapshotMeta { last: LogId::new(1, acknowledged), ..SnapshotMeta::default() };
    storage.write(LogBatch { purge: Some(purge), ..LogBatch::default() }).unwrap();
    drop(storage);
    assert_eq!(open(&log).unwrap().load().unwrap().last(), LogId::new(1, acknowledged));
}

/// A leader that is elected while there is no room commits the first entry of its term, without which it serves no reads.
#[test]
fn entries_without_commands_use_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    // No disk has as much.
    let storage = open(dir.path()).unwrap().with_reserve(1 << 60);
    let write = |index, payload| {
        let entries = vec![Entry { id: LogId::new(1, index), payload }];
        storage.write(LogBatch { entries, ..LogBatch::default() })
    };
    for index in 1..=9 {
        write(index, Payload::Blank).unwrap();
        let refused = write(index + 1, Payload::Command("c".into()));
        assert!(matches!(refused, Err(StorageError::NoRoom { .. })), "{refused:?}");
    }
    drop(storage);
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 9));
}

const DISK_MIB: u64 = 24;
const RESERVE_MIB: u64 = 12;
