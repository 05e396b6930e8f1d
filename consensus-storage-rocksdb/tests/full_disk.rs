//! A completely full disk: a small file system in memory that the test mounts, which needs root.

use std::path::Path;

use consensus_core::{
    Entry, LogBatch, LogId, LogIndex, LogStorage, NodeId, Payload, SnapshotMeta, StorageError,
};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_testkit::SmallDisk;

/// `None` if the test may not mount a file system.
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

/// Appends until an error. Returns the number of acknowledged entries, and the error.
fn append_until_full(storage: &RocksLogStorage) -> (u64, StorageError) {
    for index in 1.. {
        if let Err(error) = append(storage, index) {
            return (index - 1, error);
        }
    }
    unreachable!("every disk becomes full");
}

#[test]
fn log_on_a_disk_that_became_full_keeps_acknowledged_entries() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let storage = open(&log).unwrap();
    append(&storage, 1).unwrap();
    disk.fill().unwrap();
    // Uses up the space that RocksDB has allocated already.
    let mut acknowledged = 1;
    let error = loop {
        match append(&storage, acknowledged + 1) {
            Ok(()) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Io { .. }), "{error:?}");
    // The error is final, even when there is room again, because it is unknown what the failed write left on disk.
    disk.make_room().unwrap();
    let error = append(&storage, acknowledged + 1).unwrap_err();
    assert!(matches!(error, StorageError::Failed(_)), "{error:?}");
    drop(storage);

    // While the disk is full, the log is either refused or complete; with room again it is complete.
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
        // The failed write may be on disk, completely.
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
fn commands_that_need_the_reserve_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let storage = open(&log).unwrap().with_reserve(RESERVE_MIB << 20);
    let (acknowledged, error) = append_until_full(&storage);
    assert!(matches!(error, StorageError::NoRoom { .. }), "{error:?}");
    assert!(acknowledged > 10, "{acknowledged}");
    // The refusal is not final: a purge is written, and the log opens again.
    let purge = SnapshotMeta { last: LogId::new(1, acknowledged), ..SnapshotMeta::default() };
    storage.write(LogBatch { purge: Some(purge), ..LogBatch::default() }).unwrap();
    drop(storage);
    assert_eq!(open(&log).unwrap().load().unwrap().last(), LogId::new(1, acknowledged));
}

/// A leader that is elected while the disk is full must commit the first entry of its term in order to serve reads.
#[test]
fn entries_without_commands_may_use_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    // Larger than any disk.
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
