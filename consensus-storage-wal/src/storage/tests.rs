//! Tests with a failing disk.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use consensus_core::{Entry, LogBatch, LogId, LogIndex, LogStorage, NodeId, StorageError};
use consensus_testkit::log_storage::run_failing_disk_suite;
use tempfile::TempDir;

use super::WalLogStorage;
use crate::segment::bad_blocks::BAD;

#[test]
fn storage_on_failing_disk_passes_the_suite() {
    run_failing_disk_suite(
        || (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false))),
        |(dir, fail_writes)| {
            let storage = WalLogStorage::open(dir.path(), NodeId(1)).unwrap();
            storage.writer().fail_writes = fail_writes.clone();
            storage
        },
        |(_, fail_writes), fail| fail_writes.store(fail, Ordering::Relaxed),
    );
}

/// Opens the log on a disk that cannot read the blocks `bad` (sequence number of the segment, offset).
fn open(dir: &TempDir, bad: &[(u64, u64)]) -> Result<WalLogStorage, StorageError> {
    BAD.set(bad.to_vec());
    let opened = WalLogStorage::open_with_segment_bytes(dir.path(), NodeId(1), 64 << 10);
    BAD.take();
    opened
}

fn append(storage: &WalLogStorage, index: u64) {
    let entries = vec![Entry::command(LogId::new(1, index), vec![b'x'; 1000])];
    storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
}

/// Entries in unreadable blocks are reported as damaged; the entries before them are kept.
#[test]
fn entries_in_unreadable_blocks_are_reported_as_damage() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(&dir, &[]).unwrap();
    (1..=100).for_each(|index| append(&storage, index));
    drop(storage);
    assert_eq!(open(&dir, &[]).unwrap().load().unwrap().last(), LogId::new(1, 100));
    for block in [(2, 0), (3, 4096), (3, 8192)] {
        let state = open(&dir, &[block]).unwrap().load().unwrap();
        let damage = state.damage.clone().unwrap();
        assert_eq!(damage.last, LogId::new(1, 100));
        let what = format!("the disk cannot read the block at byte {} of", block.1);
        assert!(
            damage.why.contains(&what) && damage.why.contains(&format!("{:016}.wal", block.0)),
            "{damage:?}"
        );
        assert!(state.last() < LogId::new(1, 30) && state.last() > LogId::ZERO, "{block:?} {state:?}");
    }
    // In the middle of a record.
    let storage = open(&dir, &[]).unwrap();
    let entries = vec![Entry::command(LogId::new(1, 101), vec![b'x'; 9000])];
    storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
    append(&storage, 102);
    let (place, sequence) = (
        storage.index().runs(LogIndex(100), LogIndex(101), |_| true),
        storage.writer().tail.segment.sequence,
    );
    let inside = u64::from(place[0].locations[0].at).next_multiple_of(4096);
    drop((storage, place));
    let state = open(&dir, &[(sequence, inside)]).unwrap().load().unwrap();
    let why = state.damage.clone().unwrap().why;
    assert_eq!(state.last(), LogId::new(1, 100));
    assert!(why.starts_with(&format!("the disk cannot read the block at byte {inside} of")), "{why}");
}

/// It is unknown whether an unreadable block at the end contained entries, and the next entries would be written there.
#[test]
fn unreadable_block_at_the_end_of_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(&dir, &[]).unwrap();
    (1..=12).for_each(|index| append(&storage, index));
    while !storage.allocator.is_ready() {
        std::thread::yield_now();
    }
    let (end, sequence) = {
        let tail = &storage.writer().tail;
        (tail.at - tail.at % 4096, tail.segment.sequence)
    };
    drop(storage);
    for block in [(sequence, end), (sequence, end + 4096), (sequence + 1, 0)] {
        let error = open(&dir, &[block]).unwrap_err();
        assert!(matches!(error, StorageError::Io { .. }), "{error}");
        let place = format!("reading the block at byte {} of", block.1);
        assert!(error.to_string().contains(&place), "{error}");
    }
    assert_eq!(open(&dir, &[]).unwrap().load().unwrap().last(), LogId::new(1, 12));
}
