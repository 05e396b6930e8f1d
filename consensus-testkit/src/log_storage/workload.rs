//! A fixed sequence of batches that append, truncate and purge, and the expected content after each. For tests of what
//! crashes ([`crash_images`](crate::crash_images)) and damage ([`damage`](crate::damage)) leave of a storage's files.

use std::path::Path;

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, Membership, NodeId, SnapshotMeta,
    StorageError, StorageId, Term,
};

use crate::{
    MemLogStorage,
    damage::{Damage, Outcome},
};

/// Content of a log: everything except the storage's identity, with the entries themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    state: LogState,
    entries: Vec<Entry>,
}

impl Content {
    /// Reads the content of `storage`.
    ///
    /// # Panics
    /// The storage cannot be read.
    pub fn of(storage: &dyn LogStorage) -> Self {
        let state = LogState { storage: StorageId::default(), ..storage.load().unwrap() };
        let (after, last) = (state.purged.last.index, state.last().index);
        let entries = storage.read(after, last, u64::MAX).unwrap();
        Self { state, entries }
    }

    /// The last entry, or the last purged one.
    #[must_use]
    pub fn last(&self) -> LogId {
        self.state.last()
    }
}

/// Returns the batches of the workload.
#[must_use]
pub fn batches() -> Vec<LogBatch> {
    let (mut batches, mut term, mut last, mut purged) = (Vec::new(), 1, 0, 0);
    for n in 0..BATCHES {
        let mut batch = LogBatch::default();
        if n % 10 == 0 {
            term += u64::from(n > 0);
            let voted_for = (n % 20 == 0).then_some(NodeId(n % 3));
            batch.hard_state = Some(HardState { term: Term(term), voted_for, ..HardState::default() });
        }
        if n % 10 == 3 && last > purged + 2 {
            last -= 2;
            batch.truncate_after = Some(LogIndex(last));
        }
        if n % 12 == 7 {
            purged = last - 1;
            let membership = Membership::of_voters([1, 2, 3]);
            batch.purge = Some(SnapshotMeta { last: LogId::new(term, purged), membership });
        }
        // Some entries are longer than the blocks that storages write, so that a record spans several blocks.
        let size = if n % 9 == 5 { 70_000 } else { 100 + (n as usize * 37) % 400 };
        for _ in 0..n % 4 {
            last += 1;
            batch.entries.push(Entry::command(LogId::new(term, last), vec![n as u8; size]));
        }
        batches.push(batch);
    }
    batches
}

/// Returns the content of the log before the first batch and after each batch.
///
/// # Panics
/// A batch does not follow the one before it.
#[must_use]
pub fn contents(batches: &[LogBatch]) -> Vec<Content> {
    let storage = MemLogStorage::new();
    let mut contents = vec![Content::of(&storage)];
    for batch in batches {
        storage.write(batch.clone()).unwrap();
        contents.push(Content::of(&storage));
    }
    contents
}

/// Returns a batch that can follow `content`.
#[must_use]
pub fn one_more(content: &Content) -> LogBatch {
    let last = content.last();
    let entry = Entry::command(LogId { index: last.index.next(), ..last }, "one more");
    LogBatch { entries: vec![entry], ..LogBatch::default() }
}

/// Returns `storage`, or an error if it reports damage. For these tests, a log that reports damage counts as refused; an
/// engine can still use it.
///
/// # Errors
/// The storage is damaged, or cannot be read.
pub fn sound<S: LogStorage>(storage: S) -> Result<S, StorageError> {
    match storage.load()?.damage {
        Some(damage) => Err(damage.to_error()),
        None => Ok(storage),
    }
}

/// Expected content and identity of a log.
#[derive(Clone, Debug)]
pub struct Filled {
    content: Content,
    identity: StorageId,
}

impl Filled {
    /// Records the current content of `storage`.
    ///
    /// # Panics
    /// The storage cannot be read.
    pub fn of(storage: &dyn LogStorage) -> Self {
        Self { content: Content::of(storage), identity: storage.load().unwrap().storage }
    }

    /// Opens a damaged copy of the log in `place`, and returns the outcome for [`damage::try_all`](crate::damage::try_all).
    ///
    /// # Panics
    /// The copy opens with other content, or opens after it was refused once.
    pub fn outcome<S: LogStorage>(
        &self,
        damage: &Damage,
        place: &Path,
        open: impl Fn(&Path) -> Result<S, StorageError>,
    ) -> Outcome {
        match open(place) {
            Ok(storage) => {
                assert_eq!(Content::of(&storage), self.content, "{damage}: opened with other content");
                assert_eq!(storage.load().unwrap().storage, self.identity, "{damage}");
                Outcome::Intact
            }
            Err(error) => {
                // A second attempt must be refused as well.
                open(place)
                    .err()
                    .unwrap_or_else(|| panic!("{damage}: refused once, but opened the second time"));
                Outcome::Refused(error.to_string())
            }
        }
    }
}

#[cfg(unix)]
pub use crashes::{try_images, try_images_with_failing_syncs, write_in_sessions};

#[cfg(unix)]
mod crashes {
    use std::{
        collections::BTreeMap,
        path::Path,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use consensus_core::{LogStorage, StorageError};

    use super::{Content, batches, contents, one_more};
    use crate::crash_images::{self, FailingSyncs, Image, Recording};

    /// Body of a workload of [`crash_images::record`]: writes the [`batches`] in `sessions` sessions, opens the storage
    /// below the directory with `open` for each, and prints what is acknowledged. A storage that fails is opened again, and
    /// its content then counts as acknowledged. Does nothing in a test that was not started by [`crash_images::record`].
    ///
    /// # Panics
    /// The storage cannot be opened in three attempts, or does not have the content that was written.
    pub fn write_in_sessions<S: LogStorage>(
        sessions: usize,
        open: impl Fn(&Path) -> Result<S, StorageError>,
    ) {
        let Some(dir) = crash_images::workload_dir() else { return };
        let open = || {
            let storage = (0..2).find_map(|_| open(&dir).ok()).unwrap_or_else(|| open(&dir).unwrap());
            println!("storage {}", storage.load().unwrap().storage);
            storage
        };
        let (batches, mut done) = (batches(), 0);
        let (contents, session) = (contents(&batches), batches.len().div_ceil(sessions));
        while done < batches.len() {
            let storage = open();
            let found = Content::of(&storage);
            if found != contents[done] {
                done += 1;
                assert_eq!(found, contents[done], "content after an error");
            }
            println!("acknowledged {done}");
            let end = batches.len().min((done / session + 1) * session);
            for batch in &batches[done..end] {
                if storage.write(batch.clone()).is_err() {
                    break;
                }
                done += 1;
                println!("acknowledged {done}");
            }
        }
    }

    /// Records the test `workload`, which calls [`write_in_sessions`], and opens every image that a crash may leave of it.
    /// Writes `more(n)` further batches to image number `n`, and opens it again.
    ///
    /// # Panics
    /// An image does not open, or does not have the acknowledged content.
    pub fn try_images<S: LogStorage>(
        workload: &str,
        open: impl Fn(&Path) -> Result<S, StorageError>,
        more: impl Fn(usize) -> usize,
    ) {
        let _alone = alone();
        let place = tempfile::tempdir().unwrap();
        try_recording(crash_images::record(workload, place.path()), open, more);
    }

    /// Lets one test at a time start processes and open images: a process that another test starts has copies of locks of
    /// files for a moment, so that an image that was just closed cannot be opened again.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Like [`try_images`], with a recording in which some syncs [fail](FailingSyncs).
    ///
    /// # Panics
    /// As in [`try_images`], or no sync failed.
    pub fn try_images_with_failing_syncs<S: LogStorage>(
        workload: &str,
        failing: FailingSyncs,
        open: impl Fn(&Path) -> Result<S, StorageError>,
        more: impl Fn(usize) -> usize,
    ) {
        let _alone = alone();
        let place = tempfile::tempdir().unwrap();
        let recording = crash_images::record_with_failing_syncs(workload, place.path(), failing);
        try_recording(recording, open, more);
    }

    fn try_recording<S: LogStorage>(
        recording: Result<Recording, String>,
        open: impl Fn(&Path) -> Result<S, StorageError>,
        more: impl Fn(usize) -> usize,
    ) {
        let recording = match recording {
            Ok(recording) => recording,
            Err(why) => return println!("SKIPPED, cannot record crash images: {why}"),
        };
        let contents = contents(&batches());
        let mut tried: BTreeMap<_, usize> = BTreeMap::new();
        let syncs = recording.images(|image| {
            check(image, &contents, &open, more(tried.values().sum()));
            *tried.entry(image.survives).or_default() += 1;
        });
        let images: usize = tried.values().sum();
        println!("{syncs} syncs, {images} images: {tried:?}");
        assert!(
            syncs > batches().len() && tried.len() == 5,
            "the recording does not match the workload: {syncs} {tried:?}"
        );
    }

    fn check<S: LogStorage>(
        image: &Image,
        contents: &[Content],
        open: impl Fn(&Path) -> Result<S, StorageError>,
        more: usize,
    ) {
        let dir = tempfile::tempdir().unwrap();
        image.write_to(dir.path()).unwrap();
        let acknowledged: usize = image.printed_value("acknowledged").map_or(0, |n| n.parse().unwrap());
        let storage =
            open(dir.path()).unwrap_or_else(|error| panic!("{image}: the storage does not open: {error}"));
        let found = Content::of(&storage);
        // The batch in progress may be present too, completely.
        let may = &contents[acknowledged..contents.len().min(acknowledged + 2)];
        assert!(may.contains(&found), "{image}: not the acknowledged content: {found:?}");
        if let Some(identity) = image.printed_value("storage") {
            assert_eq!(storage.load().unwrap().storage.to_string(), identity, "{image}");
        }
        if more == 0 {
            return;
        }
        for _ in 0..more {
            storage.write(one_more(&Content::of(&storage))).unwrap();
        }
        let before = Content::of(&storage);
        drop(storage);
        assert_eq!(Content::of(&open(dir.path()).unwrap()), before, "{image}: after {more} more writes");
    }
}

const BATCHES: u64 = 48;
