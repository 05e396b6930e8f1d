//! Restoring snapshots.

use std::io::{Error, Read};

use consensus_core::{LogId, StateMachine};

use super::{Fixture, id, is_durable, log, other_log, stream_at};

pub(super) fn replaces<F: Fixture>(a: F, mut b: F) {
    let (stream, digest) = stream_at(a, 20);
    let mut machine = b.open();
    machine.apply(&other_log(&b, 0, 25)).unwrap();
    machine.restore(&mut &stream[..]).unwrap();
    assert_eq!(machine.applied(), id(20));
    assert_eq!(b.digest(&mut machine), digest, "the previous state is replaced completely");
}

pub(super) fn goes_on<F: Fixture>(mut a: F, mut b: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 20)).unwrap();
    let stream = super::write(machine.snapshot().unwrap());
    let mut restored = b.open();
    restored.apply(&log(&b, 0, 7)).unwrap();
    restored.restore(&mut &stream[..]).unwrap();
    let (expected, responses) = (machine.apply(&log(&a, 20, 30)), restored.apply(&log(&b, 20, 30)));
    assert_eq!(responses.unwrap(), expected.unwrap());
    assert_eq!(b.digest(&mut restored), a.digest(&mut machine));
}

pub(super) fn durable<F: Fixture>(a: F, mut b: F) {
    let (stream, digest) = stream_at(a, 20);
    let mut machine = b.open();
    machine.apply(&log(&b, 0, 7)).unwrap();
    let durable = is_durable(&mut machine);
    machine.restore(&mut &stream[..]).unwrap();
    drop(machine);
    let mut machine = b.open();
    if durable || machine.applied() != LogId::ZERO {
        assert_eq!(machine.applied(), id(20), "opened again");
        assert_eq!(b.digest(&mut machine), digest, "opened again");
    }
}

pub(super) fn not_a_snapshot<F: Fixture>(a: F, b: F) {
    let (good, _) = stream_at(a, 20);
    let garbage = b"not a snapshot, and longer than most headers are: 0123456789 0123456789";
    let bad = [&b""[..], garbage, &good[..good.len() / 2], &good[..good.len() - 1]];
    refused(b, &|machine, n| {
        let mut stream = *bad.get(n)?;
        Some((machine.restore(&mut stream).is_err(), format!("{} bytes, case {n}", stream.len())))
    });
}

pub(super) fn broken_source<F: Fixture>(a: F, b: F) {
    let (good, _) = stream_at(a, 20);
    let cuts = [0, good.len() / 2, good.len() - 1];
    refused(b, &|machine, n| {
        let cut = *cuts.get(n)?;
        let refused = machine.restore(&mut Source { left: &good[..cut] }).is_err();
        Some((refused, format!("a stream that fails after {cut} of {} bytes", good.len())))
    });
}

/// Checks that each attempt to restore is refused and leaves the state unchanged, in memory and on disk. `attempt` makes the
/// n-th attempt; `None` ends them.
fn refused<F: Fixture>(mut fixture: F, attempt: &dyn Fn(&mut F::Machine, usize) -> Option<(bool, String)>) {
    let mut machine = fixture.open();
    machine.apply(&log(&fixture, 0, 8)).unwrap();
    let durable = is_durable(&mut machine);
    let digest = fixture.digest(&mut machine);
    for n in 0.. {
        let Some((refused, what)) = attempt(&mut machine, n) else { break };
        assert!(refused, "{what}: accepted as a snapshot");
        assert_eq!(fixture.digest(&mut machine), digest, "{what}: changed the state");
    }
    machine.apply(&log(&fixture, 8, 9)).expect("the machine continues");
    let digest = fixture.digest(&mut machine);
    drop(machine);
    let mut machine = fixture.open();
    if durable {
        let applied = machine.applied();
        assert!(applied >= id(8), "opened again at {applied}");
        machine.apply(&log(&fixture, applied.index.0, 9)).unwrap();
        assert_eq!(fixture.digest(&mut machine), digest, "opened again");
    }
}

/// Returns the bytes in `left`, then fails.
struct Source<'a> {
    left: &'a [u8],
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left.is_empty() {
            return Err(Error::other("the test makes the stream fail"));
        }
        self.left.read(buffer)
    }
}
