//! The suites of `LogStorage` reject a storage in memory with one defect at a time.

mod common;

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use common::assert_rejected;
use consensus_core::{
    Entry, LogBatch, LogIndex, LogState, LogStorage, Membership, Payload, SnapshotMeta, StorageError,
    StorageId, Term,
};
use consensus_testkit::{
    MemLogStorage,
    log_storage::{
        failing_disk_rules, full_disk_rules, rules, run_failing_disk_suite, run_full_disk_suite, run_suite,
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    StartsInATerm,
    NewIdentityAtEachOpen,
    OneIdentityForAll,
    WritesLate,
    LosesInstallation,
    LosesHardState,
    DropsReplacementOfTail,
    TruncatesAllIfBeyond,
    KeepsPurgedEntries,
    LosesPurgedConfiguration,
    PurgesOnlyToTheEnd,
    PurgedGoesBack,
    ReadsWithoutBound,
    ReadsNothingIfTooLarge,
    RefusesToReadBeyond,
    AcceptsGaps,
    WritesVoteOfMisuse,
    MissesEntriesWhileWriting,
    KeepsTruncatedMemberships,
    WritesAfterFailure,
    WritesVoteOfFailedBatch,
    ReturnsNoBatch,
    WritesVoteOfRefusedBatch,
    RefusesVotesWithoutRoom,
    StaysFull,
}

#[test]
fn storage_without_defect_passes() {
    let new = || Place::new(Defect::None);
    run_suite(new, Place::open);
    run_failing_disk_suite(new, Place::open, Place::fail);
    run_full_disk_suite(new, Place::open, Place::fill);
}

#[test]
fn each_rule_rejects_its_defects() {
    let table = [
        (Defect::StartsInATerm, "an empty storage loads as the default"),
        (Defect::NewIdentityAtEachOpen, "a storage keeps its identity and shares it with no other"),
        (Defect::OneIdentityForAll, "a storage keeps its identity and shares it with no other"),
        (Defect::WritesLate, "a batch whose write returned Ok is present after reopening"),
        (Defect::LosesInstallation, "a batch whose write returned Ok is present after reopening"),
        (Defect::LosesHardState, "a batch without hard state keeps the previous one"),
        (Defect::DropsReplacementOfTail, "truncation and append in one batch replace the tail"),
        (Defect::TruncatesAllIfBeyond, "a truncation beyond the last entry removes nothing"),
        (
            Defect::KeepsPurgedEntries,
            "purged entries are missing, and the configuration at the purged position is kept",
        ),
        (
            Defect::LosesPurgedConfiguration,
            "purged entries are missing, and the configuration at the purged position is kept",
        ),
        (Defect::PurgesOnlyToTheEnd, "a purge beyond the last entry restarts the log after it"),
        (Defect::PurgedGoesBack, "a purge or truncation below the purged position does not move it back"),
        (Defect::ReadsWithoutBound, "a read is limited in bytes, but returns at least one entry"),
        (Defect::ReadsNothingIfTooLarge, "a read is limited in bytes, but returns at least one entry"),
        (
            Defect::RefusesToReadBeyond,
            "a read beyond the end returns the existing entries, or reports the first missing index",
        ),
        (
            Defect::AcceptsGaps,
            "entries that do not follow the log are refused, and nothing of their batch is written",
        ),
        (
            Defect::WritesVoteOfMisuse,
            "entries that do not follow the log are refused, and nothing of their batch is written",
        ),
        (Defect::MissesEntriesWhileWriting, "a read during a write returns complete entries in order"),
        (Defect::KeepsTruncatedMemberships, "any sequence of batches has the same effect as on the model"),
    ];
    assert_rejected(&rules(), &table, |defect| run_suite(|| Place::new(defect), Place::open));
}

#[test]
fn each_rule_of_failing_disk_rejects_its_defects() {
    let table = [
        (
            Defect::WritesAfterFailure,
            "after a failed write every further write is refused, even if the disk works again",
        ),
        (
            Defect::WritesVoteOfFailedBatch,
            "after reopening, a failed write is present completely or not at all",
        ),
    ];
    assert_rejected(&failing_disk_rules(), &table, |defect| {
        run_failing_disk_suite(|| Place::new(defect), Place::open, Place::fail);
    });
}

#[test]
fn each_rule_of_full_disk_rejects_its_defects() {
    let table = [
        (Defect::ReturnsNoBatch, "entries without room are returned, and nothing of their batch is written"),
        (
            Defect::WritesVoteOfRefusedBatch,
            "entries without room are returned, and nothing of their batch is written",
        ),
        (Defect::RefusesVotesWithoutRoom, "a purge or a vote is accepted without room"),
        (Defect::StaysFull, "a batch that was refused for lack of room can be written later"),
    ];
    assert_rejected(&full_disk_rules(), &table, |defect| {
        run_full_disk_suite(|| Place::new(defect), Place::open, Place::fill);
    });
}

/// A disk, and the number of times that it was opened.
struct Place {
    defect: Defect,
    disk: MemLogStorage,
    opened: Cell<u64>,
    full: Cell<bool>,
    seen: Arc<Mutex<Seen>>,
}

impl Place {
    fn new(defect: Defect) -> Self {
        let (opened, full) = (Cell::new(0), Cell::new(false));
        Self { defect, disk: MemLogStorage::new(), opened, full, seen: Arc::default() }
    }

    fn fail(&self, fail: bool) {
        self.disk.fail_writes(fail);
    }

    fn fill(&self, full: bool) {
        self.full.set(full);
        self.disk.fill(full || self.defect == Defect::StaysFull);
    }

    fn open(&self) -> Broken {
        self.opened.set(self.opened.get() + 1);
        self.seen.lock().unwrap().last_batch = LogBatch::default();
        let memory = if self.defect == Defect::WritesLate { copy(&self.disk) } else { self.disk.clone() };
        Broken {
            defect: self.defect,
            memory,
            disk: self.disk.clone(),
            opened: self.opened.get(),
            full: self.full.get(),
            writing: AtomicBool::new(false),
            seen: self.seen.clone(),
        }
    }
}

fn copy(disk: &MemLogStorage) -> MemLogStorage {
    let (state, copy) = (disk.load().unwrap(), MemLogStorage::new());
    let entries = disk.read(state.purged.last.index, state.last().index, u64::MAX).unwrap();
    let (hard_state, purge) = (Some(state.hard_state), Some(state.purged));
    copy.write(LogBatch { hard_state, purge, entries, ..LogBatch::default() }).unwrap();
    copy
}

struct Broken {
    defect: Defect,
    /// Content that is read and written.
    memory: MemLogStorage,
    /// Content that the next open finds; differs from `memory` only for `WritesLate`.
    disk: MemLogStorage,
    opened: u64,
    full: bool,
    writing: AtomicBool,
    seen: Arc<Mutex<Seen>>,
}

/// Batches written to a place.
#[derive(Default)]
struct Seen {
    /// Last batch since the storage was opened.
    last_batch: LogBatch,
    memberships: Vec<(LogIndex, Membership)>,
    /// Last purge, even if it was below an earlier one.
    purge: Option<SnapshotMeta>,
}

impl Broken {
    fn last(&self) -> LogIndex {
        self.memory.load().unwrap().last().index
    }

    fn vote_of(batch: &LogBatch) -> LogBatch {
        LogBatch { hard_state: batch.hard_state.clone(), ..LogBatch::default() }
    }

    /// Changes a batch before it is written, according to the defect.
    fn distort(&self, batch: &mut LogBatch) {
        match self.defect {
            Defect::LosesInstallation => {
                batch.hard_state.iter_mut().for_each(|hard_state| hard_state.installing = None);
            }
            Defect::LosesHardState => drop(batch.hard_state.get_or_insert_default()),
            Defect::DropsReplacementOfTail if batch.truncate_after.is_some() => batch.entries.clear(),
            Defect::TruncatesAllIfBeyond if batch.truncate_after.is_some_and(|after| after > self.last()) => {
                batch.truncate_after = Some(LogIndex::ZERO);
            }
            Defect::KeepsPurgedEntries => batch.purge = None,
            Defect::LosesPurgedConfiguration => {
                batch.purge.iter_mut().for_each(|meta| meta.membership = Membership::default());
            }
            Defect::PurgesOnlyToTheEnd => {
                let last = self.memory.load().unwrap().last();
                batch.purge.iter_mut().for_each(|meta| meta.last = meta.last.min(last));
            }
            _ => {}
        }
    }

    /// Handles a refusal according to the defect.
    fn refused(&self, error: StorageError, batch: &LogBatch) -> Result<(), StorageError> {
        match (self.defect, &error) {
            (Defect::AcceptsGaps, StorageError::Misuse(_)) => return Ok(()),
            (Defect::WritesVoteOfMisuse, StorageError::Misuse(_))
            | (Defect::WritesVoteOfRefusedBatch, StorageError::NoRoom { .. }) => {
                self.memory.write(Self::vote_of(batch))?;
            }
            (Defect::WritesVoteOfFailedBatch, StorageError::Io { .. }) => {
                self.disk.fail_writes(false);
                self.disk.write(Self::vote_of(batch))?;
                self.disk.fail_writes(true);
            }
            (Defect::ReturnsNoBatch, StorageError::NoRoom { why, .. }) => {
                return Err(StorageError::NoRoom { why: why.clone(), batch: Box::default() });
            }
            _ => {}
        }
        Err(error)
    }

    fn note(&self, batch: LogBatch) -> Result<(), StorageError> {
        let mut seen = self.seen.lock().unwrap();
        for entry in &batch.entries {
            if let Payload::Membership(membership) = &entry.payload {
                seen.memberships.push((entry.id.index, membership.clone()));
            }
        }
        let before = std::mem::replace(&mut seen.last_batch, batch);
        if self.defect == Defect::WritesLate { self.disk.write(before) } else { Ok(()) }
    }
}

impl LogStorage for Broken {
    fn load(&self) -> Result<LogState, StorageError> {
        let mut state = self.memory.load()?;
        let seen = self.seen.lock().unwrap();
        match self.defect {
            Defect::StartsInATerm if state.is_new() => state.hard_state.term = Term(1),
            Defect::NewIdentityAtEachOpen => state.storage = StorageId(self.opened),
            Defect::OneIdentityForAll => state.storage = StorageId(7),
            Defect::PurgedGoesBack => {
                state.purged = seen.purge.clone().unwrap_or(state.purged);
            }
            Defect::KeepsTruncatedMemberships => state.memberships = seen.memberships.clone(),
            _ => {}
        }
        Ok(state)
    }

    fn write(&self, mut batch: LogBatch) -> Result<(), StorageError> {
        if self.defect == Defect::RefusesVotesWithoutRoom && self.full {
            return Err(StorageError::NoRoom { why: "full".to_owned(), batch: Box::new(batch) });
        }
        if batch.purge.is_some() {
            self.seen.lock().unwrap().purge.clone_from(&batch.purge);
        }
        self.distort(&mut batch);
        self.writing.store(true, Ordering::SeqCst);
        let result = match self.defect {
            Defect::WritesAfterFailure => self.memory.clone().write(batch.clone()),
            _ => self.memory.write(batch.clone()),
        };
        if self.defect == Defect::MissesEntriesWhileWriting {
            // Makes it likely that reads happen at this point.
            (0..1000).for_each(|_| std::thread::yield_now());
        }
        self.writing.store(false, Ordering::SeqCst);
        result.or_else(|error| self.refused(error, &batch))?;
        self.note(batch)
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        let missing = || StorageError::Missing { index: after.next(), purged: LogIndex::ZERO, last: after };
        match self.defect {
            Defect::MissesEntriesWhileWriting if self.writing.load(Ordering::SeqCst) => Err(missing()),
            Defect::RefusesToReadBeyond if last > self.last() => Err(missing()),
            Defect::ReadsWithoutBound => self.memory.read(after, last, u64::MAX),
            Defect::ReadsNothingIfTooLarge => {
                let entries = self.memory.read(after, last, max_bytes)?;
                let bytes: u64 = entries.iter().map(Entry::size_bytes).sum();
                Ok(if bytes > max_bytes { Vec::new() } else { entries })
            }
            _ => self.memory.read(after, last, max_bytes),
        }
    }
}
