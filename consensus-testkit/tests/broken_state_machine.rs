//! The suite of `StateMachine` rejects what is broken: a journal with one defect at a time.

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
    StartsSomewhere,
    AnswersWhatIsNoCommand,
    AnswersCommandsOnly,
    CountsCommandsOnly,
    AnswersFromAClock,
    AnswersByPlaceInTheBatch,
    FlushedMoreThanApplied,
    SaysItFlushed,
    SaysItFlushedAside,
    ForgetsWhatItAnswered,
    SnapshotShowsLaterState,
    UnwrittenSnapshotChangesState,
    SwallowsErrorsOfTheSink,
    MergesOnRestore,
    KeepsThePositionOnRestore,
    AnswersOtherwiseWhenRestored,
    RestoresInMemoryOnly,
    TakesAnythingForASnapshot,
    ForgetsAllOnABadSnapshot,
    ForgetsAllOnABrokenStream,
}

#[test]
fn without_a_defect_it_passes() {
    run_suite(|| Place::new(Defect::None));
}

#[test]
fn each_rule_rejects_what_breaks_it() {
    let no_command = "every entry has one response, which is empty where there is no command";
    let replaces = "a restore replaces the state, the applied position included";
    let not_whole = "what is not a whole snapshot is refused, and changes nothing";
    let table = [
        (Defect::StartsSomewhere, "a new machine has applied nothing"),
        (Defect::AnswersWhatIsNoCommand, no_command),
        (Defect::AnswersCommandsOnly, no_command),
        (
            Defect::CountsCommandsOnly,
            "the applied position is that of the last entry, with or without a command",
        ),
        (Defect::AnswersFromAClock, "the same batches give the same state and the same responses"),
        (Defect::AnswersByPlaceInTheBatch, "where batches are cut does not matter"),
        (Defect::FlushedMoreThanApplied, "what is flushed is no more than what is applied"),
        (Defect::SaysItFlushed, "after a restart the machine continues at what was flushed, or later"),
        (Defect::SaysItFlushedAside, "what is flushed beside later entries is there after a restart"),
        (
            Defect::ForgetsWhatItAnswered,
            "entries that are applied again after a restart have the same responses",
        ),
        (Defect::SnapshotShowsLaterState, "a snapshot has the state that it was taken of, not a later one"),
        (Defect::UnwrittenSnapshotChangesState, "a snapshot that is never written changes nothing"),
        (Defect::SwallowsErrorsOfTheSink, "an error of the stream is passed on by the snapshot"),
        (Defect::MergesOnRestore, replaces),
        (Defect::KeepsThePositionOnRestore, replaces),
        (
            Defect::AnswersOtherwiseWhenRestored,
            "a restored machine goes on like the one that the snapshot is of",
        ),
        (Defect::RestoresInMemoryOnly, "what was restored is durable, if the machine is"),
        (Defect::TakesAnythingForASnapshot, not_whole),
        (Defect::ForgetsAllOnABadSnapshot, not_whole),
        (
            Defect::ForgetsAllOnABrokenStream,
            "a snapshot whose stream breaks off is refused, and changes nothing",
        ),
    ];
    assert_rejected(&rules(), &table, |defect| run_suite(|| Place::new(defect)));
}

/// What a journal flushed, and how often it was opened.
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
        Broken { defect: self.defect, journal, reopened, restored: false, answered: LogId::ZERO }
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
    /// The last command.
    answered: LogId,
}

fn lock(journal: &Mutex<Journal>) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As a journal writes it.
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

    /// A response as the defect makes it.
    fn distort(&self, place: usize, response: &mut Bytes) {
        static CLOCK: AtomicU64 = AtomicU64::new(0);
        let wrong = match self.defect {
            Defect::AnswersWhatIsNoCommand if response.is_empty() => "nothing".to_owned(),
            Defect::AnswersFromAClock => CLOCK.fetch_add(1, Ordering::Relaxed).to_string(),
            Defect::AnswersByPlaceInTheBatch => place.to_string(),
            Defect::ForgetsWhatItAnswered if self.reopened => "again".to_owned(),
            Defect::AnswersOtherwiseWhenRestored if self.restored => "restored".to_owned(),
            _ => return,
        };
        if self.defect == Defect::AnswersWhatIsNoCommand || !response.is_empty() {
            *response = wrong.into();
        }
    }

    /// What remains in a journal after a restore.
    fn restored(&self, before: Content, stream: &[u8]) -> Result<Content, StateMachineError> {
        let new = codec::decode::<Content>("journal", 1, stream);
        let (applied, mut commands) = match (self.defect, new) {
            (Defect::TakesAnythingForASnapshot, Err(_)) => before.clone(),
            (_, new) => new?,
        };
        match self.defect {
            Defect::MergesOnRestore => {
                commands.extend(before.1.into_iter().filter(|(id, _)| id.index > applied.index));
                Ok((applied, commands))
            }
            Defect::KeepsThePositionOnRestore => Ok((before.0, commands)),
            _ => Ok((applied, commands)),
        }
    }
}

impl StateMachine for Broken {
    fn applied(&self) -> LogId {
        match self.defect {
            Defect::StartsSomewhere => self.journal().applied().max(LogId::new(1, 1)),
            Defect::CountsCommandsOnly => self.answered,
            _ => self.journal().applied(),
        }
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let mut responses = self.journal().apply(entries)?;
        for (place, (entry, response)) in entries.iter().zip(&mut responses).enumerate() {
            if matches!(entry.payload, Payload::Command(_)) {
                self.answered = entry.id;
            }
            self.distort(place, response);
        }
        if self.defect == Defect::AnswersCommandsOnly {
            responses.retain(|response| !response.is_empty());
        }
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        let applied = self.journal().applied();
        match self.defect {
            Defect::FlushedMoreThanApplied => Ok(LogId { index: applied.index.next(), ..applied }),
            Defect::SaysItFlushed => Ok(applied),
            _ => self.journal().flush(),
        }
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let applied = self.journal().applied();
        (self.defect == Defect::SaysItFlushedAside).then(|| Box::new(move || Ok(applied)) as FlushWork)
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let picture = codec::encode(1, &content(&mut self.journal()));
        Ok(Box::new(Picture { defect: self.defect, journal: self.journal.clone(), picture, written: false }))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let (mut bytes, before) = (Vec::new(), content(&mut self.journal()));
        let empty = codec::encode(1, &Content::default());
        if let Err(error) = stream.read_to_end(&mut bytes) {
            if self.defect == Defect::ForgetsAllOnABrokenStream {
                self.journal().restore(&mut &empty[..])?;
            }
            return Err(error.into());
        }
        let new = match self.restored(before, &bytes) {
            Ok(new) => codec::encode(1, &new),
            Err(error) => {
                if self.defect == Defect::ForgetsAllOnABadSnapshot {
                    self.journal().restore(&mut &empty[..])?;
                }
                return Err(error);
            }
        };
        if self.defect == Defect::RestoresInMemoryOnly {
            self.journal = Arc::default(); // On another disk.
        }
        self.restored = true;
        self.journal().restore(&mut &new[..])
    }
}

struct Picture {
    defect: Defect,
    journal: Arc<Mutex<Journal>>,
    picture: Vec<u8>,
    written: bool,
}

impl Snapshot for Picture {
    fn write_to(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        self.written = true;
        match self.defect {
            Defect::SnapshotShowsLaterState => {
                let later = content(&mut lock(&self.journal));
                out.write_all(&codec::encode(1, &later))
            }
            Defect::SwallowsErrorsOfTheSink => {
                let _ = out.write_all(&self.picture);
                Ok(())
            }
            _ => out.write_all(&self.picture),
        }
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        if self.defect == Defect::UnwrittenSnapshotChangesState && !self.written {
            *lock(&self.journal) = Journal::new();
        }
    }
}
