//! Knowledge of the whole cluster, which no single node has, and the state machine that reports it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use consensus_core::{
    Entry, FlushWork, LogId, LogIndex, Membership, Payload, Snapshot, SnapshotMeta, StateMachine,
    StateMachineError, record, session::SessionRefusal,
};
use consensus_raft_simulator::{Command, KEYS, chain};
use consensus_testkit::linearizability::{Operation, Register};

use super::{
    boundary::{Boundary, Failing},
    machine::{self, Answer, Machine, Shown},
};

/// Results of clients, and applied entries.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// First failure.
    pub(crate) failure: Option<String>,
    pub(crate) trace: u64,
    pub(crate) history: [Vec<Operation<Register, Option<u64>>>; KEYS],
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) attempts: u64,
    /// First moment of each millisecond.
    moments_at: BTreeMap<u64, u64>,
    moments: u64,
    /// Hash of the replicated state after each index.
    hashes: BTreeMap<u64, u64>,
    /// Index at which each number of a session took effect.
    executed: BTreeMap<(u64, u64), u64>,
    /// Index of each attempt.
    applied: BTreeMap<u64, u64>,
    /// Attempts that were reported to a client as certainly not applied.
    not_applied: BTreeSet<u64>,
    /// Committed entry at each index, with a checksum.
    committed: BTreeMap<LogIndex, (LogId, u64)>,
    /// Checksum of the response to each entry.
    responses: BTreeMap<LogIndex, u64>,
    /// Committed configurations.
    memberships: BTreeMap<LogIndex, Membership>,
}

impl Record {
    pub(crate) fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Returns a number that is greater than all earlier ones, also at the same time.
    pub(crate) fn moment(&mut self, now_ms: u64) -> u64 {
        self.moments += 1;
        self.moments_at.entry(now_ms).or_insert(self.moments);
        self.moments
    }

    /// Returns a number of a moment that is not after that time.
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
                "K1: attempt {attempt} is at {index}, but was reported as certainly not applied: {why}"
            ));
        }
    }

    /// Checks that an entry that a node applies is the same on all nodes.
    fn applies(&mut self, node: u64, entry: &Entry) {
        let mut bytes = Vec::new();
        record::encode(entry, &mut bytes);
        let committed = (entry.id, checksum(&bytes));
        let first = *self.committed.entry(entry.id.index).or_insert(committed);
        if first != committed {
            self.fail(format!(
                "State Machine Safety: node {node} applies entry {}, but other nodes applied {}",
                entry.id, first.0
            ));
        }
        if let Payload::Membership(membership) = &entry.payload {
            self.memberships.entry(entry.id.index).or_insert_with(|| membership.clone());
        }
        let Some(command) = machine::command_of(entry) else { return };
        let (attempt, index) = (command.attempt, entry.id.index.0);
        if self.not_applied.contains(&attempt) {
            self.fail(format!("K1: attempt {attempt} was reported as not applied, but is at {}", entry.id));
        }
        let before = *self.applied.entry(attempt).or_insert(index);
        if before != index {
            self.fail(format!("K2: attempt {attempt} was proposed once, but is at {before} and at {index}"));
        }
    }

    /// Checks that a response is the same on all nodes, also after a restart.
    fn responds(&mut self, node: u64, at: LogId, response: &[u8]) {
        let response = checksum(response);
        if *self.responses.entry(at.index).or_insert(response) != response {
            self.fail(format!(
                "State Machine Safety: the response of node {node} to entry {at} differs from other nodes"
            ));
        }
    }

    fn executed(&mut self, command: &Command, at: LogId) {
        let session = (command.session.client_id, command.session.sequence);
        if *self.executed.entry(session).or_insert(at.index.0) != at.index.0 {
            self.fail(format!("exactly once: {session:?} took effect at two indices, {at} is one"));
        }
    }

    fn reaches(&mut self, node: u64, at: LogId, hash: u64) {
        if *self.hashes.entry(at.index.0).or_insert(hash) != hash {
            self.fail(format!("State Machine Safety: node {node} differs from others after {at}"));
        }
    }

    /// Returns how `meta` differs from what was committed at its last entry, if it does.
    pub(crate) fn differs_from_committed(&self, meta: &SnapshotMeta) -> Option<String> {
        let committed = self.committed.get(&meta.last.index).map(|(id, _)| *id);
        if committed != Some(meta.last) {
            return Some(format!("the committed entry there is {committed:?}"));
        }
        let (at, membership) = self.memberships.range(..=meta.last.index).next_back()?;
        (*membership != meta.membership).then(|| {
            format!("it has the configuration {}, committed there is {membership} of {at}", meta.membership)
        })
    }

    /// Index of the newest configuration that was committed up to `index`.
    pub(crate) fn membership_index(&self, index: LogIndex) -> LogIndex {
        self.memberships.range(..=index).next_back().map_or(LogIndex(0), |(at, _)| *at)
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |sum, byte| chain(sum, u64::from(*byte)))
}

/// State of a machine as seen from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) applied: LogId,
    pub(crate) hash: u64,
    pub(crate) registers: [u64; KEYS],
}

/// The state machine of an engine, with checks: it shows its state, checks its calls, and panics on request.
pub(crate) struct Watched {
    boundary: Arc<Boundary>,
    machine: Machine,
    shown: Arc<Mutex<Shown>>,
    pub(crate) view: Arc<Mutex<View>>,
    pub(crate) panics: Arc<Panics>,
}

/// Whether a machine must panic in its next apply, and whether it did.
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
    /// Opens the machine of a node.
    pub(crate) fn open(boundary: Arc<Boundary>) -> Result<Self, StateMachineError> {
        let shown = Arc::default();
        let machine = machine::open(boundary.dir.clone(), &shown)?;
        boundary.known().applied = machine.applied();
        let mut watched = Self { boundary, machine, shown, view: Arc::default(), panics: Arc::default() };
        watched.show()?;
        Ok(watched)
    }

    /// Compares the state with those of other nodes at this position, and shows it.
    fn show(&mut self) -> Result<(), StateMachineError> {
        let mut stream = Vec::new();
        self.machine.snapshot()?.write_to(&mut stream)?;
        let (applied, hash) = (self.machine.applied(), checksum(&stream));
        self.boundary.record().reaches(self.boundary.node, applied, hash);
        let registers = self.shown.lock().unwrap().values;
        *self.view.lock().unwrap() = View { applied, hash, registers };
        Ok(())
    }

    /// Checks that the entries follow those applied before.
    fn check_sequence(&self, entries: &[Entry]) {
        let applied = self.machine.applied().index.0;
        let gapless = (applied + 1..).zip(entries).all(|(index, entry)| entry.id.index.0 == index);
        if !gapless || entries.is_empty() {
            let ids: Vec<String> = entries.iter().map(|entry| entry.id.to_string()).collect();
            let why = format!("I8: node {} is asked to apply {ids:?} after {applied}", self.boundary.node);
            self.boundary.record().fail(why);
        }
    }
}

impl StateMachine for Watched {
    fn applied(&self) -> LogId {
        self.machine.applied()
    }

    fn apply(&mut self, entries: &[Entry]) -> Result<Vec<Bytes>, StateMachineError> {
        self.boundary.check_open("an apply");
        if self.panics.called_for.load(Ordering::Relaxed) {
            self.panics.happened.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(Box::new("requested by the simulation")); // Prints nothing to stderr.
        }
        self.check_sequence(entries);
        let responses = self.machine.apply(entries)?;
        let (node, installs) = (self.boundary.node, self.boundary.known().installs);
        let mut record = self.boundary.record();
        for (entry, response) in entries.iter().zip(&responses) {
            record.applies(node, entry);
            record.responds(node, entry.id, response);
            let is_call = machine::command_of(entry).is_some();
            if is_call
                && installs > 0
                && matches!(machine::answer(response), Some(Answer::Refused(SessionRefusal::NoSession(_))))
            {
                record.count("session found expired after a snapshot was installed");
            }
        }
        for (command, at) in std::mem::take(&mut self.shown.lock().unwrap().executed) {
            record.executed(&command, at);
        }
        drop(record);
        self.boundary.known().applied = self.machine.applied();
        self.show()?;
        Ok(responses)
    }

    fn flush(&mut self) -> Result<LogId, StateMachineError> {
        self.machine.flush()
    }

    fn flush_in_background(&mut self) -> Option<FlushWork> {
        let (work, boundary) = (self.machine.flush_in_background()?, self.boundary.clone());
        let (applied, installs) = (self.machine.applied(), self.boundary.known().installs);
        Some(Box::new(move || {
            if boundary.fails(Failing::Flushes) {
                boundary.record().count("flush failed");
                return Err(StateMachineError::Other("the simulation makes flushes fail".to_owned()));
            }
            let durable = work()?;
            boundary.check_open("a flush");
            let known = boundary.known();
            let (now, installed) = (known.applied, known.installs != installs);
            drop(known);
            if installed {
                boundary.record().count("snapshot installed during a flush");
            } else if now > applied {
                boundary.record().count("entries applied during a flush");
            }
            Ok(durable)
        }))
    }

    fn snapshot(&mut self) -> Result<Box<dyn Snapshot>, StateMachineError> {
        if self.boundary.fails(Failing::Snapshots) {
            self.boundary.record().count("snapshot not taken");
            return Err(StateMachineError::Other("the simulation lets no snapshot be taken".to_owned()));
        }
        self.boundary.note_snapshot_taken();
        self.machine.snapshot()
    }

    fn restore(&mut self, stream: &mut dyn Read) -> Result<(), StateMachineError> {
        if self.boundary.fails(Failing::Restores) {
            self.boundary.record().count("restore failed");
            return Err(StateMachineError::Other("the simulation makes restores fail".to_owned()));
        }
        self.boundary.check_open("a restore");
        let before = self.machine.applied();
        self.boundary.crash_in_restore();
        self.machine.restore(stream)?;
        self.boundary.check_restored(before, self.machine.applied());
        self.show()
    }
}
