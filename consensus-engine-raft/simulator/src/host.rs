//! Runs the instances of a [guest](crate::Guest) and checks them.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use consensus_core::{
    Entry, LogId, NodeId, Payload, StateMachine, StateMachineError, apply_all, session::Session,
};

use crate::{
    guest::{AnyGuest, Instance},
    machine::Command,
    random::Random,
};

/// The guest of a run, and the observations of its instances.
#[derive(Clone, Debug)]
pub(crate) struct GuestHosting {
    guest: AnyGuest,
    ledger: Arc<Mutex<Ledger>>,
}

/// First observation at each index; all other instances must agree with it.
#[derive(Debug, Default)]
struct Ledger {
    responses: BTreeMap<u64, Observation>,
    digests: BTreeMap<u64, Observation>,
    reached: BTreeMap<&'static str, u64>,
}

/// An observation of an instance, with the circumstances that a failure reports.
#[derive(Clone, Debug)]
struct Observation {
    node: NodeId,
    origin: Arc<str>,
    batch: usize,
    what: Bytes,
}

/// Instance of one node.
pub(crate) struct Host {
    node: NodeId,
    instance: Box<dyn Instance>,
    /// Position that the instance must have.
    applied: LogId,
    /// Origin of its state, in words.
    origin: Arc<str>,
    /// Number of entries in the last batch.
    batch: usize,
    ledger: Arc<Mutex<Ledger>>,
}

impl GuestHosting {
    pub(crate) fn new(guest: AnyGuest) -> Self {
        Self { guest, ledger: Arc::default() }
    }

    /// Appends a command of the guest to the simulation's command. It is the same in each attempt, as for a real client.
    pub(crate) fn command(&self, own: &Bytes, seed: u64, session: Session) -> Bytes {
        let purpose = PURPOSE | session.client_id << 32 | session.sequence;
        let command = self.guest.command(&mut Random::new(seed, purpose));
        [&own[..], &command].concat().into()
    }

    /// Creates an empty instance.
    pub(crate) fn open(&self, node: NodeId) -> Host {
        let (origin, ledger) = ("it started empty".into(), self.ledger.clone());
        let mut host =
            Host { node, instance: self.guest.open(), applied: LogId::ZERO, origin, batch: 0, ledger };
        host.check_position(NEW, || "when it was opened".into());
        host
    }

    /// Number of occurrences of each event.
    pub(crate) fn reached(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.ledger).reached.clone()
    }
}

impl Host {
    /// Applies the entries that the simulation's own machine applied.
    pub(crate) fn apply(&mut self, entries: &[Entry]) {
        let entries: Vec<Entry> = entries.iter().map(as_guest).collect();
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let what = || match entries.len() {
            1 => format!("apply of entry {}", describe(first)),
            more => format!("apply of {more} entries, {} to {}", describe(first), describe(last)),
        };
        let responses = self.call(what, |machine| apply_all(machine, &entries));
        if responses.len() != entries.len() {
            let why = format!("{} responses to {} entries in {}", responses.len(), entries.len(), what());
            self.broken(ONE_EACH, &why);
        }
        (self.applied, self.batch) = (last.id, entries.len());
        self.check_position(POSITION, || format!("after {}", what()));
        for (entry, response) in entries.iter().zip(responses) {
            if !matches!(entry.payload, Payload::Command(_)) && !response.is_empty() {
                self.broken(ONE_EACH, &format!("{} to entry {}", excerpt(&response), describe(entry)));
            }
            let what = || format!("the response to entry {} was", describe(entry));
            self.compare(RESPONSES, |ledger| &mut ledger.responses, entry.id, response, what);
            self.reach("guest's response compared");
        }
        self.check_invariant();
        if self.applied.index.0.is_multiple_of(DIGEST_EVERY) {
            self.compare_state();
        }
    }

    /// Flushes the instance, and takes a snapshot, which is the state after a crash.
    pub(crate) fn flush(&mut self) -> Bytes {
        let flushed = self.call(|| "flush".into(), StateMachine::flush);
        if flushed.index > self.applied.index {
            self.broken(FLUSHED, &format!("flush returned {flushed}, applied is {}", self.applied));
        }
        self.snapshot()
    }

    /// Takes a snapshot, and returns its bytes.
    pub(crate) fn snapshot(&mut self) -> Bytes {
        self.compare_state();
        let mut snapshot = self.call(|| "snapshot".into(), StateMachine::snapshot);
        let mut bytes = Vec::new();
        let written = self.guarded(|_| snapshot.write_to(&mut bytes).map_err(|error| error.to_string()));
        written.unwrap_or_else(|why| self.broken(FAILS, &format!("Snapshot::write_to {why}")));
        bytes.into()
    }

    /// Restores the flushed state into a new instance.
    pub(crate) fn reopen(&mut self, bytes: &[u8], at: LogId) {
        self.take(bytes, at, format!("it was restarted from its flushed snapshot of {at}"));
        self.reach("guest restarted from a snapshot");
    }

    /// Restores another node's snapshot into the instance.
    pub(crate) fn restore(&mut self, bytes: &[u8], at: LogId) {
        let before = self.applied;
        self.take(bytes, at, format!("it was at {before} when it was sent the snapshot of {at}"));
        let is_new = before == LogId::ZERO;
        self.reach(if is_new {
            "guest was sent a snapshot"
        } else {
            "guest with a state was sent a snapshot"
        });
    }

    fn take(&mut self, bytes: &[u8], at: LogId, origin: String) {
        (self.applied, self.origin, self.batch) = (at, origin.into(), 0);
        let what = || format!("restore of a snapshot of {at}, {} bytes", bytes.len());
        self.call(what, |machine| machine.restore(&mut &*bytes));
        self.check_position(RESTORED, || format!("after {}", what()));
        self.check_invariant();
        self.compare_state();
    }

    /// Compares the digest of the state with those of other nodes at this position, if the guest has digests.
    pub(crate) fn compare_state(&mut self) {
        let digest = self.guarded(|instance| Ok(instance.digest()));
        let digest = digest.unwrap_or_else(|why| self.broken(OWN, &format!("Guest::digest {why}")));
        let Some(digest) = digest else { return };
        let at = self.applied;
        let what = || format!("after entry {at} Guest::digest was");
        self.compare(STATES, |ledger| &mut ledger.digests, at, digest.into(), what);
        self.reach("guest's state compared");
    }

    fn check_invariant(&mut self) {
        if let Err(why) = self.guarded(|instance| instance.check()) {
            self.broken(OWN, &format!("at {}: Guest::check {why}", self.applied));
        }
    }

    fn check_position(&mut self, rule: &str, when: impl FnOnce() -> String) {
        let applied = self.call(|| "applied".into(), |machine| Ok(machine.applied()));
        if applied != self.applied {
            self.broken(rule, &format!("applied() is {applied} and not {} {}", self.applied, when()));
        }
    }

    /// Records an observation at an index, which must equal the first one.
    fn compare(
        &self,
        rule: &str,
        of: impl FnOnce(&mut Ledger) -> &mut BTreeMap<u64, Observation>,
        at: LogId,
        said: Bytes,
        what: impl FnOnce() -> String,
    ) {
        let said =
            Observation { node: self.node, origin: self.origin.clone(), batch: self.batch, what: said };
        let mut ledger = lock(&self.ledger);
        let first = of(&mut ledger).entry(at.index.0).or_insert_with(|| said.clone());
        if first.what != said.what {
            let alike = first.what.iter().zip(&said.what).take_while(|(one, other)| one == other).count();
            let (first, said) = (first.describe(alike), said.describe(alike));
            panic!("the state machine breaks the rule \"{rule}\": {}\n    {first}\n    {said}", what());
        }
    }

    fn call<T>(
        &mut self,
        what: impl FnOnce() -> String,
        call: impl FnOnce(&mut dyn StateMachine) -> Result<T, StateMachineError>,
    ) -> T {
        let done = self.guarded(|instance| call(instance.machine()).map_err(|error| error.to_string()));
        done.unwrap_or_else(|why| self.broken(FAILS, &format!("{} {why}", what())))
    }

    fn guarded<T>(&mut self, call: impl FnOnce(&mut dyn Instance) -> Result<T, String>) -> Result<T, String> {
        match catch_unwind(AssertUnwindSafe(|| call(&mut *self.instance))) {
            Ok(done) => done.map_err(|why| format!("failed: {why}")),
            Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
        }
    }

    fn reach(&self, what: &'static str) {
        *lock(&self.ledger).reached.entry(what).or_insert(0) += 1;
    }

    fn broken(&self, rule: &str, why: &str) -> ! {
        panic!("the state machine of node {} ({}) breaks the rule \"{rule}\": {why}", self.node, self.origin);
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("node", &self.node)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl Observation {
    /// Describes the observation with the part around byte `around`.
    fn describe(&self, around: usize) -> String {
        let Self { node, origin, batch, what } = self;
        let from = around.saturating_sub(EXCERPT_BYTES / 2);
        let skipped = if from > 0 { format!("from byte {from} on ") } else { String::new() };
        format!("{skipped}{} by node {node} (after a batch of {batch}; {origin})", excerpt(&what[from..]))
    }
}

/// Message of a panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned()
}

/// Returns the entry for the guest, with only the guest's part of a command.
fn as_guest(entry: &Entry) -> Entry {
    let payload = match &entry.payload {
        Payload::Command(command) => Payload::Command(command.slice(Command::BYTES..)),
        other => other.clone(),
    };
    Entry { id: entry.id, payload }
}

fn describe(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Command(command) => format!("{} (command {})", entry.id, excerpt(command)),
        _ => format!("{} (no command)", entry.id),
    }
}

fn excerpt(bytes: &[u8]) -> String {
    let (shown, more) = (&bytes[..bytes.len().min(EXCERPT_BYTES)], bytes.len().saturating_sub(EXCERPT_BYTES));
    let more = if more > 0 { format!(" and {more} bytes more") } else { String::new() };
    format!("\"{}\"{more}", shown.escape_ascii())
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

// The rules; those that `consensus_testkit::state_machine` also has are the same there.
const NEW: &str = "a new machine has applied nothing";
const ONE_EACH: &str = "every entry has one response, which is empty if the entry has no command";
const POSITION: &str = "the applied position is that of the last entry, with or without a command";
const RESPONSES: &str = "an entry has the same response on every node, after a restart or restore, and in any division into batches";
const STATES: &str = "nodes at the same position have the same state";
const RESTORED: &str = "a restore replaces the whole state, including the applied position";
const FLUSHED: &str = "the flushed position is not after the applied position";
const FAILS: &str =
    "no call fails or panics: an invalid command gets a response, which is the same on every node";
const OWN: &str = "the guest's own checks";

/// Purpose of the random numbers of guests' commands; no other purpose is as large.
const PURPOSE: u64 = 1 << 63;
/// States are compared at multiples of this index: often enough to be close to a mistake, although digests can be expensive.
const DIGEST_EVERY: u64 = 8;
/// Maximum bytes of commands and responses in a failure message.
const EXCERPT_BYTES: usize = 60;
