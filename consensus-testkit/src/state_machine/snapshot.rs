//! Taking snapshots.

use std::{
    io::{Error, Write},
    thread,
};

use consensus_core::StateMachine;

use super::{Fixture, id, log, write};

/// Writes snapshots after later entries, and while later entries are applied.
pub(super) fn has_state_when_taken<F: Fixture>(mut a: F, mut b: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 20)).unwrap();
    let digest = a.digest(&mut machine);
    let (first, second) = (machine.snapshot().unwrap(), machine.snapshot().unwrap());
    machine.apply(&log(&a, 20, 30)).unwrap();
    let late = write(first);
    let concurrent = thread::scope(|scope| {
        let writer = scope.spawn(|| write(second));
        for n in 30..40 {
            machine.apply(&log(&a, n, n + 1)).unwrap();
        }
        writer.join().expect("the snapshot is written")
    });
    for stream in [late, concurrent] {
        let mut other = b.open();
        other.restore(&mut &stream[..]).unwrap();
        assert_eq!(other.applied(), id(20));
        assert_eq!(b.digest(&mut other), digest);
    }
}

pub(super) fn unwritten<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 12)).unwrap();
    let digest = a.digest(&mut machine);
    drop(machine.snapshot().unwrap());
    assert_eq!(a.digest(&mut machine), digest);
    machine.apply(&log(&a, 12, 13)).unwrap();
    write(machine.snapshot().unwrap());
}

pub(super) fn broken_sink<F: Fixture>(mut a: F, _: F) {
    let mut machine = a.open();
    machine.apply(&log(&a, 0, 12)).unwrap();
    let whole = write(machine.snapshot().unwrap()).len();
    // Not close to the end, because two snapshots of one state need not have the same length.
    for room in [0, whole / 2] {
        let written = machine.snapshot().unwrap().write_to(&mut Sink { room });
        assert!(written.is_err(), "{room} of {whole} bytes were written, and no error was returned");
    }
}

/// Accepts at most `room` bytes.
struct Sink {
    room: usize,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.room == 0 {
            return Err(Error::other("the test makes the stream fail"));
        }
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
