//! Keeps a state machine in memory in files.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use consensus_core::{Entry, FlushWork, LogId, Snapshot, StateMachine, StateMachineError};

use crate::SimDir;

/// Keeps a state machine that is in memory in one file of a [`SimDir`]. A flush or a restore replaces the file with a new
/// one that has the machine's snapshot. Snapshots are those of the machine in memory.
///
/// ```text
/// STATE      term(8)  index(8)  CRC-32C of everything else(4)  snapshot
/// STATE.new  the next file, until it is synced and renamed
/// ```
#[derive(Debug)]
pub struct OnFiles<M> {
    machine: M,
    applied: LogId,
    dir: SimDir,
    newest: Arc<Mutex<Newest>>,
}

/// Position of the file's content. Locked while the file is replaced, so that an older state never replaces a newer one.
#[derive(Clone, Copy, Debug)]
struct Newest {
    applied: LogId,
    /// Number of restores so far. A state from before a restore is older, whatever its position.
    restores: u64,
}

impl<M: StateMachine> OnFiles<M> {
    /// Opens the state in `dir` with `machine`, which must be new.
    ///
    /// # Errors
    /// The file is damaged, or the machine refuses its snapshot.
    pub fn open(dir: SimDir, mut machine: M) -> Result<Self, StateMachineError> {
        let mut applied = LogId::ZERO;
        if let Some(content) = dir.read(STATE)? {
            applied = position_of(&content).ok_or_else(damaged)?;
            machine.restore(&mut &content[HEAD_BYTES..])?;
        }
        Ok(Self { machine, applied, dir, newest: Arc::new(Mutex::new(Newest { applied, restores: 0 })) })
    }

    /// The machine in memory.
    pub fn machine(&mut self) -> &mut M {
        &mut self.machine
    }

    fn stream(&mut self) -> Result<Vec<u8>, StateMachineError> {
        let mut stream = Vec::new();
        self.machine.snapshot()?.write_to(&mut stream)?;
        Ok(stream)
    }
}

/// Position of the state with which a machine opens after any crash from now on.
#[must_use]
pub fn durable_position(dir: &SimDir) -> LogId {
    dir.durable(STATE).and_then(|content| position_of(&content)).unwrap_or(LogId::ZERO)
}

fn lock(newest: &Mutex<Newest>) -> MutexGuard<'_, Newest> {
    newest.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Replaces the file unless it has a newer state. Returns the position of the file's state afterwards. A crash at any point
/// leaves either the old file or the new one.
fn replace(dir: &SimDir, newest: &Mutex<Newest>, new: Newest, stream: &[u8]) -> io::Result<LogId> {
    let mut newest = lock(newest);
    if (newest.restores, newest.applied) > (new.restores, new.applied) {
        return Ok(newest.applied);
    }
    let applied = new.applied;
    let mut content = vec![0; HEAD_BYTES];
    content[..8].copy_from_slice(&applied.term.0.to_be_bytes());
    content[8..16].copy_from_slice(&applied.index.0.to_be_bytes());
    content.extend_from_slice(stream);
    let sum = sum_of(&content).to_be_bytes();
    content[16..HEAD_BYTES].copy_from_slice(&sum);
    dir.write(STATE_NEW, &content)?;
    dir.sync(STATE_NEW)?;
    dir.rename(STATE_NEW, STATE)?;
    dir.sync_names()?;
    *newest = new;
    Ok(applied)
}

fn position_of(content: &[u8]) -> Option<LogId> {
    let number = |at: usize| content.get(at..at + 8)?.try_into().map(u64::from_be_bytes).ok();
    let position = LogId::new(number(0)?, number(8)?);
    let sum = content.get(16..HEAD_BYTES)?;
    (sum == sum_of(content).to_be_bytes()).then_some(position)
}

fn sum_of(content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&content[..16]), &content[HEAD_BYTES..])
}

fn damaged() -> StateMachineError {
    StateMachineError::Unreadable { what: "the state's file", why: "its checksum is wrong".to_owned() }
}

impl<M: StateMachine> StateMachine for OnFiles<M> {
    fn applied(&self) -> LogId {
        self.applied
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        let responses = self.machine.apply(entries)?;
        self.applied = entries.last().map_or(self.applied, |entry| entry.id);
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        let (stream, restores) = (self.stream()?, lock(&self.newest).restores);
        Ok(replace(&self.dir, &self.newest, Newest { applied: self.applied, restores }, &stream)?)
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (dir, newest, stream) = (self.dir.clone(), self.newest.clone(), self.stream());
        let new = Newest { applied: self.applied, restores: lock(&newest).restores };
        Some(Box::new(move || Ok(replace(&dir, &newest, new, &stream?)?)))
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        let mut snapshot = self.applied.term.0.to_be_bytes().to_vec();
        snapshot.extend(self.applied.index.0.to_be_bytes());
        snapshot.extend(self.stream()?);
        Ok(Box::new(snapshot))
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let mut snapshot = Vec::new();
        stream.read_to_end(&mut snapshot)?;
        let (head, stream) = snapshot.split_at_checked(16).ok_or_else(damaged)?;
        let number = |at: usize| head[at..at + 8].try_into().map_or(0, u64::from_be_bytes);
        let applied = LogId::new(number(0), number(8));
        self.machine.restore(&mut &*stream)?;
        let restores = lock(&self.newest).restores + 1;
        replace(&self.dir, &self.newest, Newest { applied, restores }, stream).map_err(|error| {
            StateMachineError::Broken(format!("the restored state of {applied} is only in memory: {error}"))
        })?;
        self.applied = applied;
        Ok(())
    }
}

const STATE: &str = "STATE";
const STATE_NEW: &str = "STATE.new";
const HEAD_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Journal, JournalReader, state_machine, state_machine::Fixture};

    /// Fixture with a journal in files.
    struct Place {
        dir: SimDir,
        newest: Option<JournalReader>,
    }

    impl Fixture for Place {
        type Machine = OnFiles<Journal>;

        fn open(&mut self) -> OnFiles<Journal> {
            let journal = Journal::new();
            self.newest = Some(journal.reader());
            OnFiles::open(self.dir.clone(), journal).unwrap()
        }

        fn command(&self, n: u64) -> Bytes {
            n.to_string().into()
        }

        fn digest(&self, machine: &mut OnFiles<Journal>) -> Vec<u8> {
            machine.stream().unwrap()
        }
    }

    #[test]
    fn passes_the_suite() {
        state_machine::run_suite(|| Place { dir: SimDir::new(), newest: None });
    }

    #[test]
    fn power_lost_at_any_operation_of_a_restore_leaves_one_state_or_the_other() {
        let entries: Vec<Entry> = (1..5).map(|n| Entry::command(LogId::new(1, n), n.to_string())).collect();
        let mut other = OnFiles::open(SimDir::new(), Journal::new()).unwrap();
        other.apply(&entries).unwrap();
        let mut snapshot = Vec::new();
        other.snapshot().unwrap().write_to(&mut snapshot).unwrap();
        let mut outcomes = std::collections::BTreeSet::new();
        for (operations, seed) in (0..5).flat_map(|operations| (0..20).map(move |seed| (operations, seed))) {
            let dir = SimDir::new();
            let mut machine = OnFiles::open(dir.clone(), Journal::new()).unwrap();
            machine.apply(&entries[..2]).unwrap();
            machine.flush().unwrap();
            dir.lose_power_after(operations);
            let restored = machine.restore(&mut &snapshot[..]);
            let is_as_expected = match restored {
                Ok(()) => operations >= 4,
                // The machine in memory has the new state, its file does not: it must not be used again.
                Err(StateMachineError::Broken(_)) => operations < 4,
                Err(_) => false,
            };
            assert!(
                is_as_expected,
                "it has four operations, and power was lost after {operations}: {restored:?}"
            );
            let mut state = seed;
            let image = dir.image(|bound| {
                state = u64::wrapping_mul(state + 1, 6_364_136_223_846_793_005);
                (state >> 33) % bound
            });
            let opened = OnFiles::open(image, Journal::new()).unwrap();
            assert!(opened.applied >= durable_position(&dir));
            outcomes.insert((operations, opened.applied.index.0));
        }
        let old_or_new = [(0, 2), (1, 2), (2, 2), (3, 2), (3, 4), (4, 4)];
        assert_eq!(outcomes, old_or_new.into());
    }
}
