//! Conformance of a [`StateMachine`].
//!
//! A [`Fixture`] is a place in which your machine lives: it opens the machine, and tells states apart.
//! ```
//! use bytes::Bytes;
//! use consensus_core::{StateMachine, codec, typed::{Application, InMemory}};
//! use consensus_testkit::state_machine::{Fixture, run_suite};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Counter(i64);
//!
//! impl Application for Counter {
//!     type Command = i64;
//!     type Response = i64;
//!     fn apply(&mut self, n: i64) -> i64 { self.0 += n; self.0 }
//! }
//!
//! struct Memory; // For a machine on disk: its directory.
//!
//! impl Fixture for Memory {
//!     type Machine = InMemory<Counter>;
//!     fn open(&mut self) -> Self::Machine { InMemory::new(Counter::default()) }
//!     fn command(&self, n: u64) -> Bytes { codec::encode(1, &(n as i64)).into() }
//!     fn digest(&self, machine: &mut Self::Machine) -> Vec<u8> {
//!         let mut bytes = Vec::new();
//!         machine.snapshot().unwrap().write_to(&mut bytes).unwrap();
//!         bytes
//!     }
//! }
//!
//! run_suite(|| Memory);
//! ```
//! What this is *not*: a check of crashes in the middle of a write or of a restore; it drops the machine between two calls.

mod apply;
mod restore;
mod snapshot;

use bytes::Bytes;
use consensus_core::{Entry, LogId, Membership, Payload, Snapshot, StateMachine};

use crate::{JournalReader, rule};

/// One place (directory) in which a machine lives.
pub trait Fixture {
    /// The machine under test.
    type Machine: StateMachine;

    /// Opens the machine, again and again, each time after the previous one was dropped without warning.
    fn open(&mut self) -> Self::Machine;

    /// Some command; different `n`, of which there are less than 256, give different ones.
    fn command(&self, n: u64) -> Bytes;

    /// What tells two states apart, the applied position included; the same for equal states.
    fn digest(&self, machine: &mut Self::Machine) -> Vec<u8>;
}

/// Checks an implementation; `new` makes a fresh place.
///
/// # Panics
/// A rule is broken; the message says which.
pub fn run_suite<F: Fixture>(new: impl Fn() -> F) {
    for (rule, case) in cases::<F>() {
        rule::check("state machine", rule, || case(new(), new()));
    }
}

/// The rules of [`run_suite`], in the order in which they are checked.
#[must_use]
pub fn rules() -> Vec<&'static str> {
    cases::<JournalReader>().into_iter().map(|(rule, _)| rule).collect()
}

fn cases<F: Fixture>() -> [(&'static str, fn(F, F)); 17] {
    [
        ("a new machine has applied nothing", apply::starts_empty),
        ("every entry has one response, which is empty where there is no command", apply::responses),
        ("the applied position is that of the last entry, with or without a command", apply::positions),
        ("the same batches give the same state and the same responses", apply::deterministic),
        ("where batches are cut does not matter", apply::batch_cuts),
        ("what is flushed is no more than what is applied", apply::flushed_is_applied),
        ("after a restart the machine continues at what was flushed, or later", apply::restart),
        ("what is flushed beside later entries is there after a restart", apply::flushed_aside),
        ("entries that are applied again after a restart have the same responses", apply::replay),
        ("a restore replaces the state, the applied position included", restore::replaces),
        ("a restored machine goes on like the one that the snapshot is of", restore::goes_on),
        ("what was restored is durable, if the machine is", restore::durable),
        ("what is not a whole snapshot is refused, and changes nothing", restore::not_a_snapshot),
        ("a snapshot whose stream breaks off is refused, and changes nothing", restore::broken_source),
        ("a snapshot has the state that it was taken of, not a later one", snapshot::picture),
        ("a snapshot that is never written changes nothing", snapshot::unwritten),
        ("an error of the stream is passed on by the snapshot", snapshot::broken_sink),
    ]
}

/// Entries `(after, last]` of a log that has all kinds.
fn log<F: Fixture>(fixture: &F, after: u64, last: u64) -> Vec<Entry> {
    log_with(|n| fixture.command(n), after, last)
}

/// The same of a log with other commands.
fn other_log<F: Fixture>(fixture: &F, after: u64, last: u64) -> Vec<Entry> {
    log_with(|n| fixture.command(n + 60), after, last)
}

fn log_with(command: impl Fn(u64) -> Bytes, after: u64, last: u64) -> Vec<Entry> {
    let payload = |n: u64| match n % 5 {
        1 => Payload::Blank,
        3 => Payload::Membership(Membership::of_voters([n])),
        _ => Payload::Command(command(n)),
    };
    (after + 1..=last).map(|n| Entry { id: id(n), payload: payload(n) }).collect()
}

/// Identity of the entry `n` of any of the logs.
fn id(n: u64) -> LogId {
    LogId::new(1 + n / 10, n)
}

fn write(mut snapshot: Box<dyn Snapshot>) -> Vec<u8> {
    let mut stream = Vec::new();
    snapshot.write_to(&mut stream).unwrap();
    stream
}

/// What a machine of its own says that has applied the log up to `last`.
fn stream_at<F: Fixture>(mut fixture: F, last: u64) -> (Vec<u8>, Vec<u8>) {
    let mut machine = fixture.open();
    machine.apply(&log(&fixture, 0, last)).unwrap();
    (write(machine.snapshot().unwrap()), fixture.digest(&mut machine))
}

/// Whether the machine answers for something by itself; one in memory does not.
fn is_durable(machine: &mut impl StateMachine) -> bool {
    machine.flush().unwrap() != LogId::ZERO
}

// A snapshot is handed between threads.
const _: fn() = || {
    fn is_send<T: Send + ?Sized>() {}
    is_send::<dyn Snapshot>();
};
