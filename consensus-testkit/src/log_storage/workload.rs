//! A log that grows, is cut, is purged: what was written when, and how to see whether it is all there. For tests of what
//! crashes ([`crash_images`](crate::crash_images)) and damage ([`damage`](crate::damage)) leave of a storage's files.

use crate::MemLogStorage;
use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, Membership, NodeId, SnapshotMeta,
    StorageId, Term,
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

const BATCHES: u64 = 48;
