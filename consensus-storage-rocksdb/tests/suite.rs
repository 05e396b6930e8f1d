//! The conformance suite, and tests of the directory.

use std::fs;

use consensus_core::{Entry, LogBatch, LogId, LogIndex, LogStorage, NodeId, StorageError};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_testkit::log_storage::run_suite;

#[test]
fn storage_passes_the_suite() {
    run_suite(|| tempfile::tempdir().unwrap(), |dir| RocksLogStorage::open(dir.path(), NodeId(1)).unwrap());
}

fn filled(dir: &tempfile::TempDir) {
    let storage = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap();
    for index in 1..=100 {
        let entries = vec![Entry::command(LogId::new(1, index), vec![b'x'; 1000])];
        storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
    }
}

#[test]
fn directory_of_another_node_or_format_is_refused_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    filled(&dir);
    let identity = dir.path().join("IDENTITY");
    let text = fs::read_to_string(&identity).unwrap();

    let error = RocksLogStorage::open(dir.path(), NodeId(2)).unwrap_err();
    assert!(matches!(error, StorageError::ForeignDirectory { .. }), "{error}");
    assert!(error.to_string().contains("belongs to node 1, not to node 2"), "{error}");

    fs::write(&identity, text.replace("format = 2", "format = 7")).unwrap();
    let error = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap_err().to_string();
    assert!(error.contains("has format 7, this version reads up to format 2"), "{error}");

    fs::write(&identity, "nonsense").unwrap();
    let error = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap_err();
    assert!(
        matches!(error, StorageError::Corrupt { .. }) && error.to_string().contains("IDENTITY"),
        "{error}"
    );

    fs::write(&identity, text).unwrap();
    let storage = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap();
    assert_eq!(storage.load().unwrap().last(), LogId::new(1, 100));
}

#[test]
fn directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap();
    let error = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap_err();
    assert!(matches!(error, StorageError::Locked { .. }), "{error}");
}

/// RocksDB's newest log file, with the data that was not yet moved to a table.
fn write_ahead_log(dir: &tempfile::TempDir) -> std::path::PathBuf {
    let files = fs::read_dir(dir.path().join("rocksdb")).unwrap().map(|file| file.unwrap().path());
    let mut logs: Vec<_> = files.filter(|path| path.extension().is_some_and(|ext| ext == "log")).collect();
    logs.sort();
    logs.pop().unwrap()
}

#[test]
fn damage_in_the_middle_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(&dir);
    let log = write_ahead_log(&dir);
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&log, bytes).unwrap();
    let error = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
}

#[test]
fn reads_during_writes_return_complete_entries() {
    let dir = tempfile::tempdir().unwrap();
    let storage = RocksLogStorage::open(dir.path(), NodeId(1)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..=200 {
                let entries = vec![Entry::command(LogId::new(1, index), index.to_string())];
                storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
            }
        });
        let mut seen = 0;
        while seen < 200 {
            match storage.read(LogIndex(0), LogIndex(200), u64::MAX) {
                Ok(entries) => seen = entries.len(),
                Err(error) => assert!(matches!(error, StorageError::Missing { .. }), "{error}"),
            }
        }
    });
}
