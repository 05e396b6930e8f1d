//! What owns the state machine, on a thread of its own as a rule.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use consensus_core::{
    Committed, Entry, LogId, LogIndex, LogStorage, NodeId, Payload, ProposeError, Snapshot, StateMachine,
    StateMachineError,
};

use crate::{
    inbox::{FlushedFor, Input},
    measure,
    waiters::Waiter,
    worker::{Next, Report, Work},
};

/// Work for the state machine, done in order.
pub(crate) enum Job {
    /// Apply `(after, last]`; `entries` if they are in memory. Those who wait are told from here, without a detour.
    Apply {
        after: LogIndex,
        last: LogIndex,
        entries: Option<Vec<Entry>>,
        waiters: Vec<(LogIndex, Waiter)>,
    },
    /// Flush beside the jobs after this, if the machine can. If not: now for a compaction, within the picture for a snapshot.
    Flush(FlushedFor),
    TakeSnapshot(NodeId),
    /// Restore from the file; the snapshot's last entry.
    Install(std::fs::File, LogId),
}

/// Takes no more jobs after the machine's first error; ends with a last flush otherwise.
pub(crate) struct Applier {
    machine: Box<dyn StateMachine>,
    /// There need not be commands in the log.
    witness: bool,
    storage: Arc<dyn LogStorage>,
    /// Most bytes of entries that are read at once.
    read_bytes_max: u64,
    applied: LogId,
    stages: measure::Stages,
}

impl Work for Applier {
    type Job = Job;

    fn work(&mut self, job: Job, report: Report<'_>) -> Next<Job> {
        let (input, sound) = match job {
            Job::Apply { after, last, entries, waiters } => {
                let _apply = tracing::debug_span!("apply", %after, %last).entered();
                let result = self.apply_all(after, last, entries, waiters.into());
                let sound = result.is_ok();
                (Input::Applied(result.map(|()| last)), sound)
            }
            Job::Flush(why) => match (guarded(|| Ok(self.machine.flush_aside())), why) {
                (Ok(Some(work)), _) => (Input::FlushAside(work, why), true),
                (Ok(None), FlushedFor::Snapshot(to)) => self.take_snapshot(to),
                (begun, _) => {
                    let _flush = tracing::debug_span!("flush").entered();
                    let result = begun.and_then(|_| guarded(|| self.machine.flush()));
                    let sound = result.is_ok();
                    (Input::Flushed(result, why), sound)
                }
            },
            Job::TakeSnapshot(to) => self.take_snapshot(to),
            Job::Install(mut file, last) => {
                let _install = tracing::info_span!("install", %last).entered();
                let result = guarded(|| self.machine.restore(&mut file));
                let sound = result.is_ok();
                if sound {
                    measure::snapshot_installed();
                    self.applied = last;
                }
                (Input::Installed(result), sound)
            }
        };
        // Heard or not: an engine that is ending listens no more, and what was applied is flushed all the same.
        report(input);
        if sound { Next::Ready } else { Next::Over }
    }

    fn end(&mut self) {
        if let Err(error) = guarded(|| self.machine.flush()) {
            tracing::error!(%error, "the last flush failed; the log will be applied again");
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
        Self { machine, witness, storage, read_bytes_max, applied, stages: measure::Stages::new() }
    }

    fn take_snapshot(&mut self, to: NodeId) -> (Input, bool) {
        let _picture = tracing::debug_span!("picture", %to).entered();
        let result =
            guarded(|| self.machine.snapshot()).map(|picture: Box<dyn Snapshot>| (self.applied, picture));
        let sound = result.is_ok();
        (Input::SnapshotTaken(to, result), sound)
    }

    fn apply_all(
        &mut self,
        mut after: LogIndex,
        last: LogIndex,
        entries: Option<Vec<Entry>>,
        mut waiters: VecDeque<(LogIndex, Waiter)>,
    ) -> Result<(), StateMachineError> {
        if let Some(entries) = entries {
            return self.apply(&entries, &mut waiters);
        }
        while after < last {
            let read = self.storage.read(after, last, self.read_bytes_max);
            let entries = read.map_err(|error| StateMachineError::Other(error.to_string()))?;
            self.apply(&entries, &mut waiters)?;
            if self.applied.index <= after {
                return Err(StateMachineError::Other(format!("the log gave no entry after {after}")));
            }
            after = self.applied.index;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: &mut VecDeque<(LogIndex, Waiter)>,
    ) -> Result<(), StateMachineError> {
        let withheld = entries.iter().find(|entry| entry.payload == Payload::Withheld);
        if let Some(entry) = withheld.filter(|_| !self.witness) {
            return Err(StateMachineError::Other(format!(
                "the log is a witness's, without the command of entry {}: start this node as a witness, or empty its disk and add it again",
                entry.id
            )));
        }
        measure::applying(entries.len());
        let committed = Instant::now();
        let responses = guarded(|| self.machine.apply(entries)).inspect_err(|error| {
            let why = error.to_string();
            for (_, waiter) in waiters.drain(..) {
                waiter.answer(Err(ProposeError::Fatal { why: why.clone() }));
            }
        })?;
        if responses.len() != entries.len() {
            let why = format!("it gave {} responses to {} entries", responses.len(), entries.len());
            return Err(StateMachineError::Other(why));
        }
        let applied = Instant::now();
        for (entry, response) in entries.iter().zip(responses) {
            if waiters.front().is_some_and(|(index, _)| *index == entry.id.index)
                && let Some((_, waiter)) = waiters.pop_front()
            {
                waiter.course.applied(committed, applied, &self.stages);
                waiter.answer(Ok(Committed { log_id: entry.id, response }));
            }
            self.applied = entry.id;
        }
        Ok(())
    }
}

/// A panic of the state machine stops its engine, not the process.
pub(crate) fn guarded<T>(
    call: impl FnOnce() -> Result<T, StateMachineError>,
) -> Result<T, StateMachineError> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|panic| Err(StateMachineError::Other(describe(&*panic))))
}

pub(crate) fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a message"))
}

#[cfg(test)]
mod tests {
    use consensus_testkit::{Journal, MemLogStorage};
    use tokio::sync::mpsc;

    use super::*;
    use crate::worker::Worker;

    #[test]
    fn what_is_applied_while_the_engine_ends_is_flushed() {
        let (inbox, inputs) = mpsc::unbounded_channel();
        drop(inputs);
        let journal = Journal::new();
        let reader = journal.reader();
        let applier = Applier::new(Box::new(journal), false, Arc::new(MemLogStorage::new()), 4 << 20);
        let mut worker = Worker::spawn("apply", tracing::Span::none(), inbox, applier).unwrap();
        let entry = Entry::command(LogId::new(1, 1), "x");
        let (after, last) = (LogIndex(0), LogIndex(1));
        let job = Job::Apply { after, last, entries: Some(vec![entry]), waiters: Vec::new() };
        assert!(worker.give(job, false, &mut Vec::new()));
        worker.end().unwrap().join().unwrap();
        assert_eq!(Journal::reopen(&reader).reader().commands(), reader.commands());
        assert_eq!(reader.commands().len(), 1);
    }
}
