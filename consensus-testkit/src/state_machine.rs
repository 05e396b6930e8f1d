//! Conformance of a [`StateMachine`].

use bytes::Bytes;
use consensus_core::{Entry, LogId, Membership, Payload, Snapshot, StateMachine};

/// One place (directory) in which a machine lives.
pub trait Fixture {
    /// The machine under test.
    type Machine: StateMachine;

    /// Opens the machine, again and again, each time after the previous one was dropped without warning.
    fn open(&mut self) -> Self::Machine;

    /// Some command; different `n` give different ones.
    fn command(&self, n: u64) -> Bytes;

    /// What tells two states apart, the applied position included; the same for equal states.
    fn digest(&self, machine: &mut Self::Machine) -> Vec<u8>;
}

/// Checks an implementation; `new` makes a fresh place.
///
/// # Panics
/// A rule is broken; the message says which.
pub fn run_suite<F: Fixture>(new: impl Fn() -> F) {
    let cases: [(&str, fn(F, F)); 6] = [
        ("a new machine has applied nothing", starts_empty),
        ("every entry has a response and moves `applied`", one_response_per_entry),
        ("where batches are cut does not matter", batch_cuts),
        ("a snapshot restores the state it was taken of, not later ones", snapshot),
        ("what is not a snapshot is refused and changes nothing", bad_snapshot),
        ("after a restart the log continues at `applied`, which is at least what was flushed", restart),
    ];
    for (rule, case) in cases {
        println!("state machine: {rule}");
        case(new(), new());
    }
}

/// Entries `(after, last]` of a log that has all kinds.
fn log<F: Fixture>(fixture: &F, after: u64, last: u64) -> Vec<Entry> {
    let payload = |n: u64| match n % 5 {
        1 => Payload::Blank,
        3 => Payload::Membership(Membership::of_voters([n])),
        _ => Payload::Command(fixture.command(n)),
    };
    (after + 1..=last).map(|n| Entry { id: LogId::new(1 + n / 10, n), payload: payload(n) }).collect()
}

fn starts_empty<F: Fixture>(mut a: F, _: F) {
    assert_eq!(a.open().applied(), LogId::ZERO);
}

fn one_response_per_entry<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    for (after, last) in [(0, 1), (1, 12), (12, 13)] {
        let entries = log(&a, after, last);
        let responses = machine.apply(&entries).unwrap();
        assert_eq!(responses.len(), entries.len());
        assert_eq!(Some(machine.applied()), entries.last().map(|entry| entry.id));
        let silent =
            entries.iter().zip(responses).filter(|(entry, _)| !matches!(entry.payload, Payload::Command(_)));
        silent
            .for_each(|(entry, response)| assert!(response.is_empty(), "{entry:?} has no command to answer"));
    }
}

fn batch_cuts<F: Fixture>(mut a: F, mut b: F) {
    let (mut whole, mut single) = (a.open(), b.open());
    let at_once = whole.apply(&log(&a, 0, 30)).unwrap();
    let one_by_one: Vec<Bytes> = (0..30).flat_map(|n| single.apply(&log(&b, n, n + 1)).unwrap()).collect();
    assert_eq!(at_once, one_by_one);
    assert_eq!(a.digest(&mut whole), b.digest(&mut single));
}

fn snapshot<F: Fixture>(mut a: F, mut b: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 20)).unwrap();
    let digest = a.digest(&mut machine);
    let mut picture = machine.snapshot().unwrap();
    machine.apply(&log(&a, 20, 30)).unwrap();
    let mut stream = Vec::new();
    picture.write_to(&mut stream).unwrap();

    let mut other = b.open();
    other.apply(&log(&b, 0, 7)).unwrap();
    other.restore(&mut &stream[..]).unwrap();
    assert_eq!(other.applied(), LogId::new(3, 20));
    assert_eq!(b.digest(&mut other), digest);
    drop(other);
    let mut other = b.open();
    if other.applied() != LogId::ZERO {
        assert_eq!(b.digest(&mut other), digest, "what was restored is durable");
        other.apply(&log(&b, 20, 30)).unwrap();
        assert_eq!(b.digest(&mut other), a.digest(&mut machine));
    }
}

fn bad_snapshot<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 8)).unwrap();
    let digest = a.digest(&mut machine);
    let mut good = Vec::new();
    machine.snapshot().unwrap().write_to(&mut good).unwrap();
    let cut = &good[..good.len() - 1];
    for bad in [&b""[..], b"not a snapshot, and longer than most headers are: 0123456789 0123456789", cut] {
        assert!(machine.restore(&mut &bad[..]).is_err(), "{} bytes were taken for a snapshot", bad.len());
        assert_eq!(a.digest(&mut machine), digest);
    }
    machine.apply(&log(&a, 8, 9)).unwrap();
}

fn restart<F: Fixture>(mut a: F, mut b: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 11)).unwrap();
    let flushed = machine.flush().unwrap();
    assert!(flushed <= machine.applied());
    machine.apply(&log(&a, 11, 17)).unwrap();
    drop(machine);
    let mut machine = a.open();
    let applied = machine.applied();
    assert!(applied >= flushed, "flushed up to {flushed}, came up at {applied}");
    machine.apply(&log(&a, applied.index.0, 25)).unwrap();
    let mut undisturbed = b.open();
    undisturbed.apply(&log(&b, 0, 25)).unwrap();
    assert_eq!(a.digest(&mut machine), b.digest(&mut undisturbed));
}

// A snapshot is handed between threads.
const _: fn() = || {
    fn is_send<T: Send + ?Sized>() {}
    is_send::<dyn Snapshot>();
};
