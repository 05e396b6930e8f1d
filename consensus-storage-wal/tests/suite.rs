//! The conformance suites, and tests of the directory and its segments.

use std::{cell::Cell, fs, path::Path};

use consensus_core::{
    Entry, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, SnapshotMeta, StorageError,
};
use consensus_storage_dir::{DataDir, DirKind};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::log_storage::{run_full_disk_suite, run_suite};
use tempfile::{TempDir, tempdir};

fn open(dir: &Path) -> WalLogStorage {
    WalLogStorage::open(dir, NodeId(1)).unwrap()
}

fn open_tiny(dir: &Path) -> WalLogStorage {
    WalLogStorage::open_with_segment_bytes(dir, NodeId(1), 0).unwrap()
}

fn append(storage: &impl LogStorage, indexes: std::ops::RangeInclusive<u64>, bytes: usize) {
    let entries =
        indexes.map(|index| Entry::command(LogId::new(1, index), vec![index as u8; bytes])).collect();
    storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
}

#[test]
fn storage_passes_the_suite() {
    run_suite(|| tempdir().unwrap(), |dir| open(dir.path()));
}

#[test]
fn storage_with_tiny_segments_passes_the_suite() {
    run_suite(|| tempdir().unwrap(), |dir| open_tiny(dir.path()));
}

#[test]
fn storage_on_full_disk_passes_the_suite() {
    run_full_disk_suite(
        || (tempdir().unwrap(), Cell::new(0)),
        |(dir, reserve)| open(dir.path()).with_reserve(reserve.get()),
        |(_, reserve), full| reserve.set(if full { 1 << 60 } else { 0 }),
    );
}

#[test]
fn directory_of_another_node_or_format_is_refused_unchanged() {
    let dir = tempdir().unwrap();
    append(&open(dir.path()), 1..=100, 1000);
    let identity = dir.path().join("IDENTITY");
    let text = fs::read_to_string(&identity).unwrap();
    let refusal = |node| WalLogStorage::open(dir.path(), NodeId(node)).unwrap_err();

    let error = refusal(2);
    assert!(matches!(error, StorageError::ForeignDirectory { .. }), "{error}");
    fs::write(&identity, text.replace("format = 1", "format = 7")).unwrap();
    let error = refusal(1);
    assert!(matches!(error, StorageError::NewerFormat { found: 7, supported: 1, .. }), "{error}");
    fs::write(&identity, "nonsense").unwrap();
    let error = refusal(1);
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
    fs::write(&identity, text).unwrap();
    assert_eq!(open(dir.path()).load().unwrap().last(), LogId::new(1, 100));
}

#[test]
fn directory_of_another_kind_is_refused() {
    let dir = tempdir().unwrap();
    let rocksdb = DirKind { name: "raft-log", oldest_format: 1, format: 1 };
    drop(DataDir::open(dir.path(), rocksdb, NodeId(1)).unwrap());
    let error = WalLogStorage::open(dir.path(), NodeId(1)).unwrap_err().to_string();
    assert!(error.contains("the directory holds a raft-log, not a raft-wal"), "{error}");
}

#[test]
fn directory_in_use_is_refused() {
    let dir = tempdir().unwrap();
    let _first = open(dir.path());
    let error = WalLogStorage::open(dir.path(), NodeId(1)).unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
}

fn segments(dir: &TempDir) -> Vec<String> {
    let files = fs::read_dir(dir.path().join("segments")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn purge(storage: &impl LogStorage, index: u64) {
    let purge = SnapshotMeta { last: LogId::new(1, index), membership: Membership::of_voters([1]) };
    storage.write(LogBatch { purge: Some(purge), ..LogBatch::default() }).unwrap();
}

/// The disk space of a log that is purged does not grow, also with concurrent reads.
#[test]
fn purged_segments_are_reused() {
    let dir = tempdir().unwrap();
    let storage = open_tiny(dir.path());
    for round in 1..=300 {
        append(&storage, 4 * round - 3..=4 * round, 300);
        if round % 5 == 0 {
            purge(&storage, 4 * round - 2);
            let read = storage.read(LogIndex(4 * round - 2), LogIndex(4 * round), u64::MAX).unwrap();
            assert_eq!(read[1].payload, Payload::Command(vec![(4 * round) as u8; 300].into()));
        }
    }
    drop(storage);
    let storage = open_tiny(dir.path());
    let state = storage.load().unwrap();
    assert_eq!((state.purged.last.index, state.last().index), (LogIndex(1198), LogIndex(1200)));
    drop(storage);
    let names = segments(&dir);
    assert!(names.len() <= 6, "{names:?}");
    let newest = names.iter().filter_map(|name| name.strip_suffix(".wal")?.parse::<u64>().ok()).max();
    assert!(newest > Some(70), "{names:?}");
}

#[test]
fn batch_longer_than_a_segment_is_written_and_read() {
    for first in [0, 1] {
        let dir = tempdir().unwrap();
        let storage = open_tiny(dir.path());
        if first == 1 {
            append(&storage, 1..=1, 10);
        }
        append(&storage, first + 1..=first + 50, 40_000);
        append(&storage, first + 51..=first + 51, 10);
        drop(storage);
        let storage = open_tiny(dir.path());
        assert_eq!(storage.load().unwrap().last().index, LogIndex(first + 51));
        let entries = storage.read(LogIndex(0), LogIndex(first + 51), u64::MAX).unwrap();
        assert_eq!(entries.len() as u64, first + 51);
        assert_eq!(entries[30].size_bytes(), 40_032);
        assert_eq!(storage.read(LogIndex(first), LogIndex(first + 51), 100_000).unwrap().len(), 2);
    }
}

#[test]
fn reads_during_writes_return_complete_entries() {
    let dir = tempdir().unwrap();
    let storage = open_tiny(dir.path());
    std::thread::scope(|scope| {
        scope.spawn(|| (1..=400).for_each(|index| append(&storage, index..=index, 100)));
        let mut seen = 0;
        while seen < 400 {
            match storage.read(LogIndex(0), LogIndex(400), u64::MAX) {
                Ok(entries) => {
                    assert!(entries.iter().zip(1..).all(|(entry, index)| entry.id == LogId::new(1, index)));
                    seen = entries.len();
                }
                Err(error) => assert!(matches!(error, StorageError::Missing { .. }), "{error}"),
            }
        }
    });
}

/// A read returns an error or the entries that it asked for, never later content of a reused segment.
#[test]
fn reads_during_purges_never_return_content_of_reused_segments() {
    let dir = tempdir().unwrap();
    let storage = open_tiny(dir.path());
    append(&storage, 1..=8, 200);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 9..=600 {
                append(&storage, index..=index, 200);
                if index % 4 == 0 {
                    purge(&storage, index - 8);
                }
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut after = LogIndex(0);
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            match storage.read(after, LogIndex(u64::MAX), 2000) {
                Ok(entries) => {
                    for entry in entries {
                        let index = entry.id.index.0;
                        assert_eq!(entry, Entry::command(LogId::new(1, index), vec![index as u8; 200]));
                    }
                }
                Err(StorageError::Missing { purged, .. }) => after = purged,
                Err(error) => panic!("{error}"),
            }
        }
    });
}
