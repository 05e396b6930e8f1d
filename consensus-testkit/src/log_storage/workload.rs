//! A log that grows, is cut, is purged: what was written when, and how to see whether it is all there. For tests of what
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

/// What a log holds: everything but the storage's identity, with the entries themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    state: LogState,
    entries: Vec<Entry>,
}

impl Content {
    /// Everything in `storage`.
    ///
    /// # Panics
    /// It cannot be read.
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

/// A batch for each number, each a function of what was before.
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
        // Some longer than the blocks that storages write, so that a record has a middle.
        let size = if n % 9 == 5 { 70_000 } else { 100 + (n as usize * 37) % 400 };
        for _ in 0..n % 4 {
            last += 1;
            batch.entries.push(Entry::command(LogId::new(term, last), vec![n as u8; size]));
        }
        batches.push(batch);
    }
    batches
}

/// What the log holds before the first batch, after it, after the second, ...
///
/// # Panics
/// They are no batches that can follow each other.
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

/// A batch that can follow `content`.
#[must_use]
pub fn one_more(content: &Content) -> LogBatch {
    let last = content.last();
    let entry = Entry::command(LogId { index: last.index.next(), ..last }, "one more");
    LogBatch { entries: vec![entry], ..LogBatch::default() }
}

/// `storage`, or its refusal: a log of which the storage says that not all can be read is as good as refused; an engine may do
/// better.
///
/// # Errors
/// It is damaged, or cannot be read.
pub fn sound<S: LogStorage>(storage: S) -> Result<S, StorageError> {
    match storage.load()?.damage {
        Some(damage) => Err(damage.to_error()),
        None => Ok(storage),
    }
}

/// A log that was filled: what it held, and which storage it was.
#[derive(Clone, Debug)]
pub struct Filled {
    content: Content,
    identity: StorageId,
}

impl Filled {
    /// With what is in `storage` now.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn of(storage: &dyn LogStorage) -> Self {
        Self { content: Content::of(storage), identity: storage.load().unwrap().storage }
    }

    /// What came of `damage` to a copy of it in `place`, for [`damage::try_all`](crate::damage::try_all).
    ///
    /// # Panics
    /// It opens with something else, or is refused once and opens then.
    pub fn outcome<S: LogStorage>(
        &self,
        damage: &Damage,
        place: &Path,
        open: impl Fn(&Path) -> Result<S, StorageError>,
    ) -> Outcome {
        match open(place) {
            Ok(storage) => {
                assert_eq!(Content::of(&storage), self.content, "{damage}: opened with something else");
                assert_eq!(storage.load().unwrap().storage, self.identity, "{damage}");
                Outcome::Whole
            }
            Err(error) => {
                // And again: a refusal is not forgotten.
                open(place).err().unwrap_or_else(|| panic!("{damage}: refused once, and opened then"));
                Outcome::Refused(error.to_string())
            }
        }
    }
}

#[cfg(unix)]
pub use crashes::{try_images, try_images_with_failing_syncs, write_in_sessions};

#[cfg(unix)]
mod crashes {
    use std::{collections::BTreeMap, path::Path};

    use consensus_core::{LogStorage, StorageError};

    use super::{Content, batches, contents, one_more};
    use crate::crash_images::{self, FailingSyncs, Image, Recording};

    /// The body of a workload of [`crash_images::record`]: writes the [`batches`] in so many sessions, for each of which
    /// `open` opens the storage below the directory, and says what is acknowledged. A storage that fails is opened again, and
    /// what it has then is acknowledged. Does nothing in a test that was started in another way.
    ///
    /// # Panics
    /// The storage cannot be opened, not even the third time, or has something else than what was written.
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
                assert_eq!(found, contents[done], "found after an error");
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

    /// Records the test `workload`, which calls [`write_in_sessions`], and has `open` open every image that a crash may
    /// leave of it. To the image of number n `more(n)` batches more are written, and it is opened again.
    ///
    /// # Panics
    /// What opens is not what was acknowledged, or it does not open.
    pub fn try_images<S: LogStorage>(
        workload: &str,
        open: impl Fn(&Path) -> Result<S, StorageError>,
        more: impl Fn(usize) -> usize,
    ) {
        let place = tempfile::tempdir().unwrap();
        try_recording(crash_images::record(workload, place.path()), open, more);
    }

    /// The same with a recording some of whose syncs [fail](FailingSyncs).
    ///
    /// # Panics
    /// As in [`try_images`], or no sync failed.
    pub fn try_images_with_failing_syncs<S: LogStorage>(
        workload: &str,
        failing: FailingSyncs,
        open: impl Fn(&Path) -> Result<S, StorageError>,
        more: impl Fn(usize) -> usize,
    ) {
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
            Err(why) => return println!("SKIPPED, no crash images are tried: {why}"),
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
            "the recording is not of the workload: {syncs} {tried:?}"
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
        let acknowledged: usize = image.told("acknowledged").map_or(0, |n| n.parse().unwrap());
        let storage = open(dir.path()).unwrap_or_else(|error| panic!("{image} does not open: {error}"));
        let found = Content::of(&storage);
        // The batch under way may be there too, whole.
        let may = &contents[acknowledged..contents.len().min(acknowledged + 2)];
        assert!(may.contains(&found), "{image}: not what was acknowledged: {found:?}");
        if let Some(identity) = image.told("storage") {
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
