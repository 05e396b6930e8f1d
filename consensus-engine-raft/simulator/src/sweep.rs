//! Runs many seeds on all cores, optionally with a guest.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZero,
    ops::{ControlFlow, Range},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    guest::{AnyGuest, Guest},
    run::{Options, Outcome, run, shrink},
};

/// Totals of several runs.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Number of runs.
    pub seeds: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Number of injected faults.
    pub faults_injected: u64,
    /// Number of client operations.
    pub operations: u64,
    /// Number of occurrences of each event.
    pub reached: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Adds a run.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_us += outcome.simulated_us;
        self.faults_injected += outcome.faults_injected;
        self.operations += outcome.operations;
        for (what, count) in &outcome.reached {
            *self.reached.entry(what).or_insert(0) += count;
        }
    }
}

/// Runs `options` with each of `seeds` on all cores, until `visit` returns `Break`. Seeds that have started by then are
/// completed and visited, so that every seed below a visited one is visited, too.
pub fn sweep(
    options: &Options,
    seeds: Range<u64>,
    visit: impl FnMut(u64, Outcome) -> ControlFlow<()> + Send,
) {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (next, enough, visit) = (AtomicU64::new(seeds.start), AtomicBool::new(false), Mutex::new(visit));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        break;
                    }
                    let outcome = run(&Options { seed, ..options.clone() });
                    let mut visit = visit.lock().unwrap_or_else(PoisonError::into_inner);
                    if visit(seed, outcome).is_break() {
                        enough.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

/// Runs a state machine in the clusters of `seeds` on all cores; [`Guest`] lists the checks.
///
/// With `RAFT_SIM_SEED=7` in the environment only seed 7 is run, and a failure includes the trace of its smallest run.
///
/// # Errors
/// The first failure with its seed. `Debug` shows the same text as `Display`, so that `unwrap` prints it readably.
pub fn run_guest(guest: impl Guest, seeds: Range<u64>) -> Result<Totals, GuestFailure> {
    let options = Options { guest: Some(AnyGuest::new(guest)), ..Options::default() };
    let only = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse::<u64>().ok());
    let (mut totals, mut failed) = (Totals::default(), BTreeMap::new());
    sweep(&options, only.map_or(seeds, |seed| seed..seed + 1), |seed, outcome| {
        totals.add(&outcome);
        match outcome.failure {
            Some(failure) => {
                failed.insert(seed, failure);
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        }
    });
    match failed.pop_first() {
        Some((seed, why)) => Err(GuestFailure::of(Options { seed, ..options }, why, only.is_some())),
        None => Ok(totals),
    }
}

/// Failure of a guest, or of a cluster with a guest.
pub struct GuestFailure {
    /// Options of the run: [`run`] repeats it, [`shrink`] reduces it.
    pub options: Options,
    /// Message of the check that failed.
    pub why: String,
    /// Result of another run of the seed, and how to proceed.
    advice: String,
}

impl GuestFailure {
    fn of(options: Options, why: String, tells: bool) -> Self {
        let (seed, again) = (options.seed, run(&options).failure.unwrap_or_else(|| "it passed".to_owned()));
        let mut advice = String::new();
        if again != why {
            advice = format!("seed {seed}, run again: {again}\n{OTHERWISE}\n");
        }
        match tells.then(|| shrink(&options)).flatten() {
            Some(smallest) => advice.push_str(&describe_smallest(&smallest)),
            None => advice.push_str(&format!("replay and shrink it: {SEED_VARIABLE}={seed} {TEST_COMMAND}")),
        }
        Self { options, why, advice }
    }
}

impl fmt::Display for GuestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}\n{}", self.options.seed, self.why, self.advice)
    }
}

impl fmt::Debug for GuestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for GuestFailure {}

/// The end of a run's trace, and how to get it from a program.
fn describe_smallest((options, outcome): &(Options, Outcome)) -> String {
    let told = outcome.trace.describe();
    let lines: Vec<&str> = told.lines().filter(|line| !line.contains("<-")).collect();
    let last = lines[lines.len().saturating_sub(TRACE_LINES)..].join("\n");
    format!(
        "the smallest run that fails leaves out the faults {:?} (Options::skip) and has {} left; its end, without \
         messages (all of it: shrink, Trace::describe, page):\n{last}",
        options.skip, outcome.faults_injected
    )
}

const OTHERWISE: &str = "    The same seed ended differently: the state machine depends on more than the entries, such as a clock, \
                         a random source, the order of a hash map, or state that instances share.";
const TEST_COMMAND: &str = "cargo test NAME_OF_THIS_TEST";
const SEED_VARIABLE: &str = "RAFT_SIM_SEED";
/// Number of trace lines that are printed.
const TRACE_LINES: usize = 80;
