//! Conformance suite for implementations of [`StateMachine`].
//!
//! A [`Fixture`] is a place in which your state machine lives, such as a directory: it opens the machine and compares
//! states.
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
//! struct Memory; // For a state machine on disk: its directory.
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
//! What this is *not*: a test of crashes during a write or a restore. The suite drops the machine only between calls.

mod apply;
mod restore;
mod snapshot;

use bytes::Bytes;
use consensus_core::{Entry, LogId, Membership, Payload, Snapshot, StateMachine};

use crate::{JournalReader, rule};

/// A place, such as a directory, in which a state machine lives.
pub trait Fixture {
    /// The machine under test.
    type Machine: StateMachine;

    /// Opens the machine. Called repeatedly, each time after the previous machine was dropped without a shutdown.
    fn open(&mut self) -> Self::Machine;

    /// Returns the command with number `n`, which is below 256. Different numbers give different commands.
    fn command(&self, n: u64) -> Bytes;

    /// Returns bytes that are equal for equal states and differ for different states, including the applied position.
    fn digest(&self, machine: &mut Self::Machine) -> Vec<u8>;
}

/// Checks an implementation; `new` creates an empty place.
///
/// # Panics
/// A rule is broken; the message names it.
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
        ("every entry has one response, which is empty if the entry has no command", apply::responses),
        ("the applied position is that of the last entry, with or without a command", apply::positions),
        ("the same batches give the same state and the same responses", apply::deterministic),
        ("the division of entries into batches has no effect", apply::batch_cuts),
        ("the flushed position is not after the applied position", apply::flushed_is_applied),
        ("after a restart the machine continues at the flushed position or later", apply::restart),
        ("the result of a background flush is present after a restart", apply::flushed_in_background),
        ("entries that are applied again after a restart have the same responses", apply::replay),
        ("a restore replaces the whole state, including the applied position", restore::replaces),
        ("a restored machine continues like the one that took the snapshot", restore::goes_on),
        ("a restored state is durable if the machine is durable", restore::durable),
        ("an incomplete or malformed snapshot is refused and changes nothing", restore::not_a_snapshot),
        ("a snapshot whose stream fails is refused and changes nothing", restore::broken_source),
        ("a snapshot has the state at the time when it was taken", snapshot::has_state_when_taken),
        ("a snapshot that is never written changes nothing", snapshot::unwritten),
        ("a snapshot returns an error of the stream that it is written to", snapshot::broken_sink),
    ]
}

/// Entries `(after, last]` of a log with all kinds of entries.
fn log<F: Fixture>(fixture: &F, after: u64, last: u64) -> Vec<Entry> {
    log_with(|n| fixture.command(n), after, last)
}

/// Entries `(after, last]` of another log, with other commands.
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

/// Log id of entry `n` of either log.
fn id(n: u64) -> LogId {
    LogId::new(1 + n / 10, n)
}

fn write(mut snapshot: Box<dyn Snapshot>) -> Vec<u8> {
    let mut stream = Vec::new();
    snapshot.write_to(&mut stream).unwrap();
    stream
}

/// Snapshot stream and digest of a new machine that has applied the log up to `last`.
fn stream_at<F: Fixture>(mut fixture: F, last: u64) -> (Vec<u8>, Vec<u8>) {
    let mut machine = fixture.open();
    machine.apply(&log(&fixture, 0, last)).unwrap();
    (write(machine.snapshot().unwrap()), fixture.digest(&mut machine))
}

/// Whether the machine is durable; one in memory is not.
fn is_durable(machine: &mut impl StateMachine) -> bool {
    machine.flush().unwrap() != LogId::ZERO
}

// Snapshots must be able to move between threads.
const _: fn() = || {
    fn is_send<T: Send + ?Sized>() {}
    is_send::<dyn Snapshot>();
};
