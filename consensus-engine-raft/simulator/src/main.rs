//! `raft-sim`: runs, repeats and shows simulated clusters.

use std::{
    num::NonZero,
    ops::{ControlFlow, Range},
    panic,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, Subcommand};
use consensus_raft_simulator::{
    Options, Outcome, RARE, RARE_MISTAKES, Totals, model, page, run, shrink, sweep,
};

/// Runs, repeats and shows simulated Raft clusters.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed and print its trace.
    Run {
        /// The seed.
        seed: u64,
        /// Print every message, too.
        #[arg(long)]
        all: bool,
        /// Number of last lines to print.
        #[arg(long, default_value_t = 200)]
        last: usize,
        /// Numbers of faults to leave out, as printed by --shrink.
        #[arg(long, value_delimiter = ',')]
        skip: Vec<u64>,
        /// Write the time-space diagram to this HTML file.
        #[arg(long)]
        page: Option<PathBuf>,
        /// If the run fails, search for the smallest run that fails.
        #[arg(long)]
        shrink: bool,
        /// Include mistakes of operators.
        #[arg(long)]
        mistakes: bool,
    },
    /// Run many seeds. Fails if a seed fails, or if a rare event never occurred.
    Sweep {
        /// First seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Number of seeds.
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// Stop after this number of seconds.
        #[arg(long)]
        seconds: Option<u64>,
        /// Stop after this number of simulated hours.
        #[arg(long)]
        hours: Option<u64>,
        /// Do not require rare events.
        #[arg(long)]
        any: bool,
        /// Stop at the first failure, and print the time until it was found.
        #[arg(long)]
        first: bool,
        /// Include mistakes of operators.
        #[arg(long)]
        mistakes: bool,
    },
    /// Check all states of small clusters.
    ModelCheck {
        /// Names of the scenarios; all by default.
        names: Vec<String>,
        /// Maximum number of states of each scenario.
        #[arg(long, default_value_t = 1_000_000)]
        states: u64,
        /// Maximum number of seconds for each scenario.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

fn main() -> ExitCode {
    // A failed check panics; its message is in the outcome.
    if std::env::var_os("RAFT_SIM_BACKTRACE").is_none() {
        panic::set_hook(Box::new(|_| ()));
    }
    match Arguments::parse().command {
        Command::Run { seed, all, last, skip, page, shrink, mistakes } => {
            let skip = skip.into_iter().collect();
            let options = Options { seed, keeps_trace: true, skip, mistakes, ..Options::default() };
            one(&options, all, last, page, shrink)
        }
        Command::Sweep { from, seeds, seconds, hours, any, first, mistakes } => {
            let failures_max = if first { 1 } else { FAILURES_MAX };
            let extent = Extent { time: seconds.map(Duration::from_secs), hours, failures_max };
            let options = Options { mistakes, ..Options::default() };
            sweep_seeds(&options, from..from.saturating_add(seeds), extent, any)
        }
        Command::ModelCheck { names, states, seconds } => {
            model_check(&names, states, Duration::from_secs(seconds))
        }
    }
}

fn one(
    options: &Options,
    all: bool,
    last: usize,
    page_at: Option<PathBuf>,
    wants_smallest: bool,
) -> ExitCode {
    let seed = options.seed;
    let mut outcome = run(options);
    if wants_smallest && let Some((options, smallest)) = shrink(options) {
        let skip: Vec<String> = options.skip.iter().map(u64::to_string).collect();
        println!("the smallest run that fails leaves out these faults: --skip {}", skip.join(","));
        outcome = smallest;
    }
    if let Some(path) = page_at {
        match page(seed, &outcome).map_err(std::io::Error::other).and_then(|page| std::fs::write(&path, page))
        {
            Ok(()) => println!("the time-space diagram is in {}", path.display()),
            Err(error) => {
                println!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    let text = outcome.trace.describe();
    let lines: Vec<&str> =
        text.lines().filter(|line| all || !(line.contains("<-") || line.contains("lost:"))).collect();
    for line in &lines[lines.len().saturating_sub(last)..] {
        println!("{line}");
    }
    println!("{}{:?}", outcome.overview, outcome.plan);
    let Outcome { failure, trace, simulated_us, faults_injected, operations, .. } = outcome;
    println!(
        "seed {seed}: {} ms simulated, {faults_injected} faults, {operations} operations, trace {:016x}",
        simulated_us / 1000,
        trace.hash
    );
    match failure {
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
        None => ExitCode::SUCCESS,
    }
}

fn model_check(names: &[String], states: u64, time: Duration) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (mut total, mut violated, mut complete, mut begun) = (0, false, Vec::new(), Vec::new());
    for scenario in model::scenarios() {
        if !names.is_empty() && !names.iter().any(|name| name == scenario.name) {
            continue;
        }
        let found = match model::search(&scenario, model::Limits { states, time, threads }) {
            Ok(found) => found,
            Err(why) => {
                println!("{}: {why}", scenario.name);
                return ExitCode::FAILURE;
            }
        };
        total += found.states;
        if found.is_complete { &mut complete } else { &mut begun }.push(scenario.name);
        let extent = if found.is_complete { "all" } else { "the first" };
        println!(
            "{:20} {extent} {} states, {} steps, {} deep, {:.1} s: {}",
            scenario.name,
            found.states,
            found.steps,
            found.depth,
            found.took.as_secs_f64(),
            scenario.text
        );
        if let Some((why, way)) = found.violation {
            println!("{way}VIOLATION in scenario {}: {why}", scenario.name);
            violated = true;
        }
    }
    println!("complete, all states explored: {}", complete.join(", "));
    println!("explored up to the bound: {}", begun.join(", "));
    println!("{total} distinct states");
    if violated { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[derive(Default)]
struct Swept {
    totals: Totals,
    mistakes: bool,
    failures: u64,
    /// Lowest seed that failed.
    first_failure: Option<u64>,
}

/// Limits that end a sweep before its last seed.
struct Extent {
    /// Real time after which the sweep ends.
    time: Option<Duration>,
    /// Simulated hours after which the sweep ends.
    hours: Option<u64>,
    /// Number of failures at which the sweep ends.
    failures_max: u64,
}

/// Number of failures at which a sweep ends, because more of them mostly repeat the first ones.
const FAILURES_MAX: u64 = 20;

fn sweep_seeds(options: &Options, seeds: Range<u64>, extent: Extent, any: bool) -> ExitCode {
    let mut swept = Swept { mistakes: options.mistakes, ..Swept::default() };
    let began = Instant::now();
    sweep(options, seeds, |seed, outcome| {
        swept.add(seed, &outcome);
        let late = extent.time.is_some_and(|time| began.elapsed() >= time);
        let enough = extent.hours.is_some_and(|hours| swept.totals.simulated_us >= hours * 3_600_000_000);
        let ends = late || enough || swept.failures >= extent.failures_max;
        if ends { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if let Some(seed) = swept.first_failure.filter(|_| extent.failures_max == 1) {
        println!("first failure: seed {seed} after {:.2} s", began.elapsed().as_secs_f64());
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    swept.report(began.elapsed(), threads, any)
}

impl Swept {
    fn add(&mut self, seed: u64, outcome: &Outcome) {
        self.totals.add(outcome);
        if let Some(failure) = &outcome.failure {
            let mistakes = if self.mistakes { " ARGS=--mistakes" } else { "" };
            println!("seed {seed} FAILED: {failure}\n  replay: make sim SEED={seed}{mistakes}");
            self.failures += 1;
            self.first_failure = Some(self.first_failure.map_or(seed, |first| first.min(seed)));
        }
    }

    fn report(&self, took: Duration, threads: usize, any: bool) -> ExitCode {
        let totals = &self.totals;
        for (what, count) in &totals.reached {
            println!("{count:>10}  {what}");
        }
        let rare = if self.mistakes { RARE_MISTAKES } else { RARE };
        let missing: Vec<_> = rare.iter().filter(|what| !totals.reached.contains_key(*what)).collect();
        if !any && !missing.is_empty() {
            println!("rare events that never occurred: {missing:?}");
        }
        let (seconds, simulated) = (took.as_secs_f64() * threads as f64, totals.simulated_us as f64 / 1e6);
        println!(
            "{} seeds, {:.1} simulated hours, {} faults, {} operations in {} histories: {} failed; {:.0} times real time and {:.0} seeds a minute, per core",
            totals.seeds,
            simulated / 3600.0,
            totals.faults_injected,
            totals.operations,
            totals.reached.get("history checked").unwrap_or(&0),
            self.failures,
            simulated / seconds,
            totals.seeds as f64 * 60.0 / seconds,
        );
        if self.failures == 0 && (any || missing.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
