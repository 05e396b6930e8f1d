//! Damaged files: the log either has all acknowledged entries, or reports the damage.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogStorage, Membership, NodeId, Payload, SnapshotMeta,
    StorageError, Term,
};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{
    damage,
    log_storage::workload::{Content, Filled, batches, one_more, sound},
};
use tempfile::{TempDir, tempdir};

fn open_tiny(dir: &Path) -> Result<WalLogStorage, StorageError> {
    WalLogStorage::open_with_segment_bytes(dir, NodeId(1), SEGMENT_BYTES)
}

fn open(dir: &Path) -> Result<WalLogStorage, StorageError> {
    sound(open_tiny(dir)?)
}

/// Writes a log of several segments.
fn filled(dir: &Path) -> Filled {
    let storage = open(dir).unwrap();
    batches().into_iter().for_each(|batch| storage.write(batch).unwrap());
    for _ in 0..30 {
        storage.write(one_more(&Content::of(&storage))).unwrap();
    }
    Filled::of(&storage)
}

#[test]
fn damage_to_any_byte_of_any_file_is_noticed() {
    let place = tempdir().unwrap();
    let dir = place.path().join("log");
    let filled = filled(&dir);
    let tally = damage::try_all(&dir, 1, |_| 100, |damage, place| filled.outcome(damage, place, open));
    println!("{tally:?}");
    assert!(tally.intact > 200 && tally.refused > 150, "{tally:?}");
}

fn segment(dir: &TempDir, sequence: u64) -> PathBuf {
    dir.path().join(format!("segments/{sequence:016}.wal"))
}

fn append(storage: &WalLogStorage, index: u64) {
    let mut entry = Entry::command(LogId::new(1, index), vec![b'x'; 330]);
    if index % 10 == 5 {
        entry.payload = Payload::Membership(Membership::of_voters([index]));
    }
    storage.write(LogBatch { entries: vec![entry], ..LogBatch::default() }).unwrap();
}

/// A log of a hundred entries in tiny segments, and a copy of the mark after entry `mark_after`.
fn log_of_hundred_entries(mark_after: u64) -> (TempDir, Vec<u8>) {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    let mut mark = Vec::new();
    let hard_state = Some(HardState { term: Term(1), ..HardState::default() });
    storage.write(LogBatch { hard_state, ..LogBatch::default() }).unwrap();
    for index in 1..=100 {
        append(&storage, index);
        if index == mark_after {
            mark = fs::read(dir.path().join("MARK")).unwrap();
        }
    }
    drop(storage);
    (dir, mark)
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Offset of the last byte that is not 0, in the last frame of the file.
fn end_of(file: &Path) -> usize {
    fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).unwrap()
}

/// The newest segment that contains frames.
fn newest(dir: &TempDir) -> PathBuf {
    let segments = (1..).map(|sequence| segment(dir, sequence)).take_while(|path| path.exists());
    segments.filter(|path| end_of(path) > 512).last().unwrap()
}

/// In the segment both cases look alike. They differ in the mark, which is written before a write is acknowledged.
#[test]
fn torn_write_is_removed_and_damaged_acknowledged_write_is_refused() {
    // In the record, and in the head.
    for zeros in [300, 410] {
        let (dir, mark) = log_of_hundred_entries(99);
        let file = newest(&dir);
        let mut torn = fs::read(&file).unwrap();
        let end = end_of(&file);
        torn[end - zeros..].fill(0);
        fs::write(&file, &torn).unwrap();
        for _ in 0..2 {
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(error, StorageError::Corrupt { .. }), "{error:?}");
            let what = if zeros == 300 {
                "the record of log index 100 at byte"
            } else {
                "frame 101 is damaged or missing"
            };
            assert!(
                error.to_string().contains(what) && error.to_string().contains(file.to_str().unwrap()),
                "{error}"
            );
        }
        // With the mark from before the last write it is a torn write: the process was killed during the write. A power cut
        // that loses the last half minute of marks looks the same, which is a documented limit.
        fs::write(dir.path().join("MARK"), &mark).unwrap();
        let storage = open(dir.path()).unwrap();
        assert_eq!(storage.load().unwrap().last(), LogId::new(1, 99), "only the last write is gone");
        append(&storage, 100);
        append(&storage, 101);
        drop(storage);
        assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 101));
    }
}

/// A removed torn write does not count as damage later, also if the next write goes to another segment because it is longer.
#[test]
fn torn_write_before_the_end_of_a_segment_stays_removed() {
    for len in [500, 100_000] {
        let (dir, mark) = log_of_hundred_entries(99);
        let file = newest(&dir);
        flip(&file, end_of(&file));
        fs::write(dir.path().join("MARK"), mark).unwrap();
        let storage = open(dir.path()).unwrap();
        let entries = vec![Entry::command(LogId::new(1, 100), vec![b'y'; len])];
        storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
        let before = Content::of(&storage);
        drop(storage);
        assert_eq!(Content::of(&open(dir.path()).unwrap()), before);
    }
}

/// Independently of the mark, a later frame shows that an earlier one was acknowledged.
#[test]
fn damage_before_later_frames_is_noticed_with_an_old_mark() {
    let (dir, mark) = log_of_hundred_entries(50);
    fs::write(dir.path().join("MARK"), mark).unwrap();
    for sequence in 9..=13 {
        let file = segment(&dir, sequence);
        let good = fs::read(&file).unwrap();
        for at in (512..end_of(&file)).step_by(97) {
            flip(&file, at);
            match open(dir.path()) {
                Ok(_) => panic!("byte {at} of segment {sequence}"),
                Err(error) => assert!(error.to_string().contains(file.to_str().unwrap()), "{error}"),
            }
            fs::write(&file, &good).unwrap();
        }
    }
    // A segment of zeros looks unused, but the next segment contains frames.
    let file = segment(&dir, 12);
    let mut bytes = fs::read(&file).unwrap();
    bytes[512..].fill(0);
    fs::write(&file, bytes).unwrap();
    assert!(open(dir.path()).is_err());
}

/// Damaged heads, records, sectors or segments that only appended entries: the entries before them are kept, and the log can
/// be used further after it is truncated there.
#[test]
fn lost_entries_are_reported_and_can_be_replaced() {
    type Fault = fn(&TempDir);
    let faults: [(u64, Fault); 4] = [
        (41, |dir| flip(&segment(dir, 6), 700)),
        (36, |dir| {
            let mut bytes = fs::read(segment(dir, 6)).unwrap();
            bytes[512..1024].fill(0);
            fs::write(segment(dir, 6), bytes).unwrap();
        }),
        (36, |dir| fs::remove_file(segment(dir, 6)).unwrap()),
        (1, |dir| fs::remove_file(segment(dir, 1)).unwrap()),
    ];
    for (case, (_, inject)) in faults.into_iter().enumerate() {
        let (dir, _) = log_of_hundred_entries(0);
        inject(&dir);
        let storage = open_tiny(dir.path()).unwrap();
        let state = storage.load().unwrap();
        let damage = state.damage.clone().unwrap_or_else(|| panic!("case {case}"));
        println!("{case}: {:?} {damage:?}", state.last());
        assert_eq!(damage.last, LogId::new(1, 100), "case {case}");
        assert_eq!(state.hard_state.term, Term(1), "case {case}");
        assert!(damage.memberships.contains(&Membership::of_voters([95])), "case {case}");
        let good = state.last();
        assert!(good.index < LogIndex(50), "case {case}");
        assert_eq!(storage.load().unwrap(), state, "loaded again, case {case}");
        let read = storage.read(LogIndex(0), good.index, u64::MAX);
        assert!(good.index == LogIndex(0) || read.unwrap().len() as u64 == good.index.0, "case {case}");
        let lost = storage.read(good.index, LogIndex(100), u64::MAX);
        assert!(matches!(lost, Err(StorageError::Corrupt { .. } | StorageError::Missing { .. })), "{lost:?}");

        // Repairs the log as an engine does.
        let hard_state =
            Some(HardState { term: Term(2), lost_through: Some(damage.last), ..HardState::default() });
        let entries = vec![Entry::command(LogId::new(1, good.index.0 + 1), "again")];
        let truncate_after = Some(good.index);
        storage.write(LogBatch { hard_state, truncate_after, entries, purge: None }).unwrap();
        let before = Content::of(&storage);
        drop(storage);
        let storage = open(dir.path()).unwrap();
        assert_eq!(Content::of(&storage), before, "case {case}");
        assert_eq!(before.last().index, good.index.next());
    }
}

/// A lost frame may have contained a vote or a purge, which cannot be guessed.
#[test]
fn log_with_a_lost_vote_is_refused() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    append(&storage, 1);
    let begin = (end_of(&segment(&dir, 1)) + 1).next_multiple_of(8);
    vote(&storage, 3);
    append(&storage, 2);
    drop(storage);
    flip(&segment(&dir, 1), begin + 20);
    let error = open_tiny(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("byte {begin} of")) && error.contains("frame 2 is damaged"), "{error}");
}

/// If a vote is lost, but a later segment contains the whole state, the entries before that segment are unknown. Their
/// configurations are still reported, and no file is removed: an engine may refuse to truncate the log, and an operator may
/// repair it.
#[test]
fn configurations_and_files_before_lost_state_are_kept() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    (1..=30).for_each(|index| append(&storage, index));
    let file = newest(&dir);
    let begin = (end_of(&file) + 1).next_multiple_of(8);
    let hard_state = vote(&storage, 1);
    (31..=60).for_each(|index| append(&storage, index));
    drop(storage);
    let names = || fs::read_dir(dir.path().join("segments")).unwrap().count();
    let before = names();
    flip(&file, begin + 20);

    for round in 0..2 {
        let storage = open_tiny(dir.path()).unwrap();
        let state = storage.load().unwrap();
        let damage = state.damage.clone().unwrap();
        assert_eq!((state.last(), damage.last), (LogId::ZERO, LogId::new(1, 60)), "round {round}");
        assert_eq!((state.memberships.as_slice(), &state.hard_state), (&[][..], &hard_state));
        let expected = [5, 15, 25, 35, 45, 55].map(|id| Membership::of_voters([id]));
        assert_eq!(damage.memberships, expected, "round {round}");
        assert_eq!(names(), before, "round {round}");
        assert!(segment(&dir, 1).exists());
    }

    // Repairs the log as an engine does.
    let storage = open_tiny(dir.path()).unwrap();
    let entries = vec![Entry::command(LogId::new(1, 1), "again")];
    storage.write(LogBatch { truncate_after: Some(LogIndex(0)), entries, ..LogBatch::default() }).unwrap();
    let repaired = Content::of(&storage);
    drop(storage);
    assert_eq!(Content::of(&open(dir.path()).unwrap()), repaired);
}

/// The last write was not acknowledged, but missing writes before it may have been.
#[test]
fn torn_write_does_not_hide_missing_writes_before_it() {
    let (dir, mark) = log_of_hundred_entries(97);
    let file = newest(&dir);
    let (end, each) = (end_of(&file), 416);
    assert!(end > 512 + 3 * each, "three frames are in the last segment");
    flip(&file, end);
    fs::write(dir.path().join("MARK"), &mark).unwrap();
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 99));

    let (dir, mark) = log_of_hundred_entries(97);
    let file = newest(&dir);
    flip(&file, end);
    flip(&file, end - 2 * each + 20);
    fs::write(dir.path().join("MARK"), mark).unwrap();
    let damage = open_tiny(dir.path()).unwrap().load().unwrap().damage.unwrap();
    assert_eq!(damage.last, LogId::new(1, 100));
    assert!(damage.why.contains("frame 100 is damaged"), "{damage:?}");
}

fn vote(storage: &WalLogStorage, term: u64) -> HardState {
    let hard_state = HardState { term: Term(term), voted_for: Some(NodeId(2)), ..HardState::default() };
    let batch = LogBatch { hard_state: Some(hard_state.clone()), ..LogBatch::default() };
    storage.write(batch).unwrap();
    hard_state
}

fn purge(storage: &WalLogStorage, last: LogId) -> Result<(), StorageError> {
    let purge = Some(SnapshotMeta { last, membership: Membership::of_voters([1]) });
    storage.write(LogBatch { purge, ..LogBatch::default() })
}

fn wait_until_gone(path: &Path) {
    let begin = Instant::now();
    while path.exists() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{} is not reclaimed", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A torn write at the start of a segment is removed. Then a shorter write fits in the segment before, and is damaged later.
/// The remains of the torn write must not count as that write.
#[test]
fn removed_torn_write_does_not_replace_a_lost_one() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    vote(&storage, 1);
    let (mut last, mut mark) = (0, Vec::new());
    while !segment(&dir, 2).exists() || end_of(&segment(&dir, 2)) < 512 {
        mark = fs::read(dir.path().join("MARK")).unwrap();
        last += 1;
        let entries = vec![Entry::command(LogId::new(1, last), vec![b'x'; 800])];
        storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
    }
    drop(storage);
    flip(&segment(&dir, 2), end_of(&segment(&dir, 2)));
    let _ = fs::remove_file(segment(&dir, 3));
    fs::write(dir.path().join("MARK"), mark).unwrap();

    let storage = open(dir.path()).unwrap();
    assert_eq!(storage.load().unwrap().last(), LogId::new(1, last - 1));
    let begin = (end_of(&segment(&dir, 1)) + 1).next_multiple_of(8);
    let voted = vote(&storage, 2);
    assert!(end_of(&segment(&dir, 1)) > begin);
    drop(storage);
    assert_eq!(open(dir.path()).unwrap().load().unwrap().hard_state, voted);
    flip(&segment(&dir, 1), begin + 20);
    let error = open_tiny(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::Corrupt { .. }), "{error}");
}

/// A log with a vote and three frames in its last segment. Returns the number of that segment, and the last index.
fn log_with_three_frames_in_last_segment() -> (TempDir, u64, u64) {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    vote(&storage, 1);
    for last in 1.. {
        append(&storage, last);
        let number = (1..).take_while(|number| segment(&dir, *number) != newest(&dir)).count() as u64 + 1;
        if number > 2 && end_of(&newest(&dir)) > 512 + 3 * 416 {
            return (dir, number, last);
        }
    }
    unreachable!("some segment has three frames")
}

/// The first head of a segment contains the whole state. If it is damaged, the segment before is needed for the state.
#[test]
fn segment_with_the_only_copy_of_the_state_is_kept() {
    let (dir, number, _) = log_with_three_frames_in_last_segment();
    flip(&segment(&dir, number), 512 + 20);
    let storage = open_tiny(dir.path()).unwrap();
    let state = storage.load().unwrap();
    let damage = state.damage.clone().unwrap();
    let hard_state = Some(HardState { lost_through: Some(damage.last), ..state.hard_state.clone() });
    let truncate_after = Some(state.last().index);
    storage.write(LogBatch { hard_state, truncate_after, ..LogBatch::default() }).unwrap();
    let last = state.last().index.next();
    let entries = vec![Entry::command(LogId { index: last, ..state.last() }, "again")];
    storage.write(LogBatch { entries, ..LogBatch::default() }).unwrap();
    // All entries of the older segments are purged, so all of them but the last are reclaimed.
    purge(&storage, LogId { index: last, ..state.last() }).unwrap();
    wait_until_gone(&segment(&dir, number - 2));
    let content = Content::of(&storage);
    drop(storage);
    for _ in 0..2 {
        let storage = open(dir.path()).unwrap();
        assert_eq!(Content::of(&storage), content);
        assert!(segment(&dir, number - 1).exists());
    }
}

/// Like the test above, but no entry is lost: all were purged, and the process ended before the segment was reclaimed.
#[test]
fn log_that_opened_once_opens_again() {
    let (dir, number, last) = log_with_three_frames_in_last_segment();
    let before = fs::read(segment(&dir, number - 1)).unwrap();
    let storage = open(dir.path()).unwrap();
    purge(&storage, LogId::new(1, last)).unwrap();
    drop(storage);
    fs::write(segment(&dir, number - 1), before).unwrap();
    flip(&segment(&dir, number), 512 + 20);
    for _ in 0..2 {
        let storage = open(dir.path()).unwrap();
        assert_eq!(storage.load().unwrap().hard_state.term, Term(1));
        assert!(storage.load().is_ok(), "loaded again");
    }
}

/// After a snapshot of another node was installed, the log continues far beyond its end. Entries before that may be missing.
#[test]
fn entries_lost_before_a_far_purge_are_ignored() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    vote(&storage, 1);
    append(&storage, 1);
    let begin = (end_of(&segment(&dir, 1)) + 1).next_multiple_of(8);
    append(&storage, 2);
    purge(&storage, LogId::new(1, 1_000_000)).unwrap();
    append(&storage, 1_000_001);
    let content = Content::of(&storage);
    drop(storage);
    flip(&segment(&dir, 1), begin + 20);
    assert_eq!(Content::of(&open(dir.path()).unwrap()), content);
}

/// A log that could not be opened again is never written.
#[test]
fn purge_with_a_wrong_term_is_misuse() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    (1..=4).for_each(|index| append(&storage, index));
    let refused = purge(&storage, LogId::new(7, 3));
    assert!(matches!(refused, Err(StorageError::Misuse(_))), "{refused:?}");
    purge(&storage, LogId::new(7, 4)).unwrap();
    drop(storage);
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(7, 4));
}

/// A power cut can bring back any purged segments after they were removed.
#[test]
fn purged_segments_that_come_back_are_ignored() {
    for back in [vec![1], vec![2, 5], vec![1, 2, 3, 4, 5, 6]] {
        let (dir, _) = log_of_hundred_entries(0);
        let kept: Vec<_> =
            back.iter().map(|n| (segment(&dir, *n), fs::read(segment(&dir, *n)).unwrap())).collect();
        let storage = open(dir.path()).unwrap();
        purge(&storage, LogId::new(1, 80)).unwrap();
        append(&storage, 101);
        let content = Content::of(&storage);
        drop(storage);
        kept.into_iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
        let storage = open(dir.path()).unwrap();
        assert_eq!(Content::of(&storage), content, "{back:?}");
        append(&storage, 102);
        wait_until_gone(&segment(&dir, back[0]));
        drop(storage);
        assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 102));
    }
}

const SEGMENT_BYTES: u64 = 4096;
