//! The suite of `StateMachine` rejects a journal with one defect at a time.

mod common;

use std::{
    cell::Cell,
    io::{Read, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use common::assert_rejected;
use consensus_core::{Entry, FlushWork, LogId, Payload, Snapshot, StateMachine, StateMachineError, codec};
use consensus_testkit::{
    Journal, JournalReader,
    state_machine::{Fixture, rules, run_suite},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    StartsAtNonzeroPosition,
    RespondsToNonCommands,
    RespondsToCommandsOnly,
    CountsCommandsOnly,
    RespondsFromAClock,
    RespondsByPositionInBatch,
    ReportsFlushBeyondApplied,
    ReportsFlushWithoutFlushing,
    ReportsBackgroundFlushWithoutFlushing,
    RespondsDifferentlyAfterRestart,
    SnapshotShowsLaterState,
    UnwrittenSnapshotChangesState,
    IgnoresErrorsOfTheStream,
    MergesOnRestore,
    KeepsPositionOnRestore,
    RespondsDifferentlyAfterRestore,
    RestoresInMemoryOnly,
    AcceptsAnythingAsSnapshot,
    ClearsStateOnBadSnapshot,
    ClearsStateOnBrokenStream,
}

#[test]
fn state_machine_without_defect_passes() {
    run_suite(|| Place::new(Defect::None));
}

#[test]
fn each_rule_rejects_its_defects() {
    let no_command = "every entry has one response, which is empty if the entry has no command";
    let replaces = "a restore replaces the whole state, including the applied position";
    let malformed = "an incomplete or malformed snapshot is refused and changes nothing";
    let table = [
        (Defect::StartsAtNonzeroPosition, "a new machine has applied nothing"),
        (Defect::RespondsToNonCommands, no_command),
        (Defect::RespondsToCommandsOnly, no_command),
        (
            Defect::CountsCommandsOnly,
            "the applied position is that of the last entry, with or without a command",
        ),
        (Defect::RespondsFromAClock, "the same batches give the same state and the same responses"),
        (Defect::RespondsByPositionInBatch, "the division of entries into batches has no effect"),
        (Defect::ReportsFlushBeyondApplied, "the flushed position is not after the applied position"),
        (
            Defect::ReportsFlushWithoutFlushing,
            "after a restart the machine continues at the flushed position or later",
        ),
        (
            Defect::ReportsBackgroundFlushWithoutFlushing,
            "the result of a background flush is present after a restart",
        ),
        (
            Defect::RespondsDifferentlyAfterRestart,
            "entries that are applied again after a restart have the same responses",
        ),
        (Defect::SnapshotShowsLaterState, "a snapshot has the state at the time when it was taken"),
        (Defect::UnwrittenSnapshotChangesState, "a snapshot that is never written changes nothing"),
        (Defect::IgnoresErrorsOfTheStream, "a snapshot returns an error of the stream that it is written to"),
        (Defect::MergesOnRestore, replaces),
        (Defect::KeepsPositionOnRestore, replaces),
        (
            Defect::RespondsDifferentlyAfterRestore,
            "a restored machine continues like the one that took the snapshot",
        ),
        (Defect::RestoresInMemoryOnly, "a restored state is durable if the machine is durable"),
        (Defect::AcceptsAnythingAsSnapshot, malformed),
        (Defect::ClearsStateOnBadSnapshot, malformed),
        (Defect::ClearsStateOnBrokenStream, "a snapshot whose stream fails is refused and changes nothing"),
    ];
    assert_rejected(&rules(), &table, |defect| run_suite(|| Place::new(defect)));
}

/// Flushed content of a journal, and the number of times that it was opened.
struct Place {
    defect: Defect,
    disk: JournalReader,
    opened: Cell<u64>,
}

impl Place {
    fn new(defect: Defect) -> Self {
        Self { defect, disk: Journal::new().reader(), opened: Cell::new(0) }
    }
}

impl Fixture for Place {
    type Machine = Broken;

    fn open(&mut self) -> Broken {
        self.opened.set(self.opened.get() + 1);
        let reopened = self.opened.get() > 1;
        let journal = Arc::new(Mutex::new(self.disk.open()));
        Broken { defect: self.defect, journal, reopened, restored: false, last_command: LogId::ZERO }
    }

    fn command(&self, n: u64) -> Bytes {
        self.disk.command(n)
    }

    fn digest(&self, machine: &mut Broken) -> Vec<u8> {
        self.disk.digest(&mut machine.journal())
    }
}

struct Broken {
    defect: Defect,
    journal: Arc<Mutex<Journal>>,
    reopened: bool,
    restored: bool,
    /// Position of the last command.
    last_command: LogId,
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Content of a journal's snapshot.
type Content = (LogId, Vec<(LogId, Bytes)>);

fn content(journal: &mut Journal) -> Content {
    let mut stream = Vec::new();
    journal.snapshot().unwrap().write_to(&mut stream).unwrap();
    codec::decode("journal", 1, &stream).unwrap()
}

impl Broken {
    fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    /// Changes a response according to the defect.
    fn distort(&self, place: usize, response: &mut Bytes) {
        static CLOCK: AtomicU64 = AtomicU64::new(0);
        let wrong = match self.defect {
            Defect::RespondsToNonCommands if response.is_empty() => "nothing".to_owned(),
            Defect::RespondsFromAClock => CLOCK.fetch_add(1, Ordering::Relaxed).to_string(),
            Defect::RespondsByPositionInBatch => place.to_string(),
            Defect::RespondsDifferentlyAfterRestart if self.reopened => "again".to_owned(),
            Defect::RespondsDifferentlyAfterRestore if self.restored => "restored".to_owned(),
            _ => return,
        };
        if self.defect == Defect::RespondsToNonCommands || !response.is_empty() {
            *response = wrong.into();
        }
    }

    /// Content of the journal after a restore, according to the defect.
    fn restored(&self, before: Content, stream: &[u8]) -> Result<Content, StateMachineError> {
        let new = codec::decode::<Content>("journal", 1, stream);
        let (applied, mut commands) = match (self.defect, new) {
            (Defect::AcceptsAnythingAsSnapshot, Err(_)) => before.clone(),
            (_, new) => new?,
        };
        match self.defect {
            Defect::MergesOnRestore => {
                commands.extend(before.1.into_iter().filter(|(id, _)| id.index > applied.index));
                Ok((applied, commands))
            }
            Defect::KeepsPositionOnRestore => Ok((before.0, commands)),
            _ => Ok((applied, commands)),
        }
    }
}

impl StateMachine for Broken {
    fn applied(&self) -> LogId {
        match self.defect {
            Defect::StartsAtNonzeroPosition => self.journal().applied().max(LogId::new(1, 1)),
            Defect::CountsCommandsOnly => self.last_command,
            _ => self.journal().applied(),
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut responses = self.journal().apply(entries)?;
        for (place, (entry, response)) in entries.iter().zip(&mut responses).enumerate() {
            if matches!(entry.payload, Payload::Command(_)) {
                self.last_command = entry.id;
            }
            self.distort(place, response);
        }
        if self.defect == Defect::RespondsToCommandsOnly {
            responses.retain(|response| !response.is_empty());
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        let applied = self.journal().applied();
        match self.defect {
            Defect::ReportsFlushBeyondApplied => Ok(LogId { index: applied.index.next(), ..applied }),
            Defect::ReportsFlushWithoutFlushing => Ok(applied),
            _ => self.journal().flush(),
        }
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let applied = self.journal().applied();
        (self.defect == Defect::ReportsBackgroundFlushWithoutFlushing)
            .then(|| Box::new(move || Ok(applied)) as FlushWork)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let snapshot = codec::encode(1, &content(&mut self.journal()));
        Ok(Box::new(BrokenSnapshot {
            defect: self.defect,
            journal: self.journal.clone(),
            snapshot,
            written: false,
        }))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let (mut bytes, before) = (Vec::new(), content(&mut self.journal()));
        let empty = codec::encode(1, &Content::default());
        if let Err(error) = stream.read_to_end(&mut bytes) {
            if self.defect == Defect::ClearsStateOnBrokenStream {
                self.journal().restore(&mut &empty[..])?;
            }
            return Err(error.into());
        }
        let new = match self.restored(before, &bytes) {
            Ok(new) => codec::encode(1, &new),
            Err(error) => {
                if self.defect == Defect::ClearsStateOnBadSnapshot {
                    self.journal().restore(&mut &empty[..])?;
                }
                return Err(error);
            }
        };
        if self.defect == Defect::RestoresInMemoryOnly {
            self.journal = Arc::default(); // The restored state goes to another disk.
        }
        self.restored = true;
        self.journal().restore(&mut &new[..])
    }
}

struct BrokenSnapshot {
    defect: Defect,
    journal: Arc<Mutex<Journal>>,
    snapshot: Vec<u8>,
    written: bool,
}

impl Snapshot for BrokenSnapshot {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        self.written = true;
        match self.defect {
            Defect::SnapshotShowsLaterState => {
                let later = content(&mut lock(&self.journal));
                out.write_all(&codec::encode(1, &later))
            }
            Defect::IgnoresErrorsOfTheStream => {
                let _ = out.write_all(&self.snapshot);
                Ok(())
            }
            _ => out.write_all(&self.snapshot),
        }
    }
}

impl Drop for BrokenSnapshot {
    fn drop(&mut self) {
        if self.defect == Defect::UnwrittenSnapshotChangesState && !self.written {
            *lock(&self.journal) = Journal::new();
        }
    }
}
