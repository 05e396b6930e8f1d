//! Owns the state machine, normally on a dedicated thread.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use consensus_core::{
    Committed, Entry, LogId, LogIndex, LogStorage, NodeId, Payload, ProposeError, Snapshot, StateMachine,
    StateMachineError, StorageError,
};

use crate::{
    inbox::{FlushedFor, Input},
    measure,
    waiters::Waiter,
    worker::{Next, Report, Work},
};

/// A job for the state machine. Jobs run in order.
pub(crate) enum Job {
    /// Apply the entries in `(after, last]`; `entries` has them if they are in memory. Waiting clients get their results
    /// directly.
    Apply {
        after: LogIndex,
        last: LogIndex,
        entries: Option<Vec<Entry>>,
        waiters: AppliedWaiters,
    },
    /// Flush in the background if the state machine can. If not: flush now for a compaction, or as part of taking the
    /// snapshot.
    Flush(FlushedFor),
    TakeSnapshot(NodeId),
    /// Restore the snapshot in this file, whose last entry is given.
    Install(std::fs::File, LogId),
}

/// Clients whose commands are being applied, in log order. If `apply` fails, the applier responds to them; after other failures
/// the engine's task does, when it shuts down.
pub(crate) type AppliedWaiters = Arc<Mutex<VecDeque<(LogIndex, Waiter)>>>;

/// Removes and returns all waiting clients.
pub(crate) fn take_all(waiters: &AppliedWaiters) -> VecDeque<(LogIndex, Waiter)> {
    std::mem::take(&mut *waiters.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Runs the jobs. Stops after a failed `apply`, and after an error of any call that leaves the state in doubt; otherwise flushes
/// once more at the end.
pub(crate) struct Applier {
    machine: Box<dyn StateMachine>,
    /// Whether this node is a witness, whose log has no commands.
    witness: bool,
    storage: Arc<dyn LogStorage>,
    /// Maximum bytes of entries in one read.
    read_bytes_max: u64,
    applied: LogId,
    /// Whether the last attempt to read committed entries failed.
    is_reading_failing: bool,
    stages: measure::Stages,
}

/// Why entries were not applied.
enum ApplyFailure {
    /// A final error.
    Failed(StateMachineError),
    /// The log could not be read; the job is retried.
    Unread(StorageError),
}

impl From<StateMachineError> for ApplyFailure {
    fn from(error: StateMachineError) -> Self {
        Self::Failed(error)
    }
}

impl Work for Applier {
    type Job = Job;

    fn work(&mut self, job: Job, report: Report<'_>) -> Next<Job> {
        let (input, sound) = match job {
            Job::Apply { after, last, entries, waiters } => {
                let _apply = tracing::debug_span!("apply", %after, %last).entered();
                match self.apply_all(after, last, entries, &waiters) {
                    Ok(()) => (Input::Applied(Ok(last)), true),
                    Err(ApplyFailure::Failed(error)) => (Input::Applied(Err(error)), false),
                    Err(ApplyFailure::Unread(error)) => {
                        if !std::mem::replace(&mut self.is_reading_failing, true) {
                            tracing::warn!(%error, "cannot read committed entries from the log; retrying");
                        }
                        let after = after.max(self.applied.index);
                        return Next::Retry(Job::Apply { after, last, entries: None, waiters }, READ_RETRY);
                    }
                }
            }
            Job::Flush(why) => match (guarded(|| Ok(self.machine.flush_in_background())), why) {
                (Ok(Some(work)), _) => (Input::FlushInBackground(work, why), true),
                (Ok(None), FlushedFor::Snapshot(to)) => self.take_snapshot(to),
                (begun, _) => {
                    let _flush = tracing::debug_span!("flush").entered();
                    let result = begun.and_then(|_| guarded(|| self.machine.flush()));
                    let sound = is_sound(&result);
                    (Input::Flushed(result, why), sound)
                }
            },
            Job::TakeSnapshot(to) => self.take_snapshot(to),
            Job::Install(mut file, last) => {
                let _install = tracing::info_span!("install", %last).entered();
                let result = guarded(|| self.machine.restore(&mut file));
                let sound = is_sound(&result);
                if result.is_ok() {
                    measure::snapshot_installed();
                    self.applied = last;
                }
                (Input::Installed(result), sound)
            }
        };
        // The report may fail while the engine ends; applied entries are flushed nevertheless.
        report(input);
        if sound { Next::Ready } else { Next::Stop }
    }

    fn end(&mut self) {
        if let Err(error) = guarded(|| self.machine.flush()) {
            tracing::error!(%error, "the last flush failed; entries will be applied again after the next start");
        }
    }
}

impl Applier {
    pub(crate) fn new(
        machine: Box<dyn StateMachine>,
        witness: bool,
        storage: Arc<dyn LogStorage>,
        read_bytes_max: u64,
    ) -> Self {
        let applied = machine.applied();
        let (is_reading_failing, stages) = (false, measure::Stages::new());
        Self { machine, witness, storage, read_bytes_max, applied, is_reading_failing, stages }
    }

    fn take_snapshot(&mut self, to: NodeId) -> (Input, bool) {
        let _span = tracing::debug_span!("take_snapshot", %to).entered();
        let result =
            guarded(|| self.machine.snapshot()).map(|snapshot: Box<dyn Snapshot>| (self.applied, snapshot));
        let sound = is_sound(&result);
        (Input::SnapshotTaken(to, result), sound)
    }

    fn apply_all(
        &mut self,
        mut after: LogIndex,
        last: LogIndex,
        entries: Option<Vec<Entry>>,
        waiters: &AppliedWaiters,
    ) -> Result<(), ApplyFailure> {
        if let Some(entries) = entries {
            return Ok(self.apply(&entries, waiters)?);
        }
        while after < last {
            let read = self.storage.read(after, last, self.read_bytes_max);
            let entries = read.map_err(|error| match error {
                StorageError::Io { .. } => ApplyFailure::Unread(error),
                other => StateMachineError::Other(other.to_string()).into(),
            })?;
            if std::mem::take(&mut self.is_reading_failing) {
                tracing::info!("committed entries can be read from the log again");
            }
            self.apply(&entries, waiters)?;
            if self.applied.index <= after {
                return Err(
                    StateMachineError::Other(format!("the log returned no entry after {after}")).into()
                );
            }
            after = self.applied.index;
        }
        Ok(())
    }

    fn apply(&mut self, mut entries: &[Entry], waiters: &AppliedWaiters) -> Result<(), StateMachineError> {
        while !entries.is_empty() {
            let applied = self.apply_some(entries, waiters)?;
            entries = &entries[applied..];
        }
        Ok(())
    }

    /// Applies the first entries, as many as the state machine accepts in one call. Returns their number.
    fn apply_some(
        &mut self,
        entries: &[Entry],
        waiters: &AppliedWaiters,
    ) -> Result<usize, StateMachineError> {
        let withheld = entries.iter().find(|entry| entry.payload == Payload::Withheld);
        if let Some(entry) = withheld.filter(|_| !self.witness) {
            return Err(StateMachineError::Other(format!(
                "the log is that of a witness, without the command of entry {}: start this node as a witness, or replace it: remove it from the cluster, empty its data directory, and add it again",
                entry.id
            )));
        }
        measure::applying(entries.len());
        let committed = Instant::now();
        let responses = guarded(|| self.machine.apply(entries)).inspect_err(|error| {
            let why = error.to_string();
            for (_, waiter) in take_all(waiters) {
                waiter.answer(Err(ProposeError::Fatal { why: why.clone() }));
            }
        })?;
        if responses.is_empty() || responses.len() > entries.len() {
            let why = format!("it returned {} responses to {} entries", responses.len(), entries.len());
            return Err(StateMachineError::Other(why));
        }
        let applied = Instant::now();
        let count = responses.len();
        let mut waiters = waiters.lock().unwrap_or_else(PoisonError::into_inner);
        for (entry, response) in entries.iter().zip(responses) {
            if waiters.front().is_some_and(|(index, _)| *index == entry.id.index)
                && let Some((_, waiter)) = waiters.pop_front()
            {
                waiter.timing.applied(committed, applied, &self.stages);
                waiter.answer(Ok(Committed { log_id: entry.id, response }));
            }
            self.applied = entry.id;
        }
        Ok(count)
    }
}

/// Whether the state machine is in a known state: every error except `Broken` leaves it unchanged.
fn is_sound<T>(result: &Result<T, StateMachineError>) -> bool {
    !matches!(result, Err(StateMachineError::Broken(_)))
}

/// Calls the state machine. A panic in it stops the engine, not the process.
pub(crate) fn guarded<T>(
    call: impl FnOnce() -> Result<T, StateMachineError>,
) -> Result<T, StateMachineError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(StateMachineError::Broken(describe(&*panic))))
}

pub(crate) fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a message"))
}

/// Pause before entries that could not be read are read again.
const READ_RETRY: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use consensus_testkit::{Journal, MemLogStorage};
    use tokio::sync::mpsc;

    use super::*;
    use crate::worker::Worker;

    #[test]
    fn entries_applied_during_shutdown_are_flushed() {
        let (inbox, inputs) = mpsc::unbounded_channel();
        drop(inputs);
        let journal = Journal::new();
        let reader = journal.reader();
        let applier = Applier::new(Box::new(journal), false, Arc::new(MemLogStorage::new()), 4 << 20);
        let mut worker = Worker::spawn("apply", tracing::Span::none(), inbox, applier).unwrap();
        let entry = Entry::command(LogId::new(1, 1), "x");
        let (after, last) = (LogIndex(0), LogIndex(1));
        let job = Job::Apply { after, last, entries: Some(vec![entry]), waiters: AppliedWaiters::default() };
        assert!(worker.give(job, false, &mut Vec::new()));
        worker.end().unwrap().join().unwrap();
        assert_eq!(Journal::reopen(&reader).reader().commands(), reader.commands());
        assert_eq!(reader.commands().len(), 1);
    }
}
