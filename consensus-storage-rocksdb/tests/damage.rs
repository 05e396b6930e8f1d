//! Damaged files: the log either has all acknowledged entries, or is refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use consensus_core::{Entry, LogBatch, LogId, LogStorage, NodeId, StorageError};
use consensus_storage_rocksdb::RocksLogStorage;
use consensus_testkit::{
    damage,
    log_storage::workload::{Filled, batches, sound},
};

fn open(dir: &Path) -> Result<RocksLogStorage, StorageError> {
    sound(RocksLogStorage::open(dir, NodeId(1))?)
}

/// Writes a log with tables, with a RocksDB log of several blocks, and with all small files.
fn filled(dir: &Path) -> Filled {
    let batches = batches();
    // The first half is moved to a table when the database is opened for the second half.
    for half in batches.chunks(batches.len() / 2) {
        let storage = open(dir).unwrap();
        half.iter().for_each(|batch| storage.write(batch.clone()).unwrap());
    }
    // Opens a copy, because opening the database would change its files.
    let copies = dir.with_extension("copy");
    fs::create_dir(&copies).unwrap();
    assert!(std::process::Command::new("cp").arg("-r").arg(dir).arg(&copies).status().unwrap().success());
    let storage = open(&copies.join(dir.file_name().unwrap())).unwrap();
    Filled::of(&storage)
}

#[test]
fn damage_to_any_byte_of_any_file_is_noticed() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("log");
    let filled = filled(&dir);
    let is_log_or_list = |file: &Path| {
        let name = file.file_name().unwrap().to_string_lossy();
        name.ends_with(".log") || name.starts_with("MANIFEST")
    };
    let more = |file: &Path| if is_log_or_list(file) { 80 } else { 5 };
    let tally = damage::try_all(&dir, 1, more, |damage, place| filled.outcome(damage, place, open));
    println!("{tally:?}");
    assert!(tally.intact > 20 && tally.refused > 200, "{tally:?}");
}

/// RocksDB's newest log file, with the data that was not yet moved to a table.
fn write_ahead_log(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("rocksdb")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "log")).max().unwrap()
}

fn append(storage: &RocksLogStorage, index: u64) {
    let entries = vec![Entry::command(LogId::new(1, index), vec![b'x'; 1000])];
    storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
}

fn remove_end(file: &Path, bytes: u64) {
    let length = fs::metadata(file).unwrap().len();
    fs::File::options().write(true).open(file).unwrap().set_len(length - bytes).unwrap();
}

/// In RocksDB's log both cases look alike. They differ in the mark, which is written before a write is acknowledged.
#[test]
fn torn_write_is_removed_and_missing_acknowledged_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("MARK");
    let kept = tempfile::NamedTempFile::new().unwrap();
    let storage = open(dir.path()).unwrap();
    (1..=99).for_each(|index| append(&storage, index));
    fs::copy(&mark, kept.path()).unwrap();
    append(&storage, 100);
    drop(storage);
    remove_end(&write_ahead_log(dir.path()), 500);
    for _ in 0..2 {
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("finds 198 of the 200 records"), "{error}");
        assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    }
    // With the mark from before the last write it is a torn write: the process was killed during the write. A power cut that
    // loses the last half minute of marks looks the same, which is a documented limit.
    fs::copy(kept.path(), &mark).unwrap();
    let storage = open(dir.path()).unwrap();
    assert_eq!(storage.load().unwrap().last(), LogId::new(1, 99), "only the last write is gone");
    append(&storage, 100);
    drop(storage);
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 100));
}

/// A write that the mark counts never counts as torn. A damaged write never does, even if the mark does not count it.
#[test]
fn damage_is_noticed_with_an_old_mark() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("MARK");
    let storage = open(dir.path()).unwrap();
    (1..=50).for_each(|index| append(&storage, index));
    let old_mark = fs::read(&mark).unwrap();
    (51..=100).for_each(|index| append(&storage, index));
    drop(storage);
    fs::write(&mark, old_mark).unwrap();
    let log = write_ahead_log(dir.path());
    let good = fs::read(&log).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 10;
    bad[last] ^= 1;
    fs::write(&log, bad).unwrap();
    assert!(matches!(open(dir.path()), Err(StorageError::Corrupt { .. })), "a bit in the last write");
    fs::write(&log, &good[..good.len() * 2 / 5]).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("of the 100 records"), "{error}");
    fs::write(&log, good).unwrap();
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 100));
}
