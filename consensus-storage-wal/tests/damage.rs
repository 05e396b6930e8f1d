//! Damaged files: all that was acknowledged is there, or the log is refused.

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

/// A log of some segments, without the sync of an orderly end.
fn filled(dir: &Path) -> Filled {
    let storage = open(dir).unwrap();
    batches().into_iter().for_each(|batch| storage.write(batch).unwrap());
    for _ in 0..30 {
        storage.write(one_more(&Content::of(&storage))).unwrap();
    }
    Filled::of(&storage)
}

#[test]
fn no_damage_to_any_file_goes_unnoticed() {
    let place = tempdir().unwrap();
    let dir = place.path().join("log");
    let filled = filled(&dir);
    let tally = damage::try_all(&dir, 1, |_| 100, |damage, place| filled.outcome(damage, place, open));
    println!("{tally:?}");
    assert!(tally.whole > 200 && tally.refused > 150, "{tally:?}");
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

/// A log of a hundred entries in tiny segments, and a copy of its mark after one of them.
fn hundred(mark_after: u64) -> (TempDir, Vec<u8>) {
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

/// Where the last record of the log ends: the last byte that is not 0.
fn end_of(file: &Path) -> usize {
    fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).unwrap()
}

/// The newest segment with frames in it.
fn newest(dir: &TempDir) -> PathBuf {
    let segments = (1..).map(|sequence| segment(dir, sequence)).take_while(|path| path.exists());
    segments.filter(|path| end_of(path) > 512).last().unwrap()
}

/// The two look alike in the log. They differ in the mark, which is written before anybody is told.
#[test]
fn a_torn_write_is_cut_and_an_acknowledged_one_is_missed() {
    // In its record, and in its head.
    for zeros in [300, 410] {
        let (dir, mark) = hundred(99);
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
                "record 101 is damaged or missing"
            };
            assert!(
                error.to_string().contains(what) && error.to_string().contains(file.to_str().unwrap()),
                "{error}"
            );
        }
        // The boundary. With the mark as it was before the last write - the process was killed in the middle of that, or a
        // power cut took the last half minute of marks - it is a torn write.
        fs::write(dir.path().join("MARK"), &mark).unwrap();
        let storage = open(dir.path()).unwrap();
        assert_eq!(storage.load().unwrap().last(), LogId::new(1, 99), "only the last write is gone");
        append(&storage, 100);
        append(&storage, 101);
        drop(storage);
        assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 101));
    }
}

/// What was torn, and is followed by another segment as the next write is longer, is not taken for damage later.
#[test]
fn a_torn_write_before_the_end_of_a_segment_stays_cut() {
    for len in [500, 100_000] {
        let (dir, mark) = hundred(99);
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

/// Without the mark: a later write shows that an earlier one was acknowledged.
#[test]
fn an_old_mark_does_not_hide_damage() {
    let (dir, mark) = hundred(50);
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
    // A segment of zeros: as if nothing had been written there, but for the next one.
    let file = segment(&dir, 12);
    let mut bytes = fs::read(&file).unwrap();
    bytes[512..].fill(0);
    fs::write(&file, bytes).unwrap();
    assert!(open(dir.path()).is_err());
}

/// Heads and records, a sector, a segment: as long as they only appended, what is before them can be used, and a log that
/// is cut there goes on.
#[test]
fn entries_that_are_lost_are_told_and_can_be_replaced() {
    type Harm = fn(&TempDir);
    let harms: [(u64, Harm); 4] = [
        (41, |dir| flip(&segment(dir, 6), 700)),
        (36, |dir| {
            let mut bytes = fs::read(segment(dir, 6)).unwrap();
            bytes[512..1024].fill(0);
            fs::write(segment(dir, 6), bytes).unwrap();
        }),
        (36, |dir| fs::remove_file(segment(dir, 6)).unwrap()),
        (1, |dir| fs::remove_file(segment(dir, 1)).unwrap()),
    ];
    for (case, (_, harm)) in harms.into_iter().enumerate() {
        let (dir, _) = hundred(0);
        harm(&dir);
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

        // As an engine repairs it.
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

/// A vote or a purge that may be among what is lost is not guessed.
#[test]
fn a_lost_vote_is_refused() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    append(&storage, 1);
    let begin = (end_of(&segment(&dir, 1)) + 1).next_multiple_of(8);
    vote(&storage, 3);
    append(&storage, 2);
    drop(storage);
    flip(&segment(&dir, 1), begin + 20);
    let error = open_tiny(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("byte {begin} of")) && error.contains("record 2 is damaged"), "{error}");
}

/// Where a segment says everything but what the entries before it are, configurations among those count still, and nothing
/// is put away: an engine may refuse to cut the log, and somebody may mend it.
#[test]
fn what_is_before_lost_state_is_kept_and_counts() {
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

    // As an engine repairs it.
    let storage = open_tiny(dir.path()).unwrap();
    let entries = vec![Entry::command(LogId::new(1, 1), "again")];
    storage.write(LogBatch { truncate_after: Some(LogIndex(0)), entries, ..LogBatch::default() }).unwrap();
    let repaired = Content::of(&storage);
    drop(storage);
    assert_eq!(Content::of(&open(dir.path()).unwrap()), repaired);
}

/// That nobody was told of the last write does not mean that nobody was told of those that are missing before it.
#[test]
fn a_torn_write_does_not_hide_those_that_are_missing_before_it() {
    let (dir, mark) = hundred(97);
    let file = newest(&dir);
    let (end, each) = (end_of(&file), 416);
    assert!(end > 512 + 3 * each, "three frames are in the last segment");
    flip(&file, end);
    fs::write(dir.path().join("MARK"), &mark).unwrap();
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(1, 99));

    let (dir, mark) = hundred(97);
    let file = newest(&dir);
    flip(&file, end);
    flip(&file, end - 2 * each + 20);
    fs::write(dir.path().join("MARK"), mark).unwrap();
    let damage = open_tiny(dir.path()).unwrap().load().unwrap().damage.unwrap();
    assert_eq!(damage.last, LogId::new(1, 100));
    assert!(damage.why.contains("record 100 is damaged"), "{damage:?}");
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
        assert!(begin.elapsed() < Duration::from_secs(30), "{} is not put away", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A torn write at the begin of a segment, cut; then a shorter one that has room in the segment before, and is damaged later: what
/// is left of the first must not be taken for it.
#[test]
fn a_torn_write_does_not_come_back_in_the_place_of_a_lost_one() {
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

/// A log with a vote and three frames in its last segment; the number of that, and the last entry.
fn three_in_the_last() -> (TempDir, u64, u64) {
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
    unreachable!("some segment has three")
}

/// The head of a segment's first frame says everything. Where it is damaged, the segment before is needed for that.
#[test]
fn the_only_copy_of_the_state_is_not_put_away() {
    let (dir, number, _) = three_in_the_last();
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
    // All that is in the segments before is purged, and they can go but for the last.
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

/// The same where nothing is lost: all was purged, and the process ended before the segment was put away.
#[test]
fn a_log_that_opened_opens_again() {
    let (dir, number, last) = three_in_the_last();
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

/// A snapshot from elsewhere makes the log go on far beyond its end; how many entries are missing before that does not matter.
#[test]
fn what_is_lost_before_a_far_purge_is_not_missed() {
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

/// What could not be opened is not written.
#[test]
fn a_purge_that_does_not_fit_the_log_is_misuse() {
    let dir = tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    (1..=4).for_each(|index| append(&storage, index));
    let refused = purge(&storage, LogId::new(7, 3));
    assert!(matches!(refused, Err(StorageError::Misuse(_))), "{refused:?}");
    purge(&storage, LogId::new(7, 4)).unwrap();
    drop(storage);
    assert_eq!(open(dir.path()).unwrap().load().unwrap().last(), LogId::new(7, 4));
}

/// Segments that a power cut brought back after they were put away do no harm, whichever they are.
#[test]
fn purged_segments_may_come_back() {
    for back in [vec![1], vec![2, 5], vec![1, 2, 3, 4, 5, 6]] {
        let (dir, _) = hundred(0);
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
