//! Applying entries, flushing, and restarting.

use bytes::Bytes;
use consensus_core::{LogId, Payload, StateMachine};

use super::{Fixture, log};

pub(super) fn starts_empty<F: Fixture>(mut a: F, _: F) {
    assert_eq!(a.open().applied(), LogId::ZERO);
}

pub(super) fn responses<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    for (after, last) in [(0, 1), (1, 12), (12, 13)] {
        let entries = log(&a, after, last);
        let responses = machine.apply(&entries).unwrap();
        assert_eq!(responses.len(), entries.len());
        for (entry, response) in entries.iter().zip(responses) {
            let has_command = matches!(entry.payload, Payload::Command(_));
            assert!(has_command || response.is_empty(), "{entry:?} has no command, but a response");
        }
    }
}

pub(super) fn positions<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    for last in 1..=13 {
        let entries = log(&a, last - 1, last);
        machine.apply(&entries).unwrap();
        assert_eq!(machine.applied(), entries[0].id, "after {:?}", entries[0].payload);
    }
}

pub(super) fn deterministic<F: Fixture>(mut a: F, mut b: F) {
    let (mut one, mut other) = (a.open(), b.open());
    for (after, last) in [(0, 9), (9, 10), (10, 30)] {
        assert_eq!(one.apply(&log(&a, after, last)).unwrap(), other.apply(&log(&b, after, last)).unwrap());
        assert_eq!(a.digest(&mut one), b.digest(&mut other));
    }
}

pub(super) fn batch_cuts<F: Fixture>(mut a: F, mut b: F) {
    let (mut whole, mut single) = (a.open(), b.open());
    let at_once = whole.apply(&log(&a, 0, 30)).unwrap();
    let one_by_one: Vec<Bytes> = (0..30).flat_map(|n| single.apply(&log(&b, n, n + 1)).unwrap()).collect();
    assert_eq!(at_once, one_by_one);
    assert_eq!(a.digest(&mut whole), b.digest(&mut single));
}

pub(super) fn flushed_is_applied<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    for (after, last) in [(0, 11), (11, 13)] {
        machine.apply(&log(&a, after, last)).unwrap();
        let (flushed, applied) = (machine.flush().unwrap(), machine.applied());
        assert!(flushed <= applied, "flushed up to {flushed}, applied up to {applied}");
    }
}

/// Checks that the machine in `a`, which was dropped, restarts at the flushed position or later, and continues like one that
/// was never restarted.
fn check_restart<F: Fixture>(mut a: F, mut b: F, flushed: LogId) {
    let mut machine = a.open();
    let applied = machine.applied();
    assert!(applied >= flushed, "flushed up to {flushed}, opened at {applied}");
    machine.apply(&log(&a, applied.index.0, 25)).unwrap();
    let mut continuous = b.open();
    continuous.apply(&log(&b, 0, 25)).unwrap();
    assert_eq!(a.digest(&mut machine), b.digest(&mut continuous));
}

pub(super) fn restart<F: Fixture>(mut a: F, b: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 11)).unwrap();
    let flushed = machine.flush().unwrap();
    machine.apply(&log(&a, 11, 17)).unwrap();
    drop(machine);
    check_restart(a, b, flushed);
}

pub(super) fn flushed_in_background<F: Fixture>(mut a: F, b: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 11)).unwrap();
    let Some(work) = machine.flush_in_background() else { return };
    machine.apply(&log(&a, 11, 17)).unwrap();
    let flushed = std::thread::spawn(work).join().unwrap().unwrap();
    assert!(flushed.index.0 >= 11, "the flush started at entry 11, but reached only {flushed}");
    drop(machine);
    check_restart(a, b, flushed);
}

pub(super) fn replay<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    let mut before = machine.apply(&log(&a, 0, 11)).unwrap();
    machine.flush().unwrap();
    before.extend(machine.apply(&log(&a, 11, 17)).unwrap());
    drop(machine);
    let mut machine = a.open();
    let applied = machine.applied().index.0;
    let again = machine.apply(&log(&a, applied, 17)).unwrap();
    assert_eq!(again, before[applied as usize..], "from entry {} on", applied + 1);
}
