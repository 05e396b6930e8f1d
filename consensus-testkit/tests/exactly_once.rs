//! `ExactlyOnce` passes the suite of state machines, and applies each call once.

use bytes::Bytes;
use consensus_core::{
    Entry, LogId, Payload, StateMachine,
    session::{ExactlyOnce, Session},
    typed::{Application, InMemory, Reader},
};
use consensus_testkit::state_machine::{Fixture, run_suite};
use serde::{Deserialize, Serialize};

#[derive(Default, Serialize, Deserialize)]
struct Sum(u64);

impl Application for Sum {
    type Command = u64;
    type Response = u64;

    fn apply(&mut self, n: u64) -> u64 {
        self.0 += n;
        self.0
    }
}

type Machine = ExactlyOnce<InMemory<Sum>>;

fn machine() -> (Machine, Reader<Sum>) {
    let sum = InMemory::new(Sum::default());
    let reader = sum.reader();
    (ExactlyOnce::new(sum), reader)
}

// The encodings on the wire, which must not change.
fn open(sessions_max: u8) -> Bytes {
    Bytes::from(vec![1, 0, sessions_max])
}

fn call(client_id: u8, sequence: u8, add: u8) -> Bytes {
    Bytes::from(vec![1, 1, client_id, sequence, 2, 1, add])
}

fn opened(id: u8) -> Vec<u8> {
    vec![1, 0, id]
}

fn response(sum: u8) -> Vec<u8> {
    vec![1, 1, 2, 1, sum]
}

fn refused(refusal: u8, numbers: &[u8]) -> Vec<u8> {
    [&[1, 2, refusal], numbers].concat()
}

/// Applies commands, the first at index `first`, in batches of `batch`.
fn apply(machine: &mut Machine, first: u64, batch: usize, commands: &[Bytes]) -> Vec<Bytes> {
    let entries: Vec<Entry> = (first..)
        .zip(commands)
        .map(|(index, command)| Entry {
            id: LogId::new(1, index),
            payload: Payload::Command(command.clone()),
        })
        .collect();
    entries.chunks(batch).flat_map(|entries| machine.apply(entries).unwrap()).collect()
}

#[test]
fn repeated_call_is_applied_once_and_has_the_same_response() {
    let commands = [
        (open(10), opened(1)),
        (call(1, 1, 5), response(5)),
        (call(1, 1, 5), response(5)),
        (call(1, 2, 1), response(6)),
        (open(10), opened(5)),
        (call(5, 7, 1), response(7)),
        (call(1, 2, 1), response(6)),
        (call(1, 1, 5), refused(1, &[1, 1, 2])),
        (call(9, 1, 5), refused(0, &[9])),
        (Bytes::from_static(b"nonsense"), refused(2, &[])),
    ];
    let (proposed, responses): (Vec<_>, Vec<_>) = commands.into_iter().unzip();
    for batch in 1..=proposed.len() {
        let (mut machine, sum) = machine();
        assert_eq!(apply(&mut machine, 1, batch, &proposed), responses, "in batches of {batch}");
        assert_eq!(sum.read(|sum| sum.0), 7);
    }
}

#[test]
fn least_recently_used_session_is_closed() {
    let (mut machine, sum) = machine();
    // Session 1 is used after session 2 is opened, so session 4 replaces 2, and session 6 replaces 1.
    let proposed =
        [open(2), open(2), call(1, 1, 1), open(2), call(2, 1, 1), open(2), call(1, 1, 1), call(4, 1, 1)];
    let responses = [
        opened(1),
        opened(2),
        response(1),
        opened(4),
        refused(0, &[2]),
        opened(6),
        refused(0, &[1]),
        response(2),
    ];
    assert_eq!(apply(&mut machine, 1, 3, &proposed), responses);
    assert_eq!(sum.read(|sum| sum.0), 2);
}

#[test]
fn snapshot_contains_the_sessions() {
    let (mut old, _) = machine();
    apply(&mut old, 1, 9, &[open(2), call(1, 1, 5), open(2), call(3, 4, 1)]);
    let mut stream = Vec::new();
    old.snapshot().unwrap().write_to(&mut stream).unwrap();
    let (mut new, sum) = machine();
    apply(&mut new, 1, 9, &[open(9), open(9)]);
    new.restore(&mut &stream[..]).unwrap();
    assert_eq!(sum.read(|sum| sum.0), 6);
    let proposed = [call(2, 1, 1), call(3, 4, 1), call(1, 1, 5), open(2), call(3, 4, 1), call(1, 2, 1)];
    let responses = [refused(0, &[2]), response(6), response(5), opened(8), refused(0, &[3]), response(7)];
    assert_eq!(apply(&mut new, 5, 2, &proposed), responses, "the order of last use is restored");
}

struct Place;

impl Fixture for Place {
    type Machine = Machine;

    fn open(&mut self) -> Machine {
        machine().0
    }

    fn command(&self, n: u64) -> Bytes {
        match n % 5 {
            0 => open(2),
            _ => call(u8::try_from(n / 5 * 5).unwrap(), u8::try_from(n / 2).unwrap(), 1),
        }
    }

    fn digest(&self, machine: &mut Machine) -> Vec<u8> {
        let mut stream = Vec::new();
        machine.snapshot().unwrap().write_to(&mut stream).unwrap();
        stream
    }
}

#[test]
fn passes_the_suite() {
    run_suite(|| Place);
}

#[test]
fn session_is_encoded_as_two_numbers() {
    let session = Session { client_id: 1, sequence: 300 };
    assert_eq!(consensus_core::codec::encode(1, &session), [1, 1, 251, 44, 1]);
}
