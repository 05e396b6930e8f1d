//! A disk that is full to the last byte: a small one in memory, mounted for the test, which takes root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use consensus_core::{Entry, LogBatch, LogId, LogIndex, LogStorage, NodeId, SnapshotMeta, StorageError};
use consensus_storage_rocksdb::RocksLogStorage;

/// A mounted disk; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where nothing can be mounted.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={DISK_MIB}m");
        let output =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(dir.path()).output();
        match output {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(output) => {
                println!(
                    "SKIPPED, no disk can be mounted: {}",
                    String::from_utf8_lossy(&output.stderr).trim()
                );
                None
            }
            Err(error) => {
                println!("SKIPPED, no disk can be mounted: {error}");
                None
            }
        }
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    /// Takes all the room that is left, to the last byte.
    fn fill(&self) {
        let (block, path) = (vec![0; 4096], self.0.path().join("ballast"));
        let mut ballast = fs::File::create(path).unwrap();
        while std::io::Write::write_all(&mut ballast, &block).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        assert!(Command::new("umount").arg(self.0.path()).status().unwrap().success());
    }
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
    let Some(disk) = SmallDisk::mount() else { return };
    let storage = open(&disk.log()).unwrap();
    append(&storage, 1).unwrap();
    disk.fill();
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
    disk.make_room();
    let error = append(&storage, acknowledged + 1).unwrap_err();
    assert!(matches!(error, StorageError::Failed(_)), "{error:?}");
    drop(storage);

    // Opened while it is full, it is refused or whole; and whole once there is room.
    disk.fill();
    for full in [true, true, false] {
        if !full {
            disk.make_room();
        }
        let found = match open(&disk.log()) {
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
    let storage = open(&disk.log()).unwrap();
    let last = storage.load().unwrap().last().index;
    let entries = storage.read(LogIndex(0), last, u64::MAX).unwrap();
    assert_eq!(entries.len() as u64, last.0);
    append(&storage, last.0 + 1).unwrap();
}

#[test]
fn a_reserve_keeps_the_disk_from_filling_up() {
    let Some(disk) = SmallDisk::mount() else { return };
    let storage = open(&disk.log()).unwrap().with_reserve(RESERVE_MIB << 20);
    let (acknowledged, error) = append_until_full(&storage);
    assert!(matches!(error, StorageError::NoRoom { .. }), "{error:?}");
    assert!(acknowledged > 10, "{acknowledged}");
    // Not final: what is small and makes room is taken, and the log opens as it is.
    let purge = SnapshotMeta { last: LogId::new(1, acknowledged), ..SnapshotMeta::default() };
    storage.write(LogBatch { purge: Some(purge), ..LogBatch::default() }).unwrap();
    drop(storage);
    assert_eq!(open(&disk.log()).unwrap().load().unwrap().last(), LogId::new(1, acknowledged));
}

const DISK_MIB: u64 = 24;
const RESERVE_MIB: u64 = 12;
