//! Conformance suite for implementations of [`LogStorage`].
//!
//! [`run_suite`] needs two functions: one creates an empty place, the other opens the storage in it. A place outlives the
//! storage. For a storage on disk it is a directory:
//! ```
//! use consensus_testkit::{MemLogStorage, log_storage};
//!
//! // For yours: `run_suite(|| tempfile::tempdir().unwrap(), |dir| YourStorage::open(dir.path()).unwrap())`
//! log_storage::run_suite(MemLogStorage::new, MemLogStorage::clone);
//!
//! // If your tests can make the disk fail or fill it:
//! log_storage::run_failing_disk_suite(MemLogStorage::new, MemLogStorage::clone, MemLogStorage::fail_writes);
//! log_storage::run_full_disk_suite(MemLogStorage::new, MemLogStorage::clone, MemLogStorage::fill);
//! ```
//! What this is *not*: a test of crashes during a write, or of damaged records. Both need knowledge of the files.

mod batches;
mod concurrency;
mod disk;
mod model;
pub mod workload;

pub use disk::{failing_disk_rules, full_disk_rules, run_failing_disk_suite, run_full_disk_suite};

use consensus_core::{Entry, LogBatch, LogId, LogState, LogStorage, StorageId};

use crate::{MemLogStorage, rule};

/// Checks an implementation. `new` creates an empty place (a directory). `open` opens the storage in it; it is called
/// repeatedly, each time after the previous storage was dropped.
///
/// # Panics
/// A rule is broken; the message names it.
pub fn run_suite<P, S: LogStorage>(new: impl Fn() -> P, open: impl Fn(&P) -> S) {
    for (rule, case) in cases::<S>() {
        let (place, other) = (new(), new());
        let place = Place { open: &|| open(&place), open_other: &|| open(&other) };
        rule::check(SUITE, rule, || case(&place));
    }
    for seed in 0..20 {
        let place = new();
        rule::check(SUITE, MODEL_RULE, || model::random_batches(&|| open(&place), seed));
    }
}

/// The rules of [`run_suite`], in the order in which they are checked.
#[must_use]
pub fn rules() -> Vec<&'static str> {
    cases::<MemLogStorage>().into_iter().map(|(rule, _)| rule).chain([MODEL_RULE]).collect()
}

fn cases<S: LogStorage>() -> [(&'static str, fn(&Place<'_, S>)); 13] {
    [
        ("an empty storage loads as the default", batches::empty),
        ("a storage keeps its identity and shares it with no other", batches::identity),
        ("a batch whose write returned Ok is present after reopening", batches::durable),
        ("a batch without hard state keeps the previous one", batches::hard_state_stays),
        ("truncation and append in one batch replace the tail", batches::replace_tail),
        ("a truncation beyond the last entry removes nothing", batches::truncate_beyond),
        ("purged entries are missing, and the configuration at the purged position is kept", batches::purge),
        ("a purge beyond the last entry restarts the log after it", batches::purge_beyond),
        ("a purge or truncation below the purged position does not move it back", batches::purge_below),
        ("a read is limited in bytes, but returns at least one entry", batches::bounded_reads),
        (
            "a read beyond the end returns the existing entries, or reports the first missing index",
            batches::read_beyond,
        ),
        (
            "entries that do not follow the log are refused, and nothing of their batch is written",
            batches::gap,
        ),
        ("a read during a write returns complete entries in order", concurrency::read_during_write),
    ]
}

/// The place of the storage under test, and another place.
struct Place<'a, S> {
    open: &'a dyn Fn() -> S,
    open_other: &'a dyn Fn() -> S,
}

impl<S> Place<'_, S> {
    fn open(&self) -> S {
        (self.open)()
    }
}

/// The loaded state without the storage's identity.
fn load(storage: &impl LogStorage) -> LogState {
    LogState { storage: StorageId::default(), ..storage.load().unwrap() }
}

fn command(term: u64, index: u64) -> Entry {
    Entry::command(LogId::new(term, index), format!("command {term}.{index}"))
}

fn append(entries: impl IntoIterator<Item = Entry>) -> LogBatch {
    LogBatch { entries: entries.into_iter().collect(), ..LogBatch::default() }
}

const SUITE: &str = "log storage";
const MODEL_RULE: &str = "any sequence of batches has the same effect as on the model";
