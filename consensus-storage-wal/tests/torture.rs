//! Random batches with disk faults in between: torn writes, power cuts that lose marks and bring back purged segments, and
//! damage after which the log is repaired and used further. The log is compared with one in memory.
//! `TORTURE_FROM` and `TORTURE_SEEDS` choose the seeds. A seed determines the operations, but not the moment at which the
//! allocator's thread has a segment ready, so a failure may need several runs of its seed to happen again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogStorage, Membership, NodeId, Payload, SnapshotMeta, StorageError,
    Term,
};
use consensus_storage_wal::WalLogStorage;
use consensus_testkit::{MemLogStorage, log_storage::workload::Content};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tempfile::{TempDir, tempdir};

/// Content of the files of a directory, by relative path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

fn open(dir: &Path) -> Result<WalLogStorage, StorageError> {
    WalLogStorage::open_with_segment_bytes(dir, NodeId(1), SEGMENT_BYTES)
}

fn files_of(dir: &Path) -> Files {
    let mut files = Files::new();
    for place in [dir.to_owned(), dir.join("segments")] {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                files.insert(path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn write_files(dir: &Path, files: &Files) {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir.join("segments")).unwrap();
    for (path, content) in files {
        fs::write(dir.join(path), content).unwrap();
    }
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

fn copy_of(log: &MemLogStorage) -> MemLogStorage {
    let copy = MemLogStorage::new();
    let state = log.load().unwrap();
    let entries = log.read(state.purged.last.index, state.last().index, u64::MAX).unwrap();
    let (hard_state, purge) = (Some(state.hard_state), Some(state.purged));
    copy.write(LogBatch { purge, entries, hard_state, truncate_after: None }).unwrap();
    copy
}

/// A random batch that is possible in the state of `log`.
fn random_batch(random: &mut SmallRng, log: &MemLogStorage, number: u64) -> LogBatch {
    let state = log.load().unwrap();
    let (purged, mut last, mut batch) = (state.purged.last, state.last(), LogBatch::default());
    let id = |index: u64| match index - purged.index.0 {
        0 => purged,
        n => state.entries[n as usize - 1].0,
    };
    let meta = |last| Some(SnapshotMeta { last, membership: Membership::of_voters([number]) });
    let mut first = purged;
    if random.random_bool(0.12) {
        first = id(random.random_range(purged.index.0..=last.index.0));
        batch.purge = meta(first);
    }
    if random.random_bool(0.15) {
        last = id(random.random_range(first.index.0..=last.index.0));
        batch.truncate_after = Some(last.index);
    }
    // A snapshot of another node.
    if random.random_bool(0.02) {
        last.index.0 += 7;
        batch.purge = meta(last);
        batch.truncate_after = Some(last.index);
    }
    let term = Term(last.term.0.max(1) + u64::from(random.random_bool(0.2)));
    for _ in 0..random.random_range(0..5) {
        let len = if random.random_bool(0.1) { 3000..9000 } else { 0..400 };
        let mut command = vec![0; random.random_range(len)];
        random.fill(&mut command[..]);
        last = LogId { term, index: last.index.next() };
        batch.entries.push(Entry::command(last, command));
    }
    if random.random_bool(0.2)
        && let Some(entry) = batch.entries.first_mut()
    {
        entry.payload = Payload::Membership(Membership::of_voters([number]));
    }
    if random.random_bool(0.25) {
        let voted_for = Some(NodeId(number));
        batch.hard_state = Some(HardState { term: Term(number), voted_for, ..HardState::default() });
    }
    batch
}

/// Results of damaging a log.
#[derive(Debug, Default)]
struct Tally {
    refused: usize,
    harmless: usize,
    repaired: usize,
}

struct Torture {
    random: SmallRng,
    place: TempDir,
    /// Expected content of the log.
    truth: MemLogStorage,
    /// Copies of the mark since the last crash.
    marks: Vec<Vec<u8>>,
}

impl Torture {
    fn dir(&self) -> PathBuf {
        self.place.path().join("log")
    }

    fn run(seed: u64, tally: &mut Tally) {
        let random = SmallRng::seed_from_u64(seed);
        let (place, truth, marks) = (tempdir().unwrap(), MemLogStorage::new(), Vec::new());
        let mut torture = Self { random, place, truth, marks };
        let mut log = open(&torture.dir()).unwrap();
        for number in 1..BATCHES {
            let crashes = torture.random.random_bool(0.5);
            let (mut before, old) = (Files::new(), copy_of(&torture.truth));
            if crashes {
                // Closes the log, so that no segment is being allocated.
                drop(log);
                before = files_of(&torture.dir());
                log = open(&torture.dir()).unwrap();
            }
            torture.marks.push(fs::read(torture.dir().join("MARK")).unwrap());
            let batch = random_batch(&mut torture.random, &torture.truth, number);
            torture.truth.write(batch.clone()).unwrap();
            log.write(batch).unwrap();
            if crashes {
                drop(log);
                log = torture.crash(&before, old, tally);
            }
        }
    }

    /// Injects one fault. The state before the last batch was `before` on disk and `old` in the model.
    fn crash(&mut self, before: &Files, old: MemLogStorage, tally: &mut Tally) -> WalLogStorage {
        let after = files_of(&self.dir());
        let what = self.random.random_range(0..4);
        match what {
            0 => write_files(&self.dir(), &self.torn(before, &after)),
            1 => write_files(&self.dir(), &self.power_cut(before, &after)),
            2 => (0..3).for_each(|_| self.damage(&after, tally)),
            _ => {}
        }
        self.marks.clear();
        let log = open(&self.dir()).unwrap();
        let found = Content::of(&log);
        // A torn write was never acknowledged.
        if what == 0 && found == Content::of(&old) {
            self.truth = old;
        }
        assert_eq!(found, Content::of(&self.truth));
        log
    }

    /// Files after a torn write: some sectors of the last write are missing.
    fn torn(&mut self, before: &Files, after: &Files) -> Files {
        let mut image = before.clone();
        let newest = before.keys().filter(|path| is_segment(path)).max().unwrap();
        // The write may have started a new segment.
        if let Some((next, content)) = after.iter().find(|(path, _)| is_segment(path) && *path > newest)
            && in_use(&before[Path::new("MARK")], newest)
        {
            let empty = content[..FIRST_FRAME].iter().copied().chain(vec![0; content.len() - FIRST_FRAME]);
            image.insert(next.clone(), empty.collect());
        }
        let share = [0.1, 0.5, 0.9][self.random.random_range(0..3)];
        for (path, content) in image.iter_mut().filter(|(path, _)| is_segment(path)) {
            let Some(written) = after.get(path) else { continue };
            content.resize(content.len().max(written.len()), 0);
            for (sector, new) in content.chunks_mut(SECTOR_BYTES).zip(written.chunks(SECTOR_BYTES)) {
                if self.random.random_bool(share) {
                    sector.copy_from_slice(new);
                }
            }
        }
        let mark = if self.random.random_bool(0.7) { self.marks.last().cloned() } else { None };
        image.insert("MARK".into(), mark.unwrap_or_else(|| self.any_mark()));
        image
    }

    /// Files after a power cut: the newest marks are lost, and some removed segments are back.
    fn power_cut(&mut self, before: &Files, after: &Files) -> Files {
        let mut image = after.clone();
        for (path, content) in before.iter().filter(|(path, _)| is_segment(path)) {
            if self.random.random_bool(0.5) {
                image.entry(path.clone()).or_insert_with(|| content.clone());
            }
        }
        image.insert("MARK".into(), self.any_mark());
        image
    }

    fn any_mark(&mut self) -> Vec<u8> {
        self.marks[self.random.random_range(0..self.marks.len())].clone()
    }

    /// Changes bits, sectors or more in a copy of the log: it is refused, or reports which entries are lost.
    fn damage(&mut self, files: &Files, tally: &mut Tally) {
        let place = tempdir().unwrap();
        let mut files = files.clone();
        for _ in 0..if self.random.random_bool(0.8) { 1 } else { 2 } {
            self.damage_one(&mut files);
        }
        let dir = place.path().join("log");
        write_files(&dir, &files);
        let Ok(log) = open(&dir) else {
            tally.refused += 1;
            return;
        };
        let (found, truth) = (log.load().unwrap(), self.truth.load().unwrap());
        assert_eq!((&found.hard_state, &found.purged), (&truth.hard_state, &truth.purged), "{found:?}");
        let Some(damage) = &found.damage else {
            assert_eq!(Content::of(&log), Content::of(&self.truth));
            tally.harmless += 1;
            return;
        };
        assert_eq!(damage.last, truth.last());
        assert!(truth.entries.starts_with(&found.entries), "{found:?}");
        // Repairs the log as an engine does.
        let hard_state = Some(HardState { lost_through: Some(damage.last), ..found.hard_state.clone() });
        let truncate_after = Some(found.last().index);
        let cut = LogBatch { hard_state, truncate_after, ..LogBatch::default() };
        let truth = copy_of(&self.truth);
        truth.write(cut.clone()).unwrap();
        log.write(cut).unwrap();
        self.continue_after_repair(&dir, log, &truth);
        tally.repaired += 1;
    }

    fn damage_one(&mut self, files: &mut Files) {
        let segments: Vec<_> = files.keys().filter(|path| is_segment(path)).cloned().collect();
        let last = segments.len() - 1;
        let some = last - self.random.random_range(0..=last);
        // Prefers the last segments.
        let which =
            if self.random.random_bool(0.6) { last - self.random.random_range(0..2).min(last) } else { some };
        let content = files.get_mut(&segments[which]).unwrap();
        let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        if used <= FIRST_FRAME {
            return;
        }
        let at = self.random.random_range(FIRST_FRAME..=used);
        let sector = at - at % SECTOR_BYTES;
        let zeros = match self.random.random_range(0..4) {
            0 => sector..sector + SECTOR_BYTES,
            1 => at..at + SEGMENT_BYTES as usize,
            _ => return content[at] ^= 1 << self.random.random_range(0..8),
        };
        let end = zeros.end.min(content.len());
        content[zeros.start..end].fill(0);
    }

    /// Checks that a repaired log works like any other.
    fn continue_after_repair(&mut self, dir: &Path, mut log: WalLogStorage, truth: &MemLogStorage) {
        for number in 0..12 {
            assert_eq!(log.load().unwrap().damage, None, "{number}");
            assert_eq!(Content::of(&log), Content::of(truth), "{number}");
            let batch = random_batch(&mut self.random, truth, 1000 + number);
            truth.write(batch.clone()).unwrap();
            log.write(batch).unwrap();
            if self.random.random_bool(0.4) {
                drop(log);
                log = open(dir).unwrap();
            }
        }
    }
}

/// Whether `segment` is the one with the last frame, according to `mark`.
fn in_use(mark: &[u8], segment: &Path) -> bool {
    let number = |at: usize| u64::from_be_bytes(mark[at..at + 8].try_into().unwrap());
    let (_, newest) = (number(8), number(16)).max((number(520), number(528)));
    segment.file_stem().unwrap().to_str().unwrap().parse() == Ok(newest)
}

#[test]
fn log_after_random_disk_faults_is_complete_or_reports_the_loss() {
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let from = variable("TORTURE_FROM").unwrap_or(FROM);
    let mut tally = Tally::default();
    for seed in from..from + variable("TORTURE_SEEDS").unwrap_or(SEEDS) {
        println!("seed {seed}");
        Torture::run(seed, &mut tally);
    }
    println!("{tally:?}");
    assert!(tally.refused > 0 && tally.harmless > 0 && tally.repaired > 0, "{tally:?}");
}

/// First seed; some of the seeds after it found bugs.
const FROM: u64 = 270;
const SEEDS: u64 = 60;
const BATCHES: u64 = 60;
const SEGMENT_BYTES: u64 = 4096;
const SECTOR_BYTES: usize = 512;
const FIRST_FRAME: usize = 512;
