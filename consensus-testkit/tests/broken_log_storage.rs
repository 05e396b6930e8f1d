//! The suites of `LogStorage` reject what is broken: a storage in memory with one defect at a time.

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
    NewIdentityAtEachOpening,
    OneIdentityForAll,
    WritesLate,
    ForgetsTheInstallation,
    ForgetsTheHardState,
    DropsWhatReplacesATail,
    TruncatesAllIfBeyond,
    KeepsWhatIsPurged,
    ForgetsTheConfigurationPurged,
    PurgesToTheEndOnly,
    PurgedGoesBack,
    ReadsWithoutBound,
    ReadsNothingIfTooLarge,
    RefusesToReadBeyond,
    AcceptsGaps,
    WritesTheVoteOfMisuse,
    MissesEntriesWhileWriting,
    RemembersTruncatedMemberships,
    WritesOnAfterFailure,
    WritesTheVoteOfAFailure,
    GivesNothingBack,
    WritesTheVoteWithoutRoom,
    RefusesVotesWithoutRoom,
    StaysFull,
}

#[test]
fn without_a_defect_it_passes() {
    let new = || Place::new(Defect::None);
    run_suite(new, Place::open);
    run_failing_disk_suite(new, Place::open, Place::fail);
    run_full_disk_suite(new, Place::open, Place::fill);
}

#[test]
fn each_rule_rejects_what_breaks_it() {
    let table = [
        (Defect::StartsInATerm, "an empty storage loads as the default"),
        (Defect::NewIdentityAtEachOpening, "a storage keeps its identity and shares it with no other"),
        (Defect::OneIdentityForAll, "a storage keeps its identity and shares it with no other"),
        (Defect::WritesLate, "what a write returned Ok for is there after reopening"),
        (Defect::ForgetsTheInstallation, "what a write returned Ok for is there after reopening"),
        (Defect::ForgetsTheHardState, "a batch without hard state keeps the one from before"),
        (Defect::DropsWhatReplacesATail, "truncation and append in one batch replace the tail"),
        (Defect::TruncatesAllIfBeyond, "a truncation beyond the last entry removes nothing"),
        (Defect::KeepsWhatIsPurged, "purged entries are missing, and the configuration there is kept"),
        (
            Defect::ForgetsTheConfigurationPurged,
            "purged entries are missing, and the configuration there is kept",
        ),
        (Defect::PurgesToTheEndOnly, "a purge beyond the last entry starts the log anew"),
        (Defect::PurgedGoesBack, "a purge or truncation below an earlier purge takes nothing back"),
        (Defect::ReadsWithoutBound, "reads are bounded in bytes, but give one entry at least"),
        (Defect::ReadsNothingIfTooLarge, "reads are bounded in bytes, but give one entry at least"),
        (Defect::RefusesToReadBeyond, "a read beyond the end gives what there is, or says what is missing"),
        (
            Defect::AcceptsGaps,
            "entries that do not follow the log are refused, and nothing of their batch is written",
        ),
        (
            Defect::WritesTheVoteOfMisuse,
            "entries that do not follow the log are refused, and nothing of their batch is written",
        ),
        (Defect::MissesEntriesWhileWriting, "a read beside a write gives whole entries in order"),
        (Defect::RemembersTruncatedMemberships, "any sequence of batches acts like the model"),
    ];
    assert_rejected(&rules(), &table, |defect| run_suite(|| Place::new(defect), Place::open));
}

#[test]
fn each_rule_of_a_failing_disk_rejects_what_breaks_it() {
    let table = [
        (
            Defect::WritesOnAfterFailure,
            "after a failed write every other is refused, even if the disk works again",
        ),
        (Defect::WritesTheVoteOfAFailure, "of a failed write all or nothing is there after reopening"),
    ];
    assert_rejected(&failing_disk_rules(), &table, |defect| {
        run_failing_disk_suite(|| Place::new(defect), Place::open, Place::fail);
    });
}

#[test]
fn each_rule_of_a_full_disk_rejects_what_breaks_it() {
    let table = [
        (
            Defect::GivesNothingBack,
            "entries without room are given back, and nothing of their batch is written",
        ),
        (
            Defect::WritesTheVoteWithoutRoom,
            "entries without room are given back, and nothing of their batch is written",
        ),
        (Defect::RefusesVotesWithoutRoom, "a purge or a vote is taken without room"),
        (Defect::StaysFull, "what was refused for want of room may be written later"),
    ];
    assert_rejected(&full_disk_rules(), &table, |defect| {
        run_full_disk_suite(|| Place::new(defect), Place::open, Place::fill);
    });
}

/// A disk and how often it was opened.
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
    /// What is written to and read from.
    memory: MemLogStorage,
    /// What is opened next time: the same, but for what writes late.
    disk: MemLogStorage,
    opened: u64,
    full: bool,
    writing: AtomicBool,
    seen: Arc<Mutex<Seen>>,
}

/// What was written to a place.
#[derive(Default)]
struct Seen {
    /// Since it was opened.
    last_batch: LogBatch,
    memberships: Vec<(LogIndex, Membership)>,
    /// What was purged last, be it below what was purged before.
    purge: Option<SnapshotMeta>,
}

impl Broken {
    fn last(&self) -> LogIndex {
        self.memory.load().unwrap().last().index
    }

    fn vote_of(batch: &LogBatch) -> LogBatch {
        LogBatch { hard_state: batch.hard_state.clone(), ..LogBatch::default() }
    }

    /// What becomes of a batch before it is written.
    fn distort(&self, batch: &mut LogBatch) {
        match self.defect {
            Defect::ForgetsTheInstallation => {
                batch.hard_state.iter_mut().for_each(|hard_state| hard_state.installing = None);
            }
            Defect::ForgetsTheHardState => drop(batch.hard_state.get_or_insert_default()),
            Defect::DropsWhatReplacesATail if batch.truncate_after.is_some() => batch.entries.clear(),
            Defect::TruncatesAllIfBeyond if batch.truncate_after.is_some_and(|after| after > self.last()) => {
                batch.truncate_after = Some(LogIndex::ZERO);
            }
            Defect::KeepsWhatIsPurged => batch.purge = None,
            Defect::ForgetsTheConfigurationPurged => {
                batch.purge.iter_mut().for_each(|meta| meta.membership = Membership::default());
            }
            Defect::PurgesToTheEndOnly => {
                let last = self.memory.load().unwrap().last();
                batch.purge.iter_mut().for_each(|meta| meta.last = meta.last.min(last));
            }
            _ => {}
        }
    }

    /// What is made of a refusal.
    fn refused(&self, error: StorageError, batch: &LogBatch) -> Result<(), StorageError> {
        match (self.defect, &error) {
            (Defect::AcceptsGaps, StorageError::Misuse(_)) => return Ok(()),
            (Defect::WritesTheVoteOfMisuse, StorageError::Misuse(_))
            | (Defect::WritesTheVoteWithoutRoom, StorageError::NoRoom { .. }) => {
                self.memory.write(Self::vote_of(batch))?;
            }
            (Defect::WritesTheVoteOfAFailure, StorageError::Io { .. }) => {
                self.disk.fail_writes(false);
                self.disk.write(Self::vote_of(batch))?;
                self.disk.fail_writes(true);
            }
            (Defect::GivesNothingBack, StorageError::NoRoom { why, .. }) => {
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
            Defect::NewIdentityAtEachOpening => state.storage = StorageId(self.opened),
            Defect::OneIdentityForAll => state.storage = StorageId(7),
            Defect::PurgedGoesBack => {
                state.purged = seen.purge.clone().unwrap_or(state.purged);
            }
            Defect::RemembersTruncatedMemberships => state.memberships = seen.memberships.clone(),
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
            Defect::WritesOnAfterFailure => self.memory.clone().write(batch.clone()),
            _ => self.memory.write(batch.clone()),
        };
        if self.defect == Defect::MissesEntriesWhileWriting {
            // So that most of the time is spent here.
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
