//! The disk of a log: the real log in a directory whose content after a crash is that of a real disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock},
};

use consensus_core::{
    Entry, LogBatch, LogIndex, LogState, LogStorage, NodeId, Payload, StorageError, record,
};
use consensus_raft_simulator::Random;
use consensus_storage_dir::MarkFile;
use consensus_storage_wal::WalLogStorage;
use tempfile::TempDir;

/// Content of a directory, by relative path.
pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

/// The log of a running node.
pub(crate) struct LogDisk {
    node: NodeId,
    place: TempDir,
    inner: Mutex<Inner>,
}

struct Inner {
    /// `None` once the power is lost.
    log: Option<WalLogStorage>,
    random: Random,
    /// The mark when the log was opened. It is not synced, so a crash may restore it.
    first_mark: Vec<u8>,
    /// Files left by a failed write, or by a crash within a write.
    left: Option<Files>,
    fails: Option<Left>,
    has_failed: bool,
    is_full: bool,
}

/// Part of an interrupted write that a crash leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Some sectors of the write.
    Torn,
    /// The whole write, which was not acknowledged.
    Everything,
}

pub(crate) const LEFT: [Left; 3] = [Left::Nothing, Left::Torn, Left::Everything];

/// The directory of a new log of `node`, whose storage has this identity.
pub(crate) fn new_log(node: NodeId, storage: u64) -> Files {
    static TEMPLATE: OnceLock<Mutex<BTreeMap<NodeId, Files>>> = OnceLock::new();
    let mut templates = TEMPLATE.get_or_init(Mutex::default).lock().unwrap();
    let mut files = templates
        .entry(node)
        .or_insert_with(|| {
            let place = place();
            let dir = place.path().join("log");
            drop(open(&dir, node).expect("a new log"));
            files_of(&dir)
        })
        .clone();
    // The log draws its identity at random; in a run the identity follows from the seed.
    let identity = files.get_mut(Path::new("IDENTITY")).expect("every directory has one");
    let text = String::from_utf8(std::mem::take(identity)).expect("text");
    let known = |line: &&str| !line.starts_with("crc32c");
    let line = |line: &str| match line.starts_with("storage") {
        true => format!("storage = {storage}\n"),
        false => format!("{line}\n"),
    };
    let text: String = text.lines().filter(known).map(line).collect();
    *identity = format!("{text}crc32c = {:08x}\n", crc32c::crc32c(text.as_bytes())).into_bytes();
    files
}

impl LogDisk {
    /// Opens the log in `files`.
    pub(crate) fn open(node: NodeId, files: &Files, random: Random) -> Result<Self, StorageError> {
        let place = place();
        let dir = place.path().join("log");
        lay(&dir, files);
        let log = open(&dir, node)?;
        let first_mark = files[Path::new(MARK)].clone();
        let (left, log) = (None, Some(log));
        let inner = Inner { log, random, first_mark, left, fails: None, has_failed: false, is_full: false };
        Ok(Self { node, place, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.place.path().join("log")
    }

    pub(crate) fn load(&self) -> Result<LogState, StorageError> {
        self.inner().log.as_ref().ok_or_else(gone)?.load()
    }

    pub(crate) fn read(
        &self,
        after: LogIndex,
        last: LogIndex,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.inner().log.as_ref().ok_or_else(gone)?.read(after, last, max_bytes)
    }

    /// Writes a batch; with `crash`, the power is lost during the write.
    pub(crate) fn write(&self, batch: LogBatch, crash: Option<Left>) -> Result<(), StorageError> {
        let mut inner = self.inner();
        if inner.log.is_none() {
            return Err(gone());
        }
        if inner.is_full && !batch.entries.is_empty() {
            let why = "the simulation filled the disk".to_owned();
            return Err(StorageError::NoRoom { why, batch: Box::new(batch) });
        }
        inner.has_failed |= inner.fails.is_some();
        let Some(left) = crash.or(inner.fails) else {
            return inner.log.as_ref().ok_or_else(gone)?.write(batch);
        };
        drop(inner.log.take()); // Waits until the log creates no files in the directory.
        let before = files_of(&self.dir());
        let log = open(&self.dir(), self.node)?;
        log.write(batch)?;
        drop(log);
        let after = files_of(&self.dir());
        let tail = tail_segment(&self.dir())?;
        inner.left = Some(match left {
            Left::Nothing => inner.marked(before, &[]),
            Left::Torn => inner.torn(before, after, &tail),
            Left::Everything => {
                let older = before[Path::new(MARK)].clone();
                inner.marked(after, &[older])
            }
        });
        Err(gone())
    }

    /// Makes the next write fail and leave this part of it.
    pub(crate) fn fail(&self, left: Left) {
        self.inner().fails = Some(left);
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.inner().has_failed
    }

    /// Makes the disk full for entries from now on, or frees it again.
    pub(crate) fn fill(&self, is_full: bool) {
        self.inner().is_full = is_full;
    }

    /// Whether a write was interrupted.
    pub(crate) fn power_is_lost(&self) -> bool {
        self.inner().log.is_none()
    }

    /// Closes the log, and returns what a crash at this moment leaves of it.
    pub(crate) fn lose_power(&self) -> Files {
        let mut inner = self.inner();
        drop(inner.log.take());
        match inner.left.take() {
            Some(files) => files,
            None => inner.marked(files_of(&self.dir()), &[]),
        }
    }

    /// Closes the log, and returns its files.
    pub(crate) fn close(&self) -> Files {
        let mut inner = self.inner();
        drop(inner.log.take());
        inner.left.take().unwrap_or_else(|| files_of(&self.dir()))
    }
}

impl Inner {
    /// Returns the files with the present mark or the earlier one.
    fn marked(&mut self, mut files: Files, older: &[Vec<u8>]) -> Files {
        let newest = files[Path::new(MARK)].clone();
        let marks: Vec<_> = older.iter().chain([&self.first_mark, &newest]).cloned().collect();
        let which = self.random.below(marks.len() as u64) as usize;
        files.insert(MARK.into(), marks[which].clone());
        files
    }

    /// Returns the files with some of the written sectors, but not all.
    fn torn(&mut self, before: Files, mut after: Files, tail: &Path) -> Files {
        let mut torn = before;
        // Segments after the one that was written to are created when the write is over.
        after.retain(|path, _| !is_segment(path) || path.as_path() <= tail || torn.contains_key(path));
        // The header of a new segment is synced before anything else.
        for (path, written) in after.iter().filter(|(path, _)| is_segment(path)) {
            let content = torn.entry(path.clone()).or_insert_with(|| written[..SECTOR_BYTES].to_vec());
            content.resize(written.len().max(content.len()), 0);
        }
        let changed: Vec<_> = after
            .iter()
            .filter(|(path, _)| is_segment(path))
            .flat_map(|(path, written)| {
                let sectors = torn[path].chunks(SECTOR_BYTES).zip(written.chunks(SECTOR_BYTES));
                let differs = sectors.enumerate().filter(|(_, (old, new))| old != new);
                differs.map(|(sector, _)| (path.clone(), sector * SECTOR_BYTES)).collect::<Vec<_>>()
            })
            .collect();
        let missing = self.random.below(changed.len() as u64) as usize;
        for (number, (path, at)) in changed.iter().enumerate() {
            if number != missing && self.random.percent(50) {
                let written = &after[path];
                let end = (at + SECTOR_BYTES).min(written.len());
                torn.get_mut(path).expect("laid above")[*at..end].copy_from_slice(&written[*at..end]);
            }
        }
        self.marked(torn, &[])
    }
}

/// Entries with commands in a log.
pub(crate) fn commands_in(node: NodeId, files: &Files) -> Vec<Entry> {
    let place = place();
    let dir = place.path().join("log");
    lay(&dir, files);
    let Ok(log) = open(&dir, node) else { return Vec::new() };
    let Ok(state) = log.load() else { return Vec::new() };
    let (after, last) = (state.purged.last.index, state.last().index);
    let entries = log.read(after, last, u64::MAX).unwrap_or_default();
    entries.into_iter().filter(|entry| matches!(entry.payload, Payload::Command(_))).collect()
}

/// Flips a bit of the record of `entry`. Returns `false` if the record does not exist.
pub(crate) fn damage(files: &mut Files, entry: &Entry, random: &mut Random) -> bool {
    let mut sought = Vec::new();
    record::encode(entry, &mut sought);
    for (_, content) in files.iter_mut().rev().filter(|(path, _)| is_segment(path)) {
        let found = content.windows(sought.len()).rposition(|bytes| bytes == sought);
        if let Some(at) = found {
            let bit = random.below(8 * sought.len() as u64) as usize;
            content[at + bit / 8] ^= 1 << (bit % 8);
            return true;
        }
    }
    false
}

fn open(dir: &Path, node: NodeId) -> Result<WalLogStorage, StorageError> {
    WalLogStorage::open_with_segment_bytes(dir, node, SEGMENT_BYTES)
}

fn gone() -> StorageError {
    StorageError::Failed("the simulation makes the disk fail".to_owned())
}

/// In memory where such a file system exists, so that syncs take no time.
fn place() -> TempDir {
    let shm = Path::new("/dev/shm");
    let place = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    place.expect("a place for a log")
}

fn files_of(dir: &Path) -> Files {
    let mut files = Files::new();
    for place in [dir.to_owned(), dir.join("segments")] {
        for entry in fs::read_dir(place).expect("a directory") {
            let path = entry.expect("a file").path();
            if path.is_file() {
                let content = fs::read(&path).expect("no other process uses the directory");
                files.insert(path.strip_prefix(dir).expect("below it").to_owned(), content);
            }
        }
    }
    files
}

fn lay(dir: &Path, files: &Files) {
    fs::create_dir_all(dir.join("segments")).expect("a directory");
    for (path, content) in files {
        fs::write(dir.join(path), content).expect("a file");
    }
}

/// The segment that was written to last, below the directory of its log.
fn tail_segment(dir: &Path) -> Result<PathBuf, StorageError> {
    let mark = MarkFile::open(&dir.join(MARK))?.expect("every log has one").mark();
    Ok(Path::new("segments").join(format!("{:016}.wal", mark.file)))
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

const MARK: &str = "MARK";
/// The least.
const SEGMENT_BYTES: u64 = 4096;
const SECTOR_BYTES: usize = 512;
