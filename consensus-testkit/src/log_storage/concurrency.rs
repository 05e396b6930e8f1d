//! Reads during writes.

use std::{
    panic::resume_unwind,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use consensus_core::{LogBatch, LogIndex, LogStorage};

use super::{Place, append, command};

/// One thread replaces the tail repeatedly while another one reads.
pub(super) fn read_during_write<S: LogStorage>(place: &Place<'_, S>) {
    let storage = place.open();
    storage.write(append((1..=STABLE).map(|i| command(1, i)))).unwrap();
    let (enough, written) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for term in 2.. {
                if enough.load(Ordering::Acquire) {
                    break;
                }
                let tail = (STABLE + 1..=LAST).map(|i| command(term, i));
                let batch = LogBatch { truncate_after: Some(LogIndex(STABLE)), ..append(tail) };
                storage.write(batch).unwrap();
                written.fetch_add(1, Ordering::Release);
            }
        });
        let enough = SetOnDrop(&enough);
        let mut rounds = 0;
        while (rounds < ROUNDS || written.load(Ordering::Acquire) < WRITES) && !writer.is_finished() {
            check_read(&storage);
            rounds += 1;
        }
        drop(enough);
        writer.join().unwrap_or_else(|panic| resume_unwind(panic));
    });
}

fn check_read(storage: &impl LogStorage) {
    let stable: Vec<_> = (1..=STABLE).map(|i| command(1, i)).collect();
    let read = storage.read(LogIndex(0), LogIndex(STABLE), u64::MAX);
    assert_eq!(read.expect("no write changes these entries"), stable);
    // Entries of the tail may be missing, but an entry that is returned must be one of that index.
    let read = storage.read(LogIndex(STABLE - 1), LogIndex(LAST), u64::MAX);
    for (index, entry) in (STABLE..).zip(read.expect("the first of these entries stays")) {
        assert_eq!(entry, command(entry.id.term.0, index));
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Number of entries that are never replaced.
const STABLE: u64 = 10;
const LAST: u64 = 14;
/// Minimum numbers of reads and writes, so that both overlap.
const ROUNDS: u64 = 200;
const WRITES: u64 = 50;
