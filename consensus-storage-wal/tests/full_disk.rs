//! A completely full disk: a small file system in memory that the test mounts, which needs root.

use std::path::Path;

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, SnapshotMeta,
    StorageError, Term,
};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::SmallDisk;
use tempfile::TempDir;

/// `None` if the test may not mount a file system.
fn small_disk(dir: &TempDir) -> Option<SmallDisk> {
    SmallDisk::mount(dir.path(), DISK_MIB).map_err(|why| println!("SKIPPED, {why}")).ok()
}

fn open(dir: &Path) -> WalLogStorage {
    WalLogStorage::open_with_segment_bytes(dir, NodeId(1), 1 << 20).unwrap()
}

fn append(storage: &WalLogStorage, index: u64) -> Result<(), StorageError> {
    let entries = vec![Entry::command(LogId::new(1, index), vec![index as u8; 10_000])];
    storage.write(LogBatch { entries, ..LogBatch::default() })
}

fn append_until_refused(storage: &WalLogStorage, first: u64) -> u64 {
    for index in first.. {
        match append(storage, index) {
            Ok(()) => {}
            Err(StorageError::NoRoom { batch, .. }) => {
                assert_eq!(batch.entries[0].id.index, LogIndex(index), "the refused batch is returned");
                return index - 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("every disk becomes full");
}

fn purge(storage: &WalLogStorage, index: u64) {
    let purge = Some(SnapshotMeta { last: LogId::new(1, index), membership: Membership::of_voters([1]) });
    storage.write(LogBatch { purge, ..LogBatch::default() }).unwrap();
}

fn vote(term: u64) -> LogBatch {
    let hard_state = Some(HardState { term: Term(term), ..HardState::default() });
    LogBatch { hard_state, ..LogBatch::default() }
}

/// Opens a log, and fills the disk and then the log. Returns the log and its last entry.
fn filled(disk: &SmallDisk, log: &Path) -> (WalLogStorage, u64) {
    let storage = open(log);
    append(&storage, 1).unwrap();
    disk.fill().unwrap();
    let last = append_until_refused(&storage, 2);
    (storage, last)
}

/// Holds even without a reserve, because the space of a segment is allocated before anything is written to it.
#[test]
fn write_to_full_disk_is_refused_and_not_final() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let (storage, last) = filled(&disk, &log);
    // Small batches without entries still fit, and are not refused.
    (2..200).for_each(|term| storage.write(vote(term)).unwrap());
    assert_eq!(append_until_refused(&storage, last + 1), last);
    drop(storage);

    let storage = open(&log);
    let state = storage.load().unwrap();
    assert_eq!((state.last(), state.hard_state.term), (LogId::new(1, last), Term(199)));
    assert_eq!(storage.read(LogIndex(0), LogIndex(last), u64::MAX).unwrap().len() as u64, last);
    disk.make_room().unwrap();
    append(&storage, last + 1).unwrap();
    let more = append_until_refused(&storage, last + 2);
    assert!(more > last + 500, "{last} {more}");
    // A purge frees segments, which are reused.
    purge(&storage, more - 50);
    let more = append_until_refused(&storage, more + 1);
    drop(storage);
    assert_eq!(open(&log).load().unwrap().last(), LogId::new(1, more));
}

/// The space that is kept for votes and purges ends as well: they are refused then, and can be written when there is room.
#[test]
fn vote_without_room_is_refused_and_not_final() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let (storage, last) = filled(&disk, &log);
    let refused = (2..100_000).find(|term| match storage.write(vote(*term)) {
        Ok(()) => false,
        Err(StorageError::NoRoom { batch: returned, .. }) => {
            assert_eq!(*returned, vote(*term));
            true
        }
        Err(error) => panic!("{error}"),
    });
    let refused = refused.expect("the space that is kept has an end");
    drop(storage);

    let storage = open(&log);
    assert_eq!(storage.load().unwrap().hard_state.term, Term(refused - 1));
    assert!(matches!(storage.write(vote(refused)), Err(StorageError::NoRoom { .. })));
    disk.make_room().unwrap();
    storage.write(vote(refused)).unwrap();
    append(&storage, last + 1).unwrap();
    drop(storage);
    let state = open(&log).load().unwrap();
    assert_eq!((state.last(), state.hard_state.term), (LogId::new(1, last + 1), Term(refused)));
}

#[test]
fn batch_too_long_for_the_disk_is_refused_and_shorter_ones_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let storage = open(&log);
    for first in [1, 2] {
        let entries = vec![Entry::command(LogId::new(1, first), vec![1; (DISK_MIB as usize) << 20])];
        let refused = storage.write(LogBatch { entries, ..LogBatch::default() });
        assert!(matches!(refused, Err(StorageError::NoRoom { .. })), "{refused:?}");
        append(&storage, first).unwrap();
    }
    drop(storage);
    assert_eq!(open(&log).load().unwrap().last(), LogId::new(1, 2));
}

#[test]
fn commands_that_need_the_reserve_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = small_disk(&dir) else { return };
    let log = disk.path().join("log");
    let storage = open(&log).with_reserve(RESERVE_MIB << 20);
    let last = append_until_refused(&storage, 1);
    assert!(last > 800, "{last}");
    // The refusal is not final: votes and purges are written, and the log opens again.
    storage.write(vote(9)).unwrap();
    // Any number of votes may use the reserve, because elections go on while there is no room for entries.
    (10..VOTES).for_each(|term| storage.write(vote(term)).unwrap());
    purge(&storage, last);
    drop(storage);
    let state = open(&log).load().unwrap();
    assert_eq!((state.last(), state.hard_state.term), (LogId::new(1, last), Term(VOTES - 1)));
}

/// A leader that is elected while the disk is full must commit the first entry of its term in order to serve reads.
#[test]
fn entries_without_commands_may_use_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    // Larger than any disk.
    let storage = open(dir.path()).with_reserve(1 << 60);
    let write = |index, payload| {
        let entries = vec![Entry { id: LogId::new(1, index), payload }];
        storage.write(LogBatch { entries, ..LogBatch::default() })
    };
    for index in 1..=1000 {
        write(index, Payload::Blank).unwrap();
        let refused = write(index + 1, Payload::Command("c".into()));
        assert!(matches!(refused, Err(StorageError::NoRoom { .. })), "{refused:?}");
    }
    drop(storage);
    assert_eq!(open(dir.path()).load().unwrap().last(), LogId::new(1, 1000));
}

const DISK_MIB: u64 = 24;
const RESERVE_MIB: u64 = 12;
/// More than fit in the reserved part of a segment.
const VOTES: u64 = 5000;
