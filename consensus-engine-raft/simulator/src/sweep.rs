//! Many seeds, on all cores; and those of a guest.

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

/// What runs came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// How many runs.
    pub seeds: u64,
    /// Simulated time, in microseconds.
    pub simulated_us: u64,
    /// Troubles that were brought.
    pub faults: u64,
    /// Operations of clients.
    pub operations: u64,
    /// How often what came about.
    pub reached: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// Counts a run in.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_us += outcome.simulated_us;
        self.faults += outcome.faults;
        self.operations += outcome.operations;
        for (what, count) in &outcome.reached {
            *self.reached.entry(what).or_insert(0) += count;
        }
    }
}

/// Runs `options` with each of `seeds`, on all cores, until `visit` says that it is enough. The seeds that have begun by
/// then are ended, and visited: all that are less than one that was.
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

/// Runs a state machine of yours in the clusters of `seeds`, on all cores; what is checked is in [`Guest`].
///
/// With `RAFT_SIM_SEED=7` in the environment only seed 7 is run, and a failure tells the story of its smallest run.
///
/// # Errors
/// What went wrong first, with the seed; it shows the same as `Debug`, so that `unwrap` prints it as it should be read.
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

/// A guest failed, or the cluster did in which it was.
pub struct GuestFailure {
    /// What failed: [`run`] repeats it, [`shrink`] makes it smaller.
    pub options: Options,
    /// What a checker found.
    pub why: String,
    /// What another run of the seed says of it, and how to go on.
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
            Some(smallest) => advice.push_str(&story(&smallest)),
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

/// The end of a run, and how to have it from a program.
fn story((options, outcome): &(Options, Outcome)) -> String {
    let told = outcome.trace.tell();
    let lines: Vec<&str> = told.lines().filter(|line| !line.contains("<-")).collect();
    let last = lines[lines.len().saturating_sub(STORY_LINES)..].join("\n");
    format!(
        "the smallest run that fails leaves out the troubles {:?} (Options::skip) and has {} left; its end, without \
         messages (all of it: shrink, Trace::tell, page):\n{last}",
        options.skip, outcome.faults
    )
}

const OTHERWISE: &str = "    The same seed ended differently: something besides the entries has a say, such as a clock, \
                         a random source, the order of a hash map, or what instances share.";
const TEST_COMMAND: &str = "cargo test NAME_OF_THIS_TEST";
const SEED_VARIABLE: &str = "RAFT_SIM_SEED";
/// A screen or two.
const STORY_LINES: usize = 80;
