//! What is known of the whole cluster, which no node knows; and the state machine that tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use consensus_core::{Entry, LogId, Snapshot, StateMachine, StateMachineError};
use consensus_raft_simulator::{Effect, KEYS, SimMachine, chain};
use consensus_testkit::linearizability::{Operation, Register};

/// What clients were told, and what was applied.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// What was found wrong first.
    pub(crate) failure: Option<String>,
    pub(crate) trace: u64,
    pub(crate) history: [Vec<Operation<Register, Option<u64>>>; KEYS],
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) attempts: u64,
    /// The first one of each millisecond.
    moments_at: BTreeMap<u64, u64>,
    moments: u64,
    /// Of the replicated state after each index.
    hashes: BTreeMap<u64, u64>,
    /// At which index each number of a session took effect.
    executed: BTreeMap<(u64, u64), u64>,
    /// At which index each attempt is.
    applied: BTreeMap<u64, u64>,
    /// Attempts of which a client was told that they certainly came to nothing.
    not_applied: BTreeSet<u64>,
}

impl Record {
    pub(crate) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// What happens later has a greater number, at the same time too.
    pub(crate) fn moment(&mut self, now_ms: u64) -> u64 {
        self.moments += 1;
        self.moments_at.entry(now_ms).or_insert(self.moments);
        self.moments
    }

    /// One that is not after that time.
    pub(crate) fn moment_at(&self, ms: u64) -> u64 {
        self.moments_at.range(..=ms).next_back().map_or(0, |(_, moment)| *moment)
    }

    pub(crate) fn note(&mut self, numbers: &[u64]) {
        self.trace = numbers.iter().fold(self.trace, |hash, number| chain(hash, *number));
    }

    pub(crate) fn not_applied(&mut self, attempt: u64, why: &str) {
        self.not_applied.insert(attempt);
        if let Some(index) = self.applied.get(&attempt) {
            self.fail(format!(
                "K1: attempt {attempt} is at {index}, and is said to be certainly not applied: {why}"
            ));
        }
    }

    fn effect(&mut self, node: u64, effect: &Effect) {
        let Effect { command, executed, at, hash } = effect;
        let (attempt, index) = (command.attempt, at.index.0);
        if self.not_applied.contains(&attempt) {
            self.fail(format!("K1: attempt {attempt} was certainly not applied, and is at {at}"));
        }
        if *self.hashes.entry(index).or_insert(*hash) != *hash {
            self.fail(format!("State Machine Safety: node {node} differs from others after {at}"));
        }
        let before = *self.applied.entry(attempt).or_insert(index);
        if before != index {
            self.fail(format!("K2: attempt {attempt}, proposed once, is at {before} and at {at}"));
        }
        let session = (command.session.client_id, command.session.sequence);
        if *executed && *self.executed.entry(session).or_insert(index) != index {
            self.fail(format!("exactly once: {session:?} took effect at two indices, {at} is one"));
        }
    }
}

/// What of a machine is seen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) applied: LogId,
    pub(crate) hash: u64,
    pub(crate) registers: [u64; KEYS],
}

/// Shows what it holds, records what it applies, and panics when told to.
pub(crate) struct Watched {
    node: u64,
    machine: SimMachine,
    record: Arc<Mutex<Record>>,
    pub(crate) view: Arc<Mutex<View>>,
    pub(crate) panics: Arc<Panics>,
}

/// Whether a machine is to panic when it is next asked to apply something, and whether it did.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    called_for: AtomicBool,
    happened: AtomicBool,
}

impl Panics {
    pub(crate) fn call_for(&self) {
        self.called_for.store(true, Ordering::Relaxed);
    }

    pub(crate) fn happened(&self) -> bool {
        self.happened.load(Ordering::Relaxed)
    }
}

impl Watched {
    pub(crate) fn new(node: u64, machine: SimMachine, record: Arc<Mutex<Record>>) -> Self {
        let mut watched = Self { node, machine, record, view: Arc::default(), panics: Arc::default() };
        watched.show();
        watched
    }

    fn show(&mut self) {
        let mut registers = [0; KEYS];
        (0..).zip(&mut registers).for_each(|(key, value)| *value = self.machine.value(key));
        *self.view.lock().unwrap() =
            View { applied: self.machine.applied(), hash: self.machine.hash(), registers };
    }
}

impl StateMachine for Watched {
    fn applied(&self) -> LogId {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        if self.panics.called_for.load(Ordering::Relaxed) {
            self.panics.happened.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("as the simulation told it")); // Without a word on stderr.
        }
        let responses = self.machine.apply(entries)?;
        for effect in self.machine.take_effects() {
            self.record.lock().unwrap().effect(self.node, &effect);
        }
        self.show();
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.machine.flush()
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        self.machine.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        let before = self.machine.applied();
        self.machine.restore(stream)?;
        let (after, mut record) = (self.machine.applied(), self.record.lock().unwrap());
        if after.index < before.index {
            record.fail(format!("S3: a snapshot takes node {} back from {before} to {after}", self.node));
        }
        record.count("snapshot installed");
        drop(record);
        self.show();
        Ok(())
    }
}
