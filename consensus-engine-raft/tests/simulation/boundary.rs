//! The boundary between an engine and its log, state machine and network: checks the engine's calls, records events,
//! and loses the power at a chosen step.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use consensus_core::{
    Entry, HardState, LogBatch, LogId, LogIndex, LogState, LogStorage, Payload, SnapshotMeta, StorageError,
    Term,
};
use consensus_testkit::{SimDir, durable_position};

use super::{
    Record,
    log_disk::{Left, LogDisk},
};

/// One incarnation of a node.
pub(crate) struct Boundary {
    pub(crate) node: u64,
    pub(crate) log: LogDisk,
    /// Disk of the state machine.
    pub(crate) dir: SimDir,
    record: Arc<Mutex<Record>>,
    known: Mutex<Known>,
    /// Calls that fail without an effect until the fault ends.
    failing: [AtomicBool; Failing::ALL.len()],
    /// Whether the engine has ended.
    is_closed: AtomicBool,
}

/// A kind of call of storage or state machine that can fail without an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failing {
    Snapshots,
    Flushes,
    Restores,
    Reads,
}

impl Failing {
    pub(crate) const ALL: [Self; 4] = [Self::Snapshots, Self::Flushes, Self::Restores, Self::Reads];
}

/// State of the log and the machine according to the engine's calls.
#[derive(Debug, Default)]
pub(crate) struct Known {
    hard_state: HardState,
    purged: LogId,
    /// Durable entries of the log.
    terms: BTreeMap<LogIndex, Term>,
    /// Indices of the configurations in the log.
    memberships: Vec<LogIndex>,
    pub(crate) applied: LogId,
    /// Snapshots that were installed.
    pub(crate) installs: u64,
    /// Step at which the power will be lost.
    crash: Option<Crash>,
}

impl Known {
    /// Last durable entry.
    fn last(&self) -> LogId {
        self.terms.last_key_value().map_or(self.purged, |(index, term)| LogId { term: *term, index: *index })
    }

    /// Index of the newest configuration in the log.
    fn newest_membership(&self) -> LogIndex {
        self.memberships.last().copied().unwrap_or(self.purged.index)
    }
}

/// A step at which the power is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// In a write to the log, after this number of further writes.
    Write(u64, Left),
    /// When `installing` is durable.
    InstallMarked,
    /// In the restore of an install, after this number of operations on the machine's files.
    InstallRestored(u64),
    /// In the write that purges the log after the restore.
    InstallPurged(Left),
}

impl Boundary {
    pub(crate) fn new(
        node: u64,
        log: LogDisk,
        dir: SimDir,
        record: Arc<Mutex<Record>>,
        crash: Option<Crash>,
    ) -> Arc<Self> {
        let known = Mutex::new(Known { crash, ..Known::default() });
        Arc::new(Self {
            node,
            log,
            dir,
            record,
            known,
            failing: Default::default(),
            is_closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap()
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Sets the step at which the power will be lost, if any.
    pub(crate) fn set_crash(&self, crash: Option<Crash>) {
        self.known().crash = crash;
        if crash.is_none() {
            self.dir.keep_power();
        }
    }

    /// Whether the log lacks entries that it had before.
    pub(crate) fn is_damaged(&self) -> bool {
        self.known().hard_state.lost_through.is_some()
    }

    /// Makes such calls fail from now on, or succeed again.
    pub(crate) fn fail_calls(&self, kind: Failing, fail: bool) {
        self.failing[kind as usize].store(fail, Ordering::Relaxed);
    }

    /// Whether such a call fails now.
    pub(crate) fn fails(&self, kind: Failing) -> bool {
        self.failing[kind as usize].load(Ordering::Relaxed)
    }

    /// Must be called when the engine has ended. It must not use log and state machine any more.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check_open(&self, what: &str) {
        if self.is_closed.load(Ordering::Relaxed) {
            self.fail(format!("{what} after the shutdown"));
        }
    }

    /// Last purged entry of the log.
    pub(crate) fn purged(&self) -> LogId {
        self.known().purged
    }

    pub(crate) fn power_is_lost(&self) -> bool {
        self.log.power_is_lost() || self.dir.power_is_lost()
    }

    fn fail(&self, why: String) {
        self.record().fail(format!("node {}: {why}", self.node));
    }

    /// Whether the power is lost in this write, and what is left of it.
    fn crash_in(&self, known: &mut Known, batch: &LogBatch) -> Option<Left> {
        let is_marked = known.hard_state.installing.is_some();
        let marks = batch.hard_state.as_ref().is_some_and(|hard| hard.installing.is_some()) && !is_marked;
        match known.crash? {
            Crash::Write(0, left) => Some(left),
            Crash::Write(more, left) => {
                known.crash = Some(Crash::Write(more - 1, left));
                None
            }
            Crash::InstallMarked if marks => Some(Left::Everything),
            Crash::InstallPurged(left) if is_marked && batch.purge.is_some() => Some(left),
            _ => None,
        }
    }

    /// Schedules the loss of power within a restore, if chosen.
    pub(crate) fn crash_in_restore(&self) {
        if let Some(Crash::InstallRestored(operations)) = self.known().crash {
            self.dir.lose_power_after(operations);
        }
    }

    fn check_batch(&self, known: &Known, batch: &LogBatch) {
        if let Some(hard) = &batch.hard_state {
            self.check_hard_state(known, hard, batch);
        }
        if let Some(meta) = &batch.purge {
            let durable = durable_position(&self.dir);
            if meta.last.index > durable.index {
                self.fail(format!(
                    "the log is purged up to {}, the state is durable up to {durable}",
                    meta.last
                ));
            }
            self.check_meta("a purge", meta);
        }
        // A damaged log may be truncated below the applied position, and fetched again.
        let hard = batch.hard_state.as_ref().unwrap_or(&known.hard_state);
        let cut =
            batch.truncate_after.filter(|cut| *cut < known.applied.index && hard.lost_through.is_none());
        if let Some(cut) = cut.filter(|cut| batch.purge.as_ref().is_none_or(|meta| meta.last.index != *cut)) {
            self.fail(format!("the log is truncated after {cut}, but {} is applied", known.applied));
        }
    }

    fn check_hard_state(&self, known: &Known, hard: &HardState, batch: &LogBatch) {
        let before = &known.hard_state;
        let revoted =
            hard.term == before.term && before.voted_for.is_some() && hard.voted_for != before.voted_for;
        if hard.term < before.term || revoted {
            self.fail(format!("I1, I7: the hard state changes from {before:?} to {hard:?}"));
        }
        // Until the log has caught up.
        let last = batch.purge.as_ref().map_or(LogId::ZERO, |meta| meta.last).max(known.last());
        let lost = before.lost_through.filter(|lost| last < *lost);
        if lost.is_some_and(|lost| hard.lost_through.is_none_or(|new| new < lost)) {
            self.fail(format!(
                "I16: the log lost entries up to {lost:?}, but this changes to {:?}",
                hard.lost_through
            ));
        }
        if let Some(meta) = hard.installing.as_ref().filter(|meta| before.installing.as_ref() != Some(meta)) {
            self.check_meta("a snapshot", meta);
        }
    }

    /// Checks that a snapshot covers only committed entries, and has the committed configuration.
    fn check_meta(&self, what: &str, meta: &SnapshotMeta) {
        let mut record = self.record();
        if let Some(why) = record.differs_from_committed(meta) {
            record.fail(format!("node {}: {what} up to {}: {why}", self.node, meta.last));
        }
    }

    fn note_written(&self, known: &mut Known, written: Written) {
        if let Some(purged) = written.purged {
            if known.last().index > known.applied.index {
                self.record().count("log purged while entries wait to be applied");
            }
            known.purged = purged;
            known.terms = known.terms.split_off(&purged.index.next());
        }
        if let Some(cut) = written.truncate_after {
            known.terms.split_off(&cut.next());
        }
        let left = (known.purged.index.next(), known.last().index);
        known.memberships.retain(|at| (left.0..=left.1).contains(at));
        known.memberships.extend(written.memberships);
        known.terms.extend(written.entries.iter().map(|id| (id.index, id.term)));
        known.hard_state = written.hard_state.unwrap_or_else(|| std::mem::take(&mut known.hard_state));
    }

    /// Records a snapshot that is taken while the log has later entries.
    pub(crate) fn note_snapshot_taken(&self) {
        let (known, mut record) = (self.known(), self.record());
        if known.last().index > known.applied.index {
            record.count("snapshot taken before the end of the log");
        }
        if known.newest_membership() > known.applied.index {
            record.count("snapshot taken before a newer configuration in the log");
        }
    }

    /// Checks that the restored state is the announced one; `before` is the position that it replaces.
    pub(crate) fn check_restored(&self, before: LogId, after: LogId) {
        let mut known = self.known();
        let (installing, last) = (known.hard_state.installing.clone(), known.last());
        let newest_membership = known.newest_membership();
        known.installs += 1;
        known.applied = after;
        drop(known);
        let Some(meta) = installing else {
            return self.fail(format!("I11: {after} is restored without a durable `installing`"));
        };
        if meta.last != after {
            self.fail(format!("the snapshot of {} that is installed has the state of {after}", meta.last));
        }
        if after.index < before.index {
            self.fail(format!("S3: a snapshot takes the state back from {before} to {after}"));
        }
        let mut record = self.record();
        record.count("snapshot installed");
        if last.index > before.index {
            record.count("snapshot installed over entries that are not applied");
        }
        if record.membership_index(meta.last.index) > newest_membership {
            record.count("snapshot brought a configuration that the log did not have");
        }
    }

    /// Records the state that a start found.
    fn note_loaded(&self, state: &LogState) {
        let mut known = self.known();
        let mut record = self.record();
        known.hard_state = state.hard_state.clone();
        known.purged = state.purged.last;
        known.terms = state.entries.iter().map(|(id, _)| (id.index, id.term)).collect();
        known.memberships = state.memberships.iter().map(|(at, _)| *at).collect();
        if state.damage.is_some() && state.hard_state.lost_through.is_some() {
            record.count("damage found while an earlier one is repaired");
        }
        if let Some(meta) = &state.hard_state.installing {
            record.count(if known.applied.index >= meta.last.index {
                "interrupted install finished at the start"
            } else {
                "interrupted install discarded at the start"
            });
        }
    }
}

/// Parts of a batch that are recorded when it is durable.
struct Written {
    hard_state: Option<HardState>,
    purged: Option<LogId>,
    truncate_after: Option<LogIndex>,
    memberships: Vec<LogIndex>,
    entries: Vec<LogId>,
}

impl Written {
    fn of(batch: &LogBatch) -> Self {
        let is_membership = |entry: &&Entry| matches!(entry.payload, Payload::Membership(_));
        Self {
            hard_state: batch.hard_state.clone(),
            purged: batch.purge.as_ref().map(|meta| meta.last),
            truncate_after: batch.truncate_after,
            memberships: batch.entries.iter().filter(is_membership).map(|entry| entry.id.index).collect(),
            entries: batch.entries.iter().map(|entry| entry.id).collect(),
        }
    }
}

/// The log of an engine, with checks.
pub(crate) struct WatchedLog(pub(crate) Arc<Boundary>);

impl LogStorage for WatchedLog {
    fn load(&self) -> Result<LogState, StorageError> {
        let state = self.0.log.load()?;
        self.0.note_loaded(&state);
        Ok(state)
    }

    fn write(&self, batch: LogBatch) -> Result<(), StorageError> {
        let boundary = &*self.0;
        boundary.check_open("a write of the log");
        if boundary.power_is_lost() {
            return Err(StorageError::Failed("the power is lost".to_owned()));
        }
        let (crash, noted) = {
            let mut known = boundary.known();
            boundary.check_batch(&known, &batch);
            (boundary.crash_in(&mut known, &batch), Written::of(&batch))
        };
        boundary.log.write(batch, crash)?;
        boundary.note_written(&mut boundary.known(), noted);
        Ok(())
    }

    fn read(&self, after: LogIndex, last: LogIndex, max_bytes: u64) -> Result<Vec<Entry>, StorageError> {
        self.0.check_open("a read of the log");
        if self.0.fails(Failing::Reads) {
            let is_for_apply = max_bytes < u64::MAX;
            self.0.record().count(if is_for_apply {
                "committed entries not read"
            } else {
                "entries for a follower not read"
            });
            let source = std::io::Error::other("the simulation makes reads fail");
            return Err(StorageError::Io { context: "reading the log".to_owned(), source });
        }
        let entries = self.0.log.read(after, last, max_bytes)?;
        // Only the apply thread limits the bytes of a read.
        if max_bytes < u64::MAX && entries.last().is_some_and(|entry| entry.id.index < last) {
            self.0.record().count("committed entries read in several pages");
        }
        Ok(entries)
    }
}

/// Present addresses of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Addresses(Mutex<BTreeMap<u64, u16>>);

impl Addresses {
    pub(crate) fn of(&self, node: u64) -> u16 {
        self.0.lock().unwrap().get(&node).copied().unwrap_or_default()
    }

    pub(crate) fn set(&self, node: u64, port: u16) {
        self.0.lock().unwrap().insert(node, port);
    }
}
